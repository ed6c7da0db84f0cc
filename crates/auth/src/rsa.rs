//! An RSA key out of a secret: the same secret always gives the same key.
//!
//! So servers that share a secret by hand share the key, whoever of them needs it first. `ring` signs with RSA but
//! makes no keys; it checks each one that comes from here when it reads it. Nothing here is secret-independent in
//! time: it runs once in the life of a key, at nobody's request.
//! Deliberately not here: files, signatures (`keys`).

use num_bigint::BigUint;
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// Octets of a prime: the modulus has 2048 bits, as kubeadm's.
const PRIME_OCTETS: usize = 128;
const EXPONENT: u32 = 65_537;
/// Candidates with a divisor below this are not tested any further.
const SIEVE_MAX: u32 = 4_096;
/// How far above its start a search goes: a prime of this size is some 710 apart from the next on average.
const SEARCH_MAX: u32 = 1 << 16;
/// Rounds of Miller and Rabin: FIPS 186-5 asks for 5 at this size.
const ROUNDS: usize = 8;
/// PKCS#8's name of RSA keys with its empty parameters.
const RSA_ENCRYPTION: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Octets that look random to who does not know the secret.
struct Stream {
    secret: Prk,
    taken: u32,
}

struct Octets(usize);

impl KeyType for Octets {
    fn len(&self) -> usize {
        self.0
    }
}

impl Stream {
    fn take(&mut self, octets: usize) -> Option<Vec<u8>> {
        self.taken += 1;
        let mut out = vec![0; octets];
        let info = [&self.taken.to_be_bytes()[..]];
        self.secret.expand(&info, Octets(octets)).ok()?.fill(&mut out).ok()?;
        Some(out)
    }
}

/// The key of a secret, PKCS#8. `None` does not happen: a search would have to find no prime.
pub fn derive(secret: &[u8]) -> Option<Vec<u8>> {
    let secret = Salt::new(HKDF_SHA256, b"gantry service account RSA key").extract(secret);
    let mut stream = Stream { secret, taken: 0 };
    let sieve = small_primes();
    let (one, p) = (prime(&mut stream, &sieve)?, prime(&mut stream, &sieve)?);
    let (p, q) = if p > one { (p, one) } else { (one, p) };
    let (below_p, below_q) = (&p - 1u32, &q - 1u32);
    let d = BigUint::from(EXPONENT).modinv(&(&below_p * &below_q))?;
    let numbers = [
        BigUint::from(0u32),
        &p * &q,
        BigUint::from(EXPONENT),
        d.clone(),
        p.clone(),
        q.clone(),
        &d % &below_p,
        &d % &below_q,
        q.modinv(&p)?,
    ];
    let key: Vec<u8> = numbers.iter().flat_map(integer).collect();
    let key = tagged(OCTETS, &tagged(SEQUENCE, &key));
    Some(tagged(SEQUENCE, &[&integer(&BigUint::from(0u32))[..], &RSA_ENCRYPTION, &key].concat()))
}

/// Odd primes up to [`SIEVE_MAX`].
fn small_primes() -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    for n in (3..SIEVE_MAX).step_by(2) {
        if found.iter().all(|p| n % p != 0) {
            found.push(n);
        }
    }
    found
}

/// The first prime after a random number with its two highest bits set.
fn prime(stream: &mut Stream, sieve: &[u32]) -> Option<BigUint> {
    let mut start = stream.take(PRIME_OCTETS)?;
    *start.first_mut()? |= 0xc0;
    *start.last_mut()? |= 1;
    let start = BigUint::from_bytes_be(&start);
    let remainder = |p: u32| (&start % p).to_u32_digits().first().copied().unwrap_or(0);
    let remainders: Vec<(u32, u32)> = sieve.iter().map(|p| (*p, remainder(*p))).collect();
    for step in (0..SEARCH_MAX).step_by(2) {
        if remainders.iter().any(|(p, left)| (left + step) % p == 0) {
            continue;
        }
        let candidate = &start + step;
        // The exponent must have an inverse.
        let fits = &candidate % EXPONENT != BigUint::from(1u32);
        if fits && is_prime(&candidate, stream)? {
            return Some(candidate);
        }
    }
    None
}

/// Miller and Rabin's test of an odd number.
fn is_prime(n: &BigUint, stream: &mut Stream) -> Option<bool> {
    let (one, below) = (BigUint::from(1u32), n - 1u32);
    let twos = below.trailing_zeros()?;
    let odd = &below >> twos;
    for round in 0..ROUNDS {
        // Two is the cheapest first question; nearly all that are not prime end there.
        let base = match round {
            0 => BigUint::from(2u32),
            _ => BigUint::from_bytes_be(&stream.take(PRIME_OCTETS - 1)?) + 2u32,
        };
        let mut power = base.modpow(&odd, n);
        let mut left = twos;
        while power != one && power != below {
            left -= 1;
            if left == 0 {
                return Some(false);
            }
            power = &power * &power % n;
        }
        if power == one && left != twos {
            return Some(false);
        }
    }
    Some(true)
}

/// A DER element.
pub fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_be_bytes();
    let short = &length[length.iter().take_while(|b| **b == 0).count()..];
    let mut out = vec![tag];
    match (body.len(), short) {
        (0..=0x7f, _) => out.push(body.len() as u8),
        (_, short) => {
            out.push(0x80 | short.len() as u8);
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(body);
    out
}

fn integer(number: &BigUint) -> Vec<u8> {
    let mut octets = number.to_bytes_be();
    if octets.first().is_some_and(|b| b & 0x80 != 0) {
        octets.insert(0, 0);
    }
    tagged(INTEGER, &octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_others() {
        let mut stream = Stream { secret: Salt::new(HKDF_SHA256, b"").extract(b"x"), taken: 0 };
        let mut test = |n: u32| is_prime(&BigUint::from(n), &mut stream).unwrap();
        // Carmichael numbers and strong pseudoprimes to base 2 among them.
        for (n, wanted) in
            [(65_537, true), (2_147_483_647, true), (561, false), (2_047, false), (3_215_031_751, false)]
        {
            assert_eq!(test(n), wanted, "{n}");
        }
        assert_eq!(small_primes()[..5], [3, 5, 7, 11, 13]);
        assert_eq!(small_primes().len(), 563);
    }

    #[test]
    fn lengths_are_written_as_der_wants_them() {
        assert_eq!(tagged(4, &[]), [4, 0]);
        assert_eq!(tagged(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(tagged(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(tagged(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
        assert_eq!(integer(&BigUint::from(128u32)), [2, 2, 0, 128]);
    }
}

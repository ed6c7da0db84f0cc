//! Digests that S3's clients send along and expect back: MD5 (entity tags) and the CRCs. Pure.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::Digest;

/// Headers with a digest of the whole body that are checked; others are taken as they come.
pub const CHECKED: [&str; 5] = [
    "content-md5",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha256",
];

/// The digest that a header of [`CHECKED`] must hold for this body, in base64.
pub fn expected(header: &str, body: &[u8]) -> Option<String> {
    let bytes = match header {
        "content-md5" => md5(body).to_vec(),
        "x-amz-checksum-crc32" => crc32fast::hash(body).to_be_bytes().to_vec(),
        // Castagnoli's polynomial, reflected.
        "x-amz-checksum-crc32c" => {
            (crc(body, 0x82f6_3b78, u64::from(u32::MAX)) as u32).to_be_bytes().to_vec()
        }
        "x-amz-checksum-crc64nvme" => crc(body, 0x9a6c_9329_ac4b_c9b5, u64::MAX).to_be_bytes().to_vec(),
        "x-amz-checksum-sha256" => sha2::Sha256::digest(body).to_vec(),
        _ => return None,
    };
    Some(BASE64_STANDARD.encode(bytes))
}

/// A reflected CRC whose register starts and ends inverted by `mask`.
fn crc(body: &[u8], polynomial: u64, mask: u64) -> u64 {
    let step =
        |value: u64| (0..8).fold(value, |v, _| if v & 1 == 1 { (v >> 1) ^ polynomial } else { v >> 1 });
    let table: Vec<u64> = (0..256).map(step).collect();
    body.iter().fold(mask, |v, byte| table[((v as u8) ^ byte) as usize] ^ (v >> 8)) ^ mask
}

/// MD5 (RFC 1321), for entity tags: nothing here trusts it.
pub fn md5(body: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let constants: Vec<u32> = (1..=64).map(|i| (f64::from(i).sin().abs() * 4_294_967_296.0) as u32).collect();
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let whole = body.len() / 64 * 64;
    let mut tail = body[whole..].to_vec();
    tail.push(0x80);
    tail.resize(if tail.len() > 56 { 120 } else { 56 }, 0);
    tail.extend((body.len() as u64).wrapping_mul(8).to_le_bytes());
    for block in body[..whole].chunks(64).chain(tail.chunks(64)) {
        let words: Vec<u32> = block.chunks(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            let sum = a.wrapping_add(mixed).wrapping_add(constants[i]).wrapping_add(words[word]);
            (a, d, c, b) = (d, c, b, b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4])));
        }
        for (old, new) in state.iter_mut().zip([a, b, c, d]) {
            *old = old.wrapping_add(new);
        }
    }
    let mut out = [0; 16];
    for (place, word) in out.chunks_mut(4).zip(state) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_the_check_word() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&md5(b"")), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(hex(&md5(b"message digest")), "f96b697d7cb7938d525a2f31aaf161d0");
        assert_eq!(hex(&md5(&[b'1'; 60])), hex(&md5("1".repeat(60).as_bytes())));
        assert_eq!(
            hex(&md5("12345678901234567890".repeat(4).as_bytes())),
            "57edf4a22be3c955ac49da2e2107b67a"
        );
        // The catalogue's check values of "123456789".
        assert_eq!(crc(b"123456789", 0x82f6_3b78, u64::from(u32::MAX)), 0xe306_9283);
        assert_eq!(crc(b"123456789", 0x9a6c_9329_ac4b_c9b5, u64::MAX), 0xae8b_1486_0a79_9888);
        assert_eq!(expected("x-amz-checksum-crc32", b"123456789").unwrap(), "y/Q5Jg==");
        assert_eq!(expected("x-amz-checksum-sha1", b""), None);
    }
}

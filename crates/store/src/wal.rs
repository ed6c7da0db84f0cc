//! Looks for damage in SQLite's write-ahead log before SQLite opens it.
//!
//! SQLite takes the first frame that fails its checksum for the end of the log, which is right after a
//! power cut: only the last transaction, never acknowledged, can be torn. But a flipped bit in the middle
//! looks the same and would silently undo acknowledged writes (S1). The difference: behind a damaged frame
//! stand a commit and frames of a *later* transaction, which SQLite only writes after the commit's fsync.
//!
//! Pure: bytes in, verdict out. The layout is SQLite's "WAL File Format" (fileformat2.html, section 4).
//! Not detectable here: damage within the very last transaction (it looks torn), or a log cut at a
//! transaction's end.

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The magic number, less its lowest bit, which says that checksums are big-endian.
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES_MAX: usize = 65536;

/// The damage found, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    Header,
    /// Counted from 1.
    Frame(usize),
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Header => f.write_str("its header is damaged"),
            Damage::Frame(number) => write!(f, "frame {number} is damaged"),
        }
    }
}

type Sum = (u32, u32);

struct Log<'a> {
    salt: &'a [u8],
    big_endian: bool,
    frames: Vec<&'a [u8]>,
}

impl Log<'_> {
    fn in_generation(&self, frame: usize) -> bool {
        self.frames[frame][8..16] == *self.salt
    }

    fn ends_a_transaction(&self, frame: usize) -> bool {
        word(self.frames[frame], 4) != 0
    }

    fn stored(&self, frame: usize) -> Sum {
        (word(self.frames[frame], 16), word(self.frames[frame], 20))
    }

    /// Whether a frame is of this log's generation and right behind a frame with this checksum.
    fn follows(&self, frame: usize, sum: Sum) -> bool {
        let bytes = self.frames[frame];
        let sum = checksum(self.big_endian, &bytes[..8], sum);
        self.in_generation(frame)
            && checksum(self.big_endian, &bytes[FRAME_HEADER_BYTES..], sum) == self.stored(frame)
    }

    /// Whether frames of a later transaction stand behind this broken one.
    fn later_transaction_behind(&self, broken: usize) -> bool {
        // The frame right behind may not check either: its checksum starts from one that may be broken.
        let mut committed = false;
        for frame in broken..self.frames.len() {
            let linked = frame > broken && self.follows(frame, self.stored(frame - 1));
            // A link proves that the frame before it is of this generation, even if its salt was hit.
            if linked && (committed || self.ends_a_transaction(frame - 1)) {
                return true;
            }
            if !linked && frame > broken + 1 {
                return false;
            }
            committed |= self.in_generation(frame) && self.ends_a_transaction(frame);
        }
        false
    }
}

/// Finds damage that no crash explains. A torn tail and what older logs left behind are no damage.
pub(crate) fn check(log: &[u8]) -> Result<(), Damage> {
    let Some(header) = log.get(..HEADER_BYTES) else { return Ok(()) };
    if header.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let big_endian = word(header, 0) & 1 == 1;
    let page_bytes = word(header, 8) as usize;
    let start: Sum = (word(header, 24), word(header, 28));
    if word(header, 0) & !1 != MAGIC
        || !page_bytes.is_power_of_two()
        || page_bytes > PAGE_BYTES_MAX
        || checksum(big_endian, &header[..24], (0, 0)) != start
    {
        return Err(Damage::Header);
    }
    let frames = log[HEADER_BYTES..].chunks_exact(FRAME_HEADER_BYTES + page_bytes).collect();
    let log = Log { salt: &header[16..24], big_endian, frames };
    let mut sum = start;
    for frame in 0..log.frames.len() {
        if !log.follows(frame, sum) {
            let damaged = log.later_transaction_behind(frame);
            return if damaged { Err(Damage::Frame(frame + 1)) } else { Ok(()) };
        }
        sum = log.stored(frame);
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// SQLite's running checksum over pairs of 32-bit words.
fn checksum(big_endian: bool, bytes: &[u8], (mut a, mut b): Sum) -> Sum {
    let load = |w: &[u8]| {
        let value = word(w, 0);
        if big_endian { value } else { value.swap_bytes() }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(load(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(load(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 512;
    const FRAME: usize = FRAME_HEADER_BYTES + PAGE;

    fn put(bytes: &mut [u8], at: usize, value: u32) {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn seal(frame: &mut [u8], sum: Sum) -> Sum {
        let sum = checksum(false, &frame[..8], sum);
        let sum = checksum(false, &frame[FRAME_HEADER_BYTES..], sum);
        put(frame, 16, sum.0);
        put(frame, 20, sum.1);
        sum
    }

    /// A log of transactions, each of so many frames.
    fn log(transactions: &[usize], salt: u32) -> Vec<u8> {
        let mut log = vec![0; HEADER_BYTES];
        put(&mut log, 0, MAGIC);
        put(&mut log, 4, 3_007_000);
        put(&mut log, 8, PAGE as u32);
        put(&mut log, 16, salt);
        let mut sum = checksum(false, &log[..24], (0, 0));
        put(&mut log, 24, sum.0);
        put(&mut log, 28, sum.1);
        for length in transactions {
            for number in 0..*length {
                let mut frame = vec![number as u8; FRAME];
                put(&mut frame, 0, number as u32 + 1);
                put(&mut frame, 4, if number + 1 == *length { 9 } else { 0 });
                put(&mut frame, 8, salt);
                put(&mut frame, 12, 0);
                sum = seal(&mut frame, sum);
                log.extend(frame);
            }
        }
        log
    }

    #[test]
    fn whole_empty_and_torn_logs_pass() {
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[0; 4096]), Ok(()));
        let whole = log(&[2, 3, 2], 7);
        for length in 0..=whole.len() {
            assert_eq!(check(&whole[..length]), Ok(()), "cut at {length}");
        }
        // What a longer, older log left behind the end of this one.
        let mut reused = log(&[2, 2, 2, 2], 6);
        let new = log(&[2, 3], 7);
        reused[..new.len()].copy_from_slice(&new);
        assert_eq!(check(&reused), Ok(()));
    }

    #[test]
    fn any_flip_before_the_last_transaction_is_damage() {
        let whole = log(&[2, 3, 2], 7);
        let last = HEADER_BYTES + 5 * FRAME;
        for at in (0..last).step_by(3).chain(HEADER_BYTES + 3 * FRAME..HEADER_BYTES + 3 * FRAME + 24) {
            for bit in [0x01, 0x80] {
                let mut flipped = whole.clone();
                flipped[at] ^= bit;
                assert!(check(&flipped).is_err(), "bit {bit:#x} of byte {at} flipped");
            }
        }
    }

    #[test]
    fn a_torn_last_transaction_is_none() {
        let whole = log(&[2, 3, 4], 7);
        // Its pages may reach the disk in any order, the commit frame before the others.
        for frame in 5..9 {
            let mut torn = whole.clone();
            let at = HEADER_BYTES + frame * FRAME;
            torn[at..at + FRAME].fill(0);
            assert_eq!(check(&torn), Ok(()), "frame {frame} lost");
        }
    }
}

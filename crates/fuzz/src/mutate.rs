//! Changes to inputs: bytes, words, comparisons' operands, pieces of other inputs. Pure but for its dice.

use std::ops::Range;

/// A small generator of numbers (xorshift).
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound` (1 when that is 0).
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

/// What changes draw on.
pub struct Matter<'a> {
    /// Words of the target.
    pub words: &'a [&'a str],
    /// Another input.
    pub other: &'a [u8],
    /// What the input's last run compared.
    pub compared: &'a [[u64; 2]],
    /// Longest input to make.
    pub bytes_max: usize,
}

const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "7",
    "65536",
    "2147483648",
    "-2147483649",
    "9223372036854775808",
    "1e309",
    "0.1",
    "00",
    "255",
];
const BYTES: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'}', b'/', b'\n', b'\\', b' '];

/// A changed copy of an input.
pub fn mutated(input: &[u8], matter: &Matter<'_>, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let most = 1 << dice.below(4);
    for _ in 0..=dice.below(most) {
        change(&mut bytes, matter, dice);
    }
    bytes.truncate(matter.bytes_max);
    bytes
}

fn change(bytes: &mut Vec<u8>, matter: &Matter<'_>, dice: &mut Dice) {
    let at = dice.below(bytes.len());
    match dice.below(13) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = dice.below(256) as u8,
        2 if !bytes.is_empty() => bytes[at] = *dice.of(&BYTES).expect("some bytes"),
        3 => bytes.insert(at, dice.below(256) as u8),
        4 => drop(bytes.drain(piece(bytes, dice))),
        5 => {
            let copy = bytes[piece(bytes, dice)].to_vec();
            bytes.splice(at..at, copy);
        }
        6 => {
            let copy = matter.other[piece(matter.other, dice)].to_vec();
            bytes.splice(at..at, copy);
        }
        7 => {
            let copy = matter.other[piece(matter.other, dice)].to_vec();
            bytes.splice(piece(bytes, dice), copy);
        }
        8 => {
            let word = dice.of(matter.words).map_or(&b""[..], |word| word.as_bytes());
            let range = if dice.below(2) == 0 { at..at } else { piece(bytes, dice) };
            bytes.splice(range, word.iter().copied());
        }
        9 => number(bytes, at, dice),
        10 => {
            let copy = bytes[piece(bytes, dice)].repeat(1 + dice.below(64));
            bytes.splice(at..at, copy.into_iter().take(matter.bytes_max));
        }
        _ => operand(bytes, matter, dice),
    }
}

/// A range, often between two places where the kind of character changes: a token, or some.
fn piece(bytes: &[u8], dice: &mut Dice) -> Range<usize> {
    let mut start = dice.below(bytes.len() + 1);
    let longest = 2 << dice.below(8);
    let mut end = (start + dice.below(longest)).min(bytes.len());
    if dice.below(2) == 0 {
        let class = |b: u8| if b.is_ascii_alphanumeric() { 0 } else { b };
        let breaks = |i: usize| i == 0 || i >= bytes.len() || class(bytes[i - 1]) != class(bytes[i]);
        start = (0..=start).rev().find(|i| breaks(*i)).unwrap_or(0);
        end = (end..=bytes.len()).find(|i| breaks(*i)).unwrap_or(bytes.len());
    }
    start..end
}

/// Replaces the digits around a place.
fn number(bytes: &mut Vec<u8>, at: usize, dice: &mut Dice) {
    let Some(first) = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else { return };
    let end = (first..bytes.len()).find(|i| !bytes[*i].is_ascii_digit()).unwrap_or(bytes.len());
    let text = dice.of(&NUMBERS).expect("some numbers");
    bytes.splice(first..end, text.bytes());
}

/// Puts what the input was compared with in place of what was compared.
fn operand(bytes: &mut [u8], matter: &Matter<'_>, dice: &mut Dice) {
    let Some(&[a, b]) = dice.of(matter.compared) else { return };
    let (from, to) = if dice.below(2) == 0 { (a, b) } else { (b, a) };
    let least = (8 - from.max(to).leading_zeros() as usize / 8).max(1);
    let width = [1, 2, 4, 8][dice.below(4)].max(least.next_power_of_two());
    let (mut old, mut new) =
        (from.to_be_bytes()[8 - width..].to_vec(), to.to_be_bytes()[8 - width..].to_vec());
    if dice.below(2) == 0 {
        old.reverse();
        new.reverse();
    }
    let places: Vec<usize> =
        bytes.windows(width).enumerate().filter(|(_, w)| *w == old).map(|(i, _)| i).collect();
    if let Some(at) = dice.of(&places) {
        bytes[*at..at + width].copy_from_slice(&new);
    }
}

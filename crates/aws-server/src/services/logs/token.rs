//! Tokens and event ids. Pure.
//!
//! A place among events is 56 digits, as AWS's are; `f/` or `b/` before it says which way `GetLogEvents` reads on.
//! A place in a list is the last name, with a check that it is ours and of this operation.

use super::invalid;
use crate::service::AwsError;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use logs::Position;
use sha2::{Digest, Sha256};

const DIGITS: usize = 56;
/// Bits of a stream's number and of an event's number in a position; times have the other 48.
const STREAM_BITS: u32 = 32;
const NUMBER_BITS: u32 = 48;
const CHECK_BYTES: usize = 4;

/// 56 digits for a place.
pub(super) fn digits(at: Position) -> String {
    let part = |value: u64, bits: u32| u128::from(value) & ((1 << bits) - 1);
    let number = (u128::from(at.timestamp_ms) << (STREAM_BITS + NUMBER_BITS))
        | (part(at.stream, STREAM_BITS) << NUMBER_BITS)
        | part(at.number, NUMBER_BITS);
    format!("{number:0DIGITS$}")
}

/// The place of 56 digits.
pub(super) fn position(digits: &str) -> Result<Position, AwsError> {
    let is_one = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u128>().ok().filter(|_| is_one).ok_or_else(bad)?;
    let part = |shift: u32, bits: u32| (number >> shift) as u64 & ((1 << bits) - 1);
    Ok(Position {
        timestamp_ms: part(STREAM_BITS + NUMBER_BITS, 48),
        stream: part(NUMBER_BITS, STREAM_BITS),
        number: part(0, NUMBER_BITS),
    })
}

/// A token that is none of ours.
pub(super) fn bad() -> AwsError {
    invalid("The specified nextToken is invalid.")
}

fn check(kind: &str, last: &str) -> [u8; CHECK_BYTES] {
    let sum = Sha256::digest(format!("{kind}\0{last}").as_bytes());
    [sum[0], sum[1], sum[2], sum[3]]
}

/// A list's token: go on after `last`.
pub(super) fn after(kind: &str, last: &str) -> String {
    URL_SAFE_NO_PAD.encode([&check(kind, last)[..], last.as_bytes()].concat())
}

/// What a list's token says; `None` without one.
pub(super) fn last(kind: &str, token: &str) -> Result<Option<String>, AwsError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (sum, last) = bytes.split_at_checked(CHECK_BYTES).ok_or_else(bad)?;
    let last = std::str::from_utf8(last).map_err(|_| bad())?;
    if sum == check(kind, last) { Ok(Some(last.into())) } else { Err(bad()) }
}

/// A page of a sorted list: what comes after the token's key, at most `limit`, and the next token.
pub(super) fn page<T>(
    kind: &str,
    token: &str,
    limit: usize,
    list: Vec<T>,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, Option<String>), AwsError> {
    let begin = match last(kind, token)? {
        None => 0,
        Some(last) => list.iter().position(|item| key(item) > last).unwrap_or(list.len()),
    };
    let more = list.len() > begin + limit;
    let page: Vec<T> = list.into_iter().skip(begin).take(limit).collect();
    let next = page.last().filter(|_| more).map(|item| after(kind, &key(item)));
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_lists() {
        let at = Position { timestamp_ms: 1_800_000_000_123, stream: 77, number: 1_234_567 };
        let text = digits(at);
        assert_eq!((text.len(), position(&text).unwrap()), (56, at));
        for bad in ["", "1", &"x".repeat(56), &"9".repeat(56)] {
            assert!(position(bad).is_err(), "{bad}");
        }
        let list = || vec!["a".to_string(), "b".into(), "c".into()];
        let (first, next) = page("k", "", 2, list(), Clone::clone).unwrap();
        assert_eq!(first, ["a", "b"]);
        let next = next.unwrap();
        assert_eq!(page("k", &next, 2, list(), Clone::clone).unwrap(), (vec!["c".to_string()], None));
        assert!(page("other", &next, 2, list(), Clone::clone).is_err());
        assert!(page("k", "AAAA", 2, list(), Clone::clone).is_err());
    }
}

//! Reading and splicing canonical JSON text without parsing it.
//!
//! Stored documents are compact (no blanks between tokens) with sorted keys, because only this crate writes
//! them. Reads put `metadata.resourceVersion` in by [`with_revision`], once per write, and selectors look at
//! single strings by [`string_at`]; neither builds a document.
//! Invariant: nothing here panics, whatever the bytes; what is not canonical JSON simply finds nothing.

use bytes::Bytes;
use std::ops::Range;

const VERSION_KEY: &[u8] = b"resourceVersion";

/// The document with `metadata.resourceVersion` set to `revision` (replaced when it is there already).
pub fn with_revision(document: &[u8], revision: u64) -> Bytes {
    let Some(metadata) = member(document, 0, b"metadata").filter(|r| document.get(r.start) == Some(&b'{'))
    else {
        return Bytes::copy_from_slice(document);
    };
    let mut number = itoa(revision);
    number.insert_str(0, "\"resourceVersion\":\"");
    number.push('"');
    let (cut, text) = match place(document, metadata.start) {
        Place::Replace(range) => (range, number),
        Place::Before(at) => (at..at, number + ","),
        Place::After(at) => (at..at, format!(",{number}")),
        Place::Only(at) => (at..at, number),
    };
    let mut out = Vec::with_capacity(document.len() + text.len());
    out.extend_from_slice(&document[..cut.start]);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&document[cut.end..]);
    out.into()
}

/// The string at a path of member names; `None` when absent, not a string, or written with escapes.
pub fn string_at<'a>(document: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let mut at = 0;
    let mut range = 0..document.len();
    for name in path {
        range = member(document, at, name.as_bytes())?;
        at = range.start;
    }
    let text = document.get(range)?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if text.contains(&b'\\') {
        return None;
    }
    std::str::from_utf8(text).ok()
}

enum Place {
    Replace(Range<usize>),
    Before(usize),
    After(usize),
    Only(usize),
}

/// Where the revision belongs in the object that opens at `at`.
fn place(document: &[u8], at: usize) -> Place {
    let mut last_end = None;
    for (key, value) in Members::new(document, at) {
        match document[key.clone()].cmp(VERSION_KEY) {
            std::cmp::Ordering::Less => last_end = Some(value.end),
            std::cmp::Ordering::Equal => return Place::Replace(key.start - 1..value.end),
            std::cmp::Ordering::Greater => return Place::Before(key.start - 1),
        }
    }
    last_end.map_or(Place::Only(at + 1), Place::After)
}

/// The value of a member of the object that opens at `at`.
fn member(document: &[u8], at: usize, name: &[u8]) -> Option<Range<usize>> {
    Members::new(document, at).find(|(key, _)| &document[key.clone()] == name).map(|(_, value)| value)
}

/// Iterates (key without quotes, value) ranges of an object.
struct Members<'a> {
    document: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    fn new(document: &'a [u8], open: usize) -> Self {
        let at = if document.get(open) == Some(&b'{') { open + 1 } else { document.len() };
        Members { document, at }
    }
}

impl Iterator for Members<'_> {
    type Item = (Range<usize>, Range<usize>);
    fn next(&mut self) -> Option<Self::Item> {
        if self.document.get(self.at) != Some(&b'"') {
            return None;
        }
        let key_end = skip_string(self.document, self.at)?;
        if self.document.get(key_end) != Some(&b':') {
            return None;
        }
        let value_end = skip_value(self.document, key_end + 1)?;
        let item = (self.at + 1..key_end - 1, key_end + 1..value_end);
        self.at = value_end + 1;
        Some(item)
    }
}

/// The index behind the string that opens at `at`.
fn skip_string(document: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match document.get(i)? {
            b'"' => return Some(i + 1),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
}

/// The index behind the value that begins at `at`.
fn skip_value(document: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut i = at;
    loop {
        match document.get(i)? {
            b'"' => {
                i = skip_string(document, i)?;
                if depth == 0 {
                    return Some(i);
                }
            }
            b'{' | b'[' => {
                depth += 1;
                i += 1;
            }
            b'}' | b']' if depth == 0 => return Some(i),
            b'}' | b']' => {
                depth -= 1;
                i += 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            b',' if depth == 0 => return Some(i),
            _ => i += 1,
        }
    }
}

fn itoa(number: u64) -> String {
    number.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn arb_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"\\\\]{0,4}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The dumb twin: parse, insert, print.
        #[test]
        fn splice_equals_parse_insert_print(
            before in arb_json(), after in arb_json(), metadata in prop::collection::btree_map("[a-z]{1,3}|resourceVersion|uid", arb_json(), 0..4)
        ) {
            let metadata: serde_json::Map<String, Value> = metadata.into_iter().collect();
            let mut document = json!({"data": before, "metadata": metadata, "spec": after});
            let text = serde_json::to_vec(&document).unwrap();
            document["metadata"]["resourceVersion"] = json!("42");
            prop_assert_eq!(with_revision(&text, 42), serde_json::to_vec(&document).unwrap());
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = with_revision(&bytes, 1);
            let _ = string_at(&bytes, &["a", "b"]);
        }

        #[test]
        fn finds_strings(value in "[^\"\\\\\u{0}-\u{1f}]{0,9}", other in arb_json()) {
            let text = serde_json::to_vec(&json!({"a": other, "spec": {"aa": other, "nodeName": value}})).unwrap();
            prop_assert_eq!(string_at(&text, &["spec", "nodeName"]), Some(value.as_str()));
            prop_assert_eq!(string_at(&text, &["spec", "missing"]), None);
        }
    }
}

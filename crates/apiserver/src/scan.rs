//! Reading and splicing canonical JSON text without parsing it.
//!
//! Stored documents are compact (no blanks between tokens) with sorted keys, because only this crate writes
//! them. Reads put `metadata.resourceVersion` in by [`with_revision`], once per write, selectors look at
//! single strings by [`string_at`], and a binding [`set`]s what it changes; none builds a document.
//! Invariant: nothing here panics, whatever the bytes; what is not canonical JSON simply finds nothing. Names in paths
//! are such as need no escapes.

use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Range;

/// The document with `metadata.resourceVersion` set to `revision` (replaced when it is there already).
pub fn with_revision(document: &[u8], revision: u64) -> Bytes {
    set(document, &["metadata", "resourceVersion"], &format!("\"{revision}\"")).into()
}

/// The value at a path of member names.
pub fn value_at<'a>(document: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    let at = path.iter().try_fold(0, |at, name| Some(found(document, at, name)?.1))?;
    document.get(at..skip_value(document, at)?)
}

/// The string at a path of member names; `None` when absent, not a string, or written with escapes.
pub fn string_at<'a>(document: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let text = value_at(document, path)?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if text.contains(&b'\\') {
        return None;
    }
    std::str::from_utf8(text).ok()
}

/// The document with a value (canonical, too) at a path of member names; what is no object on the way becomes one.
pub fn set(document: &[u8], path: &[&str], value: &str) -> Vec<u8> {
    let (mut at, mut left) = (0, path);
    loop {
        return match place(document, at, left.first().copied().unwrap_or_default()) {
            Some(Place::Found(_, value)) if left.len() > 1 && document.get(value) == Some(&b'{') => {
                (at, left) = (value, &left[1..]);
                continue;
            }
            Some(Place::Found(key, present)) => {
                let end = skip_value(document, present).unwrap_or(document.len());
                spliced(document, key..end, &member(left, value))
            }
            Some(Place::Before(at)) => spliced(document, at..at, &(member(left, value) + ",")),
            Some(Place::After(at)) => spliced(document, at..at, &format!(",{}", member(left, value))),
            Some(Place::Only(at)) => spliced(document, at..at, &member(left, value)),
            None => document.to_vec(),
        };
    }
}

/// The document without what is at a path of member names.
pub fn without(document: &[u8], path: &[&str]) -> Vec<u8> {
    let place = path.iter().try_fold((0, 0), |(_, at), name| found(document, at, name));
    let cut = place.and_then(|(key, value)| {
        let end = skip_value(document, value)?;
        match (document.get(key - 1)?, document.get(end)?) {
            (_, b',') => Some(key..end + 1),
            (b',', _) => Some(key - 1..end),
            _ => Some(key..end),
        }
    });
    cut.map_or_else(|| document.to_vec(), |cut| spliced(document, cut, ""))
}

/// `"a":{"b":value}`.
fn member(path: &[&str], value: &str) -> String {
    match path {
        [] => value.into(),
        [name] => format!("\"{name}\":{value}"),
        [name, rest @ ..] => format!("\"{name}\":{{{}}}", member(rest, value)),
    }
}

fn spliced(document: &[u8], cut: Range<usize>, text: &str) -> Vec<u8> {
    [&document[..cut.start], text.as_bytes(), &document[cut.end..]].concat()
}

/// Where a member is, or belongs.
enum Place {
    /// Here are its key and its value.
    Found(usize, usize),
    /// Before the key here.
    Before(usize),
    /// Behind the value that ends here.
    After(usize),
    /// Here, alone.
    Only(usize),
}

fn found(document: &[u8], open: usize, name: &str) -> Option<(usize, usize)> {
    match place(document, open, name)? {
        Place::Found(key, value) => Some((key, value)),
        _ => None,
    }
}

/// The place of a member in the object that opens at `open`.
fn place(document: &[u8], open: usize, name: &str) -> Option<Place> {
    if document.get(open) != Some(&b'{') {
        return None;
    }
    let mut at = open + 1;
    if document.get(at) == Some(&b'}') {
        return Some(Place::Only(at));
    }
    loop {
        let key_end = document.get(at).filter(|c| **c == b'"').and_then(|_| skip_string(document, at))?;
        if document.get(key_end) != Some(&b':') {
            return None;
        }
        match document[at + 1..key_end - 1].cmp(name.as_bytes()) {
            Ordering::Equal => return Some(Place::Found(at, key_end + 1)),
            Ordering::Greater => return Some(Place::Before(at)),
            Ordering::Less => {}
        }
        let end = skip_value(document, key_end + 1)?;
        if document.get(end) != Some(&b',') {
            return Some(Place::After(end));
        }
        at = end + 1;
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

        /// The dumb twin again, at any depth; and what was set can be taken away.
        #[test]
        fn set_and_without_equal_the_parsed_way(
            tree in prop::collection::btree_map("[a-c]", prop::collection::btree_map("[a-c]", arb_json(), 0..3), 0..3),
            path in prop::collection::vec("[a-c]", 1..4), value in arb_json()
        ) {
            let mut document = json!(tree);
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            let text = serde_json::to_vec(&document).unwrap();
            let mut at = &mut document;
            for name in &names {
                if !at.is_object() {
                    *at = json!({});
                }
                at = &mut at[*name];
            }
            *at = value.clone();
            let set = set(&text, &names, &value.to_string());
            prop_assert_eq!(&set, &serde_json::to_vec(&document).unwrap());
            prop_assert_eq!(value_at(&set, &names), Some(&*serde_json::to_vec(&value).unwrap()));
            let (last, parents) = path.split_last().unwrap();
            let parent = document.pointer_mut(&parents.iter().map(|p| format!("/{p}")).collect::<String>());
            parent.unwrap().as_object_mut().unwrap().remove(last);
            prop_assert_eq!(without(&set, &names), serde_json::to_vec(&document).unwrap());
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = with_revision(&bytes, 1);
            let _ = without(&bytes, &["a", "b"]);
            let _ = set(&[b"{\"a\":", &*bytes].concat(), &["a", "b"], "1");
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

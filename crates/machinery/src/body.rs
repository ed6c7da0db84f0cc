//! Request bodies to JSON values: a strict JSON reader that notices duplicate keys, and YAML within a budget.
//!
//! Invariant: what comes out nests at most [`DEPTH_MAX`] deep, so every later recursion is bounded.
//! Deliberately not here: the size limit of a body (HTTP's) and the schema (`walk`).

use crate::status::ApiError;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::fmt;

/// Deepest nesting accepted. Every other reader of stored objects is plain `serde_json`, whose own limit is
/// 128; this leaves room for the envelopes (lists, watch events) that objects travel in.
pub const DEPTH_MAX: usize = 120;
/// Deepest YAML: its reader takes some 17 KB of stack a level in a debug build, and threads have 2 MB.
pub const YAML_DEPTH_MAX: usize = 60;
/// Reported duplicates; upstream reports at most 100 strict errors.
pub const REPORTS_MAX: usize = 100;
/// Keys of a document with duplicates whose places are remembered: manifests have hundreds, and each costs its path.
const PLACES_MAX: usize = 10_000;
/// Nodes that aliases may add to a YAML document: what is written out has no more than it has bytes.
const YAML_EXTRA_NODES_MAX: usize = 10_000;
/// Aliases of one YAML document; manifests use a handful.
const YAML_ALIASES_MAX: usize = 1_000;

/// A parsed body.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// The document; of duplicate keys the last one counts.
    pub value: Value,
    /// What came twice.
    pub duplicates: Repeats,
}

/// Keys that came twice, at most [`REPORTS_MAX`], and the places that put complaints in the document's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Place and complaint: of the path (`duplicate field "spec.containers[0].name"`), or in YAML of the line.
    notes: Vec<(usize, String)>,
    /// The first place of every path, when anything came twice at all.
    places: BTreeMap<String, usize>,
}

impl Repeats {
    /// Complaints about these and about unknown fields, in the document's order: as typed objects are read.
    pub fn among(&self, unknown: &[String]) -> Vec<String> {
        let place = |path: &String| self.places.get(path).copied().unwrap_or(usize::MAX);
        let unknown = unknown.iter().map(|path| (place(path), unknown_field(path)));
        let mut all: Vec<_> = self.notes.iter().cloned().chain(unknown).collect();
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().take(REPORTS_MAX).map(|(_, note)| note).collect()
    }

    /// Complaints about these, then about unknown fields: as custom objects are read, and pruned afterwards.
    pub fn before(&self, unknown: &[String]) -> Vec<String> {
        let notes = self.notes.iter().map(|(_, note)| note.clone());
        notes.chain(unknown.iter().map(|path| unknown_field(path))).take(REPORTS_MAX).collect()
    }
}

fn unknown_field(path: &str) -> String {
    format!("unknown field \"{path}\"")
}

/// Parses a JSON body. Errors are 400 in upstream's words.
pub fn json(bytes: &[u8]) -> Result<Body, ApiError> {
    let mut notes = Notes::default();
    let read = |notes: &mut Notes| {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Seed(notes).deserialize(&mut reader)?;
        reader.end().map(|()| value)
    };
    let mut value = read(&mut notes);
    if notes.is_bad() && value.is_ok() {
        notes = Notes { places: Some(BTreeMap::new()), ..Notes::default() };
        value = read(&mut notes);
    }
    let value = value.map_err(|e| {
        if notes.too_deep {
            return ApiError::bad_request("couldn't get version/kind; json parse error: exceeded max depth");
        }
        let words = json_words(bytes, &e);
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {words}"))
    })?;
    Ok(Body { value, duplicates: notes.repeats() })
}

/// Parses a YAML body of one document, within a budget that stops alias bombs.
pub fn yaml(bytes: &[u8]) -> Result<Body, ApiError> {
    let refuse = |words: String| ApiError::bad_request(format!("error converting YAML to JSON: {words}"));
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("yaml: invalid leading UTF-8 octet".into()))?;
    let nodes = bytes.len() + YAML_EXTRA_NODES_MAX;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: YAML_DEPTH_MAX,
            flow_nesting_limit: YAML_DEPTH_MAX,
            max_nodes: nodes,
            max_events: 4 * nodes,
            max_aliases: YAML_ALIASES_MAX,
            max_anchors: YAML_ALIASES_MAX,
            max_merge_keys: YAML_ALIASES_MAX,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    let read = |notes: &mut Notes| {
        notes.budget = Some(nodes);
        serde_saphyr::with_deserializer_from_str_with_options(text, options.clone(), |reader| {
            Seed(notes).deserialize(reader)
        })
    };
    let mut notes = Notes::default();
    let mut value = read(&mut notes);
    if notes.is_bad() && value.is_ok() {
        notes = Notes { places: Some(BTreeMap::new()), lines: true, ..Notes::default() };
        value = read(&mut notes);
    }
    match value {
        Ok(value) => Ok(Body { value, duplicates: notes.repeats() }),
        Err(_) if notes.too_deep => Err(refuse("yaml: exceeded max depth".into())),
        Err(e) => Err(refuse(format!("yaml: {}", e.to_string().lines().next().unwrap_or_default()))),
    }
}

/// Go's sentence for a JSON syntax error, as near as serde tells.
fn json_words(bytes: &[u8], e: &serde_json::Error) -> String {
    if e.is_eof() || bytes.is_empty() {
        return "unexpected end of JSON input".into();
    }
    let line = bytes.split(|b| *b == b'\n').nth(e.line().saturating_sub(1)).unwrap_or_default();
    match line.get(e.column().saturating_sub(1)) {
        Some(b) if e.is_syntax() => {
            let expected = match e.to_string() {
                s if s.contains("key must be a string") => "looking for beginning of object key string",
                s if s.contains("expected `:`") => "after object key",
                s if s.contains("expected `,` or `}`") => "after object key:value pair",
                s if s.contains("expected `,` or `]`") => "after array element",
                s if s.contains("trailing characters") => "after top-level value",
                s if s.contains("control character") => "in string literal",
                _ => "looking for beginning of value",
            };
            format!("invalid character {:?} {expected}", char::from(*b))
        }
        _ => e.to_string(),
    }
}

#[derive(Default)]
struct Notes {
    path: Vec<Segment>,
    /// Keys read so far.
    keys: usize,
    duplicates: Vec<(usize, String)>,
    too_deep: bool,
    /// Values still allowed, where the reader itself can multiply them (aliases).
    budget: Option<usize>,
    /// Where keys stand: asked for in a second reading, once the first has found duplicates.
    places: Option<BTreeMap<String, usize>>,
    /// Does the reader (of YAML) know lines?
    lines: bool,
}

enum Segment {
    Key(String),
    Index(usize),
}

impl Notes {
    fn is_bad(&self) -> bool {
        !self.duplicates.is_empty()
    }

    fn repeats(self) -> Repeats {
        Repeats { notes: self.duplicates, places: self.places.unwrap_or_default() }
    }

    fn path_to(&self, key: &str) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(k) if text.is_empty() => text += k,
                Segment::Key(k) => text += &format!(".{k}"),
                Segment::Index(i) => text += &format!("[{i}]"),
            }
        }
        let dot = if text.is_empty() { "" } else { "." };
        format!("{text}{dot}{key}")
    }

    fn key(&mut self, key: &str, line: Option<u64>, again: bool) {
        self.keys += 1;
        if self.places.as_ref().is_some_and(|p| p.len() < PLACES_MAX) {
            let path = self.path_to(key);
            let keys = self.keys;
            self.places.as_mut().map(|p| p.entry(path).or_insert(keys));
        }
        if again && self.duplicates.len() < REPORTS_MAX {
            let note = match line {
                Some(line) => format!("line {line}: key \"{key}\" already set in map"),
                None => format!("duplicate field \"{}\"", self.path_to(key)),
            };
            self.duplicates.push((self.keys, note));
        }
    }
}

/// Reads one value, noting duplicates and depth.
struct Seed<'a>(&'a mut Notes);

impl Seed<'_> {
    fn enter<E: Error>(&mut self, segment: Segment) -> Result<Seed<'_>, E> {
        if self.0.path.len() >= DEPTH_MAX {
            self.0.too_deep = true;
            return Err(E::custom("exceeded max depth"));
        }
        if let Some(left) = &mut self.0.budget {
            *left = left.checked_sub(1).ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        }
        self.0.path.push(segment);
        Ok(Seed(self.0))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let seed = self.enter(Segment::Index(out.len()))?;
            let item = items.next_element_seed(seed)?;
            self.0.path.pop();
            match item {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        loop {
            let (key, line) = if self.0.lines {
                let Some(key) = fields.next_key::<Spanned<String>>()? else { break };
                (key.value, Some(key.referenced.line()))
            } else {
                let Some(key) = fields.next_key::<String>()? else { break };
                (key, None)
            };
            self.0.key(&key, line, out.contains_key(&key));
            let seed = self.enter(Segment::Key(key.clone()))?;
            let value = fields.next_value_seed(seed)?;
            self.0.path.pop();
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_noticed() {
        let body = super::json(br#"{"a":1,"spec":{"c":[{"x":1,"x":2}],"c":[{"y":1,"y":3}]},"a":2}"#).unwrap();
        let notes = body.duplicates.among(&["spec.c".into(), "a".into(), "elsewhere".into()]);
        let paths: Vec<&str> = notes.iter().map(|n| n.split('"').nth(1).unwrap()).collect();
        assert_eq!(paths, ["a", "spec.c", "spec.c[0].x", "spec.c", "spec.c[0].y", "a", "elsewhere"]);
        assert_eq!(notes[1..3], ["unknown field \"spec.c\"", "duplicate field \"spec.c[0].x\""]);
        assert_eq!(body.duplicates.before(&["z".into()]).last().unwrap(), "unknown field \"z\"");
        assert_eq!(body.value, json!({"a": 2, "spec": {"c": [{"y": 3}]}}));
    }

    #[test]
    fn duplicates_of_yaml_have_lines() {
        let body = yaml(b"\na: 1\nspec:\n  foo: one\n  foo: two\n").unwrap();
        assert_eq!(body.value, json!({"a": 1, "spec": {"foo": "two"}}));
        assert_eq!(body.duplicates.before(&[]), ["line 5: key \"foo\" already set in map"]);
    }

    #[test]
    fn words_of_errors() {
        for (text, words) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\":", "unexpected end of JSON input"),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{} x", "invalid character 'x' after top-level value"),
        ] {
            let message = super::json(text.as_bytes()).unwrap_err().message;
            assert_eq!(message, format!("couldn't get version/kind; json parse error: {words}"), "{text}");
        }
    }

    #[test]
    fn deep_bodies_are_refused() {
        for depth in [DEPTH_MAX + 1, 127, 128, 5_000, 100_000] {
            let deep = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(super::json(deep.as_bytes()).unwrap_err().code, 400);
            assert_eq!(yaml(deep.as_bytes()).unwrap_err().code, 400);
        }
        let fine = "[".repeat(DEPTH_MAX - 1) + &"]".repeat(DEPTH_MAX - 1);
        assert!(super::json(fine.as_bytes()).is_ok());
        let block: String = (0..YAML_DEPTH_MAX * 2).map(|n| " ".repeat(n) + "a:\n").collect();
        assert_eq!(yaml(block.as_bytes()).unwrap_err().code, 400);
        let fine = "[".repeat(YAML_DEPTH_MAX - 1) + &"]".repeat(YAML_DEPTH_MAX - 1);
        yaml(fine.as_bytes()).unwrap();
    }

    #[test]
    fn yaml_bodies() {
        let body = yaml(b"a: 1\nb: [x, \"2\"]\nc: {d: true, e: null}\n").unwrap();
        assert_eq!(body.value, json!({"a": 1, "b": ["x", "2"], "c": {"d": true, "e": null}}));
        assert_eq!(yaml(b"a: &x {k: v}\nb: *x\n").unwrap().value, json!({"a": {"k": "v"}, "b": {"k": "v"}}));
        assert_eq!(yaml(b"a: [").unwrap_err().code, 400);
        assert_eq!(yaml(b"a: 1\n---\nb: 2\n").unwrap_err().code, 400);
        assert_eq!(yaml(&[0xff, 0xfe, 0xfd]).unwrap_err().code, 400);
    }

    #[test]
    fn yaml_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let refs = vec![format!("*a{}", n - 1); 10].join(",");
            bomb += &format!("a{n}: &a{n} [{refs}]\n");
        }
        let started = std::time::Instant::now();
        assert_eq!(yaml(bomb.as_bytes()).unwrap_err().code, 400);
        assert!(started.elapsed().as_secs() < 60);
    }

    proptest! {
        #[test]
        fn reads_what_serde_reads(value in any_json()) {
            let body = super::json(value.to_string().as_bytes()).unwrap();
            prop_assert_eq!(body, Body { value, duplicates: Repeats::default() });
        }

        #[test]
        fn never_panics(text in "[\\[\\]{}:,\"a-c0-9&*!|> \n-]{0,40}") {
            let _ = super::json(text.as_bytes());
            let _ = yaml(text.as_bytes());
        }
    }
}

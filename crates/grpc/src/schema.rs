//! Messages by table: names, numbers and types of fields; JSON values to bytes and back.
//!
//! A table has a line a service (`service package.Name`), below it a line a method (`Name Request Response`); a line a
//! message (`message Name`), below it a line a field (`number name type`). Types: `string`, `bool`, `int` (all varints,
//! enumerations too), `map` (of strings), a message's name; `*type` for repeated ones.

use crate::{Status, code};
use machinery::protobuf::wire::{Datum, Malformed, Reader, Writer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Messages nest at most so deep.
const DEPTH_MAX: usize = 16;

#[derive(Debug)]
enum Kind {
    Text,
    Bool,
    Int,
    Map,
    Message(&'static str),
}

#[derive(Debug)]
struct Field {
    number: u16,
    name: &'static str,
    kind: Kind,
    repeated: bool,
}

/// A method: its path and its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Service, with its package.
    pub service: &'static str,
    /// Name.
    pub name: &'static str,
    pub(crate) request: &'static str,
    pub(crate) response: &'static str,
}

/// A protocol: its methods and messages.
#[derive(Debug)]
pub struct Schema {
    methods: Vec<Method>,
    messages: BTreeMap<&'static str, Vec<Field>>,
}

impl Schema {
    /// Reads a table.
    ///
    /// # Panics
    /// On a table that is none: tables are part of the program.
    pub fn parse(text: &'static str) -> Schema {
        let mut schema = Schema { methods: Vec::new(), messages: BTreeMap::new() };
        let (mut service, mut message) = ("", "");
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["service", name] => (service, message) = (name, ""),
                ["message", name] => {
                    message = name;
                    schema.messages.insert(name, Vec::new());
                }
                [name, request, response] if message.is_empty() => {
                    schema.methods.push(Method { service, name, request, response });
                }
                [number, name, kind] => {
                    let number = number.parse().expect("a field's number");
                    let (repeated, kind) = kind.strip_prefix('*').map_or((false, *kind), |k| (true, k));
                    let kind = match kind {
                        "string" => Kind::Text,
                        "bool" => Kind::Bool,
                        "int" => Kind::Int,
                        "map" => Kind::Map,
                        name => Kind::Message(name),
                    };
                    let fields = schema.messages.get_mut(message).expect("fields stand below a message");
                    fields.push(Field { number, name, kind, repeated });
                }
                _ => panic!("no line of a table: {line}"),
            }
        }
        schema
    }

    /// The same with services of another name. For tables of the program, whose texts stay for ever.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Schema {
        for method in &mut self.methods {
            method.service = method.service.replace(from, to).leak();
        }
        self
    }

    /// The method of that name; names are unique within a protocol.
    pub fn method(&self, name: &str) -> Option<Method> {
        self.methods.iter().find(|m| m.name == name).copied()
    }

    /// The method at `/service/name`.
    pub(crate) fn at(&self, path: &str) -> Option<Method> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        self.method(name).filter(|m| m.service == service)
    }

    /// Writes a message; what the table does not know, and zeros, are left out.
    pub(crate) fn encode(&self, message: &str, value: &Value) -> Vec<u8> {
        let mut out = Writer::default();
        for field in self.messages.get(message).into_iter().flatten() {
            match (&value[field.name], field.repeated) {
                (Value::Array(list), true) => list.iter().for_each(|v| self.put(field, v, &mut out)),
                (_, true) | (Value::Null, _) => {}
                (value, false) if is_zero(value) => {}
                (value, false) => self.put(field, value, &mut out),
            }
        }
        out.0
    }

    fn put(&self, field: &Field, value: &Value, out: &mut Writer) {
        match field.kind {
            Kind::Text => out.bytes(field.number, value.as_str().unwrap_or_default().as_bytes()),
            Kind::Bool => out.varint(field.number, u64::from(value.as_bool().unwrap_or_default())),
            Kind::Int => out.varint(field.number, value.as_i64().unwrap_or_default().cast_unsigned()),
            Kind::Message(name) => out.bytes(field.number, &self.encode(name, value)),
            Kind::Map => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    let mut entry = Writer::default();
                    entry.bytes(1, key.as_bytes());
                    entry.bytes(2, value.as_str().unwrap_or_default().as_bytes());
                    out.bytes(field.number, &entry.0);
                }
            }
        }
    }

    /// Reads a message; fields without a row are skipped.
    pub(crate) fn decode(&self, message: &str, bytes: &[u8]) -> Result<Value, Status> {
        self.read(message, bytes, 0).map_err(|e| Status::new(code::INTERNAL, format!("{message}: {}", e.0)))
    }

    fn read(&self, message: &str, bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
        let mut map = Map::new();
        let fields = self.messages.get(message).map(Vec::as_slice).unwrap_or_default();
        if depth > DEPTH_MAX {
            return Err(Malformed("nested too deeply".into()));
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, datum)) = reader.field()? {
            let Some(field) = fields.iter().find(|f| u64::from(f.number) == number) else { continue };
            if field.repeated && matches!(field.kind, Kind::Int) && matches!(datum, Datum::Bytes(_)) {
                let mut packed = Reader::new(datum.bytes()?);
                while !packed.is_empty() {
                    add(&mut map, field, json!(packed.varint()?.cast_signed()));
                }
                continue;
            }
            let value = match field.kind {
                Kind::Text => json!(String::from_utf8_lossy(datum.bytes()?)),
                Kind::Bool => json!(datum.varint()? != 0),
                Kind::Int => json!(datum.varint()?.cast_signed()),
                Kind::Message(name) => self.read(name, datum.bytes()?, depth + 1)?,
                Kind::Map => {
                    let (key, value) = entry(datum.bytes()?)?;
                    let all = map.entry(field.name).or_insert_with(|| json!({}));
                    all[key] = json!(value);
                    continue;
                }
            };
            add(&mut map, field, value);
        }
        Ok(Value::Object(map))
    }
}

fn is_zero(value: &Value) -> bool {
    matches!(value, Value::Bool(false)) || value == 0 || value == ""
}

fn add(map: &mut Map<String, Value>, field: &Field, value: Value) {
    match map.get_mut(field.name) {
        Some(Value::Array(list)) if field.repeated => list.push(value),
        _ if field.repeated => drop(map.insert(field.name.into(), json!([value]))),
        _ => drop(map.insert(field.name.into(), value)),
    }
}

fn entry(bytes: &[u8]) -> Result<(String, String), Malformed> {
    let (mut key, mut value) = (String::new(), String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.field()? {
        match number {
            1 => key = String::from_utf8_lossy(datum.bytes()?).into_owned(),
            2 => value = String::from_utf8_lossy(datum.bytes()?).into_owned(),
            _ => {}
        }
    }
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CSI, DEVICES, DRA, POD_RESOURCES, REGISTRATION};
    use proptest::prelude::*;

    #[test]
    fn tables_are_whole() {
        for schema in [&*CSI, &*REGISTRATION, &*DEVICES, &*DRA, &*POD_RESOURCES] {
            let known = |name: &str| schema.messages.contains_key(name);
            for method in &schema.methods {
                assert!(known(method.request) && known(method.response), "{}", method.name);
            }
            for (name, fields) in &schema.messages {
                assert!(fields.is_sorted_by(|a, b| a.number < b.number), "{name}");
                for field in fields {
                    let Kind::Message(of) = field.kind else { continue };
                    assert!(known(of), "{name}.{} is a {of}", field.name);
                }
            }
        }
    }

    #[test]
    fn bytes_are_protobuf() {
        let request = json!({"volume_id": "v", "readonly": true, "volume_context": {"a": "b"}, "unknown": 1,
            "target_path": "", "volume_capability": {"mount": {"mount_flags": ["x"]}, "access_mode": {"mode": 1}}});
        let bytes = CSI.encode("NodePublishVolumeRequest", &request);
        let expected = [
            &[0x0a, 1, b'v', 0x2a, 9][..],
            &[0x12, 3, 0x12, 1, b'x', 0x1a, 2, 8, 1, 0x30, 1],
            &[0x42, 6, 0x0a, 1, b'a', 0x12, 1, b'b'],
        ];
        assert_eq!(bytes, expected.concat());
        let back = CSI.decode("NodePublishVolumeRequest", &bytes).unwrap();
        let mut known = request;
        known.as_object_mut().unwrap().retain(|k, _| k != "unknown" && k != "target_path");
        assert_eq!(back, known);
        assert!(CSI.decode("NodePublishVolumeRequest", &[0x0a, 9]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = CSI.decode("ListVolumesResponse", &bytes);
        }
    }
}

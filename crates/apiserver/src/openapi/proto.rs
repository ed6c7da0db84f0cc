//! OpenAPI v2 JSON as gnostic's protobuf (`openapi.v2.Document`), the only form that kubectl's v2 client takes.
//!
//! The message types are tables: JSON key, field numbers, shape. A path of several numbers means wrapper
//! messages around the value, outermost first. Keys that start with `x-` become vendor extensions, whose
//! values are YAML text (JSON is YAML). Spec: google/gnostic `openapiv2/OpenAPIv2.proto`.
//! Deliberately not here: parts of OpenAPI that our documents do not use (a key that no table knows is
//! left out; a test holds that there are none).

use serde_json::{Map, Value};

/// How a JSON value is written.
#[derive(Clone, Copy)]
enum Shape {
    /// A string, or each string of a list.
    Text,
    /// A boolean.
    Flag,
    /// A message, or each object of a list.
    Message(&'static Message),
    /// An object as repeated (name, value) pairs; the numbers wrap each value.
    Pairs(&'static [u32], &'static Message),
    /// Any JSON, as YAML text.
    Any,
    /// A list of body, query and path parameters: the number depends on `in`.
    Parameters,
    /// `security`: a list of objects from names to lists of strings.
    Security,
}

/// JSON key, wrapper numbers (the last is the value's own), shape.
type Row = (&'static str, &'static [u32], Shape);

/// A message type.
struct Message {
    rows: &'static [Row],
    /// The number of `vendor_extension`; 0: none.
    extension: u32,
}

use Shape::{Any, Flag, Message as Msg, Pairs, Parameters, Security, Text};

static DOCUMENT: Message = Message {
    rows: &[
        ("swagger", &[1], Text),
        ("info", &[2], Msg(&INFO)),
        ("paths", &[8, 2], Pairs(&[], &PATH_ITEM)),
        ("definitions", &[9, 1], Pairs(&[], &SCHEMA)),
        ("security", &[12], Security),
        ("securityDefinitions", &[13, 1], Pairs(&[2], &API_KEY)),
    ],
    extension: 16,
};

static INFO: Message = Message { rows: &[("title", &[1], Text), ("version", &[2], Text)], extension: 7 };

static API_KEY: Message =
    Message { rows: &[("type", &[1], Text), ("name", &[2], Text), ("in", &[3], Text)], extension: 5 };

static PATH_ITEM: Message = Message {
    rows: &[
        ("get", &[2], Msg(&OPERATION)),
        ("put", &[3], Msg(&OPERATION)),
        ("post", &[4], Msg(&OPERATION)),
        ("delete", &[5], Msg(&OPERATION)),
        ("patch", &[8], Msg(&OPERATION)),
        ("parameters", &[9], Parameters),
    ],
    extension: 10,
};

static OPERATION: Message = Message {
    rows: &[
        ("tags", &[1], Text),
        ("operationId", &[5], Text),
        ("produces", &[6], Text),
        ("consumes", &[7], Text),
        ("parameters", &[8], Parameters),
        ("responses", &[9, 1], Pairs(&[1], &RESPONSE)),
    ],
    extension: 13,
};

static RESPONSE: Message =
    Message { rows: &[("description", &[1], Text), ("schema", &[2, 1], Msg(&SCHEMA))], extension: 5 };

static BODY_PARAMETER: Message = Message {
    rows: &[
        ("name", &[2], Text),
        ("in", &[3], Text),
        ("required", &[4], Flag),
        ("schema", &[5], Msg(&SCHEMA)),
    ],
    extension: 6,
};

static QUERY_PARAMETER: Message = Message {
    rows: &[
        ("required", &[1], Flag),
        ("in", &[2], Text),
        ("name", &[4], Text),
        ("type", &[6], Text),
        ("uniqueItems", &[20], Flag),
    ],
    extension: 23,
};

static PATH_PARAMETER: Message = Message {
    rows: &[
        ("required", &[1], Flag),
        ("in", &[2], Text),
        ("name", &[4], Text),
        ("type", &[5], Text),
        ("uniqueItems", &[19], Flag),
    ],
    extension: 22,
};

static SCHEMA: Message = Message {
    rows: &[
        ("$ref", &[1], Text),
        ("format", &[2], Text),
        ("title", &[3], Text),
        ("description", &[4], Text),
        ("default", &[5], Any),
        ("pattern", &[13], Text),
        ("required", &[19], Text),
        ("additionalProperties", &[21, 1], Msg(&SCHEMA)),
        ("type", &[22, 1], Text),
        ("items", &[23, 1], Msg(&SCHEMA)),
        ("properties", &[25, 1], Pairs(&[], &SCHEMA)),
    ],
    extension: 31,
};

/// Encodes an OpenAPI v2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(kind: &Message, value: &Value) -> Vec<u8> {
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let mut out = Vec::new();
    for (key, path, shape) in kind.rows {
        let Some(value) = object.get(*key) else { continue };
        let Some((number, wrappers)) = path.split_last() else { continue };
        let mut inner = Vec::new();
        field(&mut inner, *number, *shape, value);
        out.extend(wrap(inner, wrappers));
    }
    for (key, value) in object.iter().filter(|(k, _)| kind.extension > 0 && k.starts_with("x-")) {
        let mut pair = Vec::new();
        bytes(&mut pair, 1, key.as_bytes());
        bytes(&mut pair, 2, &any(value));
        bytes(&mut out, kind.extension, &pair);
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, shape: Shape, value: &Value) {
    match shape {
        Text => items(value).filter_map(Value::as_str).for_each(|t| bytes(out, number, t.as_bytes())),
        Flag => {
            if value == &Value::Bool(true) {
                varint(out, u64::from(number) << 3);
                out.push(1);
            }
        }
        Msg(kind) => items(value).for_each(|v| bytes(out, number, &message(kind, v))),
        Pairs(wrappers, kind) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                pair(out, number, name, &wrap_always(message(kind, value), wrappers));
            }
        }
        Any => bytes(out, number, &any(value)),
        Parameters => items(value).for_each(|v| bytes(out, number, &parameter(v))),
        Security => {
            for requirement in items(value).filter_map(Value::as_object) {
                let mut pairs = Vec::new();
                for (name, scopes) in requirement {
                    let mut list = Vec::new();
                    field(&mut list, 1, Text, scopes);
                    pair(&mut pairs, 1, name, &list);
                }
                bytes(out, number, &pairs);
            }
        }
    }
}

/// `ParametersItem { parameter { body_parameter | non_body_parameter { query | path } } }`.
fn parameter(value: &Value) -> Vec<u8> {
    let (kind, wrappers): (&Message, &[u32]) = match value["in"].as_str() {
        Some("body") => (&BODY_PARAMETER, &[1, 1]),
        Some("path") => (&PATH_PARAMETER, &[1, 2, 4]),
        _ => (&QUERY_PARAMETER, &[1, 2, 3]),
    };
    wrap_always(message(kind, value), wrappers)
}

/// The values of a list, or the value itself.
fn items(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(list) => list.iter(),
        one => std::slice::from_ref(one).iter(),
    }
}

fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 2, format!("{value}\n").as_bytes());
    out
}

fn pair(out: &mut Vec<u8>, number: u32, name: &str, value: &[u8]) {
    let mut pair = Vec::new();
    bytes(&mut pair, 1, name.as_bytes());
    bytes(&mut pair, 2, value);
    bytes(out, number, &pair);
}

/// Puts encoded fields into wrapper messages; nothing stays nothing.
fn wrap(inner: Vec<u8>, wrappers: &[u32]) -> Vec<u8> {
    if inner.is_empty() { inner } else { wrap_always(inner, wrappers) }
}

/// The same for an encoded message, which may be empty and still be there.
fn wrap_always(inner: Vec<u8>, wrappers: &[u32]) -> Vec<u8> {
    wrappers.iter().rev().fold(inner, |inner, number| {
        let mut out = Vec::with_capacity(inner.len() + 8);
        bytes(&mut out, *number, &inner);
        out
    })
}

/// A length-delimited field.
fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every key of a real document has a row in the tables, or it would be lost silently.
    fn check(kind: &Message, value: &Value, at: &str) {
        for (key, value) in value.as_object().unwrap() {
            if key.starts_with("x-") {
                assert!(kind.extension > 0, "{at}.{key}");
                continue;
            }
            let row =
                kind.rows.iter().find(|(k, ..)| k == key).unwrap_or_else(|| panic!("{at}.{key} has no row"));
            let at = format!("{at}.{key}");
            match row.2 {
                Text => assert!(items(value).all(Value::is_string), "{at}"),
                Flag => assert!(value.is_boolean(), "{at}"),
                Msg(kind) => items(value).for_each(|v| check(kind, v, &at)),
                Pairs(_, kind) => value.as_object().unwrap().values().for_each(|v| check(kind, v, &at)),
                Parameters => {
                    for v in items(value) {
                        let kind = match v["in"].as_str().unwrap() {
                            "body" => &BODY_PARAMETER,
                            "query" => &QUERY_PARAMETER,
                            "path" => &PATH_PARAMETER,
                            other => panic!("{at}: in {other}"),
                        };
                        check(kind, v, &at);
                    }
                }
                Any | Security => {}
            }
        }
    }

    #[test]
    fn nothing_of_the_built_in_document_is_lost() {
        let rows: Vec<_> = k8s_schema::resources().iter().map(Into::into).collect();
        let mut schemas = super::super::Schemas::new(super::super::Dialect::V2);
        check(&DOCUMENT, &super::super::document::v2(&rows, &mut schemas), "");
    }

    /// Bytes worked out by hand from the protobuf encoding and gnostic's field numbers.
    #[test]
    fn bytes_are_as_the_message_definitions_say() {
        let doc = json!({"swagger": "2.0", "definitions": {"A": {
            "type": "object", "x-a": [1], "required": ["b"],
            "properties": {"b": {"$ref": "#/c"}}, "additionalProperties": {}}}});
        let schema = [
            &[0x9a, 0x01, 1, b'b'][..], // required = 19
            &[0xaa, 0x01, 2, 0x0a, 0],  // additional_properties = 21 { schema = 1 {} }
            &[0xb2, 0x01, 8, 0x0a, 6],  // type = 22 { value = 1 "object" }
            b"object",
            &[0xca, 0x01, 12, 0x0a, 10, 0x0a, 1, b'b', 0x12, 5, 0x0a, 3], // properties = 25 { 1 { name, value { _ref
            b"#/c",
            &[0xfa, 0x01, 13, 0x0a, 3], // vendor_extension = 31 { name = 1
            b"x-a",
            &[0x12, 6, 0x12, 4], // value = 2 { yaml = 2
            b"[1]\n",
        ]
        .concat();
        let mut want = vec![0x0a, 3, b'2', b'.', b'0', 0x4a];
        let pair = [&[0x0a, 1, b'A', 0x12, schema.len() as u8][..], &schema].concat();
        want.extend([pair.len() as u8 + 2, 0x0a, pair.len() as u8]);
        want.extend(pair);
        assert_eq!(encode(&doc), want);
    }

    #[test]
    fn parameters_are_wrapped_by_where_they_stand() {
        let query = parameter(&json!({"in": "query", "name": "n", "type": "string", "uniqueItems": true}));
        assert_eq!(
            query[..6],
            [0x0a, query.len() as u8 - 2, 0x12, query.len() as u8 - 4, 0x1a, query.len() as u8 - 6]
        );
        assert_eq!(query[query.len() - 3..], [0xa0, 0x01, 1]);
        let body = parameter(&json!({"in": "body", "name": "body", "required": true}));
        assert_eq!(body[2], 0x0a);
    }

    #[test]
    fn long_lengths_take_several_bytes() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }
}

//! RFC 8949 as Smithy's RPC v2 uses it. Reading yields the JSON form (bytes as base64, times as seconds), which the
//! JSON codec checks against the model; writing follows the model, because times and bytes have types of their own.

use super::{DecodeError, time};
use aws_schema::{Kind, Service, ShapeId};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Number, Value};

/// Values inside values: no model nests deeper, and it bounds the stack.
const DEPTH_MAX: usize = 64;
/// Tag of seconds since 1970.
const TAG_EPOCH: u64 = 1;

/// The JSON form of one CBOR item that fills all bytes.
pub(super) fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let value = reader.item(0)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(malformed()) }
}

fn malformed() -> DecodeError {
    DecodeError::new("Malformed CBOR")
}

struct Reader<'a> {
    rest: &'a [u8],
}

/// Argument of an item's head; `None`: of indefinite length.
type Argument = Option<u64>;

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, DecodeError> {
        Ok(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn head(&mut self) -> Result<(u8, u8, Argument), DecodeError> {
        let first = self.take(1)?[0];
        let (major, low) = (first >> 5, first & 31);
        let argument = match low {
            0..=23 => Some(u64::from(low)),
            24 => Some(self.number(1)?),
            25 => Some(self.number(2)?),
            26 => Some(self.number(4)?),
            27 => Some(self.number(8)?),
            31 => None,
            _ => return Err(malformed()),
        };
        Ok((major, low, argument))
    }

    fn ended(&mut self) -> bool {
        let end = self.rest.first() == Some(&0xff);
        if end {
            self.rest = &self.rest[1..];
        }
        end
    }

    fn item(&mut self, depth: usize) -> Result<Value, DecodeError> {
        refuse_if(depth > DEPTH_MAX, malformed)?;
        let (major, low, argument) = self.head()?;
        match (major, argument) {
            (0, Some(n)) => Ok(Value::from(n)),
            (1, Some(n)) => Ok(Value::from(-1 - i64::try_from(n).map_err(|_| malformed())?)),
            (2, argument) => Ok(Value::from(BASE64_STANDARD.encode(self.bytes(2, argument)?))),
            (3, argument) => {
                Ok(Value::from(String::from_utf8(self.bytes(3, argument)?).map_err(|_| malformed())?))
            }
            (4, argument) => {
                let mut list = Vec::new();
                while self.more(argument, list.len()) {
                    list.push(self.item(depth + 1)?);
                }
                Ok(Value::Array(list))
            }
            (5, argument) => {
                let (mut map, mut count) = (Map::new(), 0);
                while self.more(argument, count) {
                    let Value::String(key) = self.item(depth + 1)? else { return Err(malformed()) };
                    map.insert(key, self.item(depth + 1)?);
                    count += 1;
                }
                Ok(Value::Object(map))
            }
            (6, Some(_)) => self.item(depth + 1),
            (7, argument) => simple(low, argument.ok_or_else(malformed)?),
            _ => Err(malformed()),
        }
    }

    /// Is there another member? (An absurd length ends when the bytes do.)
    fn more(&mut self, argument: Argument, count: usize) -> bool {
        match argument {
            Some(length) => (count as u64) < length,
            None => !self.ended(),
        }
    }

    fn bytes(&mut self, major: u8, argument: Argument) -> Result<Vec<u8>, DecodeError> {
        if let Some(length) = argument {
            return Ok(self.take(usize::try_from(length).map_err(|_| malformed())?)?.to_vec());
        }
        let mut all = Vec::new();
        while !self.ended() {
            match self.head()? {
                (m, _, Some(length)) if m == major => {
                    all.extend_from_slice(self.take(usize::try_from(length).map_err(|_| malformed())?)?);
                }
                _ => return Err(malformed()),
            }
        }
        Ok(all)
    }
}

fn simple(low: u8, argument: u64) -> Result<Value, DecodeError> {
    let float = match low {
        20 => return Ok(Value::Bool(false)),
        21 => return Ok(Value::Bool(true)),
        22 | 23 => return Ok(Value::Null),
        25 => half(argument as u16),
        26 => f64::from(f32::from_bits(argument as u32)),
        27 => f64::from_bits(argument),
        _ => return Err(malformed()),
    };
    Ok(match Number::from_f64(float) {
        _ if float.fract() == 0.0 && float.abs() < 9e15 => Value::from(float as i64),
        Some(number) => Value::Number(number),
        None if float.is_nan() => Value::from("NaN"),
        None => Value::from(if float > 0.0 { "Infinity" } else { "-Infinity" }),
    })
}

fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1024.0 + fraction) * 2f64.powi(e - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// `{}`.
pub(super) fn empty() -> Vec<u8> {
    vec![0xa0]
}

/// A document of a shape.
pub(super) fn write(service: &Service, shape: ShapeId, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, service, shape, value);
    out
}

/// `{"__type": …, "message": …, more}` of an error; plain JSON values.
pub(super) fn plain(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_plain(&mut out, value);
    out
}

fn head(out: &mut Vec<u8>, major: u8, n: u64) {
    let major = major << 5;
    let bytes = n.to_be_bytes();
    match n {
        0..=23 => out.push(major | n as u8),
        24..=0xff => out.extend([major | 24, n as u8]),
        0x100..=0xffff => out.extend([&[major | 25], &bytes[6..]].concat()),
        0x1_0000..=0xffff_ffff => out.extend([&[major | 26], &bytes[4..]].concat()),
        _ => out.extend([&[major | 27], &bytes[..]].concat()),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    head(out, 3, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_float(out: &mut Vec<u8>, float: f64) {
    out.push(0xfb);
    out.extend_from_slice(&float.to_bits().to_be_bytes());
}

fn put(out: &mut Vec<u8>, service: &Service, shape: ShapeId, value: &Value) {
    match (&service.shape(shape).kind, value) {
        (Kind::Structure(structure), Value::Object(map)) if !structure.document => {
            let there: Vec<_> = structure
                .members
                .iter()
                .filter_map(|m| Some((m, map.get(m.name).filter(|v| !v.is_null())?)))
                .collect();
            head(out, 5, there.len() as u64);
            for (member, value) in there {
                put_text(out, member.wire);
                put(out, service, member.shape, value);
            }
        }
        (Kind::List { member, .. }, Value::Array(list)) => {
            head(out, 4, list.len() as u64);
            list.iter().for_each(|v| put(out, service, *member, v));
        }
        (Kind::Map { value: shape, .. }, Value::Object(map)) => {
            head(out, 5, map.len() as u64);
            for (key, value) in map {
                put_text(out, key);
                put(out, service, *shape, value);
            }
        }
        (Kind::Timestamp(_), value) => {
            head(out, 6, TAG_EPOCH);
            let seconds = value.as_str().and_then(time::parse).unwrap_or_else(|| value.clone());
            put_float(out, seconds.as_f64().unwrap_or_default());
        }
        (Kind::Blob, Value::String(text)) => {
            let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
            head(out, 2, bytes.len() as u64);
            out.extend_from_slice(&bytes);
        }
        (Kind::Float | Kind::Double, Value::Number(n)) => put_float(out, n.as_f64().unwrap_or_default()),
        (_, value) => put_plain(out, value),
    }
}

fn put_plain(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(yes) => out.push(if *yes { 0xf5 } else { 0xf4 }),
        Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => head(out, 0, n),
            (None, Some(n)) => head(out, 1, n.unsigned_abs() - 1),
            _ => put_float(out, n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => put_text(out, text),
        Value::Array(list) => {
            head(out, 4, list.len() as u64);
            list.iter().for_each(|v| put_plain(out, v));
        }
        Value::Object(map) => {
            head(out, 5, map.len() as u64);
            for (key, value) in map {
                put_text(out, key);
                put_plain(out, value);
            }
        }
    }
}

//! JSON bodies, both ways. Input: types are checked, what the model does not know is ignored, nulls are unset.

use super::{DecodeError, time};
use aws_schema::{Kind, Service, ShapeId, Structure};
use serde_json::{Map, Number, Value};

/// The document of a body; an empty one is `{}`.
pub(super) fn input(service: &Service, shape: ShapeId, body: &[u8]) -> Result<Value, DecodeError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return from_value(service, shape, Value::Null);
    }
    let value = serde_json::from_slice(body).map_err(|e| DecodeError::new(format!("Malformed JSON: {e}")))?;
    from_value(service, shape, value)
}

/// The same from a value that was read already.
pub(super) fn from_value(service: &Service, shape: ShapeId, value: Value) -> Result<Value, DecodeError> {
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        value => take(service, shape, value, "", |m| m.wire),
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(n) if n.is_f64() => "DECIMAL_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) | Value::Object(_) => "",
    }
}

/// A type that does not fit, in the words of AWS's own parser.
fn unfit(value: &Value, wanted: &str, at: &str) -> DecodeError {
    let message = match value {
        Value::Array(_) => "Start of list found where not expected".to_string(),
        Value::Object(_) => "Start of structure or map found where not expected.".to_string(),
        scalar => format!("{} can not be converted to {wanted}", found(scalar)),
    };
    DecodeError::at(message, at)
}

/// One value of a shape. `name`: how members are called in `value`.
pub(super) fn take(
    service: &Service,
    shape: ShapeId,
    value: Value,
    at: &str,
    name: fn(&aws_schema::Member) -> &'static str,
) -> Result<Value, DecodeError> {
    match (&service.shape(shape).kind, value) {
        (Kind::Structure(structure), Value::Object(mut map)) => {
            if structure.document {
                return Ok(Value::Object(map));
            }
            let mut out = Map::new();
            for member in &structure.members {
                let Some(value) = map.remove(name(member)).filter(|v| !v.is_null()) else { continue };
                out.insert(member.name.into(), take(service, member.shape, value, member.name, name)?);
            }
            Ok(Value::Object(out))
        }
        (Kind::List { member, .. }, Value::Array(list)) => {
            let items = list.into_iter().map(|v| take(service, *member, v, at, name));
            Ok(Value::Array(items.collect::<Result<_, _>>()?))
        }
        (Kind::Map { value: shape, .. }, Value::Object(map)) => {
            let there = map.into_iter().filter(|(_, v)| !v.is_null());
            let taken = there.map(|(k, v)| Ok((k, take(service, *shape, v, at, name)?)));
            Ok(Value::Object(taken.collect::<Result<_, _>>()?))
        }
        (Kind::Structure(Structure { document: true, .. }), value) => Ok(value),
        (Kind::List { .. }, _) => Err(DecodeError::at("Expected list or null", at)),
        (Kind::Map { .. } | Kind::Structure(_), value) => {
            let message = match value {
                Value::Array(_) => "Start of list found where not expected",
                _ => "Expected null or start of structure or map",
            };
            Err(DecodeError::at(message, at))
        }
        (kind, value) => scalar(kind, value, at),
    }
}

fn scalar(kind: &Kind, value: Value, at: &str) -> Result<Value, DecodeError> {
    match (kind, &value) {
        (Kind::String { .. }, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) => Ok(value),
        (Kind::String { .. }, _) => Err(unfit(&value, "a String", at)),
        (Kind::Boolean, _) => Err(unfit(&value, "a Boolean", at)),
        (Kind::Integer, _) => whole(&value, i64::from(i32::MIN)..=i64::from(i32::MAX), "an Integer", at),
        (Kind::Long, _) => whole(&value, i64::MIN..=i64::MAX, "a Long", at),
        (Kind::Float | Kind::Double, Value::Number(_)) => Ok(value),
        (Kind::Float | Kind::Double, Value::String(s))
            if ["NaN", "Infinity", "-Infinity"].contains(&s.as_str()) =>
        {
            Ok(value)
        }
        (Kind::Float | Kind::Double, _) => Err(unfit(&value, "a Double", at)),
        (Kind::Timestamp(_), Value::Number(n)) => {
            n.as_f64().and_then(time::number).ok_or_else(|| unfit(&value, "a timestamp", at))
        }
        (Kind::Timestamp(_), Value::String(text)) => {
            time::parse(text).ok_or_else(|| unfit(&value, "milliseconds since epoch", at))
        }
        (Kind::Timestamp(_), _) => Err(unfit(&value, "milliseconds since epoch", at)),
        (Kind::Blob, Value::String(text)) => {
            use base64::Engine;
            match base64::prelude::BASE64_STANDARD.decode(text) {
                Ok(_) => Ok(value),
                Err(_) => Err(DecodeError::at("Unable to decode base64: the text is malformed", at)),
            }
        }
        (_, _) => Err(unfit(&value, "a Blob", at)),
    }
}

fn whole(
    value: &Value,
    range: std::ops::RangeInclusive<i64>,
    wanted: &str,
    at: &str,
) -> Result<Value, DecodeError> {
    let Value::Number(number) = value else { return Err(unfit(value, wanted, at)) };
    let whole = number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15)?;
        Some(float as i64)
    });
    match whole {
        Some(n) if range.contains(&n) => Ok(Value::Number(Number::from(n))),
        _ => Err(unfit(value, wanted, at)),
    }
}

/// An output document as it goes out: members that the model knows, by their wire names.
pub(super) fn output(service: &Service, shape: ShapeId, value: &Value) -> Value {
    match (&service.shape(shape).kind, value) {
        (Kind::Structure(structure), Value::Object(map)) if !structure.document => {
            let members = structure.members.iter().filter_map(|m| {
                let value = map.get(m.name).filter(|v| !v.is_null())?;
                Some((m.wire.to_string(), output(service, m.shape, value)))
            });
            Value::Object(members.collect())
        }
        (Kind::List { member, .. }, Value::Array(list)) => {
            Value::Array(list.iter().map(|v| output(service, *member, v)).collect())
        }
        (Kind::Map { value: shape, .. }, Value::Object(map)) => {
            Value::Object(map.iter().map(|(k, v)| (k.clone(), output(service, *shape, v))).collect())
        }
        (_, value) => value.clone(),
    }
}

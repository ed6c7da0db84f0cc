//! JSON values to messages.

use super::wire::Writer;
use crate::status::ApiError;
use crate::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_schema::proto::{self, ProtoField, ProtoForm, ProtoPart};
use k8s_schema::{Def, DefRef, Type};
use serde_json::{Map, Value};

/// Writes a value as a bare message of that definition. What JSON has and the definition has not is left out;
/// a value of the wrong type is an error (500: stored objects are checked).
pub fn encode(def: &DefRef, value: &Value) -> Result<Vec<u8>, ApiError> {
    let mut out = Writer::default();
    let map = value.as_object().ok_or_else(|| mismatch(&def.get().name))?;
    let Some(table) = proto::message(def) else {
        return Err(ApiError::internal(format!("{} has no protobuf form", def.get().name)));
    };
    fields(def.get(), table, map, &mut out)?;
    Ok(out.0)
}

fn mismatch(what: &str) -> ApiError {
    ApiError::internal(format!("{what}: not of the schema's type"))
}

fn fields(
    def: &Def,
    table: &[ProtoField],
    map: &Map<String, Value>,
    out: &mut Writer,
) -> Result<(), ApiError> {
    for field in table {
        let (index, form) = match &field.part {
            ProtoPart::Embedded(inner) => {
                let mut message = Writer::default();
                fields(def, inner, map, &mut message)?;
                if !message.0.is_empty() {
                    out.bytes(field.number, &message.0);
                }
                continue;
            }
            ProtoPart::Field { index, form, .. } => (usize::from(*index), *form),
        };
        let schema = &def.fields[index];
        let Some(value) = map.get(&*schema.name).filter(|v| !v.is_null()) else { continue };
        let written = match &schema.ty {
            Type::Array(inner) => list(field.number, (inner, form), value, out),
            Type::Map(inner) => entries(field.number, (inner, form), value, out),
            ty => single(field.number, (ty, form), value, out),
        };
        written.ok_or_else(|| mismatch(&format!("{}.{}", def.name, schema.name)))?;
    }
    Ok(())
}

/// A type with what the table adds to it.
type Place<'a> = (&'a Type, ProtoForm);

fn list(number: u16, place: Place, value: &Value, out: &mut Writer) -> Option<()> {
    value.as_array()?.iter().try_for_each(|item| single(number, place, item, out))
}

fn entries(number: u16, place: Place, value: &Value, out: &mut Writer) -> Option<()> {
    for (key, value) in value.as_object()? {
        let mut entry = Writer::default();
        entry.bytes(1, key.as_bytes());
        single(2, place, value, &mut entry)?;
        out.bytes(number, &entry.0);
    }
    Some(())
}

/// Writes one value; `None` when it is not of the type.
fn single(number: u16, (ty, form): Place, value: &Value, out: &mut Writer) -> Option<()> {
    match ty {
        Type::String => out.bytes(number, value.as_str()?.as_bytes()),
        Type::Bytes => out.bytes(number, &STANDARD.decode(value.as_str()?).ok()?),
        Type::Bool => out.varint(number, value.as_bool()?.into()),
        Type::Int32 | Type::Int64 => out.varint(number, integer(value)? as u64),
        Type::Number => out.double(number, value.as_f64()?),
        Type::Time | Type::MicroTime => {
            let at = time::parse(value.as_str()?).ok()?;
            let nanos = if matches!(ty, Type::Time) { 0 } else { at.subsec_nanosecond() / 1000 * 1000 };
            let mut message = Writer::default();
            message.varint(1, at.as_second() as u64);
            message.varint(2, i64::from(nanos) as u64);
            out.bytes(number, &message.0);
        }
        Type::Quantity => {
            let mut message = Writer::default();
            match value {
                Value::String(text) => message.bytes(1, text.as_bytes()),
                Value::Number(n) => message.bytes(1, n.to_string().as_bytes()),
                _ => return None,
            }
            out.bytes(number, &message.0);
        }
        Type::IntOrString => {
            let mut message = Writer::default();
            match value {
                Value::String(text) => {
                    message.varint(1, 1);
                    message.bytes(3, text.as_bytes());
                }
                _ => {
                    message.varint(1, 0);
                    message.varint(2, integer(value)? as u64);
                }
            }
            out.bytes(number, &message.0);
        }
        Type::Any => wrapped(number, form, value, out)?,
        Type::Object(def) => out.bytes(number, &encode(def, value).ok()?),
        Type::Array(inner) => {
            let mut message = Writer::default();
            list(1, (inner, form), value, &mut message)?;
            out.bytes(number, &message.0);
        }
        Type::Map(_) => return None,
    }
    Some(())
}

fn integer(value: &Value) -> Option<i64> {
    let whole = |n: f64| (n.fract() == 0.0 && n.abs() < i64::MAX as f64).then_some(n as i64);
    value.as_i64().or_else(|| whole(value.as_f64()?))
}

fn wrapped(number: u16, form: ProtoForm, value: &Value, out: &mut Writer) -> Option<()> {
    let schema = |value: &Value| encode(&super::schema_props()?, value).ok();
    let mut message = Writer::default();
    match (form, value) {
        (ProtoForm::Plain, _) => {}
        (ProtoForm::Raw, _) => message.bytes(1, &serde_json::to_vec(value).ok()?),
        (ProtoForm::SchemaOrBool, Value::Bool(allows)) => message.varint(1, (*allows).into()),
        (ProtoForm::SchemaOrBool, _) => {
            message.varint(1, 1);
            message.bytes(2, &schema(value)?);
        }
        (_, Value::Object(_)) => message.bytes(1, &schema(value)?),
        (ProtoForm::SchemaOrArray, _) => {
            for item in value.as_array()? {
                message.bytes(2, &schema(item)?);
            }
        }
        (ProtoForm::SchemaOrStrings, _) => {
            for item in value.as_array()? {
                message.bytes(2, item.as_str()?.as_bytes());
            }
        }
    }
    out.bytes(number, &message.0);
    Some(())
}

//! Messages to JSON values.

use super::wire::{Datum, Malformed, Reader, malformed};
use super::{Envelope, definition, unknown_kind};
use crate::body::{self, DEPTH_MAX};
use crate::status::ApiError;
use crate::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_schema::proto::{self, ProtoField, ProtoForm, ProtoPart};
use k8s_schema::{Def, DefRef, Type};
use serde_json::{Map, Number, Value};

/// Levels that a document inside a document counts for: lists hold some, nothing nests them deeper.
const DOCUMENT_LEVELS: usize = DEPTH_MAX / 4;

/// Reads a bare message of that definition. Errors are 400.
pub fn decode(def: &DefRef, bytes: &[u8]) -> Result<Value, ApiError> {
    let mut out = Map::new();
    message(def, bytes, 0, &mut out)?;
    Ok(Value::Object(out))
}

/// Reads an enveloped document that stands at that depth of another one.
pub fn enveloped(bytes: &[u8], depth: usize) -> Result<Value, Malformed> {
    let envelope = Envelope::parse(bytes)?;
    let (api_version, kind) = (envelope.api_version, envelope.kind);
    let def = definition(&api_version, &kind).ok_or_else(|| unknown_kind(&api_version, &kind))?;
    let mut out = Map::new();
    message(&def, envelope.raw, depth, &mut out)?;
    out.insert("apiVersion".into(), api_version.into());
    out.insert("kind".into(), kind.into());
    Ok(Value::Object(out))
}

/// A type with what the table adds to it, at a depth.
#[derive(Clone, Copy)]
struct Place<'a> {
    ty: &'a Type,
    form: ProtoForm,
    depth: usize,
}

impl<'a> Place<'a> {
    /// Where the items of this list or map are.
    fn inner(self, ty: &'a Type) -> Self {
        Place { ty, depth: self.depth + 1, ..self }
    }
}

fn message(def: &DefRef, bytes: &[u8], depth: usize, out: &mut Map<String, Value>) -> Result<(), Malformed> {
    if depth >= DEPTH_MAX {
        return Err(malformed("exceeded max depth"));
    }
    let Some(table) = proto::message(def) else {
        return Err(malformed(format!("{} has no protobuf form", def.get().name)));
    };
    fields(def.get(), table, (bytes, depth), out)
}

fn fields(
    def: &Def,
    table: &[ProtoField],
    (bytes, depth): (&[u8], usize),
    out: &mut Map<String, Value>,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.field()? {
        let Ok(at) = table.binary_search_by_key(&number, |f| u64::from(f.number)) else { continue };
        let (index, form, keep_zero) = match &table[at].part {
            ProtoPart::Embedded(inner) => {
                fields(def, inner, (datum.bytes()?, depth), out)?;
                continue;
            }
            ProtoPart::Field { index, form, keep_zero } => (usize::from(*index), *form, *keep_zero),
        };
        let field = &def.fields[index];
        let place = Place { ty: &field.ty, form, depth: depth + 1 };
        let before = out.remove(&*field.name);
        let value = match place.ty {
            Type::Array(inner) => Some(item(place.inner(inner), datum, before)?),
            Type::Map(inner) => Some(entry(place.inner(inner), datum.bytes()?, before)?),
            _ => single(place, datum, before)?,
        };
        // What stands for any value is a pointer in Go.
        let said = |v: &Value| keep_zero || field.required || matches!(field.ty, Type::Any) || !is_zero(v);
        if let Some(value) = value.filter(said) {
            out.insert(field.name.to_string(), value);
        }
    }
    Ok(())
}

/// Is it what Go writes for a field that nobody set?
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Bool(b) => !b,
        _ => false,
    }
}

/// Adds an item (or a packed run of them) to a list; `place` is the item's.
fn item(place: Place, datum: Datum, before: Option<Value>) -> Result<Value, Malformed> {
    let mut list = match before {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    match (place.ty, datum) {
        (Type::Int32 | Type::Int64 | Type::Bool, Datum::Bytes(packed)) => {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                list.extend(single(place, Datum::Varint(reader.varint()?), None)?);
            }
        }
        (Type::Number, Datum::Bytes(packed)) => {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                list.push(number(reader.double()?));
            }
        }
        _ => list.push(single(place, datum, None)?.unwrap_or_default()),
    }
    Ok(Value::Array(list))
}

/// Adds an entry to a map; `place` is the value's.
fn entry(place: Place, bytes: &[u8], before: Option<Value>) -> Result<Value, Malformed> {
    let mut map = match before {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.field()? {
        match number {
            1 => key = text(datum)?,
            2 => value = single(place, datum, value)?,
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        // An entry without a value has its type's zero: that of an empty message, or of a varint.
        None => single(place, Datum::Bytes(&[]), None)
            .or_else(|_| single(place, Datum::Varint(0), None))
            .unwrap_or_default()
            .unwrap_or_default(),
    };
    map.insert(key, value);
    Ok(Value::Object(map))
}

/// Reads one value; `None` is null. A message that comes in several parts is merged with what was `before`.
fn single(place: Place, datum: Datum, before: Option<Value>) -> Result<Option<Value>, Malformed> {
    match place.ty {
        Type::Object(def) => object(def, datum.bytes()?, place.depth, before).map(Some),
        Type::Array(inner) => wrapped_list(place.inner(inner), datum.bytes()?).map(Some),
        Type::Map(_) => Err(malformed("a map in a map")),
        Type::Any => wrapped(place, datum.bytes()?),
        ty => scalar(ty, datum),
    }
}

fn object(def: &DefRef, bytes: &[u8], depth: usize, before: Option<Value>) -> Result<Value, Malformed> {
    let mut out = match before {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    message(def, bytes, depth, &mut out)?;
    Ok(Value::Object(out))
}

/// A list that is a map's value: `items` of a message.
fn wrapped_list(place: Place, bytes: &[u8]) -> Result<Value, Malformed> {
    let mut list = Value::Array(Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.field()? {
        if number == 1 {
            list = item(place, datum, Some(list))?;
        }
    }
    Ok(list)
}

/// Values that hold no others; apart from the rest because those recurse and this has many temporaries.
fn scalar(ty: &Type, datum: Datum) -> Result<Option<Value>, Malformed> {
    Ok(Some(match ty {
        Type::String => text(datum)?.into(),
        Type::Bytes => STANDARD.encode(datum.bytes()?).into(),
        Type::Bool => (datum.varint()? != 0).into(),
        // Go cuts what is too long.
        Type::Int32 => (datum.varint()? as i32).into(),
        Type::Int64 => (datum.varint()? as i64).into(),
        Type::Number => number(datum.double()?),
        Type::Time | Type::MicroTime => return moment(ty, datum.bytes()?),
        Type::Quantity => {
            let quantity = part(datum.bytes()?, 1)?.map(text).transpose()?.filter(|q| !q.is_empty());
            quantity.unwrap_or_else(|| "0".into()).into()
        }
        Type::IntOrString => int_or_string(datum.bytes()?)?,
        Type::Any | Type::Object(_) | Type::Array(_) | Type::Map(_) => return Ok(None),
    }))
}

fn text(datum: Datum) -> Result<String, Malformed> {
    Ok(String::from_utf8_lossy(datum.bytes()?).into_owned())
}

/// Whole numbers are written without a fraction, as Go does.
fn number(value: f64) -> Value {
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= WHOLE_MAX {
        return (value as i64).into();
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// The last value of that number in a message.
fn part(bytes: &[u8], number: u64) -> Result<Option<Datum<'_>>, Malformed> {
    let mut found = None;
    let mut reader = Reader::new(bytes);
    while let Some((n, datum)) = reader.field()? {
        if n == number {
            found = Some(datum);
        }
    }
    Ok(found)
}

/// An empty message is Go's zero time, which JSON has as null.
fn moment(ty: &Type, bytes: &[u8]) -> Result<Option<Value>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let get = |number| part(bytes, number)?.map_or(Ok(0), Datum::varint);
    let (seconds, nanos) = (get(1)? as i64, get(2)? as i32);
    let micro = matches!(ty, Type::MicroTime);
    let at = Timestamp::new(seconds, if micro { nanos } else { 0 });
    let at = at.map_err(|_| malformed(format!("time out of range: {seconds} s, {nanos} ns")))?;
    Ok(Some(if micro { time::format_micro(at) } else { time::format(at) }.into()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let kind = part(bytes, 1)?.map_or(Ok(0), Datum::varint)?;
    if kind == 0 {
        return Ok((part(bytes, 2)?.map_or(Ok(0), Datum::varint)? as i32).into());
    }
    Ok(part(bytes, 3)?.map_or(Ok(String::new()), text)?.into())
}

fn wrapped(place: Place, bytes: &[u8]) -> Result<Option<Value>, Malformed> {
    match place.form {
        // Open objects without a form of their own (`Patch`) hold nothing.
        ProtoForm::Plain => Ok(None),
        ProtoForm::Raw => match part(bytes, 1)?.map_or(Ok(&[] as &[u8]), Datum::bytes)? {
            [] => Ok(None),
            raw => json(raw, place.depth),
        },
        ProtoForm::SchemaOrBool => match part(bytes, 2)? {
            Some(datum) => schema(datum, place.depth).map(Some),
            None => Ok(Some((part(bytes, 1)?.map_or(Ok(0), Datum::varint)? != 0).into())),
        },
        ProtoForm::SchemaOrArray | ProtoForm::SchemaOrStrings => schema_or_list(place, bytes),
    }
}

fn schema_or_list(place: Place, bytes: &[u8]) -> Result<Option<Value>, Malformed> {
    let (mut list, mut one) = (Vec::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.field()? {
        match number {
            1 => one = Some(schema(datum, place.depth)?),
            2 if place.form == ProtoForm::SchemaOrStrings => list.push(text(datum)?.into()),
            2 => list.push(schema(datum, place.depth + 1)?),
            _ => {}
        }
    }
    Ok(if list.is_empty() { one } else { Some(Value::Array(list)) })
}

fn schema(datum: Datum, depth: usize) -> Result<Value, Malformed> {
    let def = super::schema_props().ok_or_else(|| malformed("no JSONSchemaProps"))?;
    object(&def, datum.bytes()?, depth, None)
}

/// JSON text or an enveloped document inside another one.
fn json(raw: &[u8], depth: usize) -> Result<Option<Value>, Malformed> {
    if raw.starts_with(super::MAGIC) {
        return enveloped(raw, depth + DOCUMENT_LEVELS).map(Some);
    }
    let value = body::json(raw).map_err(|e| Malformed(e.message.into()))?.value;
    if depth + nesting(&value) > DEPTH_MAX {
        return Err(malformed("exceeded max depth"));
    }
    Ok(Some(value).filter(|v| !v.is_null()))
}

/// How deep a value nests (a scalar: 0). Its reader has bounded it.
fn nesting(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nesting).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(nesting).max().unwrap_or_default(),
        _ => 0,
    }
}

//! Values, cheap to clone; to and from JSON.

use super::lib::authz::Check;
use super::lib::formats::Named;
use super::lib::net::Cidr;
use super::lib::semver::Semver;
use super::lib::url::Url;
use super::types::{LIBRARY, Type, escape};
use crate::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use regex::Regex;
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// It failed, in CEL's words (`no such key: x`). `||` and `&&` may do without the failed side.
    #[error("{0}")]
    Failed(String),
    /// It cost more than one evaluation may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CallCost,
    /// It cost more than was left for its object.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
}

impl EvalError {
    /// A failure in these words.
    pub fn failed(words: impl Into<String>) -> Self {
        EvalError::Failed(words.into())
    }

    /// Values that no function of this name takes.
    pub fn no_such_overload() -> Self {
        EvalError::failed("no such overload")
    }
}

/// Parts beyond this number are not counted: more than any evaluation can pay for.
const WEIGHT_MAX: u64 = 10 * super::CALL_COST_MAX + 1;
/// Parts of a value that becomes JSON: no object can hold more.
const JSON_PARTS_MAX: u64 = 1 << 20;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// An unsigned number.
    Uint(u64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A list.
    List(Arc<[Value]>),
    /// A map or an object.
    Map(Arc<BTreeMap<Key, Value>>),
    /// A point in time.
    Timestamp(Timestamp),
    /// A span of time.
    Duration(SignedDuration),
    /// A type's name.
    Type(Arc<str>),
    /// A value or none.
    Optional(Option<Arc<Value>>),
    /// A library's own value.
    Ext(Arc<Ext>),
}

/// A library's own value.
#[derive(Debug)]
pub enum Ext {
    /// An address.
    Ip(IpAddr),
    /// A network.
    Cidr(Cidr),
    /// A URL.
    Url(Url),
    /// An amount.
    Quantity(Quantity),
    /// A version.
    Semver(Semver),
    /// A named format.
    Format(&'static Named),
    /// A constant pattern, compiled once; behaves as its text.
    Pattern(Regex, Arc<str>),
    /// Part of a question to the authorizer, or its answer.
    Check(Check),
}

impl Ext {
    /// The table's short name of its type.
    pub fn short_name(&self) -> &'static str {
        match self {
            Ext::Ip(_) => "ip",
            Ext::Cidr(_) => "cidr",
            Ext::Url(_) => "url",
            Ext::Quantity(_) => "quantity",
            Ext::Semver(_) => "semver",
            Ext::Format(_) => "format",
            Ext::Pattern(..) => "string",
            Ext::Check(check) => check.short_name(),
        }
    }
}

/// A map's key. Whole numbers are `Int` where they fit, so that `1`, `1u` and `1.0` find the same entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A boolean.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// A number above all signed ones.
    Uint(u64),
    /// Text.
    String(Arc<str>),
    /// In a map made by this program: what is found under every key that is not there. No walk sees it.
    Any,
}

impl Key {
    /// The value.
    pub fn value(&self) -> Value {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::String(s) => Value::String(s.clone()),
            Key::Any => Value::Null,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(text.into())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Value::Bool(b)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Value::Int(n)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Value::List(items.into())
    }
}

impl From<Ext> for Value {
    fn from(ext: Ext) -> Self {
        Value::Ext(Arc::new(ext))
    }
}

impl Value {
    /// A map from text.
    pub fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
        let entries = entries.into_iter().map(|(k, v)| (Key::String(k.into()), v));
        Value::Map(Arc::new(entries.collect()))
    }

    /// Some value.
    pub fn some(value: Value) -> Value {
        Value::Optional(Some(Arc::new(value)))
    }

    /// None.
    pub const NONE: Value = Value::Optional(None);

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            Value::Ext(ext) => match &**ext {
                Ext::Pattern(_, text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// As a map's key.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Key::Int(*d as i64),
            other => Key::String(other.as_str()?.into()),
        })
    }

    /// A JSON document as it is: whole numbers are `int`.
    pub fn from_json(json: &Json) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n),
                (_, Some(n)) => Value::Uint(n),
                _ => Value::Double(n.as_f64().unwrap_or_default()),
            },
            Json::String(s) => s.as_str().into(),
            Json::Array(items) => Value::List(items.iter().map(Value::from_json).collect()),
            Json::Object(map) => Value::map(map.iter().map(|(k, v)| (k.clone(), Value::from_json(v)))),
        }
    }

    /// A JSON document as a value of this type: names of objects' fields are escaped, fields that the type does not
    /// have are left out, texts become times and bytes where the type says so.
    pub fn typed(json: &Json, ty: &Type) -> Value {
        match (json, ty) {
            (Json::Array(items), Type::List(of)) => {
                Value::List(items.iter().map(|i| Value::typed(i, of)).collect())
            }
            (Json::Object(map), Type::Map(_, of)) => {
                Value::map(map.iter().map(|(k, v)| (k.clone(), Value::typed(v, of))))
            }
            (Json::Object(map), Type::Object(object)) => Value::map(map.iter().filter_map(|(k, v)| {
                let name = escape(k)?;
                let ty = object.fields.get(&name)?;
                Some((name, Value::typed(v, ty)))
            })),
            (Json::Number(n), Type::Double) => Value::Double(n.as_f64().unwrap_or_default()),
            (Json::Number(n), Type::Int) => match n.as_i64().or(n.as_f64().map(|d| d as i64)) {
                Some(n) => Value::Int(n),
                None => Value::from_json(json),
            },
            (Json::String(s), Type::Timestamp) => match super::lib::time::timestamp(s) {
                Ok(at) => Value::Timestamp(at),
                Err(_) => Value::from_json(json),
            },
            (Json::String(s), Type::Duration) => match super::lib::time::duration(s) {
                Some(span) => Value::Duration(span),
                None => Value::from_json(json),
            },
            (Json::String(s), Type::Bytes) => {
                use base64::Engine as _;
                match base64::engine::general_purpose::STANDARD.decode(s) {
                    Ok(bytes) => Value::Bytes(bytes.into()),
                    Err(_) => Value::from_json(json),
                }
            }
            _ => Value::from_json(json),
        }
    }

    /// As JSON; an error for values that JSON does not have.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        match self.weight() > JSON_PARTS_MAX << 3 {
            true => Err(EvalError::failed("value too large")),
            false => self.json(),
        }
    }

    fn json(&self) -> Result<Json, EvalError> {
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => (*n).into(),
            Value::Uint(n) => (*n).into(),
            Value::Double(d) => Json::from(*d),
            Value::List(items) => Json::Array(items.iter().map(Value::json).collect::<Result<_, _>>()?),
            Value::Map(map) => {
                let entry = |(k, v): (&Key, &Value)| Ok((super::lib::core::text(&k.value())?, v.json()?));
                Json::Object(map.iter().map(entry).collect::<Result<_, EvalError>>()?)
            }
            Value::Optional(Some(value)) => value.json()?,
            Value::Optional(None) => Json::Null,
            Value::Bytes(bytes) => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            other => super::lib::core::text(other)?.into(),
        })
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Type(_) => "type",
            Value::Optional(_) => "optional_type",
            Value::Ext(ext) => {
                let short = ext.short_name();
                LIBRARY.iter().find(|(s, _)| *s == short).map_or("string", |(_, name)| name)
            }
        }
    }

    /// Could a value like this be meant by a signature's type? Items are not looked at.
    pub fn fits(&self, ty: &Type) -> bool {
        match ty {
            Type::Dyn | Type::Param(_) => true,
            Type::Null => matches!(self, Value::Null),
            Type::Bool => matches!(self, Value::Bool(_)),
            Type::Int => matches!(self, Value::Int(_)),
            Type::Uint => matches!(self, Value::Uint(_)),
            Type::Double => matches!(self, Value::Double(_)),
            Type::String => self.as_str().is_some(),
            Type::Bytes => matches!(self, Value::Bytes(_)),
            Type::Timestamp => matches!(self, Value::Timestamp(_)),
            Type::Duration => matches!(self, Value::Duration(_)),
            Type::Type => matches!(self, Value::Type(_)),
            Type::List(_) => matches!(self, Value::List(_)),
            Type::Map(..) | Type::Object(_) => matches!(self, Value::Map(_)),
            Type::Optional(of) => match self {
                Value::Optional(Some(value)) => value.fits(of),
                Value::Optional(None) => true,
                _ => false,
            },
            Type::Library(short) => matches!(self, Value::Ext(ext) if ext.short_name() == *short),
        }
    }

    /// Every part of it, texts as long as they are; counted no further than matters.
    pub fn weight(&self) -> u64 {
        let mut left = WEIGHT_MAX;
        self.weigh(&mut left);
        WEIGHT_MAX - left
    }

    fn weigh(&self, left: &mut u64) {
        let own = match self {
            Value::List(_) | Value::Map(_) => 1,
            other => other.size(),
        };
        *left = left.saturating_sub(own);
        let mut below = |value: &Value| {
            if *left > 0 {
                value.weigh(left);
            }
        };
        match self {
            Value::List(items) => items.iter().for_each(below),
            Value::Map(map) => map.values().for_each(below),
            Value::Optional(Some(value)) => below(value),
            _ => {}
        }
    }

    /// Items or characters, for the cost of walking over it.
    pub fn size(&self) -> u64 {
        match self {
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(items) => items.len() as u64,
            Value::Map(map) => map.len() as u64,
            other => other.as_str().map_or(1, |s| s.len() as u64),
        }
    }
}

/// Numbers of all kinds by their value; `None` for `NaN` and what is no number.
fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    let whole = |v: &Value| match v {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    if let (Some(a), Some(b)) = (whole(a), whole(b)) {
        return Some(a.cmp(&b));
    }
    let double = |v: &Value| match v {
        Value::Double(d) => Some(*d),
        other => whole(other).map(|n| n as f64),
    };
    double(a)?.partial_cmp(&double(b)?)
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::List(a), Value::List(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Optional(a), Value::Optional(b)) => a == b,
            (Value::Ext(a), Value::Ext(b)) if self.as_str().is_none() => a.same(b),
            _ => match (self.as_str(), other.as_str()) {
                (Some(a), Some(b)) => a == b,
                _ => numbers(self, other) == Some(Ordering::Equal),
            },
        }
    }
}

impl Value {
    /// The order of two values; `None` when they have none.
    pub fn order(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            (Value::Ext(a), Value::Ext(b)) if self.as_str().is_none() => match (&**a, &**b) {
                (Ext::Quantity(a), Ext::Quantity(b)) => Some(a.cmp(b)),
                (Ext::Semver(a), Ext::Semver(b)) => Some(a.cmp(b)),
                _ => None,
            },
            _ => match (self.as_str(), other.as_str()) {
                (Some(a), Some(b)) => Some(a.cmp(b)),
                _ => numbers(self, other),
            },
        }
    }
}

impl Ext {
    fn same(&self, other: &Ext) -> bool {
        match (self, other) {
            (Ext::Ip(a), Ext::Ip(b)) => a == b,
            (Ext::Cidr(a), Ext::Cidr(b)) => a == b,
            (Ext::Url(a), Ext::Url(b)) => a.text == b.text,
            (Ext::Quantity(a), Ext::Quantity(b)) => a.cmp(b).is_eq(),
            (Ext::Semver(a), Ext::Semver(b)) => a == b,
            (Ext::Format(a), Ext::Format(b)) => a.name == b.name,
            _ => false,
        }
    }
}

//! Equality, order, membership, indices, sizes, conversions between types.

use super::time;
use crate::cel::table::{Cost, Row};
use crate::cel::types::Type;
use crate::cel::value::{EvalError, Ext, Key, Value};
use std::cmp::Ordering;
use std::sync::Arc;

type Outcome = Result<Value, EvalError>;

macro_rules! ordered {
    ($sign:literal) => {
        concat!(
            "_",
            $sign,
            "_(bool, bool) bool; _",
            $sign,
            "_(int, int) bool; _",
            $sign,
            "_(uint, uint) bool; _",
            $sign,
            "_(double, double) bool; _",
            $sign,
            "_(int, uint) bool; _",
            $sign,
            "_(uint, int) bool; _",
            $sign,
            "_(int, double) bool; _",
            $sign,
            "_(double, int) bool; _",
            $sign,
            "_(uint, double) bool; _",
            $sign,
            "_(double, uint) bool; _",
            $sign,
            "_(string, string) bool; _",
            $sign,
            "_(bytes, bytes) bool; _",
            $sign,
            "_(timestamp, timestamp) bool; _",
            $sign,
            "_(duration, duration) bool"
        )
    };
}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("_==_(A, A) bool", Cost::Equal, |a| Ok((a[0] == a[1]).into())),
    ("_!=_(A, A) bool", Cost::Equal, |a| Ok((a[0] != a[1]).into())),
    (ordered!("<"), Cost::Equal, |a| compare(a, Ordering::is_lt)),
    (ordered!("<="), Cost::Equal, |a| compare(a, Ordering::is_le)),
    (ordered!(">"), Cost::Equal, |a| compare(a, Ordering::is_gt)),
    (ordered!(">="), Cost::Equal, |a| compare(a, Ordering::is_ge)),
    ("@in(A, list<A>) bool; @in(A, map<A, B>) bool", Cost::In, contains),
    ("_[_](list<A>, int) A; _[_](map<A, B>, A) B", Cost::Flat, |a| index(&a[0], &a[1])),
    (
        "_[_](optional<list<A>>, int) optional<A>; _[_](optional<map<A, B>>, A) optional<B>; \
         _[?_](list<A>, int) optional<A>; _[?_](map<A, B>, A) optional<B>; \
         _[?_](optional<list<A>>, int) optional<A>; _[?_](optional<map<A, B>>, A) optional<B>",
        Cost::Flat,
        index_optional,
    ),
    ("size(bytes) int; size(list<A>) int; size(map<A, B>) int; size(string) int", Cost::Scan, size),
    ("bytes:size() int; list<A>:size() int; map<A, B>:size() int; string:size() int", Cost::Scan, size),
    ("int(int) int; int(uint) int; int(double) int; int(string) int; int(timestamp) int", Cost::Flat, to_int),
    ("uint(int) uint; uint(uint) uint; uint(double) uint; uint(string) uint", Cost::Flat, to_uint),
    (
        "double(int) double; double(uint) double; double(double) double; double(string) double",
        Cost::Flat,
        to_double,
    ),
    (
        "string(int) string; string(uint) string; string(double) string; string(string) string; string(bool) string; \
         string(bytes) string; string(timestamp) string; string(duration) string; string(ip) string; \
         string(cidr) string; string(quantity) string; string(semver) string; string(url) string",
        Cost::Scan,
        |a| text(&a[0]).map(Value::from),
    ),
    ("bytes(bytes) bytes; bytes(string) bytes", Cost::Scan, to_bytes),
    ("bool(bool) bool; bool(string) bool", Cost::Flat, to_bool),
    ("dyn(A) dyn", Cost::Flat, |a| Ok(a[0].clone())),
    ("type(A) type", Cost::Flat, |a| Ok(Value::Type(a[0].type_name().into()))),
];

fn compare(a: &[Value], is: impl Fn(Ordering) -> bool) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Double(x), _) | (_, Value::Double(x)) if x.is_nan() => Ok(Value::Bool(false)),
        (x, y) => x.order(y).map(|o| Value::Bool(is(o))).ok_or_else(EvalError::no_such_overload),
    }
}

fn contains(a: &[Value]) -> Outcome {
    match &a[1] {
        Value::List(items) => Ok(items.contains(&a[0]).into()),
        Value::Map(map) => Ok(a[0].key().is_some_and(|key| map.contains_key(&key)).into()),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn position(index: &Value) -> Option<i64> {
    match index.key()? {
        Key::Int(n) => Some(n),
        _ => None,
    }
}

fn find<'a>(of: &'a Value, index: &Value) -> Result<Option<&'a Value>, EvalError> {
    match of {
        Value::List(items) => {
            let at = position(index).ok_or_else(|| EvalError::failed("unsupported index type in list"))?;
            Ok(usize::try_from(at).ok().and_then(|at| items.get(at)))
        }
        Value::Map(map) => Ok(index.key().and_then(|key| map.get(&key).or_else(|| map.get(&Key::Any)))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn index(of: &Value, at: &Value) -> Outcome {
    let shown = || text(at).unwrap_or_default();
    find(of, at)?.cloned().ok_or_else(|| match of {
        Value::List(_) => EvalError::failed(format!("index out of bounds: {}", shown())),
        _ => EvalError::failed(format!("no such key: {}", shown())),
    })
}

fn index_optional(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Optional(None) => Ok(Value::NONE),
        Value::Optional(Some(of)) => Ok(Value::Optional(find(of, &a[1])?.cloned().map(Arc::new))),
        of => Ok(Value::Optional(find(of, &a[1])?.cloned().map(Arc::new))),
    }
}

fn size(a: &[Value]) -> Outcome {
    Ok(Value::Int(match &a[0] {
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.len(),
        Value::Map(map) => map.len() - usize::from(map.contains_key(&Key::Any)),
        other => other.as_str().map_or(0, |s| s.chars().count()),
    } as i64))
}

fn range(what: &str) -> EvalError {
    EvalError::failed(format!("{what} overflow"))
}

fn to_int(a: &[Value]) -> Outcome {
    let bad = |s: &str| EvalError::failed(format!("strconv.ParseInt: parsing {s:?}: invalid syntax"));
    Ok(Value::Int(match &a[0] {
        Value::Int(n) => *n,
        Value::Uint(n) => i64::try_from(*n).map_err(|_| range("integer"))?,
        Value::Double(d) if d.abs() < 9.223_372_036_854_775e18 => *d as i64,
        Value::Double(_) => return Err(range("integer")),
        Value::Timestamp(at) => at.as_second(),
        other => {
            let text = other.as_str().unwrap_or_default();
            text.parse().map_err(|_| bad(text))?
        }
    }))
}

fn to_uint(a: &[Value]) -> Outcome {
    let bad = |s: &str| EvalError::failed(format!("strconv.ParseUint: parsing {s:?}: invalid syntax"));
    Ok(Value::Uint(match &a[0] {
        Value::Uint(n) => *n,
        Value::Int(n) => u64::try_from(*n).map_err(|_| range("unsigned integer"))?,
        Value::Double(d) if *d >= 0.0 && *d < 1.844_674_407_370_955e19 => *d as u64,
        Value::Double(_) => return Err(range("unsigned integer")),
        other => {
            let text = other.as_str().unwrap_or_default();
            text.parse().map_err(|_| bad(text))?
        }
    }))
}

fn to_double(a: &[Value]) -> Outcome {
    let bad = |s: &str| EvalError::failed(format!("strconv.ParseFloat: parsing {s:?}: invalid syntax"));
    Ok(Value::Double(match &a[0] {
        Value::Double(d) => *d,
        Value::Int(n) => *n as f64,
        Value::Uint(n) => *n as f64,
        other => {
            let text = other.as_str().unwrap_or_default();
            text.parse().map_err(|_| bad(text))?
        }
    }))
}

fn to_bytes(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Bytes(_) => Ok(a[0].clone()),
        other => Ok(Value::Bytes(other.as_str().unwrap_or_default().as_bytes().into())),
    }
}

fn to_bool(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        other => match other.as_str().unwrap_or_default() {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            text => Err(EvalError::failed(format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))),
        },
    }
}

/// `string(…)`: the value as text.
pub fn text(value: &Value) -> Result<String, EvalError> {
    Ok(match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(d) => double(*d),
        Value::Timestamp(at) => time::print(*at),
        Value::Duration(span) => time::print_duration(*span),
        Value::Type(name) => Type::plain(name).map_or_else(|| name.to_string(), |ty| ty.to_string()),
        Value::Bytes(bytes) => {
            let words = "invalid UTF-8 in bytes, cannot convert to string";
            std::str::from_utf8(bytes).map_err(|_| EvalError::failed(words))?.to_string()
        }
        Value::String(text) => text.to_string(),
        Value::Ext(ext) => match &**ext {
            Ext::Ip(ip) => ip.to_string(),
            Ext::Cidr(cidr) => cidr.to_string(),
            Ext::Quantity(q) => q.to_string(),
            Ext::Semver(v) => v.to_string(),
            Ext::Url(url) => url.text.clone(),
            Ext::Pattern(_, text) => text.to_string(),
            Ext::Format(_) | Ext::Check(_) => return Err(EvalError::no_such_overload()),
        },
        Value::List(_) | Value::Map(_) | Value::Optional(_) => return Err(EvalError::no_such_overload()),
    })
}

/// A number as Go prints it.
pub fn double(d: f64) -> String {
    match d {
        d if d.is_nan() => "NaN".into(),
        d if d.is_infinite() => if d > 0.0 { "+Inf" } else { "-Inf" }.into(),
        d if d != 0.0 && !(1e-4..1e21).contains(&d.abs()) => {
            let text = format!("{d:e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        d => d.to_string(),
    }
}

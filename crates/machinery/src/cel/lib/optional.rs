//! Optional values. `or` and `orValue` are the evaluator's, which looks at their second side only where it must.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Value};

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("optional.of(A) optional<A>", Cost::Flat, |a| Ok(Value::some(a[0].clone()))),
    ("optional.none() optional<dyn>", Cost::Flat, |_| Ok(Value::NONE)),
    ("optional.ofNonZeroValue(A) optional<A>", Cost::Flat, |a| {
        Ok(if is_zero(&a[0]) { Value::NONE } else { Value::some(a[0].clone()) })
    }),
    ("optional<A>:hasValue() bool", Cost::Flat, |a| Ok(matches!(a[0], Value::Optional(Some(_))).into())),
    ("optional<A>:value() A", Cost::Flat, |a| match &a[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        _ => Err(EvalError::failed("optional.none() dereference")),
    }),
    ("optional<A>:or(optional<A>) optional<A>", Cost::Flat, |_| Err(EvalError::no_such_overload())),
    ("optional<A>:orValue(A) A", Cost::Flat, |_| Err(EvalError::no_such_overload())),
];

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(b) => !b,
        Value::Int(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(d) => *d == 0.0,
        Value::Duration(span) => span.is_zero(),
        Value::List(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        other => other.as_str().is_some_and(str::is_empty),
    }
}

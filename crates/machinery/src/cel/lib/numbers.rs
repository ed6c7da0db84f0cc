//! Arithmetic, with every overflow an error.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Value};
use jiff::SignedDuration;

/// Rows of this library.
pub const ROWS: &[Row] = &[
    (
        "_+_(int, int) int; _+_(uint, uint) uint; _+_(double, double) double; _+_(timestamp, duration) timestamp; \
         _+_(duration, timestamp) timestamp; _+_(duration, duration) duration",
        Cost::Flat,
        add,
    ),
    (
        "_+_(string, string) string; _+_(bytes, bytes) bytes; _+_(list<A>, list<A>) list<A>",
        Cost::Scan,
        concat,
    ),
    (
        "_-_(int, int) int; _-_(uint, uint) uint; _-_(double, double) double; _-_(timestamp, timestamp) duration; \
         _-_(timestamp, duration) timestamp; _-_(duration, duration) duration",
        Cost::Flat,
        subtract,
    ),
    ("_*_(int, int) int; _*_(uint, uint) uint; _*_(double, double) double", Cost::Flat, multiply),
    ("_/_(int, int) int; _/_(uint, uint) uint; _/_(double, double) double", Cost::Flat, divide),
    ("_%_(int, int) int; _%_(uint, uint) uint", Cost::Flat, modulo),
    ("-_(int) int; -_(double) double", Cost::Flat, negate),
    ("!_(bool) bool", Cost::Flat, |a| Ok(Value::Bool(a[0].as_bool() == Some(false)))),
];

type Outcome = Result<Value, EvalError>;

fn overflow(kind: &str) -> EvalError {
    EvalError::failed(format!("{kind} overflow"))
}

fn int(n: Option<i64>) -> Outcome {
    n.map(Value::Int).ok_or_else(|| overflow("integer"))
}

fn uint(n: Option<u64>) -> Outcome {
    n.map(Value::Uint).ok_or_else(|| overflow("unsigned integer"))
}

fn span(d: Option<SignedDuration>) -> Outcome {
    d.map(Value::Duration).ok_or_else(|| overflow("duration"))
}

fn add(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(x), Value::Int(y)) => int(x.checked_add(*y)),
        (Value::Uint(x), Value::Uint(y)) => uint(x.checked_add(*y)),
        (Value::Double(x), Value::Double(y)) => Ok(Value::Double(x + y)),
        (Value::Duration(x), Value::Duration(y)) => span(x.checked_add(*y)),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            t.checked_add(*d).map(Value::Timestamp).map_err(|_| overflow("timestamp"))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn concat(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Bytes(x), Value::Bytes(y)) => Ok(Value::Bytes([&**x, &**y].concat().into())),
        (Value::List(x), Value::List(y)) => Ok([&**x, &**y].concat().into()),
        (x, y) => match (x.as_str(), y.as_str()) {
            (Some(x), Some(y)) => Ok(format!("{x}{y}").into()),
            _ => Err(EvalError::no_such_overload()),
        },
    }
}

fn subtract(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(x), Value::Int(y)) => int(x.checked_sub(*y)),
        (Value::Uint(x), Value::Uint(y)) => uint(x.checked_sub(*y)),
        (Value::Double(x), Value::Double(y)) => Ok(Value::Double(x - y)),
        (Value::Duration(x), Value::Duration(y)) => span(x.checked_sub(*y)),
        (Value::Timestamp(x), Value::Timestamp(y)) => Ok(Value::Duration(x.duration_since(*y))),
        (Value::Timestamp(t), Value::Duration(d)) => {
            t.checked_sub(*d).map(Value::Timestamp).map_err(|_| overflow("timestamp"))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn multiply(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(x), Value::Int(y)) => int(x.checked_mul(*y)),
        (Value::Uint(x), Value::Uint(y)) => uint(x.checked_mul(*y)),
        (Value::Double(x), Value::Double(y)) => Ok(Value::Double(x * y)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn divide(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            Err(EvalError::failed("division by zero"))
        }
        (Value::Int(x), Value::Int(y)) => int(x.checked_div(*y)),
        (Value::Uint(x), Value::Uint(y)) => uint(x.checked_div(*y)),
        (Value::Double(x), Value::Double(y)) => Ok(Value::Double(x / y)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn modulo(a: &[Value]) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            Err(EvalError::failed("modulus by zero"))
        }
        (Value::Int(x), Value::Int(y)) => int(x.checked_rem(*y)),
        (Value::Uint(x), Value::Uint(y)) => uint(x.checked_rem(*y)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn negate(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Int(x) => int(x.checked_neg()),
        Value::Double(x) => Ok(Value::Double(-x)),
        _ => Err(EvalError::no_such_overload()),
    }
}

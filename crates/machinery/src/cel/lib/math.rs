//! `math.…`

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Value};
use std::cmp::Ordering;

type Outcome = Result<Value, EvalError>;

/// Rows of this library. `greatest` and `least` get a list: the macro made it of their arguments.
pub const ROWS: &[Row] = &[
    ("math.@greatest(list<A>) A", Cost::Items, |a| extreme(a, Ordering::Greater)),
    ("math.@least(list<A>) A", Cost::Items, |a| extreme(a, Ordering::Less)),
    ("math.ceil(double) double", Cost::Flat, |a| double(a, f64::ceil)),
    ("math.floor(double) double", Cost::Flat, |a| double(a, f64::floor)),
    ("math.round(double) double", Cost::Flat, |a| double(a, f64::round)),
    ("math.trunc(double) double", Cost::Flat, |a| double(a, f64::trunc)),
    ("math.sqrt(double) double; math.sqrt(int) double; math.sqrt(uint) double", Cost::Flat, |a| {
        double(a, f64::sqrt)
    }),
    ("math.isInf(double) bool", Cost::Flat, |a| is(a, f64::is_infinite)),
    ("math.isNaN(double) bool", Cost::Flat, |a| is(a, f64::is_nan)),
    ("math.isFinite(double) bool", Cost::Flat, |a| is(a, f64::is_finite)),
    ("math.abs(int) int; math.abs(uint) uint; math.abs(double) double", Cost::Flat, abs),
    ("math.sign(int) int; math.sign(uint) uint; math.sign(double) double", Cost::Flat, sign),
    ("math.bitAnd(int, int) int; math.bitAnd(uint, uint) uint", Cost::Flat, |a| bits(a, |x, y| x & y)),
    ("math.bitOr(int, int) int; math.bitOr(uint, uint) uint", Cost::Flat, |a| bits(a, |x, y| x | y)),
    ("math.bitXor(int, int) int; math.bitXor(uint, uint) uint", Cost::Flat, |a| bits(a, |x, y| x ^ y)),
    ("math.bitNot(int) int; math.bitNot(uint) uint", Cost::Flat, not),
    ("math.bitShiftLeft(int, int) int; math.bitShiftLeft(uint, int) uint", Cost::Flat, |a| {
        shift(a, |x, by| x.checked_shl(by).unwrap_or(0))
    }),
    ("math.bitShiftRight(int, int) int; math.bitShiftRight(uint, int) uint", Cost::Flat, |a| {
        shift(a, |x, by| x.checked_shr(by).unwrap_or(0))
    }),
];

fn extreme(a: &[Value], wanted: Ordering) -> Outcome {
    let Value::List(items) = &a[0] else { return Err(EvalError::no_such_overload()) };
    let number = |v: &Value| matches!(v, Value::Int(_) | Value::Uint(_) | Value::Double(_));
    if items.is_empty() || !items.iter().all(number) {
        return Err(EvalError::no_such_overload());
    }
    let mut best = &items[0];
    for item in items.iter() {
        if item.order(best) == Some(wanted) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn double(a: &[Value], f: fn(f64) -> f64) -> Outcome {
    match &a[0] {
        Value::Double(d) => Ok(Value::Double(f(*d))),
        Value::Int(n) => Ok(Value::Double(f(*n as f64))),
        Value::Uint(n) => Ok(Value::Double(f(*n as f64))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn is(a: &[Value], f: fn(f64) -> bool) -> Outcome {
    match &a[0] {
        Value::Double(d) => Ok(Value::Bool(f(*d))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn abs(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Int(n) => n.checked_abs().map(Value::Int).ok_or_else(|| EvalError::failed("integer overflow")),
        Value::Double(d) => Ok(Value::Double(d.abs())),
        other => Ok(other.clone()),
    }
}

fn sign(a: &[Value]) -> Outcome {
    Ok(match &a[0] {
        Value::Int(n) => Value::Int(n.signum()),
        Value::Uint(n) => Value::Uint((*n).min(1)),
        Value::Double(d) if *d == 0.0 || d.is_nan() => Value::Double(*d),
        Value::Double(d) => Value::Double(d.signum()),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn bits(a: &[Value], f: fn(u64, u64) -> u64) -> Outcome {
    match (&a[0], &a[1]) {
        (Value::Int(x), Value::Int(y)) => Ok(Value::Int(f(*x as u64, *y as u64) as i64)),
        (Value::Uint(x), Value::Uint(y)) => Ok(Value::Uint(f(*x, *y))),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn not(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Int(x) => Ok(Value::Int(!x)),
        Value::Uint(x) => Ok(Value::Uint(!x)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn shift(a: &[Value], f: fn(u64, u32) -> u64) -> Outcome {
    let Value::Int(by) = &a[1] else { return Err(EvalError::no_such_overload()) };
    let by = u32::try_from(*by)
        .map_err(|_| EvalError::failed(format!("math.bitShift() negative offset: {by}")))?;
    match &a[0] {
        Value::Int(x) => Ok(Value::Int(f(*x as u64, by) as i64)),
        Value::Uint(x) => Ok(Value::Uint(f(*x, by))),
        _ => Err(EvalError::no_such_overload()),
    }
}

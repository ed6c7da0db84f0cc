//! Amounts (`500m`, `2Gi`).

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use crate::quantity::Quantity;

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("quantity(string) quantity", Cost::Scan, |a| {
        let parsed = a[0].as_str().unwrap_or_default().parse::<Quantity>();
        parsed.map(|q| Ext::Quantity(q).into()).map_err(|error| EvalError::failed(error.to_string()))
    }),
    ("isQuantity(string) bool", Cost::Scan, |a| {
        Ok(a[0].as_str().unwrap_or_default().parse::<Quantity>().is_ok().into())
    }),
    ("quantity:sign() int", Cost::Flat, |a| Ok(Value::Int(amount(&a[0])?.sign().into()))),
    ("quantity:isInteger() bool", Cost::Flat, |a| Ok(amount(&a[0])?.is_whole().into())),
    ("quantity:asInteger() int", Cost::Flat, |a| {
        let q = amount(&a[0])?;
        let words = "cannot convert value to integer";
        if q.is_whole() { Ok(Value::Int(q.units())) } else { Err(EvalError::failed(words)) }
    }),
    ("quantity:asApproximateFloat() double", Cost::Flat, |a| {
        let q = amount(&a[0])?;
        Ok(Value::Double(if q.is_whole() { q.units() as f64 } else { q.milli() as f64 / 1000.0 }))
    }),
    ("quantity:add(quantity) quantity; quantity:add(int) quantity", Cost::Flat, |a| {
        Ok(Ext::Quantity(amount(&a[0])?.add(amount(&a[1])?)).into())
    }),
    ("quantity:sub(quantity) quantity; quantity:sub(int) quantity", Cost::Flat, |a| {
        Ok(Ext::Quantity(amount(&a[0])?.sub(amount(&a[1])?)).into())
    }),
    ("quantity:isGreaterThan(quantity) bool", Cost::Flat, |a| order(a).map(|o| (o > 0).into())),
    ("quantity:isLessThan(quantity) bool", Cost::Flat, |a| order(a).map(|o| (o < 0).into())),
    ("quantity:compareTo(quantity) int", Cost::Flat, |a| order(a).map(Value::Int)),
];

fn amount(value: &Value) -> Result<Quantity, EvalError> {
    match value {
        Value::Int(n) => Ok(Quantity::from_units(*n)),
        Value::Ext(ext) => match &**ext {
            Ext::Quantity(q) => Ok(*q),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// -1, 0, 1.
fn order(a: &[Value]) -> Result<i64, EvalError> {
    Ok(amount(&a[0])?.cmp(&amount(&a[1])?) as i64)
}

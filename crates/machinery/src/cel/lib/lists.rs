//! Lists and sets.

use crate::cel::ops::sorted;
use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Value};
use jiff::SignedDuration;
use std::cmp::Ordering;
use std::sync::Arc;

type Outcome = Result<Value, EvalError>;

/// Items that `lists.range` may make.
const RANGE_MAX: i64 = 100_000;
/// Levels that `flatten` may go down.
const FLATTEN_MAX: i64 = 32;

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("list<A>:isSorted() bool", Cost::Items, is_sorted),
    (
        "list<int>:sum() int; list<uint>:sum() uint; list<double>:sum() double; list<duration>:sum() duration",
        Cost::Items,
        sum,
    ),
    ("list<A>:min() A", Cost::Items, |a| extreme(a, Ordering::Less)),
    ("list<A>:max() A", Cost::Items, |a| extreme(a, Ordering::Greater)),
    ("list<A>:indexOf(A) int", Cost::Items, |a| Ok(place(items(a, 0).iter().position(|i| *i == a[1])))),
    ("list<A>:lastIndexOf(A) int", Cost::Items, |a| Ok(place(items(a, 0).iter().rposition(|i| *i == a[1])))),
    ("list<A>:slice(int, int) list<A>", Cost::Items, slice),
    ("list<A>:flatten() list<dyn>; list<A>:flatten(int) list<dyn>", Cost::Items, flatten),
    ("list<A>:distinct() list<A>", Cost::Product, distinct),
    ("list<A>:reverse() list<A>", Cost::Items, |a| {
        Ok(items(a, 0).iter().rev().cloned().collect::<Vec<_>>().into())
    }),
    ("list<A>:sort() list<A>", Cost::Items, |a| {
        sorted(items(a, 0).iter().map(|i| (i.clone(), i.clone())).collect())
    }),
    ("list<A>:first() optional<A>", Cost::Flat, |a| {
        Ok(Value::Optional(items(a, 0).first().cloned().map(Arc::new)))
    }),
    ("list<A>:last() optional<A>", Cost::Flat, |a| {
        Ok(Value::Optional(items(a, 0).last().cloned().map(Arc::new)))
    }),
    ("lists.range(int) list<int>", Cost::Flat, range),
    ("sets.contains(list<A>, list<A>) bool", Cost::Product, |a| Ok(covers(items(a, 0), items(a, 1)).into())),
    ("sets.equivalent(list<A>, list<A>) bool", Cost::Product, |a| {
        Ok((covers(items(a, 0), items(a, 1)) && covers(items(a, 1), items(a, 0))).into())
    }),
    ("sets.intersects(list<A>, list<A>) bool", Cost::Product, |a| {
        Ok(items(a, 0).iter().any(|i| items(a, 1).contains(i)).into())
    }),
];

fn items(a: &[Value], i: usize) -> &[Value] {
    match a.get(i) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn place(at: Option<usize>) -> Value {
    Value::Int(at.map_or(-1, |at| at as i64))
}

fn covers(all: &[Value], part: &[Value]) -> bool {
    part.iter().all(|i| all.contains(i))
}

fn is_sorted(a: &[Value]) -> Outcome {
    for pair in items(a, 0).windows(2) {
        match pair[0].order(&pair[1]) {
            Some(Ordering::Greater) => return Ok(Value::Bool(false)),
            Some(_) => {}
            None => return Err(EvalError::no_such_overload()),
        }
    }
    Ok(Value::Bool(true))
}

fn sum(a: &[Value]) -> Outcome {
    let overflow = || EvalError::failed("integer overflow");
    let mut total = match items(a, 0).first() {
        Some(Value::Uint(_)) => Value::Uint(0),
        Some(Value::Double(_)) => Value::Double(0.0),
        Some(Value::Duration(_)) => Value::Duration(SignedDuration::ZERO),
        _ => Value::Int(0),
    };
    for item in items(a, 0) {
        total = match (&total, item) {
            (Value::Int(x), Value::Int(y)) => Value::Int(x.checked_add(*y).ok_or_else(overflow)?),
            (Value::Uint(x), Value::Uint(y)) => Value::Uint(x.checked_add(*y).ok_or_else(overflow)?),
            (Value::Double(x), Value::Double(y)) => Value::Double(x + y),
            (Value::Duration(x), Value::Duration(y)) => {
                Value::Duration(x.checked_add(*y).ok_or_else(overflow)?)
            }
            _ => return Err(EvalError::no_such_overload()),
        };
    }
    Ok(total)
}

fn extreme(a: &[Value], wanted: Ordering) -> Outcome {
    let mut all = items(a, 0).iter();
    let Some(mut best) = all.next() else {
        let name = if wanted == Ordering::Less { "min" } else { "max" };
        return Err(EvalError::failed(format!("{name} called on empty list")));
    };
    for item in all {
        match item.order(best) {
            Some(order) if order == wanted => best = item,
            Some(_) => {}
            None => return Err(EvalError::no_such_overload()),
        }
    }
    Ok(best.clone())
}

fn slice(a: &[Value]) -> Outcome {
    let (Value::Int(from), Value::Int(to)) = (&a[1], &a[2]) else {
        return Err(EvalError::no_such_overload());
    };
    let all = items(a, 0);
    let bad = || {
        let words = format!("cannot slice({from}, {to}), list of length {}", all.len());
        EvalError::failed(words)
    };
    let (from, to) = (usize::try_from(*from).map_err(|_| bad())?, usize::try_from(*to).map_err(|_| bad())?);
    Ok(all.get(from..to).ok_or_else(bad)?.to_vec().into())
}

fn flatten(a: &[Value]) -> Outcome {
    fn down(items: &[Value], levels: i64, out: &mut Vec<Value>) {
        for item in items {
            match item {
                Value::List(inner) if levels > 0 => down(inner, levels - 1, out),
                other => out.push(other.clone()),
            }
        }
    }
    let levels = match a.get(1) {
        Some(Value::Int(n)) if *n < 0 => return Err(EvalError::failed("level must be non-negative")),
        Some(Value::Int(n)) => (*n).min(FLATTEN_MAX),
        _ => 1,
    };
    let mut out = Vec::new();
    down(items(a, 0), levels, &mut out);
    Ok(out.into())
}

fn distinct(a: &[Value]) -> Outcome {
    let mut out: Vec<Value> = Vec::new();
    for item in items(a, 0) {
        if !out.contains(item) {
            out.push(item.clone());
        }
    }
    Ok(out.into())
}

fn range(a: &[Value]) -> Outcome {
    let Value::Int(n) = &a[0] else { return Err(EvalError::no_such_overload()) };
    if *n > RANGE_MAX {
        return Err(EvalError::failed("range too long"));
    }
    Ok((0..*n).map(Value::Int).collect::<Vec<_>>().into())
}

//! Text and patterns. Positions are characters, as upstream's.

use super::printf;
use crate::cel::check::PATTERN_BYTES_MAX;
use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use regex::{Regex, RegexBuilder};

type Outcome = Result<Value, EvalError>;

/// Characters that a replacement or join may make: well above what an object can hold.
const TEXT_MAX: usize = 4 << 20;

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("string:contains(string) bool", Cost::Cross, |a| Ok(text(a, 0).contains(text(a, 1)).into())),
    ("string:startsWith(string) bool", Cost::Scan, |a| Ok(text(a, 0).starts_with(text(a, 1)).into())),
    ("string:endsWith(string) bool", Cost::Scan, |a| Ok(text(a, 0).ends_with(text(a, 1)).into())),
    ("string:matches(string) bool; matches(string, string) bool", Cost::Pattern, |a| {
        with_pattern(&a[1], |r| r.is_match(text(a, 0)).into())
    }),
    ("string:find(string) string", Cost::Pattern, |a| {
        with_pattern(&a[1], |r| r.find(text(a, 0)).map_or("", |m| m.as_str()).into())
    }),
    (
        "string:findAll(string) list<string>; string:findAll(string, int) list<string>",
        Cost::Pattern,
        find_all,
    ),
    ("string:charAt(int) string", Cost::Scan, char_at),
    ("string:indexOf(string) int; string:indexOf(string, int) int", Cost::Cross, index_of),
    ("string:lastIndexOf(string) int; string:lastIndexOf(string, int) int", Cost::Cross, last_index_of),
    ("string:lowerAscii() string", Cost::Scan, |a| Ok(text(a, 0).to_ascii_lowercase().into())),
    ("string:upperAscii() string", Cost::Scan, |a| Ok(text(a, 0).to_ascii_uppercase().into())),
    (
        "string:replace(string, string) string; string:replace(string, string, int) string",
        Cost::Cross,
        replace,
    ),
    ("string:split(string) list<string>; string:split(string, int) list<string>", Cost::Scan, split),
    ("string:substring(int) string; string:substring(int, int) string", Cost::Scan, substring),
    ("string:trim() string", Cost::Scan, |a| Ok(text(a, 0).trim().into())),
    ("string:reverse() string", Cost::Scan, |a| Ok(text(a, 0).chars().rev().collect::<String>().into())),
    ("strings.quote(string) string", Cost::Scan, |a| Ok(format!("{:?}", text(a, 0)).into())),
    ("string:format(list<dyn>) string", Cost::In, |a| printf::format(text(a, 0), &a[1]).map(Value::from)),
    ("list<string>:join() string; list<string>:join(string) string", Cost::Items, join),
    ("jsonpatch.escapeKey(string) string", Cost::Scan, |a| {
        Ok(text(a, 0).replace('~', "~0").replace('/', "~1").into())
    }),
];

fn text(a: &[Value], i: usize) -> &str {
    a.get(i).and_then(Value::as_str).unwrap_or_default()
}

fn number(a: &[Value], i: usize) -> Option<i64> {
    match a.get(i)? {
        Value::Int(n) => Some(*n),
        _ => None,
    }
}

fn with_pattern(pattern: &Value, use_it: impl FnOnce(&Regex) -> Value) -> Outcome {
    if let Value::Ext(ext) = pattern
        && let Ext::Pattern(regex, _) = &**ext
    {
        return Ok(use_it(regex));
    }
    let built = RegexBuilder::new(pattern.as_str().unwrap_or_default()).size_limit(PATTERN_BYTES_MAX).build();
    Ok(use_it(&built.map_err(|error| EvalError::failed(format!("error parsing regexp: {error}")))?))
}

fn find_all(a: &[Value]) -> Outcome {
    let most = number(a, 2).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    with_pattern(&a[1], |r| {
        r.find_iter(text(a, 0)).take(most).map(|m| Value::from(m.as_str())).collect::<Vec<_>>().into()
    })
}

fn out_of_range(n: i64) -> EvalError {
    EvalError::failed(format!("index out of range: {n}"))
}

/// The byte at which a character begins; the end counts too.
fn byte_at(text: &str, at: i64) -> Result<usize, EvalError> {
    let at_most = usize::try_from(at).map_err(|_| out_of_range(at))?;
    let mut starts = text.char_indices().map(|(i, _)| i).chain([text.len()]);
    starts.nth(at_most).ok_or_else(|| out_of_range(at))
}

fn char_at(a: &[Value]) -> Outcome {
    let at = byte_at(text(a, 0), number(a, 1).unwrap_or(-1))?;
    Ok(text(a, 0)[at..].chars().next().map(String::from).unwrap_or_default().into())
}

fn characters(text: &str) -> i64 {
    text.chars().count() as i64
}

fn index_of(a: &[Value]) -> Outcome {
    let whole = text(a, 0);
    let from = byte_at(whole, number(a, 2).unwrap_or(0))?;
    let found = whole[from..].find(text(a, 1)).map(|at| characters(&whole[..from + at]));
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn last_index_of(a: &[Value]) -> Outcome {
    let (whole, part) = (text(a, 0), text(a, 1));
    let until = match number(a, 2) {
        Some(n) => (byte_at(whole, n)? + part.len()).min(whole.len()),
        None => whole.len(),
    };
    let until = (until..=whole.len()).find(|i| whole.is_char_boundary(*i)).unwrap_or(whole.len());
    Ok(Value::Int(whole[..until].rfind(part).map_or(-1, |at| characters(&whole[..at]))))
}

fn replace(a: &[Value]) -> Outcome {
    let (whole, old, new) = (text(a, 0), text(a, 1), text(a, 2));
    let most = number(a, 3).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let times = (whole.len() / old.len().max(1) + 1).min(most);
    if whole.len().saturating_add(times.saturating_mul(new.len())) > TEXT_MAX {
        return Err(EvalError::failed("text too long"));
    }
    Ok(whole.replacen(old, new, most).into())
}

fn split(a: &[Value]) -> Outcome {
    let (whole, by) = (text(a, 0), text(a, 1));
    let most = number(a, 2).unwrap_or(-1);
    let parts: Vec<Value> = match most {
        0 => Vec::new(),
        _ if by.is_empty() => {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let cut = whole.char_indices().nth(most - 1).map_or(whole.len(), |(i, _)| i);
            let mut parts: Vec<Value> = whole[..cut].chars().map(|c| c.to_string().into()).collect();
            parts.extend((cut < whole.len()).then(|| whole[cut..].into()));
            parts
        }
        n if n < 0 => whole.split(by).map(Value::from).collect(),
        n => whole.splitn(n as usize, by).map(Value::from).collect(),
    };
    Ok(parts.into())
}

fn substring(a: &[Value]) -> Outcome {
    let whole = text(a, 0);
    let (from, to) = (number(a, 1).unwrap_or(0), number(a, 2).unwrap_or_else(|| characters(whole)));
    if from > to {
        return Err(EvalError::failed(format!("invalid substring range. start: {from}, end: {to}")));
    }
    Ok(whole[byte_at(whole, from)?..byte_at(whole, to)?].into())
}

fn join(a: &[Value]) -> Outcome {
    let Value::List(items) = &a[0] else { return Err(EvalError::no_such_overload()) };
    let parts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
    let parts = parts.ok_or_else(EvalError::no_such_overload)?;
    let by = text(a, 1);
    let size: usize = parts.iter().map(|p| p.len() + by.len()).sum();
    if size > TEXT_MAX {
        return Err(EvalError::failed("text too long"));
    }
    Ok(parts.join(by).into())
}

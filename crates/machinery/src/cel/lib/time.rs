//! Times and spans of time. Time zones are `UTC` and fixed offsets (`+02:00`): there is no zone database here.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Value};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

type Outcome = Result<Value, EvalError>;

macro_rules! getter {
    ($name:literal) => {
        concat!("timestamp:", $name, "() int; timestamp:", $name, "(string) int")
    };
    ($name:literal, both) => {
        concat!("timestamp:", $name, "() int; timestamp:", $name, "(string) int; duration:", $name, "() int")
    };
}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    (
        "timestamp(string) timestamp; timestamp(int) timestamp; timestamp(timestamp) timestamp",
        Cost::Flat,
        to_timestamp,
    ),
    ("duration(string) duration; duration(duration) duration", Cost::Flat, to_duration),
    (getter!("getFullYear"), Cost::Flat, |a| zoned(a, |z| i64::from(z.year()))),
    (getter!("getMonth"), Cost::Flat, |a| zoned(a, |z| i64::from(z.month()) - 1)),
    (getter!("getDate"), Cost::Flat, |a| zoned(a, |z| i64::from(z.day()))),
    (getter!("getDayOfMonth"), Cost::Flat, |a| zoned(a, |z| i64::from(z.day()) - 1)),
    (getter!("getDayOfWeek"), Cost::Flat, |a| zoned(a, |z| i64::from(z.weekday().to_sunday_zero_offset()))),
    (getter!("getDayOfYear"), Cost::Flat, |a| zoned(a, |z| i64::from(z.day_of_year()) - 1)),
    (getter!("getHours", both), Cost::Flat, |a| part(a, |z| i64::from(z.hour()), |d| d.as_secs() / 3600)),
    (getter!("getMinutes", both), Cost::Flat, |a| part(a, |z| i64::from(z.minute()), |d| d.as_secs() / 60)),
    (getter!("getSeconds", both), Cost::Flat, |a| part(a, |z| i64::from(z.second()), |d| d.as_secs())),
    (getter!("getMilliseconds", both), Cost::Flat, |a| {
        part(a, |z| i64::from(z.millisecond()), |d| i64::from(d.subsec_millis()))
    }),
];

/// RFC 3339 (or a date alone, as OpenAPI's `date` is).
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    crate::time::parse(text)
        .or_else(|error| crate::time::parse(&format!("{text}T00:00:00Z")).map_err(|_| error))
}

/// Go's notation: `1h30m`, `1.5s`, `-2ms`.
pub fn duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0 && *n < 30)?;
        let after = &rest[number..];
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &after[..end])?;
        let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits = |t: &str| if t.is_empty() { Some(0) } else { t.parse::<i64>().ok().map(i128::from) };
        let fraction = &fraction[..fraction.len().min(18)];
        nanos += digits(whole)? * unit + digits(fraction)? * unit / 10i128.pow(fraction.len() as u32);
        rest = &after[end..];
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// RFC 3339, with a fraction where there is one.
pub fn print(at: Timestamp) -> String {
    at.to_string()
}

/// In seconds: `5400s`, `1.5s`.
pub fn print_duration(span: SignedDuration) -> String {
    format!("{}s", super::core::double(span.as_secs_f64()))
}

fn to_timestamp(a: &[Value]) -> Outcome {
    match &a[0] {
        Value::Timestamp(at) => Ok(Value::Timestamp(*at)),
        Value::Int(n) => Timestamp::from_second(*n)
            .map(Value::Timestamp)
            .map_err(|_| EvalError::failed("timestamp overflow")),
        other => {
            let text = other.as_str().unwrap_or_default();
            crate::time::parse(text).map(Value::Timestamp).map_err(EvalError::failed)
        }
    }
}

fn to_duration(a: &[Value]) -> Outcome {
    if let Value::Duration(span) = &a[0] {
        return Ok(Value::Duration(*span));
    }
    let text = a[0].as_str().unwrap_or_default();
    duration(text)
        .map(Value::Duration)
        .ok_or_else(|| EvalError::failed(format!("time: invalid duration {text:?}")))
}

fn zone(name: &str) -> Option<TimeZone> {
    if matches!(name, "" | "UTC" | "Z" | "Etc/UTC" | "GMT") {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match name.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, name.strip_prefix('+').unwrap_or(name)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds = sign * (hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60);
    Some(TimeZone::fixed(Offset::from_seconds(seconds).ok()?))
}

fn zoned(a: &[Value], get: impl Fn(&Zoned) -> i64) -> Outcome {
    let Value::Timestamp(at) = &a[0] else { return Err(EvalError::no_such_overload()) };
    let name = a.get(1).and_then(Value::as_str).unwrap_or_default();
    let zone = zone(name).ok_or_else(|| EvalError::failed(format!("unknown time zone {name}")))?;
    Ok(Value::Int(get(&at.to_zoned(zone))))
}

fn part(a: &[Value], of_time: impl Fn(&Zoned) -> i64, of_span: impl Fn(&SignedDuration) -> i64) -> Outcome {
    match &a[0] {
        Value::Duration(span) => Ok(Value::Int(of_span(span))),
        _ => zoned(a, of_time),
    }
}

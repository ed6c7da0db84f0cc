//! Points in time: documents hold seconds since 1970 as a number.

use jiff::Timestamp;
use serde_json::{Number, Value};

/// From RFC 3339, RFC 7231 or a number as text.
pub(super) fn parse(text: &str) -> Option<Value> {
    if let Ok(seconds) = text.parse::<f64>() {
        return number(seconds);
    }
    let at: Timestamp = match text.parse() {
        Ok(at) => at,
        Err(_) => jiff::fmt::rfc2822::parse(text).ok()?.timestamp(),
    };
    number(at.as_millisecond() as f64 / 1_000.0)
}

/// A whole number where it is one.
pub(super) fn number(seconds: f64) -> Option<Value> {
    if seconds.fract() == 0.0 && seconds.abs() < 9e15 {
        return Some(Value::from(seconds as i64));
    }
    Number::from_f64(seconds).map(Value::Number)
}

/// As RFC 3339, with milliseconds where there are any.
pub(crate) fn iso(value: &Value) -> String {
    let Some(at) = timestamp(value) else { return String::new() };
    let millis = at.as_millisecond().rem_euclid(1_000);
    let whole = Timestamp::from_second(at.as_millisecond().div_euclid(1_000)).unwrap_or_default();
    let text = whole.to_string();
    match millis {
        0 => text,
        _ => format!("{}.{millis:03}Z", text.trim_end_matches('Z')),
    }
}

/// As in HTTP headers.
pub(crate) fn http(value: &Value) -> String {
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let at = timestamp(value).unwrap_or_default();
    printer.timestamp_to_rfc9110_string(&at).unwrap_or_default()
}

fn timestamp(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64()?;
    Timestamp::from_millisecond((seconds * 1_000.0).round() as i64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms_of_one_moment() {
        for text in ["2026-11-20T12:00:00Z", "Fri, 20 Nov 2026 12:00:00 GMT", "1795176000", "1795176000.0"] {
            assert_eq!(parse(text), Some(json!(1_795_176_000)), "{text}");
        }
        assert_eq!(parse("2026-11-20T12:00:00.250Z"), Some(json!(1_795_176_000.25)));
        assert_eq!(parse("tomorrow"), None);
        assert_eq!(iso(&json!(1_795_176_000)), "2026-11-20T12:00:00Z");
        assert_eq!(iso(&json!(1_795_176_000.25)), "2026-11-20T12:00:00.250Z");
        assert_eq!(http(&json!(1_795_176_000)), "Fri, 20 Nov 2026 12:00:00 GMT");
    }
}

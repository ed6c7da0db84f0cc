//! Times as the API writes them (RFC 3339, UTC) and ages as kubectl shows them. No clock here.

use jiff::{Timestamp, fmt::strtime};
use std::time::Duration;

/// Parses RFC 3339 as Go does: full date, `T`, full time, optional fraction, `Z` or `±hh:mm`.
/// The error is Go's sentence.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    if has_shape(text.as_bytes())
        && let Ok(at) = text.parse()
    {
        return Ok(at);
    }
    Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""))
}

fn has_shape(text: &[u8]) -> bool {
    let digits_and_marks = |part: &[u8], pattern: &[u8]| {
        part.len() == pattern.len()
            && part.iter().zip(pattern).all(|(b, p)| if *p == b'0' { b.is_ascii_digit() } else { b == p })
    };
    if text.len() < 20 || !digits_and_marks(&text[..19], b"0000-00-00T00:00:00") {
        return false;
    }
    let mut rest = &text[19..];
    if rest[0] == b'.' {
        let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = &rest[1 + digits..];
    }
    rest == b"Z" || digits_and_marks(rest, b"+00:00") || digits_and_marks(rest, b"-00:00")
}

/// `metav1.Time`: seconds, UTC.
pub fn format(at: Timestamp) -> String {
    strtime::format("%Y-%m-%dT%H:%M:%SZ", at).expect("the format has only supported fields")
}

/// `metav1.MicroTime`: microseconds, UTC.
pub fn format_micro(at: Timestamp) -> String {
    strtime::format("%Y-%m-%dT%H:%M:%S.%6fZ", at).expect("the format has only supported fields")
}

/// How long `at` lies before `now` (negative differences are zero).
pub fn since(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}

/// An age of at most a few digits: `5m12s`, `3d4h`, `2y30d`; `0s` up to a second.
pub fn human_duration(age: Duration) -> String {
    let seconds = age.as_secs();
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The age of an RFC 3339 time; `<unknown>` when absent, `<invalid>` when it is no time or lies ahead.
pub fn age(now: Timestamp, at: Option<&str>) -> String {
    let Some(at) = at.filter(|t| !t.is_empty()) else {
        return "<unknown>".into();
    };
    match parse(at) {
        Ok(at) if at.as_second() > now.as_second() + 1 => "<invalid>".into(),
        Ok(at) => human_duration(since(now, at)),
        Err(_) => "<invalid>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_format() {
        let at = parse("2026-08-22T10:00:00.123456789+02:00").unwrap();
        assert_eq!(format(at), "2026-08-22T08:00:00Z");
        assert_eq!(format_micro(at), "2026-08-22T08:00:00.123456Z");
        for bad in [
            "",
            "2026-08-22",
            "2026-08-22 10:00:00Z",
            "2026-08-22T10:00Z",
            "2026-13-22T10:00:00Z",
            "2026-08-22T10:00:00",
            "2026-08-22T10:00:00.Z",
            "2026-08-22T10:00:00z",
            "ä",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0s"),
            (70, "70s"),
            (119, "119s"),
            (120, "2m"),
            (312, "5m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (273_600, "3d4h"),
            (691_200, "8d"),
            (31_536_000, "365d"),
            (63_072_000, "2y"),
            (65_664_000, "2y30d"),
            (315_360_000, "10y"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text);
        }
        let now = parse("2026-01-01T00:00:10Z").unwrap();
        assert_eq!(age(now, Some("2026-01-01T00:00:00Z")), "10s");
        assert_eq!(age(now, None), "<unknown>");
        assert_eq!(age(now, Some("2027-01-01T00:00:00Z")), "<invalid>");
    }
}

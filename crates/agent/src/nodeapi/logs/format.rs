//! Log lines: what a caller may ask for, and how one line of the CRI format becomes output. Pure.
//!
//! Line: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`. A `P` line goes on in the next one. As upstream, `tailLines`
//! counts lines of the file, `since` is looked at after that, and `limitBytes` counts what is sent, stamps included.

use crate::nodeapi::query::Query;
use jiff::{SignedDuration, Timestamp};
use machinery::status::ApiError;

/// Which of the container's streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::nodeapi) enum Which {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// What the caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::nodeapi) struct Options {
    pub(in crate::nodeapi) follow: bool,
    pub(in crate::nodeapi) previous: bool,
    pub(in crate::nodeapi) timestamps: bool,
    pub(in crate::nodeapi) tail: Option<u64>,
    pub(in crate::nodeapi) limit: Option<u64>,
    pub(in crate::nodeapi) since: Option<Timestamp>,
    pub(in crate::nodeapi) which: Which,
}

impl Options {
    /// Reads the query; refuses what Kubernetes refuses.
    pub(in crate::nodeapi) fn parse(query: &Query, now: Timestamp) -> Result<Options, ApiError> {
        let number = |key: &str, least: i64| match query.get(key) {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(n) if n >= least => Ok(Some(n)),
                _ => {
                    Err(ApiError::bad_request(format!("invalid {key} \"{text}\": must be at least {least}")))
                }
            },
        };
        let seconds = number("sinceSeconds", 0)?;
        let time = match query.get("sinceTime") {
            None | Some("") => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
                ApiError::bad_request(format!("invalid sinceTime \"{text}\": must be an RFC 3339 time"))
            })?),
        };
        let relative =
            seconds.map(|n| now.checked_sub(SignedDuration::from_secs(n)).unwrap_or(Timestamp::MIN));
        Ok(Options {
            follow: query.is_on(&["follow"]),
            previous: query.is_on(&["previous"]),
            timestamps: query.is_on(&["timestamps"]),
            tail: number("tailLines", 0)?.map(i64::unsigned_abs),
            limit: number("limitBytes", 1)?.map(i64::unsigned_abs),
            since: relative.max(time),
            which: match query.get("stream") {
                None | Some("" | "All") => Which::All,
                Some("Stdout") => Which::Stdout,
                Some("Stderr") => Which::Stderr,
                Some(other) => return Err(ApiError::bad_request(format!("invalid log stream \"{other}\""))),
            },
        })
    }
}

/// Turns lines into output.
pub(super) struct Formatter {
    timestamps: bool,
    which: Which,
    since: Option<Timestamp>,
    left: u64,
    /// Did the last line end with its own end (and not in the middle of a `P` line)?
    fresh: bool,
}

impl Formatter {
    pub(super) fn new(options: &Options) -> Formatter {
        let left = options.limit.unwrap_or(u64::MAX);
        Formatter {
            timestamps: options.timestamps,
            which: options.which,
            since: options.since,
            left,
            fresh: true,
        }
    }

    /// Appends the output for one line (without its end). What is not in the format is left out.
    pub(super) fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some([stamp, stream, tag, text]) = split(line) else { return };
        let wanted = match self.which {
            Which::All => matches!(stream, b"stdout" | b"stderr"),
            Which::Stdout => stream == b"stdout",
            Which::Stderr => stream == b"stderr",
        };
        if !wanted || self.is_before(stamp) {
            return;
        }
        let partial = tag.split(|b| *b == b':').next() == Some(b"P");
        if self.timestamps && self.fresh {
            self.put(stamp, out);
            self.put(b" ", out);
        }
        self.put(text, out);
        if !partial {
            self.put(b"\n", out);
        }
        self.fresh = !partial;
    }

    /// Has the byte limit been reached?
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    fn is_before(&mut self, stamp: &[u8]) -> bool {
        let Some(since) = self.since else { return false };
        let time = std::str::from_utf8(stamp).ok().and_then(|text| text.parse::<Timestamp>().ok());
        time.is_none_or(|time| time < since)
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let n = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        out.extend_from_slice(&bytes[..n]);
        self.left -= n as u64;
    }
}

/// Time, stream, tags, text.
fn split(line: &[u8]) -> Option<[&[u8]; 4]> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 6] = [
        "2026-01-01T00:00:00.000000001Z stdout F one",
        "2026-01-01T00:00:01.000000000Z stderr F err two",
        "garbage",
        "2026-01-01T00:00:02.000000000Z stdout P thr",
        "2026-01-01T00:00:02.500000000Z stdout F ee",
        "2026-01-01T00:00:03.000000000Z stdout F ",
    ];

    fn text(query: &str) -> String {
        let now = "2026-01-01T00:00:04Z".parse().unwrap();
        let mut formatter = Formatter::new(&Options::parse(&Query::parse(query), now).unwrap());
        let mut out = Vec::new();
        LINES.iter().for_each(|line| formatter.line(line.as_bytes(), &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!(text(""), "one\nerr two\nthree\n\n");
        assert_eq!(text("stream=Stderr"), "err two\n");
        assert_eq!(text("sinceSeconds=2"), "three\n\n");
        assert_eq!(text("sinceTime=2026-01-01T00:00:01Z&sinceSeconds=3600"), "err two\nthree\n\n");
        assert_eq!(text("limitBytes=6"), "one\ner");
        let stamped = text("timestamps=true&sinceSeconds=2");
        assert_eq!(stamped, "2026-01-01T00:00:02.000000000Z three\n2026-01-01T00:00:03.000000000Z \n");
        assert_eq!(text("timestamps=true&limitBytes=10"), "2026-01-01");
    }

    #[test]
    fn bad_options() {
        for query in ["tailLines=-1", "limitBytes=0", "sinceSeconds=x", "sinceTime=yesterday", "stream=Both"]
        {
            let error = Options::parse(&Query::parse(query), Timestamp::UNIX_EPOCH).unwrap_err();
            assert_eq!(error.code, 400, "{query}");
        }
    }
}

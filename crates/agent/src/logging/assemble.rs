//! Lines of a log file as events: halves joined, lines of one event grouped. Pure.
//!
//! Line: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`. Says at any time from where the file must be read again so
//! that nothing is lost ([`Assembler::safe`]): what is still open began there.

use super::LogEvent;
use jiff::Timestamp;
use regex::Regex;
use serde::{Deserialize, Serialize};

/// Longest event; a longer one becomes several (CloudWatch Logs' classic limit).
pub(super) const EVENT_MAX: usize = 256 << 10;

/// A place in a container's log files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Which instance of the container.
    pub attempt: u32,
    /// Which file of it; 0: its first.
    pub inode: u64,
    /// Where in the file.
    pub offset: u64,
}

/// An event that may go on.
#[derive(Debug)]
struct Open {
    from: Place,
    event: LogEvent,
}

/// Turns lines into events.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    begins: Option<Regex>,
    /// Halves of lines: of the standard stream, of the error stream.
    halves: [Option<Open>; 2],
    group: Option<Open>,
}

impl Assembler {
    /// `begins`: what the first line of an event of several lines looks like; without it every line is an event.
    pub(super) fn new(begins: Option<Regex>) -> Assembler {
        Assembler { begins, ..Assembler::default() }
    }

    /// Takes a line (without its end) that begins at `from`. What is not in the format is left out.
    pub(super) fn line(&mut self, from: Place, line: &[u8], out: &mut Vec<LogEvent>) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(stamp), Some(stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let time = std::str::from_utf8(stamp).ok().and_then(|t| t.parse::<Timestamp>().ok());
        let Some(time_ms) = time.and_then(|t| u64::try_from(t.as_millisecond()).ok()) else { return };
        let is_error = stream == b"stderr";
        let text = String::from_utf8_lossy(text);
        let half = &mut self.halves[usize::from(is_error)];
        let open = half.get_or_insert_with(|| Open {
            from,
            event: LogEvent { time_ms, message: String::new(), is_error },
        });
        open.event.message.push_str(&text);
        let goes_on = tag.split(|b| *b == b':').next() == Some(b"P");
        if goes_on && open.event.message.len() < EVENT_MAX {
            return;
        }
        if let Some(whole) = half.take() {
            self.whole(whole, out);
        }
    }

    fn whole(&mut self, line: Open, out: &mut Vec<LogEvent>) {
        let Some(begins) = &self.begins else { return emit(line.event, out) };
        let fits = |open: &Open| open.event.message.len() + line.event.message.len() < EVENT_MAX;
        match &mut self.group {
            Some(open) if !begins.is_match(&line.event.message) && fits(open) => {
                open.event.message.push('\n');
                open.event.message.push_str(&line.event.message);
            }
            group => {
                if let Some(done) = group.replace(line) {
                    emit(done.event, out);
                }
            }
        }
    }

    /// Is an event open?
    pub(super) fn is_open(&self) -> bool {
        self.group.is_some() || self.halves.iter().any(Option::is_some)
    }

    /// Ends what is open.
    pub(super) fn flush(&mut self, out: &mut Vec<LogEvent>) {
        for at in 0..self.halves.len() {
            if let Some(half) = self.halves[at].take() {
                self.whole(half, out);
            }
        }
        if let Some(group) = self.group.take() {
            emit(group.event, out);
        }
    }

    /// Where to read from again; `now` when nothing is open.
    pub(super) fn safe(&self, now: Place) -> Place {
        let open = self.group.iter().chain(self.halves.iter().flatten());
        // Places of the same file compare by offset; an event that began in a former file is older.
        open.map(|o| o.from)
            .min_by_key(|p| ((p.attempt, p.inode) == (now.attempt, now.inode), p.offset))
            .unwrap_or(now)
    }
}

/// An empty line is no event for AWS; one that is too long is several.
fn emit(event: LogEvent, out: &mut Vec<LogEvent>) {
    let mut rest = event.message.as_str();
    while !rest.is_empty() {
        let mut end = rest.len().min(EVENT_MAX);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        out.push(LogEvent { message: rest[..end].into(), ..event.clone() });
        rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(offset: u64) -> Place {
        Place { attempt: 0, inode: 1, offset }
    }

    /// Feeds lines of (stream, tag, text); offsets are their numbers.
    fn run(begins: Option<&str>, lines: &[(&str, &str, &str)]) -> (Vec<String>, Assembler) {
        let mut assembler = Assembler::new(begins.map(|b| Regex::new(b).unwrap()));
        let mut out = Vec::new();
        for (n, (stream, tag, text)) in lines.iter().enumerate() {
            let line = format!("2026-01-01T00:00:00.{n:03}Z {stream} {tag} {text}");
            assembler.line(place(n as u64), line.as_bytes(), &mut out);
        }
        (out.into_iter().map(|e| e.message).collect(), assembler)
    }

    #[test]
    fn halves_are_joined_by_stream() {
        let lines = [
            ("stdout", "P", "on"),
            ("stderr", "F", "error"),
            ("stdout", "F", "e"),
            ("garbage", "", ""),
            ("stdout", "F", ""),
        ];
        let (events, assembler) = run(None, &lines);
        assert_eq!(events, ["error", "one"]);
        assert!(!assembler.is_open() && assembler.safe(place(9)) == place(9));
        let (_, open) = run(None, &lines[..2]);
        assert_eq!(open.safe(place(9)), place(0));
    }

    #[test]
    fn lines_are_grouped() {
        let f = |text| ("stdout", "F", text);
        let lines = [f("x"), f("BEGIN a"), f(" at b"), f(" at c"), f("BEGIN d")];
        let (events, mut assembler) = run(Some("^BEGIN"), &lines);
        assert_eq!(events, ["x", "BEGIN a\n at b\n at c"]);
        assert_eq!(assembler.safe(place(9)), place(4));
        let mut rest = Vec::new();
        assembler.flush(&mut rest);
        assert_eq!((rest[0].message.as_str(), rest[0].time_ms % 1000), ("BEGIN d", 4));
    }

    #[test]
    fn long_lines_become_several_events() {
        let text = "é".repeat(EVENT_MAX);
        let (events, _) = run(None, &[("stdout", "F", &text)]);
        assert_eq!(events.concat(), text);
        assert!(events.iter().all(|e| e.len() <= EVENT_MAX));
    }

    proptest! {
        /// Reading again from the safe place gives all that was not given yet.
        #[test]
        fn nothing_is_lost_at_a_restart(kinds in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..30), cut in 0usize..30) {
            let texts: Vec<String> = (0..kinds.len()).map(|n| format!("{n}")).collect();
            let lines: Vec<(&str, &str, &str)> = kinds.iter().zip(&texts).map(|((error, half, _), text)| {
                (if *error { "stderr" } else { "stdout" }, if *half { "P" } else { "F" }, text.as_str())
            }).collect();
            let cut = cut.min(lines.len());
            let (mut got, first) = run(None, &lines[..cut]);
            let from = first.safe(place(cut as u64)).offset as usize;
            let (again, _) = run(None, &lines[from..]);
            let (all, _) = run(None, &lines);
            got.extend(again);
            for event in all {
                prop_assert!(got.contains(&event), "{event} lost");
            }
        }
    }
}

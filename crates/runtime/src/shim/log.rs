//! Container output as CRI log lines: `<RFC 3339 time> <stream> <F|P> <text>`, one file, rotated by size.
//!
//! Framing is pure ([`Framer`]); [`Log`] owns the file. A line longer than 16 KiB is written in parts (`P`), the
//! last one is `F`. A file is opened for appending only and rotated at a line's end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest text in one log line, as containerd's.
pub(super) const LINE_MAX: usize = 16 * 1024;
/// Output is written at this size at the latest (a smaller file limit, earlier): bounds memory, keeps lines whole.
const FLUSH_AT: usize = 32 * 1024;

/// Cuts one stream into log lines.
#[derive(Debug, Default)]
pub(super) struct Framer {
    partial: Vec<u8>,
}

impl Framer {
    /// Appends the log lines of `data` to `out`; `head` is `<time> <stream> `. What has no end yet is kept.
    pub(super) fn push(&mut self, head: &str, mut data: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = data.iter().position(|&b| b == b'\n') {
            let (line, rest) = (&data[..end], &data[end + 1..]);
            self.append(head, line, out);
            line_out(head, b'F', &std::mem::take(&mut self.partial), out);
            data = rest;
        }
        self.append(head, data, out);
    }

    /// Adds text without a line end to what is kept; whatever is over the limit leaves as a part.
    fn append(&mut self, head: &str, mut text: &[u8], out: &mut Vec<u8>) {
        while self.partial.len() + text.len() > LINE_MAX {
            let (now, later) = text.split_at(LINE_MAX - self.partial.len());
            self.partial.extend_from_slice(now);
            line_out(head, b'P', &std::mem::take(&mut self.partial), out);
            text = later;
        }
        self.partial.extend_from_slice(text);
    }

    /// The stream has ended: what is kept is a line.
    pub(super) fn finish(&mut self, head: &str, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            line_out(head, b'P', &std::mem::take(&mut self.partial), out);
        }
    }
}

fn line_out(head: &str, tag: u8, text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Nanoseconds since the epoch as `2026-11-20T09:30:00.123456789Z`.
pub(super) fn stamp(ns: i64) -> String {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date in a calendar whose years start in March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// One container's log file.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    out: Vec<u8>,
    broken: bool,
    rotated_ns: i64,
}

impl Log {
    /// Opens the file for appending; makes its folder.
    pub(super) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        let (out, broken, rotated_ns) = (Vec::new(), false, 0);
        Ok(Self { path: path.to_owned(), file, size, max_bytes, max_files, out, broken, rotated_ns })
    }

    /// Logs what a stream said at `now_ns`. Errors (a full disk) lose output, never block the container; the
    /// first of a row is reported.
    pub(super) fn push(&mut self, framer: &mut Framer, stream: &str, data: &[u8], now_ns: i64) {
        let head = format!("{} {stream} ", stamp(now_ns));
        let flush_at = match usize::try_from(self.max_bytes) {
            Ok(max @ 1..) => max.min(FLUSH_AT),
            _ => FLUSH_AT,
        };
        // Chunks bound the buffer also when every line is empty and grows to its head's length.
        for chunk in data.chunks(1024) {
            framer.push(&head, chunk, &mut self.out);
            if self.out.len() >= flush_at {
                self.flush(now_ns);
            }
        }
        self.flush(now_ns);
    }

    /// Logs the unfinished last line of a stream.
    pub(super) fn finish(&mut self, framer: &mut Framer, stream: &str, now_ns: i64) {
        framer.finish(&format!("{} {stream} ", stamp(now_ns)), &mut self.out);
        self.flush(now_ns);
    }

    fn flush(&mut self, now_ns: i64) {
        if self.out.is_empty() {
            return;
        }
        let written = self.file.write_all(&self.out);
        if let (Err(error), false) = (&written, self.broken) {
            eprintln!("log {}: {error}", self.path.display());
        }
        self.broken = written.is_err();
        self.size += self.out.len() as u64;
        self.out.clear();
        if self.max_bytes > 0
            && self.size >= self.max_bytes
            && let Err(error) = self.rotate(now_ns)
        {
            eprintln!("rotate {}: {error}", self.path.display());
        }
    }

    fn rotate(&mut self, now_ns: i64) -> io::Result<()> {
        self.size = 0;
        // One push may rotate more than once: names must differ, or the newer file replaces the older.
        self.rotated_ns = now_ns.max(self.rotated_ns + 1);
        let date: String = stamp(self.rotated_ns).chars().filter(char::is_ascii_digit).collect();
        let old = format!("{}.{}-{}", self.path.display(), &date[..8], &date[8..]);
        std::fs::rename(&self.path, old)?;
        self.file = append(&self.path)?;
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        let prefix = format!("{}.", name.to_string_lossy());
        let mut rotated: Vec<PathBuf> = std::fs::read_dir(folder)?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        rotated.sort_unstable();
        let keep = (self.max_files.max(1) - 1) as usize;
        for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stamps() {
        assert_eq!(stamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(stamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(stamp(1_795_166_999_999_999_999), "2026-11-20T09:29:59.999999999Z");
    }

    #[test]
    fn lines_and_parts() {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        framer.push("T stdout ", b"one\ntw", &mut out);
        framer.push("T stdout ", b"o\n\nrest", &mut out);
        framer.finish("T stdout ", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "T stdout F one\nT stdout F two\nT stdout F \nT stdout P rest\n"
        );
    }

    proptest! {
        /// However the stream is cut into reads, the log joins to the same bytes, and no part is too long.
        #[test]
        fn nothing_is_lost(
            lines in prop::collection::vec((0_usize..40_000, any::<bool>()), 0..6),
            cut in 1_usize..50_000,
        ) {
            let mut text = Vec::new();
            for (len, end) in lines {
                text.extend((0..len).map(|i| b'a' + (i % 26) as u8));
                if end { text.push(b'\n') }
            }
            let (mut framer, mut out) = (Framer::default(), Vec::new());
            for chunk in text.chunks(cut) {
                framer.push("T s ", chunk, &mut out);
            }
            framer.finish("T s ", &mut out);
            let mut joined = Vec::new();
            for line in out.split_inclusive(|&b| b == b'\n') {
                let body = &line[6..line.len() - 1];
                prop_assert!(body.len() <= LINE_MAX);
                joined.extend_from_slice(body);
                if line[4] == b'F' { joined.push(b'\n') }
            }
            prop_assert_eq!(joined, text);
        }
    }

    /// One push of many files' worth loses none of the newest.
    #[test]
    fn rotations_at_once_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = Log::open(&path, 2_000, 4).unwrap();
        log.push(&mut Framer::default(), "stdout", &b"0123456789\n".repeat(2_000), 7);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn rotation_keeps_so_many_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x/0.log");
        let mut log = Log::open(&path, 1_000, 3).unwrap();
        let mut framer = Framer::default();
        for i in 0..100 {
            log.push(&mut framer, "stdout", &[b'x'; 99], i);
            log.push(&mut framer, "stdout", b"\n", i * 1_000_000_007);
        }
        let names = std::fs::read_dir(folder.path().join("x")).unwrap().count();
        assert_eq!(names, 3);
        assert!(std::fs::metadata(&path).unwrap().len() <= 1_200);
    }
}

//! A container's log as a stream: rotated files joined, from where the caller wants it, until where he wants it.
//!
//! Reads `<name>.log` and the older `<name>.log.*` beside it; wakes by inotify, never by a timer (but where the kernel
//! has no more inotify instances). Invariant: memory is bounded by one piece of file and one line.

mod format;

use super::backend::LogSource;
use bytes::Bytes;
use format::Formatter;
use rustix::fs::inotify;
use std::io::{self, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

pub(super) use format::Options;

/// Bytes read from a file at a time.
const PIECE: usize = 128 << 10;
/// Longer lines are no log lines (the shim cuts at 16 KiB) and are dropped.
const LINE_MAX: usize = 1 << 20;
/// How often a follower looks when it cannot have an inotify instance.
const WITHOUT_INOTIFY: Duration = Duration::from_secs(1);

/// Sends what is asked for; ends when there is no more, or nobody listens.
pub(super) async fn send(source: LogSource, options: Options, out: mpsc::Sender<Bytes>) {
    let mut sender = Sender { formatter: Formatter::new(&options), out };
    match follow(source, &options, &mut sender).await {
        Ok(()) | Err(Stop::Done) => {}
        Err(Stop::Io(error)) => tracing::warn!(%error, "a container log cannot be read"),
    }
}

/// Why sending ends early.
enum Stop {
    /// The limit is reached, or the caller is gone.
    Done,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Io(error)
    }
}

async fn follow(mut source: LogSource, options: &Options, sender: &mut Sender) -> Result<(), Stop> {
    // Watching before reading: nothing written in between is missed.
    let mut watch = if options.follow { Some(Watch::new(&source.path)) } else { None };
    let mut reader = Reader::start(&source.path, options).await?;
    // Without `follow` what is there now is enough, however fast more is written.
    let end = match options.follow {
        true => None,
        false => std::fs::metadata(&source.path).ok().map(|m| (m.ino(), m.len())),
    };
    loop {
        // Seen before reading: a container that ended has written everything.
        let running = *source.running.borrow_and_update();
        while reader.read_some(end, sender).await? {}
        if end.is_none_or(|(last, _)| reader.inode() != Some(last))
            && let Some(next) = reader.next(&source.path)?
        {
            // Between the end that was read and the rotation more may have been written.
            while reader.read_some(end, sender).await? {}
            match reader.open(&next).await {
                // Rotated again since it was listed: look again.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            continue;
        }
        let Some(watch) = watch.as_mut().filter(|_| running) else { return Ok(()) };
        tokio::select! {
            () = watch.changed() => {}
            changed = source.running.changed() => if changed.is_err() { return Ok(()) },
            () = sender.out.closed() => return Err(Stop::Done),
        }
    }
}

struct Sender {
    formatter: Formatter,
    out: mpsc::Sender<Bytes>,
}

impl Sender {
    /// Sends whole lines; how many bytes of `data` they were.
    async fn lines(&mut self, data: &[u8]) -> Result<usize, Stop> {
        let Some(end) = data.iter().rposition(|b| *b == b'\n') else { return Ok(0) };
        let mut text = Vec::new();
        for line in data[..end].split(|b| *b == b'\n') {
            self.formatter.line(line, &mut text);
        }
        if !text.is_empty() {
            self.out.send(text.into()).await.map_err(|_| Stop::Done)?;
        }
        if self.formatter.is_full() { Err(Stop::Done) } else { Ok(end + 1) }
    }
}

/// Reads one file after the other.
struct Reader {
    file: Option<(File, u64)>,
    position: u64,
    rest: Vec<u8>,
}

impl Reader {
    /// Opens where `options` say.
    async fn start(path: &Path, options: &Options) -> io::Result<Reader> {
        let (path, options) = (path.to_path_buf(), options.clone());
        let task = tokio::task::spawn_blocking(move || start(&path, &options));
        let found = task.await.map_err(io::Error::other)??;
        let mut reader = Reader { file: None, position: 0, rest: Vec::new() };
        if let Some((path, offset)) = found {
            reader.open(&path).await?;
            if let Some((file, _)) = &mut reader.file {
                file.seek(SeekFrom::Start(offset)).await?;
                reader.position = offset;
            }
        }
        Ok(reader)
    }

    async fn open(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        *self = Reader { file: Some((file, inode)), position: 0, rest: Vec::new() };
        Ok(())
    }

    /// Reads and sends a piece; false at the end.
    async fn read_some(&mut self, end: Option<(u64, u64)>, sender: &mut Sender) -> Result<bool, Stop> {
        let Some((file, inode)) = &mut self.file else { return Ok(false) };
        let allowed = match end {
            Some((last, length)) if last == *inode => length.saturating_sub(self.position),
            _ => PIECE as u64,
        };
        let before = self.rest.len();
        self.rest.resize(before + PIECE.min(usize::try_from(allowed).unwrap_or(PIECE)), 0);
        let n = file.read(&mut self.rest[before..]).await?;
        self.rest.truncate(before + n);
        self.position += n as u64;
        let used = sender.lines(&self.rest).await?;
        self.rest.drain(..used);
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
        Ok(n > 0)
    }

    fn inode(&self) -> Option<u64> {
        self.file.as_ref().map(|(_, inode)| *inode)
    }

    /// The file after this one, when this one was rotated away.
    fn next(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut all = files(path)?;
        // A file that is gone was older than all that are there.
        let next = all.iter().position(|file| Some(file.inode) == self.inode()).map_or(0, |at| at + 1);
        Ok((next < all.len()).then(|| all.swap_remove(next).path))
    }
}

struct LogFile {
    path: PathBuf,
    inode: u64,
    length: u64,
    modified: SystemTime,
}

/// The parts of a log, oldest first.
fn files(path: &Path) -> io::Result<Vec<LogFile>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect();
    names.sort_unstable();
    names.push(path.to_path_buf());
    let mut files: Vec<LogFile> = Vec::new();
    for path in names {
        if let Ok(meta) = std::fs::metadata(&path)
            && meta.is_file()
            // Rotated between the listing and now: already here under its new name.
            && files.iter().all(|file| file.inode != meta.ino())
        {
            let modified = meta.modified()?;
            files.push(LogFile { path, inode: meta.ino(), length: meta.len(), modified });
        }
    }
    Ok(files)
}

/// The file and offset to begin at; `None` when there is no file yet.
fn start(path: &Path, options: &Options) -> io::Result<Option<(PathBuf, u64)>> {
    let files = files(path)?;
    let since: Option<SystemTime> = options.since.map(Into::into);
    let Some(mut left) = options.tail else {
        let is_young = |file: &&LogFile| since.is_none_or(|since| file.modified >= since);
        let first = files.iter().find(is_young).or(files.last());
        return Ok(first.map(|file| (file.path.clone(), 0)));
    };
    for (number, file) in files.iter().enumerate().rev() {
        let (offset, found) = tail_offset(&file.path, file.length, left)?;
        left -= found;
        if left == 0 || number == 0 {
            return Ok(Some((file.path.clone(), offset)));
        }
    }
    Ok(None)
}

/// Where the last `wanted` lines of the first `length` bytes begin, and how many there are.
fn tail_offset(path: &Path, length: u64, wanted: u64) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    if wanted == 0 {
        return Ok((length, 0));
    }
    let mut buffer = vec![0; PIECE];
    let (mut end, mut ends) = (length, 0);
    while end > 0 {
        let begin = end.saturating_sub(PIECE as u64);
        let piece = &mut buffer[..(end - begin) as usize];
        file.read_exact_at(piece, begin)?;
        for (at, _) in piece.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            // The end before the first wanted line is one more than there are lines.
            if ends == wanted {
                return Ok((begin + at as u64 + 1, wanted));
            }
            ends += 1;
        }
        end = begin;
    }
    Ok((0, ends))
}

/// Wakes when something in the folder of a log changes.
pub(crate) enum Watch {
    Inotify(AsyncFd<OwnedFd>),
    Timer,
}

impl Watch {
    /// Of the folder that the file is in.
    pub(crate) fn new(path: &Path) -> Watch {
        match Watch::inotify(path) {
            Ok(fd) => Watch::Inotify(fd),
            Err(error) => {
                tracing::warn!(%error, "no inotify for a log follower: it looks every second");
                Watch::Timer
            }
        }
    }

    #[expect(
        deprecated,
        reason = "its replacement is unsafe; an OwnedFd that nobody takes out is the sound case"
    )]
    fn inotify(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
        let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, what)?;
        AsyncFd::new(fd)
    }

    /// Resolves when something has changed since the last call, or may have.
    pub(crate) async fn changed(&mut self) {
        let Watch::Inotify(fd) = self else { return tokio::time::sleep(WITHOUT_INOTIFY).await };
        let Ok(mut ready) = fd.readable().await else { return tokio::time::sleep(WITHOUT_INOTIFY).await };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(ready.get_inner(), &mut space);
        while reader.next().is_ok() {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodeapi::query::Query;
    use proptest::prelude::*;
    use std::io::Write;
    use tokio::sync::watch;

    fn line(text: &str) -> String {
        format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n")
    }

    fn write(path: &Path, lines: std::ops::Range<u32>) {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        lines.for_each(|n| file.write_all(line(&n.to_string()).as_bytes()).unwrap());
    }

    fn options(query: &str) -> Options {
        Options::parse(&Query::parse(query), jiff::Timestamp::UNIX_EPOCH).unwrap()
    }

    struct Tail(mpsc::Receiver<Bytes>, Vec<u8>);

    impl Tail {
        fn start(path: &Path, query: &str) -> (Tail, watch::Sender<bool>) {
            let (running, has) = watch::channel(true);
            let (out, lines) = mpsc::channel(2);
            tokio::spawn(send(LogSource { path: path.into(), running: has }, options(query), out));
            (Tail(lines, Vec::new()), running)
        }

        async fn until(&mut self, end: &str) -> String {
            let wait = async {
                while !self.1.ends_with(end.as_bytes()) {
                    self.1.extend(self.0.recv().await.expect("the log ends too early"));
                }
            };
            tokio::time::timeout(Duration::from_secs(120), wait).await.expect("in time");
            String::from_utf8(self.1.clone()).unwrap()
        }

        async fn all(mut self) -> String {
            let wait = async {
                while let Some(bytes) = self.0.recv().await {
                    self.1.extend(bytes);
                }
            };
            tokio::time::timeout(Duration::from_secs(120), wait).await.expect("in time");
            String::from_utf8(self.1).unwrap()
        }
    }

    fn numbers(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("{n}\n")).collect()
    }

    #[tokio::test]
    async fn rotated_parts_are_one_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        write(&folder.path().join("0.log.20260101-01"), 0..10);
        write(&folder.path().join("0.log.20260101-02"), 10..20);
        write(&path, 20..30);
        write(&folder.path().join("1.log"), 90..99);
        for (query, wanted) in [
            ("", 0..30),
            ("tailLines=5", 25..30),
            ("tailLines=10", 20..30),
            ("tailLines=25", 5..30),
            ("tailLines=99", 0..30),
            ("tailLines=0", 0..0),
        ] {
            assert_eq!(Tail::start(&path, query).0.all().await, numbers(wanted), "{query}");
        }
        assert_eq!(Tail::start(&folder.path().join("none/0.log"), "").0.all().await, "");
    }

    #[tokio::test]
    async fn follows_over_rotations_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let (mut tail, running) = Tail::start(&path, "follow=true");
        write(&path, 0..5);
        assert_eq!(tail.until("4\n").await, numbers(0..5));
        std::fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        write(&path, 5..8);
        std::fs::rename(&path, folder.path().join("0.log.2")).unwrap();
        write(&path, 8..12);
        assert_eq!(tail.until("11\n").await, numbers(0..12));
        let mut half = std::fs::File::options().append(true).open(&path).unwrap();
        half.write_all(&line("12").as_bytes()[..20]).unwrap();
        half.write_all(&line("12").as_bytes()[20..]).unwrap();
        tail.until("12\n").await;
        write(&path, 13..20);
        running.send_replace(false);
        assert_eq!(tail.all().await, numbers(0..20));
    }

    #[tokio::test]
    async fn a_follower_that_leaves_is_noticed_in_silence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        write(&path, 0..1);
        let (running, has) = watch::channel(true);
        let (out, mut lines) = mpsc::channel(2);
        let task = tokio::spawn(send(LogSource { path, running: has }, options("follow=true"), out));
        lines.recv().await.unwrap();
        drop(lines);
        tokio::time::timeout(Duration::from_secs(120), task).await.expect("in time").unwrap();
        drop(running);
    }

    proptest! {
        #[test]
        fn tail_finds_what_counting_finds(text in "[a\n]{0,60}", wanted in 0u64..20) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("f");
            std::fs::write(&path, &text).unwrap();
            let (offset, found) = tail_offset(&path, text.len() as u64, wanted).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            let lines: Vec<&str> = whole.split_inclusive('\n').collect();
            let kept = &lines[lines.len() - (wanted as usize).min(lines.len())..];
            prop_assert_eq!(found, kept.len() as u64);
            let tail = &text[offset as usize..];
            let expected = if wanted == 0 { String::new() } else { kept.concat() + &text[whole.len()..] };
            prop_assert_eq!(tail, expected);
        }
    }
}

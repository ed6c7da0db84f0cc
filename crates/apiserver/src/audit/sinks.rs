//! Where audit events go: a file of JSON lines that rotates, a webhook that takes lists.
//!
//! The file is written by its own thread from a bounded queue; a full queue makes requests wait. The webhook is fed
//! by a task from a bounded queue; a full queue loses events. Both count what was lost.

use super::policy::Level;
use crate::outbound::Endpoint;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Events that wait for the disk; beyond it requests wait.
const LOG_QUEUE: usize = 1_024;
/// Events that wait for the webhook (upstream's buffer); beyond it they are lost.
const WEBHOOK_QUEUE: usize = 10_000;
/// Events of one list, and how long the first waits for others (upstream's).
const BATCH_MAX: usize = 400;
const BATCH_WAIT: Duration = Duration::from_secs(30);
/// Tries for a list, with pauses that double.
const TRIES: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const POST_MAX: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

/// The log file.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Its path; `-` is the standard output.
    pub path: PathBuf,
    /// MiB at which it rotates; 0: never.
    pub max_size_mib: u64,
    /// Days that old files stay; 0: for ever.
    pub max_age_days: u64,
    /// Old files that stay; 0: all.
    pub max_backups: usize,
}

#[derive(Default)]
struct Counts {
    events: AtomicU64,
    lost_log: AtomicU64,
    lost_webhook: AtomicU64,
    levels: [AtomicU64; 4],
}

/// All sinks of a server.
pub struct Sinks {
    log: Option<mpsc::Sender<Value>>,
    webhook: Option<mpsc::Sender<Value>>,
    counts: Arc<Counts>,
}

impl Sinks {
    /// Opens the file, starts writer and sender. They end with the last sender.
    pub fn start(log: Option<LogConfig>, webhook: Option<Endpoint>) -> io::Result<Sinks> {
        let counts = Arc::new(Counts::default());
        let log = match log {
            None => None,
            Some(config) => {
                let mut file = LogFile::open(config)?;
                let (sender, mut receiver) = mpsc::channel::<Value>(LOG_QUEUE);
                let counts = counts.clone();
                std::thread::Builder::new().name("audit-log".into()).spawn(move || {
                    while let Some(event) = receiver.blocking_recv() {
                        let mut written = file.write(&event);
                        while let Ok(event) = receiver.try_recv() {
                            written = written.and(file.write(&event));
                        }
                        if let Err(error) = written.and_then(|()| file.flush()) {
                            counts.lost_log.fetch_add(1, Relaxed);
                            tracing::error!(%error, "the audit log could not be written");
                        }
                    }
                })?;
                Some(sender)
            }
        };
        let webhook = webhook.map(|endpoint| {
            let (sender, receiver) = mpsc::channel(WEBHOOK_QUEUE);
            tokio::spawn(send(endpoint, receiver, counts.clone()));
            sender
        });
        Ok(Sinks { log, webhook, counts })
    }

    /// Takes an event; waits for the log's queue.
    pub async fn take(&self, event: Value) {
        self.counts.events.fetch_add(1, Relaxed);
        self.to_webhook(&event);
        if let Some(log) = &self.log
            && log.send(event).await.is_err()
        {
            self.counts.lost_log.fetch_add(1, Relaxed);
        }
    }

    /// Takes an event without waiting.
    pub fn take_now(&self, event: Value) {
        self.counts.events.fetch_add(1, Relaxed);
        self.to_webhook(&event);
        if let Some(log) = &self.log
            && log.try_send(event).is_err()
        {
            self.counts.lost_log.fetch_add(1, Relaxed);
        }
    }

    fn to_webhook(&self, event: &Value) {
        if let Some(webhook) = &self.webhook
            && webhook.try_send(event.clone()).is_err()
        {
            self.counts.lost_webhook.fetch_add(1, Relaxed);
        }
    }

    /// Counts a request by its level.
    pub fn counted(&self, level: Level) {
        self.counts.levels[level as usize].fetch_add(1, Relaxed);
    }

    /// Lines for `/metrics`.
    pub fn metrics(&self) -> String {
        let c = &self.counts;
        let mut out = format!(
            "# TYPE apiserver_audit_event_total counter\napiserver_audit_event_total {}\n\
             # TYPE apiserver_audit_error_total counter\napiserver_audit_error_total{{plugin=\"log\"}} {}\n\
             apiserver_audit_error_total{{plugin=\"webhook\"}} {}\n# TYPE apiserver_audit_level_total counter\n",
            c.events.load(Relaxed),
            c.lost_log.load(Relaxed),
            c.lost_webhook.load(Relaxed)
        );
        for level in [Level::None, Level::Metadata, Level::Request, Level::RequestResponse] {
            let count = c.levels[level as usize].load(Relaxed);
            out += &format!("apiserver_audit_level_total{{level=\"{}\"}} {count}\n", level.name());
        }
        out
    }
}

/// Sends lists until the last event.
async fn send(endpoint: Endpoint, mut events: mpsc::Receiver<Value>, counts: Arc<Counts>) {
    while let Some(first) = events.recv().await {
        let mut batch = vec![first];
        let full = async {
            while batch.len() < BATCH_MAX
                && let Some(event) = events.recv().await
            {
                batch.push(event);
            }
        };
        // What came until now is in the batch already.
        let _ = tokio::time::timeout(BATCH_WAIT, full).await;
        let list =
            json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch});
        let mut pause = RETRY_PAUSE;
        for attempt in 1..=TRIES {
            match endpoint.post(&list, POST_MAX).await {
                Ok(_) => break,
                Err(error) if attempt == TRIES => {
                    counts.lost_webhook.fetch_add(batch.len() as u64, Relaxed);
                    tracing::error!(error, events = batch.len(), "audit events could not be sent");
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
    }
}

/// A file that is put aside when it is full.
struct LogFile {
    config: LogConfig,
    out: Box<dyn Write + Send>,
    size: u64,
}

impl LogFile {
    fn open(config: LogConfig) -> io::Result<LogFile> {
        if config.path == Path::new("-") {
            return Ok(LogFile { config, out: Box::new(io::stdout()), size: 0 });
        }
        if let Some(folder) = config.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let (out, size) = open(&config.path)?;
        Ok(LogFile { config, out: Box::new(out), size })
    }

    fn write(&mut self, event: &Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let max = self.config.max_size_mib << 20;
        if max > 0
            && self.size > 0
            && self.size + line.len() as u64 > max
            && self.config.path != Path::new("-")
        {
            self.rotate()?;
        }
        self.size += line.len() as u64;
        self.out.write_all(&line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.out.flush()?;
        std::fs::rename(&self.config.path, self.backup_path())?;
        let (out, size) = open(&self.config.path)?;
        (self.out, self.size) = (Box::new(out), size);
        self.forget_old()
    }

    fn parts(&self) -> (String, String) {
        let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
        let extension = part(self.config.path.extension());
        let dotted = if extension.is_empty() { extension } else { format!(".{extension}") };
        (part(self.config.path.file_stem()), dotted)
    }

    /// `audit-2026-01-02T03-04-05.678.log`, as upstream names them.
    fn backup_path(&self) -> PathBuf {
        let (stem, extension) = self.parts();
        let folder = self.config.path.parent().unwrap_or(Path::new("."));
        let mut now = jiff::Timestamp::now();
        loop {
            let text = now.strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string();
            let path = folder.join(format!("{stem}-{text}{extension}"));
            if !path.exists() {
                return path;
            }
            now += jiff::SignedDuration::from_millis(1);
        }
    }

    fn forget_old(&self) -> io::Result<()> {
        let (stem, extension) = self.parts();
        let folder = self.config.path.parent().unwrap_or(Path::new("."));
        let mut old: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let middle = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&extension));
            if middle.is_some_and(|m| m.len() == "2026-01-02T03-04-05.678".len()) {
                old.push(path);
            }
        }
        old.sort();
        let spare = match self.config.max_backups {
            0 => 0,
            kept => old.len().saturating_sub(kept),
        };
        let too_old = |path: &PathBuf| {
            let days = self.config.max_age_days;
            let age = path.metadata().and_then(|m| m.modified()).ok();
            let age = age.and_then(|t| SystemTime::now().duration_since(t).ok());
            days > 0 && age.is_some_and(|a| a > DAY * u32::try_from(days).unwrap_or(u32::MAX))
        };
        for (n, path) in old.iter().enumerate() {
            if n < spare || too_old(path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// The file may name secrets' owners: only its owner reads it.
fn open(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::new(file), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let config = LogConfig { path: path.clone(), max_size_mib: 1, max_age_days: 0, max_backups: 2 };
        let mut file = LogFile::open(config).unwrap();
        let event = json!({"x": "y".repeat(600 << 10)});
        for _ in 0..5 {
            file.write(&event).unwrap();
        }
        file.flush().unwrap();
        let count = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count, 3, "the file and two old ones");
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
    }
}

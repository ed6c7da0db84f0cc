//! Tails over real files, with a sink in memory and a log router on a pipe.

use super::deliver::Delivery;
use super::tail::Tail;
use super::{Destination, LogEvent, LogSink, SinkError};
use crate::nodeapi::{AttachSpec, Duplex, LogSource, NodeBackend, Session, Target};
use async_trait::async_trait;
use machinery::status::ApiError;
use parking_lot::Mutex;
use regex::Regex;
use runtime::api::ExecSpec;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Memory {
    lines: Mutex<Vec<String>>,
    failures: Mutex<Vec<SinkError>>,
    opened: Mutex<u32>,
}

#[async_trait]
impl LogSink for Memory {
    async fn open(&self, _: &Destination) -> Result<(), SinkError> {
        *self.opened.lock() += 1;
        Ok(())
    }

    async fn put(&self, _: &Destination, events: Vec<LogEvent>) -> Result<(), SinkError> {
        if let Some(error) = self.failures.lock().pop() {
            return Err(error);
        }
        self.lines.lock().extend(events.into_iter().map(|e| e.message));
        Ok(())
    }
}

impl Memory {
    async fn has(&self, expected: &[&str]) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while *self.lines.lock() != expected {
            assert!(tokio::time::Instant::now() < until, "{:?} is not {expected:?}", self.lines.lock());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Running {
    finish: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn start(folder: &Path, sink: &Arc<Memory>, begins: Option<&str>) -> Running {
    let to = Destination { region: "".into(), group: "g".into(), stream: "s".into(), create_group: false };
    let (finish, finished) = watch::channel(false);
    let begins = begins.map(|b| Regex::new(b).unwrap());
    let tail = Tail::new(folder.to_path_buf(), begins, Delivery::to_group(sink.clone(), to), finished);
    Running { finish, task: tokio::spawn(tail.run()) }
}

impl Running {
    async fn end(self) {
        self.finish.send_replace(true);
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

fn write(folder: &Path, file: &str, texts: &[&str]) {
    let mut file = std::fs::File::options().append(true).create(true).open(folder.join(file)).unwrap();
    for text in texts {
        writeln!(file, "2026-01-01T00:00:00.000000000Z stdout F {text}").unwrap();
    }
}

#[tokio::test]
async fn lines_arrive_through_rotation_and_restart_of_the_container() {
    let folder = tempfile::tempdir().unwrap();
    let (path, sink) = (folder.path(), Arc::new(Memory::default()));
    let running = start(path, &sink, None);
    write(path, "0.log", &["a"]);
    sink.has(&["a"]).await;
    write(path, "0.log", &["b"]);
    std::fs::rename(path.join("0.log"), path.join("0.log.20260101-000000")).unwrap();
    write(path, "0.log", &["c"]);
    sink.has(&["a", "b", "c"]).await;
    write(path, "1.log", &["d"]);
    sink.has(&["a", "b", "c", "d"]).await;
    write(path, "1.log", &["e"]);
    running.end().await;
    sink.has(&["a", "b", "c", "d", "e"]).await;
    assert_eq!(*sink.opened.lock(), 1);
}

#[tokio::test]
async fn an_agent_that_dies_loses_nothing_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, sink) = (folder.path(), Arc::new(Memory::default()));
    for (round, text) in ["one", "two", "three"].iter().enumerate() {
        write(path, "0.log", &[text]);
        let running = start(path, &sink, None);
        sink.has(&["one", "two", "three"][..=round]).await;
        let saved = || std::fs::read_to_string(path.join(".shipped")).unwrap_or_default();
        let length = std::fs::metadata(path.join("0.log")).unwrap().len();
        let until = tokio::time::Instant::now() + PATIENCE;
        while !saved().contains(&format!("\"offset\":{length}")) {
            assert!(tokio::time::Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.task.abort();
        let _ = running.task.await;
        // Written while nobody looks, and rotated.
        if round == 1 {
            std::fs::rename(path.join("0.log"), path.join("0.log.20260101-000000")).unwrap();
        }
    }
    let running = start(path, &sink, None);
    running.end().await;
    sink.has(&["one", "two", "three"]).await;
}

#[tokio::test]
async fn a_batch_is_tried_until_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Arc::new(Memory::default());
    *sink.failures.lock() = vec![SinkError::Refused("no stream".into()), SinkError::Later("busy".into())];
    write(folder.path(), "0.log", &["x"]);
    let running = start(folder.path(), &sink, None);
    running.end().await;
    sink.has(&["x"]).await;
    assert!(*sink.opened.lock() > 1, "a refused stream is made again");
}

#[tokio::test]
async fn an_open_group_is_read_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (path, sink) = (folder.path(), Arc::new(Memory::default()));
    write(path, "0.log", &["BEGIN a", " b", "BEGIN c"]);
    let running = start(path, &sink, Some("^BEGIN"));
    sink.has(&["BEGIN a\n b"]).await;
    running.task.abort();
    let _ = running.task.await;
    write(path, "0.log", &[" d"]);
    let running = start(path, &sink, Some("^BEGIN"));
    running.end().await;
    let lines = sink.lines.lock().clone();
    assert_eq!(lines.last().unwrap(), "BEGIN c\n d");
    assert!(lines.iter().filter(|l| l.starts_with("BEGIN a")).count() <= 2, "at most the last batch again");
}

/// A pod with a log router that is up from the second connection on.
struct Router {
    dials: Mutex<u32>,
    got: Arc<Mutex<Vec<u8>>>,
}

fn unasked() -> ApiError {
    ApiError::bad_request("not asked here")
}

#[async_trait]
impl NodeBackend for Router {
    async fn check(&self, _: &Target) -> Result<(), ApiError> {
        Err(unasked())
    }
    async fn exec(&self, _: &Target, _: ExecSpec) -> Result<Session, ApiError> {
        Err(unasked())
    }
    async fn attach(&self, _: &Target, _: AttachSpec) -> Result<Session, ApiError> {
        Err(unasked())
    }
    async fn logs(&self, _: &Target, _: bool) -> Result<LogSource, ApiError> {
        Err(unasked())
    }
    async fn port_forward(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        assert_eq!((target.pod.as_str(), port), ("p", 24_224));
        *self.dials.lock() += 1;
        if *self.dials.lock() == 1 {
            return Err(ApiError::bad_request("connection refused"));
        }
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let got = self.got.clone();
        tokio::spawn(async move {
            let mut message = Vec::new();
            while far.read_buf(&mut message).await.is_ok_and(|n| n > 0) {
                // The chunk's id is the last text of the message.
                let Some(at) = message.windows(7).position(|w| w == b"\x81\xa5chunk") else { continue };
                let acknowledgement = [b"\x81\xa3ack", &message[at + 7..]].concat();
                got.lock().append(&mut message);
                far.write_all(&acknowledgement).await.unwrap();
            }
        });
        Ok(Box::new(near))
    }
    async fn pods(&self) -> Value {
        Value::Null
    }
    fn running_pods(&self) -> Value {
        Value::Null
    }
    fn config(&self) -> Value {
        Value::Null
    }
    async fn stats_summary(&self) -> Value {
        Value::Null
    }
    async fn metrics(&self, _: crate::nodeapi::Metrics) -> String {
        String::new()
    }
}

#[tokio::test]
async fn a_router_gets_every_line_once_it_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let got = Arc::<Mutex<Vec<u8>>>::default();
    let backend = Arc::new(Router { dials: Mutex::new(0), got: got.clone() });
    let pod = client::ObjectKey::new("n", "p");
    let route = super::Route::to(pod, "t");
    let (finish, finished) = watch::channel(false);
    let tail = Tail::new(folder.path().into(), None, Delivery::to_router(backend.clone(), route), finished);
    write(folder.path(), "0.log", &["first"]);
    let running = Running { finish, task: tokio::spawn(tail.run()) };
    let has = |text: &str| got.lock().windows(text.len()).any(|w| w == text.as_bytes());
    let until = tokio::time::Instant::now() + PATIENCE;
    while !has("first") {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    write(folder.path(), "0.log", &["second"]);
    running.end().await;
    assert!(has("second"));
    assert_eq!(*backend.dials.lock(), 2, "a connection is kept");
}

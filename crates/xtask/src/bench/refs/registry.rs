//! One large blob into a registry and out again: ours and distribution 2.8, each a server process on loopback.
//!
//! A push is `POST`, then one `PUT` with the body; a pull is one `GET`, the page cache being warm. The digest is computed
//! before the clock starts; both servers check it.

use super::worker::{Round, Server, Serving, Work, Worker, free_port, installed, local};
use crate::bench::cpu_seconds;
use anyhow::{Context, Result, ensure};
use image::{Depot, Limits};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

const BLOB_BYTES: usize = 256 << 20;
/// Pulls a round (a push takes long enough alone).
const PULLS: usize = 4;
const READ_BYTES: usize = 1 << 20;
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The load against one registry; `server` lives as long.
struct Load<S> {
    port: u16,
    pid: u32,
    blob: Vec<u8>,
    pushed: String,
    pushes: u64,
    _server: S,
}

impl<S> Load<S> {
    fn new(port: u16, pid: u32, server: S) -> Load<S> {
        // Not all zeros: nothing on the way may find it easy.
        let mut state = 1u64;
        let mut word = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        };
        let blob = (0..BLOB_BYTES / 8).flat_map(|_| word()).collect();
        Load { port, pid, blob, pushed: String::new(), pushes: 0, _server: server }
    }

    fn push(&mut self) -> Result<Duration> {
        self.pushes += 1;
        self.blob[..8].copy_from_slice(&self.pushes.to_le_bytes());
        let hex: String = Sha256::digest(&self.blob).iter().map(|b| format!("{b:02x}")).collect();
        let begin = Instant::now();
        let (head, _) = request(self.port, "POST", "/v2/bench/blobs/uploads/", &[])?;
        let location = header(&head, "location").context("an upload has a location")?;
        let path = location.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let path = path.unwrap_or(location);
        let join = if path.contains('?') { '&' } else { '?' };
        request(self.port, "PUT", &format!("{path}{join}digest=sha256:{hex}"), &self.blob)?;
        self.pushed = hex;
        Ok(begin.elapsed())
    }

    fn pull(&self) -> Result<Duration> {
        let begin = Instant::now();
        let (_, bytes) = request(self.port, "GET", &format!("/v2/bench/blobs/sha256:{}", self.pushed), &[])?;
        ensure!(bytes == BLOB_BYTES, "{bytes} bytes came");
        Ok(begin.elapsed())
    }
}

impl<S> Work for Load<S> {
    fn round(&mut self, what: &str) -> Result<Round> {
        let pid = self.pid;
        let cpu = || cpu_seconds(pid);
        match what {
            "push" => {
                let before = cpu()?;
                let took = self.push()?.as_secs_f64();
                Ok(Round::new(vec![took], 1, took, cpu()? - before))
            }
            _ => Round::repeat(PULLS, 1, cpu, || self.pull()),
        }
    }
}

/// One request on a connection of its own: the answer's head, and how many bytes of body came.
fn request(port: u16, method: &str, path: &str, body: &[u8]) -> Result<(String, usize)> {
    let mut stream = TcpStream::connect(local(port))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let (mut buffer, mut head, mut bytes) = (vec![0; READ_BYTES], Vec::new(), 0);
    let mut text = None;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if text.is_some() {
            bytes += count;
            continue;
        }
        head.extend_from_slice(&buffer[..count]);
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            bytes = head.len() - end - 4;
            text = Some(String::from_utf8_lossy(&head[..end]).into_owned());
        }
        ensure!(text.is_some() || head.len() < HEAD_BYTES_MAX, "an answer without an end of its head");
    }
    let text = text.context("no answer")?;
    ensure!(text.starts_with("HTTP/1.1 2"), "{method} {path}: {text}");
    Ok((text, bytes))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v.trim())
}

/// Our registry, in a process of its own.
pub fn ours(_args: &[&str]) -> Result<Box<dyn Work>> {
    let port = free_port()?;
    let server = Worker::of("serve-registry", &[&port.to_string()])?;
    Ok(Box::new(Load::new(port, server.pid(), server)))
}

/// That process. Arguments: the port.
pub fn serve(args: &[&str]) -> Result<Box<dyn Work>> {
    let port: u16 = args.first().context("a port")?.parse()?;
    let folder = tempfile::tempdir()?;
    let depot = Depot::open(folder.path(), Limits::default())?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = tokio.block_on(TcpListener::bind(local(port)))?;
    let (keep, stop) = watch::channel(false);
    tokio.spawn(::registry::serve(listener, depot, stop));
    Ok(Box::new(Serving((tokio, keep, folder))))
}

/// Docker's registry (distribution).
pub fn distribution(_args: &[&str]) -> Result<Box<dyn Work>> {
    let program = installed("/usr/bin/docker-registry", "docker-registry")?;
    let port = free_port()?;
    let mut server = Server::start(|folder| {
        let (config, root) = (folder.join("config.yml"), folder.join("root"));
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            root.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("serve").arg(config).env("OTEL_TRACES_EXPORTER", "none");
        Ok(command)
    })?;
    server.wait_for(port)?;
    Ok(Box::new(Load::new(port, server.pid(), server)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_in_any_case() {
        let head = "HTTP/1.1 202 Accepted\r\nlocation: http://127.0.0.1:1/v2/x?y=z\r\nA: b";
        assert_eq!(header(head, "Location"), Some("http://127.0.0.1:1/v2/x?y=z"));
        assert_eq!(header(head, "a"), Some("b"));
        assert_eq!(header(head, "b"), None);
    }
}

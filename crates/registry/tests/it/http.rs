//! A raw HTTP/1.1 client, and a registry to talk to.

use image::{Depot, Limits};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tokio::sync::watch;

/// A registry on the loopback.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
    _stop: watch::Sender<bool>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let depot = Depot::open(folder.path(), limits).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (stop, stopped) = watch::channel(false);
        let address = listener.local_addr().unwrap();
        runtime.spawn(registry::serve(listener, depot, stopped));
        Bench { folder, address, _runtime: runtime, _stop: stop }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let head = head(method, path, headers, body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A refused body is not read to its end.
        let _ = stream.write_all(body);
        read(stream, method == "HEAD")
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"")
    }

    /// Pushes a blob in one request.
    pub fn push(&self, name: &str, bytes: &[u8]) -> String {
        let digest = testkit::image::digest(bytes);
        let reply = self.ask("POST", &format!("/v2/{name}/blobs/uploads/?digest={digest}"), &[], bytes);
        assert_eq!(reply.status, 201, "{reply:?}");
        digest
    }

    /// Files below a part of the depot's folder.
    pub fn files(&self, part: &str) -> usize {
        std::fs::read_dir(self.folder.path().join(part)).unwrap().count()
    }
}

/// The head of a request that closes the connection.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n");
    if length > 0 || method != "GET" && method != "HEAD" {
        head += &format!("content-length: {length}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

fn read(stream: TcpStream, without_body: bool) -> Reply {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {line:?}")).parse().unwrap();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut body = Vec::new();
    if !without_body {
        reader.read_to_end(&mut body).unwrap();
    }
    Reply { status, headers, body }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The status, and the first error's code.
    pub fn error(&self) -> (u16, String) {
        (self.status, self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_string())
    }
}

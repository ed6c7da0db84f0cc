//! A registry that does as a test tells it: honest, slow, cut off, lying. A thread a connection, HTTP/1.1.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::image::{ImageBuilder, digest};

/// What came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

/// How a body goes out.
#[derive(Clone)]
pub enum Body {
    Whole(Vec<u8>),
    /// All are promised, so many sent.
    Cut(Vec<u8>, usize),
    /// Nothing, for a long time, not even a head.
    Hang,
    /// A byte now and then.
    Drip,
    /// Zeros for ever.
    Endless,
}

/// An answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

impl Answer {
    pub fn ok(bytes: &[u8]) -> Answer {
        Answer { status: 200, headers: Vec::new(), body: Body::Whole(bytes.into()) }
    }

    pub fn status(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Body::Whole(Vec::new()) }
    }

    pub fn with(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: Body) -> Answer {
        self.body = body;
        self
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let (bytes, sent) = match &self.body {
            Body::Whole(bytes) => (bytes.as_slice(), bytes.len()),
            Body::Cut(bytes, sent) => (bytes.as_slice(), *sent),
            Body::Hang => {
                std::thread::sleep(Duration::from_secs(60));
                return Ok(());
            }
            Body::Drip | Body::Endless => (&[0; 1][..], 0),
        };
        let length = match self.body {
            Body::Drip | Body::Endless => u64::MAX / 4,
            _ => bytes.len() as u64,
        };
        let mut head =
            format!("HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {length}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        stream.write_all(&bytes[..sent])?;
        loop {
            match self.body {
                Body::Drip => {
                    stream.write_all(b"x")?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Body::Endless => stream.write_all(&[0; 1 << 16])?,
                _ => return Ok(()),
            }
        }
    }
}

/// A running server; its threads end with the test process.
#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, answer) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(answer));
        let seen = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, answer, seen) = (stream.unwrap(), answer.clone(), seen.clone());
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    seen.lock().unwrap().push(request.clone());
                    let _ = answer(&request).send(&mut stream);
                });
            }
        });
        Fake { address, log }
    }

    /// How many requests had a path with these words.
    pub fn count(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|r| r.path.contains(words)).count()
    }

    /// `localhost:port/name:tag`, which is pulled in the clear.
    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.address.port())
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_string();
    let pair =
        |l: String| l.split_once(':').map(|(k, v)| (k.trim().to_ascii_lowercase(), v.trim().to_string()));
    let headers = lines.take_while(|l| !l.is_empty()).filter_map(pair).collect();
    Some(Request { path, headers })
}

/// A repository's content by path below `/v2/<name>/`.
#[derive(Clone, Default)]
pub struct Content(pub BTreeMap<String, Vec<u8>>);

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Content {
    /// An image under a tag.
    pub fn of(image: &ImageBuilder, tag: &str) -> Content {
        let mut content = Content::default();
        let files = image.oci_files();
        for (path, bytes) in &files {
            if path.starts_with("blobs/") {
                content.blob(bytes);
            }
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let wanted = index["manifests"][0]["digest"].as_str().unwrap();
        let manifest = files.values().find(|bytes| digest(bytes) == wanted).unwrap();
        content.manifest(manifest, tag);
        content
    }

    /// Adds a blob; its descriptor.
    pub fn blob(&mut self, bytes: &[u8]) -> Value {
        self.0.insert(format!("blobs/{}", digest(bytes)), bytes.into());
        json!({"mediaType": "x", "digest": digest(bytes), "size": bytes.len()})
    }

    /// Adds a manifest or index under a tag; its descriptor.
    pub fn manifest(&mut self, bytes: &[u8], tag: &str) -> Value {
        for reference in [digest(bytes), tag.into()] {
            self.0.insert(format!("manifests/{reference}"), bytes.into());
        }
        json!({"mediaType": MANIFEST, "digest": digest(bytes), "size": bytes.len()})
    }

    /// The path of the largest blob: a layer.
    pub fn layer(&self) -> String {
        let blobs = self.0.iter().filter(|(path, _)| path.starts_with("blobs/"));
        blobs.max_by_key(|(_, bytes)| bytes.len()).unwrap().0.clone()
    }

    /// The honest answer, whatever the repository is called; ranges are served.
    pub fn answer(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap();
        let Some((_, bytes)) = self.0.iter().find(|(known, _)| path.ends_with(&format!("/{known}"))) else {
            return Answer::status(404);
        };
        let from = request
            .headers
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            Some(from) => Answer { status: 206, ..Answer::ok(&bytes[from..]) }
                .with("content-range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            None => Answer::ok(bytes),
        }
    }
}

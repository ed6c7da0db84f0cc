//! The balancer with real sockets on the loopback: small servers behind it, raw clients before it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lb::config::*;
use lb::health::State;
use lb::{Balancer, ListenError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that answers `name`, its headers on `/headers`, and the status in `status` on `/health`.
async fn server(name: &'static str) -> (SocketAddr, Arc<AtomicU16>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, status) = (socket.local_addr().unwrap(), Arc::new(AtomicU16::new(200)));
    let shared = status.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let status = shared.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let code =
                    if request.uri().path() == "/health" { status.load(Ordering::Relaxed) } else { 200 };
                let text = match request.uri().path() {
                    "/headers" => format!("{:?}", request.headers()),
                    _ => name.to_string(),
                };
                let body = Full::new(Bytes::from(text));
                async move { http::Response::builder().status(code).body(body) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    (address, status)
}

/// The longest wait for what must come.
const LIMIT: Duration = Duration::from_secs(60);

fn check() -> Check {
    Check {
        protocol: Protocol::Http,
        port: None,
        path: "/health".into(),
        matcher: vec![(200, 299)],
        interval: Duration::from_millis(20),
        timeout: LIMIT,
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    }
}

fn group(id: &str, targets: &[(&str, SocketAddr)]) -> Group {
    let target =
        |(id, address): &(&str, SocketAddr)| Target { id: (*id).into(), address: *address, draining: false };
    Group {
        id: id.into(),
        protocol: Protocol::Http,
        targets: targets.iter().map(target).collect(),
        check: None,
        algorithm: Algorithm::RoundRobin,
        stickiness: None,
        slow_start: Duration::ZERO,
    }
}

fn forward(groups: &[(&str, u32)]) -> Action {
    let groups = groups.iter().map(|(id, weight)| ((*id).into(), *weight)).collect();
    Action::Forward(Forward { groups, stickiness: None })
}

fn listener(protocol: Protocol, default: Action) -> Listener {
    Listener {
        id: "front".into(),
        address: ([127, 0, 0, 1], 0).into(),
        protocol,
        certificates: Vec::new(),
        rules: Vec::new(),
        default,
        idle_timeout: Duration::from_secs(20),
    }
}

fn address(balancer: &Balancer, config: &Config) -> SocketAddr {
    *balancer.apply(config)["front"].as_ref().unwrap()
}

/// Sends raw bytes and reads until the other side closes.
async fn raw(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n")).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_target_gets_nothing_and_comes_back() {
    let ((a, sick), (b, _)) = (server("a").await, server("b").await);
    let group = Group { check: Some(check()), ..group("web", &[("a", a), ("b", b)]) };
    let config =
        Config { listeners: vec![listener(Protocol::Http, forward(&[("web", 1)]))], groups: vec![group] };
    let balancer = Balancer::default();
    let front = address(&balancer, &config);
    let state = |target: &str, balancer: &Balancer| {
        balancer.health().into_iter().find(|h| *h.target == *target).unwrap().state
    };
    until("both become healthy", async || ["a", "b"].iter().all(|t| state(t, &balancer) == State::Healthy))
        .await;
    let both = [get(front, "/").await, get(front, "/").await].concat();
    assert!(both.contains("\r\n\r\na") && both.contains("\r\n\r\nb"), "{both}");
    let mut changes = balancer.changes();
    changes.mark_unchanged();
    sick.store(503, Ordering::Relaxed);
    tokio::time::timeout(LIMIT, changes.changed()).await.unwrap().unwrap();
    let sick_now = State::Unhealthy(lb::health::Failure::Status(503));
    until("a is sick", async || state("a", &balancer) == sick_now).await;
    for _ in 0..6 {
        assert!(get(front, "/").await.ends_with("\r\n\r\nb"));
    }
    sick.store(204, Ordering::Relaxed);
    until("a comes back", async || state("a", &balancer) == State::Healthy).await;
    assert!(balancer.metrics().contains("gantry_lb_healthy_targets{group=\"web\"} 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_weights_and_our_own_answers() {
    let ((a, _), (b, _)) = (server("a").await, server("b").await);
    // Bound, so that nobody else gets the port, but not listening.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = deaf.local_addr().unwrap();
    let rule = |path: &str, action| Rule { conditions: vec![Condition::Path(vec![path.into()])], action };
    let fixed = Fixed { status: 418, content_type: "text/plain".into(), body: "tea".into() };
    let redirect = Redirect {
        status: 301,
        protocol: "HTTPS".into(),
        host: "#{host}".into(),
        port: "443".into(),
        path: "/#{path}".into(),
        query: "#{query}".into(),
    };
    let mut front = listener(Protocol::Http, forward(&[("a", 3), ("b", 1)]));
    front.rules = vec![
        rule("/tea", Action::Fixed(fixed)),
        rule("/old*", Action::Redirect(redirect)),
        rule("/none", forward(&[("empty", 1)])),
        rule("/dead", forward(&[("dead", 1)])),
        rule("/half", forward(&[("half", 1)])),
    ];
    let groups = vec![
        group("a", &[("a", a)]),
        group("b", &[("b", b)]),
        group("empty", &[]),
        group("dead", &[("x", refused)]),
        group("half", &[("x", refused), ("a", a)]),
    ];
    let balancer = Balancer::default();
    let front = address(&balancer, &Config { listeners: vec![front], groups });
    let mut count = 0;
    for _ in 0..40 {
        count += usize::from(get(front, "/").await.ends_with("\r\n\r\na"));
    }
    assert!((28..=32).contains(&count), "{count} of 40");
    assert!(get(front, "/tea").await.starts_with("HTTP/1.1 418"));
    assert!(get(front, "/old/x?y").await.contains("location: https://shop/old/x?y"));
    assert!(get(front, "/none").await.starts_with("HTTP/1.1 503"));
    assert!(get(front, "/dead").await.starts_with("HTTP/1.1 502"));
    for _ in 0..4 {
        assert!(get(front, "/half").await.ends_with("\r\n\r\na"), "the refusing target is passed over");
    }
    let seen = get(front, "/headers").await;
    for part in [
        "\"x-forwarded-for\": \"127.0.0.1\"",
        "\"host\": \"shop\"",
        "x-amzn-trace-id",
        "\"x-forwarded-proto\": \"http\"",
    ] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    assert!(!seen.contains("\"connection\": \"close\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_with_its_target() {
    let ((a, _), (b, _)) = (server("a").await, server("b").await);
    let sticky = Group { stickiness: Some(Duration::from_secs(60)), ..group("web", &[("a", a), ("b", b)]) };
    let balancer = Balancer::default();
    let config =
        Config { listeners: vec![listener(Protocol::Http, forward(&[("web", 1)]))], groups: vec![sticky] };
    let front = address(&balancer, &config);
    let first = get(front, "/").await;
    let cookie = first.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    for _ in 0..5 {
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
        assert_eq!(raw(front, &request).await.chars().last(), first.chars().last());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_two_parsers_could_read_differently_reach_no_target() {
    let (a, _) = server("a").await;
    let balancer = Balancer::default();
    let listeners = vec![listener(Protocol::Http, forward(&[("web", 1)]))];
    let front = address(&balancer, &Config { listeners, groups: vec![group("web", &[("a", a)])] });
    for head in [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        "GET / HTTP/1.1\r\nho st: x\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let answer = raw(front, head).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer:?}");
    }
    // Both framings at once: read as chunked, framed anew; what follows is a request of its own or nothing.
    let both = "POST /headers HTTP/1.1\r\nhost: x\r\ncontent-length: 44\r\ntransfer-encoding: chunked\r\n\
                connection: close\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = raw(front, both).await;
    assert!(
        answer.matches("HTTP/1.1 ").count() == 1 && !answer.contains("content-length\": \"44"),
        "{answer}"
    );
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let answer = raw(front, &format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_changes_of_everything_else() {
    let ((a, _), (b, _)) = (server("a").await, server("b").await);
    let balancer = Balancer::default();
    let listeners = vec![listener(Protocol::Http, forward(&[("web", 1)]))];
    let mut config = Config { listeners, groups: vec![group("web", &[("a", a)])] };
    let front = address(&balancer, &config);
    let mut stream = TcpStream::connect(front).await.unwrap();
    // The last letter of an answer; none when the connection ended.
    let mut ask = async || {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.ok()?;
        let (mut answer, mut buffer) = (String::new(), [0; 1024]);
        while answer.split_once("\r\n\r\n").is_none_or(|(_, body)| body.is_empty()) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => answer += &String::from_utf8_lossy(&buffer[..length]),
            }
        }
        answer.chars().last()
    };
    assert_eq!(ask().await, Some('a'));
    config.groups = vec![group("web", &[("b", b)])];
    assert_eq!(address(&balancer, &config), front);
    assert_eq!(ask().await, Some('b'));
    config.listeners.clear();
    balancer.apply(&config);
    let answer = ask().await;
    assert!(matches!(answer, None | Some('\n')), "closed, or told so: {answer:?}");
    let refused = async || TcpStream::connect(front).await.is_err();
    until("the listener is gone", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_through_and_end_with_their_target() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let listeners = vec![listener(Protocol::Tcp, forward(&[("echo", 1)]))];
    let mut echo = group("echo", &[("e", target)]);
    echo.protocol = Protocol::Tcp;
    echo.check = Some(Check { protocol: Protocol::Tcp, ..check() });
    let mut config = Config { listeners, groups: vec![echo] };
    let balancer = Balancer::default();
    let front = address(&balancer, &config);
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    config.groups[0].targets[0].draining = true;
    balancer.apply(&config);
    stream.write_all(b"still").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(raw(front, "").await, "", "a draining target gets nothing new");
    config.groups[0].targets.clear();
    balancer.apply(&config);
    assert_eq!(stream.read(&mut back).await.unwrap_or(0), 0, "cut when the target is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_shows_the_certificate_of_the_name() {
    let certificate = |name: &str| {
        let key = rcgen::generate_simple_self_signed(vec![name.to_string()]).unwrap();
        Certificate {
            names: vec![name.to_string()],
            chain: key.cert.pem().into(),
            key: key.signing_key.serialize_pem().into(),
        }
    };
    let (a, _) = server("a").await;
    let mut front = listener(Protocol::Https, forward(&[("web", 1)]));
    front.certificates = vec![certificate("one.example"), certificate("*.two.example")];
    let (second, third) = (front.certificates[1].chain.clone(), certificate("three.example"));
    let balancer = Balancer::default();
    let mut config = Config { listeners: vec![front], groups: vec![group("web", &[("a", a)])] };
    let address = address(&balancer, &config);

    let mut roots = rustls::RootCertStore::empty();
    use rustls_pki_types::pem::PemObject;
    for trusted in [&second, &third.chain] {
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect("shop.two.example".try_into().unwrap(), stream).await.unwrap();
    stream
        .write_all(b"GET /headers HTTP/1.1\r\nhost: shop.two.example\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.contains("\"x-forwarded-proto\": \"https\""), "{answer}");

    // Others take their place on the same socket, at once; one that cannot be used changes nothing.
    config.listeners[0].certificates = vec![third];
    assert_eq!(balancer.apply(&config)["front"].as_ref().unwrap(), &address);
    let secure = async || {
        let stream = TcpStream::connect(address).await.unwrap();
        connector.connect("three.example".try_into().unwrap(), stream).await.is_ok()
    };
    assert!(secure().await);
    config.listeners[0].certificates.clear();
    assert!(matches!(balancer.apply(&config)["front"], Err(ListenError::Certificate(_))));
    assert!(secure().await, "those of before serve on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_relayed() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = socket.accept().await.unwrap();
        let mut head = [0; 2048];
        let length = stream.read(&mut head).await.unwrap();
        assert!(String::from_utf8_lossy(&head[..length]).to_lowercase().contains("upgrade: chat"));
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n")
            .await
            .unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let balancer = Balancer::default();
    let listeners = vec![listener(Protocol::Http, forward(&[("chat", 1)]))];
    let front = address(&balancer, &Config { listeners, groups: vec![group("chat", &[("c", target)])] });
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: chat\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test]
async fn a_taken_port_and_a_missing_certificate_are_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut front = listener(Protocol::Http, forward(&[]));
    front.address = taken.local_addr().unwrap();
    let mut secure = listener(Protocol::Https, forward(&[]));
    secure.id = "secure".into();
    let balancer = Balancer::default();
    let config = Config { listeners: vec![front, secure], groups: Vec::new() };
    let outcome = balancer.apply(&config);
    assert!(matches!(outcome["front"], Err(ListenError::Bind { .. })));
    assert!(matches!(outcome["secure"], Err(ListenError::Certificate(_))));
    drop(taken);
    assert!(balancer.apply(&config)["front"].is_ok(), "tried again");
}

/// An echo that names itself.
async fn echo(name: &'static str) -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let said = format!("{name} {}", String::from_utf8_lossy(&buffer[..length]));
            socket.send_to(said.as_bytes(), peer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn datagrams_of_a_client_stay_with_a_target() {
    let group = Group { check: None, ..group("g", &[("a", echo("a").await), ("b", echo("b").await)]) };
    let listener = Listener {
        id: "l".into(),
        address: "127.0.0.1:0".parse().unwrap(),
        protocol: Protocol::Udp,
        certificates: Vec::new(),
        rules: Vec::new(),
        default: Action::Forward(Forward { groups: vec![("g".into(), 1)], stickiness: None }),
        idle_timeout: Duration::from_secs(60),
    };
    let (balancer, id) = (Balancer::default(), listener.id.clone());
    let bound = balancer.apply(&Config { listeners: vec![listener], groups: vec![group] });
    let address = *bound[&id].as_ref().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        let mut own = Vec::new();
        for word in ["1", "2", "3"] {
            client.send(word.as_bytes()).await.unwrap();
            let mut buffer = [0; 64];
            let length = tokio::time::timeout(LIMIT, client.recv(&mut buffer)).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(said.ends_with(word), "{said}");
            own.push(said[..1].to_string());
        }
        assert_eq!((&own[0], &own[1]), (&own[1], &own[2]), "a flow moved");
        seen.insert(own[0].clone());
    }
    assert_eq!(seen.len(), 2, "all flows went to one target");
}

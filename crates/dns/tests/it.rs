//! The server over real sockets on loopback, with resolvers of the tests' own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dns::{Metrics, Server, ServiceKind, ServiceRecord, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);
const OK: u8 = 0;
const FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

fn zone(names: &[&str]) -> Arc<Zone> {
    let services: Vec<ServiceRecord> = names
        .iter()
        .map(|name| ServiceRecord {
            namespace: "default".into(),
            name: (*name).into(),
            kind: match *name {
                "ext" => ServiceKind::External("example.com".into()),
                _ => ServiceKind::ClusterIp(Ipv4Addr::new(10, 96, 0, 5)),
            },
            ports: vec![],
        })
        .collect();
    Arc::new(Zone::new("cluster.local", Ipv4Addr::new(10, 96, 0, 10), &services))
}

fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// What a resolver says: the question back with one address, or a bare code.
fn reply_to(question: &[u8], last: u8, code: u8, cut: bool) -> Vec<u8> {
    let mut reply = question.to_vec();
    (reply[2], reply[3]) = (0x81 | if cut { 2 } else { 0 }, 0x80 | code);
    if code == OK && !cut {
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, last]);
    }
    reply
}

/// A resolver over UDP: the function makes its replies (none: silence), the counter counts questions.
async fn resolver(reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            for reply in reply(&buffer[..len]) {
                socket.send_to(&reply, client).await.unwrap();
            }
        }
    });
    (address, asked)
}

async fn start(
    names: &[&str],
    upstreams: Vec<SocketAddr>,
) -> (Server, watch::Sender<Arc<Zone>>, Arc<Metrics>) {
    let (sender, receiver) = watch::channel(zone(names));
    let metrics = Arc::new(Metrics::default());
    let bind = ["127.0.0.1:0".parse().unwrap()];
    // (The port that is free for one protocol may be another test's for the other.)
    loop {
        let server = Server::start(&bind, receiver.clone(), upstreams.clone(), Arc::clone(&metrics)).await;
        match server {
            Ok(server) => return (server, sender, metrics),
            Err(error) => assert!(format!("{error:?}").contains("AddrInUse"), "{error:?}"),
        }
    }
}

async fn ask(server: &Server, message: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(message, server.addresses()[0]).await.unwrap();
    let mut buffer = vec![0; 2048];
    let len = timeout(LIMIT, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer.truncate(len);
    assert_eq!(buffer[..2], message[..2], "id");
    assert_eq!(buffer[12..message.len()], message[12..], "question");
    buffer
}

fn code(reply: &[u8]) -> u8 {
    reply[3] & 0xf
}

#[tokio::test]
async fn the_latest_zone_answers_over_udp_and_tcp() {
    let (server, zones, metrics) = start(&["web"], vec![]).await;
    let message = query("web.default.svc.cluster.local");
    let reply = ask(&server, &message).await;
    assert!(code(&reply) == OK && reply.ends_with(&[10, 96, 0, 5]));
    let late = query("late.default.svc.cluster.local");
    assert_eq!(code(&ask(&server, &late).await), NO_SUCH_NAME);
    zones.send(zone(&["web", "late"])).unwrap();
    assert_eq!(code(&ask(&server, &late).await), OK);

    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    for _ in 0..2 {
        stream.write_u16(message.len() as u16).await.unwrap();
        stream.write_all(&message).await.unwrap();
        let mut over_tcp = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut over_tcp).await.unwrap();
        assert_eq!(over_tcp, reply);
    }
    // Nonsense is met with silence or a code and does no harm.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for junk in [&[][..], &[1], &[0xff; 600], &reply] {
        socket.send_to(junk, server.addresses()[0]).await.unwrap();
    }
    assert_eq!(code(&ask(&server, &message).await), OK);
    assert!(metrics.local.load(Ordering::Relaxed) >= 6 && metrics.forwarded.load(Ordering::Relaxed) == 0);
    let address = server.addresses()[0];
    server.stop().await;
    TcpListener::bind(address).await.unwrap();
}

#[tokio::test]
async fn other_names_go_upstream_once() {
    let (upstream, asked) = resolver(|question| {
        // Forgeries first: a wrong id, a wrong question.
        let mut wrong_id = reply_to(question, 66, OK, false);
        wrong_id[0] ^= 1;
        let mut wrong_name = reply_to(question, 66, OK, false);
        wrong_name[13] ^= 1;
        vec![vec![], wrong_id, wrong_name, reply_to(question, 1, OK, false)]
    })
    .await;
    let (server, _zones, metrics) = start(&["ext"], vec![upstream]).await;
    let reply = ask(&server, &query("example.com")).await;
    assert!(code(&reply) == OK && reply.ends_with(&[192, 0, 2, 1]));
    let shouted = ask(&server, &query("EXAMPLE.com")).await;
    assert!(shouted.ends_with(&[192, 0, 2, 1]));
    assert_eq!((asked.load(Ordering::SeqCst), metrics.cached.load(Ordering::Relaxed)), (1, 1));
    // An alias that leads out of the cluster comes with what it leads to.
    let chased = ask(&server, &query("ext.default.svc.cluster.local")).await;
    assert!(code(&chased) == OK && chased[7] == 2 && chased.ends_with(&[192, 0, 2, 1]), "{chased:?}");
    // Names of the cluster stay.
    assert_eq!(code(&ask(&server, &query("nope.cluster.local")).await), NO_SUCH_NAME);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failing_resolver_gives_way() {
    let (failing, _) = resolver(|question| vec![reply_to(question, 0, FAILURE, false)]).await;
    let (silent, silences) = resolver(|_| vec![]).await;
    let (good, _) = resolver(|question| vec![reply_to(question, 2, OK, false)]).await;
    let (server, _zones, _) = start(&[], vec![failing, silent, good]).await;
    for name in ["a.example.com", "b.example.com", "c.example.com"] {
        assert!(ask(&server, &query(name)).await.ends_with(&[192, 0, 2, 2]));
    }
    assert_eq!(silences.load(Ordering::SeqCst), 1, "the good one goes first afterwards");
}

#[tokio::test]
async fn nobody_upstream_is_a_failure_not_a_silence() {
    let (server, _zones, metrics) = start(&[], vec![]).await;
    assert_eq!(code(&ask(&server, &query("example.com")).await), FAILURE);
    let (failing, _) = resolver(|question| vec![reply_to(question, 0, FAILURE, false)]).await;
    let (second, _zones, _) = start(&["ext"], vec![failing]).await;
    assert_eq!(code(&ask(&second, &query("example.com")).await), FAILURE);
    assert_eq!(code(&ask(&second, &query("ext.default.svc.cluster.local")).await), FAILURE);
    assert_eq!(metrics.failed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_cut_answer_is_passed_on_and_asked_again_over_tcp() {
    let (tcp, address, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        if let Ok(udp) = UdpSocket::bind(address).await {
            break (tcp, address, udp);
        }
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((len, client)) = udp.recv_from(&mut buffer).await {
            udp.send_to(&reply_to(&buffer[..len], 0, OK, true), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut question).await.unwrap();
            let reply = reply_to(&question, 3, OK, false);
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    let (server, _zones, _) = start(&["ext"], vec![address]).await;
    let message = query("example.com");
    for _ in 0..2 {
        assert_eq!(ask(&server, &message).await[2] & 2, 2, "cut, and not cached as if it were whole");
    }
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    stream.write_u16(message.len() as u16).await.unwrap();
    stream.write_all(&message).await.unwrap();
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    assert!(reply.ends_with(&[192, 0, 2, 3]));
    assert!(ask(&server, &query("ext.default.svc.cluster.local")).await.ends_with(&[192, 0, 2, 3]));
}

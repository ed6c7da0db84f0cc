//! Names of hosts to addresses: `/etc/hosts`, then the name servers of `/etc/resolv.conf`, by UDP.
//!
//! Ours, because a static binary has no resolver of the C library. IPv4 first; IPv6 when there is no IPv4.
//! Deliberately not here: caching (pulls are rare), TCP (a cut answer still has addresses), DNSSEC.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;

/// One question to one server.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// As the C library: further ones are ignored.
const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 6;
const DATAGRAM_MAX: usize = 4096;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// All addresses of a host; an error says why there is none.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let known = from_hosts(&read("/etc/hosts"), host);
    if !known.is_empty() {
        return Ok(known);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let config = Config::parse(&read("/etc/resolv.conf"));
    let mut why = "no such host".to_string();
    for name in config.names(host) {
        for kind in [TYPE_A, TYPE_AAAA] {
            match ask_all(&config.servers, &name, kind).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => return Ok(found),
                Err(error) => why = error,
            }
        }
    }
    Err(why)
}

fn from_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
    };
    text.lines().filter_map(line).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    dots: usize,
}

impl Config {
    fn parse(text: &str) -> Config {
        let mut config = Config { servers: Vec::new(), search: Vec::new(), dots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let ip: Option<IpAddr> = words.next().and_then(|w| w.parse().ok());
                    config.servers.extend(ip.map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => {
                    config.search = words.take(SEARCH_MAX).map(|w| w.trim_matches('.').to_string()).collect();
                }
                Some("options") => {
                    let dots = words.find_map(|w| w.strip_prefix("ndots:")?.parse().ok());
                    config.dots = dots.unwrap_or(config.dots);
                }
                _ => {}
            }
        }
        config.servers.truncate(SERVERS_MAX);
        config
    }

    /// The names to ask for, in order.
    fn names(&self, host: &str) -> Vec<String> {
        if let Some(absolute) = host.strip_suffix('.') {
            return vec![absolute.into()];
        }
        let mut names: Vec<String> =
            self.search.iter().filter(|s| !s.is_empty()).map(|suffix| format!("{host}.{suffix}")).collect();
        let first = host.matches('.').count() >= self.dots;
        names.insert(if first { 0 } else { names.len() }, host.into());
        names
    }
}

async fn ask_all(servers: &[SocketAddr], name: &str, kind: u16) -> Result<Vec<IpAddr>, String> {
    let mut why = "no name server is configured".to_string();
    for server in servers {
        let asked = tokio::time::timeout(ANSWER_MAX, ask(*server, name, kind)).await;
        match asked {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => why = format!("name server {server}: {error}"),
            Err(_) => why = format!("name server {server}: i/o timeout"),
        }
    }
    Err(why)
}

async fn ask(server: SocketAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    // The hash keys of the standard library are the kernel's random bytes.
    let id = (std::hash::RandomState::new().build_hasher().finish() & 0xffff) as u16;
    let question = question(id, name, kind).ok_or_else(|| io::Error::other("not a host name"))?;
    socket.send(&question).await?;
    let mut answer = vec![0; DATAGRAM_MAX];
    loop {
        let n = socket.recv(&mut answer).await?;
        // What answers another question is not for us.
        if let Some(found) = read_answer(&answer[..n], &question, kind) {
            return found.map_err(io::Error::other);
        }
    }
}

fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        message.push(length);
        message.extend(label.to_ascii_lowercase().bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    (name.len() <= 253).then_some(message)
}

/// The addresses in an answer to `question`; `None` when it is no answer to it.
fn read_answer(message: &[u8], question: &[u8], kind: u16) -> Option<Result<Vec<IpAddr>, String>> {
    let be16 = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let flags = be16(2)?;
    let asked = message.get(12..question.len())?;
    if message[..2] != question[..2] || flags & 0x8000 == 0 || !asked.eq_ignore_ascii_case(&question[12..]) {
        return None;
    }
    match flags & 0xf {
        0 | 3 => {}
        code => return Some(Err(format!("server misbehaving (code {code})"))),
    }
    let (mut at, mut found) = (question.len(), Vec::new());
    for _ in 0..be16(6)? {
        // A cut answer: what came is good.
        let Some((next, ip)) = record(message, at, kind) else { break };
        found.extend(ip);
        at = next;
    }
    Some(Ok(found))
}

/// The record at `at`: where the next one is, and its address if it has the wanted type.
fn record(message: &[u8], mut at: usize, kind: u16) -> Option<(usize, Option<IpAddr>)> {
    loop {
        match *message.get(at)? {
            0 => {
                at += 1;
                break;
            }
            length if length >= 0xc0 => {
                at += 2;
                break;
            }
            length => at += 1 + usize::from(length),
        }
    }
    let head = message.get(at..at + 10)?;
    let data = message.get(at + 10..at + 10 + usize::from(u16::from_be_bytes([head[8], head[9]])))?;
    let ip = match (u16::from_be_bytes([head[0], head[1]]), data.len()) {
        (found, _) if found != kind => None,
        (TYPE_A, 4) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        (TYPE_AAAA, 16) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    };
    Some((at + 10 + data.len(), ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(question: &[u8], code: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = question.to_vec();
        message[2] |= 0x80;
        message[3] = code;
        message[7] = records.len() as u8;
        for (kind, data) in records {
            message.extend([0xc0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 5, 0, data.len() as u8]);
            message.extend(*data);
        }
        message
    }

    #[test]
    fn reads_answers() {
        let asked = question(7, "R.io", TYPE_A).unwrap();
        let good = reply(&asked, 0, &[(5, b"\x01x\0"), (TYPE_A, &[1, 2, 3, 4])]);
        assert_eq!(read_answer(&good, &asked, TYPE_A), Some(Ok(vec![Ipv4Addr::new(1, 2, 3, 4).into()])));
        assert_eq!(read_answer(&good[..good.len() - 2], &asked, TYPE_A), Some(Ok(vec![])));
        assert_eq!(read_answer(&reply(&asked, 3, &[]), &asked, TYPE_A), Some(Ok(vec![])));
        assert!(matches!(read_answer(&reply(&asked, 2, &[]), &asked, TYPE_A), Some(Err(_))));
        let other = question(8, "R.io", TYPE_A).unwrap();
        assert_eq!(read_answer(&good, &other, TYPE_A), None);
        assert_eq!(read_answer(&asked, &asked, TYPE_A), None, "a question is no answer");
        assert!(question(1, "a..b", TYPE_A).is_none() && question(1, &"a.".repeat(200), TYPE_A).is_none());
    }

    #[test]
    fn configuration() {
        let config = Config::parse("search a.b c.\nnameserver 10.0.0.2\nnameserver x\noptions ndots:2 foo\n");
        assert_eq!(config.servers, ["10.0.0.2:53".parse().unwrap()]);
        assert_eq!(config.names("r.io"), ["r.io.a.b", "r.io.c", "r.io"]);
        assert_eq!(config.names("x.r.io"), ["x.r.io", "x.r.io.a.b", "x.r.io.c"]);
        assert_eq!(config.names("r.io."), ["r.io"]);
        let hosts = "127.0.0.1 localhost\n::1 localhost # R.io\n10.0.0.9 x r.io\n";
        assert_eq!(from_hosts(hosts, "R.io"), [IpAddr::from([10, 0, 0, 9])]);
    }

    #[tokio::test]
    async fn asks_a_server() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 512];
            let (n, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&reply(b"xxxxxxxxxxxxxxxxxxxxxx", 0, &[]), from).await.unwrap();
            server.send_to(&reply(&buffer[..n], 0, &[(TYPE_A, &[9, 9, 9, 9])]), from).await.unwrap();
        };
        let servers = [at];
        let (asked, ()) = tokio::join!(ask_all(&servers, "r.io", TYPE_A), serve);
        assert_eq!(asked.unwrap(), [IpAddr::from([9, 9, 9, 9])]);
    }

    proptest! {
        #[test]
        fn survives_any_bytes(tail in proptest::collection::vec(any::<u8>(), 0..200), count in any::<u8>()) {
            let asked = question(7, "r.io", TYPE_A).unwrap();
            let mut message = reply(&asked, 0, &[]);
            message[7] = count;
            message.extend(tail);
            prop_assert!(read_answer(&message, &asked, TYPE_A).is_some());
        }
    }
}

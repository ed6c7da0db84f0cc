//! What a balancer shall do: plain values, comparable.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A name that its maker chose (an ARN, a UID); unique among its kind.
pub type Id = Arc<str>;

/// Everything that a balancer does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sockets and what happens on them.
    pub listeners: Vec<Listener>,
    /// Where requests go.
    pub groups: Vec<Group>,
}

/// What is spoken on a listener or to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and, on listeners, HTTP/2 with prior knowledge.
    Http,
    /// The same over TLS. Targets' certificates are not checked, as ALB does not.
    Https,
    /// Bytes.
    Tcp,
    /// Bytes; TLS ends here.
    Tls,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Are requests seen, or bytes only?
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Https)
    }
    /// Is TLS spoken?
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Tls)
    }
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Name.
    pub id: Id,
    /// Where it listens; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// For TLS: the first is shown to clients whose server name fits none.
    pub certificates: Vec<Certificate>,
    /// In order of priority; the first whose conditions all hold acts.
    pub rules: Vec<Rule>,
    /// When no rule holds. Listeners without HTTP know this one only, and it must be a forward.
    pub default: Action,
    /// A connection without bytes for so long ends.
    pub idle_timeout: Duration,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Host names, `*.example.org` among them.
    pub names: Vec<String>,
    /// PEM, leaf first.
    pub chain: Arc<str>,
    /// PEM.
    pub key: Arc<str>,
}

/// Conditions and what follows when all of them hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What is done.
    pub action: Action,
}

/// A test of a request; patterns know `*` (any text) and `?` (one character).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The host name without port, in any case.
    Host(Vec<String>),
    /// The path.
    Path(Vec<String>),
    /// The path begins with one of these at a segment's border (Kubernetes' `Prefix`).
    PathPrefix(Vec<String>),
    /// A header's value, in any case.
    Header(String, Vec<String>),
    /// The method, exactly.
    Method(Vec<String>),
    /// A parameter (any name when `None`) and its value.
    Query(Vec<(Option<String>, String)>),
    /// The client's address.
    Source(Vec<Cidr>),
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Any address in it.
    pub address: IpAddr,
    /// Bits that count.
    pub prefix: u8,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To one of several groups.
    Forward(Forward),
    /// Elsewhere.
    Redirect(Redirect),
    /// A fixed answer.
    Fixed(Fixed),
}

/// Groups by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Group and weight; weight 0 gets nothing.
    pub groups: Vec<(Id, u32)>,
    /// A client stays with its group for so long.
    pub stickiness: Option<Duration>,
}

/// A redirect; `#{protocol}`, `#{host}`, `#{port}`, `#{path}`, `#{query}` stand for the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301 or 302.
    pub status: u16,
    /// `HTTPS`.
    pub protocol: String,
    /// Host name.
    pub host: String,
    /// Port.
    pub port: String,
    /// With its leading slash.
    pub path: String,
    /// Without the question mark.
    pub query: String,
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// HTTP status.
    pub status: u16,
    /// `text/plain`.
    pub content_type: String,
    /// At most 1 KiB on AWS; not checked here.
    pub body: String,
}

/// How a target is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// In turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastOutstanding,
}

/// A target group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub id: Id,
    /// What targets speak.
    pub protocol: Protocol,
    /// Who serves.
    pub targets: Vec<Target>,
    /// How health is found out; `None` takes all targets for healthy.
    pub check: Option<Check>,
    /// How one is chosen.
    pub algorithm: Algorithm,
    /// A client stays with its target for so long.
    pub stickiness: Option<Duration>,
    /// A new healthy target's share grows over this time.
    pub slow_start: Duration,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name, unique in its group.
    pub id: Id,
    /// Where it listens.
    pub address: SocketAddr,
    /// Gets nothing new; what is under way goes on until the target leaves the configuration.
    pub draining: bool,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// HTTP and HTTPS ask; TCP and TLS connect.
    pub protocol: Protocol,
    /// Another port than the traffic's.
    pub port: Option<u16>,
    /// With its leading slash.
    pub path: String,
    /// Statuses that are well, as inclusive ranges.
    pub matcher: Vec<(u16, u16)>,
    /// From the start of one check to the next.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy target healthy.
    pub healthy_threshold: u32,
    /// Failures in a row that make a healthy target unhealthy.
    pub unhealthy_threshold: u32,
}

impl Cidr {
    /// Is the address in the range? IPv4 addresses written as IPv6 count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip.to_canonical() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let ((own, width), (other, other_width)) = (bits(self.address), bits(address));
        let prefix = u32::from(self.prefix).min(width);
        width == other_width && (prefix == 0 || (own ^ other) >> (128 - prefix) == 0)
    }
}

impl std::str::FromStr for Cidr {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let prefix: u8 = prefix.parse().map_err(|_| ())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= width).then_some(Cidr { address, prefix }).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses() {
        let range: Cidr = "10.1.0.0/16".parse().unwrap();
        assert!(range.contains("10.1.255.3".parse().unwrap()));
        assert!(range.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(!range.contains("10.2.0.1".parse().unwrap()) && !range.contains("::1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err() && "10.0.0.0".parse::<Cidr>().is_err());
    }
}

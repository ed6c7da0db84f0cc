//! What an API server is made from: everything it would otherwise take from the process.
//!
//! Clock and random come in here so that a simulator can own them. The traits are the seams to parts that
//! other crates provide: node connections, checks of tokens.

use crate::authz::{Authorizer, Step};
use async_trait::async_trait;
use auth::{Identity, ServiceTokens};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use store::Store;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Opens connections to the agents' own servers (kubelet port), already authenticated as the API server.
#[async_trait]
pub trait NodeDialer: Send + Sync + 'static {
    /// A connection on which HTTP/1.1 to that node's agent can begin.
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn Duplex>>;
}

/// Checks bearer tokens.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Whose token this is; `None` when it is nobody's.
    async fn authenticate(&self, token: &str) -> Option<Identity>;
}

/// Looks up hosts outside the cluster, for webhooks that are given by URL.
#[async_trait]
pub trait NameResolver: Send + Sync + 'static {
    /// The addresses of a host; the error is a sentence.
    async fn resolve(&self, host: &str) -> Result<Vec<std::net::IpAddr>, String>;
}

/// Where the paths of [`Door`] begin.
pub const DOOR: &str = "/gantry/";

/// What the cluster's own nodes and servers ask each other beside Kubernetes' API: `POST /gantry/…`, JSON both ways.
/// Callers are authenticated as always; what they may do the door says, no role does.
#[async_trait]
pub trait Door: Send + Sync + 'static {
    /// Answers what `caller` asks at a path, which is without [`DOOR`].
    async fn answer(
        &self,
        caller: &Identity,
        path: &str,
        input: serde_json::Value,
    ) -> Result<serde_json::Value, machinery::status::ApiError>;
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Range {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

impl Ipv4Range {
    /// Parses `10.96.0.0/16`; the address is masked to the network.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let mask = u32::MAX.checked_shl(32u32.checked_sub(prefix.into())?).unwrap_or(0);
        Some(Ipv4Range { network: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }

    /// First and last usable address as numbers (network and broadcast address left out).
    pub fn usable(&self) -> (u32, u32) {
        let first = u32::from(self.network);
        let size = 1u64 << (32 - u64::from(self.prefix.min(32)));
        let last = u64::from(first) + size - 1;
        (first.saturating_add(1), (last.saturating_sub(1)) as u32)
    }
}

/// Everything an [`crate::Api`] is made from.
#[derive(Clone)]
pub struct ApiConfig {
    /// The realm: first segment of every key.
    pub realm: String,
    /// Where objects are.
    pub store: Arc<dyn Store>,
    /// Range of cluster IPs. Its first address becomes the `kubernetes` service's.
    pub service_cidr: Ipv4Range,
    /// The cluster DNS service's address: never given to another service unasked.
    pub cluster_dns_ip: Ipv4Addr,
    /// Ports of NodePort services.
    pub node_ports: RangeInclusive<u16>,
    /// Where clients inside the cluster reach this server: the `kubernetes` service's endpoint. `None`: no such
    /// service is made.
    pub advertise: Option<(Ipv4Addr, u16)>,
    /// Now.
    pub clock: Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>,
    /// 128 random bits at each call.
    pub random: Arc<dyn Fn() -> u128 + Send + Sync>,
    /// Decides who may do what in place of the usual: superusers' group, nodes, RBAC.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// Checks bearer tokens that are no service account's.
    pub authenticator: Option<Arc<dyn TokenAuthenticator>>,
    /// Signs and checks service-account tokens. Without it there are none: pods are admitted without looking at
    /// their account, and get no token volume.
    pub service_tokens: Option<Arc<ServiceTokens>>,
    /// Connections to agents, for logs, exec, attach, port-forward.
    pub nodes: Option<Arc<dyn NodeDialer>>,
    /// Addresses of hosts outside the cluster. Without it webhooks are reached by service or by address only.
    pub resolver: Option<Arc<dyn NameResolver>>,
    /// The identity for extension servers, and the authority of those who may speak for others here. Without it
    /// extension servers are not shown who we are.
    pub front_proxy: Option<crate::FrontProxy>,
    /// Which requests without credentials are the anonymous user's.
    pub anonymous: crate::Anonymous,
    /// Who has a say about access, in order.
    pub authorization: Vec<Step>,
    /// Which requests are recorded, and where; `None`: none.
    pub audit: Option<crate::AuditConfig>,
    /// More lines for `/metrics` (the store's own figures), each ending in a line feed.
    pub more_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What answers nodes and other servers; `None`: nothing does.
    pub door: Option<Arc<dyn Door>>,
    /// Which admission plug-ins run.
    pub plugins: crate::Plugins,
    /// Must pods fit a PodSecurityPolicy, as before 1.25?
    pub pod_security_policy: bool,
    /// Serve group versions that Kubernetes has removed (`extensions/v1beta1` …)?
    pub legacy: bool,
    /// The machine's name, for the Lease by which other servers know this one; "": it has none.
    pub host: String,
    /// Which features are on.
    pub gates: k8s_schema::Gates,
    /// What `/flagz` tells: settings by name, without secrets.
    pub flags: Arc<BTreeMap<String, String>>,
}

impl ApiConfig {
    /// The defaults over a store: system clock and random, `10.96.0.0/16`, no seams wired.
    pub fn new(realm: impl Into<String>, store: Arc<dyn Store>) -> Self {
        ApiConfig {
            realm: realm.into(),
            store,
            service_cidr: Ipv4Range { network: Ipv4Addr::new(10, 96, 0, 0), prefix: 16 },
            cluster_dns_ip: Ipv4Addr::new(10, 96, 0, 10),
            node_ports: 30000..=32767,
            advertise: None,
            clock: Arc::new(jiff::Timestamp::now),
            random: Arc::new(|| uuid::Uuid::new_v4().as_u128()),
            authorizer: None,
            authenticator: None,
            service_tokens: None,
            nodes: None,
            resolver: None,
            front_proxy: None,
            anonymous: crate::Anonymous::default(),
            authorization: vec![Step::Node, Step::Rbac],
            audit: None,
            more_metrics: Arc::new(String::new),
            door: None,
            plugins: crate::Plugins::default(),
            pod_security_policy: false,
            legacy: true,
            host: String::new(),
            gates: k8s_schema::Gates::default(),
            flags: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = Ipv4Range::parse("10.96.3.0/16").unwrap();
        assert_eq!(range.network, Ipv4Addr::new(10, 96, 0, 0));
        let (first, last) = range.usable();
        assert_eq!(Ipv4Addr::from(first), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(Ipv4Addr::from(last), Ipv4Addr::new(10, 96, 255, 254));
        assert!(Ipv4Range::parse("10.0.0.0/33").is_none());
        assert!(Ipv4Range::parse("10.0.0.0").is_none());
    }
}

//! What the load balancers' controller sees: the objects as documents, by what names them. Pure.

use ecs_model::doc::Doc;
use machinery::kinds::get::{list, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A certificate of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// DNS names it is good for.
    pub names: Vec<String>,
    /// PEM.
    pub chain: String,
    /// PEM.
    pub key: String,
}

/// Everything that counts.
#[derive(Default)]
pub struct World {
    /// By ARN.
    pub balancers: BTreeMap<String, Arc<Doc>>,
    /// By ARN.
    pub groups: BTreeMap<String, Arc<Doc>>,
    /// By ARN.
    pub listeners: BTreeMap<String, Arc<Doc>>,
    /// Rules, any order.
    pub rules: Vec<Arc<Doc>>,
    /// Addresses of nodes by instance id.
    pub nodes: BTreeMap<String, Ipv4Addr>,
    /// By the Secret's name.
    pub certificates: BTreeMap<String, Pair>,
}

impl World {
    /// The documents by the member of their spec that holds the ARN.
    pub fn by_arn(documents: impl Iterator<Item = Arc<Doc>>, member: &str) -> BTreeMap<String, Arc<Doc>> {
        let named = documents.filter_map(|d| Some((d.spec()[member].as_str()?.to_string(), d)));
        named.collect()
    }

    /// Rules of a listener, the most important first.
    pub fn rules_of(&self, listener: &str) -> Vec<&Value> {
        let own = self.rules.iter().map(|d| d.spec()).filter(|r| text(r, "/ListenerArn") == listener);
        let mut out: Vec<&Value> = own.collect();
        out.sort_by_key(|r| text(r, "/Priority").parse::<u32>().unwrap_or(u32::MAX));
        out
    }

    /// The groups that listeners of present load balancers forward to.
    pub fn used(&self) -> BTreeSet<&str> {
        let mut out = BTreeSet::new();
        for (arn, listener) in &self.listeners {
            if !self.balancers.contains_key(text(listener.spec(), "/LoadBalancerArn")) {
                continue;
            }
            let rules = self.rules_of(arn);
            let actions = rules.iter().flat_map(|r| list(r, "/Actions"));
            for action in list(listener.spec(), "/DefaultActions").iter().chain(actions) {
                let groups = list(action, "/ForwardConfig/TargetGroups");
                out.extend(groups.iter().map(|g| text(g, "/TargetGroupArn")));
            }
        }
        out
    }

    /// Where a target of a group listens; `None`: nowhere that we know.
    pub fn address(&self, group: &Value, target: &Value) -> Option<std::net::SocketAddr> {
        let id = text(target, "/id");
        let ip = match text(group, "/TargetType") {
            "instance" => *self.nodes.get(id)?,
            _ => id.parse().ok()?,
        };
        let port = target["port"].as_u64().and_then(|p| u16::try_from(p).ok())?;
        Some((ip, port).into())
    }
}

/// The name of a target inside its group.
pub fn target_name(target: &Value) -> String {
    format!("{}:{}", text(target, "/id"), target["port"])
}

/// An attribute, or its default.
pub fn attribute<'a>(spec: &'a Value, key: &str, default: &'a str) -> &'a str {
    spec["Attributes"][key].as_str().unwrap_or(default)
}

/// An attribute in seconds.
pub fn seconds(spec: &Value, key: &str, default: u64) -> std::time::Duration {
    let value = spec["Attributes"][key].as_str().and_then(|v| v.parse().ok());
    std::time::Duration::from_secs(value.unwrap_or(default))
}

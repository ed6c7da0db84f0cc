//! Load balancers at work: objects in, the configuration of one [`lb::Balancer`] out; its health back into their status.
//!
//! Each load balancer listens at an address of its own, and at the node's where the port is free there (`places`). It
//! is `active` when all of its listeners are bound, `failed` while one is not: that is tried again. Who uses no load
//! balancer pays for two watches. Computing (`config`, `health`, `places`) is pure; this file watches, applies and writes what differs.
//! Deliberately not here: what requests may say (`aws-server`), sockets (`lb`).

mod config;
mod health;
mod places;
mod world;

pub use places::Settings;

use crate::gone_is_fine;
use crate::service::act::difference;
use client::cache::Cache;
use client::{ApiClient, ListOptions, Object, ObjectKey};
use ecs_model::doc::Doc;
use ecs_model::names::AWS_NAMESPACE;
use ecs_model::targets::instance_id;
use jiff::Timestamp;
use k8s_schema::Gvr;
use k8s_schema::gvr::{ELB_LISTENERS, ELB_LOAD_BALANCERS, ELB_RULES, ELB_TARGET_GROUPS, NODES, SECRETS};
use lb::Balancer;
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use parking_lot::Mutex;
use places::{DATAGRAMS, Places};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use world::{Pair, World};

/// Changes within this time share one look.
const COALESCE: Duration = Duration::from_millis(2);
/// Between two looks while somebody drains: idle targets go that soon.
const DRAINING: Duration = Duration::from_millis(100);
/// Between two tries of a listener that cannot be bound, or of a status that was not written.
const AGAIN: Duration = Duration::from_secs(2);

/// Makes the host have exactly these of the pool's addresses; what went wrong, in words.
pub type Hold = Arc<dyn Fn(&BTreeSet<Ipv4Addr>) -> Result<(), String> + Send + Sync>;

/// What the listeners of this process count; nothing while none runs.
#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<Weak<Balancer>>>);

impl Figures {
    /// As Prometheus text.
    pub fn text(&self) -> String {
        self.0.lock().upgrade().map(|b| b.metrics()).unwrap_or_default()
    }
}

/// The running controller with its listeners; they stop when this is dropped.
pub struct LoadBalancers(JoinHandle<()>);

impl Drop for LoadBalancers {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LoadBalancers {
    /// Starts it; `hold` makes this host have exactly these addresses of the pool, `figures` is there to be asked.
    pub fn start(
        client: ApiClient,
        (settings, hold, figures): (Settings, Hold, Figures),
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> LoadBalancers {
        LoadBalancers(client::work::spawn(async move {
            let of = |gvr| Cache::start(client.clone(), gvr, in_aws());
            let (balancers, groups) = (of(ELB_LOAD_BALANCERS), of(ELB_TARGET_GROUPS));
            let (mut a, mut b) = (balancers.changed(), groups.changed());
            while balancers.is_empty() && groups.is_empty() {
                tokio::select! { _ = a.changed() => {}, _ = b.changed() => {} }
            }
            let views = Views {
                listeners: of(ELB_LISTENERS),
                rules: of(ELB_RULES),
                secrets: of(SECRETS),
                nodes: Cache::start(client.clone(), NODES, ListOptions::default()),
                balancers,
                groups,
            };
            let (balancer, held) = (Arc::new(Balancer::default()), Mutex::default());
            *figures.0.lock() = Arc::downgrade(&balancer);
            Controller { client, views, settings, hold, held, balancer, clock }.run().await;
        }))
    }
}

fn in_aws() -> ListOptions {
    ListOptions { namespace: Some(AWS_NAMESPACE.into()), ..ListOptions::default() }
}

struct Views {
    balancers: Arc<Cache>,
    groups: Arc<Cache>,
    listeners: Arc<Cache>,
    rules: Arc<Cache>,
    secrets: Arc<Cache>,
    nodes: Arc<Cache>,
}

impl Views {
    fn all(&self) -> [&Arc<Cache>; 6] {
        [&self.balancers, &self.groups, &self.listeners, &self.rules, &self.secrets, &self.nodes]
    }

    fn world(&self) -> World {
        let docs = |cache: &Cache| cache.list().into_iter().filter_map(|o| o.view::<Doc>().ok());
        World {
            balancers: World::by_arn(docs(&self.balancers), "LoadBalancerArn"),
            groups: World::by_arn(docs(&self.groups), "TargetGroupArn"),
            listeners: World::by_arn(docs(&self.listeners), "ListenerArn"),
            rules: docs(&self.rules).collect(),
            nodes: self.nodes.list().iter().filter_map(|o| node(o)).collect(),
            certificates: self.secrets.list().iter().filter_map(|o| certificate(o)).collect(),
        }
    }
}

/// A node's instance id and address.
fn node(object: &Object) -> Option<(String, Ipv4Addr)> {
    let node = object.view::<Doc>().ok()?;
    let addresses = list(node.status(), "/addresses");
    let internal = addresses.iter().find(|a| text(a, "/type") == "InternalIP")?;
    Some((instance_id(object.uid()), text(internal, "/address").parse().ok()?))
}

/// A Secret's name and the pair in it.
fn certificate(object: &Object) -> Option<(String, Pair)> {
    use base64::Engine;
    let secret = object.view::<Doc>().ok()?;
    if text(&secret.0, "/type") != "kubernetes.io/tls" {
        return None;
    }
    let member = |name: &str| {
        let bytes = base64::prelude::BASE64_STANDARD.decode(secret.0["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let (chain, key) = (member("tls.crt")?, member("tls.key")?);
    Some((object.key.name.to_string(), Pair { names: dns_names(&chain), chain, key }))
}

/// The DNS names of a chain's first certificate.
fn dns_names(chain: &str) -> Vec<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, parse_x509_pem};
    let Ok((_, pem)) = parse_x509_pem(chain.as_bytes()) else { return Vec::new() };
    let Ok((_, certificate)) = X509Certificate::from_der(&pem.contents) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |n: &GeneralName<'_>| match n {
        GeneralName::DNSName(name) => Some(name.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

struct Controller {
    client: ApiClient,
    views: Views,
    settings: Settings,
    hold: Hold,
    /// What `hold` did last.
    held: Mutex<BTreeSet<Ipv4Addr>>,
    balancer: Arc<Balancer>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Controller {
    async fn run(self) {
        for cache in self.views.all() {
            cache.wait_synced().await;
        }
        let mut changes: Vec<_> = self.views.all().iter().map(|c| c.changed()).collect();
        let mut healths = self.balancer.changes();
        loop {
            changes.iter_mut().for_each(|c| drop(c.borrow_and_update()));
            healths.borrow_and_update();
            let again = self.step().await;
            let changed = futures_util::future::select_all(changes.iter_mut().map(|c| Box::pin(c.changed())));
            let late = async {
                match again {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { _ = changed => {}, _ = healths.changed() => {}, () = late => {} }
            tokio::time::sleep(COALESCE).await;
        }
    }

    /// One look at everything; says when to look again though nothing changes.
    async fn step(&self) -> Option<Duration> {
        let world = self.views.world();
        let now_ms = (self.clock)().as_millisecond();
        let draining = health::draining(&world, &health::seen(self.balancer.health()), now_ms);
        let places = places::places(&world, &self.settings);
        self.hold(&places).await;
        let config = config::config(&world, &draining, &places, self.settings.bind);
        let outcome = self.balancer.apply(&config);
        let failures: BTreeMap<String, String> = outcome
            .iter()
            .filter_map(|(id, r)| Some((id.to_string(), r.as_ref().err()?.to_string())))
            .collect();
        let seen = health::seen(self.balancer.health());
        let mut again = (!draining.is_empty()).then_some(DRAINING);
        if !failures.is_empty() {
            again = again.or(Some(AGAIN));
        }
        let targets = health::statuses(&world, &draining, &seen);
        let targets = targets.into_iter().map(|(arn, targets)| (arn, json!({"targets": targets})));
        let states = states(&world, &failures, &places, self.settings.told);
        let written = [
            self.write(&ELB_TARGET_GROUPS, &self.views.groups, &world.groups, targets.collect()).await,
            self.write(&ELB_LOAD_BALANCERS, &self.views.balancers, &world.balancers, states).await,
        ];
        for error in written.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "a load balancer's state was not written");
            again = again.or(Some(AGAIN));
        }
        again
    }

    /// Makes the host have the addresses.
    async fn hold(&self, places: &Places) {
        let wanted: BTreeSet<Ipv4Addr> = places.own.values().copied().collect();
        if self.settings.pool.is_none() || *self.held.lock() == wanted {
            return;
        }
        let (hold, asked) = (self.hold.clone(), wanted.clone());
        match tokio::task::spawn_blocking(move || hold(&asked)).await {
            Ok(Ok(())) => *self.held.lock() = wanted,
            Ok(Err(error)) => tracing::warn!(error, "load balancers lack their addresses"),
            Err(error) => tracing::warn!(%error, "load balancers lack their addresses"),
        }
    }

    /// Writes the statuses that differ.
    async fn write(
        &self,
        gvr: &Gvr,
        cache: &Cache,
        present: &BTreeMap<String, Arc<Doc>>,
        wanted: BTreeMap<String, Value>,
    ) -> Result<(), ApiError> {
        for (arn, status) in wanted {
            let Some(doc) = present.get(&arn).filter(|d| *d.status() != status) else { continue };
            let key = ObjectKey::new(AWS_NAMESPACE, text(&doc.0, "/metadata/name"));
            let patch = json!({"status": difference(doc.status(), &status)});
            let written = gone_is_fine(self.client.merge_patch_status(gvr, &key, patch).await)?;
            written.into_iter().for_each(|object| cache.observe(object));
        }
        Ok(())
    }
}

/// The status of every load balancer, by what its listeners came to. That one has a port of its own at the node's
/// address is a favour: without it nothing has failed.
fn states(
    world: &World,
    failures: &BTreeMap<String, String>,
    places: &Places,
    node: Ipv4Addr,
) -> BTreeMap<String, Value> {
    let of = |arn: &String| {
        let own = failures.iter().find(|(socket, _)| {
            let listener = world.listeners.get(socket.trim_end_matches(DATAGRAMS));
            listener.is_some_and(|l| text(l.spec(), "/LoadBalancerArn") == arn)
        });
        let state = match own {
            _ if places.homeless.contains(arn) => {
                json!({"Code": "failed", "Reason": "no address is left (--elb-pool)"})
            }
            None => json!({"Code": "active"}),
            Some((_, why)) => json!({"Code": "failed", "Reason": why}),
        };
        let address = places.own.get(arn).copied().unwrap_or(node);
        (arn.clone(), json!({"State": state, "Address": address, "NodeAddress": node}))
    };
    world.balancers.keys().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load balancer with a listener and two rules, a group in use and one that is not.
    pub fn world() -> World {
        let docs = |values: Vec<Value>, member: &str| {
            World::by_arn(values.into_iter().map(|spec| Arc::new(Doc(json!({"spec": spec})))), member)
        };
        let forward = json!([{"Type": "forward", "ForwardConfig": {"TargetGroups": [
            {"TargetGroupArn": "g", "Weight": 1}], "TargetGroupStickinessConfig": {"Enabled": false}}}]);
        let rules = [
            json!({"ListenerArn": "l", "Priority": "10", "Conditions": [
                {"Field": "host-header", "HostHeaderConfig": {"Values": ["old"]}}],
                "Actions": [{"Type": "redirect", "RedirectConfig": {"StatusCode": "HTTP_301", "Port": "443"}}]}),
            json!({"ListenerArn": "l", "Priority": "9", "Conditions": [
                {"Field": "path-pattern", "PathPatternConfig": {"Values": ["/a/*"]}}],
                "Actions": [{"Type": "fixed-response", "FixedResponseConfig": {"StatusCode": "404"}}]}),
        ];
        let group = |arn: &str| {
            json!({"TargetGroupArn": arn, "Protocol": "HTTP", "TargetType": "ip", "HealthCheckProtocol": "HTTP",
                "HealthCheckPort": "traffic-port", "HealthCheckIntervalSeconds": 7, "Matcher": {"HttpCode": "200-299"},
                "Attributes": {"deregistration_delay.timeout_seconds": "9"},
                "targets": [{"id": "10.0.0.1", "port": 80}]})
        };
        World {
            balancers: docs(
                vec![json!({"LoadBalancerArn": "b", "Attributes": {"idle_timeout.timeout_seconds": "5"}})],
                "LoadBalancerArn",
            ),
            listeners: docs(
                vec![json!({"ListenerArn": "l", "LoadBalancerArn": "b", "Port": 8080, "Protocol": "HTTP",
                    "DefaultActions": forward})],
                "ListenerArn",
            ),
            rules: rules.into_iter().map(|spec| Arc::new(Doc(json!({"spec": spec})))).collect(),
            groups: docs(vec![group("g"), group("unused")], "TargetGroupArn"),
            ..World::default()
        }
    }

    #[test]
    fn a_taken_port_is_a_failed_load_balancer() {
        let at = Ipv4Addr::LOCALHOST;
        let state = |failed: &str| {
            let failures = BTreeMap::from([(failed.to_string(), "taken".to_string())]);
            states(&world(), &failures, &Places::default(), at)["b"]["State"].clone()
        };
        assert_eq!(state("l@node"), json!({"Code": "active"}));
        assert_eq!(state("l@udp"), json!({"Code": "failed", "Reason": "taken"}));
        assert_eq!(state("l"), json!({"Code": "failed", "Reason": "taken"}));
    }
}

//! Does a pod that was bound to this node fit on it? The kubelet's admission, in its words. Pure.
//!
//! Asked once for a pod of which nothing is on the node yet: who forces `nodeName` goes around the scheduler, and the
//! scheduler may be late. A pod that does not fit is Failed; its owner makes another.
//! A critical pod that only lacks room gets it ([`room`]).

mod room;

pub use room::{Occupant, Ruling, rule};

use crate::config::sandbox::sysctl_objection;
use crate::config::security::{Unlabelled, apparmor, unlabelled};
use crate::eviction::Pressure;
use crate::facts::NodeFacts;
use crate::pod::{PodView, Qos};
use crate::state::{Refusal, Verdict};
use crate::status::RESIZING;
use k8s_openapi::api::core::v1::PodCondition;
use sched::{Basis, NodeSpec, PodInfo, Resources, Taint};
use std::collections::BTreeSet;

/// Pods of this priority and above are critical to the node.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
const ANY_ADDRESS: &str = "0.0.0.0";

/// A port of the node: protocol, address, number.
type HostPort = (String, String, i32);

/// What a pod takes of the node.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// What it asks for.
    pub requests: Resources,
    ports: Vec<HostPort>,
}

impl Claim {
    /// Reads a pod.
    pub fn of(pod: &PodView) -> Claim {
        let all = pod.containers.iter().flat_map(|c| c.spec.ports.iter().flatten());
        let ports = all.filter_map(|p| {
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or(ANY_ADDRESS.into());
            let protocol = p.protocol.clone().unwrap_or("TCP".into());
            p.host_port.filter(|port| *port > 0).map(|port| (protocol, address, port))
        });
        Claim { requests: sched::of_pod(pod.spec(), Basis::Asked), ports: ports.collect() }
    }

    /// Of a pod that an agent before this one let in: it has what it had where a resize was not granted.
    pub fn had(pod: &PodView) -> Claim {
        let waits = |c: &PodCondition| c.type_ == RESIZING[0] && c.status == "True";
        let status = pod.pod.status.as_ref();
        let waiting = status.filter(|s| s.conditions.iter().flatten().any(waits));
        let requests = waiting.map(|status| sched::of_pod(pod.spec(), Basis::Had(status)));
        let asked = Claim::of(pod);
        Claim { requests: requests.unwrap_or(asked.requests), ports: asked.ports }
    }
}

/// The node that a pod is to be put on.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Its amounts.
    pub facts: &'a NodeFacts,
    /// Labels, taints and extended resources, once the API has told.
    pub node: Option<&'a NodeSpec>,
    /// What it is short of.
    pub pressure: &'a BTreeSet<Pressure>,
    /// What the pods that are there take.
    pub others: &'a [&'a Claim],
    /// Does its kernel confine by AppArmor?
    pub apparmor: bool,
    /// By SELinux?
    pub selinux: bool,
}

fn rejected(reason: impl Into<String>, message: String) -> Verdict {
    Verdict { rejected: true, reason: reason.into(), message, grace: 0 }
}

/// Is the pod critical to its node?
pub fn is_critical(pod: &PodView) -> bool {
    pod.spec().priority.unwrap_or(0) >= CRITICAL_PRIORITY
}

/// The first objection, in the kubelet's order; `None`: the pod may run.
pub fn objection(pod: &PodView, claim: &Claim, place: &Place) -> Option<Verdict> {
    let info = PodInfo::read(&pod.pod);
    pressed(pod, &info, place.pressure)
        .or_else(|| {
            Some(rejected("SysctlForbidden", format!("forbidden sysctl: {}", sysctl_objection(pod)?)))
        })
        .or_else(|| not_its_kind(pod, place))
        .or_else(|| short_of(claim, place))
        .or_else(|| unfit(claim, &info, place))
}

/// What this kind of node cannot do for a pod.
fn not_its_kind(pod: &PodView, place: &Place) -> Option<Verdict> {
    if pod.spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        let words = "Failed to admit pod as the OS field doesn't match node OS";
        return Some(rejected("PodOSNotSupported", words.into()));
    }
    let confined = pod.containers.iter().any(|c| apparmor(pod, c).is_some_and(|p| p.type_ != "Unconfined"));
    let words = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
    if confined && !place.apparmor {
        return Some(rejected("AppArmor", words.into()));
    }
    match unlabelled(pod).filter(|_| !place.selinux)? {
        Unlabelled::Words => None,
        Unlabelled::Domain(domain) => {
            let words = format!("Cannot enforce SELinux type {domain:?}: SELinux is not enabled on the host");
            Some(rejected("SELinux", words))
        }
    }
}

/// A node under pressure takes critical pods; short of memory alone, also those that ask for an amount.
fn pressed(pod: &PodView, info: &PodInfo, pressure: &BTreeSet<Pressure>) -> Option<Verdict> {
    if pressure.is_empty() || is_critical(pod) {
        return None;
    }
    let taint = Taint { key: MEMORY_PRESSURE.into(), value: String::new(), effect: "NoSchedule".into() };
    let memory_alone = pressure.len() == 1 && pressure.contains(&Pressure::Memory);
    if memory_alone && (pod.qos() != Qos::BestEffort || info.tolerates(&taint)) {
        return None;
    }
    let names: Vec<&str> = pressure.iter().map(|p| p.condition()).collect();
    Some(rejected("Evicted", format!("The node had condition: [{}]. ", names.join(" "))))
}

/// An amount that the node has not left.
struct Shortage<'a> {
    name: &'a str,
    asked: i64,
    used: i64,
    capacity: i64,
}

/// All shortages, in the kubelet's order.
fn shortages<'a>(claim: &'a Claim, place: &Place) -> impl Iterator<Item = Shortage<'a>> + use<'a> {
    let mut used = Resources::default();
    place.others.iter().for_each(|other| used.add(&other.requests));
    let asked = &claim.requests;
    let facts = place.facts;
    let pods = i64::try_from(place.others.len()).unwrap_or(i64::MAX);
    let mut rows = vec![
        ("pods", 1, pods, i64::from(facts.max_pods)),
        ("cpu", asked.milli_cpu, used.milli_cpu, facts.cpu_milli),
        ("memory", asked.memory_bytes, used.memory_bytes, facts.memory_bytes),
        ("ephemeral-storage", asked.ephemeral_bytes, used.ephemeral_bytes, facts.storage_bytes),
    ];
    let known = place.node.map(|n| &n.allocatable.extended);
    for (name, amount) in &asked.extended {
        // What this node never had is nobody's shortage (upstream leaves it out as well).
        if let Some(capacity) = known.and_then(|k| k.get(name)) {
            rows.push((name, *amount, used.extended.get(name).copied().unwrap_or(0), *capacity));
        }
    }
    rows.into_iter()
        .filter(|(_, asked, used, capacity)| *asked > 0 && *asked > capacity - used)
        .map(|(name, asked, used, capacity)| Shortage { name, asked, used, capacity })
}

fn short_of(claim: &Claim, place: &Place) -> Option<Verdict> {
    let Shortage { name, asked, used, capacity } = shortages(claim, place).next()?;
    let text = format!(
        "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
    );
    Some(rejected(format!("OutOf{name}"), text))
}

/// Why a pod may not grow to what it asks for now; `None`: it may.
pub fn resize_refusal(asked: &Claim, facts: &NodeFacts, others: &[&Claim]) -> Option<Refusal> {
    let mut used = Resources::default();
    others.iter().for_each(|other| used.add(&other.requests));
    let rows = [
        ("memory", asked.requests.memory_bytes, used.memory_bytes, facts.memory_bytes),
        ("cpu", asked.requests.milli_cpu, used.milli_cpu, facts.cpu_milli),
    ];
    let never = rows.iter().find(|(_, asked, _, capacity)| asked > capacity);
    if let Some((name, asked, _, capacity)) = never {
        let message =
            format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}");
        return Some(Refusal { reason: "Infeasible", message });
    }
    let (name, asked, used, capacity) =
        rows.into_iter().find(|(_, asked, used, capacity)| *asked > 0 && *asked > capacity - used)?;
    let message = format!(
        "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
    );
    Some(Refusal { reason: "Deferred", message })
}

fn unfit(claim: &Claim, info: &PodInfo, place: &Place) -> Option<Verdict> {
    let unfit = |name: &str, why: &str| Some(rejected(name, format!("Predicate {name} failed: {why}")));
    if place.node.is_some_and(|node| !info.selects_node(node)) {
        return unfit("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let taken = |port: &HostPort| place.others.iter().flat_map(|o| &o.ports).any(|held| collide(held, port));
    if claim.ports.iter().any(taken) {
        return unfit("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let driven = |t: &&Taint| t.effect == "NoExecute" && !info.tolerates(t);
    if place.node.is_some_and(|node| node.taints.iter().any(|t| driven(&t))) {
        return unfit("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    None
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == ANY_ADDRESS || b.1 == ANY_ADDRESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::facts;
    use crate::pod::tests::pod;
    use serde_json::{Value, json};

    fn view(more: Value) -> PodView {
        let mut spec = json!({"containers": [{"name": "a", "image": "i"}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        pod(spec)
    }

    fn asking(resources: Value) -> PodView {
        view(json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": resources}}]}))
    }

    fn port(ip: &str, port: u16) -> PodView {
        let port = json!({"containerPort": 1, "hostPort": port, "hostIP": ip});
        view(json!({"containers": [{"name": "a", "image": "i", "ports": [port]}]}))
    }

    fn said(
        pod: &PodView,
        others: &[PodView],
        node: Option<&NodeSpec>,
        pressure: &[Pressure],
    ) -> (String, String) {
        let claims: Vec<Claim> = others.iter().map(Claim::of).collect();
        let (others, pressure) = (claims.iter().collect::<Vec<_>>(), pressure.iter().copied().collect());
        let facts = facts(std::path::Path::new("/"));
        let place = Place {
            facts: &facts,
            node,
            pressure: &pressure,
            others: &others,
            apparmor: false,
            selinux: false,
        };
        objection(pod, &Claim::of(pod), &place).map(|v| (v.reason, v.message)).unwrap_or_default()
    }

    #[test]
    fn amounts() {
        let one = asking(json!({"cpu": "1500m", "memory": "1Gi"}));
        assert_eq!(said(&one, &[], None, &[]).0, "");
        let words = "Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000";
        assert_eq!(said(&one, std::slice::from_ref(&one), None, &[]), ("OutOfcpu".into(), words.into()));
        assert_eq!(said(&asking(json!({"memory": "5Gi"})), &[], None, &[]).0, "OutOfmemory");
        assert_eq!(
            said(&asking(json!({"ephemeral-storage": "1Ti"})), &[], None, &[]).0,
            "OutOfephemeral-storage"
        );
        let many: Vec<PodView> = (0..110).map(|_| view(json!({}))).collect();
        let words = "Node didn't have enough resource: pods, requested: 1, used: 110, capacity: 110";
        assert_eq!(said(&view(json!({})), &many, None, &[]), ("OutOfpods".into(), words.into()));
        assert_eq!(said(&view(json!({})), &many[1..], None, &[]).0, "");
        let node = NodeSpec {
            allocatable: Resources { extended: [("x.io/y".into(), 1)].into(), ..Resources::default() },
            ..NodeSpec::default()
        };
        assert_eq!(said(&asking(json!({"x.io/y": "2"})), &[], Some(&node), &[]).0, "OutOfx.io/y");
        assert_eq!(said(&asking(json!({"x.io/other": "2"})), &[], Some(&node), &[]).0, "");
    }

    #[test]
    fn resizes() {
        let of = |cpu: &str| Claim::of(&asking(json!({"cpu": cpu})));
        let facts = facts(std::path::Path::new("/"));
        let said = |asked: &str, other: &str| {
            let other = of(other);
            resize_refusal(&of(asked), &facts, &[&other]).map(|r| (r.reason, r.message))
        };
        assert_eq!(said("1", "500m"), None);
        let words = "Node didn't have enough resource: cpu, requested: 1600, used: 500, capacity: 2000";
        assert_eq!(said("1600m", "500m"), Some(("Deferred", words.into())));
        let words = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        assert_eq!(said("3", "0"), Some(("Infeasible", words.into())));
    }

    #[test]
    fn a_resize_that_was_not_granted_takes_nothing_after_a_restart() {
        let mut pod = asking(json!({"cpu": "8"}));
        let mut had = |reason: &str| {
            let one: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({"metadata": {}, "spec": pod.pod.spec, "status": {
                "conditions": [{"type": reason, "status": "True"}],
                "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": {"requests": {"cpu": "1"}}}]}})).unwrap();
            pod.pod = std::sync::Arc::new(one);
            Claim::had(&pod).requests.milli_cpu
        };
        assert_eq!((had("PodResizePending"), had("Ready")), (1000, 8000));
    }

    #[test]
    fn places() {
        let node = NodeSpec {
            labels: [("zone".into(), "a".into())].into(),
            taints: vec![Taint { key: "k".into(), value: String::new(), effect: "NoExecute".into() }],
            ..NodeSpec::default()
        };
        let all = json!([{"operator": "Exists"}]);
        let of = |more: Value| said(&view(more), &[], Some(&node), &[]).0;
        assert_eq!(of(json!({"nodeSelector": {"zone": "b"}})), "NodeAffinity");
        assert_eq!(of(json!({"nodeSelector": {"zone": "a"}})), "TaintToleration");
        assert_eq!(of(json!({"nodeSelector": {"zone": "a"}, "tolerations": all})), "");
        let taken = |a: &PodView, b: PodView| said(a, &[b], None, &[]).0;
        assert_eq!(taken(&port("", 80), port("10.0.0.1", 80)), "NodePorts");
        assert_eq!(taken(&port("10.0.0.2", 80), port("10.0.0.1", 80)), "");
        assert_eq!(taken(&port("", 81), port("", 80)), "");
    }

    #[test]
    fn kinds_of_nodes() {
        let of = |more: Value| said(&view(more), &[], None, &[]);
        let profile = |kind: &str| json!({"securityContext": {"appArmorProfile": {"type": kind}}});
        let words = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(of(profile("RuntimeDefault")), ("AppArmor".into(), words.into()));
        assert_eq!(of(profile("Unconfined")).0, "");
        let mut own = profile("RuntimeDefault");
        own["containers"] = json!([{"name": "a", "image": "i",
            "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]);
        assert_eq!(of(own).0, "", "a container's own counts");
        assert_eq!(of(json!({"os": {"name": "windows"}})).0, "PodOSNotSupported");
    }

    #[test]
    fn selinux_domains_need_selinux() {
        let pods = |options: Value| {
            let mut spec = json!({"securityContext": {"seLinuxOptions": options}});
            spec["containers"] = json!([{"name": "a", "image": "i"}]);
            spec
        };
        let of = |more: Value| said(&view(more), &[], None, &[]);
        let words = "Cannot enforce SELinux type \"web_t\": SELinux is not enabled on the host";
        assert_eq!(of(pods(json!({"type": "web_t"}))), ("SELinux".into(), words.into()));
        assert_eq!(
            of(pods(json!({"level": "s0:c0,c1", "user": "u", "role": "r"}))).0,
            "",
            "as upstream's tests"
        );
        assert_eq!(of(pods(json!({"type": "spc_t"}))).0, "", "that would not confine");
        let mut own = pods(json!({"type": "web_t"}));
        own["containers"][0]["securityContext"] = json!({"privileged": true});
        assert_eq!(of(own.clone()).0, "", "nor is a privileged container confined");
        own["containers"][0]["securityContext"] = json!({"seLinuxOptions": {"level": "s0"}});
        assert_eq!(of(own).0, "", "a container's own count");
    }

    #[test]
    fn sysctls() {
        let of = |name: &str, more: Value| {
            let mut spec = more;
            spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            said(&view(spec), &[], None, &[])
        };
        let words = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        assert_eq!(of("kernel.msgmax", json!({})), ("SysctlForbidden".into(), words.into()));
        assert_eq!(of("net.ipv4.tcp_syncookies", json!({})).0, "");
        let words = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        assert_eq!(of("net.ipv4.tcp_syncookies", json!({"hostNetwork": true})).1, words);
        assert_eq!(of("kernel.shm_rmid_forced", json!({"hostIPC": true})).0, "SysctlForbidden");
    }

    #[test]
    fn pressure() {
        use Pressure::{Disk, Memory};
        let (none, some) = (view(json!({})), asking(json!({"cpu": "1m"})));
        assert_eq!(said(&none, &[], None, &[Memory]).1, "The node had condition: [MemoryPressure]. ");
        assert_eq!(said(&some, &[], None, &[Memory]).0, "");
        assert_eq!(said(&some, &[], None, &[Disk]).0, "Evicted");
        assert_eq!(
            said(&some, &[], None, &[Disk, Memory]).1,
            "The node had condition: [DiskPressure MemoryPressure]. "
        );
        let tolerant = view(json!({"tolerations": [{"key": MEMORY_PRESSURE, "operator": "Exists"}]}));
        assert_eq!(said(&tolerant, &[], None, &[Memory]).0, "");
        assert_eq!(said(&view(json!({"priority": CRITICAL_PRIORITY})), &[], None, &[Disk]).0, "");
    }
}

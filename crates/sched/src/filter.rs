//! Filters: can this pod run on this node at all? One row each, in upstream's order, with upstream's words.

use crate::interpod::{MISSING_LABEL, PodContext};
use crate::model::{HostPort, NodeInfo, NodeSpec, PodInfo, Taint};
use crate::profile::Profile;
use crate::ratings::Rating;
use crate::terms::NodeTerm;
use crate::volumes::Needs;

/// What a filter looks at.
pub struct Question<'a> {
    /// The pod that waits.
    pub pod: &'a PodInfo,
    /// What its scheduler does.
    pub profile: &'a Profile,
    /// The node's own facts.
    pub spec: &'a NodeSpec,
    /// What runs there.
    pub node: &'a NodeInfo,
    /// What was computed once for the pod over all nodes.
    pub context: &'a PodContext,
    /// What the pod's claims need.
    pub volumes: &'a Needs<'a>,
    /// What the node has said already.
    pub rating: Option<&'a Rating>,
}

/// Yields the reasons against the node; none: it passes.
pub type Filter = fn(&Question<'_>) -> Vec<String>;

/// One filter.
pub struct Row {
    /// Upstream's plugin name.
    pub name: &'static str,
    /// Where it objects, could evicting pods make it pass?
    pub resolvable: fn(&Question<'_>) -> bool,
    /// The question itself.
    pub filter: Filter,
}

const fn row(name: &'static str, resolvable: bool, filter: Filter) -> Row {
    Row { name, resolvable: if resolvable { |_| true } else { |_| false }, filter }
}

/// The filters, in order; the first that objects decides.
pub const FILTERS: &[Row] = &[
    row("NodeUnschedulable", false, unschedulable),
    row("NodeName", false, node_name),
    row("TaintToleration", false, taints),
    row("NodeAffinity", false, affinity),
    row("NodePorts", true, ports),
    Row { name: "NodeResourcesFit", resolvable: |q| !exceeds_node(q), filter: resources },
    row("VolumeRestrictions", true, |q| {
        q.volumes.conflict(q.spec, q.node).into_iter().map(str::to_string).collect()
    }),
    row("NodeVolumeLimits", true, |q| {
        q.volumes.excess(q.pod, q.spec, q.node).into_iter().map(str::to_string).collect()
    }),
    row("VolumeBinding", false, |q| q.volumes.objection(q.spec).into_iter().map(str::to_string).collect()),
    row("VolumeZone", false, |q| q.volumes.elsewhere(q.spec).into_iter().map(str::to_string).collect()),
    Row {
        name: "PodTopologySpread",
        resolvable: |q| q.context.spread_objection(q.pod, q.spec) != Some(MISSING_LABEL),
        filter: spread,
    },
    Row {
        name: "InterPodAffinity",
        resolvable: |q| !q.context.lacks_company(q.pod, q.spec),
        filter: interpod,
    },
    row("NodeDeclaredFeatures", false, |q| {
        let lacks = q.pod.features.iter().any(|f| !q.spec.features.contains(*f));
        reason(lacks, "node(s) didn't match Pod's required features")
    }),
    row("DynamicResources", false, |q| q.volumes.devices.objection(q.spec).into_iter().collect()),
];

/// A filter's row, and its reasons.
pub type Objection = (&'static Row, Vec<String>);

/// So many of the filters come first and look at the pod and the node alone.
const LOCAL: usize = 6;

/// Does it lie in the pod and the node alone?
pub fn is_local(objection: &Objection) -> bool {
    FILTERS[..LOCAL].iter().any(|row| row.name == objection.0.name)
}

/// The first filter that objects; those whose word is known are not asked.
pub fn objection(question: &Question<'_>) -> Option<Objection> {
    let known = if question.rating.is_some_and(|r| r.fits) { LOCAL } else { 0 };
    let mut asked = question.profile.filters(known).map(|row| (row, (row.filter)(question)));
    asked.find(|(_, reasons)| !reasons.is_empty())
}

fn reason(object: bool, words: &str) -> Vec<String> {
    if object { vec![words.to_string()] } else { Vec::new() }
}

fn unschedulable(q: &Question<'_>) -> Vec<String> {
    if !q.spec.unschedulable {
        return Vec::new();
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        value: String::new(),
        effect: "NoSchedule".into(),
    };
    reason(!q.pod.tolerates(&taint), "node(s) were unschedulable")
}

fn node_name(q: &Question<'_>) -> Vec<String> {
    let other = q.pod.node_name.as_ref().is_some_and(|n| *n != q.spec.name);
    reason(other, "node(s) didn't match the requested node name")
}

/// Is there a taint that keeps the pod away?
pub fn has_untolerated_taint(pod: &PodInfo, node: &NodeSpec) -> bool {
    node.taints.iter().any(|t| (t.effect == "NoSchedule" || t.effect == "NoExecute") && !pod.tolerates(t))
}

fn taints(q: &Question<'_>) -> Vec<String> {
    reason(has_untolerated_taint(q.pod, q.spec), "node(s) had untolerated taint(s)")
}

fn affinity(q: &Question<'_>) -> Vec<String> {
    let added = |t: &Vec<NodeTerm>| t.iter().any(|t| t.matches(&q.spec.name, &q.spec.labels));
    if !q.profile.added.required.as_ref().is_none_or(added) {
        return reason(true, "node(s) didn't match scheduler-enforced node affinity");
    }
    reason(!q.pod.selects_node(q.spec), "node(s) didn't match Pod's node affinity/selector")
}

fn clash(a: &HostPort, b: &HostPort) -> bool {
    const ANY: &str = "0.0.0.0";
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == ANY || b.1 == ANY)
}

fn ports(q: &Question<'_>) -> Vec<String> {
    let taken = |wanted: &HostPort| q.node.pods.values().flat_map(|p| &p.ports).any(|p| clash(p, wanted));
    reason(q.pod.ports.iter().any(taken), "node(s) didn't have free ports for the requested pod ports")
}

fn resources(q: &Question<'_>) -> Vec<String> {
    let (want, used, all) = (&q.pod.requests, &q.node.requested, &q.spec.allocatable);
    let mut reasons = reason(q.node.pods.len() as i64 + 1 > q.spec.max_pods, "Too many pods");
    let mut check = |name: &str, want: i64, used: i64, all: i64| {
        if want > 0 && want > all - used {
            reasons.push(format!("Insufficient {name}"));
        }
    };
    check("cpu", want.milli_cpu, used.milli_cpu, all.milli_cpu);
    check("memory", want.memory_bytes, used.memory_bytes, all.memory_bytes);
    check("ephemeral-storage", want.ephemeral_bytes, used.ephemeral_bytes, all.ephemeral_bytes);
    for (name, want) in want.extended.iter().filter(|(name, _)| !q.profile.ignores(name)) {
        let of = |r: &crate::Resources| r.extended.get(name).copied().unwrap_or(0);
        if q.volumes.devices.backs(name, of(all)) {
            continue;
        }
        check(name, *want, of(used), of(all));
    }
    reasons
}

/// Does the pod ask for more than the whole node has?
fn exceeds_node(q: &Question<'_>) -> bool {
    let (want, all) = (&q.pod.requests, &q.spec.allocatable);
    want.milli_cpu > all.milli_cpu
        || want.memory_bytes > all.memory_bytes
        || want.ephemeral_bytes > all.ephemeral_bytes
        || want.extended.iter().any(|(name, want)| *want > all.extended.get(name).copied().unwrap_or(0))
}

fn spread(q: &Question<'_>) -> Vec<String> {
    q.context.spread_objection(q.pod, q.spec).into_iter().map(str::to_string).collect()
}

fn interpod(q: &Question<'_>) -> Vec<String> {
    q.context.affinity_objection(q.pod, q.spec).into_iter().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_filters_come_first() {
        assert_eq!((FILTERS[0].name, FILTERS[LOCAL - 1].name), ("NodeUnschedulable", "NodeResourcesFit"));
    }
}

//! The scheduler's own picture of pods and nodes: compact, read once from typed views.

use crate::contexts::Contexts;
use crate::nominations::Nominations;
use crate::preempt::Budget;
use crate::profile::{DEFAULT_NAME, Profiles};
use crate::resources::{self, Resources};
use crate::terms::{Labels, NodeTerm, PodTerm, Spread};
use crate::volumes::{Catalog, PodClaim, claims_of};
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Namespace and name of a pod.
pub type PodId = (Arc<str>, Arc<str>);

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, "" when none.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    /// Reads a taint.
    pub fn read(taint: &core::Taint) -> Taint {
        Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        }
    }
}

/// A host port that a pod wants: protocol, address ("0.0.0.0" is every one), port.
pub type HostPort = (String, String, i32);

/// What the scheduler knows of a pod.
#[derive(Debug, Default)]
pub struct PodInfo {
    /// Namespace and name.
    pub id: Option<PodId>,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// `spec.priority`.
    pub priority: i32,
    /// `preemptionPolicy: Never`.
    pub never_preempts: bool,
    /// Did the scheduler ask it to go, and is it going?
    pub preempted: bool,
    /// When it was started, in milliseconds of the Unix epoch; the largest number while it is not.
    pub started_ms: i64,
    /// What it asks for.
    pub requests: Resources,
    /// The same for scoring.
    pub(crate) assumed: Resources,
    /// Whose it is; `None`: the default's.
    scheduler: Option<Box<str>>,
    pub(crate) node_name: Option<String>,
    pub(crate) node_selector: Labels,
    pub(crate) required_terms: Option<Vec<NodeTerm>>,
    pub(crate) preferred_terms: Vec<(i64, NodeTerm)>,
    pub(crate) tolerations: Vec<core::Toleration>,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) images: Vec<String>,
    pub(crate) affinity: Vec<PodTerm>,
    pub(crate) anti_affinity: Vec<PodTerm>,
    pub(crate) preferred_affinity: Vec<PodTerm>,
    pub(crate) spread: Vec<Spread>,
    /// The claims that it uses.
    pub claims: Vec<PodClaim>,
    /// The controlling owner's UID: siblings are spread.
    pub(crate) owner: Option<String>,
}

impl PodInfo {
    /// Namespace.
    pub fn namespace(&self) -> &str {
        self.id.as_ref().map_or("", |id| &id.0)
    }

    /// Reads a pod.
    pub fn read(pod: &core::Pod) -> PodInfo {
        let meta = &pod.metadata;
        let id: PodId = (
            meta.namespace.as_deref().unwrap_or_default().into(),
            meta.name.as_deref().unwrap_or_default().into(),
        );
        let mut info = PodInfo {
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            owner: meta
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .map(|o| o.uid.clone()),
            ..PodInfo::default()
        };
        if let Some(spec) = &pod.spec {
            info.read_spec(spec, &id.0);
            info.claims = claims_of(&id.1, spec);
        }
        let status = pod.status.as_ref();
        let started = status.and_then(|s| s.start_time.as_ref());
        info.started_ms = started.map_or(i64::MAX, |t| t.0.as_millisecond());
        let preempted = |c: &core::PodCondition| {
            c.type_ == "DisruptionTarget"
                && c.status == "True"
                && c.reason.as_deref() == Some("PreemptionByScheduler")
        };
        info.preempted = meta.deletion_timestamp.is_some()
            && status.and_then(|s| s.conditions.as_ref()).is_some_and(|c| c.iter().any(preempted));
        info.id = Some(id);
        info
    }

    /// The name of its scheduler.
    pub fn scheduler(&self) -> &str {
        self.scheduler.as_deref().unwrap_or(DEFAULT_NAME)
    }

    /// The same with what its profile says where it says nothing. Default spread counts the pods of the same owner.
    pub fn with_defaults(mut self, profiles: &Profiles) -> PodInfo {
        if self.spread.is_empty() && self.owner.is_some() {
            let constraints = &profiles.of(self.scheduler()).default_spread;
            let read = |c| Spread { owner: self.owner.clone(), ..Spread::read(c, &self.labels) };
            self.spread = constraints.iter().map(read).collect();
        }
        self
    }

    /// Could another pod's arrival help it?
    pub fn wants_company(&self) -> bool {
        !self.affinity.is_empty() || !self.spread.is_empty()
    }

    /// Do placed pods matter to others by its terms?
    pub(crate) fn has_terms(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred_affinity.is_empty())
    }

    /// Do both ask the same of other pods and of nodes, so that what was counted for one holds for the other?
    pub(crate) fn asks_the_same(&self, other: &PodInfo) -> bool {
        self.labels == other.labels
            && self.namespace() == other.namespace()
            && self.scheduler == other.scheduler
            && self.spread == other.spread
            && self.affinity == other.affinity
            && self.anti_affinity == other.anti_affinity
            && self.preferred_affinity == other.preferred_affinity
            && self.node_selector == other.node_selector
            && self.required_terms == other.required_terms
            && self.tolerations == other.tolerations
    }

    /// The only nodes that required affinity admits, where it names them.
    pub(crate) fn named_nodes(&self) -> Option<Vec<&str>> {
        let terms = self.required_terms.as_ref()?;
        let names: Option<Vec<_>> = terms.iter().map(NodeTerm::named).collect();
        Some(names?.into_iter().flatten().collect())
    }

    fn read_spec(&mut self, spec: &core::PodSpec, namespace: &str) {
        let named = spec.scheduler_name.as_deref().filter(|n| !n.is_empty() && *n != DEFAULT_NAME);
        self.scheduler = named.map(Into::into);
        self.priority = spec.priority.unwrap_or(0);
        self.never_preempts = spec.preemption_policy.as_deref() == Some("Never");
        self.requests = resources::of_pod(spec);
        self.assumed = self.requests.clone().or_assumed(spec.containers.len());
        self.node_name = spec.node_name.clone().filter(|n| !n.is_empty());
        self.node_selector = spec.node_selector.clone().unwrap_or_default();
        self.tolerations = spec.tolerations.clone().unwrap_or_default();
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for port in containers().flat_map(|c| c.ports.iter().flatten()) {
            if let Some(host_port) = port.host_port.filter(|p| *p > 0) {
                let address = port.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or("0.0.0.0".into());
                self.ports.push((port.protocol.clone().unwrap_or("TCP".into()), address, host_port));
            }
        }
        self.images = containers().filter_map(|c| c.image.clone()).collect();
        let constraints = spec.topology_spread_constraints.iter().flatten();
        self.spread = constraints.map(|c| Spread::read(c, &self.labels)).collect();
        if let Some(affinity) = &spec.affinity {
            self.read_affinity(affinity, namespace);
        }
    }

    fn read_affinity(&mut self, affinity: &core::Affinity, namespace: &str) {
        if let Some(node) = &affinity.node_affinity {
            let required = node.required_during_scheduling_ignored_during_execution.as_ref();
            self.required_terms =
                required.map(|s| s.node_selector_terms.iter().filter_map(NodeTerm::read).collect());
            for preferred in node.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                if let Some(term) = NodeTerm::read(&preferred.preference) {
                    self.preferred_terms.push((preferred.weight.into(), term));
                }
            }
        }
        let labels = &self.labels;
        let read = |t: &core::PodAffinityTerm| PodTerm::read(t, namespace, labels, 0);
        let weighted = |t: &core::WeightedPodAffinityTerm, sign: i64| {
            PodTerm::read(&t.pod_affinity_term, namespace, labels, sign * i64::from(t.weight))
        };
        let mut preferred = Vec::new();
        if let Some(pods) = &affinity.pod_affinity {
            let required = pods.required_during_scheduling_ignored_during_execution.iter().flatten();
            self.affinity = required.map(read).collect();
            let soft = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            preferred.extend(soft.map(|t| weighted(t, 1)));
        }
        if let Some(pods) = &affinity.pod_anti_affinity {
            let required = pods.required_during_scheduling_ignored_during_execution.iter().flatten();
            self.anti_affinity = required.map(read).collect();
            let soft = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            preferred.extend(soft.map(|t| weighted(t, -1)));
        }
        self.preferred_affinity = preferred;
    }

    /// Does some toleration of the pod cover this taint?
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| covers(t, taint))
    }

    /// Do node selector and required node affinity admit the node?
    pub fn selects_node(&self, node: &NodeSpec) -> bool {
        self.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v))
            && self
                .required_terms
                .as_ref()
                .is_none_or(|t| t.iter().any(|t| t.matches(&node.name, &node.labels)))
    }
}

/// Does the toleration cover this taint? An empty effect covers every one; an empty key with `Exists` covers all keys.
pub fn covers(toleration: &core::Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value)
}

/// What a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Cordoned?
    pub unschedulable: bool,
    /// What pods may use in all.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub max_pods: i64,
    /// Image name → bytes.
    pub images: BTreeMap<String, i64>,
}

impl NodeSpec {
    /// Reads a node.
    pub fn read(node: &core::Node) -> NodeSpec {
        let mut spec = NodeSpec {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            ..NodeSpec::default()
        };
        if let Some(s) = &node.spec {
            spec.unschedulable = s.unschedulable.unwrap_or(false);
            spec.taints = s.taints.iter().flatten().map(Taint::read).collect();
        }
        if let Some(status) = &node.status {
            let list = status.allocatable.as_ref().or(status.capacity.as_ref());
            if let Some(list) = list {
                spec.allocatable = Resources::read(list);
                let pods = list.get("pods").and_then(|q| q.0.parse::<machinery::quantity::Quantity>().ok());
                spec.max_pods = pods.map_or(0, |q| q.units());
            }
            for image in status.images.iter().flatten() {
                for name in image.names.iter().flatten() {
                    spec.images.insert(name.clone(), image.size_bytes.unwrap_or(0));
                }
            }
        }
        spec
    }
}

/// A node with what runs on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// What it is; `None` while only its pods are known.
    pub spec: Option<Arc<NodeSpec>>,
    /// Pods bound or assumed here.
    pub pods: BTreeMap<PodId, Arc<PodInfo>>,
    /// Those of them that have terms about other pods.
    pub(crate) termed: BTreeMap<PodId, Arc<PodInfo>>,
    pub(crate) requested: Resources,
    pub(crate) assumed: Resources,
}

impl NodeInfo {
    pub(crate) fn put(&mut self, id: PodId, pod: Arc<PodInfo>) {
        self.take(&id);
        self.requested.add(&pod.requests);
        self.assumed.add(&pod.assumed);
        if pod.has_terms() {
            self.termed.insert(id.clone(), pod.clone());
        }
        self.pods.insert(id, pod);
    }

    pub(crate) fn take(&mut self, id: &PodId) {
        if let Some(pod) = self.pods.remove(id) {
            self.termed.remove(id);
            self.requested.sub(&pod.requests);
            self.assumed.sub(&pod.assumed);
        }
    }
}

/// All nodes and placed pods, kept up to date change by change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    /// How many of them exist.
    existing: usize,
    places: BTreeMap<PodId, String>,
    /// Claims and volumes.
    pub volumes: Catalog,
    /// Disruption budgets by namespace and name.
    pub budgets: BTreeMap<PodId, Budget>,
    /// How nodes are filtered and rated, by the pods' scheduler.
    pub profiles: Profiles,
    pub(crate) nominations: Nominations,
    /// Placed pods that have terms about others: only then must nodes be looked through for a pod without rules.
    pub(crate) termed: usize,
    /// What was counted for pods like these.
    pub(crate) contexts: Contexts,
    /// Where the next look at the nodes begins, when some of them are enough.
    pub(crate) next: String,
}

impl Snapshot {
    /// Adds or replaces a node.
    pub fn set_node(&mut self, spec: NodeSpec) {
        let node = self.nodes.entry(spec.name.clone()).or_default();
        let counted = |s: &Arc<NodeSpec>| s.labels == spec.labels && s.taints == spec.taints;
        if !node.spec.as_ref().is_some_and(counted) {
            self.contexts.clear();
        }
        self.existing += usize::from(node.spec.is_none());
        node.spec = Some(Arc::new(spec));
    }

    /// Removes a node; its pods stay known until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            self.contexts.clear();
            self.existing -= usize::from(node.spec.take().is_some());
            if node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Places a pod (moving it if it stood elsewhere).
    pub fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        let Some(id) = pod.id.clone() else { return };
        self.remove_pod(&id);
        self.nominations.remove(&id);
        self.termed += usize::from(pod.has_terms());
        let info = self.nodes.entry(node.to_string()).or_default();
        if let Some(spec) = &info.spec {
            self.contexts.count(spec, &pod, 1);
        }
        info.put(id.clone(), pod);
        self.places.insert(id, node.to_string());
    }

    /// Takes a pod away, wherever it stood.
    pub fn remove_pod(&mut self, id: &PodId) {
        self.nominations.going.remove(id);
        let Some(name) = self.places.remove(id) else { return };
        let Some(node) = self.nodes.get_mut(&name) else { return };
        if let Some(pod) = node.pods.get(id) {
            self.termed -= usize::from(pod.has_terms());
            if let Some(spec) = &node.spec {
                self.contexts.count(spec, pod, -1);
            }
        }
        node.take(id);
        if node.pods.is_empty() && node.spec.is_none() {
            self.nodes.remove(&name);
        }
    }

    /// Where a pod stands.
    pub fn place_of(&self, id: &PodId) -> Option<&str> {
        self.places.get(id).map(String::as_str)
    }

    /// Promises a node to a pod that waits for others to leave it.
    pub fn nominate(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.nominations.put(node, pod);
    }

    /// Takes the promise back.
    pub fn clear_nomination(&mut self, id: &PodId) {
        self.nominations.remove(id);
    }

    /// The node that a waiting pod was promised.
    pub fn nominated_node(&self, id: &PodId) -> Option<&str> {
        self.nominations.node_of(id)
    }

    /// The victim could not be asked to go after all.
    pub fn spare(&mut self, id: &PodId) {
        self.nominations.going.remove(id);
    }

    pub(crate) fn node(&self, name: &str) -> Option<(&Arc<NodeSpec>, &NodeInfo)> {
        let node = self.nodes.get(name)?;
        Some((node.spec.as_ref()?, node))
    }

    /// How many nodes exist.
    pub(crate) fn nodes_len(&self) -> usize {
        self.existing
    }

    /// The nodes that exist, by name from this one on, then those before it.
    pub(crate) fn nodes_from<'a>(
        &'a self,
        start: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<NodeSpec>, &'a NodeInfo)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let after = self.nodes.range::<str, _>((Included(start), Unbounded));
        let before = self.nodes.range::<str, _>((Unbounded, Excluded(start)));
        after.chain(before).filter_map(|(_, n)| Some((n.spec.as_ref()?, n)))
    }

    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<NodeSpec>, &NodeInfo)> {
        self.nodes.values().filter_map(|n| Some((n.spec.as_ref()?, n)))
    }
}

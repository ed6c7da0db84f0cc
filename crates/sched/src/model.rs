//! The scheduler's own picture of pods and nodes: compact, read once from typed views.

use crate::contexts::Contexts;
use crate::dra::Wanted;
use crate::extend::{Advice, Extender};
use crate::groups::Groups;
use crate::nominations::Nominations;
use crate::preempt::Budget;
use crate::profile::{DEFAULT_NAME, Profiles};
use crate::ratings::Kinds;
use crate::resources::{self, Resources};
use crate::terms::{Labels, Namespaces, NodeTerm, PodTerm, Spread};
use crate::volumes::{Catalog, PodClaim, claims_of};
use k8s_openapi::api::core::v1 as core;
use std::collections::{BTreeMap, BTreeSet};
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

/// The feature of nodes that restart all containers of a pod because of one.
const RESTARTS_ALL: &str = "RestartAllContainersOnContainerExits";

/// A host port that a pod wants: protocol, address ("0.0.0.0" is every one), port.
pub type HostPort = (String, String, i32);

/// What the scheduler knows of a pod.
#[derive(Debug, Default, PartialEq)]
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
    /// Is it being deleted?
    pub going: bool,
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
    /// What it asks of devices.
    pub devices: Wanted,
    /// The PodGroup that it is of.
    pub group: Option<PodId>,
    /// Features that its node must declare.
    pub(crate) features: Vec<&'static str>,
    /// The controlling owner's UID: siblings are spread.
    pub(crate) owner: Option<Arc<str>>,
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
                .map(|o| o.uid.as_str().into()),
            ..PodInfo::default()
        };
        if let Some(spec) = &pod.spec {
            info.requests = resources::of_placed(pod);
            info.read_spec(spec, &id.0);
            info.claims = claims_of(&id.1, spec);
        }
        info.devices = Wanted::read(pod);
        let status = pod.status.as_ref();
        let started = status.and_then(|s| s.start_time.as_ref());
        info.started_ms = started.map_or(i64::MAX, |t| t.0.as_millisecond());
        let preempted = |c: &core::PodCondition| {
            c.type_ == "DisruptionTarget"
                && c.status == "True"
                && c.reason.as_deref() == Some("PreemptionByScheduler")
        };
        info.going = meta.deletion_timestamp.is_some();
        info.preempted =
            info.going && status.and_then(|s| s.conditions.as_ref()).is_some_and(|c| c.iter().any(preempted));
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

    /// As it stands on its node: whether it was placed here or is seen there.
    pub fn placed(mut self) -> PodInfo {
        self.node_name = None;
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

    /// Do filters and scores that look at a node alone say the same of both?
    pub(crate) fn is_rated_as(&self, other: &PodInfo) -> bool {
        self.owner == other.owner
            && self.requests == other.requests
            && self.assumed == other.assumed
            && self.images == other.images
            && self.ports == other.ports
            && self.node_name == other.node_name
            && self.scheduler == other.scheduler
            && self.node_selector == other.node_selector
            && self.required_terms == other.required_terms
            && self.preferred_terms == other.preferred_terms
            && self.tolerations == other.tolerations
    }

    /// Does it ask for nothing but what the local filters and rules about pods look at? What another filter looks at
    /// must be named here.
    pub(crate) fn is_plain(&self) -> bool {
        self.claims.is_empty()
            && self.devices == Wanted::default()
            && self.requests.extended.is_empty()
            && self.features.is_empty()
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
        self.assumed = self.requests.clone().or_assumed(spec.containers.len());
        self.node_name = spec.node_name.clone().filter(|n| !n.is_empty());
        self.node_selector = spec.node_selector.clone().unwrap_or_default();
        self.tolerations = spec.tolerations.clone().unwrap_or_default();
        let group = spec.scheduling_group.as_ref().and_then(|g| g.pod_group_name.as_deref());
        self.group = group.map(|name| (namespace.into(), name.into()));
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for port in containers().flat_map(|c| c.ports.iter().flatten()) {
            if let Some(host_port) = port.host_port.filter(|p| *p > 0) {
                let address = port.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or("0.0.0.0".into());
                self.ports.push((port.protocol.clone().unwrap_or("TCP".into()), address, host_port));
            }
        }
        let restarts_all = |c: &core::Container| {
            c.restart_policy_rules.iter().flatten().any(|r| r.action == "RestartAllContainers")
        };
        self.features.extend(containers().any(restarts_all).then_some(RESTARTS_ALL));
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
    /// Features that it declares.
    pub features: BTreeSet<String>,
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
            spec.features = status.declared_features.iter().flatten().cloned().collect();
            for image in status.images.iter().flatten() {
                for name in image.names.iter().flatten() {
                    spec.images.insert(name.clone(), image.size_bytes.unwrap_or(0));
                }
            }
        }
        spec
    }
}

/// What runs on a node.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Pods bound or assumed here.
    pub pods: BTreeMap<PodId, Arc<PodInfo>>,
    /// Those of them that have terms about other pods.
    pub(crate) termed: BTreeMap<PodId, Arc<PodInfo>>,
    /// How many of them have which owner.
    pub(crate) owners: BTreeMap<Arc<str>, i64>,
    pub(crate) requested: Resources,
    pub(crate) assumed: Resources,
    /// Where its ratings stand.
    pub(crate) place: usize,
    /// Another number at each change of the node or its pods.
    pub(crate) state: u64,
}

impl NodeInfo {
    pub(crate) fn put(&mut self, id: PodId, pod: Arc<PodInfo>) {
        self.take(&id);
        self.requested.add(&pod.requests);
        self.assumed.add(&pod.assumed);
        if pod.has_terms() {
            self.termed.insert(id.clone(), pod.clone());
        }
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.pods.insert(id, pod);
    }

    pub(crate) fn take(&mut self, id: &PodId) {
        if let Some(pod) = self.pods.remove(id) {
            self.termed.remove(id);
            if let Some(owner) = &pod.owner
                && let Some(count) = self.owners.get_mut(owner)
            {
                *count -= 1;
                if *count == 0 {
                    self.owners.remove(owner);
                }
            }
            self.requested.sub(&pod.requests);
            self.assumed.sub(&pod.assumed);
        }
    }
}

/// A node: side by side in memory, because decisions walk over hundreds of them.
#[derive(Clone, Debug, Default)]
struct Held {
    /// What it is; `None` while only its pods are known.
    spec: Option<NodeSpec>,
    node: NodeInfo,
}

impl Held {
    fn existing(&self) -> Option<(&NodeSpec, &NodeInfo)> {
        Some((self.spec.as_ref()?, &self.node))
    }
}

/// All nodes and placed pods, kept up to date change by change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, Held>,
    /// How many of them exist.
    existing: usize,
    places: BTreeMap<PodId, String>,
    /// Claims and volumes.
    pub volumes: Catalog,
    /// Disruption budgets by namespace and name.
    pub budgets: BTreeMap<PodId, Budget>,
    /// How nodes are filtered and rated, by the pods' scheduler.
    pub profiles: Profiles,
    /// Labels of namespaces.
    pub(crate) namespaces: Namespaces,
    /// Groups of pods that are placed together.
    pub groups: Groups,
    /// Servers outside that have a say.
    pub extenders: Arc<Vec<Extender>>,
    /// What they said of the pods that are decided for now.
    pub advice: BTreeMap<PodId, Advice>,
    pub(crate) nominations: Nominations,
    /// Placed pods that have terms about others: only then must nodes be looked through for a pod without rules.
    pub(crate) termed: usize,
    /// What was counted for pods like these.
    pub(crate) contexts: Contexts,
    /// What nodes said of pods like these.
    pub(crate) kinds: Kinds,
    /// Changes of nodes and their pods so far.
    states: u64,
    /// Where the next look at the nodes begins, when some of them are enough.
    pub(crate) next: String,
}

/// A node that is about to change; a new one, where it was not known.
fn held<'a>(nodes: &'a mut BTreeMap<String, Held>, states: &mut u64, name: &str) -> &'a mut Held {
    let place = nodes.len();
    let new = || Held { node: NodeInfo { place, ..NodeInfo::default() }, ..Held::default() };
    let held = nodes.entry(name.to_string()).or_insert_with(new);
    *states += 1;
    held.node.state = *states;
    held
}

impl Snapshot {
    /// Adds or replaces a node.
    pub fn set_node(&mut self, spec: NodeSpec) {
        let held = held(&mut self.nodes, &mut self.states, &spec.name);
        let counted = |s: &NodeSpec| s.labels == spec.labels && s.taints == spec.taints;
        if !held.spec.as_ref().is_some_and(counted) {
            self.contexts.clear();
        }
        self.existing += usize::from(held.spec.is_none());
        held.spec = Some(spec);
    }

    /// Removes a node; its pods stay known until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(held) = self.nodes.get_mut(name) {
            self.contexts.clear();
            self.existing -= usize::from(held.spec.take().is_some());
            if held.node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// A namespace has these labels, or (`None`) is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        self.contexts.clear();
        let namespaces = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => drop(namespaces.insert(name.to_string(), labels)),
            None => drop(namespaces.remove(name)),
        }
    }

    /// Places a pod (moving it if it stood elsewhere). Nothing happens where it stands there just so.
    pub fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        let Some(id) = pod.id.clone() else { return };
        self.nominations.remove(&id);
        if self.nodes.get(node).and_then(|held| held.node.pods.get(&id)) == Some(&pod) {
            return;
        }
        self.remove_pod(&id);
        self.termed += usize::from(pod.has_terms());
        let held = held(&mut self.nodes, &mut self.states, node);
        if let Some(spec) = &held.spec {
            self.contexts.count(spec, &pod, 1);
        }
        self.groups.placed(&pod, true);
        held.node.put(id.clone(), pod);
        self.places.insert(id, node.to_string());
    }

    /// Takes a pod away, wherever it stood.
    pub fn remove_pod(&mut self, id: &PodId) {
        self.nominations.going.remove(id);
        let Some(name) = self.places.remove(id) else { return };
        let Some(Held { spec, node }) = self.nodes.get_mut(&name) else { return };
        if let Some(pod) = node.pods.get(id) {
            self.termed -= usize::from(pod.has_terms());
            self.groups.placed(pod, false);
            if let Some(spec) = spec {
                self.contexts.count(spec, pod, -1);
            }
        }
        node.take(id);
        self.states += 1;
        node.state = self.states;
        if node.pods.is_empty() && spec.is_none() {
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

    /// What extenders said of this pod.
    pub(crate) fn advice_of(&self, pod: &PodInfo) -> Option<&Advice> {
        self.advice.get(pod.id.as_ref()?)
    }

    pub(crate) fn node(&self, name: &str) -> Option<(&NodeSpec, &NodeInfo)> {
        self.nodes.get(name)?.existing()
    }

    /// How many nodes exist.
    pub(crate) fn nodes_len(&self) -> usize {
        self.existing
    }

    /// The nodes that exist, by name from this one on, then those before it.
    pub(crate) fn nodes_from<'a>(
        &'a self,
        start: &'a str,
    ) -> impl Iterator<Item = (&'a NodeSpec, &'a NodeInfo)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let after = self.nodes.range::<str, _>((Included(start), Unbounded));
        let before = self.nodes.range::<str, _>((Unbounded, Excluded(start)));
        after.chain(before).filter_map(|(_, held)| held.existing())
    }

    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeSpec, &NodeInfo)> {
        self.nodes.values().filter_map(Held::existing)
    }
}

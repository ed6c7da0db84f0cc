//! Claims, volumes and storage classes as scheduler and binder see them: which volume suits a claim, what a pod's
//! claims need of a node, what must be written before the pod is bound there.
//!
//! Reads the API's JSON. Drivers' room and how many of their volumes a node takes count as well. Invariant: a volume is promised to one pod's claim at a time ([`Catalog::assume`]) until the
//! API shows the binding or [`Catalog::forget`] takes it back.
//! Deliberately not here: writing anything (`controllers`).

use crate::dra;
use crate::model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot};
use crate::terms::{Labels, NodeTerm};
use k8s_openapi::api::core::v1 as core;
use machinery::selector::LabelSelector;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A provisioner of that name never makes volumes.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// On a claim: the node that its first pod goes to.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: both sides of the binding are written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The older way to name a class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Only one pod at a time may use such a claim.
const ONE_POD: &str = "ReadWriteOncePod";

const AFFINITY: &str = "node(s) didn't match PersistentVolume's node affinity";
const NO_ROOM: &str = "node(s) did not have enough free storage";
const ZONE: &str = "node(s) had no available volume zone";
const TOO_MANY: &str = "node(s) exceed max volume count";
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const IN_USE: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";

/// Labels of volumes and nodes that say where they are, each with its older name; a volume may name several places.
const PLACES: [[&str; 2]; 2] = [
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"],
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"],
];
/// Between the places that a volume names.
const PLACES_BETWEEN: &str = "__";

/// Namespace and name of a claim.
pub type ClaimId = (String, String);

/// What claims and volumes have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Class, "" for none.
    pub class: String,
    /// Bytes asked for, or held.
    pub bytes: i64,
    /// Access modes.
    pub modes: BTreeSet<String>,
    /// A raw device instead of a file system?
    pub block: bool,
}

/// A claim.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// Namespace and name.
    pub id: ClaimId,
    /// UID.
    pub uid: String,
    /// What it asks for.
    pub shape: Shape,
    /// `spec.volumeName`.
    pub volume: String,
    /// Which volumes may serve it.
    pub selector: Option<LabelSelector>,
    /// Is the binding complete?
    pub bound: bool,
    /// The node of its first pod, where that is decided.
    pub node: Option<String>,
    /// UID of the pod that it was made for.
    pub pod: Option<String>,
    /// Being deleted?
    pub deleting: bool,
    /// Has its volume gone?
    pub lost: bool,
}

/// A volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// What it offers.
    pub shape: Shape,
    /// Labels.
    pub labels: Labels,
    /// Nodes that reach it; `None`: all.
    pub nodes: Option<Vec<NodeTerm>>,
    /// The claim that it is for, and that claim's UID, "" where any of the name will do.
    pub claim: Option<(ClaimId, String)>,
    /// `status.phase`.
    pub phase: String,
    /// Being deleted?
    pub deleting: bool,
    /// Its driver, and the driver's name of it.
    pub source: Option<(String, String)>,
}

/// What a driver has room for, for a class and on some nodes.
#[derive(Clone, Debug)]
pub struct Room {
    /// The class.
    pub class: String,
    /// The largest volume in bytes.
    pub bytes: i64,
    /// Which nodes; `None`: none.
    pub nodes: Option<LabelSelector>,
}

impl Room {
    /// Reads a CSIStorageCapacity.
    pub fn read(object: &Value) -> Room {
        let amount = |field: &str| machinery::quantity::Quantity::from_json(&object[field])?.ok();
        let nodes = object.get("nodeTopology").filter(|t| !t.is_null());
        Room {
            class: text(object, "/storageClassName"),
            bytes: amount("maximumVolumeSize").or_else(|| amount("capacity")).map_or(-1, |q| q.units()),
            nodes: nodes.and_then(|t| LabelSelector::from_json(Some(t)).ok()),
        }
    }
}

/// Reads from a CSINode how many volumes its node takes, by driver.
pub fn limits(object: &Value) -> BTreeMap<String, i64> {
    let drivers = object["spec"]["drivers"].as_array().into_iter().flatten();
    drivers.filter_map(|d| Some((text(d, "/name"), d["allocatable"]["count"].as_i64()?))).collect()
}

/// A storage class.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Who makes its volumes.
    pub provisioner: String,
    /// Are claims bound only when a pod uses them?
    pub waits: bool,
    /// Nodes that volumes may be made for; `None`: all.
    pub nodes: Option<Vec<NodeTerm>>,
}

fn text(value: &Value, at: &str) -> String {
    value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn annotation(value: &Value, key: &str) -> Option<String> {
    value["metadata"]["annotations"][key].as_str().filter(|v| !v.is_empty()).map(str::to_string)
}

impl Shape {
    fn read(object: &Value, amount: &str) -> Shape {
        let spec = &object["spec"];
        let bytes = object.pointer(amount).and_then(machinery::quantity::Quantity::from_json);
        let modes = spec["accessModes"].as_array().into_iter().flatten();
        Shape {
            class: annotation(object, CLASS_ANNOTATION).unwrap_or_else(|| text(spec, "/storageClassName")),
            bytes: bytes.and_then(Result::ok).map_or(0, |q| q.units()),
            modes: modes.filter_map(Value::as_str).map(str::to_string).collect(),
            block: spec["volumeMode"] == "Block",
        }
    }

    /// Could a volume of this shape serve a claim of that one?
    pub fn serves(&self, claim: &Shape) -> bool {
        self.class == claim.class
            && self.block == claim.block
            && self.bytes >= claim.bytes
            && claim.modes.is_subset(&self.modes)
    }
}

impl Claim {
    /// Reads a claim.
    pub fn read(object: &Value) -> Claim {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let pod =
            owners.filter(|o| o["kind"] == "Pod" && o["controller"] == true).map(|o| text(o, "/uid")).next();
        let volume = text(object, "/spec/volumeName");
        let selector = object["spec"].get("selector").filter(|s| !s.is_null());
        Claim {
            id: (text(object, "/metadata/namespace"), text(object, "/metadata/name")),
            uid: text(object, "/metadata/uid"),
            shape: Shape::read(object, "/spec/resources/requests/storage"),
            selector: selector.and_then(|s| LabelSelector::from_json(Some(s)).ok()),
            bound: !volume.is_empty() && annotation(object, BIND_COMPLETED).is_some(),
            volume,
            node: annotation(object, SELECTED_NODE),
            pod,
            deleting: !object["metadata"]["deletionTimestamp"].is_null(),
            lost: object["status"]["phase"] == "Lost",
        }
    }
}

fn terms(list: &Value) -> Option<Vec<NodeTerm>> {
    let read = |t: &Value| {
        serde_json::from_value::<core::NodeSelectorTerm>(t.clone()).ok().and_then(|t| NodeTerm::read(&t))
    };
    list.as_array().map(|terms| terms.iter().filter_map(read).collect())
}

fn reachable(nodes: &Option<Vec<NodeTerm>>, node: &NodeSpec) -> bool {
    nodes.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

impl Volume {
    /// Reads a volume.
    pub fn read(object: &Value) -> Volume {
        let of = &object["spec"]["claimRef"];
        let id = (text(of, "/namespace"), text(of, "/name"));
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        Volume {
            name: text(object, "/metadata/name"),
            shape: Shape::read(object, "/spec/capacity/storage"),
            labels: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().into())).collect(),
            nodes: terms(&object["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]),
            claim: of.is_object().then(|| (id, text(of, "/uid"))),
            phase: text(object, "/status/phase"),
            deleting: !object["metadata"]["deletionTimestamp"].is_null(),
            source: object["spec"]["csi"]["driver"]
                .as_str()
                .map(|driver| (driver.into(), text(object, "/spec/csi/volumeHandle"))),
        }
    }

    /// Does it name a zone or region that is not the node's? A node that tells none may be anywhere.
    fn is_elsewhere(&self, node: &NodeSpec) -> bool {
        let of = |labels: &Labels, names: [&str; 2]| names.iter().find_map(|n| labels.get(*n).cloned());
        PLACES.iter().any(|names| of(&node.labels, *names).is_some())
            && PLACES.iter().any(|names| {
                let own = of(&node.labels, *names);
                let named = of(&self.labels, *names);
                named.is_some_and(|named| own.is_none_or(|own| named.split(PLACES_BETWEEN).all(|n| n != own)))
            })
    }

    /// Can the node use it?
    pub fn reaches(&self, node: &NodeSpec) -> bool {
        reachable(&self.nodes, node)
    }

    /// Is it kept for this claim?
    pub fn is_for(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|(id, uid)| *id == claim.id && (uid.is_empty() || *uid == claim.uid))
    }
}

impl Class {
    /// Reads a class. A topology of it becomes node terms.
    pub fn read(object: &Value) -> Class {
        let mut topologies = object["allowedTopologies"].clone();
        for term in topologies.as_array_mut().into_iter().flatten() {
            let mut expressions = term["matchLabelExpressions"].take();
            for expression in expressions.as_array_mut().into_iter().flatten() {
                expression["operator"] = "In".into();
            }
            *term = serde_json::json!({"matchExpressions": expressions});
        }
        Class {
            provisioner: text(object, "/provisioner"),
            waits: object["volumeBindingMode"] == "WaitForFirstConsumer",
            nodes: terms(&topologies).filter(|t| !t.is_empty()),
        }
    }

    /// Does somebody make volumes of it?
    pub fn provisions(&self) -> bool {
        self.provisioner != NO_PROVISIONER
    }
}

/// The smallest volume that suits the claim: one that is kept for it, else a free one. `waits`: a free one only where
/// a node is given.
pub fn find_match<'a>(
    claim: &Claim,
    volumes: impl Iterator<Item = &'a Volume>,
    node: Option<&NodeSpec>,
    waits: bool,
) -> Option<&'a Volume> {
    let suits = |v: &&Volume| {
        !v.deleting && v.shape.serves(&claim.shape) && node.is_none_or(|n| reachable(&v.nodes, n))
    };
    let free = |v: &Volume| {
        (node.is_some() || !waits)
            && v.claim.is_none()
            && v.phase == "Available"
            && claim.selector.as_ref().is_none_or(|s| s.matches(&v.labels))
    };
    let suitable = volumes.filter(suits).filter(|v| v.is_for(claim) || free(v));
    suitable.min_by_key(|v| (!v.is_for(claim), v.shape.bytes, &v.name))
}

/// What must be written before a pod is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The claim gets this volume.
    Bind(ClaimId, String),
    /// A volume is to be made for the claim on this node.
    Provision(ClaimId, String),
    /// A claim gets its devices.
    Devices(dra::Step),
}

/// All claims, volumes and classes.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Claims.
    pub claims: BTreeMap<ClaimId, Claim>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Classes by name.
    pub classes: BTreeMap<String, Class>,
    /// Drivers that tell what they have room for.
    pub telling: BTreeSet<String>,
    /// What they told, by namespace and name.
    pub rooms: BTreeMap<ClaimId, Room>,
    /// How many volumes a node takes, by node and driver.
    pub limits: BTreeMap<String, BTreeMap<String, i64>>,
    /// Claims of devices, and devices.
    pub devices: dra::Inventory,
    assumed: BTreeMap<PodId, Vec<Step>>,
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    /// The claim's name.
    pub name: String,
    /// Is it made for this pod alone?
    pub ephemeral: bool,
}

/// The claims of a pod.
pub fn claims_of(pod: &str, spec: &core::PodSpec) -> Vec<PodClaim> {
    let read = |v: &core::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(claim), _) => Some(PodClaim { name: claim.claim_name.clone(), ephemeral: false }),
        (_, Some(_)) => Some(PodClaim { name: format!("{pod}-{}", v.name), ephemeral: true }),
        _ => None,
    };
    spec.volumes.iter().flatten().filter_map(read).collect()
}

/// What a pod's claims ask of a node.
#[derive(Default)]
pub struct Needs<'a> {
    catalog: Option<&'a Catalog>,
    bound: Vec<&'a Volume>,
    unbound: Vec<&'a Claim>,
    /// Placed pods that use a claim which only one pod at a time may use, and their nodes.
    users: Vec<(String, PodId)>,
    /// What claims of devices need.
    pub devices: dra::Needs<'a>,
}

impl Catalog {
    /// What the pod needs; else why it can run nowhere yet, in upstream's words.
    pub fn needs<'a>(&'a self, pod: &'a PodInfo, snapshot: &Snapshot) -> Result<Needs<'a>, String> {
        let devices = self.devices.needs(pod)?;
        let mut needs = Needs { catalog: Some(self), devices, ..Needs::default() };
        for wanted in &pod.claims {
            let name = &wanted.name;
            let claim = self.claims.get(&(pod.namespace().to_string(), name.clone()));
            let claim = match claim {
                None if wanted.ephemeral => {
                    return Err(format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    ));
                }
                None => return Err(format!("persistentvolumeclaim \"{name}\" not found")),
                Some(claim) => claim,
            };
            if wanted.ephemeral && claim.pod.as_ref() != Some(&pod.uid) {
                return Err(format!("PVC \"{name}\" was not created for pod (pod is not owner)"));
            }
            if claim.lost {
                let volume = &claim.volume;
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.deleting {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if claim.shape.modes.contains(ONE_POD) {
                needs.users.extend(users(snapshot, pod, name));
            }
            if claim.bound {
                let missing = || format!("persistentvolume \"{}\" not found", claim.volume);
                needs.bound.push(self.volumes.get(&claim.volume).ok_or_else(missing)?);
            } else if self.waits(claim) && claim.volume.is_empty() {
                needs.unbound.push(claim);
            } else {
                return Err(UNBOUND.into());
            }
        }
        // The small claims choose first, so that they take no volume that a large one needs.
        needs.unbound.sort_by_key(|c| c.shape.bytes);
        Ok(needs)
    }

    /// Is the claim bound only when a pod uses it?
    pub fn waits(&self, claim: &Claim) -> bool {
        self.classes.get(&claim.shape.class).is_some_and(|c| c.waits)
    }

    /// Promises what was decided for a pod.
    pub fn assume(&mut self, pod: &PodId, steps: Vec<Step>) {
        let devices = |s: &Step| if let Step::Devices(step) = s { Some(step.clone()) } else { None };
        self.devices.assume(pod, &steps.iter().filter_map(devices).collect::<Vec<_>>());
        if !steps.is_empty() {
            self.assumed.insert(pod.clone(), steps);
        }
    }

    /// What is promised to a pod.
    pub fn steps(&self, pod: &PodId) -> Vec<Step> {
        self.assumed.get(pod).cloned().unwrap_or_default()
    }

    /// Takes the promise back, or knows it kept.
    pub fn forget(&mut self, pod: &PodId) {
        self.devices.forget(pod);
        self.assumed.remove(pod);
    }

    /// Can the claim's volume be made on the node, as far as its driver told?
    fn has_room(&self, claim: &Claim, class: &Class, node: &NodeSpec) -> bool {
        let fits = |room: &Room| {
            room.class == claim.shape.class
                && room.bytes >= claim.shape.bytes
                && room.nodes.as_ref().is_some_and(|nodes| nodes.matches(&node.labels))
        };
        !self.telling.contains(&class.provisioner) || self.rooms.values().any(fits)
    }

    /// The volume that a claim has or will have: its driver, and a name that no other has.
    fn source(&self, claim: &Claim) -> Option<(String, String)> {
        if let Some(volume) = self.volumes.get(&claim.volume) {
            return volume.source.clone();
        }
        let class = self.classes.get(&claim.shape.class)?;
        Some((class.provisioner.clone(), format!("{}/{}", claim.id.0, claim.id.1)))
    }

    fn sources(&self, pod: &PodInfo) -> impl Iterator<Item = (String, String)> {
        let id = |name: &str| (pod.namespace().to_string(), name.to_string());
        pod.claims.iter().filter_map(move |c| self.source(self.claims.get(&id(&c.name))?))
    }

    fn promised(&self, volume: &str) -> bool {
        self.assumed.values().flatten().any(|s| matches!(s, Step::Bind(_, v) if v == volume))
    }
}

/// The other placed pods that use the claim, and their nodes.
fn users(snapshot: &Snapshot, pod: &PodInfo, claim: &str) -> Vec<(String, PodId)> {
    let placed =
        snapshot.nodes().flat_map(|(spec, node)| node.pods.iter().map(|(id, p)| (&spec.name, id, p)));
    let uses = |p: &PodInfo| {
        p.uid != pod.uid && p.namespace() == pod.namespace() && p.claims.iter().any(|c| c.name == claim)
    };
    placed.filter(|(_, _, p)| uses(p)).map(|(node, id, _)| (node.clone(), id.clone())).collect()
}

impl Needs<'_> {
    /// Why the node will not do; none: it will.
    pub fn objection(&self, node: &NodeSpec) -> Option<&'static str> {
        if self.bound.iter().any(|v| !reachable(&v.nodes, node)) {
            return Some(AFFINITY);
        }
        self.placed(node).err()
    }

    /// Why the node cannot reach the pod's volumes by what both are labelled with.
    pub fn elsewhere(&self, node: &NodeSpec) -> Option<&'static str> {
        self.bound.iter().any(|v| v.is_elsewhere(node)).then_some(ZONE)
    }

    /// Why the node takes no more volumes.
    pub fn excess(&self, pod: &PodInfo, spec: &NodeSpec, node: &NodeInfo) -> Option<&'static str> {
        let catalog = self.catalog?;
        let limits = catalog.limits.get(&spec.name).filter(|limits| !limits.is_empty())?;
        let mut new: BTreeSet<(String, String)> =
            catalog.sources(pod).filter(|(driver, _)| limits.contains_key(driver)).collect();
        if new.is_empty() {
            return None;
        }
        let there: BTreeSet<(String, String)> = node.pods.values().flat_map(|p| catalog.sources(p)).collect();
        new.retain(|volume| !there.contains(volume));
        let of = |all: &BTreeSet<(String, String)>, driver: &str| {
            i64::try_from(all.iter().filter(|(d, _)| d == driver).count()).unwrap_or(i64::MAX)
        };
        let full = |driver: &str, most: i64| of(&there, driver).saturating_add(of(&new, driver)) > most;
        new.iter().any(|(driver, _)| full(driver, limits[driver])).then_some(TOO_MANY)
    }

    /// Why the pod must wait for another one to end.
    pub fn conflict(&self, spec: &NodeSpec, node: &NodeInfo) -> Option<&'static str> {
        let stays = |(at, id): &(String, PodId)| *at != spec.name || node.pods.contains_key(id);
        self.users.iter().any(stays).then_some(IN_USE)
    }

    /// What is to be written for the pod to run on the node; `None`: it cannot.
    pub fn steps(&self, node: &NodeSpec) -> Option<Vec<Step>> {
        let mut steps = self.placed(node).ok()?;
        steps.extend(self.devices.steps(node).ok()?.into_iter().map(Step::Devices));
        Some(steps)
    }

    fn placed(&self, node: &NodeSpec) -> Result<Vec<Step>, &'static str> {
        let mut steps: Vec<Step> = Vec::new();
        let Some(catalog) = self.catalog else { return Ok(steps) };
        for claim in &self.unbound {
            let taken = |v: &&Volume| {
                catalog.promised(&v.name)
                    || steps.iter().any(|s| matches!(s, Step::Bind(_, name) if *name == v.name))
            };
            let chosen = claim.node.as_ref();
            let found = match chosen {
                Some(_) => None,
                None => find_match(claim, catalog.volumes.values().filter(|v| !taken(v)), Some(node), true),
            };
            let class = catalog.classes.get(&claim.shape.class).ok_or(NO_VOLUME)?;
            match found {
                Some(volume) => steps.push(Step::Bind(claim.id.clone(), volume.name.clone())),
                None if class.provisions()
                    && chosen.is_none_or(|n| *n == node.name)
                    && reachable(&class.nodes, node) =>
                {
                    if !catalog.has_room(claim, class, node) {
                        return Err(NO_ROOM);
                    }
                    steps.push(Step::Provision(claim.id.clone(), node.name.clone()));
                }
                None => return Err(NO_VOLUME),
            }
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests;

//! Devices by claims (dynamic resource allocation): which devices a pod's claims get on a node, and what must be
//! written before the pod is bound there. Upstream's DynamicResources plug-in with its words.
//!
//! An [`Inventory`] holds claims, classes and slices as the API has them, and what was promised to pods but is not
//! written yet ([`Inventory::assume`]). A device is never given twice: what claims have and what is promised is counted
//! in one place. The search ([`allocate`]) tries devices in the order of pools, slices and devices, the first solution
//! counts. Deliberately not here: writing anything, waiting for binding conditions (`controllers`).

mod allocate;
mod capacity;
mod extended;
mod pools;
mod read;
mod result;
mod rules;

pub use extended::Extended;
pub use read::{Allocation, Claim, ClaimId, EXTENDED, Given, Slice};
pub use rules::Rule;

use crate::model::{NodeSpec, PodId, PodInfo};
use k8s_openapi::api::core::v1 as core;
use read::{Amounts, Class, DeviceId, PoolId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// On claims that were allocated here.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// As many pods may share a claim.
const RESERVED_MAX: usize = 256;

/// A claim has devices that the node does not reach.
pub const NOT_HERE: &str = "resourceclaim not available on the node";
/// The claim for extended resources is from an attempt before, and must go first.
pub const STALE: &str = "cannot schedule extended resource claim";
const NOT_ALL: &str = "cannot allocate all claims";

/// A claim that a pod names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// It is made from a template, and is not there yet.
    Waits,
    /// It was decided that none is needed.
    Nothing,
    /// It has that name, and is made for this pod alone.
    Own(String),
    /// It has that name.
    Shared(String),
}

/// What a pod asks of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its claims.
    pub claims: Vec<Named>,
    /// Extended resources of its containers, which classes may stand for.
    pub extended: Vec<Extended>,
}

impl Wanted {
    /// Reads a pod.
    pub fn read(pod: &core::Pod) -> Wanted {
        let Some(spec) = &pod.spec else { return Wanted::default() };
        let told = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_ref());
        let named = |claim: &core::PodResourceClaim| {
            if let Some(name) = &claim.resource_claim_name {
                return Named::Shared(name.clone());
            }
            match told.into_iter().flatten().find(|t| t.name == claim.name) {
                None => Named::Waits,
                Some(told) => told.resource_claim_name.clone().map_or(Named::Nothing, Named::Own),
            }
        };
        let claims = spec.resource_claims.iter().flatten().map(named).collect();
        Wanted { claims, extended: extended::of_pod(spec) }
    }

    /// Must claims be made first?
    pub fn waits(&self) -> bool {
        self.claims.contains(&Named::Waits)
    }
}

/// What must be written before a pod is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The claim, which has its devices, is for this pod too.
    Reserve(ClaimId),
    /// The claim gets this `AllocationResult`, for this pod. A `shareID` that is "" is to be made up.
    Allocate(ClaimId, Value),
    /// A claim with this `spec` is made for the pod's extended resources and gets this `AllocationResult`; the pod's
    /// status tells which container has which request.
    Make {
        /// `ResourceClaim.spec`.
        spec: Value,
        /// `AllocationResult`.
        allocation: Value,
        /// `extendedResourceClaimStatus.requestMappings`.
        mappings: Value,
    },
}

/// Devices that claims have, and parts of such.
#[derive(Clone, Debug, Default)]
struct Usage {
    whole: BTreeMap<DeviceId, usize>,
    parts: BTreeMap<DeviceId, (usize, Amounts)>,
}

impl Usage {
    fn add(&mut self, allocation: &Allocation) {
        for given in allocation.given.iter().filter(|g| !g.admin) {
            let Some(part) = &given.part else {
                *self.whole.entry(given.device.clone()).or_default() += 1;
                continue;
            };
            let (count, all) = self.parts.entry(given.device.clone()).or_default();
            *count += 1;
            add_amounts(all, part);
        }
    }

    fn remove(&mut self, allocation: &Allocation) {
        for given in allocation.given.iter().filter(|g| !g.admin) {
            match &given.part {
                None => {
                    let left = self.whole.get_mut(&given.device).map(|n| {
                        *n = n.saturating_sub(1);
                        *n
                    });
                    if left == Some(0) {
                        self.whole.remove(&given.device);
                    }
                }
                Some(part) => {
                    let Some((count, all)) = self.parts.get_mut(&given.device) else { continue };
                    *count = count.saturating_sub(1);
                    sub_amounts(all, part);
                    if *count == 0 {
                        self.parts.remove(&given.device);
                    }
                }
            }
        }
    }

    fn has(&self, device: &DeviceId) -> bool {
        self.whole.contains_key(device) || self.parts.contains_key(device)
    }
}

fn add_amounts(all: &mut Amounts, part: &Amounts) {
    for (name, amount) in part {
        let sum = all.get(name).map_or(*amount, |old| old.add(*amount));
        all.insert(name.clone(), sum);
    }
}

fn sub_amounts(all: &mut Amounts, part: &Amounts) {
    for (name, amount) in part {
        if let Some(old) = all.get_mut(name) {
            *old = old.sub(*amount);
        }
    }
}

/// Claims, classes, slices, and promises.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    claims: BTreeMap<ClaimId, Arc<Claim>>,
    classes: BTreeMap<String, Class>,
    rules: BTreeMap<String, Rule>,
    pools: BTreeMap<PoolId, BTreeMap<String, Arc<Slice>>>,
    /// The pool of each slice.
    slices: BTreeMap<String, PoolId>,
    /// Pools by the node that they are for; `None`: perhaps several.
    places: BTreeMap<Option<String>, BTreeSet<PoolId>>,
    used: Usage,
    assumed: BTreeMap<ClaimId, (PodId, Allocation)>,
}

impl Inventory {
    /// A claim as it is now.
    pub fn put_claim(&mut self, id: &ClaimId, new: Option<&Value>) {
        if let Some(old) = self.claims.remove(id).as_ref().and_then(|c| c.allocation.as_ref()) {
            self.used.remove(old);
        }
        let Some(claim) = new.map(Claim::read) else { return };
        if let Some(allocation) = &claim.allocation {
            // What was promised is written, by whomever.
            if let Some((_, promised)) = self.assumed.remove(id) {
                self.used.remove(&promised);
            }
            self.used.add(allocation);
        }
        self.claims.insert(id.clone(), Arc::new(claim));
    }

    /// A class as it is now.
    pub fn put_class(&mut self, name: &str, new: Option<&Value>) {
        match new {
            Some(new) => drop(self.classes.insert(name.into(), Class::read(new))),
            None => drop(self.classes.remove(name)),
        }
    }

    /// A rule of taints as it is now.
    pub fn put_rule(&mut self, name: &str, new: Option<&Value>) {
        match new {
            Some(new) => drop(self.rules.insert(name.into(), Rule::read(new))),
            None => drop(self.rules.remove(name)),
        }
    }

    /// A slice as it is now.
    pub fn put_slice(&mut self, name: &str, new: Option<&Value>) {
        if let Some(id) = self.slices.remove(name)
            && let Some(slices) = self.pools.get_mut(&id)
            && let Some(old) = slices.remove(name)
        {
            let node = pools::node_of(&old);
            if slices.values().all(|s| pools::node_of(s) != node)
                && let Some(pools) = self.places.get_mut(&node)
            {
                pools.remove(&id);
            }
            if slices.is_empty() {
                self.pools.remove(&id);
            }
        }
        let Some(slice) = new.map(Slice::read) else { return };
        let id = slice.pool.clone();
        self.places.entry(pools::node_of(&slice)).or_default().insert(id.clone());
        self.slices.insert(name.into(), id.clone());
        self.pools.entry(id).or_default().insert(name.into(), Arc::new(slice));
    }

    /// A claim.
    pub fn claim(&self, id: &ClaimId) -> Option<&Claim> {
        self.claims.get(id).map(|c| &**c)
    }

    /// The class that stands for an extended resource; of several the newest one.
    fn class_of(&self, resource: &str) -> Option<&Class> {
        if let Some(name) = resource.strip_prefix(extended::IMPLICIT) {
            return self.classes.get(name);
        }
        let named = self.classes.values().filter(|c| c.extended.as_deref() == Some(resource));
        named.max_by(|a, b| a.created.cmp(&b.created).then(b.name.cmp(&a.name)))
    }

    /// What the pod's claims need; else why it can run nowhere yet, in upstream's words.
    pub fn needs<'a>(&'a self, pod: &'a PodInfo) -> Result<Needs<'a>, String> {
        let (namespace, name) = pod.id.as_ref().map_or(("", ""), |(ns, name)| (&**ns, &**name));
        let mut needs = Needs { inventory: Some(self), pod: Some(pod), ..Needs::default() };
        for wanted in &pod.devices.claims {
            let (claim, own) = match wanted {
                Named::Waits => {
                    return Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"));
                }
                Named::Nothing => continue,
                Named::Own(claim) => (claim, true),
                Named::Shared(claim) => (claim, false),
            };
            let id = (namespace.to_string(), claim.clone());
            let found = self.claims.get(&id).ok_or_else(|| format!("resourceclaim \"{claim}\" not found"))?;
            if found.deleting {
                return Err(format!("resourceclaim \"{claim}\" is being deleted"));
            }
            if own && found.pod.as_ref() != Some(&pod.uid) {
                return Err(format!(
                    "ResourceClaim {namespace}/{claim} was not created for Pod {namespace}/{name} (Pod is not owner)"
                ));
            }
            if found.allocation.is_some() {
                let for_pod = found.reserved.contains(&pod.uid);
                if !for_pod && found.reserved.len() >= RESERVED_MAX {
                    return Err("resourceclaim in use".into());
                }
                needs.reserve.extend((!for_pod).then_some(id));
                needs.allocated.push(found);
                continue;
            }
            if self.assumed.contains_key(&id) {
                return Err(format!(
                    "resource claim {namespace}/{claim} is in the process of being allocated"
                ));
            }
            self.check_classes(found)?;
            needs.open.push(found.clone());
        }
        needs.extended = pod.devices.extended.iter().any(|e| self.class_of(&e.resource).is_some());
        let stale = |c: &&Arc<Claim>| c.extended && c.pod.as_ref() == Some(&pod.uid);
        if needs.extended && self.claims.values().any(|c| stale(&c)) {
            return Err(STALE.into());
        }
        Ok(needs)
    }

    fn check_classes(&self, claim: &Claim) -> Result<(), String> {
        for request in &claim.requests {
            for (way, exact) in request.ways.iter().enumerate() {
                let (name, class) = (request.full_name(way), &exact.class);
                if class.is_empty() {
                    return Err(format!("request {name}: unsupported request type"));
                }
                if !self.classes.contains_key(class) {
                    return Err(format!("request {name}: device class {class} does not exist"));
                }
            }
        }
        Ok(())
    }

    /// Promises what was decided for a pod.
    pub fn assume(&mut self, pod: &PodId, steps: &[Step]) {
        for step in steps {
            let (id, allocation) = match step {
                Step::Reserve(_) => continue,
                Step::Allocate(id, allocation) => (id.clone(), allocation),
                // No claim has such a name.
                Step::Make { allocation, .. } => ((pod.0.to_string(), format!("<{}>", pod.1)), allocation),
            };
            let allocation = Allocation::read(allocation);
            self.used.add(&allocation);
            self.assumed.insert(id, (pod.clone(), allocation));
        }
    }

    /// Takes a pod's promises back, or knows them kept.
    pub fn forget(&mut self, pod: &PodId) {
        let mut used = std::mem::take(&mut self.used);
        self.assumed.retain(|_, (of, allocation)| {
            let kept = of != pod;
            if !kept {
                used.remove(allocation);
            }
            kept
        });
        self.used = used;
    }
}

/// What a pod's claims ask of a node.
#[derive(Default)]
pub struct Needs<'a> {
    inventory: Option<&'a Inventory>,
    pod: Option<&'a PodInfo>,
    allocated: Vec<&'a Arc<Claim>>,
    open: Vec<Arc<Claim>>,
    reserve: Vec<ClaimId>,
    /// Does a class stand for one of the pod's extended resources?
    extended: bool,
}

impl Needs<'_> {
    /// Why the node will not do; none: it will.
    pub fn objection(&self, node: &NodeSpec) -> Option<String> {
        self.steps(node).err()
    }

    /// Does a class stand for this resource on a node that has so much of it?
    pub fn backs(&self, resource: &str, allocatable: i64) -> bool {
        self.extended && allocatable == 0 && self.inventory.is_some_and(|i| i.class_of(resource).is_some())
    }

    /// Claims that have devices and that nobody else uses, but that the nodes do not reach.
    pub fn idle(&self) -> Vec<ClaimId> {
        let uid = self.pod.map_or("", |p| &p.uid);
        let idle = self.allocated.iter().filter(|c| c.reserved.iter().all(|r| r == uid));
        idle.map(|c| c.id.clone()).collect()
    }

    /// What is to be written for the pod to run on the node.
    ///
    /// # Errors
    /// It cannot; why, in upstream's words.
    pub fn steps(&self, node: &NodeSpec) -> Result<Vec<Step>, String> {
        let (Some(inventory), Some(pod)) = (self.inventory, self.pod) else { return Ok(Vec::new()) };
        if self.allocated.iter().any(|c| c.allocation.as_ref().is_some_and(|a| !a.reaches(node))) {
            return Err(NOT_HERE.into());
        }
        let mut steps: Vec<Step> = self.reserve.iter().cloned().map(Step::Reserve).collect();
        let made = match self.extended {
            true => extended::claim(inventory, pod, node)?,
            false => None,
        };
        let mut open: Vec<&Claim> = self.open.iter().map(|c| &**c).collect();
        open.extend(made.as_ref().map(|m| &m.claim));
        if open.is_empty() {
            return Ok(steps);
        }
        let found = allocate::allocate(inventory, node, &open)?.ok_or(NOT_ALL)?;
        let mut found = found.into_iter();
        for claim in &self.open {
            steps.extend(found.next().map(|allocation| Step::Allocate(claim.id.clone(), allocation)));
        }
        if let (Some(made), Some(allocation)) = (made, found.next()) {
            steps.push(Step::Make { spec: made.spec, allocation, mappings: made.mappings });
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests;

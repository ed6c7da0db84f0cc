//! Pools as a node sees them: the newest generation of their slices, whether it is complete, and what is left of
//! their counters.

use super::Inventory;
use super::read::{Counters, Device, DeviceId, Place, PoolId, Slice};
use crate::model::NodeSpec;
use machinery::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A pool that has devices for a node.
pub struct Pool<'a> {
    pub id: &'a PoolId,
    /// Slices with devices for the node.
    pub slices: Vec<&'a Slice>,
    /// All slices of the generation.
    all: Vec<&'a Slice>,
    /// Slices are missing: the driver is at it.
    pub incomplete: bool,
    /// Two devices have one name.
    pub invalid: bool,
}

impl Pool<'_> {
    /// Can devices be had from it?
    pub fn is_usable(&self) -> bool {
        !self.incomplete && !self.invalid
    }

    /// The full name of one of its devices.
    pub fn device_id(&self, device: &Device) -> DeviceId {
        (self.id.0.clone(), self.id.1.clone(), device.name.clone())
    }

    /// What is left of the counters beside the devices that claims have.
    pub fn counters_left(&self, has: impl Fn(&DeviceId) -> bool) -> Counters {
        let mut left = Counters::new();
        for (at, amount) in self.all.iter().flat_map(|s| &s.counters) {
            left.insert(at.clone(), *amount);
        }
        for device in self.all.iter().flat_map(|s| &s.devices) {
            if device.consumes.is_empty() || !has(&self.device_id(device)) {
                continue;
            }
            for (at, amount) in &device.consumes {
                if let Some(left) = left.get_mut(at) {
                    *left = left.sub(*amount);
                }
            }
        }
        left
    }
}

/// Does the amount suffice for all that is wanted?
pub fn suffices(left: &Counters, wanted: &Counters) -> bool {
    wanted.iter().all(|(at, amount)| left.get(at).copied().unwrap_or(Quantity::ZERO) >= *amount)
}

fn pool<'a>(id: &'a PoolId, slices: &'a BTreeMap<String, Arc<Slice>>, node: &NodeSpec) -> Option<Pool<'a>> {
    let newest = slices.values().map(|s| s.generation).max()?;
    let all: Vec<&Slice> = slices.values().map(|s| &**s).filter(|s| s.generation == newest).collect();
    let here: Vec<&Slice> = all.iter().copied().filter(|s| s.reaches(node)).collect();
    let first = here.first()?;
    let incomplete = usize::try_from(first.count) != Ok(all.len());
    let mut seen = BTreeSet::new();
    let invalid = !here.iter().flat_map(|s| &s.devices).all(|d| seen.insert(&d.name));
    Some(Pool { id, incomplete, invalid, slices: here, all })
}

/// All pools with devices for the node; those whose devices make a pod wait come last.
pub fn of_node<'a>(inventory: &'a Inventory, node: &NodeSpec) -> Vec<Pool<'a>> {
    let places = [Some(node.name.clone()), None];
    let ids: BTreeSet<&PoolId> = places.iter().filter_map(|p| inventory.places.get(p)).flatten().collect();
    let found = ids.into_iter().filter_map(|id| inventory.pools.get_key_value(id));
    let mut pools: Vec<Pool<'_>> = found.filter_map(|(id, slices)| pool(id, slices, node)).collect();
    let waits = |p: &Pool<'_>| {
        let mut devices = p.slices.iter().flat_map(|s| &s.devices);
        devices.any(|d| d.conditions[0] != Value::Null)
    };
    pools.sort_by_key(waits);
    pools
}

/// The only node that the slice is for; `None`: perhaps several.
pub fn node_of(slice: &Slice) -> Option<String> {
    match &slice.place {
        Place::Node(name) => Some(name.clone()),
        _ => None,
    }
}

//! Nodes promised to waiting pods while others leave them, and who was asked to leave.
//!
//! Invariant: a pod is promised at most one node.

use crate::model::{PodId, PodInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The promises.
#[derive(Clone, Debug, Default)]
pub struct Nominations {
    by_node: BTreeMap<String, BTreeMap<PodId, Arc<PodInfo>>>,
    nodes: BTreeMap<PodId, String>,
    /// Victims chosen, whether or not the API shows them going yet.
    pub going: BTreeSet<PodId>,
}

impl Nominations {
    /// Promises a node, in place of any other.
    pub fn put(&mut self, node: &str, pod: Arc<PodInfo>) {
        let Some(id) = pod.id.clone() else { return };
        self.remove(&id);
        self.nodes.insert(id.clone(), node.to_string());
        self.by_node.entry(node.to_string()).or_default().insert(id, pod);
    }

    /// Takes the promise back.
    pub fn remove(&mut self, id: &PodId) {
        let Some(node) = self.nodes.remove(id) else { return };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.remove(id);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// The node promised to a pod.
    pub fn node_of(&self, id: &PodId) -> Option<&str> {
        self.nodes.get(id).map(String::as_str)
    }

    /// The others on a node whose promise binds this pod: the equally or more important ones.
    pub fn ahead_of<'a>(&'a self, pod: &'a PodInfo, node: &str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.on(node).filter(|p| p.priority >= pod.priority && p.id != pod.id)
    }

    /// The less important ones, whose promise falls when this pod gets the node.
    pub fn behind<'a>(&'a self, pod: &'a PodInfo, node: &str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.on(node).filter(|p| p.priority < pod.priority)
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_node.get(node).into_iter().flat_map(BTreeMap::values)
    }
}

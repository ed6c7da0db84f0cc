//! What is known of the pods of all tasks at a glance: where they are, and which ports of their nodes they hold.

use client::{Object, ObjectKey};
use ecs_model::lower::{LowerError, Lowered, text, used_ports};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
struct Place {
    node: String,
    ports: BTreeSet<(String, u16)>,
}

impl Place {
    fn of(pod: &Value) -> Place {
        let bound = text(&pod["spec"]["nodeName"]);
        let pinned = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"][0]["matchFields"][0]["values"][0];
        let node = if bound.is_empty() { text(pinned) } else { bound };
        Place { node: node.to_string(), ports: used_ports([pod].into_iter()) }
    }
}

/// Pods by key; one writer of each entry at a time (the cache's order, and the worker that makes the pod).
#[derive(Default)]
pub(super) struct Index {
    places: Mutex<BTreeMap<ObjectKey, Place>>,
}

impl Index {
    /// A pod is there.
    pub fn put(&self, pod: &Object) {
        if let Ok(body) = pod.value() {
            self.places.lock().insert(pod.key.clone(), Place::of(&body));
        }
    }

    /// A pod is gone, or was not made after all.
    pub fn remove(&self, key: &ObjectKey) {
        self.places.lock().remove(key);
    }

    /// Lowers with the ports that are taken on a node, and takes those of the result.
    pub fn reserve(
        &self,
        key: &ObjectKey,
        node: Option<&str>,
        lower: impl FnOnce(&BTreeSet<(String, u16)>) -> Result<Lowered, LowerError>,
    ) -> Result<Lowered, LowerError> {
        let mut places = self.places.lock();
        let others = places.iter().filter(|(k, p)| *k != key && Some(p.node.as_str()) == node);
        let used = others.flat_map(|(_, p)| p.ports.iter().cloned()).collect();
        let lowered = lower(&used)?;
        let place = Place::of(&lowered.pod);
        if !place.ports.is_empty() {
            places.insert(key.clone(), place);
        }
        Ok(lowered)
    }

    /// Tasks whose pods are on a node.
    pub fn on_node(&self, node: &str) -> Vec<ObjectKey> {
        self.places.lock().iter().filter(|(_, p)| p.node == node).map(|(k, _)| k.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_port_is_given_once() {
        let index = Index::default();
        let make = |node: &str, used: &BTreeSet<(String, u16)>| {
            let port = (1..).find(|p| !used.contains(&("tcp".to_string(), *p))).unwrap();
            let pod = json!({"spec": {"nodeName": node, "containers": [{"ports": [{"hostPort": port, "protocol": "TCP"}]}]}});
            Ok(Lowered { pod, secrets: Vec::new(), env_files: Vec::new(), registries: Vec::new() })
        };
        let port = |name: &str, node: &str| {
            let lowered =
                index.reserve(&ObjectKey::new("n", name), Some(node), |used| make(node, used)).unwrap();
            lowered.pod["spec"]["containers"][0]["ports"][0]["hostPort"].as_u64().unwrap()
        };
        assert_eq!((port("x", "a"), port("y", "a"), port("x", "a"), port("z", "b")), (1, 2, 1, 1));
        index.remove(&ObjectKey::new("n", "x"));
        assert_eq!(port("w", "a"), 1);
        assert_eq!((index.on_node("a").len(), index.on_node("b").len()), (2, 1));
    }
}

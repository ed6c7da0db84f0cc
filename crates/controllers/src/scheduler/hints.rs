//! Which change may help a pod that was refused: by the filters that refused it. Pure.

use sched::NodeSpec;
use std::collections::BTreeSet;

/// What happened in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A node came.
    Node,
    /// A node's labels changed.
    Labels,
    /// A node's taints changed, or it was cordoned or opened.
    Taints,
    /// A node's amounts changed.
    Amounts,
    /// A pod left its node, or a promise of one fell.
    Left,
    /// A pod was placed.
    Placed,
    /// Claims, volumes or classes changed.
    Volumes,
    /// Labels of namespaces changed.
    Namespaces,
    /// A node declares other features.
    Features,
    /// Claims, classes or slices of devices changed.
    Devices,
}

use Change::{Amounts, Devices, Features, Labels, Left, Namespaces, Node, Placed, Taints, Volumes};

impl Change {
    /// Upstream's name of the event, for figures; several of its events are one here.
    pub fn event(self) -> &'static str {
        match self {
            Node => "NodeAdd",
            Labels => "NodeUpdateNodeLabel",
            Taints => "NodeUpdateNodeTaint",
            Amounts => "NodeUpdateNodeAllocatable",
            Features => "NodeUpdateNodeDeclaredFeature",
            Left => "AssignedPodDelete",
            Placed => "AssignedPodAdd",
            Volumes => "PersistentVolumeClaimUpdate",
            Namespaces => "NamespaceUpdate",
            Devices => "ResourceClaimUpdate",
        }
    }
}

/// What helps against a filter's objection; a filter that is not named here is helped by everything.
const HELPS: &[(&str, &[Change])] = &[
    ("NodeUnschedulable", &[Node, Taints]),
    ("NodeName", &[Node]),
    ("TaintToleration", &[Node, Taints]),
    ("NodeAffinity", &[Node, Labels]),
    ("NodePorts", &[Node, Left]),
    ("NodeResourcesFit", &[Node, Amounts, Left]),
    ("VolumeRestrictions", &[Left, Volumes]),
    ("NodeVolumeLimits", &[Node, Left, Volumes]),
    ("VolumeBinding", &[Node, Labels, Volumes]),
    ("VolumeZone", &[Node, Labels, Volumes]),
    ("PodTopologySpread", &[Node, Labels, Taints, Left, Placed]),
    ("InterPodAffinity", &[Node, Labels, Left, Placed, Namespaces]),
    ("DynamicResources", &[Node, Labels, Devices]),
    ("NodeDeclaredFeatures", &[Node, Features]),
    // Tried with the others of its group, when those are.
    ("GangScheduling", &[]),
];

/// Filters that refused a pod.
pub type Filters = BTreeSet<&'static str>;

/// May one of the changes help? Where no filter was asked (there was no node), everything may.
pub fn may_help(filters: &Filters, changes: &BTreeSet<Change>) -> bool {
    if changes.is_empty() {
        return false;
    }
    let helps = |filter: &&str| match HELPS.iter().find(|(name, _)| name == filter) {
        Some((_, by)) => changes.iter().any(|c| by.contains(c)),
        None => true,
    };
    filters.is_empty() || filters.iter().any(helps)
}

/// What changed about a node that matters here.
pub fn node_changes(old: Option<&NodeSpec>, new: &NodeSpec) -> Vec<Change> {
    let Some(old) = old else { return vec![Node] };
    let rows = [
        (Labels, old.labels != new.labels),
        (Taints, old.taints != new.taints || old.unschedulable != new.unschedulable),
        (Features, old.features != new.features),
        (Amounts, old.allocatable != new.allocatable || old.max_pods != new.max_pods),
    ];
    rows.into_iter().filter(|(_, changed)| *changed).map(|(change, _)| change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_help_wakes() {
        let refused = |names: &[&'static str]| names.iter().copied().collect::<Filters>();
        let may_help = |filters: &Filters, changes: &[Change]| {
            super::may_help(filters, &changes.iter().copied().collect())
        };
        let full = refused(&["NodeResourcesFit", "NodeAffinity"]);
        assert!(
            may_help(&full, &[Left]) && may_help(&full, &[Labels]) && may_help(&full, &[Volumes, Amounts])
        );
        assert!(!may_help(&full, &[Taints, Placed]) && !may_help(&full, &[]));
        assert!(may_help(&refused(&["SomebodyElse"]), &[Placed]));
        assert!(may_help(&refused(&[]), &[Node]));
    }

    #[test]
    fn pulled_images_help_nobody() {
        let old = NodeSpec { name: "n".into(), ..NodeSpec::default() };
        let mut new = old.clone();
        new.images.insert("i".into(), 1);
        assert_eq!(node_changes(Some(&old), &new), []);
        (new.unschedulable, new.max_pods) = (true, 3);
        assert_eq!(node_changes(Some(&old), &new), [Taints, Amounts]);
        assert_eq!(node_changes(None, &new), [Node]);
    }
}

//! `/metrics` and `/metrics/probes`: the agent's own figures, under the kubelet's names.

use super::text::Text;
use crate::ops::Node;
use runtime::api::{ContainerInfo, ContainerState};

/// `/metrics`.
pub fn text(node: &Node) -> String {
    let pods = node.runtime.pods();
    let count = |is: fn(&ContainerState) -> bool| {
        pods.iter().flat_map(|p| &p.containers).filter(|c: &&ContainerInfo| is(&c.state)).count()
    };
    let mut text = Text::default();
    text.single(
        "kubelet_running_pods",
        "gauge",
        "[BETA] Number of pods that have a running pod sandbox",
        pods.len(),
    );
    text.family("kubelet_running_containers", "gauge", "[BETA] Number of containers currently running");
    for (state, count) in [
        ("created", count(|s| matches!(s, ContainerState::Created))),
        ("exited", count(|s| matches!(s, ContainerState::Exited { .. }))),
        ("running", count(|s| matches!(s, ContainerState::Running { .. }))),
    ] {
        text.sample("kubelet_running_containers", &[("container_state", state)], count, None);
    }
    text.family("kubelet_node_name", "gauge", "[STABLE] The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &node.facts.node_name)], 1, None);
    text.finish()
}

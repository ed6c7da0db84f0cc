//! `/metrics` and `/metrics/probes`: the agent's own figures, under the kubelet's names.

use super::text::Text;
use crate::ops::Node;
use crate::ops::Probed;
use crate::state::ProbeKind;
use runtime::api::{ContainerInfo, ContainerState, PodInfo};
use std::collections::BTreeMap;

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

/// `/metrics/probes`.
pub fn probes(pods: &[PodInfo], probed: &BTreeMap<String, Probed>) -> String {
    let name = "prober_probe_total";
    let mut text = Text::default();
    let help =
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    text.family(name, "counter", help);
    for pod in pods {
        for ((container, kind, success), count) in probed.get(&pod.spec.uid).into_iter().flatten() {
            let kind = match kind {
                ProbeKind::Startup => "Startup",
                ProbeKind::Liveness => "Liveness",
                ProbeKind::Readiness => "Readiness",
            };
            let labels = [
                ("container", container.as_str()),
                ("namespace", &pod.spec.namespace),
                ("pod", &pod.spec.name),
                ("pod_uid", &pod.spec.uid),
                ("probe_type", kind),
                ("result", if *success { "successful" } else { "failed" }),
            ];
            text.sample(name, &labels, count, None);
        }
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::api::PodSpec;

    #[test]
    fn probes_are_counted() {
        let spec = PodSpec { uid: "u".into(), namespace: "n".into(), name: "p".into(), ..PodSpec::default() };
        let pods = [PodInfo { spec, shim_pid: 1, containers: Vec::new() }];
        let of =
            |uid: &str| (uid.to_string(), Probed::from([(("c".to_string(), ProbeKind::Liveness, false), 3)]));
        let text = probes(&pods, &BTreeMap::from([of("u"), of("gone")]));
        let line = "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",\
            probe_type=\"Liveness\",result=\"failed\"} 3";
        assert_eq!(text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>(), [line]);
    }
}

//! `/metrics` and `/metrics/probes`: the agent's own figures, under the kubelet's names.
//!
//! What happens is counted here where it happens ([`done`], [`refused`], [`runs`], …); a process has one agent.
//! Deliberately not here: figures of parts that this agent does not have (PLEG, pod workers, the volume manager).

use super::text::Text;
use crate::ops::Node;
use crate::ops::Probed;
use crate::pod::{PodView, Role};
use crate::state::ProbeKind;
use client::metrics::{Family, Figures, labels};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use runtime::api::{ContainerInfo, ContainerState, PodInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// The kubelet's bounds of what the runtime does, in seconds.
const OPERATION_SECONDS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
/// Its bounds of pulls, in seconds.
const PULL_SECONDS: &[f64] =
    &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 3600.0];
/// Its sizes of images: below so many MB, the label.
const PULL_SIZES: [(u64, &str); 12] = [
    (10, "0-10MB"),
    (100, "10MB-100MB"),
    (500, "100MB-500MB"),
    (1_000, "500MB-1GB"),
    (5_000, "1GB-5GB"),
    (10_000, "5GB-10GB"),
    (20_000, "10GB-20GB"),
    (30_000, "20GB-30GB"),
    (40_000, "30GB-40GB"),
    (60_000, "40GB-60GB"),
    (100_000, "60GB-100GB"),
    (u64::MAX, "GT100GB"),
];
/// Its bounds of a pod's start, in seconds.
const START_SECONDS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Its bounds until a status is told, in seconds.
const TOLD_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Its bounds of containers in a pod.
const CONTAINERS_IN_POD: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
/// From the first sight of a pod until it runs.
const START: Family = Family::histogram("kubelet_pod_start_duration_seconds", START_SECONDS);
/// From a pod's creation until it runs, without pulls and init containers.
const START_SLI: Family = Family::histogram("kubelet_pod_start_sli_duration_seconds", START_SECONDS);
/// The same with them.
const START_TOTAL: Family = Family::histogram("kubelet_pod_start_total_duration_seconds", START_SECONDS);
const TOLD: Family = Family::histogram("kubelet_pod_status_sync_duration_seconds", TOLD_SECONDS);
const IN_POD: Family = Family::histogram("kubelet_containers_per_pod_count", CONTAINERS_IN_POD);
const SANDBOXES: Family = Family::histogram("kubelet_run_podsandbox_duration_seconds", OPERATION_SECONDS);
const SANDBOX_ERRORS: Family = Family::counter("kubelet_run_podsandbox_errors_total");
const PREEMPTIONS: Family = Family::counter("kubelet_preemptions");
const OPERATIONS: Family = Family::counter("kubelet_runtime_operations_total");
const OPERATION_ERRORS: Family = Family::counter("kubelet_runtime_operations_errors_total");
const OPERATION_TIMES: Family =
    Family::histogram("kubelet_runtime_operations_duration_seconds", OPERATION_SECONDS);
const PODS: Family = Family::counter("kubelet_started_pods_total");
const POD_ERRORS: Family = Family::counter("kubelet_started_pods_errors_total");
const CONTAINERS: Family = Family::counter("kubelet_started_containers_total");
const CONTAINER_ERRORS: Family = Family::counter("kubelet_started_containers_errors_total");
const REFUSED: Family = Family::counter("kubelet_admission_rejections_total");
const EVICTED: Family = Family::counter("kubelet_evictions");
const PULLS: Family = Family::histogram("kubelet_image_pull_duration_seconds", PULL_SECONDS);

fn figures() -> &'static Figures {
    static FIGURES: LazyLock<Figures> = LazyLock::new(Figures::default);
    &FIGURES
}

/// What the runtime was asked to make.
#[derive(Clone, Copy)]
pub enum Made<'a> {
    /// A pod's sandbox, by this runtime handler.
    Pod(&'a str),
    /// A container of this role.
    Container(Role),
}

/// Something was made since `begun`, or was not.
pub fn done<T, E>(made: Made, begun: Instant, result: &Result<T, E>) {
    let (what, families, labels) = match made {
        Made::Pod(handler) => {
            let handler = labels_of("runtime_handler", handler);
            figures().observe(&SANDBOXES, &handler, begun.elapsed().as_secs_f64());
            if result.is_err() {
                figures().count(&SANDBOX_ERRORS, &handler);
            }
            ("run_podsandbox", [&PODS, &POD_ERRORS], String::new())
        }
        Made::Container(role) => {
            let kind = match role {
                Role::Init | Role::Sidecar => "init_container",
                Role::Main => "container",
                Role::Ephemeral => "ephemeral_container",
            };
            ("start_container", [&CONTAINERS, &CONTAINER_ERRORS], labels(&[("container_type", kind)]))
        }
    };
    let operation = labels_of("operation_type", what);
    figures().count(&OPERATIONS, &operation);
    figures().observe(&OPERATION_TIMES, &operation, begun.elapsed().as_secs_f64());
    figures().count(families[0], &labels);
    if result.is_err() {
        figures().count(&OPERATION_ERRORS, &operation);
        figures().count(families[1], &labels);
    }
}

/// A pod was not let in.
pub fn refused(reason: &str) {
    figures().count(&REFUSED, &labels_of("reason", reason));
}

/// A pod with so many containers was let in.
pub fn admitted(containers: usize) {
    figures().observe(&IN_POD, "", containers as f64);
}

/// Pods make room for a critical one that this is scarce for.
pub fn preempted(pods: usize, resource: &str) {
    figures().of(&PREEMPTIONS, &labels_of("preemption_signal", resource)).add(pods as f64);
}

/// A change of a pod's status was told so long after it was seen.
pub fn told(took: Duration) {
    figures().observe(&TOLD, "", took.as_secs_f64());
}

/// A pod runs since now, and the API knows; `pulling`: how long its images took.
pub fn runs(pod: &PodView, status: &Value, seen: Duration, pulling: Duration) {
    figures().observe(&START, "", seen.as_secs_f64());
    let created = pod.object.meta().creation_timestamp.as_deref();
    let Some(created) = created.and_then(|at| machinery::time::parse(at).ok()) else { return };
    let total = machinery::time::since(Timestamp::now(), created);
    figures().observe(&START_TOTAL, "", total.as_secs_f64());
    let left = total.saturating_sub(pulling).saturating_sub(initialising(status));
    figures().observe(&START_SLI, "", left.as_secs_f64());
}

/// How long a pod's init containers ran.
fn initialising(status: &Value) -> Duration {
    let ended = status["initContainerStatuses"].as_array().into_iter().flatten();
    let ran = ended.filter_map(|c| {
        let end = &c["state"]["terminated"];
        let at = |field: &str| machinery::time::parse(end[field].as_str()?).ok();
        Some(machinery::time::since(at("finishedAt")?, at("startedAt")?))
    });
    ran.sum()
}

/// A pod was evicted.
pub fn evicted(signal: &str) {
    figures().count(&EVICTED, &labels_of("eviction_signal", signal));
}

/// An image was pulled.
pub fn pulled(bytes: u64, took: Duration) {
    let size =
        PULL_SIZES.iter().find(|(most, _)| bytes / 1_000_000 < *most).map_or("N/A", |(_, label)| label);
    figures().observe(&PULLS, &labels_of("image_size_in_bytes", size), took.as_secs_f64());
}

fn labels_of(name: &str, value: &str) -> String {
    labels(&[(name, value)])
}

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
    let pods = node.all_pods();
    let fixed = pods.iter().filter(|p| node.is_static(p)).count();
    text.family(
        "kubelet_desired_pods",
        "gauge",
        "[ALPHA] The number of pods the kubelet is being instructed to run.",
    );
    for (is_static, count) in [("", pods.len() - fixed), ("true", fixed)] {
        text.sample("kubelet_desired_pods", &[("static", is_static)], count, None);
    }
    text.family("kubelet_active_pods", "gauge", "[ALPHA] The number of pods that are not over.");
    let views: Vec<(bool, Arc<core::Pod>)> =
        pods.iter().filter_map(|p| Some((node.is_static(p), p.view::<core::Pod>().ok()?))).collect();
    let over = |pod: &core::Pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    for (label, wanted) in [("", false), ("true", true)] {
        let count = views.iter().filter(|(fixed, pod)| *fixed == wanted && !over(pod)).count();
        text.sample("kubelet_active_pods", &[("static", label)], count, None);
    }
    let help = "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.";
    let ephemeral = |pod: &core::Pod| Some(pod.spec.as_ref()?.ephemeral_containers.as_ref()?.len());
    let ephemeral: usize = views.iter().filter_map(|(_, pod)| ephemeral(pod)).sum();
    text.single("kubelet_managed_ephemeral_containers", "gauge", help, ephemeral);
    text.finish() + &figures().text()
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
    use serde_json::json;

    #[test]
    fn what_happens_is_counted() {
        // Other tests count here too: only rows of their own are looked at.
        done::<(), ()>(Made::Container(Role::Ephemeral), Instant::now(), &Err(()));
        refused("TestReason");
        pulled(99_000_000, Duration::from_secs(2));
        let text = figures().text();
        for line in [
            "kubelet_started_containers_errors_total{container_type=\"ephemeral_container\"} 1",
            "kubelet_admission_rejections_total{reason=\"TestReason\"} 1",
            "kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes=\"10MB-100MB\",le=\"1\"} 0",
            "kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes=\"10MB-100MB\",le=\"5\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_start_is_measured_without_its_init_containers() {
        let end =
            |from: &str, to: &str| json!({"state": {"terminated": {"startedAt": from, "finishedAt": to}}});
        let list = [
            end("2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z"),
            end("2026-01-01T00:00:40Z", "2026-01-01T00:00:45Z"),
            json!({"state": {"running": {"startedAt": "2026-01-01T00:00:45Z"}}}),
        ];
        assert_eq!(initialising(&json!({"initContainerStatuses": list})), Duration::from_secs(35));
        assert_eq!(initialising(&json!({})), Duration::ZERO);
    }

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

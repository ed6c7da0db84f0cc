//! `/metrics/resource`: what metrics servers scrape.

use super::Stats;
use super::text::{Text, moment, seconds};

/// One family of containers or pods: name, kind, help.
type Family = (&'static str, &'static str, &'static str);

const CPU: Family =
    ("cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed in core-seconds");
const MEMORY: Family = ("memory_working_set_bytes", "gauge", "[STABLE] Current working set in bytes");
const SWAP: Family = ("swap_usage_bytes", "gauge", "[ALPHA] Current amount of swap in use in bytes");

/// The text.
pub fn text(stats: &Stats) -> String {
    let mut text = Text::default();
    containers(stats, &mut text);
    let machine = &stats.machine;
    let swap = machine.swap_used();
    for ((name, kind, help), value) in [
        (CPU, seconds(machine.cpu_ns).to_string()),
        (MEMORY, machine.working_set().to_string()),
        (SWAP, swap.to_string()),
    ] {
        let name = format!("node_{name}");
        text.family(&name, kind, help);
        text.sample(&name, &[], value, Some(machine.at_ms));
    }
    for ((name, kind, help), value) in each() {
        let name = format!("pod_{name}");
        text.family(&name, kind, help);
        for pod in &stats.pods {
            let labels = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
            text.sample(&name, &labels, value(&pod.usage), Some(pod.at_ms));
        }
    }
    text.single(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        0,
    );
    text.finish()
}

type Value = fn(&runtime::api::Usage) -> String;

fn each() -> [(Family, Value); 3] {
    [
        (CPU, |u| seconds(u.cpu_ns).to_string()),
        (MEMORY, |u| u.working_set_bytes.to_string()),
        (SWAP, |u| u.swap_bytes.to_string()),
    ]
}

fn containers(stats: &Stats, text: &mut Text) {
    let all = || stats.pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
    for ((name, kind, help), value) in each() {
        let name = format!("container_{name}");
        text.family(&name, kind, help);
        for (pod, container) in all() {
            let labels = labels(&container.name, pod);
            text.sample(&name, &labels, value(&container.usage), Some(container.at_ms));
        }
    }
    let name = "container_start_time_seconds";
    text.family(name, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
    for (pod, container) in all() {
        text.sample(name, &labels(&container.name, pod), moment(container.started_ns), None);
    }
}

fn labels<'a>(container: &'a str, pod: &'a super::PodStats) -> [(&'a str, &'a str); 3] {
    [("container", container), ("namespace", &pod.namespace), ("pod", &pod.name)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::stats;

    #[test]
    fn what_a_metrics_server_reads() {
        let text = text(&stats());
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 1700000000500",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 1700000000500",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1699999990.25",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 2 1700000000600",
            "node_cpu_usage_seconds_total 7 1700000000000",
            "node_memory_working_set_bytes 5120 1700000000000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}

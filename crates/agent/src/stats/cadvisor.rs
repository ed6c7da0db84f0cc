//! `/metrics/cadvisor`: the `container_…` series that dashboards and alerting rules are written for.
//!
//! A series has the labels `container`, `id`, `image`, `name`, `namespace` and `pod`; those of a pod's own cgroup have
//! no `container` and `image`, those of all pods and of the machine no pod either, as cAdvisor's.

use super::kernel::{Device, Machine};
use super::text::{Text, moment, seconds};
use super::{PodStats, Stats};
use runtime::api::{Pressure, Stall, Usage};
use runtime::oci::Resources;

type Pair = (&'static str, &'static str);
type Value = fn(&Usage) -> u64;

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";
const SECONDS: &str = "seconds";
const FAILURES: &str = "Cumulative count of memory allocation failures.";

/// Series of a cgroup: name, kind (seconds: a counter of nanoseconds), help, fixed labels, value.
type Row = (&'static str, &'static str, &'static str, &'static [Pair], Value);

const ROWS: &[Row] = &[
    ("cpu_cfs_periods_total", COUNTER, "Number of elapsed enforcement period intervals.", &[], |u| {
        u.throttling[0]
    }),
    ("cpu_cfs_throttled_periods_total", COUNTER, "Number of throttled period intervals.", &[], |u| {
        u.throttling[1]
    }),
    (
        "cpu_cfs_throttled_seconds_total",
        SECONDS,
        "Total time duration the container has been throttled.",
        &[],
        |u| u.throttling[2],
    ),
    ("cpu_system_seconds_total", SECONDS, "Cumulative system cpu time consumed in seconds.", &[], |u| {
        u.system_ns
    }),
    (
        "cpu_usage_seconds_total",
        SECONDS,
        "Cumulative cpu time consumed in seconds.",
        &[("cpu", "total")],
        |u| u.cpu_ns,
    ),
    ("cpu_user_seconds_total", SECONDS, "Cumulative user cpu time consumed in seconds.", &[], |u| u.user_ns),
    ("fs_reads_bytes_total", COUNTER, "Cumulative count of bytes read", &[("device", "")], |u| {
        u.disk.read_bytes
    }),
    ("fs_reads_total", COUNTER, "Cumulative count of reads completed", &[("device", "")], |u| u.disk.reads),
    ("fs_writes_bytes_total", COUNTER, "Cumulative count of bytes written", &[("device", "")], |u| {
        u.disk.written_bytes
    }),
    ("fs_writes_total", COUNTER, "Cumulative count of writes completed", &[("device", "")], |u| {
        u.disk.writes
    }),
    ("memory_cache", GAUGE, "Number of bytes of page cache memory.", &[], |u| u.cache_bytes),
    ("memory_failcnt", COUNTER, "Number of memory usage hits limits", &[], |u| u.memory_failures),
    (
        "memory_failures_total",
        COUNTER,
        FAILURES,
        &[("failure_type", "pgfault"), ("scope", "hierarchy")],
        |u| u.faults[0],
    ),
    (
        "memory_failures_total",
        COUNTER,
        FAILURES,
        &[("failure_type", "pgmajfault"), ("scope", "hierarchy")],
        |u| u.faults[1],
    ),
    ("memory_kernel_usage", GAUGE, "Size of kernel memory allocated in bytes.", &[], |u| u.kernel_bytes),
    ("memory_mapped_file", GAUGE, "Size of memory mapped files in bytes.", &[], |u| u.mapped_bytes),
    ("memory_max_usage_bytes", GAUGE, "Maximum memory usage recorded in bytes", &[], |u| u.peak_bytes),
    ("memory_rss", GAUGE, "Size of RSS in bytes.", &[], |u| u.rss_bytes),
    ("memory_swap", GAUGE, "Container swap usage in bytes.", &[], |u| u.swap_bytes),
    ("memory_total_active_file_bytes", GAUGE, "Current total active file in bytes.", &[], |u| {
        u.file_bytes[0]
    }),
    ("memory_total_inactive_file_bytes", GAUGE, "Current total inactive file in bytes.", &[], |u| {
        u.file_bytes[1]
    }),
    ("memory_usage_bytes", GAUGE, "Current memory usage in bytes, including all memory", &[], |u| {
        u.memory_bytes
    }),
    ("memory_working_set_bytes", GAUGE, "Current working set in bytes.", &[], |u| u.working_set_bytes),
    ("oom_events_total", COUNTER, "Count of out of memory events observed for the container", &[], |u| {
        u.oom_kills
    }),
    ("processes", GAUGE, "Number of processes running inside the container.", &[], |u| u.pids),
    ("threads", GAUGE, "Number of threads running inside the container", &[], |u| u.pids),
    (
        "threads_max",
        GAUGE,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        &[],
        |u| u.pids_max,
    ),
];

/// Series of what waited: the resource's place in a cgroup's pressure, its name, and how upstream writes it.
const PRESSURE: [(usize, &str, &str); 3] = [(0, "cpu", "CPU"), (1, "memory", "memory"), (2, "io", "IO")];

/// Limits of a container: name, help, value; without one there is no series, but for memory, where 0 is none.
type Limit = (&'static str, &'static str, fn(&Resources) -> Option<i64>);

const LIMITS: &[Limit] = &[
    ("spec_cpu_period", "CPU period of the container.", |r| {
        r.cpu
            .quota
            .filter(|q| *q > 0)
            .map(|_| r.cpu.period.and_then(|p| i64::try_from(p).ok()).unwrap_or(100_000))
    }),
    ("spec_cpu_quota", "CPU quota of the container.", |r| r.cpu.quota.filter(|q| *q > 0)),
    ("spec_cpu_shares", "CPU share of the container.", |r| r.cpu.shares.and_then(|s| i64::try_from(s).ok())),
    ("spec_memory_limit_bytes", "Memory limit for the container.", |r| {
        Some(r.memory.limit.unwrap_or(0).max(0))
    }),
    ("spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", |r| {
        Some(r.memory.reservation.unwrap_or(0).max(0))
    }),
    ("spec_memory_swap_limit_bytes", "Memory swap limit for the container.", |r| {
        Some(r.memory.swap.unwrap_or(0).max(0))
    }),
];

/// Counters of a network device, received and sent alike.
const NETWORK: [(&str, &str, usize); 4] = [
    ("bytes", "bytes", 0),
    ("packets", "packets", 1),
    ("errors", "errors encountered while", 2),
    ("packets_dropped", "packets dropped while", 3),
];

/// A cgroup whose series are shown.
struct Shown<'a> {
    container: &'a str,
    id: String,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    at_ms: i64,
    started_ns: i64,
    usage: &'a Usage,
    limits: Option<&'a Resources>,
    devices: &'a [Device],
}

impl Shown<'_> {
    fn labels<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = vec![("container", self.container)];
        all.extend(more);
        all.extend([
            ("id", self.id.as_str()),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ]);
        all.sort_unstable();
        all
    }
}

/// The text. `root` is the instance's cgroup.
pub fn text(stats: &Stats, root: &str) -> String {
    let machine = &stats.machine;
    let whole = machine.usage();
    let mut shown = vec![
        group("/".into(), machine.at_ms, &whole, &machine.devices),
        group(format!("/{root}"), machine.at_ms, &stats.all, &[]),
    ];
    for pod in &stats.pods {
        add(&mut shown, pod, root);
    }
    let mut text = Text::default();
    for (name, help, value) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", machine.cpus),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", machine.memory("MemTotal")),
        (
            "machine_swap_bytes",
            "Amount of swap memory available on the machine.",
            machine.memory("SwapTotal"),
        ),
    ] {
        text.single(name, GAUGE, help, value);
    }
    usages(&mut text, &shown);
    pressure(&mut text, &shown);
    limits(&mut text, &shown);
    network(&mut text, &shown);
    file_system(&mut text, &shown[0], machine);
    let error = "1 if there was an error while getting container metrics, 0 otherwise";
    text.single("container_scrape_error", GAUGE, error, 0);
    text.finish()
}

fn group<'a>(id: String, at_ms: i64, usage: &'a Usage, devices: &'a [Device]) -> Shown<'a> {
    let (container, image, name, namespace, pod) = ("", "", "", "", "");
    Shown { container, id, image, name, namespace, pod, at_ms, started_ns: 0, usage, limits: None, devices }
}

fn add<'a>(shown: &mut Vec<Shown<'a>>, pod: &'a PodStats, root: &str) {
    shown.push(Shown {
        namespace: &pod.namespace,
        pod: &pod.name,
        started_ns: pod.started_ns,
        ..group(format!("/{root}/{}", pod.cgroup), pod.at_ms, &pod.usage, &pod.devices)
    });
    for container in &pod.containers {
        shown.push(Shown {
            container: &container.name,
            image: &container.image,
            name: &container.id,
            namespace: &pod.namespace,
            pod: &pod.name,
            started_ns: container.started_ns,
            limits: Some(&container.limits),
            ..group(format!("/{root}/{}", container.cgroup), container.at_ms, &container.usage, &[])
        });
    }
}

fn usages(text: &mut Text, shown: &[Shown]) {
    let mut before = "";
    for (name, kind, help, labels, value) in ROWS {
        let full = format!("container_{name}");
        if *name != before {
            text.family(&full, if *kind == GAUGE { GAUGE } else { COUNTER }, help);
        }
        before = name;
        for one in shown {
            let value = value(one.usage);
            let labels = one.labels(labels);
            match *kind {
                SECONDS => text.sample(&full, &labels, seconds(value), Some(one.at_ms)),
                _ => text.sample(&full, &labels, value, Some(one.at_ms)),
            }
        }
    }
    let name = "container_start_time_seconds";
    text.family(name, GAUGE, "Start time of the container since unix epoch in seconds.");
    for one in shown.iter().filter(|one| one.started_ns > 0) {
        text.sample(name, &one.labels(&[]), moment(one.started_ns), Some(one.at_ms));
    }
    text.family("container_last_seen", GAUGE, "Last time a container was seen by the exporter");
    for one in shown {
        text.sample("container_last_seen", &one.labels(&[]), one.at_ms / 1000, Some(one.at_ms));
    }
}

fn pressure(text: &mut Text, shown: &[Shown]) {
    for (place, resource, word) in PRESSURE {
        let stalled = format!(
            "Total time duration no tasks in the container could make progress due to {word} congestion."
        );
        let waiting =
            format!("Total time duration tasks in the container have waited due to {word} congestion.");
        let full: fn(&Pressure) -> Stall = |p| p.full;
        for (kind, help, stall) in [("stalled", stalled, full), ("waiting", waiting, |p| p.some)] {
            let name = format!("container_pressure_{resource}_{kind}_seconds_total");
            text.family(&name, COUNTER, &help);
            for one in shown {
                if let Some(pressure) = &one.usage.pressure[place] {
                    let value = seconds(stall(pressure).total_us.saturating_mul(1000));
                    text.sample(&name, &one.labels(&[]), value, Some(one.at_ms));
                }
            }
        }
    }
}

/// The disk that pods are on, as the machine's.
fn file_system(text: &mut Text, machine: &Shown, figures: &Machine) {
    let Some(disk) = &figures.disk else { return };
    for (name, help, value) in [
        ("inodes_free", "Number of available Inodes", disk.inodes[1]),
        ("inodes_total", "Number of Inodes", disk.inodes[0]),
        (
            "limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            disk.bytes[0],
        ),
        (
            "usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            disk.bytes[0].saturating_sub(disk.bytes[1]),
        ),
    ] {
        let name = format!("container_fs_{name}");
        text.family(&name, GAUGE, help);
        text.sample(&name, &machine.labels(&[("device", &disk.device)]), value, Some(machine.at_ms));
    }
}

fn limits(text: &mut Text, shown: &[Shown]) {
    for (name, help, value) in LIMITS {
        let name = format!("container_{name}");
        text.family(&name, GAUGE, help);
        for one in shown {
            if let Some(value) = one.limits.and_then(value) {
                text.sample(&name, &one.labels(&[]), value, Some(one.at_ms));
            }
        }
    }
}

fn network(text: &mut Text, shown: &[Shown]) {
    let received: fn(&Device) -> [u64; 4] = |d| d.received;
    for (way, done, counters) in [("receive", "received", received), ("transmit", "transmitted", |d| d.sent)]
    {
        for (name, what, place) in NETWORK {
            let full = format!("container_network_{way}_{name}_total");
            text.family(&full, COUNTER, &format!("Cumulative count of {what} {done}"));
            for one in shown {
                for device in one.devices {
                    let labels = one.labels(&[("interface", &device.name)]);
                    text.sample(&full, &labels, counters(device)[place], Some(one.at_ms));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::stats;

    #[test]
    fn what_alerting_rules_read() {
        let text = text(&stats(), "gantry");
        let of = "id=\"/gantry/burstable/podu/c-0\",image=\"img:1\",name=\"abc\",namespace=\"n\",pod=\"p\"";
        for line in [
            format!(
                "container_cpu_usage_seconds_total{{container=\"c\",cpu=\"total\",{of}}} 1.5 1700000000500"
            ),
            format!("container_memory_working_set_bytes{{container=\"c\",{of}}} 4096 1700000000500"),
            format!(
                "container_pressure_cpu_waiting_seconds_total{{container=\"c\",{of}}} 0.000007 1700000000500"
            ),
            format!("container_spec_cpu_quota{{container=\"c\",{of}}} 50000 1700000000500"),
            format!("container_spec_cpu_period{{container=\"c\",{of}}} 100000 1700000000500"),
            "container_network_receive_bytes_total{container=\"\",id=\"/gantry/burstable/podu\",image=\"\",\
             interface=\"eth0\",name=\"\",namespace=\"n\",pod=\"p\"} 10 1700000000600"
                .into(),
            "machine_memory_bytes 10240".into(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let families: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        let distinct: std::collections::BTreeSet<&&str> = families.iter().collect();
        assert_eq!(families.len(), distinct.len(), "no family twice");
    }
}

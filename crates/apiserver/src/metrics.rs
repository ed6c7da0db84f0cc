//! Counters of this server and their Prometheus text.

use crate::cache::Cache;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the duration histogram, in seconds (a subset of upstream's).
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 60.0];
/// Different (verb, resource, code) rows kept: codes and resources are few, but resources come from clients.
const ROWS_MAX: usize = 2_000;

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKind {
    /// `GET`, `LIST`, `WATCH`, …
    pub verb: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural; "" for other paths.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// `resource`, `namespace`, `cluster`; "" for other paths.
    pub scope: &'static str,
}

/// The name of a verb in metrics: upstream mixes methods and verbs.
pub fn verb_name(verb: &str) -> String {
    match verb {
        "create" => "POST".into(),
        "update" => "PUT".into(),
        other => other.to_uppercase(),
    }
}

#[derive(Default)]
struct Row {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// All counters of one server.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<RequestKind, Row>>,
    watches: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    /// Requests being handled: read-only, mutating.
    running: [Arc<AtomicU64>; 2],
    /// Is the server of an APIService available?
    unavailable: Mutex<BTreeMap<String, bool>>,
}

/// Counts down when it goes.
pub struct Gauge(Arc<AtomicU64>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn raise(gauge: &Arc<AtomicU64>) -> Gauge {
    gauge.fetch_add(1, Ordering::Relaxed);
    Gauge(gauge.clone())
}

impl Metrics {
    /// Counts a finished request.
    pub fn finished(&self, kind: RequestKind, code: u16, took: Duration) {
        let mut requests = self.requests.lock();
        if requests.len() >= ROWS_MAX && !requests.contains_key(&kind) {
            return;
        }
        let row = requests.entry(kind).or_default();
        *row.codes.entry(code).or_default() += 1;
        row.count += 1;
        row.seconds += took.as_secs_f64();
        for (bucket, bound) in row.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// Notes whether an APIService's server answers.
    pub fn available(&self, name: &str, available: bool) {
        self.unavailable.lock().insert(name.to_string(), !available);
    }

    /// Forgets APIServices that are gone.
    pub fn only_services(&self, exists: impl Fn(&str) -> bool) {
        self.unavailable.lock().retain(|name, _| exists(name));
    }

    /// Counts a request while it is handled; long ones are counted elsewhere.
    pub fn running(&self, mutating: bool, long: bool) -> Option<Gauge> {
        (!long).then(|| raise(&self.running[usize::from(mutating)]))
    }

    /// Counts a running HTTP watch.
    pub fn watching(&self) -> Gauge {
        raise(&self.watches)
    }

    /// Counts an open connection.
    pub fn connected(&self) -> Gauge {
        raise(&self.connections)
    }

    /// Requests that run, APIServices that do not answer, the build.
    fn gauges(&self, out: &mut String) {
        out.push_str("# TYPE apiserver_current_inflight_requests gauge\n");
        for (kind, running) in ["readOnly", "mutating"].iter().zip(&self.running) {
            let running = running.load(Ordering::Relaxed);
            // Writing to a String does not fail.
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {running}");
        }
        out.push_str("# TYPE aggregator_unavailable_apiservice gauge\n");
        for (name, unavailable) in self.unavailable.lock().iter() {
            let value = u8::from(*unavailable);
            let _ = writeln!(out, "aggregator_unavailable_apiservice{{name=\"{name}\"}} {value}");
        }
        out.push_str("# TYPE kubernetes_build_info gauge\n");
        out.push_str("kubernetes_build_info{major=\"1\",minor=\"36\",platform=\"linux\"} 1\n");
    }

    /// The Prometheus text.
    pub fn text(&self, cache: &Cache) -> String {
        let mut out = String::new();
        let line = |out: &mut String, text: std::fmt::Arguments<'_>| {
            // Writing to a String does not fail.
            let _ = out.write_fmt(text);
            out.push('\n');
        };
        let requests = self.requests.lock();
        line(&mut out, format_args!("# TYPE apiserver_request_total counter"));
        for (kind, row) in requests.iter() {
            for (code, count) in &row.codes {
                line(
                    &mut out,
                    format_args!("apiserver_request_total{{code=\"{code}\",{}}} {count}", labels(kind)),
                );
            }
        }
        line(&mut out, format_args!("# TYPE apiserver_request_duration_seconds histogram"));
        for (kind, row) in requests.iter() {
            let labels = labels(kind);
            for (count, bound) in row.buckets.iter().zip(BUCKETS) {
                line(
                    &mut out,
                    format_args!(
                        "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}"
                    ),
                );
            }
            line(
                &mut out,
                format_args!(
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                    row.count
                ),
            );
            line(
                &mut out,
                format_args!("apiserver_request_duration_seconds_sum{{{labels}}} {}", row.seconds),
            );
            line(
                &mut out,
                format_args!("apiserver_request_duration_seconds_count{{{labels}}} {}", row.count),
            );
        }
        drop(requests);
        line(&mut out, format_args!("# TYPE apiserver_longrunning_requests gauge"));
        line(
            &mut out,
            format_args!(
                "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}",
                self.watches.load(Ordering::Relaxed)
            ),
        );
        self.gauges(&mut out);
        line(&mut out, format_args!("# TYPE gantry_apiserver_connections gauge"));
        line(
            &mut out,
            format_args!("gantry_apiserver_connections {}", self.connections.load(Ordering::Relaxed)),
        );
        line(&mut out, format_args!("# TYPE gantry_store_revision counter"));
        line(&mut out, format_args!("gantry_store_revision {}", cache.revision()));
        let figures = cache.figures();
        for (name, value) in
            [("apiserver_storage_objects", 0), ("gantry_cache_changes", 1), ("gantry_cache_watchers", 2)]
        {
            line(&mut out, format_args!("# TYPE {name} gauge"));
            for (prefix, f) in &figures {
                let number = [f.objects, f.changes, f.watchers][value];
                line(&mut out, format_args!("{name}{{resource=\"{}\"}} {number}", prefix_name(prefix)));
            }
        }
        out + &process()
    }
}

/// What every Prometheus client tells of its process; nothing where `/proc` is not readable.
fn process() -> String {
    /// `USER_HZ` and the page size of the machines we run on.
    const TICKS: f64 = 100.0;
    const PAGE: u64 = 4_096;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    // The name, in parentheses, may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let of = |n: usize| fields.get(n).copied().unwrap_or(0.0);
    let pages: Vec<u64> = read("/proc/self/statm").split(' ').filter_map(|f| f.trim().parse().ok()).collect();
    let boot = read("/proc/stat");
    let boot: f64 = boot
        .lines()
        .find_map(|l| l.strip_prefix("btime "))
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0.0);
    let limits = read("/proc/self/limits");
    let most = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let most = most.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let memory = |n: usize| pages.get(n).copied().unwrap_or(0) * PAGE;
    let mut out = String::new();
    for (name, kind, value) in [
        ("cpu_seconds_total", "counter", ((of(11) + of(12)) / TICKS).to_string()),
        ("resident_memory_bytes", "gauge", memory(1).to_string()),
        ("virtual_memory_bytes", "gauge", memory(0).to_string()),
        ("open_fds", "gauge", open.to_string()),
        ("max_fds", "gauge", most.to_string()),
        ("start_time_seconds", "gauge", (boot + of(19) / TICKS).to_string()),
    ] {
        // Writing to a String does not fail.
        let _ = writeln!(out, "# TYPE process_{name} {kind}\nprocess_{name} {value}");
    }
    out
}

/// `deployments.apps` of `/main/apps/deployments/`.
fn prefix_name(prefix: &str) -> String {
    let mut parts = prefix.trim_matches('/').split('/').skip(1);
    let (group, resource) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if group == "core" { resource.to_string() } else { format!("{resource}.{group}") }
}

fn labels(kind: &RequestKind) -> String {
    let quote = |text: &str| text.replace(['"', '\\', '\n'], "_");
    format!(
        "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\",scope=\"{}\",component=\"apiserver\",dry_run=\"\"",
        quote(&kind.verb),
        quote(&kind.group),
        quote(&kind.version),
        quote(&kind.resource),
        quote(&kind.subresource),
        kind.scope
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let text = process();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|l| l.strip_prefix(&format!("process_{name} ")));
            line.unwrap().parse().unwrap()
        };
        assert!(
            value("resident_memory_bytes") > 1e6
                && value("resident_memory_bytes") < value("virtual_memory_bytes")
        );
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!(now - value("start_time_seconds") < 3_600.0 && value("start_time_seconds") < now + 5.0);
        assert!(value("open_fds") >= 3.0 && value("open_fds") < value("max_fds"));
    }

    #[test]
    fn verbs_and_labels_are_upstreams() {
        assert_eq!(["create", "update", "list"].map(verb_name), ["POST", "PUT", "LIST"]);
        let kind = RequestKind {
            verb: "GET".into(),
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            subresource: "x\"y".into(),
            scope: "resource",
        };
        assert!(labels(&kind).contains("resource=\"pods\",subresource=\"x_y\",scope=\"resource\""));
    }
}

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
        out
    }
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
        "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\"",
        quote(&kind.verb),
        quote(&kind.group),
        quote(&kind.version),
        quote(&kind.resource),
        quote(&kind.subresource)
    )
}

//! Figures under Prometheus' names: counters, gauges and histograms by labels, and their text.
//!
//! A [`Family`] is one name; a row of it is found once by its labels ([`Figures::of`]) and then costs an atomic addition.
//! Figures that belong to no server (work queues, requests to other servers) are in [`shared`].
//! Invariant: a family has at most [`ROWS_MAX`] rows; what comes beyond is counted nowhere, because labels may come
//! from clients. Deliberately not here: what is counted, and HTTP.

use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Rows of one family.
const ROWS_MAX: usize = 2_000;

/// What a family's rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many values were at most each of these bounds.
    Histogram(&'static [f64]),
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As upstream has it.
    pub name: &'static str,
    /// What its rows are.
    pub shape: Shape,
}

impl Family {
    /// A counter.
    pub const fn counter(name: &'static str) -> Self {
        Family { name, shape: Shape::Counter }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str) -> Self {
        Family { name, shape: Shape::Gauge }
    }

    /// A histogram.
    pub const fn histogram(name: &'static str, bounds: &'static [f64]) -> Self {
        Family { name, shape: Shape::Histogram(bounds) }
    }
}

/// One row: a number, or a histogram.
#[derive(Debug)]
pub struct Figure {
    /// The value, or the sum of all; an `f64`'s bits.
    value: AtomicU64,
    count: AtomicU64,
    bounds: &'static [f64],
    /// By bound, not added up.
    buckets: Box<[AtomicU64]>,
}

impl Figure {
    fn new(shape: Shape) -> Figure {
        let bounds = if let Shape::Histogram(bounds) = shape { bounds } else { &[] };
        let buckets = bounds.iter().map(|_| AtomicU64::new(0)).collect();
        Figure { value: AtomicU64::new(0), count: AtomicU64::new(0), bounds, buckets }
    }

    /// Adds to a number.
    pub fn add(&self, more: f64) {
        let added = |bits: u64| Some((f64::from_bits(bits) + more).to_bits());
        let _ = self.value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }

    /// Makes a number this one.
    pub fn set(&self, value: f64) {
        self.value.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        self.add(value);
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(self.bounds.partition_point(|bound| *bound < value)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds one to a gauge until the answer goes.
    pub fn raise(figure: &Arc<Figure>) -> Raised {
        figure.add(1.0);
        Raised(figure.clone())
    }

    /// The number, or the sum.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

/// Takes one from a gauge when it goes.
#[derive(Debug)]
pub struct Raised(Arc<Figure>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

#[derive(Default)]
struct Rows {
    shape: Option<Shape>,
    rows: BTreeMap<String, Arc<Figure>>,
}

/// Families and their rows. Clones share them.
#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<BTreeMap<&'static str, Rows>>>);

impl Figures {
    /// The row with these labels (`a="x",b="y"`, see [`labels`]).
    pub fn of(&self, family: &Family, labels: &str) -> Arc<Figure> {
        let mut families = self.0.lock();
        let rows = families.entry(family.name).or_default();
        rows.shape = Some(family.shape);
        if let Some(row) = rows.rows.get(labels) {
            return row.clone();
        }
        let row = Arc::new(Figure::new(family.shape));
        if rows.rows.len() < ROWS_MAX {
            rows.rows.insert(labels.to_string(), row.clone());
        }
        row
    }

    /// Adds one to a counter.
    pub fn count(&self, family: &Family, labels: &str) {
        self.of(family, labels).add(1.0);
    }

    /// Counts a value in a histogram.
    pub fn observe(&self, family: &Family, labels: &str, value: f64) {
        self.of(family, labels).observe(value);
    }

    /// Adds one to a gauge until the answer goes.
    pub fn raise(&self, family: &Family, labels: &str) -> Raised {
        Figure::raise(&self.of(family, labels))
    }

    /// The Prometheus text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, rows) in self.0.lock().iter() {
            let kind = match rows.shape {
                Some(Shape::Counter) => "counter",
                Some(Shape::Histogram(_)) => "histogram",
                Some(Shape::Gauge) | None => "gauge",
            };
            // Writing to a String does not fail.
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, row) in &rows.rows {
                write_row(&mut out, name, labels, row);
            }
        }
        out
    }
}

fn write_row(out: &mut String, name: &str, labels: &str, row: &Figure) {
    let around = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    if row.bounds.is_empty() {
        let _ = writeln!(out, "{name}{around} {}", row.value());
        return;
    }
    let comma = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (bound, bucket) in row.bounds.iter().zip(&row.buckets) {
        below += bucket.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
    }
    let count = row.count.load(Ordering::Relaxed).max(below);
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{around} {}\n{name}_count{around} {count}", row.value());
}

/// Labels as [`Figures::of`] takes them.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"");
        for c in value.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// Upper bounds in seconds, as upstream's client has them.
const CALL_SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const CALLS: Family = Family::counter("rest_client_requests_total");
const CALL: Family = Family::histogram("rest_client_request_duration_seconds", &CALL_SECONDS);

/// Method and status.
type CallKind = (&'static str, u16);

/// Counts the calls of one client under upstream's `rest_client_` names.
pub struct Calls {
    host: String,
    rows: RwLock<BTreeMap<CallKind, [Arc<Figure>; 2]>>,
}

impl Calls {
    /// Calls to this host.
    pub fn new(host: impl Into<String>) -> Self {
        Calls { host: host.into(), rows: RwLock::default() }
    }

    /// Counts one that ended with this status.
    pub fn done(&self, method: &'static str, code: u16, took: Duration) {
        let known = self.rows.read().get(&(method, code)).cloned();
        let [total, seconds] = known.unwrap_or_else(|| {
            let (host, status) = (("host", self.host.as_str()), code.to_string());
            let rows = [
                shared().of(&CALLS, &labels(&[("code", &status), host, ("method", method)])),
                shared().of(&CALL, &labels(&[host, ("verb", method)])),
            ];
            self.rows.write().insert((method, code), rows.clone());
            rows
        });
        total.add(1.0);
        seconds.observe(took.as_secs_f64());
    }
}

/// Figures of this process as a whole.
pub fn shared() -> &'static Figures {
    static SHARED: std::sync::LazyLock<Figures> = std::sync::LazyLock::new(Figures::default);
    &SHARED
}

/// Brings something up to date before the shared figures are told; `false` when it is gone.
type Refresh = Box<dyn Fn() -> bool + Send + Sync>;

static REFRESHES: Mutex<Vec<Refresh>> = Mutex::new(Vec::new());

/// Calls this before the shared figures are told, for as long as it returns true.
pub fn refresh(call: impl Fn() -> bool + Send + Sync + 'static) {
    REFRESHES.lock().push(Box::new(call));
}

/// The text of the shared figures.
pub fn shared_text() -> String {
    REFRESHES.lock().retain(|call| call());
    shared().text()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Family = Family::histogram("took_seconds", &[0.1, 1.0]);
    const RUNS: Family = Family::gauge("runs");
    const DONE: Family = Family::counter("done_total");

    #[test]
    fn rows_are_told_as_prometheus_reads_them() {
        let figures = Figures::default();
        let one = labels(&[("verb", "GET"), ("why", "a \"b\"\\")]);
        for value in [0.05, 0.1, 0.5, 7.0] {
            figures.observe(&TOOK, &one, value);
        }
        figures.count(&DONE, "");
        figures.count(&DONE, "");
        let calls = Calls::new("h");
        calls.done("GET", 404, Duration::from_millis(30));
        let told = shared_text();
        assert!(
            told.contains("rest_client_requests_total{code=\"404\",host=\"h\",method=\"GET\"} 1\n"),
            "{told}"
        );
        assert!(
            told.contains(
                "rest_client_request_duration_seconds_bucket{host=\"h\",verb=\"GET\",le=\"0.1\"} 1\n"
            )
        );
        let raised = figures.raise(&RUNS, "");
        let text = figures.text();
        for line in [
            "# TYPE took_seconds histogram",
            "took_seconds_bucket{verb=\"GET\",why=\"a \\\"b\\\"\\\\\",le=\"0.1\"} 2",
            "took_seconds_bucket{verb=\"GET\",why=\"a \\\"b\\\"\\\\\",le=\"1\"} 3",
            "took_seconds_bucket{verb=\"GET\",why=\"a \\\"b\\\"\\\\\",le=\"+Inf\"} 4",
            "took_seconds_sum{verb=\"GET\",why=\"a \\\"b\\\"\\\\\"} 7.65",
            "# TYPE done_total counter",
            "done_total 2",
            "runs 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        drop(raised);
        assert!(figures.text().contains("runs 0\n"));
    }

    #[test]
    fn labels_from_clients_cannot_fill_the_memory() {
        let figures = Figures::default();
        for i in 0..3 * ROWS_MAX {
            figures.count(&DONE, &labels(&[("x", &i.to_string())]));
        }
        assert_eq!(figures.text().lines().count(), ROWS_MAX + 1);
    }
}

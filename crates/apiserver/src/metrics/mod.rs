//! Counters of this server and their Prometheus text, by upstream's names.
//!
//! A request is looked up once by what it is; the rest are atomic additions. Deliberately not here: what other crates
//! count (`client::metrics` has what belongs to the process).

pub mod expressions;
mod process;
pub mod resources;

use crate::cache::Cache;
use crate::resources::DEPRECATED_KINDS;
use client::metrics::{Family, Figure, Figures, Raised, labels, shared_text};
use parking_lot::Mutex;
use process::process;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Upper bounds in seconds, as upstream's.
pub const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const SIZES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const EVENT_SIZES: [f64; 8] = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0];
const STEP_SECONDS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOK_SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const CHECK_SECONDS: [f64; 5] = [0.000_000_5, 0.001, 0.01, 0.1, 1.0];

const TOTAL: Family = Family::counter("apiserver_request_total");
const DURATION: Family = Family::histogram("apiserver_request_duration_seconds", &SECONDS);
const SLI: Family = Family::histogram("apiserver_request_sli_duration_seconds", &SECONDS);
const RESPONSES: Family = Family::histogram("apiserver_response_sizes", &SIZES);
const LONG: Family = Family::gauge("apiserver_longrunning_requests");
const INFLIGHT: Family = Family::gauge("apiserver_current_inflight_requests");
const DEPRECATED: Family = Family::gauge("apiserver_requested_deprecated_apis");
const EVENTS: Family = Family::counter("apiserver_watch_events_total");
const EVENT_BYTES: Family = Family::histogram("apiserver_watch_events_sizes", &EVENT_SIZES);
const STEP: Family = Family::histogram("apiserver_admission_step_admission_duration_seconds", &STEP_SECONDS);
const PLUGIN: Family =
    Family::histogram("apiserver_admission_controller_admission_duration_seconds", &STEP_SECONDS);
const WEBHOOK: Family =
    Family::histogram("apiserver_admission_webhook_admission_duration_seconds", &WEBHOOK_SECONDS);
const CHECKS: Family = Family::counter("apiserver_validating_admission_policy_check_total");
const CHECK: Family =
    Family::histogram("apiserver_validating_admission_policy_check_duration_seconds", &CHECK_SECONDS);
const AUTHENTICATED: Family = Family::counter("authentication_attempts");
const AUTHORIZED: Family = Family::counter("authorization_attempts_total");
const HEALTH: Family = Family::gauge("kubernetes_healthcheck");
const HEALTHS: Family = Family::counter("kubernetes_healthchecks_total");

/// Group versions that upstream has removed, and in which release.
const REMOVED: [(&str, &str, &str); 6] = [
    ("apps", "v1beta1", "1.16"),
    ("apps", "v1beta2", "1.16"),
    ("extensions", "v1beta1", "1.16"),
    ("apiextensions.k8s.io", "v1beta1", "1.22"),
    ("batch", "v1beta1", "1.25"),
    ("policy", "v1beta1", "1.25"),
];
/// Different kinds of request that are told apart: resources come from clients.
const ROWS_MAX: usize = 2_000;

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// `All` or "".
    pub dry_run: &'static str,
}

impl RequestKind {
    /// For what upstream has deprecated: the release that removed it, empty if none has.
    fn removed_in(&self) -> Option<&'static str> {
        let of_kind = || DEPRECATED_KINDS.iter().any(|(g, r, _)| self.group == *g && self.resource == *r);
        let removed =
            REMOVED.iter().find(|(group, version, _)| self.group == *group && self.version == *version);
        removed.map(|(.., release)| *release).or_else(|| of_kind().then_some(""))
    }

    /// With the labels of one family that not all have.
    fn labels(&self, more: &[(&str, &str)]) -> String {
        let mut pairs = vec![
            ("component", "apiserver"),
            ("group", &self.group),
            ("resource", &self.resource),
            ("scope", self.scope),
            ("subresource", &self.subresource),
            ("verb", &self.verb),
            ("version", &self.version),
        ];
        pairs.extend_from_slice(more);
        pairs.sort_unstable();
        labels(&pairs)
    }
}

/// The name of a verb in metrics: upstream mixes methods and verbs.
pub fn verb_name(verb: &str) -> String {
    match verb {
        "create" => "POST".into(),
        "update" => "PUT".into(),
        other => other.to_uppercase(),
    }
}

/// The rows of one kind of request.
struct Row {
    codes: Mutex<BTreeMap<u16, Arc<Figure>>>,
    took: Arc<Figure>,
    /// Not of requests that last as long as their client likes.
    sli: Option<Arc<Figure>>,
    /// Of reads.
    sizes: Option<Arc<Figure>>,
}

/// A finished request.
pub struct Finished {
    /// Its status.
    pub code: u16,
    /// How long it took.
    pub took: Duration,
    /// Bytes of the answer, where they were known.
    pub size: Option<u64>,
}

/// One step of the admission of a write.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// `CREATE`, …
    pub operation: &'static str,
    /// May it change the object (`admit`), or only judge it (`validate`)?
    pub admits: bool,
    /// Was the write refused?
    pub rejected: bool,
}

impl Step {
    fn labels(self, name: Option<&str>) -> String {
        let rejected = if self.rejected { "true" } else { "false" };
        let kind = if self.admits { "admit" } else { "validate" };
        let name = name.map(|n| ("name", n));
        let rest = [("operation", self.operation), ("rejected", rejected), ("type", kind)];
        labels(&name.into_iter().chain(rest).collect::<Vec<_>>())
    }

    fn index(self) -> usize {
        let operation = ["CREATE", "UPDATE", "DELETE"].iter().position(|o| *o == self.operation).unwrap_or(3);
        operation * 4 + usize::from(self.admits) * 2 + usize::from(self.rejected)
    }
}

/// Indexes of steps.
const STEPS: usize = 16;
/// Plug-ins that are told apart.
const PLUGINS_MAX: usize = 32;

/// The rows of all steps, found without a look-up.
struct Steps(Vec<OnceLock<Arc<Figure>>>);

impl Default for Steps {
    fn default() -> Self {
        Steps((0..STEPS * (PLUGINS_MAX + 1)).map(|_| OnceLock::new()).collect())
    }
}

/// What one watch sends.
pub struct Sent {
    events: Arc<Figure>,
    sizes: Arc<Figure>,
}

impl Sent {
    /// Counts an event of so many bytes.
    pub fn event(&self, bytes: usize) {
        self.events.add(1.0);
        self.sizes.observe(bytes as f64);
    }
}

/// All counters of one server.
#[derive(Default)]
pub struct Metrics {
    figures: Figures,
    health: Figures,
    requests: Mutex<HashMap<RequestKind, Arc<Row>>>,
    steps: Steps,
    inflight: [OnceLock<Arc<Figure>>; 2],
    attempts: [OnceLock<Arc<Figure>>; 4],
    connections: Figures,
    /// Is the server of an APIService available?
    unavailable: Mutex<BTreeMap<String, bool>>,
}

impl Metrics {
    /// Counts a finished request. `long` ones have no latency.
    pub fn finished(&self, kind: RequestKind, long: bool, done: &Finished) {
        let Some(row) = self.row(&kind, long) else { return };
        let total = {
            let mut codes = row.codes.lock();
            let of = || {
                let code = done.code.to_string();
                self.figures.of(&TOTAL, &kind.labels(&[("code", &code), ("dry_run", kind.dry_run)]))
            };
            codes.entry(done.code).or_insert_with(of).clone()
        };
        total.add(1.0);
        row.took.observe(done.took.as_secs_f64());
        if let Some(sli) = &row.sli {
            sli.observe(done.took.as_secs_f64());
        }
        if let (Some(sizes), Some(size)) = (&row.sizes, done.size) {
            sizes.observe(size as f64);
        }
    }

    fn row(&self, kind: &RequestKind, long: bool) -> Option<Arc<Row>> {
        let mut requests = self.requests.lock();
        if let Some(row) = requests.get(kind) {
            return Some(row.clone());
        }
        if requests.len() >= ROWS_MAX {
            return None;
        }
        let plain = || kind.labels(&[]);
        let reads = matches!(kind.verb.as_str(), "GET" | "LIST");
        let row = Arc::new(Row {
            codes: Mutex::default(),
            took: self.figures.of(&DURATION, &kind.labels(&[("dry_run", kind.dry_run)])),
            sli: (!long).then(|| self.figures.of(&SLI, &plain())),
            sizes: reads.then(|| self.figures.of(&RESPONSES, &plain())),
        });
        requests.insert(kind.clone(), row.clone());
        drop(requests);
        if let Some(release) = kind.removed_in() {
            let all = [
                ("group", kind.group.as_str()),
                ("removed_release", release),
                ("resource", kind.resource.as_str()),
                ("subresource", kind.subresource.as_str()),
                ("version", kind.version.as_str()),
            ];
            self.figures.of(&DEPRECATED, &labels(&all)).set(1.0);
        }
        Some(row)
    }

    /// Counts one step of an admission; `plugin` is a plug-in's number and name, `None` all of them together.
    pub fn admitted(&self, plugin: Option<(usize, &str)>, step: Step, took: Duration) {
        let at = plugin.map_or(0, |(nth, _)| nth + 1) * STEPS + step.index();
        let Some(slot) = self.steps.0.get(at) else { return };
        let name = plugin.map(|(_, name)| name);
        let family = if name.is_some() { PLUGIN } else { STEP };
        slot.get_or_init(|| self.figures.of(&family, &step.labels(name))).observe(took.as_secs_f64());
    }

    /// Counts the call of a webhook.
    pub fn called(&self, name: &str, step: Step, took: Duration) {
        self.figures.observe(&WEBHOOK, &step.labels(Some(name)), took.as_secs_f64());
    }

    /// Counts what a policy's validation came to: `deny`, `allow`, ….
    pub fn checked(&self, policy: &str, binding: &str, (action, error): (&str, &str), took: Duration) {
        let labels = labels(&[
            ("enforcement_action", action),
            ("error_type", error),
            ("policy", policy),
            ("policy_binding", binding),
        ]);
        self.figures.count(&CHECKS, &labels);
        self.figures.observe(&CHECK, &labels, took.as_secs_f64());
    }

    /// Counts whether somebody was who they said to be.
    pub fn authenticated(&self, known: bool) {
        self.attempt(usize::from(known), &AUTHENTICATED, if known { "success" } else { "failure" });
    }

    /// Counts whether somebody might.
    pub fn authorized(&self, allowed: bool) {
        self.attempt(2 + usize::from(allowed), &AUTHORIZED, if allowed { "allowed" } else { "denied" });
    }

    fn attempt(&self, at: usize, family: &Family, result: &str) {
        self.attempts[at].get_or_init(|| self.figures.of(family, &labels(&[("result", result)]))).add(1.0);
    }

    /// Counts the answer of a health check.
    pub fn checked_health(&self, name: &str, probe: &str, good: bool) {
        let (one, status) = (if good { 1.0 } else { 0.0 }, if good { "success" } else { "error" });
        self.health.of(&HEALTH, &labels(&[("name", name), ("type", probe)])).set(one);
        self.health.count(&HEALTHS, &labels(&[("name", name), ("status", status), ("type", probe)]));
    }

    /// The text of `/metrics/slis`.
    pub fn slis(&self) -> String {
        self.health.text()
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
    pub fn running(&self, mutating: bool, long: bool) -> Option<Raised> {
        let kind = if mutating { "mutating" } else { "readOnly" };
        let figure = self.inflight[usize::from(mutating)]
            .get_or_init(|| self.figures.of(&INFLIGHT, &labels(&[("request_kind", kind)])));
        (!long).then(|| Figure::raise(figure))
    }

    /// Counts a request that lasts as long as its client likes.
    pub fn lasting(&self, kind: &RequestKind) -> Raised {
        self.figures.raise(&LONG, &kind.labels(&[]))
    }

    /// Where a watch of a resource counts what it sends.
    pub fn watched(&self, gvr: &k8s_schema::Gvr) -> Sent {
        let labels = labels(&[("group", &gvr.group), ("resource", &gvr.resource), ("version", &gvr.version)]);
        Sent { events: self.figures.of(&EVENTS, &labels), sizes: self.figures.of(&EVENT_BYTES, &labels) }
    }

    /// Counts an open connection.
    pub fn connected(&self) -> Raised {
        self.connections.raise(&Family::gauge("gantry_apiserver_connections"), "")
    }

    /// The Prometheus text.
    pub fn text(&self, cache: &Cache) -> String {
        let mut out = self.figures.text() + &self.connections.text() + &shared_text();
        // Writing to a String does not fail.
        out.push_str("# TYPE aggregator_unavailable_apiservice gauge\n");
        for (name, unavailable) in self.unavailable.lock().iter() {
            let value = u8::from(*unavailable);
            let _ = writeln!(out, "aggregator_unavailable_apiservice{{name=\"{name}\"}} {value}");
        }
        out.push_str("# TYPE kubernetes_build_info gauge\n");
        out.push_str("kubernetes_build_info{major=\"1\",minor=\"36\",platform=\"linux\"} 1\n");
        let _ =
            writeln!(out, "# TYPE gantry_store_revision counter\ngantry_store_revision {}", cache.revision());
        let figures = cache.figures();
        for (name, value) in
            [("apiserver_storage_objects", 0), ("gantry_cache_changes", 1), ("gantry_cache_watchers", 2)]
        {
            let _ = writeln!(out, "# TYPE {name} gauge");
            for (prefix, f) in &figures {
                let number = [f.objects, f.changes, f.watchers][value];
                let _ = writeln!(out, "{name}{{resource=\"{}\"}} {number}", prefix_name(prefix));
            }
        }
        out + &process()
    }
}

/// Which features are on.
pub fn features(gates: &k8s_schema::Gates) -> String {
    let mut out = "# TYPE kubernetes_feature_enabled gauge\n".to_string();
    for (gate, on) in gates.each() {
        let labels = labels(&[("name", gate.name), ("stage", gate.stage.name())]);
        let _ = writeln!(out, "kubernetes_feature_enabled{{{labels}}} {}", u8::from(on));
    }
    out
}

/// `deployments.apps` of `/main/apps/deployments/`.
fn prefix_name(prefix: &str) -> String {
    let mut parts = prefix.trim_matches('/').split('/').skip(1);
    let (group, resource) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if group == "core" { resource.to_string() } else { format!("{resource}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_labels_are_upstreams() {
        assert_eq!(["create", "update", "list"].map(verb_name), ["POST", "PUT", "LIST"]);
        let kind = RequestKind {
            verb: "GET".into(),
            group: "apps".into(),
            version: "v1beta1".into(),
            resource: "deployments".into(),
            subresource: "x\"y".into(),
            scope: "resource",
            dry_run: "",
        };
        let metrics = Metrics::default();
        let done = Finished { code: 200, took: Duration::from_millis(30), size: Some(5_000) };
        metrics.finished(kind.clone(), false, &done);
        metrics.finished(kind.clone(), false, &Finished { code: 404, ..done });
        let (group, version, resource) = (String::new(), "v1".into(), "endpoints".into());
        let endpoints = RequestKind { group, version, resource, subresource: String::new(), ..kind };
        metrics.finished(endpoints, false, &done);
        let text = metrics.figures.text();
        for line in [
            "apiserver_request_total{code=\"404\",component=\"apiserver\",dry_run=\"\",group=\"apps\",resource=\"deployments\",scope=\"resource\",subresource=\"x\\\"y\",verb=\"GET\",version=\"v1beta1\"} 1",
            "apiserver_response_sizes_bucket{component=\"apiserver\",group=\"apps\",resource=\"deployments\",scope=\"resource\",subresource=\"x\\\"y\",verb=\"GET\",version=\"v1beta1\",le=\"10000\"} 2",
            "apiserver_requested_deprecated_apis{group=\"\",removed_release=\"\",resource=\"endpoints\",subresource=\"\",version=\"v1\"} 1",
            "apiserver_requested_deprecated_apis{group=\"apps\",removed_release=\"1.16\",resource=\"deployments\",subresource=\"x\\\"y\",version=\"v1beta1\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let step = Step { operation: "UPDATE", admits: true, rejected: false };
        metrics.admitted(Some((0, "Priority")), step, Duration::ZERO);
        metrics.admitted(None, Step { rejected: true, ..step }, Duration::ZERO);
        let text = metrics.figures.text();
        assert!(text.contains("controller_admission_duration_seconds_count{name=\"Priority\",operation=\"UPDATE\",rejected=\"false\",type=\"admit\"} 1"));
        assert!(text.contains(
            "step_admission_duration_seconds_count{operation=\"UPDATE\",rejected=\"true\",type=\"admit\"} 1"
        ));
    }
}

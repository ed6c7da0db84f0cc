//! Asks pods for their figures, and remembers what the rates of counters need.
//!
//! Only pods that are asked about are called, and of their pages only the metrics stay that somebody asked for lately.
//! There is no task: whoever asks waits. A counter's rate is taken between the last two looks, as adapters do.

use super::exposition::{self, Labels, Metric};
use crate::Api;
use crate::http::proxy::dial_backend;
use crate::outbound;
use crate::webhooks::client::is_barred;
use ::http::{Request, header};
use bytes::Bytes;
use client::Object;
use futures_util::future::join_all;
use http_body_util::Full;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// A pod is not asked again within this time.
const RESOLUTION: Duration = Duration::from_secs(5);
/// An older look says nothing about the rate now.
const STALE: Duration = Duration::from_secs(120);
/// Between the two looks at a counter when there is none to compare with.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// Pods asked at the same time.
const PODS_AT_ONCE: usize = 32;
/// After this time an answer goes without the pods that did not tell theirs.
const ROUND_WITHIN: Duration = Duration::from_secs(10);
/// One pod's page.
const POD_WITHIN: Duration = Duration::from_secs(5);
/// The largest page: 4 MiB are about 30,000 series.
const PAGE_MAX: usize = 4 << 20;
/// Pods that are remembered; others are not asked.
const PODS_MAX: usize = 5_000;
/// Metrics of one pod that are kept at the same time.
const WANTED_MAX: usize = 50;

/// Where a pod tells its figures, by the annotations that Prometheus is usually set up for.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    ip: IpAddr,
    port: u16,
    tls: bool,
    path: String,
}

impl Address {
    /// Of a running pod that wants to be asked.
    pub fn of(pod: &Object) -> Option<Address> {
        let notes = &pod.meta().annotations;
        let note = |key: &str| notes.get(&format!("prometheus.io/{key}")).map(String::as_str);
        if note("scrape") != Some("true") || pod.meta().deletion_timestamp.is_some() {
            return None;
        }
        let value = pod.value().ok()?;
        let ip: IpAddr = value["status"]["podIP"].as_str()?.parse().ok()?;
        if value["status"]["phase"] != "Running" || is_barred(ip) {
            return None;
        }
        let mut ports =
            value["spec"]["containers"].as_array()?.iter().filter_map(|c| c["ports"].as_array()).flatten();
        let port = match note("port") {
            Some(text) => text.parse().ok()?,
            None => ports.find_map(|p| p["containerPort"].as_u64()).and_then(|p| u16::try_from(p).ok())?,
        };
        let path = note("path").unwrap_or("/metrics");
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        Some(Address { ip, port, tls: note("scheme") == Some("https"), path })
    }

    async fn page(&self) -> Result<String, String> {
        let host = self.ip.to_string();
        let stream = dial_backend(&host, self.port, self.tls).await.map_err(|e| e.message)?;
        let request = Request::get(&self.path)
            .header(header::HOST, format!("{host}:{}", self.port))
            .header(header::ACCEPT, "text/plain;version=0.0.4;q=0.9,*/*;q=0.1")
            .header(header::USER_AGENT, concat!("gantry/", env!("CARGO_PKG_VERSION")));
        let request = request.body(Full::<Bytes>::default()).map_err(|e| e.to_string())?;
        let (head, body) = outbound::over(stream, request, PAGE_MAX).await?;
        if !head.status.is_success() {
            return Err(format!("{}: {}", self.path, head.status));
        }
        String::from_utf8(body.into()).map_err(|_| "the page is no UTF-8".to_string())
    }
}

/// One look at a pod.
struct Look {
    at: Instant,
    at_ms: i64,
    wanted: BTreeSet<String>,
    found: BTreeMap<String, Metric>,
    names: BTreeSet<String>,
}

/// What is remembered of a pod.
#[derive(Default)]
struct Memory {
    wanted: BTreeMap<String, Instant>,
    before: Option<Look>,
    now: Option<Look>,
    failed: Option<Instant>,
}

/// What a pod says of one metric: counters as rates per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Of the look, milliseconds since the epoch.
    pub at_ms: i64,
    /// Seconds that a rate is taken over, at least one.
    pub window: Option<u64>,
    /// Values by labels.
    pub series: BTreeMap<Labels, f64>,
}

type Shared = Arc<tokio::sync::Mutex<Memory>>;
/// With the time when somebody asked.
type Remembered = (Shared, Instant);

/// All pods that were asked lately.
pub struct Scraper {
    pods: Mutex<BTreeMap<String, Remembered>>,
    seats: Semaphore,
}

impl Default for Scraper {
    fn default() -> Self {
        Scraper { pods: Mutex::default(), seats: Semaphore::new(PODS_AT_ONCE) }
    }
}

impl Scraper {
    /// What these pods say of a metric. Those who are not asked or say nothing are missing.
    pub async fn read<'a>(
        &self,
        api: &Api,
        pods: &'a [Arc<Object>],
        metric: &str,
    ) -> Vec<(&'a Arc<Object>, Reading)> {
        let read = self.look_at(api, pods, Some(metric), |memory| memory.reading(metric));
        read.await.into_iter().filter_map(|(pod, reading)| Some((pod, reading?))).collect()
    }

    /// The names of metrics that these pods have.
    pub async fn names(&self, api: &Api, pods: &[Arc<Object>]) -> BTreeSet<String> {
        let names = |memory: &Memory| memory.now.as_ref().map(|l| l.names.clone()).unwrap_or_default();
        self.look_at(api, pods, None, names).await.into_iter().flat_map(|(_, names)| names).collect()
    }

    async fn look_at<'a, T>(
        &self,
        api: &Api,
        pods: &'a [Arc<Object>],
        metric: Option<&str>,
        take: impl Fn(&Memory) -> T,
    ) -> Vec<(&'a Arc<Object>, T)> {
        let deadline = Instant::now() + ROUND_WITHIN;
        let asked: Vec<(&Arc<Object>, Address, Shared)> = {
            let mut known = self.pods.lock();
            known.retain(|_, (_, at)| at.elapsed() < STALE);
            let remembered = |(pod, address): (&'a Arc<Object>, Address)| {
                if known.len() >= PODS_MAX && !known.contains_key(pod.uid()) {
                    return None;
                }
                let entry =
                    known.entry(pod.uid().to_string()).or_insert_with(|| (Arc::default(), Instant::now()));
                entry.1 = Instant::now();
                Some((pod, address, entry.0.clone()))
            };
            pods.iter().filter_map(|p| Some((p, Address::of(p)?))).filter_map(remembered).collect()
        };
        let looks = asked.into_iter().map(|(pod, address, memory)| {
            let take = &take;
            async move {
                let looked = async {
                    let mut memory = memory.lock().await;
                    match self.refresh(api, &mut memory, &address, metric).await {
                        Ok(()) => Some(take(&memory)),
                        Err(error) => {
                            tracing::info!(pod = %pod.key, error, "a pod's figures are not known");
                            memory.failed = Some(Instant::now());
                            None
                        }
                    }
                };
                Some((pod, timeout_at(deadline, looked).await.ok()??))
            }
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// Looks at a pod unless what is known of it will do.
    async fn refresh(
        &self,
        api: &Api,
        memory: &mut Memory,
        address: &Address,
        metric: Option<&str>,
    ) -> Result<(), String> {
        memory.wanted.retain(|_, at| at.elapsed() < STALE);
        if let Some(metric) = metric {
            if memory.wanted.len() >= WANTED_MAX && !memory.wanted.contains_key(metric) {
                return Err(format!("more than {WANTED_MAX} metrics of one pod are asked for"));
            }
            memory.wanted.insert(metric.to_string(), Instant::now());
        }
        if memory.failed.is_some_and(|at| at.elapsed() < RESOLUTION) {
            // Already told.
            memory.now = None;
            return Ok(());
        }
        if !memory.now.as_ref().is_some_and(|l| l.at.elapsed() < RESOLUTION && l.covers(metric)) {
            self.look(api, memory, address).await?;
        }
        let needs_another = |memory: &Memory| {
            let (metric, now) = (metric?, memory.now.as_ref()?);
            let before = memory.before.as_ref().filter(|l| l.covers(Some(metric)));
            (now.found.get(metric)?.counter && before.is_none()).then_some(())
        };
        if needs_another(memory).is_some() {
            tokio::time::sleep(FIRST_WINDOW).await;
            self.look(api, memory, address).await?;
        }
        Ok(())
    }

    async fn look(&self, api: &Api, memory: &mut Memory, address: &Address) -> Result<(), String> {
        let wanted: BTreeSet<String> = memory.wanted.keys().cloned().collect();
        let page = {
            let _seat = self.seats.acquire().await.map_err(|e| e.to_string())?;
            let page = tokio::time::timeout(POD_WITHIN, address.page()).await;
            page.map_err(|_| "timed out".to_string())??
        };
        let (at, at_ms) = (Instant::now(), (api.config.clock)().as_millisecond());
        let page = exposition::read(&page, &wanted)?;
        let look = Look { at, at_ms, wanted, found: page.found, names: page.names };
        memory.before = memory.now.replace(look).filter(|l| l.at.elapsed() < STALE);
        memory.failed = None;
        Ok(())
    }
}

impl Look {
    fn covers(&self, metric: Option<&str>) -> bool {
        metric.is_none_or(|m| self.wanted.contains(m))
    }
}

impl Memory {
    fn reading(&self, metric: &str) -> Option<Reading> {
        let now = self.now.as_ref()?;
        let found = now.found.get(metric)?;
        if !found.counter {
            return Some(Reading { at_ms: now.at_ms, window: None, series: found.series.clone() });
        }
        let before = self.before.as_ref().filter(|l| l.covers(Some(metric)))?;
        let took = now.at.duration_since(before.at).as_secs_f64();
        let empty = BTreeMap::new();
        let earlier = before.found.get(metric).map_or(&empty, |m| &m.series);
        Some(Reading {
            at_ms: now.at_ms,
            window: Some(now.at.duration_since(before.at).as_secs().max(1)),
            series: rates(earlier, &found.series, took),
        })
    }
}

/// What counters grew by in a second. One that is smaller than before began again from zero, as a new one does.
fn rates(before: &BTreeMap<Labels, f64>, now: &BTreeMap<Labels, f64>, seconds: f64) -> BTreeMap<Labels, f64> {
    let rate = |(labels, value): (&Labels, &f64)| {
        let from = before.get(labels).filter(|b| *b <= value).unwrap_or(&0.0);
        (labels.clone(), (value - from) / seconds)
    };
    now.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counters_become_rates() {
        let series = |all: &[(&str, f64)]| -> BTreeMap<Labels, f64> {
            all.iter().map(|(l, v)| (Labels::from([("l".to_string(), l.to_string())]), *v)).collect()
        };
        let before = series(&[("a", 10.0), ("reset", 10.0), ("gone", 1.0)]);
        let now = series(&[("a", 30.0), ("reset", 4.0), ("new", 2.0)]);
        assert_eq!(rates(&before, &now, 2.0), series(&[("a", 10.0), ("reset", 2.0), ("new", 1.0)]));
    }

    #[test]
    fn annotations_say_where() {
        let pod = |notes: serde_json::Value, ip: &str| {
            let body = json!({"metadata": {"name": "p", "namespace": "d", "annotations": notes},
                "spec": {"containers": [{"name": "c"}, {"name": "d", "ports": [{"containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip}});
            Address::of(&Object::parse(body.to_string().into()).unwrap())
        };
        let all = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9", "prometheus.io/path": "m",
            "prometheus.io/scheme": "https"});
        let want = Address { ip: [10, 0, 0, 1].into(), port: 9, tls: true, path: "/m".into() };
        assert_eq!(pod(all.clone(), "10.0.0.1"), Some(want));
        let want = Address { ip: [10, 0, 0, 1].into(), port: 8080, tls: false, path: "/metrics".into() };
        assert_eq!(pod(json!({"prometheus.io/scrape": "true"}), "10.0.0.1"), Some(want));
        assert_eq!(pod(all, "169.254.169.254"), None);
        assert_eq!(pod(json!({"prometheus.io/scrape": "true", "prometheus.io/port": "x"}), "10.0.0.1"), None);
        assert_eq!(pod(json!({}), "10.0.0.1"), None);
    }
}

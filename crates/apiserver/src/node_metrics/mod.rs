//! metrics.k8s.io: what nodes and pods use, from the nodes' own figures (`/metrics/resource`), with nothing installed.
//!
//! There is no task: the nodes are asked while somebody asks us. Counters become rates between two rounds: the newest
//! round and the one before it, at least [`RESOLUTION`] older; who asks after [`STALE`] of silence waits for two rounds
//! [`FIRST_WINDOW`] apart. So an idle cluster costs nothing, and a reader every 15 s (an autoscaler) gets windows of 15 s.
//!
//! **Components in this process** read it by `client::Client` like any resource: `list(&gvr::POD_METRICS, …)` with
//! namespace and label selector, `get(&gvr::POD_METRICS, …)`, `gvr::NODE_METRICS`. Objects are as in
//! `metrics.k8s.io/v1beta1`: `timestamp`, `window` (`"15.012s"`), `containers[].{name, usage.{cpu, memory}}`. A pod
//! without two readings yet is not in the list. Where another server is named for the group, it answers instead.
//!
//! Deliberately not here: how a node counts (`agent::stats`), what pods tell themselves (`pod_figures`).

mod rate;
mod reading;

use crate::Api;
use crate::outbound;
use crate::select::Selection;
use crate::storage::unstored;
use ::http::{Request, header};
use bytes::Bytes;
use client::{Object, ObjectKey};
use futures_util::{StreamExt, stream};
use http_body_util::Full;
use k8s_schema::gvr;
use machinery::quantity::Quantity;
use machinery::time;
use rate::{Rate, container_rate, node_rate};
use reading::{Reading, parse};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The group.
pub const GROUP: &str = "metrics.k8s.io";
/// A younger round is good enough, as of the usual metrics server.
const RESOLUTION: Duration = Duration::from_secs(15);
/// An older round says nothing about now.
const STALE: Duration = Duration::from_secs(60);
/// Between the two rounds when there is none to compare with.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// Nodes asked at the same time.
const NODES_AT_ONCE: usize = 32;
/// One node's answer; a node that hangs must not hold the others back for long.
const NODE_WITHIN: Duration = Duration::from_secs(5);
/// Largest answer of a node: 1,000 pods are about 1 MiB.
const ANSWER_MAX: usize = 16 << 20;

/// One look at all nodes, by node.
type Round = BTreeMap<String, Reading>;

/// The last two rounds.
#[derive(Clone, Default)]
struct Rounds {
    before: Arc<Round>,
    now: Arc<Round>,
    taken: Option<Instant>,
}

/// What is remembered between questions.
#[derive(Default)]
pub struct NodeMetrics {
    rounds: Mutex<Rounds>,
}

impl NodeMetrics {
    /// Two rounds to compare. Those who ask at the same time share them.
    async fn rounds(&self, api: &Api) -> Rounds {
        let mut rounds = self.rounds.lock().await;
        let age = rounds.taken.map(|at| at.elapsed());
        if age.is_some_and(|age| age < RESOLUTION) {
            return rounds.clone();
        }
        if age.is_none_or(|age| age > STALE) {
            rounds.now = Arc::new(ask_all(api).await);
            tokio::time::sleep(FIRST_WINDOW).await;
        }
        rounds.before = std::mem::take(&mut rounds.now);
        rounds.now = Arc::new(ask_all(api).await);
        rounds.taken = Some(Instant::now());
        rounds.clone()
    }

    /// `NodeMetrics` of the selected nodes.
    pub async fn nodes(&self, api: &Api, selection: &Selection) -> Vec<Arc<Object>> {
        let rounds = self.rounds(api).await;
        let one = |node: &Arc<Object>| {
            let name = &*node.key.name;
            let rate = node_rate(rounds.before.get(name)?, rounds.now.get(name)?)?;
            Some(object(node, &rate, json!({"usage": usage(&rate)})))
        };
        api.cached_all(&gvr::NODES).values().filter(|n| selection.matches(n)).filter_map(one).collect()
    }

    /// `PodMetrics` of the selected pods that run.
    pub async fn pods(&self, api: &Api, selection: &Selection) -> Vec<Arc<Object>> {
        let rounds = self.rounds(api).await;
        let mut rates: BTreeMap<(&str, &str), BTreeMap<&str, Rate>> = BTreeMap::new();
        for (node, reading) in rounds.now.iter() {
            let before = rounds.before.get(node);
            for ((namespace, pod, container), point) in &reading.containers {
                let key = (namespace.clone(), pod.clone(), container.clone());
                let earlier = before.and_then(|b| b.containers.get(&key));
                if let Some(rate) = container_rate(earlier, point) {
                    rates.entry((namespace, pod)).or_default().insert(container, rate);
                }
            }
        }
        let one = |pod: &Arc<Object>| {
            let containers = rates.get(&(&*pod.key.namespace, &*pod.key.name))?;
            // Upstream tells the earliest reading of a pod's containers.
            let oldest = containers.values().min_by_key(|r| r.at_ms)?;
            let listed: Vec<Value> =
                containers.iter().map(|(name, rate)| json!({"name": name, "usage": usage(rate)})).collect();
            Some(object(pod, oldest, json!({"containers": listed})))
        };
        api.cached_all(&gvr::PODS).values().filter(|p| selection.matches(p)).filter_map(one).collect()
    }
}

fn usage(rate: &Rate) -> Value {
    let cpu = Quantity::from_nanos(i64::try_from(rate.cpu_nanos).unwrap_or(i64::MAX));
    let memory = Quantity::from_bytes(i64::try_from(rate.memory_bytes).unwrap_or(i64::MAX));
    json!({"cpu": cpu.to_string(), "memory": memory.to_string()})
}

/// The figures of a node or pod, under its name and labels.
fn object(of: &Object, rate: &Rate, figures: Value) -> Arc<Object> {
    let now = time::format(jiff::Timestamp::from_millisecond(rate.at_ms).unwrap_or_default());
    let mut metadata = json!({"name": &*of.key.name, "creationTimestamp": now});
    if !of.key.namespace.is_empty() {
        metadata["namespace"] = json!(&*of.key.namespace);
    }
    if !of.meta().labels.is_empty() {
        metadata["labels"] = json!(of.meta().labels);
    }
    let kind = if of.key.namespace.is_empty() { "NodeMetrics" } else { "PodMetrics" };
    let mut body = Map::new();
    for (key, value) in [
        ("kind", json!(kind)),
        ("apiVersion", json!(format!("{GROUP}/v1beta1"))),
        ("metadata", metadata),
        ("timestamp", json!(now)),
        ("window", json!(rate.window())),
    ] {
        body.insert(key.into(), value);
    }
    if let Value::Object(figures) = figures {
        body.extend(figures);
    }
    unstored(&ObjectKey { namespace: of.key.namespace.clone(), name: of.key.name.clone() }, 0, body.into())
}

/// Asks every node that is ready, some at a time. One that does not answer is missing.
async fn ask_all(api: &Api) -> Round {
    let ready = |node: &Arc<Object>| {
        let value = node.value().ok()?;
        let mut conditions = value["status"]["conditions"].as_array()?.iter();
        conditions.any(|c| c["type"] == "Ready" && c["status"] == "True").then(|| node.key.name.to_string())
    };
    let nodes: Vec<String> = api.cached_all(&gvr::NODES).values().filter_map(ready).collect();
    let answers = stream::iter(nodes).map(|node| async move {
        let asked = tokio::time::timeout(NODE_WITHIN, ask(api, &node)).await;
        match asked.unwrap_or_else(|_| Err("timed out".into())) {
            Ok(reading) => Some((node, reading)),
            Err(error) => {
                tracing::info!(node, error, "a node's usage is not known");
                None
            }
        }
    });
    answers.buffer_unordered(NODES_AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn ask(api: &Api, node: &str) -> Result<Reading, String> {
    let dialer = api.config.nodes.as_ref().ok_or("this server has no connection to its nodes")?;
    let stream = dialer.dial(node).await.map_err(|e| e.to_string())?;
    let request = Request::get("/metrics/resource").header(header::HOST, node);
    let request = request.body(Full::<Bytes>::default()).map_err(|e| e.to_string())?;
    let (head, body) = outbound::over(stream, request, ANSWER_MAX).await?;
    match head.status.is_success() {
        true => Ok(parse(&String::from_utf8_lossy(&body))),
        false => Err(format!("/metrics/resource: {}", head.status)),
    }
}

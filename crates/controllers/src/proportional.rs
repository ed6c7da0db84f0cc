//! Proportional autoscaling: a size that follows the number of nodes or cores, as cluster-proportional-autoscaler does.
//!
//! Its users carry their ConfigMap over (`linear` or `ladder`, JSON) and name the target by [`TARGET`] in place of the
//! flag `--target`, in the ConfigMap's namespace: `deployment/dns`, `replicaset/…`, `replicationcontroller/…`,
//! `statefulset/…`, several with commas; [`NODE_LABELS`] is the flag `--nodelabels`. Without such a ConfigMap nothing
//! runs. Deliberately not here: sizes by load (`autoscaler`).

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey, Verb, Write};
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::int;
use machinery::quantity::Quantity;
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// What a ConfigMap scales.
const TARGET: &str = "autoscaling.gantry.dev/proportional-target";
/// Which nodes count; all without it.
const NODE_LABELS: &str = "autoscaling.gantry.dev/node-labels";
/// A size that somebody else changed is put right within this time, as upstream by default.
const SYNC: Duration = Duration::from_secs(10);
/// What has a size, as targets name it.
const KINDS: [(&str, &Gvr); 4] = [
    ("deployment", &gvr::DEPLOYMENTS),
    ("replicaset", &gvr::REPLICA_SETS),
    ("replicationcontroller", &Gvr::new("", "v1", "replicationcontrollers")),
    ("statefulset", &gvr::STATEFUL_SETS),
];

/// How large the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cluster {
    nodes: i64,
    cores: i64,
    schedulable_nodes: i64,
    schedulable_cores: i64,
}

impl Cluster {
    fn of<'a>(nodes: impl IntoIterator<Item = &'a Value>) -> Cluster {
        let mut cluster = Cluster::default();
        let (mut all, mut open) = (0, 0);
        for node in nodes {
            let cpu = Quantity::from_json(&node["status"]["capacity"]["cpu"]).and_then(Result::ok);
            let milli = cpu.map_or(0, |q| q.milli());
            cluster.nodes += 1;
            all += milli;
            if node["spec"]["unschedulable"] != true {
                cluster.schedulable_nodes += 1;
                open += milli;
            }
        }
        (cluster.cores, cluster.schedulable_cores) = ((all + 999) / 1000, (open + 999) / 1000);
        cluster
    }

    /// Cores and nodes that count.
    fn counted(&self, all: bool) -> (i64, i64) {
        if all { (self.cores, self.nodes) } else { (self.schedulable_cores, self.schedulable_nodes) }
    }
}

/// So many replicas for so many cores or nodes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Linear {
    cores_per_replica: f64,
    nodes_per_replica: f64,
    min: i64,
    max: i64,
    prevent_single_point_failure: bool,
    include_unschedulable_nodes: bool,
}

/// Steps: from so many on, so many replicas.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Ladder {
    cores_to_replicas: Vec<(i64, i64)>,
    nodes_to_replicas: Vec<(i64, i64)>,
    include_unschedulable_nodes: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Rule {
    Linear(Linear),
    Ladder(Ladder),
}

impl Rule {
    /// Of a ConfigMap's data; the error is a sentence.
    fn read(data: &Value) -> Result<Rule, String> {
        let rule = match (data["linear"].as_str(), data["ladder"].as_str()) {
            (Some(text), None) => {
                let rule: Linear = serde_json::from_str(text).map_err(|e| format!("linear: {e}"))?;
                let bad = rule.cores_per_replica < 0.0 || rule.nodes_per_replica < 0.0;
                if bad || (rule.cores_per_replica == 0.0 && rule.nodes_per_replica == 0.0) {
                    return Err("linear: coresPerReplica or nodesPerReplica must be more than 0".into());
                }
                if rule.min < 0 || rule.max < 0 || (rule.max > 0 && rule.min > rule.max) {
                    return Err("linear: min must not be more than max, nor any of both less than 0".into());
                }
                Rule::Linear(rule)
            }
            (None, Some(text)) => {
                let mut rule: Ladder = serde_json::from_str(text).map_err(|e| format!("ladder: {e}"))?;
                let steps = || rule.cores_to_replicas.iter().chain(&rule.nodes_to_replicas);
                if steps().next().is_none() || steps().any(|s| s.0 < 0 || s.1 < 0) {
                    return Err(
                        "ladder: coresToReplicas or nodesToReplicas must have steps of numbers of 0 or more"
                            .into(),
                    );
                }
                rule.cores_to_replicas.sort_unstable();
                rule.nodes_to_replicas.sort_unstable();
                Rule::Ladder(rule)
            }
            _ => return Err("one of linear and ladder must be there".into()),
        };
        Ok(rule)
    }

    fn replicas(&self, cluster: &Cluster) -> i64 {
        match self {
            Rule::Linear(rule) => {
                let (cores, nodes) = cluster.counted(rule.include_unschedulable_nodes);
                let size = share(cores, rule.cores_per_replica).max(share(nodes, rule.nodes_per_replica));
                let alone = rule.prevent_single_point_failure && nodes > 1;
                let size = size.max(if alone { 2 } else { 1 }).max(rule.min);
                if rule.max > 0 { size.min(rule.max) } else { size }
            }
            Rule::Ladder(rule) => {
                let (cores, nodes) = cluster.counted(rule.include_unschedulable_nodes);
                step(cores, &rule.cores_to_replicas).max(step(nodes, &rule.nodes_to_replicas))
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers of nodes and cores"
)]
fn share(of: i64, per_replica: f64) -> i64 {
    if per_replica > 0.0 { (of as f64 / per_replica).ceil() as i64 } else { 0 }
}

/// Below the first step its number holds; no steps ask for nothing.
fn step(of: i64, steps: &[(i64, i64)]) -> i64 {
    let reached = steps.iter().rev().find(|(from, _)| *from <= of);
    reached.or(steps.first()).map_or(0, |(_, replicas)| *replicas)
}

/// Resources and names.
type Targets = Vec<(&'static Gvr, String)>;

/// `deployment/dns,statefulset/x`: resources and names.
fn targets(text: &str) -> Result<Targets, String> {
    let one = |part: &str| {
        let (kind, name) = part.trim().split_once('/')?;
        let kind = kind.to_lowercase();
        let (_, gvr) = KINDS.into_iter().find(|(k, _)| *k == kind)?;
        Some((gvr, name.to_string())).filter(|_| !name.is_empty())
    };
    let bad = |part: &str| {
        format!(
            "target {part:?} is none of deployment/*, replicationcontroller/*, replicaset/*, statefulset/*"
        )
    };
    text.split(',').map(|part| one(part).ok_or_else(|| bad(part))).collect()
}

struct Proportional {
    context: Context,
    maps: Arc<Cache>,
    nodes: Arc<Cache>,
}

fn is_ours(map: &Object) -> bool {
    map.meta().annotations.contains_key(TARGET)
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (maps, nodes) = (context.informers.of(&gvr::CONFIG_MAPS), context.informers.of(&gvr::NODES));
    enqueue(&maps, &queue, |map| if is_ours(map) { vec![map.key.clone()] } else { Vec::new() });
    let (all, told) = (Arc::downgrade(&maps), queue.clone());
    nodes.on_change(Box::new(move |old, new| {
        // Nodes tell their status all the time.
        let size = |node: Option<&Arc<Object>>| {
            node.and_then(|n| Some((Cluster::of([&n.value().ok()?]), n.meta().labels.clone())))
        };
        if let (true, Some(all)) = (size(old) != size(new), all.upgrade()) {
            all.list().iter().filter(|m| is_ours(m)).for_each(|m| told.add(m.key.clone()));
        }
    }));
    let controller = Proportional { context: context.clone(), maps: maps.clone(), nodes: nodes.clone() };
    run("proportional-autoscaler", vec![maps, nodes], queue, 1, Arc::new(controller))
}

impl Proportional {
    /// The size that a ConfigMap asks for, of what, and the cluster it is for.
    fn plan(&self, map: &Object, value: &Value) -> Result<(Targets, i64, Cluster), String> {
        let notes = &map.meta().annotations;
        let targets = targets(notes.get(TARGET).map_or("", String::as_str))?;
        let rule = Rule::read(&value["data"])?;
        let labels = notes.get(NODE_LABELS).map_or("", String::as_str);
        let labels = LabelSelector::parse(labels).map_err(|e| format!("{NODE_LABELS}: {e}"))?;
        let nodes = self.nodes.list();
        let nodes: Vec<Value> = nodes
            .iter()
            .filter(|n| labels.matches(&n.meta().labels))
            .filter_map(|n| n.value().ok())
            .collect();
        let cluster = Cluster::of(&nodes);
        Ok((targets, rule.replicas(&cluster), cluster))
    }

    async fn scale(&self, gvr: &Gvr, key: &ObjectKey, size: i64) -> Result<bool, ApiError> {
        let mut scale = self.context.client.scale(gvr, key).await?.value().map_err(ApiError::internal)?;
        if int(&scale, "/spec/replicas").unwrap_or(0) == size {
            return Ok(false);
        }
        scale["spec"]["replicas"] = json!(size);
        let write =
            Write { gvr: gvr.clone(), key: key.clone(), subresource: "scale", verb: Verb::Update(scale) };
        self.context.client.write(write).await.map(|_| true)
    }
}

#[async_trait]
impl Reconcile for Proportional {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(map) = self.maps.get(key).filter(|m| is_ours(m)) else { return Ok(None) };
        let value = map.value().map_err(ApiError::internal)?;
        let tell = |kind, reason: &str, words: String| {
            self.context.recorder.record(Subject::of("v1", "ConfigMap", &map), kind, reason, words);
        };
        let (targets, size, cluster) = match self.plan(&map, &value) {
            Ok(plan) => plan,
            Err(words) => {
                tell(EventType::Warning, "InvalidParameters", words);
                return Ok(None);
            }
        };
        for (gvr, name) in targets {
            let what = format!("{}/{name}", gvr.resource);
            match self.scale(gvr, &ObjectKey::new(key.namespace.clone(), name.as_str()), size).await {
                Ok(false) => {}
                Ok(true) => {
                    let (nodes, cores) = (cluster.nodes, cluster.cores);
                    let words =
                        format!("New size of {what}: {size}; reason: {nodes} nodes with {cores} cores");
                    tell(EventType::Normal, "SuccessfulRescale", words);
                }
                Err(error) => tell(EventType::Warning, "FailedRescale", format!("{what}: {error}")),
            }
        }
        Ok(Some(SYNC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpu: &str, closed: bool) -> Value {
        json!({"spec": {"unschedulable": closed}, "status": {"capacity": {"cpu": cpu}}})
    }

    fn size(data: Value, cluster: (i64, i64)) -> i64 {
        let (cores, nodes) = cluster;
        let cluster = Cluster {
            nodes: nodes + 1,
            cores: cores + 8,
            schedulable_nodes: nodes,
            schedulable_cores: cores,
        };
        Rule::read(&data).unwrap().replicas(&cluster)
    }

    #[test]
    fn sizes_of_clusters() {
        let nodes = [node("4", false), node("1500m", false), node("8", true)];
        let want = Cluster { nodes: 3, cores: 14, schedulable_nodes: 2, schedulable_cores: 6 };
        assert_eq!(Cluster::of(&nodes), want);
    }

    #[test]
    fn a_line() {
        let line = |text: &str| json!({"linear": text});
        let usual = r#"{"coresPerReplica": 2, "nodesPerReplica": 1, "preventSinglePointFailure": true, "min": 1, "max": 100}"#;
        // (cores, nodes), as in upstream's example.
        for ((cores, nodes), want) in
            [((4, 3), 3), ((13, 4), 7), ((1, 1), 1), ((500, 4), 100), ((2, 2), 2), ((0, 0), 1)]
        {
            assert_eq!(size(line(usual), (cores, nodes)), want, "{cores} {nodes}");
        }
        let few = r#"{"nodesPerReplica": 16, "preventSinglePointFailure": true}"#;
        assert_eq!((size(line(few), (64, 2)), size(line(few), (64, 1)), size(line(few), (1, 33))), (2, 1, 3));
        let all = r#"{"nodesPerReplica": 1, "includeUnschedulableNodes": true, "min": 3}"#;
        assert_eq!((size(line(all), (0, 1)), size(line(all), (0, 3))), (3, 4));
    }

    #[test]
    fn a_ladder() {
        let text = r#"{"coresToReplicas": [[64, 3], [1, 1], [512, 5]], "nodesToReplicas": [[1, 1], [2, 2]]}"#;
        for (cluster, want) in [((0, 0), 1), ((63, 1), 1), ((63, 2), 2), ((64, 2), 3), ((9999, 1), 5)] {
            assert_eq!(size(json!({"ladder": text}), cluster), want, "{cluster:?}");
        }
        let optional = json!({"ladder": r#"{"nodesToReplicas": [[1, 0], [10, 1]]}"#});
        assert_eq!((size(optional.clone(), (1, 9)), size(optional, (1, 10))), (0, 1));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for data in [
            json!({}),
            json!({"linear": "{}", "ladder": "{}"}),
            json!({"linear": "{}"}),
            json!({"linear": r#"{"nodesPerReplica": 1, "min": 3, "max": 2}"#}),
            json!({"linear": "nodesPerReplica: 1"}),
            json!({"ladder": "{}"}),
            json!({"ladder": r#"{"nodesToReplicas": [[1]]}"#}),
        ] {
            assert!(Rule::read(&data).is_err(), "{data}");
        }
        assert_eq!(
            targets("deployment/a, StatefulSet/b").unwrap()[1],
            (&gvr::STATEFUL_SETS, "b".to_string())
        );
        assert!(targets("daemonset/a").is_err() && targets("deployment/").is_err() && targets("").is_err());
    }
}

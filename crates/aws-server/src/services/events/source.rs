//! ECS's events from the store: tasks, services and container instances are watched, what changed is told.
//!
//! Runs in one server of several. What changes while no server watches is not told; start it before the controllers.

use super::buses::DEFAULT;
use super::ecs_events::{Told, of_instance, of_service, of_task};
use super::engine::{Engine, Event};
use crate::service::{Call, Service, Shared};
use client::cache::Cache;
use client::{ListOptions, Object};
use ecs_model::doc::Doc;
use ecs_model::names::Arn;
use jiff::Timestamp;
use k8s_schema::Gvr;
use k8s_schema::gvr::{ECS_CONTAINER_INSTANCES, ECS_SERVICES, ECS_TASKS, NODES};
use machinery::kinds::get::{flag, list, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Changes of nodes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// Instances that one DescribeContainerInstances takes.
const DESCRIBE_MAX: usize = 100;

/// The watches; they end when this is dropped.
pub struct Source {
    engine: Arc<Engine>,
    shared: Shared,
    ecs: Option<Arc<dyn Service>>,
    /// Set when the first lists are in: what was there before is no news.
    live: watch::Sender<bool>,
    nodes: Notify,
}

fn event(told: Told, now: Timestamp) -> Event {
    let place = Arn::parse(&told.resource).map(|a| (a.account.to_string(), a.region.to_string()));
    let (account, region) = place.unwrap_or_default();
    let document = json!({
        "version": "0", "id": uuid::Uuid::new_v4().to_string(), "detail-type": told.detail_type,
        "source": "aws.ecs", "account": account, "region": region, "time": machinery::time::format(now),
        "resources": [told.resource], "detail": told.detail,
    });
    Event { account, region, bus: DEFAULT.into(), document }
}

/// What of a node makes an instance: answering, taking pods.
fn standing(node: &Object) -> (bool, bool) {
    let Ok(node) = node.value() else { return (false, false) };
    let ready =
        list(&node, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    (ready, flag(&node, "/spec/unschedulable"))
}

type Change<'a> = (Option<&'a Arc<Object>>, Option<&'a Arc<Object>>);

impl Source {
    /// Over the ECS service among `services`.
    pub fn new(engine: Arc<Engine>, shared: Shared, services: &[Arc<dyn Service>]) -> Arc<Source> {
        let ecs = services.iter().find(|s| s.name() == "ecs").cloned();
        Arc::new(Source { engine, shared, ecs, live: watch::Sender::new(false), nodes: Notify::new() })
    }

    fn tell(&self, told: impl IntoIterator<Item = Told>, now: Timestamp) {
        told.into_iter().for_each(|t| self.engine.publish(&event(t, now)));
    }

    fn changed(&self, (old, new): Change<'_>, told: fn(Option<&Doc>, &Doc, Timestamp) -> Vec<Told>) {
        if !*self.live.borrow() || self.engine.is_idle() {
            return;
        }
        let Some(Ok(new)) = new.map(|o| o.view::<Doc>()) else { return };
        let old = old.and_then(|o| o.view::<Doc>().ok());
        let now = Timestamp::now();
        self.tell(told(old.as_deref(), &new, now), now);
    }

    /// Waits until changes are told.
    pub async fn ready(&self) {
        // The sender lives as long as we do.
        let _ = self.live.subscribe().wait_for(|live| *live).await;
    }

    /// Watches, until dropped.
    pub async fn run(self: Arc<Self>) {
        let start = |gvr: Gvr| Cache::start(self.shared.client.clone(), gvr, ListOptions::default());
        let caches = [ECS_TASKS, ECS_SERVICES, NODES, ECS_CONTAINER_INSTANCES].map(start);
        let [tasks, services, nodes, instances] = &caches;
        let to = self.clone();
        tasks.on_change(Box::new(move |old, new| {
            to.changed((old, new), |old, new, now| of_task(old, new, now).into_iter().collect());
        }));
        let to = self.clone();
        services.on_change(Box::new(move |old, new| to.changed((old, new), of_service)));
        let to = self.clone();
        nodes.on_change(Box::new(move |old, new| {
            if old.map(|o| standing(o)) != new.map(|n| standing(n)) {
                to.nodes.notify_one();
            }
        }));
        let to = self.clone();
        instances.on_change(Box::new(move |_, _| to.nodes.notify_one()));
        for cache in &caches {
            cache.wait_synced().await;
        }
        self.live.send_replace(true);
        self.watch_instances().await;
    }

    /// Tells of instances whenever nodes change; what is seen first is no news.
    async fn watch_instances(&self) {
        let mut known: Option<BTreeMap<String, Value>> = None;
        let mut rules = self.engine.rules().changed();
        loop {
            let seen = if self.engine.is_idle() { None } else { self.instances().await };
            if let (Some(before), Some(seen)) = (&known, &seen) {
                let now = Timestamp::now();
                let told = seen.iter().filter_map(|(arn, new)| of_instance(before.get(arn), new, now));
                self.tell(told, now);
            }
            known = seen;
            loop {
                tokio::select! {
                    () = self.nodes.notified() => break,
                    // The first rule begins the watch, the last one ends it.
                    _ = rules.changed() => {
                        if self.engine.is_idle() != known.is_none() { break }
                    }
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn ask(&self, operation: &'static str, input: Value) -> Option<Value> {
        let call = Call::own(&self.shared.account, &self.shared.region, operation, input);
        self.ecs.as_ref()?.call(&call).await.ok()
    }

    /// All rows of a list operation.
    async fn all(&self, operation: &'static str, mut input: Value, member: &str) -> Option<Vec<Value>> {
        let mut rows = Vec::new();
        loop {
            let page = self.ask(operation, input.clone()).await?;
            rows.extend(page[member].as_array().cloned().unwrap_or_default());
            match page["nextToken"].as_str() {
                Some(next) => input["nextToken"] = json!(next),
                None => return Some(rows),
            }
        }
    }

    /// The instances of all clusters of the default account and region, by ARN; `None`: not now.
    async fn instances(&self) -> Option<BTreeMap<String, Value>> {
        let mut out = BTreeMap::new();
        for cluster in self.all("ListClusters", json!({}), "clusterArns").await? {
            let input = json!({"cluster": cluster});
            // A cluster that is being deleted has none.
            let arns = self.all("ListContainerInstances", input, "containerInstanceArns").await;
            for arns in arns.unwrap_or_default().chunks(DESCRIBE_MAX) {
                let input = json!({"cluster": cluster, "containerInstances": arns});
                let answer = self.ask("DescribeContainerInstances", input).await.unwrap_or_default();
                for mut instance in answer["containerInstances"].as_array().cloned().unwrap_or_default() {
                    instance["clusterArn"] = cluster.clone();
                    out.insert(text(&instance, "/containerInstanceArn").to_string(), instance);
                }
            }
        }
        Some(out)
    }
}

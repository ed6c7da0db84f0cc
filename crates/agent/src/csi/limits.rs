//! How many volumes of a driver the node takes, asked again: a node that something else took slots of says so.
//!
//! Only of drivers whose CSIDriver names a period, as upstream: when that is over, and when attaching failed for lack of
//! room. What was told first is [`super::register`]'s.

use super::DRIVERS;
use super::register::write;
use crate::ops::Node;
use client::cache::Cache;
use client::{ListOptions, ObjectKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The shortest period that the API lets a driver name.
const PERIOD_MIN: Duration = Duration::from_secs(10);

/// Puts a driver's count into a CSINode that has the driver; none for no limit.
fn put(body: &mut Value, driver: &str, count: i64) {
    for entry in body["spec"]["drivers"].as_array_mut().into_iter().flatten().filter(|d| d["name"] == driver)
    {
        match count {
            1.. => entry["allocatable"]["count"] = json!(count),
            _ => drop(entry.as_object_mut().and_then(|e| e.remove("allocatable"))),
        }
    }
}

/// The period of a driver; `None`: its count does not change.
fn period(drivers: &Cache, name: &str) -> Option<Duration> {
    let object = drivers.get(&ObjectKey::cluster(name))?.value().ok()?;
    let seconds = object["spec"]["nodeAllocatableUpdatePeriodSeconds"].as_u64()?;
    Some(Duration::from_secs(seconds).max(PERIOD_MIN))
}

async fn ask(node: &Node, name: &str) {
    let told = match node.csi.call(name, "NodeGetInfo", &json!({})).await {
        Ok(told) => told["max_volumes_per_node"].as_i64().unwrap_or(0),
        Err(error) => {
            return tracing::debug!(driver = name, %error, "did not tell how many volumes the node takes");
        }
    };
    if let Err(error) = write(node, |body| put(body, name, told)).await {
        tracing::warn!(driver = name, %error, "how many volumes the node takes was not told");
    }
}

/// Runs from the first driver on, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let mut registered = node.csi.registered.subscribe();
    if registered.wait_for(|count| *count > 0).await.is_err() {
        return;
    }
    let drivers = Cache::start(node.client.clone(), DRIVERS, ListOptions::default());
    drivers.wait_synced().await;
    let mut changed = drivers.changed();
    let mut asked: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let names: Vec<String> = node.csi.drivers.lock().keys().cloned().collect();
        asked.retain(|name, _| names.contains(name));
        let mut next = None;
        for (name, period) in names.iter().filter_map(|name| Some((name, period(&drivers, name)?))) {
            // Who has just registered has told.
            let mut due = *asked.entry(name.clone()).or_insert_with(Instant::now) + period;
            if due <= Instant::now() || node.csi.full.lock().remove(name) {
                ask(&node, name).await;
                asked.insert(name.clone(), Instant::now());
                due = Instant::now() + period;
            }
            next = Some(next.map_or(due, |next: Instant| next.min(due)));
        }
        node.csi.full.lock().clear();
        tokio::select! {
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            () = node.csi.filled.notified() => {}
            gone = registered.changed() => if gone.is_err() { return },
            gone = changed.changed() => if gone.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_comes_changes_and_goes() {
        let mut body =
            json!({"spec": {"drivers": [{"name": "a"}, {"name": "b", "allocatable": {"count": 3}}]}});
        let before = body.clone();
        put(&mut body, "a", 5);
        assert_eq!(body["spec"]["drivers"][0]["allocatable"]["count"], 5);
        put(&mut body, "a", 0);
        put(&mut body, "gone", 7);
        assert_eq!(body, before);
    }
}

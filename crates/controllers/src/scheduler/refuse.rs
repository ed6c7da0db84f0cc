//! Carrying out a refusal: the pod is told why it waits and what it was promised, and who must make room is asked to go.

use super::{Shell, key, subject};
use crate::pod_gc;
use client::cache::Cache;
use client::events::EventType;
use client::{DeleteOptions, PatchKind, Verb, Write};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::status::ApiError;
use sched::{Diagnosis, PodInfo, Preemption, Rescue};
use serde_json::{Value, json};
use std::sync::Arc;

/// What the pod's status should say of the promise; `None`: what it says.
fn promised(rescue: &Rescue) -> Option<&str> {
    match rescue {
        Rescue::NotEligible(_) | Rescue::Consult(_) => None,
        Rescue::Hopeless(_) => Some(""),
        Rescue::Found(found) => Some(&found.node),
    }
}

/// The change of the pod's status; `None`: it says all that already.
fn status_change(
    pod: &core::Pod,
    (reason, why): (&str, &str),
    node: Option<&str>,
    now: &str,
) -> Option<Value> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let present = conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled");
    let same = |c: &core::PodCondition| {
        c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(why)
    };
    let mut change = json!({});
    if !present.is_some_and(same) {
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": reason,
            "message": why, "lastProbeTime": null});
        if present.is_none_or(|c| c.status != "False") {
            condition["lastTransitionTime"] = json!(now);
        }
        change["conditions"] = json!([condition]);
    }
    let known = status.and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default();
    if let Some(node) = node.filter(|n| *n != known) {
        change["nominatedNodeName"] = if node.is_empty() { Value::Null } else { json!(node) };
    }
    (change != json!({})).then_some(change)
}

/// Errors that say that there is nothing left to do.
fn settled(result: Result<(), ApiError>) -> Result<(), ApiError> {
    result.or_else(|e| if e.is_not_found() || e.is_conflict() { Ok(()) } else { Err(e) })
}

impl Shell {
    /// Tells why a pod stays without a node: an event each time, the status when it says something else. Yields the
    /// victims that could not be asked to go.
    pub(super) async fn refuse(
        &self,
        info: &PodInfo,
        diagnosis: &Diagnosis,
        pods: &Cache,
    ) -> Vec<Arc<PodInfo>> {
        let why = diagnosis.message();
        self.recorder.record(subject(info), EventType::Warning, "FailedScheduling", why.clone());
        let pod = pods.get(&key(info)).filter(|o| o.uid() == info.uid);
        if let Some(pod) = pod.and_then(|o| o.view::<core::Pod>().ok()) {
            let now = machinery::time::format((self.clock)());
            let change = status_change(&pod, (diagnosis.reason, &why), promised(&diagnosis.rescue), &now);
            if let Some(change) = change
                && let Err(error) = settled(self.patch_status(info, change).await)
            {
                tracing::debug!(pod = %key(info), %error, "condition not written");
            }
        }
        match &diagnosis.rescue {
            Rescue::Found(found) => self.make_room(info, found, pods).await,
            _ => Vec::new(),
        }
    }

    async fn make_room(&self, info: &PodInfo, found: &Preemption, pods: &Cache) -> Vec<Arc<PodInfo>> {
        if found.victims.is_empty() && found.displaced.is_empty() {
            return Vec::new();
        }
        self.metrics.preempted(found.victims.len());
        for displaced in &found.displaced {
            let change = json!({"nominatedNodeName": null});
            if let Err(error) = settled(self.patch_status(displaced, change).await) {
                tracing::debug!(pod = %key(displaced), %error, "promise not taken back");
            }
        }
        let asked = found.victims.iter().map(|victim| async move {
            match self.ask_to_go(victim, info, &found.node, pods).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(pod = %key(victim), %error, "a pod that must make room was not deleted");
                    Some(victim.clone())
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Deletes a victim, with its own grace period and a condition that says why.
    async fn ask_to_go(
        &self,
        victim: &PodInfo,
        by: &PodInfo,
        node: &str,
        pods: &Cache,
    ) -> Result<(), ApiError> {
        let object = pods.get(&key(victim)).filter(|o| o.uid() == victim.uid);
        // Gone, or going already.
        let Some(pod) = object.and_then(|o| o.view::<core::Pod>().ok()) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let why = "default-scheduler: preempting to accommodate a higher priority pod";
        let condition = pod_gc::disruption_target("PreemptionByScheduler", why, (self.clock)());
        settled(self.patch_status(victim, json!({"conditions": [condition]})).await)?;
        let options = DeleteOptions { uid: Some(victim.uid.clone()), ..DeleteOptions::default() };
        let deleted = self.client.delete(&gvr::PODS, &key(victim), options).await;
        settled(deleted.map(drop))?;
        let message = format!("Preempted by pod {} on node {node}", by.uid);
        self.recorder.record(subject(victim), EventType::Normal, "Preempted", message);
        Ok(())
    }

    /// Tells where the pod will be, when that takes longer: autoscalers make no room for it then.
    pub(super) async fn announce(&self, info: &PodInfo, node: &str) {
        if let Err(error) = self.patch_status(info, json!({"nominatedNodeName": node})).await {
            tracing::debug!(pod = %key(info), %error, "the node to be was not told");
        }
    }

    async fn patch_status(&self, info: &PodInfo, status: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": info.uid}, "status": status});
        let verb = Verb::Patch(PatchKind::Strategic, patch);
        let write = Write { gvr: gvr::PODS, key: key(info), subresource: "status", verb };
        self.client.write(write).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_written_when_it_says_something_new() {
        let status_change = |pod: &core::Pod, why: &str, node: Option<&str>, now: &str| {
            super::status_change(pod, ("Unschedulable", why), node, now)
        };
        let of = |status: Value| -> core::Pod { serde_json::from_value(json!({"status": status})).unwrap() };
        let condition = |message: &str| json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
        let told = of(json!({"conditions": [condition("full")], "nominatedNodeName": "n"}));
        assert_eq!(status_change(&told, "full", None, "t"), None);
        assert_eq!(status_change(&told, "full", Some("n"), "t"), None);
        assert_eq!(status_change(&told, "full", Some(""), "t"), Some(json!({"nominatedNodeName": null})));
        let change = status_change(&told, "other", Some("m"), "t").unwrap();
        assert_eq!(change["nominatedNodeName"], "m");
        assert_eq!(change["conditions"][0]["message"], "other");
        assert!(change["conditions"][0].get("lastTransitionTime").is_none(), "it was False before");
        let change = status_change(&of(json!({})), "full", None, "t").unwrap();
        assert_eq!(change["conditions"][0]["lastTransitionTime"], "t");
    }
}

//! Claims of pods' generic ephemeral volumes: made with the pod as their owner, so that they go with it.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PODS};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Pods looked at at the same time.
const WORKERS: usize = 2;

struct Controller {
    context: Context,
    pods: Arc<Cache>,
    claims: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let (pods, claims) = (context.informers.of(&PODS), context.informers.of(&CLAIMS));
    let queue = Arc::new(Queue::default());
    enqueue(&pods, &queue, |pod| {
        let has = |p: &core::Pod| {
            p.spec.as_ref().is_some_and(|s| s.volumes.iter().flatten().any(|v| v.ephemeral.is_some()))
        };
        pod.view::<core::Pod>().is_ok_and(|p| has(&p)).then(|| pod.key.clone()).into_iter().collect()
    });
    let caches = vec![pods.clone(), claims.clone()];
    let controller = Controller { context: context.clone(), pods, claims };
    run("ephemeral-volume", caches, queue, WORKERS, Arc::new(controller))
}

/// The claim of one of a pod's volumes.
fn claim(pod: &Object, name: &str, volume: &Value) -> Value {
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": &*pod.key.name, "uid": pod.uid(),
        "controller": true, "blockOwnerDeletion": true});
    let mut metadata = json!({"name": name, "namespace": &*pod.key.namespace, "ownerReferences": [owner]});
    for field in ["labels", "annotations"] {
        if template["metadata"][field].is_object() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template["spec"]})
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let value = pod.value().map_err(machinery::status::ApiError::internal)?;
        let finished = matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if finished || pod.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let volumes = value["spec"]["volumes"].as_array().into_iter().flatten();
        for volume in volumes.filter(|v| v["ephemeral"].is_object()) {
            let name = format!("{}-{}", key.name, volume["name"].as_str().unwrap_or_default());
            let there = self.claims.get(&ObjectKey::new(key.namespace.clone(), name.as_str()));
            if let Some(there) = there {
                if there.meta().controller().is_none_or(|o| o.uid != pod.uid()) {
                    let text =
                        format!("PVC \"{}\" was not created for pod \"{key}\" (pod is not owner)", there.key);
                    let subject = Subject::of("v1", "Pod", &pod);
                    self.context.recorder.record(
                        subject,
                        EventType::Warning,
                        "EphemeralVolumeConflict",
                        text,
                    );
                }
                continue;
            }
            match self.context.client.create(&CLAIMS, claim(&pod, &name, volume)).await {
                Err(error) if error.is_already_exists() || crate::workload::is_namespace_going(&error) => {}
                made => self.claims.observe(made?),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn the_claim_belongs_to_the_pod() {
        let pod = object(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}));
        let volume = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}});
        let made = claim(&pod, "p-v", &volume);
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(made["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(made["spec"], json!({"accessModes": ["ReadWriteOnce"]}));
        assert_eq!(
            (made["metadata"]["name"].as_str(), made["metadata"]["namespace"].as_str()),
            (Some("p-v"), Some("n"))
        );
    }
}

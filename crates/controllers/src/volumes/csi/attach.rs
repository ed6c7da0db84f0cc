//! VolumeAttachments: one for each node whose pods use a volume that must be attached, gone when the node says that it
//! has the volume no longer in use. What a node has attached stands in its status.
//!
//! Keys: volumes' names, and nodes' in the namespace [`NODE`]. Deliberately not here: calling drivers ([`super::attacher`],
//! or upstream's helper).

use super::drivers::Csi;
use super::{ATTACHMENTS, CSI_DRIVERS};
use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use crate::volumes::LOCAL;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::Gvr;
use k8s_schema::gvr::{NODES, PODS};
use machinery::status::ApiError;
use sched::volumes::claims_of;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Namespace of the keys that are nodes.
const NODE: &str = "node";
/// A node that is not ready for so long has nothing in use any more (upstream's figure).
const SILENT_SECONDS: i64 = 360;
/// Until a volume that another node has is looked at again.
const CONFLICT_RETRY: Duration = Duration::from_secs(5);
/// Names of the attachments that are made here, as upstream's.
const NAME_PREFIX: &str = "csi-";
/// Tells that a node is off for sure.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A VolumeAttachment of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attachment {
    name: String,
    node: String,
    deleting: bool,
}

/// What is to be done about a volume.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    attach: Vec<String>,
    detach: Vec<String>,
    /// Nodes that must wait for another one.
    wait: Vec<String>,
}

/// Compares where a volume is wanted with where it is. `single`: at one node at a time.
fn plan(wanted: &BTreeSet<String>, all: &[Attachment], single: bool, in_use: &dyn Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    for attachment in all.iter().filter(|a| !a.deleting && !wanted.contains(&a.node)) {
        if !in_use(&attachment.node) {
            plan.detach.push(attachment.name.clone());
        }
    }
    let mut taken = all.len();
    for node in wanted.iter().filter(|n| !all.iter().any(|a| a.node == **n)) {
        if single && taken > 0 {
            plan.wait.push(node.clone());
        } else {
            taken += 1;
            plan.attach.push(node.clone());
        }
    }
    plan
}

/// Upstream's name of a volume at nodes.
fn unique_name(source: &Value) -> String {
    let text = |key: &str| source[key].as_str().unwrap_or_default();
    format!("kubernetes.io/csi/{}^{}", text("driver"), text("volumeHandle"))
}

/// Does the node say that it uses it? One that is gone, off, or silent for long uses nothing.
fn in_use(node: Option<&Value>, name: &str, now: Timestamp) -> bool {
    let Some(node) = node else { return false };
    let list = |pointer: &str| node.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    if list("/spec/taints").iter().any(|t| t["key"] == OUT_OF_SERVICE) {
        return false;
    }
    let silent = list("/status/conditions").iter().any(|c| {
        let since = c["lastTransitionTime"].as_str().and_then(|t| machinery::time::parse(t).ok());
        c["type"] == "Ready"
            && c["status"] != "True"
            && since.is_some_and(|t| now.duration_since(t).as_secs() >= SILENT_SECONDS)
    });
    !silent && list("/status/volumesInUse").contains(&json!(name))
}

struct Controller {
    context: Context,
    csi: Arc<Csi>,
    attachments: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let csi = Csi::new(context);
    let of = |gvr: &Gvr| context.informers.of(gvr);
    let queue = Arc::new(Queue::default());
    let (attachments, pods) = (of(&ATTACHMENTS), of(&PODS));
    let claims = csi.claims.clone();
    enqueue(&pods, &queue, move |pod| {
        let of_pod =
            pod.view::<core::Pod>().ok().and_then(|p| Some(claims_of(&pod.key.name, p.spec.as_ref()?)));
        let keys = of_pod.into_iter().flatten().map(|c| ObjectKey::new(pod.key.namespace.clone(), c.name));
        keys.filter_map(|key| volume_of(&*claims.get(&key)?)).collect()
    });
    enqueue(&csi.claims, &queue, |claim| volume_of(claim).into_iter().collect());
    enqueue(&csi.volumes, &queue, |volume| vec![volume.key.clone()]);
    enqueue(&attachments, &queue, |attachment| {
        let spec = attachment.value().map(|mut v| v["spec"].take()).unwrap_or_default();
        let text = |v: &Value| v.as_str().map(str::to_string);
        let volume = text(&spec["source"]["persistentVolumeName"]).map(ObjectKey::cluster);
        let node = text(&spec["nodeName"]).map(|n| ObjectKey::new(NODE, n));
        volume.into_iter().chain(node).collect()
    });
    let (waker, all) = (queue.clone(), attachments.clone());
    csi.nodes.on_change(Box::new(move |old, new| {
        let used = |o: Option<&Arc<Object>>| {
            o.and_then(|o| o.value().ok())
                .map(|mut v| (v["status"]["volumesInUse"].take(), v["spec"]["taints"].take()))
        };
        let Some(node) = new.or(old).filter(|_| !all.is_empty() && used(old) != used(new)) else { return };
        let here = |a: &Arc<Object>| a.value().is_ok_and(|v| v["spec"]["nodeName"] == *node.key.name);
        for attachment in all.list().iter().filter(|a| here(a)) {
            let value = attachment.value().unwrap_or_default();
            let volume = value["spec"]["source"]["persistentVolumeName"].as_str();
            volume.into_iter().for_each(|v| waker.add(ObjectKey::cluster(v)));
        }
    }));
    let mut caches = csi.caches();
    caches.extend([attachments.clone(), pods.clone(), of(&CSI_DRIVERS)]);
    let controller = Controller { context: context.clone(), csi, attachments, pods };
    run("attachdetach", caches, queue, 1, Arc::new(controller))
}

/// The volume that a claim names.
fn volume_of(claim: &Object) -> Option<ObjectKey> {
    let value = claim.value().ok()?;
    value["spec"]["volumeName"].as_str().filter(|v| !v.is_empty()).map(ObjectKey::cluster)
}

impl Controller {
    /// The nodes whose pods use the claim, with one such pod each.
    fn wanted(&self, of: &Value) -> BTreeMap<String, Arc<Object>> {
        let (Some(namespace), Some(name)) = (of["namespace"].as_str(), of["name"].as_str()) else {
            return BTreeMap::new();
        };
        let node = |pod: &Object| {
            let view = pod.view::<core::Pod>().ok()?;
            let spec = view.spec.as_ref()?;
            let phase = view.status.as_ref().and_then(|s| s.phase.as_deref());
            let node = spec.node_name.clone().filter(|n| !n.is_empty())?;
            let over = matches!(phase, Some("Succeeded" | "Failed"));
            (!over && claims_of(&pod.key.name, spec).iter().any(|c| c.name == name)).then_some(node)
        };
        let pods = self.pods.list_in(namespace);
        pods.into_iter().filter_map(|pod| Some((node(&pod)?, pod))).collect()
    }

    fn existing(&self, volume: &str) -> Vec<Attachment> {
        let one = |o: Arc<Object>| {
            let value = o.value().ok()?;
            // Others may make their own (the conformance suite does): they are nobody else's to delete.
            let known = o.key.name.starts_with(NAME_PREFIX);
            (known && value["spec"]["source"]["persistentVolumeName"] == volume).then(|| Attachment {
                name: o.key.name.to_string(),
                node: value["spec"]["nodeName"].as_str().unwrap_or_default().into(),
                deleting: o.meta().deletion_timestamp.is_some(),
            })
        };
        self.attachments.list().into_iter().filter_map(one).collect()
    }

    async fn volume(&self, key: &ObjectKey) -> Outcome {
        let value = self.csi.volumes.get(key).map(|v| v.value()).transpose().map_err(ApiError::internal)?;
        let value = value.unwrap_or_default();
        let source = &value["spec"]["csi"];
        let driver = source["driver"].as_str().unwrap_or_default();
        let ours = source.is_object() && driver != LOCAL && self.csi.attaches(driver);
        let existing = self.existing(&key.name);
        if !ours && existing.is_empty() {
            return Ok(None);
        }
        let wanted = if ours { self.wanted(&value["spec"]["claimRef"]) } else { BTreeMap::new() };
        let name = unique_name(source);
        let now = self.context.now();
        let used = |node: &str| {
            let node = self.csi.nodes.get(&ObjectKey::cluster(node)).and_then(|n| n.value().ok());
            in_use(node.as_ref(), &name, now)
        };
        let modes = value["spec"]["accessModes"].as_array().into_iter().flatten();
        let single = !modes.into_iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany");
        let todo = plan(&wanted.keys().cloned().collect(), &existing, single, &used);
        for name in todo.detach {
            let options = DeleteOptions::default();
            match self.context.client.delete(&ATTACHMENTS, &ObjectKey::cluster(name), options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for node in todo.attach {
            self.create(&key.name, source, &node).await?;
        }
        for node in &todo.wait {
            self.tell_conflict(&key.name, &existing, wanted.get(node));
        }
        Ok((!todo.wait.is_empty()).then_some(CONFLICT_RETRY))
    }

    async fn create(&self, volume: &str, source: &Value, node: &str) -> Result<(), ApiError> {
        let text = |key: &str| source[key].as_str().unwrap_or_default();
        let digest = Sha256::digest(format!("{}{}{node}", text("volumeHandle"), text("driver")));
        let digits: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        let body = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
            "metadata": {"name": format!("{NAME_PREFIX}{digits}")},
            "spec": {"attacher": text("driver"), "nodeName": node, "source": {"persistentVolumeName": volume}}});
        match self.context.client.create(&ATTACHMENTS, body).await {
            Ok(made) => self.attachments.observe(made),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn tell_conflict(&self, volume: &str, existing: &[Attachment], pod: Option<&Arc<Object>>) {
        let Some(pod) = pod else { return };
        let others: Vec<&str> = existing.iter().map(|a| a.node.as_str()).collect();
        tracing::debug!(volume, ?others, "volume wanted at a second node");
        let text = format!(
            "Multi-Attach error for volume \"{volume}\" Volume is already exclusively attached to one node and can't be attached to another"
        );
        let subject = Subject::of("v1", "Pod", pod);
        self.context.recorder.record(subject, EventType::Warning, "FailedAttachVolume", text);
    }

    /// What the node has attached.
    async fn node(&self, name: &str) -> Outcome {
        let key = ObjectKey::cluster(name);
        let Some(node) = self.csi.nodes.get(&key) else { return Ok(None) };
        let mut attached = BTreeSet::new();
        for attachment in self.attachments.list() {
            let value = attachment.value().map_err(ApiError::internal)?;
            let volume = value["spec"]["source"]["persistentVolumeName"].as_str().unwrap_or_default();
            if value["spec"]["nodeName"] == name && value["status"]["attached"] == true {
                let volume = self.csi.volumes.get(&ObjectKey::cluster(volume)).and_then(|v| v.value().ok());
                attached.extend(volume.map(|v| unique_name(&v["spec"]["csi"])));
            }
        }
        let list: Vec<Value> = attached.iter().map(|n| json!({"name": n, "devicePath": ""})).collect();
        let list = if list.is_empty() { Value::Null } else { json!(list) };
        let value = node.value().map_err(ApiError::internal)?;
        if value["status"]["volumesAttached"] != list {
            let patch = json!({"status": {"volumesAttached": list}});
            self.context.client.merge_patch_status(&NODES, &key, patch).await?;
        }
        Ok(None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if &*key.namespace == NODE {
            return self.node(&key.name).await;
        }
        let again = self.volume(key).await?;
        // A silent node changes nothing: it is looked at by the clock.
        let silent = Duration::from_secs(SILENT_SECONDS.unsigned_abs());
        Ok(again.or((!self.existing(&key.name).is_empty()).then_some(silent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: &str, deleting: bool) -> Attachment {
        Attachment { name: format!("a-{node}"), node: node.into(), deleting }
    }

    #[test]
    fn volumes_follow_their_pods() {
        let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
        let of = |wanted: &[&str], all: &[Attachment], single: bool, used: &[&str]| {
            plan(&set(wanted), all, single, &|n| used.contains(&n))
        };
        let strings = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(of(&["x"], &[], true, &[]), Plan { attach: strings(&["x"]), ..Plan::default() });
        assert_eq!(of(&["x"], &[at("x", false)], true, &["x"]), Plan::default());
        assert_eq!(of(&[], &[at("x", false)], true, &["x"]), Plan::default(), "still in use");
        assert_eq!(
            of(&[], &[at("x", false)], true, &[]),
            Plan { detach: strings(&["a-x"]), ..Plan::default() }
        );
        let moved = of(&["y"], &[at("x", false)], true, &[]);
        assert_eq!(moved, Plan { detach: strings(&["a-x"]), wait: strings(&["y"]), ..Plan::default() });
        assert_eq!(of(&["y"], &[at("x", true)], true, &[]).wait, ["y"]);
        assert_eq!(of(&["x", "y"], &[], false, &[]).attach, ["x", "y"]);
        assert_eq!(
            of(&["x", "y"], &[], true, &[]),
            Plan { attach: strings(&["x"]), wait: strings(&["y"]), ..Plan::default() }
        );
    }

    #[test]
    fn silent_nodes_use_nothing() {
        let now = Timestamp::from_second(1000).unwrap();
        let node = |ready: &str, since: i64| {
            let since = machinery::time::format(Timestamp::from_second(since).unwrap());
            json!({"status": {"volumesInUse": ["v"],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]}})
        };
        assert!(in_use(Some(&node("True", 0)), "v", now));
        assert!(!in_use(Some(&node("True", 0)), "w", now));
        assert!(in_use(Some(&node("Unknown", 900)), "v", now));
        assert!(!in_use(Some(&node("Unknown", 100)), "v", now));
        assert!(!in_use(None, "v", now));
        let mut off = node("Unknown", 900);
        off["spec"]["taints"] = json!([{"key": OUT_OF_SERVICE}]);
        assert!(!in_use(Some(&off), "v", now));
    }
}

//! Empties a namespace that is being deleted, says in its conditions how far that is, then lets it go.
//!
//! Pods go first and everything else once they are gone, as upstream's ordered deletion, so that what a pod
//! needs outlives it. Every served namespaced resource is listed at each look: nothing is assumed to be empty.
//! Woken by the end of pods; otherwise it looks again after half the time that the deletion has lasted.

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::custom_kinds::Kinds;
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, ListOptions, Object, ObjectKey, Propagation, Verb, Write};
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_schema::{Gates, Gvr, gvr};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The entry of `spec.finalizers` that is ours.
const FINALIZER: &str = "kubernetes";
/// Deletions that are under way at once.
const BATCH: usize = 32;
/// Bounds of the pause between looks at a namespace that does not get empty.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

struct Controller {
    context: Context,
    namespaces: Arc<Cache>,
    resources: Vec<Gvr>,
    kinds: Arc<Kinds>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let namespaces = context.informers.of(&gvr::NAMESPACES);
    let pods = context.informers.of(&gvr::PODS);
    enqueue_self(&namespaces, &queue);
    let going = Arc::downgrade(&namespaces);
    let gone = queue.clone();
    pods.on_change(Box::new(move |old, new| {
        let (Some(pod), None, Some(namespaces)) = (old, new, going.upgrade()) else { return };
        let key = ObjectKey::cluster(pod.key.namespace.clone());
        if namespaces.get(&key).is_some_and(|n| n.meta().deletion_timestamp.is_some()) {
            gone.add(key);
        }
    }));
    let controller = Controller {
        context: context.clone(),
        namespaces: namespaces.clone(),
        resources: contents(&context.config.gates),
        kinds: Kinds::start(&context.informers),
    };
    run("namespace", vec![namespaces], queue, 2, Arc::new(controller))
}

/// The resources whose objects are in namespaces, each once.
fn contents(gates: &Gates) -> Vec<Gvr> {
    let rows = k8s_schema::resources().iter();
    let rows = rows.filter(|r| r.namespaced && r.storage_gvr() == r.gvr && gates.serve(r));
    let emptied = rows.filter(|r| r.verbs.contains(&"list") && r.verbs.contains(&"delete"));
    emptied.map(|r| r.gvr.clone()).collect()
}

/// What a look at the contents found.
#[derive(Default)]
struct Found {
    /// Objects left, by `pods.` or `deployments.apps`.
    remaining: BTreeMap<String, usize>,
    /// Objects left, by the finalizer that they wait for.
    finalizers: BTreeMap<String, usize>,
    /// What could not be listed or deleted.
    errors: Vec<String>,
}

impl Found {
    fn note(&mut self, gvr: &Gvr, objects: &[Arc<Object>]) {
        if objects.is_empty() {
            return;
        }
        *self.remaining.entry(format!("{}.{}", gvr.resource, gvr.group)).or_default() += objects.len();
        for finalizer in objects.iter().flat_map(|o| &o.meta().finalizers) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.remaining.is_empty() && self.errors.is_empty()
    }
}

/// Type, status, reason, message of every condition.
type Row = (&'static str, bool, &'static str, String);

/// The conditions that tell what was found, in upstream's words.
fn conditions(found: &Found) -> [Row; 5] {
    let list = |map: &BTreeMap<String, usize>, verb: &str| {
        let entries = map.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances"));
        entries.collect::<Vec<_>>().join(", ")
    };
    let content = match found.errors.len() {
        0 => (
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".into(),
        ),
        n => {
            let why = found.errors.join("; ");
            (
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, {n} remaining: {why}"),
            )
        }
    };
    let remaining = match found.remaining.is_empty() {
        true => (false, "ContentRemoved", "All content successfully removed".into()),
        false => {
            let what = list(&found.remaining, "has");
            (true, "SomeResourcesRemain", format!("Some resources are remaining: {what}"))
        }
    };
    let finalizers = match found.finalizers.is_empty() {
        true => (false, "ContentHasNoFinalizers", "All content-preserving finalizers finished".into()),
        false => {
            let what = list(&found.finalizers, "in");
            let message = format!("Some content in the namespace has finalizers remaining: {what}");
            (true, "SomeFinalizersRemain", message)
        }
    };
    let row = |kind, (status, reason, message)| (kind, status, reason, message);
    let fine = |kind, reason, message: &str| (kind, false, reason, message.to_string());
    [
        fine(
            "NamespaceDeletionDiscoveryFailure",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        fine(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        row("NamespaceDeletionContentFailure", content),
        row("NamespaceContentRemaining", remaining),
        row("NamespaceFinalizersRemaining", finalizers),
    ]
}

/// `status.conditions` with these rows put in; others stay, and so do the times of unchanged states.
fn updated(present: &[Value], rows: &[Row], now: Timestamp) -> Vec<Value> {
    let mut all = present.to_vec();
    for (kind, status, reason, message) in rows {
        let status = if *status { "True" } else { "False" };
        let mut new = crate::workload::condition(kind, status, reason, message, now);
        match all.iter_mut().find(|c| c["type"] == *kind) {
            Some(old) => {
                if old["status"] == status {
                    new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                }
                *old = new;
            }
            None => all.push(new),
        }
    }
    all
}

/// When to look again at a namespace whose deletion began then.
fn pause(since: Option<&str>, now: Timestamp) -> Duration {
    let began = since.and_then(|t| machinery::time::parse(t).ok()).unwrap_or(now);
    (machinery::time::since(now, began) / 2).clamp(PAUSE.0, PAUSE.1)
}

impl Controller {
    /// Deletes the objects of one resource; notes what is left.
    async fn empty(&self, gvr: &Gvr, namespace: &str, found: &mut Found) {
        let client = &self.context.client;
        let options = ListOptions { namespace: Some(namespace.into()), ..ListOptions::default() };
        let listed = match client.list(gvr, &options).await {
            Ok(list) => list.items,
            // A custom kind whose definition has just gone took its objects along.
            Err(error) if error.is_not_found() => return,
            Err(error) => return found.errors.push(error.to_string()),
        };
        let mut deleted = false;
        for batch in listed.chunks(BATCH) {
            let calls = batch.iter().filter(|o| o.meta().deletion_timestamp.is_none()).map(|object| {
                let options = DeleteOptions {
                    uid: Some(object.uid().into()),
                    propagation: Some(Propagation::Background),
                    ..DeleteOptions::default()
                };
                client.delete(gvr, &object.key, options)
            });
            for result in join_all(calls).await {
                deleted = true;
                match result {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => {
                        found.errors.push(error.to_string());
                    }
                    _ => {}
                }
            }
        }
        if !deleted {
            return found.note(gvr, &listed);
        }
        match client.list(gvr, &options).await {
            Ok(list) => found.note(gvr, &list.items),
            Err(error) if error.is_not_found() => {}
            Err(error) => found.errors.push(error.to_string()),
        }
    }

    async fn empty_all(&self, namespace: &str) -> Found {
        let mut found = Found::default();
        self.empty(&gvr::PODS, namespace, &mut found).await;
        if !found.is_empty() {
            return found;
        }
        self.kinds.wait_synced().await;
        let custom = self.kinds.all().into_iter().filter(|k| k.namespaced).map(|k| k.gvr);
        let all = self.resources.iter().filter(|g| **g != gvr::PODS).cloned().chain(custom);
        for gvr in all {
            self.empty(&gvr, namespace, &mut found).await;
        }
        found
    }

    /// Writes the conditions where they differ.
    async fn tell(&self, namespace: &Object, found: &Found) -> Result<(), ApiError> {
        let value = namespace.value().unwrap_or_default();
        let present = crate::workload::conditions_of(&value["status"]);
        let wanted = updated(&present, &conditions(found), self.context.now());
        if wanted == present && value["status"]["phase"] == "Terminating" {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": namespace.uid()},
            "status": {"phase": "Terminating", "conditions": wanted}});
        let written = self.context.client.merge_patch_status(&gvr::NAMESPACES, &namespace.key, patch).await?;
        self.namespaces.observe(written);
        Ok(())
    }

    /// Takes our finalizer away; the last one removes the namespace.
    async fn finalize(&self, key: &ObjectKey, uid: &str) -> Result<(), ApiError> {
        let now = self.context.client.get(&gvr::NAMESPACES, key).await?;
        if now.uid() != uid {
            return Ok(());
        }
        let mut body = now.value().map_err(ApiError::internal)?;
        if let Some(finalizers) = body["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|f| f != FINALIZER);
        }
        let write = Write {
            gvr: gvr::NAMESPACES,
            key: key.clone(),
            subresource: "finalize",
            verb: Verb::Update(body),
        };
        self.context.client.write(write).await.map(drop)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(None) };
        let meta = namespace.meta();
        let value = namespace.value().unwrap_or_default();
        let finalizers = value["spec"]["finalizers"].as_array();
        let ours = finalizers.is_some_and(|f| f.iter().any(|f| f == FINALIZER));
        if meta.deletion_timestamp.is_none() || !ours {
            return Ok(None);
        }
        let found = self.empty_all(&key.name).await;
        let done = match found.is_empty() {
            // The conditions of the end are seen only where somebody else's finalizer keeps the namespace.
            true if meta.finalizers.is_empty() => self.finalize(key, &meta.uid).await,
            true => match self.tell(&namespace, &found).await {
                Ok(()) => self.finalize(key, &meta.uid).await,
                failed => failed,
            },
            false => self.tell(&namespace, &found).await,
        };
        match done {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(()) if found.is_empty() => Ok(None),
            Ok(()) => Ok(Some(pause(meta.deletion_timestamp.as_deref(), self.context.now()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object, stamp};

    #[test]
    fn everything_in_namespaces_is_emptied_once() {
        let all = contents(&Gates::default());
        for needed in [&gvr::PODS, &gvr::SECRETS, &gvr::DEPLOYMENTS, &gvr::EVENTS, &gvr::SERVICE_ACCOUNTS] {
            assert_eq!(all.iter().filter(|g| *g == needed).count(), 1, "{needed:?}");
        }
        assert!(!all.contains(&gvr::NODES));
    }

    #[test]
    fn conditions_tell_what_is_left() {
        let mut found = Found::default();
        let text = |found: &Found| {
            let rows = conditions(found)
                .map(|(kind, status, reason, message)| format!("{kind}={status} {reason}: {message}"));
            rows[2..].join("\n")
        };
        assert_eq!(
            text(&found),
            "NamespaceDeletionContentFailure=false ContentDeleted: All content successfully deleted, may be waiting \
             on finalization\n\
             NamespaceContentRemaining=false ContentRemoved: All content successfully removed\n\
             NamespaceFinalizersRemaining=false ContentHasNoFinalizers: All content-preserving finalizers finished"
        );
        let claim = json!({"metadata": {"name": "c", "namespace": "n", "finalizers": ["kubernetes.io/pvc-protection"]}});
        found.note(&gvr::PERSISTENT_VOLUME_CLAIMS, &[object(claim)]);
        found.errors.push("no".into());
        assert_eq!(
            text(&found),
            "NamespaceDeletionContentFailure=true ContentDeletionFailed: Failed to delete all resource types, 1 \
             remaining: no\n\
             NamespaceContentRemaining=true SomeResourcesRemain: Some resources are remaining: \
             persistentvolumeclaims. has 1 resource instances\n\
             NamespaceFinalizersRemaining=true SomeFinalizersRemain: Some content in the namespace has finalizers \
             remaining: kubernetes.io/pvc-protection in 1 resource instances"
        );
    }

    #[test]
    fn times_move_with_the_status_only() {
        let rows = conditions(&Found::default());
        let mine = json!({"type": "Mine", "status": "True"});
        let first = updated(std::slice::from_ref(&mine), &rows, at(0));
        assert_eq!((first.len(), &first[0]), (6, &mine));
        let mut found = Found::default();
        found.errors.push("no".into());
        let second = updated(&first, &conditions(&found), at(9));
        assert_eq!(second[3]["lastTransitionTime"], stamp(9));
        assert_eq!(second[4]["lastTransitionTime"], stamp(0));
        assert_eq!(updated(&first, &rows, at(9)), first);
    }

    #[test]
    fn pauses_grow_with_the_wait() {
        let began = stamp(0);
        let seconds = |now| pause(Some(&began), at(now)).as_secs();
        assert_eq!([seconds(0), seconds(10), seconds(1_000)], [1, 5, 60]);
    }
}

//! StatefulSets: pods with a number, a name and claims of their own, in order.
//!
//! [`decide`] says which pods come and go; the shell keeps the history of templates, the claims and the pods.
//! Deliberately not here: resizing of claims.

mod decide;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::owner::{Kind, enqueue_owners, references};
use crate::revision::{HASH_LABEL, Revision, Templated};
use crate::workload;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::EventType;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use decide::{Member, Plan, Revisions, Set, Why, decide};
use futures_util::future::join_all;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Sets looked at at the same time.
const WORKERS: usize = 5;

static STATEFUL_SET: Kind = Kind { gvr: gvr::STATEFUL_SETS, api_version: "apps/v1", kind: "StatefulSet" };

static POD: Kind = Kind { gvr: gvr::PODS, api_version: "v1", kind: "Pod" };
const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

struct Controller {
    home: Templated,
    claims: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let home = Templated::new(context, &STATEFUL_SET);
    let claims = context.informers.of(&gvr::PERSISTENT_VOLUME_CLAIMS);
    enqueue_self(&home.sets, &queue);
    enqueue_owners(&STATEFUL_SET, &home.pods, &home.sets, &queue, selects);
    let mut caches = home.caches();
    caches.push(claims.clone());
    let controller = Controller { home, claims };
    run("statefulset", caches, queue, WORKERS, Arc::new(controller))
}

fn selects(set: &Object, pod: &Object) -> bool {
    Set::read(set).is_some_and(|s| !s.selector.is_everything() && s.selector.matches(&pod.meta().labels))
}

fn claim_name(claim: &Value, pod: &str) -> String {
    format!("{}-{pod}", claim["metadata"]["name"].as_str().unwrap_or_default())
}

/// The body of the pod of that ordinal.
fn pod_body(set: &Set, owner: &Object, ordinal: usize, revision: &Revision) -> Value {
    let mut body = workload::pod_of_template(&revision.template(), owner, STATEFUL_SET.reference(owner));
    let name = format!("{}-{ordinal}", owner.key.name);
    let metadata = &mut body["metadata"];
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("generateName");
    }
    metadata["name"] = json!(name);
    let labels = [
        (NAME_LABEL, name.clone()),
        ("apps.kubernetes.io/pod-index", ordinal.to_string()),
        (HASH_LABEL, revision.name.clone()),
    ];
    for (label, value) in labels {
        metadata["labels"][label] = json!(value);
    }
    let spec = &mut body["spec"];
    spec["hostname"] = json!(name);
    if !set.service.is_empty() {
        spec["subdomain"] = json!(set.service);
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|v| set.claims.iter().all(|c| c["metadata"]["name"] != v["name"]));
    volumes.extend(set.claims.iter().map(|c| {
        json!({"name": c["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim_name(c, &name)}})
    }));
    if !volumes.is_empty() {
        spec["volumes"] = json!(volumes);
    }
    body
}

/// The body of a claim for the pod of that name.
fn claim_body(set: &Set, owner: &Object, template: &Value, pod: &str) -> Value {
    let mut metadata = json!({"name": claim_name(template, pod), "namespace": &*owner.key.namespace});
    let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    for requirement in &set.selector.requirements {
        if requirement.op == machinery::selector::Op::Equals
            && let Some(value) = requirement.values.first()
        {
            labels.insert(requirement.key.clone(), json!(value));
        }
    }
    metadata["labels"] = json!(labels);
    if let Some(annotations) = template["metadata"]["annotations"].as_object() {
        metadata["annotations"] = json!(annotations);
    }
    if set.claims_go.0 {
        metadata["ownerReferences"] = json!([STATEFUL_SET.reference(owner)]);
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template["spec"]})
}

/// A set as it was read.
struct Target<'a> {
    owner: &'a Object,
    set: &'a Set,
}

impl Controller {
    fn tell<T>(&self, owner: &Object, verb: &str, what: &str, result: &Result<T, ApiError>) {
        let name = &owner.key.name;
        let mut reason: String = verb.into();
        reason[..1].make_ascii_uppercase();
        let (kind, reason, message) = match result {
            Ok(_) => (
                EventType::Normal,
                format!("Successful{reason}"),
                format!("{verb} {what} in StatefulSet {name} successful"),
            ),
            Err(error) if workload::is_namespace_going(error) => return,
            Err(error) => (
                EventType::Warning,
                format!("Failed{reason}"),
                format!("{verb} {what} in StatefulSet {name} failed error: {error}"),
            ),
        };
        self.home.context.recorder.record(STATEFUL_SET.subject(owner), kind, &reason, message);
    }

    async fn create(&self, target: &Target<'_>, ordinal: usize, revision: &Revision) -> Result<(), ApiError> {
        let Target { owner, set } = target;
        let pod = format!("{}-{ordinal}", owner.key.name);
        let made = match self.make_claims(target, &pod).await {
            Ok(()) => {
                self.home.context.client.create(&gvr::PODS, pod_body(set, owner, ordinal, revision)).await
            }
            Err(error) => Err(error),
        };
        self.tell(owner, "create", &format!("Pod {pod}"), &made);
        self.home.pods.observe(made?);
        Ok(())
    }

    /// Makes the claims that a pod lacks. One that is going must be gone first.
    async fn make_claims(&self, target: &Target<'_>, pod: &str) -> Result<(), ApiError> {
        let Target { owner, set } = target;
        for template in &set.claims {
            let name = claim_name(template, pod);
            let key = ObjectKey::new(owner.key.namespace.clone(), name.as_str());
            if let Some(claim) = self.claims.get(&key) {
                if claim.meta().deletion_timestamp.is_some() {
                    return Err(ApiError::internal(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            let body = claim_body(set, owner, template, pod);
            match self.home.context.client.create(&gvr::PERSISTENT_VOLUME_CLAIMS, body).await {
                Err(error) if error.is_already_exists() => {}
                made => {
                    self.tell(owner, "create", &format!("Claim {name} Pod {pod}"), &made);
                    self.claims.observe(made?);
                }
            }
        }
        Ok(())
    }

    /// Gives pods that are there what they lack: the label with their name, claims, and these their owners.
    async fn mend(&self, target: &Target<'_>, members: &[Member]) -> Result<(), ApiError> {
        for member in members.iter().filter(|m| !m.facts.deleting) {
            let object = &member.object;
            let wanted = target.set.wants(member.ordinal);
            if wanted && object.meta().labels.get(NAME_LABEL).is_none_or(|n| **n != *object.key.name) {
                let patch =
                    json!({"metadata": {"uid": object.uid(), "labels": {NAME_LABEL: &*object.key.name}}});
                let mended = self.home.context.client.merge_patch(&gvr::PODS, &object.key, patch).await;
                self.tell(target.owner, "update", &format!("Pod {}", object.key.name), &mended);
                self.home.pods.observe(mended?);
            }
            if wanted && matches!(member.facts.phase.as_str(), "" | "Pending") {
                self.make_claims(target, &object.key.name).await?;
            }
            self.bind_claims(target, member, wanted).await?;
        }
        Ok(())
    }

    async fn delete(&self, target: &Target<'_>, member: &Member, why: Why) -> Result<(), ApiError> {
        let owner = target.owner;
        if why == Why::ScaledAway {
            self.bind_claims(target, member, false).await?;
        }
        let options = DeleteOptions { uid: Some(member.facts.uid.clone()), ..DeleteOptions::default() };
        let key = &member.object.key;
        let done = match self.home.context.client.delete(&gvr::PODS, key, options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            done => done,
        };
        self.tell(owner, "delete", &format!("Pod {}", key.name), &done);
        self.home.pods.observe(done?);
        Ok(())
    }

    /// Gives a pod's claims the owners with which they go.
    async fn bind_claims(&self, target: &Target<'_>, member: &Member, wanted: bool) -> Result<(), ApiError> {
        let Target { owner, set } = target;
        let key = &member.object.key;
        let own = STATEFUL_SET.reference(owner);
        let pod = POD.reference(&member.object);
        for template in &set.claims {
            let name = claim_name(template, &key.name);
            let Some(claim) = self.claims.get(&ObjectKey::new(key.namespace.clone(), name)) else { continue };
            let Some(owners) = decide::claim_owners(set, wanted, &references(&claim), &own, &pod) else {
                continue;
            };
            let patch = json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.revision.to_string(),
                "ownerReferences": owners}});
            let stored = self
                .home
                .context
                .client
                .merge_patch(&gvr::PERSISTENT_VOLUME_CLAIMS, &claim.key, patch)
                .await?;
            self.claims.observe(stored);
        }
        Ok(())
    }

    async fn act(
        &self,
        target: &Target<'_>,
        members: &[Member],
        history: &[Revision],
        plan: &Plan,
    ) -> Result<(), ApiError> {
        let creations = plan.create.iter().filter_map(|(ordinal, name)| {
            let revision = history.iter().find(|r| r.name == *name).or(history.last())?;
            Some(self.create(target, *ordinal, revision))
        });
        let created = join_all(creations).await;
        let deletions = plan.delete.iter().filter_map(|(ordinal, why)| {
            let member = members.iter().find(|m| m.ordinal == *ordinal)?;
            Some(self.delete(target, member, *why))
        });
        let deleted = join_all(deletions).await;
        match created.into_iter().chain(deleted).find_map(Result::err) {
            Some(error) if !workload::is_namespace_going(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Which revisions matter: the newest one and the one the status comes from.
fn revisions(set: &Set, history: &[Revision]) -> Revisions {
    let update = history.last().map(|r| r.name.clone()).unwrap_or_default();
    let current = set.status["currentRevision"].as_str().filter(|c| history.iter().any(|r| r.name == *c));
    Revisions { current: current.unwrap_or(&update).into(), update }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let home = &self.home;
        let Some(object) = home.sets.get(key) else { return Ok(None) };
        let Some(set) = Set::read(&object).filter(|s| !s.selector.is_everything()) else { return Ok(None) };
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let (owned, all) = home.begin(&object, &set.selector, &set.template).await?;
        let members: Vec<Member> = owned.iter().filter_map(|p| Member::read(&key.name, p)).collect();
        let revisions = revisions(&set, &all);
        let now = home.context.now();
        let plan = decide(&set, &members, &revisions, now);
        let target = Target { owner: &object, set: &set };
        let mended = self.mend(&target, &members).await;
        let done = self.act(&target, &members, &all, &plan).await.and(mended);
        let wanted = decide::status(&set, &members, &revisions, object.meta().generation, now);
        let patch = workload::status_patch(&set.status, &wanted);
        if !workload::report(&home.context, &gvr::STATEFUL_SETS, &home.sets, key, patch).await? {
            return Ok(None);
        }
        done?;
        let mut used: BTreeSet<String> = members.iter().map(|m| m.revision.clone()).collect();
        used.extend([revisions.current, revisions.update]);
        home.trim(&object, &all, &used, set.history_limit).await?;
        Ok(decide::again(&set, &members, now))
    }
}

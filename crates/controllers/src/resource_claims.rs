//! Claims of devices: made from templates for pods that ask for them, taken away from pods that are over, and freed of
//! their devices when nobody uses them any more.
//!
//! Two queues: pods ([`missing`] decides) and claims ([`decide`] decides). Upstream's words and names.
//! Deliberately not here: which devices a claim gets (`sched::dra`), making devices ready (`agent`).

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::scheduler::devices::CLAIMS;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::metrics::{Family, labels, shared};
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, PatchKind, Verb, Write};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::Gvr;
use k8s_schema::gvr::PODS;
use machinery::status::ApiError;
use sched::dra::{EXTENDED, FINALIZER};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinHandle;

const TEMPLATES: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceclaimtemplates");
/// On claims from templates: the pod's name for it.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Generated names are cut so that five more letters make a label (upstream's figure).
const BASE_MAX: usize = 57;
/// As many pods may share a claim.
const RESERVED_MAX: usize = 256;
/// Keys looked at at the same time.
const WORKERS: usize = 2;

const CREATES: Family = Family::counter("resourceclaim_controller_creates_total");
const KNOWN: Family = Family::gauge("resourceclaim_controller_resource_claims");

struct Shared {
    context: Context,
    pods: Arc<Cache>,
    claims: Arc<Cache>,
    templates: Arc<Cache>,
    pods_queue: Arc<Queue<ObjectKey>>,
}

struct OfPods(Arc<Shared>);
struct OfClaims(Arc<Shared>);

/// Starts both queues.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let of = |gvr: &Gvr| context.informers.of(gvr);
    let (pods, claims, templates) = (of(&PODS), of(&CLAIMS), of(&TEMPLATES));
    let (pods_queue, claims_queue) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let (to_pods, to_claims) = (pods_queue.clone(), claims_queue.clone());
    pods.on_change(Box::new(move |old, new| {
        let Some(pod) = new.or(old) else { return };
        let Some(view) = pod.view::<core::Pod>().ok().filter(|p| uses_claims(p)) else { return };
        if new.is_none() || is_done(&view) {
            let key = |name: String| ObjectKey::new(pod.key.namespace.clone(), name);
            claim_names(&view).into_iter().for_each(|name| to_claims.add(key(name)));
        } else {
            to_pods.add(pod.key.clone());
        }
    }));
    enqueue_self(&claims, &claims_queue);
    claims.on_change(Box::new(|old, new| {
        for (object, by) in [(old, -1.0), (new, 1.0)] {
            if let Some(claim) = object.and_then(|o| o.value().ok()) {
                shared().of(&KNOWN, &kind(&claim)).add(by);
            }
        }
    }));
    let caches = vec![pods.clone(), claims.clone(), templates.clone()];
    let shared = Arc::new(Shared {
        context: context.clone(),
        pods,
        claims,
        templates,
        pods_queue: pods_queue.clone(),
    });
    let of_pods = Arc::new(OfPods(shared.clone()));
    let mut tasks = run("resource_claim_pods", caches.clone(), pods_queue, WORKERS, of_pods);
    tasks.extend(run("resource_claim", caches, claims_queue, WORKERS, Arc::new(OfClaims(shared))));
    tasks
}

fn uses_claims(pod: &core::Pod) -> bool {
    let spec = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref());
    spec.is_some_and(|c| !c.is_empty()) || extended(pod).is_some()
}

/// The claim that was made for the pod's extended resources.
fn extended(pod: &core::Pod) -> Option<&String> {
    Some(&pod.status.as_ref()?.extended_resource_claim_status.as_ref()?.resource_claim_name)
}

/// What the pod's status says of a claim from a template: its name, or that none is needed.
fn told<'a>(pod: &'a core::Pod, name: &str) -> Option<Option<&'a String>> {
    let all = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    all.iter().find(|s| s.name == name).map(|s| s.resource_claim_name.as_ref())
}

fn pod_claims(pod: &core::Pod) -> impl Iterator<Item = &core::PodResourceClaim> {
    pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten())
}

/// Names of the claims that the pod uses, as far as they are known.
fn claim_names(pod: &core::Pod) -> BTreeSet<String> {
    let name = |c: &core::PodResourceClaim| {
        c.resource_claim_name.clone().or_else(|| told(pod, &c.name).flatten().cloned())
    };
    pod_claims(pod).filter_map(name).chain(extended(pod).cloned()).collect()
}

/// Will none of its containers run any more?
fn is_done(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
        || (pod.metadata.deletion_timestamp.is_some() && !is_placed(pod))
}

fn is_placed(pod: &core::Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()))
}

/// The labels of a claim's figure.
fn kind(claim: &Value) -> String {
    let requests = claim["spec"]["devices"]["requests"].as_array().into_iter().flatten();
    let notes = &claim["metadata"]["annotations"];
    let source = match (notes[POD_CLAIM].is_string(), notes[EXTENDED] == "true") {
        (true, _) => "resource_claim_template",
        (_, true) => "extended_resource",
        _ => "",
    };
    let yes = |b: bool| if b { "true" } else { "false" };
    labels(&[
        ("admin_access", yes(is_admin(requests))),
        ("allocated", yes(claim["status"]["allocation"].is_object())),
        ("source", source),
    ])
}

fn is_admin<'a>(mut requests: impl Iterator<Item = &'a Value>) -> bool {
    requests.any(|r| r["exactly"]["adminAccess"] == true)
}

/// Where a claim's name begins: both names, cut in proportion where they are long.
fn base(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= BASE_MAX {
        return whole;
    }
    let pod = &pod[..pod.len() * BASE_MAX / whole.len()];
    let cut = format!("{pod}-");
    let rest = claim.len() * BASE_MAX / whole.len();
    format!("{cut}{}", &claim[..rest.min(claim.len())])
}

/// A claim from a template.
fn made(pod: &Object, name: &str, template: &Value) -> Value {
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": &*pod.key.name, "uid": pod.uid(),
        "controller": true, "blockOwnerDeletion": true});
    let from = &template["spec"]["metadata"];
    let mut metadata = json!({"generateName": base(&pod.key.name, name), "namespace": &*pod.key.namespace,
        "ownerReferences": [owner]});
    for field in ["labels", "annotations"] {
        if from[field].is_object() {
            metadata[field] = from[field].clone();
        }
    }
    metadata["annotations"][POD_CLAIM] = json!(name);
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": metadata,
        "spec": template["spec"]["spec"]})
}

/// The pod's claims that are to be made, with their templates. `own`: names of claims that belong to the pod.
fn missing<'a>(pod: &'a core::Pod, own: &BTreeSet<String>) -> Vec<(&'a str, &'a str)> {
    let open = |c: &'a core::PodResourceClaim| {
        let template = c.resource_claim_template_name.as_deref()?;
        let there = told(pod, &c.name).is_some_and(|known| known.is_none_or(|name| own.contains(name)));
        (!there).then_some((c.name.as_str(), template))
    };
    pod_claims(pod).filter_map(open).collect()
}

fn is_reserved(claim: &Value, uid: &str) -> bool {
    claim["status"]["reservedFor"].as_array().into_iter().flatten().any(|r| r["uid"] == uid)
}

/// What is to be done about a claim.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// The status as it should be.
    status: Option<Value>,
    /// The finalizer goes.
    free: bool,
    /// So does the claim.
    delete: bool,
}

/// `over`: UIDs of users that are over; `owner_done`: the pod that it was made for is.
fn decide(claim: &Value, over: &BTreeSet<String>, owner_done: bool) -> Plan {
    let mut plan = Plan::default();
    let reserved = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    let is_over = |r: &Value| r["uid"].as_str().is_some_and(|uid| over.contains(uid));
    let valid: Vec<Value> = reserved.iter().filter(|r| !is_over(r)).cloned().collect();
    let finalizers = claim["metadata"]["finalizers"].as_array();
    let ours = finalizers.is_some_and(|f| f.contains(&json!(FINALIZER)));
    let going = !claim["metadata"]["deletionTimestamp"].is_null();
    let mut status = claim["status"].clone();
    if valid.len() < reserved.len() {
        status["reservedFor"] = json!(valid);
        if valid.is_empty() {
            // Nobody uses it: it may get other devices next time, and others get these.
            status = if ours { json!({}) } else { json!({"allocation": status["allocation"]}) };
        }
        plan.free = ours && valid.is_empty();
    } else if ours && going && valid.is_empty() {
        status = json!({});
        plan.free = true;
    }
    if status != claim["status"] && !(status == json!({}) && claim["status"].is_null()) {
        plan.status = Some(status);
    }
    plan.delete = valid.is_empty() && owner_done && !going;
    plan
}

impl Shared {
    fn owned(&self, pod: &Object) -> Vec<Arc<Object>> {
        let all = self.claims.list_in(&pod.key.namespace);
        let own =
            |o: &Arc<Object>| o.meta().controller().is_some_and(|c| c.kind == "Pod" && c.uid == pod.uid());
        all.into_iter().filter(own).collect()
    }

    /// The claim for one of the pod's claims: one that was made before, else a new one.
    async fn make(
        &self,
        pod: &Object,
        (name, template): (&str, &str),
        own: &[Arc<Object>],
    ) -> Result<String, String> {
        let orphan = own.iter().find(|o| o.meta().annotations.get(POD_CLAIM).is_some_and(|n| n == name));
        if let Some(orphan) = orphan {
            return Ok(orphan.key.name.to_string());
        }
        let key = ObjectKey::new(pod.key.namespace.clone(), template);
        let found = self.templates.get(&key).ok_or_else(|| ApiError::not_found(&TEMPLATES, template));
        let found = found.map_err(|e| format!("resource claim template \"{template}\": {e}"))?;
        let claim = made(pod, name, &found.value().map_err(|e| e.to_string())?);
        let requests = claim["spec"]["devices"]["requests"].as_array().cloned().unwrap_or_default();
        let admin = if is_admin(requests.iter()) { "true" } else { "false" };
        let created = self.context.client.create(&CLAIMS, claim).await;
        let status = if created.is_ok() { "success" } else { "failure" };
        shared().count(&CREATES, &labels(&[("admin_access", admin), ("status", status)]));
        let created = created.map_err(|e| format!("create ResourceClaim : {e}"))?;
        self.claims.observe(created.clone());
        Ok(created.key.name.to_string())
    }

    /// Makes what is missing and tells the pod; reserves claims with devices for a pod that nobody scheduled.
    async fn serve(&self, object: &Arc<Object>) -> Result<(), ApiError> {
        let pod = object.view::<core::Pod>().map_err(ApiError::internal)?;
        let own = self.owned(object);
        let names = own.iter().map(|o| o.key.name.to_string()).collect();
        let mut new = Vec::new();
        for (name, template) in missing(&pod, &names) {
            match self.make(object, (name, template), &own).await {
                Ok(claim) => new.push(json!({"name": name, "resourceClaimName": claim})),
                Err(why) => {
                    let text = format!("PodResourceClaim {name}: {why}");
                    let (subject, kind) = (Subject::of("v1", "Pod", object), EventType::Warning);
                    self.context.recorder.record(subject, kind, "FailedResourceClaimCreation", text.clone());
                    return Err(ApiError::internal(text));
                }
            }
        }
        if !new.is_empty() {
            let patch = json!({"metadata": {"uid": object.uid()}, "status": {"resourceClaimStatuses": new}});
            let verb = Verb::Patch(PatchKind::Strategic, patch);
            let write = Write { gvr: PODS, key: object.key.clone(), subresource: "status", verb };
            self.context.client.write(write).await?;
        }
        if is_placed(&pod) {
            for name in claim_names(&pod) {
                self.reserve(object, &name).await?;
            }
        }
        Ok(())
    }

    async fn reserve(&self, pod: &Object, name: &str) -> Result<(), ApiError> {
        let key = ObjectKey::new(pod.key.namespace.clone(), name);
        let Some(claim) = self.claims.get(&key) else { return Ok(()) };
        let mut body = claim.value().map_err(ApiError::internal)?;
        let mut reserved = body["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
        let open = body["status"]["allocation"].is_object() && reserved.len() < RESERVED_MAX;
        if !open || is_reserved(&body, pod.uid()) {
            return Ok(());
        }
        reserved.push(json!({"resource": "pods", "name": &*pod.key.name, "uid": pod.uid()}));
        body["status"]["reservedFor"] = json!(reserved);
        self.context.client.update_status(&CLAIMS, &key, body).await.map(|stored| self.claims.observe(stored))
    }

    /// Those of a claim's users that are over. Who is not in the cache may be too new for it: the API is asked.
    async fn over(&self, claim: &Object, users: &[Value]) -> Result<BTreeSet<String>, ApiError> {
        let mut over = BTreeSet::new();
        for user in users.iter().filter(|u| u["resource"] == "pods") {
            let (name, uid) = (user["name"].as_str().unwrap_or_default(), user["uid"].as_str());
            let key = ObjectKey::new(claim.key.namespace.clone(), name);
            let found = match self.pods.get(&key) {
                Some(pod) => Some(pod),
                None => match self.context.client.get(&PODS, &key).await {
                    Ok(pod) => Some(pod),
                    Err(error) if error.is_not_found() => None,
                    Err(error) => return Err(error),
                },
            };
            let lives = found.is_some_and(|pod| {
                Some(pod.uid()) == uid && pod.view::<core::Pod>().is_ok_and(|p| !is_done(&p))
            });
            if !lives {
                over.extend(uid.map(str::to_string));
            }
        }
        Ok(over)
    }

    fn owner_done(&self, claim: &Object) -> bool {
        let Some(owner) = claim.meta().controller().filter(|o| o.kind == "Pod" && o.api_version == "v1")
        else {
            return false;
        };
        let pod = self.pods.get(&ObjectKey::new(claim.key.namespace.clone(), owner.name.as_str()));
        pod.is_some_and(|p| p.uid() != owner.uid || p.view::<core::Pod>().is_ok_and(|p| is_done(&p)))
    }

    async fn settle(&self, claim: &Arc<Object>) -> Result<(), ApiError> {
        let client = &self.context.client;
        let mut body = claim.value().map_err(ApiError::internal)?;
        let users = body["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
        let over = self.over(claim, &users).await?;
        let plan = decide(&body, &over, self.owner_done(claim));
        if let Some(status) = plan.status {
            body["status"] = status;
            let stored = client.update_status(&CLAIMS, &claim.key, body).await?;
            body = stored.value().map_err(ApiError::internal)?;
            self.claims.observe(stored);
        }
        if plan.free {
            if let Some(finalizers) = body["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|f| *f != json!(FINALIZER));
            }
            client.update(&CLAIMS, &claim.key, body).await?;
        }
        if plan.delete {
            let options = DeleteOptions { uid: Some(claim.uid().into()), ..DeleteOptions::default() };
            client.delete(&CLAIMS, &claim.key, options).await?;
        }
        Ok(())
    }
}

fn unless_gone(result: Result<(), ApiError>) -> Outcome {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(None),
    }
}

#[async_trait]
impl Reconcile for OfPods {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(pod) = self.0.pods.get(key) else { return Ok(None) };
        if pod.meta().deletion_timestamp.is_some() || pod.view::<core::Pod>().is_ok_and(|p| is_done(&p)) {
            return Ok(None);
        }
        match self.0.serve(&pod).await {
            Err(error) if crate::workload::is_namespace_going(&error) => Ok(None),
            done => unless_gone(done),
        }
    }
}

#[async_trait]
impl Reconcile for OfClaims {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let claim = self.0.claims.get(key);
        let uses = |o: &Arc<Object>| {
            let pod = o.view::<core::Pod>();
            pod.is_ok_and(|p| uses_claims(&p) && !is_done(&p) && claim_names(&p).contains(&*key.name))
        };
        let users: Vec<_> = self.0.pods.list_in(&key.namespace).into_iter().filter(uses).collect();
        users.iter().for_each(|pod| self.0.pods_queue.add(pod.key.clone()));
        match claim {
            Some(claim) => unless_gone(self.0.settle(&claim).await),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn claims_from_templates() {
        let pod = object(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}));
        let template = json!({"spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}}});
        let claim = made(&pod, "gpu", &template);
        let meta = &claim["metadata"];
        assert_eq!(
            (meta["generateName"].as_str(), meta["labels"]["a"].as_str()),
            (Some("p-gpu-"), Some("b"))
        );
        assert_eq!(meta["annotations"], json!({POD_CLAIM: "gpu"}));
        assert_eq!(meta["ownerReferences"][0]["blockOwnerDeletion"], true);
        let long = base(&"p".repeat(60), &"c".repeat(20));
        assert!(long.len() <= BASE_MAX && long.contains("p-c"), "{long}");
    }

    #[test]
    fn only_what_is_missing_is_made() {
        let claims = json!([{"name": "a", "resourceClaimTemplateName": "t"}, {"name": "b", "resourceClaimName": "x"},
            {"name": "c", "resourceClaimTemplateName": "t"}, {"name": "d", "resourceClaimTemplateName": "t"}]);
        let told = json!([{"name": "a", "resourceClaimName": "p-a"}, {"name": "c"}]);
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [], "resourceClaims": claims}, "status": {"resourceClaimStatuses": told}}))
        .unwrap();
        let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        assert_eq!(missing(&pod, &own(&["p-a"])), [("d", "t")]);
        assert_eq!(missing(&pod, &own(&[])), [("a", "t"), ("d", "t")], "deleted, or another's");
        assert_eq!(claim_names(&pod), own(&["p-a", "x"]));
    }

    #[test]
    fn devices_are_free_when_nobody_uses_them() {
        let claim = json!({"metadata": {"finalizers": [FINALIZER]},
            "status": {"allocation": {}, "reservedFor": [{"uid": "a"}, {"uid": "b"}]}});
        let over = |uids: &[&str]| uids.iter().map(|u| u.to_string()).collect::<BTreeSet<_>>();
        assert_eq!(decide(&claim, &over(&[]), true), Plan::default());
        let plan = decide(&claim, &over(&["a"]), false);
        assert_eq!(plan.status.unwrap()["reservedFor"], json!([{"uid": "b"}]));
        let plan = decide(&claim, &over(&["a", "b"]), true);
        assert_eq!(plan, Plan { status: Some(json!({})), free: true, delete: true });
        let mut going = claim.clone();
        going["metadata"]["deletionTimestamp"] = json!("t");
        assert_eq!(decide(&going, &over(&[]), false), Plan::default(), "still used");
        going["status"] = json!({"allocation": {}});
        assert_eq!(
            decide(&going, &over(&[]), true),
            Plan { status: Some(json!({})), free: true, delete: false }
        );
        let idle = json!({"metadata": {"finalizers": [FINALIZER]}, "status": {"allocation": {}}});
        assert_eq!(decide(&idle, &over(&[]), false), Plan::default(), "allocated, not used yet");
    }
}

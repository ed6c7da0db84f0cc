//! Claims of devices for the scheduler: its picture is kept by the caches' events; what a placed pod's claims get is
//! written into them before the pod is bound, and taken back where binding fails.
//!
//! A claim is written in upstream's order: the finalizer first, then devices and reservation in one write. Devices may
//! ask that a pod waits for conditions that their driver writes.

use super::state::State;
use client::cache::Cache;
use client::{ApiClient, DeleteOptions, ListOptions, Object, ObjectKey, PatchKind, Verb, Write};
use jiff::Timestamp;
use k8s_schema::gates::DEVICE_TAINT_RULES;
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use parking_lot::Mutex;
use sched::dra::{ClaimId, EXTENDED, FINALIZER, Inventory, Named, Step};
use sched::{Diagnosis, PodInfo};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Claims of devices.
pub const CLAIMS: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceclaims");
/// Their classes.
const CLASSES: Gvr = Gvr::new("resource.k8s.io", "v1", "deviceclasses");
/// What drivers have.
pub const SLICES: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceslices");
/// Taints that administrators put on devices.
pub const RULES: Gvr = Gvr::new("resource.k8s.io", "v1beta2", "devicetaintrules");
/// Attempts to write a claim over somebody else's writes.
const CONFLICTS_MAX: u32 = 5;
/// A pod whose devices do not become ready by then is placed anew (upstream's figure).
const READY_WITHIN: Duration = Duration::from_secs(600);

/// The caches.
pub struct Devices {
    client: ApiClient,
    state: Arc<Mutex<State>>,
    claims: Arc<Cache>,
    others: Vec<Arc<Cache>>,
}

type Put = fn(&mut Inventory, &ObjectKey, Option<&Value>);

fn id(key: &ObjectKey) -> ClaimId {
    (key.namespace.to_string(), key.name.to_string())
}

/// Is the pod among those that the claim is for?
fn is_reserved(claim: &Value, uid: &str) -> bool {
    claim["status"]["reservedFor"].as_array().into_iter().flatten().any(|r| r["uid"] == uid)
}

/// The claim with its devices, where it gets such, and for the pod.
fn given(claim: &mut Value, allocation: Option<&Value>, info: &PodInfo) {
    let name = info.id.as_ref().map_or("", |(_, name)| name);
    if let Some(allocation) = allocation {
        claim["status"]["allocation"] = allocation.clone();
    }
    let mut reserved = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    reserved.push(json!({"resource": "pods", "name": name, "uid": info.uid}));
    claim["status"]["reservedFor"] = json!(reserved);
}

/// Takes the claim away from the pod; its devices too, if these did not become ready. False: nothing to do.
fn taken_back(claim: &mut Value, uid: &str) -> bool {
    if !is_reserved(claim, uid) {
        return false;
    }
    let reserved = claim["status"]["reservedFor"].as_array_mut();
    reserved.into_iter().for_each(|l| l.retain(|r| r["uid"] != uid));
    let empty = claim["status"]["reservedFor"].as_array().is_none_or(Vec::is_empty);
    if empty && conditions(claim, "bindingConditions").next().is_some() {
        claim["status"] = json!({});
    }
    true
}

/// Results of the claim that name such conditions, each with one of them.
fn conditions<'a>(claim: &'a Value, key: &'a str) -> impl Iterator<Item = (&'a Value, &'a str)> {
    let results = claim["status"]["allocation"]["devices"]["results"].as_array();
    let of = move |r: &'a Value| {
        r[key].as_array().into_iter().flatten().filter_map(move |c| Some((r, c.as_str()?)))
    };
    results.into_iter().flatten().flat_map(of)
}

/// Are the claim's devices ready?
///
/// # Errors
/// The driver says that they will not be.
fn is_ready(claim: &Value) -> Result<bool, String> {
    let holds = |(result, wanted): (&Value, &str)| {
        let same = |d: &&Value| ["driver", "pool", "device", "shareID"].iter().all(|k| d[*k] == result[*k]);
        let devices = claim["status"]["devices"].as_array().into_iter().flatten().filter(same);
        let mut told = devices.flat_map(|d| d["conditions"].as_array().into_iter().flatten());
        told.any(|c| c["type"] == wanted && c["status"] == "True")
    };
    match conditions(claim, "bindingFailureConditions").find(|c| holds(*c)) {
        Some((_, failed)) => Err(format!(
            "claim {} binding failed: condition {failed} is true",
            claim["metadata"]["name"].as_str().unwrap_or_default()
        )),
        None => Ok(conditions(claim, "bindingConditions").all(holds)),
    }
}

/// Names what the pure search cannot make up: a name for each part of a shared device.
fn with_shares(mut allocation: Value) -> Value {
    for result in allocation["devices"]["results"].as_array_mut().into_iter().flatten() {
        if result["shareID"] == "" {
            result["shareID"] = json!(uuid::Uuid::new_v4().to_string());
        }
    }
    allocation["allocationTimestamp"] = json!(machinery::time::format(Timestamp::now()));
    allocation
}

impl Devices {
    /// Starts the caches, which feed the state from now on.
    pub fn start(
        client: &ApiClient,
        state: &Arc<Mutex<State>>,
        wake: impl Fn() + Clone + Send + Sync + 'static,
    ) -> Devices {
        let start = |gvr, put: Put| {
            let cache = Cache::start(client.clone(), gvr, ListOptions::default());
            let (state, wake) = (state.clone(), wake.clone());
            cache.on_change(Box::new(move |old, new| {
                let value = new.and_then(|o| o.value().ok());
                if let Some(object) = new.or(old) {
                    state.lock().devices_changed(|i| put(i, &object.key, value.as_ref()));
                    wake();
                }
            }));
            cache
        };
        let mut others = vec![
            start(CLASSES, |i, key, new| i.put_class(&key.name, new)),
            start(SLICES, |i, key, new| i.put_slice(&key.name, new)),
        ];
        let ruled = state.lock().gates.on(DEVICE_TAINT_RULES);
        if ruled {
            others.push(start(RULES, |i, key, new| i.put_rule(&key.name, new)));
        }
        let claims = start(CLAIMS, |i, key, new| i.put_claim(&id(key), new));
        Devices { client: client.clone(), state: state.clone(), claims, others }
    }

    /// Waits for the first lists.
    pub async fn wait_synced(&self) {
        self.claims.wait_synced().await;
        for cache in &self.others {
            cache.wait_synced().await;
        }
    }

    /// Writes what a step says; waits until the devices are ready.
    pub async fn carry_out(&self, step: &Step, info: &PodInfo) -> Result<(), ApiError> {
        let key = |id: &ClaimId| ObjectKey::new(id.0.as_str(), id.1.as_str());
        match step {
            Step::Reserve(id) => self.give(&key(id), None, info).await,
            Step::Allocate(id, allocation) => {
                self.give(&key(id), Some(with_shares(allocation.clone())), info).await?;
                self.ready(&key(id)).await
            }
            Step::Make { spec, allocation, mappings } => {
                let claim = self.make(spec, info).await?;
                self.give(&claim.key, Some(with_shares(allocation.clone())), info).await?;
                let told = json!({"resourceClaimName": &*claim.key.name, "requestMappings": mappings});
                let patch = json!({"metadata": {"uid": info.uid},
                    "status": {"extendedResourceClaimStatus": told}});
                let verb = Verb::Patch(PatchKind::Strategic, patch);
                let write = Write { gvr: gvr::PODS, key: super::key(info), subresource: "status", verb };
                self.client.write(write).await?;
                self.ready(&claim.key).await
            }
        }
    }

    async fn make(&self, spec: &Value, info: &PodInfo) -> Result<Arc<Object>, ApiError> {
        let key = super::key(info);
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": &*key.name, "uid": info.uid,
            "controller": true});
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"generateName": format!("{}-extended-resources-", key.name),
                "namespace": &*key.namespace, "annotations": {EXTENDED: "true"}, "ownerReferences": [owner]},
            "spec": spec});
        self.client.create(&CLAIMS, claim).await
    }

    async fn give(&self, key: &ObjectKey, allocation: Option<Value>, info: &PodInfo) -> Result<(), ApiError> {
        let elsewhere = |what: &str| ApiError::internal(format!("claim {key} got {what} in the meantime"));
        self.change(key, self.claims.get(key), |claim| {
            if !claim["metadata"]["deletionTimestamp"].is_null() {
                return Err(elsewhere("deleted"));
            }
            if allocation.is_some() && claim["status"]["allocation"].is_object() {
                return Err(elsewhere("allocated elsewhere"));
            }
            let mut finalizers = claim["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if allocation.is_some() && !finalizers.contains(&json!(FINALIZER)) {
                finalizers.push(json!(FINALIZER));
                claim["metadata"]["finalizers"] = json!(finalizers);
                return Ok(Next::Whole);
            }
            if !is_reserved(claim, &info.uid) {
                given(claim, allocation.as_ref(), info);
                return Ok(Next::Status);
            }
            Ok(Next::Nothing)
        })
        .await
    }

    /// Changes a claim in as many writes as `next` wants, over others' writes.
    async fn change(
        &self,
        key: &ObjectKey,
        mut claim: Option<Arc<Object>>,
        next: impl Fn(&mut Value) -> Result<Next, ApiError>,
    ) -> Result<(), ApiError> {
        for _ in 0..CONFLICTS_MAX {
            let current = match claim.take() {
                Some(claim) => claim,
                None => self.client.get(&CLAIMS, key).await?,
            };
            let mut body = current.value().map_err(ApiError::internal)?;
            let written = match next(&mut body)? {
                Next::Nothing => return Ok(()),
                Next::Whole => self.client.update(&CLAIMS, key, body).await.map(|o| (o, false)),
                Next::Status => self.client.update_status(&CLAIMS, key, body).await.map(|o| (o, true)),
            };
            match written {
                Ok((stored, done)) => {
                    self.claims.observe(stored.clone());
                    if done {
                        return Ok(());
                    }
                    claim = Some(stored);
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::conflict(&CLAIMS, &key.name, ApiError::MODIFIED))
    }

    /// Comes back when the claim's devices are ready.
    async fn ready(&self, key: &ObjectKey) -> Result<(), ApiError> {
        let mut changed = self.claims.changed();
        let look = async {
            loop {
                let claim = self.claims.get(key).ok_or_else(|| ApiError::not_found(&CLAIMS, &key.name))?;
                if is_ready(&claim.value().map_err(ApiError::internal)?).map_err(ApiError::internal)? {
                    return Ok(());
                }
                let _ = changed.changed().await;
            }
        };
        let late = || ApiError::internal("device binding timeout");
        tokio::time::timeout(READY_WITHIN, look).await.unwrap_or_else(|_| Err(late()))
    }

    /// The pod was not bound: its claims are not for it any more.
    pub async fn undo(&self, info: &PodInfo) {
        let namespace = info.namespace();
        for wanted in &info.devices.claims {
            let (Named::Own(name) | Named::Shared(name)) = wanted else { continue };
            let key = ObjectKey::new(namespace, name.as_str());
            let take = |claim: &mut Value| {
                Ok(if taken_back(claim, &info.uid) { Next::Status } else { Next::Nothing })
            };
            if let Err(error) = self.change(&key, None, take).await
                && !error.is_not_found()
            {
                tracing::warn!(claim = %key, %error, "a claim stays reserved for a pod that was not bound");
            }
        }
        self.remove_made(info).await;
    }

    /// Removes the claim that was made for the pod's extended resources.
    async fn remove_made(&self, info: &PodInfo) {
        if info.devices.extended.is_empty() {
            return;
        }
        let made = |o: &Arc<Object>| {
            o.meta().annotations.get(EXTENDED).is_some_and(|v| v == "true")
                && o.meta().controller().is_some_and(|c| c.uid == info.uid)
        };
        for claim in self.claims.list_in(info.namespace()).into_iter().filter(made) {
            let free = |claim: &mut Value| {
                let finalizers = claim["metadata"]["finalizers"].as_array_mut();
                let before = finalizers.as_ref().map_or(0, |f| f.len());
                let after = finalizers.map_or(0, |f| {
                    f.retain(|own| *own != json!(FINALIZER));
                    f.len()
                });
                Ok(if after < before { Next::Whole } else { Next::Nothing })
            };
            let removed = async {
                self.change(&claim.key, None, free).await?;
                self.client.delete(&CLAIMS, &claim.key, DeleteOptions::default()).await.map(drop)
            };
            if let Err(error) = removed.await
                && !error.is_not_found()
            {
                tracing::warn!(claim = %claim.key, %error, "a claim that serves no pod stays");
            }
        }
    }

    /// A pod fits nowhere: devices that it has on a node that will not do are given up, so that it gets others.
    pub async fn relieve(&self, info: &PodInfo, diagnosis: &Diagnosis) {
        if !diagnosis.filters.contains("DynamicResources") {
            return;
        }
        let idle = self.state.lock().idle_claims(info);
        if diagnosis.reasons.contains_key(sched::dra::NOT_HERE)
            && let Some((namespace, name)) = idle.first()
        {
            let give_up = |claim: &mut Value| {
                let mut others = claim["status"]["reservedFor"].as_array().into_iter().flatten();
                if others.any(|r| r["uid"] != info.uid) || !claim["status"]["allocation"].is_object() {
                    return Ok(Next::Nothing);
                }
                claim["status"] = json!({});
                Ok(Next::Status)
            };
            let key = ObjectKey::new(namespace.as_str(), name.as_str());
            if let Err(error) = self.change(&key, None, give_up).await {
                tracing::debug!(claim = %key, %error, "devices not given up");
            }
        }
        if diagnosis.before == sched::dra::STALE {
            self.remove_made(info).await;
        }
    }
}

/// What to write of a changed claim.
enum Next {
    /// All but the status; then it is looked at again.
    Whole,
    /// The status; then all is done.
    Status,
    /// Nothing.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_must_become_ready() {
        let results = json!([{"driver": "d", "pool": "p", "device": "x", "bindingConditions": ["Up"],
            "bindingFailureConditions": ["Broken"]}, {"driver": "d", "pool": "p", "device": "y"}]);
        let claim = |conditions: Value| {
            json!({"metadata": {"name": "c"}, "status": {"allocation": {"devices": {"results": results}},
                "reservedFor": [{"uid": "u"}],
                "devices": [{"driver": "d", "pool": "p", "device": "x", "conditions": conditions}]}})
        };
        let is = |kind: &str| json!([{"type": kind, "status": "True"}]);
        assert_eq!(is_ready(&claim(json!([]))), Ok(false));
        assert_eq!(is_ready(&claim(is("Up"))), Ok(true));
        assert_eq!(
            is_ready(&claim(is("Broken"))).unwrap_err(),
            "claim c binding failed: condition Broken is true"
        );
        let mut back = claim(json!([]));
        assert!(taken_back(&mut back, "u") && back["status"] == json!({}), "others shall try other devices");
        assert!(!taken_back(&mut back, "u"));
        assert_eq!(is_ready(&json!({"status": {}})), Ok(true));
    }

    #[test]
    fn parts_get_a_name() {
        let named = with_shares(json!({"devices": {"results": [{"shareID": ""}, {"device": "x"}]}}));
        assert_eq!(named["devices"]["results"][0]["shareID"].as_str().map(str::len), Some(36));
        assert_eq!(named["devices"]["results"][1]["shareID"], Value::Null);
    }
}

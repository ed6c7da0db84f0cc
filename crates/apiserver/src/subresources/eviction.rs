//! `pods/eviction`: a delete that a disruption budget may hold back.
//!
//! [`judge`] is pure: the pod and the budgets that select it in, what to do out. A budget that pays is debited in its
//! status first, by compare-and-swap, so that two evictions never spend the same disruption; the disruption
//! controller credits it when the pod is gone (or was not removed after all).

use super::create_body;
use crate::Api;
use crate::admission;
use crate::path::Query;
use crate::verbs::modify::{Change, Owners, Part};
use crate::verbs::{Call, Written, delete};
use client::{DeleteOptions, Object, ObjectKey, Verb};
use k8s_schema::Gvr;
use machinery::kinds::pod::condition;
use machinery::selector::LabelSelector;
use machinery::status::{ApiError, Cause};
use serde_json::{Value, json};
use std::sync::Arc;

const BUDGETS: Gvr = Gvr::new("policy", "v1", "poddisruptionbudgets");
/// Evictions that the controller has not confirmed yet; upstream's limit.
const DISRUPTED_MAX: usize = 2000;
/// After how long to ask again when the controller has not seen the budget yet.
const RETRY_SECONDS: u32 = 10;
/// The condition of a pod that is about to go for a reason outside it.
const TARGET: &str = "DisruptionTarget";
/// How often a pod that changes under an eviction is read again.
const TRIES_MAX: usize = 20;

/// What an eviction does.
#[derive(Debug, PartialEq)]
enum Judgement {
    /// Delete: the pod counts for nobody. `true`: only as it is now.
    Free(bool),
    /// Delete as it is now: not ready, and its budget is healthy without it.
    Unready(ObjectKey),
    /// The budget pays.
    Pays(ObjectKey),
}

impl Api {
    /// Evicts the pod.
    pub(crate) async fn evict_pod(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let mut body = create_body(verb)?;
        let mut warnings = admission::review_own(self, call, "CREATE", &mut body).await?;
        let named = body["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && *named != *call.key.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let asked = delete::parse_options(&body["deleteOptions"], &Query::default())?;
        let mut call = call.clone();
        call.options.dry_run |=
            body["deleteOptions"]["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All"));
        for _ in 0..TRIES_MAX {
            match self.evict_once(&call, &asked).await {
                Err(error) if error.is_conflict() && asked.resource_version.is_none() => {}
                Ok(mut written) => {
                    written.warnings.append(&mut warnings);
                    return Ok(written);
                }
                failed => return failed,
            }
        }
        Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED))
    }

    async fn evict_once(&self, call: &Call, asked: &DeleteOptions) -> Result<Written, ApiError> {
        let current = self.storage.get(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        let pod = current.value().map_err(ApiError::internal)?;
        let budgets = self.budgets_of(&pod, &call.key.namespace);
        let mut options = asked.clone();
        let as_it_is = |options: &mut DeleteOptions| {
            options.resource_version.get_or_insert_with(|| current.revision.to_string());
        };
        match judge(&pod, &budgets)? {
            Judgement::Free(true) => as_it_is(&mut options),
            Judgement::Free(false) => {}
            Judgement::Unready(budget) => {
                as_it_is(&mut options);
                // The pod may have become ready meanwhile: then its budget has the say.
                let refuse = |e: ApiError| if e.is_conflict() { still_processed(&budget.name) } else { e };
                return self
                    .mark_and_delete(call, options)
                    .await
                    .map_err(|e| if asked.resource_version.is_none() { refuse(e) } else { e });
            }
            Judgement::Pays(budget) => self.debit(call, &budget).await?,
        }
        self.mark_and_delete(call, options).await
    }

    /// Deletes the pod, which says first that it was evicted: a Job may not count that as a failure.
    async fn mark_and_delete(&self, call: &Call, mut options: DeleteOptions) -> Result<Written, ApiError> {
        if !call.options.dry_run {
            let inner = Call { subresource: "status".into(), ..call.clone() };
            let now = self.now_text();
            let edit = |pod| Ok(marked(pod, &options, &now));
            let change = Change { part: Part::Status, owners: Owners::Kept, edit: &edit };
            let written = self.modify(&inner, change).await?;
            let revision = || written.object.revision.to_string();
            options.resource_version = options.resource_version.map(|_| revision());
        }
        self.delete(call, options).await
    }

    /// The budgets that select the pod, as they are now.
    fn budgets_of(&self, pod: &Value, namespace: &str) -> Vec<(ObjectKey, Value)> {
        let Some(resource) = self.registry.find(&BUDGETS) else { return Vec::new() };
        let labels = pod["metadata"]["labels"].as_object();
        let Some(labels) = labels.filter(|l| !l.is_empty()) else { return Vec::new() };
        let labels = labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string()));
        let labels = labels.collect::<std::collections::BTreeMap<String, String>>();
        let all = self.storage.cache.snapshot(&resource.prefix).objects;
        let own = all.values().filter(|o| *o.key.namespace == *namespace);
        let parsed = own.filter_map(|o: &Arc<Object>| Some((o.key.clone(), o.value().ok()?)));
        let selects = |budget: &Value| {
            let selector = budget["spec"].get("selector").filter(|s| !s.is_null());
            selector.is_some_and(|s| LabelSelector::from_json(Some(s)).is_ok_and(|s| s.matches(&labels)))
        };
        parsed.filter(|(_, b)| selects(b)).collect()
    }

    /// Takes one disruption from the budget, or says why there is none.
    async fn debit(&self, call: &Call, budget: &ObjectKey) -> Result<(), ApiError> {
        let resource = self.registry.find(&BUDGETS).ok_or_else(|| ApiError::internal("no budgets"))?;
        let inner = Call {
            resource: resource.clone(),
            key: budget.clone(),
            subresource: "status".into(),
            ..call.clone()
        };
        let (pod, now) = (&*call.key.name, self.now_text());
        let edit = |budget| spend(budget, pod, &now);
        self.modify(&inner, Change { part: Part::Status, owners: Owners::Kept, edit: &edit }).await?;
        Ok(())
    }
}

/// What evicting the pod means, given the budgets that select it.
fn judge(pod: &Value, budgets: &[(ObjectKey, Value)]) -> Result<Judgement, ApiError> {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let gone = pod["metadata"]["deletionTimestamp"].is_string() || matches!(phase, "Succeeded" | "Failed");
    if gone || phase == "Pending" {
        return Ok(Judgement::Free(!gone));
    }
    let (key, budget) = match budgets {
        [] => return Ok(Judgement::Free(false)),
        [(key, budget)] => (key, budget),
        _ => {
            let words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::new(500, "", words));
        }
    };
    if condition(pod, "Ready") != "True" {
        let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
        let healthy = number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
        if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || healthy {
            return Ok(Judgement::Unready(key.clone()));
        }
    }
    Ok(Judgement::Pays(key.clone()))
}

/// The pod with the condition that an eviction leaves, provided that it is the one that is asked for.
fn marked(mut pod: Value, options: &DeleteOptions, now: &str) -> Value {
    if options.uid.as_ref().is_some_and(|uid| pod["metadata"]["uid"] != **uid) {
        return pod;
    }
    if let Some(revision) = &options.resource_version {
        pod["metadata"]["resourceVersion"] = json!(revision);
    }
    let mut mark = json!({"type": TARGET, "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": now, "lastProbeTime": null});
    if let Some(generation) = pod["metadata"].get("generation") {
        mark["observedGeneration"] = generation.clone();
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else {
        pod["status"]["conditions"] = json!([mark]);
        return pod;
    };
    match conditions.iter_mut().find(|c| c["type"] == TARGET) {
        Some(own) => {
            if own["status"] == "True" {
                mark["lastTransitionTime"] = own["lastTransitionTime"].clone();
            }
            *own = mark;
        }
        None => conditions.push(mark),
    }
    pod
}

fn too_many(message: String, retry_seconds: u32) -> ApiError {
    let words = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut error = ApiError::new(429, "TooManyRequests", words);
    error.retry_after_seconds = retry_seconds;
    error.causes.push(Cause { reason: "DisruptionBudget".into(), message, field: String::new() });
    error
}

fn still_processed(budget: &str) -> ApiError {
    let words = format!("The disruption budget {budget} is still being processed by the server.");
    too_many(words, RETRY_SECONDS)
}

/// The budget with one disruption less, which goes to this pod.
fn spend(mut budget: Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let name = budget["metadata"]["name"].as_str().unwrap_or_default().to_string();
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let forbidden = |why: &str| {
        let singular = Gvr::new("policy", "v1", "poddisruptionbudget");
        Err(ApiError::forbidden(&singular, &name, why))
    };
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(still_processed(&name));
    }
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().is_some_and(|d| d.len() > DISRUPTED_MAX) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return forbidden(why);
    }
    if allowed == 0 {
        let mut failed = status["conditions"].as_array().into_iter().flatten();
        let failed = failed.find(|c| c["type"] == "DisruptionAllowed" && c["reason"] == "SyncFailed");
        let words = match failed {
            Some(c) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                c["message"].as_str().unwrap_or_default()
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            ),
        };
        return Err(too_many(words, 0));
    }
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    budget["status"]["disruptedPods"][pod] = json!(now);
    if allowed == 1 {
        let conditions = budget["status"]["conditions"].as_array_mut();
        let own = conditions.into_iter().flatten().find(|c| c["type"] == "DisruptionAllowed");
        if let Some(own) = own.filter(|c| c["status"] == "True") {
            own["status"] = json!("False");
            own["reason"] = json!("InsufficientPods");
            own["lastTransitionTime"] = json!(now);
        }
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> (ObjectKey, Value) {
        let body = json!({"metadata": {"name": "b", "generation": 1}, "spec": {}, "status": status});
        (ObjectKey::new("n", "b"), body)
    }

    fn pod(phase: &str, ready: &str) -> Value {
        json!({"metadata": {"name": "p"}, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn who_pays() {
        let tight = || budget(json!({"currentHealthy": 1, "desiredHealthy": 2, "disruptionsAllowed": 0}));
        let fine = || budget(json!({"currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0}));
        let key = || ObjectKey::new("n", "b");
        assert_eq!(judge(&pod("Running", "True"), &[]).unwrap(), Judgement::Free(false));
        assert_eq!(judge(&pod("Pending", "False"), &[tight()]).unwrap(), Judgement::Free(true));
        assert_eq!(judge(&pod("Succeeded", "False"), &[tight()]).unwrap(), Judgement::Free(false));
        assert_eq!(judge(&pod("Running", "True"), &[tight()]).unwrap(), Judgement::Pays(key()));
        assert_eq!(judge(&pod("Running", "False"), &[tight()]).unwrap(), Judgement::Pays(key()));
        assert_eq!(judge(&pod("Running", "False"), &[fine()]).unwrap(), Judgement::Unready(key()));
        let mut always = tight();
        always.1["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert_eq!(judge(&pod("Running", "False"), &[always]).unwrap(), Judgement::Unready(key()));
        assert_eq!(judge(&pod("Running", "True"), &[tight(), fine()]).unwrap_err().code, 500);
    }

    #[test]
    fn an_evicted_pod_says_so_once() {
        let of = |uid: Option<&str>| DeleteOptions { uid: uid.map(Into::into), ..DeleteOptions::default() };
        let once = marked(pod("Running", "True"), &of(None), "t1");
        let twice = marked(once, &of(None), "t2");
        let conditions = twice["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(
            (&conditions[1]["reason"], &conditions[1]["lastTransitionTime"]),
            (&json!("EvictionByEvictionAPI"), &json!("t1"))
        );
        let other = pod("Running", "True");
        assert_eq!(marked(other.clone(), &of(Some("u")), "t"), other);
    }

    #[test]
    fn spending() {
        let (_, full) = budget(json!({"observedGeneration": 1, "disruptionsAllowed": 1}));
        let spent = spend(full, "p", "now").unwrap();
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert_eq!(spent["status"]["disruptedPods"], json!({"p": "now"}));
        let (_, empty) = budget(
            json!({"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 2}),
        );
        let error = spend(empty, "p", "now").unwrap_err();
        assert_eq!((error.code, error.reason), (429, "TooManyRequests"));
        assert_eq!(
            error.causes[0].message,
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
        let (_, unseen) = budget(json!({"disruptionsAllowed": 1}));
        assert!(spend(unseen, "p", "now").unwrap_err().causes[0].message.contains("still being processed"));
    }
}

//! Delete: at once, after a grace period, or when the last finalizer is gone.
//!
//! [`decide`] is pure: the object as it is and the options in, what to do out.

use super::{Call, Effect, Written};
use crate::Api;
use crate::admission::{self, Attempt, Operation};
use crate::resources::Resource;
use crate::rules;
use crate::select::Selection;
use crate::storage::{Swap, unstored};
use client::{DeleteOptions, Object, Propagation};
use machinery::kinds::strategy::{self, Deletion};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// Finalizer of foreground deletion: dependents go first.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning: dependents are let go first.
const ORPHAN: &str = "orphan";
/// Lost races before a delete gives up.
const SWAP_TRIES_MAX: usize = 200;

/// Resources whose delete answers with the object; the others answer with a Status.
const ANSWERS_WITH_OBJECT: [&str; 7] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
];

/// What a delete does.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is on its way already; the object stays as it is.
    Pending,
    /// Mark it so.
    Mark(Value),
    /// Remove it now.
    Remove,
}

/// Does a finished delete of this resource answer with the object?
pub fn answers_with_object(resource: &Resource) -> bool {
    resource.group().is_empty() && ANSWERS_WITH_OBJECT.contains(&resource.name())
}

/// Marked for deletion with nobody left to wait for: an update that leads here removes the object.
pub fn is_finished(resource: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && is_empty(&metadata["finalizers"])
        && (!resource.is("", "namespaces") || is_empty(&object["spec"]["finalizers"]))
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(|l| l.is_empty())
}

/// What deleting `object` means now.
pub fn decide(resource: &Resource, object: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Plan {
    let mut new = object.clone();
    set_gc_finalizers(&mut new, options.propagation.or(default_propagation(resource, object)));
    if resource.is("", "namespaces") {
        return decide_namespace(new, object, now);
    }
    match strategy::begin_deletion(&resource.stored, &mut new, options.grace_period_seconds, now) {
        Deletion::Pending => Plan::Pending,
        Deletion::Graceful => Plan::Mark(new),
        Deletion::Now if !strategy::has_finalizers(&new) => Plan::Remove,
        Deletion::Now => {
            strategy::mark_deleting(&mut new, now);
            if new == *object { Plan::Pending } else { Plan::Mark(new) }
        }
    }
}

/// A namespace first turns Terminating; its controller empties `spec.finalizers` at the end.
fn decide_namespace(mut new: Value, old: &Value, now: jiff::Timestamp) -> Plan {
    if !strategy::has_finalizers(&new) && is_empty(&new["spec"]["finalizers"]) {
        return Plan::Remove;
    }
    if old["metadata"]["deletionTimestamp"].is_string() {
        return Plan::Pending;
    }
    strategy::mark_deleting(&mut new, now);
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.remove("deletionGracePeriodSeconds");
    }
    new["status"]["phase"] = json!("Terminating");
    Plan::Mark(new)
}

/// What a delete without a wish means: for two kinds, as ever, that the pods stay. A deletion that is under way keeps
/// its own.
fn default_propagation(resource: &Resource, object: &Value) -> Option<Propagation> {
    let keeps = resource.is("batch", "jobs") || resource.is("", "replicationcontrollers");
    let finalizers = object["metadata"]["finalizers"].as_array();
    let chosen = finalizers.is_some_and(|f| f.iter().any(|f| *f == FOREGROUND || *f == ORPHAN));
    let under_way = object["metadata"]["deletionTimestamp"].is_string();
    (keeps && !chosen && !under_way).then_some(Propagation::Orphan)
}

/// Puts the garbage collector's finalizers as wanted.
fn set_gc_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let wanted = match propagation {
        None => return,
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
    };
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    let present = metadata.get("finalizers").and_then(Value::as_array).into_iter().flatten();
    let mut list: Vec<Value> = present.filter(|f| *f != FOREGROUND && *f != ORPHAN).cloned().collect();
    list.extend(wanted.map(Value::from));
    if list.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), Value::Array(list));
    }
}

fn check_preconditions(call: &Call, object: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    let conflict = |why: String| Err(ApiError::conflict(call.resource.gvr(), &object.key.name, &why));
    if let Some(uid) = options.uid.as_deref().filter(|u| *u != object.uid()) {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            object.uid()
        ));
    }
    let revision = object.revision.to_string();
    if let Some(asked) = options.resource_version.as_deref().filter(|r| *r != revision) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
        ));
    }
    Ok(())
}

impl Api {
    /// Deletes one object.
    pub async fn delete(&self, call: &Call, options: DeleteOptions) -> Result<Written, ApiError> {
        let mut current = self.load(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        for _ in 0..SWAP_TRIES_MAX {
            check_preconditions(call, &current, &options)?;
            let mut old = current.value().map_err(ApiError::internal)?;
            let mut attempt = Attempt::new(self, call, Operation::Delete, &call.key, None);
            admission::mutate(&mut attempt, &mut old)?;
            let warnings = admission::review_deletion(self, call, &old).await?;
            let plan = decide(&call.resource, &old, &options, (self.config.clock)());
            let (effect, swap) = match plan {
                Plan::Pending => (Effect::Deleting, Swap::Done(current.clone())),
                Plan::Remove if call.options.dry_run => (Effect::Removed, Swap::Done(current.clone())),
                Plan::Mark(new) if call.options.dry_run => {
                    (Effect::Deleting, Swap::Done(unstored(&call.key, current.revision, new)))
                }
                Plan::Remove => (Effect::Removed, self.storage.remove(&call.resource, &current).await?),
                Plan::Mark(new) => {
                    (Effect::Deleting, self.save(&call.resource, &call.key, Some(&current), new).await?)
                }
            };
            match swap {
                Swap::Done(object) => {
                    if effect == Effect::Removed && !call.options.dry_run {
                        self.released(&call.resource, &call.key).await;
                    }
                    let object = rules::serve(&call.resource, &object)?;
                    return Ok(Written { object, effect, warnings });
                }
                Swap::Lost(Some(now)) => current = self.one_in_served(&call.resource, now).await?,
                Swap::Lost(None) => return Err(call.not_found()),
            }
        }
        Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED))
    }

    /// Deletes every selected object; what was deleted, as it was before.
    pub async fn delete_collection(
        &self,
        call: &Call,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Object>>, ApiError> {
        self.storage.cache.wait_fresh().await?;
        let snapshot = self.storage.cache.snapshot(&call.resource.prefix);
        let early = selection.early();
        let found = early.as_ref().unwrap_or(selection).filter(&snapshot.objects, "");
        let mut found: Vec<Arc<Object>> = found.cloned().collect();
        if early.is_some() {
            // Fields of a version that a webhook makes: as a list does.
            found = self.in_served(&call.resource, found).await?;
            found.retain(|object| selection.matches(object));
        }
        let mut deleted = Vec::new();
        for object in found {
            let one = Call { key: object.key.clone(), ..call.clone() };
            match self.delete(&one, options.clone()).await {
                Ok(_) => deleted.push(object),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

/// The Status that a finished delete answers with.
pub fn deleted_status(call: &Call, object: &Object) -> Value {
    let gvr = call.resource.gvr();
    let mut details = json!({"name": &*object.key.name, "kind": gvr.resource, "uid": object.uid()});
    if !gvr.group.is_empty() {
        details["group"] = json!(gvr.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Reads DeleteOptions from a body and query parameters (a body field wins).
pub fn parse_options(body: &Value, query: &crate::path::Query) -> Result<DeleteOptions, ApiError> {
    let invalid = |field: &str, value: &str, why: &str| {
        let mut errors = machinery::field_errors::FieldErrors::new();
        errors.invalid(field, value, why);
        errors
            .into_result("meta.k8s.io", "DeleteOptions", "")
            .err()
            .unwrap_or_else(|| ApiError::internal(why))
    };
    let mut options = DeleteOptions {
        grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
        uid: body["preconditions"]["uid"].as_str().map(str::to_string),
        resource_version: body["preconditions"]["resourceVersion"].as_str().map(str::to_string),
        propagation: None,
    };
    if let (None, Some(text)) = (options.grace_period_seconds, query.find("gracePeriodSeconds")) {
        let seconds = text.parse().map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
        })?;
        options.grace_period_seconds = Some(seconds);
    }
    let orphan = body["orphanDependents"]
        .as_bool()
        .or_else(|| query.find("orphanDependents").map(|_| query.flag("orphanDependents")));
    let policy = body["propagationPolicy"].as_str().or_else(|| query.find("propagationPolicy"));
    if orphan.is_some() && policy.is_some() {
        let value = policy.unwrap_or_default();
        return Err(invalid(
            "propagationPolicy",
            value,
            "orphanDependents and deletionPropagation cannot be both set",
        ));
    }
    options.propagation = match (policy, orphan) {
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (None, None) => None,
        (Some(other), _) => {
            let why = "supported values: \"Background\", \"Foreground\", \"Orphan\"";
            return Err(invalid("propagationPolicy", other, why));
        }
    };
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Registry;

    fn plan(resource: &str, object: &Value, options: &DeleteOptions) -> Plan {
        let registry = Registry::builtin("main", false, &Default::default());
        let resource = registry
            .find(&k8s_schema::Gvr { resource: resource.to_string().into(), ..k8s_schema::gvr::PODS })
            .unwrap();
        decide(resource, object, options, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    fn running() -> Value {
        json!({"metadata": {"name": "a", "generation": 1},
               "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}})
    }

    #[test]
    fn a_running_pod_gets_its_grace_once_and_only_less_afterwards() {
        let Plan::Mark(marked) = plan("pods", &running(), &DeleteOptions::default()) else { panic!() };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(plan("pods", &marked, &DeleteOptions::default()), Plan::Pending);
        assert_eq!(plan("pods", &marked, &grace(60)), Plan::Pending);
        let Plan::Mark(shorter) = plan("pods", &marked, &grace(5)) else { panic!() };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
        assert_eq!(plan("pods", &marked, &grace(0)), Plan::Remove);
    }

    #[test]
    fn pods_that_run_nowhere_go_at_once() {
        let mut pod = running();
        pod["status"]["phase"] = json!("Succeeded");
        assert_eq!(plan("pods", &pod, &DeleteOptions::default()), Plan::Remove);
        assert_eq!(plan("pods", &json!({"metadata": {}}), &grace(30)), Plan::Remove);
    }

    #[test]
    fn finalizers_hold_and_propagation_adds_them() {
        let object = json!({"metadata": {"finalizers": ["x/y"]}});
        let Plan::Mark(marked) = plan("configmaps", &object, &DeleteOptions::default()) else { panic!() };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan("configmaps", &marked, &DeleteOptions::default()), Plan::Pending);
        let foreground =
            DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
        let Plan::Mark(marked) = plan("configmaps", &json!({"metadata": {}}), &foreground) else { panic!() };
        assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        let background =
            DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert_eq!(plan("configmaps", &marked, &background), Plan::Remove);
    }

    #[test]
    fn pods_of_two_kinds_stay_by_default() {
        for kind in ["jobs", "replicationcontrollers"] {
            let group = if kind == "jobs" { "batch" } else { "" };
            let registry = Registry::builtin("main", false, &Default::default());
            let gvr = k8s_schema::Gvr::new(group, "v1", kind);
            let resource = registry.find(&gvr).unwrap();
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let at = |options: &DeleteOptions| decide(resource, &json!({"metadata": {}}), options, now);
            let Plan::Mark(marked) = at(&DeleteOptions::default()) else { panic!("{kind}") };
            assert_eq!(marked["metadata"]["finalizers"], json!(["orphan"]));
            let wish =
                DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
            assert_eq!(at(&wish), Plan::Remove);
        }
    }

    #[test]
    fn namespaces_turn_terminating() {
        let object =
            json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Mark(marked) = plan("namespaces", &object, &DeleteOptions::default()) else { panic!() };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(plan("namespaces", &marked, &DeleteOptions::default()), Plan::Pending);
        let registry = Registry::builtin("main", false, &Default::default());
        let namespaces = registry.find(&k8s_schema::gvr::NAMESPACES).unwrap();
        assert!(!is_finished(namespaces, &marked));
        let mut emptied = marked.clone();
        emptied["spec"]["finalizers"] = json!([]);
        assert!(is_finished(namespaces, &emptied));
        assert_eq!(plan("namespaces", &emptied, &DeleteOptions::default()), Plan::Remove);
    }
}

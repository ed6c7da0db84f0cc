//! `pods/binding`: gives a pod its node, once.
//!
//! Each pod is written so, and it is what the rate of scheduling hangs on: the stored text is changed in place and
//! neither parsed nor checked like a body, because nothing of it is a caller's but what is checked here. Admission sees
//! the Binding, as it does in upstream.

use super::create_body;
use crate::Api;
use crate::admission::{self, Attempt, Operation};
use crate::rules;
use crate::scan;
use crate::storage::{Swap, revised};
use crate::verbs::modify::SWAP_TRIES_MAX;
use crate::verbs::{Call, Effect, Written};
use client::Verb;
use k8s_schema::gvr;
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

impl Api {
    /// Binds the pod to the node that the Binding names.
    pub(crate) async fn bind_pod(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let mut body = create_body(verb)?;
        let mut warnings = admission::review_own(self, call, "CREATE", &mut body).await?;
        let node = check(call, &body)?;
        self.place(&mut body, &node);
        let now = self.now_text();
        let mut current = self.load(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        for _ in 0..SWAP_TRIES_MAX {
            let pod = bind(call, &current.raw, &body, &node, &now)?;
            let annotations: Value = parsed(&current.raw, &["metadata", "annotations"]);
            let old = json!({"metadata": {"annotations": annotations}});
            let mut attempt = Attempt::new(self, call, Operation::UpdatePart, &call.key, Some(&old));
            admission::mutate(&mut attempt, &mut body)?;
            warnings.append(&mut attempt.warnings);
            let swap = match call.options.dry_run {
                true => Swap::Done(revised(&call.key, current.revision, &pod)),
                false => self.storage.replace_text(&call.resource, &current, pod).await?,
            };
            match swap {
                Swap::Done(object) => {
                    let object = rules::serve(&call.resource, &object)?;
                    return Ok(Written { object, effect: Effect::Updated, warnings });
                }
                Swap::Lost(Some(now)) => current = self.one_in_served(&call.resource, now).await?,
                Swap::Lost(None) => return Err(call.not_found()),
            }
        }
        Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED))
    }
}

/// Labels of a node that its pods get, so that programs in them can be told.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

impl Api {
    /// Writes into a Binding where the node is.
    fn place(&self, binding: &mut Value, node: &str) {
        let Some(node) = self.cached(&gvr::NODES, "", node) else { return };
        for key in TOPOLOGY {
            if let Some(place) = node.meta().labels.get(key) {
                binding["metadata"]["labels"][key] = json!(place);
            }
        }
    }
}

fn check(call: &Call, body: &Value) -> Result<String, ApiError> {
    rules::check_names(call, body)?;
    let mut errors = FieldErrors::new();
    let kind = body["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.not_supported("target.kind", kind, &["Node", "<empty>"]);
    }
    let node = body["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        errors.required("target.name", "");
    }
    errors.into_result("", "Binding", &call.key.name)?;
    Ok(node.to_string())
}

/// What is at a path of the pod; its default where nothing of the kind is.
fn parsed<T: DeserializeOwned + Default>(pod: &[u8], path: &[&str]) -> T {
    scan::value_at(pod, path).and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

/// The stored text of the pod when it is bound.
fn bind(call: &Call, pod: &[u8], binding: &Value, node: &str, now: &str) -> Result<Vec<u8>, ApiError> {
    let name = &*call.key.name;
    let conflict = |why: String| {
        let mut error = ApiError::conflict(call.resource.gvr(), name, &why);
        error.message = format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
        error.kind = "pods/binding".into();
        Err(error)
    };
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    let present = scan::string_at(pod, &["metadata", "uid"]).unwrap_or_default();
    if !uid.is_empty() && uid != present {
        return conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {present}"
        ));
    }
    if scan::string_at(pod, &["metadata", "deletionTimestamp"]).is_some() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(bound) = scan::string_at(pod, &["spec", "nodeName"]).filter(|n| !n.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node \"{bound}\""));
    }
    if !parsed::<Vec<Value>>(pod, &["spec", "schedulingGates"]).is_empty() {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = scan::set(pod, &["spec", "nodeName"], &json!(node).to_string());
    for map in ["annotations", "labels"] {
        let more = binding["metadata"][map].as_object().filter(|more| !more.is_empty());
        let Some(more) = more else { continue };
        if !more.values().all(Value::is_string) {
            return Err(ApiError::bad_request(format!(
                "json: cannot unmarshal into Go struct field ObjectMeta.metadata.{map} of type string"
            )));
        }
        let mut all: Map<String, Value> = parsed(&pod, &["metadata", map]);
        all.extend(more.clone());
        pod = scan::set(&pod, &["metadata", map], &Value::Object(all).to_string());
    }
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions: Vec<Value> = parsed(&pod, &["status", "conditions"]);
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
    pod = scan::set(&pod, &["status", "conditions"], &Value::Array(conditions).to_string());
    // What it was promised is of no use any more; the revision is not stored.
    pod = scan::without(&pod, &["status", "nominatedNodeName"]);
    Ok(scan::without(&pod, &["metadata", "resourceVersion"]))
}

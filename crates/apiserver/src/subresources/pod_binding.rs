//! `pods/binding`: gives a pod its node, once.

use super::create_body;
use crate::Api;
use crate::admission;
use crate::rules;
use crate::verbs::modify::{Change, Owners, Part};
use crate::verbs::{Call, WriteOptions, Written};
use client::Verb;
use k8s_schema::gvr;
use machinery::body::Repeats;
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};

impl Api {
    /// Binds the pod to the node that the Binding names.
    pub(crate) async fn bind_pod(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let mut body = create_body(verb)?;
        let mut warnings = admission::review_own(self, call, "CREATE", &mut body).await?;
        let node = check(call, &body)?;
        self.place(&mut body, &node);
        let now = self.now_text();
        let inner = Call {
            options: WriteOptions { duplicates: Repeats::default(), ..call.options.clone() },
            ..call.clone()
        };
        let edit = |mut pod| {
            bind(call, &mut pod, &body, &node, &now)?;
            Ok(pod)
        };
        let change = Change { part: Part::Binding, owners: Owners::Kept, edit: &edit };
        let mut written = self.modify(&inner, change).await?;
        written.warnings.append(&mut warnings);
        Ok(written)
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

fn bind(call: &Call, pod: &mut Value, binding: &Value, node: &str, now: &str) -> Result<(), ApiError> {
    let name = &*call.key.name;
    let conflict = |why: String| {
        let mut error = ApiError::conflict(call.resource.gvr(), name, &why);
        error.message = format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
        error.kind = "pods/binding".into();
        Err(error)
    };
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    let present = pod["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != present {
        return conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {present}"
        ));
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node \"{bound}\""));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = json!(node);
    for map in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][map].as_object().into_iter().flatten() {
            pod["metadata"][map][key] = value.clone();
        }
    }
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
    pod["status"]["conditions"] = Value::Array(conditions);
    // What it was promised is of no use any more.
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    Ok(())
}

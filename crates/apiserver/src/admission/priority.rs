//! Priority: pods get the number of their class; users cannot give the number themselves.

use super::Attempt;
use client::Object;
use k8s_schema::View;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A PriorityClass, as far as it decides; read once, because every pod that names none asks all of them.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Class {
    value: i64,
    global_default: bool,
    preemption_policy: Option<String>,
}

impl View for Class {
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(raw)
    }
}

pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !attempt.creates_pod() || !pod["spec"].is_object() {
        return Ok(());
    }
    let forbidden = |why: &str| Err(ApiError::forbidden(&gvr::PODS, &attempt.key.name, why));
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_string();
    let class = if name.is_empty() {
        global_default(attempt)
    } else {
        attempt.api.cached(&gvr::PRIORITY_CLASSES, "", &name)
    };
    if class.is_none() && !name.is_empty() {
        return forbidden(&format!("no PriorityClass with name {name} was found"));
    }
    let body = class.as_ref().and_then(|c| c.view::<Class>().ok()).unwrap_or_default();
    let priority = body.value;
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|g| *g != priority) {
        return forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        ));
    }
    let policy = body.preemption_policy.as_deref().unwrap_or("PreemptLowerPriority");
    if let Some(given) = pod["spec"]["preemptionPolicy"].as_str().filter(|g| *g != policy) {
        return forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let (true, Some(class)) = (name.is_empty(), &class) {
        pod["spec"]["priorityClassName"] = json!(&*class.key.name);
    }
    pod["spec"]["priority"] = json!(priority);
    pod["spec"]["preemptionPolicy"] = json!(policy);
    Ok(())
}

/// The lowest class that is marked as the default.
fn global_default(attempt: &Attempt<'_>) -> Option<Arc<Object>> {
    let classes = attempt.api.cached_all(&gvr::PRIORITY_CLASSES);
    let defaults = classes.values().filter_map(|class| {
        let view = class.view::<Class>().ok()?;
        view.global_default.then(|| (view.value, class.clone()))
    });
    defaults.min_by_key(|(priority, _)| *priority).map(|(_, class)| class)
}

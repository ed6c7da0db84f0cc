//! Priority: pods get the number of their class; users cannot give the number themselves.

use super::Attempt;
use client::Object;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

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
    let body = class.as_ref().and_then(|c| c.value().ok()).unwrap_or_default();
    let priority = body["value"].as_i64().unwrap_or(0);
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|g| *g != priority) {
        return forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        ));
    }
    let policy = body["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
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
        let value = class.value().ok()?;
        (value["globalDefault"] == true).then(|| (value["value"].as_i64().unwrap_or(0), class.clone()))
    });
    defaults.min_by_key(|(priority, _)| *priority).map(|(_, class)| class)
}

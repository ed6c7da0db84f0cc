//! Since when a taint of a device counts: now, where the writer does not say. Of a DeviceTaintRule also when its effect
//! becomes another and the writer left the time as it was.

use super::{Attempt, Operation};
use machinery::status::ApiError;
use serde_json::{Value, json};

const GROUP: &str = "resource.k8s.io";

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    if attempt.operation == Operation::Delete || !attempt.call.subresource.is_empty() {
        return Ok(());
    }
    if resource.is(GROUP, "resourceslices") {
        let devices = object.pointer_mut("/spec/devices").and_then(Value::as_array_mut);
        let devices = devices.into_iter().flatten();
        for taint in devices.filter_map(|d| d.get_mut("taints")?.as_array_mut()).flatten() {
            date(taint, None, attempt);
        }
    } else if resource.is(GROUP, "devicetaintrules")
        && let Some(taint) = object.pointer_mut("/spec/taint").filter(|t| t.is_object())
    {
        date(taint, attempt.old.map(|old| &old["spec"]["taint"]), attempt);
    }
    Ok(())
}

fn date(taint: &mut Value, old: Option<&Value>, attempt: &Attempt<'_>) {
    let stale = |old: &Value| old["timeAdded"] == taint["timeAdded"] && old["effect"] != taint["effect"];
    if taint["timeAdded"].is_null() || old.is_some_and(stale) {
        taint["timeAdded"] = json!(attempt.api.now_text());
    }
}

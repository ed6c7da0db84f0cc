//! PodGroupProtection: a new group stays until its pods are done. PodGroupWorkloadExists: the template that a new group
//! says it was made from must be there.

use super::{Attempt, Operation, storage};
use k8s_schema::gvr;
use machinery::kinds::get::{has, list, text};
use machinery::status::ApiError;
use serde_json::Value;

/// Kept until no pod of the group runs any more.
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

fn creates_group(attempt: &Attempt<'_>) -> bool {
    attempt.operation == Operation::Create
        && attempt.call.resource.is("scheduling.k8s.io", "podgroups")
        && attempt.call.subresource.is_empty()
}

pub(super) fn admit(attempt: &Attempt<'_>, group: &mut Value) -> Result<(), ApiError> {
    if creates_group(attempt) {
        storage::protect(group, FINALIZER);
    }
    Ok(())
}

pub(super) fn judge(attempt: &Attempt<'_>, group: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let reference = &group["spec"]["podGroupTemplateRef"];
    if !creates_group(attempt) || !has(reference, "/workload") {
        return Ok(());
    }
    let (name, template) =
        (text(reference, "/workload/workloadName"), text(reference, "/workload/podGroupTemplateName"));
    let rejected = |why: String| {
        let why = format!("PodGroup rejected: {why}");
        Err(ApiError::forbidden(&gvr::POD_GROUPS, &attempt.key.name, &why))
    };
    let Some(workload) = attempt.api.cached(&gvr::WORKLOADS, &attempt.key.namespace, name) else {
        return rejected(format!("Workload {name:?} not found"));
    };
    let workload = workload.value().map_err(ApiError::internal)?;
    if list(&workload, "/spec/podGroupTemplates").iter().any(|t| text(t, "/name") == template) {
        return Ok(());
    }
    rejected(format!("PodGroupTemplate {template:?} not found in Workload {name:?}"))
}

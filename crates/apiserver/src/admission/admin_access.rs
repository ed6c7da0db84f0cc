//! Claims of devices that others may be using (`adminAccess`): only in namespaces that an administrator labelled.

use super::{Attempt, Operation};
use k8s_schema::gvr::NAMESPACES;
use machinery::field_errors::FieldErrors;
use machinery::kinds::get::{flag, list};
use machinery::status::ApiError;
use serde_json::Value;

/// The namespace's label.
const LABEL: &str = "resource.kubernetes.io/admin-access";
const WORDS: &str = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";

/// Where a kind has its requests: as a pointer, and as messages name it.
fn place(attempt: &Attempt<'_>) -> Option<(&'static str, &'static str, &'static str)> {
    let resource = &attempt.call.resource;
    let is = |name| resource.is("resource.k8s.io", name);
    match () {
        () if is("resourceclaims") => Some(("ResourceClaim", "/spec/devices/requests", "spec")),
        () if is("resourceclaimtemplates") => {
            Some(("ResourceClaimTemplate", "/spec/spec/devices/requests", "spec.spec"))
        }
        () => None,
    }
}

pub(super) fn judge(attempt: &Attempt<'_>, object: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let creates = attempt.operation == Operation::Create && attempt.call.subresource.is_empty();
    let Some((kind, pointer, path)) = place(attempt).filter(|_| creates) else { return Ok(()) };
    let wants: Vec<usize> = list(object, pointer)
        .iter()
        .enumerate()
        .filter(|(_, r)| flag(r, "/exactly/adminAccess"))
        .map(|(i, _)| i)
        .collect();
    if wants.is_empty() {
        return Ok(());
    }
    let namespace = attempt.api.cached(&NAMESPACES, "", &attempt.key.namespace);
    if namespace.is_some_and(|n| n.meta().labels.get(LABEL).is_some_and(|v| v == "true")) {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    for i in wants {
        errors.forbidden(&format!("{path}.devices.requests[{i}].exactly.adminAccess"), WORDS);
    }
    errors.into_result("resource.k8s.io", kind, &attempt.key.name)
}

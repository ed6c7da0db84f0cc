//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going; some namespaces stay.

use super::{Attempt, Operation};
use k8s_schema::gvr;
use machinery::status::{ApiError, Cause};
use serde_json::Value;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub(super) fn admit(attempt: &Attempt<'_>, _: &mut Value) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    match attempt.operation {
        Operation::Delete if resource.is("", "namespaces") && IMMORTAL.contains(&&*attempt.key.name) => {
            Err(ApiError::forbidden(resource.gvr(), &attempt.key.name, "this namespace may not be deleted"))
        }
        Operation::Create if resource.row.namespaced => present(attempt),
        _ => Ok(()),
    }
}

fn present(attempt: &Attempt<'_>) -> Result<(), ApiError> {
    let name = &*attempt.key.namespace;
    let api = attempt.api;
    let Some(namespace) = api.cached(&gvr::NAMESPACES, "", name) else {
        return Err(ApiError::not_found(&gvr::NAMESPACES, name));
    };
    if namespace.meta().deletion_timestamp.is_none() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let mut error = ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, &why);
    error.causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    });
    Err(error)
}

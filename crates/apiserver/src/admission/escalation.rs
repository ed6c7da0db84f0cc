//! Escalation: nobody gives others, or himself, rights that he does not have; unless he may `escalate` the role or
//! `bind` what a binding gives.

use super::{Attempt, Operation};
use crate::authz::{Attributes, Decision};
use crate::rbac::policy::typed;
use crate::rbac::rules::{self, Rule, quoted};
use crate::rbac::{GROUP, aggregate};
use auth::SYSTEM_MASTERS;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::Value;

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    let writes = matches!(attempt.operation, Operation::Create | Operation::Update);
    if !writes || resource.group() != GROUP || attempt.call.identity.in_group(SYSTEM_MASTERS) {
        return Ok(());
    }
    let changed = |field: &str| attempt.old.is_none_or(|old| old[field] != object[field]);
    match resource.name() {
        "roles" | "clusterroles" if changed("rules") || changed("aggregationRule") => role(attempt, object),
        "rolebindings" | "clusterrolebindings" if changed("subjects") || changed("roleRef") => {
            binding(attempt, object)
        }
        _ => Ok(()),
    }
}

fn allowed(attempt: &Attempt<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = Attributes {
        verb: verb.into(),
        group: GROUP.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: attempt.key.namespace.to_string(),
        name: name.into(),
        ..Attributes::default()
    };
    attempt.api.authorizer.authorize(&attempt.call.identity, &attributes) == Decision::Allow
}

fn role(attempt: &Attempt<'_>, object: &Value) -> Result<(), ApiError> {
    if allowed(attempt, "escalate", attempt.call.resource.name(), &attempt.key.name) {
        return Ok(());
    }
    let mut wanted = typed(&object["rules"]);
    if object["aggregationRule"].is_object() {
        // What it will hold is not known: only who may do everything may make it.
        let all = || vec!["*".to_string()];
        wanted.push(Rule { api_groups: all(), resources: all(), verbs: all(), ..Rule::default() });
        wanted.push(Rule { non_resource_urls: all(), verbs: all(), ..Rule::default() });
    }
    covered(attempt, &wanted)
}

fn binding(attempt: &Attempt<'_>, object: &Value) -> Result<(), ApiError> {
    let text = |field: &str| object["roleRef"][field].as_str().unwrap_or_default();
    let of_cluster = text("kind") == "ClusterRole";
    let (gvr, namespace) =
        if of_cluster { (&gvr::CLUSTER_ROLES, "") } else { (&gvr::ROLES, &*attempt.key.namespace) };
    if allowed(attempt, "bind", &gvr.resource, text("name")) {
        return Ok(());
    }
    let role = attempt.api.cached(gvr, namespace, text("name"));
    let role = role.ok_or_else(|| ApiError::not_found(gvr, text("name")))?;
    covered(attempt, &typed(&role.value().map_err(ApiError::internal)?["rules"]))
}

fn covered(attempt: &Attempt<'_>, wanted: &[Rule]) -> Result<(), ApiError> {
    let identity = &attempt.call.identity;
    let held = attempt.api.rbac.held(identity, &attempt.key.namespace);
    let forbidden = |why: &str| ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, why);
    let missing = rules::missing(&held.rules, wanted).map_err(|error| forbidden(&error.to_string()))?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = missing.iter().map(Rule::to_string).collect();
    lines.sort();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        identity.user,
        quoted(&identity.groups),
        lines.join("\n")
    );
    if !held.errors.is_empty() {
        why += &format!("; resolution errors: {}", aggregate(&held.errors));
    }
    Err(forbidden(&why))
}

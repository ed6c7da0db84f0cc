//! OwnerReferencesPermissionEnforcement: who sets `blockOwnerDeletion` keeps an owner from going, so he must be allowed
//! to change that owner's finalizers; who takes owner references away must be allowed to delete the object. Only where
//! it is asked for (`optional`).

use super::{Attempt, Operation};
use crate::authz::{Attributes, Decision};
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use serde_json::Value;

pub(super) fn judge(attempt: &Attempt<'_>, object: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let own = matches!(attempt.operation, Operation::Create | Operation::Update);
    if !own || !attempt.call.subresource.is_empty() {
        return Ok(());
    }
    let new = list(object, "/metadata/ownerReferences");
    let old = attempt.old.map(|old| list(old, "/metadata/ownerReferences")).unwrap_or_default();
    if new == old {
        return Ok(());
    }
    let forbidden = |why: &str| ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, why);
    if attempt.old.is_some() && !may(attempt, &attempt.call.attributes("delete")) {
        return Err(forbidden("cannot set an ownerRef on a resource you can't delete: , <nil>"));
    }
    for reference in newly_blocking(new, old) {
        let Some(wanted) = finalizers_of(attempt, reference) else {
            let why =
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion";
            let (version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
            return Err(forbidden(&format!(
                "{why} {version} Kind {kind}: no matches for kind {kind:?} in version {version:?}"
            )));
        };
        if !may(attempt, &wanted) {
            return Err(forbidden(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
            ));
        }
    }
    Ok(())
}

fn may(attempt: &Attempt<'_>, attributes: &Attributes) -> bool {
    attempt.api.authorizer.authorize(&attempt.call.identity, attributes) == Decision::Allow
}

/// The references that block now and did not before.
fn newly_blocking<'a>(new: &'a [Value], old: &[Value]) -> Vec<&'a Value> {
    let blocks = |r: &Value| r["blockOwnerDeletion"] == true;
    let did = |r: &&Value| old.iter().any(|o| o["uid"] == r["uid"] && blocks(o));
    new.iter().filter(|r| blocks(r) && !did(r)).collect()
}

/// Changing the finalizers of the owner, as the authorizer is asked about it.
fn finalizers_of(attempt: &Attempt<'_>, reference: &Value) -> Option<Attributes> {
    let (group, version) =
        text(reference, "/apiVersion").split_once('/').unwrap_or(("", text(reference, "/apiVersion")));
    let kind = text(reference, "/kind");
    let now = attempt.api.registry.now();
    let owner = now.all().find(|r| {
        let gvr = r.gvr();
        *gvr.group == *group && *gvr.version == *version && *r.row.kind == *kind && r.offers("get")
    })?;
    let namespace = if owner.row.namespaced { attempt.key.namespace.to_string() } else { String::new() };
    Some(Attributes {
        verb: "update".into(),
        group: group.into(),
        version: version.into(),
        resource: owner.name().into(),
        subresource: "finalizers".into(),
        namespace,
        name: text(reference, "/name").into(),
        ..Attributes::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_new_blocks_count() {
        let reference = |uid: &str, blocks: bool| json!({"uid": uid, "blockOwnerDeletion": blocks});
        let old = [reference("a", true), reference("b", false)];
        let new = [reference("a", true), reference("b", true), reference("c", false), reference("d", true)];
        let found: Vec<&str> = newly_blocking(&new, &old).iter().map(|r| text(r, "/uid")).collect();
        assert_eq!(found, ["b", "d"]);
    }
}

//! The AWS objects are read-only to everybody but Gantry's own components: what they hold was checked by the AWS front
//! end, by AWS's rules. Labels and annotations are anybody's who may write the object.

use super::{Attempt, Operation};
use machinery::status::ApiError;
use serde_json::Value;

/// The groups of the AWS objects end with this.
const GROUPS: &str = ".gantry.dev";
/// Components write as these users.
const COMPONENTS: [&str; 2] = ["system:gantry-", "system:kube-"];
const WHY: &str = "this is an AWS object: change it through the AWS API; only labels and annotations can be \
                   changed here";

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    let user = &*attempt.call.identity.user;
    if !resource.group().ends_with(GROUPS) || COMPONENTS.iter().any(|c| user.starts_with(c)) {
        return Ok(());
    }
    match (attempt.operation, attempt.old) {
        (Operation::Update, Some(old)) if only_labels(old, object) => Ok(()),
        _ => Err(ApiError::forbidden(resource.gvr(), &attempt.key.name, WHY)),
    }
}

/// Is the change one of labels and annotations (and of who set them)?
fn only_labels(old: &Value, new: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            let free = ["labels", "annotations", "managedFields", "resourceVersion", "generation"];
            free.iter().for_each(|member| drop(metadata.remove(*member)));
        }
        object
    };
    bare(old) == bare(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_and_annotations_are_free_and_nothing_else() {
        let old = json!({"metadata": {"name": "t", "labels": {"a": "1"}}, "spec": {"x": 1}, "status": {}});
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"b": "2"});
        new["metadata"]["annotations"] = json!({"c": "3"});
        assert!(only_labels(&old, &new));
        for (at, value) in [
            ("/spec/x", json!(2)),
            ("/status", json!({"lastStatus": "RUNNING"})),
            ("/metadata/name", json!("u")),
        ] {
            let mut other = new.clone();
            *other.pointer_mut(at).unwrap() = value;
            assert!(!only_labels(&old, &other), "{at}");
        }
        new["metadata"]["ownerReferences"] = json!([{"name": "x"}]);
        assert!(!only_labels(&old, &new));
    }
}

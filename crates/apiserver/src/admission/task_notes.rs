//! The annotation by which a Pod is an ECS task's names the role whose credentials its programs get: nobody but Gantry's
//! own components sets it. (Not even the built-in controllers: they make pods from anybody's templates.)

use super::{Attempt, Operation};
use machinery::status::ApiError;
use serde_json::Value;

/// `ecs_model::annotation::KEY`.
const NOTE: &str = "ecs.gantry.dev/task";
/// Components that make tasks' pods write as these users.
const COMPONENTS: &str = "system:gantry-";
const WHY: &str = "the annotation ecs.gantry.dev/task is set by Gantry's task controller only";

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    // Subresources too: a Binding's annotations become the pod's.
    let resource = &attempt.call.resource;
    let writes_pod = resource.is("", "pods") && attempt.operation != Operation::Delete;
    if !writes_pod || !sets_note(attempt.old, object) || attempt.call.identity.user.starts_with(COMPONENTS) {
        return Ok(());
    }
    Err(ApiError::forbidden(resource.gvr(), &attempt.key.name, WHY))
}

fn sets_note(old: Option<&Value>, new: &Value) -> bool {
    let note = |object: &Value| object["metadata"]["annotations"][NOTE].as_str().map(str::to_string);
    let wanted = note(new);
    wanted.is_some() && wanted != old.and_then(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_new_or_changed_note_counts() {
        let with = |text: &str| json!({"metadata": {"annotations": {NOTE: text}}});
        let without = json!({"metadata": {}});
        assert!(sets_note(None, &with("a")));
        assert!(sets_note(Some(&with("a")), &with("b")));
        assert!(sets_note(Some(&without), &with("a")));
        assert!(!sets_note(Some(&with("a")), &with("a")));
        assert!(!sets_note(Some(&with("a")), &without));
        assert!(!sets_note(None, &without));
    }
}

//! `pods/resize`: what may change about a running pod's resources.
//!
//! Only cpu and memory of containers (and of restartable init containers), and their resize policies, come from the
//! wish; all else stays as stored. The quality of service class never changes.

use super::qos;
use crate::field_errors::FieldErrors;
use crate::kinds::get::{entries, has, list, remove, same, same_exactly, set, text};
use crate::kinds::spot::Spot;
use crate::status::ApiError;
use serde_json::Value;

/// Resources that can be changed while a container runs.
const MUTABLE: [&str; 2] = ["cpu", "memory"];
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// Keeps of `new` what a resize may set, takes the rest from `old`, and counts the generation when something changed.
pub fn prepare_update(new: &mut Value, old: &Value) {
    let wished = std::mem::replace(new, old.clone());
    for key in LISTS {
        let theirs = list(&wished, &format!("/spec/{key}"));
        let Some(Value::Array(ours)) = new.pointer_mut(&format!("/spec/{key}")) else { continue };
        let aligned = theirs.len() == ours.len()
            && theirs.iter().zip(ours.iter()).all(|(a, b)| text(a, "/name") == text(b, "/name"));
        if !aligned {
            // Validation says what is wrong with it.
            *ours = theirs.to_vec();
            continue;
        }
        for (mine, wish) in ours.iter_mut().zip(theirs) {
            for field in ["resources", "resizePolicy"] {
                match wish.get(field) {
                    Some(value) => set(mine, field, value.clone()),
                    None => drop(remove(mine, field)),
                }
            }
        }
    }
    if let (Some(spec), Some(whole)) = (new.get_mut("spec"), wished.pointer("/spec/resources")) {
        set(spec, "resources", whole.clone());
    }
    crate::kinds::strategy::count_generation(new, old);
}

/// Checks a resize: 422 with every cause.
pub fn validate_update(new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    check(new, old, &mut errors);
    errors.into_result("", "Pod", text(new, "/metadata/name"))
}

fn check(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if has(old, "/metadata/annotations/kubernetes.io~1config.mirror") {
        return errors.forbidden("", "static pods cannot be resized");
    }
    if text(old, "/spec/os/name") == "windows" {
        return errors.forbidden("", "windows pods cannot be resized");
    }
    super::pod_spec(&Spot::new(&new["spec"], "spec", errors));
    let class = match text(old, "/status/qosClass") {
        "" => qos(old),
        given => given,
    };
    if class != qos(new) {
        errors.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    let before = errors.causes().len();
    for key in LISTS {
        in_order(list(new, &format!("/spec/{key}")), list(old, &format!("/spec/{key}")), key, errors);
    }
    if errors.causes().len() > before {
        return;
    }
    let (now, was) = (&new["spec"], &old["spec"]);
    let mut others = has(old, "/spec/resources") != has(new, "/spec/resources");
    if !others {
        removed(now, was, "spec.resources", errors);
        others = !same_exactly(&immutable(now), &immutable(was));
    }
    for key in LISTS {
        let pointer = format!("/spec/{key}");
        for (i, (now, was)) in list(new, &pointer).iter().zip(list(old, &pointer)).enumerate() {
            let fixed = key == "initContainers" && text(was, "/restartPolicy") != "Always";
            others |= if fixed {
                !same(&now["resources"], &was["resources"])
            } else {
                removed(now, was, &format!("spec.{key}[{i}].resources"), errors);
                !same_exactly(&immutable(now), &immutable(was))
            };
        }
    }
    if others {
        errors.forbidden("spec", "only cpu and memory resources are mutable");
    }
}

fn in_order(new: &[Value], old: &[Value], key: &str, errors: &mut FieldErrors) {
    if new.len() != old.len() {
        return errors.forbidden("spec", &format!("{key} may not be added or removed on resize"));
    }
    for (i, (a, b)) in new.iter().zip(old).enumerate() {
        if text(a, "/name") != text(b, "/name") {
            let words = format!("{key} may not be renamed or reordered on resize");
            errors.forbidden(&format!("spec.{key}[{i}].name"), &words);
        }
    }
}

/// What was asked for stays asked for; only its amount changes.
fn removed(new: &Value, old: &Value, path: &str, errors: &mut FieldErrors) {
    for side in ["requests", "limits"] {
        let pointer = format!("/resources/{side}");
        let gone = entries(old, &pointer).any(|(k, _)| !entries(new, &pointer).any(|(n, _)| n == k));
        if gone {
            let words = format!("resource {side} cannot be removed");
            errors.forbidden(&format!("{path}.{side}"), &words);
        }
    }
}

/// The resources of a container that no resize may touch.
fn immutable(container: &Value) -> Value {
    let mut resources = container.get("resources").cloned().unwrap_or_default();
    for side in ["requests", "limits"] {
        if let Some(amounts) = resources.get_mut(side) {
            MUTABLE.iter().for_each(|name| drop(remove(amounts, name)));
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: Value) -> Value {
        let mut p = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": resources}]}});
        super::super::defaults::pod(&mut p);
        p["status"] = json!({"qosClass": qos(&p)});
        p
    }

    fn resized(old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
        let mut new = old.clone();
        change(&mut new);
        prepare_update(&mut new, old);
        validate_update(&new, old).map(|()| new).map_err(|e| {
            e.causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join("; ")
        })
    }

    #[test]
    fn amounts_change_and_nothing_else() {
        let old = pod(json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m"}}));
        let new = resized(&old, |p| {
            p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("150m");
            p["spec"]["containers"][0]["image"] = json!("other");
            p["metadata"]["labels"] = json!({"a": "b"});
        })
        .unwrap();
        assert_eq!(new["spec"]["containers"][0]["image"], "i");
        assert_eq!(new["spec"]["containers"][0]["resources"]["requests"]["cpu"], "150m");
        assert_eq!((&new["metadata"]["generation"], &new["metadata"]["labels"]), (&json!(2), &Value::Null));
        assert_eq!(resized(&old, |_| {}).unwrap(), old);
    }

    #[test]
    fn refusals() {
        let old = pod(json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m"}}));
        type Change = fn(&mut Value);
        let rows: [(Change, &str); 5] = [
            (
                |p| drop(remove(&mut p["spec"]["containers"][0]["resources"], "limits")),
                "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
            ),
            (
                |p| p["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = json!("1Gi"),
                "spec: Forbidden: only cpu and memory resources are mutable",
            ),
            (
                |p| p["spec"]["containers"][0]["name"] = json!("d"),
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize",
            ),
            (
                |p| p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("1"),
                "spec.containers[0].resources.requests: Invalid value: \"1\": must be less than or equal to cpu limit of 200m",
            ),
            (
                |p| p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}),
                "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing",
            ),
        ];
        for (change, expected) in rows {
            assert_eq!(resized(&old, change).unwrap_err(), expected);
        }
    }
}

//! RuntimeClass: the class that a pod names must exist; its overhead and scheduling rules become the pod's.

use super::Attempt;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};

pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !attempt.creates_pod() || !pod["spec"].is_object() {
        return Ok(());
    }
    let rejected =
        |why: String| ApiError::forbidden(&gvr::PODS, &attempt.key.name, &format!("pod rejected: {why}"));
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_string();
    let class = match name.as_str() {
        "" => Value::Null,
        name => {
            let class = attempt.api.cached(&gvr::RUNTIME_CLASSES, "", name);
            let class = class.ok_or_else(|| rejected(format!("RuntimeClass {name:?} not found")))?;
            class.value().map_err(ApiError::internal)?
        }
    };
    take_over(&class, &mut pod["spec"]).map_err(rejected)
}

/// Merges a class (null for none) into a pod's spec.
fn take_over(class: &Value, spec: &mut Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    match (overhead.is_null(), spec["overhead"].is_null()) {
        (true, false) => {
            return Err("Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
        (false, true) => spec["overhead"] = overhead.clone(),
        (false, false) if spec["overhead"] != *overhead => {
            return Err("Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        _ => {}
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = &spec["nodeSelector"][key];
        if !own.is_null() && own != value {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                own.as_str().unwrap_or_default()
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        if spec["tolerations"].is_null() {
            spec["tolerations"] = json!([]);
        }
        let Some(list) = spec["tolerations"].as_array_mut() else { break };
        if !list.contains(toleration) {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_adds_its_overhead_and_places() {
        let class = json!({"overhead": {"podFixed": {"cpu": "1"}}, "scheduling": {
            "nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
        let mut spec = json!({"nodeSelector": {"disk": "ssd"}});
        take_over(&class, &mut spec).unwrap();
        let whole = json!({"nodeSelector": {"disk": "ssd", "vm": "yes"}, "overhead": {"cpu": "1"},
            "tolerations": [{"key": "vm", "operator": "Exists"}]});
        assert_eq!(spec, whole);
        take_over(&class, &mut spec).unwrap();
        assert_eq!(spec, whole);
        for (spec, words) in [
            (json!({"overhead": {"cpu": "2"}}), "doesn't match"),
            (json!({"nodeSelector": {"vm": "no"}}), "nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"),
        ] {
            assert!(take_over(&class, &mut spec.clone()).unwrap_err().contains(words));
        }
        assert!(take_over(&Value::Null, &mut json!({"overhead": {"cpu": "2"}})).is_err());
        let mut plain = json!({});
        take_over(&Value::Null, &mut plain).unwrap();
        assert_eq!(plain, json!({}));
    }
}

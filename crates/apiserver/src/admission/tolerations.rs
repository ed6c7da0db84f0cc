//! DefaultTolerationSeconds: pods stay five minutes on a node that is not ready or unreachable.

use super::{Attempt, Operation};
use machinery::status::ApiError;
use serde_json::{Value, json};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    // Updates too: whoever replaces the list of tolerations by their own keeps these two.
    let writes = matches!(attempt.operation, Operation::Create | Operation::Update);
    if writes && attempt.call.resource.is("", "pods") && pod["spec"].is_object() {
        add(pod);
    }
    Ok(())
}

fn add(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for taint in TAINTS {
        if !tolerations.iter().any(|t| tolerates(t, taint)) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let text = |field: &str| toleration[field].as_str().unwrap_or_default();
    matches!(text("key"), "") && text("operator") == "Exists" && matches!(text("effect"), "" | "NoExecute")
        || text("key") == taint && matches!(text("effect"), "" | "NoExecute")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_what_is_missing_once() {
        let mut pod = json!({"spec": {}});
        add(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        let once = pod.clone();
        add(&mut pod);
        assert_eq!(pod, once);
        let mut tolerant = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        add(&mut tolerant);
        assert_eq!(tolerant["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}

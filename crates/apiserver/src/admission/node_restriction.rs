//! NodeRestriction: a node changes its own Node, Lease and pods only, and makes no pods but mirrors of its own.
//!
//! Which objects a node may read is the authorizer's (`node_access`).

use super::{Attempt, Operation};
use crate::Api;
use crate::node_access::node_of;
use crate::verbs::Call;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::Value;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of Kubernetes' own domains that a node may give itself.
const OWN_LABELS: [&str; 12] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "volumes.kubernetes.io/keep-terminated-pod-volumes",
];
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let Some(node) = node_of(&attempt.call.identity) else { return Ok(()) };
    let resource = &attempt.call.resource;
    let verdict = match (resource.group(), resource.name()) {
        ("", "pods") => pod(attempt, node, object),
        ("", "nodes") => own_node(attempt, node, object),
        ("coordination.k8s.io", "leases") if *attempt.key.name != *node => {
            Err("can only access node lease with the same name as the requesting node".to_string())
        }
        _ => Ok(()),
    };
    verdict.map_err(|why| ApiError::forbidden(resource.gvr(), &attempt.key.name, &why))
}

fn pod(attempt: &Attempt<'_>, node: &str, pod: &Value) -> Result<(), String> {
    let bound_here = |pod: &Value| pod["spec"]["nodeName"] == node;
    let itself = "with spec.nodeName set to itself";
    match (attempt.operation, attempt.call.subresource.as_str()) {
        (Operation::Create, _) => mirror(node, pod),
        (Operation::Delete, "eviction") if !bound_here(pod) => {
            Err(format!("node {node} can only evict pods {itself}"))
        }
        (Operation::Delete, _) if !bound_here(pod) => {
            Err(format!("node {node:?} can only delete pods {itself}"))
        }
        (Operation::Delete, _) => Ok(()),
        (_, "status") => {
            let old = attempt.old.unwrap_or(pod);
            if !bound_here(old) {
                return Err(format!("node {node:?} can only update pod status for pods {itself}"));
            }
            if old["metadata"]["labels"] != pod["metadata"]["labels"] {
                return Err(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        _ => Err(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )),
    }
}

fn mirror(node: &str, pod: &Value) -> Result<(), String> {
    if !pod["metadata"]["annotations"][MIRROR].is_string() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let spec = &pod["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()) {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    for kind in ["secret", "configMap", "persistentVolumeClaim", "projected"] {
        if volumes.clone().any(|v| v[kind].is_object()) {
            return Err(format!("node {node:?} can not create pods that reference {}s", kind.to_lowercase()));
        }
    }
    Ok(())
}

fn own_node(attempt: &Attempt<'_>, node: &str, object: &Value) -> Result<(), String> {
    if *attempt.key.name != *node {
        return Err(format!("node {node:?} is not allowed to modify node {:?}", attempt.key.name));
    }
    let none = Value::Null;
    let old = attempt.old.unwrap_or(&none);
    match attempt.operation {
        Operation::Delete => Ok(()),
        Operation::Update if old["spec"]["taints"] != object["spec"]["taints"] => {
            Err(format!("node {node:?} is not allowed to modify taints"))
        }
        Operation::Update if old["metadata"]["ownerReferences"] != object["metadata"]["ownerReferences"] => {
            Err(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        operation => {
            let foreign = foreign_labels(&old["metadata"]["labels"], &object["metadata"]["labels"]);
            if foreign.is_empty() {
                return Ok(());
            }
            let verb = if operation == Operation::Create { "set" } else { "modify" };
            let list = foreign.join(", ");
            Err(format!("node {node:?} is not allowed to {verb} the following labels: {list}"))
        }
    }
}

/// Changed labels of Kubernetes' domains that are not a node's to give.
fn foreign_labels(old: &Value, new: &Value) -> Vec<String> {
    let keys = [old, new].into_iter().filter_map(Value::as_object).flat_map(|m| m.keys());
    let mut foreign: Vec<String> =
        keys.filter(|k| old.get(k) != new.get(k) && is_foreign(k)).cloned().collect();
    foreign.sort();
    foreign.dedup();
    foreign
}

fn is_foreign(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let kubernetes = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|d| domain.strip_suffix(d).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let own = OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|p| label.starts_with(p));
    kubernetes && !own
}

/// A node asks for tokens bound to a pod that runs on it and is the account's.
pub fn admit_token(api: &Api, call: &Call, request: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(&call.identity) else { return Ok(()) };
    let bound = &request["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    let forbidden = |why: String| Err(ApiError::forbidden(&gvr::SERVICE_ACCOUNTS, &call.key.name, &why));
    if text("kind") != "Pod" || text("name").is_empty() {
        return forbidden(format!("node {node:?} requested token not bound to a pod"));
    }
    if text("uid").is_empty() {
        return forbidden("node requested token with a pod binding without a uid".into());
    }
    let Some(pod) = api.cached(&gvr::PODS, &call.key.namespace, text("name")) else {
        return Err(ApiError::not_found(&gvr::PODS, text("name")));
    };
    if pod.uid() != text("uid") {
        return forbidden(format!(
            "the UID in the bound object reference ({}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            text("uid"),
            pod.uid()
        ));
    }
    let pod = pod.value().map_err(ApiError::internal)?;
    if pod["spec"]["nodeName"] != node {
        return forbidden("node requested token bound to a pod scheduled on a different node".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_kubernetes_domains_are_not_a_nodes_to_give() {
        let new = json!({"kubernetes.io/hostname": "n", "node-restriction.kubernetes.io/x": "1", "mine": "1",
            "example.com/k8s.io": "1", "node-role.kubernetes.io/control-plane": ""});
        assert_eq!(
            foreign_labels(&Value::Null, &new),
            ["node-restriction.kubernetes.io/x", "node-role.kubernetes.io/control-plane"]
        );
        assert!(foreign_labels(&new, &new).is_empty());
    }

    #[test]
    fn mirrors_and_nothing_else() {
        let good = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "n"}});
        assert_eq!(mirror("n", &good), Ok(()));
        assert!(mirror("m", &good).unwrap_err().contains("set to itself"));
        assert!(mirror("n", &json!({"spec": {"nodeName": "n"}})).unwrap_err().contains("mirror pods"));
        let mut bad = good.clone();
        bad["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
        assert!(mirror("n", &bad).unwrap_err().contains("reference secrets"));
    }
}

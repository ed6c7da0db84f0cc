//! NodeRestriction: a node changes its own Node, Lease and pods only, and makes no pods but mirrors of its own.
//!
//! Which objects a node may read is the authorizer's (`node_access`).

use super::{Attempt, Operation};
use crate::Api;
use crate::authz::{Attributes, Decision};
use crate::node_access::node_of;
use crate::verbs::Call;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use serde_json::Value;

const CSI_DRIVERS: Gvr = Gvr::new("storage.k8s.io", "v1", "csidrivers");
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
/// Keys in a pod by which it names other objects, and what those are: mirrors name none.
const REFERENCES: [(&str, &str); 13] = [
    ("clusterTrustBundle", "clustertrustbundles"),
    ("configMap", "configmaps"),
    ("configMapKeyRef", "configmaps"),
    ("configMapRef", "configmaps"),
    ("ephemeral", "ephemeral volumes"),
    ("imagePullSecrets", "secrets"),
    ("nodePublishSecretRef", "secrets"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("resourceClaims", "resourceclaims"),
    ("secret", "secrets"),
    ("secretKeyRef", "secrets"),
    ("secretRef", "secrets"),
    ("serviceAccountToken", "service account tokens"),
];
/// Signers of nodes' certificates.
const NODE_SIGNERS: [&str; 2] =
    ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"];
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let Some(node) = node_of(&attempt.call.identity) else { return Ok(()) };
    let resource = &attempt.call.resource;
    let verdict = match (resource.group(), resource.name()) {
        ("", "pods") => pod(attempt, node, object),
        ("", "nodes") => own_node(attempt, node, object),
        ("", "persistentvolumeclaims") => claim(attempt, node, object),
        ("certificates.k8s.io", "certificatesigningrequests") => certificate(attempt, node, object),
        ("resource.k8s.io", "resourceslices")
            if [Some(&*object), attempt.old]
                .into_iter()
                .flatten()
                .any(|s| s["spec"]["nodeName"] != *node) =>
        {
            Err(format!("node {node:?} can only access ResourceSlices with spec.nodeName set to itself"))
        }
        ("storage.k8s.io", "csinodes") if *attempt.key.name != *node => {
            Err("can only access CSINode with the same name as the requesting node".to_string())
        }
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
            if old["status"]["resourceClaimStatuses"] != pod["status"]["resourceClaimStatuses"] {
                return Err(format!("node {node:?} cannot update resource claim statuses"));
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
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    if let Some((_, what)) = REFERENCES.iter().find(|(key, _)| names(&pod["spec"], key)) {
        return Err(format!("node {node:?} can not create pods that reference {what}"));
    }
    owner(node, list(pod, "/metadata/ownerReferences"))
}

/// Does something below have this key, and something in it?
fn names(value: &Value, key: &str) -> bool {
    let filled = |v: &Value| v.is_object() || v.as_array().is_some_and(|all| !all.is_empty());
    match value {
        Value::Object(map) => map.iter().any(|(own, v)| own == key && filled(v) || names(v, key)),
        Value::Array(all) => all.iter().any(|v| names(v, key)),
        _ => false,
    }
}

/// A mirror may belong to its node, and to nothing else.
fn owner(node: &str, owners: &[Value]) -> Result<(), String> {
    let why = match owners {
        [] => return Ok(()),
        [one] if one["apiVersion"] != "v1" || one["kind"] != "Node" || one["name"] != node => {
            "can only create pods with an owner reference set to itself"
        }
        [one] if one["controller"] != true => {
            "can only create pods with a controller owner reference set to itself"
        }
        [one] if one["blockOwnerDeletion"] == true => "must not set blockOwnerDeletion on an owner reference",
        [_] => return Ok(()),
        _ => "can only create pods with a single owner reference set to itself",
    };
    Err(format!("node {node:?} {why}"))
}

/// A node asks for its own certificates, not for another node's.
fn certificate(attempt: &Attempt<'_>, node: &str, csr: &Value) -> Result<(), String> {
    let signer = text(csr, "/spec/signerName");
    if attempt.operation != Operation::Create || !NODE_SIGNERS.contains(&signer) {
        return Ok(());
    }
    let request = BASE64_STANDARD.decode(text(csr, "/spec/request")).unwrap_or_default();
    let request = auth::csr::Request::parse(&String::from_utf8_lossy(&request));
    let request = request.map_err(|e| format!("unable to parse csr: {e}"))?;
    let own = format!("system:node:{node}");
    if request.user.starts_with("system:node:") && request.user != own {
        return Err(format!("can only create a node CSR with CN={own}"));
    }
    Ok(())
}

/// Of a claim a node writes how far it has grown.
fn claim(attempt: &Attempt<'_>, node: &str, claim: &Value) -> Result<(), String> {
    let Some(old) = attempt.old.filter(|_| attempt.operation != Operation::Delete) else {
        return Err(format!("unexpected operation, node {node:?} can only update claims' status"));
    };
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            claim["status"].as_object_mut().map(|status| status.remove(field));
        }
        for field in ["modifyVolumeStatus", "currentVolumeAttributesClassName"] {
            claim["status"].as_object_mut().map(|status| status.remove(field));
        }
        for field in ["managedFields", "resourceVersion", "generation"] {
            claim["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
        }
        claim
    };
    if rest(old) == rest(claim) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    ))
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
    let audiences = list(request, "/spec/audiences");
    let ([] | [_]) = audiences else { return forbidden("node may only request 0 or 1 audiences".into()) };
    let audience = audiences.first().and_then(Value::as_str).unwrap_or_default();
    if names_audience(api, &pod, audience) || may_request(api, call, audience) {
        return Ok(());
    }
    forbidden(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        call.identity.user
    ))
}

/// Does one of the pod's volumes hold a token for this audience ("" is the server's own)?
fn names_audience(api: &Api, pod: &Value, audience: &str) -> bool {
    let driver_of = |claim: &str| -> Option<String> {
        let namespace = text(pod, "/metadata/namespace");
        let claim = api.cached(&gvr::PERSISTENT_VOLUME_CLAIMS, namespace, claim)?.value().ok()?;
        let volume =
            api.cached(&gvr::PERSISTENT_VOLUMES, "", text(&claim, "/spec/volumeName"))?.value().ok()?;
        Some(text(&volume, "/spec/csi/driver").to_string())
    };
    let wants = |driver: String| {
        let driver = api.cached(&CSI_DRIVERS, "", &driver).and_then(|d| d.value().ok()).unwrap_or_default();
        list(&driver, "/spec/tokenRequests").iter().any(|r| text(r, "/audience") == audience)
    };
    list(pod, "/spec/volumes").iter().any(|volume| {
        let tokens = list(volume, "/projected/sources").iter().map(|s| &s["serviceAccountToken"]);
        let own = tokens.filter(|t| t.is_object()).any(|t| text(t, "/audience") == audience);
        let generic = format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"));
        let driver = match (text(volume, "/csi/driver"), text(volume, "/persistentVolumeClaim/claimName")) {
            ("", "") if volume["ephemeral"].is_object() => driver_of(&generic),
            ("", "") => None,
            ("", claim) => driver_of(claim),
            (driver, _) => Some(driver.to_string()),
        };
        own || driver.filter(|d| !d.is_empty()).is_some_and(wants)
    })
}

/// May the node have tokens of the account for this audience whatever its pods say?
fn may_request(api: &Api, call: &Call, audience: &str) -> bool {
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience".into(),
        version: "*".into(),
        resource: if audience.is_empty() { "*".into() } else { audience.into() },
        namespace: call.key.namespace.to_string(),
        name: call.key.name.to_string(),
        ..Attributes::default()
    };
    api.authorizer.authorize(&call.identity, &attributes) == Decision::Allow
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
        for (spec, why) in [
            (json!({"containers": [{"envFrom": [{"configMapRef": {"name": "x"}}]}]}), "reference configmaps"),
            (
                json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "x"}}}]}]}),
                "reference secrets",
            ),
            (json!({"resourceClaims": [{"name": "c"}]}), "reference resourceclaims"),
            (json!({"imagePullSecrets": [{"name": "c"}]}), "reference secrets"),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
                "account tokens",
            ),
            (json!({"serviceAccountName": "root"}), "reference a service account"),
        ] {
            let mut bad = good.clone();
            spec.as_object().unwrap().iter().for_each(|(k, v)| bad["spec"][k] = v.clone());
            assert!(mirror("n", &bad).unwrap_err().contains(why), "{why}");
        }
        let own = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "controller": true});
        assert_eq!(owner("n", std::slice::from_ref(&own)), Ok(()));
        assert!(owner("m", std::slice::from_ref(&own)).unwrap_err().contains("set to itself"));
        assert!(owner("n", &[own.clone(), own]).unwrap_err().contains("single owner"));
    }
}

//! PodSecurityPolicy as before 1.25, where it is asked for: who may use which policy, what it makes of a pod.

use crate::harness::{PODS, pod, server, server_with};
use auth::Identity;
use serde_json::{Value, json};

const POLICIES: &str = "/apis/policy/v1beta1/podsecuritypolicies";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn policy(name: &str, change: Value) -> Value {
    let any = json!({"rule": "RunAsAny"});
    let mut spec = json!({"seLinux": any, "runAsUser": any, "fsGroup": any, "supplementalGroups": any, "volumes": ["*"]});
    change.as_object().unwrap().iter().for_each(|(k, v)| spec[k] = v.clone());
    json!({"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy", "metadata": {"name": name}, "spec": spec})
}

/// Binds a role of the cluster to a subject in the default namespace.
fn binding(role: &str, subject: Value) -> Value {
    json!({"metadata": {"name": role}, "subjects": [subject],
        "roleRef": {"kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io"}})
}

#[tokio::test]
async fn pods_fit_a_policy_that_they_may_use() {
    let server = server_with(|c| c.pod_security_policy = true).await;
    let refused = server.post(PODS, &pod("first")).await.fails(403, "Forbidden");
    assert_eq!(
        refused,
        "pods \"first\" is forbidden: PodSecurityPolicy: no providers available to validate pod request"
    );
    let range = json!({"rule": "MustRunAs", "ranges": [{"min": 7, "max": 9}]});
    let strict = policy("strict", json!({"runAsUser": range, "allowPrivilegeEscalation": false}));
    server.post(POLICIES, &strict).await.expect(201);
    // Decks still say extensions/v1beta1.
    let mut old = policy("all", json!({"privileged": true}));
    old["apiVersion"] = json!("extensions/v1beta1");
    server.post("/apis/extensions/v1beta1/podsecuritypolicies", &old).await.expect(201);
    let read = server.get(&format!("{POLICIES}/all")).await.expect(200);
    assert_eq!(
        (&read["apiVersion"], &read["spec"]["allowPrivilegeEscalation"]),
        (&json!("policy/v1beta1"), &json!(true))
    );
    let bad = policy("bad", json!({"runAsUser": {"rule": "Sometimes"}}));
    server.post(POLICIES, &bad).await.fails(422, "Invalid");
    let group = server.get("/apis/policy").await.expect(200);
    assert_eq!(group["versions"].as_array().unwrap().len(), 2, "{group}");
    assert_eq!(server.get("/openapi/v2").await.code, 200);

    // Superusers may use all; the one that leaves the pod as it is comes before the one that completes it.
    let made = server.post(PODS, &pod("by-root")).await.expect(201);
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/psp"], "all");
    // Others what they are given: here through the pod's account.
    let role = json!({"metadata": {"name": "strict"}, "rules": [{"apiGroups": ["policy"], "verbs": ["use"],
        "resources": ["podsecuritypolicies"], "resourceNames": ["strict"]}]});
    server.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    let dev = json!({"kind": "User", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"});
    let account = json!({"kind": "ServiceAccount", "name": "default", "namespace": "default"});
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let role = json!({"metadata": {"name": "pods"}, "rules": [{"apiGroups": [""], "verbs": ["*"], "resources": ["pods"]}]});
    server.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    server.post(&bindings, &binding("pods", dev)).await.expect(201);
    let dev = server.with_identity(Identity::new("dev", ["system:authenticated"]));
    let message = dev.post(PODS, &pod("early")).await.fails(403, "Forbidden");
    assert_eq!(message, "pods \"early\" is forbidden: PodSecurityPolicy: unable to admit pod: []");
    server.post(&bindings, &binding("strict", account)).await.expect(201);
    let made = dev.post(PODS, &pod("fits")).await.expect(201);
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/psp"], "strict");
    let context = &made["spec"]["containers"][0]["securityContext"];
    assert_eq!(context, &json!({"runAsUser": 7, "allowPrivilegeEscalation": false}));
    let mut bad = pod("privileged");
    bad["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let message = dev.post(PODS, &bad).await.fails(403, "Forbidden");
    assert!(
        message.contains(": [spec.containers[0].securityContext.privileged: Invalid value: true: Privileged containers are not allowed]"),
        "{message}"
    );
    // A change is held to the same.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let merge = "merge-patch";
    dev.patch(&format!("{PODS}/fits"), merge, &label).await.expect(200);
    let message = dev.patch(&format!("{PODS}/by-root"), merge, &label).await.fails(403, "Forbidden");
    assert!(message.contains("PodSecurityPolicy: unable to validate pod: ["), "{message}");
}

#[tokio::test]
async fn nobody_who_does_not_ask_has_it() {
    let server = server().await;
    server.get(POLICIES).await.fails(404, "NotFound");
    server.post(PODS, &pod("a")).await.expect(201);
}

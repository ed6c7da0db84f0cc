//! Admission policies in CEL, security levels of namespaces, default classes.

use crate::harness::*;
use serde_json::{Value, json};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

fn policy(name: &str, spec: Value) -> Value {
    let mut full = json!({"matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
    spec.as_object().unwrap().iter().for_each(|(k, v)| full[k] = v.clone());
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": full})
}

async fn bind(s: &Server, name: &str, spec: Value) {
    let mut full = json!({"policyName": name, "validationActions": ["Deny"]});
    spec.as_object().unwrap().iter().for_each(|(k, v)| full[k] = v.clone());
    let body = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": format!("{name}-binding")}, "spec": full});
    s.post(BINDINGS, &body).await.expect(201);
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn policies_deny_and_warn() {
    let s = server().await;
    let spec = json!({
        "variables": [{"name": "size", "expression": "object.data.size"}],
        "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('free-')"}],
        "validations": [
            {"expression": "has(object.data.owner)", "message": "an owner must be named"},
            {"expression": "variables.size == 'small' || namespaceObject.metadata.name != 'default'",
             "messageExpression": "'too ' + variables.size + ' for ' + request.userInfo.username", "reason": "Forbidden"},
        ],
    });
    s.post(POLICIES, &policy("sizes", spec)).await.expect(201);
    s.post(MAPS, &map("unbound", json!({"size": "huge"}))).await.expect(201);
    bind(&s, "sizes", json!({})).await;
    s.post(MAPS, &map("a", json!({"size": "small", "owner": "x"}))).await.expect(201);
    s.post(MAPS, &map("free-b", json!({"size": "huge"}))).await.expect(201);
    let why = s.post(MAPS, &map("c", json!({"size": "small"}))).await.fails(422, "Invalid");
    let start = "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'sizes' with binding 'sizes-binding' denied request: ";
    assert_eq!(why, format!("{start}an owner must be named"));
    let why = s.post(MAPS, &map("c", json!({"size": "huge", "owner": "x"}))).await.fails(403, "Forbidden");
    assert_eq!(why, format!("{start}too huge for admin"));
    // Before it is told that a revision may not be set.
    let mut read = map("c", json!({"size": "huge", "owner": "x"}));
    read["metadata"]["resourceVersion"] = json!("5");
    s.post(MAPS, &read).await.fails(403, "Forbidden");
    // What an expression cannot say of an object counts as the policy says.
    let why = s.post(MAPS, &map("c", json!({"owner": "x"}))).await.fails(422, "Invalid");
    assert!(why.contains("resulted in error: no such key: size"), "{why}");
    let patch = json!({"spec": {"validationActions": ["Warn"]}});
    s.patch(&format!("{BINDINGS}/sizes-binding"), "merge-patch", &patch).await.expect(200);
    let reply = s.post(MAPS, &map("d", json!({"size": "small"}))).await;
    let warning = "Validation failed for ValidatingAdmissionPolicy 'sizes' with binding 'sizes-binding': an owner must be named";
    assert_eq!(reply.headers["warning"], format!("299 - \"{warning}\""));
    reply.expect(201);
}

#[tokio::test]
async fn parameters_and_the_authorizer() {
    let s = server().await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "others", "expression": "object.metadata.name != params.metadata.name"}],
        "validations": [
            {"expression": "object.data.size in params.data.allowed.split(',')"},
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"},
        ],
    });
    s.post(MAPS, &map("limits", json!({"allowed": "s,m"}))).await.expect(201);
    s.post(POLICIES, &policy("allowed", spec)).await.expect(201);
    bind(&s, "allowed", json!({"paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}})).await;
    s.post(MAPS, &map("a", json!({"size": "m"}))).await.expect(201);
    let why = s.post(MAPS, &map("b", json!({"size": "xl"}))).await.fails(422, "Invalid");
    assert!(why.ends_with("failed expression: object.data.size in params.data.allowed.split(',')"), "{why}");
    s.delete(&format!("{MAPS}/limits")).await.expect(200);
    let why = s.post(MAPS, &map("b", json!({"size": "m"}))).await.fails(422, "Invalid");
    assert!(why.ends_with("no params found for policy binding with `Deny` parameterNotFoundAction"), "{why}");
}

#[tokio::test]
async fn expressions_must_compile() {
    let s = server().await;
    let spec = json!({"validations": [{"expression": "object.x +"}, {"expression": "'text'"}],
        "variables": [{"name": "a", "expression": "nobody"}]});
    let why = s.post(POLICIES, &policy("broken", spec)).await.fails(422, "Invalid");
    for part in [
        "spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:",
        "spec.validations[1].expression: Invalid value: \"'text'\": must evaluate to bool",
        "spec.variables[0].expression: Invalid value: \"nobody\": compilation failed",
    ] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
}

#[tokio::test]
async fn confused_types_are_told_in_the_status() {
    let s = server().await;
    let mut body = policy("confused", json!({"validations": [{"expression": "object.spec.replicas > '1'"}]}));
    let rule = &mut body["spec"]["matchConstraints"]["resourceRules"][0];
    (rule["apiGroups"], rule["resources"]) = (json!(["apps"]), json!(["deployments"]));
    s.post(POLICIES, &body).await.expect(201);
    let checked = async {
        loop {
            let policy = s.get(&format!("{POLICIES}/confused")).await.expect(200);
            if policy["status"]["observedGeneration"] == 1 {
                return policy["status"]["typeChecking"]["expressionWarnings"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let warnings = tokio::time::timeout(PATIENCE, checked).await.unwrap();
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    let warning = warnings[0]["warning"].as_str().unwrap();
    assert!(warning.contains("no matching overload for '_>_' applied to '(int, string)'"), "{warning}");
}

#[tokio::test]
async fn mutating_policies_apply_and_patch() {
    let s = server().await;
    let mut body = policy(
        "stamp",
        json!({
            "reinvocationPolicy": "Never",
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                    "Object{metadata: Object.metadata{labels: {'made-by': request.userInfo.username}}}"}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression":
                    "[JSONPatch{op: 'add', path: '/data/count', value: string(size(object.metadata.labels) + size(object.data))}]"}},
            ],
        }),
    );
    body["kind"] = json!("MutatingAdmissionPolicy");
    let mut aware = body.clone();
    aware["metadata"]["name"] = json!("aware");
    aware["spec"]["reinvocationPolicy"] = json!("IfNeeded");
    aware["spec"]["mutations"] = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression":
        "[JSONPatch{op: 'add', path: '/data/keys', value: string(size(object.data))}]"}}]);
    let mutating = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
    for body in [&body, &aware] {
        s.post(mutating, body).await.expect(201);
        let name = &body["metadata"]["name"];
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name}, "spec": {"policyName": name}});
        let bindings = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings";
        s.post(bindings, &binding).await.expect(201);
    }
    let made = s.post(MAPS, &map("a", json!({"x": "y"}))).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"made-by": "admin"}));
    // One counts once, a label and two keys; the other sees again what the first did.
    assert_eq!(made["data"], json!({"x": "y", "keys": "3", "count": "3"}));
}

#[tokio::test]
async fn namespaces_choose_a_security_level() {
    let s = server().await;
    let namespace = |labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "safe", "labels": labels}});
    let wrong = namespace(json!({"pod-security.kubernetes.io/enforce": "strict"}));
    let why = s.post("/api/v1/namespaces", &wrong).await.fails(422, "Invalid");
    assert!(why.contains("must be one of privileged, baseline, restricted"), "{why}");
    let baseline = namespace(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
    s.post("/api/v1/namespaces", &baseline).await.expect(201);
    let pods = "/api/v1/namespaces/safe/pods";
    let mut bad = pod("bad");
    bad["spec"]["hostNetwork"] = json!(true);
    let why = s.post(pods, &bad).await.fails(403, "Forbidden");
    assert_eq!(
        why,
        "pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    s.post(pods, &pod("good")).await.expect(201);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": bad["spec"]}}});
    let reply = s.post("/apis/apps/v1/namespaces/safe/deployments", &deployment).await;
    let warning = reply.headers["warning"].to_str().unwrap().to_string();
    assert!(
        warning.contains("would violate PodSecurity \\\"baseline:latest\\\": host namespaces"),
        "{warning}"
    );
    reply.expect(201);
    let stricter = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let reply = s.patch("/api/v1/namespaces/safe", "merge-patch", &stricter).await;
    let said: Vec<_> =
        reply.headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_string()).collect();
    assert!(
        said[0].contains("existing pods in namespace") && said[1].contains("good: allowPrivilegeEscalation"),
        "{said:?}"
    );
}

#[tokio::test]
async fn default_classes_and_protection() {
    let s = server().await;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x/y",
        "metadata": {"name": "quick", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    s.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let made = s.post("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "quick");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let mut none = claim.clone();
    none["metadata"]["name"] = json!("d");
    none["spec"]["storageClassName"] = json!("");
    let made = s.post("/api/v1/namespaces/default/persistentvolumeclaims", &none).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "");
}

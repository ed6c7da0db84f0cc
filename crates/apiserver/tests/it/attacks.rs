//! A compromised node (CVE-2021-25735, CVE-2025-4563, CVE-2025-5187 and their like): with a node's certificate
//! everything is tried that writes; only what is the node's own may succeed.

use crate::harness::*;
use auth::Identity;
use serde_json::{Value, json};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const SLICES: &str = "/apis/resource.k8s.io/v1/resourceslices";
/// What a node makes: what it reports, asks and reviews. (Of nodes, pods and leases its own, which is tried apart.)
const MAKES: [(&str, &str); 9] = [
    ("", "events"),
    ("events.k8s.io", "events"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];
/// What it may try on objects that are not there: who they belong to is told by themselves.
const LOOKS: [(&str, &str); 4] =
    [("", "nodes"), ("", "pods"), ("storage.k8s.io", "csinodes"), ("resource.k8s.io", "resourceslices")];

fn node() -> Identity {
    Identity::new("system:node:n1", ["system:nodes", "system:authenticated"])
}

/// Two nodes with a pod, a secret and an account each.
async fn cluster() -> Server {
    let s = server().await;
    let account = json!({"metadata": {"name": "default"}});
    s.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        s.post("/api/v1/nodes", &json!({"metadata": {"name": node}})).await.expect(201);
        s.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": name}})).await.expect(201);
        let lease = json!({"metadata": {"name": node}, "spec": {"holderIdentity": node}});
        s.post(LEASES, &lease).await.expect(201);
        let mut body = pod(name);
        body["spec"]["nodeName"] = json!(node);
        s.post(PODS, &body).await.expect(201);
    }
    s
}

#[tokio::test]
async fn a_node_writes_no_kind_that_is_not_its_business() {
    let s = cluster().await;
    let node = s.with_identity(node());
    for row in k8s_schema::resources() {
        let kind = (&*row.gvr.group, &*row.gvr.resource);
        let root = if kind.0.is_empty() { "/api".to_string() } else { format!("/apis/{}", kind.0) };
        let space = if row.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{root}/{}{space}/{}", row.gvr.version, kind.1);
        if row.verbs.contains(&"create") && !MAKES.contains(&kind) {
            let made = node.post(&path, &json!({"metadata": {"name": "planted"}})).await.code;
            assert_eq!(made, 403, "POST {path}");
        }
        if kind.1 == "events" {
            continue;
        }
        let looks = LOOKS.contains(&kind);
        let victim = format!("{path}/victim");
        for (verb, method) in [("update", "PUT"), ("patch", "PATCH"), ("delete", "DELETE")] {
            if !row.verbs.contains(&verb) {
                continue;
            }
            let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            let body = json!({"metadata": {"name": "victim", "labels": {"a": "b"}}}).to_string();
            let code = node.call(method, &victim, &[("content-type", kind)], body).await.code;
            assert!(code == 403 || looks && code == 404, "{method} {victim}: {code}");
        }
        if row.verbs.contains(&"deletecollection") {
            assert_eq!(node.delete(&path).await.code, 403, "DELETE {path}");
        }
    }
}

#[tokio::test]
async fn a_node_changes_no_other_node_and_not_what_it_is_trusted_by() {
    let s = cluster().await;
    let node = s.with_identity(node());
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/team": "secret"}}});
    let labelled = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine", "labels": {"app": "x"}},
        "status": {"phase": "Running"}});
    let owned = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "u"}]}});
    let shell = json!({"spec": {"ephemeralContainers": [{"name": "sh", "image": "x"}]}});
    let running = json!({"status": {"phase": "Running"}});
    let claims = json!({"status": {"resourceClaimStatuses": [{"name": "a", "resourceClaimName": "b"}]}});
    let (mine, theirs) = (format!("{PODS}/mine"), format!("{PODS}/theirs"));
    let merge = "merge-patch";
    let patches: [(String, &str, &Value); 14] = [
        (format!("{theirs}/status"), merge, &running),
        (format!("{mine}/status"), merge, &labelled),
        (format!("{mine}/status"), merge, &claims),
        (mine.clone(), merge, &label),
        (format!("{mine}/ephemeralcontainers"), merge, &shell),
        (format!("{mine}/resize"), merge, &running),
        ("/api/v1/nodes/n2".into(), merge, &label),
        ("/api/v1/nodes/n2/status".into(), merge, &running),
        ("/api/v1/nodes/n1".into(), merge, &label),
        ("/api/v1/nodes/n1/status".into(), merge, &label),
        ("/api/v1/nodes/n1".into(), merge, &owned),
        (format!("{LEASES}/n2"), merge, &label),
        ("/apis/storage.k8s.io/v1/csinodes/n2".into(), merge, &label),
        (format!("{SLICES}/n2"), merge, &label),
    ];
    let slice = json!({"metadata": {"name": "n2"},
        "spec": {"driver": "d.example.com", "nodeName": "n2", "pool": {"name": "n2", "resourceSliceCount": 1}}});
    s.post(SLICES, &slice).await.expect(201);
    let planted = json!({"metadata": {"name": "n1"}, "spec": slice["spec"]});
    assert_eq!(node.post(SLICES, &planted).await.code, 403, "a slice in another's name");
    let csinode = json!({"metadata": {"name": "n2"}, "spec": {"drivers": []}});
    s.post("/apis/storage.k8s.io/v1/csinodes", &csinode).await.expect(201);
    for (path, kind, body) in patches {
        let reply = node.patch(&path, kind, body).await;
        assert_eq!(reply.code, 403, "PATCH {path} {body}: {}", String::from_utf8_lossy(&reply.body));
    }
    // The same by server-side apply, which would take fields over by force.
    let forced = format!("{mine}/status?fieldManager=evil&force=true");
    let kind = [("content-type", "application/apply-patch+yaml")];
    assert_eq!(node.call("PATCH", &forced, &kind, labelled.to_string()).await.code, 403);
    let slice = format!("{SLICES}/n2");
    for path in [
        theirs.as_str(),
        "/api/v1/nodes/n1",
        "/api/v1/nodes/n2",
        "/apis/storage.k8s.io/v1/csinodes/n2",
        &slice,
    ] {
        assert_eq!(node.delete(path).await.code, 403, "DELETE {path}");
    }
    let mirror = |spec: Value| {
        let mut mirror = pod("mirror");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        mirror["spec"]["nodeName"] = json!("n1");
        spec.as_object().unwrap().iter().for_each(|(k, v)| mirror["spec"][k] = v.clone());
        mirror
    };
    for spec in [
        json!({"nodeName": "n2"}),
        json!({"serviceAccountName": "default"}),
        json!({"volumes": [{"name": "v", "secret": {"secretName": "theirs"}}]}),
        json!({"imagePullSecrets": [{"name": "theirs"}]}),
        json!({"resourceClaims": [{"name": "c", "resourceClaimName": "c"}]}),
    ] {
        assert_eq!(node.post(PODS, &mirror(spec.clone())).await.code, 403, "{spec}");
    }
    let bind = json!({"metadata": {"name": "x"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(node.post(&format!("{theirs}/binding"), &bind).await.code, 403);
    let evict = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "theirs"}});
    assert_eq!(node.post(&format!("{theirs}/eviction"), &evict).await.code, 403);
    let token = json!({"spec": {"audiences": ["a", "b"]}});
    assert_eq!(node.post("/api/v1/namespaces/default/serviceaccounts/default/token", &token).await.code, 403);
    // What is its own is left to it.
    node.patch(&format!("{mine}/status"), merge, &running).await.expect(200);
    node.patch("/api/v1/nodes/n1", merge, &json!({"metadata": {"labels": {"mine": "b"}}})).await.expect(200);
    node.patch(&format!("{LEASES}/n1"), merge, &json!({"spec": {"leaseDurationSeconds": 7}}))
        .await
        .expect(200);
    node.post(PODS, &mirror(json!({}))).await.expect(201);
}

//! What a node that joins meets: bootstrap tokens, the public cluster-info, certificate requests.

use crate::harness::*;
use auth::Identity;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const TOKEN: &str = "abcdef.0123456789abcdef";

/// A server with a bootstrap token that ends at second 1,000.
async fn with_token() -> (Server, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(900));
    let clock = now.clone();
    let s = server_with(move |config| {
        config.clock = Arc::new(move || jiff::Timestamp::from_second(clock.load(Ordering::SeqCst)).unwrap());
    })
    .await;
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "expiration": "1970-01-01T00:16:40Z"}});
    s.post("/api/v1/namespaces/kube-system/secrets", &secret).await.expect(201);
    (s, now)
}

async fn bearing(s: &Server, token: &str, method: &str, path: &str, body: &str) -> Reply {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    s.with_identity(Identity::default()).call(method, path, &headers, body.to_string()).await
}

fn request(name: &str, user: &str, group: &str, signer: &str) -> Value {
    let (csr, _) = auth::csr::new_request(user, group, &[], &[]).unwrap();
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"signerName": signer, "request": BASE64_STANDARD.encode(csr), "username": "somebody-else",
            "groups": ["system:masters"], "usages": ["digital signature", "client auth"]}})
}

#[tokio::test]
async fn a_bootstrap_token_may_ask_for_a_certificate_until_it_ends() {
    let (s, now) = with_token().await;
    let body = request("r", "system:node:n", "system:nodes", KUBELET).to_string();
    let made = bearing(&s, TOKEN, "POST", REQUESTS, &body).await.expect(201);
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef", "the server says who asks");
    assert_eq!(made["spec"]["groups"], json!(["system:bootstrappers", "system:authenticated"]));
    bearing(&s, TOKEN, "GET", "/api/v1/nodes", "").await.fails(403, "Forbidden");
    bearing(&s, "abcdef.0123456789abcdeX", "GET", REQUESTS, "").await.fails(401, "Unauthorized");
    bearing(&s, "zzzzzz.0123456789abcdef", "GET", REQUESTS, "").await.fails(401, "Unauthorized");
    now.store(1_000, Ordering::SeqCst);
    bearing(&s, TOKEN, "GET", REQUESTS, "").await.fails(401, "Unauthorized");
}

#[tokio::test]
async fn anybody_reads_cluster_info_and_nothing_else_there() {
    let s = server().await;
    for name in ["cluster-info", "other"] {
        s.post("/api/v1/namespaces/kube-public/configmaps", &json!({"metadata": {"name": name}}))
            .await
            .expect(201);
    }
    let stranger = s.with_identity(Identity::anonymous());
    stranger.get("/api/v1/namespaces/kube-public/configmaps/cluster-info").await.expect(200);
    stranger.get("/api/v1/namespaces/kube-public/configmaps/other").await.fails(403, "Forbidden");
}

#[tokio::test]
async fn requests_are_final_and_need_the_right_to_approve_and_sign() {
    let s = server().await;
    let made = s.post(REQUESTS, &request("r", "alice", "dev", "example.com/own")).await.expect(201);
    let mut changed = made.clone();
    changed["spec"]["username"] = json!("bob");
    let after = s.put(&format!("{REQUESTS}/r"), &changed).await.expect(200);
    assert_eq!(after["spec"], made["spec"]);
    let rights = json!([{"apiGroups": ["certificates.k8s.io"], "verbs": ["*"],
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    s.post(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "c"}, "rules": rights}))
        .await
        .expect(201);
    let binding = json!({"metadata": {"name": "c"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "c"}, "subjects": [{"kind": "User", "name": "carol",
        "apiGroup": "rbac.authorization.k8s.io"}]});
    s.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let carol = s.with_identity(Identity::new("carol", ["system:authenticated"]));
    let mut approved = after.clone();
    approved["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "x"}]);
    let why = carol.put(&format!("{REQUESTS}/r/approval"), &approved).await.fails(403, "Forbidden");
    assert!(
        why.contains("user not permitted to approve requests with signerName \"example.com/own\""),
        "{why}"
    );
    let mut signed = after.clone();
    signed["status"]["certificate"] = json!("eA==");
    let why = carol.put(&format!("{REQUESTS}/r/status"), &signed).await.fails(403, "Forbidden");
    assert!(why.contains("not permitted to sign"), "{why}");
    approved["metadata"]["annotations"] = json!({"by": "me"});
    approved["spec"]["username"] = json!("bob");
    let after = s.put(&format!("{REQUESTS}/r/approval"), &approved).await.expect(200);
    assert_eq!(after["metadata"]["annotations"]["by"], "me", "an approval may be annotated");
    assert_eq!(after["spec"], made["spec"]);
    let mut odd = after.clone();
    odd["metadata"]["annotations"] = json!({"not a key": "x"});
    s.put(&format!("{REQUESTS}/r/approval"), &odd).await.fails(422, "Invalid");
}

#[tokio::test]
async fn odd_requests_are_refused() {
    let s = server().await;
    let masters = request("m", "me", "system:masters", "kubernetes.io/kube-apiserver-client");
    let why = s.post(REQUESTS, &masters).await.fails(403, "Forbidden");
    assert!(why.contains("system:masters"), "{why}");
    let mut junk = request("j", "a", "b", "nowhere");
    junk["spec"]["request"] = json!("eA==");
    let why = s.post(REQUESTS, &junk).await.fails(422, "Invalid");
    assert!(why.contains("spec.request") && why.contains("spec.signerName"), "{why}");
}

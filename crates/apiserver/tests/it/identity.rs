//! Who callers are and what they may do: tokens, reviews, roles, nodes, impersonation, over HTTP.

use crate::harness::*;
use auth::{Identity, ServiceTokens};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const START: i64 = 1_800_000_000;

/// A server that issues tokens, at a time that the test moves.
async fn issuing() -> (Server, Arc<AtomicI64>) {
    let now = Arc::new(AtomicI64::new(START));
    let clock = now.clone();
    let s = server_with(move |config| {
        config.service_tokens = Some(Arc::new(tokens(ISSUER)));
        config.clock = Arc::new(move || jiff::Timestamp::from_second(clock.load(Ordering::SeqCst)).unwrap());
    })
    .await;
    s.post(ACCOUNTS, &json!({"metadata": {"name": "default"}})).await.expect(201);
    (s, now)
}

fn tokens(issuer: &str) -> ServiceTokens {
    ServiceTokens::load_or_create(tempfile::tempdir().unwrap().path(), issuer).unwrap()
}

async fn token(s: &Server, spec: Value) -> String {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let answer = s.post(&format!("{ACCOUNTS}/default/token"), &request).await.expect(201);
    answer["status"]["token"].as_str().unwrap().to_string()
}

/// The code of a GET with a token (no certificate).
async fn with_token(s: &Server, token: &str, path: &str) -> Reply {
    let bearer = format!("Bearer {token}");
    s.with_identity(Identity::default()).call("GET", path, &[("authorization", &bearer)], "").await
}

async fn review(s: &Server, spec: Value) -> Value {
    s.post("/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": spec})).await.expect(201)["status"]
        .clone()
}

fn user(name: &str) -> Identity {
    Identity::new(name, ["system:authenticated"])
}

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn bound_to(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]})
}

const POD_READER: &str = r#"[{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]"#;

fn pod_reader() -> Value {
    serde_json::from_str(POD_READER).unwrap()
}

#[tokio::test]
async fn a_token_speaks_for_its_account_until_it_expires() {
    let (s, now) = issuing().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let t = token(&s, json!({"expirationSeconds": 600})).await;
    let message = with_token(&s, &t, MAPS).await.fails(403, "Forbidden");
    assert!(message.starts_with(
        "configmaps is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"configmaps\""
    ));
    assert_eq!(with_token(&s, &t, "/version").await.code, 200);
    let discovery = with_token(&s, &t, "/.well-known/openid-configuration").await.expect(200);
    assert_eq!(discovery["issuer"], ISSUER);
    let jwks = with_token(&s, &t, "/openid/v1/jwks").await;
    assert_eq!(jwks.headers["content-type"], "application/jwk-set+json");
    assert_eq!(jwks.expect(200)["keys"][0]["alg"], "ES256");
    let status = review(&s, json!({"token": t})).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(status["user"]["groups"][1], "system:serviceaccounts:default");
    assert_eq!(status["audiences"], json!([ISSUER]));
    let bearer = format!("Bearer {t}");
    let nobody = s.with_identity(Identity::default());
    let ask = json!({"spec": {"resourceAttributes": {"verb": "create", "group": "authorization.k8s.io", "resource": "selfsubjectaccessreviews"}}});
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let may = nobody.call("POST", path, &headers, ask.to_string()).await.expect(201);
    assert_eq!(may["status"]["allowed"], true);
    assert_eq!(
        may["status"]["reason"],
        "RBAC: allowed by ClusterRoleBinding \"system:basic-user\" of ClusterRole \"system:basic-user\" to Group \"system:authenticated\""
    );
    now.store(START + 600, Ordering::SeqCst);
    with_token(&s, &t, "/version").await.fails(401, "Unauthorized");
    let status = review(&s, json!({"token": t})).await;
    assert!(status["authenticated"].is_null());
    assert_eq!(status["error"], "[invalid bearer token, service account token has expired]");
}

#[tokio::test]
async fn forged_foreign_and_misdirected_tokens_are_refused() {
    let (s, _) = issuing().await;
    let t = token(&s, json!({})).await;
    let mut forged = t.clone();
    forged.truncate(t.len() - 4);
    forged += "AAAA";
    let foreign = server_with(|c| c.service_tokens = Some(Arc::new(tokens("https://other.realm")))).await;
    foreign.post(ACCOUNTS, &json!({"metadata": {"name": "default"}})).await.expect(201);
    let foreign = token(&foreign, json!({})).await;
    for (bad, words) in [
        (forged.as_str(), "signature is wrong"),
        (foreign.as_str(), "was issued by \"https://other.realm\", not by this realm"),
        ("x", "malformed"),
        ("a.b.c", "malformed"),
    ] {
        assert_eq!(with_token(&s, bad, "/version").await.fails(401, "Unauthorized"), "Unauthorized");
        let status = review(&s, json!({"token": bad})).await;
        assert!(status["error"].as_str().unwrap().contains(words), "{status}");
    }
    let vault = token(&s, json!({"audiences": ["vault"]})).await;
    with_token(&s, &vault, "/version").await.fails(401, "Unauthorized");
    let status = review(&s, json!({"token": vault, "audiences": ["vault", "x"]})).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert!(review(&s, json!({"token": vault})).await["error"].as_str().unwrap().contains("audiences"));
    s.delete(&format!("{ACCOUNTS}/default")).await.expect(200);
    with_token(&s, &t, "/version").await.fails(401, "Unauthorized");
    s.post(ACCOUNTS, &json!({"metadata": {"name": "default"}})).await.expect(201);
    with_token(&s, &t, "/version").await.fails(401, "Unauthorized");
}

#[tokio::test]
async fn token_requests_are_checked_and_bound() {
    let (s, _) = issuing().await;
    let path = format!("{ACCOUNTS}/default/token");
    let message = s.post(&path, &json!({"spec": {"expirationSeconds": 599}})).await.fails(422, "Invalid");
    assert!(
        message.contains(
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
        ),
        "{message}"
    );
    s.post(&format!("{ACCOUNTS}/none/token"), &json!({"spec": {}})).await.fails(404, "NotFound");
    let bound = |kind: &str, name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}});
    let message = s.post(&path, &bound("Pod", "p", "")).await.fails(404, "NotFound");
    assert_eq!(message, "pods \"p\" not found");
    s.post(&path, &bound("ConfigMap", "p", "")).await.fails(400, "BadRequest");
    let made = s.post(PODS, &pod("p")).await.expect(201);
    s.post(&path, &bound("Pod", "p", "other")).await.fails(409, "Conflict");
    s.post(ACCOUNTS, &json!({"metadata": {"name": "second"}})).await.expect(201);
    let message =
        s.post(&format!("{ACCOUNTS}/second/token"), &bound("Pod", "p", "")).await.fails(400, "BadRequest");
    assert_eq!(
        message,
        "cannot bind token for serviceaccount \"second\" to pod running with different serviceaccount name."
    );
    let uid = made["metadata"]["uid"].as_str().unwrap();
    let answer = s.post(&path, &bound("Pod", "p", uid)).await.expect(201);
    assert_eq!(answer["spec"]["expirationSeconds"], 3600);
    let t = answer["status"]["token"].as_str().unwrap();
    assert_eq!(with_token(&s, t, "/version").await.code, 200);
    let status = review(&s, json!({"token": t})).await;
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    s.delete(&format!("{PODS}/p")).await.expect(200);
    with_token(&s, t, "/version").await.fails(401, "Unauthorized");
    let error = review(&s, json!({"token": t})).await["error"].to_string();
    assert!(error.contains("service account token has been invalidated"), "{error}");
}

#[tokio::test]
async fn pods_get_the_token_of_an_account_that_exists() {
    let (s, _) = issuing().await;
    let made = s.post(PODS, &pod("p")).await.expect(201);
    let volume = &made["spec"]["volumes"][0];
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    let mut body = pod("q");
    body["spec"]["serviceAccountName"] = json!("x");
    let message = s.post(PODS, &body).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"q\" is forbidden: error looking up service account default/x: serviceaccount \"x\" not found"
    );
    // A pod that comes a moment before its namespace's account waits for it.
    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.expect(201);
    let late = async {
        tokio::task::yield_now().await;
        s.post("/api/v1/namespaces/n/serviceaccounts", &json!({"metadata": {"name": "default"}}))
            .await
            .expect(201)
    };
    let early = pod("early");
    let (made, _) = tokio::join!(s.post("/api/v1/namespaces/n/pods", &early), late);
    made.expect(201);
}

#[tokio::test]
async fn a_reader_sees_and_cannot_change() {
    let s = server().await;
    s.post(PODS, &pod("p")).await.expect(201);
    let alice = s.with_identity(user("alice"));
    let message = alice.get(PODS).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    s.post(&bindings, &bound_to("b", "ClusterRole", "reader", "alice")).await.expect(201);
    let message = alice.get(PODS).await.fails(403, "Forbidden");
    assert!(
        message.ends_with(": RBAC: clusterrole.rbac.authorization.k8s.io \"reader\" not found"),
        "{message}"
    );
    s.post(&format!("{RBAC}/clusterroles"), &role("reader", pod_reader())).await.expect(201);
    assert_eq!(alice.get(PODS).await.expect(200)["items"].as_array().unwrap().len(), 1);
    alice.get(&format!("{PODS}/p")).await.expect(200);
    alice.get(&format!("{PODS}/p/log")).await.fails(403, "Forbidden");
    alice.get("/api/v1/namespaces/kube-system/pods").await.fails(403, "Forbidden");
    alice.get("/api/v1/pods").await.fails(403, "Forbidden");
    alice.delete(&format!("{PODS}/p")).await.fails(403, "Forbidden");
    alice.post(PODS, &pod("q")).await.fails(403, "Forbidden");
    alice.patch(&format!("{PODS}/p"), "merge-patch", &json!({})).await.fails(403, "Forbidden");
    let rules = alice
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &json!({"spec": {"namespace": "default"}}),
        )
        .await
        .expect(201);
    assert!(
        rules["status"]["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["resources"] == json!(["pods"]))
    );
    s.delete(&format!("{bindings}/b")).await.expect(200);
    alice.get(PODS).await.fails(403, "Forbidden");
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_have() {
    let s = server().await;
    let rules = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"],
            "verbs": ["create", "get", "patch", "update"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]);
    s.post(&format!("{RBAC}/clusterroles"), &role("granter", rules)).await.expect(201);
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    s.post(&bindings, &bound_to("b", "ClusterRole", "granter", "bob")).await.expect(201);
    let bob = s.with_identity(user("bob"));
    let roles = format!("{RBAC}/namespaces/default/roles");
    bob.post(&roles, &role("own", pod_reader())).await.expect(201);
    let more = json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "delete"]}]);
    let message = bob.post(&roles, &role("more", more.clone())).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"delete\" \"get\"]}"
    );
    bob.patch(&format!("{roles}/own"), "merge-patch", &json!({"rules": more})).await.fails(403, "Forbidden");
    bob.patch(&format!("{roles}/own"), "merge-patch", &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect(200);
    bob.post(&bindings, &bound_to("c", "Role", "own", "carol")).await.expect(201);
    bob.post(&bindings, &bound_to("d", "ClusterRole", "cluster-admin", "bob")).await.fails(403, "Forbidden");
    bob.post(&bindings, &bound_to("d", "Role", "none", "bob")).await.fails(404, "NotFound");
    let escalate = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "clusterroles"], "verbs": ["escalate", "bind"]}]);
    s.post(&roles, &role("escalator", escalate)).await.expect(201);
    s.post(&bindings, &bound_to("e", "Role", "escalator", "bob")).await.expect(201);
    bob.post(&roles, &role("more", more)).await.expect(201);
    bob.post(&bindings, &bound_to("d", "ClusterRole", "cluster-admin", "bob")).await.expect(201);
}

#[tokio::test]
async fn a_node_reaches_its_own_and_no_more() {
    let (s, _) = issuing().await;
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        s.post("/api/v1/nodes", &json!({"metadata": {"name": node}})).await.expect(201);
        s.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": name}})).await.expect(201);
        s.post(ACCOUNTS, &json!({"metadata": {"name": name}})).await.expect(201);
        let mut body = pod(name);
        body["spec"]["nodeName"] = json!(node);
        body["spec"]["serviceAccountName"] = json!(name);
        body["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": name}}]);
        s.post(PODS, &body).await.expect(201);
    }
    let node = s.with_identity(Identity::new("system:node:n1", ["system:nodes", "system:authenticated"]));
    node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect(200);
    let message = node.get("/api/v1/pods").await.fails(403, "Forbidden");
    assert!(message.ends_with("can only list/watch pods with spec.nodeName field selector"), "{message}");
    node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2").await.fails(403, "Forbidden");
    node.get(&format!("{PODS}/mine")).await.expect(200);
    node.get(&format!("{PODS}/theirs")).await.fails(403, "Forbidden");
    let secrets = "/api/v1/namespaces/default/secrets";
    node.get(&format!("{secrets}/mine")).await.expect(200);
    node.get(&format!("{secrets}?fieldSelector=metadata.name%3Dmine")).await.expect(200);
    let message = node.get(&format!("{secrets}/theirs")).await.fails(403, "Forbidden");
    assert!(message.ends_with("no relationship found between node 'n1' and this object"), "{message}");
    node.get(secrets).await.fails(403, "Forbidden");
    node.get("/api/v1/nodes/n1").await.expect(200);
    // Routes between nodes need every node's addresses (`gantry:node-proxier`); without that role it is refused.
    node.get("/api/v1/nodes/n2").await.expect(200);
    s.delete(&format!("{RBAC}/clusterrolebindings/gantry:node-proxier")).await.expect(200);
    node.get("/api/v1/nodes/n2").await.fails(403, "Forbidden");
    let status = json!({"status": {"phase": "Running"}});
    node.patch(&format!("{PODS}/mine/status"), "merge-patch", &status).await.expect(200);
    let message =
        node.patch(&format!("{PODS}/theirs/status"), "merge-patch", &status).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"theirs\" is forbidden: node \"n1\" can only update pod status for pods with spec.nodeName set to itself"
    );
    node.delete(&format!("{PODS}/theirs")).await.fails(403, "Forbidden");
    let message = node.post(PODS, &pod("new")).await.fails(403, "Forbidden");
    assert!(message.contains("can only create mirror pods"), "{message}");
    node.patch("/api/v1/nodes/n2", "merge-patch", &json!({"spec": {"unschedulable": true}}))
        .await
        .fails(403, "Forbidden");
    node.patch("/api/v1/nodes/n1", "merge-patch", &json!({"metadata": {"labels": {"role": "x"}}}))
        .await
        .expect(200);
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    node.patch("/api/v1/nodes/n1", "merge-patch", &taint).await.fails(403, "Forbidden");
    let ask = |name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
    let mine = s.get(&format!("{PODS}/mine")).await.expect(200);
    let uid = mine["metadata"]["uid"].as_str().unwrap();
    node.post(&format!("{ACCOUNTS}/mine/token"), &ask("mine", uid)).await.expect(201);
    let mut other = ask("mine", uid);
    other["spec"]["audiences"] = json!(["vault"]);
    let message = node.post(&format!("{ACCOUNTS}/mine/token"), &other).await.fails(403, "Forbidden");
    assert!(message.contains("audience \"vault\" not found in pod spec volume"), "{message}");
    let mut stale = ask("mine", uid);
    stale["metadata"] = json!({"uid": "old"});
    node.post(&format!("{ACCOUNTS}/mine/token"), &stale).await.fails(409, "Conflict");
    node.post(&format!("{ACCOUNTS}/mine/token"), &json!({"spec": {}})).await.fails(403, "Forbidden");
    node.post(&format!("{ACCOUNTS}/theirs/token"), &ask("theirs", uid)).await.fails(403, "Forbidden");
    node.delete(&format!("{PODS}/mine?gracePeriodSeconds=0")).await.expect(200);
    node.get(&format!("{secrets}/mine")).await.fails(403, "Forbidden");
}

#[tokio::test]
async fn impersonation_needs_its_right() {
    let s = server().await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let ask = |server: Server, headers: Vec<(&'static str, &'static str)>| async move {
        let headers = [vec![("content-type", "application/json")], headers].concat();
        server.call("POST", whoami, &headers, "{}").await
    };
    let as_bob = vec![("Impersonate-User", "bob"), ("Impersonate-Group", "dev")];
    let me = ask(s.with_identity(s.identity.clone()), as_bob.clone()).await.expect(201);
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "bob", "groups": ["dev", "system:authenticated"]})
    );
    let alice = || s.with_identity(user("alice"));
    let message = ask(alice(), as_bob.clone()).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "selfsubjectreviews.authentication.k8s.io is forbidden: User \"alice\" cannot impersonate-on:user-info:create resource \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the cluster scope"
    );
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]}]);
    s.post(&format!("{RBAC}/clusterroles"), &role("as-bob", rules)).await.expect(201);
    let binding = bound_to("as-bob", "ClusterRole", "as-bob", "alice");
    s.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    ask(alice(), vec![("Impersonate-User", "bob")]).await.expect(201);
    ask(alice(), as_bob.clone()).await.fails(403, "Forbidden");
    ask(alice(), vec![("Impersonate-User", "carol")]).await.fails(403, "Forbidden");
    ask(alice(), vec![("Impersonate-Group", "dev")]).await.fails(400, "BadRequest");
    // Constrained: this user and group, and nothing but reviews.
    let rules = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate:user-info"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["groups"], "resourceNames": ["dev"], "verbs": ["impersonate:user-info"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["impersonate-on:user-info:create"]}]);
    s.post(&format!("{RBAC}/clusterroles"), &role("reviews-as-bob", rules)).await.expect(201);
    let binding = bound_to("reviews-as-bob", "ClusterRole", "reviews-as-bob", "dora");
    s.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    let dora = || s.with_identity(user("dora"));
    let who = ask(dora(), as_bob.clone()).await.expect(201);
    assert_eq!(who["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
    let message = dora().call("GET", "/api/v1/nodes", &as_bob, "").await.fails(403, "Forbidden");
    assert!(message.contains("cannot impersonate-on:user-info:list resource \"nodes\""), "{message}");
    let masters = vec![("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")];
    let message = ask(dora(), masters).await.fails(403, "Forbidden");
    assert!(message.contains("impersonating the system:masters group is not allowed"), "{message}");
}

#[tokio::test]
async fn the_first_roles_are_there_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = store::Embedded::open(&path, store::EmbeddedOptions::default()).unwrap();
    let config = apiserver::ApiConfig::new("main", Arc::new(store));
    let api = apiserver::Api::open(config.clone()).await.unwrap();
    let admin = || Identity::new("admin", ["system:masters"]);
    let gvr = &k8s_schema::gvr::CLUSTER_ROLES;
    let key = client::ObjectKey::cluster("system:discovery");
    let before = api.client(admin()).get(gvr, &key).await.unwrap();
    let untouched = client::ObjectKey::cluster("system:basic-user");
    let kept = api.client(admin()).get(gvr, &untouched).await.unwrap();
    let mut body = before.value().unwrap();
    body["rules"] = json!([]);
    api.client(admin()).update(gvr, &key, body).await.unwrap();
    api.close();
    let again = apiserver::Api::open(config).await.unwrap();
    let after = again.client(admin()).get(gvr, &key).await.unwrap().value().unwrap();
    assert_eq!(after["rules"].as_array().unwrap().len(), 11, "a rule for each path: {after}");
    assert_eq!(again.client(admin()).get(gvr, &untouched).await.unwrap().revision, kept.revision);
    again.close();
}

/// The token of a Secret says when it was last used; one that is marked is nobody's any more.
#[tokio::test]
async fn old_tokens_are_tracked_and_can_be_ended() {
    const SECRET: &str = "/api/v1/namespaces/default/secrets/old";
    let (s, _) = issuing().await;
    let secret = json!({"metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token"});
    let made = s.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201);
    let bound = json!({"kind": "Secret", "apiVersion": "v1", "name": "old", "uid": made["metadata"]["uid"]});
    let token = token(&s, json!({"boundObjectRef": bound})).await;
    assert_eq!(with_token(&s, &token, "/version").await.code, 200);
    let used = &s.get(SECRET).await.expect(200)["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"];
    assert_eq!(used, "2027-01-15");
    let mark = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}});
    s.patch(SECRET, "merge-patch", &mark).await.expect(200);
    with_token(&s, &token, "/version").await.fails(401, "Unauthorized");
    let said = review(&s, json!({"token": token})).await;
    assert!(said["error"].as_str().unwrap().contains("has been marked invalid"), "{said}");
}

//! Callers whom servers outside know: OpenID providers, token reviewers, access reviewers; who may be anonymous.

use crate::harness::{MAPS, PATIENCE, Server, server_with};
use apiserver::authz::Step;
use apiserver::{
    AccessWebhook, Anonymous, AuthenticationFile, Endpoint, Manner, Providers, TokenWebhook,
    authorization_file, outside_tokens,
};
use auth::{Ca, Identity, ServiceTokens};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use tokio::net::TcpListener;

pub type Answer = Arc<dyn Fn(&str, Value) -> Value + Send + Sync>;

/// An HTTPS server on the loopback: its port, its authority, how often it was asked. A string is sent as bare text, null
/// as an internal error.
pub async fn outside(answer: Answer) -> (u16, String, Arc<AtomicUsize>) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(folder.path(), SystemTime::now()).unwrap();
    let issued = ca.issue_server("outside", &["localhost".into()], &[], SystemTime::now()).unwrap();
    let config = auth::server_config(&issued, ca.cert_pem(), &["http/1.1"]).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, count) = (acceptor.clone(), answer.clone(), count.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let serve = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (answer, count) = (answer.clone(), count.clone());
                    async move {
                        count.fetch_add(1, Ordering::Relaxed);
                        let path = request.uri().path().to_string();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body = serde_json::from_slice(&body).unwrap_or_default();
                        let (code, text) = match answer(&path, body) {
                            Value::Null => (500, String::new()),
                            Value::String(text) => (200, text),
                            document => (200, document.to_string()),
                        };
                        let body = Full::<Bytes>::from(text);
                        Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), serve)
                    .await;
            });
        }
    });
    (port, ca.cert_pem().to_string(), asked)
}

async fn who(server: &Server, token: &str) -> (u16, Value) {
    let nobody = server.with_identity(Identity::default());
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let headers = [("authorization", format!("Bearer {token}")), ("content-type", "application/json".into())];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let reply = tokio::time::timeout(PATIENCE, nobody.call("POST", path, &headers, review.to_string()))
        .await
        .unwrap();
    (reply.code, reply.json()["status"]["userInfo"].clone())
}

#[tokio::test]
async fn a_providers_tokens_are_checked_by_its_published_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (slot, filled) = (Arc::new(std::sync::OnceLock::new()), Arc::new(std::sync::OnceLock::new()));
    let (url, keys) = (slot.clone(), filled.clone());
    let (port, ca_pem, asked) = outside(Arc::new(move |path, _| match path {
        "/.well-known/openid-configuration" => {
            let issuer: &String = url.get().unwrap();
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
        }
        _ => Value::clone(keys.get().unwrap()),
    }))
    .await;
    let issuer = format!("https://localhost:{port}");
    slot.set(issuer.clone()).unwrap();
    let provider = ServiceTokens::load_or_create(folder.path(), issuer.clone()).unwrap();
    filled.set(provider.jwks()).unwrap();
    let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer, "audiences": ["me"], "certificateAuthority": ca_pem},
            "claimMappings": {"username": {"claim": "sub", "prefix": "oidc:"}}}]});
    let file = AuthenticationFile::read(file.to_string().as_bytes(), &[]).unwrap();
    let providers = Arc::new(Providers::new(file.providers, &None));
    let server = server_with(|c| c.authenticator = Some(outside_tokens(providers.clone(), None))).await;

    let now = jiff::Timestamp::now().as_second();
    let token = |aud: &str, exp: i64| {
        let claims = auth::tokens::Claims {
            aud: vec![aud.into()],
            exp,
            iat: now,
            iss: issuer.clone(),
            jti: "j".into(),
            nbf: now,
            sub: "system:serviceaccount:n:alice".into(),
            bound: auth::tokens::Bound::default(),
        };
        provider.sign(&claims).unwrap()
    };
    let (code, user) = who(&server, &token("me", now + 60)).await;
    assert_eq!((code, user["username"].as_str()), (201, Some("oidc:system:serviceaccount:n:alice")));
    assert_eq!(who(&server, &token("other", now + 60)).await.0, 401);
    assert_eq!(who(&server, &token("me", now - 1)).await.0, 401);
    let mut forged = token("me", now + 60);
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'B' } else { 'A' });
    forged.replace_range(forged.len() - 4..forged.len() - 1, "AAA");
    assert_eq!(who(&server, &forged).await.0, 401);
    assert_eq!(asked.load(Ordering::Relaxed), 2, "document and keys, once");
    providers.replace(Vec::new());
    assert_eq!(who(&server, &token("me", now + 60)).await.0, 401, "a provider that was taken away");
}

/// A token whose groups another service knows: it is asked with the token's own key to it, and its word is signed.
#[tokio::test]
async fn groups_may_be_known_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (slot, filled) = (Arc::new(std::sync::OnceLock::new()), Arc::new(std::sync::OnceLock::new()));
    let (url, made) = (slot.clone(), filled.clone());
    let (port, ca_pem, _) = outside(Arc::new(move |path, _| {
        let (jwks, groups, stale): &(Value, String, String) = made.get().unwrap();
        match path {
            "/.well-known/openid-configuration" => {
                let issuer: &String = url.get().unwrap();
                json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
            }
            "/groups" => json!(groups),
            "/stale" => json!(stale),
            "/nonsense" => json!("who knows"),
            _ => jwks.clone(),
        }
    }))
    .await;
    let issuer = format!("https://localhost:{port}");
    slot.set(issuer.clone()).unwrap();
    let signer = ServiceTokens::load_or_create(folder.path(), issuer.clone()).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let signed = |rest: Value| {
        let mut claims = json!({"iss": issuer, "aud": "me", "sub": "eve", "exp": now + 600});
        rest.as_object().unwrap().iter().for_each(|(k, v)| claims[k] = v.clone());
        signer.sign(&claims).unwrap()
    };
    let groups = signed(json!({"groups": ["a", "b"]}));
    filled.set((signer.jwks(), groups, signed(json!({"groups": ["root"], "exp": now - 1})))).unwrap();
    let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer, "audiences": ["me"], "certificateAuthority": ca_pem},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}, "groups": {"claim": "groups", "prefix": "g:"}}}]});
    let file = AuthenticationFile::read(file.to_string().as_bytes(), &[]).unwrap();
    let providers = Arc::new(Providers::new(file.providers, &None));
    let server = server_with(|c| c.authenticator = Some(outside_tokens(providers, None))).await;
    let token = |path: &str| {
        let source = json!({"endpoint": format!("{issuer}{path}"), "access_token": "key"});
        signed(json!({"_claim_names": {"groups": "src"}, "_claim_sources": {"src": source}}))
    };
    let (code, user) = who(&server, &token("/groups")).await;
    assert_eq!((code, &user["groups"]), (201, &json!(["g:a", "g:b", "system:authenticated"])));
    for path in ["/stale", "/nonsense"] {
        assert_eq!(who(&server, &token(path)).await.0, 401, "{path}");
    }
}

/// Judges in trouble are asked again, with growing pauses, and what they say then counts: of tokens and of access.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_in_trouble_is_asked_again() {
    let (tokens, access) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let first = |count: &AtomicUsize| count.fetch_add(1, Ordering::Relaxed) == 0;
    let (port, ca_pem, asked) = outside(Arc::new(move |path, _| match path {
        "/review" if !first(&tokens) => {
            json!({"status": {"authenticated": true, "user": {"username": "carol"}}})
        }
        "/access" if !first(&access) => json!({"status": {"allowed": true}}),
        _ => Value::Null,
    }))
    .await;
    let at =
        |path: &str| Endpoint::of_url(&format!("https://localhost:{port}{path}"), &ca_pem, None).unwrap();
    let providers = Arc::new(Providers::new(Vec::new(), &None));
    let hook = TokenWebhook::new(at("/review"), Vec::new());
    let judge = AccessWebhook::new(at("/access"), Manner::default());
    let server = server_with(|c| {
        c.authenticator = Some(outside_tokens(providers, Some(hook)));
        c.authorization.push(Step::Webhook(Arc::new(judge)));
    })
    .await;
    let (code, user) = who(&server, "good").await;
    assert_eq!((code, user["username"].as_str()), (201, Some("carol")));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let dave = server.with_identity(Identity::new("dave", ["system:authenticated"]));
    dave.get(MAPS).await.expect(200);
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_reviewer_knows_tokens_and_is_asked_once() {
    let (port, ca_pem, asked) = outside(Arc::new(|_, review| {
        assert_eq!(review["kind"], "TokenReview");
        match review["spec"]["token"].as_str() {
            Some("good") => json!({"status": {"authenticated": true,
                "user": {"username": "carol", "groups": ["dev"], "extra": {"k": ["v"]}}}}),
            _ => json!({"status": {"authenticated": false}}),
        }
    }))
    .await;
    let endpoint = Endpoint::of_url(&format!("https://localhost:{port}/review"), &ca_pem, None).unwrap();
    let hook = TokenWebhook::new(endpoint, Vec::new());
    let providers = Arc::new(Providers::new(Vec::new(), &None));
    let server = server_with(|c| c.authenticator = Some(outside_tokens(providers, Some(hook)))).await;
    for _ in 0..3 {
        let (code, user) = who(&server, "good").await;
        assert_eq!(
            (code, user["username"].as_str(), &user["extra"]["k"][0]),
            (201, Some("carol"), &json!("v"))
        );
        assert_eq!(who(&server, "bad").await.0, 401);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_access_reviewer_is_asked_where_roles_say_nothing() {
    let (port, ca_pem, asked) = outside(Arc::new(|_, review| {
        let spec = &review["spec"];
        let allowed = spec["user"] == "dave" && spec["resourceAttributes"]["verb"] == "list";
        json!({"status": {"allowed": allowed, "reason": "outside says no"}})
    }))
    .await;
    let endpoint = Endpoint::of_url(&format!("https://localhost:{port}/access"), &ca_pem, None).unwrap();
    let server = server_with(|c| {
        let webhook = AccessWebhook::new(endpoint, Manner::default());
        c.authorization.push(Step::Webhook(Arc::new(webhook)));
    })
    .await;
    server.get(MAPS).await.expect(200);
    assert_eq!(asked.load(Ordering::Relaxed), 0, "superusers need no reviewer");
    let dave = server.with_identity(Identity::new("dave", ["system:authenticated"]));
    dave.get(MAPS).await.expect(200);
    dave.get(MAPS).await.expect(200);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let message = dave.get(&format!("{MAPS}/x")).await.fails(403, "Forbidden");
    assert!(message.ends_with("outside says no"), "{message}");
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "dave", "resourceAttributes": {"verb": "list", "resource": "pods"}}});
    let answer = server.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.expect(201);
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorizers_have_an_order_and_conditions_and_can_be_changed() {
    let (port, ca_pem, asked) = outside(Arc::new(|_, review| {
        let spec = &review["spec"];
        match spec["resourceAttributes"]["verb"].as_str() {
            Some("delete") => json!({"status": {"denied": true, "reason": "never"}}),
            Some("list") => json!({"status": {"allowed": true}}),
            // The second is asked within admission, by code that cannot wait.
            Some("create" | "escalate") => json!({"status": {"allowed": spec["user"] == "fred"}}),
            _ => json!({"status": {"allowed": false}}),
        }
    }))
    .await;
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("hook.yaml");
    std::fs::write(folder.path().join("ca.pem"), ca_pem).unwrap();
    let text = json!({"clusters": [{"name": "c", "cluster":
        {"server": format!("https://localhost:{port}/access"), "certificate-authority": "ca.pem"}}]});
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let hook = |server: &std::path::Path, policy: &str, expression: &str| {
        json!({"type": "Webhook", "name": policy.to_lowercase(), "webhook": {"timeout": "3s",
            "subjectAccessReviewVersion": "v1", "matchConditionSubjectAccessReviewVersion": "v1",
            "failurePolicy": policy, "matchConditions": [{"expression": expression}],
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": server}}})
    };
    let read = |authorizers: Value| {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers});
        authorization_file(file.to_string().as_bytes(), &None).unwrap()
    };
    let about = "has(request.resourceAttributes) && request.user != 'mallory'";
    let steps = read(json!([hook(&kubeconfig, "Deny", about), {"type": "RBAC", "name": "rbac"}]));
    let server = server_with(|c| c.authorization = steps).await;
    let eve = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    eve.get(MAPS).await.expect(200);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "eve"}, "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.expect(201);
    let message = eve.call("DELETE", &format!("{MAPS}/x"), &[], "").await.fails(403, "Forbidden");
    assert!(message.ends_with(": never"), "the first with an opinion decides: {message}");
    assert_eq!(eve.get(&format!("{MAPS}/x")).await.code, 404, "then roles do");
    let before = asked.load(Ordering::Relaxed);
    let mallory = server.with_identity(Identity::new("mallory", ["system:authenticated"]));
    mallory.get(MAPS).await.fails(403, "Forbidden");
    assert_eq!(asked.load(Ordering::Relaxed), before, "conditions keep it from being asked");
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let rules = eve.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &rules).await.expect(201);
    assert_eq!(
        rules["status"]["evaluationError"],
        "webhook authorizer does not support user rule resolution"
    );
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let fred = server.with_identity(Identity::new("fred", ["system:authenticated"]));
    fred.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", &role).await.expect(201);
    // A reviewer that cannot be reached: one asks for a refusal, the other lets roles decide.
    let gone = folder.path().join("gone.yaml");
    let text = json!({"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1/"}}]});
    std::fs::write(&gone, text.to_string()).unwrap();
    for (policy, code) in [("Deny", 403), ("NoOpinion", 404)] {
        server.api.reorder_authorizers(read(
            json!([hook(&gone, policy, "true"), {"type": "RBAC", "name": "rbac"}]),
        ));
        assert_eq!(eve.get(&format!("{MAPS}/x")).await.code, code, "{policy}");
    }
}

#[tokio::test]
async fn anonymous_requests_can_be_limited_to_paths() {
    for (anonymous, livez, version) in [
        (Anonymous::Allowed, 200, 200),
        (Anonymous::At(vec!["/livez".into()]), 200, 401),
        (Anonymous::Refused, 401, 401),
    ] {
        let server = server_with(|c| c.anonymous = anonymous.clone()).await;
        let nobody = server.with_identity(Identity::default());
        assert_eq!(nobody.get("/livez").await.code, livez, "{anonymous:?}");
        assert_eq!(nobody.get("/version").await.code, version, "{anonymous:?}");
    }
}

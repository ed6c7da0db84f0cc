//! Programs outside: webhooks that change and refuse, what happens when they fail, and quotas under contention.

use crate::harness::*;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const NAMESPACE: &str = "/api/v1/namespaces/default";

type Answer = dyn Fn(&Value) -> Value + Send + Sync;

/// A webhook: what it was asked, and how often somebody connected.
struct Hook {
    port: u16,
    bundle: String,
    asked: Arc<Mutex<Vec<Value>>>,
    connected: Arc<AtomicUsize>,
}

/// Starts one that answers the review with what `answer` makes of the request; a redirect where that is null.
async fn hook(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
    let folder = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
    let issued = ca.issue_server("hook", &[], &["127.0.0.1".parse().unwrap()], now).unwrap();
    let tls = auth::server_config(&issued, ca.cert_pem(), &["http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hook = Hook {
        port,
        bundle: BASE64_STANDARD.encode(ca.cert_pem()),
        asked: Arc::default(),
        connected: Arc::default(),
    };
    let (asked, connected, answer) = (hook.asked.clone(), hook.connected.clone(), Arc::new(answer));
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        while let Ok((stream, _)) = listener.accept().await {
            connected.fetch_add(1, Ordering::SeqCst);
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (asked, answer) = (asked.clone(), answer.clone());
            let service = service_fn(move |request| reply(request, asked.clone(), answer.clone()));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    hook
}

async fn reply(
    request: Request<Incoming>,
    asked: Arc<Mutex<Vec<Value>>>,
    answer: Arc<Answer>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    assert!(!request.headers().contains_key("authorization"), "no credentials are sent");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let mut response = answer(&review["request"]);
    asked.lock().unwrap().push(review["request"].clone());
    if response.is_null() {
        let moved = Response::builder().status(307).header("location", "https://127.0.0.1:1/elsewhere");
        return Ok(moved.body(Full::default()).unwrap());
    }
    response["uid"] = review["request"]["uid"].clone();
    let out = json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(out.to_string().into())))
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(operations.to_string())})
}

impl Hook {
    /// A configuration with this webhook about config maps, with more or other members.
    fn configuration(&self, kind: &str, name: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": format!("{name}.example.org"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 5,
            "clientConfig": {"url": format!("https://127.0.0.1:{}/review", self.port), "caBundle": self.bundle},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        more.as_object().unwrap().iter().for_each(|(k, v)| hook[k] = v.clone());
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "webhooks": [hook]})
    }

    async fn mutates(&self, s: &Server, name: &str, more: Value) {
        let body = self.configuration("MutatingWebhookConfiguration", name, more);
        s.post(MUTATING, &body).await.expect(201);
    }

    async fn validates(&self, s: &Server, name: &str, more: Value) {
        let body = self.configuration("ValidatingWebhookConfiguration", name, more);
        s.post(VALIDATING, &body).await.expect(201);
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn webhooks_change_then_judge_and_keep_their_connections() {
    let s = server().await;
    let adding = hook(|_| patch(json!([{"op": "add", "path": "/data/added", "value": "yes"}]))).await;
    let judging = hook(|request| {
        let bad = request["object"]["data"]["a"] == "bad";
        json!({"allowed": !bad, "warnings": ["seen"], "status": {"message": "no good", "code": 403, "reason": "Forbidden"}})
    })
    .await;
    adding.mutates(&s, "add", json!({})).await;
    let rules =
        json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["configmaps"]}]);
    judging.validates(&s, "judge", json!({"rules": rules})).await;
    for name in ["a", "b", "c"] {
        let reply = s.post(MAPS, &config_map(name)).await;
        assert_eq!(reply.headers["warning"], "299 - \"seen\"");
        assert_eq!(reply.expect(201)["data"]["added"], "yes");
    }
    assert_eq!((adding.connected.load(Ordering::SeqCst), judging.connected.load(Ordering::SeqCst)), (1, 1));
    let request = judging.asked()[0].clone();
    assert_eq!(request["object"]["data"]["added"], "yes", "judges see what was changed");
    assert_eq!((request["operation"].as_str(), request["name"].as_str()), (Some("CREATE"), Some("a")));
    assert_eq!(request["userInfo"]["username"], "admin");
    let mut bad = config_map("d");
    bad["data"]["a"] = json!("bad");
    let why = s.post(MAPS, &bad).await.fails(403, "Forbidden");
    assert_eq!(why, "admission webhook \"judge.example.org\" denied the request: no good");
    s.get(&format!("{MAPS}/d")).await.fails(404, "NotFound");
    s.delete(&format!("{MAPS}/a")).await.expect(200);
    let last = judging.asked().pop().unwrap();
    assert_eq!(last["operation"], "DELETE");
    assert!(last["object"].is_null() && last["oldObject"]["metadata"]["name"] == "a");
}

#[tokio::test]
async fn a_failing_webhook_fails_the_request_unless_its_policy_is_to_be_ignored() {
    let s = server().await;
    let moved = hook(|_| Value::Null).await;
    moved.validates(&s, "moved", json!({})).await;
    let why = s.post(MAPS, &config_map("a")).await.fails(500, "InternalError");
    assert!(
        why.starts_with("Internal error occurred: failed calling webhook \"moved.example.org\": "),
        "{why}"
    );
    assert!(why.contains("307"), "a redirect is an answer, and no good one: {why}");
    s.delete(&format!("{VALIDATING}/moved")).await.expect(200);
    for (name, url, policy) in [
        ("refused", "https://127.0.0.1:1/x", "Ignore"),
        ("metadata", "https://169.254.169.254/latest", "Fail"),
    ] {
        let config = json!({"clientConfig": {"url": url, "caBundle": moved.bundle}, "failurePolicy": policy});
        moved.validates(&s, name, config).await;
    }
    let why = s.post(MAPS, &config_map("a")).await.fails(500, "InternalError");
    assert!(why.contains("169.254.169.254:443: webhooks at such addresses are not called"), "{why}");
    s.delete(&format!("{VALIDATING}/metadata")).await.expect(200);
    s.post(MAPS, &config_map("a")).await.expect(201);
    let distrusted = hook(|_| json!({"allowed": true})).await;
    let url = format!("https://127.0.0.1:{}/", distrusted.port);
    moved.validates(&s, "distrusted", json!({"clientConfig": {"url": url, "caBundle": moved.bundle}})).await;
    let why = s.post(MAPS, &config_map("b")).await.fails(500, "InternalError");
    assert!(why.contains("tls: failed to verify certificate"), "{why}");
}

#[tokio::test]
async fn selectors_dry_runs_and_reinvocation() {
    let s = server().await;
    let counting = hook(|request| {
        let seen = request["object"]["data"]["late"].as_str().unwrap_or("no").to_string();
        patch(json!([{"op": "add", "path": "/data/saw", "value": seen}]))
    })
    .await;
    let late = hook(|_| patch(json!([{"op": "add", "path": "/data/late", "value": "here"}]))).await;
    counting.mutates(&s, "a-count", json!({"reinvocationPolicy": "IfNeeded"})).await;
    let chosen = json!({"objectSelector": {"matchLabels": {"late": "yes"}}, "sideEffects": "None"});
    late.mutates(&s, "b-late", chosen).await;
    let plain = s.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!((plain["data"]["saw"].as_str(), plain["data"]["late"].as_str()), (Some("no"), None));
    let mut labelled = config_map("b");
    labelled["metadata"]["labels"] = json!({"late": "yes"});
    let both = s.post(MAPS, &labelled).await.expect(201);
    assert_eq!(both["data"]["saw"], "here", "the first was asked again after the second changed the object");
    s.post(&format!("{MAPS}?dryRun=All"), &config_map("c")).await.expect(201);
    assert_eq!(counting.asked().pop().unwrap()["dryRun"], true);
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"no": "such"}}});
    late.validates(&s, "elsewhere", elsewhere).await;
    s.post(MAPS, &config_map("d")).await.expect(201);
    assert_eq!(late.asked().len(), 1, "neither selector matched again");
}

#[tokio::test]
async fn webhooks_have_no_say_about_webhooks_and_see_equivalent_versions() {
    let s = server().await;
    let no = hook(|_| json!({"allowed": false})).await;
    let all = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    no.validates(&s, "all", all).await;
    s.post(MAPS, &config_map("a")).await.fails(400, "");
    s.delete(&format!("{VALIDATING}/all")).await.expect(200);
    let modern = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
        "resources": ["deployments"]}]});
    no.validates(&s, "modern", modern).await;
    let old = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "w"},
        "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/extensions/v1beta1/namespaces/default/deployments";
    let why = s.post(path, &old).await.fails(400, "");
    assert_eq!(why, "admission webhook \"modern.example.org\" denied the request without explanation");
    // The server's own controllers may have been refused something else.
    let asked = no.asked();
    let request = asked.iter().find(|r| r["name"] == "w").unwrap();
    assert_eq!(request["object"]["apiVersion"], "apps/v1");
    assert_eq!(request["requestKind"]["group"], "extensions");
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let s = server().await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}});
    s.post(&format!("{NAMESPACE}/limitranges"), &range).await.expect(201);
    let pod = s.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(
        pod["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "100m"}})
    );
    let mut large = crate::harness::pod("b");
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let why = s.post(PODS, &large).await.fails(403, "Forbidden");
    assert_eq!(why, "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
}

#[tokio::test]
async fn no_two_writes_spend_the_same() {
    let s = server().await;
    let quotas = format!("{NAMESPACE}/resourcequotas");
    let hard = json!({"configmaps": "5", "count/secrets": "1"});
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}});
    let mut made = s.post(&quotas, &quota).await.expect(201);
    made["status"] = json!({"hard": hard, "used": {"configmaps": "0", "count/secrets": "0"}});
    s.put(&format!("{quotas}/q/status"), &made).await.expect(200);
    let writes = (0..20).map(|n| {
        let s = &s;
        async move { s.post(MAPS, &config_map(&format!("m{n}"))).await }
    });
    let replies = futures_util::future::join_all(writes).await;
    assert_eq!(replies.iter().filter(|r| r.code == 201).count(), 5);
    let refused = replies.into_iter().find(|r| r.code != 201).unwrap().fails(403, "Forbidden");
    let words = "exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5";
    assert!(refused.ends_with(words), "{refused}");
    let used = || async { s.get(&format!("{quotas}/q")).await.expect(200)["status"]["used"].clone() };
    assert_eq!(used().await, json!({"configmaps": "5", "count/secrets": "0"}));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let secrets = format!("{NAMESPACE}/secrets");
    s.post(&format!("{secrets}?dryRun=All"), &secret).await.expect(201);
    s.post(&secrets, &secret).await.expect(201);
    assert_eq!(used().await["count/secrets"], "1", "a dry run is not charged");
}

/// The audit log tells what webhooks and policies did: their own notes, what they changed, which failed, what was found.
#[tokio::test]
async fn what_admission_did_is_audited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let s = crate::audit::recorded(&path, None).await;
    let add = json!([{"op": "add", "path": "/data/added", "value": "yes"}]);
    let change = add.clone();
    let adding = hook(move |_| {
        let mut answer = patch(change.clone());
        answer["auditAnnotations"] = json!({"why": "because"});
        answer
    })
    .await;
    adding.mutates(&s, "add", json!({})).await;
    hook(|_| Value::Null).await.mutates(&s, "broken", json!({"failurePolicy": "Ignore"})).await;
    let refusing = hook(|request| json!({"allowed": request["name"] != "bad"})).await;
    refusing.mutates(&s, "refuse", json!({})).await;
    let rules = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]);
    let root = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "never"}],
        "auditAnnotations": [{"key": "k", "valueExpression": "'v'"}]}});
    s.post(&format!("{root}/validatingadmissionpolicies"), &policy).await.expect(201);
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Audit"]}});
    s.post(&format!("{root}/validatingadmissionpolicybindings"), &binding).await.expect(201);

    s.post(MAPS, &config_map("good")).await.expect(201);
    assert_eq!(s.post(MAPS, &config_map("bad")).await.code, 400);
    let notes = async |name: &str| {
        let event = crate::audit::event(&path, |e| e["objectRef"]["name"] == name).await;
        event["annotations"].clone()
    };
    let read = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
    let at = |what: &str, nth: u8| format!("{what}.webhook.admission.k8s.io/round_0_index_{nth}");
    let good = notes("good").await;
    assert_eq!((&good["add.example.org/why"], &good["p/k"]), (&json!("because"), &json!("v")));
    let mut expected = json!({"configuration": "add", "webhook": "add.example.org", "mutated": true});
    assert_eq!(read(&good[at("mutation", 0)]), expected);
    expected.as_object_mut().unwrap().remove("mutated");
    (expected["patch"], expected["patchType"]) = (add, json!("JSONPatch"));
    assert_eq!(read(&good[at("patch", 0)]), expected);
    assert_eq!(good[at("failed-open.mutating", 1)], "broken.example.org");
    let failure = read(&good["validation.policy.admission.k8s.io/validation_failure"]);
    assert_eq!((&failure[0]["message"], &failure[0]["binding"]), (&json!("never"), &json!("b")));
    let bad = notes("bad").await;
    assert_eq!(read(&bad[at("mutation", 2)])["mutated"], false, "told of one that refuses too");
}

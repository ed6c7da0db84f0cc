//! The audit log: what a policy asks for is in the file, in the shape that upstream's tools read.

use crate::harness::{MAPS, PATIENCE, Server, config_map, server_with};
use apiserver::{AuditConfig, AuditPolicy, Endpoint, LogConfig};
use auth::Identity;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::path::Path;

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: ['system:apiserver']}
- level: RequestResponse
  omitManagedFields: true
  resources: [{group: '', resources: [configmaps]}]
  verbs: [create, update, patch, delete]
- {level: Metadata}
";

pub async fn recorded(path: &Path, webhook: Option<Endpoint>) -> Server {
    let policy = AuditPolicy::read(POLICY.as_bytes()).unwrap();
    let log = LogConfig { path: path.into(), max_size_mib: 100, max_age_days: 0, max_backups: 0 };
    server_with(|c| c.audit = Some(AuditConfig { policy, log: Some(log), webhook })).await
}

/// Waits for an event that fits.
pub async fn event(path: &Path, fits: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let events = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
            if let Some(event) = events.into_iter().find(|e| fits(e)) {
                return event;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("an event")
}

#[tokio::test]
async fn writes_are_recorded_with_their_bodies_and_reads_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let server = recorded(&path, None).await;
    let headers =
        [("content-type", "application/json"), ("x-forwarded-for", "10.1.2.3"), ("user-agent", "t/1")];
    server.call("POST", MAPS, &headers, config_map("a").to_string()).await.expect(201);
    let created = event(&path, |e| e["verb"] == "create" && e["objectRef"]["resource"] == "configmaps").await;
    assert_eq!(
        (created["level"].as_str(), created["stage"].as_str()),
        (Some("RequestResponse"), Some("ResponseComplete"))
    );
    assert_eq!(
        created["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "a",
        "apiVersion": "v1"})
    );
    assert_eq!(created["requestObject"]["data"], json!({"a": "1"}));
    assert!(created["responseObject"]["metadata"]["uid"].is_string());
    assert!(created["responseObject"]["metadata"]["managedFields"].is_null());
    assert_eq!(created["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(created["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(
        (created["sourceIPs"][0].as_str(), created["userAgent"].as_str()),
        (Some("10.1.2.3"), Some("t/1"))
    );
    assert_eq!(created["user"]["username"], "admin");

    server.get(&format!("{MAPS}/a")).await.expect(200);
    let read = event(&path, |e| e["verb"] == "get" && e["objectRef"]["name"] == "a").await;
    assert!(read["requestObject"].is_null() && read["responseObject"].is_null());

    let eve = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    eve.get(MAPS).await.fails(403, "Forbidden");
    let refused = event(&path, |e| e["user"]["username"] == "eve").await;
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");

    server.call("GET", MAPS, &[("impersonate-user", "bob")], "").await.fails(403, "Forbidden");
    let acting = event(&path, |e| e["impersonatedUser"]["username"] == "bob").await;
    assert_eq!(acting["user"]["username"], "admin");

    let nobody = server.with_identity(Identity::default());
    nobody.call("GET", MAPS, &[("authorization", "Bearer x")], "").await.fails(401, "Unauthorized");
    event(&path, |e| e["responseStatus"]["code"] == 401).await;
    let metrics = server.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("apiserver_audit_event_total "));
}

#[tokio::test]
async fn a_watch_is_recorded_when_it_starts_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let server = recorded(&path, None).await;
    let watch = server.watch(&format!("{MAPS}?watch=1")).await;
    let started = event(&path, |e| e["stage"] == "ResponseStarted").await;
    drop(watch);
    let ended = event(&path, |e| e["stage"] == "ResponseComplete" && e["verb"] == "watch").await;
    assert_eq!(started["auditID"], ended["auditID"]);
}

#[tokio::test]
async fn events_go_to_a_webhook_in_lists() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/audit", listener.local_addr().unwrap());
    let (sender, mut lists) = tokio::sync::mpsc::unbounded_channel::<Value>();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let answer = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let sender = sender.clone();
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    sender.send(serde_json::from_slice(&body).unwrap()).unwrap();
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(hyper_util::rt::TokioIo::new(stream), answer));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::of_url(&url, "", None).unwrap();
    let server = recorded(&folder.path().join("audit.log"), Some(endpoint)).await;
    for _ in 0..450 {
        server.get(MAPS).await.expect(200);
    }
    let list =
        tokio::time::timeout(PATIENCE, lists.recv()).await.expect("a full list does not wait").unwrap();
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("EventList"), Some(400))
    );
}

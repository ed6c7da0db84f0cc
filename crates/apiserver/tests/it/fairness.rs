//! Priority and fairness over HTTP: the first objects, where requests are sorted, what a crowd gets.

use crate::harness::{MAPS, PATIENCE, Server, config_map, server};
use auth::Identity;
use bytes::Bytes;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;

const ROOT: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what} in time"))
}

async fn uid(server: &Server, path: &str) -> String {
    until(path, async || {
        let reply = server.get(path).await;
        (reply.code == 200).then(|| reply.json()["metadata"]["uid"].as_str().unwrap().to_string())
    })
    .await
}

/// Waits until this user's requests are sorted into a schema.
async fn sorted(server: &Server, schema: &str) {
    until(schema, async || {
        let reply = server.get(MAPS).await;
        reply.headers.get("x-kubernetes-pf-flowschema-uid").filter(|u| *u == schema).map(|_| ())
    })
    .await;
}

#[tokio::test]
async fn answers_say_how_their_requests_were_sorted() {
    let server = server().await;
    let eve = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    let default = uid(&server, &format!("{ROOT}/flowschemas/global-default")).await;
    let level = uid(&server, &format!("{ROOT}/prioritylevelconfigurations/global-default")).await;
    sorted(&eve, &default).await;
    let reply = eve.get(MAPS).await;
    assert_eq!(
        (reply.code, reply.headers["x-kubernetes-pf-prioritylevel-uid"].to_str().unwrap()),
        (403, &*level)
    );
    sorted(&server, &uid(&server, &format!("{ROOT}/flowschemas/exempt")).await).await;
    // Until its level is seen it dangles, and says so.
    until("a schema that does not dangle", async || {
        let schema = server.get(&format!("{ROOT}/flowschemas/probes")).await.expect(200);
        let condition = &schema["status"]["conditions"][0];
        (condition["type"] == "Dangling" && condition["status"] == "False").then_some(())
    })
    .await;
}

/// A request whose body never comes: it holds a seat until it is given up.
async fn stuck(server: &Server) -> tokio::task::JoinHandle<()> {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(server.api.clone().serve_connection(theirs, Some(server.identity.clone())));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = Request::post(MAPS).header("host", "api").header("content-type", "application/json");
    let request = request.body(body).unwrap();
    tokio::spawn(async move {
        let _ = sender.send_request(request).await;
    })
}

async fn crowd(server: &Server) -> Server {
    let limited = json!({"nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Reject"}});
    let level = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "small"}, "spec": {"type": "Limited", "limited": limited}});
    server.post(&format!("{ROOT}/prioritylevelconfigurations"), &level).await.expect(201);
    let all = json!(["*"]);
    let schema = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": "crowd"},
        "spec": {"matchingPrecedence": 3, "priorityLevelConfiguration": {"name": "small"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "crowd"}}],
                "resourceRules": [{"verbs": all, "apiGroups": all, "resources": all, "clusterScope": true,
                    "namespaces": all}]}]}});
    let made: Value = server.post(&format!("{ROOT}/flowschemas"), &schema).await.expect(201);
    let member = server.with_identity(Identity::new("crowd", ["system:authenticated"]));
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "crowd"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "crowd"}]});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.expect(201);
    sorted(&member, made["metadata"]["uid"].as_str().unwrap()).await;
    member
}

#[tokio::test]
async fn a_crowd_is_told_to_come_again_and_others_do_not_notice() {
    let server = server().await;
    let crowd = crowd(&server).await;
    // 600 seats, one share of 246: three seats.
    let stuck: Vec<_> = [stuck(&crowd).await, stuck(&crowd).await, stuck(&crowd).await].into();
    let refused = until("a refusal", async || Some(crowd.get(MAPS).await).filter(|r| r.code == 429)).await;
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    refused.fails(429, "TooManyRequests");
    server.get(MAPS).await.expect(200);
    let eve = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    eve.get(MAPS).await.fails(403, "Forbidden");
    let metrics = String::from_utf8_lossy(&server.get("/metrics").await.body).into_owned();
    assert!(metrics.contains("apiserver_flowcontrol_rejected_requests_total{flow_schema="));
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    until("a free seat", async || Some(crowd.get(MAPS).await).filter(|r| r.code == 200)).await;
}

/// Attack 16: many clients that never finish their requests, and an ordinary one beside them.
#[tokio::test]
async fn slow_clients_by_the_hundred_do_not_keep_others_waiting() {
    let server = server().await;
    let eve = server.with_identity(Identity::new("eve", ["system:authenticated"]));
    let slow: Vec<_> = futures_util::future::join_all((0..300).map(|_| stuck(&eve))).await;
    let started = std::time::Instant::now();
    server.post(MAPS, &config_map("a")).await.expect(201);
    let node = server.with_identity(Identity::new("system:node:n", ["system:nodes", "system:authenticated"]));
    assert_eq!(node.get("/api/v1/nodes/n").await.code, 404);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}

//! metrics.k8s.io from the nodes' own figures, and the health of components: computed, never stored.

use crate::harness::*;
use apiserver::{Duplex, NodeDialer};
use async_trait::async_trait;
use auth::Identity;
use bytes::Bytes;
use client::{ListOptions, ObjectKey};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_schema::gvr;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A node whose container uses half a CPU, by its own clock: a second more at each look.
#[derive(Default)]
struct Node {
    looks: Arc<AtomicU64>,
}

#[async_trait]
impl NodeDialer for Node {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn Duplex>> {
        assert_eq!(node, "ready", "a node that is not ready is not asked");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/metrics/resource");
                let (at, seconds) = (1_000_000 + look * 1000, 0.5 * look as f64);
                let of = "{container=\"c\",namespace=\"default\",pod=\"p\"}";
                let text = format!(
                    "container_cpu_usage_seconds_total{of} {seconds} {at}\n\
                     container_memory_working_set_bytes{of} 2048 {at}\n\
                     container_start_time_seconds{of} 1\nnode_cpu_usage_seconds_total {look} {at}\n\
                     node_memory_working_set_bytes 1048576 {at}\n"
                );
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(theirs), answer)
                .await;
        });
        Ok(Box::new(ours))
    }
}

async fn cluster(looks: &Arc<AtomicU64>) -> Server {
    let nodes = Arc::new(Node { looks: looks.clone() });
    let s = server_with(|c| c.nodes = Some(nodes)).await;
    for (name, ready) in [("ready", "True"), ("gone", "Unknown")] {
        let body = json!({"metadata": {"name": name, "labels": {"n": name}}});
        s.post("/api/v1/nodes", &body).await.expect(201);
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        s.patch(&format!("/api/v1/nodes/{name}/status"), "merge-patch", &status).await.expect(200);
    }
    for name in ["p", "q"] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"app": name});
        s.post(PODS, &pod).await.expect(201);
    }
    s
}

#[tokio::test]
async fn usage_is_what_nodes_say() {
    let looks = Arc::default();
    let s = cluster(&looks).await;
    let root = "/apis/metrics.k8s.io/v1beta1";
    let listed = s.get(&format!("{root}/pods")).await.expect(200);
    assert_eq!((&listed["kind"], listed["items"].as_array().unwrap().len()), (&json!("PodMetricsList"), 1));
    let one = &listed["items"][0];
    assert_eq!(one["containers"], json!([{"name": "c", "usage": {"cpu": "500m", "memory": "2Ki"}}]));
    assert_eq!((&one["window"], &one["timestamp"]), (&json!("1s"), &json!("1970-01-01T00:16:41Z")));
    assert_eq!(one["metadata"]["labels"], json!({"app": "p"}));
    let nodes = s.get(&format!("{root}/nodes?labelSelector=n%3Dready")).await.expect(200);
    assert_eq!(nodes["items"][0]["usage"], json!({"cpu": "1", "memory": "1Mi"}));
    // What was seen a moment ago is good enough; nobody was asked again.
    for (query, found) in
        [("labelSelector=app%3Dp", 1), ("labelSelector=app%3Dq", 0), ("fieldSelector=metadata.name%3Dp", 1)]
    {
        let path = format!("{root}/namespaces/default/pods?{query}");
        assert_eq!(s.get(&path).await.expect(200)["items"].as_array().unwrap().len(), found, "{query}");
    }
    let pods = format!("{root}/namespaces/default/pods");
    assert_eq!(s.get(&format!("{pods}/p")).await.expect(200)["kind"], "PodMetrics");
    let message = s.get(&format!("{pods}/q")).await.fails(404, "NotFound");
    assert_eq!(message, "podmetrics.metrics.k8s.io \"default/q\" not found");
    let message = s.get(&format!("{pods}/none")).await.fails(404, "NotFound");
    assert_eq!(message, "pods \"default/none\" not found");
    s.get(&format!("{pods}?watch=true")).await.fails(405, "MethodNotAllowed");
    let client = s.api.client(Identity::new("system:kube-controller-manager", [auth::SYSTEM_MASTERS]));
    let options = ListOptions {
        namespace: Some("default".into()),
        label_selector: "app=p".into(),
        ..ListOptions::default()
    };
    let items = client.list(&gvr::POD_METRICS, &options).await.unwrap().items;
    assert_eq!(&*items[0].key.name, "p");
    assert_eq!(
        client.get(&gvr::NODE_METRICS, &ObjectKey::cluster("ready")).await.unwrap().value().unwrap()["window"],
        "1s"
    );
    assert_eq!(looks.load(Ordering::Relaxed), 2);
    let viewer = s.with_identity(Identity::new("bob", ["system:authenticated"]));
    viewer.get(&pods).await.fails(403, "Forbidden");
}

#[tokio::test]
async fn components_are_healthy() {
    let s = server().await;
    let all = s.get("/api/v1/componentstatuses").await.expect(200);
    let names: Vec<&str> =
        all["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["scheduler", "controller-manager", "etcd-0"]);
    let one = s.get("/api/v1/componentstatuses/etcd-0").await.expect(200);
    assert_eq!(one["conditions"], json!([{"type": "Healthy", "status": "True", "message": "ok"}]));
    s.get("/api/v1/componentstatuses/kubelet").await.fails(404, "NotFound");
}

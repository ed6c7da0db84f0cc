//! custom.metrics.k8s.io and external.metrics.k8s.io from what pods tell Prometheus.

use crate::harness::*;
use auth::Identity;
use bytes::Bytes;
use client::ListOptions;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_schema::Gvr;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";

/// A pod's own server: its port, and how often it was asked.
async fn exporter() -> (u16, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, looks) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
    let counted = looks.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let look = counted.fetch_add(1, Ordering::Relaxed);
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/m");
                let text = format!(
                    "# TYPE requests_total counter\nrequests_total{{code=\"200\"}} {}\n\
                     depth{{queue=\"a\"}} 1.5\ndepth{{queue=\"b\",ingress=\"i\"}} 2\n",
                    look * 1_000_000
                );
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    (port, looks)
}

async fn add_pod(s: &Server, name: &str, port: u16, scrape: &str) {
    let mut body = pod(name);
    body["metadata"]["labels"] = json!({"app": name});
    body["metadata"]["annotations"] = json!({"prometheus.io/scrape": scrape, "prometheus.io/port": port.to_string(),
        "prometheus.io/path": "/m"});
    s.post(PODS, &body).await.expect(201);
    let status =
        json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    s.patch(&format!("{PODS}/{name}/status"), "merge-patch", &status).await.expect(200);
}

fn values(list: &Value) -> Vec<(&str, &str)> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|i| (i["describedObject"]["name"].as_str().unwrap_or_default(), i["value"].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn pods_tell_their_figures() {
    let (s, (port, looks)) = (server().await, exporter().await);
    add_pod(&s, "p", port, "true").await;
    add_pod(&s, "q", port, "false").await;
    s.get("/apis/custom.metrics.k8s.io").await.expect(200);
    assert_eq!(looks.load(Ordering::Relaxed), 0, "nobody asked");
    let pods = format!("{CUSTOM}/namespaces/default/pods");
    let depth = s.get(&format!("{pods}/*/depth")).await.expect(200);
    assert_eq!((&depth["kind"], values(&depth)), (&json!("MetricValueList"), vec![("p", "3500m")]));
    let item = &depth["items"][0];
    assert_eq!(item["metric"], json!({"name": "depth", "selector": null}));
    assert_eq!(
        item["describedObject"],
        json!({"kind": "Pod", "namespace": "default", "name": "p", "apiVersion": "v1"})
    );
    let one = s.get(&format!("{pods}/p/depth?metricLabelSelector=queue%3Db")).await.expect(200);
    assert_eq!(values(&one), [("p", "2")]);
    assert_eq!(looks.load(Ordering::Relaxed), 1, "a look of a moment ago is good enough");
    // A counter needs two looks; a million requests a second or fewer were counted.
    let rate = s.get(&format!("{pods}/*/requests?labelSelector=app%3Dp")).await.expect(200);
    let per_second: f64 = rate["items"][0]["value"].as_str().unwrap().trim_end_matches('m').parse().unwrap();
    assert!(per_second > 1000.0 && rate["items"][0]["windowSeconds"] == 1, "{rate}");
    assert_eq!(looks.load(Ordering::Relaxed), 3);
    let old = s
        .get(&format!("{}/namespaces/default/pods/p/depth", CUSTOM.replace("beta2", "beta1")))
        .await
        .expect(200);
    assert_eq!((&old["items"][0]["metricName"], values(&old)), (&json!("depth"), vec![("p", "3500m")]));
    let other = s.get(&format!("{CUSTOM}/namespaces/default/metrics/depth")).await.expect(200);
    assert_eq!(values(&other), [("default", "3500m")]);
    for (path, words) in [
        ("pods/*/none", "the server could not find the metric none for pods"),
        ("pods/q/depth", "the server could not find the metric depth for pods q"),
        (
            "pods/p/depth?metricLabelSelector=queue%3Dc",
            "the server could not find the metric depth for pods p with selector queue=c",
        ),
        (
            "ingresses.networking.k8s.io/i/depth",
            "the server could not find the metric depth for ingresses.networking.k8s.io i",
        ),
    ] {
        let message = s.get(&format!("{CUSTOM}/namespaces/default/{path}")).await.fails(404, "NotFound");
        assert_eq!(message, words);
    }
    s.delete(&format!("{pods}/p/depth")).await.fails(405, "MethodNotAllowed");
    let viewer = s.with_identity(Identity::new("bob", ["system:authenticated"]));
    viewer.get(&format!("{pods}/*/depth")).await.fails(403, "Forbidden");
}

#[tokio::test]
async fn components_list_them_and_discovery_knows_them() {
    let (s, (port, _)) = (server().await, exporter().await);
    let names = |list: &Value| list.to_string().contains("external.metrics.k8s.io");
    add_pod(&s, "p", port, "true").await;
    assert!(!names(&s.get("/apis").await.expect(200)), "a group without resources breaks clients");
    let client = s.api.client(Identity::new("system:kube-controller-manager", [auth::SYSTEM_MASTERS]));
    let list = async |group: &str, resource: &str, labels: &str| {
        let version = if group.starts_with('c') { "v1beta2" } else { "v1beta1" };
        let gvr = Gvr {
            group: group.to_string().into(),
            version: version.into(),
            resource: resource.to_string().into(),
        };
        let options = ListOptions {
            namespace: Some("default".into()),
            label_selector: labels.into(),
            ..ListOptions::default()
        };
        let items = client.list(&gvr, &options).await.map_err(|e| e.message)?.items;
        Ok::<_, String>(
            items
                .iter()
                .map(|i| i.value().unwrap()["value"].as_str().unwrap().to_string())
                .collect::<Vec<_>>(),
        )
    };
    let custom = "custom.metrics.k8s.io";
    assert_eq!(list(custom, "pods/*/depth", "app=p").await.unwrap(), ["3500m"]);
    assert_eq!(list(custom, "pods/*/depth?metricLabelSelector=queue%3Da", "app=p").await.unwrap(), ["1500m"]);
    assert_eq!(list("external.metrics.k8s.io", "depth", "queue in (a)").await.unwrap(), ["1500m"]);
    assert!(
        list("external.metrics.k8s.io", "none", "")
            .await
            .unwrap_err()
            .contains("could not find the metric none")
    );
    assert!(names(&s.get("/apis").await.expect(200)));
    let listed = s.get(EXTERNAL).await.expect(200);
    let found: Vec<&str> =
        listed["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(found, ["depth", "requests"]);
    let listed = s.get(CUSTOM).await.expect(200);
    assert_eq!(listed["resources"][3]["name"], "pods/requests");
    // Another server is named for the group: it answers.
    let body = json!({"metadata": {"name": "v1beta1.custom.metrics.k8s.io"}, "spec": {"group": custom, "version": "v1beta1",
        "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
        "service": {"namespace": "default", "name": "adapter"}}});
    s.post("/apis/apiregistration.k8s.io/v1/apiservices", &body).await.expect(201);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while s.get(CUSTOM).await.code != 404 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(list(custom, "pods/*/depth", "").await.unwrap_err().contains("unable to handle"));
}

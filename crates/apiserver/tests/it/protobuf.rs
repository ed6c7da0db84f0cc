//! Protobuf bodies and answers: what comes in so is the same as what comes in JSON.

use crate::harness::*;
use http_body_util::{BodyExt, Full};
use machinery::protobuf::{object, sealed};
use serde_json::{Value, json};

#[path = "../../../gantry/tests/it/samples.rs"]
mod samples;

const TYPE: &str = "application/vnd.kubernetes.protobuf";
const SENT: (&str, &str) = ("content-type", TYPE);
const ONLY: (&str, &str) = ("accept", TYPE);
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// What differs from one creation to the next.
fn without_chance(mut object: Value) -> Value {
    for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        object["metadata"].as_object_mut().unwrap().remove(field);
    }
    object
}

/// The same, where the object's uid stands in its fields too.
fn comparable(reply: &Reply) -> Value {
    let uid = reply.json()["metadata"]["uid"].as_str().unwrap_or("no uid").to_string();
    let text = String::from_utf8_lossy(&reply.body).replace(&uid, "UID");
    without_chance(serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn every_kind_is_made_alike_from_json_and_protobuf() {
    let s = server().await;
    let mut compared = 0;
    for (_, manifest) in samples::SAMPLES {
        let body = samples::manifest(manifest);
        let (api_version, kind) = (body["apiVersion"].as_str().unwrap(), body["kind"].as_str().unwrap());
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let row = k8s_schema::resource_for_kind(group, version, kind).unwrap();
        let root = if group.is_empty() { "/api" } else { "/apis" };
        let namespace = if row.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{root}/{api_version}{namespace}/{}?dryRun=All", row.gvr.resource);
        let json = s.post(&path, &body).await;
        let bytes = sealed(&body).unwrap();
        // Empty lists do not exist in protobuf.
        let protobuf = s.call("POST", &path, &[SENT], bytes).await;
        assert_eq!(protobuf.code, json.code, "{path}: {:?} {:?}", protobuf.body, json.body);
        if json.code == 201 {
            let (json, protobuf) = (comparable(&json), comparable(&protobuf));
            if !manifest.contains("[]") && !row.gvr.resource.starts_with("services") {
                assert_eq!(protobuf, json, "{path}");
                compared += 1;
            }
        }
    }
    assert!(compared > 30, "{compared} kinds were compared");
}

#[tokio::test]
async fn a_go_client_creates_updates_scales_evicts_and_deletes() {
    let s = server().await;
    let labels = json!({"app": "web"});
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "paused": false, "strategy": {},
            "template": {"metadata": {"labels": labels},
                "spec": {"nodeName": "", "containers": [{"name": "c", "image": "i", "resources": {}}]}}},
        "status": {}});
    let send = |method: &'static str, path: String, body: Value| {
        let s = &s;
        async move { s.call(method, &path, &[SENT, ONLY], sealed(&body).unwrap()).await }
    };
    let made = send("POST", DEPLOYMENTS.into(), web).await;
    assert_eq!((made.code, &made.headers["content-type"]), (201, &TYPE.parse().unwrap()));
    let mut made = object(&made.body).unwrap();
    assert_eq!(made["spec"]["replicas"], 0);
    assert_eq!(made["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    made["spec"]["replicas"] = 2.into();
    let one = format!("{DEPLOYMENTS}/web");
    let updated = object(&send("PUT", one.clone(), made.clone()).await.body).unwrap();
    assert_eq!((&updated["metadata"]["generation"], &updated["spec"]["replicas"]), (&json!(2), &json!(2)));
    send("PUT", one.clone(), made).await.fails(409, "Conflict");
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": "web", "namespace": "default"}, "spec": {"replicas": 0}});
    let scaled = object(&send("PUT", format!("{one}/scale"), scale).await.body).unwrap();
    assert_eq!((&scaled["kind"], &scaled["spec"]), (&json!("Scale"), &json!({})));
    assert_eq!(s.get(&one).await.expect(200)["spec"]["replicas"], 0);

    s.post(PODS, &pod("a")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n"}});
    assert_eq!(send("POST", format!("{PODS}/a/binding"), binding).await.code, 201);
    assert_eq!(s.get(&format!("{PODS}/a")).await.expect(200)["spec"]["nodeName"], "n");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"},
        "deleteOptions": {"gracePeriodSeconds": 5}});
    assert_eq!(send("POST", format!("{PODS}/a/eviction"), eviction).await.code, 201);
    assert_eq!(s.get(&format!("{PODS}/a")).await.expect(200)["metadata"]["deletionGracePeriodSeconds"], 5);
    let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    assert_eq!(send("DELETE", format!("{PODS}/a"), now).await.code, 200);
    s.get(&format!("{PODS}/a")).await.fails(404, "NotFound");
    let options = json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "preconditions": {"uid": "no"}});
    send("DELETE", one, options).await.fails(409, "Conflict");
}

#[tokio::test]
async fn reviews_and_tokens() {
    let s = server().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "metadata": {}, "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let reply = s.call("POST", path, &[SENT, ONLY], sealed(&review).unwrap()).await;
    assert_eq!(object(&reply.body).unwrap()["status"]["allowed"], true);
}

#[tokio::test]
async fn watches_are_framed() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let request = http::Request::builder().uri(format!("{MAPS}?watch=1")).header("host", "api");
    let response = s.send(request.header(ONLY.0, ONLY.1).body(Full::default()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut body = response.into_body();
    for (name, event) in [("a", "ADDED"), ("b", "ADDED")] {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        let bytes = frame.into_data().unwrap();
        let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 4 + length);
        // Wrapped as an object to be read by the same decoder.
        let place = bytes.windows(4).position(|w| w == b"k8s\0").unwrap();
        assert!(bytes[..place].windows(event.len()).any(|w| w == event.as_bytes()));
        assert_eq!(object(&bytes[place..]).unwrap()["metadata"]["name"], name);
        if name == "a" {
            s.post(MAPS, &config_map("b")).await.expect(201);
        }
    }
}

#[tokio::test]
async fn bad_bodies_are_refused() {
    let s = server().await;
    let post = |bytes: &'static [u8]| s.call("POST", MAPS, &[SENT], bytes);
    assert!(post(b"{}").await.fails(400, "BadRequest").contains("expected prefix"));
    post(b"").await.fails(400, "BadRequest");
    post(b"k8s\0\x0a").await.fails(400, "BadRequest");
    let pod = sealed(&pod("a")).unwrap();
    s.call("POST", MAPS, &[SENT], pod).await.fails(400, "BadRequest");
    let patch = s.call("PATCH", &format!("{MAPS}/a"), &[SENT], "k8s\0").await;
    patch.fails(415, "UnsupportedMediaType");
}

/// Answers without the times and names that differ are the same document in both forms.
#[tokio::test]
async fn metadata_only() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap();
    let then = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={revision}");
    let accept = |media: &str| format!("{media};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    for path in [format!("{MAPS}/a"), then] {
        let json = s.call("GET", &path, &[("accept", &accept("application/json"))], "").await.expect(200);
        let reply = s.call("GET", &path, &[("accept", &accept(TYPE))], "").await;
        assert_eq!((reply.code, &reply.headers["content-type"]), (200, &TYPE.parse().unwrap()));
        assert_eq!(reply.body, sealed(&json).unwrap(), "{json}");
    }
    let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "7"},
        "items": [{"metadata": {"name": "a"}}]});
    let sealed = sealed(&list).unwrap();
    let end = [b"\x0a\x03\x12\x017\x12\x05\x0a\x03\x0a\x01a".as_slice(), b"\x1a\x00\x22\x00"].concat();
    assert!(sealed.ends_with(&end), "{sealed:?}");
    s.call("GET", MAPS, &[("accept", &format!("{TYPE};as=Table;g=meta.k8s.io;v=v1"))], "")
        .await
        .fails(406, "NotAcceptable");
}

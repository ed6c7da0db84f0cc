//! Forms of answers: Table, metadata only, gzip, pretty; and the paths beside resources.

use crate::harness::*;
use serde_json::{Value, json};
use std::io::Read;

const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");

#[tokio::test]
async fn tables_and_metadata() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let reply = s.call("GET", MAPS, &[TABLE], "").await;
    assert_eq!(reply.headers["content-type"], "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = reply.expect(200);
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["metadata"]["resourceVersion"].is_string());
    let one = s.call("GET", &format!("{MAPS}/a?includeObject=Object"), &[TABLE], "").await.expect(200);
    assert_eq!(one["rows"][0]["object"]["data"]["a"], "1");
    let some =
        s.call("GET", &format!("{MAPS}?includeObject=Some"), &[TABLE], "").await.fails(400, "BadRequest");
    assert!(some.starts_with("Unable to convert to Table as requested: includeObject: Invalid"), "{some}");
    let partial = ("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let list = s.call("GET", MAPS, &[partial], "").await.expect(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert!(list["items"][0]["data"].is_null());
    let protobuf = ("accept", "application/vnd.kubernetes.protobuf");
    let list = s.call("GET", MAPS, &[protobuf], "").await;
    assert_eq!(list.headers["content-type"], "application/vnd.kubernetes.protobuf");
    let list = machinery::protobuf::object(&list.body).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["data"]["a"]), (&json!("ConfigMapList"), &json!("1")));
    let both = ("accept", "application/vnd.kubernetes.protobuf,application/json");
    let list = s.call("GET", MAPS, &[both], "").await.expect(200);
    assert!(list["items"][0]["kind"].is_null() && list["items"][0]["data"]["a"] == "1", "{list}");
    let instead = format!(
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,{}",
        partial.1
    );
    let list = s.call("GET", MAPS, &[("accept", &instead)], "").await.expect(200);
    assert!(list["items"][0]["kind"].is_null() && list["items"][0]["metadata"]["name"] == "a", "{list}");
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}).to_string();
    let strict = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    s.call("POST", path, &[strict, ("content-type", "application/json")], review)
        .await
        .fails(406, "NotAcceptable");
}

#[tokio::test]
async fn big_answers_are_compressed_where_wished() {
    let s = server().await;
    for i in 0..20 {
        let body = json!({"metadata": {"name": format!("m{i}")}, "data": {"a": "word ".repeat(4_000)}});
        s.post(MAPS, &body).await.expect(201);
    }
    let plain = s.get(MAPS).await;
    assert!(plain.headers.get("content-encoding").is_none());
    let packed = s.call("GET", MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.body.len() * 10 < plain.body.len());
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&*packed.body).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
    let small = s.call("GET", &format!("{MAPS}/m1"), &[("accept-encoding", "gzip")], "").await;
    assert!(small.headers.get("content-encoding").is_none());
    let pretty = s.get(&format!("{MAPS}/m1?pretty=true")).await;
    assert!(pretty.body.starts_with(b"{\n  \"apiVersion\""));
}

#[tokio::test]
async fn paths_beside_resources() {
    let s = server().await;
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/readyz/ping",
        "/livez/etcd",
        "/healthz/poststarthook/crd-informer-synced",
    ] {
        let reply = s.get(path).await;
        assert_eq!((reply.code, &*reply.body), (200, &b"ok"[..]), "{path}");
    }
    let verbose = s.get("/readyz?verbose").await;
    assert!(String::from_utf8_lossy(&verbose.body).ends_with("readyz check passed\n"));
    for (timeout, code) in [("30", 400), ("invalid", 400), ("3m", 200), ("0s", 200)] {
        assert_eq!(s.get(&format!("/version?timeout={timeout}")).await.code, code, "{timeout}");
    }
    let message = s.get(&format!("{MAPS}?timeout=invalid")).await.fails(400, "BadRequest");
    assert_eq!(message, "invalid timeout specified in the request URL - time: invalid duration \"invalid\"");
    s.get("/livez/none").await.fails(404, "NotFound");
    let version = s.get("/version").await.expect(200);
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.36.0"));
    let paths = s.get("/").await.expect(200);
    assert!(paths["paths"].as_array().unwrap().contains(&json!("/apis/apps/v1")));
    s.get(MAPS).await.expect(200);
    let metrics = s.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(text.contains("apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\""), "{text}");
    assert!(text.contains("apiserver_storage_objects{resource=\"namespaces\"} 4"), "{text}");
    let head = s.call("HEAD", "/healthz", &[], "").await;
    assert_eq!((head.code, head.body.len()), (200, 0));
}

#[tokio::test]
async fn discovery_and_openapi() {
    let s = server().await;
    assert_eq!(s.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let core = s.get("/api/v1").await.expect(200);
    let named =
        |list: &Value, name: &str| list["resources"].as_array().unwrap().iter().any(|r| r["name"] == name);
    assert!(named(&core, "pods") && named(&core, "pods/log"));
    assert!(named(&s.get("/apis/apps/v1").await.expect(200), "deployments/scale"));
    let groups = s.get("/apis").await.expect(200);
    assert_eq!(groups["kind"], "APIGroupList");
    assert_eq!(s.get("/apis/apps").await.expect(200)["preferredVersion"]["version"], "v1");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let reply = s.call("GET", "/apis", &[("accept", aggregated)], "").await;
    assert_eq!(reply.headers["content-type"], aggregated);
    assert_eq!(reply.expect(200)["kind"], "APIGroupDiscoveryList");
    let document = s.get("/openapi/v3").await;
    assert_eq!(document.code, 200);
    let etag = document.headers["etag"].to_str().unwrap().to_string();
    let again = s.call("GET", "/openapi/v3", &[("if-none-match", &etag)], "").await;
    assert_eq!((again.code, again.body.len()), (304, 0));
    let proto = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let document = s.call("GET", "/openapi/v2", &[("accept", proto)], "").await;
    assert_eq!(document.code, 200);
    s.get("/openapi/v9").await.fails(404, "NotFound");
}

#[tokio::test]
async fn yaml_where_it_is_liked_best() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let yaml = ("accept", "application/yaml");
    for (path, kind) in
        [(format!("{MAPS}/a"), "ConfigMap"), (MAPS.into(), "ConfigMapList"), ("/apis".into(), "APIGroupList")]
    {
        let reply = s.call("GET", &path, &[yaml, ("accept-encoding", "gzip")], "").await;
        assert_eq!(
            (reply.code, &reply.headers["content-type"]),
            (200, &"application/yaml".parse().unwrap()),
            "{path}"
        );
        assert_eq!(machinery::body::yaml(&reply.body).unwrap().value["kind"], kind);
    }
    let text = s.call("GET", &format!("{MAPS}/a"), &[yaml], "").await.body;
    assert!(text.starts_with(b"apiVersion: v1\n"), "{text:?}");
    let missing = s.call("GET", &format!("{MAPS}/none"), &[yaml], "").await;
    assert!(missing.code == 404 && missing.body.starts_with(b"apiVersion: v1\n"));
    let table = ("accept", "application/yaml;as=Table;v=v1;g=meta.k8s.io");
    let table = s.call("GET", MAPS, &[table], "").await;
    assert_eq!(machinery::body::yaml(&table.body).unwrap().value["rows"][0]["cells"][0], "a");
    s.call("GET", &format!("{MAPS}?watch=1"), &[yaml], "").await.fails(406, "NotAcceptable");
    s.call("GET", MAPS, &[("accept", "application/json, application/yaml")], "").await.expect(200);
}

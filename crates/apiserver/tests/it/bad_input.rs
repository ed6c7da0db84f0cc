//! Bad input gets the Status that Kubernetes gives.

use crate::harness::*;
use serde_json::json;

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn bodies() {
    let s = server().await;
    let send = |body: String| s.call("POST", MAPS, &[JSON], body);
    let message = send("{\"metadata\": ".into()).await.fails(400, "BadRequest");
    assert!(message.contains("unexpected end of JSON input"), "{message}");
    send("[]".into()).await.fails(400, "BadRequest");
    send("\"x\"".into()).await.fails(400, "BadRequest");
    send(String::new()).await.fails(400, "BadRequest");
    let deep = format!("{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    send(deep).await.fails(400, "BadRequest");
    let big = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(4 << 20)}}).to_string();
    let message = send(big).await.fails(413, "RequestEntityTooLarge");
    assert_eq!(message, "Request entity too large: limit is 3145728");
    let wrong = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": 1}});
    let message = s.post(MAPS, &wrong).await.fails(400, "BadRequest");
    assert!(message.contains("cannot unmarshal number"), "{message}");
    let reply = s.call("POST", MAPS, &[("content-type", "application/cbor")], "x").await;
    let message = reply.fails(415, "UnsupportedMediaType");
    assert!(
        message
            .starts_with("the body of the request was in an unknown format - accepted media types include:")
    );
    let kind = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
    s.post(MAPS, &kind).await.fails(400, "BadRequest");
    let version = json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let message = s.post(MAPS, &version).await.fails(400, "BadRequest");
    assert_eq!(message, "the API version in the data (v2) does not match the expected API version (v1)");
    let elsewhere = json!({"metadata": {"name": "a", "namespace": "kube-system"}});
    let message = s.post(MAPS, &elsewhere).await.fails(400, "BadRequest");
    assert_eq!(
        message,
        "the namespace of the provided object does not match the namespace sent on the request"
    );
}

#[tokio::test]
async fn yaml_bodies_and_bombs() {
    let s = server().await;
    let yaml = ("content-type", "application/yaml");
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: why\ndata:\n  a: 'b'\n";
    s.call("POST", MAPS, &[yaml], body).await.expect(201);
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 9].join(",");
        bomb += &format!("a{i}: &a{i} [{refs}]\n");
    }
    s.call("POST", MAPS, &[yaml], bomb).await.fails(400, "BadRequest");
}

#[tokio::test]
async fn unknown_and_duplicate_fields() {
    let s = server().await;
    let body = r#"{"metadata": {"name": "a"}, "data": {"a": "1"}, "data": {"a": "2"}, "dota": {}}"#;
    let reply = s.call("POST", &format!("{MAPS}?fieldValidation=Strict"), &[JSON], body).await;
    let message = reply.fails(400, "BadRequest");
    assert!(
        message.contains("strict decoding error: duplicate field \"data\", unknown field \"dota\""),
        "{message}"
    );
    let reply = s.call("POST", MAPS, &[JSON], body).await;
    let warnings: Vec<_> =
        reply.headers.get_all("warning").iter().map(|v| v.to_str().unwrap().to_string()).collect();
    assert_eq!(warnings, ["299 - \"duplicate field \\\"data\\\"\"", "299 - \"unknown field \\\"dota\\\"\""]);
    assert!(reply.expect(201)["dota"].is_null());
    let reply = s.call("PUT", &format!("{MAPS}/a?fieldValidation=Ignore"), &[JSON], body).await;
    assert!(reply.headers.get("warning").is_none());
    s.post(&format!("{MAPS}?fieldValidation=No"), &config_map("b")).await.fails(422, "Invalid");
}

#[tokio::test]
async fn selectors_and_list_options() {
    let s = server().await;
    s.get(&format!("{MAPS}?labelSelector=a%20in%20(")).await.fails(400, "BadRequest");
    s.get(&format!("{MAPS}?labelSelector=%3D%3D")).await.fails(400, "BadRequest");
    s.get(&format!("{MAPS}?fieldSelector=metadata.name")).await.fails(400, "BadRequest");
    let message = s.get(&format!("{PODS}?fieldSelector=spec.nope%3D1")).await.fails(400, "BadRequest");
    assert!(message.contains("spec.nope"), "{message}");
    s.get(&format!("{MAPS}?limit=x")).await.fails(400, "BadRequest");
    s.get(&format!("{MAPS}?continue=junk")).await.fails(400, "BadRequest");
    let message = s.get(&format!("{MAPS}?resourceVersion=abc")).await.fails(422, "Invalid");
    assert!(message.contains("resourceVersion: Invalid value: \"abc\""), "{message}");
    let (own, without) = ("resourceVersionMatch is forbidden", "sendInitialEvents requires setting");
    for (query, wants) in [
        ("resourceVersionMatch=Exact", vec![format!("{own} unless resourceVersion is provided")]),
        ("resourceVersionMatch=Exact&resourceVersion=0", vec!["is forbidden for resourceVersion".into()]),
        ("resourceVersionMatch=Odd&resourceVersion=1", vec!["\"Exact\", \"NotOlderThan\", \"\"".into()]),
        (
            "resourceVersionMatch=Exact&continue=x&sendInitialEvents=true",
            vec![
                format!("{own} unless resourceVersion"),
                format!("{own} when continue is provided"),
                "sendInitialEvents is forbidden for list".into(),
            ],
        ),
        (
            "watch=1&resourceVersionMatch=Exact",
            vec![
                format!("{own} for watch unless sendInitialEvents is provided"),
                "supported values: \"NotOlderThan\"".into(),
            ],
        ),
        (
            "watch=1&sendInitialEvents=false&resourceVersionMatch=Exact",
            vec![without.into(), "supported values: \"NotOlderThan\"".into()],
        ),
        ("watch=1&sendInitialEvents=1", vec![without.into()]),
    ] {
        let message = s.get(&format!("{MAPS}?{query}")).await.fails(422, "Invalid");
        assert!(wants.iter().all(|w| message.contains(w)), "{query}: {message}");
    }
    s.get(&format!("{MAPS}?timeoutSeconds=x")).await.fails(400, "BadRequest");
    s.get(&format!("{MAPS}?watch=1&timeoutSeconds=x")).await.fails(400, "BadRequest");
}

#[tokio::test]
async fn paths_methods_and_patches() {
    let s = server().await;
    s.get("/api/v1/nothings").await.fails(404, "NotFound");
    s.get("/apis/none.io/v1/x").await.fails(404, "NotFound");
    s.get("/nowhere").await.fails(404, "NotFound");
    s.get(&format!("{PODS}/p/nothing")).await.fails(404, "NotFound");
    s.get("/api/v1/namespaces/default/nodes").await.fails(404, "NotFound");
    s.post("/api/v1/pods", &pod("p")).await.fails(405, "MethodNotAllowed");
    s.post(&format!("{PODS}/p"), &pod("p")).await.fails(405, "MethodNotAllowed");
    s.put(PODS, &pod("p")).await.fails(405, "MethodNotAllowed");
    s.call("OPTIONS", MAPS, &[], "").await.fails(405, "MethodNotAllowed");
    s.call("PUT", "/version", &[], "").await.fails(405, "MethodNotAllowed");
    s.post(MAPS, &config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    s.call("PATCH", &path, &[JSON], "{}").await.fails(415, "UnsupportedMediaType");
    s.patch(&path, "merge-patch", &json!([])).await.fails(400, "BadRequest");
    s.patch(&path, "json-patch", &json!({})).await.fails(400, "BadRequest");
    s.patch(&path, "merge-patch", &json!({"metadata": {"name": "b"}})).await.fails(400, "BadRequest");
    s.patch(&path, "merge-patch", &json!({"metadata": null})).await.fails(400, "BadRequest");
    let message = s.put(&format!("{MAPS}/b"), &config_map("a")).await.fails(400, "BadRequest");
    assert_eq!(message, "the name of the object (a) does not match the name on the URL (b)");
    s.delete(&format!("{MAPS}/a?propagationPolicy=Sideways")).await.fails(422, "Invalid");
    s.delete(&format!("{MAPS}/a?gracePeriodSeconds=x")).await.fails(400, "BadRequest");
    let message = s.post(MAPS, &json!({"metadata": {"name": "A B"}})).await.fails(422, "Invalid");
    assert!(
        message.starts_with("ConfigMap \"A B\" is invalid: metadata.name: Invalid value: \"A B\":"),
        "{message}"
    );
    s.post(MAPS, &json!({"metadata": {}})).await.fails(422, "Invalid");
    let message =
        s.post(MAPS, &json!({"metadata": {"name": "a", "resourceVersion": "5"}})).await.fails(500, "");
    assert_eq!(message, "resourceVersion should not be set on objects to be created");
}

#[tokio::test]
async fn metadata_may_not_be_nonsense_on_updates() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let mut body = made.clone();
    body["metadata"]["uid"] = json!("other");
    s.put(&path, &body).await.fails(409, "Conflict");
    body = made.clone();
    body["metadata"]["creationTimestamp"] = json!("2001-01-01T00:00:00Z");
    body["metadata"]["deletionTimestamp"] = json!("2001-01-01T00:00:00Z");
    let reply = s.put(&path, &body).await;
    assert!(matches!(reply.code, 200 | 422), "{}", reply.code);
    assert_eq!(s.get(&path).await.expect(200), made, "neither may land");
    body = made.clone();
    body["metadata"]["labels"] = json!({"bad key!": "x"});
    s.put(&path, &body).await.fails(422, "Invalid");
}

//! Custom resources in several versions: rewritten, or converted by a webhook.

use crate::custom::{CRDS, WIDGETS, established, eventually};
use crate::harness::*;
use crate::outside::outside;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NEW: &str = "/apis/example.org/v2/namespaces/default/widgets";

fn version(name: &str, stored: bool) -> Value {
    json!({"name": name, "served": true, "storage": stored, "subresources": {"status": {}},
        "selectableFields": if name == "v2" { json!([{"jsonPath": ".width"}]) } else { json!([{"jsonPath": ".size"}]) },
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "size": {"type": "string"}, "width": {"type": "string"}, "height": {"type": "string"}}}}})
}

fn definition(conversion: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.org"},
        "spec": {"group": "example.org", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "conversion": conversion, "versions": [version("v1", true), version("v2", false)]}})
}

/// Version 1 has `size: 2x3`, version 2 `width: 2` and `height: 3`.
fn convert(request: &Value) -> Value {
    let desired = request["desiredAPIVersion"].as_str().unwrap();
    let one = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = json!(desired);
        object["metadata"]["labels"]["seen"] = json!(desired.replace('/', "."));
        object["metadata"]["finalizers"] = json!(["not.its/business"]);
        let map = object.as_object_mut().unwrap();
        if desired.ends_with("v2") {
            let size = map.remove("size").unwrap_or_default();
            let (width, height) = size.as_str().unwrap().split_once('x').unwrap();
            map.extend([("width".to_string(), json!(width)), ("height".to_string(), json!(height))]);
        } else {
            let part = |v: Option<Value>| v.unwrap().as_str().unwrap().to_string();
            let size = format!("{}x{}", part(map.remove("width")), part(map.remove("height")));
            map.insert("size".into(), json!(size));
        }
        object
    };
    let objects = request["objects"].as_array().unwrap();
    if objects.iter().any(|o| o["metadata"]["name"] == "stubborn") && desired.ends_with("v2") {
        return json!({"result": {"status": "Failure", "message": "not this one"}});
    }
    json!({"result": {"status": "Success"}, "convertedObjects": objects.iter().map(one).collect::<Vec<_>>()})
}

/// A server with the definition, and how often its webhook was asked.
async fn with_webhook() -> (Server, Arc<AtomicUsize>) {
    let s = server().await;
    let answer = |_: &str, review: Value| {
        let mut response = convert(&review["request"]);
        response["uid"] = review["request"]["uid"].clone();
        json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": response})
    };
    let (port, ca_pem, asked) = outside(Arc::new(answer)).await;
    let client = json!({"url": format!("https://localhost:{port}/convert"), "caBundle": BASE64_STANDARD.encode(ca_pem)});
    let webhook = json!({"conversionReviewVersions": ["v1"], "clientConfig": client});
    let conversion = json!({"strategy": "Webhook", "webhook": webhook});
    s.post(CRDS, &definition(conversion)).await.expect(201);
    established(&s, "widgets.example.org").await;
    (s, asked)
}

fn widget(version: &str, name: &str, fields: Value) -> Value {
    let mut widget =
        json!({"apiVersion": format!("example.org/{version}"), "kind": "Widget", "metadata": {"name": name}});
    fields.as_object().unwrap().iter().for_each(|(k, v)| widget[k] = v.clone());
    widget
}

#[tokio::test]
async fn a_webhook_converts_what_is_read_and_written() {
    let (s, asked) = with_webhook().await;
    s.post(WIDGETS, &widget("v1", "old", json!({"size": "2x3"}))).await.expect(201);
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody pays for the stored version");
    let made = s.post(NEW, &widget("v2", "new", json!({"width": "4", "height": "5"}))).await.expect(201);
    assert_eq!((made["width"].as_str(), made.get("size")), (Some("4"), None));
    assert_eq!(s.get(&format!("{WIDGETS}/new")).await.expect(200)["size"], "4x5");
    let before = asked.load(Ordering::Relaxed);
    let list = s.get(NEW).await.expect(200);
    assert_eq!(list["apiVersion"], "example.org/v2");
    assert_eq!(
        (list["items"][0]["width"].as_str(), list["items"][1]["height"].as_str()),
        (Some("4"), Some("3"))
    );
    assert_eq!(asked.load(Ordering::Relaxed), before + 1, "a list is one review");
    let old = s.get(&format!("{NEW}/old")).await.expect(200);
    assert_eq!((old["width"].as_str(), old["apiVersion"].as_str()), (Some("2"), Some("example.org/v2")));
    assert_eq!(old["metadata"]["labels"]["seen"], "example.org.v2");
    assert!(old["metadata"].get("finalizers").is_none(), "the rest of metadata is not the webhook's");
    let patched = s.patch(&format!("{NEW}/old"), "merge-patch", &json!({"height": "9"})).await.expect(200);
    assert_eq!((patched["width"].as_str(), patched["height"].as_str()), (Some("2"), Some("9")));
    assert_eq!(s.get(&format!("{WIDGETS}/old")).await.expect(200)["size"], "2x9");
    s.delete(&format!("{NEW}/old")).await.expect(200);
    s.get(&format!("{WIDGETS}/old")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn watches_convert_and_failures_are_told() {
    let (s, _asked) = with_webhook().await;
    s.post(WIDGETS, &widget("v1", "first", json!({"size": "1x1"}))).await.expect(201);
    let mut watch = s.watch(&format!("{NEW}?watch=1")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["width"], "1");
    s.post(WIDGETS, &widget("v1", "second", json!({"size": "2x2"}))).await.expect(201);
    let event = watch.next().await.unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["width"].as_str()), (Some("ADDED"), Some("2")));
    s.post(WIDGETS, &widget("v1", "stubborn", json!({"size": "2x2"}))).await.expect(201);
    let message = s.get(NEW).await.fails(500, "");
    assert_eq!(message, "conversion webhook for example.org/v1, Kind=Widget failed: not this one");
    assert_eq!(watch.next().await.unwrap()["type"], "ERROR");
    s.get(WIDGETS).await.expect(200);
}

#[tokio::test]
async fn fields_are_selected_in_the_version_of_the_request() {
    let (s, _asked) = with_webhook().await;
    s.post(WIDGETS, &widget("v1", "a", json!({"size": "1x1"}))).await.expect(201);
    s.post(WIDGETS, &widget("v1", "b", json!({"size": "2x1"}))).await.expect(201);
    let names = |list: Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names(s.get(&format!("{NEW}?fieldSelector=width%3D2")).await.expect(200)), ["b"]);
    assert_eq!(names(s.get(&format!("{WIDGETS}?fieldSelector=size%3D1x1")).await.expect(200)), ["a"]);
    s.get(&format!("{NEW}?fieldSelector=size%3D1x1")).await.fails(400, "BadRequest");
    let mut watch = s.watch(&format!("{NEW}?watch=1&fieldSelector=width%3D2")).await;
    let mut next = async || {
        let event = watch.next().await.unwrap();
        let text = |v: &Value| v.as_str().unwrap().to_string();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]), text(&event["object"]["width"]))
    };
    let is = |kind: &str, name: &str, width: &str| (kind.to_string(), name.to_string(), width.to_string());
    assert_eq!(next().await, is("ADDED", "b", "2"));
    s.patch(&format!("{WIDGETS}/a"), "merge-patch", &json!({"size": "2x9"})).await.expect(200);
    assert_eq!(next().await, is("ADDED", "a", "2"));
    s.patch(&format!("{WIDGETS}/b"), "merge-patch", &json!({"size": "3x9"})).await.expect(200);
    assert_eq!(next().await, is("DELETED", "b", "2"));
    s.patch(&format!("{WIDGETS}/a"), "merge-patch", &json!({"size": "2x1"})).await.expect(200);
    assert_eq!(next().await, is("MODIFIED", "a", "2"));
    s.delete(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!(next().await, is("DELETED", "a", "2"));
    s.delete(&format!("{NEW}?fieldSelector=width%3D2")).await.expect(200);
    assert!(names(s.get(&format!("{NEW}?fieldSelector=width%3D2")).await.expect(200)).is_empty());
}

#[tokio::test]
async fn another_storage_version_is_seen_in_what_is_stored() {
    let s = server().await;
    s.post(CRDS, &definition(json!({"strategy": "None"}))).await.expect(201);
    established(&s, "widgets.example.org").await;
    s.post(WIDGETS, &widget("v1", "a", json!({"size": "1"}))).await.expect(201);
    let mut body = s.get(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    body["spec"]["versions"][0]["storage"] = json!(false);
    body["spec"]["versions"][1]["storage"] = json!(true);
    let body = s.put(&format!("{CRDS}/widgets.example.org"), &body).await.expect(200);
    assert_eq!(body["status"]["storedVersions"], json!(["v1", "v2"]));
    let shown = async || {
        (s.get(&format!("{NEW}/a")).await.expect(200)["apiVersion"] == "example.org/v2").then_some(())
    };
    eventually("in the new version", shown).await;
    assert_eq!(s.get(&format!("{WIDGETS}/a")).await.expect(200)["apiVersion"], "example.org/v1");
}

/// Hooks and policies that know one version see, and change, what is written in the other.
#[tokio::test]
async fn programs_that_know_another_version_see_it_converted() {
    let (s, _) = with_webhook().await;
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = seen.clone();
    let (port, ca_pem, _) = outside(Arc::new(move |_, review| {
        let request = &review["request"];
        log.lock().push((request["kind"]["version"].clone(), request["object"]["width"].clone(), request["oldObject"]["width"].clone()));
        let patch = BASE64_STANDARD.encode(r#"[{"op": "replace", "path": "/width", "value": "7"}]"#);
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": request["uid"],
            "allowed": true, "patch": patch, "patchType": "JSONPatch"}})
    }))
    .await;
    let rules = json!([{"operations": ["CREATE", "UPDATE"], "apiGroups": ["example.org"], "apiVersions": ["v2"], "resources": ["widgets"]}]);
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "wide"}, "webhooks": [{"name": "wide.example.org", "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "rules": rules, "matchConditions": [{"name": "two", "expression": "object.height != '13'"}],
            "clientConfig": {"url": format!("https://localhost:{port}/"), "caBundle": BASE64_STANDARD.encode(ca_pem)}}]});
    let group = "/apis/admissionregistration.k8s.io/v1";
    s.post(&format!("{group}/mutatingwebhookconfigurations"), &hook).await.expect(201);
    let policy = json!({"metadata": {"name": "low"}, "spec": {"matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "object.height != '99'", "message": "too high"}]}});
    let binding =
        json!({"metadata": {"name": "low"}, "spec": {"policyName": "low", "validationActions": ["Deny"]}});
    s.post(&format!("{group}/validatingadmissionpolicies"), &policy).await.expect(201);
    s.post(&format!("{group}/validatingadmissionpolicybindings"), &binding).await.expect(201);
    let made = s.post(WIDGETS, &widget("v1", "a", json!({"size": "2x3"}))).await.expect(201);
    assert_eq!((&made["apiVersion"], &made["size"]), (&json!("example.org/v1"), &json!("7x3")));
    let made = s.post(WIDGETS, &widget("v1", "b", json!({"size": "2x13"}))).await.expect(201);
    assert_eq!(made["size"], "2x13", "the condition saw the other version");
    let made = s.patch(&format!("{WIDGETS}/a"), "merge-patch", &json!({"size": "4x4"})).await.expect(200);
    assert_eq!(made["size"], "7x4");
    assert_eq!(*seen.lock(), [(json!("v2"), json!("2"), Value::Null), (json!("v2"), json!("4"), json!("7"))]);
    let message = s.post(WIDGETS, &widget("v1", "c", json!({"size": "1x99"}))).await.fails(422, "Invalid");
    assert!(message.contains("too high"), "{message}");
}

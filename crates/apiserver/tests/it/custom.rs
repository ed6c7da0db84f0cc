//! Custom resources: defined, served at once, checked by their schema, shown, applied, emptied and gone.

use crate::harness::*;
use serde_json::{Value, json};

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const WIDGETS: &str = "/apis/example.org/v1/namespaces/default/widgets";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true,
                    "subresources": {
                        "status": {},
                        "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector"},
                    },
                    "selectableFields": [{"jsonPath": ".spec.colour"}],
                    "additionalPrinterColumns": [{"name": "Colour", "type": "string", "jsonPath": ".spec.colour"}],
                    "schema": {"openAPIV3Schema": {
                        "type": "object", "description": "A widget.",
                        "properties": {
                            "spec": {"type": "object", "properties": {
                                "replicas": {"type": "integer", "minimum": 0},
                                "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                                "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                                    "items": {"type": "object", "required": ["name"], "properties": {
                                        "name": {"type": "string"}, "size": {"type": "integer"}}}},
                            }},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        },
                    }},
                },
                {"name": "v2beta1", "served": true, "storage": false,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            ],
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

pub async fn established(s: &Server, name: &str) -> Value {
    eventually("established", async || {
        let definition = s.get(&format!("{CRDS}/{name}")).await.expect(200);
        let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True").then_some(definition)
    })
    .await
}

pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn defined() -> Server {
    let s = server().await;
    s.post(CRDS, &definition()).await.expect(201);
    let definition = established(&s, "widgets.example.org").await;
    assert_eq!(definition["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    s
}

#[tokio::test]
async fn a_definition_is_served_at_once_everywhere() {
    let s = defined().await;
    let list = s.get("/apis/example.org/v1").await.expect(200);
    let names: Vec<&str> =
        list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    let group = s.get("/apis/example.org").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let v3 = s.get("/openapi/v3/apis/example.org/v1").await.expect(200);
    let body = &v3["components"]["schemas"]["org.example.v1.Widget"];
    assert_eq!(body["description"], "A widget.");
    assert_eq!(body["properties"]["spec"]["properties"]["colour"]["enum"], json!(["red", "blue"]));
    assert!(body["properties"]["metadata"].is_object());
    let v2 = s.get("/openapi/v2").await.expect(200);
    assert_eq!(v2["definitions"]["org.example.v2beta1.Widget"]["type"], "object");
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object() && v2["swagger"] == "2.0");
    assert!(v2["paths"]["/apis/example.org/v1/namespaces/{namespace}/widgets/{name}"]["get"].is_object());
    let empty = s.get(WIDGETS).await.expect(200);
    assert_eq!(
        (empty["kind"].as_str(), empty["apiVersion"].as_str()),
        (Some("WidgetList"), Some("example.org/v1"))
    );
}

/// What clients ask for again and again is made once for all of them, until what is served changes.
#[tokio::test]
async fn documents_are_kept_until_a_definition_changes() {
    let s = defined().await;
    const PROTO: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let ask = async |path: &str, accept: &str, tag: &str| {
        let reply = s.call("GET", path, &[("accept", accept), ("if-none-match", tag)], "").await;
        (reply.code, reply.headers["etag"].to_str().unwrap().to_string(), reply.body)
    };
    let asked = [("/openapi/v2", PROTO), ("/apis", AGGREGATED), ("/openapi/v3", "application/json")];
    let mut tags = Vec::new();
    for (path, accept) in asked {
        // The first definition may still be settling between two asks.
        let kept = async || {
            let (code, tag, body) = ask(path, accept, "").await;
            assert_eq!((code, body.is_empty()), (200, false), "{path}");
            let (code, same, body) = ask(path, accept, &tag).await;
            (code == 304).then(|| assert_eq!((&same, body.len()), (&tag, 0), "{path}")).map(|()| tag)
        };
        tags.push(eventually("kept", kept).await);
    }
    let mut second = definition();
    second["metadata"]["name"] = json!("gadgets.example.org");
    second["spec"]["names"] = json!({"plural": "gadgets", "singular": "gadget", "kind": "Gadget"});
    s.post(CRDS, &second).await.expect(201);
    established(&s, "gadgets.example.org").await;
    let there =
        async || (s.get("/apis/example.org/v1/namespaces/default/gadgets").await.code == 200).then_some(());
    eventually("served", there).await;
    for ((path, accept), tag) in asked.into_iter().zip(tags) {
        let (code, _, body) = ask(path, accept, &tag).await;
        assert_eq!(code, 200, "{path} has changed");
        if path != "/openapi/v3" {
            let holds = |word: &[u8]| body.windows(word.len()).any(|w| w == word);
            assert!(holds(b"Widget") && holds(b"Gadget") && holds(b"apps"), "{path}");
        }
    }
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_checked() {
    let s = defined().await;
    let made = s.post(WIDGETS, &widget("a", json!({"replicas": 2, "odd": 1}))).await.expect(201);
    assert_eq!(made["spec"], json!({"replicas": 2, "colour": "red"}));
    assert_eq!(made["metadata"]["generation"], 1);
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let message = s.post(&strict, &widget("b", json!({"odd": 1}))).await.fails(400, "BadRequest");
    assert!(message.ends_with("strict decoding error: unknown field \"spec.odd\""), "{message}");
    let message =
        s.post(WIDGETS, &widget("b", json!({"replicas": -1, "colour": "green"}))).await.fails(422, "Invalid");
    assert_eq!(
        message,
        "Widget.example.org \"b\" is invalid: [spec.colour: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0]"
    );
    let mut both = widget("b", json!({"colour": "green"}));
    both["metadata"]["labels"] = json!({"a": "no/label"});
    let message = s.post(WIDGETS, &both).await.fails(422, "Invalid");
    assert!(message.contains("metadata.labels: ") && message.contains("spec.colour: "), "{message}");
    let message = s.post(WIDGETS, &widget("b", json!({"replicas": "x"}))).await.fails(422, "Invalid");
    assert!(message.contains("must be of type integer: \"string\""), "{message}");
    let other = s.get("/apis/example.org/v2beta1/namespaces/default/widgets/a").await.expect(200);
    assert_eq!(
        (&other["apiVersion"], &other["spec"]["replicas"]),
        (&json!("example.org/v2beta1"), &json!(2))
    );
    let red = s.get(&format!("{WIDGETS}?fieldSelector=spec.colour%3Dred")).await.expect(200);
    let blue = s.get(&format!("{WIDGETS}?fieldSelector=spec.colour%3Dblue")).await.expect(200);
    assert_eq!((red["items"].as_array().unwrap().len(), blue["items"].as_array().unwrap().len()), (1, 0));
    s.get(&format!("{WIDGETS}?fieldSelector=spec.replicas%3D1")).await.fails(400, "BadRequest");
    let patch = [("content-type", "application/strategic-merge-patch+json")];
    s.call("PATCH", &format!("{WIDGETS}/a"), &patch, "{}").await.fails(415, "UnsupportedMediaType");
}

#[tokio::test]
async fn status_scale_columns_and_apply_work() {
    let s = defined().await;
    s.post(WIDGETS, &widget("a", json!({"replicas": 2}))).await.expect(201);
    let mut body = s.get(&format!("{WIDGETS}/a")).await.expect(200);
    body["spec"]["replicas"] = json!(9);
    body["status"] = json!({"replicas": 1, "selector": "app=a", "anything": true});
    let updated = s.put(&format!("{WIDGETS}/a/status"), &body).await.expect(200);
    assert_eq!((&updated["spec"]["replicas"], &updated["status"]["anything"]), (&json!(2), &json!(true)));
    let scale = s.get(&format!("{WIDGETS}/a/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 2}), &json!({"replicas": 1, "selector": "app=a"}))
    );
    let merge = [("content-type", "application/merge-patch+json")];
    s.call("PATCH", &format!("{WIDGETS}/a/scale"), &merge, r#"{"spec":{"replicas":5}}"#).await.expect(200);
    assert_eq!(s.get(&format!("{WIDGETS}/a")).await.expect(200)["spec"]["replicas"], 5);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let shown = s.call("GET", WIDGETS, &table, "").await.expect(200);
    assert_eq!(shown["columnDefinitions"][1]["name"], "Colour");
    assert_eq!(shown["rows"][0]["cells"], json!(["a", "red"]));
    let apply = [("content-type", "application/apply-patch+yaml")];
    // Fields that a structure keeps though its schema lists others are no secret to apply; twice is too often.
    let loose =
        "/apis/example.org/v2beta1/namespaces/default/widgets/loose?fieldManager=one&fieldValidation=Strict";
    let config =
        "apiVersion: example.org/v2beta1\nkind: Widget\nmetadata: {name: loose}\nspec:\n  odd: {a: 1}\n";
    let made = s.call("PATCH", loose, &apply, config).await.expect(201);
    let owned = &made["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(owned["f:spec"], json!({".": {}, "f:odd": {".": {}, "f:a": {}}}));
    let message =
        s.call("PATCH", loose, &apply, format!("{config}  odd: 2\n")).await.fails(400, "BadRequest");
    assert!(message.contains("line 6: key \"odd\" already set in map"), "{message}");
    for (manager, part, size) in [("one", "x", 1), ("two", "y", 2)] {
        let config = widget("b", json!({"parts": [{"name": part, "size": size}]}));
        let path = format!("{WIDGETS}/b?fieldManager={manager}");
        let reply = s.call("PATCH", &path, &apply, config.to_string()).await;
        assert!(matches!(reply.code, 200 | 201), "{:?}", reply.body);
    }
    let both = s.get(&format!("{WIDGETS}/b")).await.expect(200);
    assert_eq!(both["spec"]["parts"], json!([{"name": "x", "size": 1}, {"name": "y", "size": 2}]));
}

#[tokio::test]
async fn a_default_that_came_later_is_seen_in_what_is_stored() {
    let s = defined().await;
    s.post(WIDGETS, &widget("a", json!({}))).await.expect(201);
    let mut body = s.get(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["replicas"]
        ["default"] = json!(7);
    s.put(&format!("{CRDS}/widgets.example.org"), &body).await.expect(200);
    let seven = async || {
        let widget = s.get(&format!("{WIDGETS}/a")).await.expect(200);
        (widget["spec"]["replicas"] == 7).then_some(())
    };
    eventually("the default is shown", seven).await;
}

#[tokio::test]
async fn names_that_are_taken_are_not_accepted_until_they_are_free() {
    let s = defined().await;
    let mut second = definition();
    second["metadata"]["name"] = json!("gadgets.example.org");
    second["spec"]["names"] = json!({"plural": "gadgets", "singular": "gadget", "kind": "Widget"});
    s.post(CRDS, &second).await.expect(201);
    let refused = async || {
        let definition = s.get(&format!("{CRDS}/gadgets.example.org")).await.expect(200);
        let condition =
            definition["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "NamesAccepted")?;
        (condition["reason"] == "KindConflict").then_some(())
    };
    eventually("refused", refused).await;
    s.get("/apis/example.org/v1/namespaces/default/gadgets").await.fails(404, "NotFound");
    s.delete(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    established(&s, "gadgets.example.org").await;
    s.get("/apis/example.org/v1/namespaces/default/gadgets").await.expect(200);
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let s = defined().await;
    let mut held = widget("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.org/wait"]);
    s.post(WIDGETS, &held).await.expect(201);
    s.post(WIDGETS, &widget("free", json!({}))).await.expect(201);
    s.delete(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    let one_left = async || (s.get(WIDGETS).await.expect(200)["items"].as_array()?.len() == 1).then_some(());
    eventually("the free one is gone", one_left).await;
    let waiting = s.get(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    assert!(waiting["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Terminating"));
    let merge = [("content-type", "application/merge-patch+json")];
    s.call("PATCH", &format!("{WIDGETS}/held"), &merge, r#"{"metadata":{"finalizers":null}}"#)
        .await
        .expect(200);
    let gone = async || (s.get(&format!("{CRDS}/widgets.example.org")).await.code == 404).then_some(());
    eventually("the definition is gone", gone).await;
    s.get(WIDGETS).await.fails(404, "NotFound");
    s.post(CRDS, &definition()).await.expect(201);
    established(&s, "widgets.example.org").await;
    assert_eq!(s.get(WIDGETS).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn rules_of_a_definition_are_enforced() {
    let s = server().await;
    let mut ruled = definition();
    let spec = &mut ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["x-kubernetes-validations"] = json!([
        {"rule": "!has(self.replicas) || self.replicas <= 5", "message": "at most five"},
        {"rule": "!has(oldSelf.colour) || self.colour == oldSelf.colour", "messageExpression": "'stays ' + oldSelf.colour"},
    ]);
    let mut wrong = ruled.clone();
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"]
        [0]["rule"] = json!("self.nope > 1");
    let message = s.post(CRDS, &wrong).await.fails(422, "Invalid");
    assert!(message.contains("undefined field 'nope'"), "{message}");
    s.post(CRDS, &ruled).await.expect(201);
    established(&s, "widgets.example.org").await;
    let message = s.post(WIDGETS, &widget("a", json!({"replicas": 6}))).await.fails(422, "Invalid");
    assert_eq!(message, "Widget.example.org \"a\" is invalid: spec: Invalid value: \"object\": at most five");
    s.post(WIDGETS, &widget("a", json!({"replicas": 5, "colour": "red"}))).await.expect(201);
    let changed = json!({"spec": {"colour": "blue"}});
    let message = s.patch(&format!("{WIDGETS}/a"), "merge-patch", &changed).await.fails(422, "Invalid");
    assert!(message.ends_with("spec: Invalid value: \"object\": stays red"), "{message}");
}

/// Whoever uses a version that its definition calls deprecated is told, whatever he does; so with two old kinds.
#[tokio::test]
async fn deprecated_versions_say_so() {
    let s = server().await;
    let mut body = definition();
    body["spec"]["versions"][1]["deprecated"] = json!(true);
    s.post(CRDS, &body).await.expect(201);
    established(&s, "widgets.example.org").await;
    let told = async |path: &str| {
        let reply = s.get(path).await;
        assert_eq!(reply.code, 200, "{path}");
        reply.headers.get("warning").map(|w| w.to_str().unwrap().to_string())
    };
    let words = |text: &str| Some(format!("299 - \"{text}\""));
    let old = WIDGETS.replace("/v1/", "/v2beta1/");
    assert_eq!(told(WIDGETS).await, None);
    let newer = "example.org/v2beta1 Widget is deprecated; use example.org/v1 Widget";
    assert_eq!(told(&old).await, words(newer));
    let mut made = widget("a", json!({}));
    made["apiVersion"] = json!("example.org/v2beta1");
    assert_eq!(s.post(&old, &made).await.headers["warning"], words(newer).unwrap());
    body = s.get(&format!("{CRDS}/widgets.example.org")).await.expect(200);
    body["spec"]["versions"][1]["deprecationWarning"] = json!("go away");
    s.put(&format!("{CRDS}/widgets.example.org"), &body).await.expect(200);
    eventually("own words", async || (told(&old).await == words("go away")).then_some(())).await;
    let core = "/api/v1/namespaces/default/endpoints";
    let slices = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    assert_eq!(told(core).await, words(slices));
    assert_eq!(told("/api/v1/componentstatuses").await, words("v1 ComponentStatus is deprecated in v1.19+"));
}

//! The documents as a whole: complete, closed under reference, negotiated, stable.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_schema::{Def, Field, Gvr, ListType, PatchStrategy, Type};

use super::*;

fn builtin() -> Vec<Row> {
    k8s_schema::resources().iter().map(|r| Row { row: Held::Static(r), custom: None }).collect()
}

fn parse(document: &Document) -> Value {
    serde_json::from_slice(&document.body).unwrap()
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

/// Every reference leads somewhere, no schema is empty (`kubectl explain` fails on those), no definition is left half made, operation ids are unique.
fn assert_closed(document: &Value, schemas: &Value, prefix: &str) {
    let schemas = schemas.as_object().unwrap();
    assert!(schemas.values().all(|s| !s.is_null()));
    let mut found = BTreeSet::new();
    references(document, &mut found);
    assert!(found.len() > 5);
    for (name, schema) in schemas {
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert!(schema.as_object().is_some_and(|s| !s.is_empty()), "{name}.{field}");
        }
    }
    for reference in found {
        let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference}"));
        assert!(schemas.contains_key(name), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values().filter(|o| o.is_object()) {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{}", operation["operationId"]);
        }
    }
}

#[test]
fn v2_is_closed_and_has_what_kubectl_looks_up() {
    let documents = Documents::new(builtin(), Vec::new());
    let v2 = parse(&documents.get("/openapi/v2", "application/json").unwrap().unwrap());
    assert_closed(&v2, &v2["definitions"], "#/definitions/");
    for row in k8s_schema::resources() {
        let gvk = json!({"group": row.gvr.group, "version": row.gvr.version, "kind": &*row.kind});
        let has =
            |d: &Value| d["x-kubernetes-group-version-kind"].as_array().is_some_and(|g| g.contains(&gvk));
        assert_eq!(v2["definitions"].as_object().unwrap().values().filter(|d| has(d)).count(), 1, "{gvk}");
    }
    let patch = &v2["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["tags"], json!(["apps_v1"]));
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["body", "dryRun", "fieldManager", "fieldValidation", "force", "pretty"]);
    let ports = &v2["definitions"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
    assert_eq!(
        *ports,
        json!({"type": "array", "items": {"$ref": "#/definitions/io.k8s.api.core.v1.ServicePort"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
            "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "port"})
    );
    let protocol = &v2["definitions"]["io.k8s.api.core.v1.ServicePort"]["properties"]["protocol"];
    assert_eq!(*protocol, json!({"type": "string", "default": "TCP"}));
}

#[test]
fn legacy_bodies_require_less_and_keep_their_old_fields() {
    let rows: Vec<Shown> = k8s_schema::resources().iter().map(Shown::from).collect();
    let v2 = document::v2(&rows, &mut Schemas::new(Dialect::V2));
    let old = &v2["definitions"]["io.k8s.api.extensions.v1beta1.Deployment"]["properties"]["spec"];
    assert!(old.get("required").is_none() && old["properties"]["rollbackTo"].is_object());
    let new = &v2["definitions"]["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(new["required"], json!(["selector", "template"]));
}

#[test]
fn v3_documents_are_indexed_and_closed() {
    let usual = builtin().into_iter().filter(|r| r.row.gate.is_empty()).collect();
    let documents = Documents::new(usual, Vec::new());
    let index = parse(&documents.get("/openapi/v3", "").unwrap().unwrap());
    let paths = index["paths"].as_object().unwrap();
    let upstream = paths.keys().filter(|p| !p.contains(".gantry.dev")).count();
    assert_eq!(upstream, 27, "22 group versions, 4 legacy ones, metrics");
    for (key, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let (path, hash) = url.split_once("?hash=").unwrap();
        assert_eq!((path, hash.len()), (format!("/openapi/v3/{key}").as_str(), 16));
        let v3 = parse(&documents.get(path, "application/json").unwrap().unwrap());
        assert_closed(&v3, &v3["components"]["schemas"], "#/components/schemas/");
    }
    let core = parse(&documents.get("/openapi/v3/api/v1", "*/*").unwrap().unwrap());
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let gvk = json!({"group": "", "version": "v1", "kind": "Pod"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    let quantity = &core["components"]["schemas"]["io.k8s.apimachinery.pkg.api.resource.Quantity"];
    assert_eq!(quantity["oneOf"][1]["type"], "number");
    let object = &core["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
    assert_eq!(object["description"], "Standard object's metadata.");
    let created = &object["properties"]["creationTimestamp"];
    assert!(created["allOf"][0]["$ref"].is_string() && created["description"].is_string());
}

#[test]
fn forms_are_negotiated_and_unknown_paths_are_none() {
    let documents = Documents::new(builtin(), Vec::new());
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let proto = documents.get("/openapi/v2", asked).unwrap().unwrap();
    assert_eq!(proto.content_type, V2_PROTO);
    assert_eq!(proto.body[..5], [0x0a, 3, b'2', b'.', b'0']);
    let json =
        documents.get("/openapi/v2", &format!("text/html, application/json, {asked}")).unwrap().unwrap();
    assert_eq!(json.content_type, JSON);
    assert_ne!(json.etag, proto.etag);
    assert_eq!(documents.get("/openapi/v2", "text/html").unwrap_err(), NotAcceptable);
    assert_eq!(documents.get("/openapi/v3", "text/html").unwrap_err(), NotAcceptable);
    for path in ["/openapi/v3/apis/apps/v7", "/openapi/v3x", "/openapi", "/openapi/v3/api"] {
        assert!(documents.get(path, "").unwrap().is_none(), "{path}");
    }
}

fn field(name: &str, ty: Type, list_type: ListType) -> Field {
    Field {
        name: name.to_owned().into(),
        ty,
        required: false,
        list_type,
        list_keys: Held::Static(&[]),
        patch_strategy: PatchStrategy::Replace,
        merge_key: Held::Static(""),
        map_atomic: false,
        default: Held::Static(""),
    }
}

fn def(fields: Vec<Field>) -> DefRef {
    let gvks = Held::Static(&[][..]);
    DefRef::Shared(Arc::new(Def { name: Held::Static(""), fields: fields.into(), gvks, map_atomic: false }))
}

fn crontab(field_name: &str) -> ResourceRow {
    let spec = def(vec![field(field_name, Type::Array(Held::Static(&Type::String)), ListType::Set)]);
    ResourceRow {
        gvr: Gvr::new("stable.example.com", "v1", "crontabs"),
        kind: Held::Static("CronTab"),
        singular: Held::Static("crontab"),
        short_names: Held::Static(&[std::borrow::Cow::Borrowed("ct")]),
        categories: Held::Static(&[]),
        namespaced: true,
        verbs: Held::Static(&["create", "get", "list", "patch"]),
        subresources: Held::Static(&[]),
        def: def(vec![field("spec", Type::Object(spec), ListType::Atomic)]),
        storage_version: Held::Static("v1"),
        storage_group: Held::Static("stable.example.com"),
        legacy: false,
        gate: "",
    }
}

#[test]
fn custom_resources_are_written_in_place_and_change_their_hash() {
    let row = crontab("hosts");
    let rows: Vec<Shown> = vec![(&row).into()];
    let v3 = v3_json(&rows);
    assert_closed(&v3, &v3["components"]["schemas"], "#/components/schemas/");
    let body = &v3["components"]["schemas"]["com.example.stable.v1.CronTab"];
    let hosts = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"});
    assert_eq!(body["properties"]["spec"]["properties"]["hosts"], hosts);
    assert_eq!(body["x-kubernetes-group-version-kind"][0]["kind"], "CronTab");
    assert!(v3["components"]["schemas"]["com.example.stable.v1.CronTabList"].is_object());
    let patch = &v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    let other = crontab("targets");
    assert_eq!(v3_index(&rows), v3_index(&[(&crontab("hosts")).into()]));
    assert_ne!(v3_index(&rows), v3_index(&[(&other).into()]));
}

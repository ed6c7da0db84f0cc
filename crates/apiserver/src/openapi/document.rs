//! Documents: operations and schemas put together as OpenAPI v2 or v3 JSON.

use k8s_schema::ResourceRow;
use serde_json::{Map, Value, json};

use super::Shown;
use super::operations::{self, Body, Operation, PathItem};
use super::schemas::{Dialect, Schemas, meta, reference};

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.36.0";
const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// `metav1` definitions that clients look up though no path here refers to all of them.
const COMMON: [&str; 9] = [
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "DeleteOptions",
    "ListMeta",
    "ObjectMeta",
    "Status",
    "WatchEvent",
];

/// The OpenAPI v2 document of these rows.
pub fn v2(rows: &[Shown], schemas: &mut Schemas) -> Value {
    let mut document = v2_part(rows, schemas);
    document["swagger"] = "2.0".into();
    document["info"] = json!({"title": TITLE, "version": VERSION});
    document["securityDefinitions"] =
        json!({"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}});
    document["security"] = json!([{"BearerToken": []}]);
    document
}

/// The paths of these rows, and the definitions that were not given before.
pub fn v2_part(rows: &[Shown], schemas: &mut Schemas) -> Value {
    let paths = paths(rows, schemas, v2_path);
    json!({"paths": paths, "definitions": schemas.take()})
}

/// The OpenAPI v3 document of one group version's rows.
pub fn v3(rows: &[Shown]) -> Value {
    let mut schemas = Schemas::new(Dialect::V3);
    let paths = paths(rows, &mut schemas, v3_path);
    let definitions = schemas.take();
    json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"},
            },
        },
    })
}

type Render = fn(&PathItem, &ResourceRow) -> Value;

fn paths(rows: &[Shown], schemas: &mut Schemas, render: Render) -> Map<String, Value> {
    let mut paths = Map::new();
    COMMON.iter().for_each(|kind| schemas.add_builtin(&meta(kind)));
    for shown in rows {
        let row = shown.row;
        schemas.add_row(row, shown.custom.map(|version| version.published()).as_ref());
        for item in operations::paths(row) {
            for operation in &item.operations {
                if let Body::Object(name) = &operation.body {
                    schemas.add_builtin(name);
                }
                operation.answer.iter().for_each(|name| schemas.add_builtin(name));
            }
            paths.insert(item.path.clone(), render(&item, row));
        }
    }
    paths
}

/// Media types in which a row's objects can be patched.
fn patch_types(row: &ResourceRow) -> Vec<&'static str> {
    let strategic = matches!(row.def, k8s_schema::DefRef::Builtin(_)).then_some(STRATEGIC_PATCH);
    [JSON_PATCH, MERGE_PATCH].into_iter().chain(strategic).chain([APPLY_PATCH]).collect()
}

fn gvk_value((group, version, kind): &(String, String, String)) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn query(operation: &Operation) -> impl Iterator<Item = operations::Parameter> + '_ {
    operation.query.iter().copied().chain((operation.action != "connect").then(operations::common))
}

fn description(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

/// What an operation has in both dialects.
fn operation_base(operation: &Operation, row: &ResourceRow) -> Value {
    json!({
        "operationId": operation.id,
        "tags": [operations::tag(&row.gvr.group, &row.gvr.version)],
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": gvk_value(&operation.gvk),
    })
}

fn v2_path(item: &PathItem, row: &ResourceRow) -> Value {
    let mut value = Map::new();
    let parameter = |name: &&str| json!({"name": name, "in": "path", "type": "string", "required": true, "uniqueItems": true});
    if !item.parameters.is_empty() {
        value.insert("parameters".into(), item.parameters.iter().map(parameter).collect());
    }
    for operation in &item.operations {
        value.insert(operation.method.into(), v2_operation(operation, row));
    }
    value.into()
}

fn v2_operation(operation: &Operation, row: &ResourceRow) -> Value {
    let mut value = operation_base(operation, row);
    let mut parameters: Vec<Value> = query(operation)
        .map(|(name, ty)| json!({"name": name, "in": "query", "type": ty, "uniqueItems": true}))
        .collect();
    let body = |required: bool, name: &str| {
        let schema = reference(Dialect::V2, name);
        let mut body = json!({"name": "body", "in": "body", "schema": schema});
        if required {
            body["required"] = true.into();
        }
        body
    };
    let mut consumes = vec!["*/*"];
    match &operation.body {
        Body::None => {}
        Body::Object(name) => parameters.insert(0, body(true, name)),
        Body::DeleteOptions => parameters.insert(0, body(false, &meta("DeleteOptions"))),
        Body::Patch => {
            let patch = json!({"name": "body", "in": "body", "required": true, "schema": {"type": "object"}});
            parameters.insert(0, patch);
            consumes = patch_types(row);
        }
    }
    if !parameters.is_empty() {
        value["parameters"] = parameters.into();
    }
    value["consumes"] = json!(consumes);
    value["produces"] = if operation.answer.is_some() { json!([JSON]) } else { json!(["*/*"]) };
    let schema = match &operation.answer {
        Some(name) => reference(Dialect::V2, name),
        None => json!({"type": "string"}),
    };
    let mut responses = Map::from_iter([("401".to_owned(), json!({"description": "Unauthorized"}))]);
    for code in operation.codes {
        responses.insert(code.to_string(), json!({"description": description(*code), "schema": schema}));
    }
    value["responses"] = responses.into();
    value
}

fn v3_path(item: &PathItem, row: &ResourceRow) -> Value {
    let mut value = Map::new();
    let parameter = |name: &&str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    if !item.parameters.is_empty() {
        value.insert("parameters".into(), item.parameters.iter().map(parameter).collect());
    }
    for operation in &item.operations {
        value.insert(operation.method.into(), v3_operation(operation, row));
    }
    value.into()
}

fn v3_operation(operation: &Operation, row: &ResourceRow) -> Value {
    let mut value = operation_base(operation, row);
    let parameters: Vec<Value> = query(operation)
        .map(|(name, ty)| json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}}))
        .collect();
    if !parameters.is_empty() {
        value["parameters"] = parameters.into();
    }
    let content = |types: &[&str], schema: Value| -> Value {
        types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
    };
    let named = |name: &str| reference(Dialect::V3, name);
    let body = match &operation.body {
        Body::None => None,
        Body::Object(name) => Some(json!({"required": true, "content": content(&["*/*"], named(name))})),
        Body::DeleteOptions => Some(json!({"content": content(&["*/*"], named(&meta("DeleteOptions")))})),
        Body::Patch => {
            let content = content(&patch_types(row), json!({"type": "object"}));
            Some(json!({"required": true, "content": content}))
        }
    };
    if let Some(body) = body {
        value["requestBody"] = body;
    }
    let answer = match &operation.answer {
        Some(name) => content(&[JSON], named(name)),
        None => content(&["*/*"], json!({"type": "string"})),
    };
    let mut responses = Map::from_iter([("401".to_owned(), json!({"description": "Unauthorized"}))]);
    for code in operation.codes {
        responses.insert(code.to_string(), json!({"description": description(*code), "content": answer}));
    }
    value["responses"] = responses.into();
    value
}

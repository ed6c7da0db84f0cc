//! Custom resources: what a CustomResourceDefinition adds to the served resources.
//!
//! [`resources`] compiles a definition into one [`Resource`] a served version; `controller` keeps the registry, the
//! definition's conditions and its finalizer true. Everything an object of such a resource goes through is in
//! `rules`, beside what built-in kinds go through; schemas are `machinery::crd`'s.

pub mod controller;
pub mod convert;
pub mod names;

use crate::resources::Resource;
use k8s_schema::{Def, DefRef, Gvr, Held, ResourceRow, Subresource};
use machinery::crd::columns::Column;
use machinery::crd::jsonpath::JsonPath;
use machinery::crd::{self, Schema};
use serde_json::Value;
use std::sync::Arc;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// What a custom resource's version has beyond its row.
pub struct Custom {
    /// The compiled schema.
    pub schema: Schema,
    /// The schema as published.
    pub published: Value,
    /// `apiVersion`, `kind`, `metadata`: the fields that every object has.
    pub envelope: Arc<Def>,
    /// Printer columns.
    pub columns: Vec<Column>,
    /// Field selector labels and where they are read.
    pub selectable: Vec<(String, JsonPath)>,
    /// The paths of the scale subresource.
    pub scale: Option<Scale>,
    /// Must stored objects be looked at before they are served?
    pub reshapes: bool,
    /// Who converts between the versions, where that is a webhook.
    pub webhook: Option<convert::Webhook>,
}

/// Where a custom resource keeps what a Scale shows; JSON pointers.
pub struct Scale {
    /// `specReplicasPath`.
    pub wanted: String,
    /// `statusReplicasPath`.
    pub actual: String,
    /// `labelSelectorPath`.
    pub selector: Option<String>,
}

fn texts(list: &Value) -> Vec<std::borrow::Cow<'static, str>> {
    list.as_array().into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_string().into())).collect()
}

/// A simple path (`.spec.replicas`) as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// Every served version of a definition, and the storage version even when it is not served (as the others' stored
/// form only). Reads `status.acceptedNames`, falling back to the wished names.
pub fn resources(realm: &str, definition: &Value) -> Vec<Arc<Resource>> {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(stored) = versions.iter().find(|v| v["storage"] == true) else { return Vec::new() };
    let compiled = |version: &Value| Schema::compile(&version["schema"]["openAPIV3Schema"]);
    let row = |version: &Value, schema: &Schema| {
        Held::Shared(Arc::new(row(definition, version, &stored["name"], schema)))
    };
    let stored_schema = compiled(stored);
    let stored_row: Held<ResourceRow> = row(stored, &stored_schema);
    let mut stored_schema = Some(stored_schema);
    let served = versions.iter().filter(|v| v["served"] == true);
    let group = spec["group"].as_str().unwrap_or_default();
    let plural = spec["names"]["plural"].as_str().unwrap_or_default();
    let webhook = spec["conversion"]["strategy"] == "Webhook";
    let resource = |version: &Value| {
        let (own, schema) = match stored_schema.take_if(|_| version["name"] == stored["name"]) {
            Some(schema) => (stored_row.clone(), schema),
            None => {
                let schema = compiled(version);
                (row(version, &schema), schema)
            }
        };
        // What a webhook converts is worked on in the version of the request.
        let stored = if webhook { own.clone() } else { stored_row.clone() };
        Arc::new(Resource {
            row: own,
            stored,
            prefix: format!("/{realm}/{group}/{plural}/").into(),
            custom: Some(Arc::new(custom(definition, version, schema))),
        })
    };
    served.map(resource).collect()
}

fn row(definition: &Value, version: &Value, storage: &Value, schema: &Schema) -> ResourceRow {
    let spec = &definition["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let accepted = &definition["status"]["acceptedNames"];
    let names = if accepted["plural"] == spec["names"]["plural"] { accepted } else { &spec["names"] };
    let (group, kind, name) = (text(&spec["group"]), text(&names["kind"]), text(&version["name"]));
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let body = crd::body::definition(&format!("{}.{name}.{kind}", reversed.join(".")), schema);
    let mut subresources = Vec::new();
    if !version["subresources"]["scale"].is_null() {
        let scale = ("autoscaling".to_string(), "v1".to_string(), "Scale".to_string());
        subresources.push(subresource("scale", scale));
    }
    if !version["subresources"]["status"].is_null() {
        subresources.push(subresource("status", (group.clone(), name.clone(), kind.clone())));
    }
    ResourceRow {
        gvr: Gvr {
            group: group.clone().into(),
            version: name.into(),
            resource: text(&names["plural"]).into(),
        },
        kind: kind.into(),
        singular: text(&names["singular"]).into(),
        short_names: texts(&names["shortNames"]).into(),
        categories: texts(&names["categories"]).into(),
        namespaced: spec["scope"] == "Namespaced",
        verbs: Held::Static(&VERBS),
        subresources: subresources.into(),
        def: DefRef::Shared(body),
        storage_version: text(storage).into(),
        storage_group: group.into(),
        legacy: false,
    }
}

fn subresource(name: &'static str, (group, version, kind): (String, String, String)) -> Subresource {
    let gvk = (group.into(), version.into(), kind.into());
    Subresource { name: Held::Static(name), gvk, verbs: Held::Static(&PART_VERBS) }
}

fn custom(definition: &Value, version: &Value, mut schema: Schema) -> Custom {
    let published = &version["schema"]["openAPIV3Schema"];
    // Definitions converted from v1beta1 may keep everything.
    schema.preserve |= definition["spec"]["preserveUnknownFields"] == true;
    let selectable = version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| {
        let path = field["jsonPath"].as_str()?;
        Some((path.trim_start_matches('.').to_string(), JsonPath::parse(path)?))
    });
    // Objects of an earlier storage version may be there.
    let several = definition["status"]["storedVersions"].as_array().is_some_and(|all| all.len() > 1)
        && definition["spec"]["conversion"]["strategy"] != "Webhook";
    let spec = &definition["spec"];
    let storage = spec["versions"].as_array().into_iter().flatten().find(|v| v["storage"] == true);
    let storage = storage.and_then(|v| v["name"].as_str()).unwrap_or_default();
    let stored = format!("{}/{storage}", spec["group"].as_str().unwrap_or_default());
    let scale = &version["subresources"]["scale"];
    let path = |key: &str| scale[key].as_str().map(pointer);
    Custom {
        envelope: crd::body::definition("", &Schema::default()),
        columns: crd::columns::columns(version),
        selectable: selectable.collect(),
        scale: path("specReplicasPath").map(|wanted| Scale {
            wanted,
            actual: path("statusReplicasPath").unwrap_or_default(),
            selector: path("labelSelectorPath"),
        }),
        reshapes: has_default(&schema) || several,
        webhook: convert::webhook(&definition["spec"], stored),
        published: published.clone(),
        schema,
    }
}

fn has_default(schema: &Schema) -> bool {
    let below = schema.properties.values().chain(schema.items.as_deref()).chain(schema.additional.schema());
    let mut below = below;
    schema.default.is_some() || below.any(has_default)
}

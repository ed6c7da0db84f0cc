//! Custom resources: what a CustomResourceDefinition adds to the served resources.
//!
//! [`resources`] compiles a definition into one [`Resource`] a served version; `controller` keeps the registry, the
//! definition's conditions and its finalizer true. Everything an object of such a resource goes through is in
//! `rules`, beside what built-in kinds go through; schemas are `machinery::crd`'s.

pub mod controller;
pub mod convert;
pub mod names;

use crate::resources::Resource;
use client::Object;
use k8s_schema::{Def, DefRef, Gvr, Held, ResourceRow, Subresource, compare_versions};
use machinery::crd::columns::Column;
use machinery::crd::jsonpath::JsonPath;
use machinery::crd::{self, Schema};
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// One version of a definition. It keeps the definition as the cache has it; most of a cluster's definitions never see
/// an object, so the schema is compiled when the first one comes.
pub struct Version {
    definition: Arc<Object>,
    /// Which of `spec.versions`.
    nth: usize,
    /// Of the published schema; the same for the same schema.
    pub hash: u64,
    schema: OnceLock<Schema>,
    /// Its part of the OpenAPI v2 document, once that was asked for.
    pub v2_proto: OnceLock<bytes::Bytes>,
}

impl Version {
    /// The schema as published.
    pub fn published(&self) -> Value {
        let definition = self.definition.value().unwrap_or_default();
        definition["spec"]["versions"][self.nth]["schema"]["openAPIV3Schema"].clone()
    }

    /// The compiled schema.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| {
            let definition = self.definition.value().unwrap_or_default();
            let spec = &definition["spec"];
            let mut schema = Schema::compile(&spec["versions"][self.nth]["schema"]["openAPIV3Schema"]);
            // Definitions converted from v1beta1 may keep everything.
            schema.preserve |= spec["preserveUnknownFields"] == true;
            schema
        })
    }
}

/// The fields that every object has.
pub static ENVELOPE: LazyLock<Arc<Def>> = LazyLock::new(|| crd::body::definition("", &Schema::default()));

/// What a custom resource's version has beyond its row.
pub struct Custom {
    /// Its schema.
    pub version: Arc<Version>,
    /// Of everything in the definition that its resources are made of.
    pub stamp: u64,
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
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
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

/// Changes when what [`resources`] makes of a definition does.
pub fn stamp(definition: &Value) -> u64 {
    let status = &definition["status"];
    hash_of(&json!([definition["spec"], status["acceptedNames"], status["storedVersions"]]))
}

/// Every served version of a definition, and the storage version even when it is not served (as the others' stored
/// form only). Reads `status.acceptedNames`, falling back to the wished names. `definition` is `object` as a value.
pub fn resources(realm: &str, object: &Arc<Object>, definition: &Value) -> Vec<Arc<Resource>> {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(storage) = versions.iter().position(|v| v["storage"] == true) else { return Vec::new() };
    let all: Vec<(Arc<Version>, Held<ResourceRow>)> = versions
        .iter()
        .enumerate()
        .map(|(nth, version)| {
            let own = Arc::new(Version {
                definition: object.clone(),
                nth,
                hash: hash_of(&version["schema"]["openAPIV3Schema"]),
                schema: OnceLock::new(),
                v2_proto: OnceLock::new(),
            });
            let row = row(definition, version, &versions[storage]["name"], own.clone());
            (own, Held::Shared(Arc::new(row)))
        })
        .collect();
    let group = spec["group"].as_str().unwrap_or_default();
    let plural = spec["names"]["plural"].as_str().unwrap_or_default();
    let webhook = spec["conversion"]["strategy"] == "Webhook";
    let served = versions.iter().zip(&all).filter(|(v, _)| v["served"] == true);
    let resource = |(version, (own, row)): (&Value, &(Arc<Version>, Held<ResourceRow>))| {
        // What a webhook converts is worked on in the version of the request.
        let stored = if webhook { row.clone() } else { all[storage].1.clone() };
        Arc::new(Resource {
            row: row.clone(),
            stored,
            prefix: format!("/{realm}/{group}/{plural}/").into(),
            custom: Some(Arc::new(custom(definition, version, own.clone()))),
        })
    };
    served.map(resource).collect()
}

fn hash_of(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

fn row(definition: &Value, version: &Value, storage: &Value, own: Arc<Version>) -> ResourceRow {
    let spec = &definition["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let accepted = &definition["status"]["acceptedNames"];
    let names = if accepted["plural"] == spec["names"]["plural"] { accepted } else { &spec["names"] };
    let (group, kind, name) = (text(&spec["group"]), text(&names["kind"]), text(&version["name"]));
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let defined = format!("{}.{name}.{kind}", reversed.join("."));
    let body = move || crd::body::definition(&defined, own.schema());
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
        def: DefRef::Later(Arc::new(LazyLock::new(Box::new(body)))),
        storage_version: text(storage).into(),
        storage_group: group.into(),
        legacy: false,
        gate: "",
    }
}

fn subresource(name: &'static str, (group, version, kind): (String, String, String)) -> Subresource {
    let gvk = (group.into(), version.into(), kind.into());
    Subresource { name: Held::Static(name), gvk, verbs: Held::Static(&PART_VERBS) }
}

fn custom(definition: &Value, version: &Value, own: Arc<Version>) -> Custom {
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
        columns: crd::columns::columns(version),
        selectable: selectable.collect(),
        scale: path("specReplicasPath").map(|wanted| Scale {
            wanted,
            actual: path("statusReplicasPath").unwrap_or_default(),
            selector: path("labelSelectorPath"),
        }),
        reshapes: several || has_default(&version["schema"]["openAPIV3Schema"]),
        webhook: convert::webhook(&definition["spec"], stored),
        stamp: stamp(definition),
        deprecation: (version["deprecated"] == true).then(|| deprecation(spec, version)),
        version: own,
    }
}

/// The definition's own words, or which newer version should be used.
fn deprecation(spec: &Value, version: &Value) -> String {
    if let Some(words) = version["deprecationWarning"].as_str() {
        return words.to_string();
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let (group, kind, name) = (text(&spec["group"]), text(&spec["names"]["kind"]), text(&version["name"]));
    let fresh = spec["versions"].as_array().into_iter().flatten();
    let fresh = fresh.filter(|v| v["served"] == true && v["deprecated"] != true).map(|v| text(&v["name"]));
    let newer = fresh.filter(|v| compare_versions(v, &name).is_lt()).min_by(|a, b| compare_versions(a, b));
    let instead = newer.map(|newest| format!("; use {group}/{newest} {kind}")).unwrap_or_default();
    format!("{group}/{name} {kind} is deprecated{instead}")
}

fn has_default(schema: &Value) -> bool {
    let properties = schema["properties"].as_object().into_iter().flat_map(|p| p.values());
    let mut below = properties.chain([&schema["items"], &schema["additionalProperties"]]);
    schema.get("default").is_some() || below.any(|b| b.is_object() && has_default(b))
}

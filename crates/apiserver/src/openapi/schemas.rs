//! Definitions: the schema table as OpenAPI schemas, v2 (`definitions`) and v3 (`components.schemas`).
//!
//! Starts from the rows' bodies and takes along whatever these refer to. References are lazy, so recursive
//! definitions end. Definitions of custom resources without a name are written in place.

use std::collections::{BTreeMap, BTreeSet};

use k8s_schema::{Def, DefRef, Field, ListType, PatchStrategy, ResourceRow, Type, def_by_name};
use serde_json::{Map, Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
/// How deep unnamed definitions are written in place; deeper ones are left open (CRDs may nest 64 levels).
const INLINE_DEPTH_MAX: usize = 64;
/// Fields that old versions had in `spec` and today's lack.
const LEGACY_SPEC_FIELDS: [&str; 2] = ["rollbackTo", "templateGeneration"];

/// What `kubectl explain` says of the fields that every object of a described kind has.
const OBJECT_FIELDS: [(&str, &str); 2] = [
    ("apiVersion", "APIVersion defines the version of the schema that this object is written in."),
    ("kind", "Kind is the name of this object's type."),
];
const METADATA: &str = "Standard object's metadata.";
const CREATED: &str = "CreationTimestamp is a timestamp of the moment at which the server made this object.";

/// OpenAPI version: it changes references and the scalars that are "this or that".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// 2.0.
    V2,
    /// 3.0.
    V3,
}

/// A schema that refers to a named one.
pub fn reference(dialect: Dialect, name: &str) -> Value {
    match dialect {
        Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

/// The full name of one of `metav1`'s definitions.
pub fn meta(kind: &str) -> String {
    format!("{META}.{kind}")
}

/// The name under which a row's body is defined.
pub fn body_name(row: &ResourceRow) -> String {
    // A custom resource's body has the name that is made below; it is not made for that.
    if !row.legacy && matches!(row.def, DefRef::Builtin(_)) {
        return row.def.get().name.to_string();
    }
    let prefix = if row.legacy {
        format!("io.k8s.api.{}", row.gvr.group)
    } else {
        row.gvr.group.rsplit('.').collect::<Vec<_>>().join(".")
    };
    format!("{prefix}.{}.{}", row.gvr.version, row.kind)
}

/// The name under which a row's list is defined.
pub fn list_name(row: &ResourceRow) -> String {
    format!("{}List", body_name(row))
}

/// All definitions that a document needs, by name.
pub struct Schemas {
    dialect: Dialect,
    done: BTreeMap<String, Value>,
    /// What was taken out earlier.
    given: BTreeSet<String>,
    pending: Vec<DefRef>,
}

impl Schemas {
    /// None yet.
    pub fn new(dialect: Dialect) -> Self {
        Schemas { dialect, done: BTreeMap::new(), given: BTreeSet::new(), pending: Vec::new() }
    }

    /// Adds a built-in definition by name; what is not built in is not added.
    pub fn add_builtin(&mut self, name: &str) {
        if let Some(def) = def_by_name(name) {
            self.insert(name, def);
        }
    }

    /// Adds a row's body and its list.
    pub fn add_row(&mut self, row: &ResourceRow, custom: Option<&Value>) {
        let (body, list) = (body_name(row), list_name(row));
        if matches!(row.def, DefRef::Builtin(_)) && !row.legacy {
            self.add_builtin(&body);
        } else {
            let mut schema = match custom {
                Some(published) => self.published_body(published),
                None => self.custom_body(row),
            };
            set_gvk(&mut schema, row, "");
            self.done.insert(body.clone(), schema);
        }
        if !row.verbs.contains(&"list") {
            return;
        }
        self.add_builtin(&list);
        if !self.has(&list) {
            let schema = self.custom_list(row, &body);
            self.done.insert(list, schema);
        }
    }

    /// Follows all references; what came since the last time, by name.
    pub fn take(&mut self) -> Map<String, Value> {
        while let Some(reference) = self.pending.pop() {
            let def = reference.get();
            self.insert(&def.name, def);
        }
        let done = std::mem::take(&mut self.done);
        self.given.extend(done.keys().cloned());
        done.into_iter().collect()
    }

    /// The names that were given out so far.
    pub fn given(&self) -> &BTreeSet<String> {
        &self.given
    }

    fn has(&self, name: &str) -> bool {
        self.done.contains_key(name) || self.given.contains(name)
    }

    fn insert(&mut self, name: &str, def: &Def) {
        if self.has(name) {
            return;
        }
        // Entered first: a definition may refer to itself.
        self.done.insert(name.to_owned(), Value::Null);
        let mut schema = self.object(def, 0);
        if name == meta("ObjectMeta") {
            let created = &mut schema["properties"]["creationTimestamp"];
            if self.dialect == Dialect::V3 {
                // Beside a reference nothing else counts there.
                *created = json!({"allOf": [created.take()]});
            }
            created["description"] = CREATED.into();
            schema["description"] = METADATA.into();
        }
        if !def.gvks.is_empty() {
            let gvks: Vec<Value> =
                def.gvks.iter().map(|(g, v, k)| json!({"group": g, "version": v, "kind": k})).collect();
            schema["x-kubernetes-group-version-kind"] = gvks.into();
        }
        self.done.insert(name.to_owned(), schema);
    }

    fn object(&mut self, def: &Def, depth: usize) -> Value {
        let mut schema = json!({"type": "object"});
        if !def.fields.is_empty() {
            let properties: Map<String, Value> =
                def.fields.iter().map(|f| (f.name.to_string(), self.field(f, depth))).collect();
            schema["properties"] = properties.into();
        }
        let required: Vec<&str> = def.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if def.map_atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schema
    }

    fn field(&mut self, field: &Field, depth: usize) -> Value {
        let mut schema = self.schema(&field.ty, depth);
        if matches!(field.ty, Type::Array(_)) {
            schema["x-kubernetes-list-type"] = match field.list_type {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            }
            .into();
        }
        if !field.list_keys.is_empty() {
            schema["x-kubernetes-list-map-keys"] = json!(&*field.list_keys);
        }
        let strategy = match field.patch_strategy {
            PatchStrategy::Replace => "",
            PatchStrategy::ReplaceObject => "replace",
            PatchStrategy::Merge => "merge",
            PatchStrategy::RetainKeys => "retainKeys",
            PatchStrategy::MergeRetainKeys => "merge,retainKeys",
        };
        for (key, value) in
            [("x-kubernetes-patch-strategy", strategy), ("x-kubernetes-patch-merge-key", &field.merge_key)]
        {
            if !value.is_empty() {
                schema[key] = value.into();
            }
        }
        let inherited = matches!(&field.ty, Type::Object(def) if def.get().map_atomic);
        if field.map_atomic != inherited {
            schema["x-kubernetes-map-type"] = if field.map_atomic { "atomic" } else { "granular" }.into();
        }
        if let Ok(default) = serde_json::from_str::<Value>(&field.default) {
            schema["default"] = default;
        }
        schema
    }

    fn schema(&mut self, ty: &Type, depth: usize) -> Value {
        let plain = |name: &str, format: &str| match format {
            "" => json!({"type": name}),
            _ => json!({"type": name, "format": format}),
        };
        match ty {
            Type::String => plain("string", ""),
            Type::Bytes => plain("string", "byte"),
            Type::Int32 => plain("integer", "int32"),
            Type::Int64 => plain("integer", "int64"),
            Type::Number => plain("number", "double"),
            Type::Bool => plain("boolean", ""),
            Type::Any => open(),
            Type::Time => self.scalar("io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
            Type::MicroTime => self.scalar("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime"),
            Type::Quantity => self.scalar("io.k8s.apimachinery.pkg.api.resource.Quantity"),
            Type::IntOrString => self.scalar("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            Type::Array(items) => json!({"type": "array", "items": self.schema(items, depth)}),
            Type::Map(values) => {
                json!({"type": "object", "additionalProperties": self.schema(values, depth)})
            }
            Type::Object(def) => self.object_or_reference(def, depth),
        }
    }

    fn object_or_reference(&mut self, reference_: &DefRef, depth: usize) -> Value {
        let def = reference_.get();
        if def.name.is_empty() {
            return if depth < INLINE_DEPTH_MAX { self.object(def, depth + 1) } else { open() };
        }
        if !self.has(&def.name) {
            self.pending.push(reference_.clone());
        }
        reference(self.dialect, &def.name)
    }

    /// One of the scalars that have a definition of their own.
    fn scalar(&mut self, name: &str) -> Value {
        if !self.has(name) {
            let schema = match (name.rsplit('.').next().unwrap_or_default(), self.dialect) {
                ("Quantity", Dialect::V2) => json!({"type": "string"}),
                ("Quantity", Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
                ("IntOrString", Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
                ("IntOrString", Dialect::V3) => {
                    json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
                }
                _ => json!({"type": "string", "format": "date-time"}),
            };
            self.done.insert(name.to_owned(), schema);
        }
        reference(self.dialect, name)
    }

    /// The body of a custom resource as its definition's schema says, with what every object has.
    fn published_body(&mut self, published: &Value) -> Value {
        if !published.is_object() || (self.dialect == Dialect::V2 && published[PRESERVE] == true) {
            return json!({"type": "object"});
        }
        let mut schema = published.clone();
        self.complete(&mut schema, true);
        schema
    }

    /// Gives objects their own fields; for v2, leaves out what its readers (kubectl's validation) cannot bear.
    fn complete(&mut self, schema: &mut Value, object: bool) {
        let embedded = object || schema["x-kubernetes-embedded-resource"] == true;
        let Some(map) = schema.as_object_mut() else { return };
        if self.dialect == Dialect::V2 {
            ["allOf", "anyOf", "oneOf", "not"].iter().for_each(|key| drop(map.remove(*key)));
            if map.remove("nullable") == Some(Value::Bool(true)) {
                ["type", "items", "properties", "additionalProperties"]
                    .iter()
                    .for_each(|key| drop(map.remove(*key)));
            }
            if map.get(PRESERVE) == Some(&Value::Bool(true)) {
                // Without a type too: of a map, old kubectls look at each value and stumble over null.
                ["type", "items", "properties"].iter().for_each(|key| drop(map.remove(*key)));
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(below) = map.get_mut(key) {
                self.complete(below, false);
            }
        }
        for below in
            map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|p| p.values_mut())
        {
            self.complete(below, false);
        }
        if embedded && !(self.dialect == Dialect::V2 && map.contains_key(PRESERVE)) {
            let metadata = self.meta_reference("ObjectMeta");
            let properties = &mut schema["properties"];
            for (name, text) in OBJECT_FIELDS {
                properties[name] = json!({"type": "string", "description": text});
            }
            properties["metadata"] = metadata;
            if self.dialect == Dialect::V2 {
                properties["metadata"]["description"] = METADATA.into();
            }
        }
    }

    /// The body of a custom or legacy resource: as its definition says, with type and object metadata.
    fn custom_body(&mut self, row: &ResourceRow) -> Value {
        let mut schema = self.object(row.def.get(), 0);
        let metadata = self.meta_reference("ObjectMeta");
        let properties = &mut schema["properties"];
        properties["apiVersion"] = json!({"type": "string"});
        properties["kind"] = json!({"type": "string"});
        properties["metadata"] = metadata;
        if row.legacy {
            schema["properties"]["spec"] = self.legacy_spec(row);
        }
        schema
    }

    /// Old versions required less (a selector was made from the labels) and had fields of their own.
    fn legacy_spec(&mut self, row: &ResourceRow) -> Value {
        if row.gvr.resource == "customresourcedefinitions" {
            return open();
        }
        let Some(Type::Object(spec)) = row.def.get().field("spec").map(|f| &f.ty) else { return open() };
        let mut schema = self.object(spec.get(), 0);
        if let Some(object) = schema.as_object_mut() {
            object.remove("required");
        }
        for field in LEGACY_SPEC_FIELDS {
            schema["properties"][field] = open();
        }
        schema
    }

    fn custom_list(&mut self, row: &ResourceRow, body: &str) -> Value {
        let metadata = self.meta_reference("ListMeta");
        let mut schema = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "items": {"type": "array", "items": reference(self.dialect, body)},
                "kind": {"type": "string"},
                "metadata": metadata,
            },
        });
        set_gvk(&mut schema, row, "List");
        schema
    }

    fn meta_reference(&mut self, kind: &str) -> Value {
        let name = meta(kind);
        self.add_builtin(&name);
        reference(self.dialect, &name)
    }
}

/// Anything goes. Never an empty object: `kubectl explain` takes that for no schema at all.
fn open() -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true})
}

fn set_gvk(schema: &mut Value, row: &ResourceRow, suffix: &str) {
    let kind = format!("{}{suffix}", row.kind);
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": row.gvr.group, "version": row.gvr.version, "kind": kind}]);
}

//! CustomResourceDefinition: defaults, validation, strategy, columns of the definition itself.
//!
//! The rules for its schemas are in [`schema`]. Deliberately not here: serving custom resources, compiling schemas,
//! accepting names (a controller's), CEL.

pub mod schema;

use super::admission_policy::mixed_case;
use super::get::{
    at, child, default, enumerated, enumerated_opt, field, flag, has, list, required, set, text, texts,
};
use super::pod::condition;
use super::webhooks::{client_config, review_versions};
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GROUP: &str = "apiextensions.k8s.io";
/// The annotation that groups of the project itself need.
const APPROVED: &str = "api-approved.kubernetes.io";
const DEPRECATION_MAX: usize = 256;
const SELECTABLE_FIELDS_MAX: usize = 8;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    group: GROUP,
    resource: "customresourcedefinitions",
    validated: true,
    generation: true,
    unconditional_update: false,
    defaults,
    prepare_create: |obj| {
        set(
            obj,
            "status",
            json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": [], "storedVersions": []}),
        );
        note_stored_version(obj);
        await_cleanup(obj);
    },
    prepare_update: |new, _| note_stored_version(new),
    validate_create: create,
    validate_update: update,
    validate_status: |new, _, errors| names(&new["status"]["acceptedNames"], "status.acceptedNames", errors),
    columns: &[
        Column::NAME,
        Column {
            name: "Created At",
            ty: "date",
            format: "",
            priority: 0,
            cell: Cell::Text("/metadata/creationTimestamp"),
        },
    ],
    ..GENERIC
}];

fn defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    let kind = text(spec, "/names/kind").to_string();
    if !kind.is_empty() {
        at(spec, "/names", |names| {
            default(names, "singular", kind.to_lowercase());
            default(names, "listKind", format!("{kind}List"));
        });
    }
    if let Some(conversion) = child(spec, "conversion") {
        default(conversion, "strategy", "None");
        at(conversion, "/webhook/clientConfig/service", |s| default(s, "port", 443));
    }
}

/// The finalizer by which a definition waits for its objects to go.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition goes after its objects.
fn await_cleanup(obj: &mut Value) {
    let Some(metadata) = child(obj, "metadata") else { return };
    if !texts(metadata, "/finalizers").any(|f| f == CLEANUP) {
        let mut all: Vec<Value> = list(metadata, "/finalizers").to_vec();
        all.push(CLEANUP.into());
        set(metadata, "finalizers", Value::Array(all));
    }
}

/// Whatever version is the storage version now may be in the store from now on.
fn note_stored_version(obj: &mut Value) {
    let stored = list(obj, "/spec/versions").iter().find(|v| flag(v, "/storage"));
    let Some(stored) = stored.map(|v| text(v, "/name").to_string()) else { return };
    if texts(obj, "/status/storedVersions").any(|v| *v == stored) {
        return;
    }
    if let Some(status) = child(obj, "status") {
        let mut all: Vec<Value> = list(status, "/storedVersions").to_vec();
        all.push(stored.into());
        set(status, "storedVersions", Value::Array(all));
    }
}

fn create(obj: &Value, errors: &mut FieldErrors) {
    let wanted = format!("{}.{}", text(obj, "/spec/names/plural"), text(obj, "/spec/group"));
    if text(obj, "/metadata/name") != wanted {
        let words = "must be spec.names.plural+\".\"+spec.group";
        errors.invalid("metadata.name", text(obj, "/metadata/name"), words);
    }
    definition(obj, None, errors);
}

fn update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    definition(new, Some(old), errors);
    let mut fixed = vec!["group", "names.plural"];
    if condition(old, "Established") == "True" {
        fixed = vec!["scope", "names.kind", "group", "names.plural"];
    }
    for path in fixed {
        let pointer = format!("/spec/{}", path.replace('.', "/"));
        let value = |v: &Value| v.pointer(&pointer).cloned().unwrap_or_default();
        errors.immutable(&format!("spec.{path}"), &value(new), &value(old));
    }
}

fn definition(obj: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    let group = text(spec, "/group");
    let complaints = name::dns1123_subdomain(group);
    if group.is_empty() {
        errors.required("spec.group", "");
    } else if !complaints.is_empty() {
        errors.invalid("spec.group", group, &complaints.join(","));
    } else if !group.contains('.') {
        errors.invalid("spec.group", group, "should be a domain with at least one dot");
    }
    enumerated(spec, "spec", "scope", &["Cluster", "Namespaced"], errors);
    versions(spec, old, errors);
    for key in ["plural", "singular", "kind", "listKind"] {
        required(&spec["names"], "spec.names", key, errors);
    }
    names(&spec["names"], "spec.names", errors);
    let was_kept = old.is_some_and(|o| flag(o, "/spec/preserveUnknownFields"));
    if flag(spec, "/preserveUnknownFields") && !was_kept {
        let words = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid("spec.preserveUnknownFields", true, words);
    }
    conversion(&spec["conversion"], "spec.conversion", errors);
    names(&obj["status"]["acceptedNames"], "status.acceptedNames", errors);
    stored_versions(obj, errors);
    approval(obj, old, group, errors);
}

fn versions(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let all = list(spec, "/versions");
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for (i, version) in all.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        unique &= seen.insert(text(version, "/name"));
        let own = text(version, "/name");
        let complaints = name::dns1035_label(own);
        if !complaints.is_empty() {
            errors.invalid(&format!("{path}.name"), own, &complaints.join(","));
        }
        // What is stored already without a schema may stay so.
        let lacked =
            old.is_some_and(|o| list(o, "/spec/versions").iter().any(|v| !has(v, "/schema/openAPIV3Schema")));
        if !has(version, "/schema/openAPIV3Schema") && !lacked {
            errors.required(&format!("{path}.schema.openAPIV3Schema"), "schemas are required");
        }
        one_version(version, &path, errors);
        let same = |v: &Value| v["name"] == version["name"] && v["schema"] == version["schema"];
        if !old.is_some_and(|o| list(o, "/spec/versions").iter().any(same)) {
            let path = format!("{path}.schema.openAPIV3Schema");
            crate::crd::rules::check(&version["schema"]["openAPIV3Schema"], &path, errors);
        }
    }
    if !unique {
        errors.invalid("spec.versions", all.to_vec(), "must contain unique version names");
    }
    if all.iter().filter(|v| flag(v, "/storage")).count() != 1 {
        let words = "must have exactly one version marked as storage version";
        errors.invalid("spec.versions", all.to_vec(), words);
    }
}

fn one_version(version: &Value, path: &str, errors: &mut FieldErrors) {
    deprecation(version, path, errors);
    if has(version, "/schema/openAPIV3Schema") {
        let with_status = has(version, "/subresources/status");
        let path = format!("{path}.schema.openAPIV3Schema");
        schema::root(&version["schema"]["openAPIV3Schema"], with_status, &path, errors);
    }
    scale(&version["subresources"]["scale"], &format!("{path}.subresources"), errors);
    for (i, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
        printer_column(column, &format!("{path}.additionalPrinterColumns[{i}]"), errors);
    }
    let selectable = list(version, "/selectableFields");
    let path = format!("{path}.selectableFields");
    if selectable.len() > SELECTABLE_FIELDS_MAX {
        errors.too_many(&path, selectable.len(), SELECTABLE_FIELDS_MAX);
    }
    let mut seen = BTreeSet::new();
    for (i, given) in selectable.iter().enumerate() {
        let at = format!("{path}[{i}].jsonPath");
        let Some(json_path) = required(given, &format!("{path}[{i}]"), "jsonPath", errors) else { continue };
        if !seen.insert(json_path) {
            errors.duplicate(&at, json_path);
        }
        let wanted = schema::at_path(&version["schema"]["openAPIV3Schema"], json_path);
        match wanted.map(|s| text(s, "/type")) {
            Some("string" | "boolean" | "integer") if json_path.starts_with(".metadata.") => {
                errors.invalid(&at, json_path, "must not point to fields in metadata");
            }
            Some("string" | "boolean" | "integer") => {}
            _ => errors.invalid(
                &at,
                json_path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
        }
    }
}

fn deprecation(version: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(words) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let path = format!("{path}.deprecationWarning");
    if !flag(version, "/deprecated") {
        return errors.invalid(&path, words, "can only be set for deprecated versions");
    }
    if words.len() > DEPRECATION_MAX {
        errors.invalid(&path, words, "must be <= 256 characters long");
    }
    if words.is_empty() {
        errors.invalid(&path, words, "must not be an empty string");
    }
    if let Some((at, _)) = words.char_indices().find(|(_, c)| c.is_control()) {
        let why = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        );
        errors.invalid(&path, words, &why);
    }
}

/// Names that are given must be well formed; the definition's own are also required.
fn names(names: &Value, path: &str, errors: &mut FieldErrors) {
    let label = |given: &str, path: &str, errors: &mut FieldErrors| {
        let complaints = name::dns1035_label(given);
        if !complaints.is_empty() {
            errors.invalid(path, given, &complaints.join(","));
        }
    };
    for key in ["plural", "singular"] {
        let given = text(names, &format!("/{key}"));
        if !given.is_empty() {
            label(given, &field(path, key), errors);
        }
    }
    for key in ["kind", "listKind"] {
        let given = text(names, &format!("/{key}"));
        if !given.is_empty() {
            mixed_case(given, &field(path, key), errors);
        }
    }
    for (i, given) in texts(names, "/shortNames").enumerate() {
        label(given, &format!("{path}.shortNames[{i}]"), errors);
    }
    let kind = text(names, "/kind");
    if !kind.is_empty() && kind == text(names, "/listKind") {
        errors.invalid(&field(path, "listKind"), kind, "kind and listKind may not be the same");
    }
    for (i, given) in texts(names, "/categories").enumerate() {
        label(given, &format!("{path}.categories[{i}]"), errors);
    }
}

fn printer_column(column: &Value, path: &str, errors: &mut FieldErrors) {
    required(column, path, "name", errors);
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match text(column, "/type") {
        "" => errors.required(&format!("{path}.type"), &types),
        given if !COLUMN_TYPES.contains(&given) => errors.invalid(&format!("{path}.type"), given, &types),
        _ => {}
    }
    let format = text(column, "/format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let words = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.invalid(&format!("{path}.format"), format, &words);
    }
    match text(column, "/jsonPath") {
        "" => errors.required(&format!("{path}.JSONPath"), ""),
        given => drop(simple_path(given, &format!("{path}.JSONPath"), errors)),
    }
}

fn simple_path(given: &str, path: &str, errors: &mut FieldErrors) -> bool {
    let ok = given.starts_with('.');
    if !ok {
        errors.invalid(path, given, "must be a simple json path starting with .");
    }
    ok
}

fn scale(scale: &Value, path: &str, errors: &mut FieldErrors) {
    if scale.is_null() {
        return;
    }
    for (key, prefixes, words, needed) in [
        ("specReplicasPath", &[".spec."][..], "should be a json path under .spec", true),
        ("statusReplicasPath", &[".status."], "should be a json path under .status", true),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
            false,
        ),
    ] {
        let (given, at) = (text(scale, &format!("/{key}")), format!("{path}.scale.{key}"));
        match given {
            "" if needed => errors.required(&at, ""),
            "" => {}
            given => {
                if simple_path(given, &at, errors) && !prefixes.iter().any(|p| given.starts_with(p)) {
                    errors.invalid(&at, given, words);
                }
            }
        }
    }
}

fn conversion(conversion: &Value, path: &str, errors: &mut FieldErrors) {
    enumerated_opt(conversion, path, "strategy", &["None", "Webhook"], errors);
    let given = has(conversion, "/webhook");
    if text(conversion, "/strategy") != "Webhook" {
        if has(conversion, "/webhook/clientConfig") {
            let words = "should not be set when strategy is not set to Webhook";
            errors.forbidden(&format!("{path}.webhookClientConfig"), words);
        }
        if !list(conversion, "/webhook/conversionReviewVersions").is_empty() {
            let words = "should not be set when strategy is not set to Webhook";
            errors.forbidden(&format!("{path}.conversionReviewVersions"), words);
        }
        return;
    }
    let webhook = &conversion["webhook"];
    if given && has(webhook, "/clientConfig") {
        client_config(&webhook["clientConfig"], &format!("{path}.webhookClientConfig"), errors);
    } else {
        errors.required(&format!("{path}.webhookClientConfig"), "required when strategy is set to Webhook");
    }
    if list(webhook, "/conversionReviewVersions").is_empty() {
        errors.required(&format!("{path}.conversionReviewVersions"), "");
    } else {
        review_versions(webhook, "conversionReviewVersions", path, errors);
    }
}

fn stored_versions(obj: &Value, errors: &mut FieldErrors) {
    let stored: Vec<&str> = texts(obj, "/status/storedVersions").collect();
    let path = "status.storedVersions";
    if stored.is_empty() {
        return errors.invalid(path, stored, "must have at least one stored version");
    }
    let all = list(obj, "/spec/versions");
    for version in all.iter().filter(|v| flag(v, "/storage")) {
        let own = text(version, "/name");
        if !stored.contains(&own) {
            errors.invalid(path, version.clone(), &format!("must have the storage version {own}"));
        }
    }
    for (i, own) in stored.iter().enumerate() {
        if !all.iter().any(|v| text(v, "/name") == *own) {
            errors.invalid(&format!("{path}[{i}]"), *own, "must appear in spec.versions");
        }
    }
}

/// Groups of the project itself need its approval: an annotation with a URL.
fn approval(obj: &Value, old: Option<&Value>, group: &str, errors: &mut FieldErrors) {
    let protected = group == "k8s.io"
        || group == "kubernetes.io"
        || group.ends_with(".k8s.io")
        || group.ends_with(".kubernetes.io");
    let given = |v: &Value| {
        let mut all = super::get::entries(v, "/metadata/annotations");
        all.find(|(k, _)| *k == APPROVED).map(|(_, v)| v.as_str().unwrap_or_default().to_string())
    };
    let approved = |text: &Option<String>| {
        text.as_deref().is_some_and(|t| t.starts_with("unapproved") || t.contains("://"))
    };
    let own = given(obj);
    if !protected || approved(&own) || old.is_some_and(|o| given(o) == own) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    match own {
        None => errors.required(
            &path,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ),
        Some(text) => {
            let why = format!(
                "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.invalid(&path, text, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::get::{each, remove};

    fn each_version(obj: &mut Value, f: impl FnMut(&mut Value)) {
        each(obj, "/spec/versions", f);
    }

    fn good() -> Value {
        let mut crd = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}}]}});
        defaults(&mut crd);
        note_stored_version(&mut crd);
        crd
    }

    fn found(crd: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        create(crd, &mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn a_plain_definition() {
        let crd = good();
        assert_eq!(found(&crd), Vec::<String>::new());
        assert_eq!(
            crd["spec"]["names"],
            json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"})
        );
        assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    }

    #[test]
    fn bad_definitions() {
        type Spoil = fn(&mut Value);
        let rows: &[(Spoil, &str)] = &[
            (
                |c| c["metadata"]["name"] = json!("x"),
                "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                |c| c["spec"]["scope"] = json!("World"),
                "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            (
                |c| each_version(c, |v| drop(remove(v, "schema"))),
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ),
            (
                |c| c["spec"]["names"]["listKind"] = json!("Foo"),
                "spec.names.listKind: Invalid value: \"Foo\": kind and listKind may not be the same",
            ),
            (
                |c| c["spec"]["preserveUnknownFields"] = json!(true),
                "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
            ),
            (
                |c| c["spec"]["conversion"]["strategy"] = json!("Webhook"),
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            ),
            (
                |c| {
                    each_version(c, |v| {
                        set(
                            v,
                            "additionalPrinterColumns",
                            json!([{"name": "a", "type": "x", "jsonPath": ".a"}]),
                        )
                    })
                },
                "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string",
            ),
            (
                |c| {
                    each_version(c, |v| {
                        set(
                            v,
                            "subresources",
                            json!({"scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".spec.n"}}),
                        )
                    })
                },
                "spec.versions[0].subresources.scale.statusReplicasPath: Invalid value: \".spec.n\": should be a json path under .status",
            ),
        ];
        for (spoil, expected) in rows {
            let mut crd = good();
            spoil(&mut crd);
            assert_eq!(found(&crd).first().map(String::as_str), Some(*expected));
        }
        let mut twice = good();
        let mut second = twice["spec"]["versions"][0].clone();
        second["name"] = json!("v2");
        twice["spec"]["versions"] = json!([twice["spec"]["versions"][0], second]);
        assert!(found(&twice)[0].ends_with("must have exactly one version marked as storage version"));
    }

    #[test]
    fn updates_keep_the_name_and_remember_versions() {
        let old = good();
        let mut new = old.clone();
        let mut second = new["spec"]["versions"][0].clone();
        second["name"] = json!("v2");
        new["spec"]["versions"] = json!([new["spec"]["versions"][0], second]);
        new["spec"]["versions"][0]["storage"] = json!(false);
        note_stored_version(&mut new);
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
        let mut errors = FieldErrors::new();
        update(&new, &old, &mut errors);
        assert_eq!(errors, FieldErrors::new());
        new["spec"]["group"] = json!("example.org");
        update(&new, &old, &mut errors);
        assert_eq!(errors.causes()[0].message, "Invalid value: \"example.org\": field is immutable");
    }
}

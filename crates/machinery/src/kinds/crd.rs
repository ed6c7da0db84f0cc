//! CustomResourceDefinition: defaults, validation, strategy, columns of the definition itself.
//!
//! The rules for its schemas are in [`schema`]. Deliberately not here: serving custom resources, compiling schemas,
//! accepting names (a controller's), CEL.

pub mod schema;

use super::admission_policy::mixed_case;
use super::get::{at, child, default, flag, has, list, set, text, texts};
use super::pod::condition;
use super::spot::Spot;
use super::webhooks::{client_config, review_versions};
use super::{Behaviour, COUNTED};
use crate::name;
use crate::table::Column;
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
    validate: create,
    validate_update: Some(update),
    validate_status: |s, _| names(&s.key("status.acceptedNames")),
    columns: &[Column::NAME, Column::CREATED],
    ..COUNTED
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

fn create(obj: &Spot) {
    let spec = obj.key("spec");
    if obj.text("metadata.name") != format!("{}.{}", spec.text("names.plural"), spec.text("group")) {
        let words = "must be spec.names.plural+\".\"+spec.group";
        obj.invalid("metadata.name", obj.text("metadata.name"), words);
    }
    definition(obj, None);
}

fn update(new: &Spot, old: &Value) {
    definition(new, Some(old));
    let established = condition(old, "Established") == "True";
    let fixed = ["spec.scope", "spec.names.kind", "spec.group", "spec.names.plural"];
    fixed[if established { 0 } else { 2 }..].iter().for_each(|path| new.immutable(path, old));
}

fn definition(obj: &Spot, old: Option<&Value>) {
    let spec = obj.key("spec");
    let group = spec.text("group");
    let complaints = name::dns1123_subdomain(group);
    if group.is_empty() {
        spec.required("group", "");
    } else if !complaints.is_empty() {
        spec.wrong("group", &complaints.join(","));
    } else if !group.contains('.') {
        spec.wrong("group", "should be a domain with at least one dot");
    }
    spec.one_of("scope", &["Cluster", "Namespaced"]);
    versions(&spec, old);
    for key in ["plural", "singular", "kind", "listKind"] {
        spec.key("names").need(key);
    }
    names(&spec.key("names"));
    let was_kept = old.is_some_and(|o| flag(o, "/spec/preserveUnknownFields"));
    if spec.flag("preserveUnknownFields") && !was_kept {
        let words = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        spec.invalid("preserveUnknownFields", true, words);
    }
    conversion(&spec.key("conversion"));
    names(&obj.key("status.acceptedNames"));
    stored_versions(obj);
    approval(obj, old, group);
}

fn versions(spec: &Spot, old: Option<&Value>) {
    let before = old.map_or(&[][..], |o| list(o, "/spec/versions"));
    // What is stored already without a schema may stay so.
    let lacked = before.iter().any(|v| !has(v, "/schema/openAPIV3Schema"));
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for version in spec.each("versions") {
        unique &= seen.insert(version.text("name"));
        let complaints = name::dns1035_label(version.text("name"));
        if !complaints.is_empty() {
            version.invalid("name", version.text("name"), &complaints.join(","));
        }
        if !version.has("schema.openAPIV3Schema") && !lacked {
            version.required("schema.openAPIV3Schema", "schemas are required");
        }
        one_version(&version);
        let same = |v: &Value| v["name"] == version.v["name"] && v["schema"] == version.v["schema"];
        if !before.iter().any(same) {
            version.key("schema.openAPIV3Schema").with(crate::crd::rules::check);
        }
    }
    if !unique {
        spec.invalid("versions", spec.list("versions"), "must contain unique version names");
    }
    if spec.list("versions").iter().filter(|v| flag(v, "/storage")).count() != 1 {
        let words = "must have exactly one version marked as storage version";
        spec.invalid("versions", spec.list("versions"), words);
    }
}

fn one_version(version: &Spot) {
    deprecation(version);
    let own = version.key("schema.openAPIV3Schema");
    if !own.v.is_null() {
        schema::root(&own, version.has("subresources.status"));
    }
    version.opt("subresources.scale").iter().for_each(scale);
    version.each("additionalPrinterColumns").for_each(|column| printer_column(&column));
    version.at_most("selectableFields", SELECTABLE_FIELDS_MAX);
    let mut seen = BTreeSet::new();
    for given in version.each("selectableFields") {
        let Some(json_path) = given.need("jsonPath") else { continue };
        given.unique("jsonPath", json_path, &mut seen);
        match schema::at_path(own.v, json_path).map(|s| text(s, "/type")) {
            Some("string" | "boolean" | "integer") if json_path.starts_with(".metadata.") => {
                given.wrong("jsonPath", "must not point to fields in metadata");
            }
            Some("string" | "boolean" | "integer") => {}
            _ => {
                let words = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                given.wrong("jsonPath", words);
            }
        }
    }
}

fn deprecation(version: &Spot) {
    let Some(words) = version.v.get("deprecationWarning").and_then(Value::as_str) else { return };
    let wrong = |why: &str| version.wrong("deprecationWarning", why);
    if !version.flag("deprecated") {
        return wrong("can only be set for deprecated versions");
    }
    if words.len() > DEPRECATION_MAX {
        wrong("must be <= 256 characters long");
    }
    if words.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some((at, _)) = words.char_indices().find(|(_, c)| c.is_control()) {
        wrong(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

/// Names that are given must be well formed; the definition's own are also required.
fn names(names: &Spot) {
    let label = |s: Spot| {
        let complaints = name::dns1035_label(s.text(""));
        if !complaints.is_empty() {
            s.wrong("", &complaints.join(","));
        }
    };
    let given = |key: &&str| !names.text(key).is_empty();
    ["plural", "singular"].iter().copied().filter(given).for_each(|key| label(names.key(key)));
    ["kind", "listKind"].iter().copied().filter(given).for_each(|key| mixed_case(names, key));
    names.each("shortNames").for_each(label);
    let kind = names.text("kind");
    if !kind.is_empty() && kind == names.text("listKind") {
        names.wrong("listKind", "kind and listKind may not be the same");
    }
    names.each("categories").for_each(label);
}

fn printer_column(column: &Spot) {
    column.need("name");
    let types = format!("must be one of {}", COLUMN_TYPES.join(","));
    match column.text("type") {
        "" => column.required("type", &types),
        given if !COLUMN_TYPES.contains(&given) => column.wrong("type", &types),
        _ => {}
    }
    let format = column.text("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        column.wrong("format", &format!("must be one of {}", COLUMN_FORMATS.join(",")));
    }
    match column.text("jsonPath") {
        "" => column.required("JSONPath", ""),
        _ => drop(simple_path(&column.key("jsonPath").named(column.at("JSONPath")))),
    }
}

fn simple_path(s: &Spot) -> bool {
    let ok = s.text("").starts_with('.');
    if !ok {
        s.wrong("", "must be a simple json path starting with .");
    }
    ok
}

fn scale(scale: &Spot) {
    for (key, prefixes, place, needed) in [
        ("specReplicasPath", &[".spec."][..], ".spec", true),
        ("statusReplicasPath", &[".status."], ".status", true),
        ("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status", false),
    ] {
        let (given, own) = (scale.text(key), scale.key(key));
        if given.is_empty() {
            if needed {
                own.required("", "");
            }
        } else if simple_path(&own) && !prefixes.iter().any(|p| given.starts_with(p)) {
            own.wrong("", &format!("should be a json path under {place}"));
        }
    }
}

fn conversion(conversion: &Spot) {
    conversion.one_of_opt("strategy", &["None", "Webhook"]);
    let webhook = conversion.key("webhook");
    let config = webhook.key("clientConfig").named(conversion.at("webhookClientConfig"));
    let versions = webhook.list("conversionReviewVersions");
    if conversion.text("strategy") != "Webhook" {
        let words = "should not be set when strategy is not set to Webhook";
        if config.has("") {
            config.forbidden("", words);
        }
        if !versions.is_empty() {
            conversion.forbidden("conversionReviewVersions", words);
        }
        return;
    }
    if config.has("") {
        client_config(&config);
    } else {
        config.required("", "required when strategy is set to Webhook");
    }
    if versions.is_empty() {
        conversion.required("conversionReviewVersions", "");
    } else {
        review_versions(&webhook.named(conversion.at("")), "conversionReviewVersions");
    }
}

fn stored_versions(obj: &Spot) {
    let stored = obj.key("status.storedVersions");
    let given = stored.texts("");
    if given.is_empty() {
        return stored.invalid("", given, "must have at least one stored version");
    }
    let all = obj.list("spec.versions");
    for version in all.iter().filter(|v| flag(v, "/storage")) {
        let own = text(version, "/name");
        if !given.contains(&own) {
            stored.invalid("", version.clone(), &format!("must have the storage version {own}"));
        }
    }
    for own in stored.each("").filter(|own| !all.iter().any(|v| text(v, "/name") == own.text(""))) {
        own.wrong("", "must appear in spec.versions");
    }
}

/// Groups of the project itself need its approval: an annotation with a URL.
fn approval(obj: &Spot, old: Option<&Value>, group: &str) {
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let given = |v: &Value| {
        let mut all = super::get::entries(v, "/metadata/annotations");
        all.find(|(k, _)| *k == APPROVED).map(|(_, v)| v.as_str().unwrap_or_default().to_string())
    };
    let approved = |text: &Option<String>| {
        text.as_deref().is_some_and(|t| t.starts_with("unapproved") || t.contains("://"))
    };
    let own = given(obj.v);
    if !protected || approved(&own) || old.is_some_and(|o| given(o) == own) {
        return;
    }
    let key = format!("metadata.annotations[{APPROVED}]");
    let words = format!("protected groups must have approval annotation \"{APPROVED}\"");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match own {
        None => obj.required(&key, &format!("{words}, {see}")),
        Some(text) => {
            let form = "with either a URL or a reason starting with \"unapproved\"";
            obj.invalid(&key, text, &format!("{words} {form}, {see}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
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
        create(&Spot::new(crd, "", &mut errors));
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
        update(&Spot::new(&new, "", &mut errors), &old);
        assert_eq!(errors, FieldErrors::new());
        new["spec"]["group"] = json!("example.org");
        update(&Spot::new(&new, "", &mut errors), &old);
        assert_eq!(errors.causes()[0].message, "Invalid value: \"example.org\": field is immutable");
    }
}

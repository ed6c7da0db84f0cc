//! The resource PodSecurityPolicy: a definition in code, served as custom resources are, in the group that it was in
//! last and in the one before.

use super::{GROUP, OLD_GROUP, RESOURCE};
use crate::custom;
use crate::resources::Resource;
use client::Object;
use k8s_schema::Held;
use serde_json::{Value, json};
use std::sync::Arc;

/// The name of the definition, which is stored nowhere.
pub const NAME: &str = "podsecuritypolicies.policy";

/// Fields of the specification that are one word of a schema each.
const FIELDS: [(&str, &str); 20] = [
    ("allowPrivilegeEscalation", "truth"),
    ("allowedCSIDrivers", "names"),
    ("allowedCapabilities", "texts"),
    ("allowedFlexVolumes", "drivers"),
    ("allowedHostPaths", "paths"),
    ("allowedProcMountTypes", "texts"),
    ("allowedUnsafeSysctls", "texts"),
    ("defaultAddCapabilities", "texts"),
    ("defaultAllowPrivilegeEscalation", "bool"),
    ("forbiddenSysctls", "texts"),
    ("hostIPC", "bool"),
    ("hostNetwork", "bool"),
    ("hostPID", "bool"),
    ("hostPorts", "ranges"),
    ("privileged", "untruth"),
    ("readOnlyRootFilesystem", "untruth"),
    ("requiredDropCapabilities", "texts"),
    ("runtimeClass", "runtimeClass"),
    ("seLinux", "labels"),
    ("volumes", "texts"),
];
/// Rules about ids, with what they may be.
const RULES: [(&str, [&str; 3]); 4] = [
    ("fsGroup", ["MayRunAs", "MustRunAs", "RunAsAny"]),
    ("runAsGroup", ["MayRunAs", "MustRunAs", "RunAsAny"]),
    ("runAsUser", ["MustRunAs", "MustRunAsNonRoot", "RunAsAny"]),
    ("supplementalGroups", ["MayRunAs", "MustRunAs", "RunAsAny"]),
];
/// Columns with where they are read.
const COLUMNS: [(&str, &str); 8] = [
    ("Priv", "privileged"),
    ("Caps", "allowedCapabilities"),
    ("SELinux", "seLinux.rule"),
    ("RunAsUser", "runAsUser.rule"),
    ("FsGroup", "fsGroup.rule"),
    ("SupGroup", "supplementalGroups.rule"),
    ("ReadOnlyRootFs", "readOnlyRootFilesystem"),
    ("Volumes", "volumes"),
];

fn schema(word: &str) -> Value {
    let text = || json!({"type": "string"});
    let list = |items: Value| json!({"type": "array", "items": items});
    let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let number = || json!({"type": "integer", "format": "int64", "minimum": 0});
    let range = json!({"type": "object", "properties": {"min": number(), "max": number()}, "required": ["min", "max"],
        "x-kubernetes-validations": [{"rule": "self.min <= self.max", "message": "min cannot be greater than max"}]});
    match word {
        "bool" => json!({"type": "boolean"}),
        "truth" => json!({"type": "boolean", "default": true}),
        "untruth" => json!({"type": "boolean", "default": false}),
        "texts" => list(text()),
        "names" => list(object(json!({"name": text()}), &["name"])),
        "drivers" => list(object(json!({"driver": text()}), &["driver"])),
        "paths" => {
            list(object(json!({"pathPrefix": text(), "readOnly": {"type": "boolean"}}), &["pathPrefix"]))
        }
        "ranges" => list(range),
        "runtimeClass" => object(
            json!({"allowedRuntimeClassNames": list(text()), "defaultRuntimeClassName": text()}),
            &["allowedRuntimeClassNames"],
        ),
        _ => {
            let options = json!({"level": text(), "role": text(), "type": text(), "user": text()});
            let rule = json!({"type": "string", "enum": ["MustRunAs", "RunAsAny"]});
            object(json!({"rule": rule, "seLinuxOptions": object(options, &[])}), &["rule"])
        }
    }
}

fn definition() -> Value {
    let mut fields = json!({});
    for (field, word) in FIELDS {
        fields[field] = schema(word);
    }
    for (field, rules) in RULES {
        fields[field] = json!({"type": "object", "required": ["rule"],
            "properties": {"rule": {"type": "string", "enum": rules}, "ranges": schema("ranges")}});
    }
    let column = |(name, at): &(&str, &str)| json!({"name": name, "type": "string", "jsonPath": format!(".spec.{at}")});
    let columns: Vec<Value> = COLUMNS.iter().map(column).collect();
    let spec = json!({"type": "object", "properties": fields,
        "required": ["fsGroup", "runAsUser", "seLinux", "supplementalGroups"]});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": NAME},
        "spec": {"group": GROUP, "scope": "Cluster",
            "names": {"plural": RESOURCE, "singular": "podsecuritypolicy", "kind": "PodSecurityPolicy",
                "listKind": "PodSecurityPolicyList", "shortNames": ["psp"]},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]},
        "status": {"storedVersions": ["v1beta1"]}})
}

/// The resource under both groups; stored in one place.
pub fn resources(realm: &str) -> Vec<Arc<Resource>> {
    let definition = definition();
    let Ok(object) = Object::parse(definition.to_string().into()) else { return Vec::new() };
    let mut all = custom::resources(realm, &Arc::new(object), &definition);
    for own in all.clone() {
        let mut row = (*own.row).clone();
        row.gvr.group = OLD_GROUP.into();
        row.short_names = Held::Static(&[]);
        all.push(Arc::new(Resource {
            row: Held::Shared(Arc::new(row)),
            stored: own.stored.clone(),
            prefix: own.prefix.clone(),
            custom: own.custom.clone(),
        }));
    }
    all
}

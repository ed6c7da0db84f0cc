//! PersistentVolumeClaim, PersistentVolume, StorageClass.

use super::get::{
    at, child, default, entries, enumerated, enumerated_opt, has, remove, required, same, set, text, texts,
};
use super::pod::scheduling;
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::quantity::Quantity;
use crate::table::{Cell, Column};
use serde_json::{Value, json};

const ACCESS_MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const VOLUME_MODE: Column = Column::wide("VolumeMode", Cell::Text("/spec/volumeMode"));
const ATTRIBUTES_CLASS: Column = Column::new(
    "VolumeAttributesClass",
    Cell::Fn(|v| unset_if_empty(text(v, "/spec/volumeAttributesClassName"))),
);
const CLASS: Column = Column::new("StorageClass", Cell::Text("/spec/storageClassName"));

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "persistentvolumeclaims",
        validated: true,
        defaults: |obj| {
            if let Some(spec) = child(obj, "spec") {
                default(spec, "volumeMode", "Filesystem");
            }
        },
        prepare_create: |obj| set(obj, "status", json!({"phase": "Pending"})),
        validate_create: |obj, errors| claim(&obj["spec"], errors),
        validate_update: claim_update,
        columns: &[
            Column::NAME,
            Column::new("Status", Cell::Fn(|c| phase(c).into())),
            Column::new("Volume", Cell::Text("/spec/volumeName")),
            Column::new("Capacity", Cell::Fn(|c| bound(c, "/status/capacity/storage"))),
            Column::new(
                "Access Modes",
                Cell::Fn(|c| {
                    if has(c, "/spec/volumeName") {
                        modes(c, "/status/accessModes").into()
                    } else {
                        "".into()
                    }
                }),
            ),
            CLASS,
            ATTRIBUTES_CLASS,
            Column::AGE,
            VOLUME_MODE,
        ],
        ..GENERIC
    },
    Behaviour {
        resource: "persistentvolumes",
        validated: true,
        defaults: |obj| {
            if let Some(spec) = child(obj, "spec") {
                default(spec, "persistentVolumeReclaimPolicy", "Retain");
                default(spec, "volumeMode", "Filesystem");
                at(spec, "/hostPath", |h| {
                    if !has(h, "/type") {
                        set(h, "type", "")
                    }
                });
            }
        },
        prepare_create: |obj| set(obj, "status", json!({"phase": "Pending"})),
        validate_create: volume,
        validate_update: volume_update,
        columns: &[
            Column::NAME,
            Column::new("Capacity", Cell::Text("/spec/capacity/storage")),
            Column::new("Access Modes", Cell::Fn(|v| modes(v, "/spec/accessModes").into())),
            Column::new("Reclaim Policy", Cell::Text("/spec/persistentVolumeReclaimPolicy")),
            Column::new("Status", Cell::Fn(|v| phase(v).into())),
            Column::new("Claim", Cell::Fn(|v| claim_ref(v).into())),
            CLASS,
            ATTRIBUTES_CLASS,
            Column::new("Reason", Cell::Text("/status/reason")),
            Column::AGE,
            VOLUME_MODE,
        ],
        ..GENERIC
    },
    Behaviour {
        group: "storage.k8s.io",
        resource: "storageclasses",
        validated: true,
        defaults: |obj| {
            default(obj, "reclaimPolicy", "Delete");
            default(obj, "volumeBindingMode", "Immediate");
        },
        validate_create: storage_class,
        validate_update: |new, old, errors| {
            storage_class(new, errors);
            for key in ["parameters", "provisioner", "volumeBindingMode"] {
                if !same(&new[key], &old[key]) {
                    errors.forbidden(key, &format!("updates to {key} are forbidden."));
                }
            }
            errors.immutable("reclaimPolicy", &new["reclaimPolicy"], &old["reclaimPolicy"]);
        },
        columns: &[
            Column { cell: Cell::Fn(|c| class_name(c).into()), ..Column::NAME },
            Column::new("Provisioner", Cell::Text("/provisioner")),
            Column::new("ReclaimPolicy", Cell::Text("/reclaimPolicy")),
            Column::new("VolumeBindingMode", Cell::Text("/volumeBindingMode")),
            Column::new("AllowVolumeExpansion", Cell::Bool("/allowVolumeExpansion")),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn unset_if_empty(text: &str) -> Value {
    if text.is_empty() { "<unset>".into() } else { text.into() }
}

fn phase(v: &Value) -> &str {
    if has(v, "/metadata/deletionTimestamp") { "Terminating" } else { text(v, "/status/phase") }
}

fn bound(c: &Value, at: &str) -> Value {
    if text(c, "/spec/volumeName").is_empty() { "".into() } else { text(c, at).into() }
}

fn modes(v: &Value, at: &str) -> String {
    let given: Vec<&str> = texts(v, at).collect();
    let short = ACCESS_MODES.iter().filter(|(mode, _)| given.contains(mode)).map(|(_, short)| *short);
    short.collect::<Vec<_>>().join(",")
}

fn claim_ref(v: &Value) -> String {
    if !has(v, "/spec/claimRef") {
        return String::new();
    }
    format!("{}/{}", text(v, "/spec/claimRef/namespace"), text(v, "/spec/claimRef/name"))
}

fn class_name(c: &Value) -> String {
    let chosen = |key: &str| entries(c, "/metadata/annotations").any(|(k, v)| k == key && v == "true");
    let default = chosen("storageclass.kubernetes.io/is-default-class")
        || chosen("storageclass.beta.kubernetes.io/is-default-class");
    format!("{}{}", text(c, "/metadata/name"), if default { " (default)" } else { "" })
}

fn access_modes(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let path = &format!("{path}.accessModes");
    let given: Vec<&str> = texts(spec, "/accessModes").collect();
    if given.is_empty() {
        errors.required(path, "at least 1 access mode is required");
    }
    let known: Vec<&str> = ACCESS_MODES.iter().map(|(mode, _)| *mode).collect();
    for mode in &given {
        errors.one_of(path, mode, &known);
    }
    if given.contains(&"ReadWriteOncePod") && given.len() > 1 {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn positive_storage(amount: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    match amount.and_then(Quantity::from_json) {
        None => errors.required(path, ""),
        Some(Ok(q)) if q.sign() <= 0 => errors.invalid(path, q.to_string(), "must be greater than zero"),
        Some(_) => {}
    }
}

/// A claim's spec at `spec`.
fn claim(spec: &Value, errors: &mut FieldErrors) {
    claim_at(spec, "spec", errors);
}

/// A claim's spec, wherever it stands.
pub fn claim_at(spec: &Value, path: &str, errors: &mut FieldErrors) {
    access_modes(spec, path, errors);
    scheduling::label_selector(spec.get("selector"), &format!("{path}.selector"), errors);
    let at = format!("{path}.resources[storage]");
    positive_storage(spec.pointer("/resources/requests/storage"), &at, errors);
    let class = text(spec, "/storageClassName");
    if !class.is_empty() {
        let at = format!("{path}.storageClassName");
        errors.invalid_all(&at, class, crate::name::dns1123_subdomain(class));
    }
    enumerated_opt(spec, path, "volumeMode", &VOLUME_MODES, errors);
}

fn claim_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    claim(&new["spec"], errors);
    let free = |v: &Value| {
        let mut spec = v["spec"].clone();
        at(&mut spec, "/resources/requests", |r| drop(remove(r, "storage")));
        remove(&mut spec, "volumeAttributesClassName");
        for once in ["volumeName", "storageClassName"] {
            if !has(old, &format!("/spec/{once}")) {
                remove(&mut spec, once);
            }
        }
        spec
    };
    if !same(&free(new), &free(old)) {
        let words = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.forbidden("spec", words);
    }
    let size = |v: &Value| v.pointer("/spec/resources/requests/storage").and_then(Quantity::from_json)?.ok();
    if let (Some(wanted), Some(before)) = (size(new), size(old)) {
        let is_bound = text(old, "/status/phase") == "Bound";
        if wanted != before && !is_bound {
            errors.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        } else if wanted < before {
            errors.forbidden("spec.resources.requests.storage", "field can not be less than previous value");
        }
    }
}

const NO_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn volume(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    access_modes(spec, "spec", errors);
    positive_storage(spec.pointer("/capacity/storage"), "spec.capacity", errors);
    enumerated_opt(spec, "spec", "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], errors);
    enumerated_opt(spec, "spec", "volumeMode", &VOLUME_MODES, errors);
    let sources: Vec<&str> =
        entries(obj, "/spec").map(|(k, _)| k).filter(|k| !NO_SOURCES.contains(k)).collect();
    match sources[..] {
        [] => errors.required("spec", "must specify a volume type"),
        [_, second, ..] => {
            errors.forbidden(&format!("spec.{second}"), "may not specify more than 1 volume type")
        }
        [_] => {}
    }
    if has(spec, "/nodeAffinity/required") {
        scheduling::node_selector(&spec["nodeAffinity"]["required"], "spec.nodeAffinity.required", errors);
    } else if has(spec, "/local") {
        errors.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    for source in ["hostPath", "local"] {
        if has(spec, &format!("/{source}")) {
            required(&spec[source], &format!("spec.{source}"), "path", errors);
        }
    }
}

fn volume_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    volume(new, errors);
    let sources = |v: &Value| {
        let all = entries(v, "/spec").filter(|(k, _)| !NO_SOURCES.contains(k));
        all.map(|(k, v)| (k.to_string(), v.clone())).collect::<Value>()
    };
    if !same(&sources(new), &sources(old)) {
        errors.forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    errors.immutable("spec.volumeMode", &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
}

fn storage_class(obj: &Value, errors: &mut FieldErrors) {
    if let Some(provisioner) = required(obj, "", "provisioner", errors) {
        let words = crate::name::qualified_name(&provisioner.to_lowercase());
        errors.invalid_all("provisioner", provisioner, words);
    }
    enumerated(obj, "", "reclaimPolicy", &["Delete", "Retain"], errors);
    enumerated(obj, "", "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], errors);
}

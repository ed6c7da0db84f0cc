//! PersistentVolumeClaim, PersistentVolume, StorageClass.

use super::get::{at, child, default, entries, has, remove, same, set, text, texts};
use super::pod::scheduling;
use super::spot::Spot;
use super::{Behaviour, CHECKED};
use crate::name;
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
        defaults: |obj| {
            if let Some(spec) = child(obj, "spec") {
                default(spec, "volumeMode", "Filesystem");
            }
        },
        prepare_create: |obj| set(obj, "status", json!({"phase": "Pending"})),
        validate: |s| claim(&s.key("spec")),
        validate_update: Some(claim_update),
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
        ..CHECKED
    },
    Behaviour {
        resource: "persistentvolumes",
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
        validate: volume,
        validate_update: Some(volume_update),
        immutable: &["spec.volumeMode"],
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
        ..CHECKED
    },
    Behaviour {
        group: "storage.k8s.io",
        resource: "storageclasses",
        defaults: |obj| {
            default(obj, "reclaimPolicy", "Delete");
            default(obj, "volumeBindingMode", "Immediate");
        },
        validate: storage_class,
        validate_update: Some(|s, old| {
            storage_class(s);
            for key in ["parameters", "provisioner", "volumeBindingMode"] {
                if !same(&s.v[key], &old[key]) {
                    s.forbidden(key, &format!("updates to {key} are forbidden."));
                }
            }
        }),
        immutable: &["reclaimPolicy"],
        columns: &[
            Column { cell: Cell::Fn(|c| class_name(c).into()), ..Column::NAME },
            Column::new("Provisioner", Cell::Text("/provisioner")),
            Column::new("ReclaimPolicy", Cell::Text("/reclaimPolicy")),
            Column::new("VolumeBindingMode", Cell::Text("/volumeBindingMode")),
            Column::new("AllowVolumeExpansion", Cell::Bool("/allowVolumeExpansion")),
            Column::AGE,
        ],
        ..CHECKED
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

fn access_modes(spec: &Spot) {
    let given = spec.texts("accessModes");
    if given.is_empty() {
        spec.required("accessModes", "at least 1 access mode is required");
    }
    for mode in &given {
        if !ACCESS_MODES.iter().any(|(own, _)| own == mode) {
            spec.not_supported("accessModes", *mode, &ACCESS_MODES.map(|(own, _)| own));
        }
    }
    if given.contains(&"ReadWriteOncePod") && given.len() > 1 {
        spec.forbidden("accessModes", "may not use ReadWriteOncePod with other access modes");
    }
}

fn positive_storage(s: &Spot) {
    match Quantity::from_json(s.v) {
        None => s.required("", ""),
        Some(Ok(q)) if q.sign() <= 0 => s.invalid("", q.to_string(), "must be greater than zero"),
        Some(_) => {}
    }
}

/// A claim's spec, wherever it stands.
pub fn claim(spec: &Spot) {
    access_modes(spec);
    spec.selector("selector");
    positive_storage(&spec.key("resources.requests.storage").named(spec.at("resources[storage]")));
    spec.like_opt("storageClassName", name::dns1123_subdomain);
    spec.one_of_opt("volumeMode", &VOLUME_MODES);
}

fn claim_update(new: &Spot, old: &Value) {
    const WORDS: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    claim(&new.key("spec"));
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
    if !same(&free(new.v), &free(old)) {
        new.forbidden("spec", WORDS);
    }
    let size = |v: &Value| v.pointer("/spec/resources/requests/storage").and_then(Quantity::from_json)?.ok();
    if let (Some(wanted), Some(before)) = (size(new.v), size(old)) {
        let is_bound = text(old, "/status/phase") == "Bound";
        if wanted != before && !is_bound {
            new.forbidden("spec", WORDS);
        } else if wanted < before {
            new.forbidden("spec.resources.requests.storage", "field can not be less than previous value");
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

fn volume(obj: &Spot) {
    let spec = obj.key("spec");
    access_modes(&spec);
    positive_storage(&spec.key("capacity.storage").named(spec.at("capacity")));
    spec.one_of_opt("persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
    spec.one_of_opt("volumeMode", &VOLUME_MODES);
    let mut sources = entries(spec.v, "").map(|(k, _)| k).filter(|k| !NO_SOURCES.contains(k));
    if sources.next().is_none() {
        spec.required("", "must specify a volume type");
    }
    if let Some(second) = sources.next() {
        spec.forbidden(second, "may not specify more than 1 volume type");
    }
    if let Some(required) = spec.opt("nodeAffinity.required") {
        scheduling::node_selector(&required);
    } else if spec.has("local") {
        spec.required("nodeAffinity", "Local volume requires node affinity");
    }
    for source in spec.given(&["hostPath", "local"]) {
        spec.key(source).need("path");
    }
}

fn volume_update(new: &Spot, old: &Value) {
    volume(new);
    let sources = |v: &Value| {
        let all = entries(v, "/spec").filter(|(k, _)| !NO_SOURCES.contains(k));
        all.map(|(k, v)| (k.to_string(), v.clone())).collect::<Value>()
    };
    if !same(&sources(new.v), &sources(old)) {
        let words = "spec.persistentvolumesource is immutable after creation";
        new.forbidden("spec.persistentvolumesource", words);
    }
}

fn storage_class(obj: &Spot) {
    obj.need_like("provisioner", |own| name::qualified_name(&own.to_lowercase()));
    obj.one_of("reclaimPolicy", &["Delete", "Retain"]);
    obj.one_of("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
}

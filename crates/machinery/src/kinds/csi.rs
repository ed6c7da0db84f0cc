//! The container storage interface's objects: CSIDriver, CSINode, CSIStorageCapacity, VolumeAttachment,
//! VolumeAttributesClass.

use super::get::{at, default, each, entries, enumerated_opt, flag, has, int, list, same, text, texts};
use super::pod::scheduling::label_selector;
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::quantity::Quantity;
use crate::table::{Cell, Column};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GROUP: &str = "storage.k8s.io";
const DRIVER_NAME_MAX: usize = 63;
const NODE_ID_MAX: usize = 256;
const ATTACHMENT_METADATA_BYTES_MAX: usize = 256 * 1024;
const ERROR_BYTES_MAX: usize = 1024;
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;
const TOKEN_SECONDS_MIN: i64 = 600;
const UPDATE_PERIOD_SECONDS_MIN: i64 = 10;
const CSI: Behaviour = Behaviour { group: GROUP, validated: true, ..GENERIC };

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "volumeattachments",
        validate_create: attachment,
        validate_update: |new, old, errors| {
            attachment(new, errors);
            errors.immutable("spec", &new["spec"], &old["spec"]);
        },
        validate_status: |new, _, errors| attachment_status(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Attacher", Cell::Text("/spec/attacher")),
            Column::new("PV", Cell::Text("/spec/source/persistentVolumeName")),
            Column::new("Node", Cell::Text("/spec/nodeName")),
            Column::new("Attached", Cell::Bool("/status/attached")),
            Column::AGE,
        ],
        ..CSI
    },
    Behaviour {
        resource: "csidrivers",
        generation: true,
        defaults: driver_defaults,
        validate_create: driver,
        validate_update: |new, old, errors| {
            driver(new, errors);
            for key in ["attachRequired", "volumeLifecycleModes"] {
                errors.immutable(&format!("spec.{key}"), &new["spec"][key], &old["spec"][key]);
            }
        },
        columns: &[
            Column::NAME,
            Column::new("AttachRequired", Cell::Bool("/spec/attachRequired")),
            Column::new("PodInfoOnMount", Cell::Bool("/spec/podInfoOnMount")),
            Column::new("StorageCapacity", Cell::Bool("/spec/storageCapacity")),
            Column::new("TokenRequests", Cell::Fn(|d| audiences(d).into())),
            Column::new("RequiresRepublish", Cell::Bool("/spec/requiresRepublish")),
            Column::new(
                "Modes",
                Cell::Fn(|d| texts(d, "/spec/volumeLifecycleModes").collect::<Vec<_>>().join(",").into()),
            ),
            Column::AGE,
        ],
        ..CSI
    },
    Behaviour {
        resource: "csinodes",
        validate_create: node,
        validate_update: node_update,
        columns: &[
            Column::NAME,
            Column::new("Drivers", Cell::Fn(|n| list(n, "/spec/drivers").len().into())),
            Column::AGE,
        ],
        ..CSI
    },
    Behaviour {
        resource: "csistoragecapacities",
        validate_create: capacity,
        validate_update: |new, old, errors| {
            for key in ["nodeTopology", "storageClassName"] {
                errors.immutable(key, &new[key], &old[key]);
            }
            capacity(new, errors);
        },
        columns: &[
            Column::NAME,
            Column::new("StorageClassName", Cell::Text("/storageClassName")),
            Column::new("Capacity", Cell::Text("/capacity")),
        ],
        ..CSI
    },
    Behaviour {
        resource: "volumeattributesclasses",
        validate_create: attributes_class,
        validate_update: |new, old, errors| {
            if !same(&new["driverName"], &old["driverName"]) {
                errors.forbidden("driverName", "updates to driverName are forbidden.");
            }
            if !same(&new["parameters"], &old["parameters"]) {
                errors.forbidden("parameters", "updates to parameters are forbidden.");
            }
        },
        columns: &[Column::NAME, Column::new("DriverName", Cell::Text("/driverName")), Column::AGE],
        ..CSI
    },
];

fn audiences(d: &Value) -> String {
    let all: Vec<&str> = list(d, "/spec/tokenRequests").iter().map(|t| text(t, "/audience")).collect();
    if all.is_empty() { "<unset>".into() } else { all.join(",") }
}

/// The name of a driver, as everybody who names one writes it.
pub fn driver_name(given: &str, path: &str, errors: &mut FieldErrors) {
    if given.is_empty() {
        return errors.required(path, "");
    }
    if given.len() > DRIVER_NAME_MAX {
        errors.too_long(path, DRIVER_NAME_MAX);
    }
    errors.invalid_all(path, given, name::dns1123_subdomain(&given.to_lowercase()));
}

fn attachment(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    driver_name(text(spec, "/attacher"), "spec.attacher", errors);
    let source = &spec["source"];
    let exactly = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (has(source, "/inlineVolumeSpec"), source.get("persistentVolumeName").and_then(Value::as_str)) {
        (false, None) => errors.required("spec.source", exactly),
        (true, Some(_)) => errors.forbidden("spec.source", exactly),
        (false, Some("")) => {
            let words = "must specify non empty persistentVolumeName";
            errors.required("spec.source.persistentVolumeName", words);
        }
        (false, Some(own)) => {
            errors.invalid_all("spec.source.persistentVolumeName", own, name::dns1123_subdomain(own));
        }
        (true, None) => {}
    }
    let node = text(spec, "/nodeName");
    errors.invalid_all("spec.nodeName", node, name::dns1123_subdomain(node));
    attachment_status(obj, errors);
}

fn attachment_status(obj: &Value, errors: &mut FieldErrors) {
    let metadata = entries(obj, "/status/attachmentMetadata");
    let size: usize = metadata.map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > ATTACHMENT_METADATA_BYTES_MAX {
        errors.too_long("status.attachmentMetadata", ATTACHMENT_METADATA_BYTES_MAX);
    }
    for key in ["attachError", "detachError"] {
        if text(obj, &format!("/status/{key}/message")).len() > ERROR_BYTES_MAX {
            errors.too_long(&format!("status.{key}.message"), ERROR_BYTES_MAX);
        }
    }
}

fn driver_defaults(obj: &mut Value) {
    at(obj, "/spec", |spec| {
        for (key, value) in [
            ("attachRequired", json!(true)),
            ("podInfoOnMount", json!(false)),
            ("storageCapacity", json!(false)),
            ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
            ("requiresRepublish", json!(false)),
            ("seLinuxMount", json!(false)),
        ] {
            default(spec, key, value);
        }
        if list(spec, "/volumeLifecycleModes").is_empty() {
            super::get::set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
        each(spec, "/tokenRequests", |t| default(t, "audience", ""));
    });
}

fn driver(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    // The first path is misspelt upstream.
    for (key, path) in [
        ("attachRequired", "spec.attachedRequired"),
        ("podInfoOnMount", "spec.podInfoOnMount"),
        ("storageCapacity", "spec.storageCapacity"),
    ] {
        if !has(spec, &format!("/{key}")) {
            errors.required(path, "");
        }
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    enumerated_opt(spec, "spec", "fsGroupPolicy", &policies, errors);
    let mut seen = BTreeSet::new();
    for (i, request) in list(spec, "/tokenRequests").iter().enumerate() {
        let path = format!("spec.tokenRequests[{i}]");
        let audience = text(request, "/audience");
        if !seen.insert(audience) {
            errors.duplicate(&format!("{path}.audience"), audience);
            continue;
        }
        let Some(seconds) = int(request, "/expirationSeconds") else { continue };
        let path = format!("{path}.expirationSeconds");
        if seconds < TOKEN_SECONDS_MIN {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
    for mode in texts(spec, "/volumeLifecycleModes") {
        errors.one_of("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
    }
    if let Some(seconds) =
        int(spec, "/nodeAllocatableUpdatePeriodSeconds").filter(|s| *s < UPDATE_PERIOD_SECONDS_MIN)
    {
        let words = "must be greater than or equal to 10 seconds";
        errors.invalid("spec.nodeAllocatableUpdatePeriodSeconds", seconds, words);
    }
    if flag(spec, "/serviceAccountTokenInSecrets") && list(spec, "/tokenRequests").is_empty() {
        let words = "serviceAccountTokenInSecrets can only be set when tokenRequests is specified";
        errors.invalid("spec.serviceAccountTokenInSecrets", true, words);
    }
}

fn node(obj: &Value, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, driver) in list(obj, "/spec/drivers").iter().enumerate() {
        let path = format!("spec.drivers[{i}]");
        let own = text(driver, "/name");
        driver_name(own, &format!("{path}.name"), errors);
        let id = text(driver, "/nodeID");
        if id.is_empty() {
            errors.required(&format!("{path}.nodeID"), "");
        } else if id.len() > NODE_ID_MAX {
            let words = format!("must be {NODE_ID_MAX} characters or less");
            errors.invalid(&format!("{path}.nodeID"), id, &words);
        }
        if let Some(count) = int(driver, "/allocatable/count") {
            errors.non_negative(&format!("{path}.allocatable.count"), count);
        }
        if !names.insert(own) {
            errors.duplicate(&format!("{path}.name"), own);
        }
        let mut keys = BTreeSet::new();
        for key in texts(driver, "/topologyKeys") {
            if key.is_empty() {
                errors.required(&path, "");
            }
            if !keys.insert(key) {
                errors.duplicate(&path, key);
            }
            errors.invalid_all(&path, key, name::qualified_name(key));
        }
    }
}

fn node_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    node(new, errors);
    for before in list(old, "/spec/drivers") {
        let mut now = list(new, "/spec/drivers").iter();
        if let Some(now) = now.find(|d| text(d, "/name") == text(before, "/name")) {
            // What a node can hold is found anew by its driver.
            let fixed = |d: &Value| {
                let mut d = d.clone();
                super::get::remove(&mut d, "allocatable");
                d
            };
            errors.immutable("CSINodeDriver", &fixed(now), &fixed(before));
        }
    }
}

fn capacity(obj: &Value, errors: &mut FieldErrors) {
    label_selector(obj.get("nodeTopology"), "nodeTopology", errors);
    let class = text(obj, "/storageClassName");
    errors.invalid_all("storageClassName", class, name::dns1123_subdomain(class));
    for key in ["capacity", "maximumVolumeSize"] {
        if let Some(Ok(amount)) = obj.get(key).and_then(Quantity::from_json)
            && amount.sign() < 0
        {
            errors.invalid(key, amount.to_string(), "must be greater than or equal to 0");
        }
    }
}

fn attributes_class(obj: &Value, errors: &mut FieldErrors) {
    let own = text(obj, "/driverName");
    if own.is_empty() {
        errors.required("driverName", "");
    } else {
        errors.invalid_all("driverName", own, name::qualified_name(&own.to_lowercase()));
    }
    let parameters: Vec<_> = entries(obj, "/parameters").collect();
    if parameters.is_empty() {
        errors.required("parameters", "must contain at least one key/value pair");
    }
    if parameters.len() > PARAMETERS_MAX {
        return errors.too_long("parameters", PARAMETERS_MAX);
    }
    if parameters.iter().any(|(k, _)| k.is_empty()) {
        errors.invalid("parameters", "", "field can not be empty.");
    }
    let size: usize = parameters.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > PARAMETERS_BYTES_MAX {
        errors.too_long("parameters", PARAMETERS_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(check: fn(&Value, &mut FieldErrors), obj: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(obj, &mut errors);
        errors.causes().iter().map(|c| c.field.clone()).collect()
    }

    #[test]
    fn good_and_bad() {
        let mut d = json!({"spec": {"tokenRequests": [{"audience": "a"}, {"audience": "a"}]}});
        driver_defaults(&mut d);
        assert_eq!(fields(driver, &d), ["spec.tokenRequests[1].audience"]);
        d["spec"] = json!({});
        assert_eq!(fields(driver, &d).len(), 3);
        let a =
            json!({"spec": {"attacher": "x.io", "nodeName": "n", "source": {"persistentVolumeName": "p"}}});
        assert_eq!(fields(attachment, &a), Vec::<String>::new());
        assert_eq!(
            fields(attachment, &json!({"spec": {"nodeName": "N"}})),
            ["spec.attacher", "spec.source", "spec.nodeName"]
        );
        let n =
            json!({"spec": {"drivers": [{"name": "x.io", "nodeID": "1"}, {"name": "x.io", "nodeID": ""}]}});
        assert_eq!(fields(node, &n), ["spec.drivers[1].nodeID", "spec.drivers[1].name"]);
        assert_eq!(fields(capacity, &json!({"storageClassName": "c", "capacity": "-1"})), ["capacity"]);
        assert_eq!(fields(attributes_class, &json!({"driverName": "x.io"})), ["parameters"]);
    }

    #[test]
    fn a_nodes_drivers_stay_but_their_capacity_moves() {
        let of = |id: &str, count: i64| json!({"spec": {"drivers": [{"name": "x.io", "nodeID": id, "allocatable": {"count": count}}]}});
        let mut errors = FieldErrors::new();
        node_update(&of("1", 2), &of("1", 3), &mut errors);
        assert!(errors.is_empty());
        node_update(&of("2", 3), &of("1", 3), &mut errors);
        assert_eq!(errors.causes()[0].field, "CSINodeDriver");
    }
}

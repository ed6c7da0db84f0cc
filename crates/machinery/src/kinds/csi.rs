//! The container storage interface's objects: CSIDriver, CSINode, CSIStorageCapacity, VolumeAttachment,
//! VolumeAttributesClass.

use super::get::{at, default, each, entries, list, same, text, texts};
use super::spot::Spot;
use super::{Behaviour, CHECKED};
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
const CSI: Behaviour = Behaviour { group: GROUP, ..CHECKED };

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "volumeattachments",
        validate: attachment,
        immutable: &["spec"],
        validate_status: |s, _| attachment_status(s),
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
        validate: driver,
        immutable: &["spec.attachRequired", "spec.volumeLifecycleModes"],
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
        validate: node,
        validate_update: Some(node_update),
        columns: &[Column::NAME, Column::new("Drivers", Cell::Count("/spec/drivers")), Column::AGE],
        ..CSI
    },
    Behaviour {
        resource: "csistoragecapacities",
        validate: capacity,
        validate_update: Some(|s, old| {
            s.immutable("nodeTopology", old);
            s.immutable("storageClassName", old);
            capacity(s);
        }),
        columns: &[
            Column::NAME,
            Column::new("StorageClassName", Cell::Text("/storageClassName")),
            Column::new("Capacity", Cell::Text("/capacity")),
        ],
        ..CSI
    },
    Behaviour {
        resource: "volumeattributesclasses",
        validate: attributes_class,
        validate_update: Some(|s, old| {
            for key in ["driverName", "parameters"].into_iter().filter(|key| !same(&s.v[*key], &old[*key])) {
                s.forbidden(key, &format!("updates to {key} are forbidden."));
            }
        }),
        columns: &[Column::NAME, Column::new("DriverName", Cell::Text("/driverName")), Column::AGE],
        ..CSI
    },
];

fn audiences(d: &Value) -> String {
    let all: Vec<&str> = list(d, "/spec/tokenRequests").iter().map(|t| text(t, "/audience")).collect();
    if all.is_empty() { "<unset>".into() } else { all.join(",") }
}

/// The name of a driver, as everybody who names one writes it.
pub fn driver_name(given: &str, s: &Spot) {
    if given.is_empty() {
        return s.required("", "");
    }
    s.no_longer("", given.len(), DRIVER_NAME_MAX);
    s.invalid_all("", given, name::dns1123_subdomain(&given.to_lowercase()));
}

fn attachment(obj: &Spot) {
    let spec = obj.key("spec");
    driver_name(spec.text("attacher"), &spec.key("attacher"));
    let source = spec.key("source");
    let exactly = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (source.has("inlineVolumeSpec"), source.v["persistentVolumeName"].as_str()) {
        (false, None) => source.required("", exactly),
        (true, Some(_)) => source.forbidden("", exactly),
        (false, Some("")) => {
            source.required("persistentVolumeName", "must specify non empty persistentVolumeName");
        }
        (false, Some(_)) => source.like("persistentVolumeName", name::dns1123_subdomain),
        (true, None) => {}
    }
    spec.like("nodeName", name::dns1123_subdomain);
    attachment_status(obj);
}

fn attachment_status(obj: &Spot) {
    let status = obj.key("status");
    let metadata = entries(status.v, "/attachmentMetadata");
    let size: usize = metadata.map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    status.no_longer("attachmentMetadata", size, ATTACHMENT_METADATA_BYTES_MAX);
    for key in ["attachError.message", "detachError.message"] {
        status.no_longer(key, status.text(key).len(), ERROR_BYTES_MAX);
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

fn driver(obj: &Spot) {
    let spec = obj.key("spec");
    // The first path is misspelt upstream.
    for (key, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.has(key) {
            spec.required(shown, "");
        }
    }
    spec.one_of_opt("fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"]);
    let mut seen = BTreeSet::new();
    for request in spec.each("tokenRequests") {
        let audience = request.text("audience");
        if !seen.insert(audience) {
            request.duplicate("audience", audience);
            continue;
        }
        let (key, words) = ("expirationSeconds", "may not specify a duration less than 10 minutes");
        request.within(key, TOKEN_SECONDS_MIN..=i64::MAX, words);
        request.within(key, i64::MIN..=1 << 32, "may not specify a duration larger than 2^32 seconds");
    }
    for mode in spec.each("volumeLifecycleModes") {
        mode.named(spec.at("volumeLifecycleModes")).known("", &["Persistent", "Ephemeral"]);
    }
    let words = "must be greater than or equal to 10 seconds";
    spec.within("nodeAllocatableUpdatePeriodSeconds", UPDATE_PERIOD_SECONDS_MIN..=i64::MAX, words);
    if spec.flag("serviceAccountTokenInSecrets") && spec.list("tokenRequests").is_empty() {
        let words = "serviceAccountTokenInSecrets can only be set when tokenRequests is specified";
        spec.invalid("serviceAccountTokenInSecrets", true, words);
    }
}

fn node(obj: &Spot) {
    let mut names = BTreeSet::new();
    for driver in obj.each("spec.drivers") {
        driver_name(driver.text("name"), &driver.key("name"));
        if driver.need("nodeID").is_some_and(|id| id.len() > NODE_ID_MAX) {
            driver.wrong("nodeID", &format!("must be {NODE_ID_MAX} characters or less"));
        }
        driver.non_negative(&["allocatable.count"]);
        driver.unique("name", driver.text("name"), &mut names);
        let mut keys = BTreeSet::new();
        for key in driver.texts("topologyKeys") {
            if key.is_empty() {
                driver.required("", "");
            }
            driver.unique("", key, &mut keys);
            driver.invalid_all("", key, name::qualified_name(key));
        }
    }
}

fn node_update(new: &Spot, old: &Value) {
    node(new);
    for before in list(old, "/spec/drivers") {
        let mut now = new.list("spec.drivers").iter();
        if let Some(now) = now.find(|d| text(d, "/name") == text(before, "/name")) {
            // What a node can hold is found anew by its driver.
            let fixed = |d: &Value| {
                let mut d = d.clone();
                super::get::remove(&mut d, "allocatable");
                d
            };
            new.with(|_, _, errors| errors.immutable("CSINodeDriver", &fixed(now), &fixed(before)));
        }
    }
}

fn capacity(obj: &Spot) {
    obj.selector("nodeTopology");
    obj.like("storageClassName", name::dns1123_subdomain);
    for key in ["capacity", "maximumVolumeSize"] {
        if let Some(Ok(amount)) = obj.v.get(key).and_then(Quantity::from_json)
            && amount.sign() < 0
        {
            obj.invalid(key, amount.to_string(), "must be greater than or equal to 0");
        }
    }
}

fn attributes_class(obj: &Spot) {
    obj.need_like("driverName", |own| name::qualified_name(&own.to_lowercase()));
    let parameters: Vec<_> = entries(obj.v, "/parameters").collect();
    if parameters.is_empty() {
        obj.required("parameters", "must contain at least one key/value pair");
    }
    if parameters.len() > PARAMETERS_MAX {
        return obj.no_longer("parameters", parameters.len(), PARAMETERS_MAX);
    }
    if parameters.iter().any(|(k, _)| k.is_empty()) {
        obj.invalid("parameters", "", "field can not be empty.");
    }
    let size: usize = parameters.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    obj.no_longer("parameters", size, PARAMETERS_BYTES_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use crate::kinds::spot::fields;

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
        node_update(&Spot::new(&of("1", 2), "", &mut errors), &of("1", 3));
        assert!(errors.is_empty());
        node_update(&Spot::new(&of("2", 3), "", &mut errors), &of("1", 3));
        assert_eq!(errors.causes()[0].field, "CSINodeDriver");
    }
}

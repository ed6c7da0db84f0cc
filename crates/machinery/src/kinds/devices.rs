//! Dynamic resource allocation: DeviceClass, ResourceClaim and its template, ResourceSlice (in [`slices`]).
//!
//! Deliberately not here: compiling CEL selectors, allocating.

mod slices;

use super::csi::driver_name;
use super::get::{at, default, default_nonzero, each, entries, has, int, list, required, same, text, texts};
use super::pod::scheduling::{TAINT_EFFECTS, node_selector};
use super::{Behaviour, GENERIC, meta};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const GROUP: &str = "resource.k8s.io";
/// Requests, constraints, configurations, selectors, results of one claim: upstream's common limit.
const SIZE_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const RESERVED_MAX: usize = 256;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const ID_MAX: usize = 32;

const DRA: Behaviour = Behaviour { group: GROUP, validated: true, generation: true, ..GENERIC };

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "deviceclasses",
        validate_create: class,
        validate_update: |new, _, errors| class(new, errors),
        columns: &[Column::NAME, Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceclaims",
        generation: false,
        defaults: |obj| at(obj, "/spec", claim_defaults),
        validate_create: |obj, errors| claim(&obj["spec"], "spec", errors),
        validate_update: |new, old, errors| errors.immutable("spec", &new["spec"], &old["spec"]),
        validate_status: status_update,
        columns: &[Column::NAME, Column::new("State", Cell::Fn(|c| state(c).into())), Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceclaimtemplates",
        generation: false,
        defaults: |obj| at(obj, "/spec/spec", claim_defaults),
        validate_create: |obj, errors| {
            meta::labels(obj, "/spec/metadata/labels", "spec.metadata.labels", errors);
            meta::annotations(obj, "/spec/metadata/annotations", "spec.metadata.annotations", errors);
            claim(&obj["spec"]["spec"], "spec.spec", errors);
        },
        validate_update: |new, old, errors| errors.immutable("spec", &new["spec"], &old["spec"]),
        columns: &[Column::NAME, Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceslices",
        validate_create: slices::slice,
        validate_update: |new, old, errors| {
            slices::slice(new, errors);
            for path in ["pool.name", "driver", "nodeName"] {
                let pointer = format!("/spec/{}", path.replace('.', "/"));
                let of = |v: &Value| v.pointer(&pointer).cloned().unwrap_or_default();
                errors.immutable(&format!("spec.{path}"), &of(new), &of(old));
            }
        },
        columns: &[
            Column::NAME,
            Column::new("Node", Cell::Fn(slices::node_text)),
            Column::new("Driver", Cell::Text("/spec/driver")),
            Column::new("Pool", Cell::Text("/spec/pool/name")),
            Column::AGE,
        ],
        ..DRA
    },
];

fn state(c: &Value) -> String {
    let deleted = has(c, "/metadata/deletionTimestamp");
    let allocated = has(c, "/status/allocation");
    let words = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (allocated && !list(c, "/status/reservedFor").is_empty(), "reserved"),
    ];
    words.iter().filter(|(yes, _)| *yes).map(|(_, word)| *word).collect::<Vec<_>>().join(",")
}

fn claim_defaults(spec: &mut Value) {
    let request = |r: &mut Value| {
        default(r, "allocationMode", "ExactCount");
        if text(r, "/allocationMode") == "ExactCount" {
            default_nonzero(r, "count", 1);
        }
        each(r, "/tolerations", |t| default(t, "operator", "Equal"));
    };
    each(spec, "/devices/requests", |r| {
        at(r, "/exactly", request);
        each(r, "/firstAvailable", request);
    });
}

/// At most `max` items? Says so otherwise, and nothing of them is looked at.
fn bounded<'a>(v: &'a Value, key: &str, max: usize, path: &str, errors: &mut FieldErrors) -> &'a [Value] {
    let items = list(v, &format!("/{key}"));
    if items.len() <= max {
        return items;
    }
    errors.too_many(&format!("{path}.{key}"), items.len(), max);
    &[]
}

/// Complains about the second of two equal keys.
fn unique<'a>(keys: impl Iterator<Item = &'a str>, path: &str, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, key) in keys.enumerate() {
        if !seen.insert(key) {
            errors.duplicate(&format!("{path}[{i}]"), key);
        }
    }
}

fn label(given: &str, path: &str, errors: &mut FieldErrors) {
    errors.invalid_all(path, given, name::dns1123_label(given));
}

/// Requests by name, with the names of their alternatives.
type Names<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn request_names(spec: &Value) -> Names<'_> {
    let requests = list(spec, "/devices/requests").iter();
    let inner = |r| list(r, "/firstAvailable").iter().map(|s| text(s, "/name")).collect();
    requests.map(|r| (text(r, "/name"), inner(r))).collect()
}

fn claim(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let names = request_names(spec);
    let (devices, path) = (&spec["devices"], format!("{path}.devices"));
    let requests = bounded(devices, "requests", SIZE_MAX, &path, errors);
    for (i, r) in requests.iter().enumerate() {
        request(r, &format!("{path}.requests[{i}]"), errors);
    }
    unique(requests.iter().map(|r| text(r, "/name")), &format!("{path}.requests"), errors);
    for (i, c) in bounded(devices, "constraints", SIZE_MAX, &path, errors).iter().enumerate() {
        let path = format!("{path}.constraints[{i}]");
        references(c, &names, &path, errors);
        match (c.get("matchAttribute"), c.get("distinctAttribute")) {
            (Some(Value::String(own)), _) => fully_qualified(own, &format!("{path}.matchAttribute"), errors),
            (_, Some(Value::String(own))) => {
                fully_qualified(own, &format!("{path}.distinctAttribute"), errors);
            }
            _ => errors.required(
                &path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
        }
    }
    for (i, c) in bounded(devices, "config", SIZE_MAX, &path, errors).iter().enumerate() {
        let path = format!("{path}.config[{i}]");
        references(c, &names, &path, errors);
        configuration(c, &path, errors);
    }
}

fn request(r: &Value, path: &str, errors: &mut FieldErrors) {
    label(text(r, "/name"), &format!("{path}.name"), errors);
    match (has(r, "/exactly"), !list(r, "/firstAvailable").is_empty()) {
        (false, false) => {
            errors.required(path, "exactly one of `exactly` or `firstAvailable` is required");
        }
        (true, true) => errors.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (true, false) => exact(&r["exactly"], &format!("{path}.exactly"), errors),
        (false, true) => {
            let all = bounded(r, "firstAvailable", ALTERNATIVES_MAX, path, errors);
            for (i, sub) in all.iter().enumerate() {
                let path = format!("{path}.firstAvailable[{i}]");
                label(text(sub, "/name"), &format!("{path}.name"), errors);
                exact(sub, &path, errors);
            }
            unique(all.iter().map(|s| text(s, "/name")), &format!("{path}.firstAvailable"), errors);
        }
    }
}

fn exact(r: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(class) = required(r, path, "deviceClassName", errors) {
        errors.invalid_all(&format!("{path}.deviceClassName"), class, name::dns1123_subdomain(class));
    }
    selectors(r, path, errors);
    let count = int(r, "/count").unwrap_or(0);
    match text(r, "/allocationMode") {
        "All" if count != 0 => errors.invalid(
            &format!("{path}.count"),
            count,
            "must not be specified when allocationMode is 'All'",
        ),
        "All" => {}
        "ExactCount" if count <= 0 => {
            errors.invalid(&format!("{path}.count"), count, "must be greater than zero");
        }
        "ExactCount" => {}
        other => {
            errors.not_supported(&format!("{path}.allocationMode"), other, &["All", "ExactCount"]);
        }
    }
    for (i, t) in list(r, "/tolerations").iter().enumerate() {
        toleration(t, &format!("{path}.tolerations[{i}]"), errors);
    }
}

fn toleration(t: &Value, path: &str, errors: &mut FieldErrors) {
    let (key, value) = (text(t, "/key"), text(t, "/value"));
    if !key.is_empty() {
        errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
    }
    match text(t, "/operator") {
        "Exists" if !value.is_empty() => {
            errors.invalid(&format!("{path}.value"), value, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => {
            if key.is_empty() {
                errors.required(&format!("{path}.key"), "");
            }
            errors.invalid_all(&format!("{path}.value"), value, name::label_value(value));
        }
        "" => errors.required(&format!("{path}.operator"), ""),
        other => errors.not_supported(&format!("{path}.operator"), other, &["Equal", "Exists"]),
    }
    let effect = text(t, "/effect");
    if !effect.is_empty() {
        errors.one_of(&format!("{path}.effect"), effect, &["NoExecute", "NoSchedule", "None"]);
    }
}

fn selectors(v: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, s) in bounded(v, "selectors", SIZE_MAX, path, errors).iter().enumerate() {
        let path = format!("{path}.selectors[{i}].cel");
        if !has(s, "/cel") {
            errors.required(&path, "");
        } else if text(s, "/cel/expression").len() > EXPRESSION_BYTES_MAX {
            errors.too_long(&format!("{path}.expression"), EXPRESSION_BYTES_MAX);
        } else if text(s, "/cel/expression").trim().is_empty() {
            errors.required(&format!("{path}.expression"), "");
        }
    }
}

/// `requests` of a constraint or configuration: names of requests of the claim.
fn references(v: &Value, names: &Names<'_>, path: &str, errors: &mut FieldErrors) {
    let all = bounded(v, "requests", SIZE_MAX, path, errors);
    for (i, own) in all.iter().filter_map(Value::as_str).enumerate() {
        reference(own, names, &format!("{path}.requests[{i}]"), errors);
    }
    unique(all.iter().filter_map(Value::as_str), &format!("{path}.requests"), errors);
}

fn reference(own: &str, names: &Names<'_>, path: &str, errors: &mut FieldErrors) {
    let words = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = own.split('/').collect();
    let known = match parts[..] {
        [request] => names.contains_key(request),
        [request, sub] => names.get(request).is_some_and(|subs| subs.contains(sub)),
        _ => return errors.invalid(path, own, words),
    };
    for part in parts {
        label(part, path, errors);
    }
    if !known {
        errors.invalid(path, own, words);
    }
}

fn configuration(v: &Value, path: &str, errors: &mut FieldErrors) {
    let path = format!("{path}.opaque");
    let Some(opaque) = v.get("opaque").filter(|o| !o.is_null()) else {
        return errors.required(&path, "");
    };
    driver_name(text(opaque, "/driver"), &format!("{path}.driver"), errors);
    let at = format!("{path}.parameters");
    match opaque.get("parameters").filter(|p| !p.is_null()) {
        None => errors.required(&at, ""),
        Some(p) if p.to_string().len() > PARAMETERS_BYTES_MAX => errors.too_long(&at, PARAMETERS_BYTES_MAX),
        Some(Value::Object(_)) => {}
        Some(other) => errors.invalid(&at, other.clone(), "must be a valid JSON object"),
    }
}

fn class(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    selectors(spec, "spec", errors);
    for (i, c) in bounded(spec, "config", SIZE_MAX, "spec", errors).iter().enumerate() {
        configuration(c, &format!("spec.config[{i}]"), errors);
    }
    let extended = text(spec, "/extendedResourceName");
    let own_domain =
        extended.split('/').next().is_some_and(|d| d == "kubernetes.io" || d.ends_with(".kubernetes.io"));
    let fits = extended.contains('/')
        && !own_domain
        && !extended.starts_with("requests.")
        && name::qualified_name(&format!("requests.{extended}")).is_empty();
    if has(spec, "/extendedResourceName") && !fits {
        errors.invalid("spec.extendedResourceName", extended, "must be a valid extended resource name");
    }
}

/// `[domain/]name`, the name being an identifier of C.
fn qualified(own: &str, path: &str, errors: &mut FieldErrors) {
    let identifier = |id: &str, errors: &mut FieldErrors| {
        if id.len() > ID_MAX {
            errors.too_long(path, ID_MAX);
        }
        let mut bytes = id.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !(head && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
            errors.invalid(
                path,
                id,
                "a valid C identifier must start with alphabetic character or '_', followed by a string of \
                 alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for \
                 validation is '[A-Za-z_][A-Za-z0-9_]*')",
            );
        }
    };
    match own.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(id, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                driver_name(domain, path, errors);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                identifier(id, errors);
            }
        }
        _ => errors.invalid(path, own, "must not contain more than one slash"),
    }
}

fn fully_qualified(own: &str, path: &str, errors: &mut FieldErrors) {
    qualified(own, path, errors);
    if !own.contains('/') {
        let words = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, own, words);
    }
}

fn pool_name(own: &str, path: &str, errors: &mut FieldErrors) {
    const POOL_NAME_MAX: usize = 253;
    if own.is_empty() {
        return errors.required(path, "");
    }
    if own.len() > POOL_NAME_MAX {
        errors.too_long(path, POOL_NAME_MAX);
    }
    for part in own.split('/') {
        errors.invalid_all(path, part, name::dns1123_subdomain(part));
    }
}

fn status_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, before) = (&new["status"], &old["status"]);
    let reserved = bounded(status, "reservedFor", RESERVED_MAX, "status", errors);
    for (i, user) in reserved.iter().enumerate() {
        for key in ["resource", "name", "uid"] {
            required(user, &format!("status.reservedFor[{i}]"), key, errors);
        }
    }
    unique(reserved.iter().map(|u| text(u, "/uid")), "status.reservedFor", errors);
    if !reserved.is_empty() {
        let known = list(before, "/reservedFor");
        if !has(status, "/allocation") {
            errors.forbidden("status.reservedFor", "may not be specified when `allocated` is not set");
        } else if has(new, "/metadata/deletionTimestamp") && reserved.iter().any(|u| !known.contains(u)) {
            let words =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden("status.reservedFor", words);
        }
    }
    let devices = list(status, "/devices");
    let results = list(status, "/allocation/devices/results");
    let id =
        |d: &Value| ["driver", "pool", "device", "shareID"].map(|k| text(d, &format!("/{k}")).to_string());
    let allocated: BTreeSet<[String; 4]> = results.iter().map(id).collect();
    let mut seen = BTreeSet::new();
    for (i, device) in devices.iter().enumerate() {
        let path = format!("status.devices[{i}]");
        driver_name(text(device, "/driver"), &format!("{path}.driver"), errors);
        pool_name(text(device, "/pool"), &format!("{path}.pool"), errors);
        label(text(device, "/device"), &format!("{path}.device"), errors);
        let own = id(device);
        if !allocated.contains(&own) {
            errors.invalid(&path, own[..3].join("/"), "must be an allocated device in the claim");
        }
        if !seen.insert(own.clone()) {
            errors.duplicate(&path, own[..3].join("/"));
        }
    }
    match (has(before, "/allocation"), has(status, "/allocation")) {
        (true, true) if !same(&status["allocation"], &before["allocation"]) => {
            errors.invalid("status.allocation", status["allocation"].clone(), "field is immutable");
        }
        (false, true) => allocation(&status["allocation"], &request_names(&new["spec"]), errors),
        _ => {}
    }
}

fn allocation(v: &Value, names: &Names<'_>, errors: &mut FieldErrors) {
    let (devices, path) = (&v["devices"], "status.allocation.devices");
    for (i, result) in bounded(devices, "results", SIZE_MAX, path, errors).iter().enumerate() {
        let path = format!("{path}.results[{i}]");
        reference(text(result, "/request"), names, &format!("{path}.request"), errors);
        driver_name(text(result, "/driver"), &format!("{path}.driver"), errors);
        pool_name(text(result, "/pool"), &format!("{path}.pool"), errors);
        label(text(result, "/device"), &format!("{path}.device"), errors);
    }
    for (i, c) in bounded(devices, "config", 2 * SIZE_MAX, path, errors).iter().enumerate() {
        let path = format!("{path}.config[{i}]");
        super::get::enumerated(c, &path, "source", &["FromClaim", "FromClass"], errors);
        references(c, names, &path, errors);
        configuration(c, &path, errors);
    }
    if has(v, "/nodeSelector") {
        node_selector(&v["nodeSelector"], "status.allocation.nodeSelector", errors);
    }
}

/// A device's taint.
fn taint(t: &Value, path: &str, errors: &mut FieldErrors) {
    let (key, value) = (text(t, "/key"), text(t, "/value"));
    errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
    if !value.is_empty() {
        errors.invalid_all(&format!("{path}.value"), value, name::label_value(value));
    }
    match text(t, "/effect") {
        "" => errors.required(&format!("{path}.effect"), ""),
        "None" => {}
        other => {
            let known: Vec<&str> = TAINT_EFFECTS.into_iter().filter(|e| !e.starts_with("Prefer")).collect();
            errors.one_of(&format!("{path}.effect"), other, &known);
        }
    }
}

/// Keys of a map at `v/key`, checked as qualified names.
fn qualified_keys(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    for (own, _) in entries(v, &format!("/{key}")) {
        qualified(own, &format!("{path}.{key}"), errors);
    }
}

/// Is every string of the list in the usual form of a condition type?
fn condition_types(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    for (i, own) in texts(v, &format!("/{key}")).enumerate() {
        errors.invalid_all(&format!("{path}.{key}[{i}]"), own, name::qualified_name(own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(spec: Value) -> Vec<String> {
        let mut spec = spec;
        claim_defaults(&mut spec);
        let mut errors = FieldErrors::new();
        claim(&spec, "spec", &mut errors);
        errors.causes().iter().map(|c| c.field.clone()).collect()
    }

    #[test]
    fn claims() {
        let good = json!({"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "gpu"}}],
            "constraints": [{"requests": ["a"], "matchAttribute": "x.io/numa"}],
            "config": [{"requests": ["a"], "opaque": {"driver": "x.io", "parameters": {"k": 1}}}]}});
        assert_eq!(fields(good.clone()), Vec::<String>::new());
        let mut bad = good.clone();
        bad["devices"]["requests"] = json!([{"name": "a"}, {"name": "a", "exactly": {"deviceClassName": "", "allocationMode": "Some"}}]);
        bad["devices"]["constraints"] = json!([{"requests": ["b"], "matchAttribute": "numa"}]);
        assert_eq!(
            fields(bad),
            [
                "spec.devices.requests[0]",
                "spec.devices.requests[1].exactly.deviceClassName",
                "spec.devices.requests[1].exactly.allocationMode",
                "spec.devices.requests[1]",
                "spec.devices.constraints[0].requests[0]",
                "spec.devices.constraints[0].matchAttribute",
            ]
        );
        let many: Vec<Value> = (0..40).map(|i| json!({"name": format!("r{i}")})).collect();
        assert_eq!(fields(json!({"devices": {"requests": many}})), ["spec.devices.requests"]);
    }

    #[test]
    fn reservations_need_an_allocation() {
        let old = json!({"spec": {"devices": {"requests": [{"name": "a"}]}}, "status": {}});
        let mut new = old.clone();
        new["status"]["reservedFor"] = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
        let mut errors = FieldErrors::new();
        status_update(&new, &old, &mut errors);
        assert_eq!(errors.causes()[0].message, "Forbidden: may not be specified when `allocated` is not set");
        new["status"]["allocation"] =
            json!({"devices": {"results": [{"request": "a", "driver": "x.io", "pool": "p", "device": "d"}]}});
        let mut errors = FieldErrors::new();
        status_update(&new, &old, &mut errors);
        assert_eq!(errors, FieldErrors::new());
        assert_eq!(state(&new), "allocated,reserved");
        assert_eq!(state(&old), "pending");
    }
}

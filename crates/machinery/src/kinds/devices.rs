//! Dynamic resource allocation: DeviceClass, ResourceClaim and its template, ResourceSlice (in [`slices`]).
//!
//! Deliberately not here: allocating (`sched::dra`).

mod slices;

use super::csi::driver_name;
use super::get::{at, default, default_nonzero, each, has, list, text};
use super::pod::scheduling::{TAINT_EFFECTS, node_selector};
use super::spot::Spot;
use super::{Behaviour, COUNTED, FieldKind, UNCHECKED, meta};
use crate::cel::devices::Selector;
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

const DRA: Behaviour = Behaviour { group: GROUP, ..COUNTED };

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour { resource: "deviceclasses", validate: class, columns: &[Column::NAME, Column::AGE], ..DRA },
    Behaviour {
        resource: "devicetaintrules",
        validate: taint_rule,
        columns: &[Column::NAME, Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceclaims",
        generation: false,
        defaults: |obj| at(obj, "/spec", claim_defaults),
        validate: |s| claim(&s.key("spec")),
        validate_update: UNCHECKED,
        immutable: &["spec"],
        validate_status: status_update,
        columns: &[Column::NAME, Column::new("State", Cell::Fn(|c| state(c).into())), Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceclaimtemplates",
        generation: false,
        defaults: |obj| at(obj, "/spec/spec", claim_defaults),
        validate: |s| {
            meta::labels(&s.key("spec.metadata.labels"));
            meta::annotations(&s.key("spec.metadata.annotations"));
            claim(&s.key("spec.spec"));
        },
        validate_update: UNCHECKED,
        immutable: &["spec"],
        columns: &[Column::NAME, Column::AGE],
        ..DRA
    },
    Behaviour {
        resource: "resourceslices",
        validate: slices::slice,
        immutable: &["spec.pool.name", "spec.driver", "spec.nodeName"],
        columns: &[
            Column::NAME,
            Column::new("Node", Cell::Fn(slices::node_text)),
            Column::new("Driver", Cell::Text("/spec/driver")),
            Column::new("Pool", Cell::Text("/spec/pool/name")),
            Column::AGE,
        ],
        fields: &[
            ("spec.nodeName", FieldKind::Text("/spec/nodeName")),
            ("spec.driver", FieldKind::Text("/spec/driver")),
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

/// Complains about the second of two equal keys.
fn unique<'a>(items: impl Iterator<Item = Spot<'a>>, key: &str) {
    let mut seen = BTreeSet::new();
    items.for_each(|s| s.unique("", s.text(key), &mut seen));
}

/// Requests by name, with the names of their alternatives.
type Names<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn request_names(spec: &Value) -> Names<'_> {
    let requests = list(spec, "/devices/requests").iter();
    let inner = |r| list(r, "/firstAvailable").iter().map(|s| text(s, "/name")).collect();
    requests.map(|r| (text(r, "/name"), inner(r))).collect()
}

fn claim(spec: &Spot) {
    let names = request_names(spec.v);
    let devices = spec.key("devices");
    if devices.at_most("requests", SIZE_MAX) {
        devices.each("requests").for_each(|r| request(&r));
        unique(devices.each("requests"), "name");
    }
    for c in devices.bounded("constraints", SIZE_MAX) {
        references(&c, &names);
        match (c.v.get("matchAttribute"), c.v.get("distinctAttribute")) {
            (Some(Value::String(_)), _) => fully_qualified(&c.key("matchAttribute")),
            (_, Some(Value::String(_))) => fully_qualified(&c.key("distinctAttribute")),
            _ => c.required("", "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
        }
    }
    for c in devices.bounded("config", SIZE_MAX) {
        references(&c, &names);
        configuration(&c);
    }
}

fn request(r: &Spot) {
    r.like("name", name::dns1123_label);
    let one_of = "exactly one of `exactly` or `firstAvailable` is required";
    match (r.has("exactly"), !r.list("firstAvailable").is_empty()) {
        (false, false) => r.required("", one_of),
        (true, true) => r.invalid("", Value::Null, &format!("{one_of}, but multiple fields are set")),
        (true, false) => exact(&r.key("exactly")),
        (false, true) if r.at_most("firstAvailable", ALTERNATIVES_MAX) => {
            for sub in r.each("firstAvailable") {
                sub.like("name", name::dns1123_label);
                exact(&sub);
            }
            unique(r.each("firstAvailable"), "name");
        }
        (false, true) => {}
    }
}

fn exact(r: &Spot) {
    r.need_like("deviceClassName", name::dns1123_subdomain);
    selectors(r);
    match r.text("allocationMode") {
        "All" => r.within_or_zero("count", 0..=0, "must not be specified when allocationMode is 'All'"),
        "ExactCount" => r.within_or_zero("count", 1..=i64::MAX, "must be greater than zero"),
        other => r.not_supported("allocationMode", other, &["All", "ExactCount"]),
    }
    r.each("tolerations").for_each(|t| toleration(&t));
}

fn toleration(t: &Spot) {
    t.like_opt("key", name::qualified_name);
    match t.text("operator") {
        "Exists" if t.text("value").is_empty() => {}
        "Exists" => t.wrong("value", "must be empty for operator `Exists`"),
        "Equal" => {
            t.need("key");
            t.like("value", name::label_value);
        }
        _ => t.one_of("operator", &["Equal", "Exists"]),
    }
    t.one_of_opt("effect", &["NoExecute", "NoSchedule", "None"]);
}

fn selectors(v: &Spot) {
    for cel in v.bounded("selectors", SIZE_MAX).map(|s| s.key("cel")) {
        let own = cel.text("expression");
        if cel.v.is_null() {
            cel.required("", "");
        } else if own.len() > EXPRESSION_BYTES_MAX {
            cel.no_longer("expression", own.len(), EXPRESSION_BYTES_MAX);
        } else if own.trim().is_empty() {
            cel.required("expression", "");
        } else {
            match Selector::compile(own) {
                Err(why) => cel.invalid("expression", own, &why),
                Ok(selector) if selector.is_too_complex() => {
                    cel.forbidden("expression", "too complex, exceeds cost limit");
                }
                Ok(_) => {}
            }
        }
    }
}

/// `requests` of a constraint or configuration: names of requests of the claim.
fn references(v: &Spot, names: &Names<'_>) {
    if v.at_most("requests", SIZE_MAX) {
        v.each("requests").for_each(|r| reference(&r, names));
        unique(v.each("requests"), "");
    }
}

fn reference(r: &Spot, names: &Names<'_>) {
    let words = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let own = r.text("");
    let parts: Vec<&str> = own.split('/').collect();
    let known = match parts[..] {
        [request] => names.contains_key(request),
        [request, sub] => names.get(request).is_some_and(|subs| subs.contains(sub)),
        _ => return r.invalid("", own, words),
    };
    parts.into_iter().for_each(|part| r.invalid_all("", part, name::dns1123_label(part)));
    if !known {
        r.invalid("", own, words);
    }
}

fn configuration(v: &Spot) {
    let Some(opaque) = v.opt("opaque") else { return v.required("opaque", "") };
    driver(&opaque.key("driver"));
    match opaque.v.get("parameters").filter(|p| !p.is_null()) {
        None => opaque.required("parameters", ""),
        Some(p) if p.to_string().len() > PARAMETERS_BYTES_MAX => {
            opaque.no_longer("parameters", p.to_string().len(), PARAMETERS_BYTES_MAX);
        }
        Some(Value::Object(_)) => {}
        Some(_) => opaque.wrong("parameters", "must be a valid JSON object"),
    }
}

/// The name of a driver.
fn driver(s: &Spot) {
    driver_name(s.text(""), s);
}

fn class(obj: &Spot) {
    let spec = obj.key("spec");
    selectors(&spec);
    spec.bounded("config", SIZE_MAX).for_each(|c| configuration(&c));
    let extended = spec.text("extendedResourceName");
    let own_domain =
        extended.split('/').next().is_some_and(|d| d == "kubernetes.io" || d.ends_with(".kubernetes.io"));
    let fits = extended.contains('/')
        && !own_domain
        && !extended.starts_with("requests.")
        && name::qualified_name(&format!("requests.{extended}")).is_empty();
    if spec.has("extendedResourceName") && !fits {
        spec.invalid("extendedResourceName", extended, "must be a valid extended resource name");
    }
}

/// `[domain/]name`, the name being an identifier of C.
fn qualified(own: &str, s: &Spot) {
    let identifier = |id: &str| {
        s.no_longer("", id.len(), ID_MAX);
        let mut bytes = id.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !(head && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
            let words = "a valid C identifier must start with alphabetic character or '_', followed by a string of \
                 alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for \
                 validation is '[A-Za-z_][A-Za-z0-9_]*')";
            s.invalid("", id, words);
        }
    };
    match own.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(id),
        [domain, id] => {
            if domain.is_empty() {
                s.invalid("", "", "the domain must not be empty");
            } else {
                driver_name(domain, s);
            }
            if id.is_empty() {
                s.invalid("", "", "the name must not be empty");
            } else {
                identifier(id);
            }
        }
        _ => s.invalid("", own, "must not contain more than one slash"),
    }
}

fn fully_qualified(s: &Spot) {
    qualified(s.text(""), s);
    if !s.text("").contains('/') {
        s.wrong("", "a fully qualified name must be a domain and a name separated by a slash");
    }
}

fn pool_name(s: &Spot) {
    const POOL_NAME_MAX: usize = 253;
    let Some(own) = s.need("") else { return };
    s.no_longer("", own.len(), POOL_NAME_MAX);
    own.split('/').for_each(|part| s.invalid_all("", part, name::dns1123_subdomain(part)));
}

fn status_update(new: &Spot, old: &Value) {
    let (status, before) = (new.key("status"), &old["status"]);
    let fits = status.at_most("reservedFor", RESERVED_MAX);
    let reserved: &[Value] = if fits { status.list("reservedFor") } else { &[] };
    if fits {
        for user in status.each("reservedFor") {
            for key in ["resource", "name", "uid"] {
                user.need(key);
            }
        }
        unique(status.each("reservedFor"), "uid");
    }
    if !reserved.is_empty() {
        let known = list(before, "/reservedFor");
        if !status.has("allocation") {
            status.forbidden("reservedFor", "may not be specified when `allocated` is not set");
        } else if new.has("metadata.deletionTimestamp") && reserved.iter().any(|u| !known.contains(u)) {
            let words =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            status.forbidden("reservedFor", words);
        }
    }
    let id =
        |d: &Value| ["driver", "pool", "device", "shareID"].map(|k| text(d, &format!("/{k}")).to_string());
    let allocated: BTreeSet<[String; 4]> = status.list("allocation.devices.results").iter().map(id).collect();
    let mut seen = BTreeSet::new();
    for device in status.each("devices") {
        driver(&device.key("driver"));
        pool_name(&device.key("pool"));
        device.like("device", name::dns1123_label);
        let own = id(device.v);
        if !allocated.contains(&own) {
            device.invalid("", own[..3].join("/"), "must be an allocated device in the claim");
        }
        if !seen.insert(own.clone()) {
            device.duplicate("", own[..3].join("/"));
        }
    }
    match (has(before, "/allocation"), status.has("allocation")) {
        (true, true) => status.immutable("allocation", before),
        (false, true) => allocation(&status.key("allocation"), &request_names(&new.v["spec"])),
        _ => {}
    }
}

fn allocation(v: &Spot, names: &Names<'_>) {
    let devices = v.key("devices");
    for result in devices.bounded("results", SIZE_MAX) {
        reference(&result.key("request"), names);
        driver(&result.key("driver"));
        pool_name(&result.key("pool"));
        result.like("device", name::dns1123_label);
    }
    for c in devices.bounded("config", 2 * SIZE_MAX) {
        c.one_of("source", &["FromClaim", "FromClass"]);
        references(&c, names);
        configuration(&c);
    }
    v.opt("nodeSelector").iter().for_each(node_selector);
}

/// A device's taint.
fn taint(t: &Spot) {
    t.like("key", name::qualified_name);
    t.like_opt("value", name::label_value);
    if t.text("effect") != "None" {
        let known: Vec<&str> = TAINT_EFFECTS.into_iter().filter(|e| !e.starts_with("Prefer")).collect();
        t.one_of("effect", &known);
    }
}

fn taint_rule(s: &Spot) {
    taint(&s.key("spec.taint"));
    let Some(selector) = s.opt("spec.deviceSelector") else { return };
    selector.opt("driver").iter().for_each(driver);
    selector.opt("pool").iter().for_each(pool_name);
    selector.like_opt("device", name::dns1123_label);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn fields(spec: Value) -> Vec<String> {
        let mut spec = spec;
        claim_defaults(&mut spec);
        let mut errors = FieldErrors::new();
        claim(&Spot::new(&spec, "spec", &mut errors));
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
        status_update(&Spot::new(&new, "", &mut errors), &old);
        assert_eq!(errors.causes()[0].message, "Forbidden: may not be specified when `allocated` is not set");
        new["status"]["allocation"] =
            json!({"devices": {"results": [{"request": "a", "driver": "x.io", "pool": "p", "device": "d"}]}});
        let mut errors = FieldErrors::new();
        status_update(&Spot::new(&new, "", &mut errors), &old);
        assert_eq!(errors, FieldErrors::new());
        assert_eq!(state(&new), "allocated,reserved");
        assert_eq!(state(&old), "pending");
    }
}

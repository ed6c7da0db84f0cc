//! ResourceSlice: the devices of a pool, as their driver publishes them.

use super::{bounded, condition_types, label, pool_name, qualified_keys, taint, unique};
use crate::field_errors::FieldErrors;
use crate::kinds::csi::driver_name;
use crate::kinds::get::{entries, flag, has, int, list, text, texts};
use crate::kinds::pod::scheduling::node_selector;
use crate::name;
use crate::quantity::Quantity;
use serde_json::Value;

const DEVICES_MAX: usize = 128;
/// With taints, counters or lists among their attributes.
const DEVICES_ADVANCED_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const ATTRIBUTES_MAX: usize = 32;
const TAINTS_MAX: usize = 16;
const CONSUMPTIONS_MAX: usize = 2;
const VALUE_BYTES_MAX: usize = 64;
const VALUES: [&str; 8] = ["bool", "bools", "int", "ints", "string", "strings", "version", "versions"];
const ONE_OF: &str =
    "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const ONE_OF_DEVICE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";

/// The `Node` column.
pub fn node_text(s: &Value) -> Value {
    let node = text(s, "/spec/nodeName");
    if node.is_empty() { "<unset>".into() } else { node.into() }
}

/// Checks a whole slice.
pub fn slice(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    driver_name(text(spec, "/driver"), "spec.driver", errors);
    pool_name(text(spec, "/pool/name"), "spec.pool.name", errors);
    let count = int(spec, "/pool/resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        errors.invalid("spec.pool.resourceSliceCount", count, "must be greater than zero");
    }
    if let Some(n) = int(spec, "/pool/generation").filter(|n| *n < 0) {
        errors.invalid("spec.pool.generation", n, "must be greater than or equal to zero");
    }
    let chosen = places(spec, &["allNodes", "perDeviceNodeSelection"], "spec", errors);
    if list(spec, "/nodeSelector/nodeSelectorTerms").len() > 1 {
        let terms = spec.pointer("/nodeSelector/nodeSelectorTerms").cloned().unwrap_or_default();
        let words = "must have exactly one node selector term";
        errors.invalid("spec.nodeSelector.nodeSelectorTerms", terms, words);
    }
    match chosen.len() {
        0 => errors.required("spec", ONE_OF),
        1 => {}
        _ => {
            let words = format!("{ONE_OF}, but multiple fields are set");
            errors.invalid("spec", format!("{{{}}}", chosen.join(", ")), &words);
        }
    }
    if has(spec, "/sharedCounters") && has(spec, "/devices") {
        errors.invalid("spec", "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = list(spec, "/devices").iter().any(is_advanced);
    let max = if advanced { DEVICES_ADVANCED_MAX } else { DEVICES_MAX };
    let devices = bounded(spec, "devices", max, "spec", errors);
    let each_its_own = flag(spec, "/perDeviceNodeSelection");
    for (i, d) in devices.iter().enumerate() {
        device(d, each_its_own, &format!("spec.devices[{i}]"), errors);
    }
    unique(devices.iter().map(|d| text(d, "/name")), "spec.devices", errors);
    let sets = bounded(spec, "sharedCounters", COUNTER_SETS_MAX, "spec", errors);
    for (i, set) in sets.iter().enumerate() {
        counters(set, "name", &format!("spec.sharedCounters[{i}]"), errors);
    }
    unique(sets.iter().map(|s| text(s, "/name")), "spec.sharedCounters", errors);
}

fn is_advanced(device: &Value) -> bool {
    let lists = ["bools", "ints", "strings", "versions"];
    !list(device, "/taints").is_empty()
        || !list(device, "/consumesCounters").is_empty()
        || entries(device, "/attributes").any(|(_, a)| lists.iter().any(|l| has(a, &format!("/{l}"))))
}

/// Where the devices are: which of the ways is given, in the words of messages.
fn places(v: &Value, flags: &[&str], path: &str, errors: &mut FieldErrors) -> Vec<String> {
    let mut chosen = Vec::new();
    if let Some(node) = v.get("nodeName").and_then(Value::as_str) {
        if node.is_empty() {
            let words = "must be either unset or set to a non-empty string";
            errors.invalid(&format!("{path}.nodeName"), "", words);
        } else {
            chosen.push("`nodeName`".to_string());
            errors.invalid_all(&format!("{path}.nodeName"), node, name::dns1123_subdomain(node));
        }
    }
    if has(v, "/nodeSelector") {
        chosen.push("`nodeSelector`".into());
        node_selector(&v["nodeSelector"], &format!("{path}.nodeSelector"), errors);
    }
    for key in flags {
        match v.get(*key).and_then(Value::as_bool) {
            Some(true) => chosen.push(format!("`{key}`")),
            Some(false) => {
                errors.invalid(&format!("{path}.{key}"), false, "must be either unset or set to true");
            }
            None => {}
        }
    }
    chosen
}

fn device(d: &Value, own_place: bool, path: &str, errors: &mut FieldErrors) {
    label(text(d, "/name"), &format!("{path}.name"), errors);
    let total = entries(d, "/attributes").count() + entries(d, "/capacity").count();
    if total > ATTRIBUTES_MAX {
        let words = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.invalid(path, total, &words);
    }
    qualified_keys(d, "attributes", path, errors);
    for (key, value) in entries(d, "/attributes") {
        attribute(value, &format!("{path}.attributes[{key}]"), errors);
    }
    qualified_keys(d, "capacity", path, errors);
    for (key, capacity) in entries(d, "/capacity") {
        let path = format!("{path}.capacity[{key}].requestPolicy");
        if has(capacity, "/requestPolicy") {
            if flag(d, "/allowMultipleAllocations") {
                policy(&capacity["requestPolicy"], &path, errors);
            } else {
                errors.forbidden(&path, "allowMultipleAllocations must be true");
            }
        }
    }
    for (i, t) in bounded(d, "taints", TAINTS_MAX, path, errors).iter().enumerate() {
        taint(t, &format!("{path}.taints[{i}]"), errors);
    }
    let consumed = bounded(d, "consumesCounters", CONSUMPTIONS_MAX, path, errors);
    for (i, c) in consumed.iter().enumerate() {
        counters(c, "counterSet", &format!("{path}.consumesCounters[{i}]"), errors);
    }
    unique(consumed.iter().map(|c| text(c, "/counterSet")), &format!("{path}.consumesCounters"), errors);
    let given = ["nodeName", "nodeSelector", "allNodes"].iter().any(|k| has(d, &format!("/{k}")));
    if own_place {
        let chosen = places(d, &["allNodes"], path, errors);
        match chosen.len() {
            0 => errors.required(path, ONE_OF_DEVICE),
            1 => {}
            _ => errors.invalid(path, format!("{{{}}}", chosen.join(", ")), ONE_OF_DEVICE),
        }
    } else if given {
        let words = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        errors.invalid(path, Value::Null, words);
    }
    for key in ["bindingConditions", "bindingFailureConditions"] {
        condition_types(d, key, path, errors);
    }
}

fn attribute(a: &Value, path: &str, errors: &mut FieldErrors) {
    let given = VALUES.iter().filter(|k| has(a, &format!("/{k}"))).count();
    if given != 1 {
        let shown = if given == 0 { Value::from("") } else { a.clone() };
        errors.invalid(path, shown, "exactly one value must be specified");
    }
    for key in ["bools", "ints", "strings", "versions"] {
        if has(a, &format!("/{key}")) && list(a, &format!("/{key}")).is_empty() {
            let at = format!("{path}.{key}");
            errors.invalid(&at, Value::Array(Vec::new()), "must not be empty if specified");
        }
    }
    for (one, many) in [("string", "strings"), ("version", "versions")] {
        let single = Some(text(a, &format!("/{one}"))).filter(|t| !t.is_empty());
        let single = single.map(|t| (format!("{path}.{one}"), t));
        let several = format!("/{many}");
        let several = texts(a, &several).enumerate().map(|(i, t)| (format!("{path}.{many}[{i}]"), t));
        for (at, value) in single.into_iter().chain(several) {
            if one == "version" && !is_semver(value) {
                errors.invalid(&at, value, "must be a string compatible with semver.org spec 2.0.0");
            }
            if value.len() > VALUE_BYTES_MAX {
                errors.too_long(&at, VALUE_BYTES_MAX);
            }
        }
    }
}

/// semver.org 2.0.0: three numbers, then what is before a release, then what it was built from.
fn is_semver(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| digits(s) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|p| p.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|b| b.split('.').all(word))
}

fn counters(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    let at = format!("{path}.{key}");
    match text(v, &format!("/{key}")) {
        "" => errors.required(&at, ""),
        own => label(own, &at, errors),
    }
    let count = entries(v, "/counters").count();
    if count == 0 {
        errors.required(&format!("{path}.counters"), "");
    } else if count > COUNTERS_MAX {
        errors.too_many(&format!("{path}.counters"), count, COUNTERS_MAX);
    }
    for (own, _) in entries(v, "/counters") {
        label(own, &format!("{path}.counters"), errors);
    }
}

fn policy(p: &Value, path: &str, errors: &mut FieldErrors) {
    let (values, range) = (list(p, "/validValues"), has(p, "/validRange"));
    let amount = |v: &Value| Quantity::from_json(v).and_then(Result::ok);
    if !values.is_empty() && range {
        let words = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return errors.forbidden(path, words);
    }
    let default = amount(&p["default"]);
    for (given, key) in [(!values.is_empty(), "validValues"), (range, "validRange")] {
        if given && default.is_none() {
            errors.required(&format!("{path}.default"), &format!("required when {key} is defined"));
        }
    }
    let Some(default) = default else { return };
    let all: Vec<Quantity> = values.iter().filter_map(amount).collect();
    if !all.is_empty() && !all.contains(&default) {
        let words = "default value is not valid according to the requestPolicy";
        errors.invalid(&format!("{path}.validValues"), default.to_string(), words);
    }
    if range {
        let at = format!("{path}.validRange");
        let Some(min) = amount(&p["validRange"]["min"]) else {
            return errors.required(&format!("{at}.min"), "required when validRange is defined");
        };
        if default < min {
            let words = format!("default is less than min: {min}");
            errors.invalid(&format!("{at}.default"), default.to_string(), &words);
        }
        if let Some(max) = amount(&p["validRange"]["max"]).filter(|max| default > *max) {
            let words = format!("default is more than max: {max}");
            errors.invalid(&format!("{at}.default"), default.to_string(), &words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        slice(&json!({"spec": spec}), &mut errors);
        errors.causes().iter().map(|c| c.field.clone()).collect()
    }

    #[test]
    fn slices() {
        let good = json!({"driver": "x.io", "pool": {"name": "p", "resourceSliceCount": 1}, "nodeName": "n",
            "devices": [{"name": "d", "attributes": {"model": {"string": "a"}, "x.io/version": {"version": "1.2.3-rc.1+b"}}}]});
        assert_eq!(fields(good.clone()), Vec::<String>::new());
        let mut bad = good.clone();
        bad["allNodes"] = json!(true);
        bad["pool"]["resourceSliceCount"] = json!(0);
        bad["devices"] = json!([{"name": "d", "attributes": {"9": {"version": "1.2"}, "m": {}}}, {"name": "d", "allNodes": true}]);
        assert_eq!(
            fields(bad),
            [
                "spec.pool.resourceSliceCount",
                "spec",
                "spec.devices[0].attributes",
                "spec.devices[0].attributes[9].version",
                "spec.devices[0].attributes[m]",
                "spec.devices[1]",
                "spec.devices[1]",
            ]
        );
    }

    #[test]
    fn versions() {
        for good in ["0.0.0", "1.2.3", "1.0.0-alpha.1", "1.0.0+20", "1.0.0-0a+b-c"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["", "1", "1.2", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }
}

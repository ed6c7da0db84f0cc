//! ResourceSlice: the devices of a pool, as their driver publishes them.

use super::{driver, pool_name, qualified, taint, unique};
use crate::kinds::get::{entries, has, list, text};
use crate::kinds::pod::scheduling::node_selector;
use crate::kinds::spot::Spot;
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
pub fn slice(obj: &Spot) {
    let spec = obj.key("spec");
    driver(&spec.key("driver"));
    pool_name(&spec.key("pool.name"));
    spec.within_or_zero("pool.resourceSliceCount", 1..=i64::MAX, "must be greater than zero");
    spec.within("pool.generation", 0..=i64::MAX, "must be greater than or equal to zero");
    let chosen = places(&spec, &["allNodes", "perDeviceNodeSelection"]);
    if spec.list("nodeSelector.nodeSelectorTerms").len() > 1 {
        spec.wrong("nodeSelector.nodeSelectorTerms", "must have exactly one node selector term");
    }
    match chosen.len() {
        0 => spec.required("", ONE_OF),
        1 => {}
        _ => {
            let words = format!("{ONE_OF}, but multiple fields are set");
            spec.invalid("", format!("{{{}}}", chosen.join(", ")), &words);
        }
    }
    if spec.has("sharedCounters") && spec.has("devices") {
        spec.invalid("", "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = spec.list("devices").iter().any(is_advanced);
    let each_its_own = spec.flag("perDeviceNodeSelection");
    if spec.at_most("devices", if advanced { DEVICES_ADVANCED_MAX } else { DEVICES_MAX }) {
        spec.each("devices").for_each(|d| device(&d, each_its_own));
        unique(spec.each("devices"), "name");
    }
    if spec.at_most("sharedCounters", COUNTER_SETS_MAX) {
        spec.each("sharedCounters").for_each(|set| counters(&set, "name"));
        unique(spec.each("sharedCounters"), "name");
    }
}

fn is_advanced(device: &Value) -> bool {
    let lists = ["bools", "ints", "strings", "versions"];
    !list(device, "/taints").is_empty()
        || !list(device, "/consumesCounters").is_empty()
        || entries(device, "/attributes").any(|(_, a)| lists.iter().any(|l| has(a, &format!("/{l}"))))
}

/// Where the devices are: which of the ways is given, in the words of messages.
fn places(v: &Spot, flags: &[&str]) -> Vec<String> {
    let mut chosen = Vec::new();
    match v.v.get("nodeName").and_then(Value::as_str) {
        Some("") => v.invalid("nodeName", "", "must be either unset or set to a non-empty string"),
        Some(_) => {
            chosen.push("`nodeName`".to_string());
            v.like("nodeName", name::dns1123_subdomain);
        }
        None => {}
    }
    if let Some(selector) = v.opt("nodeSelector") {
        chosen.push("`nodeSelector`".into());
        node_selector(&selector);
    }
    for key in flags {
        match v.v.get(*key).and_then(Value::as_bool) {
            Some(true) => chosen.push(format!("`{key}`")),
            Some(false) => v.invalid(key, false, "must be either unset or set to true"),
            None => {}
        }
    }
    chosen
}

fn device(d: &Spot, own_place: bool) {
    d.like("name", name::dns1123_label);
    let total = d.entries("attributes").count() + d.entries("capacity").count();
    if total > ATTRIBUTES_MAX {
        let words = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        d.invalid("", total, &words);
    }
    d.entries("attributes").for_each(|(own, _)| qualified(own, &d.key("attributes")));
    d.entries("attributes").for_each(|(_, a)| attribute(&a));
    d.entries("capacity").for_each(|(own, _)| qualified(own, &d.key("capacity")));
    for policy in d.entries("capacity").filter_map(|(_, c)| c.opt("requestPolicy")) {
        if d.flag("allowMultipleAllocations") {
            request_policy(&policy);
        } else {
            policy.forbidden("", "allowMultipleAllocations must be true");
        }
    }
    d.bounded("taints", TAINTS_MAX).for_each(|t| taint(&t));
    if d.at_most("consumesCounters", CONSUMPTIONS_MAX) {
        d.each("consumesCounters").for_each(|c| counters(&c, "counterSet"));
        unique(d.each("consumesCounters"), "counterSet");
    }
    if own_place {
        let chosen = places(d, &["allNodes"]);
        match chosen.len() {
            0 => d.required("", ONE_OF_DEVICE),
            1 => {}
            _ => d.invalid("", format!("{{{}}}", chosen.join(", ")), ONE_OF_DEVICE),
        }
    } else if !d.given(&["nodeName", "nodeSelector", "allNodes"]).is_empty() {
        let words = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        d.invalid("", Value::Null, words);
    }
    for key in ["bindingConditions", "bindingFailureConditions"] {
        d.each(key).for_each(|c| c.like("", name::qualified_name));
    }
}

fn attribute(a: &Spot) {
    let given = a.given(&VALUES).len();
    if given != 1 {
        let shown = if given == 0 { Value::from("") } else { a.v.clone() };
        a.invalid("", shown, "exactly one value must be specified");
    }
    for key in a.given(&["bools", "ints", "strings", "versions"]) {
        if a.list(key).is_empty() {
            a.invalid(key, Value::Array(Vec::new()), "must not be empty if specified");
        }
    }
    for (one, many) in [("string", "strings"), ("version", "versions")] {
        let single = a.opt(one).filter(|s| !s.text("").is_empty());
        for s in single.into_iter().chain(a.each(many)) {
            if one == "version" && !is_semver(s.text("")) {
                s.wrong("", "must be a string compatible with semver.org spec 2.0.0");
            }
            s.no_longer("", s.text("").len(), VALUE_BYTES_MAX);
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

fn counters(v: &Spot, key: &str) {
    v.need_like(key, name::dns1123_label);
    let count = v.entries("counters").count();
    if count == 0 {
        v.required("counters", "");
    }
    v.few("counters", count, COUNTERS_MAX);
    v.entries("counters").for_each(|(own, _)| v.invalid_all("counters", own, name::dns1123_label(own)));
}

fn request_policy(p: &Spot) {
    let (values, range) = (p.list("validValues"), p.has("validRange"));
    let amount = |v: &Value| Quantity::from_json(v).and_then(Result::ok);
    if !values.is_empty() && range {
        let words = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return p.forbidden("", words);
    }
    let default = amount(&p.v["default"]);
    for (given, key) in [(!values.is_empty(), "validValues"), (range, "validRange")] {
        if given && default.is_none() {
            p.required("default", &format!("required when {key} is defined"));
        }
    }
    let Some(default) = default else { return };
    let all: Vec<Quantity> = values.iter().filter_map(amount).collect();
    if !all.is_empty() && !all.contains(&default) {
        let words = "default value is not valid according to the requestPolicy";
        p.invalid("validValues", default.to_string(), words);
    }
    if range {
        let range = p.key("validRange");
        let Some(min) = amount(&range.v["min"]) else {
            return range.required("min", "required when validRange is defined");
        };
        if default < min {
            range.invalid("default", default.to_string(), &format!("default is less than min: {min}"));
        }
        if let Some(max) = amount(&range.v["max"]).filter(|max| default > *max) {
            range.invalid("default", default.to_string(), &format!("default is more than max: {max}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn fields(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        slice(&Spot::new(&json!({"spec": spec}), "", &mut errors));
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

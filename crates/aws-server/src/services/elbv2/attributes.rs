//! Attributes of load balancers, target groups and listeners: tables of keys with their defaults and what they may be.
//!
//! `spec.Attributes` holds what was changed, by key. Which of them do something: the controller in `ecs` says.

use super::Elb;
use super::find::{What, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// Whose, key, default, and what it may be: a flag, a number of `low..high`, one of several words, any text ("").
static ROWS: LazyLock<Vec<[&str; 4]>> =
    LazyLock::new(|| stdx::rows(include_str!("attributes.txt")).collect());

/// The rows of one thing, and what it is called in refusals.
fn rows(
    what: What,
    spec: &Value,
) -> (impl Iterator<Item = &'static [&'static str; 4]> + use<>, &'static str) {
    let http = |member: &str| text(spec, member).starts_with("HTTP");
    let (whose, word) = match what {
        What::Balancer if text(spec, "Type") == "network" => (["balancer", "network"], "Load balancer"),
        What::Balancer => (["balancer", "application"], "Load balancer"),
        What::Group if http("Protocol") => (["group", "group http"], "Target group"),
        What::Group => (["group", "group tcp"], "Target group"),
        _ if http("Protocol") => (["listener http"; 2], "Listener"),
        _ => (["listener tcp"; 2], "Listener"),
    };
    (ROWS.iter().filter(move |[of, ..]| whose.contains(of)), word)
}

fn shown(what: What, spec: &Value) -> Value {
    let row = |[_, key, default, _]: &[&str; 4]| {
        let value = spec["Attributes"][*key].as_str().unwrap_or(default);
        json!({"Key": key, "Value": value})
    };
    rows(what, spec).0.map(row).collect()
}

/// What a value must be in place of what it is; `None`: it is fine.
fn wanted(allowed: &str, value: &str) -> Option<String> {
    match allowed.split_once("..") {
        _ if allowed.is_empty() => None,
        _ if allowed == "flag" => {
            (!matches!(value, "true" | "false")).then(|| "'true' or 'false'".to_string())
        }
        Some((low, high)) => {
            let number = |text: &str| text.parse::<u32>().ok();
            let fits = number(value).is_some_and(|n| number(low) <= Some(n) && Some(n) <= number(high));
            (!fits).then(|| format!("between '{low}' and '{high}'"))
        }
        None => {
            let fits = allowed.split(' ').any(|one| one == value);
            (!fits).then(|| format!("one of '{}'", allowed.replace(' ', ", ")))
        }
    }
}

/// Takes the attributes of a call into a `spec`.
fn set(what: What, spec: &mut Value, given: &Value) -> Result<(), AwsError> {
    for attribute in items(given) {
        let (key, value) = (text(attribute, "Key"), text(attribute, "Value"));
        let (mut rows, word) = rows(what, spec);
        let Some([_, key, _, allowed]) = rows.find(|[_, k, ..]| *k == key) else {
            return Err(invalid(format!("{word} attribute key '{key}' is not recognized")));
        };
        if let Some(wanted) = wanted(allowed, value) {
            return Err(invalid(format!("'{key}' must be {wanted}, not '{value}'")));
        }
        spec["Attributes"][*key] = json!(value);
    }
    Ok(())
}

/// DescribeLoadBalancerAttributes, DescribeTargetGroupAttributes, DescribeListenerAttributes.
pub(super) async fn describe(elb: &Elb, call: &Call, what: What) -> Outcome {
    let spec = what.get(elb, call, text(&call.input, what.member())).await?;
    Ok(json!({"Attributes": shown(what, &spec)}))
}

/// ModifyLoadBalancerAttributes, ModifyTargetGroupAttributes, ModifyListenerAttributes.
pub(super) async fn modify(elb: &Elb, call: &Call, what: What) -> Outcome {
    let arn = text(&call.input, what.member());
    let changed = what.change(elb, call, arn, |spec| {
        set(what, spec, &call.input["Attributes"])?;
        Ok(json!({"Attributes": shown(what, spec)}))
    });
    changed.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_known_and_in_range() {
        let mut spec = json!({"Protocol": "HTTP", "Attributes": {}});
        let one = |key: &str, value: &str| json!([{"Key": key, "Value": value}]);
        let delay = "deregistration_delay.timeout_seconds";
        set(What::Group, &mut spec, &one(delay, "5")).unwrap();
        assert!(items(&shown(What::Group, &spec)).contains(&json!({"Key": delay, "Value": "5"})));
        for (key, value) in [
            (delay, "3601"),
            (delay, "x"),
            ("nope", "1"),
            ("stickiness.enabled", "yes"),
            ("proxy_protocol_v2.enabled", "true"),
            ("stickiness.type", "source_ip"),
        ] {
            let refusal = set(What::Group, &mut spec, &one(key, value)).unwrap_err();
            assert_eq!(refusal.code, "ValidationError", "{refusal}");
        }
    }
}

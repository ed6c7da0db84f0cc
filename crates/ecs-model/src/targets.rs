//! Targets of load balancers as values: how a target group's ARN becomes its object, who is in it, how they are.
//!
//! A `targetgroups` object holds in `spec.targets` who shall serve (`{id, port, availabilityZone, owner}`; written by
//! RegisterTargets and by the service scheduler, each only its own entries, by compare-and-swap) and in
//! `status.targets` how they are (`{id, port, state, reason, description}`; written by the load balancers' controller,
//! also for those that drain after they left `spec`). Pure.

use crate::names::{AWS_NAMESPACE, Arn, Place, derived_id, object_name};
use machinery::kinds::get::{int, list, text};
use serde_json::{Value, json};

/// A target group's name in its ARN (`…:targetgroup/<name>/<16 hex digits>`).
pub fn group_name(arn: &str) -> Option<&str> {
    let arn = Arn::parse(arn).filter(|a| a.service == "elasticloadbalancing")?;
    let (name, id) = arn.resource.strip_prefix("targetgroup/")?.split_once('/')?;
    (!name.is_empty() && !id.is_empty() && !id.contains('/')).then_some(name)
}

/// Namespace and name of a target group's object. Its `spec.TargetGroupArn` says whether it is the very one.
pub fn group_object(arn: &str, defaults: &Place) -> Option<(&'static str, String)> {
    let name = group_name(arn)?;
    let place = Arn::parse(arn)?;
    Some((AWS_NAMESPACE, object_name(place.account, place.region, defaults, name)))
}

/// The EC2 instance that a node is: the id that follows from its UID.
pub fn instance_id(node_uid: &str) -> String {
    format!("i-{}", derived_id(node_uid).get(..17).unwrap_or_default())
}

/// An entry of `spec.targets`; `owner` is a task's ARN, or "" for what a user registered.
pub fn target(id: &str, port: u16, zone: &str, owner: &str) -> Value {
    let mut out = json!({"id": id, "port": port});
    for (member, value) in [("availabilityZone", zone), ("owner", owner)] {
        if !value.is_empty() {
            out[member] = json!(value);
        }
    }
    out
}

/// The Secret (in namespace `aws`, of type `kubernetes.io/tls`) that holds a certificate: the last part of its ARN.
pub fn certificate_secret(arn: &str) -> Option<&str> {
    let name = Arn::parse(arn)?.resource.rsplit('/').next()?;
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(good)).then_some(name)
}

/// A matcher's statuses as inclusive ranges: `200`, `200,202`, `200-299`.
pub fn status_ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    let status = |t: &str| t.trim().parse::<u16>().ok().filter(|n| (200..=599).contains(n));
    let range = |t: &str| match t.split_once('-') {
        Some((low, high)) => Some((status(low)?, status(high)?)).filter(|(low, high)| low <= high),
        None => status(t).map(|n| (n, n)),
    };
    text.split(',').map(range).collect()
}

/// Do two entries (of `spec` or `status`) name the same target?
pub fn is_same(a: &Value, b: &Value) -> bool {
    text(a, "/id") == text(b, "/id") && int(a, "/port") == int(b, "/port")
}

/// The list with those added; an entry for the same target is replaced.
pub fn with(targets: &Value, new: &[Value]) -> Value {
    let mut out: Vec<Value> =
        list(targets, "").iter().filter(|old| !new.iter().any(|n| is_same(old, n))).cloned().collect();
    out.extend(new.iter().cloned());
    Value::Array(out)
}

/// The list without those.
pub fn without(targets: &Value, gone: impl Fn(&Value) -> bool) -> Value {
    list(targets, "").iter().filter(|t| !gone(t)).cloned().collect()
}

/// How a target is, by the group's `status`: `initial`, `healthy`, `unhealthy`, `unused`, `draining`, …; "" when the
/// controller has not seen it yet, or it is gone (deregistered and drained).
pub fn state<'a>(status: &'a Value, id: &str, port: u16) -> &'a str {
    let wanted = json!({"id": id, "port": port});
    list(status, "/targets").iter().find(|t| is_same(t, &wanted)).map_or("", |t| text(t, "/state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_their_arn() {
        let home = Place::new("123456789012", "us-east-1");
        let arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/web/0123456789abcdef";
        assert_eq!(group_object(arn, &home), Some(("aws", "web".into())));
        for bad in ["targetgroup/web/01/x", "targetgroup/web", "loadbalancer/app/web/01", "targetgroup//1"] {
            assert_eq!(group_name(&format!("arn:aws:elasticloadbalancing:r:1:{bad}")), None, "{bad}");
        }
        assert_ne!(group_object(&arn.replace("east", "west"), &home).unwrap().1, "web");
    }

    #[test]
    fn matchers_and_certificates() {
        assert_eq!(status_ranges("200,301-302"), Some(vec![(200, 200), (301, 302)]));
        for bad in ["", "x", "200,", "302-301", "99", "600"] {
            assert_eq!(status_ranges(bad), None, "{bad}");
        }
        assert_eq!(certificate_secret("arn:aws:acm:us-east-1:123456789012:certificate/web"), Some("web"));
        assert_eq!(certificate_secret("arn:aws:acm:us-east-1:123456789012:certificate/A_b"), None);
    }

    #[test]
    fn a_target_is_there_once() {
        let one = with(&Value::Null, &[target("10.0.0.1", 80, "us-east-1a", "")]);
        let two = with(&one, &[target("10.0.0.1", 81, "", "arn:t"), target("10.0.0.1", 80, "", "")]);
        assert_eq!(
            two,
            json!([{"id": "10.0.0.1", "port": 81, "owner": "arn:t"}, {"id": "10.0.0.1", "port": 80}])
        );
        assert_eq!(without(&two, |t| text(t, "/owner") == "arn:t").as_array().unwrap().len(), 1);
        let status = json!({"targets": [{"id": "10.0.0.1", "port": 80, "state": "healthy"}]});
        assert_eq!((state(&status, "10.0.0.1", 80), state(&status, "10.0.0.1", 81)), ("healthy", ""));
    }
}

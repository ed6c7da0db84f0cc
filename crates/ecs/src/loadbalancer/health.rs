//! From what checks say to what ELB shows: states, reason codes, words; and who drains for how long. Pure.
//!
//! A target that leaves a group in use drains: it gets nothing new, and goes when nothing is under way or its
//! deregistration delay is over, whichever is first.

use super::world::{World, seconds, target_name};
use ecs_model::targets::is_same;
use lb::TargetHealth;
use lb::health::{Failure, State};
use machinery::kinds::get::{list, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Until when one drains, milliseconds since 1970: our own member of its entry.
const UNTIL: &str = "drainsUntilMs";

/// What checks said last, by group and target.
pub type Seen = BTreeMap<(String, String), TargetHealth>;

/// By group and target.
pub fn seen(all: Vec<TargetHealth>) -> Seen {
    all.into_iter().map(|h| ((h.group.to_string(), h.target.to_string()), h)).collect()
}

/// Who drains in each group in use, with [`UNTIL`].
pub fn draining(world: &World, seen: &Seen, now_ms: i64) -> BTreeMap<String, Vec<Value>> {
    let mut out = BTreeMap::new();
    for arn in world.used() {
        let Some(group) = world.groups.get(arn) else { continue };
        let spec = group.spec();
        let registered = |t: &Value| list(spec, "/targets").iter().any(|s| is_same(s, t));
        let left = list(group.status(), "/targets").iter().filter(|t| !registered(t));
        let delay = seconds(spec, "deregistration_delay.timeout_seconds", 300).as_millis();
        let until = now_ms.saturating_add(i64::try_from(delay).unwrap_or(i64::MAX));
        let drains = |t: &Value| {
            let health = seen.get(&(arn.to_string(), target_name(t)));
            let is_idle = health.is_some_and(|h| h.draining && h.outstanding == 0);
            let until = match text(t, "/state") {
                "draining" => t[UNTIL].as_i64().unwrap_or(until),
                "unused" => return None,
                _ => until,
            };
            let entry = json!({"id": t["id"], "port": t["port"], UNTIL: until,
                "availabilityZone": t["availabilityZone"]});
            (until > now_ms && !is_idle).then_some(entry)
        };
        let all: Vec<Value> = left.filter_map(drains).collect();
        if !all.is_empty() {
            out.insert(arn.to_string(), all);
        }
    }
    out
}

/// `status.targets` of every group.
pub fn statuses(
    world: &World,
    draining: &BTreeMap<String, Vec<Value>>,
    seen: &Seen,
) -> BTreeMap<String, Value> {
    let used = world.used();
    let mut out = BTreeMap::new();
    for (arn, group) in &world.groups {
        let is_used = used.contains(arn.as_str());
        let one = |t: &Value| {
            let (state, reason, words) = if !is_used {
                (
                    "unused",
                    "Target.NotInUse",
                    "Target group is not configured to receive traffic from the load balancer".into(),
                )
            } else if world.address(group.spec(), t).is_none() {
                ("unused", "Target.InvalidState", "Target is in an invalid state".to_string())
            } else {
                said(seen.get(&(arn.clone(), target_name(t))))
            };
            let mut entry = json!({"id": t["id"], "port": t["port"], "state": state});
            for (member, value) in [("reason", reason), ("description", &words)] {
                if !value.is_empty() {
                    entry[member] = json!(value);
                }
            }
            entry
        };
        let here = list(group.spec(), "/targets").iter().map(one);
        let leaving = draining.get(arn).map_or(&[][..], Vec::as_slice).iter().map(|t| {
            let mut entry = t.clone();
            entry["state"] = json!("draining");
            entry["reason"] = json!("Target.DeregistrationInProgress");
            entry["description"] = json!("Target deregistration is in progress");
            entry
        });
        let mut all: Vec<Value> = here.chain(leaving).collect();
        all.iter_mut().for_each(ecs_model::doc::drop_nulls);
        out.insert(arn.clone(), Value::Array(all));
    }
    out
}

fn said(health: Option<&TargetHealth>) -> (&'static str, &'static str, String) {
    match health.map(|h| &h.state) {
        None | Some(State::Initial) => {
            ("initial", "Elb.InitialHealthChecking", "Initial health checks in progress".into())
        }
        Some(State::Healthy) => ("healthy", "", String::new()),
        Some(State::Unhealthy(failure)) => {
            let (reason, words) = match failure {
                Failure::Status(code) => (
                    "Target.ResponseCodeMismatch",
                    format!("Health checks failed with these codes: [{code}]"),
                ),
                Failure::Timeout => ("Target.Timeout", "Request timed out".into()),
                Failure::Connection => ("Target.FailedHealthChecks", "Health checks failed".into()),
            };
            ("unhealthy", reason, words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::world;
    use super::*;
    use ecs_model::doc::Doc;
    use std::sync::Arc;

    fn health(target: &str, state: State, draining: bool, outstanding: usize) -> TargetHealth {
        TargetHealth { group: "g".into(), target: target.into(), state, draining, outstanding }
    }

    fn with_status(status: Value) -> World {
        let mut world = world();
        let mut group = world.groups["g"].0.clone();
        group["status"] = json!({"targets": status});
        world.groups.insert("g".into(), Arc::new(Doc(group)));
        world
    }

    #[test]
    fn states_and_reasons() {
        let world = world();
        let told = |state: State| {
            let seen = seen(vec![health("10.0.0.1:80", state, false, 0)]);
            statuses(&world, &BTreeMap::new(), &seen)["g"][0].clone()
        };
        assert_eq!(told(State::Healthy), json!({"id": "10.0.0.1", "port": 80, "state": "healthy"}));
        for (failure, reason) in [
            (Failure::Status(503), "Target.ResponseCodeMismatch"),
            (Failure::Timeout, "Target.Timeout"),
            (Failure::Connection, "Target.FailedHealthChecks"),
        ] {
            assert_eq!(told(State::Unhealthy(failure))["reason"], reason);
        }
        let all = statuses(&world, &BTreeMap::new(), &Seen::new());
        assert_eq!(all["g"][0]["reason"], "Elb.InitialHealthChecking");
        assert_eq!(all["unused"][0]["reason"], "Target.NotInUse");
    }

    #[test]
    fn who_left_drains_until_idle_or_late() {
        let left = |state: &str| json!([{"id": "10.0.0.2", "port": 80, "state": state}]);
        assert!(draining(&with_status(left("unused")), &Seen::new(), 1_000).is_empty());
        let begun = draining(&with_status(left("healthy")), &Seen::new(), 1_000);
        assert_eq!(begun["g"][0][UNTIL], 1_000 + 9_000);
        let status = statuses(&with_status(left("healthy")), &begun, &Seen::new())["g"].clone();
        assert_eq!(status[1]["state"], "draining");
        let world = with_status(status);
        let drains = |outstanding: usize, draining_seen: bool, now: i64| {
            let seen = seen(vec![health("10.0.0.2:80", State::Healthy, draining_seen, outstanding)]);
            !draining(&world, &seen, now).is_empty()
        };
        assert!(drains(1, true, 9_999) && drains(0, false, 9_999), "busy, or not told yet");
        assert!(!drains(0, true, 2_000) && !drains(1, true, 10_000), "idle, or late");
    }
}

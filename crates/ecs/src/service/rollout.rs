//! Deployments of a service as documents: which there are, how far they are, when one has failed. Pure.
//!
//! `deployments[0]` is PRIMARY, the one that `spec.deployment` names; the others are ACTIVE until their last task is
//! gone. A roll-back makes an older one PRIMARY again under its own id.

use super::view::Seen;
use ecs_model::doc::copy;
use ecs_model::service::{DEPLOYMENT, REVISED};
use machinery::kinds::get::{has, int, list, set, text};
use serde_json::{Value, json};

/// Bounds of the circuit breaker's threshold.
const THRESHOLD_MIN: u64 = 3;
const THRESHOLD_MAX: u64 = 200;
/// Percent of the wanted tasks that may fail.
const THRESHOLD_PERCENT: u64 = 50;
/// Most events that are kept, the newest first.
pub const EVENTS_MAX: usize = 100;

/// A deployment's id without `ecs-svc/`: also the id of its revision.
pub fn number(deployment: &str) -> &str {
    deployment.rsplit('/').next().unwrap_or_default()
}

/// The deployment that shall be PRIMARY: id.
pub fn wanted(spec: &Value) -> &str {
    text(&spec[DEPLOYMENT], "/id")
}

/// All deployments with the wanted one first; `true`: it was not first before.
pub fn adopt(spec: &Value, status: &Value, now: f64) -> (Vec<Value>, bool) {
    let wanted = &spec[DEPLOYMENT];
    let mut all: Vec<Value> = list(status, "/deployments").to_vec();
    if all.first().is_some_and(|d| d["id"] == wanted["id"]) || !has(wanted, "/id") {
        return (all, false);
    }
    let id = text(wanted, "/id");
    let back = text(wanted, "/reason");
    let known = all.iter().position(|d| d["id"] == wanted["id"]).map(|at| all.remove(at));
    let mut primary = known.unwrap_or_else(|| {
        json!({"id": id, "createdAt": wanted["createdAt"], "failedTasks": 0,
        "desiredCount": 0, "pendingCount": 0, "runningCount": 0})
    });
    let reason = if back.is_empty() { format!("ECS deployment {id} in progress.") } else { back.to_string() };
    let news = json!({"status": "PRIMARY", "taskDefinition": spec["taskDefinition"], "updatedAt": now,
        "failedTasks": 0, "rolloutState": "IN_PROGRESS", "rolloutStateReason": reason});
    machinery::patch::merge(&mut primary, &news);
    copy(&mut primary, spec, REVISED);
    for older in &mut all {
        set(older, "status", "ACTIVE");
        set(older, "updatedAt", now);
        if older["rolloutState"] == "IN_PROGRESS" {
            set(older, "rolloutState", "FAILED");
            set(older, "rolloutStateReason", format!("ECS deployment {id} took its place."));
        }
    }
    all.insert(0, primary);
    (all, true)
}

/// Failures in a row that make the circuit breaker trip; `None` where it is off.
pub fn threshold(spec: &Value, want: usize) -> Option<u64> {
    let breaker = &spec["deploymentConfiguration"]["deploymentCircuitBreaker"];
    if breaker["enable"] != true {
        return None;
    }
    let configuration = &breaker["thresholdConfiguration"];
    let value = int(configuration, "/value").and_then(|v| u64::try_from(v).ok());
    let share = (value.unwrap_or(THRESHOLD_PERCENT) * want as u64).div_ceil(100);
    Some(match text(configuration, "/type") {
        "COUNT" => value.unwrap_or(THRESHOLD_MIN).max(1),
        "UNBOUNDED_PERCENT" => share.max(1),
        _ => share.clamp(THRESHOLD_MIN, THRESHOLD_MAX),
    })
}

/// Counts of a deployment as its tasks show them. `desired` for the primary; the others want what they have.
pub fn count(deployment: &mut Value, tasks: &[Seen], desired: Option<usize>, now: f64) {
    let before = deployment.clone();
    let own = || tasks.iter().filter(|t| t.deployment == text(&before, "/id"));
    let running = own().filter(|t| t.last == "RUNNING").count();
    let pending = own().filter(|t| t.wanted && t.last != "RUNNING").count();
    let desired = desired.unwrap_or_else(|| own().filter(|t| t.wanted).count());
    for (member, n) in [("runningCount", running), ("pendingCount", pending), ("desiredCount", desired)] {
        set(deployment, member, n);
    }
    if *deployment != before {
        set(deployment, "updatedAt", now);
    }
}

/// Ends a roll-out.
pub fn finish(deployment: &mut Value, state: &str, reason: String, now: f64) {
    set(deployment, "rolloutState", state);
    set(deployment, "rolloutStateReason", reason);
    set(deployment, "updatedAt", now);
}

/// Adds an event, newest first; the oldest go.
pub fn tell(status: &mut Value, message: String, now: f64) {
    let mut events: Vec<Value> = list(status, "/events").to_vec();
    let seed = format!("{now}/{message}/{}", events.len());
    let id = ecs_model::task::dashed(&ecs_model::names::derived_id(&seed));
    events.insert(0, json!({"id": id, "createdAt": now, "message": message}));
    events.truncate(EVENTS_MAX);
    set(status, "events", events);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(more: Value) -> Value {
        let mut all = json!({"enable": true, "rollback": false});
        machinery::patch::merge(&mut all, &more);
        json!({"deploymentConfiguration": {"deploymentCircuitBreaker": all}})
    }

    #[test]
    fn thresholds() {
        for (want, trips) in [(1, 3), (5, 3), (7, 4), (400, 200), (1000, 200)] {
            assert_eq!(threshold(&breaker(json!({})), want), Some(trips), "{want}");
        }
        let typed = |kind: &str, value: u64| {
            breaker(json!({"thresholdConfiguration": {"type": kind, "value": value}}))
        };
        assert_eq!(threshold(&typed("COUNT", 7), 1), Some(7));
        assert_eq!(threshold(&typed("BOUNDED_PERCENT", 10), 100), Some(10));
        assert_eq!(threshold(&typed("UNBOUNDED_PERCENT", 50), 1000), Some(500));
        assert_eq!(threshold(&breaker(json!({"enable": false})), 9), None);
    }

    #[test]
    fn the_wanted_one_is_first_and_old_ones_keep_their_record() {
        let spec = |id: &str| json!({"taskDefinition": "t:2", "launchType": "FARGATE", DEPLOYMENT: {"id": id, "createdAt": 5.0}});
        let (first, new) = adopt(&spec("ecs-svc/1"), &Value::Null, 5.0);
        assert!(new && first[0]["rolloutStateReason"] == "ECS deployment ecs-svc/1 in progress.");
        assert_eq!(first[0]["launchType"], "FARGATE");
        let mut status = json!({"deployments": first});
        finish(&mut status["deployments"][0], "COMPLETED", "done".into(), 6.0);
        assert!(!adopt(&spec("ecs-svc/1"), &status, 7.0).1);
        let (second, _) = adopt(&spec("ecs-svc/2"), &status, 7.0);
        let brief: Vec<_> =
            second.iter().map(|d| (text(d, "/id"), text(d, "/status"), text(d, "/rolloutState"))).collect();
        assert_eq!(brief, [("ecs-svc/2", "PRIMARY", "IN_PROGRESS"), ("ecs-svc/1", "ACTIVE", "COMPLETED")]);
        let mut back = spec("ecs-svc/1");
        back[DEPLOYMENT]["reason"] = json!("back");
        let (third, new) = adopt(&back, &json!({"deployments": second}), 8.0);
        assert!(new);
        let brief: Vec<_> = third.iter().map(|d| (text(d, "/id"), text(d, "/rolloutState"))).collect();
        assert_eq!(brief, [("ecs-svc/1", "IN_PROGRESS"), ("ecs-svc/2", "FAILED")]);
        assert_eq!(third[0]["rolloutStateReason"], "back");
    }

    #[test]
    fn the_newest_hundred_events_stay() {
        let mut status = json!({});
        (0..150).for_each(|i| tell(&mut status, format!("e{i}"), f64::from(i)));
        assert_eq!(list(&status, "/events").len(), EVENTS_MAX);
        assert_eq!(status["events"][0]["message"], "e149");
    }
}

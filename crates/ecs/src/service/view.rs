//! What the scheduler sees of one task: whether it is wanted, and whether it serves. Pure.
//!
//! A task without any check counts as healthy when it has run for [`Rules::settled`]; one with checks when they all say
//! so. A bad check counts only after the service's grace period.

use ecs_model::task::{NO_CAPACITY, is_stopped};
use machinery::kinds::get::{list, text};
use serde_json::Value;

/// How the load balancers see a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Traffic {
    /// The service has no load balancers.
    #[default]
    Unasked,
    /// Not yet known.
    Waiting,
    /// Healthy in every target group.
    Serving,
    /// Unhealthy in that target group (an ARN).
    Failing(String),
}

/// How a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not proven yet.
    Starting,
    /// It serves.
    Healthy,
    /// It must be replaced; why, as its `stoppedReason` will say.
    Unhealthy(String),
}

/// How a task came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// It is none of the service's own doing, nor a user's: it counts as a failure, unless the task was healthy once.
    pub failed: bool,
    /// A check ended it: it counts as a failure in any case.
    pub unhealthy: bool,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// 32 hex digits.
    pub id: String,
    /// `startedBy`: the deployment that it is of.
    pub deployment: String,
    /// `lastStatus`.
    pub last: String,
    /// It shall run.
    pub wanted: bool,
    /// How it is; of use for wanted ones.
    pub health: Health,
    /// Milliseconds until its health may change by itself.
    pub due_ms: Option<u64>,
    /// Where.
    pub zone: String,
    /// Its capacity provider; "" where a launch type was asked for.
    pub provider: String,
    /// On which instance (an ARN); "" on Fargate.
    pub instance: String,
    /// Its instance shall be left.
    pub leaving: bool,
    /// It must not be stopped for scaling or a deployment.
    pub protected: bool,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Present when it is over.
    pub end: Option<End>,
}

impl Seen {
    /// It runs, and nothing speaks against it.
    pub fn serves(&self) -> bool {
        self.last == "RUNNING" && !matches!(self.health, Health::Unhealthy(_))
    }
}

/// How health is judged.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Milliseconds after which a task without checks counts as healthy.
    pub settled_ms: i64,
    /// `healthCheckGracePeriodSeconds`, in milliseconds.
    pub grace_ms: i64,
}

fn ms(seconds: &Value) -> i64 {
    (seconds.as_f64().unwrap_or(0.0) * 1000.0) as i64
}

/// Has an essential container of the definition a health check?
pub fn is_checked(definition: &Value) -> bool {
    list(definition, "/containerDefinitions").iter().any(|c| {
        let command = list(c, "/healthCheck/command");
        c["essential"] != false && !command.is_empty() && command[0] != "NONE"
    })
}

/// Looks at a task.
pub fn see(spec: &Value, status: &Value, rules: &Rules, checked: bool, traffic: &Traffic) -> Seen {
    let over = is_stopped(status);
    let (health, due_ms) = health(status, rules, checked, traffic);
    let protection = &spec["protection"];
    Seen {
        id: text(spec, "/taskArn").rsplit('/').next().unwrap_or_default().to_string(),
        deployment: text(spec, "/startedBy").to_string(),
        last: text(status, "/lastStatus").to_string(),
        wanted: !over && text(spec, "/desiredStatus") != "STOPPED" && status["stopCode"].is_null(),
        health,
        due_ms,
        zone: text(spec, "/availabilityZone").to_string(),
        provider: text(spec, "/capacityProviderName").to_string(),
        instance: text(spec, "/containerInstanceArn").to_string(),
        leaving: false,
        protected: protection["enabled"] == true && ms(&protection["expirationDate"]) > rules.now_ms,
        created_ms: ms(&spec["createdAt"]),
        end: over.then(|| end(spec, status)),
    }
}

fn end(spec: &Value, status: &Value) -> End {
    let of = |member: &str| match text(status, member) {
        "" => text(spec, member),
        seen => seen,
    };
    let unhealthy = of("/stoppedReason").starts_with(FAILED_CHECK);
    // Where there is no room nothing is wrong with the deployment.
    let failed = matches!(of("/stopCode"), "TaskFailedToStart" | "EssentialContainerExited")
        && of("/stoppedReason") != NO_CAPACITY;
    End { failed, unhealthy }
}

/// How every reason of a stop by a check begins.
const FAILED_CHECK: &str = "Task failed ";

fn health(status: &Value, rules: &Rules, checked: bool, traffic: &Traffic) -> (Health, Option<u64>) {
    if text(status, "/lastStatus") != "RUNNING" {
        return (Health::Starting, None);
    }
    let age = rules.now_ms - ms(&status["startedAt"]);
    let left = |until: i64| Some(u64::try_from(until - age).unwrap_or(0) + 1);
    let bad = match traffic {
        Traffic::Failing(group) => Some(format!("{FAILED_CHECK}ELB health checks in (target-group {group})")),
        _ if text(status, "/healthStatus") == "UNHEALTHY" => {
            Some(format!("{FAILED_CHECK}container health checks"))
        }
        _ => None,
    };
    match bad {
        Some(_) if age < rules.grace_ms => return (Health::Starting, left(rules.grace_ms)),
        Some(why) => return (Health::Unhealthy(why), None),
        None => {}
    }
    if *traffic == Traffic::Waiting || (checked && text(status, "/healthStatus") != "HEALTHY") {
        return (Health::Starting, None);
    }
    let unchecked = !checked && *traffic == Traffic::Unasked;
    if unchecked && age < rules.settled_ms {
        return (Health::Starting, left(rules.settled_ms));
    }
    (Health::Healthy, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RULES: Rules = Rules { now_ms: 100_000, settled_ms: 40_000, grace_ms: 20_000 };

    fn health_at(started: f64, word: &str, checked: bool, traffic: &Traffic) -> Health {
        let status = json!({"lastStatus": "RUNNING", "startedAt": started, "healthStatus": word});
        health(&status, &RULES, checked, traffic).0
    }

    #[test]
    fn without_checks_time_tells() {
        assert_eq!(health_at(61.0, "UNKNOWN", false, &Traffic::Unasked), Health::Starting);
        assert_eq!(health_at(60.0, "UNKNOWN", false, &Traffic::Unasked), Health::Healthy);
        let status = json!({"lastStatus": "RUNNING", "startedAt": 70.0});
        assert_eq!(health(&status, &RULES, false, &Traffic::Unasked).1, Some(10_001));
        assert_eq!(
            health(&json!({"lastStatus": "PENDING"}), &RULES, false, &Traffic::Unasked),
            (Health::Starting, None)
        );
    }

    #[test]
    fn checks_tell_at_once_and_bad_ones_after_the_grace_period() {
        let failing = Traffic::Failing("arn:g".into());
        assert_eq!(health_at(99.0, "UNKNOWN", false, &Traffic::Serving), Health::Healthy);
        assert_eq!(health_at(10.0, "UNKNOWN", true, &Traffic::Serving), Health::Starting);
        assert_eq!(health_at(10.0, "HEALTHY", true, &Traffic::Waiting), Health::Starting);
        assert_eq!(health_at(99.0, "HEALTHY", true, &Traffic::Unasked), Health::Healthy);
        assert_eq!(health_at(81.0, "UNHEALTHY", true, &Traffic::Unasked), Health::Starting);
        let container = Health::Unhealthy("Task failed container health checks".into());
        assert_eq!(health_at(80.0, "UNHEALTHY", true, &Traffic::Unasked), container);
        let balancer = Health::Unhealthy("Task failed ELB health checks in (target-group arn:g)".into());
        assert_eq!(health_at(80.0, "HEALTHY", true, &failing), balancer);
        assert_eq!(health_at(90.0, "HEALTHY", true, &failing), Health::Starting);
    }

    #[test]
    fn ends_are_told_apart() {
        let task = |code: &str, reason: &str| {
            let status = json!({"lastStatus": "STOPPED", "stopCode": code, "stoppedReason": reason});
            see(&json!({"taskArn": "a/b"}), &status, &RULES, false, &Traffic::Unasked).end.unwrap()
        };
        assert_eq!(task("EssentialContainerExited", ""), End { failed: true, unhealthy: false });
        assert_eq!(task("UserInitiated", "x"), End { failed: false, unhealthy: false });
        assert_eq!(task("TaskFailedToStart", NO_CAPACITY), End { failed: false, unhealthy: false });
        let checked = task("ServiceSchedulerInitiated", "Task failed container health checks");
        assert_eq!(checked, End { failed: false, unhealthy: true });
        assert!(is_checked(&json!({"containerDefinitions": [{"healthCheck": {"command": ["CMD", "x"]}}]})));
        assert!(!is_checked(
            &json!({"containerDefinitions": [{"essential": false, "healthCheck": {"command": ["CMD", "x"]}}]})
        ));
    }

    #[test]
    fn protection_ends() {
        let spec =
            |until: f64| json!({"taskArn": "a/b", "protection": {"enabled": true, "expirationDate": until}});
        let see = |until| see(&spec(until), &json!({}), &RULES, false, &Traffic::Unasked).protected;
        assert!(see(101.0) && !see(99.0));
    }
}

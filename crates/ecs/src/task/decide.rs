//! What to do for one task now. Pure.
//!
//! Level-triggered: the same snapshot gives the same plan, whatever happened before; a plan carried out twice does
//! no harm. A stopped task's pod is let go only after its end is in the task's status.

use ecs_model::lower::{FINALIZER, NetworkMode, items, text};
use ecs_model::raise::{Seen, is_over, raise};
use ecs_model::task::{NO_CAPACITY, is_stopped};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a task waits for room: others may be about to end. Fargate tells within about this time.
const CAPACITY_WAIT: Duration = Duration::from_secs(60);

/// Annotation on a Task that runs on spot capacity: its capacity is wanted back.
pub const INTERRUPT: &str = "ecs.gantry.dev/interrupt";

/// Everything that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The Task; `None` when it is gone.
    pub task: Option<&'a Value>,
    /// Its status, made up where it has none yet.
    pub status: &'a Value,
    /// How it is connected.
    pub mode: NetworkMode,
    /// Its pod.
    pub pod: Option<&'a Value>,
    /// The node of its pod, when it is lost.
    pub lost_node: Option<&'a str>,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// How long a stopped task stays visible.
    pub retention: Duration,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Make secrets and pod.
    Make,
    /// Note in the spec that the task shall stop, and why.
    Stop {
        /// `stopCode`.
        code: &'static str,
        /// `stoppedReason`.
        reason: &'static str,
    },
    /// Write the status.
    Status(Value),
    /// Ask for the pod's deletion; at once, or with its own grace.
    Delete {
        /// Without grace: nothing runs.
        now: bool,
    },
    /// Let the pod go.
    Release,
    /// Remove the task.
    Forget,
}

/// Steps in order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do.
    pub acts: Vec<Act>,
    /// Look again after this time.
    pub again: Option<Duration>,
}

/// Was the pod made before? (The first status of a task has version 1; every later one was written here.)
pub fn was_made(status: &Value) -> bool {
    status["version"].as_u64().unwrap_or(0) > 1
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

/// Decides.
pub fn decide(snapshot: &Snapshot) -> Plan {
    let Some(task) = snapshot.task else { return orphan(snapshot) };
    if is_stopped(snapshot.status) {
        return stopped(snapshot);
    }
    let spec = &task["spec"];
    let stop = text(&spec["desiredStatus"]) == "STOPPED";
    let spot = text(&spec["capacityProviderName"]) == "FARGATE_SPOT";
    if spot && !stop && !task["metadata"]["annotations"][INTERRUPT].is_null() {
        let act = Act::Stop { code: "SpotInterruption", reason: "Your Spot Task was interrupted." };
        return Plan { acts: vec![act], again: None };
    }
    let waits = match snapshot.pod.filter(|_| !stop) {
        Some(pod) => homeless(pod, snapshot),
        None => None,
    };
    if waits == Some(Duration::ZERO) {
        let act = Act::Stop { code: "TaskFailedToStart", reason: NO_CAPACITY };
        return Plan { acts: vec![act], again: None };
    }
    let made = was_made(snapshot.status);
    if snapshot.pod.is_none() && !made && !stop {
        return Plan { acts: vec![Act::Make], again: None };
    }
    let status = raise(&Seen {
        spec,
        status: snapshot.status,
        id: text(&task["metadata"]["name"]),
        mode: snapshot.mode,
        pod: snapshot.pod,
        // One that shall stop before it had a pod is stopped.
        made: true,
        lost_node: snapshot.lost_node,
        now: seconds(snapshot.now_ms),
    });
    let mut plan = Plan { acts: Vec::new(), again: waits };
    if status != *snapshot.status {
        plan.acts.push(Act::Status(status));
    }
    if let Some(pod) = snapshot.pod {
        let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
        let bound = !text(&pod["spec"]["nodeName"]).is_empty();
        if is_over(pod) || snapshot.lost_node.is_some() {
            plan.acts.push(Act::Release);
        } else if stop && !deleting && spec["deactivating"].is_null() {
            plan.acts.push(Act::Delete { now: !bound });
        }
    }
    plan
}

/// How long a pod that the scheduler found no node for may still wait; only Fargate leaves the node to the scheduler.
fn homeless(pod: &Value, snapshot: &Snapshot) -> Option<Duration> {
    let condition = items(&pod["status"]["conditions"])
        .iter()
        .find(|c| c["type"] == "PodScheduled" && c["status"] == "False" && c["reason"] == "Unschedulable")
        .filter(|_| text(&pod["spec"]["nodeName"]).is_empty())?;
    let since: jiff::Timestamp = text(&condition["lastTransitionTime"]).parse().ok()?;
    let waited = u64::try_from(snapshot.now_ms - since.as_millisecond()).unwrap_or(0);
    Some(CAPACITY_WAIT.saturating_sub(Duration::from_millis(waited)))
}

/// The task is gone: its pod ends too.
fn orphan(snapshot: &Snapshot) -> Plan {
    let Some(pod) = snapshot.pod else { return Plan::default() };
    let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
    let bound = !text(&pod["spec"]["nodeName"]).is_empty();
    let act = if is_over(pod) || snapshot.lost_node.is_some() {
        Act::Release
    } else if !deleting {
        Act::Delete { now: !bound }
    } else {
        return Plan::default();
    };
    Plan { acts: vec![act], again: None }
}

fn stopped(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    if snapshot.pod.is_some() {
        plan.acts.push(Act::Release);
    }
    let since = snapshot.status["stoppedAt"].as_f64().unwrap_or(0.0);
    let age = Duration::from_secs_f64((seconds(snapshot.now_ms) - since).max(0.0));
    match snapshot.retention.checked_sub(age) {
        Some(left) if !left.is_zero() => plan.again = Some(left),
        _ => plan.acts.push(Act::Forget),
    }
    plan
}

/// Does the pod still wait for us before it may go?
pub fn is_held(pod: &Value) -> bool {
    items(&pod["metadata"]["finalizers"]).iter().any(|f| f == FINALIZER)
}

/// The patch that lets a pod go: other finalizers stay.
pub fn release_patch(pod: &Value) -> Value {
    let rest: Vec<&Value> =
        items(&pod["metadata"]["finalizers"]).iter().filter(|f| **f != FINALIZER).collect();
    json!({"metadata": {"finalizers": rest, "resourceVersion": pod["metadata"]["resourceVersion"]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(desired: &str) -> Value {
        json!({"metadata": {"name": "t"}, "spec": {"desiredStatus": desired, "capacityProviderName": "FARGATE_SPOT"}})
    }

    fn status(last: &str, version: u64) -> Value {
        json!({"lastStatus": last, "version": version, "containers": [{"name": "a", "lastStatus": "PENDING"}], "attachments": []})
    }

    fn acts(task: Option<&Value>, status: &Value, pod: Option<&Value>, lost: bool) -> Vec<Act> {
        let snapshot = Snapshot {
            task,
            status,
            mode: NetworkMode::AwsVpc,
            pod,
            lost_node: lost.then_some("n"),
            now_ms: 10_000,
            retention: Duration::from_secs(5),
        };
        let plan = decide(&snapshot);
        plan.acts
    }

    fn last(act: &Act) -> &str {
        match act {
            Act::Status(status) => text(&status["lastStatus"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_is_made_once() {
        let (run, new) = (task("RUNNING"), status("PROVISIONING", 1));
        assert_eq!(acts(Some(&run), &new, None, false), [Act::Make]);
        // Made and gone: the task is over; it is not made again.
        let made = status("PENDING", 2);
        let plan = acts(Some(&run), &made, None, false);
        assert_eq!((plan.len(), last(&plan[0])), (1, "STOPPED"));
    }

    #[test]
    fn a_stop_before_and_after_the_pod() {
        let stop = task("STOPPED");
        let plan = acts(Some(&stop), &status("PROVISIONING", 1), None, false);
        assert_eq!((plan.len(), last(&plan[0])), (1, "STOPPED"));
        let mut pod = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let plan = acts(Some(&stop), &status("RUNNING", 3), Some(&pod), false);
        assert_eq!((last(&plan[0]), &plan[1]), ("STOPPING", &Act::Delete { now: false }));
        pod["metadata"]["deletionTimestamp"] = json!("x");
        assert_eq!(acts(Some(&stop), &status("RUNNING", 3), Some(&pod), false).len(), 1);
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        let plan = acts(Some(&stop), &status("RUNNING", 3), Some(&pod), false);
        assert_eq!((last(&plan[0]), &plan[1]), ("DEPROVISIONING", &Act::Release));
        // Nobody runs it yet.
        let pod = json!({"metadata": {}, "spec": {}, "status": {"phase": "Pending"}});
        assert_eq!(acts(Some(&stop), &status("PENDING", 2), Some(&pod), false)[1], Act::Delete { now: true });
    }

    #[test]
    fn ends_are_on_record_before_the_pod_goes() {
        let run = task("RUNNING");
        let pod = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        for (phase, lost) in [("Failed", false), ("Running", true)] {
            let mut pod = pod.clone();
            pod["status"]["phase"] = json!(phase);
            let plan = acts(Some(&run), &status("RUNNING", 3), Some(&pod), lost);
            assert_eq!((last(&plan[0]), &plan[1]), ("DEPROVISIONING", &Act::Release));
        }
        assert_eq!(acts(None, &status("RUNNING", 3), Some(&pod), false), [Act::Release]);
    }

    #[test]
    fn stopped_tasks_stay_for_a_while() {
        let run = task("RUNNING");
        let mut over = status("STOPPED", 9);
        over["stoppedAt"] = json!(6.0);
        let snapshot = Snapshot {
            task: Some(&run),
            status: &over,
            mode: NetworkMode::Bridge,
            pod: None,
            lost_node: None,
            now_ms: 10_000,
            retention: Duration::from_secs(5),
        };
        assert_eq!(decide(&snapshot), Plan { acts: vec![], again: Some(Duration::from_secs(1)) });
        assert_eq!(decide(&Snapshot { now_ms: 11_000, ..snapshot }).acts, [Act::Forget]);
    }

    #[test]
    fn a_task_that_fits_nowhere_is_given_up() {
        let run = task("RUNNING");
        let pod = |since: &str| {
            json!({"metadata": {}, "spec": {}, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled",
                "status": "False", "reason": "Unschedulable", "lastTransitionTime": since}]}})
        };
        let plan = |since: &str, now_ms: i64| {
            decide(&Snapshot {
                task: Some(&run),
                status: &status("PROVISIONING", 2),
                mode: NetworkMode::AwsVpc,
                pod: Some(&pod(since)),
                lost_node: None,
                now_ms,
                retention: Duration::from_secs(5),
            })
        };
        assert_eq!(plan("1970-01-01T00:00:10Z", 30_000).again, Some(Duration::from_secs(40)));
        let given_up = plan("1970-01-01T00:00:10Z", 70_000);
        assert_eq!(given_up.acts, [Act::Stop { code: "TaskFailedToStart", reason: NO_CAPACITY }]);
    }

    #[test]
    fn spot_capacity_may_be_taken_back() {
        let mut run = task("RUNNING");
        run["metadata"]["annotations"] = json!({INTERRUPT: ""});
        assert!(matches!(acts(Some(&run), &status("RUNNING", 3), None, false)[..], [Act::Stop { .. }]));
        run["spec"]["capacityProviderName"] = json!("FARGATE");
        assert!(!matches!(acts(Some(&run), &status("RUNNING", 3), None, false)[..], [Act::Stop { .. }]));
        let pod = json!({"metadata": {"resourceVersion": "7", "finalizers": ["other", FINALIZER]}});
        assert!(is_held(&pod));
        assert_eq!(release_patch(&pod)["metadata"]["finalizers"], json!(["other"]));
    }
}

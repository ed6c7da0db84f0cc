//! What controllers tell of their work under upstream's stable names.
//!
//! Deliberately not here: queues (`client::queue`), the scheduler (`scheduler::metrics`).

use client::metrics::{Family, labels, shared};
use machinery::kinds::get::{int, list, text};
use serde_json::Value;
use std::time::Duration;

/// Doubled from bound to bound, as upstream's.
pub const fn doubled<const N: usize>(first: f64) -> [f64; N] {
    let (mut bounds, mut next, mut i) = ([0.0; N], first, 0);
    while i < N {
        bounds[i] = next;
        next *= 2.0;
        i += 1;
    }
    bounds
}

const SYNC_SECONDS: [f64; 15] = doubled(0.004);
const SKEW_SECONDS: [f64; 10] = doubled(1.0);
const SYNC: Family = Family::histogram("job_controller_job_sync_duration_seconds", &SYNC_SECONDS);
const SYNCS: Family = Family::counter("job_controller_job_syncs_total");
const FINISHED: Family = Family::counter("job_controller_jobs_finished_total");
const PODS_FINISHED: Family = Family::counter("job_controller_job_pods_finished_total");
const SKEW: Family =
    Family::histogram("cronjob_controller_job_creation_skew_duration_seconds", &SKEW_SECONDS);
const EVICTIONS: Family = Family::counter("node_collector_evictions_total");

fn mode(indexed: bool) -> (&'static str, &'static str) {
    ("completion_mode", if indexed { "Indexed" } else { "NonIndexed" })
}

/// A look at a Job is over; `action` is the most that it did.
pub fn job_synced(indexed: bool, action: &str, done: bool, took: Duration) {
    let result = if done { "success" } else { "error" };
    let labels = labels(&[("action", action), mode(indexed), ("result", result)]);
    shared().observe(&SYNC, &labels, took.as_secs_f64());
    shared().count(&SYNCS, &labels);
}

/// A Job's status was written: pods that are counted now, and its end.
pub fn job_told(indexed: bool, before: &Value, now: &Value) {
    for key in ["succeeded", "failed"] {
        let count = |status: &Value| int(status, &format!("/{key}")).unwrap_or(0);
        let more = count(now) - count(before);
        if more > 0 {
            let labels = labels(&[mode(indexed), ("result", key)]);
            shared().of(&PODS_FINISHED, &labels).add(more as f64);
        }
    }
    let end = |status: &Value| {
        let is =
            |c: &&Value| matches!(text(c, "/type"), "Complete" | "Failed") && text(c, "/status") == "True";
        list(status, "/conditions").iter().find(is).cloned()
    };
    if let (None, Some(end)) = (end(before), end(now)) {
        let result = if text(&end, "/type") == "Complete" { "succeeded" } else { "failed" };
        let labels = labels(&[mode(indexed), ("reason", text(&end, "/reason")), ("result", result)]);
        shared().count(&FINISHED, &labels);
    }
}

/// A CronJob's Job was made so long after its time.
pub fn job_created_after(skew: Duration) {
    shared().observe(&SKEW, "", skew.as_secs_f64());
}

/// The pods of a node of this zone begin to be driven away.
pub fn node_emptied(zone: &str) {
    shared().count(&EVICTIONS, &labels(&[("zone", zone)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::metrics::shared_text;
    use serde_json::json;

    #[test]
    fn jobs_are_told_by_mode_and_result() {
        job_synced(true, "pods_created", true, Duration::from_millis(5));
        let before = json!({"succeeded": 1});
        let end = json!([{"type": "Failed", "status": "True", "reason": "MaxFailedIndexesExceeded"}]);
        job_told(true, &before, &json!({"succeeded": 3, "failed": 1, "conditions": end}));
        job_told(true, &json!({"conditions": end}), &json!({"conditions": end}));
        let text = shared_text();
        for line in [
            "job_controller_job_sync_duration_seconds_bucket{action=\"pods_created\",completion_mode=\"Indexed\",result=\"success\",le=\"0.008\"} 1",
            "job_controller_job_pods_finished_total{completion_mode=\"Indexed\",result=\"succeeded\"} 2",
            "job_controller_jobs_finished_total{completion_mode=\"Indexed\",reason=\"MaxFailedIndexesExceeded\",result=\"failed\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}

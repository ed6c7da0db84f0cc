//! What a CronJob does and reports, on hand-made Jobs and times.

use super::decide::{CronJob, Plan, Run, decide};
use super::schedule::Schedule;
use super::{job_body, zone};
use crate::testing::{at, object, stamp};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

const HOUR: i64 = 3_600;

fn cron(mut spec: Value, status: Value) -> CronJob {
    if spec.get("schedule").is_none() {
        spec["schedule"] = json!("0 * * * *");
    }
    let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "creationTimestamp": stamp(0)});
    CronJob::read(&object(json!({"metadata": metadata, "spec": spec, "status": status}))).unwrap()
}

/// `name`, or `name Complete 9` (how it ended, and when it began).
fn run(text: &str) -> Run {
    let words: Vec<&str> = text.split(' ').collect();
    let mut job = json!({"metadata": {"name": words[0], "namespace": "n", "uid": words[0]}, "status": {}});
    if let [_, end, began] = words[..] {
        job["status"] = json!({"startTime": stamp(began.parse().unwrap()), "conditions": [
            {"type": "SuccessCriteriaMet", "status": "True"},
            {"type": end, "status": "True", "lastTransitionTime": stamp(50)}]});
    }
    Run::read(&object(job))
}

fn plan(cron: &CronJob, runs: &[&str], now: i64) -> Plan {
    let runs: Vec<Run> = runs.iter().map(|r| run(r)).collect();
    decide(cron, &runs, Some((&Schedule::parse(&cron.schedule).unwrap(), &TimeZone::UTC)), at(now))
}

#[test]
fn runs_begin_when_due() {
    let early = plan(&cron(json!({}), json!({})), &[], 60);
    assert_eq!((early.create, early.again.map(|d| d.as_secs())), (None, Some(HOUR as u64 - 60)));
    let due = plan(&cron(json!({}), json!({})), &[], HOUR + 5);
    assert_eq!((due.create, &due.status["lastScheduleTime"]), (Some(at(HOUR)), &json!(stamp(HOUR))));
    let done = json!({"lastScheduleTime": stamp(HOUR)});
    assert_eq!(plan(&cron(json!({}), done.clone()), &[], HOUR + 9).create, None, "once");
    assert_eq!(
        plan(&cron(json!({}), done.clone()), &[], 5 * HOUR).create,
        Some(at(5 * HOUR)),
        "only the last one"
    );
    assert_eq!(plan(&cron(json!({"suspend": true}), done.clone()), &[], 5 * HOUR).create, None);
    let strict = json!({"startingDeadlineSeconds": 60});
    assert_eq!(plan(&cron(strict.clone(), done.clone()), &[], 2 * HOUR + 59).create, Some(at(2 * HOUR)));
    assert_eq!(plan(&cron(strict, done.clone()), &[], 2 * HOUR + 61).create, None, "too late");
    let late = plan(&cron(json!({"schedule": "* * * * *"}), done), &[], 9 * HOUR);
    assert_eq!((late.create, late.events[0].1), (Some(at(9 * HOUR)), "TooManyMissedTimes"));
    let missed = |minutes: i64| {
        let status = json!({"lastScheduleTime": stamp(0)});
        plan(&cron(json!({"schedule": "* * * * *"}), status), &[], minutes * 60).events.len()
    };
    assert_eq!((missed(100), missed(101)), (0, 1), "a hundred are not too many");
}

#[test]
fn runs_at_the_same_time() {
    let due = |policy: &str| plan(&cron(json!({"concurrencyPolicy": policy}), json!({})), &["old"], HOUR);
    assert_eq!((due("Allow").create.is_some(), due("Allow").delete.len()), (true, 0));
    assert_eq!((due("Forbid").create, due("Forbid").events[0].1), (None, "JobAlreadyActive"));
    assert_eq!((due("Replace").create.is_some(), due("Replace").delete), (true, vec![0]));
    assert_eq!(due("Replace").status["active"], Value::Null);
    assert_eq!(due("Allow").status["active"][0]["name"], "old");
}

#[test]
fn a_forbidden_run_begins_when_the_other_ends() {
    let forbid = cron(json!({"concurrencyPolicy": "Forbid"}), json!({}));
    assert_eq!(plan(&forbid, &["old Complete 9"], HOUR + 900).create, Some(at(HOUR)));
}

#[test]
fn history_is_kept_short() {
    let runs = ["a Complete 1", "b Complete 2", "c Failed 3", "d Failed 4", "e Complete 5", "f"];
    let two = plan(
        &cron(json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 0}), json!({})),
        &runs,
        60,
    );
    assert_eq!(two.delete, [0, 2, 3]);
    let default = plan(&cron(json!({}), json!({})), &runs, 60);
    assert_eq!((default.delete, &default.status["lastSuccessfulTime"]), (vec![2], &json!(stamp(50))));
}

#[test]
fn ends_are_told_once() {
    let status =
        json!({"active": [{"name": "a", "uid": "a"}, {"name": "b", "uid": "b"}, {"name": "c", "uid": "c"}]});
    let told = plan(&cron(json!({}), status), &["a Complete 1", "c"], 60);
    let messages: Vec<&str> = told.events.iter().map(|e| e.2.as_str()).collect();
    assert_eq!(messages, ["Saw completed job: a, condition: Complete", "Active job went missing: b"]);
    assert_eq!(told.status["active"], json!([{"name": "c", "uid": "c"}]), "references stay as they are");
}

#[test]
fn a_job_tells_when_it_was_due() {
    let owner = object(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}}));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"completions": 1}});
    let cron = cron(json!({"jobTemplate": template}), json!({}));
    let body = |zone: &TimeZone| job_body(&cron, &owner, at(HOUR), zone);
    let job = body(&TimeZone::UTC);
    assert_eq!(job["metadata"]["name"], format!("c-{}", at(HOUR).as_second() / 60));
    assert_eq!((&job["metadata"]["labels"], &job["spec"]), (&json!({"a": "b"}), &json!({"completions": 1})));
    let annotation = |job: &Value| job["metadata"]["annotations"][super::SCHEDULED].clone();
    assert_eq!(annotation(&job), "2026-01-01T01:00:00Z");
    assert_eq!(annotation(&body(&TimeZone::posix("CET-1").unwrap())), "2026-01-01T02:00:00+01:00");
}

#[test]
fn zones_are_built_in() {
    assert_eq!(zone(None), Some(TimeZone::UTC));
    let kolkata = zone(Some("Asia/Kolkata")).unwrap();
    assert_eq!(super::local(at(0), &kolkata), "2026-01-01T05:30:00+05:30");
    assert_eq!(super::local(at(0), &zone(Some("Etc/UTC")).unwrap()), stamp(0));
    for bad in ["../../../etc/passwd", "/etc/localtime", "No/Such", "", "."] {
        assert_eq!(zone(Some(bad)), None, "{bad}");
    }
}

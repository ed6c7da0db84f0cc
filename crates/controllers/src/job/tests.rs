//! What a Job does and reports, on hand-made pods.

use super::decide::{Plan, decide};
use super::model::{FAILURES, IGNORED, INDEX, Job, JobPod, format_indexes, parse_indexes};
use super::{TRACKING, pod_body};
use crate::testing::{at, object, stamp};
use serde_json::{Value, json};

fn job(spec: Value, status: Value) -> Job {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"job": "j"}});
    Job::read(&object(json!({"metadata": {"name": "j", "namespace": "n"}, "spec": spec, "status": status})))
        .unwrap()
}

fn started(spec: Value) -> Job {
    job(spec, json!({"startTime": stamp(0), "uncountedTerminatedPods": {}}))
}

/// `name phase`, with ` free` (no finalizer), ` going` (being deleted), ` #3` (index), ` %2-1` (failures
/// of its index before it, 2 counted and 1 ignored), ` @9` (ended after 9 s), ` !42` (ended at 0 s with this code).
fn pod(text: &str) -> JobPod {
    let mut words = text.split(' ');
    let (name, phase) = (words.next().unwrap(), words.next().unwrap());
    let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [TRACKING]},
        "spec": {"nodeName": "node", "containers": []}, "status": {"phase": phase}});
    for word in words {
        match word.split_at(1) {
            ("#", index) => pod["metadata"]["annotations"][INDEX] = json!(index),
            // Failures of its index before it; with a minus those that were ignored.
            ("%", before) => {
                let (counted, ignored) = before.split_once('-').unwrap_or((before, "0"));
                pod["metadata"]["annotations"][FAILURES] = json!(counted);
                pod["metadata"]["annotations"][IGNORED] = json!(ignored);
            }
            ("!", code) => {
                let end = json!({"finishedAt": stamp(0), "exitCode": code.parse::<i32>().unwrap()});
                pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": end}}]);
            }
            ("@", seconds) => {
                let end = json!({"finishedAt": stamp(seconds.parse().unwrap()), "exitCode": 1});
                pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": end}}]);
            }
            _ if word == "free" => pod["metadata"]["finalizers"] = json!([]),
            _ if word == "going" => pod["metadata"]["deletionTimestamp"] = json!(stamp(0)),
            _ if word.starts_with('r') => {
                pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": true,
                    "restartCount": word[1..].parse::<i32>().unwrap()}]);
            }
            _ => panic!("{word}"),
        }
    }
    JobPod::read(&object(pod))
}

fn plan(job: &Job, pods: &[&str], now: i64) -> Plan {
    let pods: Vec<JobPod> = pods.iter().map(|p| pod(p)).collect();
    decide(job, &pods, |_| false, at(now))
}

fn conditions(plan: &Plan) -> Vec<&str> {
    plan.status["conditions"].as_array().into_iter().flatten().map(|c| c["type"].as_str().unwrap()).collect()
}

#[test]
fn a_job_from_start_to_end() {
    let spec = json!({"parallelism": 2, "completions": 3});
    let first = plan(&job(spec.clone(), json!({})), &[], 0);
    assert_eq!((first.create.len(), &first.status["startTime"]), (2, &json!(stamp(0))));
    let run = plan(&started(spec.clone()), &["a Running", "b Pending"], 1);
    assert_eq!((run.create.len(), &run.status["active"], &run.status["ready"]), (0, &json!(2), &json!(0)));

    // The end of a pod is noted, then freed, then counted; a third pod starts at once.
    let noted = plan(&started(spec.clone()), &["a Succeeded", "b Running"], 2);
    assert_eq!((noted.release.as_slice(), noted.create.len()), ([0].as_slice(), 1));
    assert_eq!(noted.status["uncountedTerminatedPods"], json!({"succeeded": ["a"]}));
    assert!(noted.status.get("succeeded").is_none());
    let again = plan(&job(spec.clone(), noted.status.clone()), &["a Succeeded", "b Running", "c Running"], 2);
    assert_eq!(
        (again.status["uncountedTerminatedPods"].clone(), again.release.len()),
        (json!({"succeeded": ["a"]}), 1)
    );
    let counted = plan(&job(spec.clone(), noted.status), &["a Succeeded free", "b Running", "c Running"], 3);
    assert_eq!(
        (&counted.status["succeeded"], &counted.status["uncountedTerminatedPods"]),
        (&json!(1), &json!({}))
    );
    // A counted pod that stays counts once; a noted one that vanishes counts too.
    let gone =
        plan(&job(spec.clone(), counted.status), &["a Succeeded free", "b Succeeded", "c Succeeded"], 4);
    assert_eq!((conditions(&gone), gone.create.len()), (vec!["SuccessCriteriaMet"], 0));
    let end = plan(&job(spec.clone(), gone.status), &["b Succeeded free"], 5);
    assert_eq!(end.status["succeeded"], 3);
    assert_eq!(conditions(&end), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(end.status["completionTime"], stamp(5));
    assert_eq!(end.events[0].1, "Completed");
    assert!(job(spec, end.status).end().is_some());
}

#[test]
fn failures_pause_and_then_end_it() {
    let spec = json!({"parallelism": 1, "completions": 1, "backoffLimit": 2});
    let one = plan(&started(spec.clone()), &["a Failed @100"], 105);
    assert_eq!((one.create.len(), one.again.map(|d| d.as_secs())), (0, Some(5)));
    assert_eq!(plan(&started(spec.clone()), &["a Failed @100"], 111).create.len(), 1);
    let two = plan(&started(spec.clone()), &["a Failed @100", "b Failed @120"], 130);
    assert_eq!(two.again.map(|d| d.as_secs()), Some(10), "20 s after the second");
    let three =
        plan(&started(spec.clone()), &["a Failed @1", "b Failed @2", "c Failed @3", "d Running"], 900);
    assert_eq!((conditions(&three), three.delete.as_slice()), (vec!["FailureTarget"], [3].as_slice()));
    let waiting = plan(&job(spec.clone(), three.status), &["d Running going"], 901);
    assert_eq!(conditions(&waiting), ["FailureTarget"], "a pod is still on its way out");
    let end = plan(&job(spec, waiting.status), &[], 902);
    assert_eq!((conditions(&end), &end.status["failed"]), (vec!["FailureTarget", "Failed"], &json!(4)));
    assert_eq!(end.events[0].1, "BackoffLimitExceeded");
}

#[test]
fn restarts_in_place_wear_out_too() {
    let mut job = started(
        json!({"completions": 1, "backoffLimit": 3, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
    );
    assert!(conditions(&plan(&job, &["a Running r2"], 9)).is_empty());
    assert_eq!(conditions(&plan(&job, &["a Running r3"], 9)), ["FailureTarget"]);
    job.backoff_limit = 0;
    assert!(conditions(&plan(&job, &["a Running r0"], 9)).is_empty());
}

#[test]
fn the_deadline_ends_it() {
    let job = started(json!({"completions": 1, "activeDeadlineSeconds": 30}));
    let early = plan(&job, &["a Running"], 10);
    assert_eq!((conditions(&early), early.again.map(|d| d.as_secs())), (vec![], Some(20)));
    let late = plan(&job, &["a Running"], 30);
    assert_eq!((conditions(&late), late.delete.len()), (vec!["FailureTarget"], 1));
    assert_eq!(late.status["conditions"][0]["reason"], "DeadlineExceeded");
}

#[test]
fn suspension_takes_pods_away_without_counting_them() {
    let spec = |suspend: bool| json!({"completions": 2, "parallelism": 2, "suspend": suspend});
    let rest = plan(&started(spec(true)), &["a Running"], 5);
    assert_eq!(
        (rest.release.as_slice(), rest.delete.as_slice(), rest.create.len()),
        ([0].as_slice(), [0].as_slice(), 0)
    );
    assert!(rest.status.get("startTime").is_none());
    assert_eq!(rest.status["conditions"][0]["reason"], "JobSuspended");
    let gone = plan(&job(spec(true), rest.status), &["a Running free going"], 6);
    assert!(gone.status.get("failed").is_none() && gone.events.is_empty());
    let resumed = plan(&job(spec(false), gone.status), &[], 9);
    assert_eq!((resumed.create.len(), &resumed.status["startTime"]), (2, &json!(stamp(9))));
    assert_eq!(resumed.status["conditions"][0]["status"], "False");
}

#[test]
fn fewer_at_a_time_takes_the_least_advanced_away() {
    let job = started(json!({"completions": 9, "parallelism": 1}));
    let plan = plan(&job, &["a Running", "b Pending"], 5);
    assert_eq!((plan.delete.as_slice(), plan.release.as_slice()), ([1].as_slice(), [1].as_slice()));
}

#[test]
fn a_work_queue_ends_when_one_succeeded_and_none_runs() {
    let job = started(json!({"parallelism": 3}));
    assert_eq!(plan(&job, &["a Running"], 1).create.len(), 2);
    let some = plan(&job, &["a Succeeded", "b Running"], 1);
    assert_eq!((some.create.len(), conditions(&some)), (0, vec![]));
    assert_eq!(conditions(&plan(&job, &["a Succeeded", "b Succeeded"], 1)), ["SuccessCriteriaMet"]);
}

#[test]
fn indexes_are_filled_and_refilled() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2});
    assert_eq!(plan(&started(spec.clone()), &[], 0).create, [Some(0), Some(1)]);
    let some = plan(&started(spec.clone()), &["a Succeeded #1", "b Failed #0 @1", "c Running #2"], 60);
    assert_eq!(some.create, [Some(0)]);
    assert_eq!((&some.status["completedIndexes"], &some.status["succeeded"]), (&json!("1"), &json!(1)));
    // Pods of a wrong or a double index go.
    let odd = plan(&started(spec), &["a Running #0", "b Running #0", "c Running #7"], 60);
    assert_eq!((odd.delete.as_slice(), odd.create.as_slice()), ([1, 2].as_slice(), [Some(1)].as_slice()));
}

#[test]
fn failures_of_one_index_do_not_end_the_others() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1,
        "backoffLimit": 2147483647});
    let first = plan(&started(spec.clone()), &[], 0);
    assert_eq!((first.create.len(), first.before[&0]), (2, (0, 0)));
    // The failed pod of an open index keeps its finalizer, and so its count, until it is replaced.
    let held = plan(&started(spec.clone()), &["a Failed #0 @1", "b Running #1"], 5);
    assert_eq!((held.release.len(), held.create.len(), held.again.map(|d| d.as_secs())), (0, 0, Some(6)));
    assert_eq!((&held.status["failedIndexes"], held.status.get("failed")), (&json!(""), None));
    let again = plan(&started(spec.clone()), &["a Failed #0 @1", "b Running #1"], 12);
    assert_eq!((again.create.as_slice(), again.before[&0]), ([Some(0)].as_slice(), (1, 0)));
    let replaced = plan(&started(spec.clone()), &["a Failed #0 @1", "b Running #1", "c Running #0 %1"], 13);
    assert_eq!(replaced.release, [0]);
    // The second failure is one too many for the index; the other runs on to its end.
    let lost = plan(&started(spec.clone()), &["b Running #1", "c Failed #0 %1 @9"], 900);
    assert_eq!(
        (&lost.status["failedIndexes"], lost.create.len(), lost.release.as_slice()),
        (&json!("0"), 0, [1].as_slice())
    );
    assert!(conditions(&lost).is_empty());
    let end = plan(&job(spec.clone(), lost.status), &["b Succeeded #1"], 901);
    assert_eq!(
        (&end.status["conditions"][0]["reason"], conditions(&end)),
        (&json!("FailedIndexes"), vec!["FailureTarget", "Failed"])
    );
    let mut few = spec;
    few["maxFailedIndexes"] = json!(0);
    let over = plan(&started(few), &["b Running #1", "c Failed #0 %1 @9"], 900);
    assert_eq!(
        (&over.status["conditions"][0]["reason"], over.delete.as_slice()),
        (&json!("MaxFailedIndexesExceeded"), [0].as_slice())
    );
}

#[test]
fn a_verdict_waits_for_the_pods_that_were_held() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 9, "activeDeadlineSeconds": 5});
    let verdict = plan(&started(spec.clone()), &["a Failed #0 @1"], 6);
    assert_eq!(conditions(&verdict), ["FailureTarget"]);
    let noted = plan(&job(spec.clone(), verdict.status), &["a Failed #0 @1"], 6);
    assert_eq!((noted.release.as_slice(), conditions(&noted)), ([0].as_slice(), vec!["FailureTarget"]));
    let end = plan(&job(spec, noted.status), &["a Failed free #0 @1"], 6);
    assert_eq!((&end.status["failed"], conditions(&end)), (&json!(1), vec!["FailureTarget", "Failed"]));
}

#[test]
fn a_failure_policy_decides_what_counts() {
    let policy = |action: &str| {
        json!({"completionMode": "Indexed", "completions": 2, "parallelism": 1, "backoffLimit": 9, "backoffLimitPerIndex": 5,
            "podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let of = |action: &str| plan(&started(policy(action)), &["a Failed #0 !42"], 900);
    let ended = of("FailJob");
    assert_eq!(ended.status["conditions"][0]["reason"], "PodFailurePolicy");
    assert_eq!(
        ended.status["conditions"][0]["message"],
        "Container c for pod n/a failed with exit code 42 matching FailJob rule at index 0"
    );
    let lost = of("FailIndex");
    assert_eq!((&lost.status["failedIndexes"], lost.create.as_slice()), (&json!("0"), [Some(1)].as_slice()));
    let ignored = of("Ignore");
    assert_eq!((ignored.create.as_slice(), ignored.before[&0]), ([Some(0)].as_slice(), (0, 1)));
    let freed = plan(&started(policy("Ignore")), &["a Failed #0 !42", "b Running #0 %0-1"], 900);
    assert_eq!(
        (freed.release.as_slice(), &freed.status["uncountedTerminatedPods"]),
        ([0].as_slice(), &json!({}))
    );
}

#[test]
fn some_indexes_can_be_success_enough() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    let met = plan(&started(spec.clone()), &["a Running #0", "b Succeeded #1", "c Pending #2"], 5);
    assert_eq!((met.delete.as_slice(), conditions(&met)), ([0, 2].as_slice(), vec!["SuccessCriteriaMet"]));
    assert_eq!(met.status["conditions"][0]["message"], "Matched rules at index 0");
    let end = plan(&job(spec, met.status), &["b Succeeded free #1"], 6);
    assert_eq!(conditions(&end), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(
        (&end.status["completedIndexes"], &end.status["conditions"][1]["reason"]),
        (&json!("1"), &json!("SuccessPolicy"))
    );
}

#[test]
fn a_late_replacement_waits_for_the_end() {
    let early = started(json!({"completions": 1}));
    let replaced = plan(&early, &["a Running going"], 5);
    assert_eq!(
        (replaced.create.len(), replaced.status["uncountedTerminatedPods"].clone()),
        (1, json!({"failed": ["a"]}))
    );
    let late = started(json!({"completions": 1, "podReplacementPolicy": "Failed"}));
    let waits = plan(&late, &["a Running going"], 5);
    assert_eq!((waits.create.len(), waits.status["uncountedTerminatedPods"].clone()), (0, json!({})));
}

#[test]
fn index_lists() {
    for text in ["", "0", "0,1", "0-2", "0,1,3-5,9"] {
        assert_eq!(format_indexes(&parse_indexes(text)), text);
    }
}

#[test]
fn pods_of_indexed_jobs_know_their_index() {
    let owner = object(json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}}));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
    let body = pod_body(&started(json!({"template": template})), &owner, Some(3));
    assert_eq!(body["metadata"]["generateName"], "j-3-");
    assert_eq!(body["metadata"]["finalizers"], json!([TRACKING]));
    assert_eq!(body["metadata"]["labels"], json!({"a": "b", INDEX: "3"}));
    assert_eq!(
        (&body["spec"]["hostname"], &body["spec"]["containers"][0]["env"][0]["name"]),
        (&json!("j-3"), &json!("JOB_COMPLETION_INDEX"))
    );
}

/// A world where pods begin, end, vanish and are deleted in any order, and where looks may be late: every end counts
/// once, nothing is made beyond what is wanted, and the Job ends.
mod world {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Clone, Debug)]
    struct Pod {
        phase: &'static str,
        tracked: bool,
        deleting: bool,
    }

    #[derive(Default)]
    struct World {
        pods: BTreeMap<String, Pod>,
        made: usize,
        /// UIDs that ended, as an all-knowing counter has them.
        succeeded: BTreeSet<String>,
        failed: BTreeSet<String>,
        /// Taken away by a change of `parallelism`: no ends.
        withdrawn: BTreeSet<String>,
        status: Value,
    }

    impl World {
        fn look(&mut self, spec: &Value, order: u8) {
            let job = job(spec.clone(), self.status.clone());
            if job.end().is_some() {
                return;
            }
            let names: Vec<String> = self.pods.keys().cloned().collect();
            let pods: Vec<JobPod> = names.iter().map(|n| self.read(n)).collect();
            let plan = decide(&job, &pods, |_| false, at(1_000_000));
            let over = plan.status["conditions"].is_array();
            self.status = plan.status;
            // A crash after any step must lose nothing.
            if order == 0 {
                return;
            }
            for i in &plan.release {
                let name = &names[*i];
                let noted = |field: &str| {
                    let list = self.status["uncountedTerminatedPods"][field].as_array();
                    list.is_some_and(|l| l.iter().any(|u| u == name.as_str()))
                };
                if !noted("succeeded") && !noted("failed") {
                    self.withdrawn.insert(name.clone());
                }
                self.pods.get_mut(name).unwrap().tracked = false;
            }
            self.sweep();
            if order == 1 {
                return;
            }
            for i in &plan.delete {
                if let Some(pod) = self.pods.get_mut(&names[*i]) {
                    pod.deleting = true;
                }
            }
            assert!(!over || plan.create.is_empty());
            for _ in plan.create {
                self.made += 1;
                let pod = Pod { phase: "Pending", tracked: true, deleting: false };
                self.pods.insert(format!("p{:03}", self.made), pod);
            }
            let active = self
                .pods
                .values()
                .filter(|p| !p.deleting && !matches!(p.phase, "Succeeded" | "Failed"))
                .count();
            let wanted = spec["parallelism"].as_u64().unwrap() as usize;
            assert!(active <= wanted, "{active} pods where {wanted} are wanted");
        }

        fn read(&self, name: &str) -> JobPod {
            let pod = &self.pods[name];
            let mut text = format!("{name} {}", pod.phase);
            text += if pod.tracked { "" } else { " free" };
            text += if pod.deleting { " going" } else { "" };
            super::pod(&text)
        }

        /// Pods that are going and free of finalizers are gone when their containers are.
        fn sweep(&mut self) {
            self.pods.retain(|_, p| p.tracked || !p.deleting || p.phase == "Running");
        }

        /// One thing happens to one pod.
        fn happen(&mut self, which: usize, what: u8) {
            let Some(name) = self.pods.keys().nth(which % self.pods.len().max(1)).cloned() else { return };
            let pod = self.pods.get_mut(&name).unwrap();
            let ended = matches!(pod.phase, "Succeeded" | "Failed");
            match what {
                0 | 1 if !ended => pod.phase = "Running",
                2 | 3 if pod.phase == "Running" && !pod.deleting => pod.phase = "Succeeded",
                4 if pod.phase == "Running" => pod.phase = "Failed",
                5 => pod.deleting = true,
                _ => {}
            }
            let counts = pod.tracked && !self.withdrawn.contains(&name);
            if counts && pod.phase == "Succeeded" {
                self.succeeded.insert(name.clone());
            } else if counts && (pod.phase == "Failed" || pod.deleting) {
                self.failed.insert(name.clone());
            }
            self.sweep();
        }
    }

    proptest! {
        #[test]
        fn every_end_counts_once(
            completions in 1..5usize, parallelism in 1..4usize,
            steps in prop::collection::vec((0..8usize, 0..6u8, 0..4u8), 1..80),
        ) {
            let spec = json!({"completions": completions, "parallelism": parallelism, "backoffLimit": 1_000});
            let mut world = World { status: json!({}), ..World::default() };
            for (which, what, order) in steps {
                world.look(&spec, order);
                world.happen(which, what);
            }
            // Left alone, it comes to its end.
            for _ in 0..100 {
                world.look(&spec, 3);
                for i in 0..8 {
                    world.happen(i, 0);
                    world.happen(i, 2);
                }
                for name in world.pods.iter().filter(|(_, p)| p.deleting).map(|(n, _)| n.clone()).collect::<Vec<_>>() {
                    let pod = world.pods.get_mut(&name).unwrap();
                    if pod.phase == "Running" {
                        pod.phase = "Failed";
                        if pod.tracked {
                            world.failed.insert(name);
                        }
                    }
                }
                world.sweep();
            }
            let count = |field: &str| world.status[field].as_u64().unwrap_or(0) as usize;
            prop_assert!(job(spec, world.status.clone()).end().is_some(), "{}", world.status);
            prop_assert_eq!(count("succeeded"), world.succeeded.len(), "{}", world.status);
            prop_assert_eq!(count("succeeded"), completions);
            prop_assert_eq!(count("failed"), world.failed.len(), "{}", world.status);
            prop_assert!(world.pods.values().all(|p| !p.tracked));
        }
    }
}

#[test]
fn who_manages_a_job() {
    let ours = |manager: Value| job(json!({"managedBy": manager}), json!({})).ours;
    assert!(ours(Value::Null) && ours(json!("kubernetes.io/job-controller")));
    assert!(!ours(json!("example.com/other")), "it is left alone");
}

//! Transcripts on virtual time: a tiny world carries out the actions; what happened is compared as text.

use super::outcome::{Outcome, StartFailure, StartStep, apply};
use super::{Action, Input, Signal, after, seed, step};
use crate::pod::tests::{pod, pod_from};
use crate::pod::{PodView, Role};
use crate::state::{Facts, Phase, PodState, ProbeKind, Terminated};
use crate::status::{container_id, status};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

struct World {
    pod: PodView,
    state: PodState,
    now: Timestamp,
    present: bool,
    /// What is to come.
    queue: Vec<(Timestamp, Outcome)>,
    /// Per container: (runs for seconds, exit code) of its next instances; for ever when empty.
    runs: BTreeMap<String, VecDeque<(i64, i32)>>,
    /// Per container: failures of the next starts.
    start_failures: BTreeMap<String, VecDeque<StartFailure>>,
    /// Containers that ignore their stop signal.
    stubborn: Vec<String>,
    /// Answers of probes, the last one for ever; success when empty.
    probes: BTreeMap<(String, ProbeKind), VecDeque<bool>>,
    log: Vec<String>,
    quiet_probes: bool,
    /// Seconds that the wall clock was set forward.
    set_forward: i64,
}

impl World {
    fn new(pod: PodView) -> World {
        let state = seed::seed(&pod, None, t(0), t(0));
        World {
            pod,
            state,
            now: t(0),
            present: true,
            queue: Vec::new(),
            runs: BTreeMap::new(),
            start_failures: BTreeMap::new(),
            stubborn: Vec::new(),
            probes: BTreeMap::new(),
            log: Vec::new(),
            quiet_probes: false,
            set_forward: 0,
        }
    }

    fn runs(mut self, name: &str, list: &[(i64, i32)]) -> World {
        self.runs.insert(name.into(), list.iter().copied().collect());
        self
    }

    fn wall(&self) -> Timestamp {
        after(self.now, SignedDuration::from_secs(self.set_forward))
    }

    fn say(&mut self, text: String) {
        self.log.push(format!("{:>3} {text}", self.now.as_second() - 1_000_000));
    }

    /// Lets time pass until then; returns what happened.
    fn until(&mut self, seconds: i64) -> Vec<String> {
        for _ in 0..10_000 {
            if !self.turn(t(seconds)) {
                return std::mem::take(&mut self.log);
            }
        }
        panic!("no progress: {:?}", self.log);
    }

    /// One decision and one outcome; false at the end.
    fn turn(&mut self, end: Timestamp) -> bool {
        let input = Input {
            pod: &self.pod,
            present: self.present,
            node_down: false,
            now: self.now,
            wall: self.wall(),
        };
        let plan = step(&mut self.state, &input);
        let idle = plan.actions.is_empty();
        for action in plan.actions {
            self.carry_out(action);
        }
        let due = self.queue.iter().position(|(at, _)| *at <= self.now);
        if let Some(index) = due {
            let (_, outcome) = self.queue.remove(index);
            self.book(outcome);
            return true;
        }
        let next = self.queue.iter().map(|(at, _)| *at).chain(plan.wake).min().filter(|at| *at <= end);
        if idle {
            self.now = next.map_or(end, |at| at.max(self.now));
        }
        !idle || next.is_some()
    }

    fn book(&mut self, outcome: Outcome) {
        if let Outcome::Exited { container, end, .. } = &outcome {
            let text = format!("{container} exits {}", end.exit_code);
            self.say(text);
        }
        let input = Input {
            pod: &self.pod,
            present: self.present,
            node_down: false,
            now: self.now,
            wall: self.wall(),
        };
        for note in apply(&mut self.state, &input, outcome) {
            self.say(format!("event {}: {}", note.reason, note.message));
        }
    }

    fn exit(&mut self, container: &str, attempt: u32, in_seconds: i64, code: i32) {
        let at = after(self.now, SignedDuration::from_secs(in_seconds));
        let wall = after(self.wall(), SignedDuration::from_secs(in_seconds));
        let end = Terminated {
            exit_code: code,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            started_at: Some(self.wall()),
            finished_at: Some(wall),
            container_id: container_id("u", container, attempt),
            ..Terminated::default()
        };
        self.queue.push((at, Outcome::Exited { container: container.into(), attempt, end }));
    }

    fn carry_out(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Note(note) => self.say(format!("event {}: {}", note.reason, note.message)),
            Action::MountVolumes => self.queue.push((now, Outcome::Volumes(Ok(None)))),
            Action::MakeSandbox => {
                self.say("sandbox".into());
                self.queue.push((now, Outcome::Sandbox(Ok(vec!["10.0.0.9".parse().unwrap()]))));
            }
            Action::Start { container, attempt, round, last } => {
                self.say(format!("start {container}#{attempt}"));
                if let Some(failure) = self.start_failures.get_mut(&container).and_then(VecDeque::pop_front) {
                    self.queue.push((now, Outcome::Started { container, attempt, result: Err(failure) }));
                    return;
                }
                let image = self.pod.container(&container).unwrap().image().to_string();
                let facts = Facts { spec_image: image.clone(), image, last, round, ..Facts::default() };
                self.queue.push((
                    now,
                    Outcome::Started { container: container.clone(), attempt, result: Ok((facts, now)) },
                ));
                if let Some((seconds, code)) = self.runs.get_mut(&container).and_then(VecDeque::pop_front) {
                    self.exit(&container, attempt, seconds, code);
                }
            }
            Action::Hook { container, kind, .. } => {
                self.say(format!("{kind:?} {container}"));
                self.queue.push((
                    after(now, SignedDuration::from_secs(1)),
                    Outcome::Hook { container, kind, result: Ok(()) },
                ));
            }
            Action::Signal { container, attempt, signal } => {
                self.say(format!("{signal:?} {container}"));
                if signal == Signal::Kill || !self.stubborn.contains(&container) {
                    self.exit(&container, attempt, 0, if signal == Signal::Kill { 137 } else { 0 });
                }
            }
            Action::Probe { container, attempt, kind } => {
                let answers = self.probes.entry((container.clone(), kind)).or_default();
                let good = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() }
                    .unwrap_or(true);
                if !self.quiet_probes {
                    self.say(format!("{} {container} {good}", kind.as_str()));
                }
                let result = if good { Ok(()) } else { Err("no".to_string()) };
                self.queue.push((now, Outcome::Probe { container, attempt, kind, result }));
            }
            Action::Resize { generation, .. } => {
                self.say("resize".into());
                self.queue.push((now, Outcome::Resized { generation, result: Ok(Vec::new()) }));
            }
            Action::Teardown => {
                self.say("teardown".into());
                self.queue.push((now, Outcome::TornDown(Ok(()))));
            }
            Action::Finalize => {
                self.say("finalize".into());
                self.queue.push((now, Outcome::Finalized(Ok(()))));
            }
        }
    }

    fn status(&self) -> Value {
        status(&self.state, &self.pod, &["192.0.2.1".parse().unwrap()], self.now)
    }

    /// The pod's object is deleted with this grace.
    fn delete(&mut self, grace: i64) {
        let mut body = self.pod.object.value().unwrap();
        body["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        body["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.pod = pod_from(body);
    }
}

fn simple(policy: &str) -> PodView {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}))
}

#[test]
fn init_containers_run_in_order_then_all_others_at_once() {
    let spec = json!({
        "initContainers": [{"name": "i1", "image": "i"}, {"name": "i2", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
    });
    let mut world = World::new(pod(spec)).runs("i1", &[(2, 0)]).runs("i2", &[(3, 0)]);
    assert_eq!(world.until(1), ["  0 sandbox", "  0 start i1#0"]);
    let status = world.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(status["conditions"][1]["message"], "containers with incomplete status: [i1 i2]");
    assert_eq!(
        world.until(20),
        ["  2 i1 exits 0", "  2 start i2#0", "  5 i2 exits 0", "  5 start a#0", "  5 start b#0"]
    );
    let status = world.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["initContainerStatuses"][1]["ready"], true);
    let ready: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|c| c["status"].clone()).collect();
    assert_eq!(ready, ["True"; 5]);
}

#[test]
fn crash_back_off_doubles_is_shown_and_forgets() {
    let mut world =
        World::new(simple("Always")).runs("a", &[(1, 1), (1, 1), (1, 1), (700, 1), (1, 1), (1, 1)]);
    assert_eq!(
        world.until(5),
        [
            "  0 sandbox",
            "  0 start a#0",
            "  1 a exits 1",
            "  1 start a#1",
            "  2 a exits 1",
            "  2 event BackOff: Back-off restarting failed container a in pod p_n(u)",
        ]
    );
    let container = world.status()["containerStatuses"][0].clone();
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let text = "back-off 10s restarting failed container=a pod=p_n(u)";
    assert_eq!(container["state"]["waiting"]["message"], text);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["restartCount"], 1);
    assert_eq!(world.status()["phase"], "Running");
    let starts = |log: Vec<String>| log.into_iter().filter(|l| l.contains("start a")).collect::<Vec<_>>();
    // 2+10, 13+20, 733 after a long run: at once again, then 735 + 10 …
    assert_eq!(
        starts(world.until(760)),
        [" 12 start a#2", " 33 start a#3", "733 start a#4", "744 start a#5"]
    );
}

#[test]
fn policies_decide_the_end() {
    for (policy, codes, phase) in [
        ("Never", vec![(1, 3)], "Failed"),
        ("Never", vec![(1, 0)], "Succeeded"),
        ("OnFailure", vec![(1, 3), (1, 0)], "Succeeded"),
    ] {
        let mut world = World::new(simple(policy)).runs("a", &codes);
        let log = world.until(100);
        assert_eq!(
            log.last().unwrap().trim_start_matches(|c: char| c.is_ascii_digit() || c == ' '),
            "teardown"
        );
        assert_eq!(world.status()["phase"], phase, "{policy} {codes:?}");
    }
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]});
    let mut world = World::new(pod(spec)).runs("i", &[(1, 1)]);
    assert_eq!(world.until(100), ["  0 sandbox", "  0 start i#0", "  1 i exits 1", "  1 teardown"]);
    assert_eq!(world.status()["phase"], "Failed");
}

#[test]
fn a_sidecar_starts_first_and_stops_last() {
    let spec = json!({
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always",
            "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 2}}],
        "containers": [{"name": "a", "image": "i"}], "restartPolicy": "Never",
    });
    let mut world = World::new(pod(spec)).runs("a", &[(5, 0)]);
    world.probes.insert(("s".into(), ProbeKind::Startup), [false, true].into());
    assert_eq!(
        world.until(100),
        [
            "  0 sandbox",
            "  0 start s#0",
            "  0 startup s false",
            "  0 event Unhealthy: Startup probe failed: no",
            "  2 startup s true",
            "  2 start a#0",
            "  7 a exits 0",
            "  7 event Killing: Stopping container s",
            "  7 Stop s",
            "  7 s exits 0",
            "  7 teardown",
        ]
    );
    assert_eq!(world.status()["phase"], "Succeeded");
}

#[test]
fn who_waits_for_the_image_of_a_volume_says_so() {
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let spec = json!({
        "containers": [{"name": "a", "image": "i", "volumeMounts": mounts}, {"name": "b", "image": "i"}],
        "volumes": [{"name": "v", "image": {"reference": "r.invalid/x"}}],
    });
    let mut world = World::new(pod(spec));
    let waits = |world: &World| {
        let status = world.status();
        let of = |i: usize| {
            status["containerStatuses"][i]["state"]["waiting"]["reason"].as_str().unwrap_or("").to_string()
        };
        (of(0), of(1))
    };
    let creating = "ContainerCreating".to_string();
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        let failure =
            StartFailure { step: StartStep::Image, reason: "ErrImagePull", message: "no such host".into() };
        world.book(Outcome::VolumeImage("v".into(), failure));
        assert_eq!(waits(&world), (reason.to_string(), creating.clone()));
    }
    world.book(Outcome::Volumes(Ok(None)));
    assert_eq!(waits(&world), (creating.clone(), creating));
}

#[test]
fn a_rule_restarts_all_containers() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({
        "initContainers": [{"name": "i", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules},
            {"name": "b", "image": "i"}],
        "restartPolicy": "Never",
    });
    let mut world = World::new(pod(spec)).runs("i", &[(1, 0), (1, 0)]).runs("a", &[(2, 42), (5, 0)]);
    let log = world.until(7);
    let starts: Vec<&str> = log.iter().filter(|l| l.contains(" start ")).map(|l| l.trim()).collect();
    assert_eq!(
        starts,
        [
            "0 start i#0",
            "1 start s#0",
            "1 start a#0",
            "1 start b#0",
            "3 start i#1",
            "4 start s#1",
            "4 start a#1",
            "4 start b#1"
        ],
        "{log:?}"
    );
    let counts =
        |list: &Value| list.as_array().unwrap().iter().map(|c| c["restartCount"].clone()).collect::<Vec<_>>();
    let status = world.status();
    assert_eq!(
        (counts(&status["initContainerStatuses"]), counts(&status["containerStatuses"])),
        (vec![json!(1); 2], vec![json!(1); 2])
    );
    assert_eq!(status["phase"], "Running");
    // One that was still on its way up when the other ended goes down and up with all.
    let mut world = World::new(world.pod);
    world.until(0);
    let exit = |world: &mut World, name: &str, code: i32| {
        let end = Terminated { exit_code: code, ..Terminated::default() };
        world.state.containers.get_mut(name).unwrap().phase = Phase::Exited(end);
    };
    exit(&mut world, "i", 0);
    world.state.initialized = true;
    exit(&mut world, "a", 42);
    world.state.containers.get_mut("b").unwrap().phase = Phase::Starting { before: None };
    let input = Input { pod: &world.pod, present: true, node_down: false, now: t(1), wall: t(1) };
    step(&mut world.state, &input);
    assert!(world.state.restarting_all && world.state.containers["b"].restart_now);
    world.state.containers.get_mut("b").unwrap().phase = Phase::Running { started_at: t(1) };
    let actions = step(&mut world.state, &input).actions;
    assert!(
        actions.iter().any(|a| matches!(a, Action::Signal { container, .. } if container == "b")),
        "{actions:?}"
    );
}

#[test]
fn deletion_runs_the_hook_within_the_grace_then_kills() {
    let spec = json!({"terminationGracePeriodSeconds": 5, "containers": [
        {"name": "a", "image": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}, {"name": "b", "image": "i"}]});
    let mut world = World::new(pod(spec));
    world.stubborn.push("a".into());
    world.until(10);
    world.delete(5);
    assert_eq!(
        world.until(60),
        [
            " 10 event Killing: Stopping container a",
            " 10 PreStop a",
            " 10 event Killing: Stopping container b",
            " 10 Stop b",
            " 10 b exits 0",
            " 11 Stop a",
            " 15 Kill a",
            " 15 a exits 137",
            " 15 teardown",
            " 15 finalize",
        ]
    );
    assert_eq!(world.status()["phase"], "Failed");
    // A second deletion with less grace hastens the first; a forced one leaves a second.
    let mut world = World::new(simple("Always"));
    world.stubborn.push("a".into());
    world.until(1);
    world.delete(600);
    world.until(10);
    world.delete(3);
    assert_eq!(world.until(20), [" 10 Kill a", " 10 a exits 137", " 10 teardown", " 10 finalize"]);
    // (A forced deletion is seen as an object that vanished, and leaves no word about grace.)
    let mut world = World::new(simple("Always"));
    world.stubborn.push("a".into());
    world.until(1);
    world.present = false;
    assert_eq!(world.until(9)[1..], ["  1 Stop a", "  2 Kill a", "  2 a exits 137", "  2 teardown"]);
}

#[test]
fn probes_gate_restart_and_readiness() {
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "i",
        "livenessProbe": {"tcpSocket": {"port": 1}, "initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 2},
        "readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 3, "successThreshold": 2}}]});
    let mut world = World::new(pod(spec));
    world.probes.insert(("a".into(), ProbeKind::Liveness), [true, false, false, true].into());
    world.quiet_probes = true;
    world.until(2);
    assert_eq!(world.status()["conditions"][2]["message"], "containers with unready status: [a]");
    world.until(4);
    assert_eq!(world.status()["conditions"][2]["status"], "True");
    assert_eq!(
        world.until(10),
        [
            "  7 event Unhealthy: Liveness probe failed: no",
            "  9 event Unhealthy: Liveness probe failed: no",
            "  9 event Killing: Container a failed liveness probe, will be restarted",
            "  9 Stop a",
            "  9 a exits 0",
            "  9 start a#1",
        ]
    );
    assert_eq!(world.status()["containerStatuses"][0]["restartCount"], 1);
}

#[test]
fn image_errors_back_off_until_images_change() {
    let mut world = World::new(simple("Always"));
    let failure = StartFailure { step: StartStep::Image, reason: "ErrImagePull", message: "gone".into() };
    world.start_failures.insert("a".into(), [failure.clone(), failure].into());
    assert_eq!(
        world.until(0),
        [
            "  0 sandbox",
            "  0 start a#0",
            "  0 event Failed: Failed to pull image \"i\": gone",
            "  0 event Failed: Error: ErrImagePull",
        ]
    );
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "ErrImagePull");
    assert_eq!(
        world.until(5),
        ["  1 event BackOff: Back-off pulling image \"i\"", "  1 event Failed: Error: ImagePullBackOff"]
    );
    let waiting = world.status()["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting["reason"], "ImagePullBackOff");
    assert_eq!(waiting["message"], "Back-off pulling image \"i\": ErrImagePull: gone");
    assert_eq!(world.until(12)[0], " 10 start a#0");
    world.book(Outcome::ImagesChanged);
    assert_eq!(world.until(13), [" 12 start a#0"]);
}

#[test]
fn a_start_error_counts_as_an_end() {
    let mut world = World::new(simple("Always"));
    let failure =
        StartFailure { step: StartStep::Run, reason: "RunContainerError", message: "exec: no".into() };
    world.start_failures.insert("a".into(), [failure.clone(), failure.clone()].into());
    world.until(1);
    let container = world.status()["containerStatuses"][0].clone();
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["reason"], "StartError");
    assert_eq!(container["lastState"]["terminated"]["startedAt"], "1970-01-01T00:00:00Z");
    let mut world = World::new(simple("Never"));
    world.start_failures.insert("a".into(), [failure].into());
    world.until(1);
    assert_eq!(world.status()["phase"], "Failed");
    assert_eq!(world.status()["containerStatuses"][0]["state"]["terminated"]["exitCode"], 128);
}

#[test]
fn a_new_image_restarts_without_back_off_and_the_deadline_fails_the_pod() {
    let mut world = World::new(simple("Always"));
    world.until(3);
    let mut body = world.pod.object.value().unwrap();
    body["spec"]["containers"][0]["image"] = json!("j");
    body["spec"]["activeDeadlineSeconds"] = json!(60);
    world.pod = pod_from(body);
    assert_eq!(
        world.until(4),
        [
            "  3 event Killing: Container a definition changed, will be restarted",
            "  3 Stop a",
            "  3 a exits 0",
            "  3 start a#1"
        ]
    );
    assert_eq!(world.until(100)[2..], [" 60 Stop a", " 60 a exits 0", " 60 teardown"]);
    assert_eq!(world.status()["phase"], "Failed");
    assert_eq!(world.status()["reason"], "DeadlineExceeded");
}

#[test]
fn post_start_holds_running_back_and_a_dead_sandbox_starts_over() {
    let spec = json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [
        {"name": "a", "image": "i", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]});
    let mut world = World::new(pod(spec)).runs("i", &[(0, 0), (0, 0)]);
    world.until(0);
    assert!(world.status()["containerStatuses"][0]["state"]["waiting"].is_object());
    world.until(2);
    assert_eq!(world.status()["containerStatuses"][0]["started"], true);
    world.book(Outcome::SandboxDied);
    let log = world.until(3);
    assert_eq!(log[1..4], ["  2 sandbox", "  2 start i#1", "  2 i exits 0"]);
    assert!(log.contains(&"  2 start a#1".to_string()), "{log:?}");
}

mod chance;
mod crash;
mod order;
mod survival;
mod task;

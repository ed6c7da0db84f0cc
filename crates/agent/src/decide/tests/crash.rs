//! The agent is killed at any moment; what the runtime and the API still have is enough to go on.

use super::*;
use runtime::api::{ContainerInfo, ContainerSpec, ContainerState, Exit, PodInfo, PodSpec};

impl World {
    /// What the runtime has of a container. One that is being started is there already if `made`.
    fn instance(&self, name: &str, made: bool) -> Option<ContainerInfo> {
        let record = &self.state.containers[name];
        let start = self.queue.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Started { container, attempt, result: Ok((facts, at)) } if container == name && made => {
                Some((*attempt, facts, *at))
            }
            _ => None,
        });
        let ns = |at: Timestamp| i64::try_from(at.as_nanosecond()).unwrap();
        let up = |at| ContainerState::Running { pid: 1, started_at_ns: ns(at) };
        let over = |end: &Terminated| ContainerState::Exited {
            started_at_ns: ns(end.started_at.unwrap()),
            exit: Exit {
                code: end.exit_code,
                signal: 0,
                oom_killed: false,
                finished_at_ns: ns(end.finished_at.unwrap()),
                start_error: String::new(),
            },
        };
        let known = record.facts.as_ref();
        let (attempt, facts, state) = match (&record.phase, start) {
            (Phase::Starting { .. }, Some((attempt, facts, at))) => (attempt, facts, up(at)),
            (Phase::Starting { before: Some(end) }, None) => (record.attempt - 1, known?, over(end)),
            (Phase::Running { started_at }, _) => (record.attempt, known?, up(*started_at)),
            (Phase::Exited(end), _) => (record.attempt, known?, over(end)),
            (Phase::Starting { before: None } | Phase::Waiting { .. }, _) => return None,
        };
        let facts = serde_json::to_string(facts).unwrap();
        let spec = ContainerSpec {
            name: name.into(),
            attempt,
            annotations: [(seed::FACTS.to_string(), facts)].into(),
            ..ContainerSpec::default()
        };
        Some(ContainerInfo { spec, state })
    }

    /// A new agent in place of the old one, which forgot what it was doing; processes run on.
    fn kill_agent(&mut self, made: bool) {
        let mut body = self.pod.object.value().unwrap();
        body["status"] = self.status();
        let names = self.pod.containers.iter().map(|c| c.name());
        let containers: Vec<ContainerInfo> = names.filter_map(|name| self.instance(name, made)).collect();
        for (at, outcome) in std::mem::take(&mut self.queue) {
            let Outcome::Exited { container, attempt, end } = outcome else { continue };
            if containers.iter().any(|c| c.spec.name == container && c.spec.attempt == attempt) {
                self.queue.push((at, Outcome::Exited { container, attempt, end }));
            } else {
                // It was never started: the next one runs as it would have.
                let seconds = at.duration_since(end.started_at.unwrap()).as_secs();
                self.runs.entry(container).or_default().push_front((seconds, end.exit_code));
            }
        }
        let live = PodInfo { spec: PodSpec::default(), shim_pid: 1, containers };
        self.pod = pod_from(body);
        self.state = seed::seed(&self.pod, self.state.sandbox.exists.then_some(&live), self.now, self.now);
    }
}

/// Whenever the agent is killed, all containers start anew once, and with the init containers before the others.
#[test]
fn all_restart_once_whenever_the_agent_is_killed() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    for trigger in ["s", "a", "b"] {
        let mut spec = json!({
            "initContainers": [{"name": "i", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
            "restartPolicy": "Never",
        });
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array_mut().unwrap().iter_mut().filter(|c| c["name"] == trigger) {
                container["restartPolicyRules"] = rules.clone();
            }
        }
        let world = || World::new(pod(spec.clone())).runs("i", &[(1, 0), (2, 0)]).runs(trigger, &[(4, 42)]);
        let (mut undisturbed, mut turns) = (world(), 0);
        while undisturbed.turn(t(60)) {
            turns += 1;
        }
        assert!(turns > 15, "{turns}");
        for (kill, made) in (1..=turns).flat_map(|turn| [(turn, false), (turn, true)]) {
            let mut world = world();
            for _ in 0..kill {
                world.turn(t(60));
            }
            world.say(format!("killed {made}"));
            world.kill_agent(made);
            let log = world.until(60);
            let status = world.status();
            let counts = ["initContainerStatuses", "containerStatuses"].map(|list| {
                status[list].as_array().unwrap().iter().map(|c| c["restartCount"].clone()).collect::<Vec<_>>()
            });
            assert_eq!(counts, [vec![json!(1); 2], vec![json!(1); 2]], "{trigger} {log:#?}");
            assert_eq!(status["phase"], "Running", "{trigger} {log:#?}");
            assert_eq!(status["conditions"][2]["status"], "True", "{trigger} {log:#?}");
            let at = |what: &str| log.iter().rposition(|l| l.contains(what));
            let (init, ended, main) = (at("start i#1"), at("i exits 0"), at("start b#1"));
            assert!(init < ended && ended < main, "{trigger} {log:#?}");
        }
    }
}

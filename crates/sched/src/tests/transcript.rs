//! Recorded transcripts: nodes, pods and groups come, change and go by chance, the scheduler decides in between. The same
//! seed yields the same plans, for ever: `transcript/<seed>.txt` holds them. `GOLDEN=write cargo test -p sched` records
//! them anew; the difference is what a change of the scheduler changes.

use super::chance::Chance;
use crate::volumes::{Claim, Class, Volume, limits};
use crate::{Group, NodeSpec, PodId, PodInfo, Rescue, Snapshot, schedule};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// Events of a recorded transcript.
const STEPS: usize = 60;
/// Nodes that there are at most.
const NODES: u64 = 6;

struct Play {
    chance: Chance,
    snapshot: Snapshot,
    waiting: Vec<Arc<PodInfo>>,
    placed: Vec<PodId>,
    born: u32,
    told: String,
}

impl Play {
    fn new(seed: u64) -> Play {
        let mut play = Play {
            chance: Chance::new(seed),
            snapshot: Snapshot::default(),
            waiting: Vec::new(),
            placed: Vec::new(),
            born: 0,
            told: String::new(),
        };
        play.snapshot.volumes.classes.insert("late".into(), Class::read(&Chance::class()));
        for (namespace, team) in [("n", "red"), ("m", "blue")] {
            play.snapshot.set_namespace(namespace, Some([("team".into(), team.into())].into()));
            for i in 0..5 {
                let (claim, volume) = play.chance.claim(namespace, i);
                let (claim, volume) = (Claim::read(&claim), Volume::read(&volume));
                if !claim.volume.is_empty() {
                    play.snapshot.volumes.volumes.insert(volume.name.clone(), volume);
                }
                play.snapshot.volumes.claims.insert(claim.id.clone(), claim);
            }
            let group = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}});
            play.snapshot.groups.set((namespace.into(), "g".into()), Some(Group::read(&group, false)));
        }
        play
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.told, "{line}").unwrap();
    }

    fn node(&mut self) {
        let name = format!("n{}", self.chance.below(NODES));
        let taken = &mut self.snapshot.volumes.limits;
        taken.insert(name.clone(), limits(&self.chance.limits(&name)));
        let node = self.chance.node(&name);
        self.snapshot.set_node(NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap()));
        self.tell(&format!("node {name}"));
    }

    fn pod(&mut self) {
        self.born += 1;
        let mut pod = self.chance.pod(&format!("p{}", self.born));
        pod["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
        pod["status"] = Value::Null;
        if self.chance.one_in(5) {
            pod["spec"]["schedulingGroup"] = json!({"podGroupName": "g"});
        }
        self.waiting.push(Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap())));
    }

    fn leave(&mut self) {
        if self.placed.is_empty() {
            return;
        }
        let at = self.chance.below(self.placed.len() as u64) as usize;
        let id = self.placed.remove(at);
        self.snapshot.remove_pod(&id);
        self.tell(&format!("{} leaves", id.1));
    }

    fn decide(&mut self) {
        let plan = schedule(&mut self.snapshot, &self.waiting);
        self.waiting.clear();
        for (pod, node) in plan.bindings {
            self.tell(&format!("{} → {node}", pod.uid));
            self.placed.extend(pod.id.clone());
        }
        for (pod, diagnosis) in plan.unschedulable {
            self.tell(&format!("{} waits: {}", pod.uid, diagnosis.message()));
            if let Rescue::Found(found) = &diagnosis.rescue {
                let names: Vec<&str> = found.victims.iter().map(|v| v.uid.as_str()).collect();
                self.tell(&format!("{} gets {} from {:?}", pod.uid, found.node, names));
                for id in found.victims.iter().filter_map(|v| v.id.as_ref()) {
                    self.snapshot.remove_pod(id);
                    self.placed.retain(|p| p != id);
                }
            }
            self.waiting.push(pod);
        }
        for (id, verdict) in plan.groups {
            self.tell(&format!("{}/{}: {verdict:?}", id.0, id.1));
        }
        // Who has waited for long gives up.
        for pod in self.waiting.drain(..self.waiting.len().saturating_sub(4)) {
            pod.id.iter().for_each(|id| self.snapshot.clear_nomination(id));
        }
    }

    fn run(seed: u64, steps: usize) -> String {
        let mut play = Play::new(seed);
        (0..4).for_each(|_| play.node());
        for _ in 0..steps {
            match play.chance.below(8) {
                0 => play.node(),
                1 => play.leave(),
                2 | 3 => play.decide(),
                _ => play.pod(),
            }
        }
        play.told
    }
}

#[test]
fn recorded_transcripts_are_repeated() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/transcript");
    for seed in 1..=3 {
        let (path, now) = (folder.join(format!("{seed}.txt")), Play::run(seed, STEPS));
        if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
            std::fs::write(&path, &now).unwrap();
        }
        let before = std::fs::read_to_string(&path).unwrap();
        for (i, (now, before)) in now.lines().zip(before.lines()).enumerate() {
            assert_eq!(now, before, "seed {seed}, line {}", i + 1);
        }
        assert_eq!(now.len(), before.len(), "seed {seed}");
    }
}

#[test]
fn the_same_seed_yields_the_same_plans() {
    let mut all = String::new();
    for seed in 10..14 {
        let told = Play::run(seed, 400);
        assert_eq!(told, Play::run(seed, 400), "{seed}");
        all += &told;
    }
    for what in ["→", "gets", "Scheduled", "leaves"] {
        assert!(all.contains(what), "nothing came of {what}");
    }
}

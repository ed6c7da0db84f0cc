//! Preemption in upstream's words and order, and a dumb twin on random clusters: it builds a new picture for each
//! question instead of counting pods in and out.

use super::*;
use crate::filter::{Question, objection};
use crate::interpod::PodContext;
use crate::ratings::Ratings;
use crate::volumes::Needs;
use crate::{Plan, Rescue, schedule};
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::json;

fn node(name: &str, cpu: i64) -> NodeSpec {
    let labels = json!({"host": name, "zone": if name < "n2" { "a" } else { "b" }});
    let node = json!({"metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "4Gi", "pods": "10"}}});
    NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap())
}

/// What a test says of a pod.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    cpu: i64,
    priority: i32,
    app: &'static str,
    started: u32,
    /// Keeps away from this app, by this topology key.
    apart: Option<(&'static str, &'static str)>,
    /// Is spread over zones.
    even: bool,
}

fn made(name: &str, cpu: i64, priority: i32) -> Made {
    Made { name: name.into(), cpu, priority, app: "x", started: 0, apart: None, even: false }
}

impl Made {
    fn info(&self) -> Arc<PodInfo> {
        let mut spec = json!({"priority": self.priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": self.cpu.to_string()}}}]});
        if let Some((app, key)) = self.apart {
            spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]);
        }
        if self.even {
            spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": self.app}}}]);
        }
        let started = format!("2026-01-01T00:00:{:02}Z", self.started);
        let pod = json!({"spec": spec, "status": {"startTime": started}, "metadata": {
            "name": self.name, "namespace": "n", "uid": self.name, "labels": {"app": self.app}}});
        Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
    }
}

fn budget(app: &str, allowed: i64) -> Budget {
    let budget = json!({"spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": allowed}});
    Budget::read(&budget).unwrap()
}

fn world(nodes: &[i64], placed: &[(usize, Made)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (n, cpu) in nodes.iter().enumerate() {
        snapshot.set_node(node(&format!("n{n}"), *cpu));
    }
    placed.iter().for_each(|(n, pod)| snapshot.place(&format!("n{n}"), pod.info()));
    snapshot
}

fn names(pods: &[Arc<PodInfo>]) -> Vec<&str> {
    pods.iter().map(|p| p.uid.as_str()).collect()
}

/// "node: victims", or the message.
fn told(plan: &Plan) -> String {
    let (_, diagnosis) = &plan.unschedulable[0];
    match &diagnosis.rescue {
        Rescue::Found(found) => format!("{}: {}", found.node, names(&found.victims).join(" ")),
        _ => diagnosis.message(),
    }
}

fn run(snapshot: &mut Snapshot, pod: &Made) -> String {
    told(&schedule(snapshot, &[pod.info()]))
}

#[test]
fn the_least_important_go_and_as_few_as_will_do() {
    let placed = [(0, made("a", 2, 1)), (0, made("b", 1, 5)), (1, made("c", 3, 4))];
    assert_eq!(run(&mut world(&[3, 3], &placed), &made("p", 2, 9)), "n0: a");
    // Both of n0, or the one of n1: whose most important victim is the less important.
    assert_eq!(run(&mut world(&[3, 3], &placed), &made("p", 3, 9)), "n1: c");
    let old = Made { started: 1, ..made("old", 2, 1) };
    let young = Made { started: 9, ..made("young", 2, 1) };
    assert_eq!(run(&mut world(&[4], &[(0, young), (0, old)]), &made("p", 2, 9)), "n0: young");
}

#[test]
fn why_nobody_goes() {
    let placed = [(0, made("a", 2, 9))];
    let words = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: ";
    let said = run(&mut world(&[3], &placed), &made("p", 2, 9));
    assert_eq!(said, format!("{words}1 No preemption victims found for incoming pod."));
    let more = [(0, made("a", 2, 9)), (0, made("b", 1, 1))];
    let said = run(&mut world(&[3], &more), &made("p", 2, 9));
    assert_eq!(said, format!("{words}1 Insufficient cpu."));
    let said = run(&mut world(&[3], &more), &made("p", 4, 9));
    assert_eq!(said, format!("{words}1 Preemption is not helpful for scheduling."));
    let mut pod = Arc::into_inner(made("p", 3, 10).info()).unwrap();
    pod.never_preempts = true;
    let said = told(&schedule(&mut world(&[3], &placed), &[Arc::new(pod)]));
    assert_eq!(
        said,
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn budgets_are_broken_last() {
    let guarded = Made { app: "guarded", ..made("a", 2, 1) };
    let mut snapshot = world(&[2, 2], &[(0, guarded), (1, made("b", 2, 5))]);
    snapshot.budgets.insert(("n".into(), "b".into()), budget("guarded", 0));
    assert_eq!(run(&mut snapshot, &made("p", 2, 9)), "n1: b");
    let mut snapshot = world(&[2], &[(0, Made { app: "guarded", ..made("a", 2, 1) })]);
    snapshot.budgets.insert(("n".into(), "b".into()), budget("guarded", 0));
    assert_eq!(run(&mut snapshot, &made("p", 2, 9)), "n0: a");
}

#[test]
fn a_promised_place_is_kept_and_asked_for_once() {
    let mut snapshot = world(&[2], &[(0, made("a", 2, 1))]);
    assert_eq!(run(&mut snapshot, &made("p", 2, 9)), "n0: a");
    let said = run(&mut snapshot, &made("p", 2, 9));
    assert!(
        said.ends_with("preemption: not eligible due to a terminating pod on the nominated node."),
        "{said}"
    );
    let victim = made("a", 0, 0).info().id.clone().unwrap();
    snapshot.remove_pod(&victim);
    assert!(run(&mut snapshot, &made("a2", 2, 1)).contains("1 Insufficient cpu"), "the place is promised");
    let plan = schedule(&mut snapshot, &[made("higher", 2, 10).info()]);
    assert_eq!(plan.bindings[0].1, "n0", "who is more important goes before");
    let higher = made("higher", 0, 0).info().id.clone().unwrap();
    snapshot.remove_pod(&higher);
    let plan = schedule(&mut snapshot, &[made("p", 2, 9).info()]);
    assert_eq!(plan.bindings[0].1, "n0");
    assert_eq!(snapshot.nominated_node(plan.bindings[0].0.id.as_ref().unwrap()), None);
}

#[test]
fn the_less_important_promise_falls() {
    let mut snapshot = world(&[2], &[(0, made("a", 2, 1))]);
    assert_eq!(run(&mut snapshot, &made("p", 2, 5)), "n0: a");
    let plan = schedule(&mut snapshot, &[made("q", 2, 9).info()]);
    let Rescue::Found(found) = &plan.unschedulable[0].1.rescue else { panic!() };
    assert_eq!((names(&found.victims), names(&found.displaced)), (vec!["a"], vec!["p"]));
    let said = run(&mut snapshot, &made("p", 2, 5));
    assert!(said.contains("1 Insufficient cpu. preemption: 0/1 nodes"), "{said}");
}

/// Victims and broken budgets.
type Cost = (Vec<Made>, usize);

/// Everything about one random cluster.
#[derive(Clone, Debug)]
struct Case {
    nodes: Vec<i64>,
    placed: Vec<(usize, Made)>,
    promised: Vec<(usize, Made)>,
    allowed: i64,
    pod: Made,
}

fn some_pod() -> impl Strategy<Value = Made> {
    let apart = prop_oneof![
        3 => Just(None), 1 => Just(Some(("x", "host"))), 1 => Just(Some(("y", "zone"))), 1 => Just(Some(("x", "zone")))];
    (0i64..4, 0i32..4, prop_oneof![Just("x"), Just("y")], 0u32..6, apart, any::<bool>()).prop_map(
        |(cpu, priority, app, started, apart, even)| Made {
            name: String::new(),
            cpu,
            priority,
            app,
            started,
            apart,
            even,
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    let some = |most| proptest::collection::vec((0usize..4, some_pod()), 0..most);
    (proptest::collection::vec(1i64..6, 1..5), some(12), some(3), -1i64..3, some_pod()).prop_map(
        |(nodes, mut placed, mut promised, allowed, mut pod)| {
            for (kind, list) in [("r", &mut placed), ("w", &mut promised)] {
                for (i, (n, made)) in list.iter_mut().enumerate() {
                    (*n, made.name) = (*n % nodes.len(), format!("{kind}{i}"));
                }
            }
            pod.name = "p".into();
            pod.priority += 1;
            Case { nodes, placed, promised, allowed, pod }
        },
    )
}

impl Case {
    /// Does the pod fit on the node beside these pods everywhere, with and without the promised?
    fn fits(&self, placed: &[(usize, Made)], at: usize) -> bool {
        let promised = self.promised.iter().filter(|(n, p)| *n == at && p.priority >= self.pod.priority);
        let beside = |with: Vec<(usize, Made)>| {
            let snapshot = world(&self.nodes, &with);
            let (pod, volumes) = (self.pod.info(), Needs::default());
            let context = PodContext::new(&snapshot, &pod);
            let (spec, node) = snapshot.node(&format!("n{at}")).unwrap();
            let profile = snapshot.profiles.of(pod.scheduler());
            objection(&Question {
                pod: &pod,
                profile,
                spec,
                node,
                context: &context,
                volumes: &volumes,
                rating: None,
            })
            .is_none()
        };
        beside(placed.iter().chain(promised).cloned().collect()) && beside(placed.to_vec())
    }

    /// Victims on a node and broken budgets, found the long way.
    fn victims(&self, at: usize) -> Option<Cost> {
        let lesser = |(n, p): &&(usize, Made)| *n == at && p.priority < self.pod.priority;
        let mut out: Vec<(usize, Made)> = self.placed.iter().filter(lesser).cloned().collect();
        let mut kept: Vec<(usize, Made)> = self.placed.iter().filter(|p| !lesser(p)).cloned().collect();
        if out.is_empty() || !self.fits(&kept, at) {
            return None;
        }
        let order = |p: &Made| (-p.priority, p.started, p.name.clone());
        out.sort_by_key(|(_, p)| order(p));
        let mut left = self.allowed;
        let mut breaks = |p: &Made| {
            left -= i64::from(p.app == "y");
            p.app == "y" && left < 0
        };
        let marked: Vec<(bool, (usize, Made))> = out.into_iter().map(|p| (breaks(&p.1), p)).collect();
        let (mut victims, mut broken) = (Vec::new(), 0);
        for turn in [true, false] {
            for (breaks, pod) in marked.iter().filter(|(b, _)| *b == turn) {
                kept.push(pod.clone());
                if !self.fits(&kept, at) {
                    kept.pop();
                    broken += usize::from(*breaks);
                    victims.push(pod.1.clone());
                }
            }
        }
        victims.sort_by_key(order);
        Some((victims, broken))
    }

    /// The cheapest node by upstream's list of rules, each a pass over those that are left.
    fn choice(&self) -> Option<(String, Vec<String>)> {
        let all = (0..self.nodes.len()).filter_map(|n| Some((n, self.victims(n)?)));
        let mut left: Vec<(usize, Cost)> = all.collect();
        let highest = |v: &[Made]| v.iter().map(|p| p.priority).max();
        let rules: [&dyn Fn(&Cost) -> i64; 5] = [
            &|(_, broken)| *broken as i64,
            &|(v, _)| highest(v).map_or(i64::MIN, i64::from),
            &|(v, _)| v.iter().map(|p| i64::from(p.priority) + (1 << 31)).sum(),
            &|(v, _)| v.len() as i64,
            &|(v, _)| {
                let most = v.iter().filter(|p| Some(p.priority) == highest(v));
                -most.map(|p| i64::from(p.started)).min().unwrap_or(i64::MAX)
            },
        ];
        for rule in rules {
            let least = left.iter().map(|(_, found)| rule(found)).min()?;
            left.retain(|(_, found)| rule(found) == least);
        }
        let (at, (victims, _)) = left.into_iter().next()?;
        Some((format!("n{at}"), victims.into_iter().map(|p| p.name).collect()))
    }
}

proptest! {
    #[test]
    fn the_twin_chooses_the_same(case in cases()) {
        let mut snapshot = world(&case.nodes, &case.placed);
        for (n, pod) in &case.promised {
            snapshot.nominate(&format!("n{n}"), pod.info());
        }
        snapshot.budgets.insert(("n".into(), "b".into()), budget("y", case.allowed));
        let plan = schedule(&mut snapshot, &[case.pod.info()]);
        let fits = (0..case.nodes.len()).any(|n| case.fits(&case.placed, n));
        prop_assert_eq!(plan.bindings.len(), usize::from(fits));
        if fits {
            return Ok(());
        }
        let chosen = match &plan.unschedulable[0].1.rescue {
            Rescue::Found(found) => {
                let victims = names(&found.victims).into_iter().map(str::to_string).collect();
                Some((found.node.clone(), victims))
            }
            _ => None,
        };
        prop_assert_eq!(chosen, case.choice());
    }

    /// A what-if leaves no trace.
    #[test]
    fn trials_undo_themselves(case in cases()) {
        let snapshot = world(&case.nodes, &case.placed);
        let (pod, volumes) = (case.pod.info(), Needs::default());
        let fresh = PodContext::new(&snapshot, &pod);
        let mut subject = Subject { pod: &pod, profile: snapshot.profiles.of(""), context: fresh.clone(), volumes: &volumes, ratings: Ratings::default() };
        for (spec, node) in snapshot.nodes() {
            let mut trial = Trial::new(&mut subject, spec, node);
            node.pods.values().for_each(|p| trial.remove(p));
            case.promised.iter().for_each(|(_, p)| trial.add(&p.info()));
        }
        prop_assert_eq!(subject.context, fresh);
    }
}

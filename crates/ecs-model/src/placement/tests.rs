//! Scenes of placement, and what always holds.

use super::*;
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
use serde_json::json;

fn instance(id: &str, zone: &str, cpu: i64, memory: i64) -> Instance {
    let attributes = [(ZONE.to_string(), zone.to_string())].into();
    let facts = Facts { attributes, agent_connected: true, ..Facts::default() };
    Instance {
        arn: format!("arn:{id}"),
        id: id.into(),
        node: id.into(),
        facts,
        cpu,
        memory,
        ..Instance::default()
    }
}

fn request(strategy: Value, constraint: Value) -> Request {
    Request {
        demand: Demand { cpu: 100, memory: 100, ports: vec![], gpus: 0 },
        strategies: strategies(strategy.as_array().unwrap()).unwrap(),
        constraints: constraints(constraint.as_array().unwrap()).unwrap(),
        group: "family:web".into(),
        ..Request::default()
    }
}

fn ids(instances: &[Instance], placed: &[usize]) -> Vec<String> {
    placed.iter().map(|i| instances[*i].id.clone()).collect()
}

#[test]
fn binpack_fills_one_before_the_next() {
    let mut all = [instance("a", "z1", 1000, 1000), instance("b", "z2", 300, 1000)];
    let (placed, failures) =
        place(&mut all, &request(json!([{"type": "binpack", "field": "cpu"}]), json!([])), 4);
    assert_eq!((ids(&all, &placed).concat(), failures), ("bbba".to_string(), vec![]));
}

#[test]
fn spread_goes_round_zones_then_instances() {
    let mut all =
        [instance("a", "z1", 1000, 1000), instance("b", "z1", 1000, 1000), instance("c", "z2", 1000, 1000)];
    let spread = json!([{"type": "spread", "field": "attribute:ecs.availability-zone"},
        {"type": "spread", "field": "instanceId"}]);
    let (placed, _) = place(&mut all, &request(spread, json!([])), 4);
    assert_eq!(placed.iter().filter(|i| **i == 2).count(), 2);
    assert!(placed.contains(&0) && placed.contains(&1));
}

#[test]
fn reasons_are_ecs_own() {
    let mut far = instance("far", "z1", 1000, 1000);
    far.facts.agent_connected = false;
    let mut taken = instance("taken", "z1", 1000, 1000);
    taken.ports.insert((80, "tcp".into()));
    let mut all = [
        far,
        instance("small", "z1", 99, 1000),
        instance("low", "z1", 1000, 99),
        taken,
        instance("x", "z2", 1000, 1000),
    ];
    let member = json!([{"type": "memberOf", "expression": "attribute:ecs.availability-zone == z1"}]);
    let mut asked = request(json!([]), member);
    asked.demand.ports.push((80, "tcp".into()));
    let (placed, failures) = place(&mut all, &asked, 3);
    let reasons: Vec<&str> = failures.iter().map(|f| f.reason.as_str()).collect();
    let expected = [
        "AGENT",
        "RESOURCE:CPU",
        "RESOURCE:MEMORY",
        "RESOURCE:PORTS",
        "MemberOf placement constraint unsatisfied.",
    ];
    assert_eq!((placed.len(), reasons.as_slice()), (0, expected.as_slice()));
    asked.attributes.push("gpu".into());
    assert!(place(&mut all, &asked, 1).1.iter().skip(1).all(|f| f.reason == "ATTRIBUTE"));
}

#[test]
fn distinct_instances_take_one_task_of_a_group_each() {
    let mut all = [instance("a", "z1", 1000, 1000), instance("b", "z1", 1000, 1000)];
    let distinct = request(json!([{"type": "random"}]), json!([{"type": "distinctInstance"}]));
    let (placed, failures) = place(&mut all, &distinct, 3);
    assert_eq!((placed.len(), failures.len()), (2, 2));
    assert_eq!(failures[0].reason, "DistinctInstance placement constraint unsatisfied.");
}

#[test]
fn what_is_no_strategy() {
    for (strategy, words) in [
        (json!([{"type": "binpack", "field": "disk"}]), "binpack field 'disk' is invalid"),
        (json!([{"type": "spread", "field": "colour"}]), "spread field 'colour' is invalid"),
        (json!([{"type": "spread", "field": "attribute:"}]), "spread field 'attribute:' is invalid"),
    ] {
        assert_eq!(strategies(strategy.as_array().unwrap()).unwrap_err(), Refusal::parameter(words));
    }
    let wrong = json!([{"type": "distinctInstance", "expression": "x"}]);
    assert!(constraints(wrong.as_array().unwrap()).is_err());
}

proptest! {
    /// Nothing is overbooked, what could be placed is placed, and the same seed gives the same places.
    #[test]
    fn places_are_sound(
        sizes in prop::collection::vec((0i64..500, 0i64..500, "z[12]"), 0..6),
        kind in 0usize..5, seed: u64, count in 0usize..20,
    ) {
        let strategy = [json!([]), json!([{"type": "random"}]), json!([{"type": "binpack", "field": "memory"}]),
            json!([{"type": "spread", "field": "instanceId"}]),
            json!([{"type": "spread", "field": "attribute:ecs.availability-zone"}, {"type": "binpack", "field": "cpu"}])];
        let all: Vec<Instance> =
            sizes.iter().enumerate().map(|(i, (c, m, z))| instance(&format!("i{i}"), z, *c, *m)).collect();
        let asked = Request { seed, ..request(strategy[kind].clone(), json!([])) };
        let (mut first, mut second) = (all.clone(), all.clone());
        let (placed, failures) = place(&mut first, &asked, count);
        prop_assert_eq!(&place(&mut second, &asked, count).0, &placed);
        prop_assert!(first.iter().zip(&all).all(|(new, old)| new.cpu >= 0.min(old.cpu) && new.memory >= 0.min(old.memory)));
        let room: i64 = all.iter().map(|i| (i.cpu / 100).min(i.memory / 100)).sum();
        prop_assert_eq!(placed.len(), count.min(room as usize));
        prop_assert_eq!(failures.len(), if placed.len() < count { all.len() } else { 0 });
        if kind == 3 && placed.len() == count {
            // Spread by instance: where two have room to the end, they differ by one at most.
            let open: Vec<u64> = first.iter().filter(|i| i.cpu >= 100 && i.memory >= 100)
                .map(|i| i.tasks.get("family:web").copied().unwrap_or(0)).collect();
            prop_assert!(open.iter().max().unwrap_or(&0) - open.iter().min().unwrap_or(&0) <= 1);
        }
    }
}

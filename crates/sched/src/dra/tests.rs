//! Claims on small clusters, in the words of upstream where they are refused; and a dumb twin of the search.

use super::*;
use crate::model::{NodeSpec, PodInfo, Snapshot};
use crate::schedule::schedule;
use crate::volumes;
use proptest::prelude::*;
use serde_json::json;

fn node(name: &str) -> NodeSpec {
    let node = json!({"metadata": {"name": name, "labels": {"zone": &name[..1]}}, "spec": {},
        "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}}});
    NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap())
}

fn pod(name: &str, claims: &[&str]) -> Arc<PodInfo> {
    let all: Vec<Value> = claims.iter().map(|c| json!({"name": c, "resourceClaimName": c})).collect();
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [{"name": "c"}], "resourceClaims": all}});
    Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
}

struct World(Snapshot);

impl World {
    fn new(nodes: &[&str]) -> World {
        let mut snapshot = Snapshot::default();
        nodes.iter().for_each(|n| snapshot.set_node(node(n)));
        let mut world = World(snapshot);
        world.class("gpu", "device.driver == 'x.io'", json!({}));
        world
    }

    fn inventory(&mut self) -> &mut Inventory {
        &mut self.0.volumes.devices
    }

    fn class(&mut self, name: &str, selector: &str, more: Value) {
        let mut spec = json!({"selectors": [{"cel": {"expression": selector}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.inventory().put_class(name, Some(&json!({"metadata": {"name": name}, "spec": spec})));
    }

    /// A pool with one slice on a node, with these devices.
    fn pool(&mut self, node: &str, devices: Value) {
        self.slice(node, json!({"nodeName": node, "devices": devices}));
    }

    fn slice(&mut self, name: &str, more: Value) {
        let mut spec =
            json!({"driver": "x.io", "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.inventory().put_slice(name, Some(&json!({"metadata": {"name": name}, "spec": spec})));
    }

    fn claim(&mut self, name: &str, devices: Value) {
        self.put(name, json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"devices": devices}}));
    }

    fn put(&mut self, name: &str, claim: Value) {
        self.inventory().put_claim(&("n".into(), name.into()), Some(&claim));
    }

    /// "node: device device" of the first claim, or the message.
    fn run(&mut self, pod: &Arc<PodInfo>) -> String {
        let plan = schedule(&mut self.0, std::slice::from_ref(pod));
        let Some((_, node)) = plan.bindings.first() else {
            let message = plan.unschedulable[0].1.message();
            return message.split(" preemption:").next().unwrap().to_string();
        };
        let told = |s: &Step| match s {
            Step::Allocate(_, result) | Step::Make { allocation: result, .. } => {
                let results = result["devices"]["results"].as_array().unwrap().iter();
                results.map(|r| format!(" {}", r["device"].as_str().unwrap())).collect()
            }
            Step::Reserve(id) => format!(" reserve {}", id.1),
        };
        format!("{node}:{}", self.steps(&pod.id.as_ref().unwrap().1).iter().map(told).collect::<String>())
    }

    fn steps(&self, pod: &str) -> Vec<Step> {
        let all = self.0.volumes.steps(&("n".into(), pod.into()));
        let own = |s| if let volumes::Step::Devices(step) = s { step } else { panic!("{s:?}") };
        all.into_iter().map(own).collect()
    }

    fn forget(&mut self, pod: &str) {
        self.0.volumes.forget(&("n".into(), pod.into()));
    }
}

fn named(names: &[&str]) -> Value {
    names.iter().map(|n| json!({"name": n})).collect()
}

fn exact(name: &str, more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": exactly})
}

fn one() -> Value {
    json!({"requests": [exact("r", json!({}))]})
}

#[test]
fn a_device_is_given_once_until_it_is_free() {
    let mut world = World::new(&["a", "b"]);
    world.pool("b", named(&["g0"]));
    world.claim("c1", one());
    world.claim("c2", one());
    assert_eq!(world.run(&pod("p1", &["c1"])), "b: g0");
    assert_eq!(world.run(&pod("p2", &["c2"])), "0/2 nodes are available: 2 cannot allocate all claims.");
    assert_eq!(
        world.run(&pod("p3", &["c1"])),
        "0/2 nodes are available: resource claim n/c1 is in the process of being allocated."
    );
    let Step::Allocate(_, result) = world.steps("p1")[0].clone() else { panic!() };
    let selector = &result["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0];
    assert_eq!(*selector, json!({"key": "metadata.name", "operator": "In", "values": ["b"]}));
    let mut written = json!({"metadata": {"name": "c1", "namespace": "n"}, "spec": {"devices": one()},
        "status": {"allocation": result, "reservedFor": [{"uid": "p1"}]}});
    world.put("c1", written.clone());
    world.forget("p1");
    assert_eq!(world.run(&pod("p3", &["c1"])), "b: reserve c1", "claims may be shared");
    assert!(world.run(&pod("p2", &["c2"])).contains("cannot allocate all claims"), "still had");
    written["status"] = json!({});
    world.put("c1", written);
    assert_eq!(world.run(&pod("p2", &["c2"])), "b: g0");
    world.forget("p2");
    assert_eq!(world.run(&pod("p4", &["c2"])), "b: g0", "what was promised and not kept is free");
}

#[test]
fn why_a_pod_waits() {
    let mut world = World::new(&["a"]);
    let said = |world: &mut World, claim: &str| {
        world.run(&pod("p", &[claim])).replace("0/1 nodes are available: ", "")
    };
    assert_eq!(said(&mut world, "none"), "resourceclaim \"none\" not found.");
    world.claim("c", json!({"requests": [exact("r", json!({"deviceClassName": "other"}))]}));
    assert_eq!(said(&mut world, "c"), "request r: device class other does not exist.");
    world.put("d", json!({"metadata": {"name": "d", "namespace": "n", "deletionTimestamp": "x"}}));
    assert_eq!(said(&mut world, "d"), "resourceclaim \"d\" is being deleted.");
    world.claim("many", json!({"requests": [exact("r", json!({"count": 33}))]}));
    let words = "1 claim n/many: number of requested devices 33 exceeds the claim limit of 32.";
    assert_eq!(said(&mut world, "many"), words);
    world.pool("a", named(&["g"]));
    world.claim(
        "bad",
        json!({"requests": [exact("r",
        json!({"selectors": [{"cel": {"expression": "device.attributes['x.io'].n == 1"}}]}))]}),
    );
    let words = "1 claim n/bad: selector #0 on device x.io/a/g: CEL runtime error: no such key: n.";
    assert_eq!(said(&mut world, "bad"), words);
    let away = json!({"devices": {"results": []}, "nodeSelector": {"nodeSelectorTerms":
        [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}]}});
    world.put("far", json!({"metadata": {"name": "far", "namespace": "n"}, "status": {"allocation": away}}));
    assert_eq!(said(&mut world, "far"), "1 resourceclaim not available on the node.");
}

#[test]
fn alternatives_and_all() {
    let mut world = World::new(&["a"]);
    let device = |name: &str, size: i64| json!({"name": name, "attributes": {"size": {"int": size}}});
    world.pool("a", json!([device("s1", 1), device("s2", 1), device("l1", 2)]));
    let size = |n: i64| json!([{"cel": {"expression": format!("device.attributes['x.io'].size == {n}")}}]);
    let way = |name: &str, n: i64, count: i64| {
        let mut way = exact(name, json!({"count": count, "selectors": size(n)}))["exactly"].clone();
        way["name"] = json!(name);
        way
    };
    world.claim("c", json!({"requests": [{"name": "r", "firstAvailable": [way("big", 2, 2), way("small", 1, 2)]}],
        "config": [{"requests": ["r/big"], "opaque": {}}, {"requests": ["r/small"], "opaque": {"driver": "x.io"}}]}));
    assert_eq!(world.run(&pod("p", &["c"])), "a: s1 s2");
    let Step::Allocate(_, result) = &world.steps("p")[0] else { panic!() };
    assert_eq!(result["devices"]["results"][0]["request"], "r/small");
    assert_eq!(result["devices"]["config"], json!([{"source": "FromClaim", "opaque": {"driver": "x.io"}}]));
    world.forget("p");

    world.claim("all", json!({"requests": [exact("r", json!({"allocationMode": "All", "count": 0}))]}));
    assert_eq!(world.run(&pod("q", &["all"])), "a: s1 s2 l1");
    world.forget("q");
    world.slice("a", json!({"nodeName": "a", "devices": [], "pool": {"name": "a", "generation": 2, "resourceSliceCount": 2}}));
    let words = "0/1 nodes are available: 1 claim n/all, request r: asks for all devices, but resource pool x.io/a \
        is currently being updated.";
    assert_eq!(world.run(&pod("q", &["all"])), words);
}

#[test]
fn constraints_taints_and_admins() {
    let mut world = World::new(&["a"]);
    let device = |name: &str, numa: i64| json!({"name": name, "attributes": {"numa": {"int": numa}}});
    world.pool("a", json!([device("d0", 0), device("d1", 1), device("e0", 0)]));
    let two = |constraint: Value| json!({"requests": [exact("r", json!({})), exact("s", json!({}))], "constraints": [constraint]});
    world.claim("same", two(json!({"matchAttribute": "x.io/numa"})));
    world.claim("other", two(json!({"distinctAttribute": "x.io/numa"})));
    for (claim, want) in [("same", "a: d0 e0"), ("other", "a: d0 d1")] {
        assert_eq!(world.run(&pod("p", &[claim])), want);
        world.forget("p");
    }
    world.claim("none", two(json!({"requests": ["r"], "matchAttribute": "y.io/numa"})));
    assert!(world.run(&pod("p", &["none"])).contains("cannot allocate"));

    world.claim("all", json!({"requests": [exact("r", json!({"count": 3}))]}));
    assert_eq!(world.run(&pod("p", &["all"])), "a: d0 d1 e0");
    world.claim("admin", json!({"requests": [exact("r", json!({"adminAccess": true, "count": 2}))]}));
    assert_eq!(world.run(&pod("q", &["admin"])), "a: d0 d1", "an admin uses what others have");
    let Step::Allocate(_, result) = &world.steps("q")[0] else { panic!() };
    assert_eq!(result["devices"]["results"][0]["adminAccess"], true);

    let mut world = World::new(&["a"]);
    let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
    world.pool("a", json!([{"name": "t", "taints": taint}]));
    world.claim("c", one());
    assert!(world.run(&pod("p", &["c"])).contains("cannot allocate"));
    let tolerations = json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]);
    world.claim("c", json!({"requests": [exact("r", json!({"tolerations": tolerations}))]}));
    assert_eq!(world.run(&pod("p", &["c"])), "a: t");

    let rule = |pool: &str| json!({"spec": {"deviceSelector": {"pool": pool}, "taint": {"key": "r", "effect": "NoExecute"}}});
    world.pool("a", json!([{"name": "r"}]));
    world.inventory().put_rule("r", Some(&rule("a")));
    world.claim("ruled", one());
    assert!(world.run(&pod("q", &["ruled"])).contains("cannot allocate"), "an administrator says no");
    world.inventory().put_rule("r", Some(&rule("b")));
    assert_eq!(world.run(&pod("q", &["ruled"])), "a: r");
}

#[test]
fn partitions_and_parts() {
    let mut world = World::new(&["a"]);
    let uses = |n: &str| json!([{"counterSet": "s", "counters": {"mem": {"value": n}}}]);
    let pool = |count: i64| json!({"name": "a", "generation": 1, "resourceSliceCount": count});
    world.slice(
        "counters",
        json!({"nodeName": "a", "pool": pool(2),
        "sharedCounters": [{"name": "s", "counters": {"mem": {"value": "8Gi"}}}]}),
    );
    world.slice("devices", json!({"nodeName": "a", "pool": pool(2), "devices": [
        {"name": "whole", "consumesCounters": uses("8Gi")}, {"name": "half0", "consumesCounters": uses("4Gi")},
        {"name": "half1", "consumesCounters": uses("4Gi")}]}));
    for claim in ["c1", "c2", "c3"] {
        world.claim(claim, one());
    }
    world.claim("two", json!({"requests": [exact("r", json!({"count": 2}))]}));
    assert_eq!(world.run(&pod("p", &["two"])), "a: half0 half1", "the whole one leaves nothing for a second");
    world.forget("p");
    assert_eq!(world.run(&pod("p1", &["c1"])), "a: whole");
    assert!(world.run(&pod("p2", &["c2"])).contains("cannot allocate"));

    let mut world = World::new(&["a"]);
    world.pool(
        "a",
        json!([{"name": "nic", "allowMultipleAllocations": true, "capacity": {"bw": {"value": "10",
        "requestPolicy": {"default": "2"}}}}]),
    );
    let asks = |bw: &str| json!({"requests": [exact("r", json!({"capacity": {"requests": {"bw": bw}}}))]});
    for (claim, bw, want) in [("c1", "6", "a: nic"), ("c2", "6", ""), ("c3", "4", "a: nic"), ("c4", "1", "")]
    {
        world.claim(claim, asks(bw));
        let told = world.run(&pod(claim, &[claim]));
        assert!(
            if want.is_empty() { told.contains("cannot allocate") } else { told == want },
            "{claim} {told}"
        );
    }
    let Step::Allocate(_, result) = &world.steps("c1")[0] else { panic!() };
    let given = &result["devices"]["results"][0];
    assert_eq!((&given["consumedCapacity"], &given["shareID"]), (&json!({"bw": "6"}), &json!("")));
}

#[test]
fn places_of_devices() {
    let mut world = World::new(&["a1", "a2", "b1"]);
    let zone = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]});
    world.slice("net", json!({"nodeSelector": zone, "devices": named(&["n0", "n1"])}));
    world.slice(
        "each",
        json!({"perDeviceNodeSelection": true, "devices": [{"name": "e", "nodeName": "b1",
        "attributes": {"each": {"bool": true}}}]}),
    );
    let only = json!([{"cel": {"expression": "has(device.attributes['x.io'].each)"}}]);
    world.claim("each", json!({"requests": [exact("r", json!({"selectors": only}))]}));
    assert_eq!(world.run(&pod("p", &["each"])), "b1: e");
    world.claim("net", one());
    assert!(world.run(&pod("q", &["net"])).starts_with("a"));
    let Step::Allocate(_, result) = &world.steps("q")[0] else { panic!() };
    assert_eq!(result["nodeSelector"], zone);
    world.slice("net", json!({"allNodes": true, "devices": named(&["n0", "n1"])}));
    world.claim("net2", one());
    world.run(&pod("q2", &["net2"]));
    let Step::Allocate(_, result) = &world.steps("q2")[0] else { panic!() };
    assert_eq!(result.get("nodeSelector"), None);
    world.inventory().put_slice("net", None);
    assert!(world.inventory().places.values().all(|p| p.len() <= 1) && world.inventory().slices.len() == 1);
}

#[test]
fn extended_resources_become_a_claim() {
    let mut world = World::new(&["a"]);
    world.class("gpu", "device.driver == 'x.io'", json!({"extendedResourceName": "x.io/gpu"}));
    world.pool("a", named(&["g0", "g1", "g2"]));
    let asks = |name: &str, n: &str| json!({"name": name, "resources": {"requests": {"x.io/gpu": n}}});
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "p"}, "spec": {
        "initContainers": [asks("i", "2")], "containers": [asks("c", "1"), asks("d", "1")]}});
    let pod = Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()));
    assert_eq!(world.run(&pod), "a: g0 g1");
    let Step::Make { spec, mappings, .. } = &world.steps("p")[0] else { panic!() };
    let map = |c: &str, r: &str| json!({"containerName": c, "resourceName": "x.io/gpu", "requestName": r});
    let (r1, r2) = ("container-1-request-0", "container-2-request-0");
    assert_eq!(*mappings, json!([map("c", r1), map("d", r2), map("i", r1), map("i", r2)]));
    assert_eq!(spec["devices"]["requests"][0]["exactly"]["deviceClassName"], "gpu");
    world.forget("p");
    world.inventory().put_class("gpu", None);
    assert_eq!(world.run(&pod), "0/1 nodes are available: 1 Insufficient x.io/gpu.");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// One device a request, chosen by a bit mask: the search finds a matching exactly where trying all orders does.
    #[test]
    fn finds_what_there_is(masks in prop::collection::vec(1u8..16, 1..5)) {
        fn fits(masks: &[u8], free: u8) -> bool {
            let Some((mask, rest)) = masks.split_first() else { return true };
            (0..4).any(|d| mask & free & (1 << d) != 0 && fits(rest, free & !(1 << d)))
        }
        let mut world = World::new(&["a"]);
        let device = |i: i64| json!({"name": format!("d{i}"), "attributes": {"i": {"int": i}}});
        world.pool("a", (0..4).map(device).collect());
        let request = |(at, mask): (usize, &u8)| {
            let wanted: Vec<i64> = (0..4).filter(|d| mask & (1 << d) != 0).collect();
            let text = format!("device.attributes['x.io'].i in {wanted:?}");
            exact(&format!("r{at}"), json!({"selectors": [{"cel": {"expression": text}}]}))
        };
        world.claim("c", json!({"requests": masks.iter().enumerate().map(request).collect::<Vec<_>>()}));
        let found = world.run(&pod("p", &["c"])).starts_with("a:");
        prop_assert_eq!(found, fits(&masks, 15));
    }
}

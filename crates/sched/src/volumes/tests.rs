//! Claims and volumes against nodes.

use super::*;
use crate::{Plan, schedule};
use serde_json::json;
use std::sync::Arc;

fn claim(name: &str, size: &str, class: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "uid": format!("u-{name}")},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": size}}}})
}

fn volume(name: &str, size: &str, class: &str, node: Option<&str>) -> Value {
    let mut value = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "capacity": {"storage": size}}});
    if let Some(node) = node {
        value["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] = json!([{"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
    }
    value
}

fn pod(name: &str, claims: &[&str]) -> PodInfo {
    let volumes: Vec<Value> =
        claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [], "volumes": volumes}});
    PodInfo::read(&serde_json::from_value(pod).unwrap())
}

fn node(name: &str) -> NodeSpec {
    let labels = [("kubernetes.io/hostname".to_string(), name.to_string())].into();
    NodeSpec { name: name.to_string(), labels, max_pods: 10, ..NodeSpec::default() }
}

struct World(Snapshot);

impl World {
    fn new(nodes: &[&str]) -> World {
        let mut snapshot = Snapshot::default();
        for name in nodes {
            snapshot.set_node(node(name));
        }
        let class = |p: &str, mode: &str| Class::read(&json!({"provisioner": p, "volumeBindingMode": mode}));
        for (name, class) in [
            ("wait", class("x", "WaitForFirstConsumer")),
            ("static", class(NO_PROVISIONER, "WaitForFirstConsumer")),
            ("now", class("x", "Immediate")),
        ] {
            snapshot.volumes.classes.insert(name.into(), class);
        }
        World(snapshot)
    }

    fn claim(&mut self, value: &Value) {
        let claim = Claim::read(value);
        self.0.volumes.claims.insert(claim.id.clone(), claim);
    }

    fn volume(&mut self, value: &Value) {
        let volume = Volume::read(value);
        self.0.volumes.volumes.insert(volume.name.clone(), volume);
    }

    fn plan(&mut self, name: &str, claims: &[&str]) -> Plan {
        schedule(&mut self.0, &[Arc::new(pod(name, claims))])
    }

    fn refusal(&mut self, name: &str, claims: &[&str]) -> String {
        self.plan(name, claims).unschedulable[0].1.message()
    }
}

#[test]
fn a_claim_that_waits_is_provisioned_where_the_pod_goes() {
    let mut it = World::new(&["a"]);
    it.claim(&claim("c", "1Gi", "wait"));
    assert_eq!(it.plan("p", &["c"]).bindings.len(), 1);
    let id = ("n".into(), "p".into());
    assert_eq!(it.0.volumes.steps(&id), [Step::Provision(("n".into(), "c".into()), "a".into())]);
}

#[test]
fn the_smallest_reachable_volume_is_taken_and_only_once() {
    let mut it = World::new(&["a", "b"]);
    it.volume(&volume("big", "9Gi", "static", Some("a")));
    it.volume(&volume("fits", "2Gi", "static", Some("b")));
    it.volume(&volume("small", "1Mi", "static", None));
    it.claim(&claim("c1", "1Gi", "static"));
    it.claim(&claim("c2", "1Gi", "static"));
    it.claim(&claim("c3", "1Gi", "static"));
    let mut taken = Vec::new();
    for (pod, claim) in [("p1", "c1"), ("p2", "c2")] {
        assert_eq!(it.plan(pod, &[claim]).bindings.len(), 1, "{pod}");
        taken.extend(it.0.volumes.steps(&("n".into(), pod.into())));
    }
    let volumes: BTreeSet<&str> =
        taken.iter().map(|s| if let Step::Bind(_, v) = s { v.as_str() } else { "" }).collect();
    assert_eq!(volumes, ["big", "fits"].into());
    assert!(it.refusal("p3", &["c3"]).contains(&format!("2 {NO_VOLUME}")));
    // What a pod does not need after all serves the next.
    it.0.volumes.forget(&("n".into(), "p1".into()));
    assert_eq!(it.plan("p3", &["c3"]).bindings.len(), 1);
}

#[test]
fn refusals_in_upstreams_words() {
    let mut it = World::new(&["a"]);
    let before = |why: &str| {
        format!(
            "0/1 nodes are available: {why}. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        )
    };
    assert_eq!(it.refusal("p", &["c"]), before("persistentvolumeclaim \"c\" not found"));
    it.claim(&claim("c", "1Gi", "now"));
    assert_eq!(it.refusal("p", &["c"]), before("pod has unbound immediate PersistentVolumeClaims"));
    let mut bound = claim("c", "1Gi", "now");
    bound["spec"]["volumeName"] = json!("v");
    bound["metadata"]["annotations"][BIND_COMPLETED] = json!("yes");
    it.claim(&bound);
    assert_eq!(it.refusal("p", &["c"]), before("persistentvolume \"v\" not found"));
    it.volume(&volume("v", "1Gi", "now", Some("elsewhere")));
    assert_eq!(it.refusal("p", &["c"]), before(&format!("1 {AFFINITY}")));
    it.volume(&volume("v", "1Gi", "now", Some("a")));
    assert_eq!(it.plan("p", &["c"]).bindings.len(), 1);
    bound["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    it.claim(&bound);
    assert_eq!(it.refusal("q", &["c"]), before("persistentvolumeclaim \"c\" is being deleted"));
}

#[test]
fn one_pod_at_a_time_where_the_claim_says_so() {
    let mut it = World::new(&["a", "b"]);
    let mut one = claim("c", "1Gi", "wait");
    one["spec"]["accessModes"] = json!([ONE_POD]);
    it.claim(&one);
    assert_eq!(it.plan("p", &["c"]).bindings.len(), 1);
    assert!(it.refusal("q", &["c"]).contains(IN_USE));
    // A trial without the user on its node finds no conflict there, and one on the other node.
    let users = |p: &str| vec![(p.to_string(), ("n".into(), "p".into()))];
    let at = it.0.place_of(&("n".into(), "p".into())).unwrap().to_string();
    let needs = Needs { users: users(&at), ..Needs::default() };
    for (spec, node) in it.0.nodes() {
        assert_eq!(needs.conflict(spec, node), Some(IN_USE));
        assert_eq!(needs.conflict(spec, &NodeInfo::default()).is_none(), spec.name == at);
    }
    it.0.remove_pod(&("n".into(), "p".into()));
    assert_eq!(it.plan("q", &["c"]).bindings.len(), 1);
}

#[test]
fn kept_volumes_and_labels() {
    let mut kept = volume("kept", "5Gi", "", None);
    kept["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"});
    let mut red = volume("red", "1Gi", "", None);
    red["metadata"]["labels"] = json!({"colour": "red"});
    let volumes: Vec<Volume> =
        [kept, red, volume("plain", "1Gi", "", None)].iter().map(Volume::read).collect();
    let found = |c: &Value| find_match(&Claim::read(c), volumes.iter(), None, false).map(|v| v.name.as_str());
    assert_eq!(found(&claim("c", "1Gi", "")), Some("kept"));
    assert_eq!(found(&claim("d", "1Gi", "")), Some("plain"));
    assert_eq!(found(&claim("d", "2Gi", "")), None, "another's volume is not taken");
    let mut selecting = claim("d", "1Gi", "");
    selecting["spec"]["selector"] = json!({"matchLabels": {"colour": "red"}});
    assert_eq!(found(&selecting), Some("red"));
    assert!(find_match(&Claim::read(&claim("d", "1Gi", "")), volumes.iter(), None, true).is_none());
}

#[test]
fn room_limits_and_zones_in_upstreams_words() {
    let mut it = World::new(&["a"]);
    it.claim(&claim("c", "1Gi", "wait"));
    it.0.volumes.telling.insert("x".into());
    let words = |why: &str| format!("0/1 nodes are available: 1 {why}.");
    assert!(it.refusal("p", &["c"]).starts_with(&words(NO_ROOM)), "nothing was told");
    for (host, size, fits) in [("a", "512Mi", false), ("b", "2Gi", false), ("a", "2Gi", true)] {
        let room = json!({"storageClassName": "wait", "capacity": "1Ti", "maximumVolumeSize": size,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": host}}});
        it.0.volumes.rooms.insert(("n".into(), "r".into()), Room::read(&room));
        let asking = pod("q", &["c"]);
        let needs = it.0.volumes.needs(&asking, &it.0).unwrap();
        assert_eq!(needs.steps(&node("a")).is_some(), fits, "{host} {size}");
    }

    let csi = |name: &str, zone: &str| {
        let mut value = volume(name, "1Gi", "static", None);
        value["spec"]["csi"] = json!({"driver": "d", "volumeHandle": name});
        value["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
        value
    };
    for name in ["v1", "v2", "v3"] {
        it.volume(&csi(name, "z1__z2"));
        let mut bound = claim(name, "1Gi", "static");
        bound["spec"]["volumeName"] = json!(name);
        bound["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
        it.claim(&bound);
    }
    let node_info = NodeInfo {
        pods: [(("n".into(), "o".into()), Arc::new(pod("o", &["v1"])))].into(),
        ..NodeInfo::default()
    };
    let allocatable =
        json!({"spec": {"drivers": [{"name": "d", "allocatable": {"count": 2}}, {"name": "e"}]}});
    it.0.volumes.limits.insert("a".into(), limits(&allocatable));
    let excess = |claims: &[&str]| {
        let asks = pod("p", claims);
        it.0.volumes.needs(&asks, &it.0).unwrap().excess(&asks, &node("a"), &node_info)
    };
    assert_eq!(excess(&["v1", "v2"]), None, "what is there already counts once");
    assert_eq!(excess(&["v2", "v3"]), Some(TOO_MANY));
    let asks = pod("p", &["v1"]);
    let needs = it.0.volumes.needs(&asks, &it.0).unwrap();
    let labelled = |zone: &str| {
        let mut spec = node("a");
        spec.labels.insert("failure-domain.beta.kubernetes.io/zone".into(), zone.into());
        needs.elsewhere(&spec)
    };
    assert_eq!((needs.elsewhere(&node("a")), labelled("z2"), labelled("z3")), (None, None, Some(ZONE)));
}

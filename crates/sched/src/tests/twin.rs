//! A dumb twin of the filters and of preemption, written from upstream's rules over the API's documents and nothing of
//! this crate: it asks every node for every pod anew. On random clusters both must say the same of every node, and push
//! out the same pods.

use super::chance::Chance;
use crate::volumes::{Claim, Class, Volume, limits};
use crate::{Budget, NodeSpec, PodId, PodInfo, Rescue, Snapshot, explain, schedule};
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A cluster as documents; placed pods say their node.
#[derive(Clone, Debug, Default)]
struct World {
    nodes: Vec<Value>,
    pods: Vec<Value>,
    namespaces: BTreeMap<String, Value>,
    /// With the volumes that they have or will have.
    claims: Vec<(Value, Value)>,
    limits: Vec<Value>,
    budgets: Vec<Value>,
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or("")
}

/// Does a label selector choose these labels? One that is absent chooses nothing.
fn chosen(selector: &Value, labels: &Value) -> bool {
    let holds = |e: &Value| {
        let value = &labels[text(&e["key"])];
        let listed = list(&e["values"]).any(|v| v == value);
        match text(&e["operator"]) {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => !value.is_null(),
            _ => value.is_null(),
        }
    };
    let equal = |(k, v): (&String, &Value)| labels[k] == *v;
    selector.is_object()
        && selector["matchLabels"].as_object().into_iter().flatten().all(equal)
        && list(&selector["matchExpressions"]).all(holds)
}

fn node_holds(e: &Value, value: &Value) -> bool {
    let listed = list(&e["values"]).any(|v| v == value);
    let number = |v: &Value| text(v).parse::<i64>().ok();
    let (own, limit) = (number(value), number(&e["values"][0]));
    match text(&e["operator"]) {
        "In" => !value.is_null() && listed,
        "NotIn" => value.is_null() || !listed,
        "Exists" => !value.is_null(),
        "DoesNotExist" => value.is_null(),
        "Gt" => own.zip(limit).is_some_and(|(a, b)| a > b),
        _ => own.zip(limit).is_some_and(|(a, b)| a < b),
    }
}

fn node_terms(terms: &Value, node: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    list(terms).any(|t| {
        let (expressions, fields) = (list(&t["matchExpressions"]), list(&t["matchFields"]));
        let empty = list(&t["matchExpressions"]).next().is_none() && list(&t["matchFields"]).next().is_none();
        !empty
            && expressions.into_iter().all(|e| node_holds(e, &labels[text(&e["key"])]))
            && fields.into_iter().all(|e| node_holds(e, &node["metadata"]["name"]))
    })
}

fn wants_node(pod: &Value, node: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let plain = |(k, v): (&String, &Value)| labels[k] == *v;
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    pod["spec"]["nodeSelector"].as_object().into_iter().flatten().all(plain)
        && (required.is_null() || node_terms(&required["nodeSelectorTerms"], node))
}

fn tolerated(pod: &Value, taint: &Value) -> bool {
    list(&pod["spec"]["tolerations"]).any(|t| {
        let exists = t["operator"] == "Exists";
        (t["effect"].is_null() || t["effect"] == taint["effect"])
            && (if t["key"].is_null() { exists } else { t["key"] == taint["key"] })
            && (exists || text(&t["value"]) == text(&taint["value"]))
    })
}

fn untainted(pod: &Value, node: &Value) -> bool {
    list(&node["spec"]["taints"]).filter(|t| t["effect"] != "PreferNoSchedule").all(|t| tolerated(pod, t))
}

fn milli(quantity: &Value) -> i64 {
    let text = text(quantity);
    match text.strip_suffix('m') {
        Some(text) => text.parse().unwrap(),
        None => text.parse::<i64>().unwrap() * 1000,
    }
}

fn cpu(pod: &Value) -> i64 {
    milli(&pod["spec"]["containers"][0]["resources"]["requests"]["cpu"])
}

fn terms<'a>(pod: &'a Value, kind: &str) -> Vec<&'a Value> {
    list(&pod["spec"]["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"]).collect()
}

/// After every time.
const NEVER: &str = "9";

/// When a pod was started; one that was not yet counts as the youngest.
fn started(pod: &Value) -> &str {
    pod["status"]["startTime"].as_str().unwrap_or(NEVER)
}

impl World {
    fn on<'a>(&'a self, node: &'a Value) -> impl Iterator<Item = &'a Value> {
        self.pods.iter().filter(|p| p["spec"]["nodeName"] == node["metadata"]["name"])
    }

    fn node_of(&self, pod: &Value) -> Option<&Value> {
        self.nodes.iter().find(|n| n["metadata"]["name"] == pod["spec"]["nodeName"])
    }

    /// Does an affinity term of `owner` select `pod`?
    fn selects(&self, owner: &Value, term: &Value, pod: &Value) -> bool {
        let namespace = &pod["metadata"]["namespace"];
        let named = list(&term["namespaces"]).any(|n| n == namespace);
        let neither = term["namespaces"].is_null() && term["namespaceSelector"].is_null();
        let labels = &self.namespaces[text(namespace)];
        (named
            || chosen(&term["namespaceSelector"], labels)
            || (neither && owner["metadata"]["namespace"] == *namespace))
            && chosen(&term["labelSelector"], &pod["metadata"]["labels"])
    }

    fn apart(&self, pod: &Value, node: &Value) -> bool {
        let same = |other: &Value, key: &Value| {
            let value = |n: &Value| n["metadata"]["labels"][text(key)].clone();
            self.node_of(other).is_some_and(|there| !value(there).is_null() && value(there) == value(node))
        };
        let mine = terms(pod, "podAntiAffinity");
        let crowded = mine.iter().any(|t| {
            self.pods.iter().any(|other| self.selects(pod, t, other) && same(other, &t["topologyKey"]))
        });
        let refused = self.pods.iter().any(|other| {
            let theirs = terms(other, "podAntiAffinity");
            theirs.iter().any(|t| self.selects(other, t, pod) && same(other, &t["topologyKey"]))
        });
        let company = terms(pod, "podAffinity");
        // A pod is company only if every term selects it.
        let friends: Vec<&Value> =
            self.pods.iter().filter(|p| company.iter().all(|t| self.selects(pod, t, p))).collect();
        let somewhere = friends.iter().any(|f| {
            let labels = self.node_of(f).map(|n| &n["metadata"]["labels"]);
            company.iter().any(|t| labels.is_some_and(|l| !l[text(&t["topologyKey"])].is_null()))
        });
        let first = !somewhere && company.iter().all(|t| self.selects(pod, t, pod));
        let has = |t: &&Value| !node["metadata"]["labels"][text(&t["topologyKey"])].is_null();
        let near = company.iter().all(|t| friends.iter().any(|f| same(f, &t["topologyKey"])));
        !crowded && !refused && company.iter().all(has) && (near || first)
    }

    fn even(&self, pod: &Value, node: &Value) -> bool {
        let hard: Vec<&Value> = list(&pod["spec"]["topologySpreadConstraints"])
            .filter(|c| c["whenUnsatisfiable"] == "DoNotSchedule")
            .collect();
        let value = |n: &Value, c: &Value| {
            n["metadata"]["labels"][text(&c["topologyKey"])].as_str().map(str::to_string)
        };
        hard.iter().all(|c| {
            let Some(here) = value(node, c) else { return false };
            let mut domains: BTreeMap<String, i64> = BTreeMap::new();
            for n in self.nodes.iter().filter(|n| hard.iter().all(|c| value(n, c).is_some())) {
                if (c["nodeAffinityPolicy"] != "Ignore" && !wants_node(pod, n))
                    || (c["nodeTaintsPolicy"] == "Honor" && !untainted(pod, n))
                {
                    continue;
                }
                let counted = self.on(n).filter(|p| {
                    p["metadata"]["deletionTimestamp"].is_null()
                        && p["metadata"]["namespace"] == pod["metadata"]["namespace"]
                        && chosen(&c["labelSelector"], &p["metadata"]["labels"])
                });
                *domains.entry(value(n, c).unwrap()).or_default() += counted.count() as i64;
            }
            let few = (domains.len() as i64) < c["minDomains"].as_i64().unwrap_or(1);
            let least = if few { 0 } else { domains.values().copied().min().unwrap_or(i64::from(i32::MAX)) };
            let own = i64::from(chosen(&c["labelSelector"], &pod["metadata"]["labels"]));
            domains.get(&here).copied().unwrap_or(0) + own - least <= c["maxSkew"].as_i64().unwrap()
        })
    }

    fn ports_free(&self, pod: &Value, node: &Value) -> bool {
        let ports = |p: &Value| list(&p["spec"]["containers"][0]["ports"]).cloned().collect::<Vec<_>>();
        let any = |p: &Value| matches!(text(&p["hostIP"]), "" | "0.0.0.0");
        let clash = |a: &Value, b: &Value| {
            a["hostPort"] == b["hostPort"]
                && a["protocol"] == b["protocol"]
                && (a["hostIP"] == b["hostIP"] || any(a) || any(b))
        };
        self.on(node).all(|p| ports(p).iter().all(|a| ports(pod).iter().all(|b| !clash(a, b))))
    }

    /// The claims of a pod, and their volumes.
    fn volumes_of<'a>(&'a self, pod: &'a Value) -> Vec<(&'a Value, &'a Value)> {
        let named = list(&pod["spec"]["volumes"]).map(|v| &v["persistentVolumeClaim"]["claimName"]);
        let of = |name: &Value| {
            let own = |(c, _): &&(Value, Value)| {
                c["metadata"]["name"] == *name && c["metadata"]["namespace"] == pod["metadata"]["namespace"]
            };
            let (claim, volume) = self.claims.iter().find(own).unwrap();
            (claim, volume)
        };
        named.map(of).collect()
    }

    fn volumes_there(&self, pod: &Value, node: &Value) -> [(&'static str, bool); 4] {
        const ZONE: &str = "topology.kubernetes.io/zone";
        let own = self.volumes_of(pod);
        let alone = |(claim, _): &(&Value, &Value)| {
            claim["spec"]["accessModes"] != json!(["ReadWriteOncePod"])
                || self
                    .pods
                    .iter()
                    .all(|p| self.volumes_of(p).iter().all(|(c, _)| c["metadata"] != claim["metadata"]))
        };
        let reached = |(_, volume): &(&Value, &Value)| {
            let affinity = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
            affinity.is_null() || node_terms(affinity, node)
        };
        let zone = &node["metadata"]["labels"][ZONE];
        let near = |(_, volume): &(&Value, &Value)| {
            let named = text(&volume["metadata"]["labels"][ZONE]);
            zone.is_null() || named.is_empty() || named.split("__").any(|z| z == text(zone))
        };
        let handles = |p: &Value, driver: &Value| -> BTreeSet<String> {
            let of = self.volumes_of(p).into_iter().map(|(_, v)| &v["spec"]["csi"]);
            of.filter(|c| c["driver"] == *driver).map(|c| text(&c["volumeHandle"]).to_string()).collect()
        };
        let node_limits = self.limits.iter().find(|l| l["metadata"]["name"] == node["metadata"]["name"]);
        let room = node_limits.into_iter().flat_map(|l| list(&l["spec"]["drivers"])).all(|d| {
            let there: BTreeSet<String> = self.on(node).flat_map(|p| handles(p, &d["name"])).collect();
            let mut all = there.clone();
            all.extend(handles(pod, &d["name"]));
            all.len() == there.len() || all.len() as i64 <= d["allocatable"]["count"].as_i64().unwrap()
        });
        [
            ("VolumeRestrictions", own.iter().all(alone)),
            ("VolumeBinding", own.iter().all(reached)),
            ("VolumeZone", own.iter().all(near)),
            ("NodeVolumeLimits", room),
        ]
    }

    /// The filters that object to the pod on the node.
    fn objections(&self, pod: &Value, node: &Value) -> BTreeSet<&'static str> {
        let cordon = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
        let used: i64 = self.on(node).map(cpu).sum();
        let all = &node["status"]["allocatable"];
        let fits = (cpu(pod) == 0 || used + cpu(pod) <= milli(&all["cpu"]))
            && (self.on(node).count() as i64) < text(&all["pods"]).parse().unwrap();
        let rows = [
            ("NodeUnschedulable", node["spec"]["unschedulable"] != true || tolerated(pod, &cordon)),
            ("TaintToleration", untainted(pod, node)),
            ("NodeAffinity", wants_node(pod, node)),
            ("NodePorts", self.ports_free(pod, node)),
            ("NodeResourcesFit", fits),
            ("PodTopologySpread", self.even(pod, node)),
            ("InterPodAffinity", self.apart(pod, node)),
        ];
        let rows = rows.into_iter().chain(self.volumes_there(pod, node));
        rows.filter(|(_, good)| !good).map(|(name, _)| name).collect()
    }

    fn without(&self, gone: &BTreeSet<&str>) -> World {
        let mut rest = self.clone();
        rest.pods.retain(|p| !gone.contains(text(&p["metadata"]["uid"])));
        rest
    }

    /// Who must go from a node so that the pod fits, the breaking ones counted; `None`: nobody's going helps.
    fn victims<'a>(&'a self, pod: &Value, node: &'a Value) -> Option<(BTreeSet<&'a str>, usize)> {
        let uid = |p: &'a Value| text(&p["metadata"]["uid"]);
        let mut lesser: Vec<&Value> = self
            .on(node)
            .filter(|p| p["spec"]["priority"].as_i64() < pod["spec"]["priority"].as_i64())
            .collect();
        if lesser.is_empty() {
            return None;
        }
        lesser.sort_by_key(|p| {
            let meta = &p["metadata"];
            let id = (text(&meta["namespace"]).to_string(), text(&meta["name"]).to_string());
            (Reverse(p["spec"]["priority"].as_i64()), started(p).to_string(), id)
        });
        let mut gone: BTreeSet<&str> = lesser.iter().map(|p| uid(p)).collect();
        if !self.without(&gone).objections(pod, node).is_empty() {
            return None;
        }
        let mut left: Vec<i64> =
            self.budgets.iter().map(|b| b["status"]["disruptionsAllowed"].as_i64().unwrap()).collect();
        let breaks: Vec<bool> = lesser
            .iter()
            .map(|p| {
                let mut broken = false;
                for (budget, left) in self.budgets.iter().zip(&mut left) {
                    let same = budget["metadata"]["namespace"] == p["metadata"]["namespace"];
                    if same && chosen(&budget["spec"]["selector"], &p["metadata"]["labels"]) {
                        *left -= 1;
                        broken |= *left < 0;
                    }
                }
                broken
            })
            .collect();
        let mut violations = 0;
        for first in [true, false] {
            for (p, breaks) in lesser.iter().zip(&breaks).filter(|(_, b)| **b == first) {
                gone.remove(uid(p));
                if !self.without(&gone).objections(pod, node).is_empty() {
                    gone.insert(uid(p));
                    violations += usize::from(*breaks);
                }
            }
        }
        Some((gone, violations))
    }

    /// The node whose victims cost least.
    fn preemption(&self, pod: &Value) -> Option<(&str, BTreeSet<&str>)> {
        let found =
            self.nodes.iter().filter_map(|n| Some((text(&n["metadata"]["name"]), self.victims(pod, n)?)));
        let best = found.min_by_key(|(name, (victims, violations))| {
            let pods: Vec<&Value> =
                self.pods.iter().filter(|p| victims.contains(text(&p["metadata"]["uid"]))).collect();
            let priority = |p: &Value| p["spec"]["priority"].as_i64().unwrap();
            let highest = pods.iter().map(|p| priority(p)).max();
            let sum: i64 = pods.iter().map(|p| priority(p) - i64::from(i32::MIN)).sum();
            let starts = pods.iter().filter(|p| Some(priority(p)) == highest).map(|p| started(p));
            let earliest = starts.min().unwrap_or(NEVER).to_string();
            (*violations, highest.unwrap_or(i64::MIN), sum, pods.len(), Reverse(earliest), name.to_string())
        });
        best.map(|(name, (victims, _))| (name, victims))
    }

    fn random(chance: &mut Chance) -> World {
        let namespaces = [("n".into(), json!({"team": "red"})), ("m".into(), json!({"team": "blue"}))];
        let mut world = World { namespaces: namespaces.into(), ..World::default() };
        for i in 0..2 + chance.below(4) {
            let node = chance.node(&format!("n{i}"));
            if chance.one_in(2) {
                world.limits.push(chance.limits(&format!("n{i}")));
            }
            world.nodes.push(node);
        }
        for namespace in ["n", "m"] {
            for i in 0..5 {
                world.claims.push(chance.claim(namespace, i));
            }
        }
        for namespace in ["n", "m"] {
            world.budgets.push(json!({"metadata": {"namespace": namespace}, "status": {"disruptionsAllowed": chance.below(2)},
                "spec": {"selector": {"matchLabels": {"app": chance.of(&["x", "y"])}}}}));
        }
        // Some stand where they could not be put: rules of placed pods hold all the same.
        for i in 0..chance.below(12) {
            let mut pod = chance.pod(&format!("p{i}"));
            let at = chance.below(world.nodes.len() as u64) as usize;
            pod["spec"]["nodeName"] = world.nodes[at]["metadata"]["name"].clone();
            if chance.one_in(3) || world.objections(&pod, &world.nodes[at]).is_empty() {
                world.pods.push(pod);
            }
        }
        world
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, labels) in &self.namespaces {
            snapshot.set_namespace(name, Some(serde_json::from_value(labels.clone()).unwrap()));
        }
        for node in &self.nodes {
            snapshot.set_node(NodeSpec::read(&serde_json::from_value::<core::Node>(node.clone()).unwrap()));
        }
        snapshot.volumes.classes.insert("late".into(), Class::read(&Chance::class()));
        for (claim, volume) in &self.claims {
            let (claim, volume) = (Claim::read(claim), Volume::read(volume));
            if !claim.volume.is_empty() {
                snapshot.volumes.volumes.insert(volume.name.clone(), volume);
            }
            snapshot.volumes.claims.insert(claim.id.clone(), claim);
        }
        for limit in &self.limits {
            snapshot.volumes.limits.insert(text(&limit["metadata"]["name"]).into(), limits(limit));
        }
        for (i, budget) in self.budgets.iter().enumerate() {
            let id: PodId = (text(&budget["metadata"]["namespace"]).into(), i.to_string().into());
            snapshot.budgets.insert(id, Budget::read(budget).unwrap());
        }
        for pod in &self.pods {
            snapshot.place(text(&pod["spec"]["nodeName"]), Arc::new(info(pod).placed()));
        }
        snapshot
    }
}

fn info(pod: &Value) -> PodInfo {
    PodInfo::read(&serde_json::from_value::<core::Pod>(pod.clone()).unwrap())
}

fn check(seed: u64) -> Result<(), TestCaseError> {
    let mut chance = Chance::new(seed);
    let mut world = World::random(&mut chance);
    let mut snapshot = world.snapshot();
    for i in 0..4 {
        let mut pod = chance.pod(&format!("w{i}"));
        pod["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
        pod["status"] = json!({});
        let waiting = Arc::new(info(&pod));
        let says: BTreeMap<String, BTreeSet<&str>> = world
            .nodes
            .iter()
            .map(|n| (text(&n["metadata"]["name"]).to_string(), world.objections(&pod, n)))
            .collect();
        let explained = explain(&snapshot, &waiting);
        let ours: BTreeMap<String, BTreeSet<&str>> = explained
            .nodes
            .iter()
            .map(|v| (v.node.clone(), v.objections.iter().map(|(name, _)| *name).collect()))
            .collect();
        prop_assert_eq!(&ours, &says, "{:#} in {:#?}", &pod, &world);
        let plan = schedule(&mut snapshot, std::slice::from_ref(&waiting));
        if let Some((_, node)) = plan.bindings.first() {
            prop_assert!(says[node].is_empty());
            pod["spec"]["nodeName"] = json!(node);
            world.pods.push(pod);
            continue;
        }
        prop_assert!(says.values().all(|o| !o.is_empty()));
        let found = match &plan.unschedulable[0].1.rescue {
            Rescue::Found(found) => {
                let victims: BTreeSet<&str> = found.victims.iter().map(|p| p.uid.as_str()).collect();
                Some((found.node.as_str(), victims))
            }
            _ => None,
        };
        prop_assert_eq!(&found, &world.preemption(&pod), "{:#} in {:#?}", &pod, &world);
        // The next pod is decided for as if nobody had been asked to go.
        snapshot = world.snapshot();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_filter_and_every_victim_is_as_the_twin_says(seed in any::<u64>()) {
        check(seed)?;
    }
}

//! Random clusters for tests, as the API's documents, from a number: the same number, the same cluster, on any machine.
//!
//! Small values of everything, so that rules meet often.

use serde_json::{Value, json};

/// Numbers that look random (splitmix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn taint(&mut self) -> Value {
        let effect = self.of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        json!({"key": self.of(&["k", "l"]), "value": self.of(&["v", "w"]), "effect": effect})
    }

    /// A node.
    pub fn node(&mut self, name: &str) -> Value {
        let mut node = json!({"metadata": {"name": name, "labels": {"host": name}}, "spec": {}, "status": {
            "allocatable": {"cpu": (1 + self.below(4)).to_string(), "memory": "64Gi", "pods": (2 + self.below(4)).to_string()}}});
        for (key, values) in [("zone", ["a", "b", "c"]), ("disk", ["1", "5", "9"])] {
            if !self.one_in(6) {
                node["metadata"]["labels"][key] = json!(self.of(&values));
            }
        }
        if self.one_in(4) {
            node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(self.of(&["z1", "z2"]));
        }
        if self.one_in(3) {
            node["spec"]["taints"] = json!([self.taint()]);
        }
        if self.one_in(10) {
            node["spec"]["unschedulable"] = json!(true);
        }
        node
    }

    fn selector(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"matchLabels": {"app": self.of(&["x", "y"])}}),
            1 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}),
            2 => {
                json!({"matchExpressions": [{"key": "tier", "operator": self.of(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
        }
    }

    fn term(&mut self) -> Value {
        let mut term = json!({"topologyKey": self.of(&["host", "zone"]), "labelSelector": self.selector()});
        match self.below(5) {
            0 => term["namespaces"] = json!([self.of(&["n", "m"])]),
            1 => term["namespaceSelector"] = json!({"matchLabels": {"team": self.of(&["red", "blue"])}}),
            2 => term["namespaceSelector"] = json!({}),
            _ => {}
        }
        term
    }

    fn node_affinity(&mut self) -> Value {
        let mut terms = Vec::new();
        for _ in 0..=self.below(2) {
            terms.push(match self.below(4) {
                0 => json!({"matchExpressions": [{"key": "disk", "operator": self.of(&["Gt", "Lt"]), "values": ["4"]}]}),
                1 => json!({"matchExpressions": [{"key": "zone", "operator": self.of(&["In", "NotIn"]), "values": ["a"]}]}),
                2 => json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n0"]}]}),
                _ => json!({}),
            });
        }
        json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}})
    }

    /// A pod with some rules.
    pub fn pod(&mut self, name: &str) -> Value {
        let mut container =
            json!({"name": "c", "resources": {"requests": {"cpu": self.of(&["0", "500m", "1", "2"])}}});
        if self.one_in(5) {
            container["ports"] = json!([{"containerPort": 1, "hostPort": 80 + self.below(2),
                "hostIP": self.of(&["", "10.0.0.1", "10.0.0.2"]), "protocol": self.of(&["TCP", "UDP"])}]);
        }
        let mut pod = json!({"metadata": {"name": name, "namespace": self.of(&["n", "m"]), "uid": name,
                "labels": {"app": self.of(&["x", "y", "z"])}},
            "spec": {"priority": self.below(3), "containers": [container]},
            "status": {"startTime": format!("2026-01-01T00:00:{:02}Z", self.below(60))}});
        if self.one_in(3) {
            pod["metadata"]["labels"]["tier"] = json!("t");
        }
        if self.one_in(9) {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        }
        let spec = &mut pod["spec"];
        if self.one_in(2) {
            spec["tolerations"] = json!([match self.below(4) {
                0 => json!({"operator": "Exists"}),
                1 =>
                    json!({"key": "k", "operator": "Exists", "effect": self.of(&["NoSchedule", "NoExecute"])}),
                _ => json!({"key": self.of(&["k", "l"]), "value": self.of(&["v", "w"])}),
            }]);
        }
        if self.one_in(8) {
            spec["nodeSelector"] = json!({"zone": self.of(&["a", "b"])});
        }
        if self.one_in(5) {
            spec["affinity"]["nodeAffinity"] = self.node_affinity();
        }
        for kind in ["podAffinity", "podAntiAffinity"] {
            if self.one_in(4) {
                let terms: Vec<Value> = (0..=self.below(2)).map(|_| self.term()).collect();
                spec["affinity"][kind] = json!({"requiredDuringSchedulingIgnoredDuringExecution": terms});
            }
        }
        if self.one_in(3) {
            spec["topologySpreadConstraints"] = (0..=self.below(2)).map(|_| self.spread()).collect();
        }
        if self.one_in(3) {
            let claims = (0..=self.below(2)).map(|i| {
                json!({"name": format!("v{i}"), "persistentVolumeClaim": {"claimName": format!("c{}", self.below(5))}})
            });
            spec["volumes"] = claims.collect();
        }
        pod
    }

    fn spread(&mut self) -> Value {
        let mut spread = json!({"maxSkew": 1 + self.below(2), "topologyKey": self.of(&["host", "zone"]),
            "whenUnsatisfiable": self.of(&["DoNotSchedule", "DoNotSchedule", "ScheduleAnyway"]),
            "labelSelector": self.selector()});
        if self.one_in(4) && spread["whenUnsatisfiable"] == "DoNotSchedule" {
            spread["minDomains"] = json!(1 + self.below(3));
        }
        if self.one_in(3) {
            spread["nodeTaintsPolicy"] = json!(self.of(&["Honor", "Ignore"]));
            spread["nodeAffinityPolicy"] = json!(self.of(&["Honor", "Ignore"]));
        }
        spread
    }

    /// Of claims that are bound when their pod has a node.
    pub fn class() -> Value {
        json!({"metadata": {"name": "late"}, "provisioner": "d.io", "volumeBindingMode": "WaitForFirstConsumer",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]}]})
    }

    /// A claim `c<i>` of a namespace, and its volume: the one that it is bound to, or the one that will be made for it.
    pub fn claim(&mut self, namespace: &str, i: u64) -> (Value, Value) {
        let volume = format!("{namespace}-v{i}");
        let mut claim = json!({"metadata": {"namespace": namespace, "name": format!("c{i}"), "uid": format!("{namespace}{i}"),
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume, "accessModes": [self.of(&["ReadWriteOnce", "ReadWriteOnce", "ReadWriteOncePod"])]}});
        let mut made = json!({"metadata": {"name": volume, "labels": {}}, "spec": {
            "csi": {"driver": self.of(&["d.io", "e.io"]), "volumeHandle": volume}}, "status": {"phase": "Bound"}});
        if self.one_in(3) {
            made["metadata"]["labels"]["topology.kubernetes.io/zone"] =
                json!(self.of(&["z1", "z2", "z1__z2"]));
        }
        if self.one_in(3) {
            made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] = json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": [self.of(&["a", "b"]), "c"]}]}]);
        }
        if self.one_in(4) {
            let spec = claim["spec"].as_object_mut().unwrap();
            spec.remove("volumeName");
            spec.insert("storageClassName".into(), json!("late"));
            let topology = json!([{"key": "zone", "operator": "In", "values": ["a", "b"]}]);
            made = json!({"metadata": {"name": volume}, "spec": {"csi": {"driver": "d.io", "volumeHandle": volume},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": topology}]}}}});
        }
        (claim, made)
    }

    /// How many volumes a node takes.
    pub fn limits(&mut self, node: &str) -> Value {
        json!({"metadata": {"name": node}, "spec": {"drivers": [{"name": "d.io", "allocatable": {"count": self.below(3)}}]}})
    }
}

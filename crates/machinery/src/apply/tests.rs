//! Golden cases of ownership as upstream shows it, and properties of sets and of apply.

use super::set::{self, Node};
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn row(api_version: &str, plural: &str) -> Option<&'static ResourceRow> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    k8s_schema::resource(group, version, plural)
}

/// An object under the hands of several managers.
struct Bench {
    plural: &'static str,
    version: &'static str,
    clock: u32,
    object: Option<Value>,
}

impl Bench {
    fn new(version: &'static str, plural: &'static str) -> Self {
        Bench { plural, version, clock: 0, object: None }
    }

    fn writer<T>(
        &mut self,
        manager: &str,
        subresource: &str,
        act: impl FnOnce(&Writer<'_>, Option<Value>) -> T,
    ) -> T {
        self.clock += 1;
        let plural = self.plural;
        act(
            &Writer {
                manager,
                subresource,
                now: &format!("2026-01-01T00:{:02}:{:02}Z", self.clock / 60, self.clock % 60),
                row: row(self.version, plural).unwrap(),
                sibling: &|version| row(version, plural),
            },
            self.object.clone(),
        )
    }

    fn update(&mut self, manager: &str, edit: impl FnOnce(&mut Value)) -> &mut Self {
        self.update_part(manager, "", edit)
    }

    fn update_part(&mut self, manager: &str, part: &str, edit: impl FnOnce(&mut Value)) -> &mut Self {
        let object = self.writer(manager, part, |writer, old| {
            let mut new = old.clone().unwrap_or_else(|| json!({"metadata": {"name": "web"}}));
            edit(&mut new);
            if let Some(list) = update(writer, old.as_ref(), &mut new) {
                new["metadata"]["managedFields"] = list;
            }
            new
        });
        self.object = Some(object);
        self
    }

    fn apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<&mut Self, ApplyError> {
        let object = self.writer(manager, "", |writer, old| apply(writer, old, config, force))?;
        self.object = Some(object);
        Ok(self)
    }

    /// `manager operation version[/subresource] fields` of every entry.
    fn owners(&self) -> Vec<String> {
        let list = self.object.as_ref().unwrap()["metadata"]["managedFields"].clone();
        let entries = managers::read(list).unwrap();
        let text = |e: &managers::Entry| {
            let operation = if e.applies { "Apply" } else { "Update" };
            let door = if e.subresource.is_empty() { String::new() } else { format!("/{}", e.subresource) };
            format!("{} {operation} {}{door} {}", e.manager, e.api_version, Value::Object(e.fields.clone()))
        };
        entries.iter().map(text).collect()
    }

    fn at(&self, pointer: &str) -> Value {
        self.object.as_ref().unwrap().pointer(pointer).cloned().unwrap_or_default()
    }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn containers(list: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": list}}}))
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": data})
}

fn maps() -> Bench {
    Bench::new("v1", "configmaps")
}

/// What kubectl create of a Deployment leaves, as any cluster shows it.
#[test]
fn a_created_deployment() {
    let mut b = Bench::new("apps/v1", "deployments");
    b.update("kubectl-create", |d| {
        *d = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": 1, "labels": {"app": "web"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"dnsPolicy": "ClusterFirst", "securityContext": {},
                    "containers": [{"name": "web", "image": "nginx", "resources": {},
                        "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}, "status": {}});
    });
    let want = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {"f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                        "f:resources": {}}},
                    "f:dnsPolicy": {}, "f:securityContext": {}}}}});
    assert_eq!(b.owners(), [format!("kubectl-create Update apps/v1 {want}")]);
    let entry = b.at("/metadata/managedFields/0");
    assert_eq!((&entry["fieldsType"], &entry["time"]), (&json!("FieldsV1"), &json!("2026-01-01T00:00:01Z")));
    b.update_part("kube-controller-manager", "status", |d| {
        d["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]})
    });
    let owners = b.owners();
    let status = r#"{"f:status":{"f:conditions":{".":{},"k:{\"type\":\"Available\"}":{".":{},"f:status":{},"f:type":{}}},"f:replicas":{}}}"#;
    assert_eq!(owners[1], format!("kube-controller-manager Update apps/v1/status {status}"));
    b.update("scaler", |d| d["spec"]["replicas"] = json!(3));
    assert!(
        !b.owners()[0].contains("f:replicas")
            && b.owners()[2] == r#"scaler Update apps/v1 {"f:spec":{"f:replicas":{}}}"#
    );
}

#[test]
fn applied_sets_hold_what_was_said() {
    let mut b = Bench::new("apps/v1", "deployments");
    let config = containers(
        json!([{"name": "a", "image": "i", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}], "args": ["x"]}]),
    );
    b.apply("me", &config, false).unwrap();
    let want = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:args": {}, "f:image": {}, "f:name": {},
        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}},
            "k:{\"containerPort\":80,\"protocol\":\"UDP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}});
    assert_eq!(b.owners(), [format!("me Apply apps/v1 {want}")]);
    let before = b.object.clone();
    b.apply("me", &config, false).unwrap();
    assert_eq!(b.object, before, "applying again changes nothing, not even a time");
}

#[test]
fn conflicts_name_owner_and_path() {
    let mut b = Bench::new("apps/v1", "deployments");
    b.update("kubectl-client-side-apply", |d| {
        *d = deployment(
            json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}),
        )
    });
    let error = b.apply("kubectl", &deployment(json!({"replicas": 3})), false).err().unwrap();
    let status = ApiError::from(error);
    assert_eq!((status.code, status.reason), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    assert_eq!(status.causes[0].reason, "FieldManagerConflict");
    assert_eq!(status.causes[0].message, "conflict with \"kubectl-client-side-apply\" using apps/v1");
    assert_eq!(status.causes[0].field, ".spec.replicas");
    let both = deployment(
        json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "a", "image": "j"}]}}}),
    );
    let error = b.apply("me", &both, false).err().unwrap();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"a\"].image"
    );
    b.apply("me", &both, true).unwrap();
    assert_eq!(b.at("/spec/replicas"), 3);
    assert_eq!(b.owners().len(), 2);
    assert!(!b.owners()[1].contains("replicas") && !b.owners()[1].contains("f:image"), "{:?}", b.owners());
    b.apply("other", &deployment(json!({"replicas": 3})), false).unwrap();
    let error = b.apply("me", &deployment(json!({"replicas": 4})), false).err().unwrap();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"other\": .spec.replicas");
}

#[test]
fn what_is_no_longer_applied_goes_unless_somebody_else_owns_it() {
    let mut b = maps();
    b.apply("a", &map(json!({"x": "1", "y": "1", "z": "1"})), false).unwrap();
    b.apply("b", &map(json!({"y": "1"})), false).unwrap();
    b.update("u", |m| m["data"]["z"] = json!("2"));
    b.update("u", |m| m["data"]["free"] = json!("3"));
    let nothing = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}});
    b.apply("a", &nothing, false).unwrap();
    assert_eq!(b.at("/data"), json!({"y": "1", "z": "2", "free": "3"}));
    assert!(b.owners().iter().all(|o| !o.starts_with("a ")), "{:?}", b.owners());
    b.apply("b", &map(json!({"w": "1"})), false).unwrap();
    assert_eq!(b.at("/data"), json!({"w": "1", "z": "2", "free": "3"}));
}

#[test]
fn items_and_structures_go_as_a_whole() {
    let mut b = Bench::new("apps/v1", "deployments");
    let two = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i", "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5}}]);
    b.apply("me", &containers(two), false).unwrap();
    b.update("defaults", |d| {
        d["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always")
    });
    b.apply("me", &containers(json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}])), false)
        .unwrap();
    assert_eq!(
        b.at("/spec/template/spec/containers/1"),
        json!({"name": "b", "image": "i", "imagePullPolicy": "Always"})
    );
    b.apply("me", &containers(json!([{"name": "a", "image": "i"}])), false).unwrap();
    assert_eq!(b.at("/spec/template/spec/containers"), json!([{"name": "a", "image": "i"}]));
}

#[test]
fn merged_lists_keep_the_order_of_both() {
    let names = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
    };
    let list = |text: &str| text.chars().map(|c| json!({"name": c.to_string()})).collect::<Value>();
    for (live, config, want) in [
        ("abc", "b", "abc"),
        ("abc", "cb", "acb"),
        ("abc", "xb", "axbc"),
        ("abc", "ax", "abcx"),
        ("", "ab", "ab"),
        ("abcd", "dxa", "bcdxa"),
    ] {
        let mut b = Bench::new("apps/v1", "deployments");
        b.update("u", |d| *d = containers(list(live)));
        b.apply("me", &containers(list(config)), true).unwrap();
        let got = names(b.at("/spec/template/spec/containers")).concat();
        assert_eq!(got, want, "{live} with {config}");
    }
}

#[test]
fn sets_are_united_and_atomic_lists_replaced() {
    let meta = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "finalizers": finalizers}});
    let mut b = maps();
    b.apply("a", &meta(json!(["x/a"])), false).unwrap();
    b.apply("b", &meta(json!(["x/b"])), false).unwrap();
    assert_eq!(b.at("/metadata/finalizers"), json!(["x/a", "x/b"]));
    assert_eq!(b.owners()[0], r#"a Apply v1 {"f:metadata":{"f:finalizers":{"v:\"x/a\"":{}}}}"#);
    b.apply("a", &meta(json!([])), false).unwrap();
    assert_eq!(b.at("/metadata/finalizers"), json!(["x/b"]));
    let mut b = Bench::new("apps/v1", "deployments");
    let args = |args: Value| containers(json!([{"name": "a", "args": args}]));
    b.apply("a", &args(json!(["x", "y"])), false).unwrap();
    let error = b.apply("b", &args(json!(["z"])), false).err().unwrap();
    assert!(
        error.to_string().ends_with("conflict with \"a\": .spec.template.spec.containers[name=\"a\"].args")
    );
    b.apply("b", &args(json!(["z"])), true).unwrap();
    assert_eq!(b.at("/spec/template/spec/containers/0/args"), json!(["z"]));
}

#[test]
fn the_first_apply_finds_an_owner_for_what_was_there() {
    let mut b = maps();
    b.object = Some(map(json!({"x": "1"})));
    b.update("nobody", |m| m["data"]["y"] = json!("2"));
    assert!(b.owners().is_empty(), "an object without managers goes without");
    let error = b.apply("me", &map(json!({"x": "2"})), false).err().unwrap();
    assert!(error.to_string().contains("conflict with \"before-first-apply\" using v1: .data.x"), "{error}");
    b.apply("me", &map(json!({"x": "1"})), false).unwrap();
    assert_eq!(
        b.owners(),
        [
            r#"me Apply v1 {"f:data":{"f:x":{}}}"#,
            r#"before-first-apply Update v1 {"f:data":{".":{},"f:x":{},"f:y":{}}}"#
        ]
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client_side() {
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let old = map(json!({"x": "1", "y": "1"}));
    let live = || {
        let mut b = maps();
        b.update("kubectl-client-side-apply", |m| {
            *m = old.clone();
            m["metadata"]["annotations"] = json!({annotation: old.to_string()});
        });
        b
    };
    let new = map(json!({"x": "2"}));
    live().apply("other", &new, false).err().unwrap();
    let mut b = live();
    b.apply("kubectl", &new, false).unwrap();
    assert_eq!(b.at("/data/x"), "2");
    let text = b.at("/metadata/annotations")[annotation].as_str().unwrap().to_string();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), new);
    let mut b = live();
    b.update("editor", |m| m["data"]["x"] = json!("3"));
    let error = b.apply("kubectl", &new, false).err().unwrap();
    assert!(error.to_string().contains("conflict with \"editor\""), "{error}");
}

#[test]
fn bad_configurations() {
    let mut b = Bench::new("apps/v1", "deployments");
    let mut fail = |config: &Value| ApiError::from(b.apply("me", config, false).err().unwrap());
    for (config, words) in [
        (json!({"kind": "Deployment"}), "invalid object type: /, Kind=Deployment"),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "invalid object type: /v1, Kind=Pod"),
        (
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
    ] {
        let status = fail(&config);
        assert_eq!((status.code, status.message.as_str()), (400, words));
    }
    for (config, words) in [
        (deployment(json!({"foo": 1})), ".spec.foo: field not declared in schema"),
        (deployment(json!({"replicas": "x"})), ".spec.replicas: expected numeric (int or float), got \"x\""),
        (
            containers(json!([{"image": "x"}])),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)",
        ),
        (
            containers(json!([{"name": "x"}, {"name": "x"}])),
            ".spec.template.spec.containers: duplicate entries for key [name=\"x\"]",
        ),
    ] {
        let status = fail(&config);
        assert_eq!(status.code, 500);
        assert_eq!(
            status.message,
            format!("failed to create typed patch object (/web; apps/v1, Kind=Deployment): {words}")
        );
    }
}

#[test]
fn clients_may_send_reset_and_mend_the_list() {
    let mut b = maps();
    b.update("a", |m| *m = map(json!({"x": "1"})));
    let list = b.at("/metadata/managedFields");
    for harmless in [
        Value::Null,
        json!([]),
        json!([{"manager": "x"}]),
        json!([{"operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"x": 1}}]),
    ] {
        b.update("b", |m| m["metadata"]["managedFields"] = harmless);
        assert_eq!(b.at("/metadata/managedFields"), list);
    }
    b.update_part("b", "status", |m| m["metadata"]["managedFields"] = json!([{}]));
    assert_eq!(b.at("/metadata/managedFields"), list, "not through a subresource");
    b.update("b", |m| {
        m["metadata"]["managedFields"][0]["fieldsV1"] =
            json!({"f:data": {"k:{\"b\": 1, \"a\":2}": {".": {}}}})
    });
    assert_eq!(b.owners(), [r#"a Update v1 {"f:data":{"k:{\"a\":2,\"b\":1}":{}}}"#]);
    b.update("b", |m| m["metadata"]["managedFields"] = json!([{}]));
    assert_eq!(b.at("/metadata/managedFields"), Value::Null);
}

#[test]
fn old_updaters_share_an_entry() {
    let mut b = maps();
    b.update("u00", |m| *m = map(json!({"k00": "1"})));
    for n in 1..14 {
        b.update(&format!("u{n:02}"), |m| m["data"][format!("k{n:02}")] = json!("1"));
    }
    let owners = b.owners();
    assert_eq!(owners.len(), managers::UPDATERS_MAX);
    assert_eq!(
        owners[0],
        r#"ancient-changes Update v1 {"f:data":{".":{},"f:k00":{},"f:k01":{},"f:k02":{},"f:k03":{},"f:k04":{}}}"#
    );
    assert!(owners[9].starts_with("u13 Update"));
}

#[test]
fn other_versions_are_compared_in_their_own() {
    let mut b = Bench::new("autoscaling/v1", "horizontalpodautoscalers");
    let v1 = |percent: u32| {
        json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": percent}})
    };
    b.apply("old", &v1(50), false).unwrap();
    let stored = |b: &mut Bench, from: &str, to: &'static str| {
        let object = b.object.as_mut().unwrap();
        crate::convert::to_storage(row(from, b.plural).unwrap(), object);
        crate::convert::from_storage(row(to, b.plural).unwrap(), object);
        b.version = to;
    };
    stored(&mut b, "autoscaling/v1", "autoscaling/v2");
    let metric = |percent: u32| json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]);
    let v2 = |metrics: Value| json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}, "spec": {"metrics": metrics}});
    let error = b.apply("new", &v2(metric(70)), false).err().unwrap();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"old\": .spec.targetCPUUtilizationPercentage"
    );
    b.apply("new", &v2(metric(70)), true).unwrap();
    assert_eq!(b.owners()[0], r#"old Apply autoscaling/v1 {"f:spec":{"f:maxReplicas":{}}}"#);
    b.object.as_mut().unwrap()["metadata"]["managedFields"][0]["apiVersion"] = json!("autoscaling/v2beta1");
    b.update("u", |h| h["spec"]["minReplicas"] = json!(1));
    assert!(b.owners().iter().all(|o| !o.starts_with("old")), "versions that are not served are forgotten");
}

/// A set as the list of its members: the dumb twin.
fn members(set: &Node) -> BTreeSet<Vec<String>> {
    fn walk(set: &Node, path: &mut Vec<String>, all: &mut BTreeSet<Vec<String>>) {
        for (key, node) in set::children(set) {
            path.push(key.clone());
            if set::is_member(node) {
                all.insert(path.clone());
            }
            walk(node, path, all);
            path.pop();
        }
    }
    let mut all = BTreeSet::new();
    walk(set, &mut Vec::new(), &mut all);
    all
}

fn any_set() -> impl Strategy<Value = Node> {
    let path = proptest::collection::vec(prop_oneof![Just("f:a"), Just("f:b"), Just("k:{\"a\":1}")], 1..4);
    proptest::collection::btree_set(path, 0..8).prop_map(|paths| {
        let mut set = Node::new();
        for path in paths {
            let one = path
                .iter()
                .rev()
                .fold(Node::new(), |below, key| Node::from_iter([(key.to_string(), below.into())]));
            set::unite(&mut set, &one);
        }
        set
    })
}

fn any_config() -> impl Strategy<Value = Value> {
    let items = proptest::collection::btree_map("[ab]", ("[ij]", proptest::option::of(1..3)), 0..3);
    (proptest::option::of(0..3), items, proptest::collection::btree_map("[xy]", "[12]", 0..3)).prop_map(
        |(replicas, items, labels)| {
            let list: Vec<Value> = items
                .into_iter()
                .map(|(name, (image, port))| match port {
                    Some(port) => json!({"name": name, "image": image, "ports": [{"containerPort": port}]}),
                    None => json!({"name": name, "image": image}),
                })
                .collect();
            let mut config = containers(json!(list));
            config["metadata"]["labels"] = json!(labels);
            if let Some(replicas) = replicas {
                config["spec"]["replicas"] = json!(replicas);
            }
            config
        },
    )
}

proptest! {
    #[test]
    fn sets_are_what_their_members_are(a in any_set(), b in any_set()) {
        let (ma, mb) = (members(&a), members(&b));
        let mut union = a.clone();
        set::unite(&mut union, &b);
        prop_assert_eq!(members(&union), &ma | &mb);
        let mut less = a.clone();
        set::subtract(&mut less, &b);
        prop_assert_eq!(members(&less), &ma - &mb);
        prop_assert_eq!(members(&set::intersection(&a, &b)), &ma & &mb);
        let mut deep = a.clone();
        set::subtract_deep(&mut deep, &b);
        let want: BTreeSet<_> = ma.iter().filter(|p| !(1..=p.len()).any(|n| mb.contains(&p[..n]))).cloned().collect();
        prop_assert_eq!(members(&deep), want);
        for set in [union, less, deep] {
            prop_assert_eq!(set::parse(&set), Some(set.clone()));
            prop_assert_eq!(set::paths(&set).len(), members(&set).len());
        }
    }

    #[test]
    fn applies_settle(a in any_config(), b in any_config()) {
        let mut bench = Bench::new("apps/v1", "deployments");
        bench.apply("a", &a, true).unwrap();
        bench.apply("b", &b, true).unwrap();
        let once = bench.object.clone();
        bench.apply("b", &b, false).unwrap();
        prop_assert_eq!(&bench.object, &once);
        // Of what b wants nothing is lost, and a alone finds its own wish again.
        bench.apply("a", &a, true).unwrap();
        let empty = deployment(json!({}));
        bench.apply("b", &empty, false).unwrap();
        let mut alone = Bench::new("apps/v1", "deployments");
        alone.apply("a", &a, false).unwrap();
        for pointer in ["/spec/replicas", "/metadata/labels"] {
            prop_assert_eq!(bench.at(pointer), match alone.at(pointer) {
                Value::Object(m) if m.is_empty() => bench.at(pointer),
                other => other,
            });
        }
    }

    #[test]
    fn junk_never_panics(body in crate::testing::any_json(), list in crate::testing::any_json()) {
        let mut b = Bench::new("apps/v1", "deployments");
        let mut config = deployment(body.clone());
        let _ = b.apply("a", &config, false);
        config["metadata"] = json!({"managedFields": list, "labels": body});
        b.update("u", |d| *d = config.clone());
        let _ = b.apply("a", &deployment(json!({"replicas": 1})), true);
    }
}

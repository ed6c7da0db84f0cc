//! Tests over the whole table: creates, updates, deletes, selectors and Tables of every kind.

use super::strategy::{self, Deletion, Part};
use super::*;
use crate::selector::FieldSelector;
use crate::testing::any_json;
use crate::{table, time, walk};
use proptest::prelude::*;
use serde_json::json;

fn row(group: &str, plural: &str) -> &'static ResourceRow {
    k8s_schema::resources()
        .iter()
        .find(|r| r.gvr.group == group && r.gvr.resource == plural)
        .expect("a served resource")
}

fn now() -> jiff::Timestamp {
    time::parse("2026-01-01T00:00:00Z").unwrap()
}

/// The whole way of a create, as the API server goes it.
fn create(row: &ResourceRow, mut obj: Value) -> Result<Value, crate::status::ApiError> {
    walk::decode(&mut obj, row.def.get(), walk::Unknown::Error, &Default::default())
        .map_err(|e| e.of_body(&row.kind, &row.gvr.version))?;
    strategy::defaults(row, &mut obj);
    if let Some(metadata) = get::child(&mut obj, "metadata") {
        get::set(metadata, "uid", "u-1");
        get::set(metadata, "creationTimestamp", "2026-01-01T00:00:00Z");
        if row.namespaced {
            get::default(metadata, "namespace", "default");
        }
    }
    strategy::prepare_create(row, &mut obj);
    strategy::validate_create(row, &obj)?;
    Ok(obj)
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "nginx:1.7.9", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running"}})
}

#[test]
fn every_row_belongs_to_a_served_resource_once() {
    let mut seen = std::collections::BTreeSet::new();
    for b in ROWS.iter().flat_map(|f| f.iter()) {
        let served = k8s_schema::resources();
        let known = served.iter().any(|r| *r.storage_group == *b.group && r.gvr.resource == b.resource);
        assert!(known, "{}.{} is not served", b.resource, b.group);
        assert!(seen.insert((b.group, b.resource)), "{}.{} twice", b.resource, b.group);
        assert!(b.columns.iter().any(|c| c.format == "name"), "{} has no name column", b.resource);
    }
}

/// Every built-in kind has a row that checks it, and a new one needs its own.
#[test]
fn nothing_is_stored_unchecked() {
    let mut actual = stored_not_validated();
    // Gantry's own kinds are written by the AWS front end, which checks them by AWS's rules.
    actual.retain(|name| !name.ends_with(".gantry.dev"));
    assert_eq!(actual, Vec::<String>::new());
}

#[test]
fn a_pod_is_created() {
    let p = create(row("", "pods"), pod()).unwrap();
    assert_eq!(p["metadata"]["generation"], 1);
    assert_eq!(p["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let mut bad = pod();
    bad["metadata"] = json!({"name": "P", "labels": {"a b": "c"}, "annotations": {"x": "y".repeat(300_000)}});
    bad["spec"]["containers"][0]["image"] = json!("");
    let error = create(row("", "pods"), bad).unwrap_err();
    let fields: Vec<&str> = error.causes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!(error.code, 422);
    assert_eq!(
        fields,
        ["metadata.name", "metadata.labels", "metadata.annotations", "spec.containers[0].image"]
    );
}

#[test]
fn names_and_namespaces() {
    for (group, plural, metadata, field) in [
        ("", "pods", json!({}), "metadata.name"),
        ("", "services", json!({"name": "0a"}), "metadata.name"),
        ("", "namespaces", json!({"name": "a.b"}), "metadata.name"),
        ("", "namespaces", json!({"name": "a", "namespace": "b"}), "metadata.namespace"),
        ("", "configmaps", json!({"name": "a", "namespace": "B"}), "metadata.namespace"),
        ("", "configmaps", json!({"generateName": "A-"}), "metadata.generateName"),
        ("", "configmaps", json!({"name": "a", "finalizers": ["x"]}), "metadata.finalizers"),
        (
            "",
            "configmaps",
            json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]}),
            "metadata.ownerReferences.uid",
        ),
    ] {
        let error = create(
            row(group, plural),
            json!({"metadata": metadata, "spec": {"ports": [{"port": 1}]}})
                .as_object()
                .map(|o| {
                    Value::Object(
                        o.iter()
                            .filter(|(k, _)| *k == "metadata" || plural == "services")
                            .map(|(k, v)| (k.clone(), v.clone()))
                            .collect(),
                    )
                })
                .unwrap(),
        );
        assert_eq!(error.unwrap_err().causes[0].field, field, "{plural} {metadata}");
    }
    create(row("rbac.authorization.k8s.io", "clusterroles"), json!({"metadata": {"name": "system:x"}}))
        .unwrap();
}

#[test]
fn updates_keep_what_is_not_theirs() {
    let r = row("apps", "deployments");
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let old = create(r, json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}})).unwrap();
    let mut new = old.clone();
    new["metadata"] =
        json!({"name": "d", "namespace": "default", "creationTimestamp": "2020-01-01T00:00:00Z"});
    new["status"] = json!({"replicas": 7});
    strategy::prepare_update(r, &mut new, &old, Part::Main);
    assert_eq!(new, old);
    new["spec"]["replicas"] = json!(3);
    strategy::prepare_update(r, &mut new, &old, Part::Main);
    assert_eq!(new["metadata"]["generation"], 2);
    strategy::validate_update(r, &new, &old, Part::Main).unwrap();
    let mut status = old.clone();
    status["spec"]["replicas"] = json!(9);
    status["status"] = json!({"replicas": 1});
    strategy::prepare_update(r, &mut status, &old, Part::Status);
    assert_eq!(
        (&status["spec"], &status["status"]["replicas"], &status["metadata"]["generation"]),
        (&old["spec"], &json!(1), &json!(1))
    );
    new["spec"]["selector"]["matchLabels"] = json!({"a": "c"});
    new["metadata"]["uid"] = json!("other");
    let error = strategy::validate_update(r, &new, &old, Part::Main).unwrap_err();
    let fields: Vec<&str> = error.causes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!(fields, ["metadata.uid", "spec.template.metadata.labels", "spec.selector"]);
}

#[test]
fn pods_may_change_little() {
    let r = row("", "pods");
    let old = create(r, pod()).unwrap();
    let check = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        strategy::validate_update(r, &new, &old, Part::Main).err().map(|e| e.causes[0].field.clone())
    };
    assert_eq!(check(&|p| p["spec"]["containers"][0]["image"] = json!("x")), None);
    assert_eq!(check(&|p| p["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}])), None);
    assert_eq!(check(&|p| p["spec"]["activeDeadlineSeconds"] = json!(5)), None);
    assert_eq!(check(&|p| p["spec"]["hostname"] = json!("x")), Some("spec".into()));
    assert_eq!(check(&|p| p["spec"]["containers"] = json!([])), Some("spec.containers".into()));
}

#[test]
fn deletion_with_grace() {
    let r = row("", "pods");
    let mut p = create(r, pod()).unwrap();
    assert_eq!(strategy::begin_deletion(r, &mut p.clone(), None, now()), Deletion::Now);
    p["spec"]["nodeName"] = json!("n");
    assert_eq!(strategy::begin_deletion(r, &mut p, None, now()), Deletion::Graceful);
    assert_eq!(p["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
    assert_eq!(p["metadata"]["generation"], 2);
    assert_eq!(strategy::begin_deletion(r, &mut p, Some(60), now()), Deletion::Pending);
    assert_eq!(strategy::begin_deletion(r, &mut p, Some(5), now()), Deletion::Graceful);
    assert_eq!(p["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
    assert_eq!(strategy::begin_deletion(r, &mut p, Some(0), now()), Deletion::Now);
    let mut c = json!({"metadata": {"name": "c"}});
    assert_eq!(strategy::begin_deletion(row("", "configmaps"), &mut c, Some(30), now()), Deletion::Now);
    assert_eq!(c, json!({"metadata": {"name": "c"}}));
}

#[test]
fn field_selectors() {
    let r = row("", "pods");
    let p = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {"podIP": "1.2.3.4"}});
    let selects = |text: &str| {
        let s = FieldSelector::parse(text).unwrap();
        strategy::check_field_selector(r, &s).map(|()| s.matches(|label| field_value(r, &p, label)))
    };
    assert!(selects("spec.nodeName=x,metadata.name=p,spec.hostNetwork=false,status.podIP=1.2.3.4").unwrap());
    assert!(!selects("spec.nodeName!=x").unwrap());
    assert_eq!(selects("spec.foo=x").unwrap_err().message, "field label not supported: spec.foo");
    let s = FieldSelector::parse("spec.foo=x").unwrap();
    let error = strategy::check_field_selector(row("", "configmaps"), &s).unwrap_err();
    assert_eq!(
        error.message,
        "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
}

#[test]
fn tables() {
    let r = row("", "services");
    let s = json!({"metadata": {"name": "s", "creationTimestamp": "2025-12-31T23:54:48Z"}, "spec": {"type": "LoadBalancer",
        "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}], "selector": {"a": "b"}}});
    let rendered = table::table_row(r, &s, now(), table::Include::None, "meta.k8s.io/v1");
    assert_eq!(
        rendered,
        json!({"cells": ["s", "LoadBalancer", "10.0.0.1", "<pending>", "80:30000/TCP", "5m12s", "a=b"]})
    );
    assert_eq!(table::columns(r)[6]["priority"], 1);
}

type Manifest = (&'static str, &'static str, Value);

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn core_manifests() -> Vec<Manifest> {
    let template = template();
    vec![
        ("", "namespaces", json!({})),
        ("", "nodes", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})),
        ("", "configmaps", json!({"data": {"a": "b"}})),
        ("", "secrets", json!({"data": {"a": "Yg=="}})),
        ("", "serviceaccounts", json!({})),
        ("", "endpoints", json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]})),
        ("", "events", json!({"involvedObject": {"namespace": "default"}})),
        (
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "",
            "persistentvolumes",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}}),
        ),
        ("", "replicationcontrollers", json!({"spec": {"template": template}})),
        ("", "resourcequotas", json!({"spec": {"hard": {"pods": "10"}}})),
    ]
}

fn group_manifests() -> Vec<Manifest> {
    let template = template();
    let once = json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"a": "b"}});
    vec![
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 1}]}),
        ),
        ("apps", "replicasets", json!({"spec": {"selector": selector, "template": template}})),
        (
            "apps",
            "statefulsets",
            json!({"spec": {"serviceName": "x", "selector": selector, "template": template}}),
        ),
        ("apps", "daemonsets", json!({"spec": {"selector": selector, "template": template}})),
        ("batch", "jobs", json!({"spec": {"template": once}})),
        (
            "batch",
            "cronjobs",
            json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": once}}}}),
        ),
        (
            "coordination.k8s.io",
            "leases",
            json!({"spec": {"holderIdentity": "x", "leaseDurationSeconds": 40}}),
        ),
        (
            "networking.k8s.io",
            "ingresses",
            json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ),
        (
            "networking.k8s.io",
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}),
        ),
        ("policy", "poddisruptionbudgets", json!({"spec": {"minAvailable": "50%", "selector": selector}})),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x"}}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "x"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        ("scheduling.k8s.io", "priorityclasses", json!({"value": 5})),
        ("node.k8s.io", "runtimeclasses", json!({"handler": "crun"})),
        ("storage.k8s.io", "storageclasses", json!({"provisioner": "x.io/y"})),
    ]
}

/// Good bodies of ordinary kinds, whole: they must pass.
#[test]
fn ordinary_manifests_pass() {
    for (group, plural, body) in core_manifests().into_iter().chain(group_manifests()) {
        let mut body = body;
        body["metadata"] = json!({"name": "x"});
        let made = create(row(group, plural), body).unwrap_or_else(|e| panic!("{plural}: {}", e.message));
        let mut again = made.clone();
        strategy::defaults(row(group, plural), &mut again);
        assert_eq!(again, made, "{plural}: defaults are idempotent");
    }
}

/// One good body of each kind of the API machinery itself, of storage drivers and of devices: group, plural, name.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rarer_manifests() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let rule =
        json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
    let call = json!({"service": {"name": "s", "namespace": "n"}});
    let hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": call, "rules": [rule]});
    let constraints = json!({"resourceRules": [rule]});
    let claim = json!({"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "gpu"}}]}});
    let admission = "admissionregistration.k8s.io";
    vec![
        (admission, "mutatingwebhookconfigurations", "x", json!({"webhooks": [hook]})),
        (admission, "validatingwebhookconfigurations", "x", json!({"webhooks": [hook]})),
        (
            admission,
            "validatingadmissionpolicies",
            "x",
            json!({"spec": {"matchConstraints": constraints, "validations": [{"expression": "true"}]}}),
        ),
        (
            admission,
            "validatingadmissionpolicybindings",
            "x",
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"], "matchResources": {}}}),
        ),
        (
            admission,
            "mutatingadmissionpolicies",
            "x",
            json!({"spec": {"matchConstraints": constraints, "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]}}),
        ),
        (admission, "mutatingadmissionpolicybindings", "x", json!({"spec": {"policyName": "p"}})),
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "foos.x.io",
            json!({"spec": {"group": "x.io", "scope": "Cluster",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        ),
        (
            "apiregistration.k8s.io",
            "apiservices",
            "v1.x.io",
            json!({"spec": {"group": "x.io", "version": "v1",
            "groupPriorityMinimum": 10, "versionPriority": 10, "service": {"name": "s", "namespace": "n"}}}),
        ),
        (
            "certificates.k8s.io",
            "certificatesigningrequests",
            "x",
            json!({"spec": {"request": "eA==", "signerName": "x.io/a", "usages": ["client auth"]}}),
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "flowschemas",
            "x",
            json!({"spec": {"priorityLevelConfiguration": {"name": "l"}}}),
        ),
        (
            "flowcontrol.apiserver.k8s.io",
            "prioritylevelconfigurations",
            "x",
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}}),
        ),
        (
            "networking.k8s.io",
            "ipaddresses",
            "10.0.0.1",
            json!({"spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}}}),
        ),
        ("networking.k8s.io", "servicecidrs", "x", json!({"spec": {"cidrs": ["10.0.0.0/24"]}})),
        (
            "coordination.k8s.io",
            "leasecandidates",
            "x",
            json!({"spec": {"leaseName": "l", "binaryVersion": "1.36.0", "strategy": "x.io/y"}}),
        ),
        (
            "storagemigration.k8s.io",
            "storageversionmigrations",
            "x",
            json!({"spec": {"resource": {"group": "apps", "resource": "deployments"}}}),
        ),
        ("", "limitranges", "x", json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}})),
        (
            "resource.k8s.io",
            "deviceclasses",
            "x",
            json!({"spec": {"selectors": [{"cel": {"expression": "true"}}]}}),
        ),
        (
            "resource.k8s.io",
            "devicetaintrules",
            "x",
            json!({"spec": {"deviceSelector": {"driver": "x.io", "pool": "a/b"}, "taint": {"key": "k", "effect": "None"}}}),
        ),
        ("resource.k8s.io", "resourceclaims", "x", json!({"spec": claim})),
        ("resource.k8s.io", "resourceclaimtemplates", "x", json!({"spec": {"spec": claim}})),
        (
            "resource.k8s.io",
            "resourceslices",
            "x",
            json!({"spec": {"driver": "x.io", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "allNodes": true}}),
        ),
        ("storage.k8s.io", "csidrivers", "x.io", json!({"spec": {}})),
        ("storage.k8s.io", "csinodes", "x", json!({"spec": {"drivers": [{"name": "x.io", "nodeID": "1"}]}})),
        ("storage.k8s.io", "csistoragecapacities", "x", json!({"storageClassName": "c"})),
        (
            "storage.k8s.io",
            "volumeattachments",
            "x",
            json!({"spec": {"attacher": "x.io", "nodeName": "n", "source": {"persistentVolumeName": "p"}}}),
        ),
        (
            "storage.k8s.io",
            "volumeattributesclasses",
            "x",
            json!({"driverName": "x.io", "parameters": {"a": "b"}}),
        ),
    ]
}

#[test]
fn bodies_of_the_rarer_kinds_pass() {
    for (group, plural, name, mut body) in rarer_manifests() {
        let r = row(group, plural);
        body["metadata"] = json!({"name": name});
        body["apiVersion"] = json!(r.api_version());
        let made = create(r, body).unwrap_or_else(|e| panic!("{plural}: {}", e.message));
        let mut again = made.clone();
        strategy::defaults(r, &mut again);
        assert_eq!(again, made, "{plural}: defaults are idempotent");
        let mut same = made.clone();
        strategy::prepare_update(r, &mut same, &made, Part::Main);
        assert_eq!(same, made, "{plural}: an update by itself changes nothing");
        strategy::validate_update(r, &same, &made, Part::Main)
            .unwrap_or_else(|e| panic!("{plural}: {}", e.message));
        let shown = table::table_row(r, &made, now(), table::Include::None, "v1");
        assert_eq!(shown["cells"][0], name, "{plural}");
    }
}

/// What kubectl 1.32 itself makes (`kubectl create … --dry-run=client -o json`): strict, complete, accepted.
#[test]
fn what_kubectl_makes_passes() {
    let lines = include_str!("../../testdata/kubectl-create.jsonl").lines();
    let mut count = 0;
    for line in lines {
        let body = crate::body::json(line.as_bytes()).unwrap().value;
        let (api, kind) = (get::text(&body, "/apiVersion"), get::text(&body, "/kind"));
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        let r = k8s_schema::resource_for_kind(group, version, kind).expect("a served kind");
        create(r, body.clone()).unwrap_or_else(|e| panic!("{kind}: {}", e.message));
        count += 1;
    }
    assert!(count >= 20, "the fixture was cut short: {count}");
}

proptest! {
    /// No entry point of any kind panics, whatever the document.
    #[test]
    fn nothing_panics(a in any_json(), b in any_json(), n in 0usize..200) {
        let rows = k8s_schema::resources();
        let r = &rows[n % rows.len()];
        for mut obj in [a.clone(), json!({"metadata": a, "spec": b, "status": a}), json!({"spec": {"template": {"spec": a}}, "data": b})] {
            let old = obj.clone();
            strategy::defaults(r, &mut obj);
            strategy::prepare_create(r, &mut obj);
            let _ = strategy::validate_create(r, &obj);
            for part in [Part::Main, Part::Status] {
                let mut new = b.clone();
                strategy::prepare_update(r, &mut new, &old, part);
                let _ = strategy::validate_update(r, &new, &old, part);
            }
            let _ = table::table_row(r, &obj, now(), table::Include::Metadata, "v1");
            let _ = strategy::begin_deletion(r, &mut obj, Some(3), now());
            crate::convert::before_decode(r, &mut obj);
            crate::convert::to_storage(r, &mut obj);
            crate::convert::from_storage(r, &mut obj);
            for label in ["metadata.name", "source", "spec.unschedulable"] {
                let _ = field_value(r, &obj, label);
            }
        }
    }

    /// The same with documents that have the right shape, mutated in one place.
    #[test]
    fn mutated_pods_do_not_panic(junk in any_json(), at in 0usize..12) {
        let paths = ["/spec", "/spec/containers", "/spec/containers/0", "/spec/containers/0/ports", "/spec/containers/0/ports/0",
            "/metadata", "/metadata/labels", "/spec/volumes", "/spec/affinity", "/spec/tolerations", "/status", "/metadata/name"];
        let r = row("", "pods");
        let mut p = pod();
        p["spec"]["volumes"] = json!([{"name": "x"}]);
        p["spec"]["affinity"] = json!({});
        p["spec"]["tolerations"] = json!([]);
        p["metadata"]["labels"] = json!({});
        *p.pointer_mut(paths[at]).unwrap() = junk;
        let _ = create(r, p.clone());
        let _ = table::table_row(r, &p, now(), table::Include::Metadata, "v1");
    }
}

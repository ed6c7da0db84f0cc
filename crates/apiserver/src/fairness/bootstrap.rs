//! The FlowSchemas and PriorityLevelConfigurations that every cluster starts with: upstream's, as a table.

use serde_json::{Value, json};

const API: &str = "flowcontrol.apiserver.k8s.io/v1";
/// Objects that follow these tables unless somebody says otherwise.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// These are as they are here, whoever writes what.
pub const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Name, shares, lendable percent, queues (number, hand, length).
type Level = (&'static str, u32, u32, Option<(u32, u32, u32)>);
const LEVELS: [Level; 7] = [
    ("system", 30, 33, Some((64, 6, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
    ("catch-all", 5, 0, None),
];

/// Some words.
type Words = &'static [&'static str];
/// Verbs, group, resources, cluster scope, namespaces.
type ResourceRule = (Words, &'static str, Words, bool, Words);

/// What a schema's rule covers.
enum What {
    All,
    Resources(&'static [ResourceRule]),
    Paths(Words),
}

/// Name, precedence, level, distinguisher, subjects (`U:`, `G:`, `S:namespace/name`), what.
type Schema = (&'static str, u32, &'static str, &'static str, Words, What);
const GCU: Words = &["get", "create", "update"];
const EVERYBODY: Words = &["G:system:unauthenticated", "G:system:authenticated"];
const SCHEMAS: [Schema; 13] = [
    ("exempt", 1, "exempt", "", &["G:system:masters"], What::All),
    ("probes", 2, "exempt", "", EVERYBODY, What::Paths(&["/healthz", "/readyz", "/livez"])),
    (
        "system-leader-election",
        100,
        "leader-election",
        "ByUser",
        &["U:system:kube-controller-manager", "U:system:kube-scheduler", "S:kube-system/*"],
        What::Resources(&[(GCU, "coordination.k8s.io", &["leases"], false, &["*"])]),
    ),
    (
        "endpoint-controller",
        150,
        "workload-high",
        "ByUser",
        &[
            "U:system:kube-controller-manager",
            "S:kube-system/endpoint-controller",
            "S:kube-system/endpointslicemirroring-controller",
        ],
        What::Resources(&[(GCU, "", &["endpoints"], false, &["*"])]),
    ),
    (
        "workload-leader-election",
        200,
        "leader-election",
        "ByUser",
        &["S:kube-system/*"],
        What::Resources(&[(GCU, "coordination.k8s.io", &["leases"], false, &["*"])]),
    ),
    (
        "system-node-high",
        400,
        "node-high",
        "ByUser",
        &["G:system:nodes"],
        What::Resources(&[
            (&["*"], "", &["nodes", "nodes/status"], true, &["*"]),
            (&["*"], "coordination.k8s.io", &["leases"], false, &["*"]),
        ]),
    ),
    ("system-nodes", 500, "system", "ByUser", &["G:system:nodes"], What::All),
    (
        "kube-controller-manager",
        800,
        "workload-high",
        "ByNamespace",
        &["U:system:kube-controller-manager"],
        What::All,
    ),
    ("kube-scheduler", 800, "workload-high", "ByNamespace", &["U:system:kube-scheduler"], What::All),
    ("kube-system-service-accounts", 900, "workload-high", "ByNamespace", &["S:kube-system/*"], What::All),
    ("service-accounts", 9_000, "workload-low", "ByUser", &["G:system:serviceaccounts"], What::All),
    ("global-default", 9_900, "global-default", "ByUser", EVERYBODY, What::All),
    ("catch-all", 10_000, "catch-all", "ByUser", EVERYBODY, What::All),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": API, "kind": kind,
        "metadata": {"name": name, "annotations": {AUTOUPDATE: "true"}}, "spec": spec})
}

fn level((name, shares, lendable, queues): &Level) -> Value {
    let response = match queues {
        Some((queues, hand, length)) => json!({"type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}),
        None => json!({"type": "Reject"}),
    };
    let limited =
        json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
    object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
}

fn subject(text: &str) -> Value {
    match text.split_at(2) {
        ("U:", name) => json!({"kind": "User", "user": {"name": name}}),
        ("G:", name) => json!({"kind": "Group", "group": {"name": name}}),
        (_, account) => {
            let (namespace, name) = account.split_once('/').unwrap_or((account, "*"));
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
        }
    }
}

fn resource_rule((verbs, group, resources, cluster, namespaces): &ResourceRule) -> Value {
    let mut rule =
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": namespaces});
    if *cluster {
        rule["clusterScope"] = json!(true);
    }
    rule
}

fn schema((name, precedence, level, by, subjects, what): &Schema) -> Value {
    let mut rule = json!({"subjects": subjects.iter().map(|s| subject(s)).collect::<Vec<_>>()});
    let all = json!(["*"]);
    match what {
        What::All => {
            rule["resourceRules"] = json!([{"verbs": all, "apiGroups": all, "resources": all, "clusterScope": true,
                "namespaces": all}]);
            rule["nonResourceRules"] = json!([{"verbs": all, "nonResourceURLs": all}]);
        }
        What::Resources(list) => {
            rule["resourceRules"] = list.iter().map(resource_rule).collect();
        }
        What::Paths(paths) => {
            rule["nonResourceRules"] = json!([{"verbs": ["get"], "nonResourceURLs": paths}])
        }
    }
    let mut spec = json!({"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level},
        "rules": [rule]});
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, spec)
}

/// FlowSchemas and levels.
pub fn objects() -> (Vec<Value>, Vec<Value>) {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut levels = vec![object("PriorityLevelConfiguration", "exempt", exempt)];
    levels.extend(LEVELS.iter().map(level));
    (SCHEMAS.iter().map(schema).collect(), levels)
}

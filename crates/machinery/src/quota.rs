//! What objects count for in a ResourceQuota: which quotas they fall under, which resources they use.
//!
//! Shared by admission, which charges, and the controller, which counts anew. Pure.

use crate::kinds::get::{list, text};
use crate::kinds::pod::qos;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;
use crate::time;
use crate::usage::{self, Amounts};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Resources of the core group that can be counted by their bare name.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// What a quota on it demands of every container.
const DEMANDED: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// How classes are named in claims' resources.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Devices of a class.
const OF_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// A request for all devices may get so many at most.
const ALL_DEVICES: i64 = 32;

/// Group and plural of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind<'a> {
    /// API group, "" for core.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
}

impl Kind<'_> {
    fn is(&self, resource: &str) -> bool {
        self.group.is_empty() && self.resource == resource
    }

    /// `count/deployments.apps`.
    pub fn count_name(&self) -> String {
        match self.group {
            "" => format!("count/{}", self.resource),
            group => format!("count/{}.{group}", self.resource),
        }
    }
}

/// The kind that a `count/…` resource is about; a bare name is one of the core group.
pub fn counted(resource: &str) -> Option<(&str, &str)> {
    if let Some(name) = resource.strip_prefix("count/") {
        let (resource, group) = name.split_once('.').unwrap_or((name, ""));
        return Some((group, resource));
    }
    let own = |kind: &'static str| Some(("", kind));
    match resource {
        _ if COUNTED.contains(&resource) => Some(("", resource)),
        "services.nodeports" | "services.loadbalancers" => own("services"),
        "requests.storage" => own("persistentvolumeclaims"),
        _ if resource.contains(OF_CLASS) => own("persistentvolumeclaims"),
        _ if resource.ends_with(OF_DEVICE_CLASS) => Some(("resource.k8s.io", "resourceclaims")),
        _ => own("pods"),
    }
}

/// What an object uses, by the names that quotas limit.
pub fn used(kind: Kind<'_>, object: &Value, now: Timestamp) -> Amounts {
    let one = Quantity::from_units(1);
    let mut out = Amounts::from([(kind.count_name(), one)]);
    if (kind.group, kind.resource) == ("resource.k8s.io", "resourceclaims") {
        out.extend(devices(object));
    }
    if !kind.group.is_empty() {
        return out;
    }
    match kind.resource {
        "pods" if is_over(object, now) => return out,
        "pods" => out.extend(compute(&usage::requests(object), &usage::limits(object))),
        "services" => out.extend(service(object)),
        "persistentvolumeclaims" => out.extend(claim(object)),
        _ => {}
    }
    if COUNTED.contains(&kind.resource) {
        out.insert(kind.resource.to_string(), one);
    }
    out
}

/// Has the pod ended, or should it have by now?
pub fn is_over(pod: &Value, now: Timestamp) -> bool {
    let ended = matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
    let since = time::parse(text(pod, "/metadata/deletionTimestamp"));
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    // The timestamp is when it should be gone; upstream counts the grace once more from there.
    ended || since.is_ok_and(|at| now > at.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(at))
}

fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut out = Amounts::new();
    for (name, amount) in requests {
        let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if standard || name.starts_with("hugepages-") {
            out.insert(name.clone(), *amount);
        }
        if standard || name.starts_with("hugepages-") || name.contains('/') {
            out.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            out.insert(format!("limits.{name}"), *amount);
        }
    }
    out
}

fn service(object: &Value) -> Amounts {
    let units = |n: usize| Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX));
    let ports = list(object, "/spec/ports");
    let allocates = object["spec"]["allocateLoadBalancerNodePorts"] != json!(false);
    let explicit = ports.iter().filter(|p| p["nodePort"].as_u64().is_some_and(|n| n > 0)).count();
    let (nodes, balancers) = match text(object, "/spec/type") {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if allocates => (ports.len(), 1),
        "LoadBalancer" => (explicit, 1),
        _ => (0, 0),
    };
    BTreeMap::from([
        ("services.nodeports".into(), units(nodes)),
        ("services.loadbalancers".into(), units(balancers)),
    ])
}

fn claim(object: &Value) -> Amounts {
    let mut out = Amounts::new();
    let class = match text(object, "/spec/storageClassName") {
        "" => object.pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class"),
        _ => object.pointer("/spec/storageClassName"),
    };
    let class = class.and_then(Value::as_str).filter(|c| !c.is_empty());
    if let Some(class) = class {
        out.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), Quantity::from_units(1));
    }
    if let Some(size) = usage::amounts(object, "/spec/resources/requests").get("storage") {
        out.insert("requests.storage".into(), *size);
        if let Some(class) = class {
            out.insert(format!("{class}{OF_CLASS}requests.storage"), *size);
        }
    }
    out
}

/// Devices by class; of alternatives the one that needs most.
fn devices(claim: &Value) -> Amounts {
    let mut out = Amounts::new();
    let count = |request: &Value| match text(request, "/allocationMode") {
        "All" => ALL_DEVICES,
        _ => request["count"].as_i64().unwrap_or(1),
    };
    for request in list(claim, "/spec/devices/requests") {
        let mut worst: BTreeMap<&str, i64> = BTreeMap::new();
        let exactly = request.get("exactly").into_iter();
        for way in exactly.chain(list(request, "/firstAvailable")) {
            let most = worst.entry(text(way, "/deviceClassName")).or_default();
            *most = (*most).max(count(way));
        }
        for (class, count) in worst {
            let amount = Amounts::from([(format!("{class}{OF_DEVICE_CLASS}"), Quantity::from_units(count))]);
            usage::add(&mut out, &amount);
        }
    }
    out
}

/// Does the object fall under the scopes of the quota? Only pods have any.
pub fn in_scope(quota: &Value, kind: Kind<'_>, object: &Value) -> bool {
    let exists = |scope: &Value| json!({"scopeName": scope, "operator": "Exists"});
    let mut scopes = list(quota, "/spec/scopes").iter().map(exists);
    let mut selected = list(quota, "/spec/scopeSelector/matchExpressions").iter();
    let pods = kind.is("pods");
    scopes.all(|s| pods && pod_in(&s, object)) && selected.all(|s| pods && pod_in(s, object))
}

fn pod_in(scope: &Value, pod: &Value) -> bool {
    let ends = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match text(scope, "/scopeName") {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => qos(pod) == "BestEffort",
        "NotBestEffort" => qos(pod) != "BestEffort",
        "PriorityClass" => priority(scope, text(pod, "/spec/priorityClassName")),
        "CrossNamespacePodAffinity" => reaches_out(&pod["spec"]["affinity"]),
        _ => false,
    }
}

fn priority(scope: &Value, class: &str) -> bool {
    if text(scope, "/operator") == "Exists" {
        return !class.is_empty();
    }
    let expression =
        json!({"key": "PriorityClass", "operator": scope["operator"], "values": scope["values"]});
    let selector = json!({"matchExpressions": [expression]});
    LabelSelector::from_json(Some(&selector))
        .is_ok_and(|s| s.matches_by(|key| (key == "PriorityClass" && !class.is_empty()).then_some(class)))
}

/// Does a term of (anti-)affinity look at other namespaces?
fn reaches_out(affinity: &Value) -> bool {
    let mut terms = Vec::new();
    for side in ["podAffinity", "podAntiAffinity"] {
        terms.extend(list(&affinity[side], "/requiredDuringSchedulingIgnoredDuringExecution"));
        let preferred = list(&affinity[side], "/preferredDuringSchedulingIgnoredDuringExecution");
        terms.extend(preferred.iter().map(|p| &p["podAffinityTerm"]));
    }
    terms.iter().any(|t| !list(t, "/namespaces").is_empty() || !t["namespaceSelector"].is_null())
}

/// Of these limited resources, the ones that objects of the kind use.
pub fn concerned<'a>(kind: Kind<'_>, limited: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    limited.filter(|name| counted(name) == Some((kind.group, kind.resource))).collect()
}

/// What a quota on these resources demands and a pod does not give: `cpu for: a,b; memory for: a`.
pub fn missing(pod: &Value, limited: &BTreeSet<&str>) -> Option<String> {
    let whole = usage::amounts(pod, "/spec/resources/requests");
    let whole = compute(&whole, &usage::amounts(pod, "/spec/resources/limits"));
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")) {
        let requests = usage::amounts(container, "/resources/requests");
        let given = compute(&requests, &usage::amounts(container, "/resources/limits"));
        for name in DEMANDED.iter().filter(|d| limited.contains(**d)) {
            if !given.contains_key(*name) && !whole.contains_key(*name) {
                lacking.entry(name).or_default().insert(text(container, "/name"));
            }
        }
    }
    let line = |(name, containers): (&&str, &BTreeSet<&str>)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    };
    let lines: Vec<String> = lacking.iter().map(line).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// `cpu=1,memory=2Gi`, sorted.
pub fn shown(amounts: &Amounts) -> String {
    let shown: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    shown.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Kind<'static> = Kind { group: "", resource: "pods" };

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn pods_use_what_they_ask_for_until_they_end() {
        let mut pod =
            pod(json!({"requests": {"cpu": "1", "a/b": "2"}, "limits": {"memory": "1Gi", "a/b": "2"}}));
        let names = "count/pods=1,cpu=1,limits.memory=1Gi,pods=1,requests.a/b=2,requests.cpu=1";
        assert_eq!(shown(&used(PODS, &pod, now())), names);
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(shown(&used(PODS, &pod, now())), "count/pods=1");
    }

    #[test]
    fn other_kinds() {
        let services = Kind { group: "", resource: "services" };
        let balanced = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        assert_eq!(
            shown(&used(services, &balanced, now())),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        let claims = Kind { group: "", resource: "persistentvolumeclaims" };
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        let text = shown(&used(claims, &claim, now()));
        assert!(text.contains("gold.storageclass.storage.k8s.io/requests.storage=1Gi"), "{text}");
        let devices = Kind { group: "resource.k8s.io", resource: "resourceclaims" };
        let way = |class: &str, count: i64| json!({"deviceClassName": class, "count": count});
        let claim = json!({"spec": {"devices": {"requests": [{"exactly": way("a", 2)},
            {"firstAvailable": [way("a", 1), way("b", 4), way("b", 3)]},
            {"exactly": {"deviceClassName": "c", "allocationMode": "All"}}]}}});
        let of = |class: &str, n: u32| format!("{class}.deviceclass.resource.k8s.io/devices={n}");
        let all = [of("a", 3), of("b", 4), of("c", 32), "count/resourceclaims.resource.k8s.io=1".into()];
        assert_eq!(shown(&used(devices, &claim, now())), all.join(","));
        assert_eq!(counted("a.deviceclass.resource.k8s.io/devices"), Some((devices.group, devices.resource)));
        let widgets = Kind { group: "example.org", resource: "widgets" };
        assert_eq!(shown(&used(widgets, &json!({}), now())), "count/widgets.example.org=1");
        assert_eq!(counted("count/widgets.example.org"), Some(("example.org", "widgets")));
        let limited = ["cpu", "count/pods", "services", "count/widgets.example.org"];
        assert_eq!(concerned(PODS, limited.into_iter()), BTreeSet::from(["cpu", "count/pods"]));
    }

    #[test]
    fn scopes() {
        let effort = pod(json!({}));
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        assert!(
            in_scope(&quota("BestEffort"), PODS, &effort)
                && !in_scope(&quota("NotBestEffort"), PODS, &effort)
        );
        assert!(
            in_scope(&quota("NotTerminating"), PODS, &effort)
                && !in_scope(&quota("Terminating"), PODS, &effort)
        );
        assert!(!in_scope(&quota("BestEffort"), Kind { group: "", resource: "services" }, &json!({})));
        let classes = |operator: &str, values: Value| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}})
        };
        let mut high = effort.clone();
        high["spec"]["priorityClassName"] = json!("high");
        for (quota, with, without) in [
            (classes("In", json!(["high"])), true, false),
            (classes("NotIn", json!(["high"])), false, true),
            (classes("Exists", json!([])), true, false),
            (classes("DoesNotExist", json!([])), false, true),
        ] {
            assert_eq!(
                (in_scope(&quota, PODS, &high), in_scope(&quota, PODS, &effort)),
                (with, without),
                "{quota}"
            );
        }
    }

    #[test]
    fn what_a_quota_demands() {
        let pod = pod(json!({"requests": {"cpu": "1"}}));
        assert_eq!(missing(&pod, &BTreeSet::from(["cpu", "pods"])), None);
        let limited = BTreeSet::from(["cpu", "limits.cpu", "memory"]);
        assert_eq!(missing(&pod, &limited).unwrap(), "limits.cpu for: c; memory for: c");
    }
}

//! What APIService objects should be: those of this server's own group versions, and conditions. Pure.

use super::GroupVersion;
use crate::resources::Registry;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Says that an object is kept by us: `onstart` for built-in groups, `true` for custom ones.
pub const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// The group that this server serves as long as no other server is named for it. It has no APIService of its own, so that
/// those who install one (metrics-server, an adapter) find the name free.
pub const YIELDED: &str = "metrics.k8s.io";
/// Of groups that custom resources make.
const CUSTOM_GROUP: i64 = 1_000;
const CUSTOM_VERSION: i64 = 100;
/// Groups in discovery's order as upstream ranks them; a built-in group that is not here comes last.
const GROUPS: [(&str, i64); 24] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("extensions", 17_150),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("resource.k8s.io", 15_900),
    ("storagemigration.k8s.io", 15_800),
    ("apiregistration.k8s.io", 20_000),
];
const OTHER_GROUP: i64 = 15_000;

/// The priority of a group that this server serves itself.
pub fn group_priority(group: &str, custom: bool) -> i64 {
    if custom {
        return CUSTOM_GROUP;
    }
    GROUPS.iter().find(|(g, _)| *g == group).map_or(OTHER_GROUP, |(_, p)| *p)
}

/// Within a group the newest stable version comes first.
fn version_priority(group: &str, version: &str) -> i64 {
    match version {
        _ if group.is_empty() => 1,
        v if v.contains("alpha") => 9,
        v if v.contains("beta") => 12,
        "v2" => 30,
        _ => 15,
    }
}

/// The APIService objects of a server's own group versions, by name. (Not of APIService's own group: that is the
/// aggregator itself, upstream too.)
pub fn local_services(registry: &Registry) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for resource in registry.all() {
        let (group, version) = (&*resource.row.gvr.group, &*resource.row.gvr.version);
        if group == "apiregistration.k8s.io" || group == YIELDED || resource.row.legacy {
            continue;
        }
        if !seen.insert((group, version)) {
            continue;
        }
        let name = format!("{version}.{group}");
        let custom = resource.custom.is_some();
        let (minimum, managed) = (group_priority(group, custom), if custom { "true" } else { "onstart" });
        let priority = if custom { CUSTOM_VERSION } else { version_priority(group, version) };
        let service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {AUTOMANAGED: managed}},
            "spec": {"group": group, "version": version,
                "groupPriorityMinimum": minimum, "versionPriority": priority}});
        wanted.insert(name, service);
    }
    wanted
}

/// What to do about one of our own objects.
#[derive(Debug, PartialEq)]
pub enum Step {
    Create(Value),
    Update(Value),
    Delete(String),
}

/// Steps from what is there to what should be. Objects that somebody else manages stay.
pub fn steps(wanted: &BTreeMap<String, Value>, present: &BTreeMap<String, Value>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, body) in wanted {
        let Some(old) = present.get(name) else {
            steps.push(Step::Create(body.clone()));
            continue;
        };
        let label = &old["metadata"]["labels"][AUTOMANAGED];
        let differs = body["spec"].as_object().into_iter().flatten().any(|(k, v)| old["spec"][k] != *v);
        let ours = label == "true" || label == "onstart";
        if ours && (differs || old["spec"]["service"].is_object()) {
            let mut next = old.clone();
            next["spec"] = body["spec"].clone();
            steps.push(Step::Update(next));
        }
    }
    for (name, old) in present {
        if !wanted.contains_key(name) && old["metadata"]["labels"][AUTOMANAGED] == "true" {
            steps.push(Step::Delete(name.clone()));
        }
    }
    steps
}

/// The condition `Available`: status, reason, message.
pub type Availability = (&'static str, &'static str, String);

/// Of a local group version.
pub fn local() -> Availability {
    ("True", "Local", "Local APIServices are always available".into())
}

/// Of one whose server answered.
pub fn passed() -> Availability {
    ("True", "Passed", "all checks passed".into())
}

/// What can be told before asking: `None` when the server is worth asking.
pub fn reachable(
    namespace: &str,
    name: &str,
    port: u16,
    service: &Value,
    endpoints: &Value,
) -> Option<Availability> {
    if service.is_null() {
        let text = format!("service/{name} in {namespace:?} is not present");
        return Some(("False", "ServiceNotFound", text));
    }
    if service["spec"]["type"].as_str().is_some_and(|t| t != "ClusterIP") {
        return None;
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.find(|p| p["port"].as_u64() == Some(port.into())) else {
        let text = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(("False", "ServicePortError", text));
    };
    if endpoints.is_null() {
        let text = format!("cannot find endpoints for service/{name} in {namespace:?}");
        return Some(("False", "EndpointsNotFound", text));
    }
    let wanted = found["name"].as_str().unwrap_or_default();
    let mut subsets = endpoints["subsets"].as_array().into_iter().flatten();
    let active = subsets.any(|subset| {
        let ports = subset["ports"].as_array().into_iter().flatten();
        subset["addresses"].as_array().is_some_and(|a| !a.is_empty())
            && ports.into_iter().any(|p| p["name"].as_str().unwrap_or_default() == wanted)
    });
    (!active).then(|| {
        let text = format!(
            "endpoints for service/{name} in {namespace:?} have no addresses with port name {wanted:?}"
        );
        ("False", "MissingEndpoints", text)
    })
}

/// The status with this condition; `None` when it has it already.
pub fn with_condition(status: &Value, (state, reason, message): &Availability, now: &str) -> Option<Value> {
    let mut status = if status.is_object() { status.clone() } else { json!({}) };
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let wished = json!({"type": "Available", "status": state, "reason": reason, "message": message,
        "lastTransitionTime": now});
    match conditions.iter_mut().find(|c| c["type"] == "Available") {
        None => conditions.push(wished),
        Some(old) => {
            let since = if old["status"] == *state { old["lastTransitionTime"].clone() } else { json!(now) };
            let mut next = wished;
            next["lastTransitionTime"] = since;
            if *old == next {
                return None;
            }
            *old = next;
        }
    }
    status["conditions"] = conditions.into();
    Some(status)
}

/// Group and version of an APIService.
pub fn group_version(spec: &Value) -> GroupVersion {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_string();
    (text("group"), text("version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_versions_have_objects_and_others_are_left_alone() {
        let wanted = local_services(&Registry::builtin("main", true, &Default::default()));
        assert!(wanted.contains_key("v1.") && wanted.contains_key("v1.apps"));
        assert!(!wanted.contains_key("v1.apiregistration.k8s.io") && !wanted.contains_key("v1beta1.apps"));
        assert!(!wanted.contains_key("v1beta1.metrics.k8s.io"));
        assert_eq!(wanted["v1."]["spec"]["groupPriorityMinimum"], 18_000);
        assert_eq!(steps(&wanted, &wanted), []);
        let mut present = wanted.clone();
        present.remove("v1.apps");
        present.get_mut("v1.").unwrap()["spec"]["versionPriority"] = json!(7);
        let other = |label: Value| json!({"metadata": {"labels": label}, "spec": {}});
        present.insert("v1.gone.example".into(), other(json!({AUTOMANAGED: "true"})));
        present.insert("v1.foreign.example".into(), other(json!({})));
        let steps = steps(&wanted, &present);
        assert_eq!(steps.len(), 3, "{steps:?}");
        assert!(steps.contains(&Step::Delete("v1.gone.example".into())));
        assert!(steps.contains(&Step::Create(wanted["v1.apps"].clone())));
    }

    #[test]
    fn reasons_in_upstreams_words() {
        let of = |service: Value, endpoints: Value| {
            reachable("n", "s", 443, &service, &endpoints).map(|(_, reason, text)| (reason, text))
        };
        let service =
            |port: u16| json!({"spec": {"type": "ClusterIP", "ports": [{"name": "p", "port": port}]}});
        let there =
            json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"name": "p", "port": 9}]}]});
        assert_eq!(of(Value::Null, Value::Null).unwrap().1, "service/s in \"n\" is not present");
        assert_eq!(of(service(80), there.clone()).unwrap().0, "ServicePortError");
        assert_eq!(of(service(443), Value::Null).unwrap().0, "EndpointsNotFound");
        assert_eq!(of(service(443), json!({"subsets": []})).unwrap().0, "MissingEndpoints");
        assert_eq!(of(service(443), there), None);
    }

    #[test]
    fn a_condition_keeps_its_time_and_its_neighbours() {
        let first = with_condition(&Value::Null, &passed(), "t1").unwrap();
        assert_eq!(with_condition(&first, &passed(), "t2"), None);
        let mut two = first.clone();
        two["conditions"].as_array_mut().unwrap().push(json!({"type": "StatusUpdated"}));
        let failed = ("False", "MissingEndpoints", "x".to_string());
        let next = with_condition(&two, &failed, "t2").unwrap();
        assert_eq!(next["conditions"][0]["lastTransitionTime"], "t2");
        assert_eq!(next["conditions"][1]["type"], "StatusUpdated");
    }
}

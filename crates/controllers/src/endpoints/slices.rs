//! EndpointSlices of a Service with a selector: what to write. Pure.
//!
//! Members with the same ports share slices of at most [`SLICE_MAX`]; a member stays in its slice, so that one
//! pod's change rewrites one slice.

use super::members::{Member, Port};
use super::{Action, MANAGED_BY, SERVICE_NAME};
use client::Object;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who keeps these slices.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Members in one slice, as upstream.
pub const SLICE_MAX: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The writes that bring `slices` (ours, of this Service) to `members`.
pub fn decide(
    service: &Object,
    view: &core::Service,
    members: &[Member],
    slices: &[Arc<Object>],
) -> Vec<Action> {
    let mut groups: BTreeMap<&[Port], BTreeMap<&str, &Member>> = BTreeMap::new();
    for member in members {
        groups.entry(&member.ports).or_default().insert(&member.uid, member);
    }
    if groups.is_empty() {
        groups.insert(&[], BTreeMap::new());
    }
    let labels = labels(service, view);
    let near = view.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref());
    let endpoint = |member: &Member| endpoint_json(service, member, near);
    let mut present: Vec<Slice> = slices.iter().filter_map(|s| Slice::read(s)).collect();
    let mut actions = Vec::new();
    for (ports, mut wanted) in groups {
        let ports: Vec<Value> = ports.iter().map(port_json).collect();
        let (same, others): (Vec<Slice>, Vec<Slice>) =
            present.into_iter().partition(|s| s.ports == json!(ports));
        present = others;
        let mut filled = pack(same, &mut wanted, &endpoint);
        // Whatever is left starts slices of its own; a Service without members keeps one empty slice.
        let left: Vec<&Member> = wanted.into_values().collect();
        for chunk in left.chunks(SLICE_MAX) {
            let endpoints = chunk.iter().map(|m| endpoint(m)).collect();
            actions.push(Action::Create(body(service, &labels, endpoints, &ports)));
        }
        if filled.is_empty() && left.is_empty() {
            actions.push(Action::Create(body(service, &labels, Vec::new(), &ports)));
        }
        let mut keep_one = left.is_empty();
        filled.sort_by_key(|(_, endpoints)| endpoints.is_empty());
        for (slice, endpoints) in filled {
            if endpoints.is_empty() && !(keep_one && members.is_empty()) {
                actions.push(Action::Delete(slice.name));
                continue;
            }
            keep_one = false;
            if slice.endpoints != endpoints || slice.labels != labels {
                let patch = json!({"metadata": {"labels": labels}, "endpoints": endpoints, "ports": ports});
                actions.push(Action::Patch(slice.name, patch));
            }
        }
    }
    actions.extend(present.into_iter().map(|s| Action::Delete(s.name)));
    actions
}

struct Slice {
    name: String,
    labels: Map<String, Value>,
    ports: Value,
    endpoints: Vec<Value>,
}

impl Slice {
    fn read(object: &Object) -> Option<Slice> {
        let mut value = object.value().ok()?;
        let mut take = |key: &str| value.get_mut(key).map(Value::take).unwrap_or_default();
        let (ports, endpoints) = (take("ports"), take("endpoints"));
        Some(Slice {
            name: object.key.name.to_string(),
            labels: object.meta().labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect(),
            ports: if ports.is_null() { json!([]) } else { ports },
            endpoints: endpoints.as_array().cloned().unwrap_or_default(),
        })
    }
}

/// Keeps members where they are, takes out those that left, fills the gaps; takes from `wanted` what it placed.
fn pack(
    slices: Vec<Slice>,
    wanted: &mut BTreeMap<&str, &Member>,
    endpoint_json: &impl Fn(&Member) -> Value,
) -> Vec<(Slice, Vec<Value>)> {
    let mut packed: Vec<(Slice, Vec<Value>)> = Vec::new();
    for slice in slices {
        let mut endpoints = Vec::new();
        for endpoint in &slice.endpoints {
            let uid = endpoint["targetRef"]["uid"].as_str().unwrap_or_default();
            if let Some(member) = wanted.remove(uid) {
                endpoints.push(endpoint_json(member));
            }
        }
        packed.push((slice, endpoints));
    }
    packed.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    for (_, endpoints) in &mut packed {
        while endpoints.len() < SLICE_MAX
            && let Some((_, member)) = wanted.pop_first()
        {
            endpoints.push(endpoint_json(member));
        }
    }
    packed
}

fn labels(service: &Object, view: &core::Service) -> Map<String, Value> {
    let own = service
        .meta()
        .labels
        .iter()
        .filter(|(k, _)| *k != HEADLESS && *k != SERVICE_NAME && *k != MANAGED_BY);
    let mut labels: Map<String, Value> = own.map(|(k, v)| (k.clone(), json!(v))).collect();
    labels.insert(SERVICE_NAME.into(), json!(&*service.key.name));
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    if view.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), json!(""));
    }
    labels
}

/// A slice of this Service.
fn body(service: &Object, labels: &Map<String, Value>, endpoints: Vec<Value>, ports: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "generateName": format!("{}-", service.key.name), "namespace": &*service.key.namespace, "labels": labels,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": &*service.key.name,
                "uid": service.uid(), "controller": true, "blockOwnerDeletion": true}],
        },
        "endpoints": endpoints, "ports": ports,
    })
}

fn port_json(port: &Port) -> Value {
    let mut value = json!({"name": port.name, "port": port.port, "protocol": port.protocol});
    if let Some(protocol) = &port.app_protocol {
        value["appProtocol"] = json!(protocol);
    }
    value
}

/// Of whose nodes and zones a ready member should be asked, where its Service prefers what is near.
fn hints(member: &Member, near: Option<&str>) -> Option<Value> {
    let same_node = match near? {
        "PreferSameNode" => true,
        "PreferClose" | "PreferSameZone" => false,
        _ => return None,
    };
    let mut hints = Map::new();
    for (field, name, wanted) in [("forZones", &member.zone, true), ("forNodes", &member.node, same_node)] {
        if wanted && !name.is_empty() {
            hints.insert(field.into(), json!([{"name": name}]));
        }
    }
    (member.ready && !hints.is_empty()).then_some(Value::Object(hints))
}

fn endpoint_json(service: &Object, member: &Member, near: Option<&str>) -> Value {
    let mut value = json!({
        "addresses": [member.ip],
        "conditions": {"ready": member.ready, "serving": member.serving, "terminating": member.terminating},
        "targetRef": {"kind": "Pod", "namespace": &*service.key.namespace, "name": member.name, "uid": member.uid},
    });
    for (key, text) in [("nodeName", &member.node), ("zone", &member.zone), ("hostname", &member.hostname)] {
        if !text.is_empty() {
            value[key] = json!(text);
        }
    }
    if let Some(hints) = hints(member, near) {
        value["hints"] = hints;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn object(value: Value) -> Arc<Object> {
        Arc::new(Object::parse(Bytes::from(value.to_string())).unwrap())
    }

    fn service() -> (Arc<Object>, core::Service) {
        let value = json!({"metadata": {"name": "web", "namespace": "n", "uid": "s"}, "spec": {"clusterIP": "10.0.0.1"}});
        (object(value.clone()), serde_json::from_value(value).unwrap())
    }

    fn member(n: usize) -> Member {
        Member {
            ip: format!("10.1.{}.{}", n / 250, n % 250),
            ports: vec![Port { name: "http".into(), protocol: "TCP".into(), port: 80, app_protocol: None }],
            ready: true,
            serving: true,
            terminating: false,
            node: "a".into(),
            zone: String::new(),
            hostname: String::new(),
            name: format!("p{n}"),
            uid: format!("u{n:04}"),
            over: false,
        }
    }

    /// Carries out actions on slices, as the API server would.
    fn apply(slices: &mut Vec<Arc<Object>>, actions: Vec<Action>, next: &mut usize) {
        for action in actions {
            match action {
                Action::Create(mut body) => {
                    *next += 1;
                    body["metadata"]["name"] = json!(format!("web-{next}"));
                    slices.push(object(body));
                }
                Action::Delete(name) => slices.retain(|s| *s.key.name != *name),
                Action::Patch(name, patch) => {
                    let slice = slices.iter_mut().find(|s| *s.key.name == *name).unwrap();
                    let mut value = slice.value().unwrap();
                    value["endpoints"] = patch["endpoints"].clone();
                    value["metadata"]["labels"] = patch["metadata"]["labels"].clone();
                    *slice = object(value);
                }
            }
        }
    }

    fn counts(slices: &[Arc<Object>]) -> Vec<usize> {
        let mut counts: Vec<usize> =
            slices.iter().map(|s| s.value().unwrap()["endpoints"].as_array().unwrap().len()).collect();
        counts.sort();
        counts
    }

    #[test]
    fn slices_fill_stay_and_vanish() {
        let (service, view) = service();
        let (mut slices, mut next) = (Vec::new(), 0);
        let mut turn = |members: &[Member]| {
            let actions = decide(&service, &view, members, &slices);
            let count = actions.len();
            apply(&mut slices, actions, &mut next);
            assert_eq!(decide(&service, &view, members, &slices), [], "a second look changes nothing");
            (count, counts(&slices))
        };
        assert_eq!(turn(&[]), (1, vec![0]));
        let mut members: Vec<Member> = (0..250).map(member).collect();
        assert_eq!(turn(&members).1, [50, 100, 100]);
        members[7].ready = false;
        assert_eq!(turn(&members).0, 1, "one pod's change rewrites one slice");
        members.remove(30);
        members.push(member(300));
        assert_eq!(turn(&members), (1, vec![50, 100, 100]), "the gap is filled in the same write");
        assert_eq!(turn(&members[..3]).1.iter().sum::<usize>(), 3);
        assert_eq!(turn(&[]).1, [0]);
    }

    #[test]
    fn what_is_near_is_hinted_at() {
        let mut near = member(1);
        near.zone = "z".into();
        assert_eq!(hints(&near, None), None);
        assert_eq!(hints(&near, Some("PreferClose")), Some(json!({"forZones": [{"name": "z"}]})));
        let both = json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "a"}]});
        assert_eq!(hints(&near, Some("PreferSameNode")), Some(both));
        assert_eq!(hints(&member(1), Some("PreferSameZone")), None, "no zone is known");
        near.ready = false;
        assert_eq!(hints(&near, Some("PreferSameNode")), None);
    }

    #[test]
    fn different_ports_get_different_slices() {
        let (service, view) = service();
        let mut other = member(1);
        other.ports[0].port = 8080;
        let actions = decide(&service, &view, &[member(0), other], &[]);
        let ports: Vec<&Value> = actions
            .iter()
            .map(|a| if let Action::Create(b) = a { &b["ports"][0]["port"] } else { &Value::Null })
            .collect();
        assert_eq!(ports, [80, 8080]);
    }
}

//! Service: port and traffic defaults, validation, columns. Addresses and node ports are allocated by `apiserver`.

use super::get::{child, default, each, entries, flag, int, list, remove, set, text, texts};
use super::spot::Spot;
use super::{Behaviour, CHECKED, FieldKind, NameRule};
use crate::name;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "services",
    name: NameRule::Label1035,
    create_on_update: true,
    defaults,
    prepare_create: |obj| set(obj, "status", json!({"loadBalancer": {}})),
    prepare_update,
    validate,
    validate_update: Some(validate_update),
    fields: &[
        ("spec.clusterIP", FieldKind::Text("/spec/clusterIP")),
        ("spec.type", FieldKind::Text("/spec/type")),
    ],
    columns: &[
        Column::NAME,
        Column::new("Type", Cell::Text("/spec/type")),
        Column::new("Cluster-IP", Cell::TextOrNone("/spec/clusterIP")),
        Column::new("External-IP", Cell::Fn(|s| external(s).into())),
        Column::new("Port(s)", Cell::Fn(|s| ports(s).into())),
        Column::AGE,
        Column::wide("Selector", Cell::Fn(|s| selector_text(s, "/spec/selector").into())),
    ],
    ..CHECKED
}];

/// `a=b,c=d` of a map selector; `<none>` when empty.
pub fn selector_text(v: &Value, pointer: &str) -> String {
    let pairs: Vec<String> =
        entries(v, pointer).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    none_if_empty(&pairs.join(",")).to_string()
}

/// The addresses that a load balancer gave, in order and each once.
pub fn balanced(v: &Value) -> String {
    let ingress = list(v, "/status/loadBalancer/ingress").iter();
    let all: BTreeSet<&str> = ingress
        .map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") })
        .filter(|a| !a.is_empty())
        .collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn external(s: &Value) -> String {
    let given = texts(s, "/spec/externalIPs").collect::<Vec<_>>().join(",");
    match text(s, "/spec/type") {
        "ExternalName" => text(s, "/spec/externalName").into(),
        "LoadBalancer" => match (balanced(s), given.is_empty()) {
            (own, true) if own.is_empty() => "<pending>".into(),
            (own, false) if own.is_empty() => given,
            (own, true) => own,
            (own, false) => format!("{own},{given}"),
        },
        _ => none_if_empty(&given).into(),
    }
}

fn ports(s: &Value) -> String {
    let shown: Vec<String> = list(s, "/spec/ports")
        .iter()
        .map(|p| {
            let (port, node) = (int(p, "/port").unwrap_or(0), int(p, "/nodePort").unwrap_or(0));
            let protocol = text(p, "/protocol");
            if node > 0 { format!("{port}:{node}/{protocol}") } else { format!("{port}/{protocol}") }
        })
        .collect();
    none_if_empty(&shown.join(",")).into()
}

fn defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "sessionAffinity", "None");
    match text(spec, "/sessionAffinity") {
        "None" => drop(remove(spec, "sessionAffinityConfig")),
        "ClientIP" if int(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds").is_none() => {
            set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
        }
        _ => {}
    }
    default(spec, "type", "ClusterIP");
    each(spec, "/ports", |p| {
        default(p, "protocol", "TCP");
        let target = p.get("targetPort");
        if target.is_none_or(|t| t == &json!(0) || t == "" || t.is_null()) {
            let port = p.get("port").cloned().unwrap_or_else(|| json!(0));
            set(p, "targetPort", port);
        }
        if int(p, "/nodePort") == Some(0) {
            remove(p, "nodePort");
        }
    });
    let ty = text(spec, "/type").to_string();
    let external = matches!(&*ty, "LoadBalancer" | "NodePort")
        || (ty == "ClusterIP" && !list(spec, "/externalIPs").is_empty());
    if external {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if ty != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    sync_cluster_ips(spec);
}

/// `clusterIP` and `clusterIPs[0]` are one field under two names; a client that knows one sets one.
fn sync_cluster_ips(spec: &mut Value) {
    let single = text(spec, "/clusterIP").to_string();
    let first = text(spec, "/clusterIPs/0").to_string();
    match (single.is_empty(), first.is_empty()) {
        (false, true) => set(spec, "clusterIPs", json!([single])),
        (true, false) => set(spec, "clusterIP", first),
        _ => {}
    }
}

/// An update that leaves the allocated fields out keeps them, and one that changes the type without touching
/// the fields of the old type loses those.
fn prepare_update(new: &mut Value, old: &Value) {
    drop_foreign_fields(new, old);
    let ty = text(new, "/spec/type").to_string();
    let Some(spec) = new.get_mut("spec") else { return };
    let had = |key: &str| old.pointer(&format!("/spec/{key}")).cloned();
    if ty == "ExternalName" || text(old, "/spec/type") == "ExternalName" {
        return;
    }
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(value) = had(key) {
            default(spec, key, value);
        }
    }
    if ty == "NodePort" || (ty == "LoadBalancer" && flag(spec, "/allocateLoadBalancerNodePorts")) {
        let before = list(old, "/spec/ports").to_vec();
        each(spec, "/ports", |p| {
            let same = |o: &&Value| ["port", "protocol"].iter().all(|k| o.get(k) == p.get(k));
            if let Some(node) = before.iter().find(same).and_then(|o| o.get("nodePort")).cloned() {
                default(p, "nodePort", node);
            }
        });
    }
    if ty == "LoadBalancer"
        && let Some(port) = had("healthCheckNodePort")
    {
        default(spec, "healthCheckNodePort", port);
    }
}

/// Clears what only the old type needed, where the client just left it standing.
fn drop_foreign_fields(new: &mut Value, old: &Value) {
    let ty = text(new, "/spec/type").to_string();
    let balancer = ty == "LoadBalancer";
    let exposed =
        balancer || ty == "NodePort" || (ty == "ClusterIP" && !list(new, "/spec/externalIPs").is_empty());
    let internal = ty != "ExternalName";
    let unchanged_nodes = {
        let nodes =
            |v: &Value| list(v, "/spec/ports").iter().map(|p| int(p, "/nodePort")).collect::<Vec<_>>();
        nodes(new) == nodes(old)
    };
    let Some(spec) = new.get_mut("spec") else { return };
    for (key, needed) in [
        ("externalTrafficPolicy", exposed),
        ("allocateLoadBalancerNodePorts", balancer),
        ("loadBalancerClass", balancer),
        ("healthCheckNodePort", balancer),
        ("externalName", !internal),
        ("clusterIP", internal),
        ("clusterIPs", internal),
        ("ipFamilies", internal),
        ("ipFamilyPolicy", internal),
        ("internalTrafficPolicy", internal),
    ] {
        let left_standing = spec.get(key) == old.pointer(&format!("/spec/{key}"));
        if !needed && left_standing {
            remove(spec, key);
        }
    }
    if unchanged_nodes && !balancer && ty != "NodePort" {
        each(spec, "/ports", |p| drop(remove(p, "nodePort")));
    }
}

fn validate(obj: &Spot) {
    let spec = obj.key("spec");
    let ty = spec.text("type");
    spec.one_of("type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let headless = spec.text("clusterIP") == "None";
    match ty {
        "LoadBalancer" | "NodePort" if headless => {
            let words = format!("may not be set to 'None' for {ty} services");
            spec.invalid("clusterIPs[0]", "None", &words);
        }
        "ExternalName" => external_name(&spec),
        _ => {}
    }
    if spec.list("ports").is_empty() && !headless && ty != "ExternalName" {
        spec.required("ports", "");
    }
    validate_ports(&spec);
    super::meta::labels(&spec.key("selector"));
    spec.one_of("sessionAffinity", &["ClientIP", "None"]);
    let words = "must be greater than 0 and less than 86400";
    spec.within("sessionAffinityConfig.clientIP.timeoutSeconds", 1..=86_400, words);
    spec.each("externalIPs").for_each(|ip| ip.like("", name::ip));
    spec.each("loadBalancerSourceRanges").for_each(|range| range.like("", |own| name::cidr(own.trim())));
    spec.one_of_opt("externalTrafficPolicy", &["Cluster", "Local"]);
    let exposed = matches!(ty, "LoadBalancer" | "NodePort")
        || (ty == "ClusterIP" && !spec.list("externalIPs").is_empty());
    if spec.has("externalTrafficPolicy") && !exposed {
        spec.wrong("externalTrafficPolicy", "may only be set for externally-accessible services");
    }
    spec.one_of_opt("internalTrafficPolicy", &["Cluster", "Local"]);
    spec.one_of_opt("trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]);
    for (i, ip) in spec.each("clusterIPs").enumerate() {
        if i == 0 && ip.text("") != spec.text("clusterIP") {
            spec.wrong("clusterIPs", "first value must match `clusterIP`");
        }
        match ip.text("") {
            "None" if i > 0 => ip.wrong("", "'None' must be the first and only value"),
            "None" => {}
            _ => ip.like("", name::ip),
        }
    }
}

fn external_name(spec: &Spot) {
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let given = spec.has(key) && spec.v[key] != json!([]);
        if given && !(key == "clusterIPs" && spec.list(key).is_empty()) {
            spec.forbidden(key, "may not be set when `type` is 'ExternalName'");
        }
    }
    spec.need_like("externalName", |own| name::dns1123_subdomain(own.strip_suffix('.').unwrap_or(own)));
}

fn validate_ports(spec: &Spot) {
    let (mut names, mut numbers, mut nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for port in spec.each("ports") {
        let own = port.text("name");
        if !own.is_empty() {
            port.like("name", name::dns1123_label);
            port.unique("name", own, &mut names);
        } else if spec.list("ports").len() > 1 {
            port.required("name", "");
        }
        port.port("port");
        port.one_of("protocol", &["SCTP", "TCP", "UDP"]);
        match port.v.get("targetPort") {
            Some(Value::String(_)) => port.like("targetPort", name::port_name),
            Some(Value::Number(_)) => port.port("targetPort"),
            _ => {}
        }
        let (protocol, number) = (port.text("protocol"), port.int("port").unwrap_or(0));
        if !numbers.insert((protocol, number)) {
            port.duplicate("", json!({"protocol": protocol, "port": number}));
        }
        let node = port.int("nodePort").unwrap_or(0);
        if node != 0 {
            if spec.text("type") == "ClusterIP" {
                port.forbidden("nodePort", "may not be used when `type` is 'ClusterIP'");
            }
            if !nodes.insert((protocol, node)) {
                port.duplicate("nodePort", node);
            }
        }
    }
}

fn validate_update(new: &Spot, old: &Value) {
    let (ip, was) = (new.text("spec.clusterIP"), text(old, "/spec/clusterIP"));
    let external = [new.text("spec.type"), text(old, "/spec/type")].contains(&"ExternalName");
    if !external && !was.is_empty() && ip != was {
        new.invalid("spec.clusterIPs[0]", ip, "may not change once set");
    }
    validate(new);
}

#[cfg(test)]
mod tests {
    use super::super::get::has;
    use super::*;
    use crate::field_errors::FieldErrors;

    #[test]
    fn a_plain_service() {
        let mut s = json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}], "type": "NodePort"}});
        defaults(&mut s);
        assert_eq!(
            s,
            json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "type": "NodePort", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"}})
        );
        let mut errors = FieldErrors::new();
        validate(&Spot::new(&s, "", &mut errors));
        assert_eq!(errors, FieldErrors::new());
    }

    #[test]
    fn a_change_of_type_drops_the_old_types_fields() {
        let ports = json!([{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30001}]);
        let old = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": ports,
            "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true}});
        for (ty, gone) in [
            (
                "ClusterIP",
                &[
                    "/spec/externalTrafficPolicy",
                    "/spec/allocateLoadBalancerNodePorts",
                    "/spec/ports/0/nodePort",
                ][..],
            ),
            ("NodePort", &["/spec/allocateLoadBalancerNodePorts"]),
            (
                "ExternalName",
                &[
                    "/spec/clusterIP",
                    "/spec/clusterIPs",
                    "/spec/ports/0/nodePort",
                    "/spec/externalTrafficPolicy",
                ],
            ),
        ] {
            let mut new = old.clone();
            new["spec"]["type"] = json!(ty);
            new["spec"]["externalName"] = if ty == "ExternalName" { json!("a.b") } else { Value::Null };
            remove(&mut new["spec"], if ty == "ExternalName" { "" } else { "externalName" });
            prepare_update(&mut new, &old);
            for pointer in gone {
                assert!(!has(&new, pointer), "{ty} {pointer}");
            }
            let mut errors = FieldErrors::new();
            validate_update(&Spot::new(&new, "", &mut errors), &old);
            assert_eq!(errors, FieldErrors::new(), "{ty}");
        }
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30001}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        defaults(&mut new);
        prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        new["spec"]["clusterIP"] = json!("10.0.0.2");
        new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        let mut errors = FieldErrors::new();
        validate_update(&Spot::new(&new, "", &mut errors), &old);
        assert_eq!(errors.causes()[0].message, "Invalid value: \"10.0.0.2\": may not change once set");
    }
}

//! Service: port and traffic defaults, validation, columns. Addresses and node ports are allocated by `apiserver`.

use super::get::{
    child, default, each, entries, enumerated, enumerated_opt, flag, has, int, list, remove, set, text, texts,
};
use super::{Behaviour, FieldKind, GENERIC, NameRule};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "services",
    validated: true,
    name: NameRule::Label1035,
    create_on_update: true,
    defaults,
    prepare_create: |obj| set(obj, "status", json!({"loadBalancer": {}})),
    prepare_update,
    validate_create: validate,
    validate_update,
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
    ..GENERIC
}];

/// `a=b,c=d` of a map selector; `<none>` when empty.
pub fn selector_text(v: &Value, pointer: &str) -> String {
    let pairs: Vec<String> =
        entries(v, pointer).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    none_if_empty(&pairs.join(",")).to_string()
}

fn external(s: &Value) -> String {
    let given = texts(s, "/spec/externalIPs").collect::<Vec<_>>().join(",");
    match text(s, "/spec/type") {
        "ExternalName" => text(s, "/spec/externalName").into(),
        "LoadBalancer" => {
            let ingress = list(s, "/status/loadBalancer/ingress").iter();
            let own: Vec<&str> = ingress
                .map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") })
                .filter(|a| !a.is_empty())
                .collect();
            match (own.is_empty(), given.is_empty()) {
                (true, true) => "<pending>".into(),
                (true, false) => given,
                (false, true) => own.join(","),
                (false, false) => format!("{},{given}", own.join(",")),
            }
        }
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

fn validate(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    let ty = text(spec, "/type");
    enumerated(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    let headless = text(spec, "/clusterIP") == "None";
    match ty {
        "LoadBalancer" if headless => {
            errors.invalid(
                "spec.clusterIPs[0]",
                "None",
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        "NodePort" if headless => {
            errors.invalid("spec.clusterIPs[0]", "None", "may not be set to 'None' for NodePort services");
        }
        "ExternalName" => external_name(spec, errors),
        _ => {}
    }
    if list(spec, "/ports").is_empty() && !headless && ty != "ExternalName" {
        errors.required("spec.ports", "");
    }
    validate_ports(spec, errors);
    super::pod::volumes::label_map(spec, "selector", "spec.selector", errors);
    enumerated(spec, "spec", "sessionAffinity", &["ClientIP", "None"], errors);
    if let Some(seconds) = int(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !(1..=86_400).contains(&seconds)
    {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.invalid(path, seconds, "must be greater than 0 and less than 86400");
    }
    for (i, ip) in texts(spec, "/externalIPs").enumerate() {
        errors.invalid_all(&format!("spec.externalIPs[{i}]"), ip, name::ip(ip));
    }
    for (i, range) in texts(spec, "/loadBalancerSourceRanges").enumerate() {
        errors.invalid_all(&format!("spec.loadBalancerSourceRanges[{i}]"), range, name::cidr(range.trim()));
    }
    enumerated_opt(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"], errors);
    let exposed =
        matches!(ty, "LoadBalancer" | "NodePort") || (ty == "ClusterIP" && has(spec, "/externalIPs/0"));
    if has(spec, "/externalTrafficPolicy") && !exposed {
        let words = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", text(spec, "/externalTrafficPolicy"), words);
    }
    enumerated_opt(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"], errors);
    let near = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    enumerated_opt(spec, "spec", "trafficDistribution", near, errors);
    cluster_ips(spec, errors);
}

fn cluster_ips(spec: &Value, errors: &mut FieldErrors) {
    let single = text(spec, "/clusterIP");
    for (i, ip) in texts(spec, "/clusterIPs").enumerate() {
        let path = format!("spec.clusterIPs[{i}]");
        if i == 0 && ip != single {
            errors.invalid(
                "spec.clusterIPs",
                spec["clusterIPs"].clone(),
                "first value must match `clusterIP`",
            );
        }
        match ip {
            "None" if i > 0 => errors.invalid(&path, ip, "'None' must be the first and only value"),
            "None" => {}
            _ => errors.invalid_all(&path, ip, name::ip(ip)),
        }
    }
}

fn external_name(spec: &Value, errors: &mut FieldErrors) {
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let at = format!("/{key}");
        if has(spec, &at)
            && spec.get(key) != Some(&json!([]))
            && !(key == "clusterIPs" && list(spec, &at).is_empty())
        {
            errors.forbidden(&format!("spec.{key}"), "may not be set when `type` is 'ExternalName'");
        }
    }
    let target = text(spec, "/externalName");
    let plain = target.strip_suffix('.').unwrap_or(target);
    if target.is_empty() {
        errors.required("spec.externalName", "");
    } else {
        errors.invalid_all("spec.externalName", target, name::dns1123_subdomain(plain));
    }
}

fn validate_ports(spec: &Value, errors: &mut FieldErrors) {
    let ports = list(spec, "/ports");
    let (mut names, mut numbers, mut nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let own = text(port, "/name");
        if own.is_empty() && ports.len() > 1 {
            errors.required(&format!("{path}.name"), "");
        } else if !own.is_empty() {
            errors.invalid_all(&format!("{path}.name"), own, name::dns1123_label(own));
            if !names.insert(own) {
                errors.duplicate(&format!("{path}.name"), own);
            }
        }
        let number = int(port, "/port").unwrap_or(0);
        super::pod::containers::number(number, &format!("{path}.port"), errors);
        enumerated(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
        match port.get("targetPort") {
            Some(Value::String(target)) => {
                errors.invalid_all(&format!("{path}.targetPort"), target, name::port_name(target));
            }
            Some(Value::Number(n)) => {
                super::pod::containers::number(
                    n.as_i64().unwrap_or(0),
                    &format!("{path}.targetPort"),
                    errors,
                );
            }
            _ => {}
        }
        let protocol = text(port, "/protocol");
        if !numbers.insert((protocol, number)) {
            errors.duplicate(&path, json!({"protocol": protocol, "port": number}));
        }
        let node = int(port, "/nodePort").unwrap_or(0);
        if node != 0 {
            if text(spec, "/type") == "ClusterIP" {
                errors.forbidden(&format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !nodes.insert((protocol, node)) {
                errors.duplicate(&format!("{path}.nodePort"), node);
            }
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let external = |v: &Value| text(v, "/spec/type") == "ExternalName";
    if !external(new) && !external(old) {
        let (ip, was) = (text(new, "/spec/clusterIP"), text(old, "/spec/clusterIP"));
        if !was.is_empty() && ip != was {
            errors.invalid("spec.clusterIPs[0]", ip, "may not change once set");
        }
    }
    validate(new, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

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
        validate(&s, &mut errors);
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
            validate_update(&new, &old, &mut errors);
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
        validate_update(&new, &old, &mut errors);
        assert_eq!(errors.causes()[0].message, "Invalid value: \"10.0.0.2\": may not change once set");
    }
}

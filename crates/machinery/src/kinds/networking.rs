//! Ingress, IngressClass, NetworkPolicy.

use super::get::{default, each, entries, enumerated_opt, has, int, list, required, set, text, texts};
use super::pod::scheduling::label_selector;
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::selector::LabelSelector;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::{Value, json};

const GROUP: &str = "networking.k8s.io";

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: GROUP,
        resource: "ingresses",
        validated: true,
        generation: true,
        prepare_create: |obj| set(obj, "status", json!({"loadBalancer": {}})),
        validate_create: ingress,
        validate_update: |new, _, errors| ingress(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Class", Cell::Fn(|i| class(i).into())),
            Column::new("Hosts", Cell::Fn(|i| hosts(i).into())),
            Column::new("Address", Cell::Fn(|i| address(i).into())),
            Column::new(
                "Ports",
                Cell::Fn(|i| if list(i, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()),
            ),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "ingressclasses",
        validated: true,
        generation: true,
        validate_create: |obj, errors| {
            if let Some(controller) = required(&obj["spec"], "spec", "controller", errors)
                && !controller.contains('/')
            {
                errors.invalid(
                    "spec.controller",
                    controller,
                    "must be a domain-prefixed path (such as \"acme.io/foo\")",
                );
            }
        },
        validate_update: |new, old, errors| {
            errors.immutable("spec.controller", &new["spec"]["controller"], &old["spec"]["controller"]);
        },
        columns: &[
            Column::NAME,
            Column::new("Controller", Cell::Text("/spec/controller")),
            Column::new("Parameters", Cell::Fn(|c| parameters(c).into())),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "networkpolicies",
        validated: true,
        generation: true,
        defaults: policy_defaults,
        validate_create: policy,
        validate_update: |new, _, errors| policy(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Pod-Selector", Cell::Fn(|p| pod_selector(p).into())),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn class(i: &Value) -> &str {
    let old = entries(i, "/metadata/annotations").find(|(k, _)| *k == "kubernetes.io/ingress.class");
    match (text(i, "/spec/ingressClassName"), old) {
        ("", Some((_, v))) => none_if_empty(v.as_str().unwrap_or_default()),
        (given, _) => none_if_empty(given),
    }
}

fn hosts(i: &Value) -> String {
    const SHOWN_MAX: usize = 3;
    let all: Vec<&str> =
        list(i, "/spec/rules").iter().map(|r| text(r, "/host")).filter(|h| !h.is_empty()).collect();
    match all.len() {
        0 => "*".into(),
        n if n > SHOWN_MAX => format!("{} + {} more...", all[..SHOWN_MAX].join(","), n - SHOWN_MAX),
        _ => all.join(","),
    }
}

fn address(i: &Value) -> String {
    let all = list(i, "/status/loadBalancer/ingress").iter();
    let shown = all.map(|a| if text(a, "/ip").is_empty() { text(a, "/hostname") } else { text(a, "/ip") });
    shown.collect::<Vec<_>>().join(",")
}

fn parameters(c: &Value) -> String {
    if !has(c, "/spec/parameters") {
        return "<none>".into();
    }
    let part = |key: &str| text(c, &format!("/spec/parameters/{key}"));
    let group = if part("apiGroup").is_empty() { String::new() } else { format!(".{}", part("apiGroup")) };
    format!("{}{group}/{}", part("kind"), part("name"))
}

fn pod_selector(p: &Value) -> String {
    match LabelSelector::from_json(p.pointer("/spec/podSelector")) {
        Ok(s) => none_if_empty(&s.to_string()).to_string(),
        Err(_) => "<error>".into(),
    }
}

fn ingress(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    if list(spec, "/rules").is_empty() && !has(spec, "/defaultBackend") {
        errors.invalid("spec", spec.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if has(spec, "/defaultBackend") {
        backend(&spec["defaultBackend"], "spec.defaultBackend", errors);
    }
    let class = text(spec, "/ingressClassName");
    if !class.is_empty() {
        errors.invalid_all("spec.ingressClassName", class, name::dns1123_subdomain(class));
    }
    for (i, rule) in list(spec, "/rules").iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        host(text(rule, "/host"), &format!("{path}.host"), errors);
        if has(rule, "/http") && list(rule, "/http/paths").is_empty() {
            errors.required(&format!("{path}.http.paths"), "");
        }
        for (j, row) in list(rule, "/http/paths").iter().enumerate() {
            http_path(row, &format!("{path}.http.paths[{j}]"), errors);
        }
    }
    for (i, tls) in list(spec, "/tls").iter().enumerate() {
        for (j, own) in texts(tls, "/hosts").enumerate() {
            host(own, &format!("spec.tls[{i}].hosts[{j}]"), errors);
        }
    }
}

fn host(given: &str, path: &str, errors: &mut FieldErrors) {
    if given.is_empty() {
        return;
    }
    if given.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(path, given, "must be a DNS name, not an IP address");
    } else if given.contains('*') {
        errors.invalid_all(path, given, name::wildcard_dns1123_subdomain(given));
    } else {
        errors.invalid_all(path, given, name::dns1123_subdomain(given));
    }
}

fn http_path(row: &Value, path: &str, errors: &mut FieldErrors) {
    let (kind, given) = (text(row, "/pathType"), text(row, "/path"));
    if kind.is_empty() {
        errors.required(&format!("{path}.pathType"), "pathType must be specified");
    } else {
        errors.one_of(&format!("{path}.pathType"), kind, &["Exact", "ImplementationSpecific", "Prefix"]);
    }
    let absolute = given.starts_with('/') || (kind == "ImplementationSpecific" && given.is_empty());
    if !absolute {
        errors.invalid(&format!("{path}.path"), given, "must be an absolute path");
    }
    for bad in
        ["//", "/./", "/../"].iter().filter(|b| kind != "ImplementationSpecific" && given.contains(**b))
    {
        errors.invalid(&format!("{path}.path"), given, &format!("must not contain '{bad}'"));
    }
    backend(&row["backend"], &format!("{path}.backend"), errors);
}

fn backend(b: &Value, path: &str, errors: &mut FieldErrors) {
    match (has(b, "/service"), has(b, "/resource")) {
        (true, true) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (false, true) => {}
        (false, false) => errors.required(path, "port name or number is required"),
        (true, false) => {
            let service = &b["service"];
            let path = format!("{path}.service");
            if let Some(own) = required(service, &path, "name", errors) {
                errors.invalid_all(&format!("{path}.name"), own, name::dns1035_label(own));
            }
            let (own, number) = (text(service, "/port/name"), int(service, "/port/number").unwrap_or(0));
            match (own.is_empty(), number) {
                (true, 0) => errors.required(&path, "port name or number is required"),
                (true, n) => super::pod::containers::number(n, &format!("{path}.port.number"), errors),
                (false, 0) => errors.invalid_all(&format!("{path}.port.name"), own, name::port_name(own)),
                (false, _) => errors.invalid(&path, "", "cannot set both port name & port number"),
            }
        }
    }
}

fn policy_defaults(obj: &mut Value) {
    let egress = !list(obj, "/spec/egress").is_empty();
    for side in ["/spec/ingress", "/spec/egress"] {
        each(obj, side, |rule| each(rule, "/ports", |p| default(p, "protocol", "TCP")));
    }
    if list(obj, "/spec/policyTypes").is_empty()
        && let Some(spec) = super::get::child(obj, "spec")
    {
        set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
}

fn policy(obj: &Value, errors: &mut FieldErrors) {
    label_selector(obj.pointer("/spec/podSelector"), "spec.podSelector", errors);
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(obj, &format!("/spec/{side}")).iter().enumerate() {
            let path = format!("spec.{side}[{i}]");
            for (j, port) in list(rule, "/ports").iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{j}]"), errors);
            }
            for (j, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{j}]"), errors);
            }
        }
    }
    for (i, ty) in texts(obj, "/spec/policyTypes").enumerate() {
        errors.one_of(&format!("spec.policyTypes[{i}]"), ty, &["Egress", "Ingress"]);
    }
}

fn policy_port(port: &Value, path: &str, errors: &mut FieldErrors) {
    enumerated_opt(port, path, "protocol", &["SCTP", "TCP", "UDP"], errors);
    let field = format!("{path}.port");
    let end = int(port, "/endPort");
    match port.get("port") {
        Some(Value::String(own)) => {
            if end.is_some() {
                errors.invalid(
                    &format!("{path}.endPort"),
                    end.unwrap_or(0),
                    "may not be specified when `port` is non-numeric",
                );
            }
            errors.invalid_all(&field, own, name::port_name(own));
        }
        Some(Value::Number(n)) => {
            let n = n.as_i64().unwrap_or(0);
            super::pod::containers::number(n, &field, errors);
            if end.is_some_and(|end| end < n) {
                errors.invalid(
                    &format!("{path}.endPort"),
                    end.unwrap_or(0),
                    "must be greater than or equal to `port`",
                );
            }
        }
        _ if end.is_some() => {
            errors.invalid(
                &format!("{path}.endPort"),
                end.unwrap_or(0),
                "may not be specified when `port` is not specified",
            );
        }
        _ => {}
    }
}

fn policy_peer(peer: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["podSelector", "namespaceSelector"] {
        label_selector(peer.get(key), &format!("{path}.{key}"), errors);
    }
    let selects = has(peer, "/podSelector") || has(peer, "/namespaceSelector");
    match (has(peer, "/ipBlock"), selects) {
        (true, true) => errors.forbidden(path, "may not specify both ipBlock and another peer"),
        (false, false) => errors.required(path, "must specify a peer"),
        (true, false) => {
            let block = &peer["ipBlock"];
            let path = format!("{path}.ipBlock");
            if let Some(range) = required(block, &path, "cidr", errors) {
                errors.invalid_all(&format!("{path}.cidr"), range, name::cidr(range));
            }
            for (i, range) in texts(block, "/except").enumerate() {
                errors.invalid_all(&format!("{path}.except[{i}]"), range, name::cidr(range));
            }
        }
        (false, true) => {}
    }
}

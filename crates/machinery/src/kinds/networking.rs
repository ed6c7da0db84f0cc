//! Ingress, IngressClass, NetworkPolicy.

use super::get::{default, each, has, list, set, text};
use super::service::balanced;
use super::spot::Spot;
use super::{Behaviour, COUNTED, UNCHECKED};
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
        prepare_create: |obj| set(obj, "status", json!({"loadBalancer": {}})),
        validate: ingress,

        columns: &[
            Column::NAME,
            Column::new("Class", Cell::TextOrNone("/spec/ingressClassName")),
            Column::new("Hosts", Cell::Fn(|i| hosts(i).into())),
            Column::new("Address", Cell::Fn(|i| balanced(i).into())),
            Column::new(
                "Ports",
                Cell::Fn(|i| if list(i, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()),
            ),
            Column::AGE,
        ],
        ..COUNTED
    },
    Behaviour {
        group: GROUP,
        resource: "ingressclasses",
        validate: |s| {
            if s.need("spec.controller").is_some_and(|controller| !controller.contains('/')) {
                s.wrong("spec.controller", "must be a domain-prefixed path (such as \"acme.io/foo\")");
            }
        },
        validate_update: UNCHECKED,
        immutable: &["spec.controller"],
        columns: &[
            Column::NAME,
            Column::new("Controller", Cell::Text("/spec/controller")),
            Column::new("Parameters", Cell::Fn(|c| parameters(c).into())),
            Column::AGE,
        ],
        ..COUNTED
    },
    Behaviour {
        group: GROUP,
        resource: "networkpolicies",
        defaults: policy_defaults,
        validate: policy,

        columns: &[
            Column::NAME,
            Column::new("Pod-Selector", Cell::Fn(|p| pod_selector(p).into())),
            Column::AGE,
        ],
        ..COUNTED
    },
];

fn hosts(i: &Value) -> String {
    const SHOWN_MAX: usize = 3;
    let rules = list(i, "/spec/rules");
    let (mut shown, mut more) = (Vec::new(), false);
    for host in rules.iter().map(|r| text(r, "/host")) {
        more |= shown.len() == SHOWN_MAX;
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".into(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - SHOWN_MAX),
        (false, false) => shown.join(","),
    }
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

fn ingress(obj: &Spot) {
    let spec = obj.key("spec");
    if spec.list("rules").is_empty() && !spec.has("defaultBackend") {
        spec.wrong("", "either `defaultBackend` or `rules` must be specified");
    }
    spec.opt("defaultBackend").iter().for_each(backend);
    spec.like_opt("ingressClassName", name::dns1123_subdomain);
    for rule in spec.each("rules") {
        host(&rule.key("host"));
        if rule.has("http") && rule.list("http.paths").is_empty() {
            rule.required("http.paths", "");
        }
        rule.each("http.paths").for_each(|row| http_path(&row));
    }
    spec.each("tls").flat_map(|tls| tls.each("hosts")).for_each(|own| host(&own));
}

fn host(s: &Spot) {
    let given = s.text("");
    if given.parse::<std::net::IpAddr>().is_ok() {
        s.wrong("", "must be a DNS name, not an IP address");
    } else if given.contains('*') {
        s.like("", name::wildcard_dns1123_subdomain);
    } else {
        s.like_opt("", name::dns1123_subdomain);
    }
}

fn http_path(row: &Spot) {
    let (kind, given) = (row.text("pathType"), row.text("path"));
    match kind {
        "" => row.required("pathType", "pathType must be specified"),
        _ => row.known("pathType", &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    let absolute = given.starts_with('/') || (kind == "ImplementationSpecific" && given.is_empty());
    if !absolute {
        row.invalid("path", given, "must be an absolute path");
    }
    for bad in
        ["//", "/./", "/../"].iter().filter(|b| kind != "ImplementationSpecific" && given.contains(**b))
    {
        row.wrong("path", &format!("must not contain '{bad}'"));
    }
    backend(&row.key("backend"));
}

fn backend(b: &Spot) {
    match (b.opt("service"), b.has("resource")) {
        (Some(_), true) => b.invalid("", "", "cannot set both resource and service backends"),
        (None, true) => {}
        (None, false) => b.required("", "port name or number is required"),
        (Some(service), false) => {
            service.need_like("name", name::dns1035_label);
            match (service.text("port.name"), service.int("port.number").unwrap_or(0)) {
                ("", 0) => service.required("", "port name or number is required"),
                ("", _) => service.port("port.number"),
                (_, 0) => service.like("port.name", name::port_name),
                _ => service.invalid("", "", "cannot set both port name & port number"),
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

fn policy(obj: &Spot) {
    let spec = obj.key("spec");
    spec.selector("podSelector");
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.each(side) {
            rule.each("ports").for_each(|port| policy_port(&port));
            rule.each(peers).for_each(|peer| policy_peer(&peer));
        }
    }
    spec.each("policyTypes").for_each(|ty| ty.known("", &["Egress", "Ingress"]));
}

fn policy_port(port: &Spot) {
    port.one_of_opt("protocol", &["SCTP", "TCP", "UDP"]);
    let end = |why: &str| {
        if port.int("endPort").is_some() {
            port.wrong("endPort", why);
        }
    };
    match port.v.get("port") {
        Some(Value::String(_)) => {
            end("may not be specified when `port` is non-numeric");
            port.like("port", name::port_name);
        }
        Some(Value::Number(n)) => {
            port.port("port");
            let least = n.as_i64().unwrap_or(0);
            port.within("endPort", least..=i64::MAX, "must be greater than or equal to `port`");
        }
        _ => end("may not be specified when `port` is not specified"),
    }
}

fn policy_peer(peer: &Spot) {
    peer.selector("podSelector");
    peer.selector("namespaceSelector");
    let selects = peer.has("podSelector") || peer.has("namespaceSelector");
    match (peer.opt("ipBlock"), selects) {
        (Some(_), true) => peer.forbidden("", "may not specify both ipBlock and another peer"),
        (None, false) => peer.required("", "must specify a peer"),
        (Some(block), false) => {
            block.need_like("cidr", name::cidr);
            block.each("except").for_each(|range| range.like("", name::cidr));
        }
        (None, true) => {}
    }
}

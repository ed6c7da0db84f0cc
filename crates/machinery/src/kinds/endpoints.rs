//! Endpoints and EndpointSlice.

use super::get::{each, int, list, text, texts};
use super::spot::Spot;
use super::{Behaviour, CHECKED, COUNTED};
use crate::name;
use crate::table::{Cell, Column};
use serde_json::Value;
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "endpoints",
        create_on_update: true,
        defaults: |obj| {
            each(obj, "/subsets", |s| each(s, "/ports", |p| super::get::default(p, "protocol", "TCP")))
        },
        validate: subsets,

        columns: &[Column::NAME, Column::new("Endpoints", Cell::Fn(|e| addresses(e).into())), Column::AGE],
        ..CHECKED
    },
    Behaviour {
        group: "discovery.k8s.io",
        resource: "endpointslices",
        defaults: |obj| {
            each(obj, "/ports", |p| {
                super::get::default(p, "protocol", "TCP");
                if !super::get::has(p, "/name") {
                    super::get::set(p, "name", "");
                }
            });
        },
        validate: slice,
        immutable: &["addressType"],
        columns: &[
            Column::NAME,
            Column::new("AddressType", Cell::Text("/addressType")),
            Column::new("Ports", Cell::Fn(|s| slice_ports(s).into())),
            Column::new("Endpoints", Cell::Fn(|s| slice_addresses(s).into())),
            Column::AGE,
        ],
        ..COUNTED
    },
];

/// Shown at most; the rest is counted.
const SHOWN_MAX: usize = 3;

fn shortened(all: &[String], none: &str) -> String {
    match all.len() {
        0 => none.into(),
        n if n > SHOWN_MAX => format!("{} + {} more...", all[..SHOWN_MAX].join(","), n - SHOWN_MAX),
        _ => all.join(","),
    }
}

fn addresses(e: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(e, "/subsets") {
        let ips: Vec<&str> = list(subset, "/addresses").iter().map(|a| text(a, "/ip")).collect();
        if list(subset, "/ports").is_empty() {
            all.extend(ips.iter().map(|ip| (*ip).to_string()));
        }
        for port in list(subset, "/ports") {
            let port = int(port, "/port").unwrap_or(0);
            all.extend(
                ips.iter().map(|ip| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                }),
            );
        }
    }
    shortened(&all, "<none>")
}

fn slice_ports(s: &Value) -> String {
    let ports = list(s, "/ports");
    let name = |p: &Value| p["name"].as_str().unwrap_or("*").to_string();
    let shown: Vec<String> =
        ports.iter().map(|p| int(p, "/port").map_or_else(|| name(p), |n| n.to_string())).collect();
    shortened(&shown, "<unset>")
}

fn slice_addresses(s: &Value) -> String {
    let all: Vec<String> =
        list(s, "/endpoints").iter().flat_map(|e| texts(e, "/addresses").map(String::from)).collect();
    shortened(&all, "<unset>")
}

fn subsets(obj: &Spot) {
    for subset in obj.each("subsets") {
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            subset.required("", "must specify `addresses` or `notReadyAddresses`");
        }
        let addresses = subset.each("addresses").chain(subset.each("notReadyAddresses"));
        addresses.for_each(|address| endpoint_ip(&address.key("ip")));
        for port in subset.each("ports") {
            if port.text("name").is_empty() && subset.list("ports").len() > 1 {
                port.required("name", "");
            }
            port.like_opt("name", name::dns1123_label);
            port.port("port");
            port.one_of("protocol", &["SCTP", "TCP", "UDP"]);
        }
    }
}

/// An address that may be an endpoint: no loopback, link-local, multicast or unspecified one.
fn endpoint_ip(s: &Spot) {
    let ip = s.text("");
    let Ok(address) = ip.parse::<std::net::IpAddr>() else {
        return s.like("", name::ip);
    };
    let words = match address {
        a if a.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        a if a.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        std::net::IpAddr::V4(a) if a.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        a if a.is_multicast() => "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        _ => return,
    };
    s.wrong("", words);
}

fn slice(obj: &Spot) {
    const ENDPOINTS_MAX: usize = 1000;
    const ADDRESSES_MAX: usize = 100;
    const PORTS_MAX: usize = 20_000;
    obj.one_of("addressType", &["FQDN", "IPv4", "IPv6"]);
    obj.at_most("endpoints", ENDPOINTS_MAX);
    obj.at_most("ports", PORTS_MAX);
    for endpoint in obj.each("endpoints") {
        if endpoint.list("addresses").is_empty() {
            endpoint.required("addresses", "must contain at least 1 address");
        }
        endpoint.at_most("addresses", ADDRESSES_MAX);
        for address in endpoint.each("addresses") {
            let ipv6 = address.text("").contains(':');
            match obj.text("addressType") {
                "FQDN" => address.like("", name::dns1123_subdomain),
                "IPv4" if ipv6 => address.wrong("", "must be a valid IPv4 address"),
                "IPv6" if !ipv6 => address.wrong("", "must be a valid IPv6 address"),
                _ => endpoint_ip(&address),
            }
        }
    }
    let mut names = BTreeSet::new();
    for port in obj.each("ports") {
        port.like_opt("name", name::dns1123_label);
        port.unique("name", port.text("name"), &mut names);
        port.one_of("protocol", &["SCTP", "TCP", "UDP"]);
    }
}

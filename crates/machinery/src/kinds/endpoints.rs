//! Endpoints and EndpointSlice.

use super::get::{each, enumerated, int, list, text, texts};
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::Value;
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "endpoints",
        validated: true,
        create_on_update: true,
        defaults: |obj| {
            each(obj, "/subsets", |s| each(s, "/ports", |p| super::get::default(p, "protocol", "TCP")))
        },
        validate_create: subsets,
        validate_update: |new, _, errors| subsets(new, errors),
        columns: &[Column::NAME, Column::new("Endpoints", Cell::Fn(|e| addresses(e).into())), Column::AGE],
        ..GENERIC
    },
    Behaviour {
        group: "discovery.k8s.io",
        resource: "endpointslices",
        validated: true,
        generation: true,
        defaults: |obj| {
            each(obj, "/ports", |p| {
                super::get::default(p, "protocol", "TCP");
                if !super::get::has(p, "/name") {
                    super::get::set(p, "name", "");
                }
            });
        },
        validate_create: slice,
        validate_update: |new, old, errors| {
            slice(new, errors);
            errors.immutable("addressType", &new["addressType"], &old["addressType"]);
        },
        columns: &[
            Column::NAME,
            Column::new("AddressType", Cell::Text("/addressType")),
            Column::new("Ports", Cell::Fn(|s| slice_ports(s).into())),
            Column::new("Endpoints", Cell::Fn(|s| slice_addresses(s).into())),
            Column::AGE,
        ],
        ..GENERIC
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
    let shown: Vec<String> = ports
        .iter()
        .map(|p| match int(p, "/port") {
            Some(n) => n.to_string(),
            None => format!("{}:*", none_if_empty(text(p, "/name"))),
        })
        .collect();
    shortened(&shown, "<unset>")
}

fn slice_addresses(s: &Value) -> String {
    let all: Vec<String> =
        list(s, "/endpoints").iter().flat_map(|e| texts(e, "/addresses").map(String::from)).collect();
    shortened(&all, "<unset>")
}

fn subsets(obj: &Value, errors: &mut FieldErrors) {
    for (i, subset) in list(obj, "/subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in list(subset, &format!("/{key}")).iter().enumerate() {
                endpoint_ip(text(address, "/ip"), &format!("{path}.{key}[{j}].ip"), errors);
            }
        }
        let ports = list(subset, "/ports");
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            let own = text(port, "/name");
            if own.is_empty() && ports.len() > 1 {
                errors.required(&format!("{path}.name"), "");
            } else if !own.is_empty() {
                errors.invalid_all(&format!("{path}.name"), own, name::dns1123_label(own));
            }
            super::pod::containers::number(int(port, "/port").unwrap_or(0), &format!("{path}.port"), errors);
            enumerated(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
        }
    }
}

/// An address that may be an endpoint: no loopback, link-local, multicast or unspecified one.
fn endpoint_ip(ip: &str, path: &str, errors: &mut FieldErrors) {
    let Ok(address) = ip.parse::<std::net::IpAddr>() else {
        return errors.invalid_all(path, ip, name::ip(ip));
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
    errors.invalid(path, ip, words);
}

fn slice(obj: &Value, errors: &mut FieldErrors) {
    const ENDPOINTS_MAX: usize = 1000;
    const ADDRESSES_MAX: usize = 100;
    const PORTS_MAX: usize = 20_000;
    enumerated(obj, "", "addressType", &["FQDN", "IPv4", "IPv6"], errors);
    let (endpoints, ports) = (list(obj, "/endpoints"), list(obj, "/ports"));
    if endpoints.len() > ENDPOINTS_MAX {
        errors.too_many("endpoints", endpoints.len(), ENDPOINTS_MAX);
    }
    if ports.len() > PORTS_MAX {
        errors.too_many("ports", ports.len(), PORTS_MAX);
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{i}].addresses");
        let addresses: Vec<&str> = texts(endpoint, "/addresses").collect();
        match addresses.len() {
            0 => errors.required(&path, "must contain at least 1 address"),
            n if n > ADDRESSES_MAX => errors.too_many(&path, n, ADDRESSES_MAX),
            _ => {}
        }
        for (j, address) in addresses.iter().enumerate() {
            let path = format!("{path}[{j}]");
            let ipv6 = address.contains(':');
            match text(obj, "/addressType") {
                "FQDN" => errors.invalid_all(&path, address, name::dns1123_subdomain(address)),
                "IPv4" if ipv6 => errors.invalid(&path, *address, "must be a valid IPv4 address"),
                "IPv6" if !ipv6 => errors.invalid(&path, *address, "must be a valid IPv6 address"),
                _ => endpoint_ip(address, &path, errors),
            }
        }
    }
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        let own = text(port, "/name");
        if !own.is_empty() {
            errors.invalid_all(&format!("{path}.name"), own, name::dns1123_label(own));
        }
        if !names.insert(own) {
            errors.duplicate(&format!("{path}.name"), own);
        }
        enumerated(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
    }
}

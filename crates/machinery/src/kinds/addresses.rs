//! IPAddress and ServiceCIDR: who holds which service address, and which there are.

use super::get::{list, required, same, text, texts};
use super::{Behaviour, GENERIC, NameRule};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::Value;
use std::net::IpAddr;

const GROUP: &str = "networking.k8s.io";
const CIDRS_MAX: usize = 2;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: GROUP,
        resource: "ipaddresses",
        validated: true,
        generation: true,
        name: NameRule::PathSegment,
        validate_create: address,
        validate_update: |new, old, errors| {
            address(new, errors);
            errors.immutable("spec.parentRef", &new["spec"]["parentRef"], &old["spec"]["parentRef"]);
        },
        columns: &[Column::NAME, Column::new("ParentRef", Cell::Fn(|a| parent(a).into()))],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "servicecidrs",
        validated: true,
        generation: true,
        validate_create: range,
        validate_update: range_update,
        columns: &[
            Column::NAME,
            Column::new("CIDRs", Cell::Fn(|c| texts(c, "/spec/cidrs").collect::<Vec<_>>().join(",").into())),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn parent(a: &Value) -> String {
    let part = |key: &str| text(a, &format!("/spec/parentRef/{key}"));
    let group = if part("group").is_empty() { String::new() } else { format!(".{}", part("group")) };
    let namespace =
        if part("namespace").is_empty() { String::new() } else { format!("{}/", part("namespace")) };
    format!("{}{group}/{namespace}{}", part("resource"), part("name"))
}

fn address(obj: &Value, errors: &mut FieldErrors) {
    let own = text(obj, "/metadata/name");
    match own.parse::<IpAddr>() {
        Err(_) => errors.invalid_all("metadata.name", own, name::ip(own)),
        Ok(ip) if ip.to_string() != own => {
            errors.invalid("metadata.name", own, &format!("must be in canonical form (\"{ip}\")"));
        }
        Ok(_) => {}
    }
    let Some(parent) = obj.pointer("/spec/parentRef").filter(|p| !p.is_null()) else {
        return errors.required("spec.parentRef", "");
    };
    let group = text(parent, "/group");
    if !group.is_empty() {
        errors.invalid_all("spec.parentRef.group", group, name::dns1123_subdomain(group));
    }
    for key in ["resource", "name"] {
        if let Some(given) = required(parent, "spec.parentRef", key, errors) {
            errors.invalid_all(&format!("spec.parentRef.{key}"), given, name::path_segment(given));
        }
    }
    let namespace = text(parent, "/namespace");
    if !namespace.is_empty() {
        errors.invalid_all("spec.parentRef.namespace", namespace, name::path_segment(namespace));
    }
}

fn range(obj: &Value, errors: &mut FieldErrors) {
    let path = "spec.cidrs";
    let given: Vec<&str> = texts(obj, "/spec/cidrs").collect();
    if given.is_empty() {
        return errors.required(path, "at least one CIDR required");
    }
    if given.len() > CIDRS_MAX {
        return errors.invalid(path, given, "may only specify up to 2 values");
    }
    let bad = given.iter().any(|c| !name::cidr(c).is_empty());
    for (i, cidr) in given.iter().enumerate() {
        errors.invalid_all(&format!("{path}[{i}]"), cidr, name::cidr(cidr));
        if let Some(words) = canonical(cidr).filter(|c| c != cidr) {
            let why = format!("must be in canonical form (\"{words}\")");
            errors.invalid(&format!("{path}[{i}]"), *cidr, &why);
        }
    }
    if let [a, b] = given[..]
        && !bad
        && a.contains(':') == b.contains(':')
    {
        let words =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
        errors.invalid(path, given, words);
    }
}

/// The network with no host bits set.
fn canonical(cidr: &str) -> Option<String> {
    let (addr, len) = cidr.split_once('/')?;
    let len: u32 = len.parse().ok()?;
    Some(match addr.parse().ok()? {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(len)?).unwrap_or(0);
            format!("{}/{len}", std::net::Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(len)?).unwrap_or(0);
            format!("{}/{len}", std::net::Ipv6Addr::from(u128::from(ip) & mask))
        }
    })
}

/// A second family may join; nothing else changes.
fn range_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (now, before) = (list(new, "/spec/cidrs"), list(old, "/spec/cidrs"));
    if now.len() == 2 && before.len() == 1 && now.first() == before.first() {
        return range(new, errors);
    }
    if !same(&new["spec"]["cidrs"], &old["spec"]["cidrs"]) {
        errors.invalid("spec.cidrs", new["spec"]["cidrs"].clone(), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(check: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn addresses() {
        let of = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "x", "namespace": "n"}}});
        assert_eq!(words(|e| address(&of("10.0.0.1"), e)), Vec::<String>::new());
        assert_eq!(
            words(|e| address(&of("fd00:0::1"), e)),
            ["metadata.name: Invalid value: \"fd00:0::1\": must be in canonical form (\"fd00::1\")"]
        );
        assert_eq!(
            words(|e| address(&json!({"metadata": {"name": "10.0.0.1"}}), e)),
            ["spec.parentRef: Required value"]
        );
    }

    #[test]
    fn ranges() {
        let of = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
        assert_eq!(words(|e| range(&of(&["10.0.0.0/24", "fd00::/64"]), e)), Vec::<String>::new());
        assert_eq!(
            words(|e| range(&of(&["10.0.0.1/24"]), e)),
            ["spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must be in canonical form (\"10.0.0.0/24\")"]
        );
        assert!(
            words(|e| range(&of(&["10.0.0.0/24", "10.1.0.0/24"]), e))[0]
                .contains("no more than one IP for each IP family")
        );
        assert!(
            words(|e| range_update(&of(&["10.0.0.0/24", "fd00::/64"]), &of(&["10.0.0.0/24"]), e)).is_empty()
        );
        assert!(
            words(|e| range_update(&of(&["10.1.0.0/24"]), &of(&["10.0.0.0/24"]), e))[0]
                .ends_with("field is immutable")
        );
    }
}

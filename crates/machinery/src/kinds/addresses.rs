//! IPAddress and ServiceCIDR: who holds which service address, and which there are.

use super::get::{list, text, texts};
use super::spot::Spot;
use super::{Behaviour, COUNTED, NameRule};
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
        name: NameRule::PathSegment,
        validate: address,
        immutable: &["spec.parentRef"],
        columns: &[Column::NAME, Column::new("ParentRef", Cell::Fn(|a| parent(a).into()))],
        ..COUNTED
    },
    Behaviour {
        group: GROUP,
        resource: "servicecidrs",
        validate: range,
        validate_update: Some(range_update),
        columns: &[
            Column::NAME,
            Column::new("CIDRs", Cell::Fn(|c| texts(c, "/spec/cidrs").collect::<Vec<_>>().join(",").into())),
            Column::AGE,
        ],
        ..COUNTED
    },
];

fn parent(a: &Value) -> String {
    let part = |key: &str| text(a, &format!("/spec/parentRef/{key}"));
    let group = if part("group").is_empty() { String::new() } else { format!(".{}", part("group")) };
    let namespace =
        if part("namespace").is_empty() { String::new() } else { format!("{}/", part("namespace")) };
    format!("{}{group}/{namespace}{}", part("resource"), part("name"))
}

fn address(obj: &Spot) {
    let own = obj.key("metadata.name");
    match own.text("").parse::<IpAddr>() {
        Err(_) => own.like("", name::ip),
        Ok(ip) if ip.to_string() != own.text("") => {
            own.wrong("", &format!("must be in canonical form (\"{ip}\")"));
        }
        Ok(_) => {}
    }
    let Some(parent) = obj.opt("spec.parentRef") else { return obj.required("spec.parentRef", "") };
    parent.like_opt("group", name::dns1123_subdomain);
    parent.need_like("resource", name::path_segment);
    parent.need_like("name", name::path_segment);
    parent.like_opt("namespace", name::path_segment);
}

fn range(obj: &Spot) {
    let cidrs = obj.key("spec.cidrs");
    let given = cidrs.texts("");
    if given.is_empty() {
        return cidrs.required("", "at least one CIDR required");
    }
    if given.len() > CIDRS_MAX {
        return cidrs.wrong("", "may only specify up to 2 values");
    }
    for cidr in cidrs.each("") {
        cidr.like("", name::cidr);
        if let Some(words) = canonical(cidr.text("")).filter(|c| c != cidr.text("")) {
            cidr.wrong("", &format!("must be in canonical form (\"{words}\")"));
        }
    }
    if let [a, b] = given[..]
        && given.iter().all(|c| name::cidr(c).is_empty())
        && a.contains(':') == b.contains(':')
    {
        let words =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
        cidrs.wrong("", words);
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
fn range_update(new: &Spot, old: &Value) {
    let (now, before) = (new.list("spec.cidrs"), list(old, "/spec/cidrs"));
    if now.len() == 2 && before.len() == 1 && now.first() == before.first() {
        return range(new);
    }
    new.immutable("spec.cidrs", old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn words(check: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn addresses() {
        let of = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "x", "namespace": "n"}}});
        assert_eq!(words(|e| address(&Spot::new(&of("10.0.0.1"), "", e))), Vec::<String>::new());
        assert_eq!(
            words(|e| address(&Spot::new(&of("fd00:0::1"), "", e))),
            ["metadata.name: Invalid value: \"fd00:0::1\": must be in canonical form (\"fd00::1\")"]
        );
        assert_eq!(
            words(|e| address(&Spot::new(&json!({"metadata": {"name": "10.0.0.1"}}), "", e))),
            ["spec.parentRef: Required value"]
        );
    }

    #[test]
    fn ranges() {
        let of = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
        assert_eq!(
            words(|e| range(&Spot::new(&of(&["10.0.0.0/24", "fd00::/64"]), "", e))),
            Vec::<String>::new()
        );
        assert_eq!(
            words(|e| range(&Spot::new(&of(&["10.0.0.1/24"]), "", e))),
            ["spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must be in canonical form (\"10.0.0.0/24\")"]
        );
        assert!(
            words(|e| range(&Spot::new(&of(&["10.0.0.0/24", "10.1.0.0/24"]), "", e)))[0]
                .contains("no more than one IP for each IP family")
        );
        assert!(
            words(|e| range_update(
                &Spot::new(&of(&["10.0.0.0/24", "fd00::/64"]), "", e),
                &of(&["10.0.0.0/24"])
            ))
            .is_empty()
        );
        assert!(
            words(|e| range_update(&Spot::new(&of(&["10.1.0.0/24"]), "", e), &of(&["10.0.0.0/24"])))[0]
                .ends_with("field is immutable")
        );
    }
}

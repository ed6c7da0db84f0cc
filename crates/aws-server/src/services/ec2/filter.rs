//! Filters and pages of `Describe…`. Pure.
//!
//! A filter's name leads to members: `vpc-id` to `VpcId`, `association.subnet-id` into each of `Associations`;
//! [`OTHERS`] has those that are called differently. Values know `*` and `?`.

use crate::policy::like;
use crate::service::{AwsError, Call};
use crate::services::kept::{Pages, items, text};
use serde_json::Value;

pub(super) const PAGES: Pages = Pages {
    asks: ("MaxResults", "NextToken"),
    next: "NextToken",
    rows: 1_000,
    refusal: ("InvalidParameterValue", "Unable to parse pagination token"),
};
/// Filters whose names do not lead to their members.
const OTHERS: [(&str, &str); 18] = [
    ("cidr", "cidr-block"),
    ("cidrBlock", "cidr-block"),
    ("isDefault", "is-default"),
    ("default", "is-default"),
    ("availabilityZone", "availability-zone"),
    ("defaultForAz", "default-for-az"),
    ("private-dns-name", "private-dns-name"),
    ("instance-state-name", "state.name"),
    ("instance-state-code", "state.code"),
    ("instance.group-id", "security-group.group-id"),
    ("group-id", "group-id"),
    ("key", "key"),
    ("route.destination-cidr-block", "route.destination-cidr-block"),
    ("association.main", "association.main"),
    ("ip-permission.cidr", "ip-permission.ip-range.cidr-ip"),
    ("addresses.private-ip-address", "private-ip-address"),
    ("attachment.vpc-id", "attachment.vpc-id"),
    ("dhcp-options-id", "dhcp-options-id"),
];

/// Keeps of `all` what the call's list `asked` names by `member`, each of which must be there; all where it names none.
pub(super) fn pick(
    call: &Call,
    asked: &str,
    all: &mut Vec<Value>,
    member: &str,
    missing: impl Fn(&str) -> AwsError,
) -> Result<(), AwsError> {
    let wanted = call.items(asked);
    if let Some(unknown) = wanted.iter().find(|w| !all.iter().any(|one| one[member] == **w)) {
        return Err(missing(unknown.as_str().unwrap_or_default()));
    }
    all.retain(|one| wanted.is_empty() || wanted.contains(&one[member]));
    Ok(())
}

/// The filters of a call; all must fit.
pub(super) struct Filters<'a>(Vec<(&'a str, Vec<&'a str>)>);

impl<'a> Filters<'a> {
    /// Of `Filters` (or `Filter`, as some operations call it).
    pub(super) fn of(call: &'a Call) -> Self {
        let given = call.items("Filters").iter().chain(call.items("Filter"));
        let one =
            |f: &'a Value| (text(f, "Name"), items(&f["Values"]).iter().filter_map(Value::as_str).collect());
        Filters(given.map(one).collect())
    }

    /// Do all fit a document?
    pub(super) fn fit(&self, spec: &Value) -> bool {
        self.0.iter().all(|(name, values)| {
            let found = found(spec, name);
            found.iter().any(|f| values.iter().any(|v| like(v, f)))
        })
    }
}

/// The texts that a filter looks at.
fn found(spec: &Value, name: &str) -> Vec<String> {
    let tags = items(&spec["Tags"]);
    if let Some(key) = name.strip_prefix("tag:") {
        let own = tags.iter().filter(|t| text(t, "Key") == key);
        return own.map(|t| text(t, "Value").to_string()).collect();
    }
    if name == "tag-key" {
        return tags.iter().map(|t| text(t, "Key").to_string()).collect();
    }
    let path = OTHERS.iter().find(|(n, _)| *n == name).map_or(name, |(_, path)| path);
    let mut at = vec![spec];
    for step in path.split('.') {
        let member = camel(step);
        let plural = format!("{member}s");
        let next = at.iter().flat_map(|v| [&v[&member], &v[&plural]]).filter(|v| !v.is_null());
        at = next.flat_map(|v| v.as_array().map_or_else(|| vec![v], |list| list.iter().collect())).collect();
    }
    let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    at.into_iter().map(shown).collect()
}

/// `vpc-id` → `VpcId`.
fn camel(name: &str) -> String {
    let upper = |part: &str| {
        let mut letters = part.chars();
        letters.next().map(|c| c.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    name.split('-').map(upper).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_lead_to_members() {
        let spec = json!({"VpcId": "vpc-1", "IsDefault": true, "Tags": [{"Key": "Name", "Value": "web"}],
            "Associations": [{"SubnetId": "subnet-1"}, {"SubnetId": "subnet-2"}]});
        for (name, value, fits) in [
            ("vpc-id", "vpc-1", true),
            ("vpc-id", "vpc-*", true),
            ("vpc-id", "vpc", false),
            ("isDefault", "true", true),
            ("tag:Name", "w?b", true),
            ("tag-key", "Name", true),
            ("association.subnet-id", "subnet-2", true),
            ("nonsense", "x", false),
        ] {
            assert_eq!(Filters(vec![(name, vec![value])]).fit(&spec), fits, "{name}");
        }
        assert!(Filters(Vec::new()).fit(&spec));
        for (pattern, text, fits) in
            [("a*b*c", "aXbYc", true), ("a*b", "ab c", false), ("**", "", true), ("?", "", false)]
        {
            assert_eq!(like(pattern, text), fits, "{pattern}");
        }
    }
}

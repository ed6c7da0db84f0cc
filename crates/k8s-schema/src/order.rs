//! The orders in which discovery lists groups and versions: the first is the preferred one.

use std::cmp::Ordering;

/// Built-in groups in their order, then all others by name.
pub fn compare_groups(a: &str, b: &str) -> Ordering {
    let rank = |group: &str| crate::groups().iter().position(|g| *g == group).unwrap_or(usize::MAX);
    rank(a).cmp(&rank(b)).then_with(|| a.cmp(b))
}

/// Newest and most stable first: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then others by name.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// (stability, major, minor) of `v<major>[alpha|beta<minor>]`; greater is preferred.
fn parse(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..end].parse().ok()?;
    let (stability, minor) = match &rest[end..] {
        "" => return Some((2, major, 0)),
        tail if tail.starts_with("beta") => (1, &tail[4..]),
        tail => (0, tail.strip_prefix("alpha")?),
    };
    Some((stability, major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_by_stability_then_number() {
        let mut got =
            ["foo", "v1alpha1", "v10", "v1beta2", "v2", "v1", "v11alpha2", "v3beta1", "bar", "v1beta10"];
        got.sort_by(|a, b| compare_versions(a, b));
        let want =
            ["v10", "v2", "v1", "v3beta1", "v1beta10", "v1beta2", "v11alpha2", "v1alpha1", "bar", "foo"];
        assert_eq!(got, want);
    }

    #[test]
    fn groups_built_in_first() {
        let mut got = ["zz.io", "extensions", "apps", "", "aa.io"];
        got.sort_by(|a, b| compare_groups(a, b));
        assert_eq!(got, ["", "apps", "extensions", "aa.io", "zz.io"]);
    }
}

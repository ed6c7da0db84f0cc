//! User namespaces of pods (`hostUsers: false`): which of the node's ids a pod's ids stand for, and what that makes of a
//! container's configuration. Pure.
//!
//! Every pod has a range of its own, so that nobody who gets out of one pod owns anything of another, or of the node.
//! Volumes are mounted with mapped ids: on disk they are as if there were no namespace.

use runtime::api::UserRange;
use runtime::oci::{IdMapping, Namespace, Spec};
use std::collections::BTreeSet;

/// Ids of a pod: all that 16 bits can name, as upstream.
pub const RANGE_SIZE: u32 = 65_536;

/// The lowest range that nobody has; none below the first [`RANGE_SIZE`] ids, which are the node's own.
pub fn free_range(taken: &BTreeSet<u32>, most: u32) -> Option<UserRange> {
    let first = (1..=most).map(|n| n.saturating_mul(RANGE_SIZE)).find(|first| !taken.contains(first))?;
    // The last id of all means "none".
    (first < u32::MAX - RANGE_SIZE).then_some(UserRange { first, size: RANGE_SIZE })
}

/// Puts a container into its pod's user namespace; all that is mounted from the node has mapped ids.
pub fn apply(spec: &mut Spec, range: UserRange) {
    let mapping = IdMapping { container_id: 0, host_id: range.first, size: range.size };
    spec.linux.namespaces.push(Namespace { kind: "user".into(), path: None });
    spec.linux.uid_mappings = vec![mapping];
    spec.linux.gid_mappings = vec![mapping];
    for mount in spec.mounts.iter_mut().filter(|m| m.kind == "bind") {
        mount.uid_mappings = vec![mapping];
        mount.gid_mappings = vec![mapping];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::oci::{Mount, default_spec};

    #[test]
    fn ranges_do_not_overlap() {
        let mut taken = BTreeSet::new();
        for _ in 0..3 {
            let range = free_range(&taken, 3).unwrap();
            assert!(
                range.first >= RANGE_SIZE
                    && range.first.is_multiple_of(RANGE_SIZE)
                    && taken.insert(range.first)
            );
        }
        assert_eq!(free_range(&taken, 3), None);
        taken.remove(&(2 * RANGE_SIZE));
        assert_eq!(free_range(&taken, 3).unwrap().first, 2 * RANGE_SIZE);
        let all: BTreeSet<u32> = (1..65_534).map(|n| n * RANGE_SIZE).collect();
        assert_eq!(free_range(&all, u32::MAX).unwrap().first, 65_534 * RANGE_SIZE);
        assert_eq!(free_range(&(1..65_535).map(|n| n * RANGE_SIZE).collect(), u32::MAX), None);
    }

    #[test]
    fn what_comes_from_the_node_is_mapped() {
        let mut spec = default_spec();
        spec.mounts.push(Mount { kind: "bind".into(), destination: "/v".into(), ..Mount::default() });
        apply(&mut spec, UserRange { first: 131_072, size: RANGE_SIZE });
        let mapped: Vec<_> = spec.mounts.iter().filter(|m| !m.uid_mappings.is_empty()).collect();
        assert_eq!((mapped.len(), mapped[0].gid_mappings[0].host_id), (1, 131_072));
        assert_eq!(spec.linux.namespaces.iter().filter(|n| n.kind == "user").count(), 1);
    }
}

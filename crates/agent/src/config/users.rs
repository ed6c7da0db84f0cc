//! User namespaces of pods (`hostUsers: false`): which of the node's ids a pod's ids stand for, and what that makes of a
//! container's configuration. Pure.
//!
//! Every pod has a range of its own, so that nobody who gets out of one pod owns anything of another, or of the node.
//! Volumes are mounted with mapped ids: on disk they are as if there were no namespace.

use super::mounts::IMAGE_MOUNT;
use runtime::api::UserRange;
use runtime::oci::{IdMapping, Namespace, Spec};
use std::collections::BTreeSet;

/// Ids of a pod: all that 16 bits can name, as upstream.
pub const RANGE_SIZE: u32 = 65_536;

/// Ranges that there are: none below the first [`RANGE_SIZE`] ids, which are the node's own, nor the last one, whose
/// last id means "none".
const RANGES: u32 = u32::MAX / RANGE_SIZE - 1;

/// A range of which nobody has an id: the first from an instance's own place on, so that instances on one machine do
/// not want the same. `taken`: first ids and sizes.
pub fn free_range(taken: &[(u32, u32)], instance: &str) -> Option<UserRange> {
    // FNV-1a: the same at every start.
    let place = instance
        .bytes()
        .fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    let is_taken: BTreeSet<u32> = taken
        .iter()
        .filter(|(_, size)| *size > 0)
        .flat_map(|(first, size)| first / RANGE_SIZE..=first.saturating_add(size - 1) / RANGE_SIZE)
        .collect();
    let free =
        (0..RANGES).map(|n| 1 + (place % RANGES + n) % RANGES).find(|slot| !is_taken.contains(slot))?;
    Some(UserRange { first: free * RANGE_SIZE, size: RANGE_SIZE })
}

/// What a file such as `/proc/<pid>/uid_map` (`inside first size`) or `/etc/subuid` (`name:first:size`) gives away; all
/// ids together are nobody's range.
pub fn ranges(text: &str) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut words = line.split([' ', '\t', ':']).filter(|w| !w.is_empty()).skip(1);
        let (first, size) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (size < u32::MAX).then_some((first, size))
    };
    text.lines().filter_map(range).collect()
}

/// Puts a container into its pod's user namespace; all that is mounted from the node has mapped ids.
pub fn apply(spec: &mut Spec, range: UserRange) {
    let mapping = IdMapping { container_id: 0, host_id: range.first, size: range.size };
    spec.linux.namespaces.push(Namespace { kind: "user".into(), path: None });
    spec.linux.uid_mappings = vec![mapping];
    spec.linux.gid_mappings = vec![mapping];
    for mount in spec.mounts.iter_mut().filter(|m| m.kind == "bind" || m.kind == IMAGE_MOUNT) {
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
        let mut taken = Vec::new();
        for instance in ["a", "a", "a", "b", "c"] {
            let UserRange { first, size } = free_range(&taken, instance).unwrap();
            assert!(
                first >= RANGE_SIZE && first.is_multiple_of(RANGE_SIZE) && first.checked_add(size).is_some()
            );
            assert!(!taken.contains(&(first, size)), "{taken:?}");
            taken.push((first, size));
        }
        assert!(taken[3].0.abs_diff(taken[0].0) > 1000 * RANGE_SIZE, "instances have places of their own");
        assert_eq!(free_range(&taken[1..], "a").unwrap().first, taken[0].0, "what is free again is used");
        // A range that lies across two.
        let (first, _) = taken[0];
        assert_eq!(free_range(&[(first + 1000, RANGE_SIZE)], "a").unwrap().first, taken[2].0);
        let most = u32::MAX - RANGE_SIZE;
        assert_eq!(free_range(&[(RANGE_SIZE, most)], "a"), None);
        assert_eq!(
            free_range(&[(RANGE_SIZE, most - 2 * RANGE_SIZE)], "a").unwrap().first,
            u32::MAX - 2 * RANGE_SIZE + 1
        );
    }

    #[test]
    fn who_has_ranges() {
        assert_eq!(ranges("         0          0 4294967295\n"), []);
        assert_eq!(ranges("  0 131072 65536\n"), [(131_072, 65_536)]);
        assert_eq!(
            ranges("me:100000:65536\nyou:165536:65536\nbad\n"),
            [(100_000, 65_536), (165_536, 65_536)]
        );
    }

    #[test]
    fn what_comes_from_the_node_is_mapped() {
        let mut spec = default_spec();
        for kind in ["bind", IMAGE_MOUNT] {
            spec.mounts.push(Mount { kind: kind.into(), destination: "/v".into(), ..Mount::default() });
        }
        apply(&mut spec, UserRange { first: 131_072, size: RANGE_SIZE });
        let mapped: Vec<_> = spec.mounts.iter().filter(|m| !m.uid_mappings.is_empty()).collect();
        assert_eq!((mapped.len(), mapped[0].gid_mappings[0].host_id), (2, 131_072));
        assert_eq!(spec.linux.namespaces.iter().filter(|n| n.kind == "user").count(), 1);
    }
}

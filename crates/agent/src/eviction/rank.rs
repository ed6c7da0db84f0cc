//! Who goes first, and what is said about it: upstream's order and words. Pure.

use super::{Observation, Signal, settings::Threshold};
use machinery::quantity::Quantity;
use std::cmp::Reverse;

/// What one container uses and asked for, of the resource that is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Name.
    pub name: String,
    /// Used.
    pub used: u64,
    /// Asked for.
    pub requested: u64,
}

/// What one pod uses and asked for, of the resource that is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// UID.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Used.
    pub used: u64,
    /// Asked for.
    pub requested: u64,
    /// The same by container.
    pub containers: Vec<ContainerUse>,
}

/// Sorts candidates, the first to go first: who uses more than asked for, then lesser priority, then the greater
/// excess. (Processes are asked for by nobody: priority, then their number.)
pub fn sort(signal: Signal, candidates: &mut [Candidate]) {
    let over = |c: &Candidate| signal.resource() != "pids" && c.used > c.requested;
    let excess = |c: &Candidate| i128::from(c.used) - i128::from(c.requested);
    candidates.sort_by_key(|c| (Reverse(over(c)), c.priority, Reverse(excess(c)), c.uid.clone()));
}

fn text(resource: &str, amount: u64) -> String {
    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
    match resource {
        "memory" | "ephemeral-storage" => Quantity::from_bytes(amount).to_string(),
        _ => amount.to_string(),
    }
}

/// Why a pod goes.
pub fn message(threshold: &Threshold, seen: Observation, pod: &Candidate) -> String {
    let resource = threshold.signal.resource();
    let of = |amount| text(resource, amount);
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        of(threshold.value.of(seen.capacity)),
        // Whole Ki, as upstream measures.
        of(if matches!(resource, "memory" | "ephemeral-storage") {
            seen.available / 1024 * 1024
        } else {
            seen.available
        }),
    );
    if resource == "pids" || resource == "inodes" {
        return message;
    }
    for container in pod.containers.iter().filter(|c| c.used > c.requested) {
        message += &format!(
            "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
            container.name,
            of(container.used),
            container.requested_text(resource),
        );
    }
    message
}

impl ContainerUse {
    fn requested_text(&self, resource: &str) -> String {
        if self.requested == 0 { "0".into() } else { text(resource, self.requested) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::settings::Amount;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    fn candidate(uid: &str, priority: i32, used: u64, requested: u64) -> Candidate {
        Candidate { uid: uid.into(), priority, used, requested, ..Candidate::default() }
    }

    fn order(signal: Signal, mut list: Vec<Candidate>) -> Vec<String> {
        sort(signal, &mut list);
        list.into_iter().map(|c| c.uid).collect()
    }

    #[test]
    fn the_order() {
        let list = vec![
            candidate("within", 0, 900, 1000),
            candidate("over-a-little", 0, 110, 100),
            candidate("over-much", 0, 300, 100),
            candidate("over-and-dear", 10, 900, 100),
            candidate("within-and-cheap", -5, 10, 10),
        ];
        let memory = ["over-much", "over-a-little", "over-and-dear", "within-and-cheap", "within"];
        assert_eq!(order(Signal::MemoryAvailable, list.clone()), memory);
        assert_eq!(order(Signal::NodefsAvailable, list), memory);
        let pids = vec![candidate("a", 0, 5, 0), candidate("b", 0, 50, 0), candidate("cheap", -1, 1, 0)];
        assert_eq!(order(Signal::PidAvailable, pids), ["cheap", "b", "a"]);
    }

    #[test]
    fn the_words() {
        let threshold = Threshold {
            signal: Signal::MemoryAvailable,
            value: Amount::Units(100 << 20),
            grace: SignedDuration::ZERO,
            soft: false,
            min_reclaim: Amount::Units(0),
        };
        let seen = Observation { available: (50 << 20) + 1, capacity: 1 << 30 };
        let mut pod = candidate("u", 0, 30 << 20, 0);
        pod.containers = vec![
            ContainerUse { name: "a".into(), used: 30 << 20, requested: 0 },
            ContainerUse { name: "b".into(), used: 1 << 20, requested: 2 << 20 },
        ];
        assert_eq!(
            message(&threshold, seen, &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 30Mi, request is 0, has larger consumption of memory. "
        );
        let threshold = Threshold { signal: Signal::PidAvailable, value: Amount::Units(10), ..threshold };
        let seen = Observation { available: 3, capacity: 100 };
        assert_eq!(
            message(&threshold, seen, &pod),
            "The node was low on resource: pids. Threshold quantity: 10, available: 3. "
        );
    }

    proptest! {
        /// The dumb twin: nobody stands behind one whom upstream's comparisons put after him.
        #[test]
        fn pairs_are_in_order(list in proptest::collection::vec((-3..3i32, 0..5u64, 0..5u64), 0..12)) {
            let mut all: Vec<Candidate> = list.iter().enumerate()
                .map(|(n, (priority, used, requested))| candidate(&n.to_string(), *priority, *used, *requested)).collect();
            sort(Signal::MemoryAvailable, &mut all);
            for (i, a) in all.iter().enumerate() {
                for b in &all[i + 1..] {
                    let (over_a, over_b) = (a.used > a.requested, b.used > b.requested);
                    prop_assert!(over_a || !over_b);
                    if over_a == over_b {
                        prop_assert!(a.priority <= b.priority);
                        if a.priority == b.priority {
                            let excess = |c: &Candidate| c.used as i64 - c.requested as i64;
                            prop_assert!(excess(a) >= excess(b));
                        }
                    }
                }
            }
        }
    }
}

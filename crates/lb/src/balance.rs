//! Which group and which target a request goes to: pure.

use crate::config::Algorithm;

/// What is known of one target when a request comes.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// May get new requests.
    pub open: bool,
    /// Passes its checks.
    pub healthy: bool,
    /// Requests under way.
    pub outstanding: usize,
    /// Share during slow start, of 256.
    pub share: u32,
}

/// Spreads consecutive turns evenly over `0..total` (the fraction of a multiple of the golden ratio), so that weights
/// 9 and 1 do not give nine in a row.
fn spread(turn: usize, total: u64) -> u64 {
    let fraction = (turn as u32).wrapping_mul(0x9E37_79B9);
    (u64::from(fraction) * total) >> 32
}

/// The index of the group whose turn it is; `None` when all weights are 0.
pub fn group(weights: &[u32], turn: usize) -> Option<usize> {
    let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let mut at = spread(turn, total);
    weights.iter().position(|w| {
        let here = at < u64::from(*w);
        at = at.saturating_sub(u64::from(*w));
        here
    })
}

/// The index of the target; `None` when there is nobody to ask. When no target is healthy, all open ones are asked
/// (fail open, as ELB does).
pub fn target(algorithm: Algorithm, turn: usize, candidates: &[Candidate]) -> Option<usize> {
    let any_healthy = candidates.iter().any(|c| c.open && c.healthy);
    let usable = |c: &Candidate| c.open && (c.healthy || !any_healthy);
    let list: Vec<usize> = (0..candidates.len()).filter(|i| usable(&candidates[*i])).collect();
    let all_slow = list.iter().all(|i| candidates[*i].share < 256);
    // A target in slow start is passed over on some of its turns.
    let takes = |i: &usize| all_slow || spread(turn, 256) < u64::from(candidates[*i].share);
    match algorithm {
        Algorithm::RoundRobin => {
            let from = turn % list.len().max(1);
            let order = || list[from..].iter().chain(&list[..from]);
            order().find(|i| takes(i)).or_else(|| order().next()).copied()
        }
        Algorithm::LeastOutstanding => {
            list.iter().filter(|i| takes(i)).min_by_key(|i| candidates[**i].outstanding).copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Candidate = Candidate { open: true, healthy: true, outstanding: 0, share: 256 };

    #[test]
    fn weights_are_kept_closely() {
        for (weights, turns) in [(vec![90, 10], 1000), (vec![1, 1, 2], 400), (vec![0, 5], 10)] {
            let mut counts = vec![0usize; weights.len()];
            for turn in 0..turns {
                counts[group(&weights, turn).unwrap()] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let fair = turns * *weight as usize / total as usize;
                assert!(count.abs_diff(fair) <= turns / 50 + 1, "{weights:?} {counts:?}");
            }
        }
        assert_eq!(group(&[0, 0], 3), None);
        assert_eq!(group(&[], 3), None);
    }

    #[test]
    fn only_healthy_targets_are_asked_unless_there_are_none() {
        let sick = Candidate { healthy: false, ..WELL };
        let closed = Candidate { open: false, ..WELL };
        for turn in 0..9 {
            assert_eq!(target(Algorithm::RoundRobin, turn, &[sick, WELL, closed]), Some(1));
            assert_eq!(target(Algorithm::RoundRobin, turn, &[closed]), None);
        }
        let asked: Vec<_> =
            (0..4).map(|t| target(Algorithm::RoundRobin, t, &[sick, closed, sick]).unwrap()).collect();
        assert_eq!(asked, [0, 2, 0, 2]);
        let busy = Candidate { outstanding: 3, ..WELL };
        assert_eq!(target(Algorithm::LeastOutstanding, 7, &[busy, WELL, busy]), Some(1));
    }

    #[test]
    fn a_slow_starter_gets_its_share() {
        let slow = Candidate { share: 64, ..WELL };
        let hits = (0..1000).filter(|t| target(Algorithm::RoundRobin, *t, &[WELL, slow]) == Some(1)).count();
        assert!((75..175).contains(&hits), "{hits} of 1000, an eighth is fair");
        assert_eq!(target(Algorithm::RoundRobin, 5, &[slow]), Some(0));
    }
}

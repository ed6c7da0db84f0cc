//! Scores: which of the feasible nodes is best. Each row yields raw numbers; they are brought to 0–100 over the
//! feasible nodes and weighted as upstream weighs them.

use crate::filter::Question;
use crate::model::PodInfo;

/// What a cluster prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Pods are spread over the nodes, as upstream's default.
    #[default]
    Spread,
    /// Nodes are filled one after the other, so that some stay empty (upstream's `MostAllocated`).
    Density,
}

/// How raw numbers become 0–100.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// They are 0–100 already.
    Plain,
    /// The largest becomes 100.
    Largest,
    /// The smallest becomes 100, the largest 0.
    Reversed,
    /// The smallest becomes 0, the largest 100 (numbers may be negative).
    Spread,
}

/// One scoring rule.
pub struct Score {
    /// Upstream's plugin name.
    pub name: &'static str,
    weight: i64,
    /// The profile that it belongs to; `None`: all.
    only: Option<Profile>,
    scale: Scale,
    raw: fn(&Question<'_>) -> i64,
}

/// The scores.
pub const SCORES: &[Score] = &[
    Score { name: "TaintToleration", only: None, weight: 3, scale: Scale::Reversed, raw: taints },
    Score { name: "NodeAffinity", only: None, weight: 2, scale: Scale::Largest, raw: affinity },
    Score {
        name: "PodTopologySpread",
        only: None,
        weight: 2,
        scale: Scale::Reversed,
        raw: |q| q.context.soft_spread(q.pod, q.spec),
    },
    Score {
        name: "InterPodAffinity",
        only: None,
        weight: 2,
        scale: Scale::Spread,
        raw: |q| q.context.preference(q.spec),
    },
    Score {
        name: "NodeResourcesFit",
        only: Some(Profile::Spread),
        weight: 1,
        scale: Scale::Plain,
        raw: least_allocated,
    },
    Score {
        name: "NodeResourcesFit",
        // Above all soft rules but taints: a half-full node must beat an empty one.
        only: Some(Profile::Density),
        weight: 5,
        scale: Scale::Plain,
        raw: |q| BEST - least_allocated(q),
    },
    Score {
        name: "NodeResourcesBalancedAllocation",
        only: Some(Profile::Spread),
        weight: 1,
        scale: Scale::Plain,
        raw: balanced,
    },
    Score { name: "ImageLocality", only: None, weight: 1, scale: Scale::Plain, raw: images },
    Score { name: "Siblings", only: Some(Profile::Spread), weight: 2, scale: Scale::Reversed, raw: siblings },
];

const BEST: i64 = 100;

/// The scores of a profile.
pub fn of(profile: Profile) -> impl Iterator<Item = &'static Score> {
    SCORES.iter().filter(move |s| s.only.is_none_or(|p| p == profile))
}

impl Score {
    /// Weighted points, in the order of the questions.
    pub fn points(&self, questions: &[Question<'_>]) -> Vec<i64> {
        let raw: Vec<i64> = questions.iter().map(self.raw).collect();
        let low = raw.iter().copied().min().unwrap_or(0);
        let high = raw.iter().copied().max().unwrap_or(0);
        let scaled = |raw: i64| match self.scale {
            Scale::Plain => raw,
            Scale::Largest if high > 0 => raw * BEST / high,
            Scale::Reversed if high > 0 => BEST - raw * BEST / high,
            Scale::Reversed => BEST,
            Scale::Spread if high > low => (raw - low) * BEST / (high - low),
            Scale::Largest | Scale::Spread => 0,
        };
        raw.into_iter().map(|raw| self.weight * scaled(raw)).collect()
    }
}

/// Sums of the points, in the order of the questions.
pub fn totals(profile: Profile, questions: &[Question<'_>]) -> Vec<i64> {
    let mut totals = vec![0; questions.len()];
    for score in of(profile) {
        totals.iter_mut().zip(score.points(questions)).for_each(|(total, points)| *total += points);
    }
    totals
}

fn taints(q: &Question<'_>) -> i64 {
    q.spec.taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !q.pod.tolerates(t)).count() as i64
}

fn affinity(q: &Question<'_>) -> i64 {
    let holds = q.pod.preferred_terms.iter().filter(|(_, t)| t.matches(&q.spec.name, &q.spec.labels));
    holds.map(|(weight, _)| weight).sum()
}

/// Used shares of CPU and memory after placing the pod, in parts of 1,000.
fn shares(q: &Question<'_>) -> [i64; 2] {
    let (want, used, all) = (&q.pod.assumed, &q.node.assumed, &q.spec.allocatable);
    let share = |want: i64, used: i64, all: i64| match all {
        ..=0 => 1000,
        _ => (want.saturating_add(used)).saturating_mul(1000).checked_div(all).unwrap_or(1000).min(1000),
    };
    [
        share(want.milli_cpu, used.milli_cpu, all.milli_cpu),
        share(want.memory_bytes >> 10, used.memory_bytes >> 10, all.memory_bytes >> 10),
    ]
}

fn least_allocated(q: &Question<'_>) -> i64 {
    let [cpu, memory] = shares(q);
    ((1000 - cpu) + (1000 - memory)) / 20
}

fn balanced(q: &Question<'_>) -> i64 {
    let [cpu, memory] = shares(q);
    BEST - (cpu - memory).abs() / 20
}

/// Bytes of the pod's images that the node has, between 23 MB (0) and 1 GB a container (100), as upstream.
fn images(q: &Question<'_>) -> i64 {
    const LOW: i64 = 23 << 20;
    const HIGH_EACH: i64 = 1000 << 20;
    let present: i64 = q.pod.images.iter().filter_map(|i| q.spec.images.get(i)).sum();
    let high = HIGH_EACH * (q.pod.images.len() as i64).max(1);
    (present.clamp(LOW, high) - LOW) * BEST / (high - LOW)
}

/// Pods of the same owner on the node: replicas keep apart where nothing else decides.
fn siblings(q: &Question<'_>) -> i64 {
    let same = |p: &PodInfo| p.owner == q.pod.owner && p.namespace() == q.pod.namespace();
    match q.pod.owner {
        None => 0,
        Some(_) => q.node.pods.values().filter(|p| same(p)).count() as i64,
    }
}

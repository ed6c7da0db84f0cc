//! Scores: which of the feasible nodes is best. Each row yields raw numbers; they are brought to 0–100 over the
//! feasible nodes and weighted as the profile weighs them.

use crate::filter::Question;
use crate::profile::{Profile, Strategy, Weighted};

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
    /// Unless the profile says otherwise.
    pub weight: i64,
    scale: Scale,
    /// Where its raw number stands in a rating; `None`: it looks beyond the node.
    pub rated: Option<usize>,
    /// Can it tell nodes apart for this pod at all?
    applies: fn(&Question<'_>) -> bool,
    raw: fn(&Question<'_>) -> i64,
}

const fn row(name: &'static str, weight: i64, scale: Scale, raw: fn(&Question<'_>) -> i64) -> Score {
    Score { name, weight, scale, rated: None, applies: |_| true, raw }
}

impl Score {
    const fn only_if(self, applies: fn(&Question<'_>) -> bool) -> Score {
        Score { applies, ..self }
    }

    const fn rated(self, at: usize) -> Score {
        Score { rated: Some(at), ..self }
    }

    /// The raw number, asked anew.
    pub fn raw_of(&self, question: &Question<'_>) -> i64 {
        (self.raw)(question)
    }
}

/// How many scores look at the node alone.
pub const RATED: usize = 6;

/// The scores, with upstream's weights. `Siblings` is ours: replicas keep apart where nothing else decides, as
/// upstream's default spread constraints do.
pub const SCORES: &[Score] = &[
    row("TaintToleration", 3, Scale::Reversed, taints).rated(0),
    row("NodeAffinity", 2, Scale::Largest, affinity)
        .rated(1)
        .only_if(|q| !q.pod.preferred_terms.is_empty() || !q.profile.added.preferred.is_empty()),
    row("PodTopologySpread", 2, Scale::Reversed, |q| q.context.soft_spread(q.pod, q.spec))
        .only_if(|q| q.pod.spread.iter().any(|c| !c.hard)),
    row("InterPodAffinity", 2, Scale::Spread, |q| q.context.preference(q.spec))
        .only_if(|q| q.context.prefers()),
    row("NodeResourcesFit", 1, Scale::Plain, fit).rated(2),
    row("NodeResourcesBalancedAllocation", 1, Scale::Plain, balanced).rated(3),
    row("ImageLocality", 1, Scale::Plain, images).rated(4),
    row("Siblings", 2, Scale::Reversed, siblings).rated(5).only_if(|q| q.pod.owner.is_some()),
];

const BEST: i64 = 100;

impl Score {
    /// Weighted points, in the order of the questions.
    pub fn points(&self, weight: i64, questions: &[Question<'_>]) -> Vec<i64> {
        let known = |q: &Question<'_>| Some(q.rating?.raws[self.rated?]);
        let raw: Vec<i64> = questions.iter().map(|q| known(q).unwrap_or_else(|| (self.raw)(q))).collect();
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
        raw.into_iter().map(|raw| weight * scaled(raw)).collect()
    }
}

/// Sums of the points, in the order of the questions; scores that say the same of all nodes are left out.
pub fn totals(profile: &Profile, questions: &[Question<'_>]) -> Vec<i64> {
    let mut totals = vec![0; questions.len()];
    let applies = |score: &Score| questions.first().is_some_and(score.applies);
    for (score, weight) in profile.scores().filter(|(score, _)| applies(score)) {
        let points = score.points(weight, questions);
        totals.iter_mut().zip(points).for_each(|(total, points)| *total += points);
    }
    totals
}

fn taints(q: &Question<'_>) -> i64 {
    q.spec.taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !q.pod.tolerates(t)).count() as i64
}

fn affinity(q: &Question<'_>) -> i64 {
    let terms = q.pod.preferred_terms.iter().chain(&q.profile.added.preferred);
    terms.filter(|(_, t)| t.matches(&q.spec.name, &q.spec.labels)).map(|(weight, _)| weight).sum()
}

/// What is used of a resource with the pod, and what there is; `None`: the node has none, or it is not about the pod.
fn usage(q: &Question<'_>, name: &str) -> Option<(i64, i64)> {
    let all = &q.spec.allocatable;
    let (used, all) = match name {
        "cpu" => (q.pod.assumed.milli_cpu.saturating_add(q.node.assumed.milli_cpu), all.milli_cpu),
        "memory" => {
            (q.pod.assumed.memory_bytes.saturating_add(q.node.assumed.memory_bytes), all.memory_bytes)
        }
        "ephemeral-storage" => {
            (q.pod.requests.ephemeral_bytes + q.node.requested.ephemeral_bytes, all.ephemeral_bytes)
        }
        _ => {
            let of = |r: &crate::Resources| r.extended.get(name).copied().unwrap_or(0);
            let wanted = Some(of(&q.pod.requests)).filter(|w| *w > 0)?;
            (wanted + of(&q.node.requested), of(all))
        }
    };
    (all > 0).then_some((used, all))
}

/// Used parts of 1,000, with weights.
fn shares<'a>(q: &'a Question<'_>, of: &'a [Weighted]) -> impl Iterator<Item = (i64, i64)> + 'a {
    of.iter().filter_map(|(name, weight)| {
        let (used, all) = usage(q, name)?;
        Some((thousandths(used, all), *weight))
    })
}

/// At most 1,000. Wide arithmetic is slow, and needed for petabytes only.
fn thousandths(used: i64, all: i64) -> i64 {
    let part = match used.checked_mul(1000) {
        Some(used) => used / all,
        None => (i128::from(used) * 1000 / i128::from(all)).min(1000) as i64,
    };
    part.min(1000)
}

fn fit(q: &Question<'_>) -> i64 {
    let points = |share: i64| match &q.profile.strategy {
        Strategy::Least => 1000 - share,
        Strategy::Most => share,
        // Ten points are the most that a shape gives.
        Strategy::Shape(shape) => on_shape(shape, share / 10) * 100,
    };
    let (mut sum, mut weights) = (0, 0);
    for (share, weight) in shares(q, &q.profile.rated) {
        let points = points(share);
        // A shape that gives nothing for a resource leaves it out (as upstream).
        if points > 0 || !matches!(q.profile.strategy, Strategy::Shape(_)) {
            sum += points * weight;
            weights += weight;
        }
    }
    if weights == 0 { 0 } else { sum / weights / 10 }
}

/// The points at a use in percent: those of the neighbours, in proportion.
fn on_shape(shape: &[(i64, i64)], percent: i64) -> i64 {
    let Some(after) = shape.iter().position(|(at, _)| percent <= *at) else {
        return shape.last().map_or(0, |(_, points)| *points);
    };
    let (at, points) = shape[after];
    match after.checked_sub(1).map(|before| shape[before]) {
        None => points,
        Some((from, start)) => start + (points - start) * (percent - from) / (at - from),
    }
}

/// 100 where all resources are used alike: less by the standard deviation of their shares.
fn balanced(q: &Question<'_>) -> i64 {
    let (mut count, mut sum, mut squares) = (0, 0, 0);
    for (share, _) in shares(q, &q.profile.balanced) {
        (count, sum, squares) = (count + 1, sum + share, squares + share * share);
    }
    let variance = if count == 0 { 0 } else { (squares * count - sum * sum) / (count * count) };
    BEST - variance.isqrt() / 10
}

/// Bytes of the pod's images that the node has, between 23 MB (0) and 1 GB a container (100), as upstream.
fn images(q: &Question<'_>) -> i64 {
    const LOW: i64 = 23 << 20;
    const HIGH_EACH: i64 = 1000 << 20;
    if q.spec.images.is_empty() {
        return 0;
    }
    let present: i64 = q.pod.images.iter().filter_map(|i| q.spec.images.get(i)).sum();
    let high = HIGH_EACH * (q.pod.images.len() as i64).max(1);
    (present.clamp(LOW, high) - LOW) * BEST / (high - LOW)
}

/// Pods of the same owner on the node.
fn siblings(q: &Question<'_>) -> i64 {
    q.pod.owner.as_ref().and_then(|owner| q.node.owners.get(owner)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_followed() {
        let shape = [(0, 0), (50, 10), (100, 4)];
        let at: Vec<i64> = [0, 25, 50, 75, 100, 120].iter().map(|p| on_shape(&shape, *p)).collect();
        assert_eq!(at, [0, 5, 10, 7, 4, 4]);
        assert_eq!(on_shape(&[(30, 7)], 10), 7);
    }
}

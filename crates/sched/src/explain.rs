//! Why a pod goes where it goes: every filter's and every score's word on every node, by the code that decides.

use crate::filter::Question;
use crate::interpod::PodContext;
use crate::model::{PodInfo, Snapshot};
use crate::schedule::tie;
use std::cmp::Reverse;

/// What is said about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub node: String,
    /// Filters that object, with their reasons.
    pub objections: Vec<(&'static str, Vec<String>)>,
    /// Weighted points by score, in the order of [`Explanation::scores`]; none where a filter objects.
    pub points: Vec<i64>,
}

/// What is said about all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Why no node was asked at all, "" where they were.
    pub before: String,
    /// The names of the scores.
    pub scores: Vec<&'static str>,
    /// One a node; the best first, then those that objected, by name.
    pub nodes: Vec<Verdict>,
}

/// Asks every filter (not only up to the first objection) and every score.
pub fn explain(snapshot: &Snapshot, pod: &PodInfo) -> Explanation {
    let volumes = match snapshot.volumes.needs(pod, snapshot) {
        Ok(needs) => needs,
        Err(before) => return Explanation { before, ..Explanation::default() },
    };
    let context = PodContext::new(snapshot, pod);
    let profile = snapshot.profiles.of(pod.scheduler());
    let mut out = Explanation::default();
    let mut feasible = Vec::new();
    for (spec, node) in snapshot.nodes() {
        // Who was promised the node is there already, for pods that are no more important.
        let mut full = node.clone();
        let mut context = context.clone();
        for promised in snapshot.nominations.ahead_of(pod, &spec.name) {
            promised.id.iter().for_each(|id| full.put(id.clone(), promised.clone()));
            context.count_pod(pod, spec, promised, 1);
        }
        let question =
            Question { pod, profile, spec, node: &full, context: &context, volumes: &volumes, rating: None };
        let asked = profile.filters(0).map(|row| (row.name, (row.filter)(&question)));
        let objections: Vec<_> = asked.filter(|(_, reasons)| !reasons.is_empty()).collect();
        if objections.is_empty() {
            feasible.push((spec, node));
        }
        out.nodes.push(Verdict { node: spec.name.clone(), objections, points: Vec::new() });
    }
    let mut questions = Vec::with_capacity(feasible.len());
    for (spec, node) in feasible {
        questions.push(Question {
            pod,
            profile,
            spec,
            node,
            context: &context,
            volumes: &volumes,
            rating: None,
        });
    }
    for (score, weight) in profile.scores() {
        out.scores.push(score.name);
        let mut points = score.points(weight, &questions).into_iter();
        for verdict in out.nodes.iter_mut().filter(|v| v.objections.is_empty()) {
            verdict.points.extend(points.next());
        }
    }
    let total = |v: &Verdict| v.points.iter().sum::<i64>();
    let rank = |v: &Verdict| match v.objections.is_empty() {
        true => (0, Reverse((total(v), tie(&pod.id, &v.node))), String::new()),
        false => (1, Reverse((0, 0)), v.node.clone()),
    };
    out.nodes.sort_by_key(rank);
    out
}

//! What nodes alone say of pods of one kind, kept from pod to pod: a node that has not changed says the same of the next
//! replica, so that a decision looks at a number where it would ask every filter and score anew.
//!
//! Invariant: a rating that is found equals one made anew. It stands under the node's state, which no two states share
//! ([`NodeInfo::state`]); two nodes at the same place only make each other's ratings be made again.
//! Deliberately not here: what looks beyond the node (spread, other pods, volumes, devices).

use crate::filter::Question;
use crate::model::{NodeInfo, PodInfo};
use crate::score::{RATED, SCORES};
use std::sync::Arc;

/// Kinds of pods whose ratings are kept: as many are scheduled in turns without asking anew (some 70 bytes a node each).
const KEPT_MAX: usize = 4;

/// What a node says of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rating {
    state: u64,
    /// Does no filter that looks at the node alone object?
    pub fits: bool,
    /// Raw numbers of the scores that look at the node alone.
    pub raws: [i64; RATED],
}

impl Rating {
    /// Asks the node.
    pub fn new(question: &Question<'_>, fits: bool) -> Rating {
        let mut raws = [0; RATED];
        if fits {
            let rated = SCORES.iter().filter_map(|score| Some((score.rated?, score)));
            rated.for_each(|(at, score)| raws[at] = score.raw_of(question));
        }
        Rating { state: question.node.state, fits, raws }
    }
}

/// Ratings for pods of one kind, by the node's place.
#[derive(Clone, Debug, Default)]
pub struct Ratings(Vec<Rating>);

impl Ratings {
    /// What the node said, if it is as it was.
    pub fn get(&self, node: &NodeInfo) -> Option<&Rating> {
        self.0.get(node.place).filter(|rating| rating.state == node.state)
    }

    /// Notes what the node said.
    pub fn put(&mut self, node: &NodeInfo, rating: Rating) {
        if self.0.len() <= node.place {
            self.0.resize(node.place + 1, Rating::default());
        }
        self.0[node.place] = rating;
    }
}

/// The kinds, the latest last.
#[derive(Clone, Debug, Default)]
pub struct Kinds(Vec<(Arc<PodInfo>, Ratings)>);

impl Kinds {
    /// Takes out the ratings that hold for this pod.
    pub fn take(&mut self, pod: &PodInfo) -> Ratings {
        let at = self.0.iter().rposition(|(known, _)| known.is_rated_as(pod));
        at.map(|at| self.0.remove(at).1).unwrap_or_default()
    }

    /// Keeps them for the next one, if there are any.
    pub fn keep(&mut self, pod: &Arc<PodInfo>, ratings: Ratings) {
        if ratings.0.is_empty() {
            return;
        }
        if self.0.len() == KEPT_MAX {
            self.0.remove(0);
        }
        self.0.push((pod.clone(), ratings));
    }
}

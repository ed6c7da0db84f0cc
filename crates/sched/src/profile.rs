//! What a scheduler of some name prefers: which filters and scores run, with which weights and arguments.
//!
//! Two are built in: one spreads pods over the nodes, the other fills nodes one after the other. Others are read from
//! a file (`config`).

use crate::filter::FILTERS;
use crate::score::{SCORES, Score};
use crate::terms::NodeTerm;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The scheduler of pods that name none.
pub const DEFAULT_NAME: &str = "default-scheduler";
/// The built-in profile that fills nodes, for pods that ask for it by this name.
pub const DENSITY_NAME: &str = "density-scheduler";

/// Fewer feasible nodes than this are all rated (as upstream).
const RATED_MIN: usize = 100;
/// The least part of the nodes that is rated, in percent (as upstream).
const RATED_PERCENT_MIN: usize = 5;

/// How a node's use becomes points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Empty nodes are best.
    Least,
    /// Full nodes are best.
    Most,
    /// Points (0–10) by use in percent, straight lines between.
    Shape(Vec<(i64, i64)>),
}

/// A name and what it weighs.
pub type Weighted = (String, i64);

/// Node affinity that every pod of a profile has besides its own.
#[derive(Clone, Debug, Default)]
pub struct AddedAffinity {
    /// One of these must match.
    pub required: Option<Vec<NodeTerm>>,
    /// These are liked.
    pub preferred: Vec<(i64, NodeTerm)>,
}

/// What a scheduler of one name does.
#[derive(Clone, Debug)]
pub struct Profile {
    /// `spec.schedulerName` of its pods.
    pub name: String,
    /// Filters that do not run.
    pub(crate) filters_off: BTreeSet<&'static str>,
    /// Scores that run, by the row in [`SCORES`], with weights.
    pub(crate) weights: Vec<(usize, i64)>,
    pub(crate) strategy: Strategy,
    pub(crate) rated: Vec<Weighted>,
    pub(crate) balanced: Vec<Weighted>,
    /// Extended resources, or whole groups of them, that are not looked at.
    pub(crate) ignored: BTreeSet<String>,
    pub(crate) ignored_groups: BTreeSet<String>,
    /// What required affinity of placed pods weighs for a pod that it selects.
    pub(crate) hard_affinity_weight: i64,
    /// Preferences of placed pods do not count for pods without such rules.
    pub(crate) ignore_theirs: bool,
    pub(crate) added: AddedAffinity,
    /// For pods that say nothing of spread.
    pub(crate) default_spread: Vec<TopologySpreadConstraint>,
    pub(crate) preempts: bool,
    /// Nodes looked at for preemption: at least these, and this part in percent.
    pub(crate) candidates_min: usize,
    pub(crate) candidates_percent: usize,
    /// Feasible nodes that are enough, in percent of all; 0: by the size of the cluster.
    pub(crate) rated_percent: usize,
}

fn cpu_and_memory() -> Vec<Weighted> {
    vec![("cpu".into(), 1), ("memory".into(), 1)]
}

impl Profile {
    /// Upstream's default under some name.
    pub fn spreading(name: &str) -> Profile {
        Profile {
            name: name.into(),
            filters_off: BTreeSet::new(),
            weights: SCORES.iter().enumerate().map(|(row, score)| (row, score.weight)).collect(),
            strategy: Strategy::Least,
            rated: cpu_and_memory(),
            balanced: cpu_and_memory(),
            ignored: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            hard_affinity_weight: 1,
            ignore_theirs: false,
            added: AddedAffinity::default(),
            default_spread: Vec::new(),
            preempts: true,
            candidates_min: 100,
            candidates_percent: 10,
            rated_percent: 0,
        }
    }

    /// Nodes are filled one after the other, so that some stay empty.
    pub fn density(name: &str) -> Profile {
        let mut profile = Profile { strategy: Strategy::Most, ..Profile::spreading(name) };
        profile.weigh("NodeResourcesBalancedAllocation", None);
        profile.weigh("Siblings", None);
        // Above all soft rules but taints: a half-full node must beat an empty one.
        profile.weigh("NodeResourcesFit", Some(5));
        profile
    }

    /// Gives a score a weight, or takes it out.
    pub(crate) fn weigh(&mut self, name: &str, weight: Option<i64>) {
        let Some(row) = SCORES.iter().position(|s| s.name == name) else { return };
        self.weights.retain(|(at, _)| *at != row);
        self.weights.extend(weight.map(|w| (row, w)));
        self.weights.sort_unstable();
    }

    /// Its scores with their weights.
    pub(crate) fn scores(&self) -> impl Iterator<Item = (&'static Score, i64)> {
        self.weights.iter().map(|(row, weight)| (&SCORES[*row], *weight))
    }

    /// Its filters but for so many that come first.
    pub(crate) fn filters(&self, but: usize) -> impl Iterator<Item = &'static crate::filter::Row> {
        FILTERS[but..]
            .iter()
            .filter(|row| self.filters_off.is_empty() || !self.filters_off.contains(row.name))
    }

    /// How many feasible nodes are enough of so many nodes.
    pub(crate) fn enough(&self, nodes: usize) -> usize {
        let percent = match self.rated_percent {
            0 => 50usize.saturating_sub(nodes / 125).max(RATED_PERCENT_MIN),
            given => given,
        };
        (nodes * percent / 100).max(RATED_MIN)
    }

    /// Is an extended resource left to others (device plug-ins' extenders)?
    pub(crate) fn ignores(&self, resource: &str) -> bool {
        let group = resource.split_once('/').map_or("", |(group, _)| group);
        self.ignored.contains(resource) || self.ignored_groups.contains(group)
    }
}

/// The profiles of one scheduler; shared.
#[derive(Clone, Debug)]
pub struct Profiles(Arc<Vec<Profile>>);

impl Profiles {
    /// These, the first one for pods that are nobody else's.
    pub fn new(profiles: Vec<Profile>) -> Profiles {
        Profiles(Arc::new(profiles))
    }

    /// Nodes are filled, whatever pods say.
    pub fn density() -> Profiles {
        Profiles::new(vec![Profile::density(DEFAULT_NAME), Profile::density(DENSITY_NAME)])
    }

    /// The profile of that name.
    pub fn named(&self, name: &str) -> Option<&Profile> {
        self.0.iter().find(|p| p.name == name)
    }

    /// The profile of that name, else the first.
    pub(crate) fn of(&self, name: &str) -> &Profile {
        self.named(name).unwrap_or(&self.0[0])
    }
}

impl Default for Profiles {
    fn default() -> Self {
        Profiles::new(vec![Profile::spreading(DEFAULT_NAME), Profile::density(DENSITY_NAME)])
    }
}

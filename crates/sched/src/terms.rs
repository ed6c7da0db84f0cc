//! Node selector terms, pod affinity terms and spread constraints, read once from the API's forms.

use crate::model::PodInfo;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use machinery::selector::{LabelSelector, Op, Requirement};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Labels of a node or pod.
pub type Labels = BTreeMap<String, String>;

/// Labels of namespaces, by name; shared.
pub type Namespaces = Arc<BTreeMap<String, Labels>>;

/// One `nodeSelectorTerm`: all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTerm {
    expressions: Vec<Requirement>,
    fields: Vec<Requirement>,
}

fn requirement(r: &core::NodeSelectorRequirement) -> Option<Requirement> {
    let op = match r.operator.as_str() {
        "In" => Op::In,
        "NotIn" => Op::NotIn,
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::GreaterThan,
        "Lt" => Op::LessThan,
        _ => return None,
    };
    Some(Requirement { key: r.key.clone(), op, values: r.values.iter().flatten().cloned().collect() })
}

impl NodeTerm {
    /// Reads a term. An operator that does not exist makes it match nothing.
    pub fn read(term: &core::NodeSelectorTerm) -> Option<Self> {
        let all = |list: &Option<Vec<core::NodeSelectorRequirement>>| {
            list.iter().flatten().map(requirement).collect::<Option<Vec<_>>>()
        };
        Some(NodeTerm { expressions: all(&term.match_expressions)?, fields: all(&term.match_fields)? })
    }

    /// The names of the only nodes that can match, where the term says them.
    pub fn named(&self) -> Option<impl Iterator<Item = &str>> {
        let named = |r: &&Requirement| r.key == "metadata.name" && r.op == Op::In;
        Some(self.fields.iter().find(named)?.values.iter().map(String::as_str))
    }

    /// Does the node match? An empty term matches nothing.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let field = |r: &Requirement| r.key == "metadata.name" && r.matches(Some(name));
        (!self.expressions.is_empty() || !self.fields.is_empty())
            && self.expressions.iter().all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self.fields.iter().all(field)
    }
}

/// A label selector of the API; absent selects nothing.
pub fn selector(selector: Option<&meta::LabelSelector>) -> LabelSelector {
    let Some(selector) = selector else { return LabelSelector::nothing() };
    let mut requirements: Vec<Requirement> = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        requirements.push(Requirement { key: key.clone(), op: Op::Equals, values: [value.clone()].into() });
    }
    for expression in selector.match_expressions.iter().flatten() {
        let op = match expression.operator.as_str() {
            "In" => Op::In,
            "NotIn" => Op::NotIn,
            "Exists" => Op::Exists,
            "DoesNotExist" => Op::DoesNotExist,
            _ => return LabelSelector::nothing(),
        };
        let values = expression.values.iter().flatten().cloned().collect();
        requirements.push(Requirement { key: expression.key.clone(), op, values });
    }
    let mut out = LabelSelector::everything();
    out.requirements = requirements;
    out
}

/// One pod (anti-)affinity term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTerm {
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    /// Besides those named: the ones with such labels.
    of_namespaces: Option<LabelSelector>,
    /// Node label whose value names the domain.
    pub topology_key: String,
    /// Weight of a preferred term; 0 for required ones.
    pub weight: i64,
}

impl PodTerm {
    /// Reads a term of a pod in `namespace` with `labels` (for matchLabelKeys).
    pub fn read(term: &core::PodAffinityTerm, namespace: &str, labels: &Labels, weight: i64) -> Self {
        let mut chosen = selector(term.label_selector.as_ref());
        let keys = [(&term.match_label_keys, Op::Equals), (&term.mismatch_label_keys, Op::NotEquals)];
        for (keys, op) in keys {
            for key in keys.iter().flatten() {
                if let Some(value) = labels.get(key) {
                    chosen.requirements.push(Requirement {
                        key: key.clone(),
                        op,
                        values: [value.clone()].into(),
                    });
                }
            }
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_string());
        }
        PodTerm {
            selector: chosen,
            namespaces,
            of_namespaces: term.namespace_selector.as_ref().map(|s| selector(Some(s))),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    /// Does the term select this pod?
    pub fn selects(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let none = Labels::new();
        let labels = || namespaces.get(pod.namespace()).unwrap_or(&none);
        let there = self.namespaces.contains(pod.namespace())
            || self.of_namespaces.as_ref().is_some_and(|s| s.matches(labels()));
        there && self.selector.matches(&pod.labels)
    }
}

/// One topology spread constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Which pods count.
    pub selector: LabelSelector,
    /// Of a default constraint: the owner whose pods count instead.
    pub owner: Option<Arc<str>>,
    /// Node label whose value names the domain.
    pub topology_key: String,
    /// Largest allowed difference between domains.
    pub max_skew: i64,
    /// `DoNotSchedule`, as against `ScheduleAnyway`.
    pub hard: bool,
    /// Domains that must exist before the smallest counts; 0 when unset.
    pub min_domains: usize,
    /// Leave out nodes that the pod's node affinity excludes?
    pub honor_affinity: bool,
    /// Leave out nodes whose taints the pod does not tolerate?
    pub honor_taints: bool,
}

impl Spread {
    /// Does a pod of the same namespace count? One that is going does not.
    pub fn counts(&self, pod: &PodInfo) -> bool {
        !pod.going
            && match &self.owner {
                Some(owner) => pod.owner.as_ref() == Some(owner),
                None => self.selector.matches(&pod.labels),
            }
    }

    /// Reads a constraint of a pod with `labels` (for matchLabelKeys).
    pub fn read(c: &core::TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut chosen = selector(c.label_selector.as_ref());
        for key in c.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                let values = [value.clone()].into();
                chosen.requirements.push(Requirement { key: key.clone(), op: Op::Equals, values });
            }
        }
        Spread {
            selector: chosen,
            owner: None,
            topology_key: c.topology_key.clone(),
            max_skew: c.max_skew.into(),
            hard: c.when_unsatisfiable == "DoNotSchedule",
            min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

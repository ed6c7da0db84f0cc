//! Rules between pods: required and preferred (anti-)affinity and topology spread.
//!
//! One pass over the placed pods counts matches by topology domain; each node is then a look-up. What-ifs count single
//! pods in and out ([`PodContext::count_pod`]), which undoes itself exactly.

use crate::filter::has_untolerated_taint;
use crate::model::{NodeSpec, PodInfo, Snapshot};
use crate::terms::{PodTerm, Spread};
use std::collections::BTreeMap;

/// No eviction makes a node have a label.
pub const MISSING_LABEL: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";

/// A topology domain: label key and value.
type Domain = (String, String);

/// How many pods by domain; a count of none is not kept.
type Counts<K> = BTreeMap<K, i64>;

fn count<K: Ord>(counts: &mut Counts<K>, key: K, by: i64) {
    let sum = counts.get(&key).copied().unwrap_or(0) + by;
    match sum {
        0 => drop(counts.remove(&key)),
        _ => drop(counts.insert(key, sum)),
    }
}

/// Counts that depend on the pod alone, made once for all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodContext {
    /// By required affinity term: the domains with a matching pod.
    affine: Vec<Counts<String>>,
    /// By required anti-affinity term: the domains with a matching pod.
    anti_affine: Vec<Counts<String>>,
    /// Domains where a placed pod's anti-affinity keeps this pod away.
    refused: Counts<Domain>,
    /// By spread constraint: matching pods by domain value (domains with none are there too).
    spread: Vec<BTreeMap<String, i64>>,
    /// Sum of preferred terms' weights by domain.
    preference: Counts<Domain>,
}

impl PodContext {
    /// Counts over the snapshot; free for pods without such rules in a cluster without anti-affinity.
    pub fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let mut context = PodContext {
            affine: vec![Counts::new(); pod.affinity.len()],
            anti_affine: vec![Counts::new(); pod.anti_affinity.len()],
            spread: vec![BTreeMap::new(); pod.spread.len()],
            ..PodContext::default()
        };
        let own_rules = !(pod.affinity.is_empty()
            && pod.anti_affinity.is_empty()
            && pod.spread.is_empty()
            && pod.preferred_affinity.is_empty());
        if !own_rules && snapshot.anti_affine == 0 {
            return context;
        }
        for (spec, node) in snapshot.nodes() {
            context.count_domains(pod, spec);
            for placed in node.pods.values() {
                context.count_pod(pod, spec, placed, 1);
            }
        }
        context
    }

    fn count_domains(&mut self, pod: &PodInfo, node: &NodeSpec) {
        for (constraint, counts) in pod.spread.iter().zip(&mut self.spread) {
            if let Some(value) = node.labels.get(&constraint.topology_key)
                && counts_node(constraint, pod, node)
            {
                counts.entry(value.clone()).or_default();
            }
        }
    }

    /// Counts a pod on a node in (`by` 1) or out (-1).
    pub fn count_pod(&mut self, pod: &PodInfo, node: &NodeSpec, placed: &PodInfo, by: i64) {
        let selects = |t: &PodTerm| t.selects(placed.namespace(), &placed.labels);
        for (terms, domains) in
            [(&pod.affinity, &mut self.affine), (&pod.anti_affinity, &mut self.anti_affine)]
        {
            for (term, domains) in terms.iter().zip(domains) {
                if let Some(value) = node.labels.get(&term.topology_key)
                    && selects(term)
                {
                    count(domains, value.clone(), by);
                }
            }
        }
        for term in placed.anti_affinity.iter().filter(|t| t.selects(pod.namespace(), &pod.labels)) {
            if let Some(value) = node.labels.get(&term.topology_key) {
                count(&mut self.refused, (term.topology_key.clone(), value.clone()), by);
            }
        }
        let same_namespace = placed.namespace() == pod.namespace();
        for (constraint, counts) in pod.spread.iter().zip(&mut self.spread) {
            if let Some(matching) = node.labels.get(&constraint.topology_key).and_then(|v| counts.get_mut(v))
                && same_namespace
                && counts_node(constraint, pod, node)
                && constraint.selector.matches(&placed.labels)
            {
                *matching += by;
            }
        }
        let soft = pod.preferred_affinity.iter().filter(|t| selects(t));
        let theirs = placed.preferred_affinity.iter().filter(|t| t.selects(pod.namespace(), &pod.labels));
        for term in soft.chain(theirs) {
            if let Some(value) = node.labels.get(&term.topology_key) {
                count(&mut self.preference, (term.topology_key.clone(), value.clone()), by * term.weight);
            }
        }
    }

    /// Does a required affinity term keep the pod off this node? No eviction helps then.
    pub fn lacks_company(&self, pod: &PodInfo, node: &NodeSpec) -> bool {
        // The first pod of a group may start it: no pod matches anywhere and the pod matches its own terms.
        let starts = self.affine.iter().all(Counts::is_empty)
            && pod.affinity.iter().all(|t| t.selects(pod.namespace(), &pod.labels));
        let near = |(term, domains): (&PodTerm, &Counts<String>)| match node.labels.get(&term.topology_key) {
            Some(value) => starts || domains.contains_key(value),
            None => false,
        };
        !pod.affinity.iter().zip(&self.affine).all(near)
    }

    /// Why required (anti-)affinity keeps the pod off this node.
    pub fn affinity_objection(&self, pod: &PodInfo, node: &NodeSpec) -> Option<&'static str> {
        if self.lacks_company(pod, node) {
            return Some("node(s) didn't match pod affinity rules");
        }
        let near = |(term, domains): (&PodTerm, &Counts<String>)| {
            node.labels.get(&term.topology_key).is_some_and(|v| domains.contains_key(v))
        };
        let crowded = pod.anti_affinity.iter().zip(&self.anti_affine).any(near);
        if crowded {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let refused = |d: &Domain| node.labels.get(&d.0) == Some(&d.1);
        let refused = self.refused.keys().any(refused);
        refused.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    /// Why a hard spread constraint keeps the pod off this node.
    pub fn spread_objection(&self, pod: &PodInfo, node: &NodeSpec) -> Option<&'static str> {
        for (constraint, counts) in pod.spread.iter().zip(&self.spread).filter(|(c, _)| c.hard) {
            let Some(value) = node.labels.get(&constraint.topology_key) else {
                return Some(MISSING_LABEL);
            };
            let few = counts.len() < constraint.min_domains;
            let least = if few { 0 } else { counts.values().copied().min().unwrap_or(0) };
            let own = i64::from(constraint.selector.matches(&pod.labels));
            let here = counts.get(value).copied().unwrap_or(0);
            if here + own - least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// Sum of the preferred terms that speak for this node (against it: negative).
    pub fn preference(&self, node: &NodeSpec) -> i64 {
        self.preference.iter().filter(|(d, _)| node.labels.get(&d.0) == Some(&d.1)).map(|(_, w)| w).sum()
    }

    /// Matching pods in this node's domains of the soft constraints: fewer is better.
    pub fn soft_spread(&self, pod: &PodInfo, node: &NodeSpec) -> i64 {
        let soft = pod.spread.iter().zip(&self.spread).filter(|(c, _)| !c.hard);
        let count = |c: &Spread, counts: &BTreeMap<String, i64>| {
            node.labels.get(&c.topology_key).and_then(|v| counts.get(v)).copied().unwrap_or(0)
        };
        soft.map(|(c, counts)| count(c, counts)).sum()
    }
}

fn counts_node(constraint: &Spread, pod: &PodInfo, node: &NodeSpec) -> bool {
    (!constraint.honor_affinity || pod.selects_node(node))
        && (!constraint.honor_taints || !has_untolerated_taint(pod, node))
}

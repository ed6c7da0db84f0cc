//! Rules between pods: required and preferred (anti-)affinity and topology spread.
//!
//! One pass over the placed pods counts matches by topology domain; each node is then a look-up. What-ifs count single
//! pods in and out ([`PodContext::count_pod`]), which undoes itself exactly.

use crate::filter::has_untolerated_taint;
use crate::model::{NodeSpec, PodInfo, Snapshot};
use crate::terms::{Namespaces, PodTerm, Spread};
use std::collections::BTreeMap;

/// No eviction makes a node have a label.
pub const MISSING_LABEL: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";

/// How many pods by domain; a count of none is not kept.
type Counts<K> = BTreeMap<K, i64>;

fn count<K: Ord>(counts: &mut Counts<K>, key: K, by: i64) {
    let sum = counts.get(&key).copied().unwrap_or(0) + by;
    match sum {
        0 => drop(counts.remove(&key)),
        _ => drop(counts.insert(key, sum)),
    }
}

/// Sums by label key and value: a node looks up its own values only.
type Domains = BTreeMap<String, Counts<String>>;

fn count_domain(domains: &mut Domains, key: &str, value: &str, by: i64) {
    let Some(counts) = domains.get_mut(key) else {
        return count(domains.entry(key.to_string()).or_default(), value.to_string(), by);
    };
    count(counts, value.to_string(), by);
    if counts.is_empty() {
        domains.remove(key);
    }
}

/// Pods by domain of a spread constraint, and how many domains have so many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// 1 where the pod that waits counts itself.
    own: i64,
    pods: BTreeMap<String, i64>,
    sizes: Counts<i64>,
}

impl Tally {
    /// A domain exists, though nothing may be in it.
    fn exists(&mut self, value: &str) {
        if !self.pods.contains_key(value) {
            self.pods.insert(value.to_string(), 0);
            count(&mut self.sizes, 0, 1);
        }
    }

    fn count(&mut self, value: &str, by: i64) {
        let Some(pods) = self.pods.get_mut(value) else { return };
        count(&mut self.sizes, *pods, -1);
        *pods += by;
        count(&mut self.sizes, *pods, 1);
    }

    fn least(&self) -> i64 {
        // Without a domain there is no least: nothing is too many.
        self.sizes.first_key_value().map_or(i64::from(i32::MAX), |(size, _)| *size)
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
    refused: Domains,
    /// By spread constraint: matching pods by domain value (domains with none are there too).
    spread: Vec<Tally>,
    /// Sum of preferred terms' weights by domain.
    preference: Domains,
    /// What a placed pod's required affinity to this pod weighs.
    hard_weight: i64,
    /// Do preferences of placed pods count?
    theirs: bool,
    /// Labels of namespaces.
    namespaces: Namespaces,
}

impl PodContext {
    /// Counts over the snapshot; free for pods without such rules in a cluster without anti-affinity.
    pub fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let profile = snapshot.profiles.of(pod.scheduler());
        let mut context = PodContext {
            hard_weight: profile.hard_affinity_weight,
            theirs: !profile.ignore_theirs || pod.has_terms(),
            namespaces: snapshot.namespaces.clone(),
            affine: vec![Counts::new(); pod.affinity.len()],
            anti_affine: vec![Counts::new(); pod.anti_affinity.len()],
            spread: pod
                .spread
                .iter()
                .map(|c| Tally { own: c.counts(pod).into(), ..Tally::default() })
                .collect(),
            ..PodContext::default()
        };
        let own_rules = pod.has_terms() || !pod.spread.is_empty();
        if !own_rules && snapshot.termed == 0 {
            return context;
        }
        for (spec, node) in snapshot.nodes() {
            context.count_domains(pod, spec);
            let pods = if own_rules { &node.pods } else { &node.termed };
            for placed in pods.values() {
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
                counts.exists(value);
            }
        }
    }

    /// Counts a pod on a node in (`by` 1) or out (-1).
    pub fn count_pod(&mut self, pod: &PodInfo, node: &NodeSpec, placed: &PodInfo, by: i64) {
        let namespaces = &self.namespaces;
        let selects = |t: &PodTerm| t.selects(placed, namespaces);
        // A pod is company only if every term selects it (as upstream); a stranger if one does.
        let company = pod.affinity.iter().all(selects);
        let affine = pod.affinity.iter().zip(&mut self.affine).filter(|_| company);
        let apart = pod.anti_affinity.iter().zip(&mut self.anti_affine).filter(|(t, _)| selects(t));
        for (term, domains) in affine.chain(apart) {
            if let Some(value) = node.labels.get(&term.topology_key) {
                count(domains, value.clone(), by);
            }
        }
        for term in placed.anti_affinity.iter().filter(|t| t.selects(pod, namespaces)) {
            if let Some(value) = node.labels.get(&term.topology_key) {
                count_domain(&mut self.refused, &term.topology_key, value, by);
            }
        }
        let same_namespace = placed.namespace() == pod.namespace();
        for (constraint, counts) in pod.spread.iter().zip(&mut self.spread) {
            if let Some(value) = node.labels.get(&constraint.topology_key)
                && same_namespace
                && constraint.counts(placed)
                && counts_node(constraint, pod, node)
            {
                counts.count(value, by);
            }
        }
        let soft = pod.preferred_affinity.iter().filter(|t| selects(t));
        let (preferred, required) = (&placed.preferred_affinity[..], &placed.affinity[..]);
        let theirs = if self.theirs { preferred } else { &[] }.iter().map(|t| (t, t.weight));
        let hard = if self.hard_weight > 0 { required } else { &[] }.iter().map(|t| (t, self.hard_weight));
        let theirs = theirs.chain(hard).filter(|(t, _)| t.selects(pod, namespaces));
        for (term, weight) in soft.map(|t| (t, t.weight)).chain(theirs) {
            if let Some(value) = node.labels.get(&term.topology_key) {
                count_domain(&mut self.preference, &term.topology_key, value, by * weight);
            }
        }
    }

    /// Does a required affinity term keep the pod off this node? No eviction helps then.
    pub fn lacks_company(&self, pod: &PodInfo, node: &NodeSpec) -> bool {
        // The first pod of a group may start it: no pod matches anywhere and the pod matches its own terms.
        let starts = self.affine.iter().all(Counts::is_empty)
            && pod.affinity.iter().all(|t| t.selects(pod, &self.namespaces));
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
        let refused =
            self.refused.iter().any(|(key, at)| node.labels.get(key).is_some_and(|v| at.contains_key(v)));
        refused.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    /// Why a hard spread constraint keeps the pod off this node.
    pub fn spread_objection(&self, pod: &PodInfo, node: &NodeSpec) -> Option<&'static str> {
        for (constraint, counts) in pod.spread.iter().zip(&self.spread).filter(|(c, _)| c.hard) {
            let Some(value) = node.labels.get(&constraint.topology_key) else {
                return Some(MISSING_LABEL);
            };
            let few = counts.pods.len() < constraint.min_domains;
            let least = if few { 0 } else { counts.least() };
            let here = counts.pods.get(value).copied().unwrap_or(0);
            if here + counts.own - least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// Is there no rule about other pods that could keep this pod off any node?
    pub fn is_free(&self, pod: &PodInfo) -> bool {
        self.refused.is_empty()
            && pod.affinity.is_empty()
            && pod.anti_affinity.is_empty()
            && !pod.spread.iter().any(|c| c.hard)
    }

    /// Do preferred terms speak for or against any node?
    pub fn prefers(&self) -> bool {
        !self.preference.is_empty()
    }

    /// Sum of the preferred terms that speak for this node (against it: negative).
    pub fn preference(&self, node: &NodeSpec) -> i64 {
        let here = |(key, weights): (&String, &Counts<String>)| weights.get(node.labels.get(key)?).copied();
        self.preference.iter().filter_map(here).sum()
    }

    /// Matching pods in this node's domains of the soft constraints: fewer is better.
    pub fn soft_spread(&self, pod: &PodInfo, node: &NodeSpec) -> i64 {
        let soft = pod.spread.iter().zip(&self.spread).filter(|(c, _)| !c.hard);
        let count = |c: &Spread, counts: &Tally| {
            node.labels.get(&c.topology_key).and_then(|v| counts.pods.get(v)).copied().unwrap_or(0)
        };
        soft.map(|(c, counts)| count(c, counts)).sum()
    }
}

fn counts_node(constraint: &Spread, pod: &PodInfo, node: &NodeSpec) -> bool {
    // Nodes that lack the key of another hard constraint count for none of them.
    let labelled = |c: &Spread| !c.hard || node.labels.contains_key(&c.topology_key);
    (!constraint.hard || pod.spread.iter().all(labelled))
        && (!constraint.honor_affinity || pod.selects_node(node))
        && (!constraint.honor_taints || !has_untolerated_taint(pod, node))
}

//! A what-if on one node: pods come and go, the filters are asked again, and at the end all is as before.

use crate::filter::{Objection, Question, objection};
use crate::interpod::PodContext;
use crate::model::{NodeInfo, NodeSpec, PodInfo};
use crate::profile::Profile;
use crate::ratings::Ratings;
use crate::volumes::Needs;
use std::sync::Arc;

/// What all trials for a pod share.
pub struct Subject<'a> {
    /// The pod that waits.
    pub pod: &'a PodInfo,
    /// What its scheduler does.
    pub profile: &'a Profile,
    /// Counts over all nodes; changed during a trial.
    pub context: PodContext,
    /// What its claims need.
    pub volumes: &'a Needs<'a>,
    /// What nodes said of pods like it.
    pub ratings: Ratings,
}

/// One what-if; dropping it takes every change back.
pub struct Trial<'a, 's> {
    subject: &'a mut Subject<'s>,
    spec: &'a NodeSpec,
    node: NodeInfo,
    changes: Vec<(Arc<PodInfo>, i64)>,
}

impl<'a, 's> Trial<'a, 's> {
    /// The node as it is.
    pub fn new(subject: &'a mut Subject<'s>, spec: &'a NodeSpec, node: &NodeInfo) -> Self {
        Trial { subject, spec, node: node.clone(), changes: Vec::new() }
    }

    /// A pod comes; nothing happens where it is already.
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        let Some(id) = pod.id.clone().filter(|id| !self.node.pods.contains_key(id)) else { return };
        self.node.put(id, pod.clone());
        self.count(pod, 1);
    }

    /// A pod that is there goes.
    pub fn remove(&mut self, pod: &Arc<PodInfo>) {
        let Some(id) = pod.id.as_ref().filter(|id| self.node.pods.contains_key(id)) else { return };
        self.node.take(id);
        self.count(pod, -1);
    }

    fn count(&mut self, pod: &Arc<PodInfo>, by: i64) {
        self.subject.context.count_pod(self.subject.pod, self.spec, pod, by);
        self.changes.push((pod.clone(), by));
    }

    /// The first filter that objects now.
    pub fn objection(&self) -> Option<(Objection, bool)> {
        let question = Question {
            pod: self.subject.pod,
            profile: self.subject.profile,
            spec: self.spec,
            node: &self.node,
            context: &self.subject.context,
            volumes: self.subject.volumes,
            rating: None,
        };
        objection(&question).map(|found| {
            let resolvable = (found.0.resolvable)(&question);
            (found, resolvable)
        })
    }

    /// The same, where neither these pods' coming nor their staying away may hurt.
    pub fn objection_beside(&mut self, promised: &[&Arc<PodInfo>]) -> Option<(Objection, bool)> {
        if !promised.is_empty() {
            let known = self.changes.len();
            promised.iter().for_each(|pod| self.add(pod));
            let found = self.objection();
            let added: Vec<Arc<PodInfo>> = self.changes[known..].iter().map(|(pod, _)| pod.clone()).collect();
            added.iter().for_each(|pod| self.remove(pod));
            if found.is_some() {
                return found;
            }
        }
        self.objection()
    }
}

impl Drop for Trial<'_, '_> {
    fn drop(&mut self) {
        for (pod, by) in self.changes.drain(..) {
            self.subject.context.count_pod(self.subject.pod, self.spec, &pod, -by);
        }
    }
}

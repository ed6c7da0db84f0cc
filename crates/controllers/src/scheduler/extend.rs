//! Asking extenders: their calls, in the order of the file; the answers come back to the loop, which decides anew.
//!
//! Pods that extenders are interested in are asked about at the same time; the decision holds what the snapshot says by
//! then. Deliberately not here: what an answer means (`sched::extend`), HTTP (whoever starts the scheduler brings it).

use super::hints::Change;
use super::state::{Decision, State};
use super::{Caches, Shell, key};
use async_trait::async_trait;
use client::{Object, ObjectKey};
use futures_util::future::join_all;
use sched::extend::{Advice, Candidates, Extender, failed, feasible};
use sched::{Diagnosis, PodInfo, Rescue};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;

/// The way to an extender.
#[async_trait]
pub trait Call: Send + Sync {
    /// Posts a document to this path of it; the answered document, or what went wrong.
    async fn call(&self, extender: &Extender, verb: &str, document: &Value) -> Result<Value, String>;
}

/// What extenders are to be asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Which of these nodes.
    Nodes(Vec<String>),
    /// Which of these victims; and what they said of nodes.
    Victims(Candidates, Advice),
}

impl State {
    /// The question about a pod before it is decided for; none where nobody is interested or no node is left.
    pub(super) fn question(&self, info: &PodInfo) -> Option<Question> {
        let asked = |e: &&Extender| {
            e.is_interested(info) && !(e.filter_verb.is_empty() && e.prioritize_verb.is_empty())
        };
        // Pods of a group are placed together, by our own rules.
        if info.group.is_some() || !self.snapshot.extenders.iter().any(|e| asked(&e)) {
            return None;
        }
        let nodes = feasible(&self.snapshot, info);
        (!nodes.is_empty()).then_some(Question::Nodes(nodes))
    }

    /// What extenders said of a pod, or why one did not: it is decided for.
    pub fn advised(
        &mut self,
        info: &Arc<PodInfo>,
        said: Result<Advice, String>,
        now: Instant,
    ) -> Vec<Decision> {
        let Some(id) = info.id.clone() else { return Vec::new() };
        let Some(entry) = self.asking.remove(&id) else { return Vec::new() };
        if !Arc::ptr_eq(&entry.info, info) {
            // Another form of the pod is being asked about.
            self.asking.insert(id, entry);
            return Vec::new();
        }
        match said {
            Ok(advice) => {
                self.snapshot.advice = Some((id, advice));
                let decisions = self.plan(vec![entry], now);
                let (_, advice) = self.snapshot.advice.take().unwrap_or_default();
                let refused = decisions.iter().any(|d| matches!(d, Decision::Refuse(..)));
                // Others were quicker, and there are more nodes: those are asked about after its pause.
                if refused && feasible(&self.snapshot, info).iter().any(|n| !advice.knows(n)) {
                    self.changes.insert(Change::Left);
                }
                decisions
            }
            Err(why) => {
                self.waiting.retry(entry, now);
                let diagnosis = Diagnosis::wrong(&why, Rescue::NotEligible(String::new()));
                vec![Decision::Refuse(info.clone(), diagnosis)]
            }
        }
    }
}

impl Shell {
    /// Asks those who are interested.
    pub(super) async fn consult(
        &self,
        info: &PodInfo,
        question: Question,
        caches: &Caches,
    ) -> Result<Advice, String> {
        let interested: Vec<&Extender> = self.extenders.iter().filter(|e| e.is_interested(info)).collect();
        match question {
            Question::Nodes(nodes) => self.ask_nodes(info, &interested, nodes, caches).await,
            Question::Victims(victims, advice) => {
                let left = self.ask_victims(info, &interested, victims, caches).await;
                left.map(|left| advice.with_victims(left))
            }
        }
    }

    async fn ask(&self, extender: &Extender, verb: &str, document: &Value) -> Result<Value, String> {
        let Some(calls) = &self.calls else { return Err("extenders cannot be called here".into()) };
        let answer = tokio::time::timeout(extender.timeout, calls.call(extender, verb, document)).await;
        answer.unwrap_or_else(|_| Err(format!("Post {:?}: context deadline exceeded", extender.url(verb))))
    }

    async fn ask_nodes(
        &self,
        info: &PodInfo,
        extenders: &[&Extender],
        nodes: Vec<String>,
        caches: &Caches,
    ) -> Result<Advice, String> {
        let pod = document(caches.pods.get(&key(info)));
        let node = |name: &str| document(caches.nodes.get(&ObjectKey::cluster(name)));
        let mut advice = Advice::begin(nodes);
        for extender in extenders.iter().filter(|e| !e.filter_verb.is_empty()) {
            if advice.nodes.is_empty() {
                break;
            }
            let asked = extender.about_nodes(&pod, &advice, node);
            let answer = self.ask(extender, &extender.filter_verb, &asked).await;
            skip_ignorable(extender, answer.and_then(|answer| advice.filtered(extender, &answer)))?;
        }
        if advice.nodes.len() > 1 {
            let rate = extenders.iter().filter(|e| !e.prioritize_verb.is_empty());
            let answers = join_all(rate.map(|extender| {
                let asked = extender.about_nodes(&pod, &advice, node);
                async move { (extender, self.ask(extender, &extender.prioritize_verb, &asked).await) }
            }));
            for (extender, answer) in answers.await {
                match answer {
                    Ok(answer) => advice.rated(extender, &answer),
                    Err(error) => tracing::warn!(extender = %extender.url_prefix, %error, "no rating"),
                }
            }
        }
        Ok(advice)
    }

    async fn ask_victims(
        &self,
        info: &PodInfo,
        extenders: &[&Extender],
        mut victims: Candidates,
        caches: &Caches,
    ) -> Result<Candidates, String> {
        let object = |info: &PodInfo| document(caches.pods.get(&key(info)));
        let pod = object(info);
        for extender in extenders.iter().filter(|e| !e.preempt_verb.is_empty()) {
            if victims.is_empty() {
                break;
            }
            let asked = extender.about_victims(&pod, &victims, object);
            let answer = self.ask(extender, &extender.preempt_verb, &asked).await;
            match answer.and_then(|answer| Advice::spared(extender, &victims, &answer)) {
                Ok(left) => victims = left,
                Err(error) => skip_ignorable(extender, Err(error))?,
            }
        }
        Ok(victims)
    }

    /// Has an extender bind the pod; `None`: none does.
    pub(super) async fn bind_by_extender(&self, info: &PodInfo, node: &str) -> Option<Result<(), String>> {
        let mut binders = self.extenders.iter().filter(|e| !e.bind_verb.is_empty() && e.is_interested(info));
        let binder = binders.next()?;
        let answer = self.ask(binder, &binder.bind_verb, &Extender::about_binding(info, node)).await;
        Some(answer.and_then(|answer| failed(&answer)))
    }
}

fn document(object: Option<Arc<Object>>) -> Value {
    object.and_then(|o| o.value().ok()).unwrap_or_default()
}

/// One that may be left out is left out when it fails.
fn skip_ignorable(extender: &Extender, done: Result<(), String>) -> Result<(), String> {
    match done {
        Err(error) if extender.ignorable => {
            tracing::warn!(extender = %extender.url_prefix, %error, "an extender that may fail did");
            Ok(())
        }
        done => done,
    }
}

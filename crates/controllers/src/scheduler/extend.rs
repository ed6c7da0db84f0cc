//! Asking extenders: their calls, in the order of the file; the answers come back to the loop, which decides anew.
//!
//! Pods that extenders are interested in are asked about at the same time, those of a group one after the other; the
//! decision holds what the snapshot says by then. Deliberately not here: what an answer means (`sched::extend`), HTTP (whoever starts the scheduler brings it).

use super::state::{Decision, State};
use super::waiting::Entry;
use super::{Caches, Shell, key};
use async_trait::async_trait;
use client::{Object, ObjectKey};
use futures_util::future::join_all;
use sched::extend::{Advice, Candidates, Extender, Question, failed};
use sched::{Diagnosis, GroupVerdict, PodId, PodInfo, Rescue};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// The way to an extender.
#[async_trait]
pub trait Call: Send + Sync {
    /// Posts a document to this path of it; the answered document, or what went wrong.
    async fn call(&self, extender: &Extender, verb: &str, document: &Value) -> Result<Value, String>;
}

/// A pod by itself, or (`true`) a group of pods.
type Unit = (bool, PodId);

/// Pods that are decided for when an answer is there.
struct Asked {
    about: Arc<PodInfo>,
    /// All that are decided for together.
    entries: Vec<Entry>,
    /// What was said of them so far.
    advice: BTreeMap<PodId, Advice>,
}

/// All that wait for answers.
///
/// Invariant: a pod stands in one unit at most.
#[derive(Default)]
pub struct Asking(BTreeMap<Unit, Asked>);

impl Asking {
    /// Is an answer awaited for this pod, whether it is about it or about another of its group?
    pub fn contains(&self, id: &PodId, uid: &str) -> bool {
        let mut entries = self.0.values().flat_map(|asked| &asked.entries);
        entries.any(|e| e.info.id.as_ref() == Some(id) && e.info.uid == uid)
    }

    /// Its answer is not awaited any more: yields those who waited with the pod.
    pub fn stop(&mut self, id: &PodId) -> Vec<Entry> {
        let has = |asked: &Asked| asked.entries.iter().any(|e| e.info.id.as_ref() == Some(id));
        let stopped = self.0.extract_if(.., |_, asked| has(asked));
        let entries = stopped.flat_map(|(_, asked)| asked.entries);
        entries.filter(|e| e.info.id.as_ref() != Some(id)).collect()
    }

    /// The same for a group: yields all of it.
    pub fn stop_group(&mut self, group: &PodId) -> Vec<Entry> {
        self.0.remove(&(true, group.clone())).map(|asked| asked.entries).unwrap_or_default()
    }
}

impl State {
    /// Those who are decided for together wait for an answer about one of them.
    pub(super) fn ask(&mut self, about: Arc<PodInfo>, entries: Vec<Entry>) {
        let Some(id) = about.id.clone() else { return };
        let group = about.group.clone().filter(|g| self.snapshot.groups.get(g).is_some());
        let unit = (group.is_some(), group.unwrap_or(id));
        self.asking.0.insert(unit, Asked { about, entries, advice: self.snapshot.advice.clone() });
    }

    /// What extenders said of a pod, or why one did not: it is decided for, with its group.
    pub fn advised(
        &mut self,
        info: &Arc<PodInfo>,
        said: Result<Advice, String>,
        now: Instant,
    ) -> Vec<Decision> {
        // Another form of the pod may be asked about by now, or another pod of its group.
        let mut mine = self.asking.0.extract_if(.., |_, asked| Arc::ptr_eq(&asked.about, info));
        let (unit, mut asked) = match (mine.next(), &info.id) {
            (Some(found), Some(_)) => found,
            _ => return Vec::new(),
        };
        drop(mine);
        match said {
            Ok(advice) => {
                let id = info.id.clone().unwrap_or_default();
                asked.advice.entry(id).or_default().extend(advice);
                self.snapshot.advice = asked.advice;
                let decisions = self.plan(asked.entries, now);
                self.snapshot.advice.clear();
                decisions
            }
            Err(why) => self.unanswered(&unit, asked, &why, now),
        }
    }

    /// An extender failed: all of the unit are tried again after their pause.
    fn unanswered(&mut self, (is_group, id): &Unit, asked: Asked, why: &str, now: Instant) -> Vec<Decision> {
        let of_group = format!("failed to schedule other pod from a pod group: {why}");
        let mut decisions = Vec::new();
        for entry in asked.entries {
            let why = if Arc::ptr_eq(&entry.info, &asked.about) { why } else { &of_group };
            let diagnosis = Diagnosis::wrong(why, Rescue::NotEligible(String::new()));
            decisions.push(Decision::Refuse(entry.info.clone(), diagnosis));
            self.waiting.retry(entry, now);
        }
        decisions.extend(is_group.then(|| Decision::Group(id.clone(), GroupVerdict::Wrong(of_group))));
        decisions
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
            Question::Victims(place, victims) => {
                let left = self.ask_victims(info, &interested, victims, caches).await;
                left.map(|left| Advice::of_victims(place, left))
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

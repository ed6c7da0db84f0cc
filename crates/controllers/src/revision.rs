//! Histories of templates: the ControllerRevisions of StatefulSets and DaemonSets, as `kubectl rollout` reads them.
//!
//! One revision holds one template; a template that comes back gets the highest number again. Old ones beyond the
//! limit go, but never one that a pod still runs.

use crate::context::Context;
use crate::owner::{Claimant, Kind, OwnedIndex};
use crate::workload::hash;
use client::cache::Cache;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_schema::{Gvr, gvr};
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The resource.
pub const CONTROLLER_REVISIONS: Gvr = Gvr::new("apps", "v1", "controllerrevisions");
/// The label that tells which revision a pod has.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// Names that are tried when another template has the same hash.
const COLLISIONS_MAX: i64 = 16;

/// One template of the past or present.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Name of the object.
    pub name: String,
    /// Its number: the highest is the newest.
    pub number: i64,
    /// `{"spec": {"template": …}}`, a patch that brings the template back.
    pub data: Value,
    /// The hash in its name.
    pub hash: String,
}

impl Revision {
    fn read(object: &Object) -> Option<Revision> {
        let mut value = object.value().ok()?;
        Some(Revision {
            name: object.key.name.to_string(),
            number: value["revision"].as_i64().unwrap_or(0),
            data: value["data"].take(),
            hash: object.meta().labels.get(HASH_LABEL).cloned().unwrap_or_default(),
        })
    }

    /// The template.
    pub fn template(&self) -> Value {
        let mut template = self.data["spec"]["template"].clone();
        if let Some(fields) = template.as_object_mut() {
            fields.remove("$patch");
        }
        template
    }
}

fn data(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// What to do so that the newest revision holds a template.
#[derive(Debug, PartialEq)]
enum Step {
    /// It does.
    Keep(Revision),
    /// An older one does: give it this number.
    Renumber(Revision, i64),
    /// None does: make one with this number.
    Create(i64),
}

fn step(all: &[Revision], data: &Value) -> Step {
    let newest = all.iter().map(|r| r.number).max().unwrap_or(0);
    match all.iter().filter(|r| r.data == *data).max_by_key(|r| r.number) {
        Some(same) if same.number == newest => Step::Keep(same.clone()),
        Some(same) => Step::Renumber(same.clone(), newest + 1),
        None => Step::Create(newest + 1),
    }
}

/// The oldest revisions beyond the limit that nobody uses.
fn surplus<'a>(all: &'a [Revision], used: &BTreeSet<String>, limit: usize) -> Vec<&'a Revision> {
    let mut unused: Vec<&Revision> = all.iter().filter(|r| !used.contains(&r.name)).collect();
    unused.sort_by_key(|r| r.number);
    let count = unused.len().saturating_sub(limit);
    unused.truncate(count);
    unused
}

/// Sets of a kind whose template has a history, with their pods.
pub struct Templated {
    /// The surroundings.
    pub context: Context,
    /// The sets' kind.
    pub kind: &'static Kind,
    /// The sets.
    pub sets: Arc<Cache>,
    /// The pods.
    pub pods: Arc<Cache>,
    pod_index: Arc<OwnedIndex>,
    revisions: Arc<Cache>,
    revision_index: Arc<OwnedIndex>,
}

impl Templated {
    /// Gets the caches.
    pub fn new(context: &Context, kind: &'static Kind) -> Templated {
        let informers = &context.informers;
        Templated {
            context: context.clone(),
            kind,
            sets: informers.of(&kind.gvr),
            pods: informers.of(&gvr::PODS),
            pod_index: informers.owned(&gvr::PODS),
            revisions: informers.of(&CONTROLLER_REVISIONS),
            revision_index: informers.owned(&CONTROLLER_REVISIONS),
        }
    }

    /// The caches that a look needs.
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        [&self.sets, &self.pods, &self.revisions].into_iter().cloned().collect()
    }

    /// What a look at a set begins with: its pods, and all revisions by number, of which the last holds `template`.
    pub async fn begin(
        &self,
        owner: &Arc<Object>,
        selector: &LabelSelector,
        template: &Value,
    ) -> Result<(Vec<Arc<Object>>, Vec<Revision>), ApiError> {
        let (context, kind) = (&self.context, self.kind);
        let (cache, index) = (&*self.pods, &*self.pod_index);
        let pods = Claimant { context, kind, owner, cache, index, gvr: &gvr::PODS };
        let pods = pods.claim(selector).await?;
        let (cache, index) = (&*self.revisions, &*self.revision_index);
        let claimant = Claimant { context, kind, owner, cache, index, gvr: &CONTROLLER_REVISIONS };
        let known = claimant.claim(selector).await?;
        let known = known.iter().filter_map(|o| Revision::read(o)).collect();
        Ok((pods, self.keep(owner, known, template).await?))
    }

    async fn keep(
        &self,
        owner: &Object,
        mut all: Vec<Revision>,
        template: &Value,
    ) -> Result<Vec<Revision>, ApiError> {
        let data = data(template);
        let newest = match step(&all, &data) {
            Step::Keep(same) => same,
            Step::Renumber(same, number) => {
                let key = ObjectKey::new(owner.key.namespace.clone(), same.name.as_str());
                let patch = json!({"revision": number});
                let stored = self.context.client.merge_patch(&CONTROLLER_REVISIONS, &key, patch).await?;
                self.revisions.observe(stored);
                Revision { number, ..same }
            }
            Step::Create(number) => self.create(owner, template, data, number).await?,
        };
        all.retain(|r| r.name != newest.name);
        all.push(newest);
        all.sort_by_key(|r| r.number);
        Ok(all)
    }

    async fn create(
        &self,
        owner: &Object,
        template: &Value,
        data: Value,
        number: i64,
    ) -> Result<Revision, ApiError> {
        let text = data.to_string();
        for collisions in 0..COLLISIONS_MAX {
            let hash = hash(&text, collisions);
            let name = format!("{}-{hash}", owner.key.name);
            let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            labels.insert(HASH_LABEL.into(), json!(hash));
            let mut annotations = Map::new();
            if let Some(cause) = owner.meta().annotations.get("kubernetes.io/change-cause") {
                annotations.insert("kubernetes.io/change-cause".into(), json!(cause));
            }
            let body = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": number, "data": data,
                "metadata": {"name": name, "namespace": &*owner.key.namespace, "labels": labels,
                    "annotations": annotations, "ownerReferences": [self.kind.reference(owner)]}});
            let revision = Revision { name: name.clone(), number, data: data.clone(), hash };
            match self.context.client.create(&CONTROLLER_REVISIONS, body).await {
                Ok(stored) => {
                    self.revisions.observe(stored);
                    return Ok(revision);
                }
                Err(error) if error.is_already_exists() => {
                    let key = ObjectKey::new(owner.key.namespace.clone(), name);
                    let there = self.context.client.get(&CONTROLLER_REVISIONS, &key).await?;
                    let ours = there.meta().controller().is_some_and(|o| o.uid == owner.uid());
                    if let Some(same) = Revision::read(&there).filter(|r| ours && r.data == data) {
                        return Ok(same);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::internal("every name for a revision of this template is taken"))
    }

    /// Deletes old revisions beyond the limit, except those in use.
    pub async fn trim(
        &self,
        owner: &Object,
        all: &[Revision],
        used: &BTreeSet<String>,
        limit: usize,
    ) -> Result<(), ApiError> {
        for old in surplus(all, used, limit) {
            let key = ObjectKey::new(owner.key.namespace.clone(), old.name.as_str());
            match self.context.client.delete(&CONTROLLER_REVISIONS, &key, DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, number: i64, image: &str) -> Revision {
        Revision { name: name.into(), number, data: data(&json!({"image": image})), hash: String::new() }
    }

    #[test]
    fn a_template_that_comes_back_gets_the_highest_number() {
        let all = [revision("a", 1, "one"), revision("b", 2, "two")];
        assert_eq!(step(&[], &all[0].data), Step::Create(1));
        assert_eq!(step(&all, &all[1].data), Step::Keep(all[1].clone()));
        assert_eq!(step(&all, &all[0].data), Step::Renumber(all[0].clone(), 3));
        assert_eq!(step(&all, &data(&json!({"image": "three"}))), Step::Create(3));
        assert_eq!(all[0].template(), json!({"image": "one"}));
    }

    #[test]
    fn the_oldest_unused_go() {
        let all =
            [revision("a", 1, "1"), revision("b", 2, "2"), revision("c", 3, "3"), revision("d", 4, "4")];
        let names = |used: &[&str], limit| {
            let used = used.iter().map(|u| (*u).to_string()).collect();
            surplus(&all, &used, limit).into_iter().map(|r| r.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&["d"], 1), ["a", "b"]);
        assert_eq!(names(&["a", "d"], 0), ["b", "c"]);
        assert!(names(&["d"], 10).is_empty());
    }

    #[test]
    fn hashes_are_stable_and_differ() {
        assert_eq!(hash("a", 0), hash("a", 0));
        assert_ne!(hash("a", 0), hash("a", 1));
        assert!(hash("x", 0).bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}

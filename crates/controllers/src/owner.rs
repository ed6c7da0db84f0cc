//! Owners and what they own: the index by controlling owner, claiming by selector, adopting, releasing.
//!
//! Invariants: an object belongs to the controller whose UID its controlling reference names; only objects without
//! one are adopted, and never by an owner that is going; every patch names UID and revision it was decided on.
//! Deliberately not here: what an owner wants of its objects.

use crate::context::Context;
use client::cache::Cache;
use client::events::Subject;
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_schema::Gvr;
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A kind that owns objects.
#[derive(Debug)]
pub struct Kind {
    /// Its resource.
    pub gvr: Gvr,
    /// `apps/v1`.
    pub api_version: &'static str,
    /// `ReplicaSet`.
    pub kind: &'static str,
}

impl Kind {
    /// The owner reference that makes an object of this kind the controller.
    pub fn reference(&self, owner: &Object) -> Value {
        json!({"apiVersion": self.api_version, "kind": self.kind, "name": &*owner.key.name,
            "uid": owner.uid(), "controller": true, "blockOwnerDeletion": true})
    }

    /// The subject of events about an object of this kind.
    pub fn subject(&self, object: &Object) -> Subject {
        Subject::of(self.api_version, self.kind, object)
    }

    /// Is that object's controlling owner of this kind? Then its key and UID.
    pub fn controller_of<'a>(&self, object: &'a Object) -> Option<(ObjectKey, &'a str)> {
        let owner = object.meta().controller()?;
        let ours = owner.kind == self.kind && owner.api_version == self.api_version;
        ours.then(|| (ObjectKey::new(object.key.namespace.clone(), owner.name.as_str()), owner.uid.as_str()))
    }
}

/// A namespace and the UID of an owner in it.
type Place = (Arc<str>, String);

/// Keys of a resource's objects by namespace and the controlling owner's UID ("" for none), kept by a handler.
#[derive(Default)]
pub struct OwnedIndex {
    names: Mutex<BTreeMap<Place, BTreeSet<Arc<str>>>>,
}

impl OwnedIndex {
    /// The index of a cache. Ask for it before enqueueing from the same cache, so that it is always the fresher.
    pub fn start(cache: &Cache) -> Arc<OwnedIndex> {
        let index = Arc::new(OwnedIndex::default());
        let kept = index.clone();
        cache.on_change(Box::new(move |old, new| kept.change(old, new)));
        index
    }

    fn change(&self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let place = |o: &Arc<Object>| (o.key.namespace.clone(), controller_uid(o).to_string());
        let (from, to) = (old.map(place), new.map(place));
        if from == to {
            return;
        }
        let mut names = self.names.lock();
        if let (Some(object), Some(place)) = (old, from)
            && let Some(set) = names.get_mut(&place)
        {
            set.remove(&object.key.name);
            if set.is_empty() {
                names.remove(&place);
            }
        }
        if let (Some(object), Some(place)) = (new, to) {
            names.entry(place).or_default().insert(object.key.name.clone());
        }
    }

    /// The objects in that namespace whose controlling owner has this UID ("": those without one), by name.
    pub fn of(&self, cache: &Cache, namespace: &str, uid: &str) -> Vec<Arc<Object>> {
        let place = (Arc::from(namespace), uid.to_string());
        let names: Vec<Arc<str>> = self.names.lock().get(&place).into_iter().flatten().cloned().collect();
        names.iter().filter_map(|n| cache.get(&ObjectKey::new(namespace, n.clone()))).collect()
    }
}

fn controller_uid(object: &Object) -> &str {
    object.meta().controller().map_or("", |o| &o.uid)
}

/// What an owner should do about the objects in its namespace.
#[derive(Debug, Default)]
pub struct Claims {
    /// Its own, selected.
    pub owned: Vec<Arc<Object>>,
    /// Nobody's, selected.
    pub adopt: Vec<Arc<Object>>,
    /// Its own, no longer selected.
    pub release: Vec<Arc<Object>>,
}

/// Sorts objects by whether they are the owner's, should become so, or should no longer be.
pub fn claims(owner: &Object, selector: &LabelSelector, candidates: Vec<Arc<Object>>) -> Claims {
    let mut claims = Claims::default();
    let going = owner.meta().deletion_timestamp.is_some();
    for object in candidates {
        let meta = object.meta();
        let selected = selector.matches(&meta.labels);
        match meta.controller() {
            Some(controller) if controller.uid != owner.uid() => {}
            Some(_) if selected => claims.owned.push(object),
            Some(_) if !going => claims.release.push(object),
            None if selected && !going && meta.deletion_timestamp.is_none() => claims.adopt.push(object),
            _ => {}
        }
    }
    claims
}

/// An owner with what claiming needs.
pub struct Claimant<'a> {
    /// The surroundings.
    pub context: &'a Context,
    /// The owner's kind.
    pub kind: &'a Kind,
    /// The owner.
    pub owner: &'a Arc<Object>,
    /// Where the owned objects are.
    pub cache: &'a Cache,
    /// The index of that cache.
    pub index: &'a OwnedIndex,
    /// The resource of the owned objects.
    pub gvr: &'a Gvr,
}

impl Claimant<'_> {
    /// Adopts and releases; the objects that are the owner's afterwards.
    pub async fn claim(&self, selector: &LabelSelector) -> Result<Vec<Arc<Object>>, ApiError> {
        let namespace = &*self.owner.key.namespace;
        let mut candidates = self.index.of(self.cache, namespace, self.owner.uid());
        candidates.extend(self.index.of(self.cache, namespace, ""));
        let mut claims = claims(self.owner, selector, candidates);
        for object in &claims.release {
            self.patch(object, release(object, self.owner.uid())).await?;
        }
        if !claims.adopt.is_empty() {
            self.may_adopt().await?;
        }
        for object in &claims.adopt {
            let reference = self.kind.reference(self.owner);
            if let Some(adopted) = self.patch(object, adopt(object, reference)).await? {
                claims.owned.push(adopted);
            }
        }
        claims.owned.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(claims.owned)
    }

    /// The cache may be late: the owner itself must still be there and not be going.
    async fn may_adopt(&self) -> Result<(), ApiError> {
        let now = self.context.client.get(&self.kind.gvr, &self.owner.key).await?;
        let same = now.uid() == self.owner.uid() && now.meta().deletion_timestamp.is_none();
        let stale = || ApiError::conflict(&self.kind.gvr, &self.owner.key.name, ApiError::MODIFIED);
        if same { Ok(()) } else { Err(stale()) }
    }

    async fn patch(&self, object: &Object, references: Vec<Value>) -> Result<Option<Arc<Object>>, ApiError> {
        let patch = json!({"metadata": {"uid": object.uid(), "resourceVersion": object.revision.to_string(),
            "ownerReferences": references}});
        match self.context.client.merge_patch(self.gvr, &object.key, patch).await {
            Ok(patched) => {
                self.cache.observe(patched.clone());
                Ok(Some(patched))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The owner references as JSON, nothing lost.
pub fn references(object: &Object) -> Vec<Value> {
    let value = object.value().unwrap_or_default();
    value["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default()
}

fn adopt(object: &Object, reference: Value) -> Vec<Value> {
    let mut all = references(object);
    all.retain(|r| r["uid"] != reference["uid"]);
    all.push(reference);
    all
}

fn release(object: &Object, uid: &str) -> Vec<Value> {
    let mut all = references(object);
    all.retain(|r| r["uid"] != uid);
    all
}

/// Enqueues the owners of changed objects: the controlling one of that kind, and, for an object without one, every
/// owner that selects it.
pub fn enqueue_owners(
    kind: &'static Kind,
    owned: &Cache,
    owners: &Arc<Cache>,
    queue: &Arc<Queue<ObjectKey>>,
    selects: fn(&Object, &Object) -> bool,
) {
    let (queue, owners) = (queue.clone(), owners.clone());
    owned.on_change(Box::new(move |old, new| {
        for object in old.into_iter().chain(new) {
            if let Some((key, _)) = kind.controller_of(object) {
                queue.add(key);
            }
        }
        let Some(new) = new.filter(|o| o.meta().controller().is_none()) else { return };
        let changed =
            old.is_none_or(|o| o.meta().labels != new.meta().labels || o.meta().controller().is_some());
        if changed {
            for owner in owners.list_in(&new.key.namespace).iter().filter(|o| selects(o, new)) {
                queue.add(owner.key.clone());
            }
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    fn pod(name: &str, app: &str, owner: Option<&str>) -> Arc<Object> {
        let owners: Vec<Value> = owner
            .iter()
            .map(|uid| {
                json!({"uid": uid, "kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "r",
                "controller": true})
            })
            .collect();
        object(json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": app},
            "ownerReferences": owners}}))
    }

    fn names(objects: &[Arc<Object>]) -> Vec<&str> {
        objects.iter().map(|o| &*o.key.name).collect()
    }

    #[test]
    fn claiming() {
        let owner = object(json!({"metadata": {"name": "r", "namespace": "n", "uid": "u"}}));
        let selector = LabelSelector::parse("app=a").unwrap();
        let pods = || {
            vec![
                pod("mine", "a", Some("u")),
                pod("drifted", "b", Some("u")),
                pod("orphan", "a", None),
                pod("stranger", "b", None),
                pod("theirs", "a", Some("v")),
            ]
        };
        let c = claims(&owner, &selector, pods());
        assert_eq!(
            (names(&c.owned), names(&c.adopt), names(&c.release)),
            (vec!["mine"], vec!["orphan"], vec!["drifted"])
        );
        let going = object(json!({"metadata": {"name": "r", "namespace": "n", "uid": "u",
            "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let c = claims(&going, &selector, pods());
        assert_eq!((c.owned.len(), c.adopt.len(), c.release.len()), (1, 0, 0));
    }

    #[test]
    fn references_are_added_and_taken_singly() {
        let pod = pod("p", "a", Some("u"));
        let added = adopt(&pod, json!({"uid": "w", "controller": true}));
        assert_eq!(added.len(), 2);
        assert_eq!(adopt(&pod, json!({"uid": "u"})).len(), 1, "an owner stands there once");
        assert!(release(&pod, "u").is_empty());
    }

    #[test]
    fn the_index_follows_changes() {
        let index = OwnedIndex::default();
        let (free, owned) = (pod("p", "a", None), pod("p", "a", Some("u")));
        let count =
            |uid: &str| index.names.lock().get(&("n".into(), uid.to_string())).map_or(0, BTreeSet::len);
        index.change(None, Some(&free));
        assert_eq!((count(""), count("u")), (1, 0));
        index.change(Some(&free), Some(&owned));
        assert_eq!((count(""), count("u")), (0, 1));
        index.change(Some(&owned), None);
        assert!(index.names.lock().is_empty());
    }
}

//! The garbage collector: objects whose owners are gone go too; foreground deletion and orphaning are carried out.
//!
//! It watches every resource, custom ones as they come and go, and keeps only the [`graph`] of UIDs. Invariants: nothing is deleted because of the graph
//! alone: the object and every owner that the graph lacks are asked for anew, and the deletion names the UID and
//! revision it was decided on. An owner of a kind that is not served is taken to be there.
//! Deliberately not here: what a deletion does to one object (`apiserver`).

mod custom;
mod decide;
mod graph;

use crate::context::{Context, Outcome, Reconcile, run, spawn};
use crate::custom_kinds::Kinds;
use crate::owner::references;
use async_trait::async_trait;
use client::queue::Queue;
use client::{DeleteOptions, EventKind, ListOptions, Meta, Object, ObjectKey, OwnerRef, WatchOptions};
use decide::{OwnerState, Plan, decide};
use futures_util::StreamExt;
use graph::{FOREGROUND, Graph, Node, ORPHAN, State, Uid, state_of};
use k8s_schema::{Gates, Gvr, ResourceRow};
use machinery::status::ApiError;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::task::JoinHandle;

/// Objects that are looked at concurrently: enough that a store which groups commits is kept busy.
const WORKERS: usize = 8;
/// Pause between attempts to list a resource again after a failure.
const RELIST: Backoff = Backoff { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(30) };

/// How long the start waits for resources that cannot be listed, as upstream: one that is broken or forbidden must not
/// stop the collection of all others.
const LISTING_MAX: Duration = Duration::from_secs(30);

struct Collector {
    context: Context,
    /// Only grows: the graph names resources by their place here.
    resources: RwLock<Vec<Gvr>>,
    /// How many of them are built in.
    builtin: u16,
    kinds: Arc<Kinds>,
    graph: Mutex<Graph>,
    /// Resources that have not been listed yet.
    missing: Mutex<BTreeSet<u16>>,
    queue: Arc<Queue<Uid>>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let resources = collected(&context.config.gates);
    let count = u16::try_from(resources.len()).expect("the table has far fewer resources");
    let queue = Arc::new(Queue::default());
    let collector = Arc::new(Collector {
        context: context.clone(),
        resources: RwLock::new(resources),
        builtin: count,
        kinds: Kinds::start(&context.informers),
        graph: Mutex::default(),
        missing: Mutex::new((0..count).collect()),
        queue: queue.clone(),
    });
    let mut tasks: Vec<_> = (0..count).map(|i| spawn(collector.clone().follow(i))).collect();
    tasks.push(spawn(collector.clone().begin_anyway()));
    tasks.push(spawn(custom::follow_all(collector.clone())));
    tasks.extend(run("garbage-collector", Vec::new(), queue, WORKERS, collector));
    tasks
}

/// The resources that can own and be owned, each once. Events are left out, as upstream: many, and nobody's.
fn collected(gates: &Gates) -> Vec<Gvr> {
    let offers = |row: &&ResourceRow| {
        ["delete", "get", "list", "patch", "watch"].iter().all(|verb| row.verbs.contains(verb))
    };
    let stored =
        k8s_schema::resources().iter().filter(|row| row.storage_gvr() == row.gvr && gates.serve(row));
    stored.filter(offers).map(|row| row.gvr.clone()).filter(|gvr| gvr.resource != "events").collect()
}

impl Collector {
    /// Keeps the graph's part about one resource fresh.
    async fn follow(self: Arc<Self>, resource: u16) {
        let mut failures = 0;
        loop {
            match self.list_and_watch(resource, &mut failures).await {
                Ok(()) => failures += 1,
                Err(error) => {
                    let what = self.resource(resource).group_resource();
                    tracing::debug!(resource = what, %error, "watch ended; listing again");
                    failures += 1;
                }
            }
            tokio::time::sleep(RELIST.delay(failures)).await;
        }
    }

    async fn list_and_watch(&self, resource: u16, failures: &mut u32) -> Result<(), ApiError> {
        let (client, gvr) = (&self.context.client, &self.resource(resource));
        let list = client.list(gvr, &ListOptions::default()).await?;
        let listed: BTreeMap<Uid, Node> = list.items.iter().map(|o| Node::read(resource, o)).collect();
        let after = Some(list.revision);
        drop(list);
        self.listed(resource, listed);
        let options = WatchOptions { list: ListOptions::default(), after };
        let mut events = client.watch(gvr, &options).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            *failures = 0;
            let (uid, node) = match event.kind {
                EventKind::Bookmark => continue,
                _ => Node::read(resource, &event.object),
            };
            let look = match event.kind {
                EventKind::Deleted => self.graph.lock().remove(uid),
                _ => self.graph.lock().put(uid, node),
            };
            self.look_at(look);
        }
        Ok(())
    }

    fn listed(&self, resource: u16, listed: BTreeMap<Uid, Node>) {
        let mut missing = self.missing.lock();
        let mut graph = self.graph.lock();
        let mut look = graph.replace(resource, listed);
        if missing.remove(&resource) && missing.is_empty() {
            look.extend(graph.complete());
        }
        if resource >= self.builtin {
            look.extend(graph.look_again());
        }
        drop(graph);
        self.look_at(look);
    }

    async fn begin_anyway(self: Arc<Self>) {
        tokio::time::sleep(LISTING_MAX).await;
        let missing = std::mem::take(&mut *self.missing.lock());
        if missing.is_empty() {
            return;
        }
        let names: Vec<String> = missing.iter().map(|i| self.resource(*i).group_resource()).collect();
        tracing::warn!(?names, "collecting garbage although these resources could not be listed");
        let look = self.graph.lock().complete();
        self.look_at(look);
    }

    fn look_at(&self, uids: impl IntoIterator<Item = Uid>) {
        uids.into_iter().for_each(|uid| self.queue.add(uid));
    }

    /// The object as it is now; `None` when there is another one or none of that name.
    async fn live(&self, uid: Uid, node: &Node) -> Result<Option<Arc<Object>>, ApiError> {
        match self.context.client.get(&self.gvr(node), &node.key).await {
            Ok(object) => Ok(Some(object).filter(|o| Uid::of(o.uid()) == uid)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn resource(&self, at: u16) -> Gvr {
        self.resources.read()[usize::from(at)].clone()
    }

    fn gvr(&self, node: &Node) -> Gvr {
        self.resource(node.resource)
    }

    /// Merge-patches metadata of the object as it was read; one that is gone is as good.
    async fn patch(&self, gvr: &Gvr, object: &Object, field: &str, value: Value) -> Result<(), ApiError> {
        let metadata =
            json!({"uid": object.uid(), "resourceVersion": object.revision.to_string(), field: value});
        match self.context.client.merge_patch(gvr, &object.key, json!({"metadata": metadata})).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn remove_finalizer(&self, gvr: &Gvr, object: &Object, name: &str) -> Result<(), ApiError> {
        let left: Vec<&String> = object.meta().finalizers.iter().filter(|f| *f != name).collect();
        self.patch(gvr, object, "finalizers", json!(left)).await
    }

    async fn detach(&self, gvr: &Gvr, object: &Object, uids: &BTreeSet<String>) -> Result<(), ApiError> {
        let mut left = references(object);
        left.retain(|r| r["uid"].as_str().is_none_or(|uid| !uids.contains(uid)));
        self.patch(gvr, object, "ownerReferences", json!(left)).await
    }

    /// Lets all dependents go, then the object.
    async fn orphan(&self, uid: Uid, gvr: &Gvr, object: &Object) -> Result<(), ApiError> {
        let dependents: Vec<(Uid, Node)> =
            self.graph.lock().dependents(uid).map(|(uid, node)| (uid, node.clone())).collect();
        let this = BTreeSet::from([object.uid().to_string()]);
        for (uid, node) in dependents {
            if let Some(dependent) = self.live(uid, &node).await?
                && dependent.meta().owner_references.iter().any(|o| this.contains(&o.uid))
            {
                self.detach(&self.gvr(&node), &dependent, &this).await?;
            }
        }
        self.remove_finalizer(gvr, object, ORPHAN).await
    }

    /// Lets the object go when nothing blocks it any more; else has what blocks it looked at.
    async fn foreground(&self, uid: Uid, gvr: &Gvr, object: &Object) -> Result<(), ApiError> {
        let blocking: Vec<(Uid, State)> =
            self.graph.lock().blocking(uid).map(|(uid, node)| (uid, node.state)).collect();
        if blocking.is_empty() {
            return self.remove_finalizer(gvr, object, FOREGROUND).await;
        }
        self.look_at(blocking.into_iter().filter(|(_, s)| *s == State::Alive).map(|(uid, _)| uid));
        Ok(())
    }

    /// Where the objects of an owner reference's kind are; are they in namespaces?
    fn resource_of(&self, owner: &OwnerRef) -> Option<(Gvr, bool)> {
        builtin(owner).or_else(|| {
            let (group, version) = owner.api_version.split_once('/')?;
            self.kinds.find(group, version, &owner.kind).map(|k| (k.gvr, k.namespaced))
        })
    }

    async fn owner_state(&self, namespace: &str, owner: &OwnerRef) -> Result<OwnerState, ApiError> {
        let Some((gvr, namespaced)) = self.resource_of(owner) else { return Ok(OwnerState::Solid) };
        if namespaced && namespace.is_empty() {
            return Ok(OwnerState::Solid);
        }
        let key = ObjectKey::new(if namespaced { namespace } else { "" }, owner.name.as_str());
        let known = self
            .graph
            .lock()
            .get(Uid::of(&owner.uid))
            .filter(|n| n.key == key && self.gvr(n) == gvr)
            .cloned();
        if let Some(node) = known {
            return Ok(if node.state == State::Foreground { OwnerState::Waiting } else { OwnerState::Solid });
        }
        match self.context.client.get(&gvr, &key).await {
            Ok(object) if object.uid() != owner.uid => Ok(OwnerState::Absent),
            Ok(object) if deletion_state(object.meta()) == State::Foreground => Ok(OwnerState::Waiting),
            Ok(_) => Ok(OwnerState::Solid),
            Err(error) if error.is_not_found() => Ok(OwnerState::Absent),
            Err(error) => Err(error),
        }
    }

    async fn carry_out(&self, gvr: &Gvr, object: &Object, plan: Plan) -> Result<(), ApiError> {
        match plan {
            Plan::Keep => Ok(()),
            Plan::Detach(uids) => self.detach(gvr, object, &uids).await,
            Plan::Delete { unblock: true, .. } => {
                let mut all = references(object);
                all.iter_mut().for_each(|r| r["blockOwnerDeletion"] = json!(false));
                // The change brings the object here again, and then it can go.
                self.patch(gvr, object, "ownerReferences", json!(all)).await?;
                self.delete(gvr, object, client::Propagation::Foreground, None).await
            }
            Plan::Delete { propagation, unblock: false } => {
                self.delete(gvr, object, propagation, Some(object.revision.to_string())).await
            }
        }
    }

    async fn delete(
        &self,
        gvr: &Gvr,
        object: &Object,
        propagation: client::Propagation,
        resource_version: Option<String>,
    ) -> Result<(), ApiError> {
        let options = DeleteOptions {
            uid: Some(object.uid().into()),
            resource_version,
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        match self.context.client.delete(gvr, &object.key, options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                tracing::debug!(resource = gvr.group_resource(), object = %object.key, "collected");
                Ok(())
            }
        }
    }
}

fn deletion_state(meta: &Meta) -> State {
    state_of(meta.deletion_timestamp.is_some(), &meta.finalizers)
}

/// The same for built-in kinds.
fn builtin(owner: &OwnerRef) -> Option<(Gvr, bool)> {
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let row = k8s_schema::resource_for_kind(group, version, &owner.kind)?;
    row.verbs.contains(&"get").then(|| (row.storage_gvr(), row.namespaced))
}

#[async_trait]
impl Reconcile<Uid> for Collector {
    async fn reconcile(&self, uid: &Uid) -> Outcome {
        let Some(node) = self.graph.lock().get(*uid).cloned() else { return Ok(None) };
        let gvr = &self.gvr(&node);
        let Some(object) = self.live(*uid, &node).await? else {
            let look = self.graph.lock().remove(*uid);
            self.look_at(look);
            return Ok(None);
        };
        match deletion_state(object.meta()) {
            State::Orphaning => self.orphan(*uid, gvr, &object).await?,
            State::Foreground => self.foreground(*uid, gvr, &object).await?,
            State::Going => {}
            State::Alive => {
                let mut owners = Vec::new();
                for owner in &object.meta().owner_references {
                    owners.push(self.owner_state(&node.key.namespace, owner).await?);
                }
                let dependents: Vec<State> =
                    self.graph.lock().dependents(*uid).map(|(_, node)| node.state).collect();
                self.carry_out(gvr, &object, decide(object.meta(), &owners, &dependents)).await?;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_resource_is_watched_once() {
        let all = collected(&Gates::default());
        for needed in [&k8s_schema::gvr::PODS, &k8s_schema::gvr::REPLICA_SETS, &k8s_schema::gvr::NODES] {
            assert_eq!(all.iter().filter(|g| *g == needed).count(), 1);
        }
        assert!(all.iter().all(|g| g.resource != "events" && g.resource != "tokenreviews"));
        let distinct: BTreeSet<_> = all.iter().map(|g| (&g.group, &g.resource)).collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn owners_of_old_versions_are_found_where_they_are_stored() {
        let owner = |api_version: &str, kind: &str| OwnerRef {
            api_version: api_version.into(),
            kind: kind.into(),
            ..OwnerRef::default()
        };
        assert_eq!(builtin(&owner("v1", "Node")), Some((k8s_schema::gvr::NODES, false)));
        let old = builtin(&owner("apps/v1beta1", "Deployment"));
        assert_eq!(old, Some((k8s_schema::gvr::DEPLOYMENTS, true)));
        assert_eq!(builtin(&owner("example.com/v1", "Widget")), None);
    }
}

//! Follows the definitions: accepts names, serves what is established, empties and frees what is deleted.
//!
//! One task a realm. Each definition is compiled when it changes, never again; a change of one costs nothing for the
//! others. Conditions are written through the API like everybody's writes.

use super::names::{self, Taken};
use crate::api::Api;
use crate::cache::{Interest, Snapshot};
use crate::resources::Resource;
use client::{ApiClient, DeleteOptions, EventKind, Object};
use futures_util::{StreamExt, stream};
use k8s_schema::gvr;
use machinery::kinds::crd::CLEANUP;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Pause between two looks at objects that wait for their own finalizers.
const EMPTYING_PAUSE: Duration = Duration::from_millis(100);
/// Groups whose definitions are looked at at the same time, and changes that are taken together.
const GROUPS_AT_ONCE: usize = 16;
const AT_ONCE_MAX: usize = 1_024;
/// Pause before the definitions are listed anew after the watch was cut.
const RELIST_PAUSE: Duration = Duration::from_millis(50);

/// Registers what is established already, before the first request comes.
pub fn adopt(api: &Api) {
    for object in api.cached_all(&gvr::CUSTOM_RESOURCE_DEFINITIONS).values() {
        let Ok(definition) = object.value() else { continue };
        serve(api, object, &definition);
    }
}

/// Follows the definitions until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient) {
    let mut first = true;
    loop {
        let Some(now) = api.upgrade() else { return };
        let mut closing = now.closing();
        let Some(resource) = now.registry.find(&gvr::CUSTOM_RESOURCE_DEFINITIONS) else { return };
        let (Snapshot { objects, .. }, mut watch) =
            now.storage.cache.subscribe_now(&resource.prefix, Interest::default());
        settle_all(&now, &client, objects.values().map(|o| (EventKind::Modified, o.clone())).collect()).await;
        if !std::mem::take(&mut first) {
            forget_missing(&now);
        }
        drop((now, resource, objects));
        loop {
            let change = tokio::select! {
                change = watch.changes.recv() => change,
                _ = closing.wait_for(|c| *c) => return,
            };
            let (Some(change), Some(now)) = (change, api.upgrade()) else { break };
            let mut changes = vec![(change.kind, change.object.clone())];
            while let Some(change) = watch.changes.try_recv().ok().filter(|_| changes.len() < AT_ONCE_MAX) {
                changes.push((change.kind, change.object.clone()));
            }
            settle_all(&now, &client, changes).await;
        }
        tokio::time::sleep(RELIST_PAUSE).await;
    }
}

/// Takes away what is served without a definition.
fn forget_missing(api: &Api) {
    let defined = api.cached_all(&gvr::CUSTOM_RESOURCE_DEFINITIONS);
    let served = api.registry.now().definitions();
    let stored = |name: &Arc<str>| **name != *crate::admission::pod_security_policy::definition::NAME;
    for name in served.into_iter().filter(stored) {
        if !defined.values().any(|o| *o.key.name == *name) {
            withdraw(api, &name);
        }
    }
}

fn withdraw(api: &Api, definition: &str) {
    let prefixes = api.registry.change(|registry| registry.withdraw(definition));
    prefixes.iter().for_each(|prefix| api.storage.cache.cut(prefix));
}

/// The group that a definition's name tells.
fn group(object: &Object) -> &str {
    object.key.name.split_once('.').map_or("", |(_, group)| group)
}

/// Looks at all of these: groups side by side, because their writes then share a disk flush; one after the other within
/// a group, because names are taken there.
async fn settle_all(api: &Arc<Api>, client: &ApiClient, changes: Vec<(EventKind, Arc<Object>)>) {
    let mut groups: BTreeMap<String, Vec<(EventKind, Arc<Object>)>> = BTreeMap::new();
    for (kind, object) in changes {
        groups.entry(group(&object).to_string()).or_default().push((kind, object));
    }
    let one = async |(group, changes): (String, Vec<(EventKind, Arc<Object>)>)| {
        let mut freed = false;
        for (kind, object) in changes {
            if kind == EventKind::Deleted {
                withdraw(api, &object.key.name);
                freed = true;
            } else {
                settle(api, client, &object).await;
            }
        }
        if freed {
            settle_refused(api, client, &group).await;
        }
    };
    stream::iter(groups).for_each_concurrent(GROUPS_AT_ONCE, one).await;
}

/// A name that became free may be what another definition of its group waits for.
async fn settle_refused(api: &Arc<Api>, client: &ApiClient, of: &str) {
    for object in api.cached_all(&gvr::CUSTOM_RESOURCE_DEFINITIONS).values().filter(|o| group(o) == of) {
        if object.value().is_ok_and(|definition| !names::is(&definition, "NamesAccepted")) {
            settle(api, client, object).await;
        }
    }
}

/// Serves a definition's versions if it is established. Watches of versions that are gone end.
fn serve(api: &Api, object: &Arc<Object>, definition: &Value) {
    let stamp = |r: &Arc<Resource>| r.custom.as_ref().map(|custom| custom.stamp);
    let before = api.registry.now().of_definition(&object.key.name).and_then(|r| stamp(&r));
    let now = names::is(definition, "Established").then(|| super::stamp(definition));
    if before == now {
        return;
    }
    let resources = match now {
        Some(_) => super::resources(&api.config.realm, object, definition),
        None => Vec::new(),
    };
    let gone = api.registry.change(|registry| registry.define(&object.key.name, resources));
    gone.iter().for_each(|prefix| api.storage.cache.cut(prefix));
}

/// Brings one definition's conditions and what is served of it up to date.
async fn settle(api: &Arc<Api>, client: &ApiClient, object: &Arc<Object>) {
    let Ok(definition) = object.value() else { return };
    serve(api, object, &definition);
    if !definition["metadata"]["deletionTimestamp"].is_null() {
        let empties =
            definition["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == CLEANUP));
        if empties && api.registry.begin_emptying(&object.key.name) {
            tokio::spawn(empty(Arc::downgrade(api), client.clone(), object.clone()));
        }
        return;
    }
    let wished = names::status(&definition, &taken(api, &definition), (api.config.clock)());
    if wished != definition["status"] {
        let mut body = definition;
        body["status"] = wished;
        match client.update_status(&gvr::CUSTOM_RESOURCE_DEFINITIONS, &object.key, body).await {
            // Served before the next definition is looked at, which may want the same names.
            Ok(written) => {
                if let Ok(definition) = written.value() {
                    serve(api, &written, &definition);
                }
            }
            // A newer version of the definition is on its way to us.
            Err(error) => tracing::debug!(definition = %object.key, %error, "conditions not written"),
        }
    }
}

/// The names that others have in the definition's group.
fn taken(api: &Api, definition: &Value) -> Taken {
    let (group, own) = (&definition["spec"]["group"], &definition["metadata"]["name"]);
    let mut taken = Taken::default();
    for row in k8s_schema::resources().iter().filter(|r| *group == *r.gvr.group) {
        let short: Vec<&str> = row.short_names.iter().map(|s| &**s).collect();
        taken.add(&json!({"plural": &*row.gvr.resource, "singular": &*row.singular, "kind": &*row.kind,
            "listKind": format!("{}List", row.kind), "shortNames": short}));
    }
    let registry = api.registry.now();
    let (group, own) = (group.as_str().unwrap_or_default(), own.as_str().unwrap_or_default());
    for names in registry.accepted_names(group, own, &names::wished(&definition["spec"]["names"])) {
        taken.add(&names);
    }
    taken
}

/// Deletes all objects of a definition, waits until they are gone, then lets the definition go.
async fn empty(api: Weak<Api>, client: ApiClient, object: Arc<Object>) {
    let name = object.key.name.clone();
    if let Err(error) = empty_all(&api, &client, &object).await {
        tracing::warn!(definition = %name, %error, "objects could not be removed");
    }
    if let Some(api) = api.upgrade() {
        api.registry.end_emptying(&name);
    }
}

async fn empty_all(api: &Weak<Api>, client: &ApiClient, object: &Arc<Object>) -> Result<(), ApiError> {
    let definition = object.value().map_err(ApiError::internal)?;
    let now = |api: &Api| machinery::time::format((api.config.clock)());
    let Some(first) = api.upgrade() else { return Ok(()) };
    let key = &object.key;
    let mut body = definition.clone();
    let words =
        ("Terminating", "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress");
    names::set_condition(&mut body["status"], words, &now(&first));
    // Somebody else's write in between only costs this condition.
    let _ = client.update_status(&gvr::CUSTOM_RESOURCE_DEFINITIONS, key, body).await;
    let served = first.registry.now().of_definition(&key.name);
    drop(first);
    if let Some(resource) = served {
        loop {
            let Some(api) = api.upgrade() else { return Ok(()) };
            let left = api.storage.cache.snapshot(&resource.prefix).objects;
            drop(api);
            if left.is_empty() {
                break;
            }
            for object in left.values() {
                match client.delete(resource.gvr(), &object.key, DeleteOptions::default()).await {
                    Ok(_) => {}
                    Err(error) if error.code == 404 => {}
                    Err(error) => return Err(error),
                }
            }
            tokio::time::sleep(EMPTYING_PAUSE).await;
        }
    }
    let present = match client.get(&gvr::CUSTOM_RESOURCE_DEFINITIONS, key).await {
        Ok(present) => present.value().map_err(ApiError::internal)?,
        Err(error) if error.code == 404 => return Ok(()),
        Err(error) => return Err(error),
    };
    let kept: Vec<Value> = present["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let kept: Vec<Value> = kept.into_iter().filter(|f| f != CLEANUP).collect();
    let patch =
        json!({"metadata": {"finalizers": kept, "resourceVersion": present["metadata"]["resourceVersion"]}});
    client.merge_patch(&gvr::CUSTOM_RESOURCE_DEFINITIONS, key, patch).await.map(drop)
}

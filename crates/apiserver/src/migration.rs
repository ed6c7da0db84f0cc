//! StorageVersionMigrations (a feature gate): every object of a resource is written once more, so that it is stored in
//! the version (and with the key) that is meant now.
//!
//! A write that changes nothing is none, unless what is stored is in an old version: `verbs::modify` sees to that, also
//! for people who do this by hand. One task a realm, asleep until a migration changes; objects that somebody else
//! writes meanwhile need no more. Deliberately not here: which versions a definition still names (people's decision).

use crate::Api;
use crate::cache::Interest;
use crate::resources::Resource;
use client::{ApiClient, Object, ObjectKey};
use k8s_schema::gvr::STORAGE_VERSION_MIGRATIONS as MIGRATIONS;
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Pause after the watch was cut.
const RELIST_PAUSE: Duration = Duration::from_millis(50);

/// Follows the objects until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient) {
    loop {
        let Some(now) = api.upgrade() else { return };
        let mut closing = now.closing();
        let Some(resource) = now.registry.find(&MIGRATIONS) else { return };
        let (_, mut watched) = now.storage.cache.subscribe_now(&resource.prefix, Interest::default());
        drop(now);
        loop {
            let Some(now) = api.upgrade() else { return };
            for migration in now.cached_all(&MIGRATIONS).values() {
                if let Err(error) = round(&now, &client, migration).await {
                    tracing::debug!(migration = %migration.key, %error, "not migrated yet");
                }
            }
            drop(now);
            let alive = tokio::select! {
                change = watched.changes.recv() => change.is_some(),
                _ = closing.wait_for(|c| *c) => return,
            };
            if !alive {
                break;
            }
        }
        tokio::time::sleep(RELIST_PAUSE).await;
    }
}

fn is(migration: &Value, condition: &str) -> bool {
    let mut all = list(migration, "/status/conditions").iter();
    all.any(|c| text(c, "/type") == condition && text(c, "/status") == "True")
}

/// The conditions once this one is true; one that ends the migration ends `Running`.
fn conditions(migration: &Value, condition: &str, message: &str, now: &str) -> Value {
    let reason = if condition == "Running" { "InProgress" } else { condition };
    let mut all: Vec<Value> = list(migration, "/status/conditions").to_vec();
    for running in all.iter_mut().filter(|c| text(c, "/type") == "Running" && condition != "Running") {
        running["status"] = json!("False");
        running["lastTransitionTime"] = json!(now);
    }
    all.retain(|c| text(c, "/type") != condition);
    all.push(
        json!({"type": condition, "status": "True", "reason": format!("StorageVersionMigration{reason}"),
        "message": message, "lastTransitionTime": now}),
    );
    all.into()
}

/// The resource that a migration is of, as far as possible in the version that is stored.
fn find(api: &Api, migration: &Value) -> Option<Arc<Resource>> {
    let at = |key: &str| text(migration, &format!("/spec/resource/{key}"));
    let registry = api.registry.now();
    let mut found: Vec<&Arc<Resource>> = registry
        .all()
        .filter(|r| r.gvr().group == at("group") && r.name() == at("resource") && !r.row.legacy)
        .collect();
    found.sort_by_key(|r| *r.row.storage_version != *r.gvr().version);
    found.first().map(|r| Arc::clone(r))
}

async fn round(api: &Arc<Api>, client: &ApiClient, object: &Arc<Object>) -> Result<(), ApiError> {
    let migration = object.value().map_err(ApiError::internal)?;
    if is(&migration, "Succeeded") || is(&migration, "Failed") {
        return Ok(());
    }
    let say = async |migration: &Value, condition: &str, message: &str, revision: Option<u64>| {
        let mut status = json!({"conditions": conditions(migration, condition, message, &api.now_text())});
        if let Some(revision) = revision {
            status["resourceVersion"] = json!(revision.to_string());
        }
        let written = client.merge_patch_status(&MIGRATIONS, &object.key, json!({"status": status})).await;
        written?.value().map_err(ApiError::internal)
    };
    let Some(resource) = find(api, &migration) else {
        return say(&migration, "Failed", "resource does not exist in discovery", None).await.map(drop);
    };
    api.storage.cache.wait_fresh().await?;
    let known = !text(&migration, "/status/resourceVersion").is_empty();
    let objects = api.storage.cache.snapshot(&resource.prefix).objects;
    let revision = (!known).then(|| api.storage.cache.revision());
    let migration = say(&migration, "Running", "", revision).await?;
    for object in objects.values() {
        if let Err(error) = rewrite(client, &resource, object).await {
            tracing::warn!(object = %object.key, %error, "a migration failed");
            let message = "migration encountered unhandled error";
            return say(&migration, "Failed", message, None).await.map(drop);
        }
    }
    say(&migration, "Succeeded", "", None).await.map(drop)
}

/// Writes one object as it is. One that changed since, or went, needs that no more.
async fn rewrite(client: &ApiClient, resource: &Resource, object: &Object) -> Result<(), ApiError> {
    let same = json!({"metadata": {"uid": object.uid(), "resourceVersion": object.revision.to_string()}});
    let key = ObjectKey::clone(&object.key);
    match client.merge_patch(resource.gvr(), &key, same).await {
        Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_ends_running() {
        let mut migration = json!({});
        migration["status"]["conditions"] = conditions(&migration, "Running", "", "a");
        assert!(is(&migration, "Running"));
        migration["status"]["conditions"] = conditions(&migration, "Failed", "why", "b");
        assert!(is(&migration, "Failed") && !is(&migration, "Running"));
        let all = migration["status"]["conditions"].as_array().unwrap();
        assert_eq!(
            (all.len(), &all[0]["lastTransitionTime"], &all[1]["reason"]),
            (2, &json!("b"), &json!("StorageVersionMigrationFailed"))
        );
    }
}

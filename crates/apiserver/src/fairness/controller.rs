//! Follows FlowSchemas and PriorityLevelConfigurations: makes and mends the first ones, hands the rules to the
//! queues, says which schemas lead nowhere. One task a realm, asleep until an object changes.

use super::bootstrap::{self, AUTOUPDATE, MANDATORY};
use super::rules::Rules;
use crate::Api;
use crate::cache::Interest;
use client::{ApiClient, ObjectKey};
use futures_util::future::join_all;
use k8s_schema::Gvr;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: Gvr = Gvr::new(GROUP, "v1", "flowschemas");
const LEVELS: Gvr = Gvr::new(GROUP, "v1", "prioritylevelconfigurations");
/// Pause after the watch was cut.
const RELIST_PAUSE: Duration = Duration::from_millis(50);

/// Follows the objects until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient) {
    loop {
        let Some(now) = api.upgrade() else { return };
        let mut closing = now.closing();
        let (Some(schemas), Some(levels)) = (now.registry.find(&SCHEMAS), now.registry.find(&LEVELS)) else {
            return;
        };
        let (_, mut schemas) = now.storage.cache.subscribe_now(&schemas.prefix, Interest::default());
        let (_, mut levels) = now.storage.cache.subscribe_now(&levels.prefix, Interest::default());
        drop(now);
        loop {
            let Some(now) = api.upgrade() else { return };
            round(&now, &client).await;
            drop(now);
            let alive = tokio::select! {
                change = schemas.changes.recv() => change.is_some(),
                change = levels.changes.recv() => change.is_some(),
                _ = closing.wait_for(|c| *c) => return,
            };
            if !alive {
                break;
            }
        }
        tokio::time::sleep(RELIST_PAUSE).await;
    }
}

fn present(api: &Api, gvr: &Gvr) -> Vec<Value> {
    api.cached_all(gvr).values().filter_map(|o| o.value().ok()).collect()
}

async fn round(api: &Arc<Api>, client: &ApiClient) {
    let (wanted_schemas, wanted_levels) = bootstrap::objects();
    let (schemas, levels) = (present(api, &SCHEMAS), present(api, &LEVELS));
    let all = [(&SCHEMAS, &wanted_schemas, &schemas), (&LEVELS, &wanted_levels, &levels)];
    let mut steps = Vec::new();
    for (gvr, wanted, there) in all {
        steps.extend(
            wanted.iter().filter_map(|w| mended(w, there)).map(|(body, new)| write(client, gvr, body, new)),
        );
    }
    join_all(steps).await;
    let (schemas, levels) = (present(api, &SCHEMAS), present(api, &LEVELS));
    api.fairness.set(Rules::read(schemas.iter(), levels.iter()));
    let now = api.now_text();
    let said = schemas.iter().filter_map(|schema| dangling(schema, &levels, &now));
    join_all(said.map(|body| async move {
        let key = ObjectKey::cluster(body["metadata"]["name"].as_str().unwrap_or_default());
        if let Err(error) = client.update_status(&SCHEMAS, &key, body).await {
            tracing::debug!(%error, "a FlowSchema's condition was not written");
        }
    }))
    .await;
}

/// What must be written for one of the first objects, and whether it is new.
fn mended(wanted: &Value, there: &[Value]) -> Option<(Value, bool)> {
    let name = &wanted["metadata"]["name"];
    let Some(present) = there.iter().find(|o| o["metadata"]["name"] == *name) else {
        return Some((wanted.clone(), true));
    };
    let mandatory = MANDATORY.iter().any(|m| name == m);
    let follows = present["metadata"]["annotations"][AUTOUPDATE] == "true";
    if (mandatory || follows) && !covers(&present["spec"], &wanted["spec"]) {
        let mut body = present.clone();
        body["spec"] = wanted["spec"].clone();
        return Some((body, false));
    }
    None
}

/// Does a defaulted value say all that a bare one says?
fn covers(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(k, v)| whole.get(k).is_some_and(|w| covers(w, v)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| covers(w, p))
        }
        _ => whole == part,
    }
}

async fn write(client: &ApiClient, gvr: &Gvr, body: Value, new: bool) {
    let key = ObjectKey::cluster(body["metadata"]["name"].as_str().unwrap_or_default());
    let done = if new { client.create(gvr, body).await } else { client.update(gvr, &key, body).await };
    if let Err(error) = done
        && !error.is_already_exists()
    {
        tracing::debug!(%error, "a flow control object was not written");
    }
}

/// The schema with its condition, where that changed.
fn dangling(schema: &Value, levels: &[Value], now: &str) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let found = levels.iter().any(|l| l["metadata"]["name"] == level);
    let (status, reason, text) = match found {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {text}");
    let mut conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let wished = json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now});
    match conditions.iter_mut().find(|c| c["type"] == "Dangling") {
        Some(old) if old["status"] == status && old["message"] == *message => return None,
        Some(old) => *old = wished,
        None => conditions.push(wished),
    }
    let mut body = schema.clone();
    body["status"] = json!({"conditions": conditions});
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_objects_are_mended_unless_somebody_took_them_over() {
        let (schemas, _) = bootstrap::objects();
        let find = |name: &str| schemas.iter().find(|s| s["metadata"]["name"] == name).unwrap().clone();
        let mut changed = find("global-default");
        changed["spec"]["matchingPrecedence"] = json!(5);
        assert!(mended(&find("global-default"), &[changed.clone()]).is_some());
        changed["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert!(mended(&find("global-default"), &[changed]).is_none());
        let mut fixed = find("catch-all");
        fixed["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        fixed["spec"]["matchingPrecedence"] = json!(5);
        assert!(mended(&find("catch-all"), &[fixed]).is_some());
        assert!(mended(&find("exempt"), &[]).is_some_and(|(_, new)| new));
    }

    #[test]
    fn schemas_say_whether_their_level_exists() {
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "x"}}});
        let said = dangling(&schema, &[], "t").unwrap();
        assert_eq!(said["status"]["conditions"][0]["status"], "True");
        assert!(dangling(&said, &[], "t2").is_none());
        let level = json!({"metadata": {"name": "x"}});
        assert_eq!(dangling(&said, &[level], "t").unwrap()["status"]["conditions"][0]["reason"], "Found");
    }
}

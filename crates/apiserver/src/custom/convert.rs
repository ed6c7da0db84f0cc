//! Conversion of custom objects by a webhook, at the edge of the store.
//!
//! A resource whose definition names a conversion webhook is worked on in the version of the request, as upstream
//! does: objects are converted when they are read and converted back when they are written; a whole list is one
//! review. Every other resource passes through at the cost of one test. What reviews say is pure ([`review`],
//! [`answered`], [`restored`]).

use crate::Api;
use crate::cache::at_revision;
use crate::resources::Resource;
use crate::rules;
use crate::select::Selection;
use crate::storage::{Swap, unstored};
use crate::watch::Seen;
use client::{EventKind, Object, ObjectKey};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a webhook may take (upstream's bound).
const TIMEOUT: Duration = Duration::from_secs(30);

/// A conversion webhook of a definition.
pub struct Webhook {
    client: Value,
    /// `v1` or `v1beta1`.
    review_version: &'static str,
    /// `group/version` of what is stored.
    pub stored: String,
}

/// The webhook that a definition names, if it does.
pub fn webhook(spec: &Value, stored: String) -> Option<Webhook> {
    if spec["conversion"]["strategy"] != "Webhook" {
        return None;
    }
    let webhook = &spec["conversion"]["webhook"];
    let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    let known = |v: &Value| ["v1", "v1beta1"].into_iter().find(|k| v == k);
    let review_version = versions.filter_map(known).next().unwrap_or("v1");
    Some(Webhook { client: webhook["clientConfig"].clone(), review_version, stored })
}

/// The review that asks for these objects in another version.
fn review(version: &str, uid: &str, desired: &str, objects: &[&Value]) -> Value {
    json!({"kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects}})
}

/// The objects of an answer; what is wrong with it in upstream's words.
fn answered(answer: &mut Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let wanted = format!("apiextensions.k8s.io/{version}, Kind=ConversionReview");
    let got = format!("{}, Kind={}", text(&answer["apiVersion"]), text(&answer["kind"]));
    if got != wanted {
        return Err(format!("expected webhook response of {wanted}, got {got}"));
    }
    let response = &mut answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if version == "v1" && response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        return Err(match (text(&result["message"]), text(&result["reason"])) {
            (message, _) if !message.is_empty() => message,
            (_, reason) if !reason.is_empty() => reason,
            _ => format!("response.result.status was '{}', not 'Success'", text(&result["status"])),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// A converted object with everything taken back that a webhook may not change: all metadata but labels and
/// annotations.
fn restored(original: &Value, mut converted: Value, desired: &str) -> Result<Value, String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    if converted["apiVersion"] != desired {
        let got = text(&converted["apiVersion"]);
        return Err(format!("invalid groupVersion (expected {desired}, received {got})"));
    }
    let (before, after) = (&original["metadata"], &converted["metadata"]);
    if original["kind"] != converted["kind"] {
        let (a, b) = (text(&original["kind"]), text(&converted["kind"]));
        return Err(format!("must have the same kind: {a} != {b}"));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (a, b) = (text(&before[field]), text(&after[field]));
        if a != b {
            return Err(format!("must have the same {name}: {a} != {b}"));
        }
    }
    let mut metadata = before.clone();
    for field in ["labels", "annotations"] {
        match after.get(field).filter(|v| !v.is_null()) {
            Some(own) if !own.as_object().is_some_and(|m| m.values().all(Value::is_string)) => {
                return Err(format!("metadata.{field}: Invalid value: must be a map of strings"));
            }
            Some(own) => metadata[field] = own.clone(),
            None => drop(metadata.as_object_mut().and_then(|m| m.remove(field))),
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

/// `group/version, Kind=kind`, as Go prints it.
fn named(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

impl Webhook {
    /// These objects in the desired version; those that have it already stay as they are.
    pub(crate) async fn convert(
        &self,
        api: &Api,
        desired: &str,
        mut objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let others: Vec<usize> =
            (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != desired).collect();
        let Some(first) = others.first() else { return Ok(objects) };
        let what = named(&objects[*first]);
        let failed = |why: String| ApiError::new(500, "", format!("conversion webhook for {what} {why}"));
        let uid =
            uuid::Builder::from_random_bytes((api.config.random)().to_be_bytes()).into_uuid().to_string();
        let asked: Vec<&Value> = others.iter().map(|i| &objects[*i]).collect();
        let document = review(self.review_version, &uid, desired, &asked);
        let answer = api.ask_webhook(&self.client, &document, TIMEOUT).await;
        let converted = answer.and_then(|mut answer| answered(&mut answer, self.review_version, &uid));
        let converted = converted.map_err(|why| failed(format!("failed: {why}")))?;
        if converted.len() != others.len() {
            let (got, wanted) = (converted.len(), others.len());
            return Err(failed(format!("returned {got} objects, expected {wanted}")));
        }
        for (index, (at, converted)) in others.into_iter().zip(converted).enumerate() {
            let wrong = |why| failed(format!("returned invalid converted object at index {index}: {why}"));
            objects[at] = restored(&objects[at], converted, desired).map_err(wrong)?;
        }
        Ok(objects)
    }
}

impl Api {
    /// Stored objects in the version that a resource is served in.
    pub(crate) async fn in_served(
        &self,
        resource: &Resource,
        mut objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, ApiError> {
        let Some(webhook) = resource.webhook() else { return Ok(objects) };
        let desired = resource.row.api_version();
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for (at, object) in objects.iter().enumerate() {
            let value = object.value().map_err(ApiError::internal)?;
            if value["apiVersion"] != *desired {
                places.push(at);
                values.push(value);
            }
        }
        if values.is_empty() {
            return Ok(objects);
        }
        for (at, value) in places.into_iter().zip(webhook.convert(self, &desired, values).await?) {
            let (key, revision) = (&objects[at].key, objects[at].revision);
            objects[at] = unstored(key, revision, rules::to_served(resource, value));
        }
        Ok(objects)
    }

    /// One stored object in the version that its resource is served in.
    pub(crate) async fn one_in_served(
        &self,
        resource: &Resource,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, ApiError> {
        if resource.webhook().is_none() {
            return Ok(object);
        }
        let mut one = self.in_served(resource, vec![object]).await?;
        one.pop().ok_or_else(|| ApiError::internal("a conversion lost its object"))
    }

    /// What a watch saw, in the version that its resource is served in; `late` is what is left to select of it.
    pub(crate) async fn seen_in_served(
        &self,
        resource: &Resource,
        late: Option<Arc<Selection>>,
        seen: Seen,
    ) -> Result<Option<Seen>, ApiError> {
        if resource.webhook().is_none() {
            return Ok(Some(seen));
        }
        let object = self.one_in_served(resource, seen.object.clone()).await?;
        let Some(late) = late else {
            // The shared frame is of the stored object.
            let change = seen.change.filter(|_| Arc::ptr_eq(&object, &seen.object));
            return Ok(Some(Seen { kind: seen.kind, object, change }));
        };
        let gone = seen.kind == EventKind::Deleted;
        let previous = match seen.change.as_ref().map(|c| c.previous.clone()) {
            Some(Some(previous)) => Some(self.one_in_served(resource, previous).await?),
            // It left by another selector: shown as it was.
            None if gone => Some(object.clone()),
            _ => None,
        };
        let previous = previous.filter(|p| late.matches(p));
        let (kind, object) = match (previous, !gone && late.matches(&object)) {
            (None, false) => return Ok(None),
            (None, true) => (EventKind::Added, object),
            (Some(_), true) => (EventKind::Modified, object),
            (Some(_), false) if gone => (EventKind::Deleted, object),
            (Some(p), false) => (EventKind::Deleted, Arc::new(at_revision(&p, object.revision))),
        };
        Ok(Some(Seen { kind, object, change: None }))
    }

    /// The present object in the version of the request; fresh.
    pub(crate) async fn load(
        &self,
        resource: &Resource,
        key: &ObjectKey,
    ) -> Result<Option<Arc<Object>>, ApiError> {
        match self.storage.get(resource, key).await? {
            Some(object) => self.one_in_served(resource, object).await.map(Some),
            None => Ok(None),
        }
    }

    /// Is what is stored of an object in a version that is not stored any more? (Without a webhook, the object as it was
    /// read tells already.)
    pub(crate) async fn is_stored_old(&self, resource: &Resource, key: &ObjectKey) -> Result<bool, ApiError> {
        let Some(webhook) = resource.webhook() else { return Ok(false) };
        let stored = self.storage.get(resource, key).await?;
        Ok(stored.is_some_and(|object| {
            crate::scan::string_at(&object.raw, &["apiVersion"]).is_some_and(|own| *own != *webhook.stored)
        }))
    }

    /// Writes an object of the request's version: a new one, or in the place of `current`. What is written comes back
    /// in that version.
    pub(crate) async fn save(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        current: Option<&Object>,
        value: Value,
    ) -> Result<Swap, ApiError> {
        let write = async |value| match current {
            Some(current) => self.storage.replace(resource, current, value).await,
            None => self.storage.create(resource, key, value).await,
        };
        let Some(webhook) = resource.webhook().filter(|w| value["apiVersion"] != *w.stored) else {
            return write(value).await;
        };
        let mut stored = webhook.convert(self, &webhook.stored, vec![value.clone()]).await?;
        match write(stored.pop().unwrap_or_default()).await? {
            Swap::Done(object) => Ok(Swap::Done(unstored(key, object.revision, value))),
            lost => Ok(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_upstreams_words() {
        let good = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]}});
        assert_eq!(answered(&mut good.clone(), "v1", "u"), Ok(vec![json!({"a": 1})]));
        for (pointer, value, expected) in [
            ("/response/uid", json!("x"), "expected response.uid=\"u\", got \"x\""),
            ("/response/result", json!({"status": "Failure", "message": "no"}), "no"),
            ("/response/result", json!({}), "response.result.status was '', not 'Success'"),
            ("/response", json!(null), "no response provided"),
            (
                "/kind",
                json!("X"),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got apiextensions.k8s.io/v1, Kind=X",
            ),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(answered(&mut bad, "v1", "u"), Err(expected.to_string()));
        }
    }

    #[test]
    fn a_webhook_changes_no_identity() {
        let before = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"x": "y"}}});
        let mut after = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "a", "uid": "u", "labels": {"x": "z"}}, "spec": 1});
        let fine = restored(&before, after.clone(), "g/v2").unwrap();
        assert_eq!(
            fine["metadata"],
            json!({"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"x": "z"}})
        );
        assert_eq!(fine["spec"], 1);
        assert_eq!(
            restored(&before, after.clone(), "g/v3").unwrap_err(),
            "invalid groupVersion (expected g/v3, received g/v2)"
        );
        after["metadata"]["name"] = json!("b");
        assert_eq!(restored(&before, after, "g/v2").unwrap_err(), "must have the same name: a != b");
    }
}

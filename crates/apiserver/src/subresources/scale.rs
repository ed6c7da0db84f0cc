//! `scale`: the replicas of a workload as an `autoscaling/v1` Scale.

use crate::Api;
use crate::owners;
use crate::resources::Resource;
use crate::rules;
use crate::storage::unstored;
use crate::verbs::modify::{Change, Owners, Part};
use crate::verbs::{Call, WriteOptions, Written, not_allowed};
use client::{Object, PatchKind, Verb};
use machinery::body::Repeats;
use machinery::field_errors::FieldErrors;
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// The Scale of an object of this resource, in its served version.
pub fn scale_of(resource: &Resource, object: &Value) -> Value {
    let Some(paths) = resource.custom.as_ref().and_then(|c| c.scale.as_ref()) else {
        return workload(object);
    };
    let number = |at: &str| object.pointer(at).and_then(Value::as_i64).unwrap_or(0);
    let selector = paths.selector.as_ref().and_then(|at| object.pointer(at)?.as_str());
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata(object),
        "spec": {"replicas": number(&paths.wanted)},
        "status": {"replicas": number(&paths.actual), "selector": selector.unwrap_or_default()},
    })
}

/// Writes the wished replicas where the resource keeps them.
pub fn set_replicas(resource: &Resource, object: &mut Value, replicas: i64) {
    let paths = resource.custom.as_ref().and_then(|c| c.scale.as_ref());
    let at = paths.map_or("/spec/replicas", |p| &p.wanted);
    let place = at.split('/').skip(1).fold(object, |place, segment| &mut place[segment]);
    *place = json!(replicas);
}

/// What a Scale takes over of the object's metadata.
fn metadata(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut meta = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[field].is_null() {
            meta[field] = metadata[field].clone();
        }
    }
    meta
}

/// The Scale of a built-in workload.
fn workload(object: &Value) -> Value {
    let selector = &object["spec"]["selector"];
    // A ReplicationController's selector is a bare map.
    let full = match selector.get("matchLabels").or(selector.get("matchExpressions")) {
        Some(_) => selector.clone(),
        None => json!({"matchLabels": selector}),
    };
    let text = LabelSelector::from_json(Some(&full)).map(|s| s.to_string()).unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata(object),
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": text},
    })
}

/// The Scale of a stored object.
pub fn read(resource: &Resource, object: &Object) -> Result<Arc<Object>, ApiError> {
    let value = object.value().map_err(ApiError::internal)?;
    let scale = scale_of(resource, &rules::to_served(resource, value));
    Ok(unstored(&object.key, object.revision, scale))
}

impl Api {
    /// Update or patch of a Scale.
    pub(crate) async fn write_scale(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        if let Verb::Patch(PatchKind::Apply, config) = &verb {
            return self.apply_scale(call, config).await;
        }
        let wish: Box<dyn Fn(Value) -> Result<Value, ApiError> + Send + Sync> = match verb {
            Verb::Update(body) => Box::new(move |_| Ok(body.clone())),
            Verb::Patch(kind, patch) => Box::new(move |mut scale| {
                rules::apply_patch_to_scale(kind, &mut scale, &patch)?;
                Ok(scale)
            }),
            Verb::Create(_) | Verb::Delete(_) => return Err(not_allowed()),
        };
        let edit = |mut workload| {
            let scale = wish(scale_of(&call.resource, &workload))?;
            rules::check_names(call, &scale)?;
            let replicas = check(call, &scale)?;
            set_replicas(&call.resource, &mut workload, replicas);
            // A Scale without a revision is an unconditional wish; one with must be current.
            workload["metadata"]["resourceVersion"] = match &scale["metadata"]["resourceVersion"] {
                Value::String(text) if !text.is_empty() => json!(text),
                _ => workload["metadata"]["resourceVersion"].clone(),
            };
            Ok(workload)
        };
        self.change_scaled(call, Change { part: Part::Whole, owners: Owners::Writer, edit: &edit }).await
    }

    /// Applies a Scale: as the workload with nothing but its replicas.
    async fn apply_scale(&self, call: &Call, scale: &Value) -> Result<Written, ApiError> {
        if scale["apiVersion"] != "autoscaling/v1" || scale["kind"] != "Scale" {
            return Err(ApiError::bad_request(
                "invalid object type: the object must be a Scale of autoscaling/v1",
            ));
        }
        rules::check_names(call, scale)?;
        let row = &*call.resource.row;
        let mut config =
            json!({"apiVersion": row.api_version(), "kind": &*row.kind, "metadata": scale["metadata"]});
        if !scale["spec"]["replicas"].is_null() {
            set_replicas(&call.resource, &mut config, check(call, scale)?);
        }
        let now = self.now_text();
        let edit = |workload| owners::applied(call, &now, Some(workload), &config);
        self.change_scaled(call, Change { part: Part::Whole, owners: Owners::Told, edit: &edit }).await
    }

    /// Changes the workload; the answer is its Scale.
    async fn change_scaled(&self, call: &Call, change: Change<'_>) -> Result<Written, ApiError> {
        let inner = Call {
            options: WriteOptions { duplicates: Repeats::default(), ..call.options.clone() },
            ..call.clone()
        };
        let written = self.modify(&inner, change).await?;
        let value = written.object.value().map_err(ApiError::internal)?;
        let object = unstored(&call.key, written.object.revision, scale_of(&call.resource, &value));
        Ok(Written { object, ..written })
    }
}

fn check(call: &Call, scale: &Value) -> Result<i64, ApiError> {
    let replicas = &scale["spec"]["replicas"];
    if !replicas.is_null() && !replicas.is_i64() {
        return Err(ApiError::bad_request(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal into Go struct field ScaleSpec.spec.replicas of type int32",
        ));
    }
    let replicas = replicas.as_i64().unwrap_or(0);
    let mut errors = FieldErrors::new();
    errors.non_negative("spec.replicas", replicas);
    if replicas > i64::from(i32::MAX) {
        errors.invalid("spec.replicas", replicas, "must be a 32-bit integer");
    }
    errors.into_result("autoscaling", "Scale", &call.key.name)?;
    Ok(replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_show_selectors_of_both_shapes() {
        let deployment = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "status": {"replicas": 2},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}});
        let scale = workload(&deployment);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        assert!(scale["metadata"]["labels"].is_null());
        let rc = json!({"metadata": {}, "spec": {"selector": {"app": "web"}}});
        assert_eq!(workload(&rc)["status"]["selector"], "app=web");
    }
}

//! Ephemeral containers: what the `ephemeralcontainers` subresource may add to a pod. They only ever come.

use super::containers;
use crate::field_errors::FieldErrors;
use crate::kinds::get::{has, list, same, text};
use crate::status::ApiError;
use serde_json::Value;
use std::collections::BTreeSet;

/// What only regular containers have.
const FORBIDDEN: [&str; 7] =
    ["lifecycle", "livenessProbe", "ports", "readinessProbe", "resources", "resizePolicy", "startupProbe"];
const PATH: &str = "spec.ephemeralContainers";

/// Checks the ephemeral containers of a pod against those it had: 422 with every cause.
pub fn validate_update(new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    if has(new, "/metadata/annotations/kubernetes.io~1config.mirror") {
        errors.forbidden("", "static pods do not support ephemeral containers");
    }
    let spec = new.get("spec").unwrap_or(&Value::Null);
    let volumes: BTreeSet<&str> = list(spec, "/volumes").iter().map(|v| text(v, "/name")).collect();
    let regular = list(spec, "/containers").iter().chain(list(spec, "/initContainers"));
    let targets: BTreeSet<&str> = list(spec, "/containers").iter().map(|c| text(c, "/name")).collect();
    let mut names: BTreeSet<&str> = regular.map(|c| text(c, "/name")).collect();
    let wished = list(spec, "/ephemeralContainers");
    for (i, container) in wished.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        containers::one(container, &volumes, &path, &mut errors);
        containers::unique_name(container, &mut names, &path, &mut errors);
        let target = text(container, "/targetContainerName");
        if !target.is_empty() && !targets.contains(target) {
            errors.not_found(&format!("{path}.targetContainerName"), target);
        }
        for key in FORBIDDEN {
            let given = container.get(key).filter(|v| !v.as_object().is_some_and(|o| o.is_empty()));
            if given.is_some_and(|v| !v.is_null() && !v.as_array().is_some_and(Vec::is_empty)) {
                errors.forbidden(&format!("{path}.{key}"), "cannot be set for an Ephemeral Container");
            }
        }
        for (nth, mount) in list(container, "/volumeMounts").iter().enumerate() {
            for key in
                ["subPath", "subPathExpr"].into_iter().filter(|k| !text(mount, &format!("/{k}")).is_empty())
            {
                let path = format!("{path}.volumeMounts[{nth}].{key}");
                errors.forbidden(&path, "cannot be set for an Ephemeral Container");
            }
        }
    }
    for before in list(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match wished.iter().find(|c| text(c, "/name") == name) {
            None => errors
                .forbidden(PATH, &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if !same(now, before) => {
                errors
                    .forbidden(PATH, &format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    errors.into_result("", "Pod", text(new, "/metadata/name"))
}

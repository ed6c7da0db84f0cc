//! Ephemeral containers: what the `ephemeralcontainers` subresource may add to a pod. They only ever come.

use super::containers;
use crate::field_errors::FieldErrors;
use crate::kinds::get::{has, list, same, text};
use crate::kinds::spot::Spot;
use crate::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What only regular containers have.
const FORBIDDEN: [&str; 7] =
    ["lifecycle", "livenessProbe", "ports", "readinessProbe", "resources", "resizePolicy", "startupProbe"];

/// Checks the ephemeral containers of a pod against those it had: 422 with every cause.
pub fn validate_update(new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    let pod = Spot::new(new, "", &mut errors);
    if has(new, "/metadata/annotations/kubernetes.io~1config.mirror") {
        pod.forbidden("", "static pods do not support ephemeral containers");
    }
    let spec = pod.key("spec");
    let named = |key: &str| spec.list(key).iter().map(|v| text(v, "/name"));
    let (volumes, targets): (BTreeSet<&str>, BTreeSet<&str>) =
        (named("volumes").collect(), named("containers").collect());
    let mut names: BTreeSet<&str> = named("initContainers").chain(named("containers")).collect();
    for container in spec.each("ephemeralContainers") {
        containers::one(&container, &volumes);
        containers::unique_name(&container, &mut names);
        let target = container.text("targetContainerName");
        if !target.is_empty() && !targets.contains(target) {
            container.not_found("targetContainerName", target);
        }
        for key in container.given(&FORBIDDEN) {
            let own = &container.v[key];
            let empty = own.as_object().is_some_and(|o| o.is_empty()) || *own == json!([]);
            if !empty {
                container.forbidden(key, "cannot be set for an Ephemeral Container");
            }
        }
        for mount in container.each("volumeMounts") {
            for key in ["subPath", "subPathExpr"].into_iter().filter(|k| !mount.text(k).is_empty()) {
                mount.forbidden(key, "cannot be set for an Ephemeral Container");
            }
        }
    }
    let wished = spec.list("ephemeralContainers");
    for before in list(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        let what = match wished.iter().find(|c| text(c, "/name") == name) {
            None => "removed",
            Some(now) if !same(now, before) => "changed",
            Some(_) => continue,
        };
        let words = format!("existing ephemeral containers {name:?} may not be {what}\n");
        spec.forbidden("ephemeralContainers", &words);
    }
    errors.into_result("", "Pod", text(new, "/metadata/name"))
}

//! DefaultStorageClass, DefaultIngressClass, StorageObjectInUseProtection: what new claims, volumes and ingresses get
//! that do not say otherwise. PersistentVolumeClaimResize: claims grow where their class allows it.

use super::{Attempt, Operation};
use client::Object;
use k8s_schema::Gvr;
use machinery::kinds::get::text;
use machinery::status::ApiError;
use machinery::usage;
use serde_json::{Value, json};
use std::sync::Arc;

const STORAGE_CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");
const INGRESS_CLASSES: Gvr = Gvr::new("networking.k8s.io", "v1", "ingressclasses");
/// Annotations that mark the default class of each.
const DEFAULT_STORAGE: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const DEFAULT_INGRESS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
/// Annotations that named the class before there was a field.
const OLD_STORAGE: &str = "volume.beta.kubernetes.io/storage-class";
const OLD_INGRESS: &str = "kubernetes.io/ingress.class";
/// Kept until nobody uses them any more, by kind.
const PROTECTED: [(&str, &str); 2] = [
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("persistentvolumes", "kubernetes.io/pv-protection"),
];

pub(super) fn admit(attempt: &Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    if attempt.operation != Operation::Create || !attempt.call.subresource.is_empty() {
        return Ok(());
    }
    let resource = &attempt.call.resource;
    let annotated = |key: &str| object["metadata"]["annotations"][key].is_string();
    if resource.is("", "persistentvolumeclaims") {
        // An empty name is a wish too: no class.
        if object["spec"]["storageClassName"].is_null() && !annotated(OLD_STORAGE) {
            let classes = marked(attempt, &STORAGE_CLASSES, &DEFAULT_STORAGE);
            if let Some(class) = youngest(&classes) {
                object["spec"]["storageClassName"] = json!(class);
            }
        }
    } else if resource.is("networking.k8s.io", "ingresses")
        && object["spec"]["ingressClassName"].is_null()
        && !annotated(OLD_INGRESS)
    {
        let classes = marked(attempt, &INGRESS_CLASSES, &DEFAULT_INGRESS);
        if let Some(class) = youngest(&classes) {
            object["spec"]["ingressClassName"] = json!(class);
        }
    }
    let protected = PROTECTED.iter().find(|(name, _)| resource.is("", name));
    if let Some((_, finalizer)) = protected {
        protect(object, finalizer);
    }
    Ok(())
}

/// Refuses a larger claim where it cannot grow.
pub(super) fn judge(attempt: &Attempt<'_>, object: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let claims =
        attempt.call.resource.is("", "persistentvolumeclaims") && attempt.call.subresource.is_empty();
    let Some(old) = attempt.old.filter(|_| claims) else { return Ok(()) };
    if !grows(old, object) {
        return Ok(());
    }
    let forbidden = |why: &str| Err(ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, why));
    if text(old, "/status/phase") != "Bound" {
        return forbidden("Only bound persistent volume claims can be expanded");
    }
    let class = attempt.api.cached(&STORAGE_CLASSES, "", text(old, "/spec/storageClassName"));
    let class = class.and_then(|c| c.value().ok()).unwrap_or_default();
    if class["allowVolumeExpansion"] == true {
        return Ok(());
    }
    forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}

fn grows(old: &Value, new: &Value) -> bool {
    let size = |claim: &Value| usage::amounts(claim, "/spec/resources/requests").get("storage").copied();
    size(new) > size(old)
}

/// Adds a finalizer.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut().filter(|list| !list.iter().any(|f| f == finalizer)) {
        list.push(json!(finalizer));
    }
}

/// The classes that are marked as the default.
fn marked(attempt: &Attempt<'_>, gvr: &Gvr, annotations: &[&str]) -> Vec<(Arc<Object>, Value)> {
    let all = attempt.api.cached_all(gvr);
    let parsed = all.values().filter_map(|class| Some((class.clone(), class.value().ok()?)));
    let is_default =
        |class: &Value| annotations.iter().any(|a| class["metadata"]["annotations"][*a] == "true");
    parsed.filter(|(_, class)| is_default(class)).collect()
}

/// Of several defaults the youngest counts, as upstream; of equals the first by name.
fn youngest(classes: &[(Arc<Object>, Value)]) -> Option<&str> {
    let made = |class: &Value| text(class, "/metadata/creationTimestamp").to_string();
    let first = classes.iter().reduce(|best, next| if made(&next.1) > made(&best.1) { next } else { best });
    first.map(|(object, _)| &*object.key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, made: &str) -> (Arc<Object>, Value) {
        let value = json!({"metadata": {"name": name, "creationTimestamp": made}});
        (Arc::new(Object::parse(value.to_string().into()).unwrap()), value)
    }

    #[test]
    fn the_youngest_default_counts() {
        let classes = [
            class("a", "2026-01-01T00:00:00Z"),
            class("b", "2026-01-02T00:00:00Z"),
            class("c", "2026-01-02T00:00:00Z"),
        ];
        assert_eq!(youngest(&classes), Some("b"));
        assert_eq!(youngest(&[]), None);
    }

    #[test]
    fn only_more_is_growth() {
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert!(grows(&claim("1Gi"), &claim("1.5Gi")) && !grows(&claim("1Gi"), &claim("1024Mi")));
    }

    #[test]
    fn protection_is_added_once() {
        let mut claim = json!({"metadata": {"finalizers": ["x/y"]}});
        protect(&mut claim, "kubernetes.io/pvc-protection");
        protect(&mut claim, "kubernetes.io/pvc-protection");
        assert_eq!(claim["metadata"]["finalizers"], json!(["x/y", "kubernetes.io/pvc-protection"]));
    }
}

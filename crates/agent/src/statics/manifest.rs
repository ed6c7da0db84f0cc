//! From a file to a static pod, and from that to its mirror in the API. Pure.

use client::{Object, ObjectKey};
use k8s_schema::gvr::PODS;
use machinery::kinds::get::text;
use machinery::kinds::strategy;
use machinery::walk::{self, Unknown};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where a pod is from, and the hash of its source: of static pods.
const SOURCE: &str = "kubernetes.io/config.source";
const HASH: &str = "kubernetes.io/config.hash";
/// On the API's copy: the hash of the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Digits of a UID that is a hash, as upstream's.
const HASH_DIGITS: usize = 32;
/// Fields of a volume, a container or the pod by which it would need the API.
const API_VOLUMES: [&str; 5] = ["secret", "configMap", "projected", "persistentVolumeClaim", "ephemeral"];

/// The pod of a file as this node runs it.
///
/// # Errors
/// It is no pod, not a valid one, or needs the API; in a sentence.
pub fn read(content: &[u8], file: &str, node: &str) -> Result<Object, String> {
    let row = k8s_schema::resource(&PODS.group, &PODS.version, &PODS.resource).expect("pods are a kind");
    let body = machinery::body::yaml(content).map_err(|e| e.message)?;
    let mut pod = body.value;
    if pod["kind"] != "Pod" || pod["apiVersion"] != "v1" {
        return Err("invalid pod: it is not of kind Pod in v1".into());
    }
    walk::decode(&mut pod, row.def.get(), Unknown::Drop, &body.duplicates)
        .map_err(|e| e.of_body(&row.kind, &row.gvr.version).message)?;
    strategy::defaults(row, &mut pod);
    strategy::prepare_create(row, &mut pod);
    if let Some(what) = needs_api(&pod) {
        return Err(format!("static pods may not reference API objects: {what}"));
    }
    let given = text(&pod, "/metadata/uid").to_string();
    let uid = if given.is_empty() { hash(&pod, file, node) } else { given };
    let (name, namespace) =
        (text(&pod, "/metadata/name").to_string(), text(&pod, "/metadata/namespace").to_string());
    if name.is_empty() {
        return Err("invalid pod: metadata.name: Required value: name or generateName is required".into());
    }
    let name = format!("{name}-{node}");
    let namespace = if namespace.is_empty() { "default" } else { &namespace };
    let metadata = &mut pod["metadata"];
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(namespace);
    metadata["uid"] = json!(uid);
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][SOURCE] = json!("file");
    metadata["annotations"][HASH] = json!(uid);
    pod["spec"]["nodeName"] = json!(node);
    // No taint drives it away.
    let everything = json!({"operator": "Exists", "effect": "NoExecute"});
    match pod["spec"]["tolerations"].as_array_mut() {
        Some(list) => list.push(everything),
        None => pod["spec"]["tolerations"] = json!([everything]),
    }
    strategy::validate_create(row, &pod).map_err(|e| e.message)?;
    let key = ObjectKey::new(namespace, name);
    Ok(Object::new(key, 1, pod.to_string().into()))
}

fn hash(pod: &Value, file: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("host:{node}\nfile:{file}\n{pod}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().chars().take(HASH_DIGITS).collect()
}

fn needs_api(pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    if !text(spec, "/serviceAccountName").is_empty() {
        return Some("serviceAccountName".into());
    }
    let array = |at: &Value| at.as_array().cloned().unwrap_or_default();
    for volume in array(&spec["volumes"]) {
        if let Some(kind) = API_VOLUMES.iter().find(|kind| volume[**kind].is_object()) {
            return Some(format!("volume {} ({kind})", text(&volume, "/name")));
        }
    }
    if !array(&spec["resourceClaims"]).is_empty() {
        return Some("resourceClaims".into());
    }
    for container in ["containers", "initContainers"].iter().flat_map(|list| array(&spec[*list])) {
        let sources = array(&container["env"]).into_iter().map(|e| e["valueFrom"].clone());
        let refers = |v: &Value| {
            ["configMapKeyRef", "secretKeyRef", "configMapRef", "secretRef"].iter().any(|k| v[*k].is_object())
        };
        if sources.chain(array(&container["envFrom"])).any(|v| refers(&v)) {
            return Some(format!("environment of container {}", text(&container, "/name")));
        }
    }
    None
}

/// What the API shall have of a static pod, owned by its node.
pub fn mirror(pod: &Object, node: &Object) -> Value {
    let mut body = pod.value().unwrap_or_default();
    let metadata = &mut body["metadata"];
    metadata["annotations"][MIRROR] = metadata["uid"].take();
    if let Some(map) = metadata.as_object_mut() {
        map.remove("uid");
    }
    metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": &*node.key.name,
        "uid": node.uid(), "controller": true}]);
    body
}

/// The hash of the static pod that an object of the API shows; `None`: it is an ordinary pod.
pub fn mirrored(object: &Object) -> Option<&str> {
    object.meta().annotations.get(MIRROR).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {a: b}}\n\
        spec: {containers: [{name: c, image: nginx}]}\n";

    #[test]
    fn a_file_becomes_a_pod_and_its_mirror() {
        let pod = read(WEB.as_bytes(), "/m/web.yaml", "n1").unwrap();
        assert_eq!(pod.key, ObjectKey::new("default", "web-n1"));
        assert_eq!((pod.uid().len(), pod.uid()), (32, pod.meta().annotations[HASH].as_str()));
        let value = pod.value().unwrap();
        assert_eq!(value["spec"]["nodeName"], "n1");
        assert_eq!(value["spec"]["restartPolicy"], "Always", "defaults are there");
        assert_eq!(value["spec"]["tolerations"][0]["effect"], "NoExecute");
        let same = read(WEB.as_bytes(), "/m/web.yaml", "n1").unwrap();
        assert_eq!(same.uid(), pod.uid());
        let edited = read(WEB.replace("nginx", "httpd").as_bytes(), "/m/web.yaml", "n1").unwrap();
        assert_ne!(edited.uid(), pod.uid());
        let node = Object::new(ObjectKey::cluster("n1"), 1, r#"{"metadata":{"uid":"7"}}"#.into());
        let body = mirror(&pod, &node);
        assert_eq!(body["metadata"]["annotations"][MIRROR], pod.uid());
        assert!(body["metadata"].get("uid").is_none());
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "7");
        let shown = Object::new(pod.key.clone(), 9, body.to_string().into());
        assert_eq!((mirrored(&shown), mirrored(&pod)), (Some(pod.uid()), None));
    }

    #[test]
    fn what_cannot_run_without_the_api_is_refused() {
        let with = |more: &str| {
            read(WEB.replace("spec: {", &format!("spec: {{{more}, ")).as_bytes(), "f", "n").unwrap_err()
        };
        assert!(with("serviceAccountName: x").contains("serviceAccountName"));
        assert!(with("volumes: [{name: v, secret: {secretName: s}}]").contains("volume v (secret)"));
        let env = WEB.replace("image: nginx", "image: x, envFrom: [{secretRef: {name: s}}]");
        assert!(read(env.as_bytes(), "f", "n").unwrap_err().contains("environment of container c"));
        for bad in [
            "",
            "{",
            "kind: Pod",
            "apiVersion: v1\nkind: Service\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: X_}\nspec: {}\n",
        ] {
            assert!(read(bad.as_bytes(), "f", "n").is_err(), "{bad}");
        }
    }
}

//! What nodes may do: an identity `system:node:<name>` in the group `system:nodes` has the rules of `system:node`,
//! and of objects that belong to nodes or pods only its own: its Node and Lease, the pods bound to it, and the
//! secrets, configmaps, claims and service accounts that those pods name, and secrets of the volumes of such claims. Volumes it may see, and delete those of
//! Gantry's own driver that are on it, once they are released for deletion.
//!
//! Reads pods from the cache at each such question (a pod starts rarely); keeps nothing.

use crate::authz::{Attributes, Decision};
use crate::cache::Cache;
use crate::rbac::policy;
use crate::rbac::rules::Rule;
use crate::resources::Registry;
use crate::scan;
use auth::Identity;
use k8s_schema::gvr;
use machinery::selector::FieldSelector;
use serde_json::Value;
use std::sync::Arc;

const NODES: &str = "system:nodes";
const PREFIX: &str = "system:node:";
/// Where a volume names secrets that its node needs.
const VOLUME_SECRETS: [&str; 3] = ["nodeExpandSecretRef", "nodePublishSecretRef", "nodeStageSecretRef"];
const LEASES_IN: &str = "kube-node-lease";

/// Where a pod names other objects: the key that holds the name's object, the resource, the name's field ("" for the
/// value itself).
const REFERENCES: [(&str, &str, &str); 14] = [
    ("configMap", "configmaps", "name"),
    ("configMapKeyRef", "configmaps", "name"),
    ("configMapRef", "configmaps", "name"),
    ("controllerExpandSecretRef", "secrets", "name"),
    ("imagePullSecrets", "secrets", "name"),
    ("nodePublishSecretRef", "secrets", "name"),
    ("persistentVolumeClaim", "persistentvolumeclaims", "claimName"),
    ("secret", "secrets", "name"),
    ("secret", "secrets", "secretName"),
    ("secretKeyRef", "secrets", "name"),
    ("secretName", "secrets", ""),
    ("secretRef", "secrets", "name"),
    ("serviceAccount", "serviceaccounts", ""),
    ("serviceAccountName", "serviceaccounts", ""),
];

/// The node that an identity is.
pub fn node_of(identity: &Identity) -> Option<&str> {
    identity.user.strip_prefix(PREFIX).filter(|n| !n.is_empty() && identity.in_group(NODES))
}

/// The authorizer of nodes.
pub struct NodeAccess {
    cache: Arc<Cache>,
    pods: Arc<str>,
    volumes: Arc<str>,
    rules: Vec<Rule>,
}

impl NodeAccess {
    /// An authorizer over a realm's cache.
    pub fn new(cache: Arc<Cache>, registry: &Registry) -> NodeAccess {
        let prefix = |gvr| registry.find(gvr).map(|r| r.prefix.clone()).unwrap_or_else(|| "".into());
        let (pods, volumes) = (prefix(&gvr::PODS), prefix(&gvr::PERSISTENT_VOLUMES));
        NodeAccess { cache, pods, volumes, rules: policy::rules_of("system:node") }
    }

    /// Is it a node, and may it do this? The reason is "" for everybody else.
    pub fn authorize(&self, identity: &Identity, a: &Attributes) -> Decision {
        let Some(node) = node_of(identity) else { return Decision::Deny(String::new()) };
        let verdict = match (&*a.group, &*a.resource) {
            ("", "persistentvolumes") => return self.volume(node, a),
            ("", "configmaps" | "secrets") => self.readable(node, a),
            ("", "persistentvolumeclaims") if a.subresource.is_empty() => self.gettable(node, a),
            ("", "serviceaccounts") => self.token(node, a),
            ("coordination.k8s.io", "leases") => lease(node, a),
            ("", "nodes") => own_node(node, a),
            ("", "pods") => self.pod(node, a),
            _ => Ok(()),
        };
        match verdict {
            Err(reason) => Decision::Deny(reason),
            Ok(()) if self.rules.iter().any(|r| r.allows(a)) => Decision::Allow,
            Ok(()) => Decision::Deny(String::new()),
        }
    }

    fn readable(&self, node: &str, a: &Attributes) -> Result<(), String> {
        match &*a.verb {
            "get" | "list" | "watch" if !a.subresource.is_empty() => Err("cannot read subresource".into()),
            "get" | "list" | "watch" if a.namespace.is_empty() => {
                Err("can only read namespaced object of this type".into())
            }
            "get" if &*a.resource == "secrets" && self.of_volume(node, a) => Ok(()),
            "get" | "list" | "watch" => self.related(node, a),
            _ => Err("can only read resources of this type".into()),
        }
    }

    fn gettable(&self, node: &str, a: &Attributes) -> Result<(), String> {
        if a.verb != "get" {
            return Err("can only get individual resources of this type".into());
        }
        self.related(node, a)
    }

    fn token(&self, node: &str, a: &Attributes) -> Result<(), String> {
        if a.verb != "create" || a.name.is_empty() {
            return Err("can only create tokens for individual service accounts".into());
        }
        if a.subresource != "token" {
            return Err("can only create token subresource of serviceaccount".into());
        }
        self.related(node, a)
    }

    fn pod(&self, node: &str, a: &Attributes) -> Result<(), String> {
        let here = |selector: &str| {
            FieldSelector::parse(selector).is_ok_and(|f| f.exact("spec.nodeName") == Some(node))
        };
        match (&*a.verb, &*a.subresource) {
            ("list" | "watch", "") if here(&a.field_selector) => Ok(()),
            ("list" | "watch", "") => {
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
            ("get", _) => {
                let object = self.cache.get(&self.pods, &format!("{}/{}", a.namespace, a.name));
                let bound = object.as_ref().and_then(|o| scan::string_at(&o.raw, &["spec", "nodeName"]));
                if bound == Some(node) { Ok(()) } else { Err(no_relationship(node)) }
            }
            _ => Ok(()),
        }
    }

    fn volume(&self, node: &str, a: &Attributes) -> Decision {
        let over = || {
            let object = self.cache.get(&self.volumes, &format!("-/{}", a.name))?;
            let is = |path: &[&str], text: &str| scan::string_at(&object.raw, path) == Some(text);
            let ours = is(&["spec", "csi", "driver"], "gantry.dev/local")
                && is(&["metadata", "labels", "gantry.dev/node"], node);
            let released = is(&["status", "phase"], "Released")
                && is(&["spec", "persistentVolumeReclaimPolicy"], "Delete");
            (ours && released).then_some(())
        };
        match (&*a.verb, &*a.subresource) {
            ("get" | "list" | "watch", "") => Decision::Allow,
            ("delete", "") if over().is_some() => Decision::Allow,
            ("delete", "") => Decision::Deny("can only delete released volumes of its own".into()),
            _ => Decision::Deny(String::new()),
        }
    }

    /// Is it a secret of a volume whose claim a pod on that node uses?
    fn of_volume(&self, node: &str, a: &Attributes) -> bool {
        let all = self.cache.snapshot(&self.volumes).objects;
        let named = all.values().filter(|v| {
            VOLUME_SECRETS.iter().any(|field| {
                let is = |key: &str, text: &str| {
                    scan::string_at(&v.raw, &["spec", "csi", field, key]) == Some(text)
                };
                is("name", &a.name) && is("namespace", &a.namespace)
            })
        });
        let mut claims = named.filter_map(|v| {
            let text = |key: &str| scan::string_at(&v.raw, &["spec", "claimRef", key]);
            Some(Attributes {
                namespace: text("namespace")?.into(),
                name: text("name")?.into(),
                resource: "persistentvolumeclaims".into(),
                ..Attributes::default()
            })
        });
        claims.any(|claim| self.related(node, &claim).is_ok())
    }

    /// Does a pod on that node name the object?
    fn related(&self, node: &str, a: &Attributes) -> Result<(), String> {
        if a.name.is_empty() {
            return Err("No Object name found".into());
        }
        let pods = self.cache.snapshot(&self.pods).objects;
        let start: Arc<str> = format!("{}/", a.namespace).into();
        let mut own = pods
            .range(start.clone()..)
            .take_while(|(suffix, _)| suffix.starts_with(&*start))
            .filter(|(_, pod)| scan::string_at(&pod.raw, &["spec", "nodeName"]) == Some(node))
            .filter_map(|(_, pod)| pod.value().ok());
        if own.any(|pod| names(&pod["spec"], &a.resource, &a.name) || is_ephemeral(&pod, a)) {
            Ok(())
        } else {
            Err(no_relationship(node))
        }
    }
}

/// Is it the claim of one of the pod's ephemeral volumes?
fn is_ephemeral(pod: &Value, a: &Attributes) -> bool {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    *a.resource == *"persistentvolumeclaims"
        && volumes.any(|v| {
            v["ephemeral"].is_object()
                && v["name"]
                    .as_str()
                    .is_some_and(|v| a.name.strip_prefix(name) == Some(format!("-{v}").as_str()))
        })
}

fn no_relationship(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

fn lease(node: &str, a: &Attributes) -> Result<(), String> {
    if !matches!(&*a.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a node lease".into());
    }
    if a.namespace != LEASES_IN {
        return Err(format!("can only access leases in the {LEASES_IN:?} system namespace"));
    }
    if a.verb != "create" && a.name != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn own_node(node: &str, a: &Attributes) -> Result<(), String> {
    match &*a.verb {
        "get" | "list" | "watch" if a.name == node => Ok(()),
        "get" => Err(format!("node '{node}' cannot read '{}', only its own Node object", a.name)),
        "list" | "watch" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
        _ => Ok(()),
    }
}

/// Does a pod's spec name that object?
pub fn names(spec: &Value, resource: &str, name: &str) -> bool {
    let named = |key: &str, value: &Value| {
        let rows = REFERENCES.iter().filter(|(k, r, _)| *k == key && *r == resource);
        rows.map(|(_, _, field)| *field).any(|field| match (field, value) {
            ("", value) => value == name,
            (field, Value::Array(list)) => list.iter().any(|item| item[field] == name),
            (field, value) => value[field] == name,
        })
    };
    match spec {
        Value::Object(map) => map.iter().any(|(k, v)| named(k, v) || names(v, resource, name)),
        Value::Array(list) => list.iter().any(|item| names(item, resource, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_spec_names_what_it_uses() {
        let spec = json!({
            "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "decoy", "envFrom": [{"secretRef": {"name": "all"}}],
                "env": [{"valueFrom": {"configMapKeyRef": {"name": "map", "key": "k"}}}, {"name": "x", "value": "y"}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "file"}},
                {"projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "ca"}}]}},
                {"persistentVolumeClaim": {"claimName": "disk"}}]});
        for (resource, name, want) in [
            ("secrets", "pull", true),
            ("secrets", "all", true),
            ("secrets", "file", true),
            ("secrets", "part", true),
            ("secrets", "map", false),
            ("secrets", "decoy", false),
            ("configmaps", "map", true),
            ("configmaps", "ca", true),
            ("configmaps", "y", false),
            ("persistentvolumeclaims", "disk", true),
            ("serviceaccounts", "sa", true),
            ("serviceaccounts", "other", false),
        ] {
            assert_eq!(names(&spec, resource, name), want, "{resource} {name}");
        }
    }

    #[test]
    fn the_claims_of_ephemeral_volumes_are_the_pods() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"volumes": [{"name": "e", "ephemeral": {}}, {"name": "x"}]}});
        for (name, want) in [("p-e", true), ("p-x", false), ("q-e", false), ("p-e-e", false), ("pe", false)] {
            let a = Attributes {
                resource: "persistentvolumeclaims".into(),
                name: name.into(),
                ..Attributes::default()
            };
            assert_eq!(is_ephemeral(&pod, &a), want, "{name}");
        }
    }

    #[test]
    fn only_real_nodes_are_nodes() {
        assert_eq!(node_of(&Identity::new("system:node:a", ["system:nodes"])), Some("a"));
        assert_eq!(node_of(&Identity::new("system:node:a", [])), None);
        assert_eq!(node_of(&Identity::new("system:node:", ["system:nodes"])), None);
    }
}

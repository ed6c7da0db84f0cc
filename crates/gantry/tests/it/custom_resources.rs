//! Custom resources own and are owned, and go with their namespace, like built-in ones.

use anyhow::{Result, ensure};
use testkit::cluster::Cluster;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: parents.family.example.org}
spec:
  group: family.example.org
  scope: Namespaced
  names: {plural: parents, kind: Parent}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
"#;

fn parent(name: &str, namespace: &str) -> String {
    format!(
        "apiVersion: family.example.org/v1\nkind: Parent\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    )
}

/// A ConfigMap owned by a parent goes with it, one whose parent is orphaning stays; a namespace takes parents along.
pub fn collected(cluster: &Cluster) -> Result<()> {
    cluster.apply(DEFINITION)?;
    cluster.kubectl(&["wait", "--for=condition=established", "crd/parents.family.example.org"])?;
    cluster.kubectl(&["create", "namespace", "family"])?;
    for name in ["strict", "easy"] {
        cluster.eventually("the kind is served", || cluster.apply(&parent(name, "family")))?;
        let uid = cluster.field(&["parent", name, "-n", "family"], "/metadata/uid")?;
        cluster.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: child-of-{name}\n  namespace: family\n  ownerReferences:\n  - {{apiVersion: family.example.org/v1, kind: Parent, name: {name}, uid: {uid}}}\n"
        ))?;
    }
    cluster.kubectl(&["-n", "family", "delete", "parent", "easy", "--cascade=orphan"])?;
    cluster.kubectl(&["-n", "family", "delete", "parent", "strict"])?;
    cluster.eventually("the child is collected", || {
        let left = cluster.kubectl(&["-n", "family", "get", "configmaps", "-o", "name"])?;
        ensure!(!left.contains("child-of-strict"), "{left}");
        ensure!(left.contains("child-of-easy"), "{left}");
        Ok(())
    })?;
    cluster.apply(&parent("last", "family"))?;
    cluster.kubectl(&["delete", "namespace", "family", "--timeout=280s"])?;
    cluster.kubectl(&["create", "namespace", "family"])?;
    let left = cluster.kubectl(&["-n", "family", "get", "parents", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

//! The API as kubectl sees it: every kind through every ordinary verb, with an old and a new kubectl.

use crate::cluster;
use crate::samples::{SAMPLES, manifest};
use anyhow::{Result, ensure};
use testkit::cluster::{Cluster, Kubectl};

/// Kinds that kubectl 1.20 describes through beta versions which v1.25 removed.
const DESCRIBED_BY_BETA: [&str; 3] = ["cronjobs", "endpointslices", "poddisruptionbudgets"];

/// Create, apply, get in two forms, label, patch, replace and delete one object of every kind.
fn walk(cluster: &Cluster, kubectl: Kubectl) -> Result<()> {
    for (resource, text) in SAMPLES {
        let step = |args: &[&str], stdin: &str| -> Result<String> {
            cluster
                .kubectl_stdin(kubectl, args, stdin)
                .map_err(|e| e.context(format!("{kubectl:?} {resource}")))
        };
        let body = manifest(text).to_string();
        step(&["create", "-f", "-"], &body)?;
        let again = step(&["create", "-f", "-"], &body);
        ensure!(
            format!("{:#}", again.expect_err("made twice")).contains("already exists"),
            "{resource}: created twice"
        );
        step(&["apply", "-f", "-"], &body)?;
        let table = step(&["get", resource, "sample", "-o", "wide"], "")?;
        ensure!(table.contains("sample"), "{resource}: {table}");
        step(&["label", resource, "sample", "kept=yes"], "")?;
        step(
            &["patch", resource, "sample", "--type=merge", "-p", r#"{"metadata":{"annotations":{"a":"1"}}}"#],
            "",
        )?;
        let json_patch = r#"[{"op":"replace","path":"/metadata/annotations/a","value":"2"}]"#;
        step(&["patch", resource, "sample", "--type=json", "-p", json_patch], "")?;
        let now = step(&["get", resource, "sample", "-o", "json"], "")?;
        ensure!(now.contains(r#""kept": "yes""#) && now.contains(r#""a": "2""#), "{resource}: {now}");
        step(&["replace", "-f", "-"], &now)?;
        step(&["get", resource, "-l", "walk=1", "-o", "name"], "")?;
        if !(kubectl == Kubectl::Debian && DESCRIBED_BY_BETA.contains(resource)) {
            step(&["describe", resource, "sample"], "")?;
        }
        step(&["delete", resource, "sample", "--wait=false"], "")?;
    }
    Ok(())
}

#[test]
fn every_kind_with_the_newest_kubectl() {
    walk(&cluster(), Kubectl::Newest).unwrap();
}

#[test]
fn every_kind_with_debians_kubectl() {
    walk(&cluster(), Kubectl::Debian).unwrap();
}

#[test]
fn bad_input_gets_kubernetes_words() {
    let cluster = cluster();
    let expect = |args: &[&str], stdin: &str, words: &str| {
        let error = format!("{:#}", cluster.kubectl_stdin(Kubectl::Newest, args, stdin).unwrap_err());
        assert!(error.contains(words), "{args:?}: {error}");
    };
    let create = ["create", "--validate=false", "-f", "-"];
    expect(
        &create,
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"A_B"}}"#,
        "a lowercase RFC 1123 subdomain must consist of",
    );
    expect(
        &create,
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[]}}"#,
        "spec.containers: Required value",
    );
    expect(
        &create,
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":"x"}]}}"#,
        "cannot unmarshal string into Go struct field",
    );
    expect(
        &["create", "--validate=strict", "-f", "-"],
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"dota":{}}"#,
        "unknown field",
    );
    expect(&["get", "pods", "-l", "a in"], "", "unable to parse");
    expect(&["get", "pods", "nope"], "", r#"pods "nope" not found"#);
    expect(
        &["create", "-n", "nowhere", "-f", "-"],
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#,
        r#"namespaces "nowhere" not found"#,
    );
    let stale = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kube-root-ca.crt","resourceVersion":"1"}}"#;
    expect(&["replace", "-f", "-"], stale, "the object has been modified");
}

//! The API as kubectl sees it: every kind through every ordinary verb, with an old and a new kubectl.

use crate::cluster;
use crate::samples::{SAMPLES, manifest};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::cluster::{Cluster, Kubectl};

/// Kinds that kubectl 1.20 describes through beta versions which v1.25 removed.
const DESCRIBED_BY_BETA: [&str; 3] = ["cronjobs", "endpointslices", "poddisruptionbudgets"];

/// How often an object may change between being read and replaced: controllers are at work.
const REPLACES_MAX: usize = 5;

/// Create, apply, get in two forms, label, patch, replace, describe and delete one object of every kind. A verb takes
/// all kinds at once: most of kubectl's time is its start.
fn walk(cluster: &Cluster, kubectl: Kubectl) -> Result<()> {
    let step = |args: &[&str], stdin: &str| cluster.kubectl_stdin(kubectl, args, stdin);
    let names: Vec<String> = SAMPLES.iter().map(|(resource, _)| format!("{resource}/sample")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let of_all = |verb: &[&str], names: &[&str], flags: &[&str]| step(&[verb, names, flags].concat(), "");
    let items: Vec<Value> = SAMPLES.iter().map(|(_, text)| manifest(text)).collect();
    let body = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let each = |what: &str, text: &str, words: &str| {
        let count = text.lines().filter(|line| line.contains(words)).count();
        ensure!(count == SAMPLES.len(), "{kubectl:?} {what}: {count} of {}: {text}", SAMPLES.len());
        Ok(())
    };
    each("create", &step(&["create", "-f", "-"], &body)?, "created")?;
    let again = step(&["create", "-f", "-"], &body).expect_err("made twice");
    each("create again", &format!("{again:#}"), "already exists")?;
    each("apply", &step(&["apply", "-f", "-"], &body)?, "configured")?;
    each("get", &of_all(&["get"], &names, &["-o", "wide"])?, "sample")?;
    each("label", &of_all(&["label"], &names, &["kept=yes"])?, "labeled")?;
    let merge = r#"{"metadata":{"annotations":{"a":"1"}}}"#;
    each("patch", &of_all(&["patch"], &names, &["--type=merge", "-p", merge])?, "patched")?;
    let json_patch = r#"[{"op":"replace","path":"/metadata/annotations/a","value":"2"}]"#;
    each("patch", &of_all(&["patch"], &names, &["--type=json", "-p", json_patch])?, "patched")?;
    for left in (0..REPLACES_MAX).rev() {
        // (Controllers carry labels from a Service to what is made of it.)
        let now = cluster.eventually("labels and annotations", || {
            let now = of_all(&["get"], &names, &["-o", "json"])?;
            each("labels", &now, r#""kept": "yes""#)?;
            each("annotations", &now, r#""a": "2""#)?;
            Ok(now)
        })?;
        match step(&["replace", "-f", "-"], &now) {
            Err(error) if left > 0 && format!("{error:#}").contains("has been modified") => {}
            said => {
                each("replace", &said?, "replaced")?;
                break;
            }
        }
    }
    let kinds: Vec<&str> = SAMPLES.iter().map(|(resource, _)| *resource).collect();
    let selected = step(&["get", &kinds.join(","), "-l", "walk=1", "-o", "name"], "")?;
    // Controllers copy labels to what they make: those have longer names.
    each("select", &(selected + "\n").replace("/sample\n", "/sample.\n"), "/sample.")?;
    let beta = |name: &&str| DESCRIBED_BY_BETA.contains(&name.trim_end_matches("/sample"));
    let described: Vec<&str> =
        names.iter().copied().filter(|name| kubectl == Kubectl::Newest || !beta(name)).collect();
    let said = of_all(&["describe"], &described, &[])?;
    let count = said.lines().filter(|line| line.starts_with("Name:") && line.ends_with(" sample")).count();
    ensure!(count == described.len(), "{kubectl:?} describe: {count} of {}: {said}", described.len());
    each("delete", &of_all(&["delete"], &names, &["--wait=false"])?, "deleted")
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

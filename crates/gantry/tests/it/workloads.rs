//! Deployments and what surrounds them: rollouts without a failed request, rollback, pause, scale, cascades.

use crate::{all, busy, has};
use anyhow::{Context, Result, ensure};
use std::process::Stdio;
use testkit::cluster::{Cluster, Kubectl};

#[test]
fn deployments_roll_back_and_forth() {
    let cluster = busy();
    all(
        &cluster,
        &[
            ("rolling_update", rolling_update),
            ("rollback", rollback),
            ("pause", pause),
            ("stuck", stuck),
            ("cascade", cascade),
            ("orphan", orphan),
            ("namespace", namespace),
            ("custom", crate::custom_resources::collected),
            ("old_manifest", old_manifest),
            ("expose", expose),
        ],
    );
}

fn deployment(name: &str, replicas: u32, env: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 60
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        env: [{{name: V, value: "{env}"}}]
        command: [sh, -c, "echo $V > /www/index.html; httpd -f -p 8080 -h /www & trap 'sleep 6; kill %1; exit 0' TERM; wait"]
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 20}}
"#
    )
}

fn rolled_out(cluster: &Cluster, name: &str) -> Result<()> {
    let name = format!("deployment/{name}");
    cluster.kubectl(&["rollout", "status", &name, "--timeout=280s"]).map(drop)
}

/// A client that asks without pause; prints each failure, and at the end how often it asked.
const LOAD: &str = r#"n=0; while [ ! -e "$STOP" ]; do n=$((n+1)); curl -sS --max-time 30 "http://$IP/" >> "$STOP.said" 2>&1 || echo "request $n failed"; done; echo asked $n"#;

fn rolling_update(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("roll", 2, "one"))?;
    cluster.kubectl(&["expose", "deployment", "roll", "--port=80", "--target-port=8080"])?;
    rolled_out(cluster, "roll")?;
    let ip = cluster.field(&["service", "roll"], "/spec/clusterIP")?;
    let fetch = || cluster.sh(&format!("curl -sS --max-time 3 http://{ip}/"));
    cluster.eventually("the service answers", fetch)?;
    let stop = cluster.folder().join("stop-load");
    let mut load = cluster.inside("sh");
    load.args(["-c", LOAD]).env("IP", &ip).env("STOP", &stop).stdin(Stdio::null()).stdout(Stdio::piped());
    let load = load.spawn()?;
    let update = || -> Result<()> {
        cluster.kubectl(&["set", "env", "deployment/roll", "V=two"])?;
        rolled_out(cluster, "roll")?;
        cluster.kubectl(&["rollout", "restart", "deployment/roll"])?;
        rolled_out(cluster, "roll")
    };
    let updated = update();
    std::fs::write(&stop, "")?;
    let said = String::from_utf8(load.wait_with_output()?.stdout)?;
    updated?;
    ensure!(!said.contains("failed"), "{said}\n{}", failures(&stop)?);
    let asked: u32 = said.trim().rsplit(' ').next().context("a count")?.parse()?;
    ensure!(asked > 10, "too few requests to prove anything: {asked}");
    cluster.eventually("the new version answers", || has(&fetch()?, &["two"]))
}

fn failures(stop: &std::path::Path) -> Result<String> {
    let said = std::fs::read_to_string(format!("{}.said", stop.display()))?;
    Ok(said.lines().filter(|l| l.contains("curl")).collect::<Vec<_>>().join("\n"))
}

fn rollback(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("back", 1, "one"))?;
    rolled_out(cluster, "back")?;
    cluster.kubectl(&["annotate", "deployment/back", "kubernetes.io/change-cause=first"])?;
    cluster.kubectl(&["set", "env", "deployment/back", "V=two"])?;
    rolled_out(cluster, "back")?;
    for kubectl in [Kubectl::Debian, Kubectl::Newest] {
        let history = cluster.kubectl_of(kubectl, &["rollout", "history", "deployment/back"])?;
        has(&history, &["1", "2", "first"])?;
    }
    cluster.kubectl(&["rollout", "undo", "deployment/back"])?;
    rolled_out(cluster, "back")?;
    let value = cluster.field(&["deployment", "back"], "/spec/template/spec/containers/0/env/0/value")?;
    ensure!(value == "one", "{value}");
    let revision = "/metadata/annotations/deployment.kubernetes.io~1revision";
    cluster.wait_field(&["deployment", "back"], revision, "3")?;
    let sets = cluster.kubectl(&["get", "rs", "-l", "app=back", "-o", "name"])?;
    ensure!(sets.lines().count() == 2, "the first ReplicaSet is used again: {sets}");
    Ok(())
}

fn pause(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("halt", 1, "one"))?;
    rolled_out(cluster, "halt")?;
    cluster.kubectl(&["rollout", "pause", "deployment/halt"])?;
    cluster.kubectl(&["set", "env", "deployment/halt", "V=two"])?;
    cluster.kubectl(&["scale", "deployment/halt", "--replicas=2"])?;
    cluster.wait_field(&["deployment", "halt"], "/status/readyReplicas", "2")?;
    let sets = || -> Result<usize> {
        Ok(cluster.kubectl(&["get", "rs", "-l", "app=halt", "-o", "name"])?.lines().count())
    };
    ensure!(sets()? == 1, "paused: it scales but does not roll");
    cluster.kubectl(&["rollout", "resume", "deployment/halt"])?;
    rolled_out(cluster, "halt")?;
    ensure!(sets()? == 2, "resumed: it rolls");
    Ok(())
}

/// A new version that never becomes ready takes nothing from the old one and is told by `rollout status`.
fn stuck(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("stuck", 1, "one"))?;
    rolled_out(cluster, "stuck")?;
    let patch = r#"{"spec":{"progressDeadlineSeconds":3,"template":{"spec":{"containers":[{"name":"c","image":"nope:1"}]}}}}"#;
    cluster.kubectl(&["patch", "deployment", "stuck", "-p", patch])?;
    let said = crate::refusal(cluster.kubectl(&["rollout", "status", "deployment/stuck", "--timeout=280s"]))?;
    has(&said, &["deployment \"stuck\" exceeded its progress deadline"])?;
    let ready = cluster.field(&["deployment", "stuck"], "/status/readyReplicas")?;
    ensure!(ready == "1", "{ready}");
    Ok(())
}

fn gone(cluster: &Cluster, what: &str, selector: &str) -> Result<()> {
    cluster.eventually(&format!("no {what} with {selector}"), || {
        let left = cluster.kubectl(&["get", what, "-l", selector, "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

fn cascade(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("casc", 2, "x"))?;
    rolled_out(cluster, "casc")?;
    cluster.kubectl(&["delete", "deployment", "casc"])?;
    gone(cluster, "rs,pods", "app=casc")?;
    cluster.apply(&deployment("casc", 1, "x"))?;
    rolled_out(cluster, "casc")?;
    cluster.kubectl(&["delete", "deployment", "casc", "--cascade=foreground"])?;
    let left = cluster.kubectl(&["get", "rs", "-l", "app=casc", "-o", "name"])?;
    ensure!(left.is_empty(), "foreground deletion waits for what is owned: {left}");
    gone(cluster, "pods", "app=casc")
}

fn orphan(cluster: &Cluster) -> Result<()> {
    cluster.apply(&deployment("orph", 1, "x"))?;
    rolled_out(cluster, "orph")?;
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=orph", "-o", "name"])?;
    cluster.kubectl(&["delete", "deployment", "orph", "--cascade=orphan"])?;
    let set = cluster.get(&["rs", "-l", "app=orph"])?["items"][0].clone();
    ensure!(set["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{set}");
    ensure!(cluster.kubectl(&["get", "pods", "-l", "app=orph", "-o", "name"])? == pod, "the pod runs on");
    cluster.apply(&deployment("orph", 1, "x"))?;
    rolled_out(cluster, "orph")?;
    ensure!(
        cluster.kubectl(&["get", "pods", "-l", "app=orph", "-o", "name"])? == pod,
        "adopted, not replaced"
    );
    Ok(())
}

fn namespace(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "brief"])?;
    cluster.kubectl_stdin(
        Kubectl::Newest,
        &["-n", "brief", "apply", "-f", "-"],
        &deployment("full", 2, "x"),
    )?;
    cluster.kubectl(&["-n", "brief", "create", "cm", "kept", "--from-literal=a=b"])?;
    cluster.kubectl(&["-n", "brief", "rollout", "status", "deployment/full", "--timeout=280s"])?;
    cluster.kubectl(&["delete", "namespace", "brief", "--timeout=280s"])?;
    let left = cluster.kubectl(&["get", "pods,rs,deployments,cm,secrets,sa", "-n", "brief", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

fn old_manifest(cluster: &Cluster) -> Result<()> {
    let text = r#"
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: book}
spec:
  replicas: 1
  template:
    metadata: {labels: {app: book}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: "busybox:1.28", command: [sleep, "1000"]}
"#;
    cluster.kubectl_stdin(Kubectl::Debian, &["create", "-f", "-"], text)?;
    rolled_out(cluster, "book")?;
    let selector = cluster.field(&["deployment", "book"], "/spec/selector/matchLabels/app")?;
    ensure!(selector == "book", "the selector is taken from the labels: {selector:?}");
    Ok(())
}

fn expose(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "deployment", "made", "--image=busybox:1.36", "--", "sleep", "1000"])?;
    cluster.kubectl(&["scale", "deployment/made", "--replicas=3"])?;
    rolled_out(cluster, "made")?;
    cluster.kubectl(&["expose", "deployment/made", "--port=80", "--type=NodePort"])?;
    let service = cluster.get(&["service", "made"])?;
    ensure!(service["spec"]["selector"]["app"] == "made", "{service}");
    ensure!(service["spec"]["ports"][0]["nodePort"].as_u64() >= Some(30000), "{service}");
    cluster.eventually("all three are listed", || {
        let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=made"])?;
        let count = slices["items"][0]["endpoints"].as_array().map_or(0, Vec::len);
        ensure!(count == 3, "{slices}");
        Ok(())
    })?;
    cluster.kubectl(&["scale", "deployment/made", "--replicas=1"])?;
    cluster.wait_field(&["deployment", "made"], "/status/replicas", "1")?;
    cluster.eventually("one of one", || has(&cluster.kubectl(&["get", "deployment", "made"])?, &["1/1"]))
}

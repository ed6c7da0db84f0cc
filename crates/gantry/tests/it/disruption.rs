//! Voluntary disruption: evictions that a budget holds back, draining a node, resizing pods while they run.

use crate::{all, busy, has, pod, ready, refusal};
use anyhow::{Context, Result, ensure};
use testkit::cluster::Cluster;

#[test]
fn budgets_and_resizes() {
    let checks: &[crate::Check] = &[("resize", resize), ("resize_refused", resize_refused), ("drain", drain)];
    all(&busy(), checks);
}

/// Draining one node must wait for the budget: the replacement has nowhere to become ready.
fn drain(cluster: &Cluster) -> Result<()> {
    let template = "metadata: {labels: {app: kept}}\n    spec: {terminationGracePeriodSeconds: 0, containers: \
        [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]}";
    cluster.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: kept}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: kept}}}}\n  template:\n    {template}\n---\n\
         apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: kept}}\nspec:\n  \
         minAvailable: 50%\n  selector: {{matchLabels: {{app: kept}}}}\n"
    ))?;
    ready(cluster, "kept")?;
    let budget = ["poddisruptionbudget", "kept"];
    cluster.wait_field(&budget, "/status/disruptionsAllowed", "1")?;
    for (field, value) in [("expectedPods", "2"), ("currentHealthy", "2"), ("desiredHealthy", "1")] {
        cluster.wait_field(&budget, &format!("/status/{field}"), value)?;
    }
    has(&cluster.kubectl(&["get", "pdb", "kept"])?, &["50%", "N/A", " 1 "])?;
    let drain = |more: &str| {
        cluster.kubectl(&["drain", "node-1", "--pod-selector=app=kept", "--ignore-daemonsets", more])
    };
    let said = refusal(drain("--timeout=15s"))?;
    has(&said, &["Cannot evict pod as it would violate the pod's disruption budget."])?;
    cluster.wait_field(&budget, "/status/disruptionsAllowed", "0")?;
    cluster.eventually("one runs and its like waits", || {
        let path = "jsonpath={.items[*].status.phase}";
        has(&cluster.kubectl(&["get", "pods", "-l", "app=kept", "-o", path])?, &["Running", "Pending"])
    })?;
    cluster.kubectl(&["delete", "pdb", "kept"])?;
    drain("--timeout=280s")?;
    cluster.kubectl(&["uncordon", "node-1"])?;
    ready(cluster, "kept")
}

/// What the kernel has of container `c`, instance `attempt`: the file of v1 or of v2.
fn limit(cluster: &Cluster, uid: &str, attempt: u32, v1: &str, v2: &str) -> Result<String> {
    let at = |file: &str| format!("-path '*pod{uid}/c-{attempt}/{file}'");
    // (Cgroups of other tests come and go: find complains.)
    let found = cluster.sh(&format!("find /sys/fs/cgroup {} -o {} 2>/dev/null; true", at(v1), at(v2)))?;
    let path = found.lines().next().context("the container's cgroup")?.to_string();
    Ok(std::fs::read_to_string(path)?.trim().to_string())
}

const RESOURCES: &str = "resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {memory: 64Mi}}\n\
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]";

fn patch(cluster: &Cluster, name: &str, resources: &str) -> Result<String> {
    let body = format!("{{\"spec\": {{\"containers\": [{{\"name\": \"c\", \"resources\": {resources}}}]}}}}");
    cluster.kubectl(&["patch", "pod", name, "--subresource=resize", "--patch", &body])
}

fn resize(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("grow", "exec sleep 1000", RESOURCES, ""))?;
    ready(cluster, "grow")?;
    let uid = cluster.field(&["pod", "grow"], "/metadata/uid")?;
    let cpu = || limit(cluster, &uid, 0, "cpu.shares", "cpu.weight");
    let before = cpu()?;
    patch(cluster, "grow", r#"{"requests": {"cpu": "100m"}}"#)?;
    let own = "/status/containerStatuses/0";
    cluster.wait_field(&["pod", "grow"], &format!("{own}/resources/requests/cpu"), "100m")?;
    cluster.wait_field(&["pod", "grow"], &format!("{own}/allocatedResources/cpu"), "100m")?;
    ensure!(cpu()? != before, "the kernel has the old share: {before}");
    ensure!(cluster.field(&["pod", "grow"], &format!("{own}/restartCount"))? == "0", "it was not restarted");
    patch(cluster, "grow", r#"{"limits": {"memory": "96Mi"}}"#)?;
    cluster.wait_field(&["pod", "grow"], &format!("{own}/restartCount"), "1")?;
    cluster.wait_field(&["pod", "grow"], &format!("{own}/resources/limits/memory"), "96Mi")?;
    let memory = limit(cluster, &uid, 1, "memory.limit_in_bytes", "memory.max")?;
    ensure!(memory == (96 << 20).to_string(), "{memory}");
    cluster.eventually("the resize is done", || {
        let pod = cluster.get(&["pod", "grow"])?;
        ensure!(pod["status"]["observedGeneration"] == pod["metadata"]["generation"], "{pod}");
        ensure!(!pod["status"]["conditions"].to_string().contains("PodResize"), "{pod}");
        Ok(())
    })
}

fn resize_refused(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("big", "exec sleep 1000", RESOURCES, ""))?;
    ready(cluster, "big")?;
    let said = refusal(patch(
        cluster,
        "big",
        r#"{"requests": {"memory": "64Mi", "cpu": "50m"}, "limits": {"cpu": "50m"}}"#,
    ))?;
    has(&said, &["Pod QOS Class may not change as a result of resizing"])?;
    patch(cluster, "big", r#"{"requests": {"cpu": "1000"}}"#)?;
    let condition = |kind: &str| -> Result<serde_json::Value> {
        let pod = cluster.get(&["pod", "big"])?;
        let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
        all.find(|c| c["type"] == kind).cloned().with_context(|| format!("no {kind} in {}", pod["status"]))
    };
    let pending = cluster.eventually("the resize is refused", || condition("PodResizePending"))?;
    ensure!(pending["reason"] == "Infeasible", "{pending}");
    has(
        pending["message"].as_str().unwrap_or_default(),
        &["Node didn't have enough capacity: cpu, requested: 1000000"],
    )?;
    let status = cluster.get(&["pod", "big"])?["status"]["containerStatuses"][0].clone();
    ensure!(
        status["allocatedResources"]["cpu"] == "50m" && status["resources"]["requests"]["cpu"] == "50m",
        "{status}"
    );
    patch(cluster, "big", r#"{"requests": {"cpu": "60m"}}"#)?;
    cluster.wait_field(&["pod", "big"], "/status/containerStatuses/0/resources/requests/cpu", "60m")?;
    cluster.eventually("the refusal is gone", || match condition("PodResizePending") {
        Err(_) => Ok(()),
        Ok(left) => anyhow::bail!("{left}"),
    })
}

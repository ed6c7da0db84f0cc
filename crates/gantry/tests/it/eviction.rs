//! A node that runs short: who is not let in, who goes, in which words; disk limits of single pods.

use crate::{all, has, logged, pod, ready, told};
use anyhow::{Result, ensure};
use std::process::Command;
use testkit::cluster::Cluster;
use testkit::image::ImageBuilder;

/// Looks at the same node in the same way.
const NODE: [&str; 2] = ["node", "node-1"];

fn node(flags: &[&str]) -> Cluster {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), flags).expect("an instance starts");
    cluster.load_busybox().expect("the image loads");
    cluster
}

#[test]
fn limits_and_admission() {
    let checks: &[crate::Check] = &[
        ("forced", forced_pods_that_do_not_fit),
        ("empty_dir", an_empty_dir_over_its_limit),
        ("ephemeral", a_container_over_its_limit),
    ];
    all(&node(&["--max-pods", "20"]), checks);
}

/// A pod that is bound by hand; `container` are YAML lines of its container, `more` of its spec.
fn bound(cluster: &Cluster, name: &str, container: &str, more: &str) -> Result<()> {
    let text = pod(name, "exec sleep 1000", container, &format!("nodeName: node-1\n{more}"));
    cluster.apply(&text).map(drop)
}

fn failed(cluster: &Cluster, name: &str, reason: &str, message: &str) -> Result<()> {
    cluster.wait_field(&["pod", name], "/status/phase", "Failed")?;
    let status = cluster.get(&["pod", name])?["status"].clone();
    ensure!(status["reason"] == reason, "{status}");
    has(status["message"].as_str().unwrap_or_default(), &[message])?;
    if status["containerStatuses"].is_null() {
        // Never let in. (Of an evicted one the table shows how its containers ended, as upstream's.)
        has(&cluster.kubectl(&["get", "pod", name])?, &[reason])?;
    }
    told(cluster, name, &[reason])
}

fn forced_pods_that_do_not_fit(cluster: &Cluster) -> Result<()> {
    let asks = |what: &str| format!("resources: {{requests: {{{what}}}}}");
    bound(cluster, "cpu", &asks("cpu: 1000"), "")?;
    failed(
        cluster,
        "cpu",
        "OutOfcpu",
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ",
    )?;
    bound(cluster, "memory", &asks("memory: 100Ti"), "")?;
    failed(cluster, "memory", "OutOfmemory", "Node didn't have enough resource: memory, requested: ")?;
    bound(cluster, "elsewhere", "", "nodeSelector: {disk: ssd}")?;
    let words =
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    failed(cluster, "elsewhere", "NodeAffinity", words)?;
    let port = "ports: [{containerPort: 80, hostPort: 8099}]";
    bound(cluster, "port-one", port, "")?;
    ready(cluster, "port-one")?;
    bound(cluster, "port-two", port, "")?;
    failed(cluster, "port-two", "NodePorts", "node(s) didn't have free ports for the requested pod ports")?;
    bound(cluster, "sysctl", "", "securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}")?;
    failed(cluster, "sysctl", "SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted")?;
    // The owner's next pod finds the port free.
    cluster.kubectl(&["delete", "pod", "port-one", "port-two"])?;
    bound(cluster, "port-three", port, "")?;
    ready(cluster, "port-three")
}

fn an_empty_dir_over_its_limit(cluster: &Cluster) -> Result<()> {
    let mount = "volumeMounts: [{name: v, mountPath: /v}]";
    let volume = "volumes: [{name: v, emptyDir: {sizeLimit: 2Mi}}]";
    cluster.apply(&pod("modest", "head -c 1048576 /dev/zero > /v/f; exec sleep 1000", mount, volume))?;
    ready(cluster, "modest")?;
    cluster.apply(&pod("hoarder", "head -c 4194304 /dev/zero > /v/f; exec sleep 1000", mount, volume))?;
    failed(cluster, "hoarder", "Evicted", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". ")?;
    let status = cluster.get(&["pod", "hoarder"])?["status"].clone();
    has(&status["conditions"].to_string(), &["DisruptionTarget", "TerminationByKubelet"])?;
    ensure!(status["containerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
    let phase = cluster.field(&["pod", "modest"], "/status/phase")?;
    ensure!(phase == "Running", "{phase}");
    Ok(())
}

fn a_container_over_its_limit(cluster: &Cluster) -> Result<()> {
    let limit = "resources: {limits: {ephemeral-storage: 2Mi}}";
    cluster.apply(&pod("writer", "head -c 4194304 /dev/zero > /f; exec sleep 1000", limit, ""))?;
    failed(
        cluster,
        "writer",
        "Evicted",
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
    )
}

/// Short of memory from the start (with time for all to start): who asks for nothing is not let in, who uses more than he asks for goes.
#[test]
fn memory_pressure() {
    let cluster =
        node(&["--eviction-soft", "memory.available<100%", "--eviction-soft-grace", "memory.available=45s"]);
    let check = || -> Result<()> {
        let asks = |amount: &str| format!("resources: {{requests: {{memory: {amount}}}}}");
        // Bound by hand: the scheduler sees the taint.
        cluster.eventually("the condition", || {
            let told = cluster.get(&NODE)?;
            has(&told["status"]["conditions"].to_string(), &["KubeletHasInsufficientMemory"])?;
            has(&told["spec"]["taints"].to_string(), &["node.kubernetes.io/memory-pressure"])
        })?;
        let eater = "head -c 20000000 /dev/zero > /dev/shm/f; echo fed; exec sleep 1000";
        let bind = "nodeName: node-1";
        cluster.apply(&pod("within", "exec sleep 1000", &asks("500Mi"), bind))?;
        cluster.apply(&pod("over", eater, &asks("1Mi"), bind))?;
        cluster.apply(&pod("nothing", "exec sleep 1000", "", bind))?;
        failed(&cluster, "nothing", "Evicted", "The node had condition: [MemoryPressure]. ")?;
        logged(&cluster, "over", &["fed"])?;
        failed(&cluster, "over", "Evicted", "The node was low on resource: memory. Threshold quantity: ")?;
        let message = cluster.field(&["pod", "over"], "/status/message")?;
        has(&message, &["Container c was using ", ", request is 1Mi, has larger consumption of memory. "])?;
        let told = || cluster.kubectl(&["get", "events", "--field-selector=involvedObject.kind=Node"]);
        cluster.eventually("the node's events", || {
            has(
                &told()?,
                &["NodeHasInsufficientMemory", "EvictionThresholdMet", "Attempting to reclaim memory"],
            )
        })
    };
    check().unwrap();
}

/// A small disk of the instance's own, gone when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, size: &str) -> Result<SmallDisk> {
        let options = format!("size={size}");
        testkit::cluster::run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at))?;
        Ok(SmallDisk(at.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The disk fills: unused images go, then the pod that fills it; then all is well again.
#[test]
fn disk_pressure() {
    let flags = ["--eviction-hard", "nodefs.available<60%", "--eviction-transition", "3"];
    let mut cluster = Cluster::prepare(env!("CARGO_BIN_EXE_gantry"), &flags).unwrap();
    let disk = SmallDisk::mount(cluster.folder(), "1g").unwrap();
    cluster.up().unwrap();
    let check = || -> Result<()> {
        cluster.load_busybox()?;
        let spare = ImageBuilder::busybox("spare:1").layer().file("x", b"x", 0o644);
        cluster.sh(&format!(
            "{} image load {} --name {} --data-dir {}",
            env!("CARGO_BIN_EXE_gantry"),
            spare.write_docker_archive(&cluster.folder().join("spare.tar")).display(),
            cluster.name(),
            cluster.folder().display()
        ))?;
        let volume = ("volumeMounts: [{name: v, mountPath: /v}]", "volumes: [{name: v, emptyDir: {}}]");
        cluster.apply(&pod("quiet", "exec sleep 1000", volume.0, volume.1))?;
        ready(&cluster, "quiet")?;
        let fill = "head -c 500000000 /dev/zero > /v/f; exec sleep 1000";
        cluster.apply(&pod("filler", fill, volume.0, volume.1))?;
        failed(
            &cluster,
            "filler",
            "Evicted",
            "The node was low on resource: ephemeral-storage. Threshold quantity: ",
        )?;
        ensure!(cluster.field(&["pod", "quiet"], "/status/phase")? == "Running", "the quiet pod stays");
        cluster.eventually("the node tells which images are left", || {
            let told = cluster.get(&NODE)?["status"]["images"].to_string();
            ensure!(!told.contains("spare:1") && told.contains("busybox"), "{told}");
            Ok(())
        })?;
        cluster.eventually("relief", || {
            let told = cluster.get(&NODE)?;
            has(&told["status"]["conditions"].to_string(), &["KubeletHasNoDiskPressure"])?;
            ensure!(!told["spec"]["taints"].to_string().contains("disk-pressure"), "{}", told["spec"]);
            Ok(())
        })
    };
    let checked = check();
    drop(cluster);
    drop(disk);
    checked.unwrap();
}

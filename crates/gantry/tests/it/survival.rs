//! What outlives the process: kill -9, Ctrl-C, and what happened to the API's objects meanwhile.

use crate::{busy, has, logged, pod, ready};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use testkit::cluster::Cluster;

/// The first processes of the instance's containers by what `/proc` says of their cgroups: `pod/container` → host PID.
fn pids(cluster: &Cluster) -> Result<BTreeMap<String, u32>> {
    let mut found = BTreeMap::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let group = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let line = group.lines().find(|l| l.contains(":memory:") || l.starts_with("0::")).unwrap_or_default();
        let Some((_, path)) = line.split_once(&format!("/{}/", cluster.name())) else { continue };
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let own = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
        // (Host PIDs start anew at some time: the lowest need not be the first.)
        if own.split_whitespace().last() == Some("1") {
            found.insert(path.to_string(), pid);
        }
    }
    Ok(found)
}

/// Waits until the test says go.
const TOLD: &str = "until test -e /go; do sleep 0.1; done";

const PODS: [&str; 3] = ["steady", "twin", "leaving"];

#[test]
fn containers_outlive_the_agent() -> Result<()> {
    let mut cluster = busy();
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    for name in PODS {
        cluster.apply(&pod(name, script, "", ""))?;
    }
    cluster.apply(&pod("ends", &format!("{TOLD}; echo over; exit 3"), "", "restartPolicy: Never"))?;
    cluster.apply(&pod("restarts", &format!("{TOLD}; exit 1"), "", ""))?;
    for name in PODS.iter().chain(&["ends", "restarts"]) {
        ready(&cluster, name)?;
    }
    let uids: Vec<String> = PODS.iter().map(|n| cluster_uid(&cluster, n)).collect::<Result<_>>()?;
    let before = of(pids(&cluster)?, &uids);
    ensure!(before.len() == PODS.len(), "{before:?} is not a container a pod");
    let ip = cluster.field(&["pod", "steady"], "/status/podIP")?;

    let told: Vec<u32> =
        pids(&cluster)?.into_iter().filter(|(path, _)| !before.contains_key(path)).map(|(_, p)| p).collect();
    cluster.kill9()?;
    // While nobody manages them, two pods end.
    ensure!(told.len() == 2, "{told:?}");
    for pid in told {
        std::fs::write(format!("/proc/{pid}/root/go"), "")?;
    }
    wait_for("the short pods have ended", || {
        let left = pids(&cluster)?;
        ensure!(left.len() == PODS.len(), "{left:?}");
        Ok(())
    })?;
    cluster.up()?;
    let now = of(pids(&cluster)?, &uids);
    ensure!(now == before, "{now:?}, not {before:?}");
    still_there(&cluster)?;
    ensure!(cluster.field(&["pod", "steady"], "/status/podIP")? == ip, "another address");
    cluster.wait_field(&["pod", "ends"], "/status/phase", "Failed")?;
    let end = cluster.get(&["pod", "ends"])?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(end["exitCode"] == 3, "the exit code of a container that ended alone: {end}");
    logged(&cluster, "ends", &["over"])?;
    cluster.eventually("what ended alone is restarted", || {
        let count = cluster.field(&["pod", "restarts"], "/status/containerStatuses/0/restartCount")?;
        ensure!(count.parse::<u32>()? >= 1, "{count}");
        Ok(())
    })?;
    let logs = cluster.kubectl(&["logs", "steady"])?;
    let numbers: Vec<u32> = logs.lines().filter_map(|l| l.strip_prefix("tick ")?.parse().ok()).collect();
    ensure!(numbers.iter().enumerate().all(|(i, n)| *n == i as u32 + 1), "a line is lost or doubled: {logs}");

    // A pod that the API lost while no agent ran is torn down at the next start.
    cluster.kubectl(&["delete", "pod", "leaving", "--wait=false", "--grace-period=1"])?;
    cluster.kill9()?;
    cluster.up()?;
    wait_for("the deleted pod is torn down", || {
        let left = of(pids(&cluster)?, &uids[2..]);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    cluster.eventually("and gone", || {
        has(&crate::refusal(cluster.kubectl(&["get", "pod", "leaving"]))?, &["not found"])
    })?;

    cluster.interrupt()?;
    ensure!(of(pids(&cluster)?, &uids[..2]).len() == 2, "Ctrl-C stops no pod");
    cluster.up()?;
    cluster.eventually("exec works again", || cluster.kubectl(&["exec", "twin", "--", "true"]))?;
    let count = cluster.field(&["pod", "twin"], "/status/containerStatuses/0/restartCount")?;
    ensure!(count == "0", "{count}");

    let left = cluster.down()?;
    ensure!(left.is_empty() && pids(&cluster)?.is_empty(), "{left:?}");
    // What `down` stopped comes back with the next start, as after a reboot.
    cluster.up()?;
    ready(&cluster, "twin")
}

fn still_there(cluster: &Cluster) -> Result<()> {
    for name in PODS {
        let status = cluster.get(&["pod", name])?["status"].clone();
        ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
        ensure!(status["phase"] == "Running", "{status}");
    }
    cluster.eventually("exec", || {
        ensure!(cluster.kubectl(&["exec", "steady", "--", "echo", "inside"])? == "inside\n");
        Ok(())
    })
}

fn cluster_uid(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.field(&["pod", name], "/metadata/uid")
}

/// Those of these pods.
fn of(all: BTreeMap<String, u32>, uids: &[String]) -> BTreeMap<String, u32> {
    all.into_iter().filter(|(path, _)| uids.iter().any(|u| path.contains(u.as_str()))).collect()
}

fn wait_for(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => return Err(error.context(what.to_string())),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

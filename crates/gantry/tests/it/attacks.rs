//! Pods that eat what a machine has: only they are hurt. A neighbour answers throughout, the agent stays small.
//!
//! One after the other on one instance, so that what goes wrong has one cause. What evicts pods when the whole node
//! runs short is in `eviction`.

use crate::{has, logged, pod, ready};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::cluster::Cluster;

/// Processes a pod may have here: enough to tell a bomb from a pod, few enough for any machine.
const PIDS_MAX: &str = "600";
/// What the agent's own memory may grow by under any of them: caches fill, nothing may follow the attack's size.
const GROWTH_MAX_KB: u64 = 16 << 10;
/// The longest a neighbour's answer may take on a machine that is busy with the attack and other tests.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Between two questions to the neighbour: asking costs more than answering.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What one pod does beside the others.
type Attack = fn(&Cluster) -> Result<()>;

#[test]
fn bombs_hurt_only_their_pod() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &["--pod-pids-max", PIDS_MAX]).unwrap();
    cluster.load_busybox().unwrap();
    let web = "mkdir /w; echo alive > /w/index.html; exec httpd -f -p 8080 -h /w";
    cluster.apply(&pod("neighbour", web, "", "")).unwrap();
    ready(&cluster, "neighbour").unwrap();
    let ip = cluster.field(&["pod", "neighbour"], "/status/podIP").unwrap();
    let attacks: [(&str, Attack); 4] =
        [("forks", forks), ("memory", memory), ("logs", logs), ("inodes", inodes)];
    let only = std::env::var("CHECK").unwrap_or_default();
    for (name, attack) in attacks.iter().filter(|(name, _)| name.contains(&only)) {
        beside(&cluster, &ip, *attack).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    // It was never restarted either.
    let restarts = cluster.field(&["pod", "neighbour"], "/status/containerStatuses/0/restartCount").unwrap();
    assert_eq!(restarts, "0");
}

/// Runs an attack with somebody asking the neighbour all the while.
fn beside(cluster: &Cluster, ip: &str, attack: fn(&Cluster) -> Result<()>) -> Result<()> {
    let (before, begun) = (memory_kb(cluster)?, Instant::now());
    let over = AtomicBool::new(false);
    let (result, slowest) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<Duration> {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let said = cluster.sh(&format!("curl -sS --max-time 100 http://{ip}:8080/"))?;
                ensure!(said.trim() == "alive", "{said}");
                slowest = slowest.max(start.elapsed());
                std::thread::sleep(ASK_AGAIN);
            }
            Ok(slowest)
        });
        let result = attack(cluster);
        over.store(true, Ordering::Relaxed);
        (result, asking.join().expect("asking does not panic"))
    });
    result?;
    let slowest = slowest.context("the neighbour")?;
    let grown = memory_kb(cluster)?.saturating_sub(before);
    eprintln!(
        "after {:?}: the neighbour's slowest answer: {slowest:?}; the agent grew by {grown} kB from {before} kB",
        begun.elapsed()
    );
    ensure!(slowest < ANSWER_MAX, "the neighbour took {slowest:?}");
    ensure!(grown < GROWTH_MAX_KB, "the agent grew by {grown} kB");
    Ok(())
}

/// Memory of the instance's process that is no file's.
fn memory_kb(cluster: &Cluster) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The attacker goes, whatever it was doing.
fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "pod", name, "--timeout=280s"]).map(drop)
}

/// Every shell forks for ever; one that cannot any more leaves its place to the next.
fn forks(cluster: &Cluster) -> Result<()> {
    let bomb = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null\n\
                while :; do (while :; do sleep 1000 & done); done";
    cluster.apply(&pod("forks", bomb, "resources: {limits: {cpu: 500m}}", ""))?;
    logged(cluster, "forks", &[PIDS_MAX, "can't fork"])?;
    // Still bombing: for a while it tries at every moment.
    std::thread::sleep(Duration::from_secs(3));
    let number = |text: String| Ok::<u64, anyhow::Error>(text.trim().parse()?);
    let sleeping = number(cluster.sh("pgrep -xc sleep || true")?)?;
    ensure!(sleeping < 2 * number(PIDS_MAX.into())?, "{sleeping} processes: the limit does not hold");
    gone(cluster, "forks")?;
    cluster.eventually("no process is left", || {
        let left = number(cluster.sh("pgrep -fxc 'sleep 1000' || true")?)?;
        ensure!(left < number(PIDS_MAX.into())? / 2, "{left} are left");
        Ok(())
    })
}

/// Needs more and more memory, with a limit.
fn memory(cluster: &Cluster) -> Result<()> {
    let limit = "resources: {limits: {memory: 64Mi, cpu: 500m}}";
    cluster.apply(&pod("memory", "tail /dev/zero", limit, "restartPolicy: Never"))?;
    cluster.wait_field(&["pod", "memory"], "/status/phase", "Failed")?;
    let ended =
        cluster.get(&["pod", "memory"])?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");
    gone(cluster, "memory")
}

/// Files below a folder and their bytes.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            found.extend(files(&path)?);
        } else if let Ok(data) = path.metadata() {
            // (A file may be rotated away while we look.)
            found.push((path, data.len()));
        }
    }
    Ok(found)
}

/// Says as much as the machine can carry.
fn logs(cluster: &Cluster) -> Result<()> {
    cluster.apply(&pod("logs", "exec yes this-is-what-i-have-to-say-and-i-say-it-all-the-time", "", ""))?;
    ready(cluster, "logs")?;
    let folder = || -> Result<PathBuf> {
        let mut pods = std::fs::read_dir(cluster.folder().join("logs"))?.filter_map(Result::ok);
        let ours = pods.find(|entry| entry.file_name().to_string_lossy().starts_with("default_logs_"));
        Ok(ours.context("no log folder")?.path())
    };
    let (start, folder) = (Instant::now(), folder()?);
    let written = || -> Result<u64> {
        let pid = cluster.sh("pgrep -xo yes")?;
        let io = std::fs::read_to_string(format!("/proc/{}/io", pid.trim()))?;
        Ok(io.lines().find_map(|line| line.strip_prefix("wchar: ")).context("no wchar")?.parse()?)
    };
    let mut most = 0;
    // Long enough to see whether it grows; longer where the machine is too busy for a flood.
    while start.elapsed() < Duration::from_secs(8)
        || (start.elapsed() < Duration::from_secs(240) && (most <= 10 << 20 || written()? <= 100 << 20))
    {
        let bytes = files(&folder)?.iter().map(|(_, bytes)| bytes).sum::<u64>();
        ensure!(bytes < 64 << 20, "the logs have {bytes} bytes");
        most = most.max(bytes);
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = written()?;
    eprintln!(
        "{} MB/s said, {most} bytes of logs at most",
        said / 1_000_000 / start.elapsed().as_secs().max(1)
    );
    ensure!(most > 10 << 20 && said > 100 << 20, "no flood: {said} bytes said, {most} kept");
    cluster.eventually("the last line", || {
        has(&cluster.kubectl(&["logs", "logs", "--tail=1"])?, &["this-is-what-i-have-to-say"])
    })?;
    gone(cluster, "logs")
}

/// Makes empty files as fast as it can, in its volume and in its root.
fn inodes(cluster: &Cluster) -> Result<()> {
    let bomb = "for d in /v /; do mkdir $d/bomb; done\n\
                i=0; while :; do : > /v/bomb/$i; : > /bomb/$i; i=$((i+1)); \
                [ $i != 60000 ] || echo many; done";
    let mount = "volumeMounts: [{name: v, mountPath: /v}]";
    cluster.apply(&pod("inodes", bomb, mount, "volumes: [{name: v, emptyDir: {}}]"))?;
    logged(cluster, "inodes", &["many"])?;
    gone(cluster, "inodes")?;
    cluster.eventually("its files are gone", || {
        let left = cluster.sh(&format!("find {} -name bomb | wc -l", cluster.folder().display()))?;
        ensure!(left.trim() == "0", "{left} folders are left");
        Ok(())
    })
}

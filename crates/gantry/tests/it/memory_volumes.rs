//! Secrets, tokens and fields of a pod are in memory: bounded, on no disk, gone with the pod; also for an agent that
//! came later, and after the shim died.

use crate::{busy, has, pod, ready};
use anyhow::{Result, ensure};
use testkit::cluster::Cluster;

const VOLUMES: &str = "volumes:
- {name: s, secret: {secretName: word}}
- {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: d, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}";
const MOUNTS: &str = "volumeMounts:
- {name: s, mountPath: /s}
- {name: m, mountPath: /m}
- {name: d, mountPath: /d}";

#[test]
fn secrets_stay_in_memory() {
    let mut cluster = busy();
    scenario(&mut cluster).unwrap();
}

fn inside(cluster: &Cluster, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", "holder", "--", "sh", "-c", script])
}

fn scenario(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&["create", "secret", "generic", "word", "--from-literal=w=xyzzy-one"])?;
    cluster.apply(&pod("holder", "exec sleep 1000", MOUNTS, VOLUMES))?;
    ready(cluster, "holder")?;
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounts = inside(cluster, &format!("grep -E ' (/s|/d|/m|{token}|/run/secrets[^ ]*) ' /proc/mounts"))?;
    ensure!(mounts.lines().count() == 4 && mounts.lines().all(|l| l.contains(" tmpfs ")), "{mounts}");
    ensure!(mounts.lines().all(|l| l.contains("size=")), "{mounts}");
    has(
        &inside(cluster, &format!("cat /s/w /d/name; head -c 3 {token}/token"))?,
        &["xyzzy-one", "holder", "eyJ"],
    )?;
    let full = inside(cluster, "head -c 2000000 /dev/zero > /m/f; ls -l /m/f; echo x > /s/new; true")?;
    has(&full, &["1048576"])?;
    on_no_disk(cluster)?;
    // Changed, under the agent that made it and under the one after it.
    renew(cluster, "xyzzy-two")?;
    cluster.kill9()?;
    cluster.up()?;
    renew(cluster, "xyzzy-three")?;
    ensure!(inside(cluster, "ls /s")?.trim() == "w", "only what the secret has");
    on_no_disk(cluster)?;
    let restarts = cluster.field(&["pod", "holder"], "/status/containerStatuses/0/restartCount")?;
    ensure!(restarts == "0", "restarted {restarts} times");
    cluster.kubectl(&["delete", "pod", "holder"])?;
    let left = cluster.sh("grep -c xyzzy /proc/mounts; true")?;
    ensure!(left.trim() == "0", "{left}");
    Ok(())
}

fn renew(cluster: &Cluster, word: &str) -> Result<()> {
    let patch = format!("{{\"stringData\": {{\"w\": \"{word}\"}}}}");
    cluster.kubectl(&["patch", "secret", "word", "-p", &patch])?;
    cluster.eventually(word, || has(&inside(cluster, "cat /s/w")?, &[word]))
}

/// Below the pods' folders nobody finds the word.
fn on_no_disk(cluster: &Cluster) -> Result<()> {
    let found = cluster.sh(&format!("grep -rl xyzzy {}/pods; true", cluster.folder().display()))?;
    ensure!(found.is_empty(), "{found}");
    Ok(())
}

//! A start that cannot work says what is wrong and what to do, and creates nothing.

use crate::{cluster, has};
use anyhow::{Result, ensure};
use std::path::Path;
use testkit::cluster::Cluster;

/// Ports and ranges that a second instance can have.
const FREE: [&str; 12] = [
    "--port",
    "7443",
    "--node-port",
    "20250",
    "--registry-port",
    "7500",
    "--aws-port",
    "7566",
    "--pod-cidr",
    "10.8.0.0/16",
    "--service-cidr",
    "10.9.0.0/16",
];

/// `gantry up` in the cluster's namespace with these flags must fail; what it said.
fn refused(cluster: &Cluster, name: &str, data: &Path, flags: &[&str]) -> Result<String> {
    let mut command = cluster.inside("timeout");
    command
        .args(["300", env!("CARGO_BIN_EXE_gantry"), "up", "--name", name, "--data-dir"])
        .arg(data)
        .args(flags);
    let output = crate::feed(&mut command, b"")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{flags:?}: {output:?}");
    Ok(said)
}

#[test]
fn a_start_that_cannot_work_says_why() -> Result<()> {
    let cluster = cluster();
    let other = tempfile::tempdir()?;
    let data = other.path().join("data");
    let rows: &[(&[&str], &[&str])] = &[
        (&["--node-port", "20250"], &["port 6443 is held by gantry (pid ", "choose another by --port"]),
        (&["--port", "7443"], &["port 10250 is held by gantry (pid ", "choose another by --node-port"]),
        (
            &["--port", "7443", "--node-port", "20250", "--registry-port", "7500"],
            &["10.244.0.0", "overlap", "choose another by --pod-cidr or --service-cidr"],
        ),
        (&["--port", "seven"], &["--port", "not a number in range"]),
        (&["--pod-cidr", "10.0.0.0"], &["--pod-cidr", "is not a range like 10.0.0.0/16"]),
        (
            &["--pod-cidr", "10.7.0.0/16", "--service-cidr", "10.7.8.0/24"],
            &["pod range", "service range", "overlap"],
        ),
        (&["--nope", "x"], &["no such setting: nope", "gantry help"]),
        (&["--node-ip", "here"], &["--node-ip", "not an IPv4 address"]),
        (&["--name", "Much-Too-Long"], &["1 to 8 characters of a-z and 0-9"]),
    ];
    let rules = cluster.sh("nft list ruleset; ip route; ip -o link")?;
    for (flags, words) in rows {
        let said = refused(&cluster, "nope", &data, flags)?;
        has(&said, words)?;
        ensure!(!data.exists(), "{flags:?} made a data folder");
        ensure!(!Path::new("/run/nope").exists(), "{flags:?} made a run folder");
    }
    ensure!(cluster.sh("nft list ruleset; ip route; ip -o link")? == rules, "the network was touched");

    let same = refused(&cluster, cluster.name(), cluster.folder(), &[])?;
    has(&same, &["runs already", "gantry status"])?;
    // The same folder under another name: one store, one owner.
    let same = refused(&cluster, "nope", cluster.folder(), &FREE)?;
    has(&same, &[&cluster.folder().display().to_string(), "another"])?;
    ensure!(!Path::new("/run/nope").exists(), "a run folder");
    ensure!(cluster.sh("nft list ruleset; ip route; ip -o link")? == rules, "the network was touched");
    cluster.kubectl(&["get", "nodes"])?;
    Ok(())
}

#[test]
fn a_bad_folder_is_named() -> Result<()> {
    let cluster = cluster();
    let file = tempfile::NamedTempFile::new()?;
    let said = refused(&cluster, "nope", &file.path().join("below"), &FREE)?;
    has(&said, &[&file.path().display().to_string(), "Not a directory"])?;
    Ok(())
}

#[test]
fn status_env_and_doctor_answer() -> Result<()> {
    let cluster = cluster();
    has(&cluster.gantry(&["status"])?, &["node-1"])?;
    has(&cluster.gantry(&["env"])?, &["export KUBECONFIG=", "kubeconfig'"])?;
    let doctor = crate::refusal(cluster.gantry(&["doctor"]))?;
    has(&doctor, &["runs already"])?;
    cluster.load_busybox()?;
    has(&cluster.gantry(&["image", "ls"])?, &["docker.io/library/busybox:latest", "MiB"])?;
    Ok(())
}

/// A start that fails with almost everything up takes it all down again.
#[test]
fn a_start_that_fails_late_leaves_nothing() -> Result<()> {
    let cluster = Cluster::prepare(env!("CARGO_BIN_EXE_gantry"), &[])?;
    let run = Path::new("/run").join(cluster.name());
    // Where the admin socket, the last to start, wants to be.
    std::fs::create_dir_all(run.join("gantry.sock/taken"))?;
    let said =
        refused(&cluster, cluster.name(), cluster.folder(), &["--node-ip", testkit::cluster::NODE_IP])?;
    has(&said, &["starting the admin socket"])?;
    ensure!(!run.exists(), "{run:?} is left");
    for tree in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let path = tree.path().join(cluster.name());
        ensure!(!path.exists(), "{path:?} is left");
    }
    let left = cluster.sh("nft list tables; ip -o link")?;
    ensure!(!left.contains(cluster.name()), "{left}");
    Ok(())
}

//! A whole instance over an etcd, with etcd killed and started again under it.

use crate::crash::{Writers, certificates};
use crate::{has, pod, ready, refusal};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::cluster::Cluster;

const URL: &str = "http://127.0.0.1:2379";

/// A write whose answer is shown, whatever it is.
const POST: &str = r#"curl -s --cacert ca.pem --cert cert.pem --key key.pem -H 'content-type: application/json' \
  -d '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"never"}}' \
  https://127.0.0.1:6443/api/v1/namespaces/default/configmaps"#;

/// An etcd in the instance's namespace.
struct Etcd {
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl Etcd {
    fn up(&mut self, cluster: &Cluster) -> Result<()> {
        let mut command = cluster.inside("etcd");
        command
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--name", "t", "--logger", "zap"]);
        command.args(["--listen-client-urls", URL, "--advertise-client-urls", URL]);
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        cluster.eventually("etcd is there", || cluster.sh(&format!("curl -sf {URL}/health"))).map(drop)
    }

    fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

#[test]
fn a_cluster_over_etcd() -> Result<()> {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: etcd is not installed (Debian: apt-get install etcd-server)");
        return Ok(());
    }
    // Dropped after the cluster, which needs it for its end.
    let mut etcd = Etcd { folder: tempfile::tempdir()?, child: None };
    let mut cluster = Cluster::prepare(env!("CARGO_BIN_EXE_gantry"), &["--store", "etcd://127.0.0.1:2379"])?;
    etcd.up(&cluster)?;
    cluster.up()?;
    ensure!(!cluster.folder().join("state/store.db").exists(), "the embedded store was made");
    cluster.load_busybox()?;
    certificates(&cluster)?;
    let seen = cluster.folder().join("seen");
    let mut watching = cluster
        .inside("kubectl")
        .args(["get", "cm", "-w", "--output-watch-events"])
        .stdout(std::fs::File::create(&seen)?)
        .spawn()?;
    let shows = |what: &str| {
        cluster
            .eventually(&format!("the watch shows {what}"), || has(&std::fs::read_to_string(&seen)?, &[what]))
    };
    shows("kube-root-ca.crt")?;
    cluster.kubectl(&["create", "cm", "one"])?;
    cluster.kubectl(&["label", "cm", "one", "a=b"])?;
    cluster.kubectl(&["delete", "cm", "one"])?;
    for event in ["ADDED      one", "MODIFIED   one", "DELETED    one"] {
        shows(event)?;
    }
    cluster.apply(&pod("runs", "sleep 100000", "", ""))?;
    ready(&cluster, "runs")?;

    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let writers = Writers::start(&cluster, round)?;
        // Not waiting for anything: the moment is meant to be arbitrary.
        std::thread::sleep(Duration::from_millis(700 + 150 * round));
        etcd.kill9()?;
        acknowledged.extend(writers.acknowledged()?);
        let start = Instant::now();
        let said = refusal(cluster.kubectl(&["create", "cm", "never"]))?;
        has(&said, &["the store cannot be reached: etcd at 127.0.0.1:2379"])?;
        ensure!(start.elapsed() < Duration::from_secs(10), "it hung for {:?}", start.elapsed());
        let status = cluster.sh(&format!("cd {}; {POST}", cluster.folder().display()))?;
        has(&status, &[r#""kind":"Status""#, r#""reason":"ServiceUnavailable""#, r#""code":503"#])?;
        etcd.up(&cluster)?;
        let after = format!("after-{round}");
        cluster.eventually("it writes again", || cluster.kubectl(&["create", "cm", &after]))?;
        let present: BTreeSet<String> = cluster
            .kubectl(&["get", "cm", "-o", "name"])?
            .lines()
            .map(|l| l.replace("configmap/", ""))
            .collect();
        let lost: Vec<&String> = acknowledged.difference(&present).collect();
        ensure!(lost.is_empty(), "round {round}: lost {lost:?} of {}", acknowledged.len());
        ensure!(!present.contains("never"), "a refused write was made");
        shows(&after)?;
    }
    ensure!(acknowledged.len() > 20, "the writers did too little to prove anything: {}", acknowledged.len());
    ensure!(watching.try_wait()?.is_none(), "the watch ended");
    watching.kill()?;
    watching.wait()?;

    ready(&cluster, "runs")?;
    // The other server process finds everything where the first one left it.
    cluster.kill9()?;
    cluster.up()?;
    ready(&cluster, "runs")?;
    cluster.kubectl(&["delete", "pod", "runs"])?;
    has(&refusal(cluster.kubectl(&["get", "pod", "runs"]))?, &["not found"])
}

//! A whole instance over an etcd, with etcd killed and started again under it.

use crate::crash::{Writers, certificates};
use crate::{has, pod, ready, refusal};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
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
        std::thread::sleep(Duration::from_millis(200 + 150 * round));
        etcd.kill9()?;
        acknowledged.extend(writers.acknowledged()?);
        // (A command that hangs is ended, and says something else.)
        let said = refusal(cluster.kubectl(&["create", "cm", "never"]))?;
        has(&said, &["the store cannot be reached: etcd at 127.0.0.1:2379"])?;
        let status = cluster.sh(&format!("cd {}; {POST}", cluster.folder().display()))?;
        has(&status, &[r#""kind":"Status""#, r#""reason":"ServiceUnavailable""#, r#""code":503"#])?;
        etcd.up(&cluster)?;
        let after = format!("after-{round}");
        // Applied, not created: a write whose answer was lost is there when it is tried again.
        let map = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {after}}}\n");
        cluster.eventually("it writes again", || cluster.apply(&map))?;
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

/// A control plane without a node beside the cluster's own.
struct Second {
    child: Child,
    /// Removes what a server leaves for its next start.
    down: Command,
}

impl Second {
    fn start(cluster: &Cluster, flags: &[&str]) -> Result<Second> {
        let mut command = cluster.inside(env!("CARGO_BIN_EXE_gantry"));
        command
            .args(["server", "--port", "7443", "--aws-port", "7566", "--node-ip", "10.99.0.1"])
            .args(["--node-name", "second"])
            .args(flags);
        let mut down = cluster.inside(env!("CARGO_BIN_EXE_gantry"));
        down.arg("down").args(flags).stdout(Stdio::null());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Second { child, down })
    }

    /// Waits for its end; what it complained about.
    fn ended(&mut self) -> Result<String> {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().context("stderr is piped")?, &mut said)?;
        self.child.wait()?;
        Ok(said)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.down.status();
    }
}

fn at_second(cluster: &Cluster, args: &str) -> Result<String> {
    cluster.sh(&format!("kubectl --server https://127.0.0.1:7443 {args}"))
}

/// Who runs the controllers.
fn leader(cluster: &Cluster) -> Result<String> {
    at_second(
        cluster,
        "get lease -n kube-system kube-controller-manager -o 'jsonpath={.spec.holderIdentity}'",
    )
}

fn deploy(cluster: &Cluster, name: &str) -> Result<String> {
    at_second(cluster, &format!("create deployment {name} --image busybox -- sleep 100000"))
}

fn replicas(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.eventually(&format!("{name} has its pod"), || {
        let pods = at_second(cluster, &format!("get pods -l app={name} -o name"))?;
        ensure!(pods.lines().count() == 1, "{pods}");
        Ok(())
    })
}

/// A log group made at either server is at both, with the same keys.
fn one_view_of_logs(cluster: &Cluster) -> Result<()> {
    const SCRIPT: &str = "
import boto3, time, sys
session = boto3.session.Session(*sys.argv[1:], region_name='us-east-1')
servers = [session.client('logs', endpoint_url=f'http://127.0.0.1:{port}') for port in (4566, 7566)]
for at, (here, there) in enumerate([servers, servers[::-1]]):
    group = f'group-{at}'
    here.create_log_group(logGroupName=group)
    there.create_log_stream(logGroupName=group, logStreamName='s')
    for number, server in enumerate(servers):
        events = [{'timestamp': int(time.time() * 1000) + number, 'message': f'line {number}'}]
        server.put_log_events(logGroupName=group, logStreamName='s', logEvents=events)
    for server in servers:
        found = [e['message'] for e in server.filter_log_events(logGroupName=group)['events']]
        assert found == ['line 0', 'line 1'], found
        groups = server.describe_log_groups(logGroupNamePrefix='group-')['logGroups']
        assert len(groups) == at + 1 and all(g['storedBytes'] > 0 for g in groups), groups
print('one view')
";
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/boto3/bin/python");
    let keys = auth::access::generated(&cluster.folder().join("pki")).context("the instance's own keys")?;
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg("-").args([keys.access_key, keys.secret]);
    let output = crate::feed(&mut command, SCRIPT.as_bytes())?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    has(&said, &["one view"])
}

/// The controllers run in one of two servers: when that one dies, and when it ends, in the other.
#[test]
fn servers_stand_in_for_each_other() -> Result<()> {
    if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(());
    }
    let mut etcd = Etcd { folder: tempfile::tempdir()?, child: None };
    let store = ["--store", "etcd://127.0.0.1:2379"];
    let mut cluster = Cluster::prepare(env!("CARGO_BIN_EXE_gantry"), &store)?;
    etcd.up(&cluster)?;
    cluster.up()?;
    cluster.load_busybox()?;
    let data = tempfile::tempdir()?;
    let (folder, name) =
        (data.path().display().to_string(), format!("{}b", &cluster.name()[..7.min(cluster.name().len())]));
    let flags = [&store[..], &["--name", &name, "--data-dir", &folder]].concat();

    // With an authority of its own it would split the cluster.
    let mut stranger = Second::start(&cluster, &flags)?;
    let said = stranger.ended()?;
    has(&said, &["another certificate authority"])?;
    // With that authority, but other keys, some of its clients and values would be strangers.
    cluster.sh(&format!("cp {}/pki/ca.* {folder}/pki/", cluster.folder().display()))?;
    has(
        &Second::start(&cluster, &flags)?.ended()?,
        &["has other keys: copy pki/ (aws.key, encryption.key)"],
    )?;
    std::fs::remove_dir_all(data.path().join("pki"))?;
    cluster.sh(&format!("cp -r {}/pki {folder}/", cluster.folder().display()))?;
    let mut second = Second::start(&cluster, &flags)?;
    let answers = cluster.eventually("the second server answers", || at_second(&cluster, "get node node-1"));
    if let (Err(_), Some(_)) = (&answers, second.child.try_wait()?) {
        anyhow::bail!("the second server ended: {}", second.ended()?);
    }
    answers?;
    ensure!(leader(&cluster)?.starts_with("node-1_"), "{}", leader(&cluster)?);

    one_view_of_logs(&cluster)?;
    // Written at one, made true by the other's controllers.
    deploy(&cluster, "one")?;
    replicas(&cluster, "one")?;
    ready(&cluster, "one")?;

    cluster.kill9()?;
    deploy(&cluster, "two")?;
    replicas(&cluster, "two")?;
    ensure!(leader(&cluster)?.starts_with("second_"), "{}", leader(&cluster)?);
    // The node comes back and follows; what was scheduled meanwhile runs.
    cluster.up()?;
    ready(&cluster, "two")?;
    ensure!(leader(&cluster)?.starts_with("second_"), "{}", leader(&cluster)?);

    // One that ends gives its turn back: the next one need not wait for it to lapse.
    testkit::cluster::run(Command::new("kill").arg(second.child.id().to_string()))?;
    let said = second.ended()?;
    let holder = "lease/kube-controller-manager";
    let holder = cluster.field(&["-n", "kube-system", holder], "/spec/holderIdentity")?;
    ensure!(!holder.starts_with("second_"), "it was not given back: {holder}: {said}");
    cluster.kubectl(&["create", "deployment", "three", "--image", "busybox", "--", "sleep", "100000"])?;
    ready(&cluster, "three")
}

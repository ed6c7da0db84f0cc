//! kill -9 at any moment loses no acknowledged write.

use crate::cluster;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;
use testkit::cluster::Cluster;

/// Writers in a row of shells; each prints a name only after the API acknowledged it.
const WRITER: &str = r#"
for i in $(seq 1 100000); do
  printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"w%s-%s"}}' "$W" "$i" |
    curl -sf --max-time 60 --cacert "$D/ca.pem" --cert "$D/cert.pem" --key "$D/key.pem" -H 'content-type: application/json' \
      --data-binary @- -o /dev/null "https://127.0.0.1:6443/api/v1/namespaces/default/configmaps" || exit 0
  echo "w$W-$i"
done
"#;

/// Puts what curl needs into the cluster's folder.
pub fn certificates(cluster: &Cluster) -> Result<()> {
    let folder = cluster.folder();
    for (file, path) in [
        ("ca.pem", "{.clusters[0].cluster.certificate-authority-data}"),
        ("cert.pem", "{.users[0].user.client-certificate-data}"),
        ("key.pem", "{.users[0].user.client-key-data}"),
    ] {
        let script = format!(
            "kubectl config view --raw -o jsonpath='{path}' | base64 -d > {}/{file}",
            folder.display()
        );
        cluster.sh(&script)?;
    }
    Ok(())
}

/// Four writers at work, with the files in which they tell of it.
pub struct Writers(Vec<(Child, PathBuf)>);

impl Writers {
    /// Starts them, and waits until they have written enough to prove something; names carry the round.
    /// [`certificates`] come first.
    pub fn start(cluster: &Cluster, round: u64) -> Result<Writers> {
        let start = |w| -> Result<(Child, PathBuf)> {
            let said = cluster.folder().join(format!("said-{round}{w}"));
            let mut command = cluster.inside("sh");
            command.args(["-c", WRITER]).env("W", format!("{round}{w}")).env("D", cluster.folder());
            command.stdout(File::create(&said)?).stdin(Stdio::null());
            Ok((command.spawn()?, said))
        };
        let writers = Writers((0..4).map(start).collect::<Result<_>>()?);
        cluster.eventually("the writers write", || {
            ensure!(writers.said()?.len() > 8, "too little");
            Ok(())
        })?;
        Ok(writers)
    }

    fn said(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for (_, said) in &self.0 {
            names.extend(std::fs::read_to_string(said)?.lines().map(str::to_string));
        }
        Ok(names)
    }

    /// Waits until they fail; what was acknowledged to them.
    pub fn acknowledged(mut self) -> Result<BTreeSet<String>> {
        for (writer, _) in &mut self.0 {
            writer.wait()?;
        }
        self.said()
    }
}

#[test]
fn an_acknowledged_write_survives_kill_9() -> Result<()> {
    let mut cluster = cluster();
    certificates(&cluster)?;
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let writers = Writers::start(&cluster, round)?;
        std::thread::sleep(Duration::from_millis(200 + 150 * round));
        cluster.kill9()?;
        acknowledged.extend(writers.acknowledged()?);
        cluster.up()?;
        let present: BTreeSet<String> = cluster
            .kubectl(&["get", "cm", "-o", "name"])?
            .lines()
            .map(|l| l.replace("configmap/", ""))
            .collect();
        let lost: Vec<&String> = acknowledged.difference(&present).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?} of {}", acknowledged.len());
    }
    Ok(())
}

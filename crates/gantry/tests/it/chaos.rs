//! kill -9 while pods come and go: everything ends up as the API says, nothing is run twice, nothing is left.

use crate::busy;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use testkit::cluster::Cluster;

const PODS: usize = 8;

fn deployment(name: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {PODS}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{{name: v, emptyDir: {{}}}}]
      initContainers: [{{name: i, image: "busybox:1.36", command: [sh, -c, "echo i >> /v/starts"], volumeMounts: [{{name: v, mountPath: /v}}]}}]
      containers: [{{name: c, image: "busybox:1.36", command: [sh, -c, "echo c >> /v/starts; exec sleep 1000"], volumeMounts: [{{name: v, mountPath: /v}}]}}]
"#
    )
}

/// Shims of the instance: one a pod.
fn shims(cluster: &Cluster) -> Result<usize> {
    let folder = format!("/run/{}/pods/", cluster.name());
    let mut count = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        count += usize::from(String::from_utf8_lossy(&command).contains(&folder));
    }
    Ok(count)
}

/// Waits for their number: what a shim forks has its command line for a moment.
fn has_shims(cluster: &Cluster, wanted: usize) -> Result<()> {
    cluster.eventually("one shim a pod", || {
        let found = shims(cluster)?;
        ensure!(found == wanted, "{found} shims for {wanted} pods");
        Ok(())
    })
}

#[test]
fn kills_in_the_middle_lose_and_double_nothing() -> Result<()> {
    let mut cluster = busy();
    for (round, (starting, stopping)) in [(100, 50), (300, 200), (700, 500)].into_iter().enumerate() {
        let name = format!("round{round}");
        cluster.apply(&deployment(&name))?;
        std::thread::sleep(Duration::from_millis(starting));
        cluster.kill9()?;
        cluster.up()?;
        cluster.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=280s"])?;
        let pods = cluster.get(&["pods", "-l", &format!("app={name}")])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let status = &pod["status"];
            ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            // (A container runs before it has written.)
            let starts = cluster.eventually("it has started", || {
                let starts = cluster.kubectl(&["exec", name, "-c", "c", "--", "cat", "/v/starts"])?;
                ensure!(starts.contains('c'), "{starts:?}");
                Ok(starts)
            })?;
            ensure!(starts.matches('c').count() == 1, "{name} was started twice: {starts:?}");
            ensure!(starts.ends_with("c\n"), "{name}: init containers come first: {starts:?}");
        }
        has_shims(&cluster, PODS)?;

        cluster.kubectl(&["delete", "deployment", &name])?;
        std::thread::sleep(Duration::from_millis(stopping));
        cluster.kill9()?;
        cluster.up()?;
        cluster.eventually("all are gone", || {
            let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })?;
        has_shims(&cluster, 0)?;
    }
    Ok(())
}

/// Many at once: all run, each has an address of its own.
#[test]
fn forty_pods_at_once() -> Result<()> {
    let cluster = busy();
    let began = Instant::now();
    let text = deployment("many").replace(&format!("replicas: {PODS}"), "replicas: 40");
    cluster.apply(&text)?;
    cluster.kubectl(&["rollout", "status", "deployment/many", "--timeout=280s"])?;
    println!("40 pods in {:?}", began.elapsed());
    let pods = cluster.get(&["pods", "-l", "app=many"])?;
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    let ips: std::collections::BTreeSet<String> =
        items.iter().filter_map(|p| p["status"]["podIP"].as_str()).map(str::to_string).collect();
    ensure!(ips.len() == 40, "{} addresses", ips.len());
    has_shims(&cluster, 40)?;
    cluster.kubectl(&["delete", "deployment", "many"])?;
    has_shims(&cluster, 0)
}

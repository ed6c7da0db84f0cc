//! What a node tells of its pods, who may ask it, and pods of its own: static ones, and one in a user namespace. All of it
//! outlives a kill of the agent.

use crate::{has, pod, ready};
use anyhow::{Context, Result, ensure};
use testkit::cluster::{Cluster, Kubectl};

/// A kubelet's answer to a service account's token.
fn ask(cluster: &Cluster, token: &str, path: &str) -> Result<String> {
    cluster.sh(&format!("curl -sSk -H 'Authorization: Bearer {token}' https://127.0.0.1:10250{path}"))
}

fn containers(cluster: &Cluster) -> Result<Vec<String>> {
    let list = cluster.get(&["pods"])?;
    let items = list["items"].as_array().context("a list")?.iter();
    let ids = items.map(|p| p["status"]["containerStatuses"][0]["containerID"].as_str().map(String::from));
    let mut ids: Vec<String> = ids.collect::<Option<_>>().context("every pod runs")?;
    ids.sort();
    Ok(ids)
}

fn usage(cluster: &Cluster) -> Result<()> {
    // A pod is told of once it was seen twice.
    cluster.eventually("usage is known", || {
        let said = cluster.kubectl(&["top", "pod", "--containers"])?;
        has(&said, &["mapped", "web-", "CPU(cores)"])
    })?;
    for version in [Kubectl::Debian, Kubectl::Newest] {
        cluster.eventually("the node's usage is known", || {
            has(&cluster.kubectl_of(version, &["top", "node"])?, &["MEMORY(bytes)"])
        })?;
    }
    let role = ["create", "clusterrole", "scrape", "--verb=get", "--resource=nodes/metrics"];
    cluster.kubectl(&role)?;
    cluster.kubectl(&["create", "serviceaccount", "scrape"])?;
    let bound =
        ["create", "clusterrolebinding", "scrape", "--clusterrole=scrape", "--serviceaccount=default:scrape"];
    cluster.kubectl(&bound)?;
    let token = cluster.kubectl(&["create", "token", "scrape"])?;
    let words = ["container_memory_working_set_bytes{container=\"c\"", "pod=\"mapped\""];
    cluster
        .eventually("the role counts", || has(&ask(cluster, token.trim(), "/metrics/cadvisor")?, &words))?;
    has(
        &ask(cluster, token.trim(), "/pods")?,
        &["Forbidden (user=system:serviceaccount:default:scrape, verb=get"],
    )?;
    ensure!(ask(cluster, "nonsense", "/metrics")? == "Unauthorized", "anybody may ask");
    Ok(())
}

#[test]
fn what_a_node_tells_and_runs_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().to_str().unwrap();
    let signs = folder.path().join("signs");
    std::fs::create_dir(&signs).unwrap();
    let volume = format!("volumes: [{{name: s, hostPath: {{path: {}}}}}]", signs.display());
    let script =
        "trap 'touch /s/told; until [ -e /s/go ]; do sleep 0.1; done; exit 0' TERM; sleep 100000 & wait";
    let web = pod("web", script, "volumeMounts: [{name: s, mountPath: /s}]", &volume);
    let web = web.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 90");
    std::fs::write(folder.path().join("web.yaml"), &web).unwrap();
    let mut cluster =
        Cluster::start(env!("CARGO_BIN_EXE_gantry"), &["--pod-manifest-path", manifests]).unwrap();
    cluster.load_busybox().unwrap();
    let script = "cat /proc/self/uid_map > /e/map; stat -c %u /e/map >> /e/map; sleep 100000";
    let mount = "volumeMounts: [{name: e, mountPath: /e}]";
    cluster
        .apply(&pod("mapped", script, mount, "hostUsers: false\nvolumes: [{name: e, emptyDir: {}}]"))
        .unwrap();
    ready(&cluster, "mapped").unwrap();
    ready(&cluster, "web").unwrap();
    let map = cluster.eventually("the map is written", || {
        let said = cluster.kubectl(&["exec", "mapped", "--", "cat", "/e/map"])?;
        ensure!(said.lines().count() == 2, "{said}");
        Ok(said)
    });
    let map = map.unwrap();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!((words[0], words[2], words[3]), ("0", "65536", "0"), "{map}");
    assert!(words[1].parse::<u32>().unwrap() >= 65_536, "{map}");
    usage(&cluster).unwrap();
    let before = containers(&cluster).unwrap();
    cluster.kill9().unwrap();
    cluster.up().unwrap();
    ready(&cluster, "mapped").unwrap();
    let same = || {
        ensure!(containers(&cluster)? == before, "other containers");
        has(&cluster.kubectl(&["exec", "mapped", "--", "cat", "/proc/self/uid_map"])?, &[words[1]])
    };
    cluster.eventually("nothing was restarted", same).unwrap();
    std::fs::remove_file(folder.path().join("web.yaml")).unwrap();
    cluster
        .eventually("the static pod is told to end", || {
            ensure!(signs.join("told").exists(), "nobody told it");
            Ok(())
        })
        .unwrap();
    let shown = cluster.kubectl(&["get", "pods", "-o", "name"]).unwrap();
    assert!(shown.contains("web-"), "it is shown as long as it runs: {shown}");
    std::fs::write(signs.join("go"), "").unwrap();
    cluster
        .eventually("the static pod is gone", || {
            let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
            ensure!(!left.contains("web-"), "{left}");
            Ok(())
        })
        .unwrap();
}

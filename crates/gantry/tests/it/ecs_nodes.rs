//! Tasks on a node that joined: their logs reach the server's log groups, through the server's death too; they have
//! their role's credentials and their protection; commands run in them. And a node speaks for its own tasks only.

use crate::two_nodes::{Machine, joining_words, with_machine};
use crate::{busy, feed, has};
use anyhow::{Result, ensure};
use std::path::Path;
use std::time::Duration;
use testkit::cluster::Cluster;

/// Runs a part of `ecs_nodes.py` inside the instance's namespace.
fn script(cluster: &Cluster, part: &str) -> Result<()> {
    // `./dev test` makes this environment.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/tools/boto3/bin/python");
    ensure!(python.exists(), "{} is missing: run ./dev test", python.display());
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg(root.join("tests/it/ecs_nodes.py")).arg(part);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let output = feed(&mut command, b"")?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("far tasks are content"), "{part}: {said}");
    Ok(())
}

#[test]
fn tasks_on_a_joined_node() {
    with_machine(busy(), scenario);
}

fn scenario(cluster: &mut Cluster, machine: &mut Machine) -> Result<()> {
    machine.join(cluster, &joining_words(cluster)?)?;
    machine.load_busybox(cluster)?;
    cluster.kubectl(&["cordon", "node-1"])?;
    script(cluster, "before")?;
    own_tasks_only(cluster, machine)?;
    cluster.kill9()?;
    // The task writes all the while; nobody takes its lines.
    std::thread::sleep(Duration::from_secs(2));
    cluster.up()?;
    script(cluster, "after")
}

/// A node's certificate gets nothing for what runs elsewhere, and reads no logs; others get nothing at all.
fn own_tasks_only(cluster: &Cluster, machine: &Machine) -> Result<()> {
    let (folder, pki) = (cluster.folder().display(), machine.folder().join("pki"));
    let node = format!("--cert {}", pki.join("node-client.pem").display());
    let ask = |who: &str, path: &str, body: &str| {
        cluster.sh(&format!(
            "curl -s --cacert {folder}/pki/ca.crt {who} -d '{body}' https://10.99.0.1:6443/gantry/{path}"
        ))
    };
    let of = |namespace: &str, pod: &str| format!(r#"{{"namespace":"{namespace}","pod":"{pod}"}}"#);
    let on = |node: &str| {
        let on_node = format!("spec.nodeName={node}");
        cluster.field(&["pods", "-n", "ecs-far", "--field-selector", &on_node], "/items/0/metadata/name")
    };
    let task = on("node-2")?;
    has(&ask(&node, "node/credentials", &of("ecs-far", &task))?, &["AccessKeyId"])?;
    cluster.kubectl(&["uncordon", "node-1"])?;
    cluster.kubectl(&["cordon", "node-2"])?;
    script(cluster, "near")?;
    cluster.kubectl(&["uncordon", "node-2"])?;
    let other = on("node-1")?;
    let none = format!("no task {other} runs on node node-2");
    for (who, path, pod, words) in [
        (&*node, "node/credentials", &other, &*none),
        (&node, "node/protection", &other, &none),
        (&node, "server/logs", &task, "nothing is asked"),
        ("", "node/credentials", &task, "neither a node nor a server"),
    ] {
        has(&ask(who, path, &of("ecs-far", pod))?, &["Failure", words])?;
    }
    Ok(())
}

//! ECS tasks on a real node, by AWS's own Python client and by kubectl at the same time.

use crate::{busy, feed};
use std::path::Path;
use testkit::cluster::Cluster;

/// Runs `ecs.py` inside the instance's namespace.
fn script(cluster: &Cluster, args: &[&str]) {
    // `./dev test` makes this environment.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/tools/boto3/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg(root.join("tests/it/ecs.py")).args(args);
    let output = feed(&mut command, b"").expect("python starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("ECS is content"), "{said}\n{}", cluster.output());
}

#[test]
fn tasks_run_on_both_launch_types() {
    script(&busy(), &[]);
}

#[test]
fn tasks_survive_the_death_of_gantry() {
    let mut cluster = busy();
    let state = cluster.folder().join("tasks.json").display().to_string();
    script(&cluster, &["before", &state]);
    cluster.kill9().unwrap();
    cluster.up().unwrap();
    script(&cluster, &["after", &state]);
}

//! Load balancers, networks and Cloud Map on a real node, by AWS's own Python client.

use crate::{busy, feed};
use std::path::Path;

#[test]
fn requests_reach_tasks_and_tasks_find_names() {
    let cluster = busy();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `./dev test` makes this environment.
    let python = root.join("../../target/tools/boto3/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg(root.join("tests/it/balancers.py"));
    let output = feed(&mut command, b"").expect("python starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let good = output.status.success() && said.contains("load balancers are content");
    assert!(good, "{said}\n{}", cluster.output());
    let figures = cluster.kubectl(&["get", "--raw", "/metrics"]).unwrap();
    assert!(figures.lines().any(|line| line.starts_with("gantry_lb_connections ")), "{figures}");
}

//! ECS services on a real node, by AWS's own Python client: rolling updates, roll-backs, load balancers.

use crate::feed;
use std::path::Path;
use testkit::cluster::Cluster;

#[test]
fn services_roll_while_requests_are_answered() {
    // Nothing checks most of these tasks: 40 s each would be waiting only.
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &["--service-settle", "1"]).unwrap();
    cluster.load_busybox().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `./dev test` makes this environment.
    let python = root.join("../../target/tools/boto3/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg(root.join("tests/it/ecs_services.py"));
    let output = feed(&mut command, b"").expect("python starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let good = output.status.success() && said.contains("services are content");
    assert!(good, "{said}\n{}", cluster.output());
}

//! What a task writes is in its log group, and a command runs in its container: by AWS's Python client and a small
//! client of session-manager's protocol.

use crate::{busy, feed};
use std::path::Path;

#[test]
fn tasks_log_to_groups_and_take_commands() {
    let cluster = busy();
    // `./dev test` makes this environment.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/tools/boto3/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(python).arg(root.join("tests/it/logs.py"));
    let output = feed(&mut command, b"").unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("logs are content"), "{said}\n{}", cluster.output());
}

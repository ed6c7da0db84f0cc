//! Other clients than kubectl: the official Python one.

use crate::{busy, feed};
use std::path::Path;

#[test]
fn the_python_client_is_content() {
    let cluster = busy();
    // `./dev test` makes this environment.
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients.py");
    let output = feed(cluster.inside("timeout").arg("100").arg(python).arg(script), b"").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("python is content"), "{said}");
}

//! Other clients than kubectl: the official Python one and kube-rs.

use crate::{busy, feed};
use anyhow::{Context, Result, ensure};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use std::path::Path;

#[test]
fn the_python_client_is_content() {
    let cluster = busy();
    // `./dev test` makes this environment.
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/python");
    assert!(python.exists(), "{} is missing: run ./dev test", python.display());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients.py");
    let output = feed(cluster.inside("timeout").arg("300").arg(python).arg(script), b"").unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("python is content"), "{said}");
}

/// kube-rs has to run inside the instance's namespace: this test starts the next one there.
#[test]
fn the_rust_client_is_content() {
    let cluster = busy();
    let mut command = cluster.inside("timeout");
    command.arg("300").arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "clients::inside_the_namespace", "--nocapture"]);
    let output = feed(&mut command, b"").unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("kube-rs is content"), "{said}");
}

#[test]
#[ignore = "started by the_rust_client_is_content"]
fn inside_the_namespace() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rust_client()).unwrap();
    println!("kube-rs is content");
}

async fn rust_client() -> Result<()> {
    let client = Client::try_default().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let config = watcher::Config::default().labels("app=rs").streaming_lists();
    let mut events = std::pin::pin!(watcher(pods.clone(), config).applied_objects());
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rs", "labels": {"app": "rs"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "c", "image": "busybox:1.36", "command": ["sh", "-c", "echo started; exec sleep 1000"],
        }]},
    }))?;
    let made = pods.create(&PostParams::default(), &pod).await?;
    let again = pods.create(&PostParams::default(), &pod).await;
    ensure!(matches!(again, Err(kube::Error::Api(status)) if status.code == 409), "created twice");
    let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    loop {
        let seen = events.try_next().await?.context("the watch ended")?;
        ensure!(seen.metadata.uid == made.metadata.uid, "another pod");
        if running(&seen) {
            break;
        }
    }
    let follow = LogParams { follow: true, ..LogParams::default() };
    let line = pods.log_stream("rs", &follow).await?.lines().try_next().await?;
    ensure!(line.as_deref() == Some("started"), "{line:?}");

    let attach = AttachParams { stdin: true, stdout: true, stderr: false, ..AttachParams::default() };
    let mut session = pods.exec("rs", ["sh", "-c", "read x; echo got $x; exit 3"], &attach).await?;
    let mut stdin = session.stdin().context("stdin was asked for")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"line\n").await?;
    let mut said = String::new();
    let mut stdout = session.stdout().context("stdout was asked for")?;
    tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut said).await?;
    ensure!(said == "got line\n", "{said:?}");
    let status = session.take_status().context("a status")?.await.context("the session ended well")?;
    ensure!(status.reason.as_deref() == Some("NonZeroExitCode"), "{status:?}");
    let code = status.details.and_then(|d| d.causes).and_then(|c| c[0].message.clone());
    ensure!(code.as_deref() == Some("3"), "{code:?}");

    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "rs"}, "data": {"a": "1"}}))?;
    maps.create(&PostParams::default(), &map).await?;
    let patch = Patch::Merge(json!({"data": {"b": "2"}}));
    let patched = maps.patch("rs", &PatchParams::default(), &patch).await?;
    ensure!(patched.data.as_ref().is_some_and(|d| d.len() == 2), "{patched:?}");
    let mut old = patched.clone();
    maps.replace("rs", &PostParams::default(), &patched).await?;
    old.data = None;
    old.metadata.resource_version = made.metadata.resource_version;
    let stale = maps.replace("rs", &PostParams::default(), &old).await;
    ensure!(matches!(stale, Err(kube::Error::Api(status)) if status.reason == "Conflict"), "a stale replace");
    ensure!(maps.list(&ListParams::default().limit(1)).await?.items.len() == 1, "one a page");
    pods.delete("rs", &DeleteParams::default()).await?;
    kube::runtime::wait::await_condition(
        pods,
        "rs",
        kube::runtime::conditions::is_deleted(&made.metadata.uid.unwrap_or_default()),
    )
    .await?;
    Ok(())
}

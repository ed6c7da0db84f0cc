//! End-to-end tests: real kubectl and clients against a whole instance, each in a network namespace of its own.
//!
//! A file is a subject. Starting an instance costs seconds, so several checks share one and run beside each other;
//! each check uses names of its own.

mod api;
mod attacks;
mod autoscaling;
mod aws;
mod balancers;
mod batch;
mod chaos;
mod clients;
mod comfort;
mod configs;
mod cpus;
mod crash;
mod csi;
mod csi_driver;
mod custom_resources;
mod devices;
mod disruption;
mod dra;
mod ecs;
mod ecs_nodes;
mod ecs_services;
mod encryption;
mod etcd;
mod eviction;
mod examples;
mod identity;
mod lifecycle;
mod logs;
mod memory_volumes;
mod registry;
mod registry_nodes;
mod samples;
mod services;
mod startup;
mod streams;
mod survival;
mod troubles;
mod two_nodes;
mod usage;
mod volumes;
mod workloads;

use anyhow::{Context, Result, ensure};
use std::process::{Command, Output, Stdio};
use testkit::cluster::Cluster;

/// A fresh instance.
fn cluster() -> Cluster {
    Cluster::start(env!("CARGO_BIN_EXE_gantry"), &[]).expect("an instance starts")
}

/// A fresh instance that has the image `busybox`.
fn busy() -> Cluster {
    let cluster = cluster();
    cluster.load_busybox().expect("the image loads");
    cluster
}

/// What a check is called, and what it does.
type Check = (&'static str, fn(&Cluster) -> Result<()>);

/// Runs checks on one instance at the same time and reports every failure. `CHECK=name` runs one alone.
fn all(cluster: &Cluster, checks: &[Check]) {
    let only = std::env::var("CHECK").unwrap_or_default();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let wanted = checks.iter().filter(|(name, _)| name.contains(&only));
        let running: Vec<_> =
            wanted.map(|(name, check)| (name, scope.spawn(move || check(cluster)))).collect();
        let ends = running.into_iter().filter_map(|(name, thread)| match thread.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("== {name}: {error:#}")),
            Err(_) => Some(format!("== {name}: panicked")),
        });
        ends.collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs a command with something on its stdin, whatever its exit code.
fn feed(command: &mut Command, stdin: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut pipe = child.stdin.take().context("stdin is piped")?;
    let output = std::thread::scope(|scope| {
        // A command that ends early closes the pipe; what it said and its exit code tell why.
        scope.spawn(move || std::io::Write::write_all(&mut pipe, stdin));
        child.wait_with_output()
    });
    Ok(output?)
}

/// Fails unless `text` contains all the words.
fn has(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|w| !text.contains(**w)).collect();
    ensure!(missing.is_empty(), "{missing:?} not in: {text}");
    Ok(())
}

/// What a failed command said.
fn refusal(result: Result<String>) -> Result<String> {
    match result {
        Ok(said) => anyhow::bail!("it succeeded: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// A pod that runs `script` in busybox; `more` are further YAML lines of its `spec`, `container` of its container.
fn pod(name: &str, script: &str, container: &str, more: &str) -> String {
    let script = serde_json::Value::from(script);
    let indent = |text: &str, by: &str| text.lines().map(|l| format!("{by}{l}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n{}  containers:\n  - name: c\n    image: busybox\n    \
         imagePullPolicy: IfNotPresent\n    command: [sh, -c, {script}]\n{}",
        indent(more, "  "),
        indent(container, "    "),
    )
}

/// Waits until all pods with `app=name` are Ready.
fn ready(cluster: &Cluster, name: &str) -> Result<()> {
    let selector = format!("app={name}");
    cluster
        .eventually(&format!("{name} is ready"), || {
            cluster.kubectl(&["wait", "pod", "-l", &selector, "--for=condition=Ready", "--timeout=30s"])
        })
        .map(drop)
}

/// Waits until a pod's log contains these words: a pod is Ready before its first line is written.
fn logged(cluster: &Cluster, name: &str, words: &[&str]) -> Result<()> {
    cluster.eventually(&format!("{name} logs"), || has(&cluster.kubectl(&["logs", name])?, words))
}

/// Waits until the events of an object have these words: they are written beside its status.
fn told(cluster: &Cluster, name: &str, words: &[&str]) -> Result<()> {
    let events = ["get", "events", &format!("--field-selector=involvedObject.name={name}")];
    cluster.eventually(&format!("the events of {name}"), || has(&cluster.kubectl(&events)?, words))
}

//! The loads, run by a process inside the instance's namespace: pods, durable writes, reads.

use super::{cpu_seconds, row};
use anyhow::{Context, Result};
use client::remote::Remote;
use client::{ApiClient, DeleteOptions, EventKind, ListOptions, ObjectKey, WatchOptions};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Pods started one by one, and at once.
const ONE_BY_ONE: usize = 30;
const AT_ONCE: usize = 100;
/// Clients and operations of the API loads.
const CLIENTS: usize = 64;
const OPERATIONS: usize = 20_000;
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs one load against the server whose PID is given.
pub fn run(what: &str, pid: &str, image: &str) -> Result<()> {
    let pid: u32 = pid.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match what {
            "pods" => pods(pid, image).await,
            "gone" => gone().await,
            "writes" => operations(pid, true).await,
            "ecs" => super::ecs::run(pid, image).await,
            "abuse" => super::abuse::run(pid, image).await,
            _ => operations(pid, false).await,
        }
    })
}

/// A client by the kubeconfig in the environment.
pub async fn connect() -> Result<ApiClient> {
    let text = std::fs::read_to_string(std::env::var("KUBECONFIG")?)?;
    Ok(Arc::new(Remote::from_kubeconfig(&text).await?))
}

fn pod(name: &str, image: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": image,
            "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]}]}})
}

/// Names of pods as they are first seen running (true) or gone (false).
async fn watch_pods(client: &ApiClient) -> Result<mpsc::UnboundedReceiver<(String, bool, Instant)>> {
    let mut events =
        client.watch(&gvr::PODS, &WatchOptions { list: ListOptions::default(), after: None }).await?;
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            let now = Instant::now();
            let running = event
                .object
                .view::<Pod>()
                .is_ok_and(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            let name = event.object.key.name.to_string();
            let sent = match event.kind {
                EventKind::Deleted => send.send((name, false, now)),
                _ if running => send.send((name, true, now)),
                _ => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

/// The value below which this share of the sorted values lies; 0 of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(place).copied().unwrap_or(0.0)
}

/// Median, tail and least of some milliseconds.
pub fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let [min, p50, p99] = [0.0, 0.5, 0.99].map(|p| percentile(&values, p));
    format!("p50 {p50:.1} p99 {p99:.1} min {min:.1} ms")
}

async fn pods(pid: u32, image: &str) -> Result<()> {
    let client = connect().await?;
    let mut seen = watch_pods(&client).await?;
    let mut latencies = Vec::new();
    for n in 0..ONE_BY_ONE {
        let name = format!("one-{n}");
        let start = Instant::now();
        client.create(&gvr::PODS, pod(&name, image)).await?;
        loop {
            let next = tokio::time::timeout(DEADLINE, seen.recv()).await?.context("the watch ended")?;
            if next.0 == name {
                latencies.push((next.2 - start).as_secs_f64() * 1e3);
                break;
            }
        }
    }
    row("POST -> Running, one by one", &spread(latencies), "p50 <= 25, p99 <= 80 ms");
    let (start, cpu) = (Instant::now(), cpu_seconds(pid)?);
    for n in 0..AT_ONCE {
        client.create(&gvr::PODS, pod(&format!("all-{n}"), image)).await?;
    }
    let mut running = BTreeMap::new();
    while running.len() < AT_ONCE {
        let next = tokio::time::timeout(DEADLINE, seen.recv()).await?.context("the watch ended")?;
        if next.0.starts_with("all-") {
            running.insert(next.0, next.2);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = (cpu_seconds(pid)? - cpu) / AT_ONCE as f64 * 1e3;
    row(
        "100 pods at once, all Running",
        &format!("{seconds:.2} s, {each:.1} ms server CPU a pod"),
        "<= 2 s, 15 ms in all",
    );
    Ok(())
}

async fn gone() -> Result<()> {
    let client = connect().await?;
    let mut seen = watch_pods(&client).await?;
    let mut latencies = Vec::new();
    for n in 0..ONE_BY_ONE {
        let name = format!("one-{n}");
        let start = Instant::now();
        client
            .delete(&gvr::PODS, &ObjectKey::new("default", name.as_str()), DeleteOptions::default())
            .await?;
        loop {
            let next = tokio::time::timeout(DEADLINE, seen.recv()).await?.context("the watch ended")?;
            if next.0 == name && !next.1 {
                latencies.push((next.2 - start).as_secs_f64() * 1e3);
                break;
            }
        }
    }
    row("DELETE -> gone", &spread(latencies), "<= 60 ms");
    Ok(())
}

async fn operations(pid: u32, write: bool) -> Result<()> {
    let payload = "x".repeat(1024);
    let (start, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..CLIENTS {
        let payload = payload.clone();
        workers.spawn(async move {
            let client = connect().await?;
            let mut latencies = Vec::new();
            for n in 0..OPERATIONS / CLIENTS {
                let name = format!("w{worker}-{n}");
                let began = Instant::now();
                if write {
                    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": payload},
                        "metadata": {"name": name, "namespace": "default"}});
                    client.create(&gvr::CONFIG_MAPS, body).await?;
                } else {
                    client.get(&gvr::CONFIG_MAPS, &ObjectKey::new("default", name.as_str())).await?;
                }
                latencies.push(began.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = workers.join_next().await {
        latencies.extend(done??);
    }
    let done = latencies.len() as f64;
    let rate = done / start.elapsed().as_secs_f64();
    let each = (cpu_seconds(pid)? - cpu) / done * 1e6;
    let (name, goal) = match write {
        true => ("durable creates, 1 KiB, 64 clients", ">= 10,000/s, 130 us"),
        false => ("GET, 64 clients", ">= 20,000/s, 50 us"),
    };
    row(name, &format!("{rate:.0}/s, {each:.0} us server CPU, {}", spread(latencies)), goal);
    Ok(())
}

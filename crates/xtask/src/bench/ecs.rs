//! ECS through HTTP with signed calls: how soon a task runs, what a thousand calls take, what a control call costs.
//!
//! A task's start is timed from the call to the change of its object that shows it RUNNING (a watch through the other
//! API: polling would load what is measured). The thousand tasks go to simulated nodes: Node objects without a machine,
//! whose pods this process reports as running, as an agent would; the server's side of it is all real.

use super::load::{connect, percentile};
use super::{cpu_seconds, row};
use anyhow::{Context, Result, ensure};
use auth::sigv4::Signer;
use client::{ApiClient, EventKind, ListOptions, ObjectKey, WatchOptions};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const ENDPOINT: &str = "127.0.0.1:4566";
const TARGET: &str = "AmazonEC2ContainerServiceV20141113";
const CLUSTER: &str = "bench";
/// Tasks started one by one, of each launch type.
const ONE_BY_ONE: usize = 30;
/// Calls of RunTask on simulated nodes, by so many clients, over so many nodes.
const AT_ONCE: usize = 1_000;
const CLIENTS: usize = 8;
const NODES: usize = 50;
/// Control calls of each kind.
const CALLS: usize = 2_000;
const DEADLINE: Duration = Duration::from_secs(120);

/// A connection to the AWS endpoint.
struct Aws {
    signer: Signer,
    connection: SendRequest<Full<bytes::Bytes>>,
}

impl Aws {
    async fn connect() -> Result<Aws> {
        let stream = TcpStream::connect(ENDPOINT).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        let word = || "testing".to_string();
        let signer = Signer {
            access_key: word(),
            secret: word(),
            token: String::new(),
            region: "us-east-1".into(),
            host: ENDPOINT.into(),
        };
        Ok(Aws { signer, connection })
    }

    async fn call(&mut self, operation: &str, input: Value) -> Result<Value> {
        let body = input.to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
        let headers = self.signer.json("ecs", &format!("{TARGET}.{operation}"), &body, now);
        let mut request = http::Request::post("/");
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        self.connection.ready().await?;
        let response = self.connection.send_request(request.body(Full::new(body.into()))?).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status == 200, "{operation}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// RunTask; the task's id.
    async fn run(&mut self, family: &str) -> Result<String> {
        let mut input = json!({"cluster": CLUSTER, "taskDefinition": family, "launchType": "EC2"});
        if family == "fargate" {
            input["launchType"] = json!("FARGATE");
            input["networkConfiguration"] = json!({"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}});
        }
        let answer = self.call("RunTask", input).await?;
        let arn = answer["tasks"][0]["taskArn"].as_str().with_context(|| format!("no task: {answer}"))?;
        Ok(arn.rsplit('/').next().unwrap_or_default().to_string())
    }
}

/// Ids of tasks as they are first seen with each status.
async fn statuses(client: &ApiClient) -> Result<mpsc::UnboundedReceiver<(String, String, Instant)>> {
    let list = ListOptions { namespace: Some(format!("ecs-{CLUSTER}")), ..ListOptions::default() };
    let mut events = client.watch(&gvr::ECS_TASKS, &WatchOptions { list, after: None }).await?;
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            let now = Instant::now();
            let Ok(value) = event.object.value() else { continue };
            let status = value["status"]["lastStatus"].as_str().unwrap_or_default().to_string();
            if event.kind != EventKind::Bookmark
                && send.send((event.object.key.name.to_string(), status, now)).is_err()
            {
                return;
            }
        }
    });
    Ok(receive)
}

/// Runs all of it against the server whose PID is given.
pub async fn run(pid: u32, image: &str) -> Result<()> {
    let (client, mut aws) = (connect().await?, Aws::connect().await?);
    aws.call("CreateCluster", json!({"clusterName": CLUSTER})).await?;
    let container = json!({"name": "c", "image": image, "cpu": 64, "memory": 32, "entryPoint": ["sh", "-c"],
        "command": ["trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]});
    for (family, mode, more) in [
        ("ec2", "bridge", json!({})),
        ("fargate", "awsvpc", json!({"cpu": "256", "memory": "512", "requiresCompatibilities": ["FARGATE"]})),
    ] {
        let mut definition =
            json!({"family": family, "networkMode": mode, "containerDefinitions": [container]});
        definition
            .as_object_mut()
            .into_iter()
            .for_each(|d| d.extend(more.as_object().cloned().unwrap_or_default()));
        aws.call("RegisterTaskDefinition", definition).await?;
    }
    let mut seen = statuses(&client).await?;
    for (family, what) in [("ec2", "EC2, bridge"), ("fargate", "FARGATE, awsvpc")] {
        let mut latencies = Vec::new();
        for _ in 0..ONE_BY_ONE {
            let start = Instant::now();
            let id = aws.run(family).await?;
            latencies.push((until(&mut seen, &id, "RUNNING").await? - start).as_secs_f64() * 1e3);
            aws.call("StopTask", json!({"cluster": CLUSTER, "task": id})).await?;
            until(&mut seen, &id, "STOPPED").await?;
        }
        row(&format!("RunTask -> RUNNING, {what}"), &super::load::spread(latencies), "p50 <= 200 ms");
    }
    drop(seen);
    control(&mut aws, pid).await?;
    simulated(&client, pid).await
}

async fn until(
    seen: &mut mpsc::UnboundedReceiver<(String, String, Instant)>,
    id: &str,
    status: &str,
) -> Result<Instant> {
    loop {
        let (name, now, at) =
            tokio::time::timeout(DEADLINE, seen.recv()).await?.context("the watch ended")?;
        if name == id && now == status {
            return Ok(at);
        }
    }
}

/// What control calls cost, with a service of one task there.
async fn control(aws: &mut Aws, pid: u32) -> Result<()> {
    let id = aws.run("ec2").await?;
    aws.call("CreateService", json!({"cluster": CLUSTER, "serviceName": "s", "taskDefinition": "ec2", "desiredCount": 1, "launchType": "EC2"}))
        .await?;
    for (operation, input) in [
        ("DescribeTasks", json!({"cluster": CLUSTER, "tasks": [id]})),
        ("DescribeServices", json!({"cluster": CLUSTER, "services": ["s"]})),
        ("ListTasks", json!({"cluster": CLUSTER})),
    ] {
        let (cpu, mut latencies) = (cpu_seconds(pid)?, Vec::new());
        for _ in 0..CALLS {
            let start = Instant::now();
            aws.call(operation, input.clone()).await?;
            latencies.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let each = (cpu_seconds(pid)? - cpu) / CALLS as f64 * 1e6;
        latencies.sort_by(f64::total_cmp);
        let p50 = percentile(&latencies, 0.5);
        row(operation, &format!("{each:.0} us CPU, p50 {p50:.2} ms"), "<= 1 ms CPU");
    }
    aws.call("DeleteService", json!({"cluster": CLUSTER, "service": "s", "force": true})).await?;
    aws.call("StopTask", json!({"cluster": CLUSTER, "task": id})).await?;
    Ok(())
}

/// A node that is none.
async fn node(client: &ApiClient, name: &str, address: String) -> Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    client.create(&gvr::NODES, body).await?;
    let room = json!({"cpu": "16", "memory": "64Gi", "pods": "250", "ephemeral-storage": "500Gi"});
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    let now = machinery::time::format(jiff::Timestamp::from_second(seconds)?);
    let ready = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated",
        "lastHeartbeatTime": now, "lastTransitionTime": now}]);
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": ready,
        "addresses": [{"type": "InternalIP", "address": address}]}});
    client.merge_patch_status(&gvr::NODES, &ObjectKey::cluster(name), status).await?;
    Ok(())
}

/// The status of a pod whose containers all run.
fn running(pod: &Value, number: usize) -> Value {
    let ip = format!("10.200.{}.{}", number / 250, number % 250 + 1);
    let at = pod["metadata"]["creationTimestamp"].clone();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten().map(|c| {
        json!({"name": c["name"], "image": c["image"], "imageID": "", "containerID": format!("gantry://{number}"),
            "ready": true, "started": true, "restartCount": 0, "state": {"running": {"startedAt": at}}})
    });
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": at,
        "containerStatuses": containers.collect::<Vec<_>>(),
        "conditions": conditions}})
}

/// Says of every pod on a simulated node that it runs, until dropped.
async fn agents(client: ApiClient) -> Result<()> {
    let list = ListOptions { namespace: Some(format!("ecs-{CLUSTER}")), ..ListOptions::default() };
    let mut events = client.watch(&gvr::PODS, &WatchOptions { list, after: None }).await?;
    let (mut known, mut writes) = (BTreeSet::new(), tokio::task::JoinSet::new());
    while let Some(Ok(event)) = events.next().await {
        let Ok(pod) = event.object.value() else { continue };
        let simulated = pod["spec"]["nodeName"].as_str().is_some_and(|n| n.starts_with("sim-"));
        let name = event.object.key.name.to_string();
        if event.kind == EventKind::Bookmark || !simulated || !known.insert(name) {
            continue;
        }
        let (client, key, status) = (client.clone(), event.object.key.clone(), running(&pod, known.len()));
        writes.spawn(async move { client.merge_patch_status(&gvr::PODS, &key, status).await });
        while writes.len() >= CLIENTS {
            writes.join_next().await.context("there are writes")???;
        }
    }
    Ok(())
}

/// A thousand calls of RunTask, each for one task.
async fn simulated(client: &ApiClient, pid: u32) -> Result<()> {
    for number in 0..NODES {
        node(client, &format!("sim-{number}"), format!("10.201.0.{}", number + 1)).await?;
    }
    let real = json!({"spec": {"unschedulable": true}});
    client.merge_patch(&gvr::NODES, &ObjectKey::cluster("node-1"), real).await?;
    let _agents = AbortOnDrop(tokio::spawn(agents(client.clone())));
    let mut aws = Aws::connect().await?;
    let deadline = Instant::now() + DEADLINE;
    // Simulated nodes are container instances as soon as ECS has seen them.
    loop {
        let found = aws.call("ListContainerInstances", json!({"cluster": CLUSTER})).await?;
        if found["containerInstanceArns"].as_array().map_or(0, Vec::len) > NODES {
            break;
        }
        ensure!(Instant::now() < deadline, "the nodes are no container instances: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = statuses(client).await?;
    let (start, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        callers.spawn(async move {
            let mut aws = Aws::connect().await?;
            let mut ids = Vec::new();
            for _ in 0..AT_ONCE / CLIENTS {
                ids.push(aws.run("ec2").await?);
            }
            anyhow::Ok(ids)
        });
    }
    let mut ids = BTreeSet::new();
    while let Some(done) = callers.join_next().await {
        ids.extend(done??);
    }
    let (accepted, calls) = (start.elapsed().as_secs_f64(), ids.len() as f64);
    let each = (cpu_seconds(pid)? - cpu) / calls * 1e3;
    row(
        &format!("{} RunTask calls, {NODES} nodes", ids.len()),
        &format!("{accepted:.2} s, {each:.1} ms CPU a call"),
        "<= 20 s",
    );
    let mut up = BTreeMap::new();
    while up.len() < ids.len() {
        let next = tokio::time::timeout(DEADLINE, seen.recv()).await;
        let (id, status, at) =
            next.with_context(|| format!("{} of {} run", up.len(), ids.len()))?.context("the watch ended")?;
        if status == "RUNNING" && ids.contains(&id) {
            up.entry(id).or_insert(at);
        }
    }
    let last = up.values().max().context("there are tasks")?;
    row("… until all are RUNNING", &format!("{:.2} s", (*last - start).as_secs_f64()), "-");
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

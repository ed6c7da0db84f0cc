//! The metadata documents, from a task's Pod. Pure.

use crate::pod::PodView;
use ecs_model::annotation::{ContainerNote, TaskNote};
use k8s_openapi::api::core::v1::ContainerStatus;
use machinery::quantity::Quantity;
use machinery::time::format;
use runtime::api::Usage;
use serde_json::{Map, Value, json};

fn status<'a>(pod: &'a PodView, container: &str) -> Option<&'a ContainerStatus> {
    let all = pod.pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|c| c.name == container)
}

/// The id of a container's instance; "" before the first.
pub(super) fn docker_id(pod: &PodView, container: &str) -> String {
    let id = status(pod, container).and_then(|s| s.container_id.as_deref()).unwrap_or_default();
    id.split("://").nth(1).unwrap_or_default().to_string()
}

fn address(pod: &PodView) -> String {
    pod.pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default()
}

/// One container.
pub(super) fn container(pod: &PodView, task: &TaskNote, name: &str) -> Value {
    let Some(note) = task.containers.get(name) else { return Value::Null };
    let id = docker_id(pod, name);
    let ecs_name = note.ecs_name(name);
    let spec = pod.container(name);
    let found = status(pod, name);
    let family = format!("ecs-{}-{}-{ecs_name}", task.task.family, task.task.revision);
    let mut out = json!({
        "DockerId": id,
        "Name": ecs_name,
        "DockerName": family,
        "Image": spec.map_or("", |c| c.image()),
        "ImageID": found.map_or("", |s| s.image_id.rsplit('@').next().unwrap_or_default()),
        "Labels": labels(task, note, ecs_name),
        "DesiredStatus": desired(pod),
        "KnownStatus": known(found),
        "Limits": limits(pod, name),
        "Type": "NORMAL",
        "Snapshotter": "overlayfs",
        "ContainerARN": arn(&task.task.arn, pod.name(), ecs_name),
        "Networks": [network(task, &address(pod))],
    });
    if let Some(log) = &note.log {
        out["LogDriver"] = json!(log.driver);
        out["LogOptions"] = json!(log.options);
    }
    let state = found.and_then(|s| s.state.as_ref());
    let ended = state.and_then(|s| s.terminated.as_ref());
    let running = state.and_then(|s| s.running.as_ref()).and_then(|r| r.started_at.as_ref());
    if let Some(at) = running.or(ended.and_then(|e| e.started_at.as_ref())) {
        out["CreatedAt"] = json!(format(at.0));
        out["StartedAt"] = json!(format(at.0));
    }
    if let Some(ended) = ended {
        out["ExitCode"] = json!(ended.exit_code);
        if let Some(at) = &ended.finished_at {
            out["FinishedAt"] = json!(format(at.0));
        }
    }
    if let Some(found) = found.filter(|_| note.restart.is_some()) {
        out["RestartCount"] = json!(found.restart_count);
    }
    if spec.is_some_and(|c| c.spec.readiness_probe.is_some()) {
        let healthy = found.is_some_and(|s| s.ready);
        out["Health"] = json!({"status": if healthy { "HEALTHY" } else { "UNKNOWN" }});
    }
    out
}

/// `arn:…:task/<cluster>/<id>` as its container's ARN.
fn arn(task: &str, id: &str, name: &str) -> String {
    let uuid = ecs_model::task::dashed(&ecs_model::names::derived_id(&format!("container/{id}/{name}")));
    format!("{}/{uuid}", task.replacen(":task/", ":container/", 1))
}

fn labels(task: &TaskNote, note: &ContainerNote, name: &str) -> Value {
    let own = [
        ("cluster", task.task.cluster_arn.as_str()),
        ("container-name", name),
        ("task-arn", &task.task.arn),
        ("task-definition-family", &task.task.family),
        ("task-definition-version", &task.task.revision),
    ];
    let mut labels: Map<String, Value> = note.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    labels.extend(own.map(|(key, value)| (format!("com.amazonaws.ecs.{key}"), json!(value))));
    Value::Object(labels)
}

fn desired(pod: &PodView) -> &'static str {
    if pod.deleting() || pod.stored_phase_is_terminal() { "STOPPED" } else { "RUNNING" }
}

fn known(status: Option<&ContainerStatus>) -> &'static str {
    let state = status.and_then(|s| s.state.as_ref());
    match state {
        Some(s) if s.running.is_some() => "RUNNING",
        Some(s) if s.terminated.is_some() => "STOPPED",
        _ => "CREATED",
    }
}

/// CPU units and MiB.
fn limits(pod: &PodView, container: &str) -> Value {
    let resources = pod.container(container).and_then(|c| c.spec.resources.as_ref());
    let amount = |limit: bool, name: &str| {
        let list = resources.and_then(|r| if limit { r.limits.as_ref() } else { r.requests.as_ref() });
        list.and_then(|l| l.get(name)).and_then(|q| q.0.parse::<Quantity>().ok())
    };
    let mut limits = Map::new();
    if let Some(cpu) = amount(false, "cpu") {
        limits.insert("CPU".into(), json!((cpu.milli() * 1024 + 999) / 1000));
    }
    if let Some(memory) = amount(true, "memory") {
        limits.insert("Memory".into(), json!(memory.units() >> 20));
    }
    Value::Object(limits)
}

fn network(task: &TaskNote, ip: &str) -> Value {
    let mut network = json!({"NetworkMode": task.task.network_mode, "IPv4Addresses": [ip]});
    if task.task.network_mode == "awsvpc" {
        network["AttachmentIndex"] = json!(0);
        network["PrivateDNSName"] = json!(format!("ip-{}.ec2.internal", ip.replace('.', "-")));
        network["SubnetGatewayIpv4Address"] = json!("169.254.1.1/32");
    }
    network
}

/// The task.
pub(super) fn task(pod: &PodView, task: &TaskNote, with_tags: bool) -> Value {
    let who = &task.task;
    // In the order of the task definition.
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .filter(|c| task.containers.contains_key(c.name()))
        .map(|c| container(pod, task, c.name()))
        .collect();
    let states: Vec<&str> = containers.iter().filter_map(|c| c["KnownStatus"].as_str()).collect();
    let known = match () {
        () if states.contains(&"CREATED") => "PENDING",
        () if states.contains(&"RUNNING") => "RUNNING",
        () => "STOPPED",
    };
    let mut out = json!({
        "Cluster": who.cluster_arn, "TaskARN": who.arn, "Family": who.family, "Revision": who.revision,
        "DesiredStatus": desired(pod), "KnownStatus": known, "LaunchType": who.launch_type, "Containers": containers,
    });
    let mut limits = Map::new();
    if who.cpu > 0 {
        limits.insert("CPU".into(), json!(who.cpu as f64 / 1024.0));
    }
    if who.memory > 0 {
        limits.insert("Memory".into(), json!(who.memory));
    }
    if !limits.is_empty() {
        out["Limits"] = Value::Object(limits);
    }
    if !who.availability_zone.is_empty() {
        out["AvailabilityZone"] = json!(who.availability_zone);
    }
    if let Some(service) = who.group.strip_prefix("service:") {
        out["ServiceName"] = json!(service);
    }
    if let Some(start) = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref()) {
        out["PullStartedAt"] = json!(format(start.0));
    }
    let first = containers.iter().filter_map(|c| c["StartedAt"].as_str()).min();
    if let Some(first) = first {
        out["PullStoppedAt"] = json!(first);
    }
    if with_tags && !who.tags.is_empty() {
        out["TaskTags"] = json!(who.tags);
    }
    out
}

/// The parts of Docker's statistics that its users read.
pub(super) fn stats(pod: &PodView, container: &str, usage: &Usage, now: &str) -> Value {
    let limit = limits(pod, container)["Memory"].as_u64().map_or(usage.memory_bytes, |mib| mib << 20);
    json!({
        "read": now,
        "name": container,
        "id": docker_id(pod, container),
        "pids_stats": {"current": usage.pids},
        "cpu_stats": {"cpu_usage": {"total_usage": usage.cpu_ns}, "online_cpus": 1},
        "memory_stats": {"usage": usage.memory_bytes, "limit": limit,
            "stats": {"cache": usage.memory_bytes.saturating_sub(usage.working_set_bytes)}},
        "networks": {},
    })
}

/// Protection as the agent's API shows it, from GetTaskProtection's answer.
pub(super) fn protection(answer: &Value) -> Value {
    if let Some(failure) = answer["failures"].as_array().and_then(|f| f.first()) {
        let text = |member: &str| failure[member].as_str().unwrap_or_default().to_string();
        return json!({"failure": {"Arn": text("arn"), "Reason": text("reason"), "Detail": text("detail")}});
    }
    let one = &answer["protectedTasks"][0];
    let mut out = json!({"ProtectionEnabled": one["protectionEnabled"] == true, "TaskArn": one["taskArn"]});
    if let Some(at) = one["expirationDate"].as_f64()
        && let Ok(at) = jiff::Timestamp::from_millisecond((at * 1000.0) as i64)
    {
        out["ExpirationDate"] = json!(format(at));
    }
    json!({"protection": out})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_from;

    #[test]
    fn documents_of_a_running_task() {
        let note = r#"{"version":1,"task":{"arn":"arn:aws:ecs:r:1:task/prod/t","clusterArn":"arn:c","family":"web","revision":"3",
            "launchType":"FARGATE","networkMode":"awsvpc","cpu":256,"memory":512,"tags":{"k":"v"},"group":"service:s"},
            "containers":{"a-0123456789":{"name":"A","log":{"driver":"awslogs"}},"b":{}}}"#;
        let pod = pod_from(
            json!({"metadata": {"name": "t", "namespace": "ecs-prod", "uid": "u", "annotations": {"ecs.gantry.dev/task": note}},
            "spec": {"containers": [{"name": "a-0123456789", "image": "i", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}}}, {"name": "b", "image": "j"}]},
            "status": {"podIP": "10.0.0.4", "containerStatuses": [
                {"name": "a-0123456789", "containerID": "gantry://abc", "image": "i", "imageID": "i@sha256:1", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
                {"name": "b", "image": "j", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 4}}}]}}),
        );
        let task_note = pod.task.clone().unwrap();
        let a = container(&pod, &task_note, "a-0123456789");
        assert_eq!(
            (&a["Name"], &a["DockerId"], &a["KnownStatus"]),
            (&json!("A"), &json!("abc"), &json!("RUNNING"))
        );
        assert_eq!(a["Limits"], json!({"CPU": 103, "Memory": 64}));
        assert_eq!(a["Networks"][0]["IPv4Addresses"][0], "10.0.0.4");
        assert_eq!(a["Labels"]["com.amazonaws.ecs.task-definition-family"], "web");
        assert!(a["ContainerARN"].as_str().unwrap().starts_with("arn:aws:ecs:r:1:container/prod/t/"));
        let whole = task(&pod, &task_note, true);
        assert_eq!((&whole["KnownStatus"], &whole["ServiceName"]), (&json!("RUNNING"), &json!("s")));
        assert_eq!(whole["Containers"][1]["ExitCode"], 4);
        assert_eq!(whole["Limits"], json!({"CPU": 0.25, "Memory": 512}));
        assert_eq!(whole["TaskTags"], json!({"k": "v"}));
        assert!(task(&pod, &task_note, false).get("TaskTags").is_none());
    }

    #[test]
    fn protection_as_the_agent_shows_it() {
        let answer = json!({"protectedTasks": [{"taskArn": "t", "protectionEnabled": true, "expirationDate": 0.0}], "failures": []});
        let expected = json!({"protection": {"ProtectionEnabled": true, "TaskArn": "t", "ExpirationDate": "1970-01-01T00:00:00Z"}});
        assert_eq!(protection(&answer), expected);
        let failed = json!({"failures": [{"arn": "t", "reason": "TASK_NOT_VALID"}]});
        assert_eq!(protection(&failed)["failure"]["Reason"], "TASK_NOT_VALID");
    }
}

//! One task's or pod's usage as a value, and how it is read from an object. Pure.

use client::ObjectKey;
use ecs_model::names::{Arn, Resource};
use machinery::kinds::get::{int, list, text};
use machinery::quantity::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What kind of capacity it ran on: decides the price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A Kubernetes pod.
    #[default]
    Pod,
    /// A task on FARGATE.
    Fargate,
    /// A task on FARGATE_SPOT.
    FargateSpot,
    /// A task on instances.
    Ec2,
}

impl Class {
    /// As in the price book.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Pod => "pod",
            Class::Fargate => "fargate",
            Class::FargateSpot => "fargate-spot",
            Class::Ec2 => "ec2",
        }
    }
}

/// Usage of one task or pod. In the journal a later record of an `id` replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// A task's ARN, or `pod/<namespace>/<name>/<uid>`.
    pub id: String,
    /// Capacity.
    pub class: Class,
    /// `x86_64`, `arm64` or `windows`.
    pub platform: String,
    /// The ECS cluster's name; "" for pods.
    pub cluster: String,
    /// The ECS service's name, or what a pod's labels call its application.
    pub service: String,
    /// The object's namespace and name.
    pub namespace: String,
    /// See `namespace`.
    pub name: String,
    /// A task's tags or a pod's labels.
    pub tags: BTreeMap<String, String>,
    /// Thousandths of a processor that it was given.
    pub vcpu_milli: i64,
    /// MiB of memory that it was given.
    pub memory_mib: i64,
    /// GiB of ephemeral storage; 0 where none is reserved.
    pub storage_gib: i64,
    /// When the pull began, milliseconds since 1970.
    pub start_ms: i64,
    /// When it stopped; unset while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stop_ms: Option<i64>,
}

fn ms(value: &Value) -> Option<i64> {
    value.as_f64().map(|seconds| (seconds * 1_000.0).round() as i64)
}

fn amount(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn pairs<'a>(tags: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    tags.map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// A task's; `None` as long as nothing was pulled.
pub(super) fn of_task(key: &ObjectKey, body: &Value) -> Option<Record> {
    let (spec, status) = (&body["spec"], &body["status"]);
    let start_ms = ms(&status["pullStartedAt"]).or_else(|| ms(&status["startedAt"]))?;
    let stopped = matches!(text(status, "/lastStatus"), "STOPPED" | "DELETED");
    let stop_ms = stopped.then(|| ms(&status["stoppedAt"]).unwrap_or(start_ms));
    let class = match (text(spec, "/capacityProviderName"), text(spec, "/launchType")) {
        ("FARGATE_SPOT", _) => Class::FargateSpot,
        ("FARGATE", _) | (_, "FARGATE") => Class::Fargate,
        _ => Class::Ec2,
    };
    let architecture = list(spec, "/attributes").iter().find(|a| text(a, "/name") == "ecs.cpu-architecture");
    let platform = match (text(spec, "/platformFamily"), architecture.map(|a| text(a, "/value"))) {
        (family, _) if family.to_lowercase().contains("windows") => "windows",
        (_, Some("arm64")) => "arm64",
        _ => "x86_64",
    };
    let cluster = Arn::parse(text(spec, "/clusterArn")).and_then(|a| Resource::parse(a.resource));
    let cluster = match cluster {
        Some(Resource::Cluster(name)) => name,
        _ => String::new(),
    };
    let sum = |members: &[&str]| -> i64 {
        let of = |c: &Value| members.iter().map(|m| amount(&c[*m])).find(|n| *n > 0).unwrap_or(0);
        list(status, "/containers").iter().map(of).sum()
    };
    let whole = |member: &str| Some(amount(&spec[member])).filter(|n| *n > 0);
    Some(Record {
        id: text(spec, "/taskArn").to_string(),
        class,
        platform: platform.into(),
        cluster,
        service: text(spec, "/group").strip_prefix("service:").unwrap_or_default().to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        tags: pairs(list(spec, "/tags").iter().map(|t| (text(t, "/key"), text(t, "/value")))),
        vcpu_milli: whole("cpu").unwrap_or_else(|| sum(&["cpu"])) * 1_000 / 1_024,
        memory_mib: whole("memory").unwrap_or_else(|| sum(&["memory", "memoryReservation"])),
        storage_gib: int(spec, "/ephemeralStorage/sizeInGiB").unwrap_or(0),
        start_ms,
        stop_ms: stop_ms.map(|stop| stop.max(start_ms)),
    })
}

fn time(value: &Value) -> Option<i64> {
    machinery::time::parse(value.as_str()?).ok().map(|t| t.as_millisecond())
}

/// A pod's; `None` as long as no node has taken it.
pub(super) fn of_pod(key: &ObjectKey, body: &Value, now_ms: i64) -> Option<Record> {
    let start_ms = time(&body["status"]["startTime"])?;
    let ended = matches!(text(body, "/status/phase"), "Succeeded" | "Failed");
    let finished = ["/status/containerStatuses", "/status/initContainerStatuses"]
        .iter()
        .flat_map(|l| list(body, l))
        .filter_map(|c| time(&c["state"]["terminated"]["finishedAt"]))
        .max();
    let labels: BTreeMap<String, String> = pairs(
        machinery::kinds::get::entries(body, "/metadata/labels")
            .map(|(k, v)| (k, v.as_str().unwrap_or_default())),
    );
    let service = ["app.kubernetes.io/name", "app", "k8s-app"].iter().find_map(|l| labels.get(*l));
    let (vcpu_milli, bytes) = (resource(body, "cpu").0, resource(body, "memory").1);
    Some(Record {
        id: format!("pod/{}/{}/{}", key.namespace, key.name, text(body, "/metadata/uid")),
        class: Class::Pod,
        platform: "x86_64".into(),
        cluster: String::new(),
        service: service.cloned().unwrap_or_default(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        tags: labels,
        vcpu_milli,
        memory_mib: bytes >> 20,
        storage_gib: 0,
        start_ms,
        stop_ms: ended.then(|| finished.unwrap_or(now_ms).max(start_ms)),
    })
}

/// What a pod asks for of a resource, in thousandths and in units: its containers together, or its largest init
/// container where that is more.
fn resource(pod: &Value, name: &str) -> (i64, i64) {
    let of = |container: &Value| -> Quantity {
        let (asked, most) =
            (&container["resources"]["requests"][name], &container["resources"]["limits"][name]);
        let found = Quantity::from_json(asked).or_else(|| Quantity::from_json(most));
        found.and_then(Result::ok).unwrap_or(Quantity::ZERO)
    };
    let both = |q: Quantity| (q.milli(), q.units());
    let always = |c: &&Value| text(c, "/restartPolicy") == "Always";
    let init = list(pod, "/spec/initContainers");
    let sidecars = init.iter().filter(always).map(of).fold(Quantity::ZERO, Quantity::add);
    let main = list(pod, "/spec/containers").iter().map(of).fold(sidecars, Quantity::add);
    let first = init.iter().filter(|c| !always(c)).map(of).map(both).max().unwrap_or_default();
    both(main).max(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_task_counts_from_pull_to_stop() {
        let key = ObjectKey::new("ecs-prod", "0a");
        let mut body = json!({
            "spec": {"taskArn": "arn:t", "clusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/prod",
                "launchType": "FARGATE", "cpu": "256", "memory": "512", "group": "service:web",
                "tags": [{"key": "team", "value": "blue"}], "ephemeralStorage": {"sizeInGiB": 21},
                "attributes": [{"name": "ecs.cpu-architecture", "value": "arm64"}]},
            "status": {"lastStatus": "PROVISIONING"}});
        assert_eq!(of_task(&key, &body), None);
        body["status"] = json!({"lastStatus": "RUNNING", "pullStartedAt": 100.5, "startedAt": 103.0});
        let running = of_task(&key, &body).unwrap();
        assert_eq!(
            (running.class, running.platform.as_str(), running.stop_ms),
            (Class::Fargate, "arm64", None)
        );
        assert_eq!((running.vcpu_milli, running.memory_mib, running.storage_gib), (250, 512, 21));
        assert_eq!((running.cluster.as_str(), running.service.as_str()), ("prod", "web"));
        assert_eq!((running.start_ms, running.tags["team"].as_str()), (100_500, "blue"));
        body["status"] = json!({"lastStatus": "STOPPED", "pullStartedAt": 100.5, "stoppedAt": 160.0});
        assert_eq!(of_task(&key, &body).unwrap().stop_ms, Some(160_000));
        // On instances the containers' shares count.
        body["spec"] = json!({"taskArn": "arn:t", "launchType": "EC2"});
        body["status"]["containers"] =
            json!([{"cpu": "512", "memoryReservation": "64"}, {"cpu": "0", "memory": "32"}]);
        let on_instance = of_task(&key, &body).unwrap();
        assert_eq!(
            (on_instance.class, on_instance.vcpu_milli, on_instance.memory_mib),
            (Class::Ec2, 500, 96)
        );
    }

    #[test]
    fn a_pod_counts_what_it_asks_for() {
        let asks =
            |cpu: &str, memory: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let mut body = json!({"metadata": {"uid": "u", "labels": {"app": "shop"}},
            "spec": {"containers": [asks("250m", "64Mi"), asks("250m", "64Mi")], "initContainers": [asks("2", "32Mi")]},
            "status": {"phase": "Running"}});
        let key = ObjectKey::new("default", "p");
        assert_eq!(of_pod(&key, &body, 0), None);
        body["status"]["startTime"] = json!("2026-11-20T10:00:00Z");
        let record = of_pod(&key, &body, 0).unwrap();
        assert_eq!((record.vcpu_milli, record.memory_mib, record.service.as_str()), (2_000, 128, "shop"));
        assert_eq!(record.id, "pod/default/p/u");
        body["status"]["phase"] = json!("Failed");
        body["status"]["containerStatuses"] =
            json!([{"state": {"terminated": {"finishedAt": "2026-11-20T10:00:30Z"}}}]);
        let ended = of_pod(&key, &body, 0).unwrap();
        assert_eq!(ended.stop_ms, Some(ended.start_ms + 30_000));
    }
}

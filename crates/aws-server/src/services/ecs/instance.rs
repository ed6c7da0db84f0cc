//! Container instances: every node is one in every active cluster, unless it was deregistered there.
//!
//! What follows from the node is computed; an object (`containerinstances`, named by the instance's id, in the cluster's
//! namespace) holds what was said about it: status, attributes, tags, deregistration. It is also written when a task is
//! placed there, so that others find the node by the id (`spec.nodeName`).

use super::context::{Cluster, Context, doc};
use super::index::quantity;
use crate::service::AwsError;
use client::{Object, ObjectKey};
use ecs_model::doc::Doc;
use ecs_model::names::{Resource, derived_id};
use ecs_model::overrides::GPU_RESOURCE;
use ecs_model::placement::{Instance, ZONE};
use ecs_model::query::Facts;
use ecs_model::task::{desired_status, is_stopped};
use ecs_model::taskdef::capabilities;
use k8s_openapi::api::core::v1::Node;
use machinery::kinds::get::{list, text};
use machinery::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const MIB: i64 = 1024 * 1024;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const TYPE_LABEL: &str = "node.kubernetes.io/instance-type";
/// The type of a node that says none.
const TYPE: &str = "gantry.node";
const AMI: &str = "ami-0000000000000gantry";

/// One instance of a cluster.
pub struct Row {
    /// 32 hex digits.
    pub id: String,
    pub arn: String,
    pub node: Arc<Node>,
    pub node_name: String,
    node_uid: String,
    registered_at: String,
    /// What was said about it.
    pub stored: Option<Arc<Doc>>,
}

/// The tasks of a cluster by node.
pub type TasksByNode = BTreeMap<String, Vec<Arc<Doc>>>;

/// The instances of a cluster, by id.
pub fn rows(cx: &Context<'_>, cluster: &Cluster) -> Result<Vec<Row>, AwsError> {
    let nodes = cx.views.nodes.list();
    let rows = nodes.iter().map(|node| row(cx, cluster, node)).collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<Row> = rows.into_iter().filter(|r| !r.is_deregistered()).collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(rows)
}

fn row(cx: &Context<'_>, cluster: &Cluster, node: &Arc<Object>) -> Result<Row, AwsError> {
    let uid = node.uid();
    let id = derived_id(&format!("container-instance/{}/{uid}", cluster.arn));
    let stored = cx.views.instances.get(&ObjectKey::new(&*cluster.namespace, &*id));
    let view = node.view::<Node>();
    Ok(Row {
        arn: cx.scope.arn(&Resource::ContainerInstance(cluster.name.clone(), id.clone())),
        id,
        node: view.map_err(|e| super::context::internal(machinery::status::ApiError::internal(e)))?,
        node_name: node.key.name.to_string(),
        node_uid: uid.to_string(),
        registered_at: node.meta().creation_timestamp.clone().unwrap_or_default(),
        stored: stored.map(|o| doc(&o)).transpose()?,
    })
}

/// The running and pending tasks of a cluster by the node they were placed on.
pub fn tasks_by_node(cx: &Context<'_>, cluster: &Cluster) -> Result<TasksByNode, AwsError> {
    let mut out = TasksByNode::new();
    for object in cx.views.tasks.list_in(&cluster.namespace) {
        let task = doc(&object)?;
        let node = text(task.spec(), "/nodeName");
        if !node.is_empty() && !is_stopped(task.status()) {
            out.entry(node.to_string()).or_default().push(task);
        }
    }
    Ok(out)
}

impl Row {
    fn spec(&self) -> &Value {
        self.stored.as_ref().map_or(&Value::Null, |d| d.spec())
    }

    fn is_deregistered(&self) -> bool {
        self.spec()["registered"] == false
    }

    /// `ACTIVE` or `DRAINING` (also for a node that takes no pods).
    pub fn status(&self) -> &'static str {
        let cordoned = self.node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        if cordoned || text(self.spec(), "/status") == "DRAINING" { "DRAINING" } else { "ACTIVE" }
    }

    fn is_ready(&self) -> bool {
        let conditions = self.node.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    }

    /// Custom attributes: name, value ("" for none).
    pub fn custom(&self) -> impl Iterator<Item = (&str, &str)> {
        list(self.spec(), "/attributes").iter().map(|a| (text(a, "/name"), text(a, "/value")))
    }

    /// All attributes, but for the capabilities that every node has.
    pub fn attributes(&self, zones: &[String]) -> BTreeMap<String, String> {
        let label = |key: &str| self.node.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
        let info = self.node.status.as_ref().and_then(|s| s.node_info.as_ref());
        let architecture = match info.map(|i| i.architecture.as_str()) {
            Some("amd64") => "x86_64",
            Some(other) => other,
            None => "",
        };
        let own = [
            (ZONE, label(ZONE_LABEL).unwrap_or_else(|| self.zone(zones))),
            ("ecs.instance-type", label(TYPE_LABEL).unwrap_or_else(|| TYPE.into())),
            ("ecs.os-type", "linux".into()),
            ("ecs.os-family", "LINUX".into()),
            ("ecs.cpu-architecture", architecture.into()),
            ("ecs.ami-id", AMI.into()),
        ];
        let mut out: BTreeMap<String, String> = own.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        out.extend(self.custom().map(|(k, v)| (k.to_string(), v.to_string())));
        out
    }

    /// Nodes that name no zone are spread over all by their id; the same node always to the same.
    fn zone(&self, zones: &[String]) -> String {
        let digits = derived_id(&self.node_uid);
        let number = digits.get(..8).and_then(|d| usize::from_str_radix(d, 16).ok()).unwrap_or(0);
        zones.get(number % zones.len().max(1)).cloned().unwrap_or_default()
    }

    fn ec2_instance_id(&self) -> String {
        ecs_model::targets::instance_id(&self.node_uid)
    }

    fn allocatable_of(&self, name: &str) -> Option<Quantity> {
        let all = self.node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        quantity(all?.get(name)?)
    }

    /// CPU units and MiB that pods can have.
    pub fn allocatable(&self) -> (i64, i64) {
        let cpu = self.allocatable_of("cpu").map_or(0, |q| q.milli() * 1024 / 1000);
        (cpu, self.allocatable_of("memory").map_or(0, |q| q.units() / MIB))
    }

    fn gpus(&self) -> i64 {
        self.allocatable_of(GPU_RESOURCE).map_or(0, |q| q.units())
    }

    /// What placement needs to know. `tasks` are this cluster's on the node.
    pub fn candidate(&self, cx: &Context<'_>, tasks: &[Arc<Doc>]) -> Instance {
        let (cpu, memory) = self.allocatable();
        let taken = cx.views.ledger.lock().total(&self.node_name);
        let mut groups: BTreeMap<String, u64> = BTreeMap::new();
        for task in tasks.iter().filter(|t| desired_status(t.spec(), t.status()) == "RUNNING") {
            *groups.entry(text(task.spec(), "/group").to_string()).or_default() += 1;
        }
        Instance {
            arn: self.arn.clone(),
            id: self.id.clone(),
            node: self.node_name.clone(),
            facts: Facts {
                attributes: self.attributes(&cx.shared.zones),
                common: Some(capabilities()),
                agent_connected: self.is_ready(),
                agent_version: env!("CARGO_PKG_VERSION").into(),
                ec2_instance_id: self.ec2_instance_id(),
                registered_at: self.registered_at.clone(),
                running_tasks: tasks.len() as u64,
                groups: groups.keys().cloned().collect(),
            },
            cpu: cpu - taken.milliunits.div_euclid(1000),
            memory: memory - taken.bytes.div_euclid(MIB),
            ports: taken.ports.into_keys().collect(),
            gpus: self.gpus() - taken.gpus,
            tasks: groups,
        }
    }

    /// What DescribeContainerInstances answers.
    pub fn describe(&self, cx: &Context<'_>, tasks: &[Arc<Doc>], with_tags: bool) -> Value {
        let (cpu, memory) = self.allocatable();
        let free = self.candidate(cx, tasks);
        let ports = |protocol: &str| -> Vec<String> {
            free.ports.iter().filter(|(_, p)| p == protocol).map(|(n, _)| n.to_string()).collect()
        };
        let resources = |cpu: i64, memory: i64, tcp: Vec<String>, udp: Vec<String>| {
            let number = |name: &str, n: i64| json!({"name": name, "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": n});
            let set = |name: &str, all: Vec<String>| {
                json!({"name": name, "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0,
                    "stringSetValue": all})
            };
            json!([number("CPU", cpu), number("MEMORY", memory), set("PORTS", tcp), set("PORTS_UDP", udp)])
        };
        // By number: the devices' own names are known to their plug-in.
        let with_gpus = |mut all: Value, gpus: i64| {
            if let Some(list) = all.as_array_mut().filter(|_| self.gpus() > 0) {
                let ids: Vec<String> = (0..gpus).map(|n| n.to_string()).collect();
                list.push(json!({"name": "GPU", "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0,
                    "integerValue": 0, "stringSetValue": ids}));
            }
            all
        };
        let status = |task: &&Arc<Doc>| text(task.status(), "/lastStatus") == "RUNNING";
        let running = tasks.iter().filter(status).count();
        let attribute = |(name, value): (&str, &str)| match value {
            "" => json!({"name": name}),
            value => json!({"name": name, "value": value}),
        };
        let own = free.facts.attributes.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let attributes: Vec<Value> =
            own.chain(capabilities().iter().map(|c| (c.as_str(), ""))).map(attribute).collect();
        let runtime = self.node.status.as_ref().and_then(|s| s.node_info.as_ref());
        json!({
            "containerInstanceArn": self.arn, "ec2InstanceId": self.ec2_instance_id(), "version": 1,
            "versionInfo": {"agentVersion": free.facts.agent_version,
                "dockerVersion": runtime.map(|i| i.container_runtime_version.clone()).unwrap_or_default()},
            "registeredResources":
                with_gpus(resources(cpu, memory, Vec::new(), Vec::new()), self.gpus()),
            "remainingResources": with_gpus(
                resources(free.cpu.max(0), free.memory.max(0), ports("tcp"), ports("udp")), free.gpus),
            "status": self.status(), "agentConnected": self.is_ready(),
            "runningTasksCount": running, "pendingTasksCount": tasks.len() - running,
            "attributes": attributes,
            "registeredAt": machinery::time::parse(&self.registered_at).map_or(0.0, |t| t.as_second() as f64),
            "attachments": [],
            "tags": if with_tags { json!(list(self.spec(), "/tags")) } else { json!([]) },
        })
    }

    /// Writes what is said about the instance; `edit` sees the spec so far.
    pub async fn write(
        &self,
        cx: &Context<'_>,
        cluster: &Cluster,
        edit: impl Fn(&Value) -> Result<Value, AwsError>,
    ) -> Result<Arc<Object>, AwsError> {
        let key = ObjectKey::new(&*cluster.namespace, &*self.id);
        cx.put(&cx.views.instances, ("ContainerInstance", &key), &self.base(), edit).await
    }

    fn base(&self) -> Value {
        json!({
            "containerInstanceArn": self.arn, "nodeName": self.node_name, "ec2InstanceId": self.ec2_instance_id(),
            "status": "ACTIVE", "registered": true, "attributes": [], "tags": [],
        })
    }

    /// Makes sure that the instance can be found by its id.
    pub async fn ensure(&self, cx: &Context<'_>, cluster: &Cluster) -> Result<(), AwsError> {
        match self.stored {
            Some(_) => Ok(()),
            None => self.write(cx, cluster, |_| Ok(json!({}))).await.map(drop),
        }
    }
}

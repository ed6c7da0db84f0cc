//! Lowering: a Task and its task definition in, the Pod that runs it out. Pure.
//!
//! What a Pod can say, the Pod says; the rest goes into one annotation ([`crate::annotation`]). Documents are AWS's
//! own, by member names, already checked and normalised by the operations that stored them. What this engine cannot
//! do is refused here with a reason, never dropped in silence.
//! Deliberately not here: choosing a node, reading secrets' values, writing anything.

mod container;
mod ports;
mod router;
mod volumes;

pub use ports::{DYNAMIC_FIRST, used_ports};
pub use volumes::ROUTER_VOLUME;

use crate::annotation::{self, Identity, TaskNote};
use crate::names::{Place, object_name};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Label of every pod that runs a task: the task's id.
pub const TASK_LABEL: &str = "ecs.gantry.dev/task";
/// Label: the cluster's object name.
pub const CLUSTER_LABEL: &str = "ecs.gantry.dev/cluster";
/// Label: the family's object name.
pub const FAMILY_LABEL: &str = "ecs.gantry.dev/family";
/// Label: the service's object name.
pub const SERVICE_LABEL: &str = "ecs.gantry.dev/service";
/// Label: the group's object name.
pub const GROUP_LABEL: &str = "ecs.gantry.dev/group";
/// Keeps a task's pod until its end is on record in the Task.
pub const FINALIZER: &str = "ecs.gantry.dev/task";
/// Where the metadata endpoint is, as AWS has it.
pub const METADATA_ADDRESS: &str = "169.254.170.2";

/// What does not come from the task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What containers find as `AWS_ENDPOINT_URL`; "" leaves it out.
    pub endpoint: String,
    /// Folder of named (Docker) volumes on the node.
    pub volumes_root: String,
    /// Folder that stands for EFS file systems, one folder each; "" refuses them.
    pub efs_root: String,
    /// Registry hosts that are ours: their images are looked up at each start, which costs nothing.
    pub own_registries: Vec<String>,
}

/// A task, as its object has it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Namespace (`ecs-<cluster>`).
    pub namespace: &'a str,
    /// The task's id.
    pub id: &'a str,
    /// UID of the object: unguessable, so secrets of the task are made from it.
    pub uid: &'a str,
    /// `spec`.
    pub spec: &'a Value,
}

/// What a Pod is made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The task.
    pub task: Subject<'a>,
    /// Its task definition, as `DescribeTaskDefinition` shows it.
    pub definition: &'a Value,
    /// The node that was chosen for it; `None` leaves it to the scheduler.
    pub node: Option<&'a str>,
    /// Ports of that node that are taken, as [`used_ports`] tells them.
    pub used_ports: &'a BTreeSet<(String, u16)>,
    /// Settings.
    pub settings: &'a Settings,
}

/// A secret that has to be read before the Pod is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretWish {
    /// Key in the Secret object.
    pub key: String,
    /// ARN or name, as `valueFrom` has it.
    pub from: String,
}

/// The result.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The Pod.
    pub pod: Value,
    /// Values that its Secret ([`secret_name`]) must hold; no Secret when empty.
    pub secrets: Vec<SecretWish>,
    /// Secrets that hold the variables of environment files: name, ARNs of the files in order.
    pub env_files: Vec<(String, Vec<String>)>,
    /// Secrets Manager secrets with registry credentials ({`username`, `password`}), with the image that each is for.
    pub registries: Vec<SecretWish>,
}

/// Why a task cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// Something that this engine does not do.
    #[error("{0} not supported")]
    Unsupported(String),
    /// The documents do not fit together.
    #[error("{0}")]
    Invalid(String),
    /// No dynamic port is free on the node.
    #[error("no free host port on the container instance")]
    Ports,
}

/// How the task is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// An address of its own, and a network interface to show for it.
    AwsVpc,
    /// Ports of the node lead to it.
    Bridge,
    /// The node's own network.
    Host,
    /// Nothing but the loopback link.
    None,
}

impl NetworkMode {
    /// Of a task definition; bridge is the default, as in ECS on Linux.
    pub fn of(definition: &Value) -> NetworkMode {
        match definition["networkMode"].as_str() {
            Some("awsvpc") => NetworkMode::AwsVpc,
            Some("host") => NetworkMode::Host,
            Some("none") => NetworkMode::None,
            _ => NetworkMode::Bridge,
        }
    }

    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            NetworkMode::AwsVpc => "awsvpc",
            NetworkMode::Bridge => "bridge",
            NetworkMode::Host => "host",
            NetworkMode::None => "none",
        }
    }
}

/// The name of a container in the Pod.
pub fn container_name(ecs_name: &str) -> String {
    let here = Place::new("", "");
    object_name("", "", &here, ecs_name)
}

/// The Secret that holds a task's secret values.
pub fn secret_name(task: &str) -> String {
    format!("{task}-secrets")
}

/// The Secret with the variables of the environment files of a task's container.
pub fn env_secret_name(task: &str, index: usize) -> String {
    format!("{task}-env-{index}")
}

/// The Secret with a task's registry credentials.
pub fn registry_secret_name(task: &str) -> String {
    format!("{task}-registry")
}

/// 32 hex digits that nobody guesses who does not know the UID.
pub fn unguessable(uid: &str, what: &str) -> String {
    let digest = Sha256::digest(format!("{uid}/{what}"));
    digest.iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// The same in the form of a UUID.
pub fn uuid(uid: &str, what: &str) -> String {
    let hex = unguessable(uid, what);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A number that AWS writes as number or text.
pub fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The items of a list; none where there is no list.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text; "" where there is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Makes the Pod.
///
/// # Errors
/// The task asks for something that cannot be done here.
pub fn lower(input: &Input) -> Result<Lowered, LowerError> {
    let task = &input.task;
    refuse(input)?;
    let mode = NetworkMode::of(input.definition);
    let mut context = container::Context {
        input,
        mode,
        ports: ports::assign(input.definition, mode, input.used_ports)?,
        volumes: volumes::volumes(input)?,
        secrets: Vec::new(),
        env_files: Vec::new(),
        registries: Vec::new(),
        annotations: BTreeMap::new(),
    };
    let mut containers = Vec::new();
    let mut notes = BTreeMap::new();
    for (index, definition) in items(&input.definition["containerDefinitions"]).iter().enumerate() {
        let (body, note) = container::container(&mut context, index, definition)?;
        notes.insert(container_name(text(&definition["name"])), note);
        containers.push(body);
    }
    follow_router(&mut notes);
    let container::Context { volumes, secrets, env_files, registries, mut annotations, .. } = context;
    let note = TaskNote {
        version: annotation::VERSION,
        task: identity(input, mode),
        isolated: mode == NetworkMode::None,
        containers: notes,
    };
    annotations.insert(annotation::KEY.to_string(), note.print());
    let mut spec = pod_spec(input, mode);
    spec.insert("terminationGracePeriodSeconds".into(), json!(grace(&note)));
    spec.insert("containers".into(), Value::Array(containers));
    spec.insert("volumes".into(), Value::Array(volumes.list));
    if !registries.is_empty() {
        spec.insert("imagePullSecrets".into(), json!([{"name": registry_secret_name(task.id)}]));
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": task.namespace,
            "name": task.id,
            "labels": labels(input),
            "annotations": annotations,
            "finalizers": [FINALIZER],
            "ownerReferences": [owner(task)],
        },
        "spec": spec,
    });
    Ok(Lowered { pod, secrets, env_files, registries })
}

/// Containers that write to the log router start after it and stop before it.
fn follow_router(notes: &mut BTreeMap<String, annotation::ContainerNote>) {
    let Some(router) = notes.iter().find(|(_, n)| !n.firelens.is_empty()).map(|(name, _)| name.clone())
    else {
        return;
    };
    for (name, note) in notes.iter_mut() {
        let writes = note.log.as_ref().is_some_and(|l| l.driver == "awsfirelens");
        if writes && *name != router && !note.depends_on.iter().any(|d| d.container == router) {
            let condition = annotation::Condition::Start;
            note.depends_on.push(annotation::Dependency { container: router.clone(), condition });
        }
    }
}

/// The reference by which what belongs to a task goes with it.
pub fn owner(task: &Subject) -> Value {
    json!({"apiVersion": "ecs.gantry.dev/v1", "kind": "Task", "name": task.id, "uid": task.uid, "controller": true})
}

fn refuse(input: &Input) -> Result<(), LowerError> {
    let asked = |what: &str| Err(LowerError::Unsupported(what.to_string()));
    if !items(&input.definition["inferenceAccelerators"]).is_empty() {
        return asked("inference accelerators are");
    }
    if text(&input.definition["runtimePlatform"]["operatingSystemFamily"]).starts_with("WINDOWS") {
        return asked("Windows containers are");
    }
    if !items(&input.task.spec["volumeConfigurations"]).is_empty() {
        return asked("volumes configured at launch are");
    }
    Ok(())
}

fn labels(input: &Input) -> Value {
    let here = Place::new("", "");
    let encoded = |name: &str| object_name("", "", &here, name);
    let group = text(&input.task.spec["group"]);
    let mut labels = Map::new();
    let cluster = input.task.namespace.strip_prefix("ecs-").unwrap_or(input.task.namespace);
    labels.insert(TASK_LABEL.into(), json!(input.task.id));
    labels.insert(CLUSTER_LABEL.into(), json!(cluster));
    labels.insert(FAMILY_LABEL.into(), json!(encoded(text(&input.definition["family"]))));
    if !group.is_empty() {
        labels.insert(GROUP_LABEL.into(), json!(encoded(group)));
    }
    if let Some(service) = group.strip_prefix("service:") {
        labels.insert(SERVICE_LABEL.into(), json!(encoded(service)));
    }
    Value::Object(labels)
}

/// A role of the task: what the run asked for, else what the definition says.
pub fn role<'a>(task: &'a Value, definition: &'a Value, which: &str) -> &'a str {
    let overridden = text(&task["overrides"][which]);
    if overridden.is_empty() { text(&definition[which]) } else { overridden }
}

fn identity(input: &Input, mode: NetworkMode) -> Identity {
    let (task, definition) = (input.task.spec, input.definition);
    let own = |value: &Value| text(value).to_string();
    let role_arn = role(task, definition, "taskRoleArn").to_string();
    let tags = items(&task["tags"]).iter().map(|t| (own(&t["key"]), own(&t["value"]))).collect();
    Identity {
        arn: own(&task["taskArn"]),
        cluster_arn: own(&task["clusterArn"]),
        family: own(&definition["family"]),
        revision: number(&definition["revision"]).unwrap_or_default().to_string(),
        launch_type: own(&task["launchType"]),
        availability_zone: own(&task["availabilityZone"]),
        network_mode: mode.as_str().to_string(),
        credentials_id: if role_arn.is_empty() { String::new() } else { uuid(input.task.uid, "credentials") },
        role_arn,
        group: own(&task["group"]),
        cpu: number(&task["cpu"]).unwrap_or_default(),
        memory: number(&task["memory"]).unwrap_or_default(),
        tags,
    }
}

/// Time for all to stop in order: the longest chain of containers that wait for each other.
fn grace(note: &TaskNote) -> u64 {
    fn of(note: &TaskNote, name: &str, depth: usize) -> u64 {
        let Some(own) = note.containers.get(name) else { return 0 };
        let seconds = u64::from(own.stop_seconds());
        if depth > note.containers.len() {
            // A circle: registration refuses those.
            return seconds;
        }
        let rest = own.depends_on.iter().map(|d| of(note, &d.container, depth + 1)).max();
        seconds + rest.unwrap_or(0)
    }
    note.containers
        .keys()
        .map(|name| of(note, name, 0))
        .max()
        .unwrap_or(u64::from(annotation::STOP_TIMEOUT_S))
}

/// The parts of the Pod that concern the task as a whole.
fn pod_spec(input: &Input, mode: NetworkMode) -> Map<String, Value> {
    let (task, definition) = (input.task.spec, input.definition);
    let mut spec = Map::new();
    let mut put = |key: &str, value: Value| drop(spec.insert(key.into(), value));
    put("restartPolicy", json!("Never"));
    put("automountServiceAccountToken", json!(false));
    put("enableServiceLinks", json!(false));
    if let Some(resources) = task_resources(task) {
        put("resources", resources);
    }
    if let Some(affinity) = input.node.map(on_node) {
        put("affinity", affinity);
    }
    let architecture = match text(&definition["runtimePlatform"]["cpuArchitecture"]) {
        "ARM64" => Some("arm64"),
        "X86_64" => Some("amd64"),
        _ => None,
    };
    if let Some(architecture) = architecture {
        put("nodeSelector", json!({"kubernetes.io/arch": architecture}));
    }
    match text(&definition["pidMode"]) {
        "host" => put("hostPID", json!(true)),
        "task" => put("shareProcessNamespace", json!(true)),
        // Orphans need somebody who reaps them: the process that holds a shared namespace does.
        _ if wants_init(definition) => put("shareProcessNamespace", json!(true)),
        _ => {}
    }
    if text(&definition["ipcMode"]) == "host" {
        put("hostIPC", json!(true));
    }
    if mode == NetworkMode::Host {
        put("hostNetwork", json!(true));
    }
    let (policy, config) = dns(definition, mode);
    put("dnsPolicy", json!(policy));
    if let Some(config) = config {
        put("dnsConfig", config);
    }
    let containers = items(&definition["containerDefinitions"]);
    if let Some(hostname) = containers.iter().map(|c| text(&c["hostname"])).find(|h| !h.is_empty()) {
        put("hostname", json!(hostname));
    }
    let aliases = host_aliases(containers);
    if !aliases.is_empty() {
        put("hostAliases", Value::Array(aliases));
    }
    let controls = containers.iter().flat_map(|c| items(&c["systemControls"]));
    let sysctls: BTreeMap<&str, &str> =
        controls.map(|c| (text(&c["namespace"]), text(&c["value"]))).collect();
    let sysctls: Vec<Value> =
        sysctls.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    if !sysctls.is_empty() {
        put("securityContext", json!({"sysctls": sysctls}));
    }
    spec
}

fn wants_init(definition: &Value) -> bool {
    let containers = items(&definition["containerDefinitions"]);
    containers.iter().any(|c| c["linuxParameters"]["initProcessEnabled"] == true)
}

/// `extraHosts`, and `links`: linked containers share the task's network.
fn host_aliases(containers: &[Value]) -> Vec<Value> {
    let extra = containers.iter().flat_map(|c| items(&c["extraHosts"]));
    let extra = extra.map(|h| (text(&h["ipAddress"]), vec![text(&h["hostname"])]));
    let links = containers.iter().flat_map(|c| items(&c["links"]));
    let links = links.map(|l| ("127.0.0.1", text(l).split(':').collect()));
    extra.chain(links).map(|(ip, names)| json!({"ip": ip, "hostnames": names})).collect()
}

/// Limits of the whole task, where it has any.
fn task_resources(task: &Value) -> Option<Value> {
    let mut limits = Map::new();
    if let Some(units) = number(&task["cpu"]).filter(|u| *u > 0) {
        limits.insert("cpu".into(), json!(format!("{}m", (units * 1000).div_ceil(1024))));
    }
    if let Some(mib) = number(&task["memory"]).filter(|m| *m > 0) {
        limits.insert("memory".into(), json!(format!("{mib}Mi")));
    }
    (!limits.is_empty()).then(|| json!({"limits": limits, "requests": limits}))
}

fn on_node(node: &str) -> Value {
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
}

/// Containers of a pod share one resolver: what any of them asks for.
fn dns(definition: &Value, mode: NetworkMode) -> (&'static str, Option<Value>) {
    let all = |member: &str| -> Vec<Value> {
        let containers = items(&definition["containerDefinitions"]);
        let mut list: Vec<Value> = Vec::new();
        for entry in containers.iter().flat_map(|c| items(&c[member])) {
            if !list.contains(entry) {
                list.push(entry.clone());
            }
        }
        list
    };
    let (servers, searches) = (all("dnsServers"), all("dnsSearchDomains"));
    let mut config = Map::new();
    if !servers.is_empty() {
        config.insert("nameservers".into(), Value::Array(servers.clone()));
    }
    if !searches.is_empty() {
        config.insert("searches".into(), Value::Array(searches));
    }
    let policy = match (mode, servers.is_empty()) {
        (_, false) => "None",
        (NetworkMode::Host | NetworkMode::None, true) => "Default",
        _ => "ClusterFirst",
    };
    (policy, (!config.is_empty()).then_some(Value::Object(config)))
}

#[cfg(test)]
mod tests;

//! One container of a task: its part of the Pod, and its note.

use super::volumes::{ROUTER_VOLUME, Volumes};
use super::{
    Input, LowerError, METADATA_ADDRESS, NetworkMode, SecretWish, items, number, ports, router, text,
};
use super::{container_name, env_secret_name, role, secret_name, unguessable, uuid};
use crate::annotation::{Condition, ContainerNote, Dependency, Device, Log, Restart, Tmpfs, Ulimit};
use crate::names::Arn;
use crate::overrides;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Seconds, tries: a health check's defaults.
const HEALTH_INTERVAL_S: u64 = 30;
const HEALTH_TIMEOUT_S: u64 = 5;
const HEALTH_RETRIES: u64 = 3;
/// Seconds that a container must have run to be restarted by its own policy (ECS's default).
const ATTEMPT_PERIOD_S: u32 = 300;

/// What containers are lowered with, and what they ask for on the way.
pub(super) struct Context<'a> {
    pub input: &'a Input<'a>,
    pub mode: NetworkMode,
    pub ports: ports::Assigned,
    pub volumes: Volumes,
    pub secrets: Vec<SecretWish>,
    pub env_files: Vec<(String, Vec<String>)>,
    pub registries: Vec<SecretWish>,
    pub annotations: BTreeMap<String, String>,
}

impl Context<'_> {
    /// The run's own words for this container.
    fn overrides(&self, name: &str) -> &Value {
        let list = items(&self.input.task.spec["overrides"]["containerOverrides"]);
        list.iter().find(|o| text(&o["name"]) == name).unwrap_or(&Value::Null)
    }
}

/// The container and its note.
pub(super) fn container(
    context: &mut Context,
    index: usize,
    definition: &Value,
) -> Result<(Value, ContainerNote), LowerError> {
    let name = text(&definition["name"]);
    let overrides = context.overrides(name).clone();
    refuse(definition, &overrides)?;
    let metadata_id = unguessable(context.input.task.uid, &format!("metadata/{name}"));
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| drop(body.insert(key.into(), value));
    let image = text(&definition["image"]);
    put("name", json!(container_name(name)));
    put("image", json!(image));
    if own_image(context.input, image) {
        put("imagePullPolicy", json!("Always"));
    }
    let either = |member: &str| match items(&overrides[member]) {
        [] => words(&definition[member]),
        list => list.iter().map(|w| literal(text(w))).collect(),
    };
    for (key, list) in [("command", words(&definition["entryPoint"])), ("args", either("command"))] {
        if !list.is_empty() {
            put(key, json!(list));
        }
    }
    for (key, member) in
        [("workingDir", "workingDirectory"), ("stdin", "interactive"), ("tty", "pseudoTerminal")]
    {
        let value = &definition[member];
        if !value.is_null() && *value != "" && *value != false {
            put(key, value.clone());
        }
    }
    if let Some(from) = env_files(context, index, (definition, &overrides)) {
        put("envFrom", from);
    }
    let router = router::router(context.input, definition)?;
    let mut env = environment(context, index, definition, (&overrides, &metadata_id));
    let mut points = mounts(context, definition)?;
    if let Some(router) = router {
        route(context, index, router, (&mut env, &mut points));
    }
    put("env", Value::Array(env));
    put("ports", Value::Array(port_list(context, index, definition)));
    put("resources", resources(definition, &overrides));
    put("securityContext", security(definition));
    put("volumeMounts", Value::Array(points));
    if let Some(probe) = health(&definition["healthCheck"]) {
        put("readinessProbe", probe);
    }
    let credentials = text(&definition["repositoryCredentials"]["credentialsParameter"]);
    if !credentials.is_empty() {
        context.registries.push(SecretWish { key: image.to_string(), from: credentials.to_string() });
    }
    Ok((Value::Object(body), note(definition, metadata_id)))
}

fn refuse(definition: &Value, overrides: &Value) -> Result<(), LowerError> {
    let option = |kind: &str| {
        let own = items(&definition["dockerSecurityOptions"]).iter().map(text);
        own.filter_map(|o| o.strip_prefix(kind)).any(|value| !matches!(value, "=unconfined" | ":unconfined"))
    };
    let asked: [(bool, &str); 4] = [
        (
            !items(&definition["credentialSpecs"]).is_empty() || option("credentialspec"),
            "credential specs are",
        ),
        (
            [definition, overrides]
                .iter()
                .any(|d| items(&d["resourceRequirements"]).iter().any(|r| r["type"] != "GPU")),
            "resource requirements other than GPU are",
        ),
        (option("apparmor"), "AppArmor profiles are"),
        (option("seccomp"), "seccomp profiles of a file are"),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(LowerError::Unsupported((*what).to_string())),
        None => Ok(()),
    }
}

/// Variables of files in S3: the run's files instead of the definition's. They stand behind `env`, which wins.
fn env_files(
    context: &mut Context,
    index: usize,
    (definition, overrides): (&Value, &Value),
) -> Option<Value> {
    let own = items(&overrides["environmentFiles"]);
    let files = if own.is_empty() { items(&definition["environmentFiles"]) } else { own };
    if files.is_empty() {
        return None;
    }
    let name = env_secret_name(context.input.task.id, index);
    let from = files.iter().map(|f| text(&f["value"]).to_string()).collect();
    context.env_files.push((name.clone(), from));
    Some(json!([{"secretRef": {"name": name}}]))
}

/// A log router's configuration, its socket's folder and the variables that its text names.
fn route(
    context: &mut Context,
    index: usize,
    router: router::Router,
    (env, points): (&mut Vec<Value>, &mut Vec<Value>),
) {
    let key = format!("ecs.gantry.dev/router-{index}");
    let file = router.path.rsplit('/').next().unwrap_or_default();
    let field = json!({"fieldPath": format!("metadata.annotations['{key}']")});
    let shown = context.volumes.other(json!({"downwardAPI": {"items": [{"path": file, "fieldRef": field}]}}));
    points.push(json!({"name": shown, "mountPath": router.path, "subPath": file, "readOnly": true}));
    context.annotations.insert(key, router.text);
    let socket = context.volumes.named(ROUTER_VOLUME, json!({"emptyDir": {}}));
    points.push(json!({"name": socket, "mountPath": router::SOCKET_FOLDER}));
    let secret = secret_name(context.input.task.id);
    for (n, (name, from)) in router.secrets.into_iter().enumerate() {
        let key = format!("{index}.router.{n}");
        env.push(json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}));
        context.secrets.push(SecretWish { key, from });
    }
    if let Some((path, from)) = router.external {
        let key = format!("{index}.router.conf");
        let volume = context.volumes.other(json!({"secret": {"secretName": secret}}));
        points.push(json!({"name": volume, "mountPath": path, "subPath": key, "readOnly": true}));
        context.secrets.push(SecretWish { key, from });
    }
}

/// Images of our own registry may change under their tag, and asking costs nothing.
fn own_image(input: &Input, image: &str) -> bool {
    let host = image.split('/').next().unwrap_or_default();
    let ecr = host.contains(".dkr.ecr.") && host.ends_with(".amazonaws.com");
    image.contains('/') && (ecr || input.settings.own_registries.iter().any(|own| own == host))
}

/// Text that Kubernetes leaves as it is: it would expand `$(NAME)`, and `$$` to one.
fn literal(text: &str) -> String {
    if text.contains("$(") || text.contains("$$") { text.replace('$', "$$") } else { text.to_string() }
}

fn words(list: &Value) -> Vec<String> {
    items(list).iter().map(|w| literal(text(w))).collect()
}

/// Variables in order: what ECS gives, then the definition's, then the run's; later ones win.
fn environment(
    context: &mut Context,
    index: usize,
    definition: &Value,
    (overrides, metadata_id): (&Value, &str),
) -> Vec<Value> {
    let (input, task) = (context.input, context.input.task);
    let mut env: Vec<(String, Value)> = Vec::new();
    let mut set = |name: &str, value: Value| match env.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_string(), value)),
    };
    let plain = |text: String| json!({"value": literal(&text)});
    let base = format!("http://{METADATA_ADDRESS}");
    let region = Arn::parse(text(&task.spec["taskArn"])).map_or("", |a| a.region);
    let execution =
        if text(&task.spec["launchType"]) == "FARGATE" { "AWS_ECS_FARGATE" } else { "AWS_ECS_EC2" };
    set("AWS_EXECUTION_ENV", plain(execution.into()));
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        set(name, plain(region.into()));
    }
    if !input.settings.endpoint.is_empty() {
        set("AWS_ENDPOINT_URL", plain(input.settings.endpoint.clone()));
    }
    set("ECS_CONTAINER_METADATA_URI", plain(format!("{base}/v3/{metadata_id}")));
    set("ECS_CONTAINER_METADATA_URI_V4", plain(format!("{base}/v4/{metadata_id}")));
    set("ECS_AGENT_URI", plain(format!("{base}/api/{metadata_id}")));
    if !role(task.spec, input.definition, "taskRoleArn").is_empty() {
        let path = format!("/v2/credentials/{}", uuid(task.uid, "credentials"));
        set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", plain(path));
    }
    if text(&definition["logConfiguration"]["logDriver"]) == "awsfirelens" {
        set("FLUENT_HOST", plain("127.0.0.1".into()));
        set("FLUENT_PORT", plain("24224".into()));
    }
    for pair in items(&definition["environment"]).iter().chain(items(&overrides["environment"])) {
        set(text(&pair["name"]), plain(text(&pair["value"]).into()));
    }
    for (n, secret) in items(&definition["secrets"]).iter().enumerate() {
        let key = format!("{index}.{n}");
        let reference = json!({"secretKeyRef": {"name": secret_name(task.id), "key": key}});
        set(text(&secret["name"]), json!({"valueFrom": reference}));
        context.secrets.push(SecretWish { key, from: text(&secret["valueFrom"]).to_string() });
    }
    let named = env.into_iter().map(|(name, mut value)| {
        value["name"] = json!(name);
        value
    });
    named.collect()
}

fn port_list(context: &Context, index: usize, definition: &Value) -> Vec<Value> {
    let mapping = |(m, mapping): (usize, &Value)| {
        let port = number(&mapping["containerPort"]).filter(|p| *p > 0)?;
        let mut entry = json!({"containerPort": port, "protocol": ports::protocol(mapping).to_uppercase()});
        match context.mode {
            NetworkMode::Host => entry["hostPort"] = json!(port),
            _ => {
                if let Some(host) = context.ports.get(&(index, m)) {
                    entry["hostPort"] = json!(host);
                }
            }
        }
        Some(entry)
    };
    items(&definition["portMappings"]).iter().enumerate().filter_map(mapping).collect()
}

/// CPU units are shares, not a limit; memory is one, its reservation is not.
fn resources(definition: &Value, own: &Value) -> Value {
    let given = |member: &str| {
        let of = |d: &Value| number(&d[member]).filter(|n| *n > 0);
        of(own).or_else(|| of(definition))
    };
    let (mut requests, mut limits) = (Map::new(), Map::new());
    if let Some(units) = given("cpu") {
        // Rounded down, so that containers never ask for more than the task has.
        requests.insert("cpu".into(), json!(format!("{}m", (units * 1000 / 1024).max(1))));
    }
    let (hard, soft) = (given("memory"), given("memoryReservation"));
    if let Some(mib) = soft.or(hard) {
        requests.insert("memory".into(), json!(format!("{mib}Mi")));
    }
    if let Some(mib) = hard {
        limits.insert("memory".into(), json!(format!("{mib}Mi")));
    }
    let gpus = overrides::gpus(definition, own);
    if gpus > 0 {
        limits.insert(overrides::GPU_RESOURCE.into(), json!(gpus.to_string()));
    }
    json!({"requests": requests, "limits": limits})
}

fn security(definition: &Value) -> Value {
    let mut context = Map::new();
    let privileged = definition["privileged"] == true;
    if privileged {
        context.insert("privileged".into(), json!(true));
    } else {
        context.insert("seccompProfile".into(), json!({"type": "RuntimeDefault"}));
    }
    let options = items(&definition["dockerSecurityOptions"]);
    if options.iter().any(|o| matches!(text(o), "seccomp:unconfined" | "seccomp=unconfined")) {
        context.remove("seccompProfile");
    }
    if definition["readonlyRootFilesystem"] == true {
        context.insert("readOnlyRootFilesystem".into(), json!(true));
    }
    if !privileged && options.iter().any(|o| text(o).starts_with("no-new-privileges")) {
        context.insert("allowPrivilegeEscalation".into(), json!(false));
    }
    let wanted = &definition["linuxParameters"]["capabilities"];
    let (add, drop) = (items(&wanted["add"]), items(&wanted["drop"]));
    if !(add.is_empty() && drop.is_empty()) {
        context.insert("capabilities".into(), json!({"add": add, "drop": drop}));
    }
    Value::Object(context)
}

fn mounts(context: &mut Context, definition: &Value) -> Result<Vec<Value>, LowerError> {
    let mut list = context.volumes.mounts(items(&definition["mountPoints"]), false)?;
    for from in items(&definition["volumesFrom"]) {
        let source = text(&from["sourceContainer"]);
        let all = items(&context.input.definition["containerDefinitions"]);
        let other = all.iter().find(|c| text(&c["name"]) == source);
        let unknown = || LowerError::Invalid(format!("Unknown container '{source}' in volumesFrom."));
        let points = items(&other.ok_or_else(unknown)?["mountPoints"]);
        let theirs = context.volumes.mounts(points, from["readOnly"] == true)?;
        let free: Vec<Value> =
            theirs.into_iter().filter(|m| !list.iter().any(|l| l["mountPath"] == m["mountPath"])).collect();
        list.extend(free);
    }
    Ok(list)
}

/// A health check is a readiness probe: it reports and kills nothing.
fn health(check: &Value) -> Option<Value> {
    let command: Vec<&str> = items(&check["command"]).iter().map(text).collect();
    let command: Vec<&str> = match command[..] {
        [] | ["NONE", ..] => return None,
        ["CMD-SHELL", ref rest @ ..] => ["/bin/sh", "-c"].into_iter().chain(rest.iter().copied()).collect(),
        ["CMD", ref rest @ ..] => rest.to_vec(),
        ref all => all.to_vec(),
    };
    let or = |member: &str, default: u64| number(&check[member]).filter(|n| *n > 0).unwrap_or(default);
    Some(json!({
        "exec": {"command": command},
        "periodSeconds": or("interval", HEALTH_INTERVAL_S),
        "timeoutSeconds": or("timeout", HEALTH_TIMEOUT_S),
        "failureThreshold": or("retries", HEALTH_RETRIES),
        "successThreshold": 1,
    }))
}

fn small(value: &Value) -> Option<u32> {
    number(value).and_then(|n| u32::try_from(n).ok())
}

fn string_map(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.map(|(k, v)| (k.clone(), text(v).to_string())).collect()
}

/// Memory file systems of the container alone, the shared memory among them, as Docker mounts them.
fn tmpfs(linux: &Value) -> Vec<Tmpfs> {
    let mut list = Vec::new();
    let mut add = |path: &str, mib: u64, options: &[&str]| {
        let size = (mib > 0).then(|| format!("size={mib}m"));
        let options = options.iter().map(|o| (*o).to_string()).chain(size).collect();
        list.push(Tmpfs { path: path.to_string(), options });
    };
    let shared = number(&linux["sharedMemorySize"]).unwrap_or(0);
    if shared > 0 {
        add("/dev/shm", shared, &["nosuid", "nodev", "noexec", "mode=1777"]);
    }
    for one in items(&linux["tmpfs"]) {
        // What the mount asks for comes after what Docker begins with, so that it wins.
        let asked = items(&one["mountOptions"]).iter().map(text);
        let options: Vec<&str> = ["nosuid", "nodev", "noexec"].into_iter().chain(asked).collect();
        add(text(&one["containerPath"]), number(&one["size"]).unwrap_or(0), &options);
    }
    list
}

fn devices(linux: &Value) -> Vec<Device> {
    let one = |d: &Value| {
        let host = text(&d["hostPath"]).to_string();
        let path = Some(text(&d["containerPath"])).filter(|p| !p.is_empty()).unwrap_or(&host).to_string();
        let asked = items(&d["permissions"]);
        let letters = [("read", 'r'), ("write", 'w'), ("mknod", 'm')];
        let given = letters.iter().filter(|(word, _)| asked.is_empty() || asked.iter().any(|p| p == word));
        Device { host, path, access: given.map(|(_, letter)| letter).collect() }
    };
    items(&linux["devices"]).iter().map(one).collect()
}

fn note(definition: &Value, metadata_id: String) -> ContainerNote {
    let name = text(&definition["name"]);
    let linux = &definition["linuxParameters"];
    let restart = &definition["restartPolicy"];
    let logs = &definition["logConfiguration"];
    let driver = text(&logs["logDriver"]);
    let condition = |d: &Value| match text(&d["condition"]) {
        "COMPLETE" => Condition::Complete,
        "SUCCESS" => Condition::Success,
        "HEALTHY" => Condition::Healthy,
        _ => Condition::Start,
    };
    let depends = |d: &Value| Dependency {
        container: container_name(text(&d["containerName"])),
        condition: condition(d),
    };
    let limit = |l: &Value| Ulimit {
        name: text(&l["name"]).to_string(),
        soft: l["softLimit"].as_i64().unwrap_or(-1),
        hard: l["hardLimit"].as_i64().unwrap_or(-1),
    };
    ContainerNote {
        name: if container_name(name) == name { String::new() } else { name.to_string() },
        essential: definition["essential"] != false,
        metadata_id,
        depends_on: items(&definition["dependsOn"]).iter().map(depends).collect(),
        start_timeout: small(&definition["startTimeout"]),
        stop_timeout: small(&definition["stopTimeout"]),
        restart: (restart["enabled"] == true).then(|| Restart {
            ignored_exit_codes: items(&restart["ignoredExitCodes"])
                .iter()
                .filter_map(|c| c.as_i64().and_then(|c| i32::try_from(c).ok()))
                .collect(),
            attempt_period: small(&restart["restartAttemptPeriod"]).unwrap_or(ATTEMPT_PERIOD_S),
        }),
        start_period: small(&definition["healthCheck"]["startPeriod"]).unwrap_or(0),
        user: text(&definition["user"]).to_string(),
        ulimits: items(&definition["ulimits"]).iter().map(limit).collect(),
        log: (!driver.is_empty())
            .then(|| Log { driver: driver.to_string(), options: string_map(&logs["options"]) }),
        firelens: text(&definition["firelensConfiguration"]["type"]).to_string(),
        devices: devices(linux),
        tmpfs: tmpfs(linux),
        max_swap: small(&linux["maxSwap"]),
        swappiness: small(&linux["swappiness"]),
        labels: string_map(&definition["dockerLabels"]),
    }
}

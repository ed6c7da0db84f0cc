//! A compose file's services as one task definition: each is a container, and all of them scale together. Pure.

use anyhow::{Context, Result, bail, ensure};
use ecs_model::units;
use machinery::kinds::get::{flag, list, text};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What the file does not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// The task definition's family, the service's name, the log group's last part.
    pub project: String,
    /// On Fargate (awsvpc), or on instances (bridge)?
    pub fargate: bool,
    /// Where logs go.
    pub region: String,
    /// For the execution role that Fargate asks for.
    pub account: String,
    /// `env_file`s that were read, by path.
    pub env_files: BTreeMap<String, String>,
}

/// MiB of a container on an instance that says nothing: ECS wants a number.
const MEMORY_DEFAULT: u64 = 512;
/// Seconds that a restarted container must have run, at least: ECS's own.
const RESTART_PERIOD: u64 = 60;
const LOG_GROUP: &str = "/compose";

/// The log group of a project.
pub fn log_group(project: &str) -> String {
    format!("{LOG_GROUP}/{project}")
}

/// How many tasks the file asks for.
pub fn replicas(file: &Value) -> u64 {
    let services = file["services"].as_object().into_iter().flat_map(|s| s.values());
    services.filter_map(|s| s["deploy"]["replicas"].as_u64()).max().unwrap_or(1)
}

/// RegisterTaskDefinition's input, and what the user should know.
pub fn definition(file: &Value, options: &Options) -> Result<(Value, Vec<String>)> {
    let services = file["services"].as_object().context("the file has no services")?;
    let mut make = Make { file, options, services, volumes: BTreeMap::new(), notes: Vec::new() };
    let mut containers = Vec::new();
    for (name, service) in services {
        containers.push(make.container(name, service).with_context(|| format!("services.{name}"))?);
    }
    if services.len() > 1 {
        make.names(&mut containers);
    }
    let volumes: Vec<Value> = make.volumes.into_values().collect();
    let notes = make.notes;
    let mut out = json!({
        "family": options.project, "networkMode": if options.fargate { "awsvpc" } else { "bridge" },
        "requiresCompatibilities": [if options.fargate { "FARGATE" } else { "EC2" }],
        "containerDefinitions": containers, "volumes": volumes,
    });
    if options.fargate {
        let (cpu, memory) = size(&out["containerDefinitions"])?;
        out["cpu"] = json!(cpu.to_string());
        out["memory"] = json!(memory.to_string());
        out["executionRoleArn"] =
            json!(format!("arn:aws:iam::{}:role/ecsTaskExecutionRole", options.account));
    }
    ecs_model::doc::drop_nulls(&mut out);
    Ok((out, notes))
}

/// The smallest Fargate size that holds all containers.
fn size(containers: &Value) -> Result<(u64, u64)> {
    let sum = |member: &str| list(containers, "").iter().filter_map(|c| c[member].as_u64()).sum::<u64>();
    let memory = sum("memory").max(sum("memoryReservation"));
    let fits = |(cpu, mib): &(u64, u64)| *cpu >= sum("cpu") && *mib >= memory;
    units::fargate_sizes().filter(fits).min().context("no Fargate size holds all containers together")
}

struct Make<'a> {
    file: &'a Value,
    options: &'a Options,
    services: &'a Map<String, Value>,
    volumes: BTreeMap<String, Value>,
    notes: Vec<String>,
}

impl Make<'_> {
    fn container(&mut self, name: &str, service: &Value) -> Result<Value> {
        let limits = &service["deploy"]["resources"];
        let memory = bytes(first([&limits["limits"]["memory"], &service["mem_limit"]]))?.map(mib);
        let reserved =
            bytes(first([&limits["reservations"]["memory"], &service["mem_reservation"]]))?.map(mib);
        let cpus = first([&limits["limits"]["cpus"], &limits["reservations"]["cpus"], &service["cpus"]]);
        let least = (!self.options.fargate && reserved.is_none()).then_some(MEMORY_DEFAULT);
        let mut out = json!({
            "name": name, "image": text(service, "/image"), "essential": !self.is_first_step(name),
            "command": words(&service["command"])?, "entryPoint": words(&service["entrypoint"])?,
            "cpu": cpu(cpus)?, "memory": memory.or(least), "memoryReservation": reserved,
            "environment": self.environment(service)?, "portMappings": self.ports(service)?,
            "mountPoints": self.mounts(name, service)?, "dependsOn": self.waits(service)?,
            "healthCheck": health(&service["healthcheck"])?, "logConfiguration": self.logging(name, service)?,
            "user": scalar(&service["user"]), "workingDirectory": scalar(&service["working_dir"]),
            "stopTimeout": seconds(&service["stop_grace_period"])?, "restartPolicy": restart(service)?,
            "linuxParameters": linux(service)?, "ulimits": ulimits(&service["ulimits"])?,
        });
        for (to, from) in [
            ("privileged", "privileged"),
            ("readonlyRootFilesystem", "read_only"),
            ("pseudoTerminal", "tty"),
            ("interactive", "stdin_open"),
        ] {
            if flag(service, &format!("/{from}")) {
                out[to] = json!(true);
            }
        }
        if !service["labels"].is_null() {
            out["dockerLabels"] = json!(pairs(&service["labels"])?.into_iter().collect::<BTreeMap<_, _>>());
        }
        let named = |(namespace, value): (String, String)| json!({"namespace": namespace, "value": value});
        out["systemControls"] = pairs(&service["sysctls"])?.into_iter().map(named).collect();
        for (to, from) in
            [("dnsServers", "dns"), ("dnsSearchDomains", "dns_search"), ("extraHosts", "extra_hosts")]
        {
            let given = strings(&service[from])?;
            if given.is_empty() {
                continue;
            }
            ensure!(!self.options.fargate, "{from} is not supported on Fargate");
            out[to] = match to {
                "extraHosts" => given.iter().map(|h| host(h)).collect::<Result<_>>()?,
                _ => json!(given),
            };
        }
        Ok(out)
    }

    /// Does somebody wait for its end? Then the task outlives it.
    fn is_first_step(&self, name: &str) -> bool {
        let ends = |s: &Value| {
            text(&s["depends_on"], &format!("/{name}/condition")) == "service_completed_successfully"
        };
        self.services.values().any(ends)
    }

    /// Every service finds the others by name: they share the task's loopback.
    fn names(&mut self, containers: &mut [Value]) {
        if self.options.fargate {
            self.notes.push("on Fargate the services reach each other at 127.0.0.1, not by name".into());
            return;
        }
        // Hosts of one container are hosts of all: the task has one file of them.
        if let Some(first) = containers.first_mut() {
            let own = self.services.keys().map(|n| json!({"hostname": n, "ipAddress": "127.0.0.1"}));
            let mut hosts: Vec<Value> = own.collect();
            hosts.extend(list(first, "/extraHosts").iter().cloned());
            first["extraHosts"] = json!(hosts);
        }
    }

    fn environment(&self, service: &Value) -> Result<Value> {
        let mut all = BTreeMap::new();
        for path in strings(&service["env_file"])? {
            let text =
                self.options.env_files.get(&path).with_context(|| format!("env_file {path} was not read"))?;
            all.extend(super::file::variables(text));
        }
        all.extend(pairs(&service["environment"])?);
        Ok(all.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect())
    }

    fn ports(&mut self, service: &Value) -> Result<Value> {
        let mut out = Vec::new();
        for entry in list(service, "/ports") {
            let (host, container, protocol) = match entry {
                Value::Object(_) => {
                    let number = |m: &str| scalar(&entry[m]).unwrap_or_default();
                    (number("published"), number("target"), text(entry, "/protocol").to_string())
                }
                other => short_port(&scalar(other).context("ports: a text or a number is expected")?)?,
            };
            let port =
                |text: &str| text.parse::<u16>().with_context(|| format!("ports: {text:?} is no port"));
            let container = port(&container)?;
            let mut mapping = json!({"containerPort": container});
            if !protocol.is_empty() {
                mapping["protocol"] = json!(protocol);
            }
            if self.options.fargate {
                if !host.is_empty() && port(&host)? != container {
                    self.notes.push(format!(
                        "port {host}:{container}: a Fargate task has an address of its own, where it is {container}"
                    ));
                }
            } else {
                mapping["hostPort"] = json!(if host.is_empty() { 0 } else { port(&host)? });
            }
            out.push(mapping);
        }
        Ok(json!(out))
    }

    fn mounts(&mut self, name: &str, service: &Value) -> Result<Value> {
        let mut out = Vec::new();
        for entry in list(service, "/volumes") {
            let (source, path, read_only) = match entry {
                Value::String(text) => short_volume(text)?,
                Value::Object(_) => {
                    let kind = text(entry, "/type");
                    ensure!(matches!(kind, "" | "volume" | "bind"), "volumes: type {kind} is not supported");
                    let member = |m: &str| text(entry, &format!("/{m}")).to_string();
                    (member("source"), member("target"), flag(entry, "/read_only"))
                }
                _ => bail!("volumes: a text or a mapping is expected"),
            };
            ensure!(path.starts_with('/'), "volumes: {path:?} is no absolute path in the container");
            let volume = self.volume(name, &source, self.volumes.len())?;
            out.push(json!({"sourceVolume": volume, "containerPath": path, "readOnly": read_only}));
        }
        Ok(json!(out))
    }

    /// The task's volume for a source: a host's folder, a named volume, or "" for one of the task's own.
    fn volume(&mut self, service: &str, source: &str, number: usize) -> Result<String> {
        let is_path = source.starts_with(['/', '.', '~']);
        if is_path {
            ensure!(
                source.starts_with('/'),
                "volumes: {source:?} is not absolute: the node does not know your folder"
            );
            ensure!(!self.options.fargate, "volumes: {source:?}: Fargate has no folders of the host");
            let known = self.volumes.iter().find(|(_, v)| text(v, "/host/sourcePath") == source);
            if let Some((name, _)) = known {
                return Ok(name.clone());
            }
            let name = format!("host-{number}");
            self.volumes.insert(name.clone(), json!({"name": name, "host": {"sourcePath": source}}));
            return Ok(name);
        }
        if source.is_empty() {
            let name = format!("{service}-{number}");
            self.volumes.insert(name.clone(), json!({"name": name}));
            return Ok(name);
        }
        let declared = self.file["volumes"].get(source);
        let declared =
            declared.with_context(|| format!("volumes: {source:?} is not among the file's volumes"))?;
        let driver = text(declared, "/driver");
        ensure!(matches!(driver, "" | "local"), "volumes.{source}: driver {driver} is not supported");
        // On an instance it outlives the task, as with compose.
        let shared = json!({"scope": "shared", "autoprovision": true, "driver": "local"});
        let volume = match self.options.fargate {
            true => json!({"name": source}),
            false => {
                json!({"name": format!("{}_{source}", self.options.project), "dockerVolumeConfiguration": shared})
            }
        };
        let name = text(&volume, "/name").to_string();
        self.volumes.insert(name.clone(), volume);
        Ok(name)
    }

    fn waits(&self, service: &Value) -> Result<Value> {
        let waits = &service["depends_on"];
        let one = |name: &str, condition: &str| -> Result<Value> {
            ensure!(self.services.contains_key(name), "depends_on: there is no service {name}");
            let condition = match condition {
                "" | "service_started" => "START",
                "service_healthy" => "HEALTHY",
                "service_completed_successfully" => "SUCCESS",
                other => bail!("depends_on: condition {other} is not supported"),
            };
            Ok(json!({"containerName": name, "condition": condition}))
        };
        match waits {
            Value::Object(map) => {
                map.iter().map(|(name, how)| one(name, text(how, "/condition"))).collect::<Result<_>>()
            }
            _ => strings(waits)?.iter().map(|name| one(name, "")).collect::<Result<_>>(),
        }
    }

    fn logging(&self, name: &str, service: &Value) -> Result<Value> {
        let logging = &service["logging"];
        if !logging.is_null() {
            let driver = scalar(&logging["driver"]).unwrap_or_else(|| "json-file".into());
            let options: BTreeMap<_, _> = pairs(&logging["options"])?.into_iter().collect();
            return Ok(json!({"logDriver": driver, "options": options}));
        }
        Ok(json!({"logDriver": "awslogs", "options": {
            "awslogs-group": log_group(&self.options.project), "awslogs-region": self.options.region,
            "awslogs-stream-prefix": name, "awslogs-create-group": "true"}}))
    }
}

fn first<'a>(values: impl IntoIterator<Item = &'a Value>) -> &'a Value {
    values.into_iter().find(|v| !v.is_null()).unwrap_or(&Value::Null)
}

/// A text, number or flag as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// A text, or a list of them.
fn strings(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => {
            items.iter().map(|i| scalar(i).context("a list of texts is expected")).collect()
        }
        other => Ok(vec![scalar(other).context("a text or a list of texts is expected")?]),
    }
}

/// A mapping, or a list of `name=value` (`name` alone: empty).
fn pairs(value: &Value) -> Result<Vec<(String, String)>> {
    match value {
        Value::Object(map) => {
            Ok(map.iter().map(|(k, v)| (k.clone(), scalar(v).unwrap_or_default())).collect())
        }
        other => Ok(strings(other)?
            .iter()
            .map(|line| line.split_once('=').unwrap_or((line, "")))
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()),
    }
}

/// A command: a list, or a text cut into words as a shell does.
fn words(value: &Value) -> Result<Option<Vec<String>>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => split(text).map(Some),
        other => strings(other).map(Some),
    }
}

fn split(text: &str) -> Result<Vec<String>> {
    let (mut out, mut word, mut begun, mut quote) = (Vec::new(), String::new(), false, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(q), l) if q == l => quote = None,
            (None, '"' | '\'') => (quote, begun) = (Some(letter), true),
            (None | Some('"'), '\\') => {
                word.extend(letters.next());
                begun = true;
            }
            (None, l) if l.is_whitespace() => {
                if begun {
                    out.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (_, l) => {
                word.push(l);
                begun = true;
            }
        }
    }
    ensure!(quote.is_none(), "{text:?}: a quote is open");
    if begun {
        out.push(word);
    }
    Ok(out)
}

/// `64m`, `1.5g`, `1GB`, bytes.
fn bytes(value: &Value) -> Result<Option<f64>> {
    let Some(text) = scalar(value) else { return Ok(None) };
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let factor = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1.0,
        "k" => 1_024.0,
        "m" => 1_048_576.0,
        "g" => 1_073_741_824.0,
        _ => bail!("{text:?} is no amount of memory"),
    };
    let number: f64 = number.parse().with_context(|| format!("{text:?} is no amount of memory"))?;
    Ok(Some(number * factor))
}

fn mib(bytes: f64) -> u64 {
    (bytes / 1_048_576.0).ceil() as u64
}

/// ECS's CPU units of so many processors.
fn cpu(value: &Value) -> Result<u64> {
    let Some(text) = scalar(value) else { return Ok(0) };
    let cpus: f64 = text.parse().with_context(|| format!("cpus: {text:?} is no number"))?;
    ensure!((0.0..=1_000.0).contains(&cpus), "cpus: {text:?} is no number of processors");
    Ok((cpus * 1_024.0).round() as u64)
}

/// `90`, `30s`, `1m30s`, `500ms`: whole seconds, up.
fn seconds(value: &Value) -> Result<Option<u64>> {
    let Some(text) = scalar(value) else { return Ok(None) };
    let (mut total, mut rest) = (0.0, text.as_str());
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let factor = match unit {
            "us" => 0.000_001,
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => bail!("{text:?} is no duration"),
        };
        total += factor * number.parse::<f64>().with_context(|| format!("{text:?} is no duration"))?;
        rest = after;
    }
    Ok(Some(total.ceil() as u64))
}

fn health(check: &Value) -> Result<Value> {
    if check.is_null() || flag(check, "/disable") {
        return Ok(Value::Null);
    }
    let command = match &check["test"] {
        Value::String(text) => json!(["CMD-SHELL", text]),
        list => json!(strings(list)?),
    };
    if command[0] == "NONE" {
        return Ok(Value::Null);
    }
    ensure!(
        matches!(text(&command, "/0"), "CMD" | "CMD-SHELL"),
        "healthcheck: test begins with CMD or CMD-SHELL"
    );
    let bounded = |member: &str, low: u64, high: u64| -> Result<Option<u64>> {
        Ok(seconds(&check[member])
            .with_context(|| format!("healthcheck.{member}"))?
            .map(|s| s.clamp(low, high)))
    };
    let retries = scalar(&check["retries"]).map(|r| r.parse::<u64>()).transpose();
    Ok(
        json!({"command": command, "interval": bounded("interval", 5, 300)?, "timeout": bounded("timeout", 2, 60)?,
        "startPeriod": bounded("start_period", 0, 300)?, "retries": retries.context("healthcheck.retries")?}),
    )
}

fn restart(service: &Value) -> Result<Value> {
    let policy = scalar(&service["restart"]).unwrap_or_default();
    match policy.split(':').next().unwrap_or_default() {
        "" | "no" | "false" => Ok(Value::Null),
        "always" | "unless-stopped" => Ok(json!({"enabled": true, "restartAttemptPeriod": RESTART_PERIOD})),
        "on-failure" => {
            Ok(json!({"enabled": true, "restartAttemptPeriod": RESTART_PERIOD, "ignoredExitCodes": [0]}))
        }
        other => bail!("restart: {other} is not supported"),
    }
}

fn linux(service: &Value) -> Result<Value> {
    let mut out = Map::new();
    let (add, drop) = (strings(&service["cap_add"])?, strings(&service["cap_drop"])?);
    let bare = |list: Vec<String>| -> Vec<String> {
        list.iter().map(|c| c.strip_prefix("CAP_").unwrap_or(c).to_string()).collect()
    };
    if !add.is_empty() || !drop.is_empty() {
        out.insert("capabilities".into(), json!({"add": bare(add), "drop": bare(drop)}));
    }
    if flag(service, "/init") {
        out.insert("initProcessEnabled".into(), json!(true));
    }
    if let Some(size) = bytes(&service["shm_size"])? {
        out.insert("sharedMemorySize".into(), json!(mib(size).max(1)));
    }
    let tmpfs = strings(&service["tmpfs"])?;
    if !tmpfs.is_empty() {
        let one = |entry: &String| -> Result<Value> {
            let (path, options) = entry.split_once(':').unwrap_or((entry, ""));
            let size = options.split(',').find_map(|o| o.strip_prefix("size="));
            let size = bytes(&size.map_or(Value::Null, Value::from))?.map_or(64, mib);
            Ok(json!({"containerPath": path, "size": size}))
        };
        out.insert("tmpfs".into(), tmpfs.iter().map(one).collect::<Result<_>>()?);
    }
    Ok(if out.is_empty() { Value::Null } else { Value::Object(out) })
}

fn ulimits(value: &Value) -> Result<Value> {
    let one = |(name, limit): (&String, &Value)| -> Result<Value> {
        let number = |v: &Value| v.as_i64().with_context(|| format!("ulimits.{name}: a number is expected"));
        let (soft, hard) = match limit {
            Value::Object(_) => (number(&limit["soft"])?, number(&limit["hard"])?),
            both => (number(both)?, number(both)?),
        };
        Ok(json!({"name": name, "softLimit": soft, "hardLimit": hard}))
    };
    value.as_object().into_iter().flatten().map(one).collect::<Result<_>>()
}

fn host(entry: &str) -> Result<Value> {
    let (name, ip) =
        entry.split_once('=').or_else(|| entry.split_once(':')).context("extra_hosts: name=address")?;
    Ok(json!({"hostname": name, "ipAddress": ip}))
}

/// `80`, `8080:80`, `8080:80/udp`; an address of the host before is refused.
fn short_port(text: &str) -> Result<(String, String, String)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, ""));
    ensure!(!ports.contains('-'), "ports: {text}: ranges are not supported");
    let parts: Vec<&str> = ports.split(':').collect();
    match parts[..] {
        [container] => Ok((String::new(), container.into(), protocol.into())),
        [host, container] => Ok((host.into(), container.into(), protocol.into())),
        _ => bail!("ports: {text}: an address of the host is not supported"),
    }
}

/// `/path`, `source:/path`, `source:/path:ro`.
fn short_volume(text: &str) -> Result<(String, String, bool)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [path] => Ok((String::new(), path.into(), false)),
        [source, path] => Ok((source.into(), path.into(), false)),
        [source, path, mode] => Ok((source.into(), path.into(), mode.split(',').any(|m| m == "ro"))),
        _ => bail!("volumes: {text:?} is not understood"),
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;

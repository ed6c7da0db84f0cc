//! One container definition: what ECS refuses of it and what it fills in.

use super::is_name;
use crate::refusal::Refusal;
use crate::refusal::refuse_if;
use machinery::kinds::get::{default, has, int, list, set, text};
use serde_json::{Value, json};

/// Least memory of a container, MiB.
const MEMORY_MIN: i64 = 6;
/// Least start or stop timeout, seconds.
const TIMEOUT_MIN: i64 = 2;
const PORT_MAX: i64 = 65_535;

/// What a container needs to know of its task.
pub struct Context<'a> {
    /// Network mode, "" for the default.
    pub mode: &'a str,
    /// Task level memory, MiB.
    pub task_memory: Option<u64>,
    /// Is there an execution role?
    pub has_role: bool,
    /// Names of the task's volumes.
    pub volumes: Vec<&'a str>,
}

/// Bounds of whole numbers: member, least, most.
const RANGES: [(&str, i64, i64); 15] = [
    ("/cpu", 0, 196_608),
    ("/memory", MEMORY_MIN, i32::MAX as i64),
    ("/memoryReservation", MEMORY_MIN, i32::MAX as i64),
    ("/startTimeout", TIMEOUT_MIN, i32::MAX as i64),
    ("/stopTimeout", TIMEOUT_MIN, i32::MAX as i64),
    ("/healthCheck/interval", 5, 300),
    ("/healthCheck/timeout", 2, 60),
    ("/healthCheck/retries", 1, 10),
    ("/healthCheck/startPeriod", 0, 300),
    ("/restartPolicy/restartAttemptPeriod", 60, 1800),
    ("/linuxParameters/swappiness", 0, 100),
    ("/linuxParameters/maxSwap", 0, i32::MAX as i64),
    ("/linuxParameters/sharedMemorySize", 1, i32::MAX as i64),
    ("/linuxParameters/tmpfs/0/size", 1, i32::MAX as i64),
    ("/portMappings/0/containerPort", 0, PORT_MAX),
];

/// What has no meaning in a network of the task's own: member, words.
const NOT_IN_AWSVPC: [(&str, &str); 6] = [
    ("links", "Links are not supported when networkMode=awsvpc."),
    ("dnsServers", "DNS servers are not supported on container when networkMode=awsvpc."),
    ("dnsSearchDomains", "DNS search domains are not supported on container when networkMode=awsvpc."),
    ("extraHosts", "Extra hosts are not supported when networkMode=awsvpc."),
    ("hostname", "Hostname is not supported on container when networkMode=awsvpc."),
    ("disableNetworking", "Disable networking is not supported on container when networkMode=awsvpc."),
];

/// Fills in what ECS echoes; refuses what it refuses.
pub fn normalise(container: &mut Value, context: &Context<'_>) -> Result<(), Refusal> {
    default(container, "cpu", 0);
    default(container, "essential", true);
    for member in ["environment", "mountPoints", "volumesFrom", "portMappings", "systemControls"] {
        if !container[member].is_array() {
            set(container, member, json!([]));
        }
    }
    let name = text(container, "/name").to_string();
    ranges(container, &name)?;
    memory(container, &name, context)?;
    if context.mode == "awsvpc" {
        let given = NOT_IN_AWSVPC.iter().find(|(member, _)| is_set(&container[*member]));
        given.map_or(Ok(()), |(_, words)| Err(Refusal::client(*words)))?;
    }
    ports(container, &name, context.mode)?;
    health(container)?;
    logging(container)?;
    limits(container, &name)?;
    mounts(container, &name, context)?;
    env_files(container)?;
    if has(container, "/environmentFiles/0") && !context.has_role {
        return Err(Refusal::client(
            "When you are specifying environment files, you must also specify a value for 'executionRoleArn'.",
        ));
    }
    if has(container, "/secrets/0") && !context.has_role {
        return Err(Refusal::client(
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'.",
        ));
    }
    Ok(())
}

/// Is something there that asks for anything? Empty lists, false and "" do not.
pub fn is_set(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

fn invalid(member: &str, container: &str) -> Refusal {
    Refusal::client(format!("Invalid '{member}' setting for container '{container}'."))
}

fn ranges(container: &Value, name: &str) -> Result<(), Refusal> {
    for (at, least, most) in RANGES {
        if int(container, at).is_some_and(|n| n < least || n > most) {
            return Err(invalid(at.rsplit('/').next().unwrap_or(at), name));
        }
    }
    Ok(())
}

fn memory(container: &Value, name: &str, context: &Context<'_>) -> Result<(), Refusal> {
    let (hard, soft) = (int(container, "/memory"), int(container, "/memoryReservation"));
    if context.task_memory.is_none() && hard.is_none() && soft.is_none() {
        return Err(Refusal::client(format!(
            "Invalid setting for container '{name}'. At least one of 'memory' or 'memoryReservation' must be specified."
        )));
    }
    if let (Some(hard), Some(soft)) = (hard, soft)
        && soft > hard
    {
        return Err(Refusal::client(format!(
            "Invalid setting for container '{name}'. 'memory' must be greater than or equal to 'memoryReservation'."
        )));
    }
    Ok(())
}

fn ports(container: &mut Value, name: &str, mode: &str) -> Result<(), Refusal> {
    let shared = matches!(mode, "awsvpc" | "host");
    for mapping in container["portMappings"].as_array_mut().into_iter().flatten() {
        default(mapping, "protocol", "tcp");
        if let Some(range) = mapping["containerPortRange"].as_str() {
            let bounds = range.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let sound = bounds.is_some_and(|(a, b): (i64, i64)| 0 < a && a <= b && b <= PORT_MAX);
            if !sound || has(mapping, "/containerPort") || has(mapping, "/hostPort") {
                return Err(invalid("containerPortRange", name));
            }
            continue;
        }
        let Some(port) = int(mapping, "/containerPort").filter(|p| (1..=PORT_MAX).contains(p)) else {
            return Err(invalid("containerPort", name));
        };
        if int(mapping, "/hostPort").is_some_and(|p| !(0..=PORT_MAX).contains(&p)) {
            return Err(invalid("hostPort", name));
        }
        match int(mapping, "/hostPort").unwrap_or(0) {
            0 => set(mapping, "hostPort", if shared { port } else { 0 }),
            host if shared && host != port => {
                return Err(Refusal::client(format!(
                    "When networkMode={mode}, the host ports and container ports in port mappings must match."
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn health(container: &mut Value) -> Result<(), Refusal> {
    if !has(container, "/healthCheck") {
        return Ok(());
    }
    let check = &mut container["healthCheck"];
    let command = list(check, "/command");
    let sound = match text(check, "/command/0") {
        "NONE" => command.len() == 1,
        "CMD" => command.len() > 1,
        "CMD-SHELL" => command.len() == 2,
        _ => false,
    };
    if !sound {
        return Err(Refusal::client(
            "Health check command must start with CMD, CMD-SHELL or NONE, and CMD-SHELL takes one string.",
        ));
    }
    for (member, seconds) in [("interval", 30), ("timeout", 5), ("retries", 3)] {
        default(check, member, seconds);
    }
    Ok(())
}

fn logging(container: &Value) -> Result<(), Refusal> {
    let config = &container["logConfiguration"];
    if text(config, "/logDriver") != "awslogs" {
        return Ok(());
    }
    let missing = ["awslogs-region", "awslogs-group"]
        .iter()
        .any(|o| config["options"][*o].as_str().unwrap_or("").is_empty());
    if missing {
        return Err(Refusal::client("Log driver awslogs requires options: awslogs-region, awslogs-group"));
    }
    Ok(())
}

fn limits(container: &Value, name: &str) -> Result<(), Refusal> {
    for limit in list(container, "/ulimits") {
        let kind = text(limit, "/name");
        let (soft, hard) = (int(limit, "/softLimit").unwrap_or(0), int(limit, "/hardLimit").unwrap_or(0));
        // -1 is "no limit".
        if hard >= 0 && (soft > hard || soft < 0) {
            return Err(Refusal::client(format!("Soft limit exceeds hard limit for ulimit {kind}")));
        }
    }
    let duplicate = |at: &str, key: &str| {
        let mut seen = std::collections::BTreeSet::new();
        list(container, at)
            .iter()
            .map(|v| text(v, key))
            .find(|n| !seen.insert(n.to_string()))
            .map(str::to_string)
    };
    if let Some(kind) = duplicate("/ulimits", "/name") {
        return Err(Refusal::client(format!("Ulimit {kind} is set more than once for container '{name}'.")));
    }
    match duplicate("/secrets", "/name") {
        Some(secret) => Err(Refusal::client(format!(
            "The secret name must be unique and not shared with any new or existing environment variables set on the \
             container, such as '{secret}'."
        ))),
        None => Ok(()),
    }
}

/// Also for the files that RunTask's overrides name.
pub fn env_files(container: &Value) -> Result<(), Refusal> {
    for file in list(container, "/environmentFiles") {
        let arn = text(file, "/value");
        refuse_if(crate::env_file::location(arn).is_none(), || Refusal::client("Invalid arn syntax."))?;
        if !arn.ends_with(".env") {
            return Err(Refusal::client(format!(
                "The environment file '{arn}' is not valid. Environment files must have the extension .env."
            )));
        }
    }
    Ok(())
}

fn mounts(container: &Value, name: &str, context: &Context<'_>) -> Result<(), Refusal> {
    for mount in list(container, "/mountPoints") {
        let volume = text(mount, "/sourceVolume");
        if !is_name(volume) || !context.volumes.contains(&volume) {
            return Err(Refusal::client(format!("Unknown volume '{volume}'.")));
        }
        refuse_if(text(mount, "/containerPath").is_empty(), || invalid("containerPath", name))?;
    }
    Ok(())
}

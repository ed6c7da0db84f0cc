//! What RunTask may change of a task definition, and how much a task then needs.

use crate::refusal::Refusal;
use crate::taskdef::fargate;
use crate::units::{cpu_units, memory_mib};
use machinery::kinds::get::{has, int, list, set, text};
use serde_json::{Value, json};

/// Longest `overrides` document, as in ECS.
const LENGTH_MAX: usize = 8192;

/// The resource of nodes by which device plug-ins count GPUs.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

/// How many GPUs a container is to have: the run's word, where there is one, instead of the definition's.
pub fn gpus(definition: &Value, overrides: &Value) -> i64 {
    let own = list(overrides, "/resourceRequirements");
    let all = if own.is_empty() { list(definition, "/resourceRequirements") } else { own };
    let of_gpus = all.iter().filter(|r| text(r, "/type") == "GPU");
    of_gpus.filter_map(|r| text(r, "/value").parse::<i64>().ok()).sum()
}

/// What a task takes on an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// CPU units.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    /// Ports of the instance: number and protocol.
    pub ports: Vec<(u16, String)>,
    /// GPUs.
    pub gpus: i64,
}

/// Checks overrides against the definition and writes them as ECS echoes them: every container named, sizes as numbers.
pub fn check(overrides: &Value, definition: &Value, on_fargate: bool) -> Result<Value, Refusal> {
    if overrides.to_string().len() > LENGTH_MAX {
        return Err(Refusal::parameter(format!("Container Overrides length must be at most {LENGTH_MAX}")));
    }
    let mut out = if overrides.is_object() { overrides.clone() } else { json!({}) };
    let names: Vec<&str> =
        list(definition, "/containerDefinitions").iter().map(|c| text(c, "/name")).collect();
    for given in list(overrides, "/containerOverrides") {
        let name = text(given, "/name");
        if !names.contains(&name) {
            return Err(Refusal::parameter(format!(
                "Override for container named {name} is not a container in the TaskDefinition."
            )));
        }
        crate::taskdef::env_files(given)?;
        let negative = ["/cpu", "/memory", "/memoryReservation"]
            .into_iter()
            .find(|at| int(given, at).is_some_and(|n| n < 0 || n > i64::from(i32::MAX)));
        if let Some(at) = negative {
            return Err(Refusal::parameter(format!(
                "Invalid '{}' setting for container '{name}'.",
                at.trim_start_matches('/')
            )));
        }
    }
    for (member, parse) in [("cpu", cpu_units as fn(&str) -> Option<u64>), ("memory", memory_mib)] {
        let Some(given) = overrides[member].as_str() else { continue };
        let number = parse(given)
            .ok_or_else(|| Refusal::parameter(format!("Invalid '{member}' setting for task.")))?;
        set(&mut out, member, number.to_string());
    }
    if on_fargate {
        let (cpu, memory) = (level(&out, definition, "cpu"), level(&out, definition, "memory"));
        fargate::size(cpu, memory).map_err(|r| Refusal { code: "ClientException", ..r })?;
    }
    let mut containers: Vec<Value> = list(&out, "/containerOverrides").to_vec();
    let missing =
        names.iter().filter(|n| !list(&out, "/containerOverrides").iter().any(|o| text(o, "/name") == **n));
    containers.extend(missing.map(|n| json!({"name": n})));
    set(&mut out, "containerOverrides", containers);
    if !has(&out, "/inferenceAcceleratorOverrides") {
        set(&mut out, "inferenceAcceleratorOverrides", json!([]));
    }
    Ok(out)
}

/// The task level cpu (units) or memory (MiB) that holds.
pub fn level(overrides: &Value, definition: &Value, member: &str) -> Option<u64> {
    let number = |v: &Value| v[member].as_str().and_then(|t| t.parse().ok());
    number(overrides).or_else(|| number(definition))
}

/// What a task of that definition takes on an instance.
pub fn demand(overrides: &Value, definition: &Value) -> Demand {
    let containers = list(definition, "/containerDefinitions");
    let of = |c: &Value, member: &str| {
        let own = list(overrides, "/containerOverrides").iter().find(|o| o["name"] == c["name"]);
        own.and_then(|o| o[member].as_i64()).or_else(|| c[member].as_i64())
    };
    let task = |member: &str| level(overrides, definition, member).and_then(|n| i64::try_from(n).ok());
    let soft = |c: &Value| of(c, "memoryReservation").or_else(|| of(c, "memory")).unwrap_or(0);
    let shared = matches!(text(definition, "/networkMode"), "" | "bridge" | "host");
    let mappings = containers.iter().flat_map(|c| list(c, "/portMappings")).filter(|_| shared);
    let port = |m: &Value| {
        let number = int(m, "/hostPort").and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)?;
        Some((number, text(m, "/protocol").to_string()))
    };
    let own = |c: &Value| list(overrides, "/containerOverrides").iter().find(|o| o["name"] == c["name"]);
    let gpus = |c: &Value| gpus(c, own(c).unwrap_or(&Value::Null));
    Demand {
        cpu: task("cpu").unwrap_or_else(|| containers.iter().filter_map(|c| of(c, "cpu")).sum()),
        memory: task("memory").unwrap_or_else(|| containers.iter().map(soft).sum()),
        ports: mappings.filter_map(port).collect(),
        gpus: containers.iter().map(gpus).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"containerDefinitions": [
            {"name": "a", "cpu": 100, "memory": 300, "memoryReservation": 200,
                "portMappings": [{"hostPort": 80, "protocol": "tcp"}, {"hostPort": 0, "protocol": "tcp"}]},
            {"name": "b", "cpu": 0, "memory": 64}]})
    }

    #[test]
    fn a_task_needs_the_sum_of_its_containers_or_what_it_says() {
        let plain = demand(&json!({}), &definition());
        assert_eq!(plain, Demand { cpu: 100, memory: 264, ports: vec![(80, "tcp".into())], gpus: 0 });
        let more = json!({"containerOverrides": [{"name": "b", "cpu": 28, "memoryReservation": 100}]});
        let changed = demand(&more, &definition());
        assert_eq!((changed.cpu, changed.memory), (128, 300));
        let mut whole = definition();
        whole["cpu"] = json!("512");
        whole["memory"] = json!("1024");
        whole["networkMode"] = json!("awsvpc");
        let sized = demand(&json!({"memory": "2048"}), &whole);
        assert_eq!(sized, Demand { cpu: 512, memory: 2048, ports: vec![], gpus: 0 });
    }

    #[test]
    fn overrides_are_checked_and_echoed() {
        let given = json!({"cpu": "1 vCPU", "containerOverrides": [{"name": "b", "command": ["x"]}]});
        let out = check(&given, &definition(), false).unwrap();
        let expected = json!({"cpu": "1024", "inferenceAcceleratorOverrides": [],
            "containerOverrides": [{"name": "b", "command": ["x"]}, {"name": "a"}]});
        assert_eq!(out, expected);
        for (given, words) in [
            (
                json!({"containerOverrides": [{"name": "c"}]}),
                "Override for container named c is not a container in the TaskDefinition.",
            ),
            (
                json!({"containerOverrides": [{"name": "a", "cpu": -1}]}),
                "Invalid 'cpu' setting for container 'a'.",
            ),
            (json!({"memory": "lots"}), "Invalid 'memory' setting for task."),
            (
                json!({"containerOverrides": [{"name": "a", "command": ["x".repeat(9000)]}]}),
                "Container Overrides length must be at most 8192",
            ),
        ] {
            assert_eq!(check(&given, &definition(), false).unwrap_err(), Refusal::parameter(words));
        }
        let words = check(&json!({"cpu": "256", "memory": "4096"}), &definition(), true).unwrap_err().message;
        assert!(words.starts_with("No Fargate configuration exists for given values: 256 CPU"), "{words}");
    }
}

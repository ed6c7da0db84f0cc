//! Who waits for whom: `dependsOn`, `volumesFrom` and `links` name containers of the task, and nobody waits for itself.

use crate::refusal::Refusal;
use machinery::kinds::get::{has, list, text, texts};
use serde_json::Value;
use std::collections::BTreeMap;

/// Refuses what can never be started.
pub fn check(containers: &[Value]) -> Result<(), Refusal> {
    let by_name: BTreeMap<&str, &Value> = containers.iter().map(|c| (text(c, "/name"), c)).collect();
    let mut waits: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in containers {
        let name = text(container, "/name");
        for entry in list(container, "/dependsOn") {
            let on = text(entry, "/containerName");
            let Some(target) = by_name.get(on) else {
                // The odd plus sign is ECS's own.
                return Err(Refusal::client(format!(
                    "Cannot depend on container + '{on}' because it does not exist"
                )));
            };
            condition(text(entry, "/condition"), target)?;
            waits.entry(name).or_default().push(on);
        }
        for on in list(container, "/volumesFrom").iter().map(|v| text(v, "/sourceContainer")) {
            known(&by_name, on)?;
            waits.entry(name).or_default().push(on);
        }
        for on in texts(container, "/links").map(|l| l.split(':').next().unwrap_or_default()) {
            known(&by_name, on)?;
            waits.entry(name).or_default().push(on);
        }
    }
    match by_name.keys().any(|name| reaches_itself(name, &waits)) {
        true => Err(Refusal::client("Container dependencies contain a cycle.")),
        false => Ok(()),
    }
}

fn known(by_name: &BTreeMap<&str, &Value>, on: &str) -> Result<(), Refusal> {
    match by_name.contains_key(on) {
        true => Ok(()),
        false => Err(Refusal::client(format!("Container '{on}' does not exist in the task definition."))),
    }
}

fn condition(condition: &str, target: &Value) -> Result<(), Refusal> {
    match condition {
        "SUCCESS" | "COMPLETE" if target["essential"] != false => Err(Refusal::client(
            "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
        )),
        "HEALTHY" if !has(target, "/healthCheck") => Err(Refusal::client(
            "A dependency container with HEALTHY condition must have health check configured",
        )),
        _ => Ok(()),
    }
}

fn reaches_itself(start: &str, waits: &BTreeMap<&str, Vec<&str>>) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    let mut open: Vec<&str> = waits.get(start).cloned().unwrap_or_default();
    while let Some(next) = open.pop() {
        if next == start {
            return true;
        }
        if seen.insert(next) {
            open.extend(waits.get(next).into_iter().flatten());
        }
    }
    false
}

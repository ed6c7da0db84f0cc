//! Host ports: those asked for, and dynamic ones (`hostPort` 0 in bridge mode).

use super::{LowerError, NetworkMode, items, number, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The first dynamic port, as Linux's own ephemeral range starts.
pub const DYNAMIC_FIRST: u16 = 32_768;
/// The last one.
const DYNAMIC_LAST: u16 = 60_999;

/// (container index, mapping index) → host port.
pub(super) type Assigned = BTreeMap<(usize, usize), u16>;

/// `tcp` or `udp` of a mapping.
pub(super) fn protocol(mapping: &Value) -> String {
    match text(&mapping["protocol"]) {
        "" => "tcp".to_string(),
        other => other.to_lowercase(),
    }
}

/// Host ports that pods of a node hold: (`tcp`, 8080).
pub fn used_ports<'a>(pods: impl Iterator<Item = &'a Value>) -> BTreeSet<(String, u16)> {
    let containers = pods.flat_map(|pod| items(&pod["spec"]["containers"]));
    let ports = containers.flat_map(|c| items(&c["ports"]));
    let held = ports.filter_map(|p| {
        let port = number(&p["hostPort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?;
        Some((protocol(p), port))
    });
    held.collect()
}

/// Chooses host ports for a task; none outside bridge mode.
pub(super) fn assign(
    definition: &Value,
    mode: NetworkMode,
    used: &BTreeSet<(String, u16)>,
) -> Result<Assigned, LowerError> {
    let mut assigned = Assigned::new();
    if mode != NetworkMode::Bridge {
        return Ok(assigned);
    }
    let mut taken = used.clone();
    let mut dynamic = Vec::new();
    for (c, container) in items(&definition["containerDefinitions"]).iter().enumerate() {
        for (m, mapping) in items(&container["portMappings"]).iter().enumerate() {
            if !mapping["containerPortRange"].is_null() {
                return Err(LowerError::Unsupported("container port ranges are".into()));
            }
            match number(&mapping["hostPort"]).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
                Some(port) => {
                    taken.insert((protocol(mapping), port));
                    assigned.insert((c, m), port);
                }
                None => dynamic.push(((c, m), protocol(mapping))),
            }
        }
    }
    for (place, protocol) in dynamic {
        let free = (DYNAMIC_FIRST..=DYNAMIC_LAST).find(|p| !taken.contains(&(protocol.clone(), *p)));
        let port = free.ok_or(LowerError::Ports)?;
        taken.insert((protocol, port));
        assigned.insert(place, port);
    }
    Ok(assigned)
}

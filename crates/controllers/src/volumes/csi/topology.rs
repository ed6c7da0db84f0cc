//! Where volumes may be: from nodes' labels, classes and drivers' answers to CSI's topologies and node terms. Pure.

use client::Object;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// More segments than these are not told a driver: it would have to choose anyway.
const SEGMENTS_MAX: usize = 200;

/// A driver's keys on each node that it is registered at, with the node's labels.
pub fn of_nodes(driver: &str, csi_nodes: &[Arc<Object>], nodes: &[Arc<Object>]) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for csi_node in csi_nodes {
        let Ok(value) = csi_node.value() else { continue };
        let drivers = value["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        let Some(own) = drivers.iter().find(|d| d["name"] == driver) else { continue };
        let Some(node) = nodes.iter().find(|n| n.key.name == csi_node.key.name) else { continue };
        let labels = &node.meta().labels;
        let keys = own["topologyKeys"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let segment: Option<Map<String, Value>> =
            keys.map(|k| Some((k.to_string(), json!(labels.get(k)?)))).collect();
        // A node without one of the labels is nowhere yet.
        if let Some(segment) = segment.filter(|s| !s.is_empty()) {
            all.insert(csi_node.key.name.to_string(), Value::Object(segment));
        }
    }
    all
}

/// Does a segment lie in one of a class's `allowedTopologies`?
fn allowed(segment: &Value, allowed: &Value) -> bool {
    let Some(terms) = allowed.as_array().filter(|t| !t.is_empty()) else { return true };
    terms.iter().any(|term| {
        let mut all = term["matchLabelExpressions"].as_array().into_iter().flatten();
        all.all(|e| {
            let key = e["key"].as_str().unwrap_or_default();
            e["values"].as_array().is_some_and(|v| v.contains(&segment[key]))
        })
    })
}

/// `TopologyRequirement`: all segments that will do, the chosen node's first among those preferred. Null where the
/// driver has none; an error where none will do.
pub fn requirement(
    segments: &BTreeMap<String, Value>,
    class: &Value,
    chosen: Option<&str>,
) -> Result<Value, String> {
    if segments.is_empty() {
        return Ok(Value::Null);
    }
    let mut fit: Vec<&Value> = Vec::new();
    for segment in segments.values().filter(|s| allowed(s, &class["allowedTopologies"])) {
        if !fit.contains(&segment) && fit.len() < SEGMENTS_MAX {
            fit.push(segment);
        }
    }
    let own = chosen.map(|node| segments.get(node).ok_or_else(|| format!("node {node} has no topology")));
    let own = own.transpose()?;
    if fit.is_empty() || own.is_some_and(|own| !fit.contains(&own)) {
        return Err("no topology key found that satisfies allowedTopologies".into());
    }
    let of = |list: &[&Value]| list.iter().map(|s| json!({"segments": s})).collect::<Vec<_>>();
    let mut preferred = fit.clone();
    if let Some(own) = own {
        preferred.retain(|s| *s != own);
        preferred.insert(0, own);
    }
    Ok(json!({"requisite": of(&fit), "preferred": of(&preferred)}))
}

/// A PersistentVolume's `nodeAffinity` from a driver's answer; null for everywhere.
pub fn affinity(accessible: &Value) -> Value {
    let term = |topology: &Value| {
        let segments = topology["segments"].as_object()?;
        let one = |(key, value): (&String, &Value)| json!({"key": key, "operator": "In", "values": [value]});
        Some(json!({"matchExpressions": segments.iter().map(one).collect::<Vec<_>>()}))
    };
    let terms: Vec<Value> = accessible.as_array().into_iter().flatten().filter_map(term).collect();
    if terms.is_empty() { Value::Null } else { json!({"required": {"nodeSelectorTerms": terms}}) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let segments: BTreeMap<String, Value> = [("a", "z1"), ("b", "z2"), ("c", "z2")]
            .map(|(node, zone)| (node.to_string(), json!({"zone": zone})))
            .into();
        let all = requirement(&segments, &json!({}), Some("b")).unwrap();
        assert_eq!(all["requisite"].as_array().unwrap().len(), 2);
        assert_eq!(all["preferred"][0], json!({"segments": {"zone": "z2"}}));
        let class =
            json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["z1"]}]}]});
        let one = requirement(&segments, &class, None).unwrap();
        assert_eq!(one["requisite"], json!([{"segments": {"zone": "z1"}}]));
        assert!(requirement(&segments, &class, Some("b")).is_err());
        assert!(requirement(&segments, &json!({}), Some("x")).is_err());
        assert_eq!(requirement(&BTreeMap::new(), &class, None).unwrap(), Value::Null);
    }

    #[test]
    fn affinities() {
        let told = json!([{"segments": {"zone": "z"}}]);
        let terms = json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}]);
        assert_eq!(affinity(&told), json!({"required": {"nodeSelectorTerms": terms}}));
        assert_eq!(affinity(&Value::Null), Value::Null);
    }
}

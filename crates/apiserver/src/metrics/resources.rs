//! `/metrics/resources`: what pods ask for and may use at most, as upstream's scheduler tells it.
//!
//! Made anew at each request, of pods as the cache has them; nothing is kept. Pods that have ended are left out.

use crate::cache::Objects;
use client::metrics::labels;
use machinery::kinds::get;
use machinery::quantity::Quantity;
use machinery::usage;
use std::fmt::Write;

/// How upstream names the unit of a resource.
fn unit(resource: &str) -> &'static str {
    match resource {
        "cpu" => "cores",
        "memory" | "storage" | "ephemeral-storage" => "bytes",
        other if other.starts_with("hugepages-") => "bytes",
        _ => "integer",
    }
}

fn amount(resource: &str, quantity: &Quantity) -> f64 {
    if resource == "cpu" { quantity.milli() as f64 / 1_000.0 } else { quantity.units() as f64 }
}

/// The Prometheus text.
pub fn text(pods: &Objects) -> String {
    let mut sides = [
        ("kube_pod_resource_limit", usage::limits as fn(&_) -> _, String::new()),
        ("kube_pod_resource_request", usage::requests, String::new()),
    ];
    for object in pods.values() {
        let Ok(value) = object.value() else { continue };
        if matches!(get::text(&value, "/status/phase"), "Succeeded" | "Failed") {
            continue;
        }
        let priority = get::int(&value, "/spec/priority").map(|p| p.to_string()).unwrap_or_default();
        let (node, scheduler) =
            (get::text(&value, "/spec/nodeName"), get::text(&value, "/spec/schedulerName"));
        for (name, amounts, out) in &mut sides {
            for (resource, quantity) in amounts(&value) {
                let labels = labels(&[
                    ("namespace", &object.key.namespace),
                    ("node", node),
                    ("pod", &object.key.name),
                    ("priority", &priority),
                    ("resource", &resource),
                    ("scheduler", scheduler),
                    ("unit", unit(&resource)),
                ]);
                // Writing to a String does not fail.
                let _ = writeln!(out, "{name}{{{labels}}} {}", amount(&resource, &quantity));
            }
        }
    }
    sides.iter().map(|(name, _, lines)| format!("# TYPE {name} gauge\n{lines}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::{Object, ObjectKey};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn pods_that_run_are_told() {
        let pod = |name: &str, phase: &str| {
            let body = json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"nodeName": "n", "priority": 0, "schedulerName": "s", "containers": [{"name": "c",
                    "resources": {"requests": {"cpu": "250m", "memory": "1Ki"}}}]},
                "status": {"phase": phase}});
            Arc::new(Object::new(ObjectKey::new("d", name), 1, body.to_string().into()))
        };
        let mut pods = Objects::new();
        pods.insert("d/a".into(), pod("a", "Running"));
        pods.insert("d/b".into(), pod("b", "Failed"));
        let text = text(&pods);
        let line = |resource: &str, unit: &str, amount: &str| {
            format!(
                "kube_pod_resource_request{{namespace=\"d\",node=\"n\",pod=\"a\",priority=\"0\",resource=\"{resource}\",scheduler=\"s\",unit=\"{unit}\"}} {amount}\n"
            )
        };
        assert!(
            text.contains(&line("cpu", "cores", "0.25")) && text.contains(&line("memory", "bytes", "1024")),
            "{text}"
        );
        assert!(!text.contains("pod=\"b\"") && !text.contains("limit{"));
    }
}

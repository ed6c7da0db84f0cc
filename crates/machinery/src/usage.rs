//! What pods ask for: requests and limits by resource, as quota, limits and scheduling count them.

use crate::kinds::get::{entries, list};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads `cpu: 100m` and the like; what is no quantity is left out.
pub fn amounts(value: &Value, pointer: &str) -> Amounts {
    let parsed =
        entries(value, pointer).filter_map(|(k, v)| Some((k.to_string(), Quantity::from_json(v)?.ok()?)));
    parsed.collect()
}

/// Adds amount by amount.
pub fn add(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let sum = into.get(name).map_or(*amount, |own| own.add(*amount));
        into.insert(name.clone(), sum);
    }
}

/// Takes the larger one, amount by amount.
fn raise(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if into.get(name).is_none_or(|own| own < amount) {
            into.insert(name.clone(), *amount);
        }
    }
}

/// The requests of a pod: what its containers ask for together, or its init containers at their worst, and overhead.
pub fn requests(pod: &Value) -> Amounts {
    let mut sum = total(pod, "requests");
    add(&mut sum, &amounts(pod, "/spec/overhead"));
    sum
}

/// The limits of a pod, likewise; overhead counts where there is a limit.
pub fn limits(pod: &Value) -> Amounts {
    let mut sum = total(pod, "limits");
    let mut overhead = amounts(pod, "/spec/overhead");
    overhead.retain(|name, _| sum.contains_key(name));
    add(&mut sum, &overhead);
    sum
}

fn total(pod: &Value, side: &str) -> Amounts {
    let of = |container: &Value| amounts(container, &format!("/resources/{side}"));
    let mut sum = Amounts::new();
    list(pod, "/spec/containers").iter().for_each(|c| add(&mut sum, &of(c)));
    // A sidecar runs on beside everything after it.
    let (mut sidecars, mut worst) = (Amounts::new(), Amounts::new());
    for container in list(pod, "/spec/initContainers") {
        let mut now = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &now);
            add(&mut sidecars, &now);
            now.clone_from(&sidecars);
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut worst, &now);
    }
    raise(&mut sum, &worst);
    // What the pod says for itself as a whole stands for its containers.
    let whole = amounts(pod, &format!("/spec/resources/{side}"));
    sum.extend(whole);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_worst_moment_counts() {
        let with = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}}});
        let mut sidecar = with("300m");
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({"spec": {"containers": [with("100m"), with("200m")],
            "initContainers": [with("500m"), sidecar, with("400m")], "overhead": {"cpu": "50m", "x": "1"}}});
        assert_eq!(requests(&pod)["cpu"].to_string(), "750m");
        assert_eq!(limits(&pod)["memory"].to_string(), "3Gi");
        assert!(!limits(&pod).contains_key("x") && requests(&pod).contains_key("x"));
    }
}

//! Resources of a pod as a whole (`spec.resources`): their defaults, and how they bound its containers'.

use crate::field_errors::FieldErrors;
use crate::kinds::get::{child, default, entries, has, list, remove};
use crate::quantity::Quantity;
use crate::usage::{self, Amounts};
use serde_json::{Value, json};

fn supported(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the containers ask for together.
fn of_containers(spec: &Value) -> Amounts {
    let mut bare = spec.clone();
    ["resources", "overhead"].iter().for_each(|key| drop(remove(&mut bare, key)));
    usage::requests(&json!({"spec": bare}))
}

/// Where there are limits, requests that are not given are the containers' together, or else the limits.
pub fn default_requests(spec: &mut Value) {
    if entries(spec, "/resources/limits").next().is_none() {
        return;
    }
    let given = of_containers(spec);
    let Some(resources) = spec.get_mut("resources") else { return };
    let limits: Vec<(String, Value)> =
        entries(resources, "/limits").map(|(k, v)| (k.into(), v.clone())).collect();
    let Some(requests) = child(resources, "requests") else { return };
    for (name, amount) in given.iter().filter(|(name, _)| supported(name)) {
        default(requests, name, amount.to_string());
    }
    for (name, limit) in limits {
        default(requests, &name, limit);
    }
}

/// Containers fit into what their pod has.
pub fn validate(spec: &Value, path: &str, errors: &mut FieldErrors) {
    if !has(spec, "/resources") {
        return;
    }
    let path = format!("{path}.resources");
    let of = |side: &str| usage::amounts(spec, &format!("/resources/{side}"));
    let (requests, limits) = (of("requests"), of("limits"));
    for (side, amounts) in [("requests", &requests), ("limits", &limits)] {
        for name in amounts.keys().filter(|name| !supported(name)) {
            errors.not_supported(
                &format!("{path}.{side}[{name}]"),
                name.as_str(),
                &["cpu", "hugepages-", "memory"],
            );
        }
    }
    let shown = |amount: Option<&Quantity>| amount.map_or_else(|| "0".to_string(), Quantity::to_string);
    for (name, together) in of_containers(spec).iter().filter(|(name, _)| supported(name)) {
        let own = requests.get(name);
        if own.is_none_or(|own| own < together) && together.sign() > 0 {
            let words =
                format!("must be greater than or equal to aggregate container requests of {together}");
            errors.invalid(&format!("{path}.requests[{name}]"), shown(own), &words);
        }
    }
    for container in list(spec, "/containers") {
        for (name, limit) in usage::amounts(container, "/resources/limits") {
            let own = limits.get(&name);
            if own.is_some_and(|own| *own < limit) {
                let words = format!("must be greater than or equal to container limits of {limit}");
                errors.invalid(&format!("{path}.limits[{name}]"), shown(own), &words);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(whole: Value, containers: Value) -> Value {
        let containers: Vec<Value> =
            containers.as_array().unwrap().iter().map(|r| json!({"resources": r})).collect();
        json!({"spec": {"resources": whole, "containers": containers}})
    }

    #[test]
    fn requests_come_from_containers_then_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let mut p = pod(
            json!({"limits": both}),
            json!([{"requests": {"cpu": "100m"}}, {"requests": {"cpu": "200m"}}]),
        );
        default_requests(&mut p["spec"]);
        assert_eq!(p["spec"]["resources"]["requests"], json!({"cpu": "300m", "memory": "1Gi"}));
        assert_eq!(super::super::qos(&p), "Burstable");
        let mut p = pod(json!({"limits": both}), json!([{}, {}]));
        default_requests(&mut p["spec"]);
        assert_eq!(super::super::qos(&p), "Guaranteed");
        let mut p = pod(json!({"requests": {"cpu": "1"}}), json!([{}]));
        default_requests(&mut p["spec"]);
        assert_eq!(p["spec"]["resources"], json!({"requests": {"cpu": "1"}}));
    }

    #[test]
    fn containers_fit() {
        let causes = |whole: Value, containers: Value| {
            let mut errors = FieldErrors::new();
            validate(&pod(whole, containers)["spec"], "spec", &mut errors);
            errors.causes().iter().map(|c| format!("{c:?}")).collect::<Vec<_>>()
        };
        assert!(
            causes(json!({"requests": {"cpu": "1"}}), json!([{"requests": {"cpu": "1"}}, {}])).is_empty()
        );
        let sum = causes(
            json!({"requests": {"cpu": "1"}}),
            json!([{"requests": {"cpu": "1"}}, {"requests": {"cpu": "1m"}}]),
        );
        assert!(sum.len() == 1 && sum[0].contains("aggregate container requests of 1001m"), "{sum:?}");
        let limit = causes(json!({"limits": {"memory": "1Gi"}}), json!([{"limits": {"memory": "2Gi"}}]));
        assert!(limit.len() == 1 && limit[0].contains("container limits of 2Gi"), "{limit:?}");
        let odd = causes(json!({"limits": {"example.com/x": "1"}}), json!([{}]));
        assert!(odd.len() == 1 && odd[0].contains("example.com/x"), "{odd:?}");
    }
}

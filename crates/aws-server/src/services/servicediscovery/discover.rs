//! Discovery by names: what clients ask again and again.
//!
//! A revision is a number made of what would be answered: it is another one whenever that is different. (AWS's also
//! grows; clients compare for equality.)

use super::State;
use super::find::{instances, no_namespace, no_service};
use super::instance::health_of;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::text;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const DEFAULT_MAX: usize = 100;

/// The service of the names in a call, and its instances.
async fn named(state: &State, call: &Call) -> Result<(Value, Vec<Value>), AwsError> {
    let (namespace, service) = (call.text("NamespaceName"), call.text("ServiceName"));
    let spaces = state.namespaces.list(call).await?;
    let space =
        spaces.iter().find(|n| text(n, "Name") == namespace).ok_or_else(|| no_namespace(namespace))?;
    let all = state.services.list(call).await?;
    let own = |s: &Value| s["NamespaceId"] == space["Id"] && text(s, "Name").eq_ignore_ascii_case(service);
    let found = all.into_iter().find(own).ok_or_else(|| no_service(service))?;
    let instances = instances(state, call, text(&found, "Id")).await?;
    Ok((found, instances))
}

fn revision_of(instances: &[Value]) -> i64 {
    let sum = Sha256::digest(Value::from(instances).to_string().as_bytes());
    let number = sum.iter().take(8).fold(0u64, |n, b| (n << 8) | u64::from(*b));
    // JSON numbers beyond 2^53 are not safe in every client.
    (number >> 12) as i64
}

/// Do all of the wanted attributes stand there?
fn has(instance: &Value, wanted: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(key, value)| instance["Attributes"][key] == *value)
}

/// Those that a call wants: by attributes, then by health.
fn chosen<'a>(input: &Value, service: &Value, all: &'a [Value]) -> Vec<&'a Value> {
    let mut found: Vec<&Value> = all.iter().filter(|i| has(i, &input["QueryParameters"])).collect();
    let preferred: Vec<&Value> =
        found.iter().filter(|i| has(i, &input["OptionalParameters"])).copied().collect();
    if !preferred.is_empty() {
        found = preferred;
    }
    let of = |bad: bool| {
        found.iter().filter(|i| (health_of(service, i) == "UNHEALTHY") == bad).copied().collect::<Vec<_>>()
    };
    match input["HealthStatus"].as_str().unwrap_or("HEALTHY_OR_ELSE_ALL") {
        "HEALTHY" => of(false),
        "UNHEALTHY" => of(true),
        "HEALTHY_OR_ELSE_ALL" if !of(false).is_empty() => of(false),
        _ => found,
    }
}

/// DiscoverInstances.
pub(super) async fn discover(state: &State, call: &Call) -> Outcome {
    let (service, all) = named(state, call).await?;
    let max = call.count("MaxResults", DEFAULT_MAX);
    let row = |i: &Value| {
        json!({"InstanceId": i["Id"], "NamespaceName": call.input["NamespaceName"],
            "ServiceName": service["Name"], "HealthStatus": health_of(&service, i),
            "Attributes": i["Attributes"]})
    };
    let rows: Vec<Value> = chosen(&call.input, &service, &all).into_iter().take(max).map(row).collect();
    Ok(json!({"Instances": rows, "InstancesRevision": revision_of(&all)}))
}

/// DiscoverInstancesRevision.
pub(super) async fn revision(state: &State, call: &Call) -> Outcome {
    let (_, all) = named(state, call).await?;
    Ok(json!({"InstancesRevision": revision_of(&all)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_attributes_and_health() {
        let service = json!({"HealthCheckCustomConfig": {}});
        let instance = |id: &str, stage: &str, health: &str| json!({"Id": id, "health": health, "Attributes": {"stage": stage}});
        let all =
            [instance("a", "x", "HEALTHY"), instance("b", "x", "UNHEALTHY"), instance("c", "y", "HEALTHY")];
        let ids = |input: Value| {
            let found = chosen(&input, &service, &all);
            found.iter().map(|i| text(i, "Id")).collect::<String>()
        };
        assert_eq!(ids(json!({})), "ac");
        assert_eq!(ids(json!({"HealthStatus": "ALL"})), "abc");
        assert_eq!(ids(json!({"HealthStatus": "UNHEALTHY"})), "b");
        assert_eq!(ids(json!({"QueryParameters": {"stage": "y"}})), "c");
        assert_eq!(ids(json!({"OptionalParameters": {"stage": "z"}})), "ac");
        assert_eq!(ids(json!({"OptionalParameters": {"stage": "x"}})), "a");
        assert_ne!(revision_of(&all), revision_of(&all[1..]));
    }
}

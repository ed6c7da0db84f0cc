//! Instances of a service: registered, listed, healthy or not.

use super::State;
use super::find::{PAGES, instances, invalid, no_instance, service};
use super::operation::done;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::discovery::{instance, instance_name};
use ecs_model::names::Place;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Instances of one service; Cloud Map's quota.
const INSTANCES_MAX: usize = 1_000;

/// Are the attributes what the service's records need?
fn check(service: &Value, attributes: &BTreeMap<String, String>) -> Result<(), AwsError> {
    let has = |key: &str| attributes.get(key).is_some_and(|v| !v.is_empty());
    for record in items(&service["DnsConfig"]["DnsRecords"]) {
        let kind = text(record, "Type");
        let needed: &[&str] = match kind {
            "A" => &["AWS_INSTANCE_IPV4"],
            "SRV" => &["AWS_INSTANCE_IPV4", "AWS_INSTANCE_PORT"],
            _ => &["AWS_INSTANCE_CNAME"],
        };
        if let Some(key) = needed.iter().find(|key| !has(key)) {
            return Err(invalid(format!("{key} is required for services with {kind} records")));
        }
    }
    if let Some(ip) = attributes.get("AWS_INSTANCE_IPV4")
        && ip.parse::<Ipv4Addr>().is_err()
    {
        return Err(invalid(format!("AWS_INSTANCE_IPV4 is not a valid address: {ip}")));
    }
    if let Some(port) = attributes.get("AWS_INSTANCE_PORT")
        && !port.parse::<u16>().is_ok_and(|p| p > 0)
    {
        return Err(invalid(format!("AWS_INSTANCE_PORT is not a valid port: {port}")));
    }
    match attributes.get("AWS_INIT_HEALTH_STATUS").map(String::as_str) {
        Some(_) if service["HealthCheckCustomConfig"].is_null() => {
            Err(invalid("AWS_INIT_HEALTH_STATUS needs a service with HealthCheckCustomConfig"))
        }
        Some("HEALTHY" | "UNHEALTHY") | None => Ok(()),
        Some(other) => Err(invalid(format!("AWS_INIT_HEALTH_STATUS is not valid: {other}"))),
    }
}

/// RegisterInstance: one of the same id is replaced.
pub(super) async fn register(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    let (own, id) = (text(&spec, "Id"), call.text("InstanceId"));
    let given = call.input["Attributes"].as_object().into_iter().flatten();
    let attributes: BTreeMap<String, String> =
        given.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
    check(&spec, &attributes)?;
    let place = Place::new(&*call.caller.account, &*call.region);
    let home = Place::new(&*state.shared.account, &*state.shared.region);
    let mut body = instance((&place, &home), own, id, &attributes);
    body["spec"]["CreatorRequestId"] = call.input["CreatorRequestId"].clone();
    let new = super::find::bare(body["spec"].take());
    let name = instance_name(own, id);
    if !state.instances.create(call, &name, new.clone()).await? {
        state
            .instances
            .change(call, &name, |old| {
                *old = new.clone();
                Ok(())
            })
            .await?;
    } else if instances(state, call, own).await?.len() > INSTANCES_MAX {
        state.instances.remove(call, &name).await?;
        return Err(AwsError::client(
            "ResourceLimitExceeded",
            "The limit of instances per service is reached",
        ));
    }
    done(state, call, "REGISTER_INSTANCE", ("INSTANCE", id))
}

async fn found(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    let id = call.text("InstanceId");
    let found = state.instances.get(call, &instance_name(text(&spec, "Id"), id)).await?;
    found.ok_or_else(|| no_instance(id))
}

/// DeregisterInstance.
pub(super) async fn deregister(state: &State, call: &Call) -> Outcome {
    let instance = found(state, call).await?;
    let id = text(&instance, "Id");
    state.instances.remove(call, &instance_name(text(&instance, "ServiceId"), id)).await?;
    done(state, call, "DEREGISTER_INSTANCE", ("INSTANCE", id))
}

/// GetInstance.
pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let instance = found(state, call).await?;
    Ok(json!({"Instance": instance, "ResourceOwner": call.caller.account}))
}

/// ListInstances.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    let mut out = PAGES.answer(call, "Instances", instances(state, call, text(&spec, "Id")).await?, "Id")?;
    out["ResourceOwner"] = json!(call.caller.account);
    Ok(out)
}

/// An instance's health: unknown where nothing is said about it.
pub(super) fn health_of<'a>(service: &Value, instance: &'a Value) -> &'a str {
    if service["HealthCheckCustomConfig"].is_null() { "UNKNOWN" } else { text(instance, "health") }
}

/// GetInstancesHealthStatus.
pub(super) async fn health(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    let mut all = instances(state, call, text(&spec, "Id")).await?;
    let wanted = call.items("Instances");
    if let Some(id) = wanted.iter().find(|w| !all.iter().any(|i| i["Id"] == **w)) {
        return Err(no_instance(id.as_str().unwrap_or_default()));
    }
    all.retain(|i| wanted.is_empty() || wanted.contains(&i["Id"]));
    let mut out = PAGES.answer(call, "page", all, "Id")?;
    let rows = items(&out["page"]).iter();
    let status: Map<String, Value> =
        rows.map(|i| (text(i, "Id").to_string(), json!(health_of(&spec, i)))).collect();
    out["Status"] = Value::Object(status);
    Ok(out)
}

/// UpdateInstanceCustomHealthStatus.
pub(super) async fn set_health(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    if spec["HealthCheckCustomConfig"].is_null() {
        let words = format!("Service has no custom health check: {}", text(&spec, "Id"));
        return Err(AwsError::client("CustomHealthNotFound", words));
    }
    let id = call.text("InstanceId");
    let name = instance_name(text(&spec, "Id"), id);
    let changed = state.instances.change(call, &name, |instance| {
        instance["health"] = call.input["Status"].clone();
        Ok(json!({}))
    });
    changed.await?.ok_or_else(|| no_instance(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_fit_the_records() {
        let service = json!({"DnsConfig": {"DnsRecords": [{"Type": "SRV"}]}});
        let of = |pairs: &[(&str, &str)]| {
            let attributes = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            check(&service, &attributes).is_ok()
        };
        assert!(of(&[("AWS_INSTANCE_IPV4", "10.0.0.1"), ("AWS_INSTANCE_PORT", "80")]));
        assert!(!of(&[("AWS_INSTANCE_IPV4", "10.0.0.1")]));
        assert!(!of(&[("AWS_INSTANCE_IPV4", "x"), ("AWS_INSTANCE_PORT", "80")]));
        assert!(!of(&[("AWS_INSTANCE_IPV4", "10.0.0.1"), ("AWS_INSTANCE_PORT", "0")]));
        let healthy = ("AWS_INIT_HEALTH_STATUS", "HEALTHY");
        assert!(!of(&[("AWS_INSTANCE_IPV4", "10.0.0.1"), ("AWS_INSTANCE_PORT", "80"), healthy]));
    }
}

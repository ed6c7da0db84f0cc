//! A service as two documents (`spec`: what was asked, `status`: what the scheduler saw) and as the one that users see.
//!
//! `spec` holds AWS's members, and one of our own, [`DEPLOYMENT`]: `{id, createdAt}` of the deployment that is wanted.
//! It is replaced whenever a change needs new tasks ([`renews`]); the service scheduler does the rest and writes
//! `status`: counts, `deployments`, `events`. Deliberately not here: rolling (`ecs`), the records of service deployments
//! and revisions (`service_record`).

use crate::doc::copy;
use crate::refusal::Refusal;
use crate::refusal::refuse_if;
use machinery::kinds::get::{has, int, list, set, text};
use machinery::patch::merge;
use serde_json::{Map, Value, json};

/// The member of `spec` that names the wanted deployment.
pub const DEPLOYMENT: &str = "deployment";
/// The member of `spec` that holds a user's StopServiceDeployment until it is heard: `{id, type}`.
pub const STOP_REQUEST: &str = "stopRequest";
/// The member of `status` with the deployment that was completed last: `{id, createdAt}`.
pub const LAST_COMPLETED: &str = "lastCompleted";
/// The member of `status` with the current service deployment.
pub const SERVICE_DEPLOYMENT: &str = "serviceDeployment";
/// What a deployment shows of the service's spec.
pub const REVISED: &str = "capacityProviderStrategy launchType networkConfiguration platformFamily platformVersion \
    serviceConnectConfiguration";
/// Most load balancers and registries of a service.
const LOAD_BALANCERS_MAX: usize = 5;
const REGISTRIES_MAX: usize = 1;
const DESIRED_MAX: i64 = 5000;
/// What a request may decide. Everything else of the spec is derived.
pub const MEMBERS: &str = "availabilityZoneRebalancing capacityProviderStrategy deploymentConfiguration deploymentController \
    desiredCount enableECSManagedTags enableExecuteCommand healthCheckGracePeriodSeconds launchType \
    loadBalancers networkConfiguration placementConstraints placementStrategy platformVersion \
    propagateTags schedulingStrategy serviceConnectConfiguration serviceRegistries tags";
/// A change of one of these needs new tasks.
pub const RENEWING: &str = "capacityProviderStrategy enableECSManagedTags enableExecuteCommand launchType loadBalancers \
    networkConfiguration platformVersion propagateTags serviceConnectConfiguration serviceRegistries \
    taskDefinition volumeConfigurations";

/// Fills in what ECS echoes and refuses what it refuses; `spec` has the request's members.
pub fn check(spec: &mut Value) -> Result<(), Refusal> {
    let daemon = text(spec, "/schedulingStrategy") == "DAEMON";
    defaults(spec, daemon);
    let desired = int(spec, "/desiredCount").unwrap_or(0);
    if !(0..=DESIRED_MAX).contains(&desired) {
        return Err(Refusal::parameter(format!("desiredCount must be between 0 and {DESIRED_MAX}.")));
    }
    percentages(&spec["deploymentConfiguration"], daemon)?;
    let configuration = &spec["deploymentConfiguration"];
    let (controller, strategy) = (text(spec, "/deploymentController/type"), text(configuration, "/strategy"));
    refuse_if(controller != "ECS", || {
        Refusal::unsupported(format!("The deployment controller {controller} is not implemented by Gantry."))
    })?;
    refuse_if(strategy != "ROLLING", || {
        Refusal::unsupported(format!("The deployment strategy {strategy} is not implemented by Gantry."))
    })?;
    if !list(configuration, "/lifecycleHooks").is_empty() {
        return Err(Refusal::unsupported("Lifecycle hooks are not implemented by Gantry."));
    }
    refuse_if(list(spec, "/loadBalancers").len() > LOAD_BALANCERS_MAX, || {
        Refusal::parameter(format!("loadBalancers can have at most {LOAD_BALANCERS_MAX} items."))
    })?;
    refuse_if(list(spec, "/serviceRegistries").len() > REGISTRIES_MAX, || {
        Refusal::parameter(format!("serviceRegistries can have at most {REGISTRIES_MAX} items."))
    })?;
    let grace = int(spec, "/healthCheckGracePeriodSeconds").unwrap_or(0);
    if grace < 0 || grace > i64::from(i32::MAX) {
        return Err(Refusal::parameter("healthCheckGracePeriodSeconds must be at least 0."));
    }
    refuse_if(daemon && !list(spec, "/placementStrategy").is_empty(), || {
        Refusal::parameter("Placement strategies are not supported with DAEMON scheduling strategy.")
    })?;
    if daemon && text(spec, "/launchType") == "FARGATE" {
        return Err(Refusal::parameter("The daemon scheduling strategy is not supported with Fargate."));
    }
    Ok(())
}

fn defaults(spec: &mut Value, daemon: bool) {
    let mut all = json!({
        "schedulingStrategy": "REPLICA", "deploymentController": {"type": "ECS"},
        "deploymentConfiguration": {
            "maximumPercent": if daemon { 100 } else { 200 }, "minimumHealthyPercent": if daemon { 0 } else { 100 },
            "deploymentCircuitBreaker": {"enable": false, "rollback": false}, "strategy": "ROLLING",
            "bakeTimeInMinutes": 0,
        },
        "placementConstraints": [], "placementStrategy": [], "loadBalancers": [], "serviceRegistries": [],
        "enableECSManagedTags": false, "enableExecuteCommand": false, "propagateTags": "NONE", "tags": [],
        "availabilityZoneRebalancing": if daemon { "DISABLED" } else { "ENABLED" },
    });
    merge(&mut all, spec);
    *spec = all;
}

fn percentages(configuration: &Value, daemon: bool) -> Result<(), Refusal> {
    let most = int(configuration, "/maximumPercent").unwrap_or(200);
    let least = int(configuration, "/minimumHealthyPercent").unwrap_or(100);
    if !(0..=200).contains(&most) || (!daemon && most < 100) {
        return Err(Refusal::parameter("maximumPercent must be between 100 and 200."));
    }
    if !(0..=100).contains(&least) {
        return Err(Refusal::parameter("minimumHealthyPercent must be at most 100"));
    }
    if !daemon && most == 100 && least == 100 {
        return Err(Refusal::parameter(
            "Both maximumPercent and minimumHealthyPercent cannot be 100 as this will block deployments",
        ));
    }
    Ok(())
}

/// Does the change from one spec to another need new tasks?
pub fn renews(old: &Value, new: &Value) -> bool {
    RENEWING.split_whitespace().any(|member| old[member] != new[member])
}

/// What DescribeServices answers; a service that nobody has looked at yet has one deployment in progress.
pub fn describe(spec: &Value, status: &Value) -> Value {
    let members = |v: &Value| v.as_object().cloned().unwrap_or_default();
    let mut out: Map<String, Value> = members(spec);
    let wanted = out.remove(DEPLOYMENT).unwrap_or_default();
    out.remove(STOP_REQUEST);
    out.extend(members(status).into_iter().filter(|(_, v)| !v.is_null()));
    out.remove(LAST_COMPLETED);
    if let Some(record) = out.remove(SERVICE_DEPLOYMENT) {
        out.extend(crate::service_record::current(spec, &record, list(status, "/deployments")));
    }
    let mut out = Value::Object(out);
    for member in ["runningCount", "pendingCount"] {
        if !has(&out, &format!("/{member}")) {
            set(&mut out, member, 0);
        }
    }
    for member in ["events", "taskSets"] {
        if !out[member].is_array() {
            set(&mut out, member, json!([]));
        }
    }
    let known = list(&out, "/deployments").iter().any(|d| d["id"] == wanted["id"]);
    if !known && text(spec, "/status") == "ACTIVE" {
        let mut all = vec![first_deployment(spec, &wanted)];
        all.extend(list(&out, "/deployments").iter().map(|d| {
            let mut older = d.clone();
            set(&mut older, "status", "ACTIVE");
            older
        }));
        set(&mut out, "deployments", all);
    } else if !out["deployments"].is_array() {
        set(&mut out, "deployments", json!([]));
    }
    out
}

/// The wanted deployment as long as it has not begun.
fn first_deployment(spec: &Value, wanted: &Value) -> Value {
    let mut out = json!({
        "id": wanted["id"], "status": "PRIMARY", "taskDefinition": spec["taskDefinition"],
        "desiredCount": spec["desiredCount"], "pendingCount": 0, "runningCount": 0, "failedTasks": 0,
        "createdAt": wanted["createdAt"], "updatedAt": wanted["createdAt"], "rolloutState": "IN_PROGRESS",
        "rolloutStateReason": format!("ECS deployment {} in progress.", text(wanted, "/id")),
    });
    copy(&mut out, spec, REVISED);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_ecs_own() {
        let mut spec = json!({"desiredCount": 2, "deploymentConfiguration": {"maximumPercent": 150}});
        check(&mut spec).unwrap();
        let configuration = &spec["deploymentConfiguration"];
        assert_eq!(
            (&configuration["maximumPercent"], &configuration["minimumHealthyPercent"]),
            (&json!(150), &json!(100))
        );
        assert_eq!(spec["availabilityZoneRebalancing"], "ENABLED");
        let mut daemon = json!({"schedulingStrategy": "DAEMON"});
        check(&mut daemon).unwrap();
        assert_eq!(daemon["deploymentConfiguration"]["minimumHealthyPercent"], 0);
    }

    #[test]
    fn refusals() {
        for (spec, words) in [
            (json!({"desiredCount": -1}), "desiredCount must be"),
            (
                json!({"deploymentConfiguration": {"strategy": "CANARY"}}),
                "The deployment strategy CANARY is not",
            ),
            (json!({"deploymentConfiguration": {"lifecycleHooks": [{}]}}), "Lifecycle hooks are not"),
            (
                json!({"deploymentController": {"type": "CODE_DEPLOY"}}),
                "The deployment controller CODE_DEPLOY is not",
            ),
            (
                json!({"deploymentConfiguration": {"minimumHealthyPercent": 101}}),
                "minimumHealthyPercent must be at most 100",
            ),
            (json!({"deploymentConfiguration": {"maximumPercent": 99}}), "maximumPercent must be"),
            (json!({"deploymentConfiguration": {"maximumPercent": 100}}), "Both maximumPercent and"),
            (
                json!({"schedulingStrategy": "DAEMON", "launchType": "FARGATE"}),
                "The daemon scheduling strategy",
            ),
            (json!({"serviceRegistries": [{}, {}]}), "serviceRegistries can have"),
        ] {
            let mut spec = spec;
            let refused = check(&mut spec).unwrap_err();
            assert!(refused.message.starts_with(words), "{refused}");
        }
    }

    #[test]
    fn a_new_deployment_is_first_and_the_old_one_still_there() {
        let old = json!({"status": "ACTIVE", "taskDefinition": "a:1", "desiredCount": 1, DEPLOYMENT: {"id": "ecs-svc/1"}});
        let fresh = describe(&old, &Value::Null);
        assert_eq!(
            (&fresh["deployments"][0]["status"], &fresh["runningCount"]),
            (&json!("PRIMARY"), &json!(0))
        );
        assert!(fresh.get(DEPLOYMENT).is_none());
        let mut new = old.clone();
        new["taskDefinition"] = json!("a:2");
        assert!(renews(&old, &new));
        new[DEPLOYMENT] = json!({"id": "ecs-svc/2"});
        let status = json!({"deployments": [{"id": "ecs-svc/1", "status": "PRIMARY"}], "runningCount": 1});
        let seen = describe(&new, &status);
        let brief: Vec<_> =
            list(&seen, "/deployments").iter().map(|d| (text(d, "/id"), text(d, "/status"))).collect();
        assert_eq!(brief, [("ecs-svc/2", "PRIMARY"), ("ecs-svc/1", "ACTIVE")]);
        assert_eq!(list(&describe(&old, &status), "/deployments").len(), 1);
        let mut scaled = old.clone();
        scaled["desiredCount"] = json!(9);
        assert!(!renews(&old, &scaled));
    }
}

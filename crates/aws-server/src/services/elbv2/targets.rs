//! Targets of a group and how they are.

use super::Elb;
use super::find::{What, invalid, refused};
use super::target_group::uses;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::targets::{is_same, target, with, without};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Targets of one group; AWS's own quota.
const TARGETS_MAX: usize = 1_000;
/// Codes, reasons and words of a target that the controller has said nothing about.
const NOT_REGISTERED: (&str, &str, &str) =
    ("unused", "Target.NotRegistered", "Target is not registered to the target group");
const NOT_IN_USE: (&str, &str, &str) =
    ("unused", "Target.NotInUse", "Target group is not configured to receive traffic from the load balancer");
const REGISTERING: (&str, &str, &str) =
    ("initial", "Elb.RegistrationInProgress", "Target registration is in progress");

/// The call's targets as entries of `spec.targets`; without a port, the group's.
fn given(call: &Call, group: &Value) -> Vec<Value> {
    let one = |t: &Value| {
        let port = t["Port"].as_u64().or(group["Port"].as_u64()).unwrap_or_default();
        target(text(t, "Id"), u16::try_from(port).unwrap_or_default(), text(t, "AvailabilityZone"), "")
    };
    call.items("Targets").iter().map(one).collect()
}

async fn check(elb: &Elb, call: &Call, group: &Value, targets: &[Value]) -> Result<(), AwsError> {
    if text(group, "TargetType") == "ip" {
        let bad = targets.iter().map(|t| text(t, "id")).find(|id| id.parse::<Ipv4Addr>().is_err());
        return match bad {
            Some(id) => Err(invalid(format!("The IP address '{id}' is not a valid IPv4 address"))),
            None => Ok(()),
        };
    }
    let nodes = elb.vpc.instances(call).await?;
    for target in targets {
        if !nodes.iter().any(|n| text(n, "InstanceId") == text(target, "id")) {
            let words = format!(
                "The following targets are not in a running state and cannot be registered: '{}'",
                text(target, "id")
            );
            return Err(refused("InvalidTarget", words));
        }
    }
    Ok(())
}

/// RegisterTargets.
pub(super) async fn register(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("TargetGroupArn");
    let group = What::Group.get(elb, call, own).await?;
    let targets = given(call, &group);
    check(elb, call, &group, &targets).await?;
    let changed = What::Group.change(elb, call, own, |spec| {
        let all = with(&spec["targets"], &targets);
        if items(&all).len() > TARGETS_MAX {
            return Err(refused("TooManyTargets", "You've reached the limit on the number of targets"));
        }
        spec["targets"] = all;
        Ok(json!({}))
    });
    changed.await
}

/// DeregisterTargets: those that are not there are no error; without a port, all of that id.
pub(super) async fn deregister(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("TargetGroupArn");
    let gone = |t: &Value| {
        call.items("Targets")
            .iter()
            .any(|g| text(g, "Id") == text(t, "id") && (g["Port"].is_null() || g["Port"] == t["port"]))
    };
    let changed = What::Group.change(elb, call, own, |spec| {
        spec["targets"] = without(&spec["targets"], gone);
        Ok(json!({}))
    });
    changed.await
}

fn description(group: &Value, target: &Value, health: &Value) -> Value {
    let port = match text(group, "HealthCheckPort") {
        "traffic-port" => target["port"].to_string(),
        port => port.to_string(),
    };
    json!({
        "Target": {"Id": target["id"], "Port": target["port"], "AvailabilityZone": target["availabilityZone"]},
        "HealthCheckPort": port,
        "TargetHealth": {
            "State": health["state"], "Reason": health["reason"], "Description": health["description"]},
        "AdministrativeOverride": {"State": "no_override", "Reason": "AdministrativeOverride.NoOverride",
            "Description": "No override is currently active on target"},
    })
}

/// DescribeTargetHealth.
pub(super) async fn health(elb: &Elb, call: &Call) -> Outcome {
    let whole = What::Group.whole(elb, call, call.text("TargetGroupArn")).await?;
    let (group, seen) = (&whole["spec"], items(&whole["status"]["targets"]));
    let own = text(group, "TargetGroupArn");
    let used = uses(elb, call).await?.iter().any(|(g, _)| g == own);
    let said = |(state, reason, words): (&str, &str, &str)| json!({"state": state, "reason": reason, "description": words});
    let of = |target: &Value| {
        let registered = items(&group["targets"]).iter().find(|t| is_same(t, target));
        let seen = seen.iter().find(|t| is_same(t, target));
        // One that was registered again while it drained is new.
        let seen = seen.filter(|s| registered.is_none() || s["state"] != "draining");
        match (registered, seen) {
            (_, Some(seen)) => description(group, registered.unwrap_or(seen), seen),
            (Some(new), None) => description(group, new, &said(if used { REGISTERING } else { NOT_IN_USE })),
            (None, None) => description(group, target, &said(NOT_REGISTERED)),
        }
    };
    let asked = given(call, group);
    let all: Vec<Value> = match asked.is_empty() {
        false => asked,
        true => items(&with(&json!(seen), items(&group["targets"]))).to_vec(),
    };
    Ok(json!({"TargetHealthDescriptions": all.iter().map(of).collect::<Vec<_>>()}))
}

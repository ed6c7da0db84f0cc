//! Target groups.

use super::Elb;
use super::find::{PAGES, What, arn, invalid, new_id, refused};
use super::load_balancer::check_name;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What must be equal for a second create to be the same one.
const SETTINGS: [&str; 6] = ["Protocol", "Port", "VpcId", "TargetType", "ProtocolVersion", "HealthCheckPath"];
/// What ModifyTargetGroup can change.
const CHANGEABLE: &str = "HealthCheckEnabled HealthCheckIntervalSeconds HealthCheckPath HealthCheckPort \
    HealthCheckProtocol HealthCheckTimeoutSeconds HealthyThresholdCount Matcher UnhealthyThresholdCount";

/// Which load balancers use each group: `(group ARN, load balancer ARN)`, from their listeners and rules.
pub(super) async fn uses(elb: &Elb, call: &Call) -> Result<BTreeSet<(String, String)>, AwsError> {
    let (listeners, rules) = (elb.listeners.list(call).await?, elb.rules.list(call).await?);
    let mut out = BTreeSet::new();
    let mut note = |actions: &Value, balancer: &str| {
        for group in super::actions::groups(actions) {
            out.insert((group.to_string(), balancer.to_string()));
        }
    };
    for listener in &listeners {
        let balancer = text(listener, "LoadBalancerArn");
        note(&listener["DefaultActions"], balancer);
        for rule in rules.iter().filter(|r| r["ListenerArn"] == listener["ListenerArn"]) {
            note(&rule["Actions"], balancer);
        }
    }
    Ok(out)
}

fn shown(whole: &Value, uses: &BTreeSet<(String, String)>) -> Value {
    let mut out = whole["spec"].clone();
    let own = text(&out, "TargetGroupArn").to_string();
    out["LoadBalancerArns"] = uses.iter().filter(|(g, _)| *g == own).map(|(_, b)| json!(b)).collect();
    out
}

/// CreateTargetGroup.
pub(super) async fn create(elb: &Elb, call: &Call) -> Outcome {
    let name = call.text("Name");
    check_name("Target group", name)?;
    let spec = wanted(elb, call, name).await?;
    if !elb.groups.create(call, name, spec.clone()).await? {
        let present = elb.groups.get(call, name).await?.unwrap_or_default();
        if SETTINGS.iter().any(|m| present[m] != spec[m]) {
            let words =
                format!("A target group with the same name '{name}' exists, but with different settings");
            return Err(refused("DuplicateTargetGroupName", words));
        }
    }
    let whole = elb.groups.get_whole(call, name).await?.ok_or_else(|| What::Group.missing())?;
    Ok(json!({"TargetGroups": [shown(&whole, &uses(elb, call).await?)]}))
}

async fn wanted(elb: &Elb, call: &Call, name: &str) -> Outcome {
    let input = &call.input;
    let kind = input["TargetType"].as_str().unwrap_or("instance");
    refuse_if(!matches!(kind, "instance" | "ip"), || {
        refused("InvalidConfigurationRequest", format!("Gantry has no targets of type '{kind}'"))
    })?;
    let protocol = match text(input, "Protocol") {
        "" => return Err(invalid("A protocol must be specified")),
        known @ ("HTTP" | "HTTPS" | "TCP" | "TLS" | "UDP" | "TCP_UDP") => known,
        other => {
            return Err(refused(
                "InvalidConfigurationRequest",
                format!("Gantry has no target protocol '{other}'"),
            ));
        }
    };
    refuse_if(input["Port"].is_null(), || invalid("A port must be specified"))?;
    let http = protocol.starts_with("HTTP");
    let version = input["ProtocolVersion"].as_str().unwrap_or("HTTP1");
    refuse_if(http && version != "HTTP1", || {
        refused("InvalidConfigurationRequest", format!("Gantry speaks HTTP1 to targets, not '{version}'"))
    })?;
    let vpc = match text(input, "VpcId") {
        "" => elb.vpc.default_vpc(call).await?.ok_or_else(|| invalid("A VPC ID must be specified"))?,
        id => match elb.vpc.vpc(call, id).await? {
            Some(_) => id.to_string(),
            None => return Err(invalid(format!("The VPC ID '{id}' is not found"))),
        },
    };
    let mut spec = json!({
        "TargetGroupArn": arn(call, &format!("targetgroup/{name}/{}", new_id())),
        "TargetGroupName": name,
        "Protocol": protocol,
        "Port": input["Port"],
        "VpcId": vpc,
        "TargetType": kind,
        "IpAddressType": "ipv4",
        "HealthCheckProtocol": if http { "HTTP" } else { "TCP" },
        "HealthCheckPort": "traffic-port",
        "HealthCheckEnabled": true,
        "HealthCheckIntervalSeconds": 30,
        "HealthyThresholdCount": 5,
        "UnhealthyThresholdCount": 2,
        "Attributes": {},
        "Tags": input["Tags"],
        "targets": [],
    });
    if http {
        spec["ProtocolVersion"] = json!(version);
    }
    set_check(&mut spec, input)?;
    Ok(spec)
}

/// Takes the health check's members of a call into a `spec`, and fills in what follows.
fn set_check(spec: &mut Value, input: &Value) -> Result<(), AwsError> {
    copy(spec, input, CHANGEABLE);
    let protocol = text(spec, "HealthCheckProtocol").to_string();
    let http = protocol.starts_with("HTTP");
    if !http && protocol != "TCP" {
        return Err(invalid(format!("Health check protocol '{protocol}' must be one of 'HTTP, HTTPS, TCP'")));
    }
    let of_http_group = text(spec, "Protocol").starts_with("HTTP");
    if of_http_group && !http {
        return Err(invalid("Health check protocol 'TCP' must be one of 'HTTP, HTTPS'"));
    }
    if spec["HealthCheckTimeoutSeconds"].is_null() {
        spec["HealthCheckTimeoutSeconds"] = json!(match (of_http_group, http) {
            (true, _) => 5,
            (false, true) => 6,
            (false, false) => 10,
        });
    }
    let port = text(spec, "HealthCheckPort");
    if port != "traffic-port" && !port.parse::<u16>().is_ok_and(|n| n > 0) {
        return Err(invalid(format!("Health check port '{port}' must be 'traffic-port' or in 1-65535")));
    }
    if http {
        if spec["HealthCheckPath"].is_null() {
            spec["HealthCheckPath"] = json!("/");
        }
        if !text(spec, "HealthCheckPath").starts_with('/') {
            let path = text(spec, "HealthCheckPath");
            return Err(invalid(format!("Health check path '{path}' must begin with a '/' character")));
        }
        if spec["Matcher"].is_null() {
            spec["Matcher"] = json!({"HttpCode": if of_http_group { "200" } else { "200-399" }});
        }
        let codes = text(&spec["Matcher"], "HttpCode");
        if ecs_model::targets::status_ranges(codes).is_none() {
            return Err(invalid(format!("Health check matcher HTTP code '{codes}' is not valid")));
        }
    } else if !input["HealthCheckPath"].is_null() || !input["Matcher"].is_null() {
        return Err(invalid("A path or a matcher cannot be specified for a TCP health check"));
    }
    let (interval, timeout) = (&spec["HealthCheckIntervalSeconds"], &spec["HealthCheckTimeoutSeconds"]);
    refuse_if(timeout.as_i64() >= interval.as_i64(), || {
        invalid(format!("Health check timeout '{timeout}' must be smaller than the interval '{interval}'"))
    })
}

/// DescribeTargetGroups.
pub(super) async fn describe(elb: &Elb, call: &Call) -> Outcome {
    let names = call.items("Names");
    let mut found = What::Group.chosen(elb, call, &call.input["TargetGroupArns"]).await?;
    if !names.is_empty() {
        found.retain(|o| names.contains(&o["spec"]["TargetGroupName"]));
        refuse_if(found.len() < names.len(), || What::Group.missing())?;
    }
    let uses = uses(elb, call).await?;
    if let Some(balancer) = call.input["LoadBalancerArn"].as_str() {
        What::Balancer.get(elb, call, balancer).await?;
        let used = |group: &str| uses.contains(&(group.to_string(), balancer.to_string()));
        found.retain(|o| used(text(&o["spec"], "TargetGroupArn")));
    }
    PAGES.answer(call, "TargetGroups", found.iter().map(|o| shown(o, &uses)).collect(), "TargetGroupName")
}

/// ModifyTargetGroup.
pub(super) async fn modify(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("TargetGroupArn");
    What::Group.change(elb, call, own, |spec| set_check(spec, &call.input)).await?;
    let whole = What::Group.whole(elb, call, own).await?;
    Ok(json!({"TargetGroups": [shown(&whole, &uses(elb, call).await?)]}))
}

/// DeleteTargetGroup: of one that is not there it succeeds.
pub(super) async fn delete(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("TargetGroupArn");
    let name = What::Group.name(own)?;
    if What::Group.get(elb, call, own).await.is_err() {
        return Ok(json!({}));
    }
    refuse_if(uses(elb, call).await?.iter().any(|(group, _)| group == own), || {
        refused("ResourceInUse", format!("Target group '{own}' is currently in use by a listener or a rule"))
    })?;
    elb.groups.remove(call, name).await?;
    Ok(json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_fit_their_group() {
        let base = json!({"Protocol": "HTTP", "HealthCheckProtocol": "HTTP", "HealthCheckPort": "traffic-port",
            "HealthCheckIntervalSeconds": 30});
        let with = |input: Value| {
            let mut spec = base.clone();
            set_check(&mut spec, &input).map(|()| spec)
        };
        let spec = with(json!({})).unwrap();
        assert_eq!((&spec["HealthCheckPath"], &spec["Matcher"]["HttpCode"]), (&json!("/"), &json!("200")));
        for bad in [
            json!({"HealthCheckPath": "x"}),
            json!({"HealthCheckPort": "0"}),
            json!({"HealthCheckProtocol": "TCP"}),
            json!({"HealthCheckIntervalSeconds": 5}),
            json!({"Matcher": {"HttpCode": "x"}}),
        ] {
            assert_eq!(with(bad.clone()).unwrap_err().code, "ValidationError", "{bad}");
        }
    }
}

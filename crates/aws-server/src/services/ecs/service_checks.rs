//! What a service (or a task) refers to in other services must be there and fit: target groups, registries of Cloud Map,
//! subnets, security groups. Looked at when it is asked for; what goes later is the scheduler's business.

use super::context::{Context, parameter};
use crate::service::AwsError;
use crate::services::kept::{Kept, Reach};
use ecs_model::lower::NetworkMode;
use ecs_model::names::Arn;
use ecs_model::refusal::refuse_if;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{has, int, list, text};
use serde_json::Value;

fn kept(cx: &Context<'_>, gvr: Gvr) -> Kept {
    Kept::new(cx.shared, gvr, "", Reach::Regional)
}

/// Subnets and security groups. The default ones are made when EC2 is first asked, and are there before.
pub async fn network(cx: &Context<'_>, configuration: &Value) -> Result<(), AwsError> {
    let kinds = [
        ("/awsvpcConfiguration/subnets", "subnet", "subnet ID", "InvalidSubnetID", gvr::EC2_SUBNETS),
        (
            "/awsvpcConfiguration/securityGroups",
            "security group",
            "security group",
            "InvalidGroup",
            gvr::EC2_SECURITY_GROUPS,
        ),
    ];
    for (at, what, named, code, gvr) in kinds {
        let store = kept(cx, gvr);
        for id in list(configuration, at).iter().filter_map(Value::as_str) {
            let letter = id.strip_prefix("subnet-default-");
            let default = id == "sg-default"
                || letter.is_some_and(|l| cx.shared.zones.iter().any(|z| !l.is_empty() && z.ends_with(l)));
            let sound = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if default || (sound && store.get(cx.call, id).await?.is_some()) {
                continue;
            }
            return Err(parameter(format!(
                "Error retrieving {what} information for [{id}]: The {named} '{id}' does not exist (ErrorCode: \
                 {code}.NotFound)"
            )));
        }
    }
    Ok(())
}

/// Target groups: there, used by a load balancer, of the type that the tasks' network needs.
pub async fn load_balancers(cx: &Context<'_>, spec: &Value, definition: &Value) -> Result<(), AwsError> {
    let mode = NetworkMode::of(definition);
    let (groups, mut seen) = (kept(cx, gvr::ELB_TARGET_GROUPS), Vec::new());
    for balancer in list(spec, "/loadBalancers") {
        let arn = text(balancer, "/targetGroupArn");
        refuse_if(arn.is_empty(), || {
            parameter("targetGroupArn must be specified: there are no classic load balancers here.")
        })?;
        if seen.contains(&(arn, &balancer["containerPort"])) {
            return Err(parameter(format!("The target group {arn} is used more than once.")));
        }
        seen.push((arn, &balancer["containerPort"]));
        let name = Arn::parse(arn)
            .filter(|a| a.service == "elasticloadbalancing")
            .and_then(|a| a.resource.strip_prefix("targetgroup/")?.split('/').next());
        let Some(name) = name else { return Err(parameter(format!("Invalid target group ARN: {arn}"))) };
        let group = groups.get(cx.call, name).await?.filter(|g| text(g, "/TargetGroupArn") == arn);
        let Some(group) = group else {
            return Err(parameter(format!("The specified target group does not exist: {arn}")));
        };
        let (kind, wanted) =
            (text(&group, "/TargetType"), if mode == NetworkMode::AwsVpc { "ip" } else { "instance" });
        if kind != wanted {
            return Err(parameter(format!(
                "The provided target group {arn} has target type {kind}, which is incompatible with the {} network mode \
                 specified in the task definition.",
                mode.as_str()
            )));
        }
        if !is_used(cx, arn).await? {
            return Err(parameter(format!(
                "The target group with targetGroupArn {arn} does not have an associated load balancer."
            )));
        }
    }
    Ok(())
}

/// Does a listener or a rule forward to the group?
async fn is_used(cx: &Context<'_>, arn: &str) -> Result<bool, AwsError> {
    let named = Value::from(arn).to_string();
    for gvr in [gvr::ELB_LISTENERS, gvr::ELB_RULES] {
        if kept(cx, gvr).list(cx.call).await?.iter().any(|one| one.to_string().contains(&named)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Registries: there, and told what their records need.
pub async fn registries(cx: &Context<'_>, spec: &Value, definition: &Value) -> Result<(), AwsError> {
    let mode = NetworkMode::of(definition);
    for registry in list(spec, "/serviceRegistries") {
        let arn = text(registry, "/registryArn");
        let id = Arn::parse(arn)
            .filter(|a| a.service == "servicediscovery")
            .and_then(|a| a.resource.strip_prefix("service/"));
        let sound = |id: &&str| id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let id = id.filter(sound).ok_or_else(|| parameter(format!("Invalid service registry ARN: {arn}")))?;
        let Some(service) = kept(cx, gvr::DISCOVERY_SERVICES).get(cx.call, id).await? else {
            return Err(parameter(format!("The specified service registry does not exist: {arn}")));
        };
        let (container, port) = (text(registry, "/containerName"), int(registry, "/containerPort"));
        let (pair, alone) = (!container.is_empty() && port.is_some(), int(registry, "/port").is_some());
        if pair && alone {
            return Err(parameter("Specify either 'port' or 'containerName' and 'containerPort', not both."));
        }
        if container.is_empty() == port.is_some() {
            return Err(parameter("'containerName' and 'containerPort' must be specified together."));
        }
        let records = list(&service, "/DnsConfig/DnsRecords").iter();
        let srv = records.clone().any(|r| text(r, "/Type") == "SRV");
        let only_a = records.len() > 0 && !srv;
        let missing = match mode {
            NetworkMode::AwsVpc if srv && !pair && !alone => {
                "When specifying 'awsvpc' for networkMode and using an SRV DNS record, either 'port' or 'containerName' \
                 and 'containerPort' must be specified."
            }
            NetworkMode::AwsVpc => "",
            _ if only_a => {
                "A service registry with A records can only be used with the 'awsvpc' network mode. Use SRV records."
            }
            _ if !pair => {
                "When specifying 'host' or 'bridge' for networkMode, values for 'containerName' and 'containerPort' must be \
                 specified from the task definition."
            }
            _ => "",
        };
        refuse_if(!missing.is_empty(), || parameter(missing))?;
        if pair {
            super::service::container_port(definition, container, &registry["containerPort"])?;
        }
    }
    Ok(())
}

/// Roles, and what only services behind load balancers have.
pub fn rules(cx: &Context<'_>, spec: &Value, definition: &Value) -> Result<(), AwsError> {
    let balanced = has(spec, "/loadBalancers/0");
    refuse_if(has(&cx.call.input, "/healthCheckGracePeriodSeconds") && !balanced, || {
        parameter("Health check grace period is only valid for services configured to use load balancers")
    })?;
    if cx.text("role").is_empty() {
        return Ok(());
    }
    refuse_if(
        NetworkMode::of(definition) == NetworkMode::AwsVpc || list(spec, "/loadBalancers").len() > 1,
        || parameter("You cannot specify an IAM role for services that require a service linked role."),
    )?;
    match balanced {
        true => Ok(()),
        false => Err(parameter("Role is only valid for services configured to use load balancers")),
    }
}

//! Load balancers.

use super::Elb;
use super::find::{PAGES, What, arn, invalid, new_id, refused};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// AWS's hosted zones of `us-east-1`; what makes DNS records only hands them through.
const ZONE_APPLICATION: &str = "Z35SXDOTRQ7X7K";
const ZONE_NETWORK: &str = "Z26RNL4JYFTOTI";
const NAME_MAX: usize = 32;
/// What must be equal for a second create to be the same one.
const SETTINGS: [&str; 5] = ["Type", "Scheme", "IpAddressType", "SecurityGroups", "AvailabilityZones"];

/// A load balancer as it is shown: with the state that the controller saw.
pub(super) fn shown(whole: &Value) -> Value {
    let mut out = whole["spec"].clone();
    // AWS shows only addresses that were brought along; here they are what reaches it without the cluster's DNS.
    if let Some(address) = whole["status"]["Address"].as_str() {
        for zone in out["AvailabilityZones"].as_array_mut().into_iter().flatten() {
            zone["LoadBalancerAddresses"] = json!([{"IpAddress": address}]);
        }
    }
    out["State"] = match &whole["status"]["State"] {
        Value::Null => json!({"Code": "provisioning"}),
        state => state.clone(),
    };
    out
}

/// Names of load balancers and target groups.
pub(super) fn check_name(kind: &str, name: &str) -> Result<(), AwsError> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    refuse_if(name.is_empty(), || invalid(format!("{kind} name cannot be empty")))?;
    if name.len() > NAME_MAX {
        return Err(invalid(format!("{kind} name '{name}' cannot be longer than '{NAME_MAX}' characters")));
    }
    if !letters {
        return Err(invalid(format!(
            "{kind} name '{name}' can only contain characters that are alphanumeric characters and hyphens(-)"
        )));
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err(invalid(format!("{kind} name '{name}' cannot begin or end with a hyphen(-)")));
    }
    Ok(())
}

/// CreateLoadBalancer.
pub(super) async fn create(elb: &Elb, call: &Call) -> Outcome {
    let name = call.text("Name");
    check_name("Load balancer", name)?;
    if name.starts_with("internal-") {
        return Err(invalid(format!("Load balancer name '{name}' cannot begin with 'internal-'")));
    }
    let spec = wanted(elb, call, name).await?;
    if !elb.balancers.create(call, name, spec).await? {
        let present = elb.balancers.get(call, name).await?.unwrap_or_default();
        let wanted = wanted(elb, call, name).await?;
        if SETTINGS.iter().any(|m| present[m] != wanted[m]) {
            let words =
                format!("A load balancer with the same name '{name}' exists, but with different settings");
            return Err(refused("DuplicateLoadBalancerName", words));
        }
    }
    let whole = elb.balancers.get_whole(call, name).await?.ok_or_else(|| What::Balancer.missing())?;
    Ok(json!({"LoadBalancers": [shown(&whole)]}))
}

async fn wanted(elb: &Elb, call: &Call, name: &str) -> Outcome {
    let kind = call.input["Type"].as_str().unwrap_or("application");
    let (short, zone) = match kind {
        "application" => ("app", ZONE_APPLICATION),
        "network" => ("net", ZONE_NETWORK),
        _ => return Err(refused("InvalidConfigurationRequest", "Gantry has no gateway load balancers")),
    };
    let scheme = call.input["Scheme"].as_str().unwrap_or("internet-facing");
    let (vpc, zones) = zones(elb, call, kind).await?;
    let id = new_id();
    let prefix = if scheme == "internal" { "internal-" } else { "" };
    let (region, domain) = (&call.region, &elb.domain);
    let host = match kind {
        // AWS's number is decimal; one made of the id is as good.
        "application" => {
            let number = u64::from_str_radix(&id, 16).unwrap_or_default() % 10_000_000_000;
            format!("{prefix}{name}-{number:010}.{region}.{domain}")
        }
        _ => format!("{prefix}{name}-{id}.{region}.{domain}"),
    };
    Ok(json!({
        "LoadBalancerArn": arn(call, &format!("loadbalancer/{short}/{name}/{id}")),
        "LoadBalancerName": name,
        "DNSName": host.to_ascii_lowercase(),
        "CanonicalHostedZoneId": zone,
        "CreatedTime": now(call),
        "Scheme": scheme,
        "VpcId": vpc,
        "Type": kind,
        "AvailabilityZones": zones,
        "SecurityGroups": security_groups(elb, call, kind, &vpc).await?,
        "IpAddressType": call.input["IpAddressType"].as_str().unwrap_or("ipv4"),
        "Attributes": {},
        "Tags": call.input["Tags"],
    }))
}

/// The VPC and zones of the subnets that a call names.
async fn zones(elb: &Elb, call: &Call, kind: &str) -> Result<(String, Value), AwsError> {
    let mut ids: BTreeSet<&str> = call.items("Subnets").iter().filter_map(Value::as_str).collect();
    let mappings = call.items("SubnetMappings");
    if !ids.is_empty() && !mappings.is_empty() {
        return Err(invalid("You can specify either subnets or subnet mappings, not both"));
    }
    ids.extend(mappings.iter().map(|m| text(m, "SubnetId")));
    let (mut vpcs, mut zones) = (BTreeSet::new(), Vec::new());
    for id in ids {
        let Some(subnet) = elb.vpc.subnet(call, id).await? else {
            return Err(refused("SubnetNotFound", format!("The subnet ID '{id}' does not exist")));
        };
        vpcs.insert(text(&subnet, "VpcId").to_string());
        zones.push(
            json!({"ZoneName": subnet["AvailabilityZone"], "SubnetId": id, "LoadBalancerAddresses": []}),
        );
    }
    let names: BTreeSet<&str> = zones.iter().map(|z| text(z, "ZoneName")).collect();
    if kind == "application" && names.len() < 2 {
        return Err(invalid("At least two subnets in two different Availability Zones must be specified"));
    }
    refuse_if(zones.is_empty(), || invalid("At least one subnet must be specified"))?;
    if names.len() < zones.len() {
        let words = "A load balancer cannot be attached to multiple subnets in the same Availability Zone";
        return Err(refused("InvalidConfigurationRequest", words));
    }
    if vpcs.len() > 1 {
        return Err(refused("InvalidConfigurationRequest", "All subnets must belong to the same VPC"));
    }
    Ok((vpcs.pop_first().unwrap_or_default(), json!(zones)))
}

async fn security_groups(elb: &Elb, call: &Call, kind: &str, vpc: &str) -> Outcome {
    let given = call.items("SecurityGroups");
    if given.is_empty() {
        // A network load balancer may have none.
        return match elb.vpc.default_group(call, vpc).await? {
            Some(id) if kind == "application" => Ok(json!([id])),
            _ => Ok(json!([])),
        };
    }
    for id in given.iter().filter_map(Value::as_str) {
        refuse_if(elb.vpc.security_group(call, id).await?.is_none_or(|g| text(&g, "VpcId") != vpc), || {
            refused("InvalidConfigurationRequest", format!("One or more security groups are invalid: {id}"))
        })?;
    }
    Ok(json!(given))
}

/// DescribeLoadBalancers.
pub(super) async fn describe(elb: &Elb, call: &Call) -> Outcome {
    let (arns, names) = (&call.input["LoadBalancerArns"], call.items("Names"));
    refuse_if(!items(arns).is_empty() && !names.is_empty(), || {
        invalid("Load balancer names and load balancer ARNs cannot be specified at the same time")
    })?;
    let mut found = What::Balancer.chosen(elb, call, arns).await?;
    if !names.is_empty() {
        found.retain(|o| names.contains(&o["spec"]["LoadBalancerName"]));
        let there = |n: &&Value| !found.iter().any(|o| o["spec"]["LoadBalancerName"] == **n);
        let missing: Vec<&str> = names.iter().filter(there).filter_map(Value::as_str).collect();
        refuse_if(!missing.is_empty(), || {
            refused("LoadBalancerNotFound", format!("Load balancers '[{}]' not found", missing.join(", ")))
        })?;
    }
    PAGES.answer(call, "LoadBalancers", found.iter().map(shown).collect(), "LoadBalancerName")
}

/// DeleteLoadBalancer: of one that is not there it succeeds.
pub(super) async fn delete(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("LoadBalancerArn");
    let name = What::Balancer.name(own)?;
    let Ok(spec) = What::Balancer.get(elb, call, own).await else { return Ok(json!({})) };
    if spec["Attributes"]["deletion_protection.enabled"] == "true" {
        let words = format!("Load balancer '{own}' cannot be deleted because deletion protection is enabled");
        return Err(refused("OperationNotPermitted", words));
    }
    for listener in elb.listeners.list(call).await? {
        if text(&listener, "LoadBalancerArn") == own {
            super::listener::remove(elb, call, text(&listener, "ListenerArn")).await?;
        }
    }
    elb.balancers.remove(call, name).await?;
    Ok(json!({}))
}

/// SetSubnets.
pub(super) async fn set_subnets(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("LoadBalancerArn");
    let spec = What::Balancer.get(elb, call, own).await?;
    let (vpc, zones) = zones(elb, call, text(&spec, "Type")).await?;
    if vpc != text(&spec, "VpcId") {
        return Err(refused("InvalidConfigurationRequest", "The subnets must be in the load balancer's VPC"));
    }
    What::Balancer
        .change(elb, call, own, |spec| {
            spec["AvailabilityZones"] = zones.clone();
            Ok(())
        })
        .await?;
    Ok(json!({"AvailabilityZones": zones, "IpAddressType": spec["IpAddressType"]}))
}

/// SetSecurityGroups.
pub(super) async fn set_security_groups(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("LoadBalancerArn");
    let spec = What::Balancer.get(elb, call, own).await?;
    let groups = security_groups(elb, call, "application", text(&spec, "VpcId")).await?;
    What::Balancer
        .change(elb, call, own, |spec| {
            spec["SecurityGroups"] = groups.clone();
            Ok(json!({"SecurityGroupIds": groups}))
        })
        .await
}

/// SetIpAddressType: only IPv4 is served.
pub(super) async fn set_ip_address_type(elb: &Elb, call: &Call) -> Outcome {
    What::Balancer.get(elb, call, call.text("LoadBalancerArn")).await?;
    match call.text("IpAddressType") {
        "ipv4" => Ok(json!({"IpAddressType": "ipv4"})),
        other => Err(refused("InvalidConfigurationRequest", format!("Gantry has no address type '{other}'"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name("Load balancer", "web-1").is_ok());
        for bad in ["", "-web", "web-", "a_b", &"a".repeat(33)] {
            assert!(check_name("Load balancer", bad).is_err(), "{bad}");
        }
    }
}

//! What VPCs and subnets have beyond other kinds: what comes and goes with them, ranges, attributes.

use super::generic::{change, create, delete, dry, get, make, missing, new_id, shown};
use super::kinds::{GROUP, NETWORK_ACL, ROUTE_TABLE, SUBNET, VPC};
use super::store::{self, Store, range};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::text;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// CreateVpc: with its default security group, main route table and network ACL.
pub(super) async fn create_vpc(store: &Store, call: &Call) -> Outcome {
    let spec = make(store, call, &VPC).await?;
    let vpc = text(&spec, "VpcId");
    let (group, table, acl) = (new_id(GROUP.prefix), new_id(ROUTE_TABLE.prefix), new_id(NETWORK_ACL.prefix));
    let own = store::group(call, &group, ("default", "default VPC security group"), vpc);
    store.kept(GROUP.slot).create(call, &group, own).await?;
    store.kept(ROUTE_TABLE.slot).create(call, &table, store::route_table(call, &table, vpc, true)).await?;
    store.kept(NETWORK_ACL.slot).create(call, &acl, store::network_acl(call, &acl, vpc, true)).await?;
    Ok(json!({"Vpc": shown(spec)}))
}

/// DeleteVpc: what came with it goes with it; anything else keeps it.
pub(super) async fn delete_vpc(store: &Store, call: &Call) -> Outcome {
    let id = call.text("VpcId");
    get(store, call, &VPC, id).await?;
    dry(call)?;
    let mut own = Vec::new();
    for kind in [&GROUP, &ROUTE_TABLE, &NETWORK_ACL] {
        for spec in store.all(call, kind).await?.into_iter().filter(|s| text(s, "VpcId") == id) {
            let main = spec["Associations"][0]["Main"] == true;
            if !main && spec["IsDefault"] != true && spec["GroupName"] != "default" {
                let words = format!("The vpc '{id}' has dependencies and cannot be deleted.");
                return Err(AwsError::client("DependencyViolation", words));
            }
            own.push((kind.slot, text(&spec, kind.id).to_string()));
        }
    }
    let answer = delete(store, call, &VPC).await?;
    for (slot, name) in own {
        store.kept(slot).remove(call, &name).await?;
    }
    Ok(answer)
}

/// First and last address.
fn bounds(cidr: &str) -> Option<(u32, u32)> {
    let bits = range(cidr, 0..=32)?;
    let first = cidr.split_once('/')?.0.parse::<Ipv4Addr>().ok()?.to_bits();
    Some((first, first | u32::try_from((1u64 << (32 - bits)) - 1).ok()?))
}

/// CreateSubnet: inside its VPC, beside its siblings.
pub(super) async fn create_subnet(store: &Store, call: &Call) -> Outcome {
    let vpc = get(store, call, &VPC, call.text("VpcId")).await?;
    let cidr = call.text("CidrBlock");
    let invalid = || AwsError::client("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid."));
    let (first, last) = bounds(cidr).ok_or_else(|| store::bad("CidrBlock", cidr))?;
    let all = bounds(text(&vpc, "CidrBlock")).ok_or_else(invalid)?;
    refuse_if(first < all.0 || last > all.1, invalid)?;
    let siblings = store.all(call, &SUBNET).await?;
    let meets = |s: &&Value| {
        s["VpcId"] == vpc["VpcId"]
            && bounds(text(s, "CidrBlock")).is_some_and(|(low, high)| first <= high && low <= last)
    };
    refuse_if(siblings.iter().any(|s| meets(&s)), || {
        AwsError::client("InvalidSubnet.Conflict", format!("The CIDR '{cidr}' conflicts with another subnet"))
    })?;
    create(store, call, &SUBNET).await
}

const ATTRIBUTES: [(&str, &str); 3] = [
    ("enableDnsSupport", "EnableDnsSupport"),
    ("enableDnsHostnames", "EnableDnsHostnames"),
    ("enableNetworkAddressUsageMetrics", "EnableNetworkAddressUsageMetrics"),
];

/// DescribeVpcAttribute.
pub(super) async fn describe_attribute(store: &Store, call: &Call) -> Outcome {
    let spec = get(store, call, &VPC, call.text("VpcId")).await?;
    let asked = call.text("Attribute");
    let found = ATTRIBUTES.iter().find(|(name, _)| *name == asked);
    let (_, member) = found.ok_or_else(|| store::bad("Attribute", asked))?;
    Ok(json!({"VpcId": spec["VpcId"], *member: {"Value": spec[*member] == true}}))
}

/// ModifyVpcAttribute.
pub(super) async fn modify_attribute(store: &Store, call: &Call) -> Outcome {
    set(store, call, &ATTRIBUTES.map(|(_, member)| member), &VPC).await
}

/// ModifySubnetAttribute.
pub(super) async fn modify_subnet(store: &Store, call: &Call) -> Outcome {
    let members = ["AssignIpv6AddressOnCreation", "MapPublicIpOnLaunch", "EnableDns64"];
    set(store, call, &members, &SUBNET).await
}

async fn set(store: &Store, call: &Call, members: &[&str], kind: &super::kinds::Kind) -> Outcome {
    let id = text(&call.input, kind.id);
    let changed = change(store, call, (kind, id), |spec| {
        for member in members.iter().filter(|m| call.input[**m].is_object()) {
            spec[*member] = call.input[*member]["Value"].clone();
        }
        Ok(json!({}))
    });
    changed.await
}

/// AssociateDhcpOptions.
pub(super) async fn associate_dhcp(store: &Store, call: &Call) -> Outcome {
    let options = call.text("DhcpOptionsId");
    if options != "default" && store.find(call, &super::kinds::DHCP, options).await?.is_none() {
        return Err(missing(&super::kinds::DHCP, options));
    }
    let changed = change(store, call, (&VPC, call.text("VpcId")), |spec| {
        spec["DhcpOptionsId"] = json!(options);
        Ok(json!({}))
    });
    changed.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_ranges() {
        assert_eq!(bounds("10.0.0.0/24"), Some((0x0a00_0000, 0x0a00_00ff)));
        assert_eq!(bounds("0.0.0.0/0"), Some((0, u32::MAX)));
        assert_eq!(bounds("10.0.0.1/24"), None);
    }
}

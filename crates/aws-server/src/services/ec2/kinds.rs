//! What EC2 stores, as a table: ids, names in inputs and answers, refusals, references, and how a new one looks.
//!
//! Pure. A kind is a row here; operations that all kinds have (`generic`) work from it.

use super::store::{self, Store};
use crate::service::{Call, Outcome};
use crate::services::kept::now;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Where objects of a kind are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Vpcs,
    Subnets,
    Groups,
    Interfaces,
    /// With others, told apart by `spec.ResourceType`.
    Resources,
}

/// A kind of resource.
pub(super) struct Kind {
    pub slot: Slot,
    /// As tags call it: `route-table`.
    pub name: &'static str,
    /// Its id: the member (with an `s` the member of inputs that lists ids), and how it begins.
    pub id: &'static str,
    pub prefix: &'static str,
    /// Its members in answers: one, and all.
    pub one: &'static str,
    pub all: &'static str,
    /// There is none such: code, and words with `{}` for the id.
    pub missing: (&'static str, &'static str),
    /// Members of a create's input that name others.
    pub needs: &'static [(&'static str, &'static Kind)],
    /// Others that keep it from being deleted, with the member that names it.
    pub holders: &'static [(&'static Kind, &'static str)],
    /// A new one, from the input.
    pub new: fn(&Store, &Call, &str) -> Outcome,
}

/// A kind by its names (name, id, prefix, one, all) that names no others and that none keeps.
const fn kind(
    slot: Slot,
    [name, id, prefix, one, all]: [&'static str; 5],
    missing: (&'static str, &'static str),
) -> Kind {
    Kind { slot, name, id, prefix, one, all, missing, needs: &[], holders: &[], new: |_, _, _| Ok(json!({})) }
}

pub(super) static ALL: [&Kind; 11] = [
    &VPC,
    &SUBNET,
    &GROUP,
    &INTERFACE,
    &ROUTE_TABLE,
    &INTERNET_GATEWAY,
    &NAT_GATEWAY,
    &ADDRESS,
    &KEY_PAIR,
    &DHCP,
    &NETWORK_ACL,
];

pub(super) static VPC: Kind = Kind {
    holders: &[(&SUBNET, "VpcId"), (&INTERFACE, "VpcId"), (&NAT_GATEWAY, "VpcId")],
    new: |_, call, id| {
        let cidr = call.text("CidrBlock");
        store::range(cidr, 16..=28).ok_or_else(|| store::bad("CidrBlock", cidr))?;
        Ok(store::vpc(call, id, cidr, false))
    },
    ..kind(
        Slot::Vpcs,
        ["vpc", "VpcId", "vpc-", "Vpc", "Vpcs"],
        ("InvalidVpcID.NotFound", "The vpc ID '{}' does not exist"),
    )
};

pub(super) static SUBNET: Kind = Kind {
    needs: &[("VpcId", &VPC)],
    holders: &[(&INTERFACE, "SubnetId"), (&NAT_GATEWAY, "SubnetId")],
    new: |store, call, id| {
        let (vpc, cidr) = (call.text("VpcId"), call.text("CidrBlock"));
        store::range(cidr, 16..=28).ok_or_else(|| store::bad("CidrBlock", cidr))?;
        let zone = call.input["AvailabilityZone"].as_str().map_or_else(|| store.zone(0), String::from);
        refuse_if(!store.zones.contains(&zone), || store::bad("AvailabilityZone", &zone))?;
        Ok(store.subnet_of(call, (id, vpc, cidr), &zone, false))
    },
    ..kind(
        Slot::Subnets,
        ["subnet", "SubnetId", "subnet-", "Subnet", "Subnets"],
        ("InvalidSubnetID.NotFound", "The subnet ID '{}' does not exist"),
    )
};

pub(super) static GROUP: Kind = Kind {
    new: |_, call, id| {
        let (name, vpc) = (call.text("GroupName"), call.text("VpcId"));
        Ok(store::group(call, id, (name, call.text("Description")), vpc))
    },
    ..kind(
        Slot::Groups,
        ["security-group", "GroupId", "sg-", "", "SecurityGroups"],
        ("InvalidGroup.NotFound", "The security group '{}' does not exist"),
    )
};

pub(super) static INTERFACE: Kind = Kind {
    needs: &[("SubnetId", &SUBNET)],
    new: |_, call, id| {
        Ok(json!({
            "NetworkInterfaceId": id, "SubnetId": call.input["SubnetId"], "OwnerId": call.caller.account,
            "Description": call.input["Description"], "Status": "available", "InterfaceType": "interface",
            "PrivateIpAddress": call.input["PrivateIpAddress"], "SourceDestCheck": true,
            "RequesterManaged": false, "Groups": [], "PrivateIpAddresses": [],
        }))
    },
    ..kind(
        Slot::Interfaces,
        ["network-interface", "NetworkInterfaceId", "eni-", "NetworkInterface", "NetworkInterfaces"],
        ("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '{}' does not exist"),
    )
};

pub(super) static ROUTE_TABLE: Kind = Kind {
    needs: &[("VpcId", &VPC)],
    new: |_, call, id| Ok(store::route_table(call, id, call.text("VpcId"), false)),
    ..kind(
        Slot::Resources,
        ["route-table", "RouteTableId", "rtb-", "RouteTable", "RouteTables"],
        ("InvalidRouteTableID.NotFound", "The routeTable ID '{}' does not exist"),
    )
};

pub(super) static INTERNET_GATEWAY: Kind = Kind {
    new: |_, call, id| {
        Ok(json!({"InternetGatewayId": id, "OwnerId": call.caller.account, "Attachments": []}))
    },
    ..kind(
        Slot::Resources,
        ["internet-gateway", "InternetGatewayId", "igw-", "InternetGateway", "InternetGateways"],
        ("InvalidInternetGatewayID.NotFound", "The internetGateway ID '{}' does not exist"),
    )
};

pub(super) static NAT_GATEWAY: Kind = Kind {
    needs: &[("SubnetId", &SUBNET)],
    new: |_, call, id| {
        Ok(json!({
            "NatGatewayId": id, "SubnetId": call.input["SubnetId"], "State": "available", "CreateTime": now(call),
            "ConnectivityType": call.input["ConnectivityType"].as_str().unwrap_or("public"),
            "NatGatewayAddresses": [{"AllocationId": call.input["AllocationId"]}],
        }))
    },
    ..kind(
        Slot::Resources,
        ["natgateway", "NatGatewayId", "nat-", "NatGateway", "NatGateways"],
        ("NatGatewayNotFound", "The Nat Gateway {} was not found"),
    )
};

pub(super) static ADDRESS: Kind = Kind {
    new: |_, call, id| {
        // An address of the range for documentation: it is stored, nothing answers at it.
        let last = id.bytes().fold(0u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b));
        Ok(json!({"AllocationId": id, "Domain": "vpc", "PublicIp": format!("203.0.113.{last}"),
            "NetworkBorderGroup": call.region, "PublicIpv4Pool": "amazon"}))
    },
    ..kind(
        Slot::Resources,
        ["elastic-ip", "AllocationId", "eipalloc-", "", "Addresses"],
        ("InvalidAllocationID.NotFound", "The allocation ID '{}' does not exist"),
    )
};

pub(super) static KEY_PAIR: Kind = Kind {
    new: |_, call, id| {
        Ok(json!({"KeyPairId": id, "KeyName": call.input["KeyName"], "CreateTime": now(call),
            "KeyType": "rsa", "KeyFingerprint": "", "PublicKey": call.input["PublicKeyMaterial"]}))
    },
    ..kind(
        Slot::Resources,
        ["key-pair", "KeyPairId", "key-", "", "KeyPairs"],
        ("InvalidKeyPair.NotFound", "The key pair '{}' does not exist"),
    )
};

pub(super) static DHCP: Kind = Kind {
    holders: &[(&VPC, "DhcpOptionsId")],
    new: |_, call, id| {
        let of = |c: &Value| {
            let values = c["Values"].as_array().into_iter().flatten().map(|v| json!({"Value": v}));
            json!({"Key": c["Key"], "Values": values.collect::<Vec<_>>()})
        };
        let given = call.input["DhcpConfigurations"].as_array().into_iter().flatten();
        Ok(json!({"DhcpOptionsId": id, "OwnerId": call.caller.account,
            "DhcpConfigurations": given.map(of).collect::<Vec<_>>()}))
    },
    ..kind(
        Slot::Resources,
        ["dhcp-options", "DhcpOptionsId", "dopt-", "DhcpOptions", "DhcpOptions"],
        ("InvalidDhcpOptionID.NotFound", "The dhcpOption ID '{}' does not exist"),
    )
};

pub(super) static NETWORK_ACL: Kind = Kind {
    needs: &[("VpcId", &VPC)],
    new: |_, call, id| Ok(store::network_acl(call, id, call.text("VpcId"), false)),
    ..kind(
        Slot::Resources,
        ["network-acl", "NetworkAclId", "acl-", "NetworkAcl", "NetworkAcls"],
        ("InvalidNetworkAclID.NotFound", "The networkAcl ID '{}' does not exist"),
    )
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_kinds_apart() {
        for kind in ALL {
            assert!(kind.prefix.ends_with('-') && kind.missing.1.contains("{}"), "{}", kind.name);
            let same = ALL.iter().filter(|k| k.prefix == kind.prefix || k.name == kind.name);
            assert_eq!(same.count(), 1, "{}", kind.name);
        }
    }
}

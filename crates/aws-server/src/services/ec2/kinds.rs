//! What EC2 stores, as a table: ids, names in inputs and answers, refusals, references, and how a new one looks.
//!
//! Pure. A kind is a row here; operations that all kinds have (`generic`) work from it.

use super::store::{self, Store};
use crate::service::{Call, Outcome};
use crate::services::kept::{now, text};
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
    slot: Slot::Vpcs,
    name: "vpc",
    id: "VpcId",
    prefix: "vpc-",
    one: "Vpc",
    all: "Vpcs",
    missing: ("InvalidVpcID.NotFound", "The vpc ID '{}' does not exist"),
    needs: &[],
    holders: &[(&SUBNET, "VpcId"), (&INTERFACE, "VpcId"), (&NAT_GATEWAY, "VpcId")],
    new: |_, call, id| {
        let cidr = text(&call.input, "CidrBlock");
        store::range(cidr, 16..=28).ok_or_else(|| store::bad("CidrBlock", cidr))?;
        Ok(store::vpc(call, id, cidr, false))
    },
};

pub(super) static SUBNET: Kind = Kind {
    slot: Slot::Subnets,
    name: "subnet",
    id: "SubnetId",
    prefix: "subnet-",
    one: "Subnet",
    all: "Subnets",
    missing: ("InvalidSubnetID.NotFound", "The subnet ID '{}' does not exist"),
    needs: &[("VpcId", &VPC)],
    holders: &[(&INTERFACE, "SubnetId"), (&NAT_GATEWAY, "SubnetId")],
    new: |store, call, id| {
        let (vpc, cidr) = (text(&call.input, "VpcId"), text(&call.input, "CidrBlock"));
        store::range(cidr, 16..=28).ok_or_else(|| store::bad("CidrBlock", cidr))?;
        let zone = call.input["AvailabilityZone"].as_str().map_or_else(|| store.zone(0), String::from);
        refuse_if(!store.zones.contains(&zone), || store::bad("AvailabilityZone", &zone))?;
        Ok(store.subnet_of(call, (id, vpc, cidr), &zone, false))
    },
};

pub(super) static GROUP: Kind = Kind {
    slot: Slot::Groups,
    name: "security-group",
    id: "GroupId",
    prefix: "sg-",
    one: "",
    all: "SecurityGroups",
    missing: ("InvalidGroup.NotFound", "The security group '{}' does not exist"),
    needs: &[],
    holders: &[],
    new: |_, call, id| {
        let (name, vpc) = (text(&call.input, "GroupName"), text(&call.input, "VpcId"));
        Ok(store::group(call, id, (name, text(&call.input, "Description")), vpc))
    },
};

pub(super) static INTERFACE: Kind = Kind {
    slot: Slot::Interfaces,
    name: "network-interface",
    id: "NetworkInterfaceId",
    prefix: "eni-",
    one: "NetworkInterface",
    all: "NetworkInterfaces",
    missing: ("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '{}' does not exist"),
    needs: &[("SubnetId", &SUBNET)],
    holders: &[],
    new: |_, call, id| {
        Ok(json!({
            "NetworkInterfaceId": id, "SubnetId": call.input["SubnetId"], "OwnerId": call.caller.account,
            "Description": call.input["Description"], "Status": "available", "InterfaceType": "interface",
            "PrivateIpAddress": call.input["PrivateIpAddress"], "SourceDestCheck": true,
            "RequesterManaged": false, "Groups": [], "PrivateIpAddresses": [],
        }))
    },
};

pub(super) static ROUTE_TABLE: Kind = Kind {
    slot: Slot::Resources,
    name: "route-table",
    id: "RouteTableId",
    prefix: "rtb-",
    one: "RouteTable",
    all: "RouteTables",
    missing: ("InvalidRouteTableID.NotFound", "The routeTable ID '{}' does not exist"),
    needs: &[("VpcId", &VPC)],
    holders: &[],
    new: |_, call, id| Ok(store::route_table(call, id, text(&call.input, "VpcId"), false)),
};

pub(super) static INTERNET_GATEWAY: Kind = Kind {
    slot: Slot::Resources,
    name: "internet-gateway",
    id: "InternetGatewayId",
    prefix: "igw-",
    one: "InternetGateway",
    all: "InternetGateways",
    missing: ("InvalidInternetGatewayID.NotFound", "The internetGateway ID '{}' does not exist"),
    needs: &[],
    holders: &[],
    new: |_, call, id| {
        Ok(json!({"InternetGatewayId": id, "OwnerId": call.caller.account, "Attachments": []}))
    },
};

pub(super) static NAT_GATEWAY: Kind = Kind {
    slot: Slot::Resources,
    name: "natgateway",
    id: "NatGatewayId",
    prefix: "nat-",
    one: "NatGateway",
    all: "NatGateways",
    missing: ("NatGatewayNotFound", "The Nat Gateway {} was not found"),
    needs: &[("SubnetId", &SUBNET)],
    holders: &[],
    new: |_, call, id| {
        Ok(json!({
            "NatGatewayId": id, "SubnetId": call.input["SubnetId"], "State": "available", "CreateTime": now(call),
            "ConnectivityType": call.input["ConnectivityType"].as_str().unwrap_or("public"),
            "NatGatewayAddresses": [{"AllocationId": call.input["AllocationId"]}],
        }))
    },
};

pub(super) static ADDRESS: Kind = Kind {
    slot: Slot::Resources,
    name: "elastic-ip",
    id: "AllocationId",
    prefix: "eipalloc-",
    one: "",
    all: "Addresses",
    missing: ("InvalidAllocationID.NotFound", "The allocation ID '{}' does not exist"),
    needs: &[],
    holders: &[],
    new: |_, call, id| {
        // An address of the range for documentation: it is stored, nothing answers at it.
        let last = id.bytes().fold(0u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b));
        Ok(json!({"AllocationId": id, "Domain": "vpc", "PublicIp": format!("203.0.113.{last}"),
            "NetworkBorderGroup": call.region, "PublicIpv4Pool": "amazon"}))
    },
};

pub(super) static KEY_PAIR: Kind = Kind {
    slot: Slot::Resources,
    name: "key-pair",
    id: "KeyPairId",
    prefix: "key-",
    one: "",
    all: "KeyPairs",
    missing: ("InvalidKeyPair.NotFound", "The key pair '{}' does not exist"),
    needs: &[],
    holders: &[],
    new: |_, call, id| {
        Ok(json!({"KeyPairId": id, "KeyName": call.input["KeyName"], "CreateTime": now(call),
            "KeyType": "rsa", "KeyFingerprint": "", "PublicKey": call.input["PublicKeyMaterial"]}))
    },
};

pub(super) static DHCP: Kind = Kind {
    slot: Slot::Resources,
    name: "dhcp-options",
    id: "DhcpOptionsId",
    prefix: "dopt-",
    one: "DhcpOptions",
    all: "DhcpOptions",
    missing: ("InvalidDhcpOptionID.NotFound", "The dhcpOption ID '{}' does not exist"),
    needs: &[],
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
};

pub(super) static NETWORK_ACL: Kind = Kind {
    slot: Slot::Resources,
    name: "network-acl",
    id: "NetworkAclId",
    prefix: "acl-",
    one: "NetworkAcl",
    all: "NetworkAcls",
    missing: ("InvalidNetworkAclID.NotFound", "The networkAcl ID '{}' does not exist"),
    needs: &[("VpcId", &VPC)],
    holders: &[],
    new: |_, call, id| Ok(store::network_acl(call, id, text(&call.input, "VpcId"), false)),
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

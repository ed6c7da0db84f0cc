//! EC2's objects: what exists from the start, and how one is found.
//!
//! The first call of an account in a region makes the default VPC, a subnet a zone, the default security group, the main
//! route table and what belongs to them, once: what is deleted stays deleted (object `defaults` remembers).
//! The default VPC's range is that of the cluster's pods, so that addresses of tasks are in it.

use super::kinds::{GROUP, Kind, SUBNET, Slot, VPC};
use crate::service::{AwsError, Call, Shared};
use crate::services::kept::{Kept, Reach, items, text};
use client::{ApiClient, ListOptions};
use ecs_model::names::derived_id;
use ecs_model::targets::instance_id;
use k8s_schema::{Gvr, gvr};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// Ids of what exists from the start; subnets are `subnet-default-<letter>`.
const DEFAULT_VPC: &str = "vpc-default";
const DEFAULT_GROUP: &str = "sg-default";
/// The object that says that the defaults were made.
const MARK: &str = "defaults";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const TYPE_LABEL: &str = "node.kubernetes.io/instance-type";
/// The type of a node that says none.
const TYPE: &str = "gantry.node";
const AMI: &str = "ami-0000000000000gantry";

/// EC2's objects.
pub struct Store {
    client: ApiClient,
    cidr: String,
    pub(super) zones: Vec<String>,
    vpcs: Kept,
    subnets: Kept,
    groups: Kept,
    interfaces: Kept,
    resources: Kept,
    /// Accounts and regions whose defaults are there.
    made: Mutex<BTreeSet<(String, String)>>,
}

impl Store {
    /// A store whose default VPCs have the range `cidr`.
    pub fn new(shared: &Shared, cidr: &str) -> Store {
        let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Regional);
        Store {
            client: shared.client.clone(),
            cidr: cidr.to_string(),
            zones: shared.zones.clone(),
            vpcs: kept(gvr::EC2_VPCS, "Vpc"),
            subnets: kept(gvr::EC2_SUBNETS, "Subnet"),
            groups: kept(gvr::EC2_SECURITY_GROUPS, "SecurityGroup"),
            interfaces: kept(gvr::EC2_NETWORK_INTERFACES, "NetworkInterface"),
            resources: kept(gvr::EC2_RESOURCES, "Resource"),
            made: Mutex::default(),
        }
    }

    pub(super) fn kept(&self, slot: Slot) -> &Kept {
        match slot {
            Slot::Vpcs => &self.vpcs,
            Slot::Subnets => &self.subnets,
            Slot::Groups => &self.groups,
            Slot::Interfaces => &self.interfaces,
            Slot::Resources => &self.resources,
        }
    }

    /// A zone of the region by number.
    pub(super) fn zone(&self, number: usize) -> String {
        self.zones.get(number % self.zones.len().max(1)).cloned().unwrap_or_default()
    }

    /// Makes the defaults unless they were made before.
    pub(super) async fn begin(&self, call: &Call) -> Result<(), AwsError> {
        let place = (call.caller.account.clone(), call.region.clone());
        if self.made.lock().contains(&place) {
            return Ok(());
        }
        if self.resources.get(call, MARK).await?.is_none() {
            for (slot, id, mut spec) in self.defaults(call) {
                spec["Tags"] = json!([]);
                self.kept(slot).create(call, &id, spec).await?;
            }
            self.resources.create(call, MARK, json!({"ResourceType": MARK})).await?;
        }
        self.made.lock().insert(place);
        Ok(())
    }

    fn defaults(&self, call: &Call) -> Vec<(Slot, String, Value)> {
        let mut out = vec![
            (Slot::Vpcs, DEFAULT_VPC.to_string(), vpc(call, DEFAULT_VPC, &self.cidr, true)),
            (
                Slot::Groups,
                DEFAULT_GROUP.to_string(),
                group(call, DEFAULT_GROUP, ("default", "default VPC security group"), DEFAULT_VPC),
            ),
            (Slot::Resources, "rtb-default".into(), route_table(call, "rtb-default", DEFAULT_VPC, true)),
            (Slot::Resources, "acl-default".into(), network_acl(call, "acl-default", DEFAULT_VPC, true)),
            (
                Slot::Resources,
                "igw-default".into(),
                json!({"InternetGatewayId": "igw-default", "OwnerId": call.caller.account,
                    "ResourceType": "internet-gateway",
                    "Attachments": [{"VpcId": DEFAULT_VPC, "State": "available"}]}),
            ),
            (
                Slot::Resources,
                "dopt-default".into(),
                json!({"DhcpOptionsId": "dopt-default", "OwnerId": call.caller.account,
                    "ResourceType": "dhcp-options", "DhcpConfigurations": [
                    {"Key": "domain-name-servers", "Values": [{"Value": "AmazonProvidedDNS"}]}]}),
            ),
        ];
        for (number, zone) in (0..).zip(&self.zones) {
            let id = format!("subnet-default-{}", zone.chars().last().unwrap_or('x'));
            let cidr = part(&self.cidr, number);
            let spec = self.subnet_of(call, (&id, DEFAULT_VPC, &cidr), zone, true);
            out.push((Slot::Subnets, id, spec));
        }
        out
    }

    /// A subnet's document: id, VPC and range.
    pub(super) fn subnet_of(
        &self,
        call: &Call,
        (id, vpc, cidr): (&str, &str, &str),
        zone: &str,
        default: bool,
    ) -> Value {
        let bits = range(cidr, 0..=32).unwrap_or(32);
        json!({
            "SubnetId": id, "VpcId": vpc, "CidrBlock": cidr, "AvailabilityZone": zone, "State": "available",
            "AvailabilityZoneId": zone_id(&self.zones, zone), "DefaultForAz": default,
            "MapPublicIpOnLaunch": default, "AssignIpv6AddressOnCreation": false, "MapCustomerOwnedIpOnLaunch": false,
            // Five addresses of a subnet are AWS's own.
            "AvailableIpAddressCount": (1u64 << (32 - bits)).saturating_sub(5),
            "Ipv6CidrBlockAssociationSet": [], "EnableDns64": false, "Ipv6Native": false,
            "OwnerId": call.caller.account,
            "SubnetArn": format!("arn:aws:ec2:{}:{}:subnet/{id}", call.region, call.caller.account),
        })
    }

    /// One by its id.
    pub(super) async fn find(&self, call: &Call, kind: &Kind, id: &str) -> Result<Option<Value>, AwsError> {
        self.begin(call).await?;
        if !id.starts_with(kind.prefix) {
            return Ok(None);
        }
        let found = self.kept(kind.slot).get(call, id).await?;
        Ok(found.filter(|spec| text(spec, kind.id) == id))
    }

    /// All of a kind.
    pub(super) async fn all(&self, call: &Call, kind: &Kind) -> Result<Vec<Value>, AwsError> {
        self.begin(call).await?;
        let mut all = self.kept(kind.slot).list(call).await?;
        all.retain(|spec| !spec[kind.id].is_null() && kind.is_of(spec));
        Ok(all)
    }

    /// A VPC.
    pub async fn vpc(&self, call: &Call, id: &str) -> Result<Option<Value>, AwsError> {
        self.find(call, &VPC, id).await
    }

    /// The default VPC's id, unless it was deleted.
    pub async fn default_vpc(&self, call: &Call) -> Result<Option<String>, AwsError> {
        let all = self.all(call, &VPC).await?;
        Ok(all.iter().find(|v| v["IsDefault"] == true).map(|v| text(v, "VpcId").to_string()))
    }

    /// A subnet.
    pub async fn subnet(&self, call: &Call, id: &str) -> Result<Option<Value>, AwsError> {
        self.find(call, &SUBNET, id).await
    }

    /// A security group.
    pub async fn security_group(&self, call: &Call, id: &str) -> Result<Option<Value>, AwsError> {
        self.find(call, &GROUP, id).await
    }

    /// The id of a VPC's group `default`.
    pub async fn default_group(&self, call: &Call, vpc: &str) -> Result<Option<String>, AwsError> {
        let all = self.all(call, &GROUP).await?;
        let own = |g: &&Value| text(g, "VpcId") == vpc && text(g, "GroupName") == "default";
        Ok(all.iter().find(own).map(|g| text(g, "GroupId").to_string()))
    }

    /// The nodes as instances.
    pub async fn instances(&self, _: &Call) -> Result<Vec<Value>, AwsError> {
        let nodes = self.list(&gvr::NODES, &ListOptions::default()).await?;
        Ok(nodes.iter().map(|node| instance(node, &self.zones)).collect())
    }

    /// Objects of a kind that is not EC2's own.
    pub(super) async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<Vec<Value>, AwsError> {
        let list = self.client.list(gvr, options).await.map_err(|error| {
            tracing::warn!(%error, "objects could not be read");
            AwsError::server("InternalError", "An internal error has occurred")
        })?;
        Ok(list.items.iter().filter_map(|o| o.value().ok()).collect())
    }
}

impl Kind {
    /// Is this object of the kind, where several share a place?
    pub(super) fn is_of(&self, spec: &Value) -> bool {
        self.slot != Slot::Resources || text(spec, "ResourceType") == self.name
    }
}

/// `InvalidParameterValue` of a member.
pub(super) fn bad(member: &str, value: &str) -> AwsError {
    let words = format!("Value ({value}) for parameter {member} is invalid. This is not a valid value.");
    AwsError::client("InvalidParameterValue", words)
}

/// The prefix length of a range in canonical form, if it is within bounds.
pub(super) fn range(cidr: &str, bits: RangeInclusive<u32>) -> Option<u32> {
    let (address, prefix) = cidr.split_once('/')?;
    let (address, prefix): (Ipv4Addr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    let host = u64::from(address.to_bits()) & ((1u64 << 32u32.checked_sub(prefix)?) - 1);
    (host == 0 && bits.contains(&prefix)).then_some(prefix)
}

/// The n-th part of a range, which is cut into 16.
fn part(cidr: &str, number: u32) -> String {
    let parts =
        cidr.split_once('/').and_then(|(a, p)| Some((a.parse::<Ipv4Addr>().ok()?, p.parse::<u32>().ok()?)));
    let Some((address, prefix)) = parts.filter(|(_, p)| *p <= 24) else { return cidr.to_string() };
    let step = 1u32 << (28 - prefix);
    let first = Ipv4Addr::from_bits(address.to_bits().wrapping_add(step.wrapping_mul(number)));
    format!("{first}/{}", prefix + 4)
}

/// `use1-az1` of `us-east-1a`.
pub(super) fn zone_id(zones: &[String], zone: &str) -> String {
    let number = zones.iter().position(|z| z == zone).unwrap_or_default() + 1;
    let region = zone.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let mut parts = region.split('-');
    let (area, place, digit) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let letter = place.chars().next().unwrap_or('x');
    format!("{area}{letter}{digit}-az{number}")
}

pub(super) fn vpc(call: &Call, id: &str, cidr: &str, default: bool) -> Value {
    json!({
        "VpcId": id, "CidrBlock": cidr, "IsDefault": default, "State": "available", "OwnerId": call.caller.account,
        "InstanceTenancy": call.input["InstanceTenancy"].as_str().unwrap_or("default"),
        "DhcpOptionsId": "dopt-default", "EnableDnsSupport": true, "EnableDnsHostnames": default,
        "CidrBlockAssociationSet": [{"AssociationId": format!("vpc-cidr-assoc-{}", id.trim_start_matches("vpc-")),
            "CidrBlock": cidr, "CidrBlockState": {"State": "associated"}}],
        "Ipv6CidrBlockAssociationSet": [],
    })
}

/// A security group with nothing but the rule that lets all out.
pub(super) fn group(call: &Call, id: &str, (name, description): (&str, &str), vpc: &str) -> Value {
    json!({
        "GroupId": id, "GroupName": name, "Description": description, "VpcId": vpc,
        "OwnerId": call.caller.account,
        "Rules": super::groups::first_rules(id, &call.caller.account, name == "default"),
        "SecurityGroupArn": format!("arn:aws:ec2:{}:{}:security-group/{id}", call.region, call.caller.account),
    })
}

/// A route table; the main one of a VPC is associated with it.
pub(super) fn route_table(call: &Call, id: &str, vpc: &str, main: bool) -> Value {
    let association = json!({"RouteTableAssociationId": format!("rtbassoc-{}", id.trim_start_matches("rtb-")),
        "RouteTableId": id, "Main": true, "AssociationState": {"State": "associated"}});
    json!({"RouteTableId": id, "VpcId": vpc, "OwnerId": call.caller.account, "ResourceType": "route-table",
        "Associations": if main { json!([association]) } else { json!([]) }, "Routes": [], "PropagatingVgws": []})
}

/// A network ACL; the default one lets all through.
pub(super) fn network_acl(call: &Call, id: &str, vpc: &str, default: bool) -> Value {
    let entry = |egress: bool, number: u32, action: &str| {
        json!({"CidrBlock": "0.0.0.0/0", "Egress": egress, "Protocol": "-1", "RuleAction": action,
            "RuleNumber": number})
    };
    let mut entries = vec![entry(true, 32_767, "deny"), entry(false, 32_767, "deny")];
    if default {
        entries.extend([entry(true, 100, "allow"), entry(false, 100, "allow")]);
    }
    json!({"NetworkAclId": id, "VpcId": vpc, "OwnerId": call.caller.account, "IsDefault": default,
        "Associations": [], "Entries": entries, "ResourceType": "network-acl"})
}

/// A node as DescribeInstances shows it.
fn instance(node: &Value, zones: &[String]) -> Value {
    let labels = &node["metadata"]["labels"];
    let uid = text(&node["metadata"], "uid");
    // Nodes that name no zone are spread over all by their id, as ECS's container instances are.
    let number = derived_id(uid).get(..8).and_then(|d| usize::from_str_radix(d, 16).ok()).unwrap_or(0);
    let own = zones.get(number % zones.len().max(1)).map_or("", String::as_str);
    let zone = labels[ZONE_LABEL].as_str().unwrap_or(own);
    let letter = zone.chars().last().unwrap_or('a');
    let addresses = items(&node["status"]["addresses"]);
    let ip = addresses.iter().find(|a| a["type"] == "InternalIP").map(|a| text(a, "address"));
    let ready =
        items(&node["status"]["conditions"]).iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let state =
        if ready { json!({"Code": 16, "Name": "running"}) } else { json!({"Code": 80, "Name": "stopped"}) };
    let architecture = match text(&node["status"]["nodeInfo"], "architecture") {
        "amd64" => "x86_64",
        other => other,
    };
    let created = text(&node["metadata"], "creationTimestamp").parse::<jiff::Timestamp>();
    json!({
        "InstanceId": instance_id(uid), "ImageId": AMI, "State": state,
        "InstanceType": labels[TYPE_LABEL].as_str().unwrap_or(TYPE),
        "LaunchTime": created.map(|t| t.as_second()).unwrap_or_default(),
        "Placement": {"AvailabilityZone": zone, "Tenancy": "default"},
        "PrivateIpAddress": ip, "PublicIpAddress": ip,
        "PrivateDnsName": node["metadata"]["name"], "Architecture": architecture,
        "SubnetId": format!("subnet-default-{letter}"), "VpcId": DEFAULT_VPC,
        "SecurityGroups": [{"GroupId": DEFAULT_GROUP, "GroupName": "default"}],
        "Monitoring": {"State": "disabled"}, "RootDeviceType": "ebs", "Hypervisor": "xen",
        "VirtualizationType": "hvm", "NetworkInterfaces": [], "BlockDeviceMappings": [],
        "Tags": [{"Key": "Name", "Value": node["metadata"]["name"]}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range("10.0.0.0/16", 16..=28), Some(16));
        for bad in ["10.0.0.1/16", "10.0.0.0/15", "10.0.0.0/29", "10.0.0.0", "x/16", "10.0.0.0/33"] {
            assert_eq!(range(bad, 16..=28), None, "{bad}");
        }
        assert_eq!(range("0.0.0.0/0", 0..=32), Some(0));
        assert_eq!(part("10.244.0.0/16", 2), "10.244.32.0/20");
        assert_eq!(zone_id(&["us-east-1a".into(), "us-east-1b".into()], "us-east-1b"), "use1-az2");
    }
}

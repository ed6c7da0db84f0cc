//! The slice of EC2 that flows around containers need: networks as stored resources, nodes as instances.
//!
//! A kind is a row in `kinds`; what all kinds have is in `generic`. Deliberately not here: enforcing any of it (security
//! groups, routes), launching instances.

mod filter;
mod generic;
mod groups;
mod kinds;
mod nodes;
mod routes;
mod store;
mod vpcs;

use crate::operation;
use crate::service::{Operation, Service, Table};
use std::sync::Arc;

pub use store::Store;

/// The service.
pub fn service(store: &Arc<Store>) -> Arc<dyn Service> {
    Arc::new(Table { name: "ec2", state: store.clone(), operations: OPERATIONS })
}

/// A row of an operation that works by a kind's row.
macro_rules! of_kind {
    ($name:literal, $function:ident, $kind:ident) => {
        Operation { name: $name, run: |store, call| Box::pin(generic::$function(store, call, &kinds::$kind)) }
    };
}

static OPERATIONS: &[Operation<Store>] = &[
    of_kind!("DescribeVpcs", describe, VPC),
    operation!("CreateVpc", vpcs::create_vpc),
    operation!("DeleteVpc", vpcs::delete_vpc),
    operation!("DescribeVpcAttribute", vpcs::describe_attribute),
    operation!("ModifyVpcAttribute", vpcs::modify_attribute),
    of_kind!("DescribeSubnets", describe, SUBNET),
    operation!("CreateSubnet", vpcs::create_subnet),
    of_kind!("DeleteSubnet", delete, SUBNET),
    operation!("ModifySubnetAttribute", vpcs::modify_subnet),
    of_kind!("DescribeDhcpOptions", describe, DHCP),
    of_kind!("CreateDhcpOptions", create, DHCP),
    of_kind!("DeleteDhcpOptions", delete, DHCP),
    operation!("AssociateDhcpOptions", vpcs::associate_dhcp),
    operation!("DescribeSecurityGroups", groups::describe),
    operation!("CreateSecurityGroup", groups::create),
    operation!("DeleteSecurityGroup", groups::remove),
    operation!("AuthorizeSecurityGroupIngress", groups::authorize_ingress),
    operation!("AuthorizeSecurityGroupEgress", groups::authorize_egress),
    operation!("RevokeSecurityGroupIngress", groups::revoke_ingress),
    operation!("RevokeSecurityGroupEgress", groups::revoke_egress),
    operation!("DescribeSecurityGroupRules", groups::describe_rules),
    operation!("ModifySecurityGroupRules", groups::modify_rules),
    operation!("DescribeNetworkInterfaces", nodes::describe_interfaces),
    of_kind!("CreateNetworkInterface", create, INTERFACE),
    of_kind!("DeleteNetworkInterface", delete, INTERFACE),
    operation!("DescribeRouteTables", routes::describe_tables),
    of_kind!("CreateRouteTable", create, ROUTE_TABLE),
    operation!("DeleteRouteTable", routes::delete_table),
    operation!("CreateRoute", routes::create_route),
    operation!("ReplaceRoute", routes::replace_route),
    operation!("DeleteRoute", routes::delete_route),
    operation!("AssociateRouteTable", routes::associate),
    operation!("DisassociateRouteTable", routes::disassociate),
    of_kind!("DescribeInternetGateways", describe, INTERNET_GATEWAY),
    of_kind!("CreateInternetGateway", create, INTERNET_GATEWAY),
    operation!("DeleteInternetGateway", routes::delete_internet_gateway),
    operation!("AttachInternetGateway", routes::attach),
    operation!("DetachInternetGateway", routes::detach),
    operation!("DescribeNatGateways", routes::describe_nat),
    of_kind!("CreateNatGateway", create, NAT_GATEWAY),
    of_kind!("DeleteNatGateway", delete, NAT_GATEWAY),
    operation!("DescribeAddresses", routes::describe_addresses),
    of_kind!("AllocateAddress", create, ADDRESS),
    of_kind!("ReleaseAddress", delete, ADDRESS),
    of_kind!("DescribeNetworkAcls", describe, NETWORK_ACL),
    of_kind!("CreateNetworkAcl", create, NETWORK_ACL),
    of_kind!("DeleteNetworkAcl", delete, NETWORK_ACL),
    operation!("DescribeKeyPairs", routes::describe_keys),
    operation!("ImportKeyPair", routes::import_key),
    operation!("DeleteKeyPair", routes::delete_key),
    operation!("CreateTags", generic::create_tags),
    operation!("DeleteTags", generic::delete_tags),
    operation!("DescribeTags", generic::describe_tags),
    operation!("DescribeInstances", nodes::describe_instances),
    operation!("DescribeInstanceStatus", nodes::describe_status),
    operation!("DescribeInstanceTypes", nodes::types),
    operation!("DescribeInstanceTypeOfferings", nodes::offerings),
    operation!("DescribeAvailabilityZones", nodes::zones),
    operation!("DescribeRegions", nodes::regions),
    operation!("DescribeAccountAttributes", nodes::account),
    operation!("DescribePrefixLists", nodes::nothing),
    operation!("DescribeManagedPrefixLists", nodes::nothing),
    operation!("DescribeVpcEndpoints", nodes::nothing),
    operation!("DescribeVpcPeeringConnections", nodes::nothing),
    operation!("DescribeFlowLogs", nodes::nothing),
];

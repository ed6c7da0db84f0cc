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

static OPERATIONS: &[Operation<Store>] = &[
    operation!("DescribeVpcs", generic::describe, &kinds::VPC),
    operation!("CreateVpc", vpcs::create_vpc),
    operation!("DeleteVpc", vpcs::delete_vpc),
    operation!("DescribeVpcAttribute", vpcs::describe_attribute),
    operation!("ModifyVpcAttribute", vpcs::modify_attribute),
    operation!("DescribeSubnets", generic::describe, &kinds::SUBNET),
    operation!("CreateSubnet", vpcs::create_subnet),
    operation!("DeleteSubnet", generic::delete, &kinds::SUBNET),
    operation!("ModifySubnetAttribute", vpcs::modify_subnet),
    operation!("DescribeDhcpOptions", generic::describe, &kinds::DHCP),
    operation!("CreateDhcpOptions", generic::create, &kinds::DHCP),
    operation!("DeleteDhcpOptions", generic::delete, &kinds::DHCP),
    operation!("AssociateDhcpOptions", vpcs::associate_dhcp),
    operation!("DescribeSecurityGroups", groups::describe),
    operation!("CreateSecurityGroup", groups::create),
    operation!("DeleteSecurityGroup", groups::remove),
    operation!("AuthorizeSecurityGroupIngress", groups::authorize, false),
    operation!("AuthorizeSecurityGroupEgress", groups::authorize, true),
    operation!("RevokeSecurityGroupIngress", groups::revoke, false),
    operation!("RevokeSecurityGroupEgress", groups::revoke, true),
    operation!("DescribeSecurityGroupRules", groups::describe_rules),
    operation!("ModifySecurityGroupRules", groups::modify_rules),
    operation!("DescribeNetworkInterfaces", nodes::describe_interfaces),
    operation!("CreateNetworkInterface", generic::create, &kinds::INTERFACE),
    operation!("DeleteNetworkInterface", generic::delete, &kinds::INTERFACE),
    operation!("DescribeRouteTables", routes::describe_tables),
    operation!("CreateRouteTable", generic::create, &kinds::ROUTE_TABLE),
    operation!("DeleteRouteTable", routes::delete_free, &kinds::ROUTE_TABLE, "Associations"),
    operation!("CreateRoute", routes::put_route, false),
    operation!("ReplaceRoute", routes::put_route, true),
    operation!("DeleteRoute", routes::delete_route),
    operation!("AssociateRouteTable", routes::associate),
    operation!("DisassociateRouteTable", routes::disassociate),
    operation!("DescribeInternetGateways", generic::describe, &kinds::INTERNET_GATEWAY),
    operation!("CreateInternetGateway", generic::create, &kinds::INTERNET_GATEWAY),
    operation!("DeleteInternetGateway", routes::delete_free, &kinds::INTERNET_GATEWAY, "Attachments"),
    operation!("AttachInternetGateway", routes::attach),
    operation!("DetachInternetGateway", routes::detach),
    operation!("DescribeNatGateways", generic::describe, &kinds::NAT_GATEWAY),
    operation!("CreateNatGateway", generic::create, &kinds::NAT_GATEWAY),
    operation!("DeleteNatGateway", generic::delete, &kinds::NAT_GATEWAY),
    operation!("DescribeAddresses", routes::describe_addresses),
    operation!("AllocateAddress", generic::create, &kinds::ADDRESS),
    operation!("ReleaseAddress", generic::delete, &kinds::ADDRESS),
    operation!("DescribeNetworkAcls", generic::describe, &kinds::NETWORK_ACL),
    operation!("CreateNetworkAcl", generic::create, &kinds::NETWORK_ACL),
    operation!("DeleteNetworkAcl", generic::delete, &kinds::NETWORK_ACL),
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

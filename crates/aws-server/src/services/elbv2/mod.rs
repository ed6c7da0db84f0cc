//! Elastic Load Balancing v2: load balancers, listeners, rules and target groups as objects of our own API.
//!
//! One file a family of operations. A load balancer and a target group are objects named by their AWS names, a listener
//! and a rule by the id at the end of their ARN, all in namespace `aws`; `spec` is what AWS shows plus `Attributes`
//! (a map) and `Tags`. What makes a data plane of them, and writes their `status`, is the controller in `ecs`.
//! Deliberately not here: gateway load balancers, QUIC, Lambda targets, authentication actions, trust stores.

mod actions;
mod attributes;
mod conditions;
mod find;
mod fixed;
mod listener;
mod load_balancer;
mod rule;
mod tag;
mod target_group;
mod targets;

use super::ec2;
use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{Operation, Service, Shared, Table};
use client::ApiClient;
use find::What;
use k8s_schema::gvr;
use std::sync::Arc;

/// What the operations share.
pub struct Elb {
    client: ApiClient,
    /// `elb.cluster.local`: what DNS names end with.
    domain: String,
    balancers: Kept,
    groups: Kept,
    listeners: Kept,
    rules: Kept,
    vpc: Arc<ec2::Store>,
}

/// The service. DNS names of load balancers end with `domain`.
pub fn service(shared: &Shared, domain: &str, vpc: Arc<ec2::Store>) -> Arc<dyn Service> {
    let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Regional);
    let state = Arc::new(Elb {
        client: shared.client.clone(),
        domain: domain.to_string(),
        balancers: kept(gvr::ELB_LOAD_BALANCERS, "LoadBalancer"),
        groups: kept(gvr::ELB_TARGET_GROUPS, "TargetGroup"),
        listeners: kept(gvr::ELB_LISTENERS, "Listener"),
        rules: kept(gvr::ELB_RULES, "Rule"),
        vpc,
    });
    Arc::new(Table { name: "elbv2", state, operations: OPERATIONS })
}

static OPERATIONS: &[Operation<Elb>] = &[
    operation!("CreateLoadBalancer", load_balancer::create),
    operation!("DeleteLoadBalancer", load_balancer::delete),
    operation!("DescribeLoadBalancers", load_balancer::describe),
    operation!("SetIpAddressType", load_balancer::set_ip_address_type),
    operation!("SetSecurityGroups", load_balancer::set_security_groups),
    operation!("SetSubnets", load_balancer::set_subnets),
    operation!("DescribeLoadBalancerAttributes", attributes::describe, What::Balancer),
    operation!("ModifyLoadBalancerAttributes", attributes::modify, What::Balancer),
    operation!("DescribeTargetGroupAttributes", attributes::describe, What::Group),
    operation!("ModifyTargetGroupAttributes", attributes::modify, What::Group),
    operation!("DescribeListenerAttributes", attributes::describe, What::Listener),
    operation!("ModifyListenerAttributes", attributes::modify, What::Listener),
    operation!("CreateTargetGroup", target_group::create),
    operation!("DeleteTargetGroup", target_group::delete),
    operation!("DescribeTargetGroups", target_group::describe),
    operation!("ModifyTargetGroup", target_group::modify),
    operation!("DeregisterTargets", targets::deregister),
    operation!("DescribeTargetHealth", targets::health),
    operation!("RegisterTargets", targets::register),
    operation!("AddListenerCertificates", listener::add_certificates),
    operation!("CreateListener", listener::create),
    operation!("DeleteListener", listener::delete),
    operation!("DescribeListenerCertificates", listener::certificates),
    operation!("DescribeListeners", listener::describe),
    operation!("ModifyListener", listener::modify),
    operation!("RemoveListenerCertificates", listener::remove_certificates),
    operation!("CreateRule", rule::create),
    operation!("DeleteRule", rule::delete),
    operation!("DescribeRules", rule::describe),
    operation!("ModifyRule", rule::modify),
    operation!("SetRulePriorities", rule::set_priorities),
    operation!("AddTags", tag::change),
    operation!("DescribeTags", tag::describe),
    operation!("RemoveTags", tag::change),
    operation!("DescribeAccountLimits", fixed::limits),
    operation!("DescribeSSLPolicies", fixed::ssl_policies),
    operation!("DescribeTrustStores", fixed::trust_stores),
    operation!("DescribeCapacityReservation", fixed::capacity_reservation),
];

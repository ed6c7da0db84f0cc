//! Load balancers and what they stand on: elbv2's operations over EC2's networks, and the controller with its listeners.

use super::Instance;
use super::leader;
use anyhow::Result;
use auth::{Identity, SYSTEM_MASTERS};
use aws_server::services::{ec2, elbv2, servicediscovery};
use ecs::loadbalancer::{Hold, LoadBalancers, Settings};
use jiff::Timestamp;
use std::sync::Arc;

/// The lease of the load balancers, where servers share a store: one server has all listeners.
const LEASE: &str = "gantry-elb";

/// The services, for the endpoint.
pub async fn services(instance: &mut Instance) -> Result<()> {
    let Some(shared) = instance.aws.shared.clone() else { return Ok(()) };
    let vpc = Arc::new(ec2::Store::new(&shared, &instance.facts.cluster_cidr.to_string()));
    let domain = format!("elb.{}", instance.config.cluster_domain);
    instance.aws.services.push(servicediscovery::service(&shared));
    instance.aws.services.push(ec2::service(&vpc));
    instance.aws.services.push(elbv2::service(&shared, &domain, vpc));
    Ok(())
}

/// The controller.
pub async fn controller(instance: &mut Instance) -> Result<()> {
    if instance.aws.shared.is_none() {
        return Ok(());
    }
    let client = instance.control.client(Identity::new("system:gantry-elb", [SYSTEM_MASTERS]))?;
    let node = instance.facts.node_ip;
    let bind = instance.config.elb_address.unwrap_or(node);
    let told = if bind.is_unspecified() { node } else { bind };
    // Who names an address wants all listeners there; a server without a node has nowhere to put others.
    let network = instance.node.network().ok().filter(|_| instance.config.elb_address.is_none());
    let range = super::facts::pool("elb-pool", &instance.config.elb_pool)?;
    let (pool, hold): (_, Hold) = match network.zip(range) {
        None => (None, Arc::new(|_| Ok(()))),
        Some((network, range)) => {
            let within = range.clone();
            (
                Some(range),
                Arc::new(move |wanted| network.keep_addresses(&within, wanted).map_err(|e| e.to_string())),
            )
        }
    };
    let settings = Settings { bind, told, pool };
    let (asks, figures) = (client.clone(), instance.control.load_balancers.clone());
    let start = move || {
        let place = (settings.clone(), hold.clone(), figures.clone());
        LoadBalancers::start(asks.clone(), place, Arc::new(Timestamp::now))
    };
    leader::in_turn(instance, LEASE, client, start);
    Ok(())
}

//! Cloud Map: namespaces, services, instances, as objects of `servicediscovery.gantry.dev` in namespace `aws`.
//!
//! Private DNS namespaces are zones of the cluster's DNS (`ecs_model::discovery` says what is in them). What AWS does in
//! the background is done at once; an operation's id holds what GetOperation answers about it.
//! Deliberately not here: public DNS namespaces, Route 53 health checks.

mod discover;
mod find;
mod instance;
mod namespace;
mod operation;
mod service;
mod tag;

use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{Operation, Service, Shared, Table};
use k8s_schema::gvr;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// What the operations share.
pub struct State {
    shared: Shared,
    namespaces: Kept,
    services: Kept,
    instances: Kept,
    /// The newest operations, by account and region, for ListOperations.
    recent: Mutex<VecDeque<(String, String)>>,
}

/// The service.
pub fn service(shared: &Shared) -> Arc<dyn Service> {
    let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Regional);
    let state = Arc::new(State {
        shared: shared.clone(),
        namespaces: kept(gvr::DISCOVERY_NAMESPACES, "Namespace"),
        services: kept(gvr::DISCOVERY_SERVICES, "Service"),
        instances: kept(gvr::DISCOVERY_INSTANCES, "Instance"),
        recent: Mutex::default(),
    });
    Arc::new(Table { name: "servicediscovery", state, operations: OPERATIONS })
}

static OPERATIONS: &[Operation<State>] = &[
    operation!("CreateHttpNamespace", namespace::create_http),
    operation!("CreatePrivateDnsNamespace", namespace::create_private),
    operation!("DeleteNamespace", namespace::delete),
    operation!("GetNamespace", namespace::get),
    operation!("ListNamespaces", namespace::list),
    operation!("UpdateHttpNamespace", namespace::update),
    operation!("UpdatePrivateDnsNamespace", namespace::update),
    operation!("CreateService", service::create),
    operation!("DeleteService", service::delete),
    operation!("GetService", service::get),
    operation!("ListServices", service::list),
    operation!("UpdateService", service::update),
    operation!("GetServiceAttributes", service::attributes),
    operation!("UpdateServiceAttributes", service::update_attributes),
    operation!("DeleteServiceAttributes", service::delete_attributes),
    operation!("RegisterInstance", instance::register),
    operation!("DeregisterInstance", instance::deregister),
    operation!("GetInstance", instance::get),
    operation!("ListInstances", instance::list),
    operation!("GetInstancesHealthStatus", instance::health),
    operation!("UpdateInstanceCustomHealthStatus", instance::set_health),
    operation!("DiscoverInstances", discover::discover),
    operation!("DiscoverInstancesRevision", discover::revision),
    operation!("GetOperation", operation::get),
    operation!("ListOperations", operation::list),
    operation!("TagResource", tag::tag),
    operation!("UntagResource", tag::tag),
    operation!("ListTagsForResource", tag::list),
];

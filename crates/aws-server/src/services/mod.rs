//! One module a service: its shared state, its operation table, and a file a family of operations.

pub mod ec2;
pub mod ecr;
pub mod ecs;
pub mod elbv2;
pub mod events;
pub mod exec;
pub mod iam;
mod kept;
pub mod logs;
pub mod s3;
pub mod secretsmanager;
pub mod servicediscovery;
pub mod ssm;
pub mod sts;
mod tags;

use crate::service::{Service, Shared};
use auth::{AccessKeys, ServiceTokens};
use std::sync::Arc;

/// What services are made of.
#[derive(Clone)]
pub struct Parts {
    /// The API, account, region.
    pub shared: Shared,
    /// Access keys: STS gives out temporary ones.
    pub keys: Arc<AccessKeys>,
    /// Checks the service-account tokens that AssumeRoleWithWebIdentity takes.
    pub tokens: Option<Arc<ServiceTokens>>,
    /// What the registry holds, and where it is reached: for ECR.
    pub registry: Option<Registry>,
}

/// The registry behind ECR.
#[derive(Clone)]
pub struct Registry {
    /// Its content.
    pub depot: image::Depot,
    /// `localhost:5000`: what `repositoryUri` begins with.
    pub host: String,
}

/// All services that need no more than the parts, a line each. (Those with stores of their own, like Logs, are made
/// where their stores are opened.)
pub fn all(parts: &Parts) -> Vec<Arc<dyn Service>> {
    vec![
        ecr::service(parts),
        ecs::service(&parts.shared),
        iam::service(parts),
        secretsmanager::service(parts),
        ssm::service(parts),
        sts::service(parts),
    ]
}

//! The Kubernetes API server: one generic path for every resource, from the schema table.
//!
//! An [`Api`] is one realm's server as a value. Callers inside the process take [`Api::client`]; everybody else
//! comes in by [`Api::serve`]. Both go through the same authorization, admission, validation and storage.
//! Reads are answered from the [`cache`]; nothing is parsed or printed for them.
//! Deliberately not here: the behaviour of kinds (`machinery::kinds`), controllers (they meet us in the store).

pub mod authz;
mod authz_config;
pub mod discovery;
pub mod openapi;

mod access_webhook;
mod admission;
mod aggregation;
mod api;
mod audit;
mod authn;
mod bootstrap;
mod bootstrap_tokens;
mod cache;
mod computed;
mod config;
mod custom;
mod expiry;
mod fairness;
mod fence;
mod heavy;
mod http;
mod inproc;
mod metrics;
mod migration;
mod node_access;
mod node_metrics;
mod outbound;
mod owners;
mod path;
mod pod_figures;
mod presence;
mod rbac;
mod resources;
mod reviews;
mod rules;
mod scan;
mod select;
mod services;
mod storage;
mod subresources;
mod tokens;
mod verbs;
mod watch;
mod webhooks;

pub use access_webhook::{AccessWebhook, Manner};
pub use admission::Plugins;
pub use aggregation::{FRONT_PROXY_CLIENT, FrontProxy};
pub use api::{Api, OpenError};
pub use audit::{AuditConfig, LogConfig, Policy as AuditPolicy};
pub use authn::{
    Anonymous, AuthenticationFile, Oidc, OidcFlags, Provider, Providers, TokenWebhook,
    outside as outside_tokens,
};
pub use authz_config::read as authorization_file;
pub use config::{ApiConfig, DOOR, Door, Duplex, Ipv4Range, NameResolver, NodeDialer, TokenAuthenticator};
pub use outbound::{Endpoint, EndpointTls};

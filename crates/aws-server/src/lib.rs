//! AWS over HTTP: protocols, SigV4, one entry a service, one function an operation.
//!
//! Everything that operations store is an object behind [`client::Client`]; nothing here sees the store. Deliberately
//! not here: controllers (`ecs`), the wire tables (`aws-schema`).

pub mod http;
pub mod policy;
mod protocol;
pub mod service;
pub mod services;
mod validate;

pub use self::http::{Aws, AwsConfig, Upgrade};

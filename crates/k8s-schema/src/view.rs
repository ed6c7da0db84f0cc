//! Typed views: `k8s-openapi` structs decoded from stored JSON.
//!
//! Decoding is instantiated here, once for each kind, so that no other crate compiles it again.

/// A typed reading of an object's JSON bytes.
pub trait View: Sized + Send + Sync + 'static {
    /// Decodes; unknown fields are ignored.
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error>;
}

macro_rules! views {
    ($($t:ty),* $(,)?) => {
        $(impl View for $t {
            fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> { serde_json::from_slice(raw) }
        })*
    };
}

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery};

views! {
    core::ConfigMap, core::Endpoints, core::Namespace, core::Node, core::Pod, core::Secret, core::Service,
    core::ServiceAccount, apps::Deployment, apps::ReplicaSet, discovery::EndpointSlice,
    k8s_openapi::api::node::v1::RuntimeClass, k8s_openapi::api::coordination::v1::Lease,
}

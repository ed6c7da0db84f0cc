//! Aggregation: group versions that another server answers, as APIService objects say.
//!
//! [`Aggregator`] holds the routes as values: read by every request without waiting, written by [`controller`] alone.
//! Invariants: a built-in group version is never routed elsewhere; what another server is told about a caller is the
//! caller's name, never a credential; no redirect reaches a client (attack 20).
//! Deliberately not here: custom resources (`custom`), in-process clients of foreign resources.

pub mod controller;
mod decide;
pub mod discovery;
pub mod proxy;
mod target;

use crate::path::{Path, ResourcePath};
use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use target::Target;

pub use target::named_by;

/// A group and a version.
pub type GroupVersion = (String, String);

/// What the cluster and its front-proxy identity are, as extension servers are told.
#[derive(Clone)]
pub struct FrontProxy {
    /// Authority of ordinary client certificates.
    pub client_ca_pem: String,
    /// Authority of those who may speak for others.
    pub ca_pem: String,
    /// What this server shows to extension servers.
    pub client: auth::Issued,
}

/// The name in the certificate of those who may speak for others.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// A group version elsewhere.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Of the APIService.
    pub name: String,
    /// Priority of the group among others.
    pub group_priority: i64,
    /// Priority of the version in its group.
    pub version_priority: i64,
    /// Where it is.
    target: Target,
    /// Did it answer lately?
    pub available: bool,
    /// Its `APIResourceList`, once it gave one.
    pub resources: Option<Arc<Value>>,
    /// Its OpenAPI v2 document (paths of this group version, all definitions), once it gave one.
    pub v2: Option<Arc<Value>>,
    /// The tag of that document.
    v2_tag: String,
    /// Where its OpenAPI v3 document of this group version is (`/openapi/v3/apis/g/v?hash=…`).
    pub v3: Option<String>,
}

impl Remote {
    /// For discovery alone: a group version that is answered here though its resources are in no table.
    pub(crate) fn listed(priority: i64, resources: Value) -> Remote {
        let nowhere = Target::of(&serde_json::json!({"service": {}}));
        Remote {
            name: String::new(),
            group_priority: priority,
            version_priority: priority,
            target: nowhere.expect("a target needs no more than a service"),
            available: true,
            resources: Some(Arc::new(resources)),
            v2: None,
            v2_tag: String::new(),
            v3: None,
        }
    }
}

/// All routes at one moment.
pub type Remotes = BTreeMap<GroupVersion, Arc<Remote>>;

/// The routes of a running server.
#[derive(Default)]
pub struct Aggregator {
    remotes: RwLock<Arc<Remotes>>,
}

impl Aggregator {
    /// The routes now.
    pub fn now(&self) -> Arc<Remotes> {
        self.remotes.read().clone()
    }

    fn set(&self, remotes: Remotes) {
        *self.remotes.write() = Arc::new(remotes);
    }

    fn edit(&self, at: &GroupVersion, edit: impl FnOnce(&mut Remote)) {
        let mut now = self.remotes.write();
        let mut next = Remotes::clone(&now);
        if let Some(remote) = next.get_mut(at) {
            edit(Arc::make_mut(remote));
            *now = Arc::new(next);
        }
    }

    /// Who answers this path, if another server does: its resources, its resource list, its OpenAPI v3 document.
    pub fn route(&self, path: &Path) -> Option<Arc<Remote>> {
        let remotes = self.remotes.read();
        if remotes.is_empty() {
            return None;
        }
        let (group, version) = match path {
            Path::Resource(ResourcePath { group, version, .. }) => (group.clone(), version.clone()),
            Path::Other(path) => {
                let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
                match segments.as_slice() {
                    ["apis", group, version] => ((*group).to_string(), (*version).to_string()),
                    ["openapi", "v3", "apis", group, version] => {
                        let key = ((*group).to_string(), (*version).to_string());
                        return remotes.get(&key).filter(|r| r.v3.is_some()).cloned();
                    }
                    _ => return None,
                }
            }
        };
        remotes.get(&(group, version)).cloned()
    }

    /// What others add to the OpenAPI v2 document.
    pub fn v2_parts(&self) -> Vec<Arc<Value>> {
        self.remotes.read().values().filter_map(|r| r.v2.clone()).collect()
    }
}

/// An answer read whole.
struct Answer {
    code: u16,
    tag: String,
    body: Bytes,
}

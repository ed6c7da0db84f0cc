//! Resources that nobody stores: their objects are made when somebody asks. One arm a resource.

use crate::Api;
use crate::node_metrics::GROUP as METRICS;
use crate::select::Selection;
use crate::storage::unstored;
use crate::verbs::Call;
use client::{Object, ObjectKey};
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use serde_json::json;
use std::sync::Arc;

/// The components that upstream names. Here all are parts of the process that answers; the store is not.
const COMPONENTS: [&str; 3] = ["scheduler", "controller-manager", "etcd-0"];

/// Are objects of this resource made when asked?
pub fn is_computed(gvr: &Gvr) -> bool {
    *gvr.group == *METRICS || (gvr.group.is_empty() && &*gvr.resource == "componentstatuses")
}

impl Api {
    /// The selected objects of a computed resource.
    pub(crate) async fn compute(&self, selection: &Selection) -> Vec<Arc<Object>> {
        match &*selection.resource.gvr().resource {
            "componentstatuses" => self.components(selection),
            "nodes" => self.node_metrics.nodes(self, selection).await,
            _ => self.node_metrics.pods(self, selection).await,
        }
    }

    /// One of them; 404 in the words of those who serve them upstream.
    pub(crate) async fn compute_one(&self, call: &Call) -> Result<Arc<Object>, ApiError> {
        let (namespace, name) = (&*call.key.namespace, &*call.key.name);
        let selection = Selection::parse(&call.resource, Some(namespace), "", "")?.named(name);
        if let Some(found) = self.compute(&selection).await.into_iter().next() {
            return Ok(found);
        }
        let resource = call.resource.gvr();
        if *resource.group != *METRICS {
            return Err(call.not_found());
        }
        let is_pod = call.resource.row.namespaced;
        let place = if is_pod { format!("{namespace}/{name}") } else { name.to_string() };
        let of = if is_pod { gvr::PODS } else { gvr::NODES };
        let metrics = if is_pod { "podmetrics" } else { "nodemetrics" };
        let missing = match self.cached(&of, namespace, name) {
            None => of,
            Some(_) => Gvr { resource: metrics.into(), ..resource.clone() },
        };
        Err(ApiError::not_found(&missing, &place))
    }

    fn components(&self, selection: &Selection) -> Vec<Arc<Object>> {
        let stored = self.storage.cache.revision() > 0;
        let one = |name: &str| {
            let healthy = name != "etcd-0" || stored;
            let (status, message) =
                if healthy { ("True", "ok") } else { ("False", "the store was not read yet") };
            let body = json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
                "conditions": [{"type": "Healthy", "status": status, "message": message}]});
            unstored(&ObjectKey::cluster(name), 0, body)
        };
        COMPONENTS.into_iter().map(one).filter(|object| selection.matches(object)).collect()
    }
}

//! `pods/eviction`: a delete that a disruption budget may hold back. Budgets are not looked at yet.

use super::create_body;
use crate::Api;
use crate::path::Query;
use crate::verbs::{Call, Written, delete};
use client::Verb;
use machinery::status::ApiError;

impl Api {
    /// Evicts the pod.
    pub(crate) async fn evict_pod(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let body = create_body(verb)?;
        let named = body["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && *named != *call.key.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = delete::parse_options(&body["deleteOptions"], &Query::default())?;
        self.delete(call, options).await
    }
}

//! `serviceaccounts/token`: tokens by the issuer that the config names.

use super::create_body;
use crate::Api;
use crate::storage::unstored;
use crate::verbs::{Call, Effect, Written};
use client::Verb;
use machinery::status::ApiError;

impl Api {
    /// Issues a token for the account.
    pub(crate) async fn issue_token(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let mut request = create_body(verb)?;
        let account = self.storage.get(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        let Some(issuer) = &self.config.token_issuer else {
            return Err(ApiError::new(
                501,
                "NotImplemented",
                "this server does not issue service account tokens yet",
            ));
        };
        let account = account.value().map_err(ApiError::internal)?;
        request["status"] = issuer.issue(&account, &request)?;
        Ok(Written { object: unstored(&call.key, 0, request), effect: Effect::Created, warnings: Vec::new() })
    }
}

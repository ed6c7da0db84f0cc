//! `serviceaccounts/token`: a token for an account, on request.

use super::create_body;
use crate::Api;
use crate::admission::{self, node_restriction};
use crate::storage::unstored;
use crate::verbs::{Call, Effect, Written};
use client::Verb;
use machinery::status::ApiError;

impl Api {
    /// Issues a token for the account.
    pub(crate) async fn issue_token(&self, call: &Call, verb: Verb) -> Result<Written, ApiError> {
        let mut request = create_body(verb)?;
        let warnings = admission::review_own(self, call, "CREATE", &mut request).await?;
        for (field, own) in [("name", &call.key.name), ("namespace", &call.key.namespace)] {
            let given = request["metadata"][field].as_str().unwrap_or_default();
            if !given.is_empty() && *given != **own {
                return Err(ApiError::bad_request(format!(
                    "the {field} of the object ({given}) does not match the {field} on the URL ({own})"
                )));
            }
        }
        let account = self.storage.get(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        let (given, own) = (request["metadata"]["uid"].as_str().unwrap_or_default(), account.uid());
        if !given.is_empty() && given != own {
            let why = format!(
                "the UID in the token request ({given}) does not match the UID of the service account ({own})"
            );
            return Err(ApiError::conflict(call.resource.gvr(), &call.key.name, &why));
        }
        node_restriction::admit_token(self, call, &request)?;
        let answer = self.token_for(&account, request)?;
        Ok(Written { object: unstored(&call.key, 0, answer), effect: Effect::Created, warnings })
    }
}

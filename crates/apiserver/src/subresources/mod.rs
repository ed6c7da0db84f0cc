//! Subresources that are more than a part of their object, one file each.

mod eviction;
mod pod_binding;
pub mod scale;
mod token;

use client::Verb;
use machinery::status::ApiError;
use serde_json::Value;

/// The body of a create on a subresource; 405 for other verbs.
fn create_body(verb: Verb) -> Result<Value, ApiError> {
    match verb {
        Verb::Create(body) if body.is_object() => Ok(body),
        Verb::Create(_) => Err(ApiError::bad_request("the body is no object")),
        _ => Err(crate::verbs::not_allowed()),
    }
}

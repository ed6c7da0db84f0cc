//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7386), strategic merge patch.
//!
//! Pure functions on JSON values. Every depth is bounded by the body reader (`json::DEPTH_MAX`) and by
//! [`OPS_MAX`]; results are checked again by the schema walk. Server-side apply is not here.

mod json;
mod merge;
mod strategic;

pub use json::json;
pub use merge::merge;
pub use strategic::strategic;

use crate::status::ApiError;

/// Operations in one JSON patch; upstream's limit.
pub const OPS_MAX: usize = 10_000;
/// Bytes that `copy` operations may add in all; stops a patch that doubles a document again and again.
pub const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Why a patch was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is no patch: 400.
    #[error("{0}")]
    Malformed(String),
    /// Too many operations or too much copying: 413.
    #[error("{0}")]
    TooLarge(String),
    /// It does not fit the object (a missing path, a failed test, no merge key): 422.
    #[error("{0}")]
    Inapplicable(String),
}

impl From<PatchError> for ApiError {
    fn from(e: PatchError) -> Self {
        match e {
            PatchError::Malformed(words) => ApiError::bad_request(words),
            PatchError::TooLarge(words) => {
                ApiError::new(413, "RequestEntityTooLarge", format!("Request entity is too large: {words}"))
            }
            // Upstream keeps the cause to itself here; the words are worth more than the likeness.
            PatchError::Inapplicable(words) => ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {words}"),
            ),
        }
    }
}

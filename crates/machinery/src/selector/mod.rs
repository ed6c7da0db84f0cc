//! Label and field selectors: parse, match, print, in Kubernetes' grammar and error words.

mod fields;
mod labels;

pub use fields::{FieldRequirement, FieldSelector};
pub use labels::{LabelSelector, Op, Requirement};

/// Why a selector was refused; the API answers 400 with these words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl From<SelectorError> for crate::status::ApiError {
    fn from(e: SelectorError) -> Self {
        crate::status::ApiError::bad_request(e.0)
    }
}

//! A request that ECS refuses, in ECS's own words.

/// Code and message of a modelled ECS error. The front end gives it a protocol's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// `ClientException`, `InvalidParameterException`, ….
    pub code: &'static str,
    /// The sentence a user reads.
    pub message: String,
}

impl Refusal {
    /// `ClientException`: what task definitions are refused with.
    pub fn client(message: impl Into<String>) -> Self {
        Refusal { code: "ClientException", message: message.into() }
    }

    /// `InvalidParameterException`: what most other calls are refused with.
    pub fn parameter(message: impl Into<String>) -> Self {
        Refusal { code: "InvalidParameterException", message: message.into() }
    }

    /// `UnsupportedFeatureException`: what ECS has and Gantry does not do, so that nobody gets something else.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Refusal { code: "UnsupportedFeatureException", message: message.into() }
    }
}

/// A rule of a request as a line: `refuse_if(name.is_empty(), || parameter("…"))?`.
///
/// # Errors
/// It is as it must not be: what `error` makes.
pub fn refuse_if<E>(bad: bool, error: impl FnOnce() -> E) -> Result<(), E> {
    if bad { Err(error()) } else { Ok(()) }
}

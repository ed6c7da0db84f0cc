//! Server-side apply: who owns which field (`metadata.managedFields`), and applying a configuration to an object.
//!
//! [`update`] records what any other write changed; [`apply`] merges a configuration, drops what its manager no
//! longer wants and nobody else owns, and refuses to take over fields of others. Both are pure and see objects in
//! the version that the caller speaks. Sets of managers that spoke another version are compared in that version.
//! Deliberately not here: a list or map that turned atomic or granular after it was owned (only schemas made at run
//! time can do that), unions.

mod compare;
mod last_applied;
mod managers;
mod merge;
mod set;
mod shape;
#[cfg(test)]
mod tests;
mod update;

pub use managers::same_but_times;
pub use update::{apply, update};

use crate::status::{ApiError, Cause};
use k8s_schema::ResourceRow;

/// Longest manager name, as upstream.
pub const MANAGER_MAX: usize = 128;

/// One write, as ownership sees it.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The manager's name.
    pub manager: &'a str,
    /// The subresource that is written through, "" for the object itself.
    pub subresource: &'a str,
    /// Now (RFC 3339).
    pub now: &'a str,
    /// The resource in the version of the request.
    pub row: &'a ResourceRow,
    /// The same resource in another version, by `apiVersion`; `None`: not served any more.
    pub sibling: &'a dyn Fn(&str) -> Option<&'a ResourceRow>,
}

/// A field that the applier wants otherwise than its present owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner, as messages name it.
    pub owner: String,
    /// The field's path.
    pub path: String,
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The configuration is none, or of another kind: 400.
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the schema; upstream answers 500 here.
    #[error("{0}")]
    Untyped(String),
    /// Others own what it wants to change: 409.
    #[error("{}", message(.0))]
    Conflicts(Vec<Conflict>),
}

fn message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.owner, one.path);
    }
    let mut lines = Vec::new();
    let mut owner = "";
    for conflict in conflicts {
        if conflict.owner != owner {
            owner = &conflict.owner;
            lines.push(format!("conflicts with {owner}:"));
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Malformed(_) => ApiError::bad_request(text),
            ApplyError::Untyped(_) => ApiError::new(500, "", text),
            ApplyError::Conflicts(conflicts) => {
                let mut status = ApiError::new(409, "Conflict", text);
                let cause = |c: Conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", c.owner),
                    field: c.path,
                };
                status.causes = conflicts.into_iter().map(cause).collect();
                status
            }
        }
    }
}

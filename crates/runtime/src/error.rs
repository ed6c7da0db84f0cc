//! What can go wrong between the agent and a pod.

use crate::cgroup::CgroupError;
use std::io;
use std::path::PathBuf;

/// A failed operation of the runtime. The text of [`RuntimeError::Shim`] and [`RuntimeError::Start`] is meant for
/// users (`CreateContainerError`, `StartError`).
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file operation on the node.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Cgroups. Of these, [`CgroupError::Stuck`] is worth another try later.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No pod of that UID.
    #[error("no pod {0}")]
    NoPod(String),
    /// No container of that id in the pod.
    #[error("no container {0}")]
    NoContainer(String),
    /// There is one already.
    #[error("{0} exists already")]
    Exists(String),
    /// An id that cannot name a folder.
    #[error("bad name {0:?}")]
    BadName(String),
    /// A RuntimeClass handler that is not configured.
    #[error("no runtime for {0:?} is configured")]
    NoHandler(String),
    /// A step in the shim or in the container's first process failed.
    #[error("{step}: {error}")]
    Shim {
        /// Name of the step.
        step: String,
        /// Why.
        error: String,
    },
    /// The container's program could not be executed.
    #[error("{0}")]
    Start(String),
    /// The request is larger than the protocol allows.
    #[error("the command is too long")]
    TooLong,
    /// The shim ended, or the pod is being removed.
    #[error("the pod's shim is gone")]
    Gone,
    /// Something did not happen in time.
    #[error("{step}: no answer after {seconds} s")]
    Timeout {
        /// What.
        step: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
}

pub(crate) fn io_error<'a>(
    step: &'static str,
    path: &'a std::path::Path,
) -> impl FnOnce(io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::Io { step, path: path.to_owned(), source }
}

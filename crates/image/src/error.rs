//! Why an image was not taken in: one variant a step, so that a caller can tell a bad image from a full disk.

use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on the image store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host's file system refused a step.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The input is none of the formats that we read.
    #[error("not a container image ({0}): expected a docker-archive, an oci-archive or an OCI layout folder")]
    NotAnImage(String),
    /// Bytes do not have the digest that the image promises.
    #[error("{what} has digest {found}, the image promises {wanted}")]
    Digest {
        /// Which blob.
        what: String,
        /// The promise.
        wanted: String,
        /// The truth.
        found: String,
    },
    /// A JSON document is malformed or contradicts itself.
    #[error("bad {what}: {why}")]
    Document {
        /// Which document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The image refers to a blob that the archive does not hold.
    #[error("the image refers to {0}, which is not in the archive")]
    Missing(String),
    /// Larger than a limit of ours allows.
    #[error("{what} exceeds the limit of {limit}")]
    TooBig {
        /// What is too big.
        what: String,
        /// The limit, with its unit where it has one.
        limit: String,
    },
    /// The disk is too full to go on.
    #[error("less than {floor_bytes} bytes would be left free on the disk of the image store")]
    NoSpace {
        /// What must stay free.
        floor_bytes: u64,
    },
    /// A tar stream is broken.
    #[error("bad tar stream: {0}")]
    Tar(String),
    /// A layer holds an entry that is unsafe or cannot be made.
    #[error("layer entry {path:?} refused: {why}")]
    Entry {
        /// Its path as the layer gives it.
        path: String,
        /// Why.
        why: String,
    },
    /// No manifest fits this machine.
    #[error("no image for platform {wanted} in the index (it has: {have})")]
    Platform {
        /// Ours.
        wanted: String,
        /// Theirs.
        have: String,
    },
    /// A name is not an image reference.
    #[error(transparent)]
    Reference(#[from] crate::ReferenceError),
    /// The blocking task that did the work was lost (the runtime is shutting down).
    #[error("the image task was cancelled")]
    Cancelled,
}

impl ImageError {
    /// Maps an I/O error of `step` on `path`; an `ImageError` that travelled through `io::Error` comes out as itself.
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.to_path_buf();
        move |source| match source.downcast::<ImageError>() {
            Ok(inner) => inner,
            Err(source) => ImageError::Io { step, path, source },
        }
    }

    /// The way through a `Read` implementation.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    pub(crate) fn document(what: &str, why: impl std::fmt::Display) -> ImageError {
        ImageError::Document { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn entry(path: &[u8], why: impl std::fmt::Display) -> ImageError {
        ImageError::Entry { path: String::from_utf8_lossy(path).into_owned(), why: why.to_string() }
    }

    pub(crate) fn too_big(what: impl Into<String>, limit: impl std::fmt::Display) -> ImageError {
        ImageError::TooBig { what: what.into(), limit: limit.to_string() }
    }
}

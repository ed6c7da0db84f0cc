//! Why the registry's content was not read or changed: one variant for each answer that a client can tell apart.

use crate::digest::Digest;
use crate::error::ImageError;

/// A refused or failed operation.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// Not a repository name.
    #[error("invalid repository name {0:?}")]
    NameInvalid(String),
    /// No such repository.
    #[error("repository {0:?} is not known")]
    NameUnknown(String),
    /// The repository has no such blob.
    #[error("blob {0} is not known to the repository")]
    BlobUnknown(Digest),
    /// No such upload: ended, expired, or of another repository.
    #[error("upload {0:?} is not known")]
    UploadUnknown(String),
    /// A chunk that does not fit where the upload stands.
    #[error("{0}")]
    UploadInvalid(String),
    /// Not a digest, or not the digest of the bytes.
    #[error("{0}")]
    DigestInvalid(String),
    /// Larger than a limit.
    #[error("{0}")]
    TooBig(String),
    /// No such tag or manifest.
    #[error("manifest {0:?} is not known to the repository")]
    ManifestUnknown(String),
    /// Not a manifest that we take.
    #[error("{0}")]
    ManifestInvalid(String),
    /// A manifest refers to what the repository does not have.
    #[error("the manifest refers to blobs that the repository does not have")]
    ManifestBlobUnknown(Vec<Digest>),
    /// A limit on how much there may be.
    #[error("{0}: delete some first")]
    TooMany(String),
    /// Not allowed as things stand.
    #[error("{0}")]
    Denied(String),
    /// The disk.
    #[error(transparent)]
    Image(#[from] ImageError),
}

//! The node's images: a content-addressed store of unpacked layers, and the ways into it.
//!
//! Reads docker-archive, oci-archive (either gzip'd as a whole) and OCI layout folders; writes, below one folder,
//! `blobs/sha256/<hex>` (configs and manifests), `layers/<hex of the diff-id>/` (unpacked trees, shared by images)
//! and `images.json` (which names mean what).
//!
//! Invariants: what `images.json` lists is on disk whole, verified and synced; nothing below `layers/` is ever
//! written again after it got its name; every byte taken in was checked against its digest; an image is data from
//! an enemy, so every read has a limit (see [`Limits`]) and every path is resolved inside its layer.
//! Several processes may use one folder (`gantry image load` beside `gantry up`): file locks order them.
//!
//! Deliberately not here: pulling from registries, mounting (that is `runtime`), which images a node should drop.

mod digest;
mod error;
mod fs;
mod journal;
mod limits;
mod load;
mod oci;
mod reference;
mod source;
mod store;
mod tarball;
mod unpack;
mod watch;

pub use digest::Digest;
pub use error::ImageError;
pub use limits::Limits;
pub use load::{Loaded, Progress};
pub use oci::{ImageConfig, Platform};
pub use reference::{Reference, ReferenceError};
pub use store::{Image, Images, Lease, Sweep};

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
//! [`Depot`] holds what a registry holds (compressed blobs, manifests byte for byte, tags); [`Puller`] brings images
//! from it, or from registries elsewhere, into the store when a container first needs them.
//!
//! Deliberately not here: HTTP towards clients (that is `registry`), mounting (that is `runtime`), pull policies.

mod depot;
mod digest;
mod error;
mod fs;
mod journal;
mod limits;
mod load;
mod net;
mod oci;
mod pull;
mod reference;
mod room;
mod source;
mod spool;
mod store;
mod taken;
mod tarball;
mod unpack;
mod watch;

pub use depot::{
    Committed, Depot, DepotError, GcHow, Listed, Manifest, ManifestRef, Put, Referrer, Stored, Swept, Upload,
};
pub use digest::{Digest, Hasher};
pub use error::ImageError;
pub use limits::Limits;
pub use load::{Loaded, Progress};
pub use net::{Outgoing, resolve, send};
pub use oci::{ImageConfig, Platform};
pub use pull::{Keyring, Parent, PullConfig, PullError, Pulled, Puller, TlsSource};
pub use reference::{Reference, ReferenceError, is_repository, is_tag};
pub use room::DiskUse;
pub use spool::{Pieces, PumpError, Writing, pump};
pub use store::{Image, Images, Lease, Sweep};

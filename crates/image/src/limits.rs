//! What an image may cost: every limit with its reason. A limit hit is an error that names it, never a truncation.

/// Bounds on what is taken in. The defaults let every honest image that we know pass.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one JSON document (manifest, index, config). Registries stop at 4 MiB too.
    pub document_bytes: u64,
    /// Bytes of a whole archive after removing its outer compression, and of one layer unpacked.
    pub archive_bytes: u64,
    /// Bytes of one layer, unpacked.
    pub layer_bytes: u64,
    /// Entries of one tar stream: bounds inodes and time. The largest images seen have about 500,000.
    pub entries: u64,
    /// Unpacked bytes per compressed byte, once past `ratio_slack_bytes`. Text reaches 20, zeros 1,030.
    pub ratio: u64,
    /// Below so many unpacked bytes no ratio is looked at: small layers may be extreme.
    pub ratio_slack_bytes: u64,
    /// Layers of an image: overlayfs takes at most 500 lower layers.
    pub layers: usize,
    /// Images of one archive.
    pub images: usize,
    /// Free bytes that must stay on the disk: running pods need room more than a new image does.
    pub free_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            document_bytes: 4 << 20,
            archive_bytes: 128 << 30,
            layer_bytes: 64 << 30,
            entries: 2_000_000,
            ratio: 400,
            ratio_slack_bytes: 256 << 20,
            layers: 500,
            images: 1000,
            free_floor_bytes: 256 << 20,
        }
    }
}

/// Longest path or link target, as in Linux (`PATH_MAX`).
pub(crate) const PATH_BYTES: usize = 4096;
/// Largest extended header (pax, GNU long name) that is held in memory; Go's reader takes 1 MiB too.
pub(crate) const EXTENDED_HEADER_BYTES: u64 = 1 << 20;
/// Memory for folder times that wait for the end of a layer.
pub(crate) const DEFERRED_BYTES: usize = 64 << 20;
/// Symbolic links followed between members of an archive (old `docker save` links equal layers).
pub(crate) const MEMBER_LINKS: usize = 8;
/// Memory for the names of an archive's members.
pub(crate) const MEMBER_NAME_BYTES: usize = 64 << 20;
/// Indexes within indexes.
pub(crate) const INDEX_DEPTH: usize = 4;
/// Free space is looked at once in so many bytes written.
pub(crate) const SPACE_CHECK_BYTES: u64 = 16 << 20;

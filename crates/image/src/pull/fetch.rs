//! From a top document to everything that its image needs on this machine: documents, config, missing layers.
//!
//! The documents are checked as they come (digest, size, kind); layers go to anonymous files, three at a time, and
//! are unpacked by the store, which checks them again from the inside.

use super::PullError;
use super::remote::Remote;
use crate::depot::{Depot, ManifestRef};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::limits::INDEX_DEPTH;
use crate::load::choose;
use crate::oci::{ConfigDocument, Descriptor, Parsed};
use crate::reference::Reference;
use crate::source::{Source, blob_name};
use crate::spool::Writing;
use crate::store::Images;
use futures_util::StreamExt;
use futures_util::stream::iter;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};

/// Layers on their way at once, as everywhere in the field.
const LAYERS_AT_ONCE: usize = 3;

/// Where an image comes from.
pub(super) enum Origin {
    /// Our own registry.
    Own { depot: Depot, repository: String },
    /// Another one.
    Remote(Box<Remote>),
}

/// What came.
pub(super) struct Fetched {
    /// The digest of what the name meant.
    pub(super) top: Digest,
    pub(super) source: Source,
}

/// A fetch under way.
pub(super) struct Fetch<'a> {
    pub(super) images: &'a Images,
    pub(super) origin: &'a Origin,
}

impl Fetch<'_> {
    /// Fetches what `reference` means there.
    pub(super) async fn run(&self, reference: &Reference) -> Result<Fetched, PullError> {
        let (top, bytes) = self.top(reference).await?;
        let mut files = BTreeMap::new();
        let (mut digest, mut bytes, mut depth) = (top.clone(), bytes, 0);
        let (config, layers) = loop {
            self.keep(&mut files, &digest, &bytes)?;
            match Parsed::from_json(&bytes, "manifest")? {
                Parsed::Manifest { config, layers } => break (config, layers),
                Parsed::Index(_) if depth == INDEX_DEPTH => {
                    return Err(ImageError::too_big("the nesting of indexes", INDEX_DEPTH).into());
                }
                Parsed::Index(list) => {
                    self.count("manifests in an index", list.len(), self.images.inner.limits.images)?;
                    let chosen = choose(list, self.images.platform())?;
                    digest = chosen.digest()?;
                    bytes = self.manifest(&digest).await?;
                    depth += 1;
                }
            }
        };
        self.count("layers of an image", layers.len(), self.images.inner.limits.layers)?;
        let document_bytes = self.images.inner.limits.document_bytes;
        if config.size > document_bytes {
            return Err(ImageError::too_big("an image config", format!("{document_bytes} bytes")).into());
        }
        let (name, file) = self.blob(config).await?;
        let mut text = Vec::new();
        let read = file.try_clone().and_then(|f| at_start(f)?.take(document_bytes).read_to_end(&mut text));
        read.map_err(ImageError::io("read", std::path::Path::new(&name)))?;
        files.insert(name, file);
        let diff_ids = ConfigDocument::from_json(&text)?.diff_ids()?;
        if diff_ids.len() != layers.len() {
            let why = format!("{} diff_ids for {} layers", diff_ids.len(), layers.len());
            return Err(ImageError::document("image config", why).into());
        }
        let total = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        if total > self.images.inner.limits.archive_bytes {
            return Err(ImageError::too_big("an image", self.images.inner.limits.archive_bytes).into());
        }
        let missing = diff_ids.iter().zip(&layers).filter(|(id, _)| !self.images.has_layer(id));
        // An equal layer twice is one blob.
        let wanted: BTreeMap<&str, &Descriptor> = missing.map(|(_, l)| (l.digest.as_str(), l)).collect();
        let blobs: Vec<_> = wanted.into_values().map(|layer| self.blob(layer.clone())).collect();
        let mut coming = iter(blobs).buffer_unordered(LAYERS_AT_ONCE);
        while let Some(blob) = coming.next().await {
            let (name, file) = blob?;
            tracing::debug!(blob = name, "layer there");
            files.insert(name, file);
        }
        drop(coming);
        Ok(Fetched { top, source: Source::Blobs(files) })
    }

    fn count(&self, what: &str, count: usize, limit: usize) -> Result<(), PullError> {
        if count <= limit {
            Ok(())
        } else {
            Err(ImageError::too_big(format!("the number of {what}"), limit).into())
        }
    }

    /// What the name means: the document and its true digest.
    async fn top(&self, reference: &Reference) -> Result<(Digest, Vec<u8>), PullError> {
        let pinned = reference.digest.as_deref().and_then(Digest::parse);
        if let Some(digest) = pinned {
            let bytes = self.manifest(&digest).await?;
            return Ok((digest, bytes));
        }
        let tag = reference.tag.as_deref().unwrap_or("latest");
        match self.origin {
            Origin::Own { depot, repository } => {
                let manifest = depot.manifest(repository, &ManifestRef::Tag(tag.into()))?;
                Ok((manifest.digest, manifest.bytes))
            }
            Origin::Remote(remote) => {
                let (bytes, claimed) = remote.document(tag, self.images.inner.limits.document_bytes).await?;
                let found = Digest::of(&bytes);
                same("manifest", &claimed.unwrap_or_else(|| found.clone()), &found)?;
                Ok((found, bytes))
            }
        }
    }

    /// A manifest or index by digest, checked.
    async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        let bytes = match self.origin {
            Origin::Own { depot, repository } => {
                depot.manifest(repository, &ManifestRef::Digest(digest.clone()))?.bytes
            }
            Origin::Remote(remote) => {
                remote.document(digest.as_str(), self.images.inner.limits.document_bytes).await?.0
            }
        };
        same("manifest", digest, &Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A blob as a file, by the name that it has in an OCI layout.
    async fn blob(&self, descriptor: Descriptor) -> Result<(String, File), PullError> {
        let digest = descriptor.digest()?;
        let limit = self.images.inner.limits.layer_bytes;
        if descriptor.size > limit {
            return Err(ImageError::too_big("a layer", format!("{limit} bytes")).into());
        }
        let file = match self.origin {
            Origin::Own { depot, repository } => depot.blob(repository, &digest)?.file,
            Origin::Remote(remote) => {
                let floor = self.images.inner.limits.free_floor_bytes;
                let writing = Writing::new(self.images.spool_file()?, descriptor.size, floor);
                remote.blob(&digest, descriptor.size, writing).await?.into_file()
            }
        };
        Ok((blob_name(&digest), file))
    }

    fn keep(
        &self,
        files: &mut BTreeMap<String, File>,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), PullError> {
        let mut file = self.images.spool_file()?;
        file.write_all(bytes).map_err(ImageError::io("write", std::path::Path::new("a manifest")))?;
        files.insert(blob_name(digest), file);
        Ok(())
    }
}

fn at_start(mut file: File) -> std::io::Result<File> {
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

fn same(what: &str, wanted: &Digest, found: &Digest) -> Result<(), PullError> {
    match wanted == found {
        true => Ok(()),
        false => {
            let (what, wanted, found) = (what.into(), wanted.to_string(), found.to_string());
            Err(ImageError::Digest { what, wanted, found }.into())
        }
    }
}

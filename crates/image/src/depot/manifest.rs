//! Manifests and indexes: what is taken, and what they refer to. The checking is pure.
//!
//! Four media types (OCI image manifest and index, Docker schema 2 manifest and list). A document is exactly one of
//! these and says the same in its header, its `mediaType` and its fields (CVE-2021-41190). Layers with `urls` of
//! their own may be missing, as everywhere; so may the subject of a referrer.

use super::repository::{Record, Repository};
use super::{Depot, DepotError};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::fs::write_durably;
use crate::oci::{Parsed, from_json};
use crate::reference::is_tag;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// Descriptors in one document: more than any image or index has, and bounds the work of checking one.
const DESCRIPTORS_MAX: usize = 10_000;
/// A list of referrers ends there, as a manifest would.
const REFERRERS_BYTES: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

const MEDIA_TYPES: &[(&str, Kind)] = &[
    ("application/vnd.oci.image.manifest.v1+json", Kind::Manifest),
    ("application/vnd.oci.image.index.v1+json", Kind::Index),
    ("application/vnd.docker.distribution.manifest.v2+json", Kind::Manifest),
    ("application/vnd.docker.distribution.manifest.list.v2+json", Kind::Index),
];

/// How a manifest is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestRef {
    /// By tag.
    Tag(String),
    /// By digest.
    Digest(Digest),
}

impl ManifestRef {
    /// Reads a tag or digest.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<ManifestRef, DepotError> {
        if text.contains(':') {
            let digest = Digest::parse(text).map(ManifestRef::Digest);
            return digest.ok_or_else(|| DepotError::DigestInvalid(format!("unsupported digest {text:?}")));
        }
        match is_tag(text) {
            true => Ok(ManifestRef::Tag(text.into())),
            false => Err(DepotError::ManifestInvalid(format!("{text:?} is not a tag"))),
        }
    }
}

/// A manifest as it was pushed.
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What became of a pushed manifest.
pub struct Put {
    /// Its digest.
    pub digest: Digest,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
}

/// A manifest about another.
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// What it is.
    pub artifact_type: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The fields of either document, as far as a registry looks at them.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Link>,
    layers: Option<Vec<Link>>,
    manifests: Option<Vec<Link>>,
    subject: Option<Link>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Link {
    media_type: String,
    digest: String,
    size: u64,
    urls: Option<Vec<Value>>,
}

impl Link {
    fn checked(&self) -> Result<(Digest, u64), DepotError> {
        let digest = Digest::parse(&self.digest);
        let unsupported = || DepotError::ManifestInvalid(format!("unsupported digest {:?}", self.digest));
        Ok((digest.ok_or_else(unsupported)?, self.size))
    }
}

/// A checked document: what it refers to.
struct Checked {
    media_type: String,
    blobs: Vec<(Digest, u64)>,
    children: Vec<(Digest, u64)>,
    subject: Option<Digest>,
}

fn invalid(why: impl std::fmt::Display) -> DepotError {
    DepotError::ManifestInvalid(why.to_string())
}

fn check(content_type: Option<&str>, bytes: &[u8]) -> Result<Checked, DepotError> {
    let parsed = Parsed::from_json(bytes, "manifest").map_err(invalid)?;
    let wire: Wire = from_json(bytes, "manifest").map_err(invalid)?;
    let said = content_type.map(|t| t.split(';').next().unwrap_or_default().trim()).filter(|t| !t.is_empty());
    let media_type = match (said, wire.media_type.as_deref().filter(|t| !t.is_empty())) {
        (Some(said), Some(own)) if said != own => {
            return Err(invalid(format!("Content-Type is {said:?}, the document says {own:?}")));
        }
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(invalid("the manifest has no media type")),
    };
    let kind = MEDIA_TYPES.iter().find(|(name, _)| *name == media_type).map(|(_, kind)| *kind);
    let fits = match (kind, parsed) {
        (None, _) => return Err(invalid(format!("media type {media_type:?} is not supported"))),
        (Some(Kind::Manifest), Parsed::Manifest { .. }) | (Some(Kind::Index), Parsed::Index(_)) => true,
        _ => false,
    };
    if !fits {
        return Err(invalid(format!("the document is not a {media_type}")));
    }
    let layers = wire.layers.unwrap_or_default();
    let children = wire.manifests.unwrap_or_default();
    if layers.len() + children.len() > DESCRIPTORS_MAX {
        return Err(invalid(format!("more than {DESCRIPTORS_MAX} descriptors")));
    }
    let here = layers.iter().filter(|l| l.urls.as_ref().is_none_or(Vec::is_empty)).chain(&wire.config);
    Ok(Checked {
        media_type: media_type.into(),
        blobs: here.map(Link::checked).collect::<Result<_, _>>()?,
        children: children.iter().map(Link::checked).collect::<Result<_, _>>()?,
        subject: wire.subject.map(|s| s.checked()).transpose()?.map(|(digest, _)| digest),
    })
}

/// All blobs and all manifests that a document (which was checked when it came) refers to.
pub(super) fn references(bytes: &[u8]) -> Result<(Vec<Digest>, Vec<Digest>), ImageError> {
    let wire: Wire = from_json(bytes, "stored manifest")?;
    let digests = |links: Option<Vec<Link>>| -> Vec<Digest> {
        links.into_iter().flatten().filter_map(|l| Digest::parse(&l.digest)).collect()
    };
    let mut blobs = digests(wire.layers);
    blobs.extend(wire.config.and_then(|c| Digest::parse(&c.digest)));
    Ok((blobs, digests(wire.manifests)))
}

impl Depot {
    /// Takes a manifest in, under its digest and, when asked so, under a tag.
    ///
    /// # Errors
    /// It is not one that we take, it lacks blobs, it has another digest; the disk.
    pub fn put_manifest(
        &self,
        name: &str,
        reference: &ManifestRef,
        content_type: Option<&str>,
        bytes: &[u8],
    ) -> Result<Put, DepotError> {
        let limit = self.inner.limits.document_bytes;
        if bytes.len() as u64 > limit {
            return Err(DepotError::TooBig(format!("a manifest exceeds the limit of {limit} bytes")));
        }
        let digest = Digest::of(bytes);
        if let ManifestRef::Digest(wanted) = reference
            && *wanted != digest
        {
            return Err(DepotError::DigestInvalid(format!("the content has digest {digest}, not {wanted}")));
        }
        let checked = check(content_type, bytes)?;
        let _writer = self.inner.writer.lock();
        let there = self.repository(name).unwrap_or_default();
        all_there(&there, &checked)?;
        let folder = self.inner.folder.join("blobs/sha256");
        write_durably(&folder, digest.hex(), bytes).map_err(ImageError::io("write a blob to", &folder))?;
        let size = bytes.len() as u64;
        let subject = checked.subject;
        let record = Record { media_type: checked.media_type, size, subject: subject.clone() };
        self.change(name, |repository| {
            repository.add_manifest(&digest, record)?;
            match reference {
                ManifestRef::Tag(tag) => repository.add_tag(tag, &digest),
                ManifestRef::Digest(_) => Ok(()),
            }
        })?;
        Ok(Put { digest, subject })
    }

    /// A manifest with its bytes.
    ///
    /// # Errors
    /// There is none such; the disk.
    pub fn manifest(&self, name: &str, reference: &ManifestRef) -> Result<Manifest, DepotError> {
        let unknown = || {
            DepotError::ManifestUnknown(match reference {
                ManifestRef::Tag(tag) => tag.clone(),
                ManifestRef::Digest(digest) => digest.to_string(),
            })
        };
        let repository = self.repository(name).ok_or_else(unknown)?;
        let digest = match reference {
            ManifestRef::Tag(tag) => repository.tags.get(tag).ok_or_else(unknown)?,
            ManifestRef::Digest(digest) => digest,
        };
        let record = repository.manifests.get(digest).ok_or_else(unknown)?;
        let bytes = self.document(digest)?;
        Ok(Manifest { digest: digest.clone(), media_type: record.media_type.clone(), bytes })
    }

    /// Is there such a manifest?
    pub fn has_manifest(&self, name: &str, reference: &ManifestRef) -> bool {
        self.repository(name).is_some_and(|repository| match reference {
            ManifestRef::Tag(tag) => repository.tags.contains_key(tag),
            ManifestRef::Digest(digest) => repository.manifests.contains_key(digest),
        })
    }

    /// What a tag means now.
    pub fn resolve(&self, name: &str, tag: &str) -> Option<Digest> {
        self.repository(name)?.tags.get(tag).cloned()
    }

    /// Removes a tag; or a manifest with all its tags.
    ///
    /// # Errors
    /// There is none such; the disk.
    pub fn remove_manifest(&self, name: &str, reference: &ManifestRef) -> Result<(), DepotError> {
        let _writer = self.inner.writer.lock();
        if self.repository(name).is_none() {
            return Err(DepotError::NameUnknown(name.into()));
        }
        self.change(name, |repository| match reference {
            ManifestRef::Tag(tag) if repository.tags.remove(tag).is_some() => Ok(()),
            ManifestRef::Digest(digest) if repository.remove_manifest(digest) => Ok(()),
            ManifestRef::Tag(tag) => Err(DepotError::ManifestUnknown(tag.clone())),
            ManifestRef::Digest(digest) => Err(DepotError::ManifestUnknown(digest.to_string())),
        })
    }

    /// The manifests about `subject`, which need not exist; of one artifact type when asked so.
    ///
    /// # Errors
    /// The disk.
    pub fn referrers(
        &self,
        name: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Referrer>, DepotError> {
        let repository = self.repository(name).unwrap_or_default();
        let (mut list, mut bytes) = (Vec::new(), 0);
        for (digest, record) in
            repository.manifests.iter().filter(|(_, r)| r.subject.as_ref() == Some(subject))
        {
            let wire: Wire = from_json(&self.document(digest)?, "stored manifest")?;
            let of_config = wire.config.map(|c| c.media_type).unwrap_or_default();
            let own = wire.artifact_type.filter(|t| !t.is_empty()).unwrap_or(of_config);
            if artifact_type.is_some_and(|wanted| wanted != own) {
                continue;
            }
            bytes += record.size;
            if bytes > REFERRERS_BYTES {
                break;
            }
            list.push(Referrer {
                digest: digest.clone(),
                media_type: record.media_type.clone(),
                size: record.size,
                artifact_type: own,
                annotations: wire.annotations.unwrap_or_default(),
            });
        }
        Ok(list)
    }

    /// The bytes of a stored manifest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let stored = self.stored(digest)?.ok_or_else(|| ImageError::Missing(digest.to_string()))?;
        let mut bytes = Vec::new();
        let read = stored.file.take(self.inner.limits.document_bytes).read_to_end(&mut bytes);
        read.map_err(ImageError::io("read", &self.blob_path(digest)))?;
        Ok(bytes)
    }

    /// Every blob that a manifest of the repository refers to.
    pub(super) fn referenced(&self, repository: &Repository) -> Result<BTreeSet<Digest>, ImageError> {
        let mut all = BTreeSet::new();
        for digest in repository.manifests.keys() {
            all.extend(references(&self.document(digest)?)?.0);
        }
        Ok(all)
    }
}

fn all_there(repository: &Repository, checked: &Checked) -> Result<(), DepotError> {
    let mut missing = Vec::new();
    let sizes = |digest: &Digest| repository.manifests.get(digest).map(|r| r.size);
    let blobs = checked.blobs.iter().map(|(d, size)| (d, size, repository.blobs.get(d).copied()));
    let children = checked.children.iter().map(|(d, size)| (d, size, sizes(d)));
    for (digest, size, found) in blobs.chain(children) {
        match found {
            None => missing.push(digest.clone()),
            Some(found) if found != *size => {
                return Err(invalid(format!("{digest} has {found} bytes, the manifest says {size}")));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(DepotError::ManifestBlobUnknown(missing)) }
}

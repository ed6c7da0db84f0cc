//! From an archive or folder to images in the store: find (pure reading), unpack what is missing, register.
//!
//! Reads a [`Source`]; writes layers through the store's staging folder. An OCI layout decides over a
//! `manifest.json` beside it (as in containerd); names that only the latter gives are added when it means the same
//! config. Invariant: nothing is registered before every byte of it was checked.

use crate::digest::{Digest, HashRead};
use crate::error::ImageError;
use crate::limits::{INDEX_DEPTH, Limits};
use crate::oci::{ConfigDocument, Descriptor, DockerImage, Parsed, Platform, from_json};
use crate::reference::Reference;
use crate::source::{Range, Source, blob_name, decompressed, normal};
use crate::unpack::unpack;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;

/// An image that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Digest of its config, `sha256:…`.
    pub id: String,
    /// The names it has now, normalised.
    pub names: Vec<String>,
    /// Bytes of its layers, unpacked.
    pub size: u64,
}

/// What a load is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The archive was read through: so many images and distinct layers are to be had.
    Found {
        /// Images.
        images: usize,
        /// Layers that have to be unpacked.
        layers: usize,
    },
    /// A layer was unpacked.
    Unpacked {
        /// Its diff-id.
        layer: String,
        /// Bytes unpacked.
        bytes: u64,
    },
}

/// An image in a source, documents checked, layers not yet looked at.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Option<(Digest, Vec<u8>)>,
    /// The index that it was chosen from, when that is what the names mean.
    pub(crate) index: Option<(Digest, Vec<u8>)>,
    pub(crate) names: BTreeSet<String>,
    pub(crate) layers: Vec<FoundLayer>,
}

/// A layer in a source.
#[derive(Clone, Debug)]
pub(crate) struct FoundLayer {
    pub(crate) diff_id: Digest,
    blob: String,
    /// Digest and size of the blob as stored, where the format promises them.
    promised: Option<(Digest, u64)>,
}

/// All images of a source that run on `host`.
pub(crate) fn find(source: &Source, host: &Platform, limits: &Limits) -> Result<Vec<Found>, ImageError> {
    let finder = Finder { source, host, limits };
    let index = source.document("index.json", limits)?;
    let layout = source.document("oci-layout", limits)?;
    let docker = source.document("manifest.json", limits)?;
    let mut found = match (&index, &layout, &docker) {
        (Some(index), Some(layout), _) => finder.oci(index, layout)?,
        (_, _, Some(docker)) => finder.docker(docker)?,
        _ => {
            return Err(ImageError::NotAnImage(
                "neither manifest.json nor index.json with oci-layout".into(),
            ));
        }
    };
    if let (Some(_), Some(_), Some(docker)) = (&index, &layout, &docker) {
        finder.add_names(&mut found, docker)?;
    }
    if found.is_empty() {
        return Err(ImageError::NotAnImage("it lists no image".into()));
    }
    Ok(found)
}

/// The image that the document `digest` of a source means on `host`.
pub(crate) fn find_one(
    source: &Source,
    digest: &Digest,
    host: &Platform,
    limits: &Limits,
) -> Result<Found, ImageError> {
    let of = Descriptor { digest: digest.to_string(), ..Descriptor::default() };
    let mut found = Finder { source, host, limits }.oci_image(&of, BTreeSet::new(), INDEX_DEPTH)?;
    if found.manifest.as_ref().is_none_or(|(manifest, _)| manifest != digest) {
        found.index = source.checked(digest, limits)?.map(|bytes| (digest.clone(), bytes));
    }
    Ok(found)
}

struct Finder<'a> {
    source: &'a Source,
    host: &'a Platform,
    limits: &'a Limits,
}

impl Finder<'_> {
    fn docker(&self, manifest: &[u8]) -> Result<Vec<Found>, ImageError> {
        let rows: Vec<DockerImage> = from_json(manifest, "manifest.json")?;
        self.count("images in manifest.json", rows.len(), self.limits.images)?;
        rows.into_iter().map(|row| self.docker_image(row)).collect()
    }

    fn docker_image(&self, row: DockerImage) -> Result<Found, ImageError> {
        let name = |text: &str| normal(text, "").ok_or_else(|| ImageError::Missing(text.into()));
        let path = name(&row.config)?;
        let config = self
            .source
            .document(&path, self.limits)?
            .ok_or_else(|| ImageError::Missing(row.config.clone()))?;
        let id = Digest::of(&config);
        if let Some(wanted) = named_digest(&path)
            && wanted != id
        {
            return Err(ImageError::Digest { what: path, wanted: wanted.to_string(), found: id.to_string() });
        }
        let blobs =
            row.layers.iter().map(|layer| Ok((name(layer)?, None))).collect::<Result<_, ImageError>>()?;
        let names = row.repo_tags.iter().map(|tag| canonical(tag)).collect::<Result<_, _>>()?;
        self.image((id, config), None, names, blobs)
    }

    /// Names from a `manifest.json` beside an OCI index, for configs that both have.
    fn add_names(&self, found: &mut [Found], manifest: &[u8]) -> Result<(), ImageError> {
        let rows: Vec<DockerImage> = from_json(manifest, "manifest.json")?;
        for row in rows {
            let id = normal(&row.config, "").as_deref().and_then(named_digest);
            for image in found.iter_mut().filter(|image| Some(&image.id) == id.as_ref()) {
                for tag in &row.repo_tags {
                    image.names.insert(canonical(tag)?);
                }
            }
        }
        Ok(())
    }

    fn oci(&self, index: &[u8], layout: &[u8]) -> Result<Vec<Found>, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let layout: Layout = from_json(layout, "oci-layout")?;
        if !layout.image_layout_version.starts_with("1.") {
            return Err(ImageError::document("oci-layout", "unknown version"));
        }
        let Parsed::Index(list) = Parsed::from_json(index, "index.json")? else {
            return Err(ImageError::document("index.json", "not an index"));
        };
        self.count("images in index.json", list.len(), self.limits.images)?;
        // One name (or none) for several platforms is one image: pick from it as from a nested index.
        let mut by_name: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in list {
            by_name.entry(annotated_name(&descriptor)?).or_default().push(descriptor);
        }
        let mut found = Vec::new();
        for (name, list) in by_name {
            let several_images = name.is_none() && list.iter().all(|d| d.platform.is_none());
            let groups =
                if several_images { list.into_iter().map(|d| vec![d]).collect() } else { vec![list] };
            for group in groups {
                let chosen = choose(group, self.host)?;
                found.push(self.oci_image(&chosen, name.iter().cloned().collect(), INDEX_DEPTH)?);
            }
        }
        Ok(found)
    }

    fn oci_image(&self, of: &Descriptor, names: BTreeSet<String>, depth: usize) -> Result<Found, ImageError> {
        let digest = of.digest()?;
        let missing = |digest: &Digest| ImageError::Missing(blob_name(digest));
        let bytes = self.source.checked(&digest, self.limits)?.ok_or_else(|| missing(&digest))?;
        match Parsed::from_json(&bytes, &blob_name(&digest))? {
            Parsed::Index(list) => {
                if depth == 0 {
                    return Err(ImageError::too_big("the nesting of indexes", INDEX_DEPTH));
                }
                self.count("manifests in an index", list.len(), self.limits.images)?;
                self.oci_image(&choose(list, self.host)?, names, depth - 1)
            }
            Parsed::Manifest { config, layers } => {
                let id = config.digest()?;
                let config = self.source.checked(&id, self.limits)?.ok_or_else(|| missing(&id))?;
                let promise = |d: &Descriptor| {
                    let digest = d.digest()?;
                    Ok((blob_name(&digest), Some((digest, d.size))))
                };
                let blobs = layers.iter().map(promise).collect::<Result<_, ImageError>>()?;
                self.image((id, config), Some((digest, bytes)), names, blobs)
            }
        }
    }

    fn image(
        &self,
        (id, config): (Digest, Vec<u8>),
        manifest: Option<(Digest, Vec<u8>)>,
        names: BTreeSet<String>,
        blobs: Vec<(String, Option<(Digest, u64)>)>,
    ) -> Result<Found, ImageError> {
        self.count("layers of an image", blobs.len(), self.limits.layers)?;
        let diff_ids = ConfigDocument::from_json(&config)?.diff_ids()?;
        if diff_ids.len() != blobs.len() {
            let why = format!("{} diff_ids for {} layers", diff_ids.len(), blobs.len());
            return Err(ImageError::document("image config", why));
        }
        let layer = |(diff_id, (blob, promised))| FoundLayer { diff_id, blob, promised };
        Ok(Found {
            id,
            config,
            manifest,
            index: None,
            names,
            layers: diff_ids.into_iter().zip(blobs).map(layer).collect(),
        })
    }

    fn count(&self, what: &str, count: usize, limit: usize) -> Result<(), ImageError> {
        if count > limit { Err(ImageError::too_big(format!("the number of {what}"), limit)) } else { Ok(()) }
    }
}

/// The best of several descriptors for this machine. A single one that names no platform is taken as it is.
pub(crate) fn choose(list: Vec<Descriptor>, host: &Platform) -> Result<Descriptor, ImageError> {
    let is_image = |d: &Descriptor| !d.annotations.contains_key("vnd.docker.reference.type");
    let rank = |d: &Descriptor| match &d.platform {
        None => Some(0),
        Some(platform) => platform.fits(host).map(|fit| fit + 1),
    };
    let have: BTreeSet<String> =
        list.iter().filter_map(|d| d.platform.as_ref()).map(ToString::to_string).collect();
    let mut best: Option<(u8, Descriptor)> = None;
    for descriptor in list.into_iter().filter(is_image) {
        if let Some(rank) = rank(&descriptor)
            && best.as_ref().is_none_or(|(other, _)| rank > *other)
        {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor).ok_or_else(|| ImageError::Platform {
        wanted: host.to_string(),
        have: have.into_iter().collect::<Vec<_>>().join(", "),
    })
}

/// Unpacks one layer into the empty folder `into` and checks all its digests; the bytes unpacked.
pub(crate) fn unpack_layer(
    source: &Source,
    layer: &FoundLayer,
    into: &Path,
    limits: &Limits,
) -> Result<u64, ImageError> {
    let read = || ImageError::io("read a layer for", into);
    let (stored, stored_meter) = HashRead::new(open(source, layer)?);
    let packed = stored_meter.clone();
    let (plain, plain_meter) = HashRead::new(decompressed(stored).map_err(read())?);
    let seen = plain_meter.clone();
    let bounded = Bounded { inner: plain, check: || within(packed.bytes(), seen.bytes(), limits) };
    // Padding behind the archive's end belongs to the digests too.
    let unpacked = unpack(bounded, into, limits)
        .and_then(|mut rest| io::copy(&mut rest, &mut io::sink()).map_err(read()).map(drop));
    if let Some((digest, size)) = &layer.promised {
        // The decoder may have stopped early, at an error or before the blob's end: then read it all.
        let whole = unpacked.is_ok() && stored_meter.bytes() == *size;
        let found = if whole { stored_meter.digest() } else { whole_digest(source, layer)? };
        same("layer", layer, digest, &found)?;
    }
    unpacked?;
    same("unpacked layer", layer, &layer.diff_id, &plain_meter.digest())?;
    Ok(plain_meter.bytes())
}

fn open(source: &Source, layer: &FoundLayer) -> Result<Range, ImageError> {
    source.open_blob(&layer.blob)?.ok_or_else(|| ImageError::Missing(layer.blob.clone()))
}

fn same(what: &str, layer: &FoundLayer, wanted: &Digest, found: &Digest) -> Result<(), ImageError> {
    match found == wanted {
        true => Ok(()),
        false => Err(ImageError::Digest {
            what: format!("{what} {}", layer.blob),
            wanted: wanted.to_string(),
            found: found.to_string(),
        }),
    }
}

fn whole_digest(source: &Source, layer: &FoundLayer) -> Result<Digest, ImageError> {
    let (mut reader, meter) = HashRead::new(open(source, layer)?);
    io::copy(&mut reader, &mut io::sink()).map_err(ImageError::io("read", Path::new(&layer.blob)))?;
    Ok(meter.digest())
}

fn within(packed: u64, plain: u64, limits: &Limits) -> Result<(), ImageError> {
    if plain > limits.layer_bytes {
        return Err(ImageError::too_big("a layer", format!("{} bytes", limits.layer_bytes)));
    }
    if plain > limits.ratio_slack_bytes && plain / limits.ratio > packed {
        let what = "the compression ratio of a layer (a decompression bomb?)";
        return Err(ImageError::too_big(what, limits.ratio));
    }
    Ok(())
}

/// Runs a check after each read.
struct Bounded<R, F> {
    inner: R,
    check: F,
}

impl<R: Read, F: FnMut() -> Result<(), ImageError>> Read for Bounded<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        (self.check)().map_err(ImageError::into_io)?;
        Ok(n)
    }
}

/// The digest that a file name promises: `<hex>.json` or `blobs/sha256/<hex>`.
fn named_digest(path: &str) -> Option<Digest> {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
}

fn canonical(name: &str) -> Result<String, ImageError> {
    Ok(Reference::parse(name)?.to_string())
}

/// The name that an index gives an image. A bare `latest` names a tag of nothing.
fn annotated_name(descriptor: &Descriptor) -> Result<Option<String>, ImageError> {
    let get = |key: &str| descriptor.annotations.get(key).map(String::as_str).filter(|name| !name.is_empty());
    let name = get("io.containerd.image.name").or(get("org.opencontainers.image.ref.name"));
    name.filter(|name| *name != "latest").map(canonical).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_index() {
        let name = |key: &str, value: &str| {
            let annotations = BTreeMap::from([(key.to_string(), value.to_string())]);
            annotated_name(&Descriptor { annotations, ..Default::default() }).unwrap()
        };
        let key = "org.opencontainers.image.ref.name";
        assert_eq!(name(key, "latest"), None);
        assert_eq!(name(key, "web:2").as_deref(), Some("docker.io/library/web:2"));
        assert_eq!(name("io.containerd.image.name", "r.io/x:1").as_deref(), Some("r.io/x:1"));
        assert_eq!(name("other", "x"), None);
    }

    #[test]
    fn promised_by_file_name() {
        let hex = "a".repeat(64);
        let wanted = Digest::from_hex(&hex);
        assert_eq!(named_digest(&format!("{hex}.json")), wanted);
        assert_eq!(named_digest(&format!("blobs/sha256/{hex}")), wanted);
        assert_eq!(named_digest("config.json"), None);
    }
}

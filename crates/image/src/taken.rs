//! The store as the puller uses it: images from single blobs, and what is known about names that were pulled.

use crate::digest::Digest;
use crate::error::ImageError;
use crate::journal::Journal;
use crate::load::find_one;
use crate::oci::Platform;
use crate::reference::Reference;
use crate::source::Source;
use crate::store::Images;
use std::fs::File;
use std::path::PathBuf;

impl Images {
    /// Was this name brought by a pull (and not loaded by hand)?
    pub fn was_pulled(&self, name: &Reference) -> bool {
        let name = name.to_string();
        let journal = Journal::read(&self.inner.folder);
        journal.is_ok_and(|(journal, _)| journal.images.values().any(|record| record.pulled.contains(&name)))
    }

    /// Makes subscribers look again: an image became available elsewhere on this node.
    pub fn poke(&self) {
        self.inner.watch.poke();
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.inner.platform
    }

    /// Where anonymous files are made: on the store's own disk.
    pub(crate) fn spool_folder(&self) -> PathBuf {
        self.inner.folder.join("tmp")
    }

    /// Is the layer a listed image's? One that merely lies there belongs to a load that may yet fail.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        let path = self.inner.layer_path(diff_id);
        self.list().iter().any(|image| image.layers.contains(&path))
    }

    /// Takes in the image that the document `top` of `source` means, under the name that it was asked for by; `mark`
    /// tells whose credentials it took, if it took somebody's.
    pub(crate) fn take_pulled(
        &self,
        source: &Source,
        top: &Digest,
        name: &Reference,
        mark: Option<String>,
    ) -> Result<(), ImageError> {
        let mut found = find_one(source, top, self.platform(), &self.inner.limits)?;
        let by_tag = name.digest.is_none();
        found.names.extend(by_tag.then(|| name.to_string()));
        let found = [found];
        self.take(source, &found, &|_| {})?;
        self.commit(|journal| {
            if let Some(record) = journal.images.get_mut(found[0].id.as_str()) {
                record.digests.insert(format!("{}@{top}", name.repository()));
                record.pulled.extend(by_tag.then(|| name.to_string()));
                match mark {
                    Some(mark) => drop(record.marks.entry(name.repository()).or_default().insert(mark)),
                    // Whoever asks gets it.
                    None => drop(record.marks.remove(&name.repository())),
                }
            }
        })
    }

    pub(crate) fn spool_file(&self) -> Result<File, ImageError> {
        let folder = self.spool_folder();
        crate::fs::anonymous(&folder).map_err(ImageError::io("make a file in", &folder))
    }
}

//! [`Images`]: the store as callers see it. A cheap handle; every method may be called from any thread.
//!
//! Life of a layer: staged in `tmp/` → renamed to `layers/<hex>` → the file system synced → listed in `images.json`
//! → listed no more → swept. A crash before the listing leaves something unlisted, which the next open sweeps.
//! Invariants: removing a name deletes no data; only [`Images::gc`] does, and never what is leased, in use
//! or being loaded. After a restart the caller must know what runs before it calls `gc`.

use crate::digest::Digest;
use crate::error::ImageError;
use crate::fs::{sync_file_system, write_durably};
use crate::journal::{Journal, LayerRecord, Record, Stamp, lock};
use crate::limits::Limits;
use crate::load::{Found, FoundLayer, Loaded, Progress, find, unpack_layer};
use crate::oci::{ConfigDocument, ImageConfig, Platform};
use crate::reference::Reference;
use crate::source::Source;
use crate::watch::Watch;
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const STORE_LOCK: &str = "store.lock";
const JOURNAL_LOCK: &str = "journal.lock";

/// An image that is on disk, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of its config, `sha256:…`.
    pub id: String,
    /// Normalised references with tag, sorted.
    pub names: Vec<String>,
    /// `repository@sha256:…` of its manifests, sorted; empty when it came without a manifest (docker-archive).
    pub digests: Vec<String>,
    /// Bytes of its layers, unpacked.
    pub size_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// What it runs on.
    pub platform: Platform,
    /// Marks of the credentials that brought it, by repository ([`Keyring::marks`](crate::Keyring::marks)).
    pub marks: BTreeMap<String, BTreeSet<String>>,
    /// Unpacked layers, uppermost first, each once: overlayfs' order. Never empty.
    pub layers: Vec<PathBuf>,
}

impl Image {
    /// May somebody with these marks run it under this name? What nobody's credentials brought is everybody's.
    pub fn is_for(&self, name: Option<&Reference>, marks: &[String]) -> bool {
        let may = |brought: &BTreeSet<String>| marks.iter().any(|mark| brought.contains(mark));
        match name {
            Some(name) => self.marks.get(&name.repository()).is_none_or(may),
            None => self.marks.is_empty(),
        }
    }
}

/// Keeps an image on disk as long as it lives, whatever happens to its names.
#[derive(Clone, Debug)]
pub struct Lease {
    image: Arc<Image>,
    _held: Arc<Held>,
}

impl Lease {
    /// The image.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }
}

#[derive(Debug)]
struct Held {
    id: String,
    leases: Arc<Mutex<BTreeMap<String, usize>>>,
    last_used: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.last_used.lock().insert(self.id.clone(), Instant::now());
        let mut leases = self.leases.lock();
        if let Some(count) = leases.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.id);
            }
        }
    }
}

/// How far [`Images::gc`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Images without a name.
    Nameless,
    /// Every image that is not in use.
    Unused,
}

/// The image store of a node.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) folder: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) platform: Platform,
    /// What `images.json` said when it was last read.
    view: Mutex<View>,
    pub(crate) leases: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Since this process began; what is not in it was not used since.
    pub(crate) last_used: Arc<Mutex<BTreeMap<String, Instant>>>,
    stages: AtomicUsize,
    pub(crate) watch: Watch,
}

#[derive(Clone, Default)]
struct View {
    stamp: Stamp,
    images: BTreeMap<String, Arc<Image>>,
}

impl Images {
    /// Opens (or makes) the store in `folder` and sweeps what a crash left.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Images, ImageError> {
        Images::open_with(folder, Limits::default(), Platform::host())
    }

    /// The same with other limits and another platform to choose images for.
    pub fn open_with(
        folder: impl Into<PathBuf>,
        limits: Limits,
        platform: Platform,
    ) -> Result<Images, ImageError> {
        let folder = folder.into();
        for part in ["blobs/sha256", "layers", "tmp", "empty"] {
            let path = folder.join(part);
            // Layers hold setuid programs: no other user of the host may reach them.
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(ImageError::io("make", &path))?;
        }
        let watch = Watch::start(&folder)?;
        let (view, leases, last_used, stages) = Default::default();
        let inner = Inner { folder, limits, platform, view, leases, last_used, stages, watch };
        let images = Images { inner: Arc::new(inner) };
        images.reload()?;
        if let Some(_lock) = images.store_lock(FlockOperation::NonBlockingLockExclusive)? {
            images.sweep_unlisted()?;
        }
        Ok(images)
    }

    /// Takes in all images of a docker-archive, oci-archive (either may be compressed) or OCI layout folder.
    pub fn load(&self, path: &Path, progress: &(dyn Fn(Progress) + Sync)) -> Result<Vec<Loaded>, ImageError> {
        let source = Source::open(path, &self.inner.folder.join("tmp"), &self.inner.limits)?;
        self.load_source(&source, progress)
    }

    /// The same from a stream.
    pub fn load_reader(
        &self,
        reader: impl Read,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<Loaded>, ImageError> {
        let source = Source::spooled(reader, &self.inner.folder.join("tmp"), &self.inner.limits)?;
        self.load_source(&source, progress)
    }

    /// [`Images::load`] on a thread that may block, without progress.
    pub async fn load_async(&self, path: impl Into<PathBuf>) -> Result<Vec<Loaded>, ImageError> {
        let (images, path) = (self.clone(), path.into());
        let task = tokio::task::spawn_blocking(move || images.load(&path, &|_| {}));
        task.await.map_err(|_| ImageError::Cancelled)?
    }

    /// The image of that id (`sha256:…` or bare hex), name or `repository@digest`.
    pub fn get(&self, name_or_id: &str) -> Option<Arc<Image>> {
        self.refresh();
        let view = self.inner.view.lock();
        if let Some(digest) = Digest::parse(name_or_id).or_else(|| Digest::from_hex(name_or_id)) {
            return view.images.get(digest.as_str()).cloned();
        }
        let reference = Reference::parse(name_or_id).ok()?;
        let wanted = match &reference.digest {
            Some(digest) => format!("{}@{digest}", reference.repository()),
            None => reference.to_string(),
        };
        let means = |image: &&Arc<Image>| image.names.contains(&wanted) || image.digests.contains(&wanted);
        view.images.values().find(means).cloned()
    }

    /// All images by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.refresh();
        self.inner.view.lock().images.values().cloned().collect()
    }

    /// Gives an image another name, taking that name from whoever had it. False: no such image.
    pub fn tag(&self, name_or_id: &str, name: &str) -> Result<bool, ImageError> {
        let name = Reference::parse(name)?.to_string();
        let Some(image) = self.get(name_or_id) else { return Ok(false) };
        self.commit(|journal| {
            let there = journal.images.contains_key(&image.id);
            if there {
                journal.give_name(&image.id, &name);
            }
            there
        })
    }

    /// Takes a name away; an id loses all its names. False: nothing has it. No data goes before [`Images::gc`].
    pub fn remove(&self, name_or_id: &str) -> Result<bool, ImageError> {
        let Some(image) = self.get(name_or_id) else { return Ok(false) };
        let name = Reference::parse(name_or_id).ok().map(|reference| reference.to_string());
        self.commit(|journal| {
            let Some(record) = journal.images.get_mut(&image.id) else { return false };
            match &name {
                Some(name) if record.names.contains(name) => {
                    record.names.remove(name);
                }
                _ => {
                    record.names.clear();
                    record.digests.clear();
                }
            }
            true
        })
    }

    /// Keeps an image on disk while the lease lives (for running containers).
    pub fn lease(&self, name_or_id: &str) -> Option<Lease> {
        // Under the leases' lock, as `gc` decides under it: no lease on what is just going.
        let mut leases = self.inner.leases.lock();
        let image = self.get(name_or_id)?;
        *leases.entry(image.id.clone()).or_insert(0) += 1;
        drop(leases);
        let (leases, last_used) = (self.inner.leases.clone(), self.inner.last_used.clone());
        last_used.lock().insert(image.id.clone(), Instant::now());
        let held = Arc::new(Held { id: image.id.clone(), leases, last_used });
        Some(Lease { image, _held: held })
    }

    /// Drops images that are neither leased nor `in_use` (ids), and everything that no image needs; the ids dropped.
    /// While a load is under way it does nothing: the next call will.
    pub fn gc(&self, in_use: &BTreeSet<String>, how: Sweep) -> Result<Vec<String>, ImageError> {
        let Some(_lock) = self.store_lock(FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(Vec::new());
        };
        let leases = self.inner.leases.lock();
        let dropped = self.commit(|journal| {
            let doomed = |(id, record): (&String, &Record)| {
                let wanted =
                    how == Sweep::Nameless && !(record.names.is_empty() && record.digests.is_empty());
                let goes = !wanted && !in_use.contains(id) && !leases.contains_key(id);
                goes.then(|| id.clone())
            };
            let dropped: Vec<String> = journal.images.iter().filter_map(doomed).collect();
            journal.images.retain(|id, _| !dropped.contains(id));
            dropped
        })?;
        drop(leases);
        self.sweep_unlisted()?;
        Ok(dropped)
    }

    /// Changes whenever images come, go or change names, by this process or another.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.watch.subscribe()
    }

    fn load_source(
        &self,
        source: &Source,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<Loaded>, ImageError> {
        let found = find(source, &self.inner.platform, &self.inner.limits)?;
        self.take(source, &found, progress)
    }

    /// Unpacks what is missing of images and lists them.
    pub(crate) fn take(
        &self,
        source: &Source,
        found: &[Found],
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<Loaded>, ImageError> {
        let _lock = self.store_lock(FlockOperation::LockShared)?;
        let (journal, _) = Journal::read(&self.inner.folder)?;
        let listed = journal.images.values().flat_map(|record| &record.layers);
        let mut sizes: BTreeMap<String, u64> = listed
            .filter(|l| Digest::parse(&l.diff_id).is_some_and(|id| self.inner.layer_path(&id).is_dir()))
            .map(|l| (l.diff_id.clone(), l.bytes))
            .collect();
        let wanted: BTreeMap<&Digest, &FoundLayer> = found
            .iter()
            .flat_map(|image| &image.layers)
            .filter(|layer| !sizes.contains_key(layer.diff_id.as_str()))
            .map(|layer| (&layer.diff_id, layer))
            .collect();
        let missing: Vec<&FoundLayer> = wanted.into_values().collect();
        progress(Progress::Found { images: found.len(), layers: missing.len() });
        sizes.extend(self.unpack_all(source, &missing, progress)?);
        for image in found {
            let config = (image.id.clone(), image.config.clone());
            for (digest, bytes) in image.manifest.iter().chain(&image.index).chain([&config]) {
                let folder = self.inner.folder.join("blobs/sha256");
                write_durably(&folder, digest.hex(), bytes)
                    .map_err(ImageError::io("write a blob to", &folder))?;
            }
        }
        sync_file_system(&self.inner.folder).map_err(ImageError::io("sync", &self.inner.folder))?;
        self.commit(|journal| register(journal, found, &sizes))?;
        let view = self.inner.view.lock();
        let loaded = |found: &Found| {
            let image = view.images.get(found.id.as_str());
            let names = image.map(|image| image.names.clone()).unwrap_or_default();
            Loaded { id: found.id.to_string(), names, size: image.map_or(0, |image| image.size_bytes) }
        };
        Ok(found.iter().map(loaded).collect())
    }

    /// Unpacks layers, as many at a time as there are processors; stops at the first error.
    fn unpack_all(
        &self,
        source: &Source,
        layers: &[&FoundLayer],
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<(String, u64)>, ImageError> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
        let next = AtomicUsize::new(0);
        let done: Mutex<Result<Vec<(String, u64)>, ImageError>> = Mutex::new(Ok(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.unpack_one(source, layer);
                        let mut done = done.lock();
                        match (result, &mut *done) {
                            (Ok(bytes), Ok(list)) => {
                                let layer = layer.diff_id.to_string();
                                progress(Progress::Unpacked { layer: layer.clone(), bytes });
                                list.push((layer, bytes));
                            }
                            (Err(e), Ok(_)) => *done = Err(e),
                            (_, Err(_)) => {}
                        }
                        if done.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        done.into_inner()
    }

    fn unpack_one(&self, source: &Source, layer: &FoundLayer) -> Result<u64, ImageError> {
        let number = self.inner.stages.fetch_add(1, Ordering::Relaxed);
        let stage = Stage(self.inner.folder.join(format!("tmp/{}-{number}", std::process::id())));
        let visible = std::fs::Permissions::from_mode(0o755);
        let made = std::fs::create_dir(&stage.0).and_then(|()| std::fs::set_permissions(&stage.0, visible));
        made.map_err(ImageError::io("make", &stage.0))?;
        let bytes = unpack_layer(source, layer, &stage.0, &self.inner.limits)?;
        let home = self.inner.layer_path(&layer.diff_id);
        match std::fs::rename(&stage.0, &home) {
            // Another load had the same layer first. Same digest, same content.
            Err(e) if home.is_dir() => tracing::debug!(layer = %layer.diff_id, "was there already: {e}"),
            other => other.map_err(ImageError::io("name", &home))?,
        }
        Ok(bytes)
    }

    /// Changes the journal under its lock, and reads it back.
    pub(crate) fn commit<T>(&self, change: impl FnOnce(&mut Journal) -> T) -> Result<T, ImageError> {
        let folder = &self.inner.folder;
        let _lock = lock(folder, JOURNAL_LOCK, FlockOperation::LockExclusive)?;
        let (mut journal, _) = Journal::read(folder)?;
        let before = journal.clone();
        let answer = change(&mut journal);
        if journal != before {
            journal.write(folder)?;
        }
        self.reload()?;
        Ok(answer)
    }

    fn refresh(&self) {
        let known = self.inner.view.lock().stamp;
        if Journal::stamp(&self.inner.folder) != known
            && let Err(error) = self.reload()
        {
            tracing::error!(%error, "the list of images cannot be read again; the last known one stays");
        }
    }

    fn reload(&self) -> Result<(), ImageError> {
        // Held over the reading, so that of two reloads the later reading wins.
        let mut view = self.inner.view.lock();
        let (journal, stamp) = Journal::read(&self.inner.folder)?;
        let mut images = BTreeMap::new();
        for (id, record) in &journal.images {
            match self.inner.image(id, record) {
                Ok(image) => drop(images.insert(id.clone(), Arc::new(image))),
                Err(error) => tracing::error!(id, %error, "a listed image is damaged and left out"),
            }
        }
        *view = View { stamp, images };
        Ok(())
    }

    pub(crate) fn store_lock(&self, how: FlockOperation) -> Result<Option<crate::journal::Lock>, ImageError> {
        lock(&self.inner.folder, STORE_LOCK, how)
    }

    /// Removes everything on disk that no listed image needs. The caller holds the store alone.
    pub(crate) fn sweep_unlisted(&self) -> Result<(), ImageError> {
        let (journal, _) = Journal::read(&self.inner.folder)?;
        let hex = |id: &String| Digest::parse(id).map(|digest| digest.hex().to_string());
        let records = journal.images.values();
        let layers =
            records.clone().flat_map(|r| &r.layers).filter_map(|layer| hex(&layer.diff_id)).collect();
        let blobs = journal.images.keys().chain(records.flat_map(|r| &r.manifests)).filter_map(hex).collect();
        for (part, keep) in [("layers", layers), ("blobs/sha256", blobs), ("tmp", BTreeSet::new())] {
            sweep(&self.inner.folder.join(part), &keep)?;
        }
        Ok(())
    }
}

impl Inner {
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.folder.join("layers").join(diff_id.hex())
    }

    fn image(&self, id: &str, record: &Record) -> Result<Image, ImageError> {
        let bad = || ImageError::document("images.json", format!("bad digest in {id}"));
        let digest = Digest::parse(id).ok_or_else(bad)?;
        let path = self.folder.join("blobs/sha256").join(digest.hex());
        let config = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
        let document = ConfigDocument::from_json(&config)?;
        let mut layers = Vec::new();
        for layer in record.layers.iter().rev() {
            let path = self.layer_path(&Digest::parse(&layer.diff_id).ok_or_else(bad)?);
            if !path.is_dir() {
                return Err(ImageError::Missing(path.display().to_string()));
            }
            // Overlayfs refuses a folder twice; below its first mention a layer adds nothing.
            if !layers.contains(&path) {
                layers.push(path);
            }
        }
        if layers.is_empty() {
            layers.push(self.folder.join("empty"));
        }
        Ok(Image {
            id: id.into(),
            names: record.names.iter().cloned().collect(),
            digests: record.digests.iter().cloned().collect(),
            size_bytes: record.layers.iter().map(|layer| layer.bytes).sum(),
            platform: document.platform.clone(),
            config: document.into_config(),
            marks: record.marks.clone(),
            layers,
        })
    }
}

/// A staging folder; gone when dropped, unless it got another name.
struct Stage(PathBuf);

impl Drop for Stage {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), "staging folder stays until the next start: {e}");
            }
            _ => {}
        }
    }
}

fn register(journal: &mut Journal, found: &[Found], sizes: &BTreeMap<String, u64>) {
    for image in found {
        let record = journal.images.entry(image.id.to_string()).or_default();
        let layer = |layer: &FoundLayer| {
            let diff_id = layer.diff_id.to_string();
            LayerRecord { bytes: sizes.get(&diff_id).copied().unwrap_or(0), diff_id }
        };
        record.layers = image.layers.iter().map(layer).collect();
        for (document, _) in image.manifest.iter().chain(&image.index) {
            record.manifests.insert(document.to_string());
        }
        if let Some((manifest, _)) = image.index.as_ref().or(image.manifest.as_ref()) {
            let repositories = image.names.iter().filter_map(|name| Reference::parse(name).ok());
            record.digests.extend(repositories.map(|r| format!("{}@{manifest}", r.repository())));
        }
        for name in &image.names {
            journal.give_name(image.id.as_str(), name);
        }
    }
}

fn sweep(folder: &Path, keep: &BTreeSet<String>) -> Result<(), ImageError> {
    for entry in std::fs::read_dir(folder).map_err(ImageError::io("list", folder))? {
        let entry = entry.map_err(ImageError::io("list", folder))?;
        if entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(ImageError::io("remove", &path))?;
    }
    Ok(())
}

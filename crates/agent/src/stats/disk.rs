//! What pods have on disk, remembered for a while: folders must be walked for it.

use crate::eviction::observe::walk;
use crate::facts::NodeFacts;
use crate::pod::PodView;
use k8s_openapi::api::core::v1::Volume;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A younger walk is good enough (the kubelet's figure).
const FRESH: Duration = Duration::from_secs(60);

/// The same for images, which change rarely and have many files.
const IMAGES_FRESH: Duration = Duration::from_secs(600);

/// Bytes and files.
pub type Used = (u64, u64);

/// A pod on disk.
#[derive(Clone, Default)]
pub struct OnDisk {
    /// When it was looked at, milliseconds since the epoch.
    pub at_ms: i64,
    /// Writable layers, by container.
    pub layers: BTreeMap<String, Used>,
    /// Logs, by container.
    pub logs: BTreeMap<String, Used>,
    /// Volumes that are folders of the pod, with their place.
    pub volumes: BTreeMap<String, (PathBuf, Used)>,
}

/// What was walked lately.
#[derive(Default)]
pub struct DiskCache {
    pods: Mutex<BTreeMap<String, (Instant, OnDisk)>>,
    images: Mutex<Option<(Instant, u64)>>,
}

impl DiskCache {
    /// What a pod has on disk, not older than [`FRESH`].
    pub fn of(&self, facts: &NodeFacts, pod: &PodView) -> OnDisk {
        let known = {
            let mut known = self.pods.lock();
            known.retain(|_, (at, _)| at.elapsed() < FRESH);
            known.get(pod.uid()).map(|(_, found)| found.clone())
        };
        known.unwrap_or_else(|| {
            let found = look(facts, pod);
            self.pods.lock().insert(pod.uid().into(), (Instant::now(), found.clone()));
            found
        })
    }

    /// How many files the images have, not older than [`IMAGES_FRESH`].
    pub fn files(&self, images: &Path) -> u64 {
        let known = *self.images.lock();
        match known.filter(|(at, _)| at.elapsed() < IMAGES_FRESH) {
            Some((_, files)) => files,
            None => {
                let files = walk(images).1;
                *self.images.lock() = Some((Instant::now(), files));
                files
            }
        }
    }
}

/// Is the volume a folder of the pod's own?
fn is_own(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

fn look(facts: &NodeFacts, pod: &PodView) -> OnDisk {
    let mut found = OnDisk { at_ms: super::now_ms(), ..OnDisk::default() };
    let logs = facts.log_folder(pod.namespace(), pod.name(), pod.uid());
    for container in &pod.containers {
        let name = container.name();
        let layer = facts.pod_dir(pod.uid()).join("containers").join(name);
        found.layers.insert(name.into(), walk(&layer));
        found.logs.insert(name.into(), walk(&logs.join(name)));
    }
    for volume in pod.spec().volumes.iter().flatten().filter(|v| is_own(v)) {
        let place = facts.volume_dir(pod.uid(), &volume.name);
        let used = walk(&place);
        found.volumes.insert(volume.name.clone(), (place, used));
    }
    found
}

//! Claims and volumes for the scheduler: its picture is kept by the caches' events; what a placed pod's claims need is
//! written before the pod is bound, and waited for.

use super::devices::Devices;
use super::state::State;
use crate::volumes::{
    CSI_DRIVERS, CSI_NODES, Put, STORAGE_CAPACITIES, STORAGE_CLASSES, feed, kept_for, put_claim, put_class,
    put_driver, put_limits, put_room, put_volume,
};
use client::cache::Cache;
use client::{ApiClient, ListOptions, Object, ObjectKey};
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};
use machinery::status::ApiError;
use parking_lot::Mutex;
use sched::PodInfo;
use sched::volumes::{Claim, ClaimId, SELECTED_NODE, Step};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A pod whose claims are not bound by then is placed anew (upstream's figure).
const BOUND_WITHIN: Duration = Duration::from_secs(600);

/// The caches.
pub struct Volumes {
    client: ApiClient,
    claims: Arc<Cache>,
    volumes: Arc<Cache>,
    classes: Arc<Cache>,
    /// What drivers tell: themselves, their room, their limits.
    told: [Arc<Cache>; 3],
    /// Claims of devices.
    pub devices: Devices,
}

impl Volumes {
    /// Starts the caches, which feed the state from now on.
    pub fn start(
        client: &ApiClient,
        state: &Arc<Mutex<State>>,
        wake: impl Fn() + Clone + Send + Sync + 'static,
    ) -> Volumes {
        let start = |gvr, put: Put| {
            let cache = Cache::start(client.clone(), gvr, ListOptions::default());
            let (state, wake) = (state.clone(), wake.clone());
            feed(&cache, put, move |change| {
                state.lock().volumes_changed(change);
                wake();
            });
            cache
        };
        Volumes {
            client: client.clone(),
            devices: Devices::start(client, state, wake.clone()),
            claims: start(PERSISTENT_VOLUME_CLAIMS, put_claim),
            volumes: start(PERSISTENT_VOLUMES, put_volume),
            classes: start(STORAGE_CLASSES, put_class),
            told: [
                start(CSI_DRIVERS, put_driver),
                start(STORAGE_CAPACITIES, put_room),
                start(CSI_NODES, put_limits),
            ],
        }
    }

    /// Waits for the first lists.
    pub async fn wait_synced(&self) {
        self.claims.wait_synced().await;
        self.volumes.wait_synced().await;
        self.classes.wait_synced().await;
        for cache in &self.told {
            cache.wait_synced().await;
        }
        self.devices.wait_synced().await;
    }

    /// Makes the claims of a pod ready for it to be bound.
    pub async fn prepare(&self, info: &PodInfo, steps: &[Step], pods: &Cache) -> Result<(), ApiError> {
        for step in steps {
            self.carry_out(step, info).await?;
        }
        if steps.is_empty() {
            return Ok(());
        }
        let waited = tokio::time::timeout(BOUND_WITHIN, self.bound(info, steps, pods)).await;
        waited.unwrap_or_else(|_| Err(ApiError::internal("binding volumes: context deadline exceeded")))
    }

    async fn carry_out(&self, step: &Step, info: &PodInfo) -> Result<(), ApiError> {
        let find = |(namespace, name): &ClaimId| {
            let key = ObjectKey::new(namespace.as_str(), name.as_str());
            self.claims.get(&key).ok_or_else(|| ApiError::not_found(&PERSISTENT_VOLUME_CLAIMS, name))
        };
        match step {
            Step::Devices(step) => self.devices.carry_out(step, info).await?,
            Step::Bind(id, name) => {
                let claim = find(id)?;
                let key = ObjectKey::cluster(name.as_str());
                let missing = || ApiError::not_found(&PERSISTENT_VOLUMES, name);
                let volume = self.volumes.get(&key).ok_or_else(missing)?;
                let patch = kept_for(&volume, &claim);
                let stored = self.client.merge_patch(&PERSISTENT_VOLUMES, &key, patch).await?;
                self.volumes.observe(stored);
            }
            Step::Provision(id, node) => {
                let claim = find(id)?;
                if claim.meta().annotations.get(SELECTED_NODE) != Some(node) {
                    let patch = json!({"metadata": {"uid": claim.uid(),
                        "resourceVersion": claim.revision.to_string(), "annotations": {SELECTED_NODE: node}}});
                    let stored =
                        self.client.merge_patch(&PERSISTENT_VOLUME_CLAIMS, &claim.key, patch).await?;
                    self.claims.observe(stored);
                }
            }
        }
        Ok(())
    }

    /// Comes back when all claims of the pod are bound; fails when that will not be.
    async fn bound(&self, info: &PodInfo, steps: &[Step], pods: &Cache) -> Result<(), ApiError> {
        let (mut changed, mut pods_changed) = (self.claims.changed(), pods.changed());
        let (namespace, name) = info.id.clone().unwrap_or_default();
        let pod = ObjectKey::new(namespace.clone(), name);
        let going = |o: &Object| o.uid() != info.uid || o.meta().deletion_timestamp.is_some();
        loop {
            if pods.get(&pod).is_none_or(|o| going(&o)) {
                return Err(ApiError::internal("the pod is gone"));
            }
            let mut open = false;
            for wanted in &info.claims {
                let key = ObjectKey::new(namespace.clone(), wanted.name.as_str());
                let missing = || ApiError::not_found(&PERSISTENT_VOLUME_CLAIMS, &wanted.name);
                let object = self.claims.get(&key).ok_or_else(missing)?;
                let value = object.value().map_err(ApiError::internal)?;
                let claim = Claim::read(&value);
                if claim.deleting {
                    return Err(missing());
                }
                let made = |s: &Step| matches!(s, Step::Provision(id, _) if *id == claim.id);
                if !claim.bound && claim.node.is_none() && steps.iter().any(made) {
                    return Err(ApiError::internal(
                        "provisioning failed for PVC: the pod must be placed anew",
                    ));
                }
                // The node asks for the phase, which is written last.
                open |= !claim.bound || value["status"]["phase"] != "Bound";
            }
            if !open {
                return Ok(());
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = pods_changed.changed() => {}
            }
        }
    }
}

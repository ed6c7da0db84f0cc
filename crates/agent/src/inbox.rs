//! What changed since the worker last looked: keys only, each once, so it is bounded by what exists.

use crate::config::RefKind;
use client::ObjectKey;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use tokio::sync::Notify;

/// Keys to look at.
#[derive(Debug, Default)]
pub struct Pending {
    /// Pods.
    pub pods: BTreeSet<ObjectKey>,
    /// ConfigMaps and Secrets.
    pub objects: BTreeSet<(RefKind, ObjectKey)>,
}

/// The worker's letter box.
#[derive(Debug, Default)]
pub struct Inbox {
    pending: Mutex<Pending>,
    wake: Notify,
}

impl Inbox {
    /// A pod changed, came or went.
    pub fn pod(&self, key: &ObjectKey) {
        self.pending.lock().pods.insert(key.clone());
        self.wake.notify_one();
    }

    /// An object that some pod uses changed, came or went.
    pub fn object(&self, kind: RefKind, key: ObjectKey) {
        self.pending.lock().objects.insert((kind, key));
        self.wake.notify_one();
    }

    /// Waits until there is something.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Empties the box.
    pub fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock())
    }
}

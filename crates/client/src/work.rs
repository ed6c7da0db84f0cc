//! The worker loop of controllers: changes of caches become keys, keys are worked on by a reconciler.
//!
//! Invariants: level-triggered (a key says "look again", never what changed); a key that fails is tried again, later
//! with each failure in a row. Deliberately not here: any decision.

use crate::cache::Cache;
use crate::metrics;
use crate::object::{Object, ObjectKey};
use crate::queue::Queue;
use async_trait::async_trait;
use machinery::status::ApiError;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// What came of looking at a key.
pub type Outcome = Result<Option<Duration>, ApiError>;

/// Brings the world to what one object asks for. Called with a key that may be gone by now.
#[async_trait]
pub trait Reconcile<K: Sync = ObjectKey>: Send + Sync + 'static {
    /// Looks at a key; asks to look again after the returned time.
    async fn reconcile(&self, key: &K) -> Outcome;
}

/// Enqueues the key of every object of `cache` that changes.
pub fn enqueue_self(cache: &Cache, queue: &Arc<Queue<ObjectKey>>) {
    enqueue(cache, queue, |object| vec![object.key.clone()]);
}

/// Enqueues what `keys` yields of the old and the new form of every object that changes.
pub fn enqueue(
    cache: &Cache,
    queue: &Arc<Queue<ObjectKey>>,
    keys: impl Fn(&Object) -> Vec<ObjectKey> + Send + Sync + 'static,
) {
    let queue = queue.clone();
    cache.on_change(Box::new(move |old, new| {
        for object in old.into_iter().chain(new) {
            keys(object).into_iter().for_each(|key| queue.add(key));
        }
    }));
}

/// Enqueues the controlling owner of that kind (`apps/v1`, `ReplicaSet`).
pub fn enqueue_owner(
    cache: &Cache,
    queue: &Arc<Queue<ObjectKey>>,
    api_version: &'static str,
    kind: &'static str,
) {
    enqueue(cache, queue, move |object| {
        let owner = object.meta().controller().filter(|o| o.kind == kind && o.api_version == api_version);
        owner.map(|o| ObjectKey::new(object.key.namespace.clone(), o.name.as_str())).into_iter().collect()
    });
}

/// Waits until the caches have their first list, then works on the queue with `workers` tasks.
pub fn run<K: Ord + Clone + Display + Send + Sync + 'static>(
    name: &'static str,
    caches: Vec<Arc<Cache>>,
    queue: Arc<Queue<K>>,
    workers: usize,
    reconciler: Arc<dyn Reconcile<K>>,
) -> Vec<JoinHandle<()>> {
    queue.tell(name);
    let told = Arc::downgrade(&queue);
    metrics::refresh(move || told.upgrade().map(|queue| queue.tell_time()).is_some());
    let work = move || {
        let (caches, queue, reconciler) = (caches.clone(), queue.clone(), reconciler.clone());
        async move {
            for cache in &caches {
                cache.wait_synced().await;
            }
            while let Some(key) = queue.next().await {
                match reconciler.reconcile(&key).await {
                    Ok(again) => {
                        queue.succeeded(&key);
                        if let Some(delay) = again {
                            queue.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(controller = name, %key, %error, "will retry");
                        queue.retry(key.clone());
                    }
                }
                queue.done(&key);
            }
        }
    };
    (0..workers).map(|_| spawn(work())).collect()
}

/// The one place where controllers start tasks.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(work)
}

//! Forgetting history: one of the servers over a cluster, whichever wins a compare-and-swap, compacts it.
//!
//! Invariant: nothing younger than one period is forgotten. Deliberately not here: a compaction that a caller asks for.

use super::{Shared, messages};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

impl Shared {
    /// Not under the prefix: no listing and no watch shows it.
    pub(super) fn compaction_key(&self) -> Vec<u8> {
        [b"compaction", self.prefix.as_bytes()].concat()
    }

    /// Every so often compacts to where the store was the time before, if nobody else has done it since.
    /// The times the key has been written tell whether somebody has.
    pub(super) async fn compact_now_and_then(self: Arc<Self>, every: Duration) {
        let mut closed = self.closed.subscribe();
        let (mut times, mut last) = (0, 0);
        while timeout(every, closed.wait_for(|closed| *closed)).await.is_err() {
            let message =
                messages::put_if_version(&self.compaction_key(), times, last.to_string().as_bytes());
            let reply = match self.send_txn(&message, self.deadline()).await {
                Ok(reply) => reply,
                Err(error) => {
                    tracing::info!(%error, "etcd's history is compacted next time");
                    continue;
                }
            };
            times = if reply.succeeded { times + 1 } else { reply.kv.map_or(0, |kv| kv.version) };
            if reply.succeeded
                && last > 0
                && let Err(error) = self.compact(last).await
            {
                tracing::info!(%error, "etcd's history is compacted next time");
            }
            last = reply.revision;
        }
    }
}

//! Listens to what drivers stream of their devices' health.
//!
//! Every instance that registers is called once; one without the service says so and is left alone. A stream that ends
//! leaves its devices unknown and is begun anew after a while, until the instance is gone.

use super::health::Health;
use grpc::{Call, DRA, Status, code};
use parking_lot::Mutex;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

/// Until a stream's first report must have come: a driver may have nothing to say for long.
const BEGIN_MAX: Duration = Duration::from_secs(24 * 3600);
/// Until a stream that ended is begun anew; the first is the kubelet's figure.
const AGAIN: Backoff = Backoff { base: Duration::from_secs(5), factor: 2, max: Duration::from_secs(60) };

/// What is known, and who wants to know of changes.
#[derive(Default)]
pub struct Watched {
    pub health: Mutex<Health>,
    pub changed: watch::Sender<u64>,
}

impl Watched {
    /// Changes what is known; if `change` says that something else is to be told, it is.
    pub fn change(&self, change: impl FnOnce(&mut Health) -> bool) {
        let changed = change(&mut self.health.lock());
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Listens to an instance until it has no such service; its task is ended when it is gone.
    pub async fn follow(&self, instance: u64, socket: &Path) {
        let mut failures = 0;
        loop {
            let ended = self.listen(instance, socket, &mut failures).await;
            self.change(|health| health.clear(instance));
            match ended {
                Err(error) if error.code == code::UNIMPLEMENTED => return,
                ended => tracing::debug!(?ended, socket = %socket.display(), "no health of devices is told"),
            }
            tokio::time::sleep(AGAIN.delay(failures)).await;
            failures += 1;
        }
    }

    async fn listen(&self, instance: u64, socket: &Path, failures: &mut u32) -> Result<(), Status> {
        let call = Call { schema: &DRA, socket, within: BEGIN_MAX };
        let mut stream = call.stream("NodeWatchResources", &json!({})).await?;
        loop {
            let expires = self.health.lock().expires(instance);
            tokio::select! {
                list = stream.next() => {
                    let Some(list) = list? else { return Ok(()) };
                    *failures = 0;
                    self.change(|health| health.take(instance, &list, Instant::now()));
                }
                () = tokio::time::sleep_until(expires.unwrap_or_else(Instant::now)), if expires.is_some() => {
                    self.change(|health| health.expire(instance, Instant::now()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use grpc::{Answer, CSI, Handler, serve};
    use serde_json::Value;
    use std::sync::Arc;
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    /// A driver with one stream at a time.
    struct Driver(Mutex<Option<mpsc::Receiver<Value>>>);

    #[async_trait]
    impl Handler for Driver {
        async fn call(&self, method: &str, _: Value) -> Answer {
            Err(Status::new(code::UNAVAILABLE, method))
        }

        fn stream(&self, _: &str, _: &Value) -> Option<mpsc::Receiver<Value>> {
            self.0.lock().take()
        }
    }

    #[tokio::test]
    async fn a_stream_is_followed_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let (send, receive) = mpsc::channel(1);
        let driver = Arc::new(Driver(Mutex::new(Some(receive))));
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), &DRA, driver));
        let watched = Arc::new(Watched::default());
        let instance = watched.health.lock().enter("x.io");
        let mut changed = watched.changed.subscribe();
        let follower = watched.clone();
        let follower = tokio::spawn(async move { follower.follow(instance, &socket).await });
        send.send(json!({"devices": [{"device": {"pool_name": "p"}, "health": 1}]})).await.unwrap();
        changed.changed().await.unwrap();
        assert!(watched.health.lock().expires(instance).is_some());
        drop(send);
        changed.changed().await.unwrap();
        assert_eq!(watched.health.lock().expires(instance), None);
        follower.abort();
        server.abort();
    }

    #[tokio::test]
    async fn who_has_no_such_service_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let driver = Arc::new(Driver(Mutex::default()));
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), &CSI, driver));
        Watched::default().follow(1, &socket).await;
        server.abort();
    }
}

//! Requests whose work takes a core for long: done beside the event loop, a few at a time, so that others get on.
//!
//! The work stays where it is in the code: only where it stands between two waits does it leave the event loop to the
//! other requests, and it holds its turn no longer than that. So nothing that waits for something else (a webhook, the
//! disk) keeps others from their turn. Deliberately not here: which requests are heavy.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::LazyLock;
use std::task::Poll;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

/// A body of so many bytes makes a request heavy: reading, checking and writing it takes milliseconds.
pub const BYTES: u64 = 64 << 10;
/// A list of so many objects that must each be parsed is heavy.
pub const OBJECTS: usize = 500;

/// Half of the cores.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Semaphore::new((cores / 2).max(1))
});

/// Does the work, heavy or not.
pub async fn run<T>(heavy: bool, work: impl Future<Output = T>) -> T {
    let beside = heavy && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if !beside {
        return work.await;
    }
    let mut work = pin!(work);
    loop {
        let turn = TURNS.acquire().await;
        let step = poll_fn(|cx| Poll::Ready(tokio::task::block_in_place(|| work.as_mut().poll(cx)))).await;
        drop(turn);
        if let Poll::Ready(done) = step {
            return done;
        }
        // The work waits for something and has told this task's waker.
        let mut waited = false;
        poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// Work that never waits keeps all threads of an event loop busy; here it does not.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn others_get_on_while_much_is_heavy() {
        // Until the others got on, or all of this hangs.
        let begun = Instant::now();
        let (over, stuck) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let busy = |over: Arc<AtomicBool>, stuck: Arc<AtomicBool>| async move {
            while !over.load(Ordering::Relaxed) {
                stuck.fetch_or(begun.elapsed() > Duration::from_secs(60), Ordering::Relaxed);
                if stuck.load(Ordering::Relaxed) {
                    break;
                }
                std::hint::spin_loop();
            }
            7
        };
        let start = |_| tokio::spawn(run(true, busy(over.clone(), stuck.clone())));
        let crowd: Vec<_> = (0..8).map(start).collect();
        for _ in 0..50 {
            tokio::spawn(tokio::task::yield_now()).await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        for task in crowd {
            assert_eq!(task.await.unwrap(), 7);
        }
        assert!(!stuck.load(Ordering::Relaxed), "others waited for all that is heavy");
    }

    #[tokio::test]
    async fn one_thread_does_it_all() {
        assert_eq!(run(true, async { 1 }).await, 1);
    }
}

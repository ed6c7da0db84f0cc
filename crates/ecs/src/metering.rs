//! Metering: what every task and pod had, from the pull of its images to its stop, in records that outlive everything.
//!
//! Watches tasks and pods, compares with what the journal says, appends what is new. Level-triggered: a restart looks
//! at all of them and writes what is missing. Several changes at once cost one write. Pods that are a task's are not
//! counted twice. Deliberately not here: prices and sums (`gantry cost`).

mod journal;
mod record;

pub use journal::{Journal, JournalError, Reader};
pub use record::{Class, Record};

use client::cache::Cache;
use client::{ApiClient, ListOptions, Object, ObjectKey};
use ecs_model::lower::TASK_LABEL;
use jiff::Timestamp;
use k8s_schema::gvr::{ECS_TASKS, PODS};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;
/// What is metered: a kind of object and its key.
type Item = (Kind, ObjectKey);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Task,
    Pod,
}

/// The running meter; it stops when this is dropped.
pub struct Metering(JoinHandle<()>);

impl Drop for Metering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Changed {
    items: Mutex<BTreeSet<Item>>,
    wake: Notify,
}

impl Changed {
    fn follow(self: &Arc<Self>, kind: Kind, cache: &Cache) {
        let changed = self.clone();
        cache.on_change(Box::new(move |old, new| {
            if let Some(object) = new.or(old) {
                changed.items.lock().insert((kind, object.key.clone()));
                changed.wake.notify_one();
            }
        }));
    }
}

impl Metering {
    /// Starts it on a folder, which is made where it is missing.
    pub fn start(client: ApiClient, folder: PathBuf, clock: Clock) -> Metering {
        Metering(client::work::spawn(run(client, folder, clock)))
    }
}

async fn run(client: ApiClient, folder: PathBuf, clock: Clock) {
    let pods = ListOptions { label_selector: format!("!{TASK_LABEL}"), ..ListOptions::default() };
    let tasks = Cache::start(client.clone(), ECS_TASKS, ListOptions::default());
    let pods = Cache::start(client, PODS, pods);
    tasks.wait_synced().await;
    pods.wait_synced().await;
    let opened = tokio::task::spawn_blocking(move || Journal::open(folder)).await;
    let mut journal = match opened.map_err(|e| e.to_string()).and_then(|o| o.map_err(|e| e.to_string())) {
        Ok(journal) => journal,
        Err(error) => return tracing::error!(error, "no metering: the journal cannot be opened"),
    };
    // Of what has ended, only what is still shown could be written twice.
    let mut ended = journal.take_ended();
    ended.retain(|record| match item(record) {
        (Kind::Task, key) => tasks.get(&key).is_some(),
        (Kind::Pod, key) => pods.get(&key).is_some(),
    });
    let known = known(journal.open_records(), ended);
    let mut meter = Meter { tasks, pods, journal: Arc::new(Mutex::new(journal)), known, clock };
    let changed = Arc::new(Changed::default());
    // What the journal has open and nobody shows any more has ended.
    changed.items.lock().extend(meter.known.keys().cloned());
    changed.follow(Kind::Task, &meter.tasks);
    changed.follow(Kind::Pod, &meter.pods);
    loop {
        let items = std::mem::take(&mut *changed.items.lock());
        if !items.is_empty() {
            meter.look(items).await;
        }
        changed.wake.notified().await;
    }
}

fn item(record: &Record) -> Item {
    let kind = if record.class == Class::Pod { Kind::Pod } else { Kind::Task };
    (kind, ObjectKey::new(record.namespace.as_str(), record.name.as_str()))
}

/// The last record of each item.
fn known(open: Vec<Record>, ended: Vec<Record>) -> BTreeMap<Item, Record> {
    ended.into_iter().chain(open).map(|r| (item(&r), r)).collect()
}

struct Meter {
    tasks: Arc<Cache>,
    pods: Arc<Cache>,
    journal: Arc<Mutex<Journal>>,
    known: BTreeMap<Item, Record>,
    clock: Clock,
}

impl Meter {
    /// What an item is now; `None`: it is gone or not begun.
    fn now(&self, (kind, key): &Item) -> Option<Record> {
        let of = |object: Arc<Object>| {
            let body = object.value().ok()?;
            match kind {
                Kind::Task => record::of_task(&object.key, &body),
                Kind::Pod => record::of_pod(&object.key, &body, (self.clock)().as_millisecond()),
            }
        };
        match kind {
            Kind::Task => self.tasks.get(key),
            Kind::Pod => self.pods.get(key),
        }
        .and_then(of)
    }

    async fn look(&mut self, items: BTreeSet<Item>) {
        let now_ms = (self.clock)().as_millisecond();
        let mut new = Vec::new();
        for item in items {
            let seen = self.now(&item);
            let records = news(self.known.get(&item), seen.as_ref(), now_ms);
            match &seen {
                Some(record) => drop(self.known.insert(item, record.clone())),
                None => drop(self.known.remove(&item)),
            }
            new.extend(records);
        }
        if new.is_empty() {
            return;
        }
        let journal = self.journal.clone();
        let written = tokio::task::spawn_blocking(move || journal.lock().append(&new)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "usage not recorded");
        }
    }
}

/// What the journal must be told, from its last record of an item and what the item is now. Pure.
fn news(known: Option<&Record>, seen: Option<&Record>, now_ms: i64) -> Vec<Record> {
    let mut out = Vec::new();
    if let Some(known) = known
        && known.stop_ms.is_none()
        && seen.is_none_or(|s| s.id != known.id)
    {
        out.push(Record { stop_ms: Some(now_ms.max(known.start_ms)), ..known.clone() });
    }
    let same = |known: &Record, seen: &Record| {
        // A pod's stop may be seen only once: it does not move.
        known.id == seen.id && known.stop_ms.is_some() == seen.stop_ms.is_some()
    };
    if let Some(seen) = seen
        && !known.is_some_and(|k| same(k, seen))
    {
        out.push(seen.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, stop_ms: Option<i64>) -> Record {
        Record { id: id.into(), start_ms: 1_000, stop_ms, ..Record::default() }
    }

    #[test]
    fn the_journal_is_told_what_is_new() {
        let (open, ended) = (record("a", None), record("a", Some(5_000)));
        assert_eq!(news(None, None, 9_000), []);
        let one = |record: &Record| vec![record.clone()];
        assert_eq!(news(None, Some(&open), 9_000), one(&open));
        assert_eq!(news(Some(&open), Some(&open), 9_000), []);
        assert_eq!(news(Some(&open), Some(&ended), 9_000), one(&ended));
        assert_eq!(news(Some(&ended), Some(&record("a", Some(6_000))), 9_000), []);
        assert_eq!(news(Some(&ended), None, 9_000), []);
        // Gone without a word, or replaced by another of the same name.
        assert_eq!(news(Some(&open), None, 9_000), [record("a", Some(9_000))]);
        let other = record("b", None);
        assert_eq!(news(Some(&open), Some(&other), 9_000), [record("a", Some(9_000)), other]);
    }
}

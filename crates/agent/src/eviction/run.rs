//! The loop: look, say what is short, make room, end one pod.

use super::judge::{Memory, judge, met};
use super::settings::Threshold;
use super::{Observation, Settings, Signal, limits, observe, rank};
use crate::admit::is_critical;
use crate::ops::{Node, blocking};
use crate::pod::PodView;
use crate::state::Verdict;
use crate::worker::Event;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// How often the node is looked at when nothing calls (the kubelet's figure).
const EVERY: Duration = Duration::from_secs(10);
/// The least time between two looks, whatever the kernel reports.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the end of an evicted pod is awaited before the next look (the kubelet's figure).
const END_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Measuring disks takes at most this part of the time.
const MEASURE_SHARE: u32 = 50;
/// Seconds that a pod gets which goes at once (upstream's figure).
const HARD_GRACE: i64 = 1;
/// Somebody waited for memory 150 ms in a second.
const STALL: &[u8] = b"some 150000 1000000\0";
const MEMORY_STALLS: &str = "/proc/pressure/memory";

/// Tells when tasks wait for memory, where the kernel can.
struct Stalls(Option<AsyncFd<File>>);

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, because of types that lie about their descriptor; a File does not"
)]
fn register(file: File) -> std::io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(file, Interest::PRIORITY)
}

impl Stalls {
    fn open() -> Stalls {
        let open = || -> std::io::Result<AsyncFd<File>> {
            let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
            let mut file =
                File::options().read(true).write(true).custom_flags(nonblocking).open(MEMORY_STALLS)?;
            file.write_all(STALL)?;
            register(file)
        };
        Stalls(open().inspect_err(|error| tracing::debug!(%error, "no notice of memory stalls")).ok())
    }

    async fn next(&self) {
        match &self.0 {
            Some(fd) => match fd.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

struct Evictor {
    node: Arc<Node>,
    settings: Settings,
    memory: Memory,
    worker: mpsc::UnboundedSender<Event>,
    /// Pods that were told to go and are not gone.
    going: BTreeSet<String>,
    /// Disks are not measured again before.
    measure_at: Instant,
}

/// Looks after the node. Runs until dropped.
pub(crate) async fn run(node: Arc<Node>, settings: Settings, worker: mpsc::UnboundedSender<Event>) {
    let memory_matters = settings.thresholds.iter().any(|t| t.signal == Signal::MemoryAvailable);
    let stalls = if memory_matters { Stalls::open() } else { Stalls(None) };
    let (memory, going) = (Memory::default(), BTreeSet::new());
    let mut evictor = Evictor { node, settings, memory, worker, going, measure_at: Instant::now() };
    loop {
        evictor.look().await;
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(EVERY - PAUSE) => {}
            () = stalls.next() => {}
        }
    }
}

impl Evictor {
    async fn look(&mut self) {
        self.going.retain(|uid| self.node.live(uid).is_some());
        let Some(seen) = self.observe().await else { return };
        let judgement = judge(&self.settings, &seen, &mut self.memory, Timestamp::now());
        self.node.pressure.send_if_modified(|old| {
            let changed = *old != judgement.pressure;
            old.clone_from(&judgement.pressure);
            changed
        });
        let over = self.over_limits().await;
        if !over.is_empty() {
            for (pod, message) in over {
                self.end(&pod, message, HARD_GRACE);
            }
            return;
        }
        let Some(threshold) = judgement.due.first().map(|n| self.settings.thresholds[*n].clone()) else {
            return;
        };
        let resource = threshold.signal.resource();
        let name = self.node.facts.node_name.clone();
        tracing::warn!(signal = threshold.signal.name(), "the node is short");
        self.node.recorder.node_warning(
            &name,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {resource}"),
        );
        if threshold.signal.pressure() == super::Pressure::Disk && self.made_room().await {
            return;
        }
        self.evict_one(&threshold, seen[&threshold.signal]).await;
    }

    async fn observe(&self) -> Option<BTreeMap<Signal, Observation>> {
        let node = self.node.clone();
        blocking(move || observe::observe(&node)).await.ok()
    }

    /// Pods that may still be ended, of those that are wanted.
    fn pods(&self, wanted: fn(&Pod) -> bool) -> Vec<PodView> {
        let all = self.node.pods.list().into_iter();
        let all = all.filter(|o| o.view::<Pod>().is_ok_and(|p| wanted(&p)));
        let stays = |p: &PodView| {
            !p.stored_phase_is_terminal()
                && !is_critical(p)
                && !self.going.contains(p.uid())
                && self.node.live(p.uid()).is_some()
        };
        all.filter_map(|o| PodView::new(o).ok()).filter(stays).collect()
    }

    /// Pods that use more disk than they may. Only those with limits are measured.
    async fn over_limits(&mut self) -> Vec<(PodView, String)> {
        if self.measure_at > Instant::now() {
            return Vec::new();
        }
        let limited: Vec<PodView> = self.pods(limits::limited);
        if limited.is_empty() {
            return Vec::new();
        }
        let (node, begun) = (self.node.clone(), Instant::now());
        let measure = move || {
            let over = |pod: PodView| {
                let message = limits::exceeded(&pod, &observe::disk_usage(&node, &pod))?;
                Some((pod, message))
            };
            limited.into_iter().filter_map(over).collect()
        };
        let over = blocking(measure).await.unwrap_or_default();
        self.measure_at = Instant::now() + begun.elapsed() * MEASURE_SHARE;
        over
    }

    /// Removes what nobody uses; true when the disk is no longer short.
    async fn made_room(&self) -> bool {
        let puller = self.node.puller.clone();
        let free = move || {
            if let Some(depot) = puller.depot() {
                depot.gc(image::GcHow::Untagged)?;
            }
            puller.images().free(u64::MAX, Duration::ZERO)
        };
        match blocking(free).await {
            Ok(Ok(bytes)) => tracing::info!(bytes, "images removed under disk pressure"),
            Ok(Err(error)) => tracing::warn!(%error, "images not removed under disk pressure"),
            Err(error) => tracing::warn!(error, "images not removed under disk pressure"),
        }
        let Some(seen) = self.observe().await else { return false };
        let thresholds = &self.settings.thresholds;
        !met(&self.settings, &seen, &self.memory)
            .any(|n| thresholds[n].signal.pressure() == super::Pressure::Disk)
    }

    async fn evict_one(&mut self, threshold: &Threshold, seen: Observation) {
        let (node, pods, signal) = (self.node.clone(), self.pods(|_| true), threshold.signal);
        let ranked = blocking(move || {
            let mut all: Vec<_> = pods.iter().map(|pod| observe::candidate(&node, pod, signal)).collect();
            rank::sort(signal, &mut all);
            let first = all.into_iter().next()?;
            let pod = pods.into_iter().find(|p| p.uid() == first.uid)?;
            Some((pod, first))
        });
        let Ok(Some((pod, candidate))) = ranked.await else {
            tracing::warn!(signal = signal.name(), "the node is short, and no pod can be evicted");
            return;
        };
        let grace = match threshold.soft {
            true => self.settings.max_pod_grace.min(pod.spec_grace()).max(HARD_GRACE),
            false => HARD_GRACE,
        };
        crate::stats::own::evicted(signal.name());
        self.end(&pod, rank::message(threshold, seen, &candidate), grace);
        let deadline = Instant::now() + END_MAX.max(Duration::from_secs(grace.unsigned_abs()));
        while self.node.live(pod.uid()).is_some() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn end(&mut self, pod: &PodView, message: String, grace: i64) {
        tracing::warn!(pod = %pod.key(), message, "evicted");
        self.node.recorder.pod(
            pod,
            crate::decide::Note {
                warning: true,
                reason: "Evicted",
                message: message.clone(),
                container: String::new(),
            },
        );
        self.going.insert(pod.uid().into());
        let verdict = Verdict { rejected: false, reason: "Evicted".into(), message, grace };
        // An error means that the worker ended, and with it the agent.
        let _ = self.worker.send(Event::Judged(pod.uid().into(), verdict));
    }
}

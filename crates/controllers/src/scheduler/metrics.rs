//! The scheduler's figures, under upstream's names.

use super::state::State;
use super::waiting::Effort;
use crate::figures::doubled;
use client::metrics::{Family, Figure, labels, shared};
use parking_lot::Mutex;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Attempt {
    /// The pod was bound.
    Scheduled,
    /// It fits nowhere.
    Unschedulable,
    /// The binding failed.
    Error,
}

const ATTEMPTS: [&str; 3] = ["scheduled", "unschedulable", "error"];
/// Upper bounds of the buckets for victims.
const VICTIMS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Upper bounds of the buckets for attempts.
const TRIED: [u64; 5] = [1, 2, 4, 8, 16];
/// Upper bounds in seconds of the buckets for the time from a pod's first sight to its binding.
const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Upper bounds in seconds of the buckets for what a pod's decision takes.
const DECIDED: [f64; 8] = [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0];

/// Upper bounds in seconds of an attempt, and of one extension point.
const ATTEMPT_SECONDS: [f64; 15] = doubled(0.001);
const POINT_SECONDS: [f64; 12] = doubled(0.000_1);
const ATTEMPT: Family = Family::histogram("scheduler_scheduling_attempt_duration_seconds", &ATTEMPT_SECONDS);
/// Of upstream's points, binding is one here too; the others are one step.
const POINT: Family =
    Family::histogram("scheduler_framework_extension_point_duration_seconds", &POINT_SECONDS);
const PROFILE: &str = "default-scheduler";

struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    count: AtomicU64,
    /// In the text's unit, or in millionths of it.
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Histogram {
            buckets: std::array::from_fn(|_| AtomicU64::default()),
            count: AtomicU64::default(),
            sum: AtomicU64::default(),
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&self, bucket: Option<usize>, sum: u64) {
        if let Some(bucket) = bucket.and_then(|n| self.buckets.get(n)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }

    fn text(&self, out: &mut String, name: &str, bounds: [String; N], sum: impl Fn(u64) -> String) {
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut below = 0;
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", sum(self.sum.load(Ordering::Relaxed)));
    }
}

/// The figures of one process; they outlive a scheduler that loses its turn.
#[derive(Default)]
pub struct SchedulerMetrics {
    attempts: [AtomicU64; ATTEMPTS.len()],
    preemptions: AtomicU64,
    victims: Histogram<{ VICTIMS.len() }>,
    tried: Histogram<{ TRIED.len() }>,
    bound_after: Histogram<{ SECONDS.len() }>,
    decided: Histogram<{ DECIDED.len() }>,
    /// What the last decision took, in microseconds.
    last_decided: AtomicU64,
    rows: [OnceLock<Arc<Figure>>; ATTEMPTS.len()],
    binds: [OnceLock<Arc<Figure>>; ATTEMPTS.len()],
    state: Mutex<Option<Arc<Mutex<State>>>>,
}

impl SchedulerMetrics {
    /// The pods that wait are counted there from now on.
    pub(super) fn follow(&self, state: Arc<Mutex<State>>) {
        *self.state.lock() = Some(state);
    }

    /// An attempt ended; binding took so long.
    pub(super) fn attempted(&self, how: Attempt, binding: Duration) {
        self.attempts[how as usize].fetch_add(1, Ordering::Relaxed);
        let whole = binding + Duration::from_micros(self.last_decided.load(Ordering::Relaxed));
        let row = |family: &Family, pairs: &[(&str, &str)]| shared().of(family, &labels(pairs));
        self.rows[how as usize]
            .get_or_init(|| row(&ATTEMPT, &[("profile", PROFILE), ("result", ATTEMPTS[how as usize])]))
            .observe(whole.as_secs_f64());
        let status = match how {
            Attempt::Scheduled => "Success",
            Attempt::Error => "Error",
            Attempt::Unschedulable => return,
        };
        self.binds[how as usize]
            .get_or_init(|| {
                row(&POINT, &[("extension_point", "Bind"), ("profile", PROFILE), ("status", status)])
            })
            .observe(binding.as_secs_f64());
    }

    pub(super) fn preempted(&self, victims: usize) {
        let victims = victims as u64;
        self.preemptions.fetch_add(1, Ordering::Relaxed);
        self.victims.observe(VICTIMS.iter().position(|bound| victims <= *bound), victims);
    }

    /// So many pods were decided for in this time together.
    pub(super) fn decided(&self, pods: usize, time: Duration) {
        let Some(each) = u32::try_from(pods).ok().and_then(|n| time.checked_div(n)) else { return };
        let bucket = DECIDED.iter().position(|bound| each.as_secs_f64() <= *bound);
        self.last_decided.store(u64::try_from(each.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        for _ in 0..pods {
            self.decided.observe(bucket, u64::try_from(each.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// A pod was bound.
    pub(super) fn bound(&self, effort: Effort) {
        let (time, attempts) = (effort.seen.elapsed(), u64::from(effort.attempts));
        self.tried.observe(TRIED.iter().position(|bound| attempts <= *bound), attempts);
        let bucket = SECONDS.iter().position(|bound| time.as_secs_f64() <= *bound);
        self.bound_after.observe(bucket, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Lines for `/metrics`.
    pub fn text(&self) -> String {
        let mut out = String::from("# TYPE scheduler_schedule_attempts_total counter\n");
        for (result, count) in ATTEMPTS.iter().zip(&self.attempts) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "scheduler_schedule_attempts_total{{profile=\"default-scheduler\",result=\"{result}\"}} {count}"
            );
        }
        let preemptions = self.preemptions.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "# TYPE scheduler_preemption_attempts_total counter\nscheduler_preemption_attempts_total {preemptions}"
        );
        self.victims.text(&mut out, "scheduler_preemption_victims", VICTIMS.map(|b| b.to_string()), |n| {
            n.to_string()
        });
        self.tried.text(&mut out, "scheduler_pod_scheduling_attempts", TRIED.map(|b| b.to_string()), |n| {
            n.to_string()
        });
        let seconds = |micros| Duration::from_micros(micros).as_secs_f64().to_string();
        let bounds = SECONDS.map(|b| b.to_string());
        self.bound_after.text(&mut out, "scheduler_pod_scheduling_sli_duration_seconds", bounds, seconds);
        let bounds = DECIDED.map(|b| b.to_string());
        self.decided.text(&mut out, "scheduler_scheduling_algorithm_duration_seconds", bounds, seconds);
        let state = self.state.lock().clone();
        if let Some(state) = state {
            let state = state.lock();
            out.push_str("# TYPE scheduler_pending_pods gauge\n");
            for (queue, count) in state.pending(tokio::time::Instant::now()) {
                let _ = writeln!(out, "scheduler_pending_pods{{queue=\"{queue}\"}} {count}");
            }
            out.push_str("# TYPE scheduler_queue_incoming_pods_total counter\n");
            for ((event, queue), count) in &state.waiting.incoming {
                let labels = labels(&[("event", event), ("queue", queue)]);
                let _ = writeln!(out, "scheduler_queue_incoming_pods_total{{{labels}}} {count}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let metrics = SchedulerMetrics::default();
        metrics.attempted(Attempt::Scheduled, Duration::from_millis(3));
        metrics.attempted(Attempt::Unschedulable, Duration::ZERO);
        metrics.preempted(3);
        metrics.preempted(100);
        metrics.bound(Effort { seen: tokio::time::Instant::now(), attempts: 3 });
        metrics.decided(2, Duration::from_millis(4));
        let text = metrics.text();
        for line in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"error\"} 0",
            "scheduler_preemption_attempts_total 2",
            "scheduler_preemption_victims_bucket{le=\"2\"} 0",
            "scheduler_preemption_victims_bucket{le=\"64\"} 1",
            "scheduler_preemption_victims_bucket{le=\"+Inf\"} 2",
            "scheduler_preemption_victims_sum 103",
            "scheduler_pod_scheduling_sli_duration_seconds_count 1",
            "scheduler_pod_scheduling_attempts_bucket{le=\"2\"} 0",
            "scheduler_pod_scheduling_attempts_bucket{le=\"4\"} 1",
            "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.003\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("pending"), "nothing is known of them before the scheduler runs");
        metrics.follow(Arc::default());
        assert!(metrics.text().contains("scheduler_pending_pods{queue=\"gated\"} 0"));
    }
}

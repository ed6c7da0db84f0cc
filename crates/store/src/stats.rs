//! Numbers about the store, for `/metrics` and the benchmarks.
//!
//! Deliberately not here: their names and text format (the API server's `/metrics`).

use crate::Revision;
use std::time::Duration;

/// Upper bounds of the commit-time buckets, in seconds; a last bucket takes what is slower.
pub const COMMIT_SECONDS_BOUNDS: [f64; 14] =
    [0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Commits by the time their transaction with its fsync took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommitTimes {
    /// How many commits fell into each bucket of [`COMMIT_SECONDS_BOUNDS`] (not cumulative).
    pub buckets: [u64; COMMIT_SECONDS_BOUNDS.len() + 1],
    /// Sum of all of them.
    pub total: Duration,
}

impl CommitTimes {
    pub(crate) fn record(&mut self, time: Duration) {
        self.buckets[COMMIT_SECONDS_BOUNDS.partition_point(|bound| *bound < time.as_secs_f64())] += 1;
        self.total += time;
    }
}

/// What the committer counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    pub commits: u64,
    pub writes: u64,
    pub failed: u64,
    pub times: CommitTimes,
}

/// One look at the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read or watched from.
    pub oldest: Revision,
    /// Records now.
    pub keys: usize,
    /// Bytes of all current values.
    pub value_bytes: u64,
    /// Events kept.
    pub history_events: usize,
    /// Bytes that only the history holds, with its own overhead.
    pub history_bytes: u64,
    /// Running watches.
    pub watchers: usize,
    /// Bytes of the main file.
    pub file_bytes: u64,
    /// Bytes of the write-ahead log.
    pub log_bytes: u64,
    /// Batches made durable since the start: one fsync each.
    pub commits: u64,
    /// Writes within those batches.
    pub writes: u64,
    /// Batches that could not be made durable.
    pub failed_commits: u64,
    /// How long the commits took.
    pub commit_times: CommitTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_fall_into_their_buckets() {
        let mut times = CommitTimes::default();
        for micros in [1, 100, 101, 4_999_999, 5_000_001] {
            times.record(Duration::from_micros(micros));
        }
        assert_eq!((times.buckets[0], times.buckets[1], times.buckets[13], times.buckets[14]), (2, 1, 1, 1));
        assert_eq!(times.total, Duration::from_micros(10_000_202));
    }
}

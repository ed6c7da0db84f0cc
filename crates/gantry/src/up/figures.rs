//! The store's figures as lines of `/metrics`. Pure text.

use std::fmt::Write;
use store::{COMMIT_SECONDS_BOUNDS, CommitTimes, EtcdStats, Stats};

/// Of the embedded store.
pub fn embedded(stats: &Stats) -> String {
    let mut out = String::new();
    for (name, kind, value) in [
        ("oldest_revision", "gauge", stats.oldest.0),
        ("keys", "gauge", stats.keys as u64),
        ("value_bytes", "gauge", stats.value_bytes),
        ("history_events", "gauge", stats.history_events as u64),
        ("history_bytes", "gauge", stats.history_bytes),
        ("watchers", "gauge", stats.watchers as u64),
        ("file_bytes", "gauge", stats.file_bytes),
        ("log_bytes", "gauge", stats.log_bytes),
        ("commits_total", "counter", stats.commits),
        ("writes_total", "counter", stats.writes),
        ("failed_commits_total", "counter", stats.failed_commits),
    ] {
        line(&mut out, &format!("gantry_store_{name}"), kind, value);
    }
    let _ = writeln!(
        out,
        "# TYPE apiserver_storage_size_bytes gauge\napiserver_storage_size_bytes{{storage_cluster_id=\"embedded\"}} {}",
        stats.file_bytes
    );
    histogram(&mut out, "gantry_store_commit_seconds", &stats.commit_times);
    out
}

/// Of an etcd's client side.
pub fn etcd(stats: &EtcdStats) -> String {
    let mut out = String::new();
    for (name, kind, value) in [
        ("connected", "gauge", u64::from(stats.endpoint.is_some())),
        ("connects_total", "counter", stats.connects),
        ("writes_total", "counter", stats.writes),
        ("failed_writes_total", "counter", stats.failed_writes),
        ("resolved_writes_total", "counter", stats.resolved_writes),
        ("unknown_writes_total", "counter", stats.unknown_writes),
        ("watchers", "gauge", stats.watchers as u64),
        ("watch_resumes_total", "counter", stats.watch_resumes),
    ] {
        line(&mut out, &format!("gantry_etcd_{name}"), kind, value);
    }
    histogram(&mut out, "gantry_etcd_write_seconds", &stats.write_times);
    out
}

fn line(out: &mut String, name: &str, kind: &str, value: u64) {
    let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
}

fn histogram(out: &mut String, name: &str, times: &CommitTimes) {
    let _ = writeln!(out, "# TYPE {name} histogram");
    let mut count = 0;
    for (place, bucket) in times.buckets.iter().enumerate() {
        count += bucket;
        let bound = COMMIT_SECONDS_BOUNDS.get(place).map_or("+Inf".into(), ToString::to_string);
        let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", times.total.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_histogram_counts_up() {
        let mut times = CommitTimes { total: Duration::from_millis(1500), ..CommitTimes::default() };
        (times.buckets[0], times.buckets[14]) = (2, 1);
        let mut out = String::new();
        histogram(&mut out, "x", &times);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..2], ["# TYPE x histogram", "x_bucket{le=\"0.0001\"} 2"]);
        assert_eq!(
            lines[14..],
            ["x_bucket{le=\"5\"} 2", "x_bucket{le=\"+Inf\"} 3", "x_sum 1.5", "x_count 3"]
        );
    }
}

//! Counters and their Prometheus text.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Default)]
struct Row {
    /// Answers by code: `200`, or the error's.
    codes: BTreeMap<String, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// Calls by service and operation. Both come from the tables, codes from services: the rows are bounded.
#[derive(Default)]
pub struct Metrics {
    calls: Mutex<BTreeMap<(&'static str, &'static str), Row>>,
}

impl Metrics {
    /// Counts a call; `code` is `200` or the error's.
    pub fn called(&self, service: &'static str, operation: &'static str, code: &str, took: Duration) {
        let mut calls = self.calls.lock();
        let row = calls.entry((service, operation)).or_default();
        match row.codes.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(row.codes.insert(code.into(), 1)),
        }
        row.count += 1;
        row.seconds += took.as_secs_f64();
        for (bucket, bound) in row.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut out = String::from("# TYPE aws_requests_total counter\n");
        let calls = self.calls.lock();
        for ((service, operation), row) in calls.iter() {
            for (code, count) in &row.codes {
                let labels = format!("service=\"{service}\",operation=\"{operation}\",code=\"{code}\"");
                let _ = writeln!(out, "aws_requests_total{{{labels}}} {count}");
            }
        }
        out.push_str("# TYPE aws_request_duration_seconds histogram\n");
        for ((service, operation), row) in calls.iter() {
            let labels = format!("service=\"{service}\",operation=\"{operation}\"");
            for (count, bound) in row.buckets.iter().zip(BUCKETS) {
                let _ =
                    writeln!(out, "aws_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ =
                writeln!(out, "aws_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", row.count);
            let _ = writeln!(out, "aws_request_duration_seconds_sum{{{labels}}} {}", row.seconds);
            let _ = writeln!(out, "aws_request_duration_seconds_count{{{labels}}} {}", row.count);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_code_and_time() {
        let metrics = Metrics::default();
        for (code, ms) in [("200", 2), ("200", 200), ("ClusterNotFoundException", 1)] {
            metrics.called("ecs", "RunTask", code, Duration::from_millis(ms));
        }
        let text = metrics.text();
        for line in [
            "aws_requests_total{service=\"ecs\",operation=\"RunTask\",code=\"200\"} 2",
            "aws_requests_total{service=\"ecs\",operation=\"RunTask\",code=\"ClusterNotFoundException\"} 1",
            "aws_request_duration_seconds_bucket{service=\"ecs\",operation=\"RunTask\",le=\"0.005\"} 2",
            "aws_request_duration_seconds_count{service=\"ecs\",operation=\"RunTask\"} 3",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}

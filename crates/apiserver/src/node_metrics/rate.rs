//! From two readings to what is used now. Pure.

use super::reading::{Point, Reading};

/// A container that started after the earlier reading is told from here on: its start costs more than it will use.
const FRESH_MS: i64 = 10_000;

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Of the later reading, milliseconds since the epoch.
    pub at_ms: i64,
    /// Between the two.
    pub window_ms: i64,
    /// Billionths of a CPU, on average.
    pub cpu_nanos: u64,
    /// Working set at the later reading.
    pub memory_bytes: u64,
}

impl Rate {
    /// The window as Go prints and reads it.
    pub fn window(&self) -> String {
        let text = format!("{}.{:03}", self.window_ms / 1000, self.window_ms % 1000);
        format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn between(before: &Point, now: &Point) -> Option<Rate> {
    let window_ms = now.at_ms - before.at_ms;
    let spent = u128::from(now.cpu_nanos.checked_sub(before.cpu_nanos)?);
    let per_window = u128::try_from(window_ms).ok().filter(|ms| *ms > 0)?;
    let cpu_nanos = u64::try_from(spent * 1000 / per_window).unwrap_or(u64::MAX);
    Some(Rate { at_ms: now.at_ms, window_ms, cpu_nanos, memory_bytes: now.memory_bytes })
}

/// Of a node; `None` when the readings do not fit each other.
pub fn node_rate(before: &Reading, now: &Reading) -> Option<Rate> {
    between(&before.node, &now.node)
}

/// Of a container, from its start when it is younger than the earlier reading; `None` while it is too young.
pub fn container_rate(before: Option<&Point>, now: &Point) -> Option<Rate> {
    let same = |b: &&Point| b.started_ms == now.started_ms && b.cpu_nanos <= now.cpu_nanos;
    if let Some(before) = before.filter(same) {
        return between(before, now);
    }
    let start = Point { at_ms: now.started_ms, ..Point::default() };
    let known = now.started_ms > 0 && now.at_ms - now.started_ms >= FRESH_MS;
    known.then(|| between(&start, now)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at_ms: i64, cpu_nanos: u64, started_ms: i64) -> Point {
        Point { at_ms, cpu_nanos, memory_bytes: 5, started_ms }
    }

    #[test]
    fn counters_become_rates() {
        let rate = container_rate(Some(&point(1_000, 10, 1)), &point(16_012, 3_002_400_010, 1)).unwrap();
        assert_eq!((rate.cpu_nanos, rate.window().as_str(), rate.memory_bytes), (200_000_000, "15.012s", 5));
        assert_eq!(Rate { window_ms: 1_000, ..rate }.window(), "1s");
        assert_eq!(container_rate(Some(&point(9, 1, 1)), &point(9, 1, 1)), None);
    }

    #[test]
    fn who_started_in_between_counts_from_its_start() {
        let now = point(20_000, 5_000_000_000, 10_000);
        for before in [None, Some(point(5_000, 1, 1)), Some(point(5_000, 9_000_000_000, 10_000))] {
            assert_eq!(container_rate(before.as_ref(), &now).unwrap().cpu_nanos, 500_000_000);
        }
        assert_eq!(container_rate(None, &point(19_999, 1, 10_000)), None);
        assert_eq!(container_rate(None, &point(19_999, 1, 0)), None);
    }
}

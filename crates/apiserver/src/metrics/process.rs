//! What every Prometheus client tells of its process.

use std::fmt::Write;

/// What every Prometheus client tells of its process; nothing where `/proc` is not readable.
pub fn process() -> String {
    /// `USER_HZ` and the page size of the machines we run on.
    const TICKS: f64 = 100.0;
    const PAGE: u64 = 4_096;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    // The name, in parentheses, may hold anything.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let of = |n: usize| fields.get(n).copied().unwrap_or(0.0);
    let pages: Vec<u64> = read("/proc/self/statm").split(' ').filter_map(|f| f.trim().parse().ok()).collect();
    let boot = read("/proc/stat");
    let boot: f64 = boot
        .lines()
        .find_map(|l| l.strip_prefix("btime "))
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0.0);
    let limits = read("/proc/self/limits");
    let most = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let most = most.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let memory = |n: usize| pages.get(n).copied().unwrap_or(0) * PAGE;
    let mut out = String::new();
    for (name, kind, value) in [
        ("cpu_seconds_total", "counter", ((of(11) + of(12)) / TICKS).to_string()),
        ("resident_memory_bytes", "gauge", memory(1).to_string()),
        ("virtual_memory_bytes", "gauge", memory(0).to_string()),
        ("open_fds", "gauge", open.to_string()),
        ("max_fds", "gauge", most.to_string()),
        ("start_time_seconds", "gauge", (boot + of(19) / TICKS).to_string()),
    ] {
        // Writing to a String does not fail.
        let _ = writeln!(out, "# TYPE process_{name} {kind}\nprocess_{name} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let text = process();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|l| l.strip_prefix(&format!("process_{name} ")));
            line.unwrap().parse().unwrap()
        };
        assert!(
            value("resident_memory_bytes") > 1e6
                && value("resident_memory_bytes") < value("virtual_memory_bytes")
        );
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!(now - value("start_time_seconds") < 3_600.0 && value("start_time_seconds") < now + 5.0);
        assert!(value("open_fds") >= 3.0 && value("open_fds") < value("max_fds"));
    }
}

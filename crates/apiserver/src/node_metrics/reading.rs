//! What one node reported: the few series of `/metrics/resource` that matter, from Prometheus' text. Pure.

use std::collections::BTreeMap;

/// One thing's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Of the reading, milliseconds since the epoch.
    pub at_ms: i64,
    /// CPU time so far.
    pub cpu_nanos: u64,
    /// Working set.
    pub memory_bytes: u64,
    /// Of the container, milliseconds since the epoch; 0 when it is not known.
    pub started_ms: i64,
}

/// Namespace, pod, container.
pub type ContainerKey = (String, String, String);

/// A node's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Of the node.
    pub node: Point,
    /// Of its running containers.
    pub containers: BTreeMap<ContainerKey, Point>,
}

/// Reads a node's answer; lines that are not understood are none of ours.
pub fn parse(text: &str) -> Reading {
    let mut reading = Reading::default();
    for (name, labels, value, at_ms) in text.lines().filter_map(series) {
        let point = match name {
            "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => &mut reading.node,
            "container_cpu_usage_seconds_total"
            | "container_memory_working_set_bytes"
            | "container_start_time_seconds" => {
                let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
                let (Some(namespace), Some(pod), Some(container)) =
                    (label("namespace"), label("pod"), label("container"))
                else {
                    continue;
                };
                reading.containers.entry((namespace, pod, container)).or_default()
            }
            _ => continue,
        };
        match name.rsplit_once('_') {
            Some((_, "total")) => {
                point.cpu_nanos = scaled(value, 1e9);
                point.at_ms = at_ms;
            }
            Some((_, "bytes")) => point.memory_bytes = scaled(value, 1.0),
            _ => point.started_ms = i64::try_from(scaled(value, 1e3)).unwrap_or(0),
        }
    }
    // A container whose CPU could not be read has no moment.
    reading.containers.retain(|_, point| point.at_ms > 0);
    reading
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and NaN is 0"
)]
fn scaled(value: f64, by: f64) -> u64 {
    (value * by).round() as u64
}

type Labels<'a> = Vec<(&'a str, String)>;

/// `name{label="value",…} number milliseconds`.
fn series(line: &str) -> Option<(&str, Labels<'_>, f64, i64)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (inner, rest) = rest.rsplit_once('}')?;
            (name, labels(inner), rest)
        }
        None => line.split_once(' ').map(|(name, rest)| (name, Vec::new(), rest))?,
    };
    let mut words = rest.split_whitespace();
    let value = words.next()?.parse().ok()?;
    Some((name, labels, value, words.next().and_then(|at| at.parse().ok()).unwrap_or(0)))
}

/// Values here are names of objects: nothing in them is escaped.
fn labels(text: &str) -> Labels<'_> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim(), value.trim_matches('"').to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_answer() {
        let text = "# HELP container_cpu_usage_seconds_total [STABLE] …\n\
            # TYPE container_cpu_usage_seconds_total counter\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 4.710169 1624961123000\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\"} 1 1\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 1.253376e+06 1624961123001\n\
            container_memory_working_set_bytes{container=\"d\",namespace=\"n\",pod=\"p\"} 7 1624961123001\n\
            container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.62e9\n\
            node_cpu_usage_seconds_total 2 1624961123002\nnode_memory_working_set_bytes NaN\n\
            pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 9 1\nscrape_error 0\njunk\nx{ 1\n";
        let reading = parse(text);
        let key = ("n".to_string(), "p".to_string(), "c".to_string());
        let point = Point {
            at_ms: 1_624_961_123_000,
            cpu_nanos: 4_710_169_000,
            memory_bytes: 1_253_376,
            started_ms: 1_620_000_000_000,
        };
        assert_eq!(reading.containers, BTreeMap::from([(key, point)]));
        assert_eq!((reading.node.cpu_nanos, reading.node.memory_bytes), (2_000_000_000, 0));
        assert_eq!(reading.node.at_ms, 1_624_961_123_002);
    }
}

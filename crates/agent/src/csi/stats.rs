//! How full drivers' volumes are, as their drivers tell it, under the kubelet's names.
//!
//! Asked when somebody scrapes, all drivers at once and not for long. Deliberately not here: volumes of other kinds.

use super::{PublishedVolume, ability};
use crate::ops::Node;
use crate::stats::text::Text;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

/// A scrape waits no longer for drivers.
const STATS_MAX: Duration = Duration::from_secs(5);
/// A series: its unit (`VolumeUsage.Unit`), the field, its name and what it says.
const SERIES: [(i64, &str, &str, &str); 6] = [
    (1, "available", "kubelet_volume_stats_available_bytes", "Number of available bytes in the volume"),
    (1, "total", "kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume"),
    (2, "total", "kubelet_volume_stats_inodes", "Maximum number of inodes in the volume"),
    (2, "available", "kubelet_volume_stats_inodes_free", "Number of free inodes in the volume"),
    (2, "used", "kubelet_volume_stats_inodes_used", "Number of used inodes in the volume"),
    (1, "used", "kubelet_volume_stats_used_bytes", "Number of used bytes in the volume"),
];

/// A claim's namespace and name, and what its driver said.
type Told = ((String, String), Value);

async fn ask(node: &Node, volume: PublishedVolume) -> Option<Told> {
    let record = &volume.record;
    let claim = volume.claim?;
    let can = node.csi.abilities(&record.driver_name).await.ok()?;
    if !can.contains(&ability::STATS) {
        return None;
    }
    let place = &node.csi.place;
    let mut request =
        json!({"volume_id": record.volume_handle, "volume_path": place.shown(&volume.mounted.path)});
    if can.contains(&ability::STAGE) {
        request["staging_target_path"] = json!(place.shown(&place.staging(record)));
    }
    Some((claim, node.csi.call(&record.driver_name, "NodeGetVolumeStats", &request).await.ok()?))
}

/// Series of all volumes that claims here have of drivers; "" where there are none.
pub async fn metrics(node: &Node) -> String {
    let volumes: Vec<PublishedVolume> = node.csi.published.lock().values().cloned().collect();
    let all = join_all(volumes.into_iter().map(|v| tokio::time::timeout(STATS_MAX, ask(node, v)))).await;
    let mut told: Vec<Told> = all.into_iter().filter_map(|answer| answer.ok().flatten()).collect();
    // Several pods may have one volume.
    told.sort_by(|a, b| a.0.cmp(&b.0));
    told.dedup_by(|a, b| a.0 == b.0);
    if told.is_empty() { String::new() } else { lines(&told) }
}

fn lines(told: &[Told]) -> String {
    let mut text = Text::default();
    for (unit, field, name, help) in SERIES {
        text.family(name, "gauge", &format!("[ALPHA] {help}"));
        for ((namespace, claim), answer) in told {
            let mut usage = answer["usage"].as_array().into_iter().flatten();
            let Some(usage) = usage.find(|u| u["unit"] == unit) else { continue };
            let value = usage[field].as_i64().unwrap_or(0);
            text.sample(name, &[("namespace", namespace), ("persistentvolumeclaim", claim)], value, None);
        }
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_by_unit() {
        let usage =
            json!({"usage": [{"unit": 1, "total": 10, "used": 4, "available": 6}, {"unit": 2, "total": 3}]});
        let text = lines(&[(("n".into(), "c".into()), usage)]);
        for line in [
            "kubelet_volume_stats_capacity_bytes{namespace=\"n\",persistentvolumeclaim=\"c\"} 10",
            "kubelet_volume_stats_used_bytes{namespace=\"n\",persistentvolumeclaim=\"c\"} 4",
            "kubelet_volume_stats_inodes{namespace=\"n\",persistentvolumeclaim=\"c\"} 3",
            "kubelet_volume_stats_inodes_free{namespace=\"n\",persistentvolumeclaim=\"c\"} 0",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}

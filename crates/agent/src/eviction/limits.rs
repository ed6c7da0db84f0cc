//! Who uses more of the node's disk than its pod allows: `sizeLimit` of disk emptyDirs, `ephemeral-storage` limits of
//! containers and of the pod. Pure.

use crate::pod::{PodView, Role};
use k8s_openapi::api::core::v1::Pod;
use machinery::quantity::Quantity;
use std::collections::BTreeMap;

const RESOURCE: &str = "ephemeral-storage";

/// Bytes that a pod has on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// By container: its own layer and its logs.
    pub containers: BTreeMap<String, u64>,
    /// By volume.
    pub volumes: BTreeMap<String, u64>,
    /// Inodes, all in all.
    pub inodes: u64,
}

impl DiskUsage {
    /// All bytes.
    pub fn total(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).fold(0, |sum, n| sum.saturating_add(*n))
    }
}

fn bytes(quantity: &Quantity) -> u64 {
    u64::try_from(quantity.units()).unwrap_or(0)
}

/// Disk emptyDirs with a size limit.
fn volume_limits(pod: &PodView) -> impl Iterator<Item = (&str, Quantity)> {
    pod.spec().volumes.iter().flatten().filter_map(|v| {
        let dir = v.empty_dir.as_ref().filter(|d| d.medium.as_deref().is_none_or(str::is_empty))?;
        let limit = dir.size_limit.as_ref()?.0.parse::<Quantity>().ok()?;
        (limit.sign() > 0).then_some((v.name.as_str(), limit))
    })
}

fn container_limits(pod: &PodView) -> impl Iterator<Item = (&str, Role, Quantity)> {
    pod.containers.iter().filter_map(|c| {
        let limit = c.spec.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?;
        Some((c.name(), c.role, limit.0.parse().ok()?))
    })
}

/// Is there anything to be measured? (Asked of all pods, now and then: it must cost nothing.)
pub fn limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut volumes = spec.volumes.iter().flatten().filter_map(|v| v.empty_dir.as_ref());
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut limits = all.filter_map(|c| c.resources.as_ref()?.limits.as_ref());
    volumes.any(|dir| dir.size_limit.is_some()) || limits.any(|l| l.contains_key(RESOURCE))
}

/// The first limit that the pod exceeds, in upstream's words.
pub fn exceeded(pod: &PodView, usage: &DiskUsage) -> Option<String> {
    let used = |list: &BTreeMap<String, u64>, name: &str| list.get(name).copied().unwrap_or(0);
    for (name, limit) in volume_limits(pod) {
        if used(&usage.volumes, name) > bytes(&limit) {
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "));
        }
    }
    let (mut together, mut largest, mut any) = (Quantity::ZERO, Quantity::ZERO, false);
    for (_, role, limit) in container_limits(pod) {
        any = true;
        match role {
            Role::Init if limit > largest => largest = limit,
            Role::Init => {}
            _ => together = together.add(limit),
        }
    }
    let whole = if largest > together { largest } else { together };
    if any && usage.total() > bytes(&whole) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {whole}. "
        ));
    }
    container_limits(pod).find(|(name, _, limit)| used(&usage.containers, name) > bytes(limit)).map(
        |(name, _, limit)| {
            format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn usage(containers: &[(&str, u64)], volumes: &[(&str, u64)]) -> DiskUsage {
        let map = |list: &[(&str, u64)]| list.iter().map(|(n, b)| (n.to_string(), b << 20)).collect();
        DiskUsage { containers: map(containers), volumes: map(volumes), inodes: 0 }
    }

    #[test]
    fn volumes() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "i"}], "volumes": [
            {"name": "free", "emptyDir": {}}, {"name": "small", "emptyDir": {"sizeLimit": "10Mi"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}));
        assert!(limited(&pod.pod));
        assert_eq!(
            exceeded(&pod, &usage(&[("a", 900)], &[("free", 900), ("small", 10), ("memory", 2)])),
            None
        );
        assert_eq!(
            exceeded(&pod, &usage(&[], &[("small", 11)])).unwrap(),
            "Usage of EmptyDir volume \"small\" exceeds the limit \"10Mi\". "
        );
    }

    #[test]
    fn containers_and_the_pod() {
        let limit = |n: &str| json!({"limits": {"ephemeral-storage": n}});
        let pod = pod(json!({"containers": [{"name": "a", "image": "i", "resources": limit("10Mi")},
            {"name": "b", "image": "i", "resources": limit("20Mi")}]}));
        assert_eq!(exceeded(&pod, &usage(&[("a", 10), ("b", 20)], &[])), None);
        assert_eq!(
            exceeded(&pod, &usage(&[("a", 11)], &[])).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"10Mi\". "
        );
        assert_eq!(
            exceeded(&pod, &usage(&[("a", 5), ("b", 5)], &[("v", 21)])).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "
        );
    }

    #[test]
    fn nothing_is_measured_without_limits() {
        let pod = pod(
            json!({"containers": [{"name": "a", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}}]}),
        );
        assert!(!limited(&pod.pod) && exceeded(&pod, &usage(&[("a", 1 << 20)], &[])).is_none());
    }
}

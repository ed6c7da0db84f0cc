//! Requests and limits as cgroup settings and OOM scores.

use crate::facts::NodeFacts;
use crate::pod::{ContainerView, PodView, Qos, Role};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use machinery::quantity::Quantity;
use runtime::oci;
use std::collections::BTreeMap;

const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
const PERIOD_US: i64 = 100_000;
/// The kernel takes no quota below a millisecond.
const QUOTA_MIN_US: i64 = 1000;
/// Pods of this priority and above are critical to the node.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

#[derive(Clone, Copy)]
enum Which {
    Request,
    Limit,
}

/// A container's request or limit; a limit alone is also its request.
fn amount(container: &ContainerView, which: Which, name: &str) -> Option<Quantity> {
    read(container.spec.resources.as_ref()?, which, name)
}

/// An amount of the pod as a whole.
fn of_whole(pod: &PodView, which: Which, name: &str) -> Option<Quantity> {
    read(pod.spec().resources.as_ref()?, which, name)
}

fn read(resources: &ResourceRequirements, which: Which, name: &str) -> Option<Quantity> {
    let get = |list: &Option<BTreeMap<String, Amount>>| list.as_ref()?.get(name)?.0.parse::<Quantity>().ok();
    match which {
        Which::Limit => get(&resources.limits),
        Which::Request => get(&resources.requests).or_else(|| get(&resources.limits)),
    }
}

fn shares(milli: i64) -> u64 {
    (u64::try_from(milli).unwrap_or(0) * 1024 / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn quota(milli: i64) -> i64 {
    (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US)
}

/// Huge pages among resources; the rest of the name is their size.
pub const HUGE: &str = "hugepages-";
/// Sizes that machines have; who asks for none of a size gets none.
const HUGE_SIZES: [&str; 2] = ["2Mi", "1Gi"];

/// Limits of huge pages by size (`2Mi`), from amounts in bytes.
fn huge(limit: impl Fn(&str) -> Option<i64>) -> Vec<oci::HugepageLimit> {
    let one = |size: &&str| oci::HugepageLimit {
        page_size: size.replace('i', "B"),
        limit: limit(&format!("{HUGE}{size}")).and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
    };
    HUGE_SIZES.iter().map(one).collect()
}

/// The cgroup settings of one container; where it has no limit of its own, the pod's bounds it.
pub fn container(pod: &PodView, container: &ContainerView, facts: &NodeFacts) -> oci::Resources {
    let limited =
        |name: &str| amount(container, Which::Limit, name).or_else(|| of_whole(pod, Which::Limit, name));
    let request = amount(container, Which::Request, "cpu").map_or(0, |q| q.milli());
    let limit = limited("cpu").map(|q| q.milli()).filter(|m| *m > 0);
    let memory = limited("memory").map(|q| q.units()).filter(|m| *m > 0);
    oci::Resources {
        cpu: oci::Cpu {
            shares: Some(shares(request)),
            quota: limit.map(quota),
            period: limit.map(|_| PERIOD_US.unsigned_abs()),
            ..oci::Cpu::default()
        },
        // Memory and swap together: swap is no way around the limit.
        memory: oci::Memory { limit: memory, swap: memory, ..oci::Memory::default() },
        pids: (facts.pids_max > 0).then_some(oci::Pids { limit: facts.pids_max }),
        // The pod's limits bound it where it asks for none; crun knows no limit where there is no controller.
        hugepage_limits: huge(|name| limited(name).map(|q| q.units()))
            .into_iter()
            .filter(|h| h.limit > 0)
            .collect(),
        ..oci::Resources::default()
    }
}

/// Sum over all containers that run together, or the largest of the init containers; `None` when a limit is missing.
fn total(pod: &PodView, which: Which, name: &str) -> Option<i64> {
    // Resources of the pod as a whole go first.
    if let Some(whole) = of_whole(pod, which, name) {
        return Some(if name == "cpu" { whole.milli() } else { whole.units() });
    }
    let value =
        |c: &ContainerView| amount(c, which, name).map(|q| if name == "cpu" { q.milli() } else { q.units() });
    let (mut together, mut largest) = (0_i64, 0_i64);
    for container in pod.containers.iter().filter(|c| c.role != Role::Ephemeral) {
        let value = match (value(container), which) {
            (Some(value), _) => value,
            (None, Which::Request) => 0,
            (None, Which::Limit) => return None,
        };
        match container.role {
            Role::Init => largest = largest.max(together.saturating_add(value)),
            _ => together = together.saturating_add(value),
        }
    }
    let overhead =
        pod.spec().overhead.as_ref().and_then(|o| o.get(name)).and_then(|q| q.0.parse::<Quantity>().ok());
    let overhead = overhead.map_or(0, |q| if name == "cpu" { q.milli() } else { q.units() });
    Some(together.max(largest).saturating_add(overhead))
}

/// The cgroup settings of the pod as a whole.
pub fn pod(pod: &PodView, facts: &NodeFacts) -> oci::Resources {
    let limit = total(pod, Which::Limit, "cpu").filter(|m| *m > 0);
    oci::Resources {
        cpu: oci::Cpu {
            shares: Some(shares(total(pod, Which::Request, "cpu").unwrap_or(0))),
            quota: limit.map(quota),
            period: limit.map(|_| PERIOD_US.unsigned_abs()),
            ..oci::Cpu::default()
        },
        memory: oci::Memory {
            limit: total(pod, Which::Limit, "memory").filter(|m| *m > 0),
            ..oci::Memory::default()
        },
        pids: (facts.pids_max > 0).then_some(oci::Pids { limit: facts.pids_max }),
        // Requests are limits here; who has none, has none.
        hugepage_limits: huge(|name| total(pod, Which::Request, name)),
        ..oci::Resources::default()
    }
}

/// The pod's cgroup below the root.
pub fn cgroup(pod: &PodView) -> String {
    match pod.qos() {
        Qos::Guaranteed => format!("pod{}", pod.uid()),
        Qos::Burstable => format!("burstable/pod{}", pod.uid()),
        Qos::BestEffort => format!("besteffort/pod{}", pod.uid()),
    }
}

/// Who goes first when memory is short (Kubernetes' formula).
pub fn oom_score_adj(pod: &PodView, container: &ContainerView, qos: Qos, facts: &NodeFacts) -> i32 {
    if pod.spec().priority.unwrap_or(0) >= CRITICAL_PRIORITY {
        return -997;
    }
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let own = |c: &ContainerView| amount(c, Which::Request, "memory").map_or(0, |q| q.units());
            // What the pod has beyond its containers' requests is shared evenly.
            let running = || pod.containers.iter().filter(|c| c.role != Role::Ephemeral);
            let given: i64 = running().map(own).sum();
            let whole = of_whole(pod, Which::Request, "memory").map_or(0, |q| q.units());
            let request = own(container) + (whole - given).max(0) / (running().count().max(1) as i64);
            let share = i128::from(request) * 1000 / i128::from(facts.memory_bytes.max(1));
            i32::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

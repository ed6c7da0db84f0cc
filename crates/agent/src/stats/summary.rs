//! `/stats/summary`: node, pods, containers and volumes in the kubelet's fields.

use super::disk::{OnDisk, Used};
use super::kernel::Device;
use super::{ContainerStats, DiskCache, PodStats, Stats};
use crate::facts::NodeFacts;
use crate::pod::PodView;
use client::Object;
use k8s_openapi::api::core::v1::VolumeMount;
use machinery::time;
use runtime::api::{Pressure, Stall, Usage};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// CPU time by cgroup at one moment, to tell what was used since.
#[derive(Clone, Default)]
pub struct Readings {
    /// Of the first, milliseconds since the epoch.
    pub at_ms: i64,
    cpu: BTreeMap<String, (i64, u64)>,
}

/// The machine among cgroups.
const MACHINE: &str = "/";
/// All pods among cgroups.
const ALL: &str = "";
/// This process among cgroups.
const AGENT: &str = "/agent";

impl Readings {
    /// Of these figures.
    pub fn of(stats: &Stats) -> Readings {
        let machine = &stats.machine;
        let mut cpu = BTreeMap::from([
            (MACHINE.to_string(), (machine.at_ms, machine.cpu_ns)),
            (ALL.to_string(), (machine.at_ms, stats.all.cpu_ns)),
            (AGENT.to_string(), (machine.at_ms, machine.own.cpu_ns)),
        ]);
        for pod in &stats.pods {
            cpu.insert(pod.cgroup.clone(), (pod.at_ms, pod.usage.cpu_ns));
            let containers = pod.containers.iter();
            cpu.extend(containers.map(|c| (c.cgroup.clone(), (c.at_ms, c.usage.cpu_ns))));
        }
        Readings { at_ms: machine.at_ms, cpu }
    }

    /// Billionths of a CPU since then.
    fn rate(&self, cgroup: &str, at_ms: i64, cpu_ns: u64) -> Option<u64> {
        let (before_ms, before) = self.cpu.get(cgroup)?;
        let spent = cpu_ns.checked_sub(*before)?;
        let window = u64::try_from(at_ms - before_ms).ok().filter(|ms| *ms > 0)?;
        Some(spent.saturating_mul(1000) / window)
    }
}

/// What the document is made from.
pub struct Source<'a> {
    /// Figures.
    pub stats: &'a Stats,
    /// Those before.
    pub before: &'a Readings,
    /// The node.
    pub facts: &'a NodeFacts,
    /// Where images are.
    pub images: &'a Path,
    /// Bytes of all images.
    pub image_bytes: u64,
    /// The node's pods as the API has them, by UID.
    pub pods: &'a BTreeMap<String, Arc<Object>>,
    /// What they have on disk.
    pub disk: &'a DiskCache,
}

fn stamp(at_ms: i64) -> String {
    time::format(jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default())
}

fn stamp_ns(at_ns: i64) -> String {
    time::format(jiff::Timestamp::from_nanosecond(at_ns.into()).unwrap_or_default())
}

fn join(parts: impl IntoIterator<Item = Value>) -> Value {
    let maps = parts.into_iter().filter_map(|part| match part {
        Value::Object(map) => Some(map),
        _ => None,
    });
    maps.flatten().collect::<Map<String, Value>>().into()
}

/// `cpu`, `memory` and `swap` of a cgroup. `limit` bounds what memory is available.
fn usage(source: &Source, cgroup: &str, at_ms: i64, usage: &Usage, limit: u64) -> Value {
    let now = stamp(at_ms);
    let mut cpu = json!({"time": now, "usageCoreNanoSeconds": usage.cpu_ns});
    if let Some(rate) = source.before.rate(cgroup, at_ms, usage.cpu_ns) {
        cpu["usageNanoCores"] = json!(rate);
    }
    let mut memory = json!({"time": now, "usageBytes": usage.memory_bytes,
        "workingSetBytes": usage.working_set_bytes, "rssBytes": usage.rss_bytes,
        "pageFaults": usage.faults[0], "majorPageFaults": usage.faults[1]});
    if limit > 0 {
        memory["availableBytes"] = json!(limit.saturating_sub(usage.working_set_bytes));
    }
    let swap = json!({"time": now, "swapUsageBytes": usage.swap_bytes});
    let mut all = json!({"cpu": cpu, "memory": memory, "swap": swap});
    for (part, pressure) in ["cpu", "memory", "io"].into_iter().zip(usage.pressure) {
        if let Some(Pressure { some, full }) = pressure {
            all[part]["time"] = json!(now);
            all[part]["psi"] = json!({"some": stall(&some), "full": stall(&full)});
        }
    }
    all
}

/// In the kernel's units, as upstream: microseconds and percents.
fn stall(stall: &Stall) -> Value {
    let [ten, sixty, long] = stall.averages.map(|hundredths| f64::from(hundredths) / 100.0);
    json!({"total": stall.total_us, "avg10": ten, "avg60": sixty, "avg300": long})
}

/// A file system's figures; `used` is what is counted as its own, or all that is taken.
fn file_system(place: &Path, at_ms: i64, used: Option<Used>) -> Value {
    let mut fs = json!({"time": stamp(at_ms)});
    if let Ok(stat) = rustix::fs::statvfs(place) {
        let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        fs["availableBytes"] = json!(size(stat.f_bavail));
        fs["capacityBytes"] = json!(size(stat.f_blocks));
        fs["usedBytes"] = json!(size(stat.f_blocks.saturating_sub(stat.f_bfree)));
        fs["inodesFree"] = json!(stat.f_ffree);
        fs["inodes"] = json!(stat.f_files);
        fs["inodesUsed"] = json!(stat.f_files.saturating_sub(stat.f_ffree));
    }
    if let Some((bytes, files)) = used {
        fs["usedBytes"] = json!(bytes);
        fs["inodesUsed"] = json!(files);
    }
    fs
}

fn network(devices: &[Device], default: Option<&Device>, at_ms: i64) -> Value {
    let one = |d: &Device| {
        json!({"name": d.name, "rxBytes": d.received[0], "rxErrors": d.received[2],
            "txBytes": d.sent[0], "txErrors": d.sent[2]})
    };
    let Some(default) = default else { return json!({}) };
    let all: Vec<Value> = devices.iter().map(one).collect();
    json!({"network": join([json!({"time": stamp(at_ms)}), one(default), json!({"interfaces": all})])})
}

/// The document.
pub fn document(source: &Source) -> Value {
    let (stats, machine) = (source.stats, &source.stats.machine);
    let whole = machine.usage();
    let capacity = u64::try_from(source.facts.memory_bytes).unwrap_or(0);
    let mut own = usage(source, MACHINE, machine.at_ms, &whole, capacity);
    own["swap"]["swapAvailableBytes"] = json!(machine.memory("SwapFree"));
    let pods = usage(source, ALL, machine.at_ms, &stats.all, capacity);
    let agent = usage(source, AGENT, machine.at_ms, &machine.own, 0);
    let of_images = (source.image_bytes, source.disk.files(source.images));
    let images = file_system(source.images, machine.at_ms, Some(of_images));
    let started = stamp(machine.booted.saturating_mul(1000));
    let node = join([
        own,
        network(&machine.devices, machine.device(), machine.at_ms),
        json!({"nodeName": stats.node, "startTime": started,
            "systemContainers": [join([json!({"name": "kubelet", "startTime": time::format(source.facts.started)}), agent]),
                join([json!({"name": "pods", "startTime": started}), pods])],
            "fs": file_system(&source.facts.data_dir, machine.at_ms, None),
            "runtime": {"imageFs": images, "containerFs": file_system(source.images, machine.at_ms, None)},
            "rlimit": {"time": stamp(machine.at_ms), "maxpid": machine.tasks[1], "curproc": machine.tasks[0]}}),
    ]);
    json!({"node": node, "pods": stats.pods.iter().map(|p| pod(source, p)).collect::<Vec<_>>()})
}

fn pod(source: &Source, pod: &PodStats) -> Value {
    let view = source.pods.get(&pod.uid).and_then(|object| PodView::new(object.clone()).ok());
    let disk = view.as_ref().map(|view| source.disk.of(source.facts, view)).unwrap_or_default();
    let containers: Vec<Value> = pod.containers.iter().map(|c| container(source, c, &disk)).collect();
    let volumes = view.as_ref().map(|view| volumes(view, pod, &disk)).unwrap_or_default();
    let ephemeral = disk.layers.values().chain(disk.logs.values()).chain(disk.volumes.values().map(|v| &v.1));
    let ephemeral = ephemeral.fold((0, 0), |sum, used| (sum.0 + used.0, sum.1 + used.1));
    let started = view.as_ref().and_then(|v| v.pod.status.as_ref()?.start_time.as_ref());
    let started = started.map_or_else(|| stamp_ns(pod.started_ns), |t| time::format(t.0));
    join([
        usage(source, &pod.cgroup, pod.at_ms, &pod.usage, 0),
        network(&pod.devices, pod.devices.first(), pod.at_ms),
        json!({"podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "startTime": started, "containers": containers, "volume": volumes,
            "ephemeral-storage": file_system(&source.facts.data_dir, disk.at_ms, Some(ephemeral)),
            "process_stats": {"process_count": pod.usage.pids}}),
    ])
}

fn container(source: &Source, container: &ContainerStats, disk: &OnDisk) -> Value {
    let limit = container.limits.memory.limit.and_then(|l| u64::try_from(l).ok()).unwrap_or(0);
    let used = |map: &BTreeMap<String, Used>| map.get(&container.name).copied().unwrap_or_default();
    join([
        usage(source, &container.cgroup, container.at_ms, &container.usage, limit),
        json!({"name": container.name, "startTime": stamp_ns(container.started_ns),
            "rootfs": file_system(source.images, disk.at_ms, Some(used(&disk.layers))),
            "logs": file_system(&source.facts.log_dir, disk.at_ms, Some(used(&disk.logs)))}),
    ])
}

/// Where a volume is on the node: what a container has mounted of it.
fn place<'a>(view: &PodView, pod: &'a PodStats, volume: &str) -> Option<&'a Path> {
    pod.containers.iter().find_map(|container| {
        let spec = view.containers.iter().find(|c| c.name() == container.name)?;
        let whole = |m: &&VolumeMount| m.name == volume && m.sub_path.is_none() && m.sub_path_expr.is_none();
        let mount = spec.spec.volume_mounts.iter().flatten().find(whole)?;
        container.mounts.get(Path::new(&mount.mount_path)).map(PathBuf::as_path)
    })
}

fn volumes(view: &PodView, pod: &PodStats, disk: &OnDisk) -> Vec<Value> {
    let named = |name: &str, fs: Value| join([fs, json!({"name": name})]);
    let own = disk.volumes.iter();
    let mut all: Vec<Value> =
        own.map(|(name, (place, used))| named(name, file_system(place, disk.at_ms, Some(*used)))).collect();
    for volume in view.spec().volumes.iter().flatten() {
        let claim = crate::volumes::claim_of(view.name(), volume);
        let Some((claim, _)) = claim else { continue };
        let reference = json!({"name": claim, "namespace": view.namespace()});
        let fs = place(view, pod, &volume.name)
            .map_or_else(|| json!({}), |place| file_system(place, disk.at_ms, None));
        all.push(join([named(&volume.name, fs), json!({"pvcRef": reference})]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::facts;
    use crate::stats::tests::stats;

    #[test]
    fn the_kubelets_fields() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let mut earlier = stats();
        earlier.pods[0].containers[0].at_ms -= 10_000;
        earlier.pods[0].containers[0].usage.cpu_ns -= 1_000_000_000;
        let body = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [{"name": "c"}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}]}});
        let object = Object::new(client::ObjectKey::new("n", "p"), 1, body.to_string().into());
        let source = Source {
            stats: &stats(),
            before: &Readings::of(&earlier),
            facts: &facts(folder.path()),
            images: folder.path(),
            image_bytes: 77,
            pods: &BTreeMap::from([("u".to_string(), Arc::new(object))]),
            disk: &DiskCache::default(),
        };
        let all = document(&source);
        let at = |pointer: &str| all.pointer(pointer).unwrap_or(&Value::Null).clone();
        assert_eq!(at("/node/memory/workingSetBytes"), 5120);
        assert_eq!(at("/node/memory/availableBytes"), json!((4u64 << 30) - 5120));
        assert_eq!(at("/node/runtime/imageFs/usedBytes"), 77);
        assert_eq!(at("/node/rlimit/curproc"), 12);
        let system = at("/node/systemContainers");
        let names: Vec<&Value> = system.as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["kubelet", "pods"]);
        assert_eq!(system[0]["startTime"], "1970-01-01T00:00:00Z", "that of the process, not of the machine");
        let stalled = json!({"total": 7, "avg10": 1.77, "avg60": 0.0, "avg300": 0.0});
        assert_eq!(at("/pods/0/containers/0/cpu/psi/some"), stalled);
        assert_eq!(at("/pods/0/containers/0/io"), Value::Null, "what is not counted is not told");
        assert!(at("/node/runtime/imageFs/inodesUsed").as_u64().is_some_and(|n| n > 0));
        assert!(at("/node/fs/capacityBytes").as_u64().is_some_and(|n| n > 0));
        assert_eq!(at("/pods/0/podRef"), json!({"name": "p", "namespace": "n", "uid": "u"}));
        assert_eq!(at("/pods/0/network/rxBytes"), 10);
        assert_eq!(at("/pods/0/process_stats/process_count"), 3);
        assert_eq!(at("/pods/0/containers/0/cpu/usageNanoCores"), 100_000_000);
        assert_eq!(at("/pods/0/containers/0/memory/availableBytes"), 8192 - 4096);
        assert_eq!(at("/pods/0/containers/0/startTime"), "2023-11-14T22:13:10Z");
        let volumes = at("/pods/0/volume");
        assert_eq!(volumes.as_array().unwrap().len(), 1, "{volumes}");
    }
}

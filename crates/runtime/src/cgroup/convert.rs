//! From OCI resources to cgroup files, and from cgroup files to usage. Pure.

use crate::api::{Disk, Usage};
use crate::oci::Resources;

/// One file to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Write {
    /// Which v1 hierarchy.
    pub controller: &'static str,
    /// File name.
    pub file: String,
    /// Content.
    pub value: String,
    /// A kernel without this file is fine.
    pub optional: bool,
    /// Refused while the memory+swap limit is lower: raise that first, then try again.
    pub retry_last: bool,
}

pub(super) fn write(controller: &'static str, file: &str, value: impl ToString) -> Write {
    Write { controller, file: file.to_owned(), value: value.to_string(), ..Write::default() }
}

fn optional(write: Write) -> Write {
    Write { optional: true, ..write }
}

/// Default period of CPU quotas in microseconds.
const PERIOD_US: u64 = 100_000;

/// The writes for v1, in order.
pub(super) fn v1(resources: &Resources) -> Vec<Write> {
    let (memory, cpu) = (&resources.memory, &resources.cpu);
    let mut out = Vec::new();
    out.extend(
        memory.limit.map(|v| Write { retry_last: true, ..write("memory", "memory.limit_in_bytes", v) }),
    );
    out.extend(memory.swap.map(|v| optional(write("memory", "memory.memsw.limit_in_bytes", v))));
    out.extend(memory.reservation.map(|v| optional(write("memory", "memory.soft_limit_in_bytes", v))));
    out.extend(memory.swappiness.map(|v| optional(write("memory", "memory.swappiness", v))));
    out.extend(cpu.shares.filter(|&v| v > 0).map(|v| write("cpu", "cpu.shares", v)));
    out.extend(cpu.period.map(|v| optional(write("cpu", "cpu.cfs_period_us", v))));
    out.extend(cpu.quota.map(|v| optional(write("cpu", "cpu.cfs_quota_us", v))));
    out.extend(cpu.cpus.as_ref().map(|v| write("cpuset", "cpuset.cpus", v)));
    out.extend(cpu.mems.as_ref().map(|v| write("cpuset", "cpuset.mems", v)));
    out.extend(resources.pids.map(|p| write("pids", "pids.max", max_or(p.limit))));
    out.extend(
        resources
            .hugepage_limits
            .iter()
            .map(|h| optional(write("hugetlb", &format!("hugetlb.{}.limit_in_bytes", h.page_size), h.limit))),
    );
    out
}

/// The writes for v2, in order; `unified` comes last and wins.
pub(super) fn v2(resources: &Resources) -> Vec<Write> {
    let (memory, cpu) = (&resources.memory, &resources.cpu);
    let mut out = Vec::new();
    out.extend(memory.limit.map(|v| write("memory", "memory.max", max_or(v))));
    out.extend(memory.reservation.map(|v| write("memory", "memory.low", max_or(v))));
    out.extend(memory.swap.map(|total| {
        let swap = if total < 0 { -1 } else { (total - memory.limit.unwrap_or(0)).max(0) };
        optional(write(
            "memory",
            "memory.swap.max",
            if swap < 0 { "max".to_owned() } else { swap.to_string() },
        ))
    }));
    out.extend(cpu.shares.filter(|&v| v > 0).map(|v| write("cpu", "cpu.weight", weight(v))));
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.filter(|&q| q > 0).map_or_else(|| "max".to_owned(), |q| q.to_string());
        out.push(write("cpu", "cpu.max", format!("{quota} {}", cpu.period.unwrap_or(PERIOD_US))));
    }
    out.extend(cpu.cpus.as_ref().map(|v| write("cpuset", "cpuset.cpus", v)));
    out.extend(cpu.mems.as_ref().map(|v| write("cpuset", "cpuset.mems", v)));
    out.extend(resources.pids.map(|p| write("pids", "pids.max", max_or(p.limit))));
    out.extend(
        resources
            .hugepage_limits
            .iter()
            .map(|h| optional(write("hugetlb", &format!("hugetlb.{}.max", h.page_size), h.limit))),
    );
    out.extend(resources.unified.iter().map(|(file, value)| write("", file, value)));
    out
}

fn max_or(value: i64) -> String {
    if value <= 0 { "max".to_owned() } else { value.to_string() }
}

/// v1 shares (2 to 262,144) as a v2 weight (1 to 10,000). Quadratic in the logarithm, through both ends and through
/// the kernel's two defaults (1,024 shares, weight 100), so that one CPU requested weighs as much as a slice of
/// systemd's; Kubernetes has moved to the same curve.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18 here")]
            let log = (shares as f64).log2();
            let weight = 10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10,000"
            )]
            let weight = weight as u64;
            weight.clamp(1, 10_000)
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Usage from v1 files; `read` takes controller and file.
pub(super) fn usage_v1(read: impl Fn(&str, &str) -> String) -> Usage {
    let memory = |file: &str| number(&read("memory", &format!("memory.{file}")));
    let (memory_bytes, stat, cpu) =
        (memory("usage_in_bytes"), read("memory", "memory.stat"), read("cpu", "cpu.stat"));
    let [bytes, operations] = ["service_bytes", "serviced"].map(|what| {
        let text = read("blkio", &format!("blkio.throttle.io_{what}_recursive"));
        ["Read", "Write"].map(|way| devices(&text, way))
    });
    Usage {
        cpu_ns: number(&read("cpuacct", "cpuacct.usage")),
        user_ns: number(&read("cpuacct", "cpuacct.usage_user")),
        system_ns: number(&read("cpuacct", "cpuacct.usage_sys")),
        throttling: ["nr_periods", "nr_throttled", "throttled_time"].map(|name| field(&cpu, name)),
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(field(&stat, "total_inactive_file")),
        rss_bytes: field(&stat, "total_rss"),
        cache_bytes: field(&stat, "total_cache"),
        mapped_bytes: field(&stat, "total_mapped_file"),
        file_bytes: ["total_active_file", "total_inactive_file"].map(|name| field(&stat, name)),
        kernel_bytes: memory("kmem.usage_in_bytes"),
        swap_bytes: field(&stat, "total_swap"),
        peak_bytes: memory("max_usage_in_bytes"),
        memory_failures: memory("failcnt"),
        oom_kills: field(&read("memory", "memory.oom_control"), "oom_kill"),
        faults: ["total_pgfault", "total_pgmajfault"].map(|name| field(&stat, name)),
        disk: Disk {
            read_bytes: bytes[0],
            written_bytes: bytes[1],
            reads: operations[0],
            writes: operations[1],
        },
        pids: number(&read("pids", "pids.current")),
        pids_max: number(&read("pids", "pids.max")),
        ..Usage::default()
    }
}

/// The sum of `8:0 Read 4096` over all devices.
fn devices(text: &str, way: &str) -> u64 {
    let of = |line: &str| match *line.split(' ').collect::<Vec<_>>() {
        [_, this, value] if this == way => value.parse::<u64>().ok(),
        _ => None,
    };
    text.lines().filter_map(of).sum()
}

/// Usage from v2 files.
pub(super) fn usage_v2(read: impl Fn(&str, &str) -> String) -> Usage {
    let memory_bytes = number(&read("memory", "memory.current"));
    let (stat, cpu) = (read("memory", "memory.stat"), read("cpu", "cpu.stat"));
    let (events, io) = (read("memory", "memory.events"), read("io", "io.stat"));
    let micros = |name: &str| field(&cpu, name).saturating_mul(1_000);
    // `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`, a line a device.
    let disk = |name: &str| -> u64 {
        let values = io.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    Usage {
        cpu_ns: micros("usage_usec"),
        user_ns: micros("user_usec"),
        system_ns: micros("system_usec"),
        throttling: [field(&cpu, "nr_periods"), field(&cpu, "nr_throttled"), micros("throttled_usec")],
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(field(&stat, "inactive_file")),
        rss_bytes: field(&stat, "anon"),
        cache_bytes: field(&stat, "file"),
        mapped_bytes: field(&stat, "file_mapped"),
        file_bytes: ["active_file", "inactive_file"].map(|name| field(&stat, name)),
        kernel_bytes: field(&stat, "kernel"),
        swap_bytes: number(&read("memory", "memory.swap.current")),
        peak_bytes: number(&read("memory", "memory.peak")),
        memory_failures: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
        faults: ["pgfault", "pgmajfault"].map(|name| field(&stat, name)),
        disk: Disk {
            read_bytes: disk("rbytes"),
            written_bytes: disk("wbytes"),
            reads: disk("rios"),
            writes: disk("wios"),
        },
        pids: number(&read("pids", "pids.current")),
        pids_max: number(&read("pids", "pids.max")),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Cpu, Memory, Pids};

    fn show(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn the_same_limits_in_both_worlds() {
        let resources = Resources {
            memory: Memory { limit: Some(64 << 20), swap: Some(64 << 20), ..Memory::default() },
            cpu: Cpu { shares: Some(1024), quota: Some(50_000), ..Cpu::default() },
            pids: Some(Pids { limit: -1 }),
            ..Resources::default()
        };
        assert_eq!(
            show(&v1(&resources)),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=67108864",
                "cpu.shares=1024",
                "cpu.cfs_quota_us=50000",
                "pids.max=max"
            ]
        );
        assert_eq!(
            show(&v2(&resources)),
            [
                "memory.max=67108864",
                "memory.swap.max=0",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn weights_span_the_range() {
        assert_eq!((weight(0), weight(2), weight(262_144), weight(u64::MAX)), (1, 1, 10_000, 10_000));
        let all: Vec<u64> = (0..18).map(|bit| weight(1 << bit)).collect();
        assert!(all.is_sorted() && all[10] == 100, "{all:?}");
    }

    #[test]
    fn usage_takes_reclaimable_cache_off() {
        let files = |_: &str, file: &str| match file {
            "memory.usage_in_bytes" => "1000\n".to_owned(),
            "memory.stat" => "inactive_file 1\ntotal_inactive_file 400\n".to_owned(),
            "cpuacct.usage" => "77\n".to_owned(),
            "blkio.throttle.io_service_bytes_recursive" => {
                "8:0 Read 5\n8:0 Write 1\n8:16 Read 10\nTotal 16\n".to_owned()
            }
            _ => String::new(),
        };
        let usage = usage_v1(files);
        assert_eq!(
            (usage.cpu_ns, usage.memory_bytes, usage.working_set_bytes, usage.pids),
            (77, 1000, 600, 0)
        );
        assert_eq!((usage.disk.read_bytes, usage.disk.written_bytes, usage.disk.reads), (15, 1, 0));
        let text = "some avg10=1.77 avg60=13.02 avg300=0.19 total=12518291063\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = crate::api::Pressure::parse(text).unwrap();
        assert_eq!((pressure.some.averages, pressure.some.total_us), ([177, 1302, 19], 12_518_291_063));
        assert_eq!((pressure.full.total_us, crate::api::Pressure::parse("")), (7, None));
        let usage = usage_v2(|_, file| match file {
            "cpu.stat" => "usage_usec 3\nuser_usec 2\nnr_throttled 4\nthrottled_usec 5\n".to_owned(),
            "memory.stat" => "anon 7\npgfault 8\npgmajfault 9\n".to_owned(),
            "io.stat" => {
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=0 rios=0 wios=0\n".to_owned()
            }
            _ => String::new(),
        });
        assert_eq!((usage.cpu_ns, usage.user_ns, usage.throttling), (3_000, 2_000, [0, 4, 5_000]));
        assert_eq!(
            (usage.rss_bytes, usage.faults, usage.disk.read_bytes, usage.disk.writes),
            (7, [8, 9], 11, 4)
        );
    }
}

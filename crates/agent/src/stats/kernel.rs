//! What the kernel says of the machine and of network devices. The parsers are pure.

use runtime::api::{Pressure, Usage};
use std::collections::BTreeMap;
use std::path::Path;

/// Nanoseconds of a clock tick of `/proc/stat`: always 100 a second for programs.
const TICK_NS: u64 = 10_000_000;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// When it booted, seconds since the epoch.
    pub booted: i64,
    /// CPUs.
    pub cpus: u64,
    /// CPU time of everything.
    pub cpu_ns: u64,
    /// `/proc/meminfo`, in bytes.
    pub memory: BTreeMap<String, u64>,
    /// Page faults, and those that read a disk.
    pub faults: [u64; 2],
    /// Tasks, and how many there may be.
    pub tasks: [u64; 2],
    /// Network devices.
    pub devices: Vec<Device>,
    /// The disk that pods are on.
    pub disk: Option<Disk>,
    /// How long work waited for CPU, memory and disks.
    pub pressure: [Option<Pressure>; 3],
    /// This process: the agent, and all else that is in it.
    pub own: Usage,
}

/// A file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// `/dev/vda`.
    pub device: String,
    /// Bytes: all, and those that are free.
    pub bytes: [u64; 2],
    /// The same of inodes.
    pub inodes: [u64; 2],
}

/// A network device's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `eth0`.
    pub name: String,
    /// Received: bytes, packets, errors, dropped.
    pub received: [u64; 4],
    /// The same sent.
    pub sent: [u64; 4],
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

impl Machine {
    /// As it is now; `data` is where pods are on disk.
    pub fn read(data: &Path) -> Machine {
        let most = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
        let most = most.iter().filter_map(|path| read(path).trim().parse().ok()).min();
        let tasks = read("/proc/loadavg");
        let tasks = tasks.split_whitespace().nth(3).and_then(|t| t.split_once('/')?.1.parse().ok());
        let (stat, vmstat) = (read("/proc/stat"), read("/proc/vmstat"));
        Machine {
            at_ms: super::now_ms(),
            booted: field(&stat, "btime").try_into().unwrap_or(0),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get()) as u64,
            cpu_ns: busy(&stat),
            memory: memory(&read("/proc/meminfo")),
            faults: ["pgfault", "pgmajfault"].map(|name| field(&vmstat, name)),
            tasks: [tasks.unwrap_or(0), most.unwrap_or(0)],
            devices: devices(None),
            disk: disk(data, &read("/proc/self/mountinfo")),
            pressure: ["cpu", "memory", "io"]
                .map(|what| Pressure::parse(&read(&format!("/proc/pressure/{what}")))),
            own: own(),
        }
    }

    /// A field of `/proc/meminfo` in bytes.
    pub fn memory(&self, field: &str) -> u64 {
        self.memory.get(field).copied().unwrap_or(0)
    }

    /// Memory that is not free.
    pub fn used(&self) -> u64 {
        self.memory("MemTotal").saturating_sub(self.memory("MemFree"))
    }

    /// Memory that idle file pages would not give back at once.
    pub fn working_set(&self) -> u64 {
        self.used().saturating_sub(self.memory("Inactive(file)"))
    }

    /// Swap in use.
    pub fn swap_used(&self) -> u64 {
        self.memory("SwapTotal").saturating_sub(self.memory("SwapFree"))
    }

    /// As of a cgroup that holds everything.
    pub fn usage(&self) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns,
            memory_bytes: self.used(),
            working_set_bytes: self.working_set(),
            rss_bytes: self.memory("AnonPages"),
            cache_bytes: self.memory("Cached"),
            mapped_bytes: self.memory("Mapped"),
            file_bytes: ["Active(file)", "Inactive(file)"].map(|name| self.memory(name)),
            kernel_bytes: self.memory("Slab") + self.memory("KernelStack") + self.memory("PageTables"),
            swap_bytes: self.swap_used(),
            faults: self.faults,
            pids: self.tasks[0],
            pids_max: self.tasks[1],
            pressure: self.pressure,
            ..Usage::default()
        }
    }

    /// The device of the way out: `eth0`, or the first of the node's own.
    pub fn device(&self) -> Option<&Device> {
        let find = |is: fn(&str) -> bool| self.devices.iter().find(|d| is(&d.name));
        find(|name| name == "eth0").or_else(|| find(|name| name.starts_with('e'))).or(self.devices.first())
    }
}

/// The network devices of this process's namespace, or of another's, but for loopback.
pub fn devices(pid: Option<i32>) -> Vec<Device> {
    let place = pid.map_or_else(|| "self".to_string(), |pid| pid.to_string());
    parse_devices(&read(&format!("/proc/{place}/net/dev")))
}

fn parse_devices(text: &str) -> Vec<Device> {
    let device = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let n: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let four =
            |from: usize| Some([*n.get(from)?, *n.get(from + 1)?, *n.get(from + 2)?, *n.get(from + 3)?]);
        let name = name.trim();
        (name != "lo").then_some(Device { name: name.into(), received: four(0)?, sent: four(8)? })
    };
    text.lines().skip(2).filter_map(device).collect()
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

fn disk(place: &Path, mounts: &str) -> Option<Disk> {
    let stat = rustix::fs::statvfs(place).ok()?;
    let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Disk {
        device: device_of(place, mounts).unwrap_or_default(),
        bytes: [size(stat.f_blocks), size(stat.f_bfree)],
        inodes: [stat.f_files, stat.f_ffree],
    })
}

/// The source of the mount that a place is in: the deepest, of equals the last.
fn device_of(place: &Path, mounts: &str) -> Option<String> {
    let mount = |line: &str| {
        let (mount, fs) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4).filter(|point| place.starts_with(point))?;
        Some((point.len(), fs.split(' ').nth(1)?.to_string()))
    };
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, device)| device)
}

/// This process. Its cgroup may be a whole session's, so it is asked itself.
fn own() -> Usage {
    let (status, stat) = (read("/proc/self/status"), read("/proc/self/stat"));
    let kib = |name: &str| memory(&status).get(name).copied().unwrap_or(0);
    // The name in brackets may hold spaces; what follows begins with field 3.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(1)
        .map(|w| w.parse().unwrap_or(0))
        .collect();
    let at = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    Usage {
        cpu_ns: (at(14) + at(15)).saturating_mul(TICK_NS),
        memory_bytes: kib("VmRSS"),
        working_set_bytes: kib("VmRSS"),
        rss_bytes: kib("RssAnon"),
        swap_bytes: kib("VmSwap"),
        faults: [at(10) + at(12), at(12)],
        ..Usage::default()
    }
}

/// Time that was not idle: user, nice, system, irq, softirq, steal (a guest's time is in user).
fn busy(stat: &str) -> u64 {
    let Some(line) = stat.lines().find_map(|l| l.strip_prefix("cpu ")) else { return 0 };
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let at = |place: usize| ticks.get(place).copied().unwrap_or(0);
    (at(0) + at(1) + at(2) + at(5) + at(6) + at(7)).saturating_mul(TICK_NS)
}

fn memory(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some((name.to_string(), kib * 1024))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts() {
        assert_eq!(busy("cpu  1 2 3 100 100 4 5 6 7 8\ncpu0 9\n"), 21 * TICK_NS);
        let dev = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n bad: 1\n";
        let eth0 = Device { name: "eth0".into(), received: [10, 2, 3, 4], sent: [20, 5, 6, 7] };
        assert_eq!(parse_devices(dev), [eth0]);
        let named = |name: &str| Device { name: name.into(), ..Device::default() };
        let with = |names: &[&str]| Machine {
            devices: names.iter().map(|n| named(n)).collect(),
            ..Machine::default()
        };
        for (names, want) in
            [(&["a0", "ens3", "eth0"][..], "eth0"), (&["a0", "ens3", "eth1"], "ens3"), (&["a0", "b0"], "a0")]
        {
            assert_eq!(with(names).device(), Some(&named(want)));
        }
        let machine = Machine {
            memory: memory("MemTotal: 10 kB\nMemFree: 3 kB\nInactive(file): 2 kB\nHugePages_Total: 4\n"),
            ..Machine::default()
        };
        assert_eq!((machine.used(), machine.working_set(), machine.memory.len()), (7 << 10, 5 << 10, 3));
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /var rw - ext4 /dev/b rw\n3 1 8:3 / /v rw - ext4 /dev/c rw\n";
        assert_eq!(device_of(Path::new("/var/lib"), mounts).as_deref(), Some("/dev/b"));
        let now = Machine::read(Path::new("/"));
        assert!(
            now.disk.as_ref().is_some_and(|d| d.bytes[0] > d.bytes[1] && !d.device.is_empty()),
            "{:?}",
            now.disk
        );
        assert!(now.cpu_ns > 0 && now.booted > 0 && now.memory("MemTotal") > 0 && now.faults[0] > 0);
        assert!(now.own.rss_bytes > 1 << 16 && now.own.faults[0] > now.own.faults[1], "{:?}", now.own);
    }
}

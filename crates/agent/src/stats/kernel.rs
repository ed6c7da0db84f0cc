//! What the kernel says of the machine and of network devices. The parsers are pure.

use std::collections::BTreeMap;

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
    /// As it is now.
    pub fn read() -> Machine {
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

    /// The device of the way out: the first of the node's own.
    pub fn device(&self) -> Option<&Device> {
        self.devices.iter().find(|d| d.name.starts_with('e')).or(self.devices.first())
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
        let machine = Machine {
            memory: memory("MemTotal: 10 kB\nMemFree: 3 kB\nInactive(file): 2 kB\nHugePages_Total: 4\n"),
            ..Machine::default()
        };
        assert_eq!((machine.used(), machine.working_set(), machine.memory.len()), (7 << 10, 5 << 10, 3));
        let now = Machine::read();
        assert!(now.cpu_ns > 0 && now.booted > 0 && now.memory("MemTotal") > 0 && now.faults[0] > 0);
    }
}

//! Pods go when the node runs short: the kubelet's node-pressure eviction and its local storage limits.
//!
//! Pure: [`settings`] (thresholds), [`judge`] (what is short, since when), [`rank`] (who goes first), [`limits`] (who
//! uses more disk than allowed). Shells: `observe` (reads the node), `run` (the loop). One pod goes at a time, after
//! images and other garbage did not help. The node's conditions follow what is short; the node life-cycle controller
//! makes taints of them. Deliberately not here: the end itself (a [`crate::state::Verdict`] that the decider carries
//! out), the kernel's OOM killer, admission under pressure (`admit`).

pub mod judge;
pub mod limits;
pub(crate) mod observe;
pub mod rank;
mod run;
pub mod settings;

pub(crate) use run::run;
pub use settings::Settings;

/// What a node can be short of, as its conditions say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `DiskPressure`
    Disk,
    /// `MemoryPressure`
    Memory,
    /// `PIDPressure`
    Pid,
}

impl Pressure {
    /// All of them.
    pub const ALL: [Pressure; 3] = [Pressure::Memory, Pressure::Disk, Pressure::Pid];

    /// The type of its condition.
    pub fn condition(self) -> &'static str {
        match self {
            Pressure::Disk => "DiskPressure",
            Pressure::Memory => "MemoryPressure",
            Pressure::Pid => "PIDPressure",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that is free or can be had at once.
    MemoryAvailable,
    /// Room on the disk of pods and logs.
    NodefsAvailable,
    /// Inodes there.
    NodefsInodesFree,
    /// Room on the disk of images.
    ImagefsAvailable,
    /// Inodes there.
    ImagefsInodesFree,
    /// Processes that may still be made.
    PidAvailable,
}

impl Signal {
    /// All of them, most urgent first.
    pub const ALL: [Signal; 6] = [
        Signal::MemoryAvailable,
        Signal::NodefsAvailable,
        Signal::ImagefsAvailable,
        Signal::NodefsInodesFree,
        Signal::ImagefsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in thresholds.
    pub fn name(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::NodefsAvailable => "nodefs.available",
            Signal::NodefsInodesFree => "nodefs.inodesFree",
            Signal::ImagefsAvailable => "imagefs.available",
            Signal::ImagefsInodesFree => "imagefs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// What is to be reclaimed, as messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory",
            Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
            Signal::PidAvailable => "pids",
        }
    }

    /// The condition that it belongs to.
    pub fn pressure(self) -> Pressure {
        match self {
            Signal::MemoryAvailable => Pressure::Memory,
            Signal::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }
}

/// A measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: u64,
    /// What there is in all.
    pub capacity: u64,
}

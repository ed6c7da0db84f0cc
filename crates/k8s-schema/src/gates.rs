//! Feature gates: what v1.36 has, and has not on for everybody.
//!
//! [`GATES`] has those that change something here, with upstream's stage and default; a [`Gates`] is what one server was
//! told. A resource's row may name a gate (`gate=` in `specs/`): it is served only where that is on. [`FIELDS`] are
//! dropped from what is written while their gate is off, unless the object had them before.
//! Deliberately not here: gates of features that are always on, and what a gate does.

use crate::types::ResourceRow;
use std::collections::BTreeSet;

/// How far a feature is, as upstream's metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// Mostly on.
    Beta,
}

impl Stage {
    /// `ALPHA`, `BETA`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

/// One gate.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Upstream's name.
    pub name: &'static str,
    /// Its stage in v1.36.
    pub stage: Stage,
    /// Is it on unless told otherwise?
    pub on: bool,
}

const fn gate(name: &'static str, stage: Stage, on: bool) -> Gate {
    Gate { name, stage, on }
}

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";
/// Leases whose holder a controller chooses among LeaseCandidates.
pub const COORDINATED_LEADER_ELECTION: &str = "CoordinatedLeaderElection";
/// DeviceTaintRules: taints that an administrator puts on devices.
pub const DEVICE_TAINT_RULES: &str = "DRADeviceTaintRules";
/// Pods of a PodGroup are placed together or not at all.
pub const GANG_SCHEDULING: &str = "GangScheduling";
/// Workloads and PodGroups.
pub const GENERIC_WORKLOAD: &str = "GenericWorkload";
/// Pods of a PodGroup are placed within one domain.
pub const TOPOLOGY_AWARE_WORKLOADS: &str = "TopologyAwareWorkloadScheduling";
/// StorageVersionMigrations: objects written anew in the version that is stored now.
pub const STORAGE_VERSION_MIGRATOR: &str = "StorageVersionMigrator";
/// `/flagz`.
pub const COMPONENT_FLAGZ: &str = "ComponentFlagz";
/// `/statusz`.
pub const COMPONENT_STATUSZ: &str = "ComponentStatusz";

/// All gates, sorted by name.
pub const GATES: &[Gate] = &[
    gate(ALL_ALPHA, Stage::Alpha, false),
    gate(ALL_BETA, Stage::Beta, false),
    gate(COMPONENT_FLAGZ, Stage::Beta, true),
    gate(COMPONENT_STATUSZ, Stage::Beta, true),
    gate(COORDINATED_LEADER_ELECTION, Stage::Beta, false),
    gate(DEVICE_TAINT_RULES, Stage::Beta, false),
    gate(GANG_SCHEDULING, Stage::Alpha, false),
    gate(GENERIC_WORKLOAD, Stage::Alpha, false),
    gate(STORAGE_VERSION_MIGRATOR, Stage::Beta, false),
    gate(TOPOLOGY_AWARE_WORKLOADS, Stage::Alpha, false),
];

/// Fields that a gate brings: gate, group and plural as stored, JSON pointer.
pub const FIELDS: &[(&str, &str, &str, &str)] = &[
    (COORDINATED_LEADER_ELECTION, "coordination.k8s.io", "leases", "/spec/preferredHolder"),
    (COORDINATED_LEADER_ELECTION, "coordination.k8s.io", "leases", "/spec/strategy"),
    (GENERIC_WORKLOAD, "", "pods", "/spec/schedulingGroup"),
    (TOPOLOGY_AWARE_WORKLOADS, "scheduling.k8s.io", "podgroups", "/spec/schedulingConstraints"),
];

/// Gates that are nothing without another one.
const NEEDS: &[(&str, &str)] =
    &[(GANG_SCHEDULING, GENERIC_WORKLOAD), (TOPOLOGY_AWARE_WORKLOADS, GENERIC_WORKLOAD)];

/// Which gates are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates(BTreeSet<&'static str>);

impl Default for Gates {
    fn default() -> Self {
        Gates(GATES.iter().filter(|g| g.on).map(|g| g.name).collect())
    }
}

impl Gates {
    /// Every gate on.
    pub fn all() -> Self {
        Gates(GATES.iter().map(|g| g.name).collect())
    }

    /// Reads `Name=true,Other=false`; the error is a sentence. What is said of a gate itself counts more than what
    /// `AllAlpha` and `AllBeta` say of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut told = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(format!("missing bool value for {pair}"))?;
            let gate = GATES.iter().find(|g| g.name == name.trim());
            let gate = gate.ok_or(format!("unrecognized feature gate: {}", name.trim()))?;
            let on: bool = value.trim().to_lowercase().parse().map_err(|_| {
                format!("invalid value of {}={}, err: neither true nor false", gate.name, value.trim())
            })?;
            told.push((gate, on));
        }
        // Those that speak of others come first.
        told.sort_by_key(|(gate, _)| !matches!(gate.name, ALL_ALPHA | ALL_BETA));
        let mut gates = Gates::default();
        for (gate, on) in told {
            let stage = matches!(gate.name, ALL_ALPHA | ALL_BETA).then_some(gate.stage);
            for named in GATES.iter().filter(|g| g.name == gate.name || Some(g.stage) == stage) {
                if on {
                    gates.0.insert(named.name)
                } else {
                    gates.0.remove(named.name)
                };
            }
        }
        match NEEDS.iter().find(|(gate, needed)| gates.on(gate) && !gates.on(needed)) {
            Some((gate, needed)) => {
                Err(format!("{gate} is enabled, but depends on features that are disabled: [{needed}]"))
            }
            None => Ok(gates),
        }
    }

    /// Is this one on? One that is not in the table is not.
    pub fn on(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Is the resource served, as far as gates go?
    pub fn serve(&self, row: &ResourceRow) -> bool {
        row.gate.is_empty() || self.on(row.gate)
    }

    /// All gates, and whether each is on.
    pub fn each(&self) -> impl Iterator<Item = (&'static Gate, bool)> {
        GATES.iter().map(|g| (g, self.on(g.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_as_upstream_reads_them() {
        assert!(GATES.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(Gates::parse("").unwrap(), Gates::default());
        let on = |text: &str, name: &str| Gates::parse(text).unwrap().on(name);
        assert!(!on("", COORDINATED_LEADER_ELECTION) && on("", COMPONENT_STATUSZ));
        assert!(on("CoordinatedLeaderElection=True", COORDINATED_LEADER_ELECTION));
        assert!(on("AllBeta=true", STORAGE_VERSION_MIGRATOR));
        assert!(!on("StorageVersionMigrator=false,AllBeta=true", STORAGE_VERSION_MIGRATOR));
        assert!(!on("AllBeta=false", COMPONENT_STATUSZ));
        for (text, why) in [
            ("Nope=true", "unrecognized feature gate: Nope"),
            ("AllBeta", "missing bool value for AllBeta"),
            ("AllBeta=2", "invalid value of AllBeta=2"),
            (
                "GangScheduling=true",
                "GangScheduling is enabled, but depends on features that are disabled: [GenericWorkload]",
            ),
        ] {
            assert!(Gates::parse(text).unwrap_err().starts_with(why), "{text}");
        }
    }

    #[test]
    fn rows_and_fields_name_gates_of_the_table() {
        let known = |name: &str| GATES.iter().any(|g| g.name == name);
        for row in crate::resources() {
            assert!(row.gate.is_empty() || known(row.gate), "{}", row.gvr.resource);
            assert!(Gates::all().serve(row));
        }
        for (gate, group, plural, pointer) in FIELDS {
            let row = crate::resources().iter().find(|r| r.gvr.group == *group && r.gvr.resource == *plural);
            let path: Vec<&str> = pointer.split('/').skip(1).collect();
            let body = crate::Type::Object(row.unwrap().def.clone());
            assert!(known(gate) && body.at(&path).is_some(), "{gate} {pointer}");
        }
    }
}

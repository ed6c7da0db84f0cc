//! What is taken on each node: by pods, and by tasks whose pod does not exist yet.
//!
//! A task and its pod have the same key; while the pod is there, it alone counts. Totals are kept, not summed up: a
//! placement reads one number per node. Invariant: totals are what summing up would give (property test).

use std::collections::BTreeMap;

/// An amount of what instances have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a CPU unit: exact for millicores and for units.
    pub milliunits: i64,
    /// Bytes.
    pub bytes: i64,
    /// Host ports: number and protocol (lower case).
    pub ports: Vec<(u16, String)>,
    /// GPUs.
    pub gpus: i64,
}

/// The sum on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Thousandths of a CPU unit.
    pub milliunits: i64,
    /// Bytes.
    pub bytes: i64,
    /// How many hold each host port.
    pub ports: BTreeMap<(u16, String), u32>,
    /// GPUs.
    pub gpus: i64,
}

/// Where something is and what it takes.
pub type Place = (String, Usage);

#[derive(Clone, Debug, Default)]
struct Entry {
    pod: Option<Place>,
    task: Option<Place>,
}

impl Entry {
    fn counts(&self) -> Option<&Place> {
        self.pod.as_ref().or(self.task.as_ref())
    }
}

/// The books.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
    totals: BTreeMap<String, Total>,
}

impl Ledger {
    /// A pod is on a node, or (`None`) is none that takes anything.
    pub fn set_pod(&mut self, key: &str, place: Option<Place>) {
        self.change(key, |entry| entry.pod = place);
    }

    /// A task is meant for a node, or (`None`) takes nothing.
    pub fn set_task(&mut self, key: &str, place: Option<Place>) {
        self.change(key, |entry| entry.task = place);
    }

    /// What is taken on a node.
    pub fn total(&self, node: &str) -> Total {
        self.totals.get(node).cloned().unwrap_or_default()
    }

    fn change(&mut self, key: &str, edit: impl FnOnce(&mut Entry)) {
        let mut entry = self.entries.remove(key).unwrap_or_default();
        if let Some(place) = entry.counts() {
            add(&mut self.totals, place, -1);
        }
        edit(&mut entry);
        let Some(place) = entry.counts() else { return };
        add(&mut self.totals, place, 1);
        self.entries.insert(key.to_string(), entry);
    }
}

fn add(totals: &mut BTreeMap<String, Total>, (node, usage): &Place, sign: i64) {
    let total = totals.entry(node.clone()).or_default();
    total.milliunits += sign * usage.milliunits;
    total.bytes += sign * usage.bytes;
    total.gpus += sign * usage.gpus;
    for port in &usage.ports {
        let held = total.ports.entry(port.clone()).or_default();
        *held = if sign > 0 { *held + 1 } else { held.saturating_sub(1) };
        if *held == 0 {
            total.ports.remove(port);
        }
    }
    if *total == Total::default() {
        totals.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usage() -> impl Strategy<Value = Option<Place>> {
        let ports = prop::collection::vec((80u16..83, "tcp|udp"), 0..3);
        prop::option::of((("n[12]"), (0i64..9, 0i64..9, 0i64..3, ports))).prop_map(|p| {
            p.map(|(node, (milliunits, bytes, gpus, ports))| (node, Usage { milliunits, bytes, ports, gpus }))
        })
    }

    proptest! {
        #[test]
        fn totals_are_sums(steps in prop::collection::vec((any::<bool>(), "k[123]", usage()), 0..40)) {
            let mut ledger = Ledger::default();
            let mut twin: BTreeMap<String, Entry> = BTreeMap::new();
            for (pod, key, place) in steps {
                let entry = twin.entry(key.clone()).or_default();
                if pod {
                    entry.pod = place.clone();
                    ledger.set_pod(&key, place);
                } else {
                    entry.task = place.clone();
                    ledger.set_task(&key, place);
                }
            }
            let mut sums: BTreeMap<String, Total> = BTreeMap::new();
            for (node, usage) in twin.values().filter_map(Entry::counts) {
                let sum = sums.entry(node.clone()).or_default();
                sum.milliunits += usage.milliunits;
                sum.bytes += usage.bytes;
                sum.gpus += usage.gpus;
                usage.ports.iter().for_each(|p| *sum.ports.entry(p.clone()).or_default() += 1);
            }
            for node in ["n1", "n2"] {
                prop_assert_eq!(ledger.total(node), sums.remove(node).unwrap_or_default());
            }
        }
    }
}

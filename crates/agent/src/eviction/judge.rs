//! What the node is short of, since when, and which threshold is to be acted upon. Pure.

use super::settings::Settings;
use super::{Observation, Pressure, Signal};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What is remembered between looks.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Thresholds that are met, by their place in the settings: since when.
    since: BTreeMap<usize, Timestamp>,
    /// When each condition was last caused.
    caused: BTreeMap<Pressure, Timestamp>,
}

/// The judgement of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The node's conditions.
    pub pressure: BTreeSet<Pressure>,
    /// Thresholds whose grace is over, by their place in the settings, the most urgent first.
    pub due: Vec<usize>,
}

/// The thresholds that are met now.
pub fn met<'a>(
    settings: &'a Settings,
    seen: &'a BTreeMap<Signal, Observation>,
    memory: &'a Memory,
) -> impl Iterator<Item = usize> + 'a {
    let met = |(n, t): (usize, &super::settings::Threshold)| {
        let seen = seen.get(&t.signal)?;
        t.met(*seen, memory.since.contains_key(&n)).then_some(n)
    };
    settings.thresholds.iter().enumerate().filter_map(met)
}

/// Judges one look. What could not be measured is not short.
pub fn judge(
    settings: &Settings,
    seen: &BTreeMap<Signal, Observation>,
    memory: &mut Memory,
    now: Timestamp,
) -> Judgement {
    let met: BTreeSet<usize> = met(settings, seen, memory).collect();
    memory.since.retain(|n, _| met.contains(n));
    for n in &met {
        memory.since.entry(*n).or_insert(now);
        memory.caused.insert(settings.thresholds[*n].signal.pressure(), now);
    }
    memory.caused.retain(|_, at| now.duration_since(*at) < settings.transition || *at == now);
    let due = |n: &usize| now.duration_since(memory.since[n]) >= settings.thresholds[*n].grace;
    Judgement {
        pressure: memory.caused.keys().copied().collect(),
        due: met.iter().copied().filter(due).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn settings() -> Settings {
        let soft = "nodefs.available<50%";
        let mut all =
            Settings::parse("memory.available<100,nodefs.available<10%", soft, "nodefs.available=30s", "")
                .unwrap();
        all.transition = SignedDuration::from_secs(60);
        all
    }

    struct Bench(Memory);

    impl Bench {
        fn at(&mut self, second: i64, memory: u64, disk: u64) -> (Vec<Pressure>, Vec<(Signal, bool)>) {
            let of = |available| Observation { available, capacity: 1000 };
            let seen = [(Signal::MemoryAvailable, of(memory)), (Signal::NodefsAvailable, of(disk))].into();
            let settings = settings();
            let found = judge(&settings, &seen, &mut self.0, Timestamp::from_second(second).unwrap());
            let of = |n: &usize| (settings.thresholds[*n].signal, settings.thresholds[*n].soft);
            (found.pressure.into_iter().collect(), found.due.iter().map(of).collect())
        }
    }

    #[test]
    fn hard_at_once_soft_after_its_grace() {
        let mut bench = Bench(Memory::default());
        assert_eq!(bench.at(0, 100, 500), (vec![], vec![]));
        assert_eq!(bench.at(1, 99, 500), (vec![Pressure::Memory], vec![(Signal::MemoryAvailable, false)]));
        assert_eq!(bench.at(2, 100, 499), (vec![Pressure::Disk, Pressure::Memory], vec![]));
        assert_eq!(bench.at(31, 100, 499).1, []);
        assert_eq!(bench.at(32, 100, 499).1, [(Signal::NodefsAvailable, true)]);
        // Memory first, whatever else is short.
        let due = bench.at(33, 0, 0).1;
        assert_eq!(
            due,
            [
                (Signal::MemoryAvailable, false),
                (Signal::NodefsAvailable, false),
                (Signal::NodefsAvailable, true)
            ]
        );
    }

    #[test]
    fn grace_begins_anew_and_conditions_stay_a_while() {
        let mut bench = Bench(Memory::default());
        bench.at(0, 500, 400);
        assert_eq!(bench.at(20, 500, 600), (vec![Pressure::Disk], vec![]));
        assert_eq!(bench.at(40, 500, 400).1, [], "the grace began anew");
        assert_eq!(bench.at(41, 500, 600).0, [Pressure::Disk]);
        assert_eq!(bench.at(99, 500, 600).0, [Pressure::Disk]);
        assert_eq!(bench.at(100, 500, 600).0, []);
    }

    #[test]
    fn what_is_not_measured_is_not_short() {
        let mut memory = Memory::default();
        let found = judge(&settings(), &BTreeMap::new(), &mut memory, Timestamp::UNIX_EPOCH);
        assert_eq!(found, Judgement::default());
    }
}

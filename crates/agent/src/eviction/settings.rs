//! Thresholds as people write them: `memory.available<100Mi,nodefs.available<10%`. Pure.

use super::{Observation, Signal};
use jiff::SignedDuration;
use machinery::quantity::Quantity;
use std::collections::BTreeMap;

/// Upstream's hard thresholds.
pub const HARD: &str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,\
     imagefs.inodesFree<5%";
/// How long a condition stays after what caused it is gone (upstream's figure).
pub const TRANSITION: SignedDuration = SignedDuration::from_mins(5);

/// An amount, or a part of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Units(u64),
    /// Thousandths of a percent of the capacity.
    Share(u32),
}

impl Amount {
    fn parse(text: &str) -> Option<Amount> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))?;
            // In range by the check before.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100,000")]
            return Some(Amount::Share((percent * 1000.0).round() as u32));
        }
        u64::try_from(text.parse::<Quantity>().ok()?.units()).ok().map(Amount::Units)
    }

    /// The amount where there is so much in all.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Units(units) => units,
            Amount::Share(share) => {
                u64::try_from(u128::from(capacity) * u128::from(share) / 100_000).unwrap_or(0)
            }
        }
    }
}

/// When something is too short.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// What.
    pub signal: Signal,
    /// Less than this.
    pub value: Amount,
    /// For so long; zero for a hard threshold.
    pub grace: SignedDuration,
    /// Soft thresholds let pods end in peace.
    pub soft: bool,
    /// Once met, it is over only when so much more is left.
    pub min_reclaim: Amount,
}

impl Threshold {
    /// Is it met?
    pub fn met(&self, seen: Observation, still: bool) -> bool {
        let more = if still { self.min_reclaim.of(seen.capacity) } else { 0 };
        seen.available < self.value.of(seen.capacity).saturating_add(more)
    }
}

/// All settings of eviction.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// In order of urgency.
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays after its cause.
    pub transition: SignedDuration,
    /// The longest grace of a pod that goes for a soft threshold, in seconds.
    pub max_pod_grace: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::parse(HARD, "", "", "").expect("upstream's thresholds are well-formed")
    }
}

impl Settings {
    /// Reads hard and soft thresholds, the grace periods of the soft ones (`memory.available=90s`), and least amounts
    /// to reclaim (`nodefs.available=500Mi`).
    ///
    /// # Errors
    /// What is malformed, or a soft threshold without a grace period.
    pub fn parse(hard: &str, soft: &str, graces: &str, reclaim: &str) -> Result<Settings, String> {
        let reclaim = pairs(reclaim, '=')?;
        let graces = pairs(graces, '=')?;
        let amount = |text: &str| Amount::parse(text).ok_or_else(|| format!("invalid quantity {text:?}"));
        let mut thresholds = Vec::new();
        for (list, soft) in [(hard, false), (soft, true)] {
            for (signal, text) in pairs(list, '<')? {
                let value = amount(&text)?;
                let grace = match graces.get(&signal).filter(|_| soft) {
                    Some(text) => duration(text).ok_or_else(|| format!("invalid duration {text:?}"))?,
                    None if soft => {
                        return Err(format!(
                            "grace period must be specified for the soft eviction threshold {}",
                            signal.name()
                        ));
                    }
                    None => SignedDuration::ZERO,
                };
                let min_reclaim = reclaim.get(&signal).map_or(Ok(Amount::Units(0)), |text| amount(text))?;
                thresholds.push(Threshold { signal, value, grace, soft, min_reclaim });
            }
        }
        let urgency = |t: &Threshold| Signal::ALL.iter().position(|s| *s == t.signal);
        thresholds.sort_by_key(|t| (urgency(t), t.soft));
        Ok(Settings { thresholds, transition: TRANSITION, max_pod_grace: 0 })
    }
}

fn pairs(text: &str, between: char) -> Result<BTreeMap<Signal, String>, String> {
    let mut all = BTreeMap::new();
    for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let (name, value) =
            entry.split_once(between).ok_or_else(|| format!("{entry:?} is not name{between}value"))?;
        let signal = Signal::ALL.into_iter().find(|s| s.name() == name.trim());
        let signal = signal.ok_or_else(|| format!("unsupported eviction signal {:?}", name.trim()))?;
        if all.insert(signal, value.trim().to_string()).is_some() {
            return Err(format!("the eviction signal {} is there twice", signal.name()));
        }
    }
    Ok(all)
}

/// `90s`, `1m30s`, `2h`.
pub fn duration(text: &str) -> Option<SignedDuration> {
    let (mut total, mut number) = (0_i64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty() || text == "0").then(|| SignedDuration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let soft = "memory.available<1.5Gi";
        let settings =
            Settings::parse(HARD, soft, "memory.available=1m30s", "nodefs.available=500Mi").unwrap();
        let list = &settings.thresholds;
        let order: Vec<_> = list.iter().map(|t| (t.signal.name(), t.soft)).collect();
        assert_eq!(
            order[..3],
            [("memory.available", false), ("memory.available", true), ("nodefs.available", false)]
        );
        assert_eq!((list[0].value, list[1].value), (Amount::Units(100 << 20), Amount::Units(3 << 29)));
        assert_eq!((list[1].grace.as_secs(), list[2].min_reclaim), (90, Amount::Units(500 << 20)));
        assert_eq!((list[2].value, list[2].value.of(1000)), (Amount::Share(10_000), 100));
        assert_eq!(Settings::parse("", "", "", "").unwrap().thresholds, []);
    }

    #[test]
    fn says_what_is_wrong() {
        for (hard, soft, graces, words) in [
            ("memory.available", "", "", "is not name<value"),
            ("cpu.available<1", "", "", "unsupported eviction signal \"cpu.available\""),
            ("pid.available<x", "", "", "invalid quantity"),
            ("pid.available<101%", "", "", "invalid quantity"),
            ("pid.available<1,pid.available<2", "", "", "twice"),
            ("", "pid.available<1", "", "grace period must be specified"),
            ("", "pid.available<1", "pid.available=1x", "invalid duration"),
        ] {
            let error = Settings::parse(hard, soft, graces, "").unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(duration("0"), Some(SignedDuration::ZERO));
        assert_eq!((duration(""), duration("5"), duration("s")), (None, None, None));
    }

    #[test]
    fn least_reclaim_holds_a_threshold() {
        let all = Settings::parse("nodefs.available<10%", "", "", "nodefs.available=50").unwrap();
        let seen = |available| Observation { available, capacity: 1000 };
        let met = |available, still| all.thresholds[0].met(seen(available), still);
        assert!(met(99, false) && !met(100, false) && met(149, true) && !met(150, true));
    }
}

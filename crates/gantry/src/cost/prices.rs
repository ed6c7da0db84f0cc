//! The price book: what a processor and a GB cost, by capacity and platform. Pure, but for reading its file.
//!
//! A file of lines, `#` begins a comment:
//!
//! ```text
//! currency           USD
//! minimum-seconds    60
//! storage            0.000111      # per GB-hour beyond the free 20 GB
//! fargate.x86_64     0.04048   0.004445   # per vCPU-hour, per GB-hour
//! pod                0.04048   0.004445   # any platform that has no line of its own
//! ```

use anyhow::{Context, Result, bail};
use ecs::metering::Record;
use std::collections::BTreeMap;
use std::path::Path;

/// AWS's list prices (us-east-1, March 2026); Spot: 70 % off; instances are paid for as such, so their tasks cost
/// nothing here until the book says otherwise.
pub const DEFAULT: &str = "\
currency              USD
minimum-seconds       60
storage               0.000111
fargate.x86_64        0.04048    0.004445
fargate.arm64         0.03238    0.00356
fargate.windows       0.13748    0.01005
fargate-spot.x86_64   0.012144   0.0013335
fargate-spot.arm64    0.009714   0.001068
ec2                   0          0
pod                   0.04048    0.004445
";

/// GiB of ephemeral storage that cost nothing.
const STORAGE_FREE_GIB: i64 = 20;

/// Prices.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// As shown.
    pub currency: String,
    /// Shorter lives are paid as this.
    pub minimum_seconds: i64,
    storage: f64,
    /// By `class.platform` or `class`: an hour of a vCPU, an hour of a GB.
    hours: BTreeMap<String, (f64, f64)>,
}

/// What one record comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bill {
    /// Seconds that are paid.
    pub seconds: i64,
    /// vCPU-hours.
    pub vcpu_hours: f64,
    /// GB-hours of memory.
    pub gb_hours: f64,
    /// GB-hours of storage beyond what is free.
    pub storage_hours: f64,
    /// In the book's currency.
    pub cost: f64,
}

impl Prices {
    /// The book of a file over the default one; "" for that alone.
    pub fn load(path: &str) -> Result<Prices> {
        let mut prices = Prices::parse(DEFAULT, Prices::empty()).context("the default price book")?;
        if !path.is_empty() {
            let text = std::fs::read_to_string(Path::new(path)).with_context(|| path.to_string())?;
            prices = Prices::parse(&text, prices).with_context(|| path.to_string())?;
        }
        Ok(prices)
    }

    fn empty() -> Prices {
        Prices { currency: String::new(), minimum_seconds: 0, storage: 0.0, hours: BTreeMap::new() }
    }

    fn parse(text: &str, mut book: Prices) -> Result<Prices> {
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let place = || format!("line {}", number + 1);
            let price = |word: &str| -> Result<f64> {
                let price: f64 = word.parse().with_context(|| format!("{word:?} is no price"))?;
                if price.is_finite() && price >= 0.0 { Ok(price) } else { bail!("{word:?} is no price") }
            };
            match words[..] {
                [] => {}
                ["currency", name] => book.currency = name.to_string(),
                ["minimum-seconds", n] => {
                    let n: u32 =
                        n.parse().with_context(|| format!("{n:?} is no number")).with_context(place)?;
                    book.minimum_seconds = i64::from(n);
                }
                ["storage", hour] => book.storage = price(hour).with_context(place)?,
                [class, vcpu, gb] => {
                    let kind = class.split('.').next().unwrap_or_default();
                    if !["fargate", "fargate-spot", "ec2", "pod"].contains(&kind) {
                        bail!("{}: no such capacity: {class}", place());
                    }
                    let pair = (price(vcpu).with_context(place)?, price(gb).with_context(place)?);
                    book.hours.insert(class.to_string(), pair);
                }
                _ => bail!("{}: not understood: {line}", place()),
            }
        }
        Ok(book)
    }

    fn of(&self, record: &Record) -> (f64, f64) {
        let class = record.class.as_str();
        let exact = self.hours.get(&format!("{class}.{}", record.platform));
        let found =
            exact.or_else(|| self.hours.get(class)).or_else(|| self.hours.get(&format!("{class}.x86_64")));
        found.copied().unwrap_or_default()
    }

    /// What a record comes to in `from..to` (milliseconds since 1970); what runs runs until `now`.
    pub fn bill(&self, record: &Record, from: i64, to: i64, now: i64) -> Bill {
        let stop = record.stop_ms.unwrap_or(now).max(record.start_ms);
        let life = stop.saturating_sub(record.start_ms).max(self.minimum_seconds * 1_000);
        let end = record.start_ms.saturating_add(life);
        let part = end.min(to).saturating_sub(record.start_ms.max(from)).max(0);
        let seconds = (part + 999) / 1_000;
        let hours = seconds as f64 / 3_600.0;
        let vcpu_hours = hours * record.vcpu_milli as f64 / 1_000.0;
        let gb_hours = hours * record.memory_mib as f64 / 1_024.0;
        let storage_hours = hours * (record.storage_gib - STORAGE_FREE_GIB).max(0) as f64;
        let (vcpu, gb) = self.of(record);
        let cost = vcpu_hours * vcpu + gb_hours * gb + storage_hours * self.storage;
        Bill { seconds, vcpu_hours, gb_hours, storage_hours, cost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ecs::metering::Class;

    fn record(start_ms: i64, stop_ms: Option<i64>) -> Record {
        Record {
            class: Class::Fargate,
            platform: "x86_64".into(),
            vcpu_milli: 1_000,
            memory_mib: 2_048,
            storage_gib: 30,
            start_ms,
            stop_ms,
            ..Record::default()
        }
    }

    #[test]
    fn every_second_counts_and_a_minute_at_least() {
        let book = Prices::load("").unwrap();
        let seconds = |stop, from, to| book.bill(&record(0, stop), from, to, 200_000).seconds;
        assert_eq!(seconds(Some(1_500), 0, i64::MAX), 60);
        assert_eq!(seconds(Some(60_001), 0, i64::MAX), 61);
        assert_eq!(seconds(None, 0, i64::MAX), 200);
        assert_eq!(seconds(Some(100_000), 40_000, 90_000), 50);
        assert_eq!(seconds(Some(100_000), 100_000, i64::MAX), 0);
        let hour = book.bill(&record(0, Some(3_600_000)), 0, i64::MAX, 0);
        assert!((hour.cost - (0.04048 + 2.0 * 0.004445 + 10.0 * 0.000111)).abs() < 1e-12, "{hour:?}");
        // As AWS's bill: 0.25 vCPU, 0.5 GB for a day.
        let small =
            Record { vcpu_milli: 250, memory_mib: 512, storage_gib: 20, ..record(0, Some(86_400_000)) };
        let cost = book.bill(&small, 0, i64::MAX, 0).cost;
        assert!((cost - 24.0 * (0.25 * 0.04048 + 0.5 * 0.004445)).abs() < 1e-12, "{cost}");
    }

    #[test]
    fn a_book_of_ones_own() {
        let base = Prices::load("").unwrap();
        let text = "currency EUR # ours\nec2 0.01 0.002\nec2.arm64 0.005 0.001\nminimum-seconds 0\n";
        let book = Prices::parse(text, base.clone()).unwrap();
        let of = |platform: &str| {
            book.of(&Record { class: Class::Ec2, platform: platform.into(), ..Record::default() })
        };
        assert_eq!((of("x86_64"), of("arm64")), ((0.01, 0.002), (0.005, 0.001)));
        assert_eq!((book.currency.as_str(), book.bill(&record(0, Some(1)), 0, 9, 9).seconds), ("EUR", 1));
        for (text, words) in [
            ("lambda 1 2", "line 1: no such capacity: lambda"),
            ("pod x 2", "is no price"),
            ("pod -1 2", "is no price"),
            ("\npod 1", "line 2: not understood"),
        ] {
            let error = format!("{:#}", Prices::parse(text, base.clone()).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}

//! `gantry cost`: what tasks and pods came to, from the usage records in the data folder (running or not).

mod prices;

use crate::config::Config;
use anyhow::{Context, Result, bail};
use ecs::metering::{Reader, Record};
use jiff::Timestamp;
use prices::{Bill, Prices};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where usage records are: metering writes them, `gantry cost` reads them.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("usage")
}

/// What rows are made by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Cluster,
    Service,
    Namespace,
    Class,
    Tag(String),
}

impl By {
    fn parse(text: &str) -> Result<By> {
        Ok(match text {
            "cluster" => By::Cluster,
            "service" => By::Service,
            "namespace" => By::Namespace,
            "class" => By::Class,
            _ => match text.strip_prefix("tag:").filter(|key| !key.is_empty()) {
                Some(key) => By::Tag(key.to_string()),
                None => bail!("--by takes cluster, service, namespace, class or tag:KEY, not {text:?}"),
            },
        })
    }

    fn of(&self, record: &Record) -> String {
        let name = match self {
            By::Cluster => record.cluster.clone(),
            By::Service if record.service.is_empty() => String::new(),
            By::Service if record.cluster.is_empty() => format!("{}/{}", record.namespace, record.service),
            By::Service => format!("{}/{}", record.cluster, record.service),
            By::Namespace => record.namespace.clone(),
            By::Class => record.class.as_str().to_string(),
            By::Tag(key) => record.tags.get(key).cloned().unwrap_or_default(),
        };
        if name.is_empty() { "-".into() } else { name }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    items: usize,
    sum: Bill,
}

impl Row {
    fn add(&mut self, bill: Bill) {
        self.items += 1;
        self.sum.seconds += bill.seconds;
        self.sum.vcpu_hours += bill.vcpu_hours;
        self.sum.gb_hours += bill.gb_hours;
        self.sum.storage_hours += bill.storage_hours;
        self.sum.cost += bill.cost;
    }
}

/// A flag's value.
pub fn flag<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
}

/// `2026-11-20`, `2026-11-20T10:00:00Z`, or so long ago: `90m`, `24h`, `7d`.
fn time(text: &str, now: Timestamp) -> Result<i64> {
    let units = [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000_i64)];
    let ago = units
        .iter()
        .find_map(|(unit, ms)| text.strip_suffix(*unit)?.parse::<u32>().ok().map(|n| i64::from(n) * ms));
    if let Some(ago) = ago {
        return Ok(now.as_millisecond() - ago);
    }
    let whole = if text.contains('T') { text.to_string() } else { format!("{text}T00:00:00Z") };
    let parsed: Timestamp =
        whole.parse().with_context(|| format!("{text:?} is no time: 2026-11-20, …T10:00:00Z, 24h"))?;
    Ok(parsed.as_millisecond())
}

/// `cost [--by B] [--from T] [--to T] [--prices FILE] [--usage FOLDER,…] [--format table|json]`.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let now = Timestamp::now();
    let by = By::parse(flag(words, "by").unwrap_or("cluster"))?;
    let from = flag(words, "from").map_or(Ok(i64::MIN), |t| time(t, now))?;
    let to = flag(words, "to").map_or(Ok(i64::MAX), |t| time(t, now))?;
    let prices = Prices::load(flag(words, "prices").unwrap_or_default())?;
    let mut reader = Reader::default();
    match flag(words, "usage") {
        // Those of several servers together.
        Some(folders) => folders.split(',').try_for_each(|f| reader.add(Path::new(f)))?,
        None => {
            let folder = folder(&config.data_dir);
            reader.add(&folder).context("no usage records yet, or no right to read them (sudo)")?;
        }
    }
    if reader.damaged > 0 {
        eprintln!("gantry: {} damaged lines are left out", reader.damaged);
    }
    let rows = rows(reader.records(), &by, |r| prices.bill(r, from, to, now.as_millisecond()));
    match flag(words, "format").unwrap_or("table") {
        "table" => print!("{}", table(&rows, &prices.currency)),
        "json" => println!("{}", json(&rows, &prices.currency)),
        other => bail!("--format takes table or json, not {other:?}"),
    }
    Ok(())
}

/// One row a group; what cost no second is left out.
fn rows<'a>(
    records: impl Iterator<Item = &'a Record>,
    by: &By,
    bill: impl Fn(&Record) -> Bill,
) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for record in records {
        let bill = bill(record);
        if bill.seconds > 0 {
            rows.entry(by.of(record)).or_default().add(bill);
        }
    }
    rows
}

fn table(rows: &BTreeMap<String, Row>, currency: &str) -> String {
    let head = format!(
        "{:<40} {:>7} {:>10} {:>12} {:>12} {:>12} {:>14}\n",
        "GROUP",
        "ITEMS",
        "HOURS",
        "VCPU-HOURS",
        "GB-HOURS",
        "STORAGE-GBH",
        format!("COST-{currency}")
    );
    let line = |name: &str, row: &Row| {
        let sum = &row.sum;
        format!(
            "{name:<40} {:>7} {:>10.3} {:>12.4} {:>12.4} {:>12.4} {:>14.6}\n",
            row.items,
            sum.seconds as f64 / 3_600.0,
            sum.vcpu_hours,
            sum.gb_hours,
            sum.storage_hours,
            sum.cost
        )
    };
    let mut total = Row::default();
    for row in rows.values() {
        let items = total.items + row.items;
        total.add(row.sum);
        total.items = items;
    }
    head + &rows.iter().map(|(name, row)| line(name, row)).collect::<String>() + &line("total", &total)
}

fn json(rows: &BTreeMap<String, Row>, currency: &str) -> serde_json::Value {
    let row = |(name, row): (&String, &Row)| {
        let sum = &row.sum;
        serde_json::json!({"group": name, "items": row.items, "seconds": sum.seconds, "vcpuHours": sum.vcpu_hours,
            "gbHours": sum.gb_hours, "storageGbHours": sum.storage_hours, "cost": sum.cost})
    };
    serde_json::json!({"currency": currency, "groups": rows.iter().map(row).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cluster: &str, service: &str, team: &str) -> Record {
        Record {
            id: format!("{cluster}/{service}/{team}"),
            cluster: cluster.into(),
            service: service.into(),
            namespace: format!("ecs-{cluster}"),
            tags: [("team".to_string(), team.to_string())].into(),
            ..Record::default()
        }
    }

    #[test]
    fn rows_add_up_by_what_is_asked() {
        let records = [record("a", "web", "x"), record("a", "", "y"), record("b", "web", "x")];
        let bill = |_: &Record| Bill { seconds: 60, cost: 1.0, ..Bill::default() };
        let names = |by: &str| -> Vec<(String, usize)> {
            let by = By::parse(by).unwrap();
            rows(records.iter(), &by, bill).into_iter().map(|(n, r)| (n, r.items)).collect()
        };
        let is =
            |list: &[(&str, usize)]| list.iter().map(|(n, c)| ((*n).to_string(), *c)).collect::<Vec<_>>();
        assert_eq!(names("cluster"), is(&[("a", 2), ("b", 1)]));
        assert_eq!(names("service"), is(&[("-", 1), ("a/web", 1), ("b/web", 1)]));
        assert_eq!(names("namespace"), is(&[("ecs-a", 2), ("ecs-b", 1)]));
        assert_eq!(names("tag:team"), is(&[("x", 2), ("y", 1)]));
        assert_eq!(names("tag:none"), is(&[("-", 3)]));
        assert!(By::parse("tag:").is_err() && By::parse("colour").is_err());
        let text = table(&rows(records.iter(), &By::Cluster, bill), "USD");
        assert!(text.ends_with("3.000000\n") && text.contains("COST-USD"), "{text}");
        let none = rows(records.iter(), &By::Cluster, |_| Bill::default());
        assert!(none.is_empty());
    }

    #[test]
    fn times_are_days_moments_or_ages() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let ms = |text: &str| time(text, now).unwrap();
        assert_eq!(ms("2026-11-20T11:00:00Z"), ms("60m"));
        assert_eq!(ms("2026-11-20"), ms("12h"));
        assert_eq!(ms("1d"), now.as_millisecond() - 86_400_000);
        assert!(time("yesterday", now).is_err());
    }
}

//! What a pod tells about itself, in Prometheus' text format 0.0.4. Pure.
//!
//! Strict as its other readers: a line that is not understood spoils the whole page, for half a page gives wrong sums.
//! Names are as metrics adapters give them: a counter `x_total` or `x_seconds_total` is asked for as `x` too.

use std::collections::{BTreeMap, BTreeSet};

/// Series of one metric of one pod that are added up: more of them is a mistake in the pod.
pub const SERIES_MAX: usize = 1_000;
/// The longest line.
const LINE_MAX: usize = 16 << 10;
/// Labels of one series.
const LABELS_MAX: usize = 64;
/// Names of one pod that are listed; others can be asked for all the same.
const NAMES_MAX: usize = 1_000;

/// A series' labels.
pub type Labels = BTreeMap<String, String>;

/// All series of one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metric {
    /// Does it only grow?
    pub counter: bool,
    /// Values; of equal labels the last one counts.
    pub series: BTreeMap<Labels, f64>,
}

/// What of a page was wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// By the name that was wanted.
    pub found: BTreeMap<String, Metric>,
    /// What else could be asked for.
    pub names: BTreeSet<String>,
}

/// Reads a page; the error says which line is bad.
pub fn read(text: &str, wanted: &BTreeSet<String>) -> Result<Page, String> {
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut page = Page::default();
    // A metric of the very name comes before a counter that can be called so.
    let mut called: BTreeMap<String, Metric> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let bad = |what: &str| format!("line {}: {what}", at + 1);
        if line.len() > LINE_MAX {
            return Err(bad("too long"));
        }
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if let (Some("TYPE"), Some(name), Some(kind)) = (words.next(), words.next(), words.next()) {
                types.insert(name, kind);
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let (name, rest) = name(line).ok_or_else(|| bad("no metric name"))?;
        let counter = is_counter(&types, name);
        let alias = if counter { alias(name) } else { name };
        if page.names.len() < NAMES_MAX && !page.names.contains(alias) {
            page.names.insert(alias.to_string());
        }
        let (labels, rest) = labels(rest).map_err(bad)?;
        let value = value(rest).ok_or_else(|| bad("no value"))?;
        let into = match (wanted.contains(name), wanted.contains(alias)) {
            (true, _) => page.found.entry(name.to_string()),
            (false, true) => called.entry(alias.to_string()),
            (false, false) => continue,
        };
        let metric = into.or_default();
        metric.counter = counter;
        metric.series.insert(labels, value);
        if metric.series.len() > SERIES_MAX {
            return Err(bad(&format!("more than {SERIES_MAX} series of {name}")));
        }
    }
    for (name, metric) in called {
        page.found.entry(name).or_insert(metric);
    }
    Ok(page)
}

/// By its type; without one by its name.
fn is_counter(types: &BTreeMap<&str, &str>, name: &str) -> bool {
    let of = |suffix: &str| name.strip_suffix(suffix).and_then(|n| types.get(n)).copied();
    match types.get(name).copied() {
        Some("counter") => true,
        Some("untyped" | "unknown") | None => {
            let parts = ["_bucket", "_count", "_sum"].into_iter().find_map(of);
            matches!(parts, Some("histogram" | "summary")) || name.ends_with("_total")
        }
        Some(_) => false,
    }
}

/// What adapters call the rate of a counter.
fn alias(name: &str) -> &str {
    let short = name.strip_suffix("_seconds_total").or_else(|| name.strip_suffix("_total"));
    short.filter(|n| !n.is_empty()).unwrap_or(name)
}

/// A name and what follows.
fn name(line: &str) -> Option<(&str, &str)> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = line.find(|c: char| !fits(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    name.starts_with(|c: char| !c.is_ascii_digit()).then_some((name, rest.trim_start()))
}

/// `{a="b",…}` if there is one, and what follows.
fn labels(text: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Ok((labels, text)) };
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (key, after) = name(rest).ok_or("no label name")?;
        let after = after.strip_prefix('=').ok_or("a label without a value")?.trim_start();
        let (value, after) = quoted(after).ok_or("a label's value is not quoted")?;
        labels.insert(key.to_string(), value);
        if labels.len() > LABELS_MAX {
            return Err("too many labels");
        }
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return Err("labels are not separated"),
        }
    }
}

/// A quoted text and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let rest = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &rest[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                c @ ('\\' | '"') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    None
}

/// The value; a time after it is the pod's and does not matter, nor does an exemplar.
fn value(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let value = words.next()?.parse().ok()?;
    match words.next() {
        None | Some("#") => Some(value),
        Some(time) => time.parse::<f64>().ok().map(|_| value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_page() {
        let text = "# HELP http_requests_total Requests.\n# TYPE http_requests_total counter\n\
            http_requests_total{code=\"200\",path=\"/a,b}\\\"\\\\\\n\",} 7 1624961123000\n\
            http_requests_total { code = \"500\" } 1e1\n\n# TYPE depth gauge\ndepth 3.5\n  depth{q=\"\"} +Inf # {t=\"1\"} 1\n\
            # TYPE took histogram\ntook_bucket{le=\"+Inf\"} 2\ntook_sum 1\nspent_seconds_total 4\nodd_count 5\n";
        let page =
            read(text, &want(&["http_requests", "depth", "took_sum", "spent", "odd_count", "none"])).unwrap();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        let requests = &page.found["http_requests"];
        assert!(requests.counter);
        assert_eq!(requests.series[&labels(&[("code", "200"), ("path", "/a,b}\"\\\n")])], 7.0);
        assert_eq!(requests.series[&labels(&[("code", "500")])], 10.0);
        assert_eq!(page.found["depth"].series[&labels(&[])], 3.5);
        let counters: Vec<bool> = page.found.values().map(|m| m.counter).collect();
        assert_eq!((page.found.len(), counters), (5, vec![false, true, false, true, true]));
        let names: Vec<&str> = page.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["depth", "http_requests", "odd_count", "spent", "took_bucket", "took_sum"]);
    }

    #[test]
    fn the_very_name_comes_first() {
        let page = read("x_total 1\nx 2\n", &want(&["x", "x_total"])).unwrap();
        assert!(!page.found["x"].counter && page.found["x_total"].counter);
    }

    #[test]
    fn one_bad_line_spoils_the_page() {
        let long = format!("x{{a=\"{}\"}} 1", "y".repeat(LINE_MAX));
        for line in [
            "x",
            "1x 1",
            "x{a} 1",
            "x{a=\"1\" b=\"2\"} 1",
            "x{a=\"1} 1",
            "x{a=\"\\x\"} 1",
            "x 1 y",
            "<html>",
            &long,
        ] {
            assert!(read(line, &want(&["x"])).is_err(), "{line}");
        }
        let many: String = (0..=SERIES_MAX).map(|n| format!("x{{n=\"{n}\"}} 1\n")).collect();
        assert!(read(&many, &want(&["x"])).unwrap_err().contains("more than 1000 series"));
        assert!(read(&many, &want(&["y"])).is_ok(), "what nobody asks for is not kept");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[a-z_{}=\", \\\\0-9#\n]{0,80}") {
            let _ = read(&text, &want(&["a", "b"]));
        }
    }
}

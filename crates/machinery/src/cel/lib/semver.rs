//! Semantic versions.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use std::cmp::Ordering;
use std::fmt;

type Outcome = Result<Value, EvalError>;

/// A version of semver.org 2.0.0.
#[derive(Clone, Debug)]
pub struct Semver {
    numbers: [u64; 3],
    before: Vec<String>,
    build: String,
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.before.is_empty() {
            write!(f, "-{}", self.before.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

impl Semver {
    /// Reads a version, strictly.
    pub fn parse(text: &str) -> Option<Semver> {
        parse(text)
    }

    /// The same, where a `v`, missing numbers and leading zeros are forgiven.
    pub fn parse_tolerant(text: &str) -> Option<Semver> {
        parse(&normalized(text.trim()))
    }
}

/// The order of versions; builds do not count.
impl Ord for Semver {
    fn cmp(&self, other: &Semver) -> Ordering {
        let before = match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let key = |part: &String| match part.parse::<u64>() {
                    Ok(n) => (0, n, String::new()),
                    Err(_) => (1, 0, part.clone()),
                };
                self.before.iter().map(key).cmp(other.before.iter().map(key))
            }
        };
        self.numbers.cmp(&other.numbers).then(before)
    }
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Semver) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Semver {
    fn eq(&self, other: &Semver) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Semver {}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("semver(string) semver; semver(string, bool) semver", Cost::Scan, |a| {
        let parsed = read(a);
        parsed.map(|v| Ext::Semver(v).into()).ok_or_else(|| {
            EvalError::failed(format!("invalid semver: {:?}", a[0].as_str().unwrap_or_default()))
        })
    }),
    ("isSemver(string) bool; isSemver(string, bool) bool", Cost::Scan, |a| Ok(read(a).is_some().into())),
    ("semver:major() int", Cost::Flat, |a| number(a, 0)),
    ("semver:minor() int", Cost::Flat, |a| number(a, 1)),
    ("semver:patch() int", Cost::Flat, |a| number(a, 2)),
    ("semver:isGreaterThan(semver) bool", Cost::Flat, |a| order(a).map(|o| o.is_gt().into())),
    ("semver:isLessThan(semver) bool", Cost::Flat, |a| order(a).map(|o| o.is_lt().into())),
    ("semver:compareTo(semver) int", Cost::Flat, |a| order(a).map(|o| Value::Int(o as i64))),
];

fn read(a: &[Value]) -> Option<Semver> {
    let text = a[0].as_str().unwrap_or_default();
    if a.get(1).and_then(Value::as_bool) == Some(true) { parse(&normalized(text)) } else { parse(text) }
}

/// Without a `v`, with all three numbers, without leading zeros.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let strip = |n: &str| if n.len() > 1 { n.trim_start_matches('0') } else { n }.to_string();
    let mut parts: Vec<String> =
        numbers.split('.').map(strip).map(|n| if n.is_empty() { "0".into() } else { n }).collect();
    while parts.len() < 3 {
        parts.push("0".into());
    }
    format!("{}{rest}", parts.join("."))
}

fn parse(text: &str) -> Option<Semver> {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (numbers, before) = rest.split_once('-').map_or((rest, None), |(n, before)| (n, Some(before)));
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = |n: &str| n.len() > 1 && n.starts_with('0');
    let mut parts = numbers.split('.');
    let mut all = [0; 3];
    for n in &mut all {
        let part = parts.next().filter(|p| digits(p) && !leading_zero(p))?;
        *n = part.parse().ok()?;
    }
    let before: Vec<String> = before.map(|b| b.split('.').map(str::to_string).collect()).unwrap_or_default();
    let fine = parts.next().is_none()
        && before.iter().all(|b| word(b) && !(digits(b) && leading_zero(b)))
        && build.is_none_or(|b| b.split('.').all(word));
    fine.then(|| Semver { numbers: all, before, build: build.unwrap_or_default().into() })
}

fn version(value: &Value) -> Result<&Semver, EvalError> {
    match value {
        Value::Ext(ext) => match &**ext {
            Ext::Semver(version) => Ok(version),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn number(a: &[Value], at: usize) -> Outcome {
    let n = i64::try_from(version(&a[0])?.numbers[at]);
    n.map(Value::Int).map_err(|_| EvalError::failed("integer overflow"))
}

fn order(a: &[Value]) -> Result<Ordering, EvalError> {
    Ok(version(&a[0])?.cmp(version(&a[1])?))
}

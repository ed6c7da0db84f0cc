//! The JSONPath of printer columns, `kubectl` style: fields, quoted fields, indices, wildcards, and filters.
//!
//! Parsed once per definition; reading never fails, it finds nothing. No recursive descent (`..`), no unions, no
//! scripts: `kinds::crd` accepts the paths that the API allows, and these are what printer columns use.

use serde_json::Value;

/// Longest path that is read; longer ones show nothing.
const STEPS_MAX: usize = 64;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// From the end when negative.
    Index(i64),
    All,
    /// Items whose value at the path compares so.
    Filter(JsonPath, Compare, Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Exists,
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

const OPERATORS: [(&str, Compare); 6] = [
    ("==", Compare::Equal),
    ("!=", Compare::Unequal),
    ("<=", Compare::LessEqual),
    (">=", Compare::GreaterEqual),
    ("<", Compare::Less),
    (">", Compare::Greater),
];

impl JsonPath {
    /// Reads `.spec.ports[0].name`, `.metadata.labels['a\.b']`, `.status.conditions[?(@.type=="Ready")].status`.
    /// `None` for anything else.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = step(rest)?;
            steps.extend(step);
            rest = after;
            if steps.len() > STEPS_MAX {
                return None;
            }
        }
        Some(JsonPath(steps))
    }

    /// Every value the path leads to, in order.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.of(v)).collect();
        }
        found
    }
}

/// The first step of a path, and what follows it.
fn step(text: &str) -> Option<(Option<Step>, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        let (name, rest) = field_name(rest);
        return Some((
            match name.as_str() {
                // A dot before a bracket, or the whole path ".".
                "" if rest.is_empty() || rest.starts_with('[') => None,
                "" => return None,
                "*" => Some(Step::All),
                _ => Some(Step::Field(name)),
            },
            rest,
        ));
    }
    let inner = text.strip_prefix('[')?;
    if let Some(filter) = inner.strip_prefix("?(") {
        let (filter, rest) = filter.split_once(")]")?;
        return Some((Some(filter_step(filter)?), rest));
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = inner.strip_prefix(quote) {
            let end = quoted.find(&format!("{quote}]"))?;
            let name = quoted[..end].replace("\\.", ".");
            return Some((Some(Step::Field(name)), &quoted[end + 2..]));
        }
    }
    let (index, rest) = inner.split_once(']')?;
    let step = if index == "*" { Step::All } else { Step::Index(index.trim().parse().ok()?) };
    Some((Some(step), rest))
}

/// A field's name up to the next dot or bracket; a backslash quotes the next character.
fn field_name(text: &str) -> (String, &str) {
    let (mut name, mut quoted) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            _ if quoted => {
                name.push(c);
                quoted = false;
            }
            '\\' => quoted = true,
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

fn filter_step(text: &str) -> Option<Step> {
    let path = |text: &str| JsonPath::parse(text.trim().strip_prefix('@')?);
    let Some((at, (sign, compare))) = OPERATORS
        .iter()
        .filter_map(|o| Some((text.find(o.0)?, *o)))
        .min_by_key(|(at, (sign, _))| (*at, 2 - sign.len()))
    else {
        return Some(Step::Filter(path(text)?, Compare::Exists, Value::Null));
    };
    let literal = text[at + sign.len()..].trim();
    let unquoted = ['\'', '"'].iter().find_map(|q| literal.strip_prefix(*q)?.strip_suffix(*q));
    let literal = match unquoted {
        Some(text) => Value::String(text.to_string()),
        None => serde_json::from_str(literal).ok()?,
    };
    Some(Step::Filter(path(&text[..at])?, compare, literal))
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Step::Index(index), Value::Array(items)) => {
                let at = if *index < 0 { items.len() as i64 + index } else { *index };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            (Step::All, Value::Array(items)) => items.iter().collect(),
            (Step::All, Value::Object(map)) => map.values().collect(),
            (Step::Filter(path, compare, literal), Value::Array(items)) => {
                let passes = |item: &&Value| {
                    let found = path.find(item);
                    found.first().is_some_and(|found| compare.holds(found, literal))
                };
                items.iter().filter(passes).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Compare {
    fn holds(self, found: &Value, literal: &Value) -> bool {
        let order = match (found, literal) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            _ => None,
        };
        match self {
            Compare::Exists => true,
            Compare::Equal => found == literal,
            Compare::Unequal => found != literal,
            Compare::Less => order.is_some_and(|o| o.is_lt()),
            Compare::LessEqual => order.is_some_and(|o| o.is_le()),
            Compare::Greater => order.is_some_and(|o| o.is_gt()),
            Compare::GreaterEqual => order.is_some_and(|o| o.is_ge()),
        }
    }
}

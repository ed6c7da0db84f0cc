//! `{ $.a.b[0] = "x*" && ($.n > 3 || $.gone NOT EXISTS) }`.

use super::lex::Cursor;
use super::value::{Operator, Wanted};
use super::{DEPTH_MAX, PatternError};
use serde_json::Value;

const VALUE_STOPS: [char; 6] = [' ', '\t', '\n', ')', '&', '|'];
const KEY_STOPS: [char; 14] = ['.', '[', ' ', '\t', '\n', '=', '!', '<', '>', ')', '&', '|', '(', ']'];

#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
    Any,
}

#[derive(Clone, Debug)]
enum Test {
    Compare(Operator, Wanted),
    Is(Value),
    Exists,
    NotExists,
}

/// A condition.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    One(Leaf),
}

/// A test of one place.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    path: Vec<Step>,
    test: Test,
}

pub(super) fn parse(text: &str) -> Result<Condition, PatternError> {
    let mut cursor = Cursor(text);
    let condition = any(&mut cursor, 0)?;
    if cursor.is_empty() { Ok(condition) } else { Err(PatternError) }
}

fn any(cursor: &mut Cursor, depth: usize) -> Result<Condition, PatternError> {
    let mut list = vec![all(cursor, depth)?];
    while cursor.take("||") {
        list.push(all(cursor, depth)?);
    }
    Ok(Condition::Any(list))
}

fn all(cursor: &mut Cursor, depth: usize) -> Result<Condition, PatternError> {
    let mut list = vec![unit(cursor, depth)?];
    while cursor.take("&&") {
        list.push(unit(cursor, depth)?);
    }
    Ok(Condition::All(list))
}

fn unit(cursor: &mut Cursor, depth: usize) -> Result<Condition, PatternError> {
    if depth > DEPTH_MAX {
        return Err(PatternError);
    }
    if cursor.take("(") {
        let inner = any(cursor, depth + 1)?;
        return if cursor.take(")") { Ok(inner) } else { Err(PatternError) };
    }
    let path = path(cursor)?;
    let test = if cursor.take_word("is") {
        let named = [("null", Value::Null), ("true", true.into()), ("false", false.into())];
        let found = named.into_iter().find(|(word, _)| cursor.take_word(word));
        Test::Is(found.ok_or(PatternError)?.1)
    } else if cursor.take_word("not") {
        if !cursor.take_word("exists") {
            return Err(PatternError);
        }
        Test::NotExists
    } else if cursor.take_word("exists") {
        Test::Exists
    } else {
        let operator = cursor.operator().ok_or(PatternError)?;
        Test::Compare(operator, cursor.wanted(&VALUE_STOPS)?)
    };
    Ok(Condition::One(Leaf { path, test }))
}

fn path(cursor: &mut Cursor) -> Result<Vec<Step>, PatternError> {
    if !cursor.take("$") {
        return Err(PatternError);
    }
    let mut steps = Vec::new();
    loop {
        if let Some(rest) = cursor.0.strip_prefix('[') {
            cursor.0 = rest;
            let inside = cursor.until(&[']']).trim();
            if !cursor.take("]") {
                return Err(PatternError);
            }
            let name = inside.strip_prefix(['\'', '"']).and_then(|n| n.strip_suffix(['\'', '"']));
            steps.push(match (inside, name) {
                (_, Some(name)) => Step::Key(name.into()),
                ("*", None) => Step::Any,
                (number, None) => Step::Index(number.parse().map_err(|_| PatternError)?),
            });
        } else if let Some(rest) = cursor.0.strip_prefix('.') {
            cursor.0 = rest;
            if rest.starts_with('[') {
                continue;
            }
            steps.push(match cursor.until(&KEY_STOPS) {
                "" => return Err(PatternError),
                "*" => Step::Any,
                key => Step::Key(key.into()),
            });
        } else if steps.is_empty() {
            return Err(PatternError);
        } else {
            return Ok(steps);
        }
    }
}

impl Condition {
    /// A message that is no JSON object or list matches nothing.
    pub(super) fn matches(&self, message: &str) -> bool {
        let start = message.trim_start();
        if !start.starts_with(['{', '[']) {
            return false;
        }
        serde_json::from_str(start).is_ok_and(|value| self.holds(&value))
    }

    fn holds(&self, value: &Value) -> bool {
        match self {
            Condition::All(list) => list.iter().all(|c| c.holds(value)),
            Condition::Any(list) => list.iter().any(|c| c.holds(value)),
            Condition::One(leaf) => leaf.holds(value),
        }
    }
}

impl Leaf {
    fn holds(&self, value: &Value) -> bool {
        let mut found = vec![value];
        for step in &self.path {
            let next = found.into_iter().flat_map(|value| match (step, value) {
                (Step::Key(key), Value::Object(map)) => map.get(key).into_iter().collect::<Vec<_>>(),
                (Step::Index(index), Value::Array(list)) => list.get(*index).into_iter().collect(),
                (Step::Any, Value::Array(list)) => list.iter().collect(),
                (Step::Any, Value::Object(map)) => map.values().collect(),
                _ => Vec::new(),
            });
            found = next.collect();
        }
        match &self.test {
            // What is no object with fields lacks nothing: only objects are asked.
            Test::NotExists => found.is_empty() && value.is_object(),
            Test::Exists => !found.is_empty(),
            Test::Is(wanted) => found.into_iter().any(|value| value == wanted),
            Test::Compare(operator, wanted) => found.into_iter().any(|value| match value {
                Value::String(text) => wanted.compare(*operator, text),
                Value::Number(number) => wanted.compare(*operator, &number.to_string()),
                _ => false,
            }),
        }
    }
}

//! The table of functions and operators: what each takes, gives, costs and runs.
//!
//! A row's signatures are written `receiver:name(argument, …) result` (a member function) or `name(argument, …) result`
//! and joined by `;`. The checker matches them against types; the evaluator takes the first that fits the values.

use super::lib;
use super::types::Type;
use super::value::{EvalError, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What runs. It is only called with values that fit its signature.
pub type Run = fn(&[Value]) -> Result<Value, EvalError>;

/// What a call costs beyond the one for the call itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing.
    Flat,
    /// A walk over the first argument's text.
    Scan,
    /// A walk over both texts for each other.
    Cross,
    /// A pattern on a text.
    Pattern,
    /// The first argument's items.
    Items,
    /// The second argument's items.
    In,
    /// Both arguments' items with each other.
    Product,
    /// The smaller of both.
    Equal,
    /// A question to the authorizer (upstream's figure).
    Authorize,
}

/// Cost of a character of text that is walked over is a tenth.
fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl Cost {
    /// For these arguments. Values share their parts, so that a small expression can make a huge one: what walks over
    /// a value counts all of it.
    pub fn of(self, args: &[Value]) -> u64 {
        let size = |i: usize| args.get(i).map_or(0, Value::size);
        let weight = |i: usize| args.get(i).map_or(0, Value::weight);
        match self {
            Cost::Flat => 0,
            Cost::Authorize => 350_000,
            Cost::Scan => tenth(size(0)),
            Cost::Cross => tenth(size(0)).saturating_mul(tenth(size(1))),
            Cost::Pattern => tenth(size(0) + 1).saturating_mul(size(1).div_ceil(4)),
            Cost::Items => weight(0),
            Cost::In => match args.get(1) {
                Some(Value::Map(_)) => 0,
                _ => weight(1),
            },
            Cost::Product => weight(0).saturating_mul(if args.len() > 1 { weight(1) } else { size(0) }),
            Cost::Equal => tenth(weight(0).min(weight(1))),
        }
    }
}

/// A row: signatures, cost, what runs.
pub type Row = (&'static str, Cost, Run);

/// One signature of a row.
#[derive(Debug)]
pub struct Overload {
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    pub cost: Cost,
    pub run: Run,
}

static TABLE: LazyLock<BTreeMap<String, Vec<Overload>>> = LazyLock::new(|| {
    let mut table: BTreeMap<String, Vec<Overload>> = BTreeMap::new();
    for (signatures, cost, run) in lib::ROWS.iter().flat_map(|rows| rows.iter()) {
        for signature in signatures.split(';') {
            if let Some((name, overload)) = read(signature.trim(), *cost, *run) {
                table.entry(name).or_default().push(overload);
            }
        }
    }
    table
});

/// The names of all functions and operators.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.keys().map(String::as_str)
}

/// The signatures of a name; empty when there is no such function.
pub fn find(name: &str) -> &'static [Overload] {
    TABLE.get(name).map(Vec::as_slice).unwrap_or_default()
}

fn read(signature: &str, cost: Cost, run: Run) -> Option<(String, Overload)> {
    let (head, result) = signature.rsplit_once(") ")?;
    let (head, args) = head.split_once('(')?;
    // Operators may have a colon of their own; receivers are types, which begin with a letter.
    let (receiver, name) = match head.split_once(':') {
        Some((receiver, name)) if receiver.starts_with(char::is_alphabetic) => (Some(receiver), name),
        _ => (None, head),
    };
    let mut types: Vec<Type> = receiver.map(Type::read).into_iter().collect();
    types.extend(split(args).into_iter().map(Type::read));
    let overload =
        Overload { member: receiver.is_some(), args: types, result: Type::read(result), cost, run };
    Some((name.to_string(), overload))
}

/// Splits at commas outside of angle brackets.
fn split(args: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (i, c) in args.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(args[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    let last = args[from..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

//! CEL, the expression language of validation rules, match conditions and admission policies.
//!
//! [`compile`] parses an expression and checks its types against the variables of an [`Env`]; the [`Program`] is kept
//! and evaluated ([`Program::eval`]) any number of times, with values from a [`Scope`] and a cost [`Budget`]. Functions
//! are rows of one table (`table` and the files under `lib`): a row's signatures drive both the checker and the choice
//! of what runs.
//! Invariants: nothing panics or recurses without bound on any text or value; evaluation ends within its budget; the
//! same inputs give the same value. Deliberately not here: who declares which variables (`crd::rules`, admission).

mod ast;
mod check;
mod cost;
pub mod devices;
mod eval;
mod lex;
mod lib;
mod macros;
mod ops;
mod parse;
mod table;
mod types;
mod value;

pub use cost::{Bound, REQUEST_BYTES_MAX};
pub use lib::authz::{Authority, Inquiry, authorizer, request_resource};
pub use lib::semver::Semver;
pub use lib::time::duration;
pub use types::{ObjectType, Type, escape};
pub use value::{EvalError, Ext, Key, Value};

use ast::Node;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Cost that one evaluation may take (upstream's `PerCallLimit`).
pub const CALL_COST_MAX: u64 = 1_000_000;
/// Cost that all evaluations for one object may take together (upstream's `RuntimeCELCostBudget`).
pub const OBJECT_COST_MAX: u64 = 10_000_000;

/// The variables that an expression may use, and their types.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, Type>,
    messages: Vec<String>,
}

impl Env {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable. A name may have dots (`variables.replicas`, `authorizer.requestResource`): it then stands
    /// for that whole path.
    pub fn var(mut self, name: &str, ty: Type) -> Self {
        self.variables.insert(name.to_string(), ty);
        self
    }

    /// Allows messages of this name and below it to be made: `Object{…}`, `Object.spec{…}`. They become maps.
    pub fn message(mut self, name: &str) -> Self {
        self.messages.push(name.to_string());
        self
    }

    fn find(&self, name: &str) -> Option<&Type> {
        self.variables.get(name)
    }

    fn is_message(&self, name: &str) -> bool {
        self.messages
            .iter()
            .any(|m| name.strip_prefix(&**m).is_some_and(|r| r.is_empty() || r.starts_with('.')))
    }
}

/// What is wrong with an expression, in upstream's words: `ERROR: <input>:1:6: undefined field 'x'` and a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// Where, and what is wrong.
#[derive(Clone, Debug)]
struct Issue {
    at: u32,
    message: String,
}

impl CompileError {
    fn of(text: &str, issues: &[Issue]) -> CompileError {
        let mut out = String::new();
        for issue in issues {
            let before: String = text.chars().take(issue.at as usize).collect();
            let line_start = before.rfind('\n').map_or(0, |i| i + 1);
            let (line, column) = (before.matches('\n').count(), before[line_start..].chars().count());
            let shown = text.lines().nth(line).unwrap_or_default();
            if !out.is_empty() {
                out.push('\n');
            }
            let _ = write!(
                out,
                "ERROR: <input>:{}:{}: {}\n | {shown}\n | {}^",
                line + 1,
                column + 1,
                issue.message,
                ".".repeat(column)
            );
        }
        CompileError(out)
    }
}

/// Where the values of variables come from. They are asked for when an evaluation first needs them.
pub trait Scope {
    /// The value of a declared variable; `None` when there is none.
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>>;
}

impl Scope for BTreeMap<String, Value> {
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>> {
        BTreeMap::get(self, name).cloned().map(Ok)
    }
}

impl Scope for [(&str, Value)] {
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| Ok(v.clone()))
    }
}

impl<const N: usize> Scope for [(&str, Value); N] {
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>> {
        Scope::get(self.as_slice(), name)
    }
}

/// Cost that is left for the evaluations of one object.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    /// So much.
    pub fn new(cost: u64) -> Self {
        Budget { left: cost }
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(OBJECT_COST_MAX)
    }
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Program {
    node: Node,
    output: Type,
    variables: Vec<String>,
}

/// Parses an expression and checks it against the variables of `env`.
pub fn compile(env: &Env, text: &str) -> Result<Program, CompileError> {
    let mut node = parse::parse(text).map_err(|issue| CompileError::of(text, &[issue]))?;
    let checked = check::check(env, &mut node).map_err(|issues| CompileError::of(text, &issues))?;
    Ok(Program { node, output: checked.output, variables: checked.variables })
}

impl Program {
    /// The type of its value; `Dyn` when that is known only later.
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// Does the expression name this variable?
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.iter().any(|v| v == variable)
    }

    /// Evaluates it. The cost is taken from the budget, whatever comes out.
    pub fn eval(&self, scope: &(impl Scope + ?Sized), budget: &mut Budget) -> Result<Value, EvalError> {
        let limit = budget.left.min(CALL_COST_MAX);
        let (result, cost) = eval::run(&self.node, &Dynamic(scope), limit);
        budget.left = budget.left.saturating_sub(cost);
        match result {
            Err(EvalError::CallCost) if budget.left == 0 => Err(EvalError::Budget),
            other => other,
        }
    }
}

/// Lets unsized scopes through one pointer.
struct Dynamic<'a, S: ?Sized>(&'a S);

impl<S: Scope + ?Sized> Scope for Dynamic<'_, S> {
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests;

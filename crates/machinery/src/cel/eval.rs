//! The evaluator: walks the tree, counts what it costs.

use super::Scope;
use super::ast::{Call, Expr, Fold, Node, Walk};
use super::ops;
use super::types::Type;
use super::value::{EvalError, Key, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What making a list, a map, a message costs (upstream's figures).
const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const MESSAGE_COST: u64 = 40;
/// The book-keeping of one turn of a walk.
const TURN_COST: u64 = 2;

type Outcome = Result<Value, EvalError>;

struct Eval<'a> {
    scope: &'a dyn Scope,
    cost: u64,
    limit: u64,
}

/// A variable of a macro, and those around it.
struct Local<'a> {
    name: &'a str,
    value: Value,
    up: Option<&'a Local<'a>>,
}

/// The value, and the cost.
pub fn run(node: &Node, scope: &dyn Scope, limit: u64) -> (Outcome, u64) {
    let mut eval = Eval { scope, cost: 0, limit };
    let result = eval.node(node, None);
    (result, eval.cost)
}

impl Eval<'_> {
    fn pay(&mut self, cost: u64) -> Result<(), EvalError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::CallCost) } else { Ok(()) }
    }

    fn node(&mut self, node: &Node, locals: Option<&Local<'_>>) -> Outcome {
        match &node.expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Ident(name) => self.variable(name, locals),
            Expr::Select { of, field, optional } => {
                let of = self.node(of, locals)?;
                self.pay(1)?;
                if *optional { ops::select_optional(&of, field) } else { ops::select(&of, field) }
            }
            Expr::Has { of, field } => {
                let of = self.node(of, locals)?;
                self.pay(1)?;
                ops::has(&of, field).map(Value::Bool)
            }
            Expr::Call(call) => self.call(call, locals),
            Expr::And(all) => self.logic(all, false, locals),
            Expr::Or(all) => self.logic(all, true, locals),
            Expr::If(parts) => {
                let [condition, yes, no] = &**parts;
                match self.node(condition, locals)?.as_bool() {
                    Some(true) => self.node(yes, locals),
                    Some(false) => self.node(no, locals),
                    None => Err(EvalError::no_such_overload()),
                }
            }
            Expr::List(items) => self.list(items, locals),
            Expr::Map(entries) => self.map(entries, locals),
            Expr::Message { fields, .. } => self.message(fields, locals),
            Expr::Fold(fold) => self.fold(fold, locals),
            Expr::Bind { name, value, body } => {
                let value = self.node(value, locals)?;
                self.node(body, Some(&Local { name, value, up: locals }))
            }
            Expr::OptMap { of, name, body, flat } => match self.node(of, locals)? {
                Value::Optional(None) => Ok(Value::NONE),
                Value::Optional(Some(value)) => {
                    let local = Local { name, value: (*value).clone(), up: locals };
                    let result = self.node(body, Some(&local))?;
                    Ok(if *flat { result } else { Value::some(result) })
                }
                _ => Err(EvalError::no_such_overload()),
            },
        }
    }

    fn variable(&mut self, name: &str, mut locals: Option<&Local<'_>>) -> Outcome {
        self.pay(1)?;
        while let Some(local) = locals {
            if local.name == name {
                return Ok(local.value.clone());
            }
            locals = local.up;
        }
        match self.scope.get(name) {
            Some(value) => value,
            None if matches!(name, "list" | "map") || Type::plain(name).is_some() => {
                Ok(Value::Type(name.into()))
            }
            None => Err(EvalError::failed(format!("no such attribute(s): {name}"))),
        }
    }

    fn call(&mut self, call: &Call, locals: Option<&Local<'_>>) -> Outcome {
        // `a.or(b)` looks at b only where it must.
        if call.member && matches!(call.name.as_str(), "or" | "orValue") && call.args.len() == 2 {
            return match self.node(&call.args[0], locals)? {
                Value::Optional(None) => self.node(&call.args[1], locals),
                Value::Optional(Some(value)) if call.name == "orValue" => Ok((*value).clone()),
                some @ Value::Optional(_) => Ok(some),
                _ => Err(EvalError::no_such_overload()),
            };
        }
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.node(arg, locals)?);
        }
        let fits = |o: &&super::table::Overload| {
            o.member == call.member
                && o.args.len() == args.len()
                && o.args.iter().zip(&args).all(|(ty, value)| value.fits(ty))
        };
        let Some(overload) = call.overloads.iter().find(fits) else {
            return Err(EvalError::no_such_overload());
        };
        self.pay(1u64.saturating_add(overload.cost.of(&args)))?;
        (overload.run)(&args)
    }

    /// `||` (decided by true) or `&&` (decided by false): a side that decides makes the other's failure harmless.
    fn logic(&mut self, all: &[Node], decides: bool, locals: Option<&Local<'_>>) -> Outcome {
        let mut failed = None;
        for node in all {
            match self.node(node, locals) {
                Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = Some(failed.unwrap_or(EvalError::no_such_overload())),
                Err(error @ EvalError::Failed(_)) => failed = Some(failed.unwrap_or(error)),
                Err(stop) => return Err(stop),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    /// An item marked as optional: its value, if it has one.
    fn item(
        &mut self,
        optional: bool,
        node: &Node,
        locals: Option<&Local<'_>>,
    ) -> Result<Option<Value>, EvalError> {
        let value = self.node(node, locals)?;
        if !optional {
            return Ok(Some(value));
        }
        match value {
            Value::Optional(inner) => Ok(inner.map(|v| (*v).clone())),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    fn list(&mut self, items: &[(bool, Node)], locals: Option<&Local<'_>>) -> Outcome {
        self.pay(LIST_COST)?;
        let mut list = Vec::with_capacity(items.len());
        for (optional, item) in items {
            list.extend(self.item(*optional, item, locals)?);
        }
        Ok(list.into())
    }

    fn map(&mut self, entries: &[(bool, Node, Node)], locals: Option<&Local<'_>>) -> Outcome {
        self.pay(MAP_COST)?;
        let mut map = BTreeMap::new();
        for (optional, key, value) in entries {
            let key = self.node(key, locals)?.key();
            let key = key.ok_or_else(|| EvalError::failed("unsupported key type"))?;
            if let Some(value) = self.item(*optional, value, locals)?
                && map.insert(key, value).is_some()
            {
                return Err(EvalError::failed("duplicate key"));
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    fn message(&mut self, fields: &[(bool, String, Node)], locals: Option<&Local<'_>>) -> Outcome {
        self.pay(MESSAGE_COST)?;
        let mut map = BTreeMap::new();
        for (optional, name, value) in fields {
            if let Some(value) = self.item(*optional, value, locals)? {
                map.insert(Key::String(super::types::unescape(name).into()), value);
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    fn fold(&mut self, fold: &Fold, locals: Option<&Local<'_>>) -> Outcome {
        let range = self.node(&fold.range, locals)?;
        let mut made = ops::Made::new(fold.walk);
        for (key, item) in ops::entries(&range)? {
            self.pay(TURN_COST)?;
            // A single variable is a list's item or a map's key.
            let single = if matches!(range, Value::Map(_)) { &key } else { &item };
            let first = if fold.second.is_some() { &key } else { single };
            let first = Local { name: &fold.first, value: first.clone(), up: locals };
            let second =
                fold.second.as_ref().map(|name| Local { name, value: item.clone(), up: Some(&first) });
            let inner = Some(second.as_ref().unwrap_or(&first));
            if let Some(filter) = &fold.filter {
                match self.node(filter, inner)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return Err(EvalError::no_such_overload()),
                }
            }
            let body = self.node(&fold.body, inner);
            if let Err(stop @ (EvalError::CallCost | EvalError::Budget)) = body {
                return Err(stop);
            }
            if matches!(fold.walk, Walk::Map | Walk::Filter | Walk::TransformList) {
                self.pay(1)?;
            }
            if made.take(&key, single, body)? {
                break;
            }
        }
        made.finish()
    }
}

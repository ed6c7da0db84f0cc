//! What an expression may cost at most, told from the bounds of its variables before anything is evaluated.
//!
//! Figures are upstream's (`cel-go`'s checker and Kubernetes' library), so that definitions that pass there pass here:
//! macros cost what their expansion costs, walks are multiplied by what the schema allows, what has no bound is as
//! big as a request. Only the upper end is told; that is what limits are about.

use super::Program;
use super::ast::{Call, Expr, Fold, Node, Walk};
use super::table::{Cost, Overload};
use super::types::Type;
use super::value::Value;
use std::collections::BTreeMap;

/// Bytes of the largest request, as upstream counts here.
pub const REQUEST_BYTES_MAX: u64 = 3 << 20;

/// How big a value can be, and the values in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bound {
    /// Bytes of a text, items of a list, entries of a map; 1 for everything else.
    pub size: u64,
    /// Is it a list or a map, whose walks cost?
    pub walked: bool,
    /// An object's fields by their escaped names.
    pub fields: BTreeMap<String, Bound>,
    /// The items of a list, the values of a map.
    pub item: Option<Box<Bound>>,
    /// Is it a map, whose walk sees keys?
    pub keyed: bool,
}

/// What is known of the value of a part of an expression.
#[derive(Clone, Copy, Default)]
struct Seen<'a> {
    cost: u64,
    size: u64,
    kind: Kind,
    bound: Option<&'a Bound>,
}

/// As far as costs tell them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    Any,
    Text,
    List,
    Map,
    Scalar,
}

impl Kind {
    fn of(ty: &Type) -> Kind {
        match ty {
            Type::String | Type::Bytes => Kind::Text,
            Type::List(_) => Kind::List,
            Type::Map(..) | Type::Object(_) => Kind::Map,
            Type::Dyn | Type::Param(_) | Type::Optional(_) => Kind::Any,
            _ => Kind::Scalar,
        }
    }

    fn may_be(self, other: Kind) -> bool {
        self == other || self == Kind::Any || other == Kind::Any
    }

    /// The size of a value of this kind that nobody knows.
    fn unknown(self) -> u64 {
        if self == Kind::Scalar { 1 } else { REQUEST_BYTES_MAX }
    }
}

/// A tenth, or a quarter, rounded up: what walking over text, or running a pattern, costs.
fn part(size: u64, of: u64) -> u64 {
    size.div_ceil(of)
}

impl Program {
    /// What one evaluation may cost at most, where the variables are bounded so.
    pub fn cost_max(&self, variables: &[(&str, &Bound)]) -> u64 {
        let locals = variables.iter().map(|(name, bound)| (*name, seen(bound))).collect();
        Estimate { locals }.node(&self.node).cost
    }
}

fn seen(bound: &Bound) -> Seen<'_> {
    let kind = match (bound.walked, bound.keyed) {
        (true, true) => Kind::Map,
        (true, false) => Kind::List,
        _ if !bound.fields.is_empty() => Kind::Map,
        _ if bound.size > 1 => Kind::Text,
        _ => Kind::Any,
    };
    Seen { cost: 0, size: bound.size, kind, bound: Some(bound) }
}

struct Estimate<'a> {
    locals: Vec<(&'a str, Seen<'a>)>,
}

impl<'a> Estimate<'a> {
    fn node(&mut self, node: &'a Node) -> Seen<'a> {
        match &node.expr {
            Expr::Literal(value) => literal(value),
            Expr::Ident(name) => {
                let known = self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, seen)| *seen);
                let known = known.unwrap_or(Seen { size: REQUEST_BYTES_MAX, ..Seen::default() });
                Seen { cost: 1, ..known }
            }
            Expr::Select { of, field, .. } => {
                let of = self.node(of);
                below(of.bound, field).costing(of.cost.saturating_add(1))
            }
            Expr::Has { of, .. } => scalar(self.node(of).cost),
            Expr::Call(call) => self.call(call),
            Expr::And(all) | Expr::Or(all) => {
                scalar(all.iter().fold(0, |sum: u64, n| sum.saturating_add(self.node(n).cost)))
            }
            Expr::If(parts) => {
                let [condition, yes, no] = &**parts;
                let (condition, yes, no) = (self.node(condition), self.node(yes), self.node(no));
                let larger = if yes.size >= no.size { yes } else { no };
                larger.costing(condition.cost.saturating_add(yes.cost.max(no.cost)))
            }
            Expr::List(items) => self.made(10, items.iter().map(|(_, n)| n), items.len(), Kind::List),
            Expr::Map(entries) => {
                self.made(30, entries.iter().flat_map(|(_, k, v)| [k, v]), entries.len(), Kind::Map)
            }
            Expr::Message { fields, .. } => {
                self.made(40, fields.iter().map(|(_, _, n)| n), fields.len(), Kind::Map)
            }
            Expr::Fold(fold) => self.fold(fold),
            Expr::Bind { name, value, body } => {
                let value = self.node(value);
                let body = self.within(&[(name, value)], body);
                body.costing(value.cost.saturating_add(body.cost).saturating_add(10))
            }
            Expr::OptMap { of, name, body, .. } => {
                let of = self.node(of);
                let body = self.within(&[(name, of)], body);
                body.costing(of.cost.saturating_mul(2).saturating_add(body.cost).saturating_add(13))
            }
        }
    }

    fn made(
        &mut self,
        base: u64,
        parts: impl Iterator<Item = &'a Node>,
        size: usize,
        kind: Kind,
    ) -> Seen<'a> {
        let cost = parts.fold(base, |sum, n| sum.saturating_add(self.node(n).cost));
        Seen { cost, size: size as u64, kind, bound: None }
    }

    fn within(&mut self, locals: &[(&'a str, Seen<'a>)], body: &'a Node) -> Seen<'a> {
        let before = self.locals.len();
        self.locals.extend_from_slice(locals);
        let seen = self.node(body);
        self.locals.truncate(before);
        seen
    }

    fn fold(&mut self, fold: &'a Fold) -> Seen<'a> {
        let range = self.node(&fold.range);
        let item = range.bound.and_then(|b| b.item.as_deref()).map_or(Seen::default().unbounded(), seen);
        let key = match range.kind {
            Kind::Map => Seen { size: REQUEST_BYTES_MAX, kind: Kind::Text, ..Seen::default() },
            _ => scalar(0),
        };
        let single = if range.kind == Kind::Map { key } else { item };
        let locals: Vec<(&str, Seen)> = match &fold.second {
            Some(second) => vec![(&fold.first, key), (second, item)],
            None => vec![(&fold.first, single)],
        };
        let filter = fold.filter.as_ref().map_or(0, |f| self.within(&locals, f).cost);
        let body = self.within(&locals, &fold.body).cost.saturating_add(filter);
        // What the expansion of each macro does around its body, each turn and once.
        let (turn, once) = match fold.walk {
            Walk::All => (3, 1),
            Walk::Exists => (4, 1),
            Walk::ExistsOne => (2, 2),
            Walk::Map | Walk::TransformList => (12, 11),
            Walk::Filter => (13, 11),
            Walk::SortBy => (24, 22),
            Walk::TransformMap | Walk::TransformMapEntry => (3, 31),
        };
        let turns = range.size.saturating_mul(body.saturating_add(turn));
        let cost = range.cost.saturating_add(turns).saturating_add(once);
        match fold.walk {
            Walk::All | Walk::Exists | Walk::ExistsOne => scalar(cost),
            Walk::Filter | Walk::SortBy => Seen { cost, ..range },
            Walk::Map | Walk::TransformList => Seen { cost, size: range.size, kind: Kind::List, bound: None },
            Walk::TransformMap | Walk::TransformMapEntry => {
                Seen { cost, size: range.size, kind: Kind::Map, bound: None }
            }
        }
    }

    fn call(&mut self, call: &'a Call) -> Seen<'a> {
        let args: Vec<Seen> = call.args.iter().map(|n| self.node(n)).collect();
        let sum = args.iter().fold(0, |sum: u64, a| sum.saturating_add(a.cost));
        let fits = |o: &&Overload| {
            o.member == call.member
                && o.args.len() == args.len()
                && o.args.iter().zip(&args).all(|(ty, a)| Kind::of(ty).may_be(a.kind))
        };
        let mut own = 0;
        let mut kind: Option<Kind> = None;
        for overload in call.overloads.iter().filter(fits) {
            own = own.max(call_cost(&call.name, overload.cost, &args));
            let result = Kind::of(&overload.result);
            kind = Some(if kind.is_none_or(|k| k == result) { result } else { Kind::Any });
        }
        let kind = kind.unwrap_or_default();
        let cost = sum.saturating_add(own.max(1));
        result(call, &args, kind).costing(cost)
    }
}

impl<'a> Seen<'a> {
    fn costing(self, cost: u64) -> Seen<'a> {
        Seen { cost, ..self }
    }

    fn unbounded(self) -> Seen<'a> {
        Seen { size: REQUEST_BYTES_MAX, ..self }
    }

    /// What looking at each item costs, more where items are text.
    fn each(self) -> u64 {
        match self.bound.and_then(|b| b.item.as_deref()) {
            Some(item) if !item.walked && item.fields.is_empty() && item.size > 1 => 1 + part(item.size, 10),
            _ => 1,
        }
    }
}

fn scalar<'a>(cost: u64) -> Seen<'a> {
    Seen { cost, size: 1, kind: Kind::Scalar, bound: None }
}

fn literal<'a>(value: &Value) -> Seen<'a> {
    match value {
        Value::String(_) | Value::Bytes(_) | Value::Ext(_) => {
            Seen { cost: 0, size: value.size(), kind: Kind::Text, bound: None }
        }
        _ => scalar(0),
    }
}

fn below<'a>(bound: Option<&'a Bound>, field: &str) -> Seen<'a> {
    let found = bound.and_then(|b| b.fields.get(field).or(b.item.as_deref().filter(|_| b.keyed)));
    found.map_or(Seen::default().unbounded(), seen)
}

/// What the call itself costs.
fn call_cost(name: &str, cost: Cost, args: &[Seen<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, |a| a.size);
    match cost {
        // Lengths are known.
        _ if name == "size" => 1,
        _ if name == "_+_" => match args.first().map_or(Kind::Any, |a| a.kind) {
            Kind::Text | Kind::Any => part(size(0).saturating_add(size(1)), 10),
            _ => 1,
        },
        Cost::Flat => 1,
        Cost::Authorize => 350_000,
        Cost::Scan => part(size(if matches!(name, "startsWith" | "endsWith") { 1 } else { 0 }), 10),
        Cost::Cross => part(size(0), 10).saturating_mul(part(size(1), 10).max(1)),
        Cost::Pattern => part(size(0).saturating_add(1), 10).saturating_mul(part(size(1), 4)),
        Cost::Items => size(0).saturating_mul(args.first().map_or(1, |a| a.each())),
        Cost::In if args.get(1).is_some_and(|a| a.kind == Kind::Map) => 1,
        Cost::In => size(1),
        Cost::Product => size(0).saturating_mul(if args.len() > 1 { size(1) } else { 1 }),
        Cost::Equal => part(size(0).min(size(1)), 10),
    }
}

/// How big what comes out is.
fn result<'a>(call: &Call, args: &[Seen<'a>], kind: Kind) -> Seen<'a> {
    let unknown = Seen { size: kind.unknown(), kind, ..Seen::default() };
    let Some(first) = args.first() else { return unknown };
    let second = args.get(1).map_or(0, |a| a.size);
    let sized =
        |size: u64| Seen { size, kind: if kind == Kind::Any { first.kind } else { kind }, ..Seen::default() };
    match call.name.as_str() {
        "_[_]" | "_[?_]" => {
            let item = first.bound.and_then(|b| b.item.as_deref());
            item.map_or(Seen::default().unbounded(), seen)
        }
        "value" | "or" | "orValue" | "dyn" | "first" | "last" | "min" | "max" if first.bound.is_some() => {
            *first
        }
        "_+_" if kind != Kind::Scalar => sized(first.size.saturating_add(second)),
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "reverse" | "charAt" | "find" | "split"
        | "findAll" | "sort" | "distinct" | "slice" => sized(first.size),
        "replace" => {
            let with = args.get(2).map_or(0, |a| a.size);
            sized(first.size.saturating_mul(with.max(1)))
        }
        "format" | "join" => sized(first.size.saturating_add(second.saturating_mul(10))),
        "string" | "bytes" => {
            sized(if first.kind == Kind::Scalar { 64 } else { first.size.saturating_mul(4) })
        }
        _ => unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Env, compile};
    use super::*;

    fn text(size: u64) -> Bound {
        Bound { size, ..Bound::default() }
    }

    fn list(size: u64, item: Bound) -> Bound {
        Bound { size, walked: true, item: Some(Box::new(item)), ..Bound::default() }
    }

    fn cost(expression: &str) -> u64 {
        let strings = Type::list(Type::String);
        let fields =
            [("s", Type::String), ("n", Type::Int), ("l", strings.clone()), ("ll", Type::list(strings))];
        let fields = fields.map(|(name, ty)| (name.to_string(), ty));
        let env = Env::new().var("self", Type::object("t", fields));
        let bounds =
            [("s", text(40)), ("n", text(1)), ("l", list(5, text(40))), ("ll", list(5, list(7, text(40))))];
        let bounds = bounds.map(|(name, bound)| (name.to_string(), bound));
        let own = Bound { size: 1, fields: bounds.into(), ..Bound::default() };
        compile(&env, expression).unwrap().cost_max(&[("self", &own)])
    }

    /// Worked out by hand from upstream's rules.
    #[test]
    fn costs_are_upstreams() {
        for (expression, want) in [
            ("self.n == 3", 2 + 1),
            ("self.n + 1 > 2", 2 + 1 + 1),
            ("self.s == 'abc'", 2 + 1),
            ("self.s.startsWith('abc')", 2 + 1),
            ("self.s.contains('abc')", 2 + 4),
            ("self.s.matches('abcdefgh')", 2 + 5 * 2),
            ("self.s + self.s == self.s", 6 + 8 + 4),
            ("has(self.s) && self.n > 1", 1 + 3),
            ("self.l.size() < 3", 2 + 1 + 1),
            ("'x' in self.l", 2 + 5),
            ("self.l.all(x, x == 'y')", 2 + 5 * (3 + 2) + 1),
            ("self.l.exists(x, x == 'y')", 2 + 5 * (4 + 2) + 1),
            ("self.ll.all(x, x.all(y, y == 'z'))", 2 + 5 * (3 + 1 + 7 * (3 + 2) + 1) + 1),
            ("self.l.map(x, x)", 2 + 5 * (12 + 1) + 11),
            ("self.l.isSorted()", 2 + 5 * 5),
            ("self.l[0] == 'x'", 2 + 1 + 1),
        ] {
            assert_eq!(cost(expression), want, "{expression}");
        }
    }

    #[test]
    fn what_has_no_bound_is_as_big_as_a_request() {
        let env = Env::new().var("self", Type::list(Type::String));
        let endless = list(REQUEST_BYTES_MAX, text(REQUEST_BYTES_MAX));
        let program = compile(&env, "self.all(x, self.all(y, x == y))").unwrap();
        assert!(program.cost_max(&[("self", &endless)]) > 1 << 50);
    }
}

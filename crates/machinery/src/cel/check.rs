//! The type checker: finds what names mean, chooses overloads, computes the type of the whole.

use super::ast::{Call, Expr, Fold, Node, Walk};
use super::parse::path;
use super::table;
use super::types::{Bindings, Type, join};
use super::value::{Ext, Value};
use super::{Env, Issue};
use regex::RegexBuilder;
use std::sync::Arc;

/// Bytes of a compiled pattern.
pub const PATTERN_BYTES_MAX: usize = 1 << 20;
/// More complaints than this help nobody.
const ISSUES_MAX: usize = 20;

/// What the checker found out.
pub struct Checked {
    pub output: Type,
    pub variables: Vec<String>,
}

struct Checker<'a> {
    env: &'a Env,
    locals: Vec<(String, Type)>,
    issues: Vec<Issue>,
    variables: Vec<String>,
}

/// Checks an expression and resolves the names in it.
pub fn check(env: &Env, node: &mut Node) -> Result<Checked, Vec<Issue>> {
    let mut checker = Checker { env, locals: Vec::new(), issues: Vec::new(), variables: Vec::new() };
    let output = checker.node(node);
    if !checker.issues.is_empty() {
        return Err(checker.issues);
    }
    Ok(Checked { output, variables: checker.variables })
}

impl Checker<'_> {
    fn issue(&mut self, at: u32, message: String) -> Type {
        if self.issues.len() < ISSUES_MAX {
            self.issues.push(Issue { at, message });
        }
        Type::Dyn
    }

    fn expect(&mut self, node: &mut Node, wanted: &Type) {
        let found = self.node(node);
        if !Bindings::default().accepts(wanted, &found) {
            self.issue(node.at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    fn node(&mut self, node: &mut Node) -> Type {
        self.resolve(node);
        let at = node.at;
        match &mut node.expr {
            Expr::Literal(value) => type_of(value),
            Expr::Ident(name) => self.variable(at, name),
            Expr::Select { of, field, optional } => {
                let of = self.node(of);
                self.select(at, &of, field, *optional)
            }
            Expr::Has { of, field } => {
                let of = self.node(of);
                self.select(at, &of, field, false);
                Type::Bool
            }
            Expr::Call(call) => self.call(at, call),
            Expr::And(all) => self.logic("_&&_", at, all),
            Expr::Or(all) => self.logic("_||_", at, all),
            Expr::If(parts) => {
                let [condition, yes, no] = &mut **parts;
                self.expect(condition, &Type::Bool);
                let (yes, no) = (self.node(yes), self.node(no));
                if !Bindings::default().accepts(&yes, &no) && !Bindings::default().accepts(&no, &yes) {
                    let applied = format!("'(bool, {yes}, {no})'");
                    return self
                        .issue(at, format!("found no matching overload for '_?_:_' applied to {applied}"));
                }
                join(&yes, &no)
            }
            Expr::List(items) => {
                let mut of = None;
                for (optional, item) in items {
                    let ty = self.node(item);
                    let ty = if *optional { unwrapped(&ty) } else { ty };
                    of = Some(of.map_or(ty.clone(), |before| join(&before, &ty)));
                }
                Type::list(of.unwrap_or(Type::Dyn))
            }
            Expr::Map(entries) => self.map(entries),
            Expr::Message { name, fields } => {
                for (_, _, value) in fields {
                    self.node(value);
                }
                if !self.env.is_message(name) {
                    return self.issue(at, format!("undeclared reference to '{name}' (in container '')"));
                }
                Type::Dyn
            }
            Expr::Fold(fold) => self.fold(fold),
            Expr::Bind { name, value, body } => {
                let ty = self.node(value);
                self.within(vec![(name.clone(), ty)], body)
            }
            Expr::OptMap { of, name, body, flat } => {
                let ty = self.node(of);
                if !matches!(ty, Type::Optional(_) | Type::Dyn) {
                    return self.issue(at, format!("expected type 'optional_type' but found '{ty}'"));
                }
                let result = self.within(vec![(name.clone(), unwrapped(&ty))], body);
                if *flat { result } else { Type::optional(result) }
            }
        }
    }

    /// Names with dots: variables declared so, and functions in name spaces.
    fn resolve(&mut self, node: &mut Node) {
        let local = |name: &str| self.locals.iter().any(|(n, _)| name.split('.').next() == Some(n));
        if let Some(name) = path(node)
            && name.contains('.')
            && self.env.find(&name).is_some()
            && !local(&name)
        {
            node.expr = Expr::Ident(name);
            return;
        }
        let Expr::Call(call) = &mut node.expr else { return };
        if call.member
            && let Some(space) = call.args.first().and_then(path)
            && self.env.find(&space).is_none()
            && !local(&space)
        {
            let name = format!("{space}.{}", call.name);
            if !table::find(&name).is_empty() {
                call.name = name;
                call.member = false;
                call.args.remove(0);
            }
        }
    }

    fn variable(&mut self, at: u32, name: &str) -> Type {
        if let Some((_, ty)) = self.locals.iter().rev().find(|(n, _)| n == name) {
            return ty.clone();
        }
        if let Some(ty) = self.env.find(name) {
            if !self.variables.iter().any(|v| v == name) {
                self.variables.push(name.to_string());
            }
            return ty.clone();
        }
        if matches!(name, "list" | "map") || Type::plain(name).is_some() {
            return Type::Type;
        }
        self.issue(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, at: u32, of: &Type, field: &str, optional: bool) -> Type {
        let found = match of {
            Type::Dyn => Type::Dyn,
            Type::Map(_, of) => (**of).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(ty) => ty.clone(),
                None => return self.issue(at, format!("undefined field '{field}'")),
            },
            Type::Optional(of) => {
                let below = self.select(at, of, field, false);
                return Type::optional(unwrapped(&below));
            }
            other => return self.issue(at, format!("type '{other}' does not support field selection")),
        };
        if optional { Type::optional(found) } else { found }
    }

    fn logic(&mut self, name: &str, at: u32, all: &mut [Node]) -> Type {
        let types: Vec<Type> = all.iter_mut().map(|n| self.node(n)).collect();
        for pair in types.windows(2) {
            if pair.iter().any(|ty| !matches!(ty, Type::Bool | Type::Dyn)) {
                let applied = format!("'({}, {})'", pair[0], pair[1]);
                return self
                    .issue(at, format!("found no matching overload for '{name}' applied to {applied}"));
            }
        }
        Type::Bool
    }

    fn map(&mut self, entries: &mut [(bool, Node, Node)]) -> Type {
        let mut of: Option<(Type, Type)> = None;
        for (optional, key, value) in entries {
            let (key, value) = (self.node(key), self.node(value));
            let value = if *optional { unwrapped(&value) } else { value };
            of = Some(match of {
                None => (key, value),
                Some((k, v)) => (join(&k, &key), join(&v, &value)),
            });
        }
        let (key, value) = of.unwrap_or((Type::Dyn, Type::Dyn));
        Type::Map(Arc::new(key), Arc::new(value))
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Type {
        compile_pattern(call).unwrap_or_else(|message| drop(self.issue(at, message)));
        let args: Vec<Type> = call.args.iter_mut().map(|n| self.node(n)).collect();
        call.overloads = table::find(&call.name);
        if call.overloads.is_empty() {
            return self.issue(at, format!("undeclared reference to '{}' (in container '')", call.name));
        }
        let mut result: Option<Type> = None;
        for overload in
            call.overloads.iter().filter(|o| o.member == call.member && o.args.len() == args.len())
        {
            let mut bindings = Bindings::default();
            if overload.args.iter().zip(&args).all(|(wanted, found)| bindings.accepts(wanted, found)) {
                let own = bindings.apply(&overload.result);
                result = Some(result.map_or(own.clone(), |before| join(&before, &own)));
            }
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> = args.iter().map(Type::to_string).collect();
            let applied = match (call.member, shown.split_first()) {
                (true, Some((of, rest))) => format!("{of}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            self.issue(at, format!("found no matching overload for '{}' applied to '{applied}'", call.name))
        })
    }

    fn within(&mut self, locals: Vec<(String, Type)>, body: &mut Node) -> Type {
        let before = self.locals.len();
        self.locals.extend(locals);
        let ty = self.node(body);
        self.locals.truncate(before);
        ty
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.node(&mut fold.range);
        let (key, item) = match &range {
            Type::List(of) => (Type::Int, (**of).clone()),
            Type::Map(key, of) => ((**key).clone(), (**of).clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            other => {
                let words = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return self.issue(fold.range.at, words);
            }
        };
        let locals = match &fold.second {
            Some(second) => vec![(fold.first.clone(), key.clone()), (second.clone(), item.clone())],
            None if matches!(range, Type::Map(..)) => vec![(fold.first.clone(), key.clone())],
            None => vec![(fold.first.clone(), item.clone())],
        };
        if let Some(filter) = &mut fold.filter {
            let ty = self.within(locals.clone(), filter);
            if !matches!(ty, Type::Bool | Type::Dyn) {
                self.issue(filter.at, format!("expected type 'bool' but found '{ty}'"));
            }
        }
        let at = fold.body.at;
        let own = locals[0].1.clone();
        let body = self.within(locals, &mut fold.body);
        match fold.walk {
            Walk::All | Walk::Exists | Walk::ExistsOne | Walk::Filter
                if !matches!(body, Type::Bool | Type::Dyn) =>
            {
                self.issue(at, format!("expected type 'bool' but found '{body}'"))
            }
            Walk::All | Walk::Exists | Walk::ExistsOne => Type::Bool,
            Walk::Map | Walk::TransformList => Type::list(body),
            Walk::Filter => Type::list(own),
            Walk::SortBy => range,
            Walk::TransformMap => Type::Map(Arc::new(key), Arc::new(body)),
            Walk::TransformMapEntry => body,
        }
    }
}

/// Patterns that are constants are compiled here, once.
fn compile_pattern(call: &mut Call) -> Result<(), String> {
    let takes = matches!(call.name.as_str(), "matches" | "find" | "findAll");
    let Some(Node { expr: Expr::Literal(literal), .. }) = call.args.get_mut(1).filter(|_| takes) else {
        return Ok(());
    };
    let Value::String(text) = literal else { return Ok(()) };
    let text = text.clone();
    let built = RegexBuilder::new(&text).size_limit(PATTERN_BYTES_MAX).build();
    let regex = built.map_err(|error| format!("invalid matches argument: {error}"))?;
    *literal = Ext::Pattern(regex, text).into();
    Ok(())
}

fn unwrapped(ty: &Type) -> Type {
    match ty {
        Type::Optional(of) => (**of).clone(),
        other => other.clone(),
    }
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Ext(_) => Type::String,
        other => Type::plain(other.type_name()).unwrap_or(Type::Dyn),
    }
}

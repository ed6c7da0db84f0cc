//! From tokens to a tree.

use super::Issue;
use super::ast::{Call, Expr, Node};
use super::lex::{Token, What, tokens};
use super::macros;
use super::types::RESERVED;
use super::value::Value;

/// Nesting of parentheses, lists, calls: far above honest expressions, safe on any thread's stack.
const NESTING_MAX: usize = 60;
/// Height of the tree, which chains of operators raise too.
const HEIGHT_MAX: u16 = 250;

/// Binary operators by how tightly they bind, loosest first. `&&` and `||` are not among them.
const RELATIONS: &[&str] = &["==", "!=", "<", "<=", ">", ">="];
const SUMS: &[&str] = &["+", "-"];
const PRODUCTS: &[&str] = &["*", "/", "%"];

pub struct Parser {
    tokens: Vec<Token>,
    next: usize,
    nesting: usize,
}

/// The tree of an expression.
pub fn parse(text: &str) -> Result<Node, Issue> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, nesting: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        What::End => Ok(node),
        _ => parser.unexpected("<EOF>"),
    }
}

/// A call of a function or operator.
pub fn call(name: impl Into<String>, args: Vec<Node>) -> Expr {
    Expr::Call(Call { name: name.into(), member: false, args, overloads: &[] })
}

/// A node above these; its height is bounded.
pub fn node(at: u32, expr: Expr) -> Result<Node, Issue> {
    let mut height = 0;
    each_child(&expr, &mut |n| height = height.max(n.height));
    if height >= HEIGHT_MAX {
        return Err(Issue { at, message: format!("expression recursion limit exceeded: {HEIGHT_MAX}") });
    }
    Ok(Node { at, height: height + 1, expr })
}

fn each_child(expr: &Expr, f: &mut dyn FnMut(&Node)) {
    match expr {
        Expr::Literal(_) | Expr::Ident(_) => {}
        Expr::Select { of, .. } | Expr::Has { of, .. } => f(of),
        Expr::Call(call) => call.args.iter().for_each(f),
        Expr::And(all) | Expr::Or(all) => all.iter().for_each(f),
        Expr::If(parts) => parts.iter().for_each(f),
        Expr::List(items) => items.iter().for_each(|(_, n)| f(n)),
        Expr::Map(entries) => entries.iter().for_each(|(_, k, v)| {
            f(k);
            f(v);
        }),
        Expr::Message { fields, .. } => fields.iter().for_each(|(_, _, n)| f(n)),
        Expr::Fold(fold) => {
            f(&fold.range);
            f(&fold.body);
            fold.filter.iter().for_each(f);
        }
        Expr::Bind { value: a, body: b, .. } | Expr::OptMap { of: a, body: b, .. } => {
            f(a);
            f(b);
        }
    }
}

impl Parser {
    fn peek(&self) -> &What {
        &self.tokens[self.next].what
    }

    fn at(&self) -> u32 {
        self.tokens[self.next].at
    }

    fn take(&mut self) -> What {
        let what = self.peek().clone();
        if what != What::End {
            self.next += 1;
        }
        what
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), What::Sign(s) if *s == sign)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), Issue> {
        if self.eat(sign) { Ok(()) } else { self.unexpected(&format!("'{sign}'")) }
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, Issue> {
        let found = match self.peek() {
            What::End => "<EOF>".to_string(),
            What::Sign(sign) => (*sign).to_string(),
            What::Ident(name) | What::Quoted(name) => name.clone(),
            What::Int(n) | What::Uint(n) => n.to_string(),
            What::Double(d) => d.to_string(),
            What::String(s) => format!("{s:?}"),
            What::Bytes(_) => "b\"…\"".to_string(),
        };
        let message = format!("Syntax error: mismatched input '{found}' expecting {wanted}");
        Err(Issue { at: self.at(), message })
    }

    fn expression(&mut self) -> Result<Node, Issue> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            let message = format!("expression recursion limit exceeded: {NESTING_MAX}");
            return Err(Issue { at: self.at(), message });
        }
        let condition = self.either()?;
        let at = self.at();
        let whole = if self.eat("?") {
            let yes = self.either()?;
            self.expect(":")?;
            let no = self.expression()?;
            node(at, Expr::If(Box::new([condition, yes, no])))
        } else {
            Ok(condition)
        };
        self.nesting -= 1;
        whole
    }

    fn either(&mut self) -> Result<Node, Issue> {
        let first = self.both()?;
        let at = self.at();
        let mut all = vec![first];
        while self.eat("||") {
            all.push(self.both()?);
        }
        if all.len() > 1 { node(at, Expr::Or(all)) } else { Ok(all.remove(0)) }
    }

    fn both(&mut self) -> Result<Node, Issue> {
        let first = self.relation()?;
        let at = self.at();
        let mut all = vec![first];
        while self.eat("&&") {
            all.push(self.relation()?);
        }
        if all.len() > 1 { node(at, Expr::And(all)) } else { Ok(all.remove(0)) }
    }

    fn relation(&mut self) -> Result<Node, Issue> {
        let mut left = self.sum()?;
        loop {
            let at = self.at();
            let name = match self.peek() {
                What::Sign(sign) if RELATIONS.contains(sign) => format!("_{sign}_"),
                What::Ident(name) if name == "in" => "@in".to_string(),
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.sum()?;
            left = node(at, call(name, vec![left, right]))?;
        }
    }

    fn sum(&mut self) -> Result<Node, Issue> {
        let mut left = self.product()?;
        while let Some((at, name)) = self.operator(SUMS) {
            let right = self.product()?;
            left = node(at, call(name, vec![left, right]))?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Node, Issue> {
        let mut left = self.unary()?;
        while let Some((at, name)) = self.operator(PRODUCTS) {
            let right = self.unary()?;
            left = node(at, call(name, vec![left, right]))?;
        }
        Ok(left)
    }

    fn operator(&mut self, among: &[&str]) -> Option<(u32, String)> {
        let at = self.at();
        let What::Sign(sign) = self.peek() else { return None };
        let name = among.contains(sign).then(|| format!("_{sign}_"))?;
        self.next += 1;
        Some((at, name))
    }

    /// Pairs of equal signs cancel out, as in CEL's grammar.
    fn unary(&mut self) -> Result<Node, Issue> {
        let at = self.at();
        for (sign, name) in [("!", "!_"), ("-", "-_")] {
            let mut count = 0;
            while self.eat(sign) {
                count += 1;
            }
            if count == 0 {
                continue;
            }
            if sign == "-" && count % 2 == 1 && matches!(self.peek(), What::Int(_) | What::Double(_)) {
                return self.member(true);
            }
            let operand = self.member(false)?;
            return if count % 2 == 0 { Ok(operand) } else { node(at, call(name, vec![operand])) };
        }
        self.member(false)
    }

    fn member(&mut self, negative: bool) -> Result<Node, Issue> {
        let mut of = self.primary(negative)?;
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.eat("?");
                let at_name = self.at();
                let name = self.selector()?;
                of = if !optional && self.is("(") {
                    self.next += 1;
                    let args = self.arguments(")")?;
                    macros::member(at_name, of, name, args)?
                } else {
                    node(at, Expr::Select { of: Box::new(of), field: name, optional })?
                };
            } else if self.eat("[") {
                let name = if self.eat("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                of = node(at, call(name, vec![of, index]))?;
            } else if self.is("{")
                && let Some(name) = path(&of)
            {
                self.next += 1;
                of = self.message(at, name)?;
            } else {
                return Ok(of);
            }
        }
    }

    fn selector(&mut self) -> Result<String, Issue> {
        match self.peek() {
            What::Ident(name) if matches!(name.as_str(), "in" | "true" | "false" | "null") => {
                self.unexpected("IDENTIFIER")
            }
            What::Ident(name) => {
                let name = name.clone();
                self.next += 1;
                Ok(name)
            }
            What::Quoted(name) => {
                let name = super::types::escape(name).unwrap_or_else(|| name.clone());
                self.next += 1;
                Ok(name)
            }
            _ => self.unexpected("IDENTIFIER"),
        }
    }

    /// Expressions up to the closing sign; a comma may stand before it in lists.
    fn arguments(&mut self, close: &str) -> Result<Vec<Node>, Issue> {
        let mut all = Vec::new();
        while !self.eat(close) {
            if !all.is_empty() {
                self.expect(",")?;
            }
            all.push(self.expression()?);
        }
        Ok(all)
    }

    fn message(&mut self, at: u32, name: String) -> Result<Node, Issue> {
        let mut fields = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let field = self.selector()?;
            self.expect(":")?;
            fields.push((optional, field, self.expression()?));
            if !self.eat(",") && !self.is("}") {
                return self.unexpected("'}'");
            }
        }
        node(at, Expr::Message { name, fields })
    }

    fn primary(&mut self, negative: bool) -> Result<Node, Issue> {
        let at = self.at();
        let begin = self.next;
        let literal = |value: Value| node(at, Expr::Literal(value));
        match self.take() {
            What::Int(n) => {
                let n = if negative { -i128::from(n) } else { i128::from(n) };
                match i64::try_from(n) {
                    Ok(n) => literal(Value::Int(n)),
                    Err(_) => Err(Issue { at, message: "Syntax error: invalid int literal".into() }),
                }
            }
            What::Uint(n) => literal(Value::Uint(n)),
            What::Double(d) => literal(Value::Double(if negative { -d } else { d })),
            What::String(text) => literal(text.into()),
            What::Bytes(bytes) => literal(Value::Bytes(bytes.into())),
            What::Ident(name) => match name.as_str() {
                "true" => literal(Value::Bool(true)),
                "false" => literal(Value::Bool(false)),
                "null" => literal(Value::Null),
                _ => self.named(at, name),
            },
            What::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            What::Sign("[") => self.list(at),
            What::Sign("{") => self.map(at),
            What::Sign(".") => self.primary(false),
            _ => {
                self.next = begin;
                self.unexpected("{'[', '{', '(', '.', '-', '!', IDENTIFIER, literal}")
            }
        }
    }

    fn named(&mut self, at: u32, name: String) -> Result<Node, Issue> {
        if RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        if self.eat("(") {
            let args = self.arguments(")")?;
            return macros::global(at, name, args);
        }
        node(at, Expr::Ident(name))
    }

    fn list(&mut self, at: u32) -> Result<Node, Issue> {
        let mut items = Vec::new();
        while !self.eat("]") {
            let optional = self.eat("?");
            items.push((optional, self.expression()?));
            if !self.eat(",") && !self.is("]") {
                return self.unexpected("']'");
            }
        }
        node(at, Expr::List(items))
    }

    fn map(&mut self, at: u32) -> Result<Node, Issue> {
        let mut entries = Vec::new();
        while !self.eat("}") {
            let optional = self.eat("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((optional, key, self.expression()?));
            if !self.eat(",") && !self.is("}") {
                return self.unexpected("'}'");
            }
        }
        node(at, Expr::Map(entries))
    }
}

/// `a.b.c` as one name.
pub fn path(of: &Node) -> Option<String> {
    match &of.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select { of, field, optional: false } => Some(format!("{}.{field}", path(of)?)),
        _ => None,
    }
}

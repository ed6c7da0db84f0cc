//! The tree of an expression, macros already expanded into their own nodes.

use super::table::Overload;
use super::value::Value;

/// A part of an expression.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins, in characters.
    pub at: u32,
    /// Height of the tree below, for the bound on recursion.
    pub height: u16,
    /// What it is.
    pub expr: Expr,
}

/// What a part is.
#[derive(Clone, Debug)]
pub enum Expr {
    /// A constant.
    Literal(Value),
    /// A variable.
    Ident(String),
    /// `of.field`, or `of.?field`.
    Select { of: Box<Node>, field: String, optional: bool },
    /// `has(of.field)`.
    Has { of: Box<Node>, field: String },
    /// A function or operator; a member function's receiver is its first argument.
    Call(Call),
    /// `a && b && …`
    And(Vec<Node>),
    /// `a || b || …`
    Or(Vec<Node>),
    /// `a ? b : c`
    If(Box<[Node; 3]>),
    /// `[a, ?b]`; true marks optional items.
    List(Vec<(bool, Node)>),
    /// `{a: b, ?c: d}`
    Map(Vec<(bool, Node, Node)>),
    /// `Name{a: b}`
    Message { name: String, fields: Vec<(bool, String, Node)> },
    /// A macro that walks a list or map.
    Fold(Box<Fold>),
    /// `cel.bind(name, value, body)`
    Bind { name: String, value: Box<Node>, body: Box<Node> },
    /// `of.optMap(name, body)`; flat: the body is an optional itself.
    OptMap { of: Box<Node>, name: String, body: Box<Node>, flat: bool },
}

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// As written; operators are `_+_` and the like.
    pub name: String,
    /// Is the first argument a receiver?
    pub member: bool,
    /// The arguments.
    pub args: Vec<Node>,
    /// What may be meant, filled in by the checker.
    pub overloads: &'static [Overload],
}

/// What a walk makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    All,
    Exists,
    ExistsOne,
    /// A list of the body's values.
    Map,
    /// The items for which the body holds.
    Filter,
    /// The list sorted by the body's values.
    SortBy,
    /// A list of the body's values (two variables).
    TransformList,
    /// A map of the same keys and the body's values.
    TransformMap,
    /// A map of the entries of the body's maps.
    TransformMapEntry,
}

/// A macro that walks.
#[derive(Clone, Debug)]
pub struct Fold {
    pub walk: Walk,
    pub range: Node,
    pub first: String,
    pub second: Option<String>,
    pub filter: Option<Node>,
    pub body: Node,
}

//! Macros: calls that bind variables or look at fields, so that their arguments are not evaluated as they stand.

use super::Issue;
use super::ast::{Call, Expr, Fold, Node, Walk};
use super::parse::{call, node};

/// `f(…)`.
pub fn global(at: u32, name: String, mut args: Vec<Node>) -> Result<Node, Issue> {
    if name == "has" && args.len() == 1 {
        let expr = match args.remove(0).expr {
            Expr::Select { of, field, optional: false } => Expr::Has { of, field },
            _ => return Err(Issue { at, message: "invalid argument to has() macro".into() }),
        };
        return node(at, expr);
    }
    node(at, call(name, args))
}

/// Name, number of arguments, number of variables among them, what it makes. One more argument than variables and
/// body is a filter before the body.
const WALKS: &[(&str, usize, usize, Walk)] = &[
    ("all", 2, 1, Walk::All),
    ("all", 3, 2, Walk::All),
    ("exists", 2, 1, Walk::Exists),
    ("exists", 3, 2, Walk::Exists),
    ("exists_one", 2, 1, Walk::ExistsOne),
    ("exists_one", 3, 2, Walk::ExistsOne),
    ("existsOne", 2, 1, Walk::ExistsOne),
    ("existsOne", 3, 2, Walk::ExistsOne),
    ("map", 2, 1, Walk::Map),
    ("map", 3, 1, Walk::Map),
    ("filter", 2, 1, Walk::Filter),
    ("sortBy", 2, 1, Walk::SortBy),
    ("transformList", 3, 2, Walk::TransformList),
    ("transformList", 4, 2, Walk::TransformList),
    ("transformMap", 3, 2, Walk::TransformMap),
    ("transformMap", 4, 2, Walk::TransformMap),
    ("transformMapEntry", 3, 2, Walk::TransformMapEntry),
    ("transformMapEntry", 4, 2, Walk::TransformMapEntry),
];

/// `of.f(…)`.
pub fn member(at: u32, of: Node, name: String, mut args: Vec<Node>) -> Result<Node, Issue> {
    if let Some((_, count, variables, walk)) = WALKS.iter().find(|w| w.0 == name && w.1 == args.len()) {
        return walked(at, of, args, (*count, *variables, *walk));
    }
    let variable = |n: &Node| match &n.expr {
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err(Issue { at: n.at, message: "argument must be a simple name".into() }),
    };
    match (name.as_str(), args.len(), &of.expr) {
        ("bind", 3, Expr::Ident(space)) if space == "cel" => {
            let (body, value) = (args.remove(2), args.remove(1));
            let name = variable(&args[0])?;
            node(at, Expr::Bind { name, value: Box::new(value), body: Box::new(body) })
        }
        ("optMap" | "optFlatMap", 2, _) => {
            let body = Box::new(args.remove(1));
            let variable = variable(&args[0])?;
            let flat = name == "optFlatMap";
            node(at, Expr::OptMap { of: Box::new(of), name: variable, body, flat })
        }
        // Any number of arguments: they become one list.
        ("greatest" | "least", _, Expr::Ident(space)) if space == "math" => {
            let name = format!("math.@{name}");
            let items = match args.as_slice() {
                [Node { expr: Expr::List(_), .. }] => args.remove(0),
                _ => node(at, Expr::List(args.into_iter().map(|a| (false, a)).collect()))?,
            };
            node(at, call(name, vec![items]))
        }
        _ => {
            args.insert(0, of);
            node(at, Expr::Call(Call { name, member: true, args, overloads: &[] }))
        }
    }
}

fn walked(
    at: u32,
    range: Node,
    mut args: Vec<Node>,
    (count, variables, walk): (usize, usize, Walk),
) -> Result<Node, Issue> {
    let mut names = Vec::new();
    for arg in args.drain(..variables) {
        match arg.expr {
            Expr::Ident(name) => names.push(name),
            _ => return Err(Issue { at: arg.at, message: "argument must be a simple name".into() }),
        }
    }
    if names.len() == 2 && names[0] == names[1] {
        return Err(Issue { at, message: format!("duplicate variable name: {}", names[0]) });
    }
    let filter = (count == variables + 2).then(|| args.remove(0));
    let body = args.remove(0);
    let second = (variables == 2).then(|| names.remove(1));
    let first = names.remove(0);
    node(at, Expr::Fold(Box::new(Fold { walk, range, first, second, filter, body })))
}

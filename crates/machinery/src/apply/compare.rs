//! What two objects differ in, and what one object holds, as field sets.

use super::set::{self, Node, make};
use super::shape::{EMPTY, Items, Shape, Spot};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The paths in which an object differs from an older one.
#[derive(Debug, Default)]
pub struct Comparison {
    /// New paths.
    pub added: Node,
    /// Paths with another value.
    pub modified: Node,
    /// Paths that are gone.
    pub removed: Node,
}

impl Comparison {
    /// Is there no difference?
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

const ADDED: usize = 0;
const MODIFIED: usize = 1;
const REMOVED: usize = 2;

/// One node for each of the three sets.
#[derive(Default)]
struct Marks([Option<Node>; 3]);

impl Marks {
    fn leaf(which: usize) -> Self {
        let mut marks = Marks::default();
        marks.0[which] = Some(Node::new());
        marks
    }

    /// Makes the path itself a member of one set.
    fn and_self(mut self, which: usize) -> Self {
        self.0[which] = make(self.0[which].take().unwrap_or_default(), true);
        self
    }
}

/// Compares `new` with `old` (nothing: a new object, which upstream compares with an empty one).
pub fn compare(root: Spot<'_>, old: Option<&Value>, new: &Value) -> Comparison {
    let Marks(sets) = walk(root, Some(old.unwrap_or(&EMPTY)), Some(new));
    let [added, modified, removed] = sets.map(Option::unwrap_or_default);
    Comparison { added, modified, removed }
}

fn walk(spot: Spot<'_>, old: Option<&Value>, new: Option<&Value>) -> Marks {
    if old == new {
        return Marks::default();
    }
    let leaf = || match (old, new) {
        (None, _) => Marks::leaf(ADDED),
        (_, None) => Marks::leaf(REMOVED),
        _ => Marks::leaf(MODIFIED),
    };
    let shape = spot.shape([old, new]);
    let children = match &shape {
        Shape::Leaf => return leaf(),
        Shape::Struct(_) | Shape::Map(_) => {
            let (o, n) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            if o.is_none_or(Node::is_empty) && n.is_none_or(Node::is_empty) {
                return leaf();
            }
            entries(&spot, &shape, [old, new])
        }
        Shape::Items(list) => {
            let (o, n) = (items_of(old), items_of(new));
            if o.is_empty() && n.is_empty() {
                return leaf();
            }
            items(list, o, n)
        }
    };
    let mut at = 0;
    Marks(children.map(|below| {
        let member = (at == ADDED && old.is_none()) || (at == REMOVED && new.is_none());
        at += 1;
        make(below, member)
    }))
}

/// Hangs marks below a parent.
fn hang(below: &mut [Node; 3], element: impl Fn() -> String, marks: Marks) {
    for (set, node) in below.iter_mut().zip(marks.0) {
        if let Some(node) = node {
            set.insert(element(), node.into());
        }
    }
}

fn entries<'a>(spot: &Spot<'a>, shape: &Shape<'a>, values: [Option<&Value>; 2]) -> [Node; 3] {
    let mut below = <[Node; 3]>::default();
    let [old, new] = values.map(|v| v.and_then(Value::as_object));
    let only_old = old.into_iter().flatten().filter(|(name, _)| new.is_none_or(|n| !n.contains_key(*name)));
    for (name, _) in new.into_iter().flatten().chain(only_old) {
        let Some(inner) = shape.entry(spot, name) else { continue };
        let [o, n] = [(old, values[0]), (new, values[1])].map(|(map, parent)| {
            map.and_then(|m| m.get(name)).or_else(|| inner.missing().filter(|_| parent.is_some()))
        });
        hang(&mut below, || set::field(name), walk(inner, o, n));
    }
    below
}

fn items_of(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn items(list: &Items<'_>, old: &[Value], new: &[Value]) -> [Node; 3] {
    let mut by_element: BTreeMap<String, [Vec<&Value>; 2]> = BTreeMap::new();
    for (side, values) in [old, new].into_iter().enumerate() {
        for item in values {
            if let Ok(element) = list.element(item) {
                by_element.entry(element).or_default()[side].push(item);
            }
        }
    }
    let mut below = <[Node; 3]>::default();
    for (element, [old, new]) in by_element {
        let marks = match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => walk(list.spot, old.first().copied(), new.first().copied()),
            ([_, _, ..], [_, _, ..]) if old == new => Marks::default(),
            ([_, _, ..], [_, _, ..]) => Marks::leaf(MODIFIED),
            // Items of one name have but a marker for them all.
            ([_, _, ..], []) => Marks::leaf(REMOVED),
            ([_, _, ..], [item]) => walk(list.spot, None, Some(item)).and_self(REMOVED),
            ([], _) => Marks::leaf(ADDED),
            ([item], _) => walk(list.spot, Some(item), None).and_self(ADDED),
        };
        hang(&mut below, || element.clone(), marks);
    }
    below
}

/// The set of everything that `value` holds.
pub fn field_set(root: Spot<'_>, value: &Value) -> Node {
    held(root, value).0
}

/// What is below a value, and whether it counts itself.
fn held(spot: Spot<'_>, value: &Value) -> (Node, bool) {
    let mut below = Node::new();
    let shape = spot.shape([Some(value), None]);
    match &shape {
        Shape::Leaf => return (below, true),
        Shape::Struct(_) | Shape::Map(_) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                let Some(inner) = shape.entry(&spot, name) else { continue };
                let (node, counts) = held(inner, value);
                let empty = value.is_null() || value.as_object().is_some_and(Node::is_empty);
                if let Some(node) = make(node, counts || empty || inner.is_entry()) {
                    below.insert(set::field(name), node.into());
                }
            }
        }
        Shape::Items(list) => {
            let mut twice = BTreeSet::new();
            for item in items_of(Some(value)) {
                let Ok(element) = list.element(item) else { continue };
                if below.contains_key(&element) {
                    twice.insert(element);
                } else if let Some(node) = make(held(list.spot, item).0, true) {
                    below.insert(element, node.into());
                }
            }
            for element in twice {
                below.insert(element, Node::new().into());
            }
        }
    }
    (below, false)
}

/// Adds to the set the structures on the way to its members: alone among parents they are no members of their own.
pub fn with_structures(spot: Spot<'_>, set: &mut Node) {
    let shape = spot.shape([Some(&EMPTY), None]);
    let elements: Vec<String> =
        set::children(set).filter(|(_, n)| !n.is_empty()).map(|(e, _)| e.clone()).collect();
    for element in elements {
        let Some(inner) = shape.behind(&spot, &element) else { continue };
        let named = matches!(shape, Shape::Struct(_));
        set::change(set, &element, |below, was| {
            with_structures(inner, below);
            was || named
        });
    }
}

//! Field sets: a sorted trie of path elements, kept in the very form that `fieldsV1` has on the wire.
//!
//! A node is a JSON object whose keys are elements (`f:name`, `k:{"name":"a"}`, `v:1`, `i:0`). The path to a node is
//! a member of the set when the node is empty or has the key `.`. So a stored set needs no decoding, and an
//! operation costs no more than the smaller set. Invariants: no node holds a lone `.`; the root is no member.
//! (The trie sorts keyed elements by their text, upstream by their values: seen only in the order of JSON keys.)

use serde_json::{Map, Value};

/// A node of the trie, or a whole set when it is a root.
pub type Node = Map<String, Value>;

const SELF: &str = ".";

/// Is the path to this node in the set?
pub fn is_member(node: &Node) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

/// The node with these children; `None` when nothing is left of it.
pub fn make(mut children: Node, member: bool) -> Option<Node> {
    if children.is_empty() {
        return member.then_some(children);
    }
    if member {
        children.insert(SELF.into(), Node::new().into());
    }
    Some(children)
}

/// The element of a field or map key.
pub fn field(name: &str) -> String {
    ["f:", name].concat()
}

/// Elements and nodes below.
pub fn children(node: &Node) -> impl Iterator<Item = (&String, &Node)> {
    node.iter().filter(|(key, _)| *key != SELF).filter_map(|(key, node)| Some((key, node.as_object()?)))
}

/// Edits one child: `edit` gets its children and whether it was a member, and says whether it is one now.
pub fn change(set: &mut Node, key: &str, edit: impl FnOnce(&mut Node, bool) -> bool) {
    let Some(node) = set.get_mut(key).and_then(Value::as_object_mut) else { return };
    let was = is_member(node);
    node.remove(SELF);
    let member = edit(node, was);
    match (node.is_empty(), member) {
        (true, false) => drop(set.remove(key)),
        (false, true) => drop(node.insert(SELF.into(), Node::new().into())),
        _ => {}
    }
}

/// Adds the members of `b`.
pub fn unite(a: &mut Node, b: &Node) {
    for (key, node) in children(b) {
        if a.contains_key(key) {
            change(a, key, |below, was| {
                unite(below, node);
                was || is_member(node)
            });
        } else {
            a.insert(key.clone(), node.clone().into());
        }
    }
}

/// Removes the members of `b`; what is below them stays.
pub fn subtract(a: &mut Node, b: &Node) {
    for (key, node) in children(b) {
        change(a, key, |below, was| {
            subtract(below, node);
            was && !is_member(node)
        });
    }
}

/// Removes the members of `b` with everything below them.
pub fn subtract_deep(a: &mut Node, b: &Node) {
    for (key, node) in children(b) {
        if is_member(node) {
            a.remove(key);
            continue;
        }
        change(a, key, |below, was| {
            subtract_deep(below, node);
            was
        });
    }
}

/// The members of both.
pub fn intersection(a: &Node, b: &Node) -> Node {
    let mut both = Node::new();
    for (key, node) in children(a) {
        let Some(other) = b.get(key).and_then(Value::as_object) else { continue };
        let member = is_member(node) && is_member(other);
        if let Some(node) = make(intersection(node, other), member) {
            both.insert(key.clone(), node.into());
        }
    }
    both
}

/// The set of these field paths (`/metadata/labels`).
pub fn of_fields(pointers: &[&str]) -> Node {
    let mut set = Node::new();
    for pointer in pointers {
        let mut path = Node::new();
        for name in pointer.split('/').skip(1).collect::<Vec<_>>().into_iter().rev() {
            path = Node::from_iter([(field(name), path.into())]);
        }
        unite(&mut set, &path);
    }
    set
}

/// Every member as upstream writes paths (`.spec.containers[name="a"].image`), in upstream's order: at each level
/// the members first.
pub fn paths(set: &Node) -> Vec<String> {
    let mut all = Vec::new();
    collect(set, &mut String::new(), &mut all);
    all
}

fn collect(set: &Node, prefix: &mut String, all: &mut Vec<String>) {
    for (key, _) in children(set).filter(|(_, node)| is_member(node)) {
        all.push(format!("{prefix}{}", element_text(key)));
    }
    for (key, node) in children(set) {
        let length = prefix.len();
        prefix.push_str(&element_text(key));
        collect(node, prefix, all);
        prefix.truncate(length);
    }
}

/// An element as messages show it.
pub fn element_text(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("", element));
    match kind {
        "k" => {
            let keys: Node = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

/// Reads a set that a client sent, writing its elements canonically; `None` when it is no set.
pub fn parse(given: &Node) -> Option<Node> {
    let mut set = Node::new();
    for (key, value) in given {
        let below = value.as_object()?;
        if key == SELF {
            continue;
        }
        let (kind, rest) = key.split_once(':')?;
        let element = match kind {
            "f" => key.clone(),
            "k" => format!("k:{}", Value::Object(serde_json::from_str(rest).ok()?)),
            "v" => format!("v:{}", serde_json::from_str::<Value>(rest).ok()?),
            "i" => format!("i:{}", rest.parse::<u64>().ok()?),
            _ => return None,
        };
        if let Some(node) = make(parse(below)?, is_member(below)) {
            set.insert(element, node.into());
        }
    }
    Some(set)
}

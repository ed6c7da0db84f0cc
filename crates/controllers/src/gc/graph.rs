//! Who owns whom: UIDs, places and owner references of every object, and nothing else of them. Pure.
//!
//! Invariants: an object stands here under its UID, so that a new one of the same name is another object; nothing is
//! asked for before every resource has been listed once ([`Graph::complete`]), because an owner that is missing
//! may only not have been seen yet.

use client::{Object, ObjectKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Finalizer of foreground deletion: dependents that block go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning: dependents are let go first.
pub const ORPHAN: &str = "orphan";

/// A UID in 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Uid(u128);

impl Uid {
    /// Of its text. Text that is no UUID (only hand-made references have such) is hashed.
    pub fn of(text: &str) -> Uid {
        let hex = || u128::from_str_radix(&text.replace('-', ""), 16).ok();
        Uid(Some(text).filter(|t| t.len() == 36).and_then(|_| hex()).unwrap_or_else(|| fnv(text)))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// FNV-1a, 128 bits.
fn fnv(text: &str) -> u128 {
    let step = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, step)
}

/// How far an object's deletion is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nobody deletes it.
    Alive,
    /// It is going and keeps nobody.
    Going,
    /// It goes after its dependents.
    Foreground,
    /// It goes after letting its dependents go.
    Orphaning,
}

/// One owner reference.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Owner {
    uid: Uid,
    blocks: bool,
}

/// What is known of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Index of its resource in the collector's list.
    pub resource: u16,
    /// Namespace and name.
    pub key: ObjectKey,
    /// How far its deletion is.
    pub state: State,
    owners: Box<[Owner]>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta {
    uid: String,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<HeadOwner>>,
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HeadOwner {
    uid: String,
    block_owner_deletion: Option<bool>,
}

impl Node {
    /// Reads an object without leaving anything decoded in it.
    pub fn read(resource: u16, object: &Object) -> (Uid, Node) {
        let HeadMeta { uid, finalizers, owner_references, deletion_timestamp } =
            serde_json::from_slice::<Head>(&object.raw).unwrap_or_default().metadata;
        let finalizers = finalizers.unwrap_or_default();
        let state = state_of(deletion_timestamp.is_some(), &finalizers);
        let owners = owner_references.unwrap_or_default().into_iter();
        let owners =
            owners.map(|o| Owner { uid: Uid::of(&o.uid), blocks: o.block_owner_deletion == Some(true) });
        (Uid::of(&uid), Node { resource, key: object.key.clone(), state, owners: owners.collect() })
    }
}

/// How far the deletion of an object with these finalizers is.
pub fn state_of(deleting: bool, finalizers: &[String]) -> State {
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    match deleting {
        false => State::Alive,
        true if has(ORPHAN) => State::Orphaning,
        true if has(FOREGROUND) => State::Foreground,
        true => State::Going,
    }
}

/// The index. What its methods return is what should be looked at now.
#[derive(Default)]
pub struct Graph {
    nodes: BTreeMap<Uid, Node>,
    dependents: BTreeMap<Uid, BTreeSet<Uid>>,
    complete: bool,
}

impl Graph {
    /// The object of that UID.
    pub fn get(&self, uid: Uid) -> Option<&Node> {
        self.nodes.get(&uid)
    }

    /// The objects that name it as an owner.
    pub fn dependents(&self, uid: Uid) -> impl Iterator<Item = (Uid, &Node)> {
        let uids = self.dependents.get(&uid).into_iter().flatten();
        uids.filter_map(|d| Some((*d, self.nodes.get(d)?)))
    }

    /// Those of them that it waits for when it is deleted in the foreground.
    pub fn blocking(&self, uid: Uid) -> impl Iterator<Item = (Uid, &Node)> {
        self.dependents(uid).filter(move |(_, node)| node.owners.iter().any(|o| o.uid == uid && o.blocks))
    }

    /// Every resource has been listed: from now on missing owners mean something.
    pub fn complete(&mut self) -> Vec<Uid> {
        self.complete = true;
        let all: Vec<Uid> = self.nodes.keys().copied().collect();
        all.into_iter().filter(|uid| self.concerns_us(*uid)).collect()
    }

    /// A resource that was not watched before has been listed: owners that were not known may be there now, or never
    /// have been.
    pub fn look_again(&self) -> Vec<Uid> {
        let all = if self.complete { self.nodes.keys().copied().collect() } else { Vec::new() };
        all.into_iter().filter(|uid| self.concerns_us(*uid)).collect()
    }

    /// An owner may be gone or on its way, or it is the object itself that waits for us.
    fn concerns_us(&self, uid: Uid) -> bool {
        let Some(node) = self.nodes.get(&uid) else { return false };
        let waits = matches!(node.state, State::Foreground | State::Orphaning);
        waits || node.owners.iter().any(|owner| !self.is_solid(owner, node))
    }

    fn is_solid(&self, owner: &Owner, of: &Node) -> bool {
        self.nodes.get(&owner.uid).is_some_and(|o| {
            o.state != State::Foreground
                && (o.key.namespace.is_empty() || o.key.namespace == of.key.namespace)
        })
    }

    /// A new or changed object.
    pub fn put(&mut self, uid: Uid, node: Node) -> Vec<Uid> {
        let old = self.nodes.get(&uid);
        if old == Some(&node) {
            return Vec::new();
        }
        let was = old.map(|o| o.state);
        let before = old.map(|o| o.owners.clone()).unwrap_or_default();
        for owner in &before {
            self.unlink(owner.uid, uid);
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid).or_default().insert(uid);
        }
        let (state, now) = (node.state, node.owners.clone());
        self.nodes.insert(uid, node);
        let mut look = BTreeSet::new();
        if state == State::Foreground && was != Some(state) {
            look.extend(self.dependents(uid).map(|(d, _)| d));
        }
        let let_go = before.iter().filter(|o| !now.iter().any(|n| n.uid == o.uid && n.blocks));
        look.extend(let_go.map(|o| o.uid).filter(|o| self.waits(*o)));
        if (was != Some(state) || before != now) && self.concerns_us(uid) {
            look.insert(uid);
        }
        self.asked(look)
    }

    /// An object that is gone.
    pub fn remove(&mut self, uid: Uid) -> Vec<Uid> {
        let Some(node) = self.nodes.remove(&uid) else { return Vec::new() };
        let mut look: BTreeSet<Uid> = self.dependents(uid).map(|(d, _)| d).collect();
        for owner in &node.owners {
            self.unlink(owner.uid, uid);
            look.extend(Some(owner.uid).filter(|o| self.waits(*o)));
        }
        self.asked(look)
    }

    /// All objects of a resource, as a listing shows them.
    pub fn replace(&mut self, resource: u16, listed: BTreeMap<Uid, Node>) -> Vec<Uid> {
        let gone = self.nodes.iter().filter(|(uid, n)| n.resource == resource && !listed.contains_key(uid));
        let gone: Vec<Uid> = gone.map(|(uid, _)| *uid).collect();
        let mut look: Vec<Uid> = gone.into_iter().flat_map(|uid| self.remove(uid)).collect();
        look.extend(listed.into_iter().flat_map(|(uid, node)| self.put(uid, node)));
        look
    }

    fn waits(&self, uid: Uid) -> bool {
        self.nodes.get(&uid).is_some_and(|n| n.state == State::Foreground)
    }

    fn unlink(&mut self, owner: Uid, dependent: Uid) {
        if let Some(set) = self.dependents.get_mut(&owner) {
            set.remove(&dependent);
            if set.is_empty() {
                self.dependents.remove(&owner);
            }
        }
    }

    fn asked(&self, look: BTreeSet<Uid>) -> Vec<Uid> {
        if self.complete { look.into_iter().collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn node(name: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> (Uid, Node) {
        let owners: Vec<Value> =
            owners.iter().map(|(uid, blocks)| json!({"uid": uid, "blockOwnerDeletion": blocks})).collect();
        let mut metadata = json!({"name": name, "namespace": "n", "uid": name, "ownerReferences": owners});
        if let Some(finalizer) = finalizer {
            metadata["finalizers"] = json!([finalizer]);
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Node::read(0, &object(json!({"metadata": metadata, "spec": {"metadata": {"uid": "no"}}})))
    }

    fn put(graph: &mut Graph, name: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> Vec<Uid> {
        let (uid, node) = node(name, owners, finalizer);
        graph.put(uid, node)
    }

    fn uids<const N: usize>(names: [&str; N]) -> Vec<Uid> {
        let mut uids: Vec<Uid> = names.into_iter().map(Uid::of).collect();
        uids.sort();
        uids
    }

    #[test]
    fn uids_are_numbers() {
        assert_eq!(Uid::of("00000000-0000-0000-0000-0000000000ff"), Uid(255));
        assert_ne!(Uid::of("a"), Uid::of("b"));
        assert_ne!(Uid::of(""), Uid::of("a"));
    }

    #[test]
    fn nothing_is_asked_for_before_everything_was_seen() {
        let mut graph = Graph::default();
        assert!(put(&mut graph, "pod", &[("set", true)], None).is_empty());
        assert!(put(&mut graph, "lost", &[("gone", true)], None).is_empty());
        assert!(put(&mut graph, "set", &[], None).is_empty());
        assert_eq!(graph.complete(), uids(["lost"]));
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        graph.complete();
        put(&mut graph, "set", &[], None);
        assert!(put(&mut graph, "a", &[("set", true)], None).is_empty());
        assert!(put(&mut graph, "b", &[("set", true)], None).is_empty());
        assert_eq!(graph.remove(Uid::of("set")), uids(["a", "b"]));
        assert_eq!(put(&mut graph, "late", &[("set", true)], None), uids(["late"]));
        assert!(put(&mut graph, "late", &[("set", true)], None).is_empty(), "nothing changed");
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let mut graph = Graph::default();
        graph.complete();
        let (uid, mut owner) = node("set", &[], None);
        owner.key = ObjectKey::new("elsewhere", "set");
        graph.put(uid, owner.clone());
        assert_eq!(put(&mut graph, "a", &[("set", true)], None), uids(["a"]));
        owner.key = ObjectKey::cluster("set");
        graph.put(uid, owner);
        assert!(
            put(&mut graph, "b", &[("set", true)], None).is_empty(),
            "cluster-wide owners own everywhere"
        );
    }

    #[test]
    fn a_foreground_deletion_looks_at_dependents_then_at_the_owner() {
        let mut graph = Graph::default();
        graph.complete();
        put(&mut graph, "set", &[], None);
        put(&mut graph, "a", &[("set", true)], None);
        put(&mut graph, "free", &[("set", false)], None);
        assert_eq!(put(&mut graph, "set", &[], Some(FOREGROUND)), uids(["set", "a", "free"]));
        assert_eq!(graph.blocking(Uid::of("set")).count(), 1);
        assert_eq!(put(&mut graph, "a", &[("set", false)], None), uids(["set", "a"]), "it blocks no longer");
        assert_eq!(graph.blocking(Uid::of("set")).count(), 0);
        assert_eq!(graph.remove(Uid::of("a")), uids(["set"]));
    }

    #[test]
    fn a_listing_replaces_only_its_resource() {
        let mut graph = Graph::default();
        graph.complete();
        put(&mut graph, "set", &[], None);
        put(&mut graph, "a", &[("set", true)], None);
        let (uid, mut other) = node("other", &[], None);
        other.resource = 1;
        graph.put(uid, other);
        assert_eq!(graph.replace(0, [node("a", &[("set", true)], None)].into()), uids(["a"]));
        assert!(graph.get(uid).is_some() && graph.get(Uid::of("set")).is_none());
    }

    proptest! {
        /// The dumb twin: the nodes alone, searched.
        #[test]
        fn links_follow_the_nodes(steps in prop::collection::vec((0..6usize, prop::collection::vec((0..6usize, any::<bool>()), 0..3), 0..4u8), 1..60)) {
            const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
            let mut graph = Graph::default();
            graph.complete();
            for (which, owners, what) in steps {
                let owners: Vec<(&str, bool)> = owners.into_iter().map(|(o, b)| (NAMES[o], b)).collect();
                match what {
                    0 => drop(graph.remove(Uid::of(NAMES[which]))),
                    1 => drop(put(&mut graph, NAMES[which], &owners, Some(FOREGROUND))),
                    _ => drop(put(&mut graph, NAMES[which], &owners, None)),
                }
                for name in NAMES {
                    let uid = Uid::of(name);
                    let slow: Vec<Uid> = graph.nodes.iter()
                        .filter(|(_, n)| n.owners.iter().any(|o| o.uid == uid)).map(|(u, _)| *u).collect();
                    let fast: Vec<Uid> = graph.dependents(uid).map(|(u, _)| u).collect();
                    prop_assert_eq!(slow, fast);
                }
            }
        }
    }
}

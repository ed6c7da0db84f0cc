//! What becomes of an object whose owners are known. Pure.

use super::graph::{FOREGROUND, ORPHAN, State};
use client::{Meta, Propagation};
use std::collections::BTreeSet;

/// What one owner reference leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnerState {
    /// An owner that stays (or that cannot be judged).
    Solid,
    /// Nothing, or another object of that name.
    Absent,
    /// An owner that goes once its dependents are gone.
    Waiting,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing.
    Keep,
    /// Take away the references to these UIDs: others keep the object.
    Detach(BTreeSet<String>),
    /// Delete it.
    Delete {
        /// How.
        propagation: Propagation,
        /// First let it block none of its owners: they wait for each other in a circle.
        unblock: bool,
    },
}

/// Decides about an object with `owners`, in the order of its references, and with dependents in these states.
pub fn decide(meta: &Meta, owners: &[OwnerState], dependents: &[State]) -> Plan {
    if owners.is_empty() {
        return Plan::Keep;
    }
    let of = |state: OwnerState| owners.iter().filter(move |s| **s == state).count();
    if of(OwnerState::Solid) == owners.len() {
        return Plan::Keep;
    }
    if of(OwnerState::Solid) > 0 {
        let references = meta.owner_references.iter().zip(owners);
        let lost = references.filter(|(_, state)| **state != OwnerState::Solid);
        return Plan::Detach(lost.map(|(reference, _)| reference.uid.clone()).collect());
    }
    if of(OwnerState::Waiting) > 0 && !dependents.is_empty() {
        let unblock = dependents.contains(&State::Foreground);
        return Plan::Delete { propagation: Propagation::Foreground, unblock };
    }
    let has = |name: &str| meta.finalizers.iter().any(|f| f == name);
    let propagation = match () {
        () if has(ORPHAN) => Propagation::Orphan,
        () if has(FOREGROUND) => Propagation::Foreground,
        () => Propagation::Background,
    };
    Plan::Delete { propagation, unblock: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OwnerState::{Absent, Solid, Waiting};
    use client::OwnerRef;

    fn meta(owners: &[&str], finalizers: &[&str]) -> Meta {
        let reference = |uid: &&str| OwnerRef { uid: (*uid).into(), ..OwnerRef::default() };
        Meta {
            owner_references: owners.iter().map(reference).collect(),
            finalizers: finalizers.iter().map(|f| (*f).into()).collect(),
            ..Meta::default()
        }
    }

    fn delete(propagation: Propagation, unblock: bool) -> Plan {
        Plan::Delete { propagation, unblock }
    }

    #[test]
    fn an_object_stays_while_one_owner_does() {
        assert_eq!(decide(&meta(&[], &[]), &[], &[]), Plan::Keep);
        assert_eq!(decide(&meta(&["a", "b"], &[]), &[Solid, Solid], &[]), Plan::Keep);
        let two = meta(&["a", "b", "c"], &[]);
        assert_eq!(
            decide(&two, &[Absent, Solid, Waiting], &[State::Alive]),
            Plan::Detach(["a".to_string(), "c".to_string()].into())
        );
    }

    #[test]
    fn an_object_goes_after_its_last_owner_and_as_its_own_finalizers_say() {
        let one = |finalizers: &[&str]| meta(&["a"], finalizers);
        assert_eq!(decide(&one(&[]), &[Absent], &[State::Alive]), delete(Propagation::Background, false));
        assert_eq!(decide(&one(&[ORPHAN]), &[Absent], &[]), delete(Propagation::Orphan, false));
        assert_eq!(decide(&one(&[FOREGROUND]), &[Absent], &[]), delete(Propagation::Foreground, false));
    }

    #[test]
    fn a_waiting_owner_takes_whole_trees_along() {
        let one = meta(&["a"], &[]);
        assert_eq!(decide(&one, &[Waiting], &[]), delete(Propagation::Background, false));
        assert_eq!(decide(&one, &[Waiting], &[State::Alive]), delete(Propagation::Foreground, false));
        assert_eq!(decide(&one, &[Waiting], &[State::Foreground]), delete(Propagation::Foreground, true));
    }
}

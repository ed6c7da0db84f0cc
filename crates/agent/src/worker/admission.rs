//! Letting new pods in: asks [`crate::admit`] and carries out its ruling.

use super::{Event, Worker};
use crate::admit::{Claim, Occupant, Place, Ruling, rule};
use crate::shutdown;
use crate::state::Verdict;
use client::ObjectKey;
use futures_util::FutureExt;
use k8s_openapi::api::core::v1 as core;
use sched::NodeSpec;
use std::panic::AssertUnwindSafe;

/// The kubelet's reason and words for pods that make room.
const PREEMPTING: &str = "Preempting";
const PREEMPTED: &str = "Preempted in order to admit critical pod";

impl Worker {
    /// Asks, until there is an answer, whether a new pod fits beside those that are here. False: it must wait for
    /// others to go, and is looked at again when one of them is.
    pub(super) fn admit(&mut self, uid: &str) -> bool {
        let new = |e: &&super::Entry| !e.admitted && e.present && !e.view.deleting();
        if self.entries.get(uid).is_some_and(|e| e.waits_for_devices) {
            return false;
        }
        let Some(entry) = self.entries.get(uid).filter(new) else { return true };
        let occupants: Vec<Occupant> = self
            .entries
            .values()
            .filter(|e| e.admitted && e.holds())
            .map(|e| {
                let going = e.state.ending.is_some() || e.state.verdict.is_some() || e.view.deleting();
                Occupant { pod: &e.view, claim: &e.claim, going }
            })
            .collect();
        let others: Vec<&Claim> = occupants.iter().map(|o| o.claim).collect();
        let node = self.node.this.get(&ObjectKey::cluster(self.node.facts.node_name.as_str()));
        let node = node.and_then(|o| o.view::<core::Node>().ok()).map(|n| NodeSpec::read(&n));
        let pressure = self.node.pressure.borrow().clone();
        let place =
            Place { facts: &self.node.facts, node: node.as_ref(), pressure: &pressure, others: &others };
        let ruling = match *self.node.shutting_down.borrow() {
            true => Ruling::Refuse(shutdown::refusal()),
            false => rule(&entry.view, &entry.claim, &place, &occupants),
        };
        let waits = matches!(ruling, Ruling::Wait | Ruling::MakeRoom(_));
        if waits {
            self.crowded_out.insert(uid.to_string());
        }
        match ruling {
            Ruling::Admit | Ruling::Wait => {}
            Ruling::MakeRoom(victims) => victims.iter().for_each(|victim| self.make_go(victim)),
            Ruling::Refuse(verdict) => {
                if let Some(entry) = self.entries.get_mut(uid) {
                    self.node.recorder.rejected(&entry.view, &verdict.reason, verdict.message.clone());
                    entry.state.verdict = Some(verdict);
                }
            }
        }
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.admitted = !waits;
        }
        !waits && !self.give_devices(uid)
    }

    /// Has a pod that was let in given its devices. False: it needs none.
    fn give_devices(&mut self, uid: &str) -> bool {
        let Some(entry) = self.entries.get_mut(uid) else { return false };
        if entry.state.verdict.is_some() || !self.node.devices.wanted(&entry.view) {
            return false;
        }
        entry.waits_for_devices = true;
        let (devices, pod, sender) = (self.node.devices.clone(), entry.view.clone(), self.sender.clone());
        let holding = self.entries.iter().filter(|(_, e)| e.admitted && e.holds());
        let holding = holding.map(|(uid, _)| uid.clone()).collect();
        let uid = uid.to_string();
        self.task(async move {
            let given = AssertUnwindSafe(devices.give(pod, holding)).catch_unwind().await;
            let _ = sender.send(Event::Given(uid, given.unwrap_or_else(|_| Err("internal error".into()))));
        });
        true
    }

    /// What came of that.
    pub(super) fn given(&mut self, uid: &str, result: Result<(), String>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.waits_for_devices = false;
        if let Err(message) = result {
            let reason = "UnexpectedAdmissionError".to_string();
            self.node.recorder.rejected(&entry.view, &reason, message.clone());
            entry.state.verdict.get_or_insert(Verdict { rejected: true, reason, message, grace: 0 });
        }
        self.dirty.insert(uid.to_string());
    }

    fn make_go(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        self.node.recorder.rejected(&entry.view, PREEMPTING, PREEMPTED.into());
        let (reason, message, grace) = (PREEMPTING.into(), PREEMPTED.into(), entry.view.spec_grace());
        entry.state.verdict.get_or_insert(Verdict { rejected: false, reason, message, grace });
        self.dirty.insert(uid.to_string());
    }
}

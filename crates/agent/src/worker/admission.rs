//! Letting new pods in: asks [`crate::admit`] and carries out its ruling.

use super::{Event, Worker};
use crate::admit::{Claim, Occupant, Place, Ruling, objection, rule};
use crate::config::security::unlabelled;
use crate::cpus;
use crate::shutdown;
use crate::state::Verdict;
use crate::stats::own;
use client::ObjectKey;
use futures_util::FutureExt;
use k8s_openapi::api::core::v1 as core;
use sched::NodeSpec;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

/// The kubelet's reason and words for pods that make room.
const PREEMPTING: &str = "Preempting";
const PREEMPTED: &str = "Preempted in order to admit critical pod";

/// Ours, for options that name no domain: upstream says nothing.
const UNLABELLED: (&str, &str) =
    ("SELinuxNotEnforced", "seLinuxOptions have no effect: SELinux is not enabled on the host");

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
            // Who was deleted without grace has no claim any more, as in the kubelet: another was scheduled in its place.
            .filter(|e| e.admitted && e.present && e.holds())
            .map(|e| {
                let going = e.state.ending.is_some() || e.state.verdict.is_some() || e.view.deleting();
                Occupant { pod: &e.view, claim: &e.claim, going }
            })
            .collect();
        let others: Vec<&Claim> = occupants.iter().map(|o| o.claim).collect();
        let node = self.node.this.get(&ObjectKey::cluster(self.node.facts.node_name.as_str()));
        let node = node.and_then(|o| o.view::<core::Node>().ok()).map(|n| NodeSpec::read(&n));
        let pressure = self.node.pressure.borrow().clone();
        let place = Place {
            facts: &self.node.facts,
            node: node.as_ref(),
            pressure: &pressure,
            others: &others,
            apparmor: crate::ops::apparmor_enabled(),
            selinux: crate::ops::selinux_enabled(),
        };
        let unheard = !place.selinux && unlabelled(&entry.view).is_some();
        let ruling = match *self.node.shutting_down.borrow() {
            true => Ruling::Refuse(shutdown::refusal()),
            false => rule(&entry.view, &entry.claim, &place, &occupants),
        };
        let waits = matches!(ruling, Ruling::Wait | Ruling::MakeRoom(_));
        if waits {
            self.crowded_out.insert(uid.to_string());
        }
        match ruling {
            Ruling::Admit if unheard => {
                self.node.recorder.rejected(&entry.view, UNLABELLED.0, UNLABELLED.1.into());
            }
            Ruling::Admit | Ruling::Wait => {}
            Ruling::MakeRoom(victims) => {
                let scarce = objection(&entry.view, &entry.claim, &place).map(|v| v.reason);
                own::preempted(victims.len(), scarce.unwrap_or_default().trim_start_matches("OutOf"));
                victims.iter().for_each(|victim| self.make_go(victim));
            }
            Ruling::Refuse(verdict) => {
                own::refused(&verdict.reason);
                if let Some(entry) = self.entries.get_mut(uid) {
                    self.node.recorder.rejected(&entry.view, &verdict.reason, verdict.message.clone());
                    entry.state.verdict = Some(verdict);
                }
            }
        }
        if let Some(entry) = self.entries.get_mut(uid) {
            if !waits && entry.state.verdict.is_none() {
                own::admitted(entry.view.spec().containers.len());
            }
            entry.admitted = !waits;
        }
        !waits && !self.give_devices(uid)
    }

    /// Has a pod that was let in given its devices. False: it needs none.
    fn give_devices(&mut self, uid: &str) -> bool {
        let Some(entry) = self.entries.get_mut(uid) else { return false };
        let wanted = self.node.devices.wanted(&entry.view) || self.node.cpus.wanted(&entry.view);
        if entry.state.verdict.is_some() || !wanted {
            return false;
        }
        entry.waits_for_devices = true;
        let (node, pod, sender) = (self.node.clone(), entry.view.clone(), self.sender.clone());
        let holding = self.entries.iter().filter(|(_, e)| e.admitted && e.holds());
        let holding: BTreeSet<String> = holding.map(|(uid, _)| uid.clone()).collect();
        let uid = uid.to_string();
        self.task(async move {
            let give = async {
                node.devices.give(pod.clone(), holding.clone()).await?;
                cpus::give(&node, &pod, &holding).await
            };
            let given = AssertUnwindSafe(give).catch_unwind().await;
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

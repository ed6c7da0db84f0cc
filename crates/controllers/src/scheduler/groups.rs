//! PodGroups (where gangs are on): their pods are held back until the group is there and enough of its pods are; what came
//! of a group is written into its status.
//!
//! Deliberately not here: placing them (`sched::groups`).

use super::{Caches, Shell};
use client::{Object, ObjectKey, PatchKind, Verb, Write};
use k8s_schema::gvr;
use sched::{GroupVerdict, PodId, PodInfo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The pods of all groups.
///
/// Invariant: who is held is a member.
#[derive(Default)]
pub struct Groups {
    members: BTreeMap<PodId, BTreeSet<PodId>>,
    held: BTreeMap<PodId, BTreeMap<PodId, Arc<PodInfo>>>,
    group_of: BTreeMap<PodId, PodId>,
}

impl Groups {
    /// The pod is there, wherever.
    pub fn join(&mut self, id: &PodId, group: &PodId) {
        if self.group_of.get(id) != Some(group) {
            self.leave(id);
            self.group_of.insert(id.clone(), group.clone());
            self.members.entry(group.clone()).or_default().insert(id.clone());
        }
    }

    /// The pod is gone.
    pub fn leave(&mut self, id: &PodId) {
        let Some(group) = self.group_of.remove(id) else { return };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(id);
            if members.is_empty() {
                self.members.remove(&group);
            }
        }
        self.let_go(id, &group);
    }

    /// The pod need not be held any more.
    pub fn let_go(&mut self, id: &PodId, group: &PodId) {
        if let Some(held) = self.held.get_mut(group) {
            held.remove(id);
            if held.is_empty() {
                self.held.remove(group);
            }
        }
    }

    /// Keeps a member back.
    pub fn hold(&mut self, info: Arc<PodInfo>) {
        if let (Some(id), Some(group)) = (info.id.clone(), info.group.clone()) {
            self.held.entry(group).or_default().insert(id, info);
        }
    }

    /// Those who were kept back.
    pub fn release(&mut self, group: &PodId) -> BTreeMap<PodId, Arc<PodInfo>> {
        self.held.remove(group).unwrap_or_default()
    }

    /// All pods of a group.
    pub fn members(&self, group: &PodId) -> impl Iterator<Item = &PodId> {
        self.members.get(group).into_iter().flatten()
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.values().map(BTreeMap::len).sum()
    }
}

/// The change of a group's status; `None`: it says that already. A group that was placed once stays so for those who
/// come later.
fn status_change(group: &Value, verdict: &GroupVerdict, now: &str) -> Option<Value> {
    let (status, reason, message) = match verdict {
        GroupVerdict::Scheduled => ("True", "Scheduled", ""),
        GroupVerdict::Unschedulable(why) => ("False", "Unschedulable", why.as_str()),
        GroupVerdict::Wrong(why) => ("False", "SchedulerError", why.as_str()),
    };
    let known = group["status"]["conditions"].as_array().into_iter().flatten();
    let known = known.into_iter().find(|c| c["type"] == "PodGroupScheduled");
    if known.is_some_and(|c| {
        (c["status"] == status && c["reason"] == reason && c["message"] == message)
            || (c["status"] == "True" && status != "True")
    }) {
        return None;
    }
    let mut condition = json!({"type": "PodGroupScheduled", "status": status, "reason": reason,
        "message": message, "observedGeneration": group["metadata"]["generation"]});
    if known.is_none_or(|c| c["status"] != status) {
        condition["lastTransitionTime"] = json!(now);
    }
    Some(json!({"status": {"conditions": [condition]}}))
}

impl Shell {
    /// Writes what came of a group.
    pub(super) async fn tell_group(&self, id: &PodId, verdict: &GroupVerdict, caches: &Caches) {
        let key = ObjectKey::new(id.0.clone(), id.1.clone());
        let group = caches.groups.as_ref().and_then(|groups| groups.get(&key));
        let value = group.as_ref().and_then(|g: &Arc<Object>| g.value().ok());
        let now = machinery::time::format((self.clock)());
        let Some(patch) = value.and_then(|group| status_change(&group, verdict, &now)) else { return };
        let verb = Verb::Patch(PatchKind::Strategic, patch);
        let write = Write { gvr: gvr::POD_GROUPS, key, subresource: "status", verb };
        if let Err(error) = self.client.write(write).await {
            tracing::debug!(group = ?id, %error, "condition of the group not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placed_group_stays_placed() {
        let unplaced = GroupVerdict::Unschedulable("why".into());
        let mut group = json!({"metadata": {"generation": 1}});
        let change = status_change(&group, &unplaced, "t").unwrap();
        assert_eq!(change["status"]["conditions"][0]["lastTransitionTime"], "t");
        group["status"] = change["status"].clone();
        assert_eq!(status_change(&group, &unplaced, "u"), None);
        let other = status_change(&group, &GroupVerdict::Unschedulable("other".into()), "u").unwrap();
        assert!(other["status"]["conditions"][0].get("lastTransitionTime").is_none());
        group["status"] = status_change(&group, &GroupVerdict::Scheduled, "u").unwrap()["status"].clone();
        assert_eq!(group["status"]["conditions"][0]["reason"], "Scheduled");
        assert_eq!(status_change(&group, &unplaced, "v"), None);
    }
}

//! What to do next about a Deployment's ReplicaSets: pure, one small step at a time, as upstream takes them.

use super::model::{self, DESIRED, Deployment, MAX, NOT_COPIED, REVISION, REVISION_HISTORY, Set, Strategy};
use crate::workload;
use client::ObjectKey;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A set to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSet {
    /// The label value that tells it apart.
    pub hash: String,
    /// Its first `spec.replicas`.
    pub replicas: i64,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A change of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// resourceVersion the change was decided on.
    pub resource_version: u64,
    /// `spec.replicas`: from, to.
    pub replicas: Option<(i64, i64)>,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: Option<i64>,
    /// Annotations to set.
    pub annotations: BTreeMap<String, String>,
}

/// Status, reason and message of the Progressing condition.
pub type Progress = (&'static str, &'static str, String);

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Make the set of the present template.
    pub create: Option<NewSet>,
    /// Change these.
    pub changes: BTreeMap<ObjectKey, Change>,
    /// Delete these (key and UID).
    pub delete: Vec<(ObjectKey, String)>,
    /// The Deployment's revision annotation becomes this.
    pub revision: Option<String>,
    /// What the step itself says about progress.
    pub progress: Option<Progress>,
    /// Is progress judged at this step (not while paused, scaled or deleted)?
    pub judged: bool,
}

impl Plan {
    fn change(&mut self, set: &Set) -> &mut Change {
        let fresh = || Change { resource_version: set.resource_version, ..Change::default() };
        self.changes.entry(set.key.clone()).or_insert_with(fresh)
    }

    /// Scales a set and notes what for; is its size another afterwards?
    fn scale(&mut self, deployment: &Deployment, set: &Set, to: i64) -> bool {
        let noted = size_notes(deployment);
        let missing: Vec<_> = noted.into_iter().filter(|(k, v)| set.annotations.get(*k) != Some(v)).collect();
        if set.replicas == to && missing.is_empty() {
            return false;
        }
        let change = self.change(set);
        change.annotations.extend(missing.into_iter().map(|(k, v)| (k.to_string(), v)));
        if set.replicas != to {
            change.replicas = Some((set.replicas, to));
        }
        set.replicas != to
    }
}

fn size_notes(deployment: &Deployment) -> [(&'static str, String); 2] {
    let most = deployment.replicas + deployment.surge();
    [(DESIRED, deployment.replicas.to_string()), (MAX, most.to_string())]
}

fn total(sets: &[&Set], field: fn(&Set) -> i64) -> i64 {
    sets.iter().map(|s| field(s)).sum()
}

/// The next step. `old_pods_run` tells whether pods of old sets are left (asked for Recreate only).
pub fn decide(deployment: &Deployment, sets: &[Set], old_pods_run: bool) -> Plan {
    let mut plan = Plan::default();
    if deployment.going {
        return plan;
    }
    let (new, old) = model::split(deployment, sets);
    plan.progress = pause_told(deployment);
    let revision = old.iter().map(|s| s.revision()).max().unwrap_or(0) + 1;
    if let Some(new) = new {
        note_revision(&mut plan, deployment, new, revision);
    }
    if deployment.paused || is_scaled(deployment, sets) {
        scale_all(&mut plan, deployment, new, &old);
        if deployment.paused {
            clean_up(&mut plan, deployment, &old);
        }
        return plan;
    }
    plan.judged = true;
    let moved = match deployment.strategy {
        Strategy::Recreate => recreate(&mut plan, deployment, new, &old, old_pods_run),
        Strategy::Rolling { .. } => roll(&mut plan, deployment, new, &old),
    };
    match (moved, new) {
        (Moved::Yes, _) => {}
        (Moved::No, Some(_)) if is_complete(deployment, &deployment.status) => {
            clean_up(&mut plan, deployment, &old);
        }
        (Moved::No, Some(_)) => {}
        (Moved::No, None) => create(&mut plan, deployment, &old, revision),
    }
    plan
}

#[derive(PartialEq, Eq)]
enum Moved {
    Yes,
    No,
}

/// Pausing and resuming show in the Progressing condition, unless the rollout has failed already.
fn pause_told(deployment: &Deployment) -> Option<Progress> {
    deployment.deadline?;
    let conditions = workload::conditions_of(&deployment.status);
    let reason = workload::find_condition(&conditions, "Progressing").map(|c| c["reason"].clone());
    if reason == Some(Value::from("ProgressDeadlineExceeded")) {
        return None;
    }
    let told = reason == Some(Value::from("DeploymentPaused"));
    match (deployment.paused, told) {
        (true, false) => Some(("Unknown", "DeploymentPaused", "Deployment is paused".into())),
        (false, true) => Some(("Unknown", "DeploymentResumed", "Deployment is resumed".into())),
        _ => None,
    }
}

/// Annotations that the new set should have and lacks.
fn missing_annotations(
    deployment: &Deployment,
    present: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let copied = deployment.annotations.iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str()));
    let mut missing: BTreeMap<String, String> =
        copied.filter(|(k, v)| present.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let before: i64 = present.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0);
    if before < revision {
        missing.insert(REVISION.into(), revision.to_string());
        if before > 0 {
            let history = present.get(REVISION_HISTORY).filter(|h| !h.is_empty());
            let history = history.map_or(before.to_string(), |h| format!("{h},{before}"));
            missing.insert(REVISION_HISTORY.into(), history);
        }
    }
    missing
}

/// The new set and the Deployment carry the revision; a template that comes back gets a new one.
fn note_revision(plan: &mut Plan, deployment: &Deployment, new: &Set, revision: i64) {
    let missing = missing_annotations(deployment, &new.annotations, revision);
    if !missing.is_empty() {
        plan.change(new).annotations.extend(missing);
    }
    if new.min_ready_seconds != deployment.min_ready_seconds {
        plan.change(new).min_ready_seconds = Some(deployment.min_ready_seconds);
    }
    let revision = new.revision().max(revision).to_string();
    if deployment.annotations.get(REVISION) != Some(&revision) {
        plan.revision = Some(revision);
    }
    let conditions = workload::conditions_of(&deployment.status);
    if deployment.deadline.is_some() && workload::find_condition(&conditions, "Progressing").is_none() {
        let message = format!("Found new replica set \"{}\"", new.key.name);
        plan.progress.get_or_insert(("True", "FoundNewReplicaSet", message));
    }
}

/// Was the Deployment scaled since its sets were?
fn is_scaled(deployment: &Deployment, sets: &[Set]) -> bool {
    let mut active = sets.iter().filter(|s| s.is_active());
    active.any(|s| s.noted(DESIRED).is_some_and(|n| n != deployment.replicas))
}

/// Brings the sets to a new size without going on with the rollout: in proportion while several are active.
fn scale_all(plan: &mut Plan, deployment: &Deployment, new: Option<&Set>, old: &[&Set]) {
    let mut active: Vec<&Set> = old.iter().copied().chain(new).filter(|s| s.is_active()).collect();
    let newest = || new.or_else(|| old.iter().copied().max_by_key(|s| (s.created, s.key.clone())));
    let only = match active[..] {
        [] => newest(),
        [one] => Some(one),
        _ => None,
    };
    if let Some(only) = only {
        plan.scale(deployment, only, deployment.replicas);
        return;
    }
    if new.is_some_and(|n| is_saturated(deployment, n)) {
        for set in old.iter().filter(|s| s.is_active()) {
            plan.scale(deployment, set, 0);
        }
        return;
    }
    if deployment.strategy == Strategy::Recreate || active.is_empty() {
        return;
    }
    let allowed = if deployment.replicas > 0 { deployment.replicas + deployment.surge() } else { 0 };
    let to_add = allowed - total(&active, |s| s.replicas);
    active.sort_by_key(|s| (Reverse(s.replicas), s.created, s.key.clone()));
    if to_add > 0 {
        active.sort_by_key(|s| (Reverse(s.replicas), Reverse(s.created)));
    }
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in &active {
        let part = proportion(deployment, set, to_add, added);
        added += part;
        sizes.push(set.replicas + part);
    }
    // What rounding left over goes to the largest.
    sizes[0] = (sizes[0] + to_add - added).max(0);
    for (set, size) in active.iter().zip(sizes) {
        plan.scale(deployment, set, size);
    }
}

/// Does the new set have everything, available?
fn is_saturated(deployment: &Deployment, new: &Set) -> bool {
    let wanted = deployment.replicas;
    new.replicas == wanted && new.available == wanted && new.noted(DESIRED) == Some(wanted)
}

/// A set's share of a change in size, as its share in the Deployment was.
fn proportion(deployment: &Deployment, set: &Set, to_add: i64, added: i64) -> i64 {
    if set.replicas == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let left = to_add - added;
    let share = if deployment.replicas == 0 {
        -set.replicas
    } else {
        let most = deployment.replicas + deployment.surge();
        let before =
            set.noted(MAX).filter(|n| *n > 0).unwrap_or_else(|| deployment.reported("replicas").max(1));
        rounded(set.replicas * most, before) - set.replicas
    };
    if to_add > 0 { share.min(left) } else { share.max(left) }
}

/// A quotient of numbers that are not negative, rounded half up.
fn rounded(dividend: i64, divisor: i64) -> i64 {
    (2 * dividend + divisor) / (2 * divisor)
}

/// How many pods the new set may have now; `others` are the pods of the old ones.
fn new_size(deployment: &Deployment, new: i64, others: i64) -> i64 {
    match deployment.strategy {
        Strategy::Recreate => deployment.replicas,
        Strategy::Rolling { surge, .. } => {
            let room = deployment.replicas + surge - others - new;
            new + room.min(deployment.replicas - new).max(0)
        }
    }
}

fn create(plan: &mut Plan, deployment: &Deployment, old: &[&Set], revision: i64) {
    let hash = model::hash(&deployment.template, deployment.collisions());
    let mut annotations = missing_annotations(deployment, &BTreeMap::new(), revision);
    annotations.extend(size_notes(deployment).map(|(k, v)| (k.to_string(), v)));
    let replicas = new_size(deployment, 0, total(old, |s| s.replicas));
    if deployment.deadline.is_some() {
        let message = format!("Created new replica set \"{}-{hash}\"", deployment.name);
        plan.progress = Some(("True", "NewReplicaSetCreated", message));
    }
    plan.revision = Some(revision.to_string());
    plan.create = Some(NewSet { hash, replicas, annotations });
}

fn roll(plan: &mut Plan, deployment: &Deployment, new: Option<&Set>, old: &[&Set]) -> Moved {
    let Some(new) = new else { return Moved::No };
    let old_pods = total(old, |s| s.replicas);
    let size = match new.replicas > deployment.replicas {
        true => deployment.replicas,
        false => new_size(deployment, new.replicas, old_pods),
    };
    if new.replicas != deployment.replicas && plan.scale(deployment, new, size) {
        return Moved::Yes;
    }
    if old_pods > 0 { roll_old(plan, deployment, new, old) } else { Moved::No }
}

/// Takes old pods away: first those that are not available anyway, then as many as availability allows.
fn roll_old(plan: &mut Plan, deployment: &Deployment, new: &Set, old: &[&Set]) -> Moved {
    let least = deployment.replicas - deployment.unavailable();
    let all_pods = total(old, |s| s.replicas) + new.replicas;
    let spare = all_pods - least - (new.replicas - new.available);
    if spare <= 0 {
        return Moved::No;
    }
    let mut sets: Vec<&Set> = old.to_vec();
    sets.sort_by_key(|s| (s.created, s.key.clone()));
    let mut sizes: Vec<i64> = sets.iter().map(|s| s.replicas).collect();
    let mut broken_left = spare;
    for (set, size) in sets.iter().zip(&mut sizes) {
        let taken = (set.replicas - set.available).clamp(0, broken_left.max(0));
        *size -= taken;
        broken_left -= taken;
    }
    let mut spare_available = total(old, |s| s.available) + new.available - least;
    for size in &mut sizes {
        let taken = (*size).min(spare_available).max(0);
        *size -= taken;
        spare_available -= taken;
    }
    let mut moved = Moved::No;
    for (set, size) in sets.iter().zip(sizes).filter(|(s, _)| s.is_active()) {
        if size != set.replicas && plan.scale(deployment, set, size) {
            moved = Moved::Yes;
        }
    }
    moved
}

fn recreate(
    plan: &mut Plan,
    deployment: &Deployment,
    new: Option<&Set>,
    old: &[&Set],
    old_pods_run: bool,
) -> Moved {
    let mut moved = Moved::No;
    for set in old.iter().filter(|s| s.is_active()) {
        plan.scale(deployment, set, 0);
        moved = Moved::Yes;
    }
    if moved == Moved::Yes || old_pods_run {
        return Moved::Yes;
    }
    match new {
        Some(new) if plan.scale(deployment, new, deployment.replicas) => Moved::Yes,
        _ => Moved::No,
    }
}

/// Does this status say that everything is rolled out?
pub fn is_complete(deployment: &Deployment, status: &Value) -> bool {
    let wanted = deployment.replicas;
    let counts = ["updatedReplicas", "replicas", "availableReplicas"];
    counts.iter().all(|f| status[f].as_i64().unwrap_or(0) == wanted)
        && status["observedGeneration"].as_i64().unwrap_or(0) >= deployment.generation
}

/// Old sets beyond the history limit go, oldest revision first, once they are empty and settled.
fn clean_up(plan: &mut Plan, deployment: &Deployment, old: &[&Set]) {
    let Some(limit) = deployment.history_limit else { return };
    let mut sets: Vec<&&Set> = old.iter().filter(|s| !s.going).collect();
    sets.sort_by_key(|s| (s.revision(), s.created));
    let surplus = sets.len().saturating_sub(limit);
    let settled = |s: &&&&Set| s.actual == 0 && s.replicas == 0 && s.unobserved <= 0;
    let gone = sets.iter().take(surplus).filter(settled);
    plan.delete = gone.map(|s| (s.key.clone(), s.uid.clone())).collect();
}

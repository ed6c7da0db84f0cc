//! What a write may set, and in which order a write is prepared and checked: one path for every kind.
//!
//! The order on a create: [`crate::convert::before_decode`] → decode ([`crate::walk`]) →
//! [`crate::convert::to_storage`] → [`defaults`] → admission → the caller fills name, uid, creationTimestamp →
//! [`prepare_create`] (a Job's selector holds its uid) → [`validate_create`]. On an update: decode → defaults →
//! [`prepare_update`] → admission → [`validate_update`]. No clock: times are given.

use super::get::{has, int, list, remove, set, text};
use super::spot::Spot;
use super::{Behaviour, behaviour_of, meta};
use crate::field_errors::FieldErrors;
use crate::status::ApiError;
use crate::time;
use jiff::{Timestamp, ToSpan};
use k8s_schema::gates::FIELDS;
use k8s_schema::{Gates, ResourceRow};
use serde_json::{Value, json};

/// Which part of the object a write addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The resource itself.
    Main,
    /// Its `status` subresource.
    Status,
}

/// Fills in defaults, as upstream does when it decodes (also after a patch).
pub fn defaults(row: &ResourceRow, obj: &mut Value) {
    (behaviour_of(row).defaults)(obj);
}

fn has_status(row: &ResourceRow) -> bool {
    row.subresources.iter().any(|s| &*s.name == "status")
}

/// Drops what a creator may not set, and starts the generation.
pub fn prepare_create(row: &ResourceRow, obj: &mut Value) {
    let behaviour = behaviour_of(row);
    if let Some(metadata) = super::get::child(obj, "metadata") {
        for key in
            ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"]
        {
            remove(metadata, key);
        }
        if behaviour.generation {
            set(metadata, "generation", 1);
        }
    }
    if has_status(row) && behaviour.drops_status {
        remove(obj, "status");
    }
    (behaviour.prepare_create)(obj);
}

/// Drops the fields whose feature is off, but for those that the object had before.
pub fn drop_gated(row: &ResourceRow, gates: &Gates, new: &mut Value, old: Option<&Value>) {
    for (gate, group, resource, pointer) in FIELDS {
        let about = *row.storage_group == **group && row.gvr.resource == *resource && !gates.on(gate);
        let had = || old.is_some_and(|old| has(old, pointer));
        if about
            && !had()
            && let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(parent) = new.pointer_mut(parent)
        {
            remove(parent, key);
        }
    }
}

/// The status that upstream's objects have from the start, so that a JSON patch has something to add to. Gantry's own
/// kinds have none until somebody writes it.
pub fn empty_status(row: &ResourceRow, obj: &mut Value) {
    let own = row.gvr.group.ends_with(".gantry.dev");
    if has_status(row) && !own && obj.get("status").is_none() {
        let attachment = row.gvr.resource == "volumeattachments";
        set(obj, "status", if attachment { json!({"attached": false}) } else { json!({}) });
    }
}

/// Checks an object that is about to be created: 422 with every cause.
pub fn validate_create(row: &ResourceRow, obj: &Value) -> Result<(), ApiError> {
    finish(row, obj, faults_of_new(row, obj))
}

/// What is wrong with an object that is about to be created.
pub fn faults_of_new(row: &ResourceRow, obj: &Value) -> FieldErrors {
    let behaviour = behaviour_of(row);
    let mut errors = FieldErrors::new();
    let spot = Spot::new(obj, "", &mut errors);
    meta::validate(&spot, behaviour, row.namespaced);
    (behaviour.validate)(&spot);
    errors
}

/// 422 with every cause, if there is one.
pub fn finish(row: &ResourceRow, obj: &Value, errors: FieldErrors) -> Result<(), ApiError> {
    let own = text(obj, "/metadata/name");
    errors.into_result(&row.gvr.group, &row.kind, own)
}

/// Takes from `old` everything this write may not set: system metadata always; `status` on a main write;
/// everything but `status`, labels, annotations and finalizers on a status write. Bumps the generation when the
/// desired state changed.
pub fn prepare_update(row: &ResourceRow, new: &mut Value, old: &Value, part: Part) {
    let behaviour = behaviour_of(row);
    if part == Part::Status {
        let mut kept = old.clone();
        let status = remove(new, "status");
        if let (Some(from), Some(to)) = (new.get_mut("metadata"), kept.get_mut("metadata")) {
            for key in ["labels", "annotations", "finalizers", "managedFields", "resourceVersion"] {
                let fixed = key == "labels" && row.gvr.group == "apps";
                if !fixed {
                    put(to, key, remove(from, key));
                }
            }
        }
        put(&mut kept, "status", status);
        *new = kept;
        (behaviour.prepare_status)(new, old);
        return;
    }
    keep_metadata(new, old);
    if has_status(row) && behaviour.drops_status {
        put(new, "status", old.get("status").cloned());
    }
    (behaviour.prepare_update)(new, old);
    if behaviour.generation {
        let before = int(old, "/metadata/generation").unwrap_or(1);
        let bump = desired_changed(new, old, has_status(row))
            || (behaviour.annotations_count && annotations_changed(new, old));
        if let Some(metadata) = new.get_mut("metadata") {
            set(metadata, "generation", before + i64::from(bump));
        }
    }
}

/// Counts a generation when a subresource's write changed the spec.
pub fn count_generation(new: &mut Value, old: &Value) {
    if !super::get::same_exactly(&new["spec"], &old["spec"]) {
        let before = int(old, "/metadata/generation").unwrap_or(1);
        if let Some(metadata) = new.get_mut("metadata") {
            set(metadata, "generation", before + 1);
        }
    }
}

/// System metadata that a client need not repeat and cannot change.
fn keep_metadata(new: &mut Value, old: &Value) {
    let Some(metadata) = super::get::child(new, "metadata") else { return };
    let before = |key: &str| old.pointer(&format!("/metadata/{key}")).cloned();
    for key in ["creationTimestamp", "generation", "selfLink"] {
        put(metadata, key, before(key));
    }
    super::get::default(metadata, "uid", before("uid").unwrap_or_default());
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if before(key).is_some() {
            put(metadata, key, before(key));
        }
    }
}

fn put(v: &mut Value, key: &str, value: Option<Value>) {
    match value {
        Some(value) => set(v, key, value),
        None => drop(remove(v, key)),
    }
}

/// Did anything but metadata and status change?
/// Without a status subresource, the status is as much a wish as everything else.
fn desired_changed(new: &Value, old: &Value, has_status: bool) -> bool {
    let null = Value::Null;
    let differs = |a: &Value, b: &Value| {
        let all = a.as_object().into_iter().flatten();
        let mut desired = all.filter(|(k, _)| {
            !(matches!(k.as_str(), "metadata" | "apiVersion" | "kind") || has_status && *k == "status")
        });
        desired.any(|(k, v)| !super::get::same_exactly(v, b.get(k).unwrap_or(&null)))
    };
    differs(new, old) || differs(old, new)
}

fn annotations_changed(new: &Value, old: &Value) -> bool {
    new.pointer("/metadata/annotations") != old.pointer("/metadata/annotations")
}

/// Checks an update against what is stored: 422 with every cause.
pub fn validate_update(row: &ResourceRow, new: &Value, old: &Value, part: Part) -> Result<(), ApiError> {
    finish(row, new, faults_of_update(row, new, old, part))
}

/// What is wrong with an update of what is stored.
pub fn faults_of_update(row: &ResourceRow, new: &Value, old: &Value, part: Part) -> FieldErrors {
    let behaviour = behaviour_of(row);
    let mut errors = FieldErrors::new();
    let spot = Spot::new(new, "", &mut errors);
    meta::validate_update(&spot, old);
    match (part, behaviour.validate_update) {
        (Part::Status, _) => (behaviour.validate_status)(&spot, old),
        (Part::Main, Some(validate)) => validate(&spot, old),
        (Part::Main, None) => (behaviour.validate)(&spot),
    }
    if part == Part::Main {
        behaviour.immutable.iter().for_each(|path| spot.immutable(path, old));
    }
    errors
}

/// What a delete call does to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Remove it now (or keep it, marked, until its finalizers are gone).
    Now,
    /// Store it as it was changed: it has a deletion time and goes later.
    Graceful,
    /// It is already going; store nothing.
    Pending,
}

/// Decides on a delete call and marks the object accordingly. `asked` is the call's gracePeriodSeconds.
pub fn begin_deletion(row: &ResourceRow, obj: &mut Value, asked: Option<i64>, now: Timestamp) -> Deletion {
    let behaviour = behaviour_of(row);
    if has(obj, "/metadata/deletionTimestamp") {
        return shorten(obj, asked);
    }
    let Some(grace) = (behaviour.grace)(obj, asked) else {
        return Deletion::Now;
    };
    mark(obj, grace, now);
    if grace == 0 { Deletion::Now } else { Deletion::Graceful }
}

/// Marks an object that must wait for its finalizers: deletion time now, no grace. Does nothing when it
/// is marked already.
pub fn mark_deleting(obj: &mut Value, now: Timestamp) {
    if !has(obj, "/metadata/deletionTimestamp") {
        mark(obj, 0, now);
    }
}

fn mark(obj: &mut Value, grace: i64, now: Timestamp) {
    let at = now.checked_add(grace.clamp(0, i64::from(i32::MAX)).seconds()).unwrap_or(now);
    let generation = int(obj, "/metadata/generation").unwrap_or(0);
    if let Some(metadata) = super::get::child(obj, "metadata") {
        set(metadata, "deletionTimestamp", time::format(at));
        set(metadata, "deletionGracePeriodSeconds", grace);
        if generation > 0 {
            set(metadata, "generation", generation + 1);
        }
    }
}

/// A second delete may only shorten the grace period.
fn shorten(obj: &mut Value, asked: Option<i64>) -> Deletion {
    let Some(left) = int(obj, "/metadata/deletionGracePeriodSeconds") else {
        return Deletion::Now;
    };
    let Some(asked) = asked.map(|n| if n < 0 { 1 } else { n }).filter(|n| *n < left) else {
        return if left == 0 { Deletion::Now } else { Deletion::Pending };
    };
    let at = time::parse(text(obj, "/metadata/deletionTimestamp")).ok();
    let at = at.and_then(|at| at.checked_sub((left - asked).clamp(0, i64::from(i32::MAX)).seconds()).ok());
    if let Some(metadata) = super::get::child(obj, "metadata") {
        if let Some(at) = at {
            set(metadata, "deletionTimestamp", time::format(at));
        }
        set(metadata, "deletionGracePeriodSeconds", asked);
    }
    if asked == 0 { Deletion::Now } else { Deletion::Graceful }
}

/// Has the object finalizers that keep it?
pub fn has_finalizers(obj: &Value) -> bool {
    !list(obj, "/metadata/finalizers").is_empty()
}

/// Refuses field selectors that the kind does not support: 400 in upstream's words.
pub fn check_field_selector(
    row: &ResourceRow,
    selector: &crate::selector::FieldSelector,
) -> Result<(), ApiError> {
    let behaviour = behaviour_of(row);
    for requirement in &selector.requirements {
        let label = requirement.field.as_str();
        if super::field_label(behaviour, row.namespaced, label).is_none() {
            return Err(ApiError::bad_request(unknown_label(row, behaviour, label)));
        }
    }
    Ok(())
}

fn unknown_label(row: &ResourceRow, behaviour: &Behaviour, label: &str) -> String {
    if behaviour.fields.is_empty() {
        return format!(
            "{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
    match (&*row.gvr.group, &*row.kind) {
        ("", _) => format!("field label not supported: {label}"),
        (_, kind) => format!("field label {label:?} not supported for {kind}"),
    }
}

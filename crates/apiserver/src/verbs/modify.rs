//! Update and patch: an edit of the present object, retried when somebody else was faster.

use super::{Call, Effect, Written, delete};
use crate::Api;
use crate::admission::{self, Attempt, Operation};
use crate::owners;
use crate::resources::Resource;
use crate::rules;
use crate::storage::{Swap, unstored};
use client::{Object, PatchKind};
use machinery::kinds::{behaviour_of, strategy};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// Lost races before a write without a resourceVersion gives up: far above what real contention shows.
pub const SWAP_TRIES_MAX: usize = 200;

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status, where the kind splits it.
    Whole,
    /// The status.
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
    /// A certificate request's approval conditions.
    Approval,
    /// A pod's ephemeral containers.
    EphemeralContainers,
    /// The resources of a pod's containers.
    Resize,
}

impl Part {
    /// The part that a subresource writes, for subresources that are nothing but a part.
    pub fn of_subresource(resource: &Resource, name: &str) -> Option<Part> {
        match name {
            "approval" if resource.is("certificates.k8s.io", "certificatesigningrequests") => {
                Some(Part::Approval)
            }
            "ephemeralcontainers" if resource.is("", "pods") => Some(Part::EphemeralContainers),
            "resize" if resource.is("", "pods") => Some(Part::Resize),
            _ => None,
        }
    }
}

/// Who owns the fields of an object after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The writer owns what it changes.
    Writer,
    /// As before: the write is the server's own doing.
    Kept,
    /// The wished object's list says it.
    Told,
}

/// A change of a present object.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// What it is about.
    pub part: Part,
    /// Who owns what it changes.
    pub owners: Owners,
    /// The change itself.
    pub edit: Edit<'a>,
}

/// Makes the wished object (in the caller's version) of the present one.
pub type Edit<'a> = &'a (dyn Fn(Value) -> Result<Value, ApiError> + Send + Sync);

impl Api {
    /// Replaces the object by a body.
    pub async fn update(&self, call: &Call, part: Part, body: Value) -> Result<Written, ApiError> {
        rules::check_names(call, &body)?;
        let missing = self.storage.get(&call.resource, &call.key).await?.is_none();
        if missing && part == Part::Whole && behaviour_of(&call.resource.stored).create_on_update {
            let mut body = body;
            if body["metadata"]["uid"].as_str().is_some_and(|u| !u.is_empty()) {
                return Err(precondition(call, "UID in precondition: ", &body["metadata"]["uid"], ""));
            }
            if let Some(metadata) = body["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            self.authorize(&call.identity, &call.attributes("create")).await?;
            return self.create(call, body).await;
        }
        self.modify(call, Change { part, owners: Owners::Writer, edit: &|_| Ok(body.clone()) }).await
    }

    /// Applies a patch.
    pub async fn patch(
        &self,
        call: &Call,
        part: Part,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<Written, ApiError> {
        let edit = |mut present| {
            rules::apply_patch(&call.resource, kind, &mut present, patch)?;
            rules::check_patched(call, &present)?;
            Ok(present)
        };
        self.modify(call, Change { part, owners: Owners::Writer, edit: &edit }).await
    }

    /// Applies a configuration (server-side apply); creates the object when there is none.
    pub async fn apply(&self, call: &Call, part: Part, config: &Value) -> Result<Written, ApiError> {
        let now = self.now_text();
        let edit = |present| {
            let object = owners::applied(call, &now, Some(present), config)?;
            rules::check_patched(call, &object)?;
            Ok(object)
        };
        let change = Change { part, owners: Owners::Told, edit: &edit };
        for _ in 0..SWAP_TRIES_MAX {
            if part != Part::Whole || self.storage.get(&call.resource, &call.key).await?.is_some() {
                match self.modify(call, change).await {
                    Err(error) if error.is_not_found() && part == Part::Whole => continue,
                    done => return done,
                }
            }
            self.authorize(&call.identity, &call.attributes("create")).await?;
            let object = owners::applied(call, &now, None, config)?;
            rules::check_patched(call, &object)?;
            check_absent(call, &object)?;
            match self.create_owned(call, object, Owners::Told).await {
                Err(error) if error.is_already_exists() => {}
                done => return done,
            }
        }
        Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED))
    }

    /// Edits the present object until the edit lands.
    pub async fn modify(&self, call: &Call, change: Change<'_>) -> Result<Written, ApiError> {
        let mut current = self.load(&call.resource, &call.key).await?.ok_or_else(|| call.not_found())?;
        for _ in 0..SWAP_TRIES_MAX {
            match self.modify_once(call, change, &current).await? {
                Tried::Written(written) => return Ok(written),
                Tried::Lost(Some(now)) => current = self.one_in_served(&call.resource, now).await?,
                Tried::Lost(None) => return Err(call.not_found()),
            }
        }
        Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED))
    }

    async fn modify_once(
        &self,
        call: &Call,
        Change { part, owners, edit }: Change<'_>,
        current: &Arc<Object>,
    ) -> Result<Tried, ApiError> {
        let old = current.value().map_err(ApiError::internal)?;
        let wished = edit(rules::to_served(&call.resource, old.clone()))?;
        let (mut new, mut warnings) = rules::decode(&call.resource, wished, &call.options)?;
        rules::settle_namespace(call, &mut new)?;
        carry_metadata(call, &mut new, &old)?;
        let managers = match owners {
            Owners::Writer => owners::updated(call, &self.now_text(), Some(&old), &mut new),
            Owners::Told => owners::take(&mut new),
            Owners::Kept => old["metadata"].get("managedFields").cloned(),
        };
        rules::prepare_update(&call.resource, part, &mut new, &old);
        strategy::drop_gated(&call.resource.stored, &self.config.gates, &mut new, Some(&old));
        let operation = if part == Part::Whole { Operation::Update } else { Operation::UpdatePart };
        let mut attempt = Attempt::new(self, call, operation, &call.key, Some(&old));
        admission::mutate(&mut attempt, &mut new)?;
        if admission::mutate_outside(&mut attempt, &mut new).await? {
            rules::prepare_update(&call.resource, part, &mut new, &old);
        }
        owners::put(&mut new, managers, Some(&old));
        if new != old {
            rules::validate(&call.resource, part, &new, Some(&old))?;
        }
        admission::validate(&mut attempt, &new).await?;
        admission::allocate(&mut attempt, &mut new)?;
        let charge = admission::quota::charge(&attempt, &new).await?;
        warnings.append(&mut attempt.warnings);
        let reserved = attempt.take_reservations();
        let written = |object: Arc<Object>, effect| {
            let object = rules::serve(&call.resource, &object)?;
            Ok(Tried::Written(Written { object, effect, warnings: warnings.clone() }))
        };
        let finished = delete::is_finished(&call.resource, &new);
        if new == old && !finished && !self.is_stored_old(&call.resource, &call.key).await? {
            return written(current.clone(), Effect::Updated);
        }
        if call.options.dry_run {
            return written(unstored(&call.key, current.revision, new), Effect::Updated);
        }
        for ip in reserved.addresses() {
            self.hold_address(&call.key, ip).await?;
        }
        let swap = if finished {
            self.storage.remove(&call.resource, current).await?
        } else {
            self.save(&call.resource, &call.key, Some(current), std::mem::take(&mut new)).await?
        };
        match swap {
            Swap::Done(object) if finished => {
                self.released(&call.resource, &call.key).await;
                // The answer is the object as this update left it, as upstream gives it.
                let last = unstored(&call.key, object.revision, new);
                written(last, Effect::Removed)
            }
            Swap::Done(object) => {
                for ip in &reserved.freed_ips {
                    self.let_go(&call.key, (*ip).into()).await;
                }
                reserved.commit();
                written(object, Effect::Updated)
            }
            Swap::Lost(now) => {
                admission::quota::refund(self, charge).await;
                Ok(Tried::Lost(now))
            }
        }
    }
}

enum Tried {
    Written(Written),
    Lost(Option<Arc<Object>>),
}

/// An object that is not there has no uid and no revision to insist on.
fn check_absent(call: &Call, object: &Value) -> Result<(), ApiError> {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(ApiError::conflict(call.resource.gvr(), &call.key.name, &why));
    }
    if matches!(object["metadata"]["resourceVersion"].as_str(), Some(r) if !matches!(r, "" | "0")) {
        return Err(call.not_found());
    }
    Ok(())
}

fn precondition(call: &Call, what: &str, asked: &Value, present: &str) -> ApiError {
    let why = format!(
        "Precondition failed: {what}{}, UID in object meta: {present}",
        asked.as_str().unwrap_or_default()
    );
    ApiError::conflict(call.resource.gvr(), &call.key.name, &why)
}

/// Checks the revision and takes over the metadata that a write cannot set.
fn carry_metadata(call: &Call, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    let present = old["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let wished = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if matches!(wished, "" | "0") {
        if !behaviour_of(&call.resource.stored).unconditional_update {
            let mut errors = machinery::field_errors::FieldErrors::new();
            errors.invalid("metadata.resourceVersion", 0, "must be specified for an update");
            errors.into_result(call.resource.group(), &call.resource.row.kind, &call.key.name)?;
        }
    } else if wished != present {
        return Err(ApiError::conflict(call.resource.gvr(), &call.key.name, ApiError::MODIFIED));
    }
    let uid = &new["metadata"]["uid"];
    if uid.as_str().is_some_and(|u| !u.is_empty()) && *uid != old["metadata"]["uid"] {
        let present = old["metadata"]["uid"].as_str().unwrap_or_default();
        return Err(precondition(call, "UID in precondition: ", uid, present));
    }
    let Some(metadata) = new["metadata"].as_object_mut() else { return Ok(()) };
    metadata.remove("selfLink");
    metadata.insert("resourceVersion".into(), json!(present));
    Ok(())
}

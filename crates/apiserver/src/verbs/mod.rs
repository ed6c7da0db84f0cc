//! The verbs: what each does to any resource. No kind is named here except where a verb itself is about one.
//!
//! A write is: authorize → read the body against the schema → strategy → admission → validation → allocation →
//! compare-and-swap. All of it is the same for callers in this process and over HTTP.

pub mod create;
pub mod delete;
pub mod list;
pub mod modify;

use crate::Api;
use crate::authz::{self, Attributes, Decision};
use crate::resources::Resource;
use auth::Identity;
use client::{Object, ObjectKey, PatchKind, Verb};
use machinery::body::Repeats;
use machinery::status::ApiError;
use modify::Part;
use std::sync::Arc;

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Drop silently.
    Ignore,
    /// Drop and warn.
    #[default]
    Warn,
    /// Refuse.
    Strict,
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything except storing.
    pub dry_run: bool,
    /// About unknown fields.
    pub validation: FieldValidation,
    /// What the body named twice.
    pub duplicates: Repeats,
    /// The field manager; "" is an unknown one.
    pub manager: String,
    /// May an apply take over what others own?
    pub force: bool,
}

/// Who writes what.
#[derive(Clone)]
pub struct Call {
    /// The caller.
    pub identity: Arc<Identity>,
    /// The resource, in the version the caller speaks.
    pub resource: Arc<Resource>,
    /// The object; its name is "" for a create.
    pub key: ObjectKey,
    /// "" for the object itself.
    pub subresource: String,
    /// Options.
    pub options: WriteOptions,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A new object.
    Created,
    /// Changed, or found to be as asked.
    Updated,
    /// Gone from the store.
    Removed,
    /// Marked for deletion; somebody still has to finish it.
    Deleting,
}

/// A finished write.
pub struct Written {
    /// The object as stored, in the caller's version.
    pub object: Arc<Object>,
    /// What happened.
    pub effect: Effect,
    /// Sentences for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Call {
    /// The attributes for the authorizer.
    pub fn attributes(&self, verb: &str) -> Attributes {
        let gvr = self.resource.gvr();
        Attributes {
            verb: verb.into(),
            group: gvr.group.to_string(),
            version: gvr.version.to_string(),
            resource: gvr.resource.to_string(),
            subresource: self.subresource.clone(),
            namespace: self.key.namespace.to_string(),
            name: self.key.name.to_string(),
            path: String::new(),
            field_selector: String::new(),
            label_selector: String::new(),
        }
    }

    /// 404 for this object.
    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(self.resource.gvr(), &self.key.name)
    }
}

/// The verb's name for authorization.
pub fn verb_name(verb: &Verb) -> &'static str {
    match verb {
        Verb::Create(_) => "create",
        Verb::Update(_) => "update",
        Verb::Patch(..) => "patch",
        Verb::Delete(_) => "delete",
    }
}

/// 405, as Kubernetes says it.
pub fn not_allowed() -> ApiError {
    ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// 404 for a path or subresource that is not served.
pub fn no_such_resource() -> ApiError {
    ApiError::new(404, "NotFound", "the server could not find the requested resource")
}

impl Api {
    /// Refuses what the authorizer refuses, in Kubernetes' words. It sees every write acknowledged before.
    pub async fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Result<(), ApiError> {
        if attributes.is_resource() {
            self.storage.cache.wait_fresh().await?;
        }
        let Decision::Deny(reason) = self.decide(identity, attributes).await else {
            return Ok(());
        };
        let why = authz::refusal(identity, attributes, &reason);
        if attributes.is_resource() {
            let group = attributes.group.clone();
            let gvr = k8s_schema::Gvr {
                group: group.into(),
                version: attributes.version.clone().into(),
                resource: attributes.resource.clone().into(),
            };
            return Err(ApiError::forbidden(&gvr, &attributes.name, &why));
        }
        let mut error = ApiError::new(403, "Forbidden", format!("forbidden: {why}"));
        error.kind = String::new();
        Err(error)
    }

    /// May somebody do this, as far as anybody here or outside knows?
    pub(crate) async fn decide(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        self.authorizer.decide(identity, attributes).await
    }

    /// One write of an authorized caller.
    pub async fn write(&self, call: Call, verb: Verb) -> Result<Written, ApiError> {
        let part = match call.subresource.as_str() {
            "" => Part::Whole,
            "status" => Part::Status,
            "finalize" => Part::Finalize,
            "scale" => return self.write_scale(&call, verb).await,
            "binding" => return self.bind_pod(&call, verb).await,
            "eviction" => return self.evict_pod(&call, verb).await,
            "token" => return self.issue_token(&call, verb).await,
            other => match Part::of_subresource(&call.resource, other) {
                Some(part) => part,
                None => return Err(not_allowed()),
            },
        };
        match verb {
            Verb::Create(body) if part == Part::Whole => self.create(&call, body).await,
            Verb::Update(body) => self.update(&call, part, body).await,
            Verb::Patch(PatchKind::Apply, config) => self.apply(&call, part, &config).await,
            Verb::Patch(kind, patch) => self.patch(&call, part, kind, &patch).await,
            Verb::Delete(options) if part == Part::Whole => self.delete(&call, options).await,
            Verb::Create(_) | Verb::Delete(_) => Err(not_allowed()),
        }
    }
}

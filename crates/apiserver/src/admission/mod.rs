//! Admission: what is changed about, or held against, a write before it is validated and stored.
//!
//! One file a plug-in, one row a plug-in in [`PLUGINS`], run in order. They read the cache (the caller has waited
//! until it is fresh) and never wait. [`allocate`] runs last, after validation, because it takes things.

mod aws_objects;
mod certificates;
mod escalation;
mod namespace_lifecycle;
pub mod node_restriction;
mod priority;
mod runtime_class;
pub mod service_account;
mod services;
mod task_notes;
mod tolerations;

use crate::Api;
use crate::services::Reservation;
use crate::verbs::Call;
use client::ObjectKey;
use machinery::status::ApiError;
use serde_json::Value;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A change of the object itself.
    Update,
    /// A change of a part by a subresource.
    UpdatePart,
    /// A deletion.
    Delete,
}

/// One write under admission.
pub struct Attempt<'a> {
    /// The server.
    pub api: &'a Api,
    /// Who, what resource, options.
    pub call: &'a Call,
    /// What is being done.
    pub operation: Operation,
    /// The object.
    pub key: &'a ObjectKey,
    /// The object before, for updates.
    pub old: Option<&'a Value>,
    reservation: Reservation,
}

impl<'a> Attempt<'a> {
    /// A write that nobody has looked at yet.
    pub fn new(
        api: &'a Api,
        call: &'a Call,
        operation: Operation,
        key: &'a ObjectKey,
        old: Option<&'a Value>,
    ) -> Self {
        Attempt { api, call, operation, key, old, reservation: Reservation::none(&api.services) }
    }

    /// What was allocated; given back when it is dropped without a commit.
    pub fn take_reservations(self) -> Reservation {
        self.reservation
    }

    /// Is this a create of pods?
    fn creates_pod(&self) -> bool {
        self.operation == Operation::Create && self.call.resource.is("", "pods")
    }
}

type Plugin = fn(&Attempt<'_>, &mut Value) -> Result<(), ApiError>;

/// The plug-ins, in order.
const PLUGINS: [Plugin; 11] = [
    aws_objects::admit,
    task_notes::admit,
    namespace_lifecycle::admit,
    node_restriction::admit,
    service_account::admit,
    priority::admit,
    runtime_class::admit,
    tolerations::admit,
    services::carry_allocated,
    escalation::admit,
    certificates::admit,
];

/// Runs the plug-ins.
pub fn mutate(attempt: &mut Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    PLUGINS.iter().try_for_each(|plugin| plugin(attempt, object))
}

/// Takes addresses and ports for a valid object.
pub fn allocate(attempt: &mut Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    if !attempt.call.resource.is("", "services")
        || !matches!(attempt.operation, Operation::Create | Operation::Update)
    {
        return Ok(());
    }
    attempt.reservation = services::allocate(attempt, object)?;
    Ok(())
}

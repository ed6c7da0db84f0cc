//! Admission: what is changed about, or held against, a write before it is validated and stored.
//!
//! One file a plug-in, one row a plug-in: those that may change the object in [`PLUGINS`], those that only judge what
//! has become of it in [`JUDGES`], run in order. They read the cache (the caller has waited until it is fresh) and never
//! wait. Programs outside ([`crate::webhooks`]) have their say after the first and after the second. [`allocate`] runs
//! last, after validation, because it takes things.

mod admin_access;
mod aws_objects;
mod certificates;
mod device_taints;
mod escalation;
mod limit_ranger;
mod namespace_lifecycle;
pub mod node_restriction;
mod optional;
mod owner_references;
mod pod_groups;
mod pod_security;
pub mod pod_security_policy;
pub mod policy;
mod priority;
pub mod quota;
mod runtime_class;
pub mod service_account;
mod services;
mod storage;
mod task_notes;
mod tolerations;

pub use optional::Plugins;

use crate::Api;
use crate::metrics::Step;
use crate::services::Reservation;
use crate::subresources::scale;
use crate::verbs::Call;
use crate::webhooks::{self, Document, Others, Request, Rounds};
use client::{Object, ObjectKey};
use k8s_schema::Gvr;
use machinery::status::ApiError;
use serde_json::Value;
use std::ops::Bound;
use std::sync::Arc;
use tokio::time::Instant;

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

impl Operation {
    /// As reviews and figures have it.
    fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update | Operation::UpdatePart => "UPDATE",
            Operation::Delete => "DELETE",
        }
    }
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
    /// Sentences for the caller.
    pub warnings: Vec<String>,
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
        let reservation = Reservation::none(&api.services);
        Attempt { api, call, operation, key, old, warnings: Vec::new(), reservation }
    }

    /// The same for programs outside.
    fn request(&self) -> Request<'a> {
        let operation = self.operation.name();
        let (api, call, key, old) = (self.api, self.call, self.key, self.old);
        let (document, others) = (Document::Stored, Others::default());
        Request { api, call, key, operation, document, old, others }
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

/// The plug-ins, in order, by the names that upstream tells their times under.
const PLUGINS: [(&str, Plugin); 20] = [
    ("AwsObjects", aws_objects::admit),
    ("TaskNotes", task_notes::admit),
    ("NamespaceLifecycle", namespace_lifecycle::admit),
    ("LimitRanger", limit_ranger::admit),
    ("NodeRestriction", node_restriction::admit),
    ("ServiceAccount", service_account::admit),
    ("PodSecurityPolicy", pod_security_policy::admit),
    ("AlwaysPullImages", optional::pull_always),
    ("PodNodeSelector", optional::select_nodes),
    ("Priority", priority::admit),
    ("RuntimeClass", runtime_class::admit),
    ("DefaultTolerationSeconds", tolerations::admit),
    ("PodTolerationRestriction", optional::tolerate),
    ("ExtendedResourceToleration", optional::tolerate_devices),
    ("DefaultStorageClass", storage::admit),
    ("PodGroupProtection", pod_groups::admit),
    ("DeviceTaints", device_taints::admit),
    ("Services", services::carry_allocated),
    ("RBACEscalation", escalation::admit),
    ("CertificateSubjectRestriction", certificates::admit),
];

type Judge = fn(&Attempt<'_>, &Value, &mut Vec<String>) -> Result<(), ApiError>;

/// The plug-ins that judge, in order.
const JUDGES: [(&str, Judge); 12] = [
    ("DRAAdminAccess", admin_access::judge),
    ("LimitRanger", limit_ranger::judge),
    ("OwnerReferencesPermissionEnforcement", owner_references::judge),
    ("PodSecurity", pod_security::judge),
    ("AlwaysPullImages", optional::judge_pull),
    ("PodTolerationRestriction", optional::judge_tolerations),
    ("DenyServiceExternalIPs", optional::deny_external_ips),
    ("LimitPodHardAntiAffinityTopology", optional::limit_anti_affinity),
    ("PodSecurityPolicy", pod_security_policy::judge),
    ("PersistentVolumeClaimResize", storage::judge),
    ("PodGroupWorkloadExists", pod_groups::judge),
    ("PolicyCheck", policy::check::judge),
];

/// Runs something and tells how long it took.
fn timed<T>(
    attempt: &Attempt<'_>,
    plugin: (usize, &str),
    admits: bool,
    run: impl FnOnce() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let started = Instant::now();
    let outcome = run();
    let step = Step { operation: attempt.operation.name(), admits, rejected: outcome.is_err() };
    attempt.api.metrics.admitted(Some(plugin), step, started.elapsed());
    outcome
}

/// Tells how long a whole step took.
fn told<T>(
    attempt: &Attempt<'_>,
    started: Instant,
    admits: bool,
    outcome: Result<T, ApiError>,
) -> Result<T, ApiError> {
    let step = Step { operation: attempt.operation.name(), admits, rejected: outcome.is_err() };
    attempt.api.metrics.admitted(None, step, started.elapsed());
    outcome
}

/// Runs the plug-ins.
pub fn mutate(attempt: &mut Attempt<'_>, object: &mut Value) -> Result<(), ApiError> {
    let started = Instant::now();
    let chosen = &attempt.api.config.plugins;
    let mut plugins = PLUGINS.iter().enumerate().filter(|(_, (name, _))| chosen.run(name));
    let outcome =
        plugins.try_for_each(|(nth, (name, run))| timed(attempt, (nth, name), true, || run(attempt, object)));
    told(attempt, started, true, outcome)
}

impl Api {
    /// All objects of a built-in resource in a namespace, as the cache has them now.
    pub(crate) fn cached_in(&self, gvr: &Gvr, namespace: &str) -> Vec<Arc<Object>> {
        let all = self.cached_all(gvr);
        let first = format!("{namespace}/");
        let own = all.range::<_, str>((Bound::Included(first.as_str()), Bound::Unbounded));
        own.take_while(|(key, _)| key.starts_with(&first)).map(|(_, object)| object.clone()).collect()
    }
}

/// Lets policies and programs outside change the object; where they do, the plug-ins see it again. Returns whether they
/// did: what a write of this kind may change is then to be enforced anew.
pub async fn mutate_outside(attempt: &mut Attempt<'_>, object: &mut Value) -> Result<bool, ApiError> {
    if attempt.call.subresource == "scale" {
        return mutate_scale(attempt, object).await;
    }
    let request = attempt.request();
    let (mut policies, mut rounds) = (Rounds::default(), Rounds::default());
    let mut warnings = Vec::new();
    let by_policies = policy::mutating::mutate(&request, object, &mut policies).await?;
    let by_webhooks = webhooks::mutate(&request, object, &mut rounds, &mut warnings).await?;
    let changed = by_policies || by_webhooks;
    if changed {
        let before = object.clone();
        mutate(attempt, object)?;
        if by_webhooks || before != *object {
            policies.changed();
        }
        if policies.next() {
            policy::mutating::mutate(&request, object, &mut policies).await?;
        }
        if before != *object {
            rounds.changed();
        }
        if rounds.next() {
            webhooks::mutate(&request, object, &mut rounds, &mut warnings).await?;
        }
    }
    attempt.warnings.append(&mut warnings);
    Ok(changed)
}

/// Of a Scale, programs outside see the Scale, and can change its replicas.
async fn mutate_scale(attempt: &mut Attempt<'_>, object: &mut Value) -> Result<bool, ApiError> {
    let resource = &attempt.call.resource;
    let old = attempt.old.map(|old| scale::scale_of(resource, old));
    let mut new = scale::scale_of(resource, object);
    let request = Request { old: old.as_ref(), document: Document::Own, ..attempt.request() };
    let mut warnings = Vec::new();
    let mut rounds = Rounds::default();
    let mut changed = policy::mutating::mutate(&request, &mut new, &mut Rounds::default()).await?;
    changed |= webhooks::mutate(&request, &mut new, &mut rounds, &mut warnings).await?;
    if let Some(replicas) = new["spec"]["replicas"].as_i64().filter(|_| changed) {
        scale::set_replicas(resource, object, replicas);
    }
    attempt.warnings.append(&mut warnings);
    Ok(changed)
}

/// Judges the object as it would be stored: plug-ins, then programs outside.
pub async fn validate(attempt: &mut Attempt<'_>, object: &Value) -> Result<(), ApiError> {
    let started = Instant::now();
    let outcome = judge_all(attempt, object).await;
    told(attempt, started, false, outcome)
}

async fn judge_all(attempt: &mut Attempt<'_>, object: &Value) -> Result<(), ApiError> {
    let mut warnings = Vec::new();
    let chosen = &attempt.api.config.plugins;
    for (nth, (name, judge)) in JUDGES.iter().enumerate().filter(|(_, (name, _))| chosen.run(name)) {
        let number = (PLUGINS.len() + nth, *name);
        timed(attempt, number, false, || judge(attempt, object, &mut warnings))?;
    }
    if attempt.call.subresource == "scale" {
        let resource = &attempt.call.resource;
        let old = attempt.old.map(|old| scale::scale_of(resource, old));
        let request = Request { old: old.as_ref(), document: Document::Own, ..attempt.request() };
        judge_outside(&request, &scale::scale_of(resource, object), &mut warnings).await?;
    } else {
        judge_outside(&attempt.request(), object, &mut warnings).await?;
    }
    attempt.warnings.append(&mut warnings);
    Ok(())
}

/// Asks programs outside about a document of a subresource (a Binding, the options of an exec): it may be changed.
pub async fn review_own(
    api: &Api,
    call: &Call,
    operation: &'static str,
    document: &mut Value,
) -> Result<Vec<String>, ApiError> {
    let (kind, others) = (Document::Own, Others::default());
    let request = Request { api, call, key: &call.key, operation, document: kind, old: None, others };
    let mut warnings = Vec::new();
    let mut rounds = Rounds::default();
    policy::mutating::mutate(&request, document, &mut Rounds::default()).await?;
    if webhooks::mutate(&request, document, &mut rounds, &mut warnings).await? && rounds.next() {
        webhooks::mutate(&request, document, &mut rounds, &mut warnings).await?;
    }
    judge_outside(&request, document, &mut warnings).await?;
    Ok(warnings)
}

/// Asks programs outside about a deletion.
pub async fn review_deletion(api: &Api, call: &Call, old: &Value) -> Result<Vec<String>, ApiError> {
    let mut warnings = Vec::new();
    if !call.subresource.is_empty() {
        return Ok(warnings);
    }
    let document = Document::Stored;
    let (key, others) = (&call.key, Others::default());
    let request = Request { api, call, key, operation: "DELETE", document, old: Some(old), others };
    webhooks::mutate(&request, &mut Value::Null, &mut Rounds::default(), &mut warnings).await?;
    judge_outside(&request, &Value::Null, &mut warnings).await?;
    Ok(warnings)
}

/// Policies and programs outside judge.
async fn judge_outside(
    request: &Request<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    policy::validating::judge(request, object, warnings).await?;
    webhooks::validate(request, object, warnings).await
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

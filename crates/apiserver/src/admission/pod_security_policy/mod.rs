//! PodSecurityPolicy (`policy/v1beta1`), which Kubernetes removed in 1.25 and old manifests rely on: a pod must fit a
//! policy that its account, or who makes it, may `use`; a new pod may be completed so that it does.
//!
//! Off unless it is asked for (`ApiConfig::pod_security_policy`); then, as upstream, no policy means no pod. As in its
//! last releases the containers that are added to a running pod must fit too. What a policy wants is `context`'s,
//! the resource itself `definition`'s.

mod context;
pub mod definition;

use super::{Attempt, Operation};
use crate::audit;
use crate::authz::{Attributes, Decision};
use auth::Identity;
use context::Policy;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::text;
use machinery::status::ApiError;
use serde_json::{Value, json};

const GROUP: &str = "policy";
/// Before it was in `policy`; the right to use a policy may still be given there.
const OLD_GROUP: &str = "extensions";
const RESOURCE: &str = "podsecuritypolicies";
const POLICIES: Gvr = Gvr::new(GROUP, "v1beta1", RESOURCE);
/// Names the policy that a pod fits.
const ANNOTATION: &str = "kubernetes.io/psp";
const NOTED: &str = "podsecuritypolicy.policy.k8s.io";

/// Completes a new pod by the first policy that it then fits, but rather by one that it fits as it is.
pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !attempt.api.config.pod_security_policy || !attempt.creates_pod() || !pod["spec"].is_object() {
        return Ok(());
    }
    match fitting(attempt, pod, true)? {
        Ok((name, completed)) => {
            *pod = completed;
            pod["metadata"]["annotations"][ANNOTATION] = json!(name);
            audit::annotate(&format!("{NOTED}/admit-policy"), &name);
            Ok(())
        }
        Err(why) => refuse(attempt, &format!("unable to admit pod: {why}")),
    }
}

/// Refuses a pod that fits no policy as it is.
pub(super) fn judge(attempt: &Attempt<'_>, pod: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let call = attempt.call;
    let concerned = call.resource.is("", "pods") && matches!(&*call.subresource, "" | "ephemeralcontainers");
    let collected = attempt.old.is_some_and(|old| without_owners(old) == without_owners(pod));
    if !attempt.api.config.pod_security_policy
        || !concerned
        || attempt.operation == Operation::Delete
        || collected
    {
        return Ok(());
    }
    match fitting(attempt, pod, false)? {
        Ok((name, _)) => {
            audit::annotate(&format!("{NOTED}/validate-policy"), &name);
            Ok(())
        }
        Err(why) => refuse(attempt, &format!("unable to validate pod: {why}")),
    }
}

fn refuse(attempt: &Attempt<'_>, why: &str) -> Result<(), ApiError> {
    Err(ApiError::forbidden(&gvr::PODS, &attempt.key.name, &format!("PodSecurityPolicy: {why}")))
}

/// A pod without what garbage collection changes, which is no reason to look at it again.
fn without_owners(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
        pod["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
    }
    pod
}

/// A policy's name with the pod as it would have it, or why there is none.
type Fit = Result<(String, Value), String>;

fn fitting(attempt: &Attempt<'_>, pod: &Value, may_change: bool) -> Result<Fit, ApiError> {
    let objects = attempt.api.cached_all(&POLICIES);
    let mut policies: Vec<Policy> = objects.values().filter_map(|o| Policy::read(&o.value().ok()?)).collect();
    if policies.is_empty() {
        return refuse(attempt, "no providers available to validate pod request")
            .map(|()| Err(String::new()));
    }
    // The one that it fitted before is the likeliest.
    let hint = pod["metadata"]["annotations"][ANNOTATION].as_str().unwrap_or_default();
    policies.sort_by_key(|p| (may_change || p.name != hint, p.name.clone()));
    let account = Identity::service_account(&attempt.key.namespace, text(pod, "/spec/serviceAccountName"));
    let callers = [account, (*attempt.call.identity).clone()];
    let mut completed: Option<(String, Value)> = None;
    let mut refusals = Vec::new();
    for policy in &policies {
        let mut copy = pod.clone();
        policy.complete(&mut copy);
        let errors = policy.check(&copy);
        let changed = copy != *pod;
        if !errors.is_empty() {
            refusals.push((policy, errors));
        } else if (!changed || may_change) && may_use(attempt, &callers, &policy.name) {
            if !changed {
                return Ok(Ok((policy.name.clone(), copy)));
            }
            completed.get_or_insert((policy.name.clone(), copy));
        }
    }
    if let Some(completed) = completed {
        return Ok(Ok(completed));
    }
    // Of policies that nobody here may use nothing is told.
    let mut told = Vec::new();
    for (policy, errors) in refusals {
        if may_use(attempt, &callers, &policy.name) {
            told.extend(errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)));
        }
    }
    Ok(Err(format!("[{}]", told.join(" "))))
}

fn may_use(attempt: &Attempt<'_>, callers: &[Identity], policy: &str) -> bool {
    let attributes = |group: &str| Attributes {
        verb: "use".into(),
        group: group.into(),
        version: "*".into(),
        resource: RESOURCE.into(),
        namespace: attempt.key.namespace.to_string(),
        name: policy.into(),
        ..Attributes::default()
    };
    let allowed =
        |who: &Identity, a: &Attributes| attempt.api.authorizer.authorize(who, a) == Decision::Allow;
    callers.iter().any(|who| [GROUP, OLD_GROUP].iter().any(|group| allowed(who, &attributes(group))))
}

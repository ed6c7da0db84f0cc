//! Asking webhooks: the mutating ones one after another, the validating ones all at once.

use super::conditions::Facts;
use super::review::{self, Verdict};
use super::{Document, Hook, MUTATING, Request, VALIDATING};
use crate::audit::{self, Level};
use crate::metrics::Step;
use crate::resources::Resource;
use crate::rules;
use crate::verbs::{FieldValidation, WriteOptions};
use futures_util::future::join_all;
use machinery::body::Repeats;
use machinery::patch;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How keys of notes about webhooks end.
const NOTED: &str = "webhook.admission.k8s.io";
/// Members of the metadata that no webhook changes.
const KEPT: [&str; 7] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
];

/// Who was asked in the first round, and who must be asked again.
#[derive(Default)]
pub struct Rounds {
    asked: BTreeSet<String>,
    again: BTreeSet<String>,
    second: bool,
}

impl Rounds {
    /// Everybody who wants to be asked again is: something else changed the object.
    pub fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }

    /// Is it asked in this round?
    pub fn wants(&self, id: &str) -> bool {
        !self.second || self.again.contains(id)
    }

    /// It was asked, and wants to be asked again when something else changes the object.
    pub fn asked(&mut self, id: String) {
        self.asked.insert(id);
    }

    /// Starts the second and last round; false when nobody needs one.
    pub fn next(&mut self) -> bool {
        self.second = true;
        !self.again.is_empty()
    }
}

/// Why a call came to nothing.
enum Failure {
    /// It could not be made, or the answer was none: the failure policy decides.
    Call(String),
    /// The request is refused whatever the policy.
    Refused(ApiError),
}

/// Lets the mutating webhooks change the object (`Null` where there is none). Returns whether one did.
pub async fn mutate(
    request: &Request<'_>,
    object: &mut Value,
    rounds: &mut Rounds,
    warnings: &mut Vec<String>,
) -> Result<bool, ApiError> {
    let hooks = request.api.webhooks.all(request.api, &MUTATING, "mutating");
    if hooks.is_empty() || request.is_exempt() {
        return Ok(false);
    }
    let forms = request.forms();
    let mut any = false;
    let again = std::mem::take(&mut rounds.again);
    let second = rounds.second;
    let round = u8::from(second);
    for (nth, hook) in hooks.iter().enumerate().filter(|(_, h)| !second || again.contains(&h.id)) {
        let Some(form) = wanted(hook, request, &forms, present(object)).await? else { continue };
        let place = format!("{NOTED}/round_{round}_index_{nth}");
        let mut noted = json!({"configuration": hook.id.split('/').next(), "webhook": hook.name});
        let outcome = match ask(hook, request, &form, present(object), true).await {
            Ok(verdict) => {
                warnings.extend(verdict.warnings);
                match verdict.patch {
                    Some(operations) => {
                        let changed = patched(hook, request, &form, object, &operations).await;
                        if changed.is_ok() && operations.as_array().is_some_and(|all| !all.is_empty()) {
                            let mut noted = noted.clone();
                            (noted["patch"], noted["patchType"]) = (operations, json!("JSONPatch"));
                            audit::annotate_from(
                                Level::Request,
                                &format!("patch.{place}"),
                                &noted.to_string(),
                            );
                        }
                        changed
                    }
                    None => Ok(false),
                }
            }
            Err(failure) => {
                tolerated(hook, failure, &format!("failed-open.mutating.{place}")).map(|()| false)
            }
        };
        noted["mutated"] = json!(outcome.as_ref().is_ok_and(|changed| *changed));
        audit::annotate(&format!("mutation.{place}"), &noted.to_string());
        let changed = outcome?;
        if changed {
            any = true;
            rounds.changed();
        }
        if hook.reinvoked {
            rounds.asked.insert(hook.id.clone());
        }
    }
    Ok(any)
}

/// Asks the validating webhooks about the object (`Null` where there is none).
pub async fn validate(
    request: &Request<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let hooks = request.api.webhooks.all(request.api, &VALIDATING, "validating");
    if hooks.is_empty() || request.is_exempt() {
        return Ok(());
    }
    let forms = request.forms();
    let mut asked = Vec::new();
    for hook in &hooks {
        if let Some(form) = wanted(hook, request, &forms, present(object)).await? {
            asked.push((hook, form));
        }
    }
    let asking = asked.iter().map(|(hook, form)| ask(hook, request, form, present(object), false));
    for (nth, ((hook, _), answer)) in asked.iter().zip(join_all(asking).await).enumerate() {
        match answer {
            Ok(verdict) => warnings.extend(verdict.warnings),
            Err(failure) => {
                tolerated(hook, failure, &format!("failed-open.validating.{NOTED}/round_0_index_{nth}"))?;
            }
        }
    }
    Ok(())
}

fn present(object: &Value) -> Option<&Value> {
    Some(object).filter(|o| !o.is_null())
}

/// The form in which the webhook is asked; `None`: it is not.
async fn wanted(
    hook: &Hook,
    request: &Request<'_>,
    forms: &[Arc<Resource>],
    object: Option<&Value>,
) -> Result<Option<Arc<Resource>>, ApiError> {
    let matcher = hook.matcher.as_ref().map_err(ApiError::internal)?;
    let Some(form) = request.matched(matcher, forms, object)? else { return Ok(None) };
    request.settle(&form, object).await?;
    if hook.conditions.is_empty() {
        return Ok(Some(form));
    }
    match hook.conditions.hold(&Facts::of(request, &form, object)) {
        Ok(hold) => Ok(Some(form).filter(|_| hold)),
        Err(_) if !hook.fails => Ok(None),
        Err(why) => Err(ApiError::forbidden(request.call.resource.gvr(), &request.key.name, &why)),
    }
}

/// Passes a failure on, unless the webhook's policy is to go on without it.
fn tolerated(hook: &Hook, failure: Failure, note: &str) -> Result<(), ApiError> {
    match failure {
        Failure::Refused(error) => Err(error),
        Failure::Call(why) if hook.fails => {
            tracing::warn!(hook = hook.id, why, "a webhook could not be called, which fails the request");
            Err(ApiError::internal(format!("failed calling webhook {:?}: {why}", hook.name)))
        }
        Failure::Call(why) => {
            tracing::warn!(hook = hook.id, why, "a webhook could not be called; the request goes on");
            audit::annotate(note, &hook.name);
            Ok(())
        }
    }
}

/// Asks a webhook, and tells how long it took.
async fn ask(
    hook: &Hook,
    request: &Request<'_>,
    form: &Resource,
    object: Option<&Value>,
    mutating: bool,
) -> Result<Verdict, Failure> {
    let started = tokio::time::Instant::now();
    let outcome = call(hook, request, form, object, mutating).await;
    let step = Step { operation: request.operation, admits: mutating, rejected: outcome.is_err() };
    request.api.metrics.called(&hook.name, step, started.elapsed());
    outcome
}

async fn call(
    hook: &Hook,
    request: &Request<'_>,
    form: &Resource,
    object: Option<&Value>,
    mutating: bool,
) -> Result<Verdict, Failure> {
    if request.call.options.dry_run && !hook.dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(ApiError::bad_request(why)));
    }
    let api = request.api;
    let version = hook.version.ok_or_else(|| {
        Failure::Call("webhook does not accept known AdmissionReview versions (v1, v1beta1)".into())
    })?;
    let uid = uuid::Builder::from_random_bytes((api.config.random)().to_be_bytes()).into_uuid().to_string();
    let review = review::review(request, form, version, &uid, object);
    let answer = api.ask_webhook(&hook.client, &review, hook.timeout).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let mut verdict = review::verdict(&hook.name, version, &uid, mutating, &answer).map_err(Failure::Call)?;
    for (key, value) in &verdict.notes {
        audit::annotate(&format!("{}/{key}", hook.name), value);
    }
    match verdict.refusal.take() {
        Some(refusal) => Err(Failure::Refused(refusal)),
        None => Ok(verdict),
    }
}

/// Applies a webhook's patch; true when that changed something.
async fn patched(
    hook: &Hook,
    request: &Request<'_>,
    form: &Resource,
    object: &mut Value,
    operations: &Value,
) -> Result<bool, ApiError> {
    if operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    if object.is_null() {
        return Err(ApiError::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    }
    let mut shown = request.shown(form, object);
    patch::json(&mut shown, operations).map_err(|e| ApiError::internal(ApiError::from(e).message))?;
    let new = request.read_back(form, object, shown).await?;
    let changed = new != *object;
    *object = new;
    Ok(changed)
}

impl Request<'_> {
    /// A changed document of a form as it is stored.
    pub async fn read_back(
        &self,
        form: &Resource,
        before: &Value,
        mut shown: Value,
    ) -> Result<Value, ApiError> {
        if self.document == Document::Own {
            return Ok(shown);
        }
        if !shown["metadata"].is_object() {
            return Err(ApiError::internal("a webhook removed the object's metadata"));
        }
        for member in KEPT {
            match (&before["metadata"][member], shown["metadata"].as_object_mut()) {
                (Value::Null, Some(metadata)) => drop(metadata.remove(member)),
                (kept, Some(metadata)) => drop(metadata.insert(member.into(), kept.clone())),
                (_, None) => {}
            }
        }
        let options = WriteOptions { validation: FieldValidation::Ignore, ..self.call.options.clone() };
        let options = WriteOptions { duplicates: Repeats::default(), ..options };
        let decoded = rules::decode(form, shown, &options);
        self.back(form, decoded.map_err(|e| ApiError::internal(e.message))?.0).await
    }
}

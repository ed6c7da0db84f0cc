//! `AuthorizationConfiguration`: who has a say about access, in which order; checked in upstream's words. Reads the
//! kubeconfigs that it names.

use crate::access_webhook::{AccessWebhook, Manner, request_type};
use crate::authn::{expression, sentence};
use crate::authz::Step;
use crate::config::NameResolver;
use crate::outbound::Endpoint;
use machinery::cel::{Env, Type, duration};
use machinery::field_errors::FieldErrors;
use machinery::name;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Conditions of one webhook (upstream's bound).
const CONDITIONS_MAX: usize = 64;
/// Longest time a webhook may take (upstream's bound).
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Those that may stand in the order. (ABAC's policy file is not read: it cannot be changed without a restart.)
const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    authorizers: Vec<Written>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Written {
    r#type: String,
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Webhook {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: String,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: Connection,
    match_conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Connection {
    r#type: String,
    kube_config_file: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Condition {
    expression: String,
}

/// Reads YAML or JSON; the error is a sentence.
pub fn read(text: &[u8], resolver: &Option<Arc<dyn NameResolver>>) -> Result<Vec<Step>, String> {
    let value = machinery::body::yaml(text).map_err(|e| e.message)?.value;
    let file: File = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if file.kind != "AuthorizationConfiguration"
        || !file.api_version.starts_with("apiserver.config.k8s.io/v1")
    {
        return Err(format!("{}/{} is no AuthorizationConfiguration", file.api_version, file.kind));
    }
    let mut errors = FieldErrors::new();
    if file.authorizers.is_empty() {
        errors.required("authorizers", "at least one authorization mode must be defined");
    }
    let (mut types, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut steps = Vec::new();
    for (i, written) in file.authorizers.into_iter().enumerate() {
        let at = |field: &str| format!("authorizers[{i}].{field}");
        let kind = written.r#type.as_str();
        if kind.is_empty() {
            errors.required(&at("type"), "");
            continue;
        }
        if !errors.one_of(&at("type"), kind, &TYPES) {
            continue;
        }
        if !types.insert(kind.to_string()) && kind != "Webhook" {
            errors.duplicate(&at("type"), kind);
            continue;
        }
        check_name(&written.name, &at("name"), &mut names, &mut errors);
        match (kind, written.webhook) {
            ("Webhook", None) => errors.required(&at("webhook"), "required when type=Webhook"),
            ("Webhook", Some(webhook)) => {
                let made = webhook.make(&format!("authorizers[{i}]"), resolver, &mut errors);
                steps.extend(made.map(|w| Step::Webhook(Arc::new(w))));
            }
            (_, Some(_)) => {
                errors.invalid(&at("webhook"), "non-null", "may only be specified when type=Webhook");
            }
            ("Node", None) => steps.push(Step::Node),
            ("RBAC", None) => steps.push(Step::Rbac),
            ("AlwaysAllow", None) => steps.push(Step::AlwaysAllow),
            _ => steps.push(Step::AlwaysDeny),
        }
    }
    sentence(&errors)?;
    Ok(steps)
}

fn check_name(text: &str, path: &str, seen: &mut BTreeSet<String>, errors: &mut FieldErrors) {
    let wrong = name::dns1123_subdomain(text);
    if text.is_empty() {
        errors.required(path, "");
    } else if !seen.insert(text.to_string()) {
        errors.duplicate(path, text);
    } else if !wrong.is_empty() {
        errors.invalid(path, text, &format!("authorizer name is invalid: {}", wrong.join(", ")));
    }
}

/// A duration in Go's notation, "" as its default.
fn span(text: &str, default: Duration, path: &str, errors: &mut FieldErrors) -> Duration {
    if text.is_empty() {
        return default;
    }
    match duration(text).map(Duration::try_from) {
        Some(Ok(found)) if !found.is_zero() => found,
        Some(_) => {
            errors.invalid(path, text, "must be > 0s");
            default
        }
        None => {
            errors.invalid(path, text, "time: invalid duration");
            default
        }
    }
}

impl Webhook {
    fn make(
        self,
        path: &str,
        resolver: &Option<Arc<dyn NameResolver>>,
        errors: &mut FieldErrors,
    ) -> Option<AccessWebhook> {
        let at = |field: &str| format!("{path}.{field}");
        let usual = Manner::default();
        let allowed = span(&self.authorized_ttl, usual.allowed_kept, &at("authorizedTTL"), errors);
        let refused = span(&self.unauthorized_ttl, usual.refused_kept, &at("unauthorizedTTL"), errors);
        let timeout = span(&self.timeout, usual.timeout, &at("timeout"), errors);
        match self.timeout.as_str() {
            "" => errors.required(&at("timeout"), ""),
            text if timeout > TIMEOUT_MAX => {
                errors.invalid(&at("timeout"), text, "must be > 0s and <= 30s");
            }
            _ => {}
        }
        required(
            &self.subject_access_review_version,
            &at("subjectAccessReviewVersion"),
            &["v1", "v1beta1"],
            errors,
        );
        let field = at("matchConditionSubjectAccessReviewVersion");
        match self.match_condition_subject_access_review_version.as_str() {
            "" if self.match_conditions.is_empty() => {}
            "" => errors.required(&field, "required if match conditions are specified"),
            given => drop(errors.one_of(&field, given, &["v1"])),
        }
        required(&self.failure_policy, &at("failurePolicy"), &["NoOpinion", "Deny"], errors);
        let conditions = conditions(&self.match_conditions, path, errors);
        let endpoint = self.connection_info.endpoint(path, resolver, errors)?;
        let kept = |wanted: Option<bool>, life| if wanted == Some(false) { Duration::ZERO } else { life };
        let manner = Manner {
            allowed_kept: kept(self.cache_authorized_requests, allowed),
            refused_kept: kept(self.cache_unauthorized_requests, refused),
            timeout,
            fails: self.failure_policy == "Deny",
            beta: self.subject_access_review_version == "v1beta1",
            conditions,
        };
        Some(AccessWebhook::new(endpoint, manner))
    }
}

fn required(given: &str, path: &str, known: &[&str], errors: &mut FieldErrors) {
    match given {
        "" => errors.required(path, ""),
        given => drop(errors.one_of(path, given, known)),
    }
}

fn conditions(
    all: &[Condition],
    path: &str,
    errors: &mut FieldErrors,
) -> Vec<(String, machinery::cel::Program)> {
    if all.len() > CONDITIONS_MAX {
        errors.too_many(&format!("{path}.matchConditions"), all.len(), CONDITIONS_MAX);
        return Vec::new();
    }
    let env = Env::new().var("request", request_type());
    let mut seen = BTreeSet::new();
    let mut compiled = Vec::new();
    for (i, condition) in all.iter().enumerate() {
        let at = format!("{path}.matchConditions[{i}].expression");
        let text = condition.expression.as_str();
        if text.trim().is_empty() {
            errors.required(&at, "");
        } else if !seen.insert(text) {
            errors.duplicate(&at, text);
        } else {
            let found = expression(&env, text, &at, Some(&Type::Bool), errors);
            compiled.extend(found.map(|e| (e.text, e.program)));
        }
    }
    compiled
}

impl Connection {
    fn endpoint(
        &self,
        path: &str,
        resolver: &Option<Arc<dyn NameResolver>>,
        errors: &mut FieldErrors,
    ) -> Option<Endpoint> {
        let field = format!("{path}.connectionInfo.kubeConfigFile");
        let file = Path::new(&self.kube_config_file);
        match self.r#type.as_str() {
            "" => errors.required(&format!("{path}.connectionInfo.type"), ""),
            // This server runs in no pod.
            "KubeConfigFile" if self.kube_config_file.is_empty() => errors.required(&field, ""),
            "KubeConfigFile" if !file.is_absolute() => {
                errors.invalid(&field, self.kube_config_file.as_str(), "must be an absolute path");
            }
            "KubeConfigFile" => match Endpoint::of_kubeconfig(file, resolver.clone()) {
                Ok(endpoint) => return Some(endpoint),
                Err(why) => {
                    let why = format!("error loading file: {why}");
                    errors.invalid(&field, self.kube_config_file.as_str(), &why);
                }
            },
            other => errors.not_supported(&format!("{path}.connectionInfo.type"), other, &["KubeConfigFile"]),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn file(authorizers: Value) -> Result<Vec<Step>, String> {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers});
        read(file.to_string().as_bytes(), &None)
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let hook = |change: Value| {
            let mut webhook = json!({"timeout": "3s", "subjectAccessReviewVersion": "v1",
                "matchConditionSubjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/nowhere"}});
            change.as_object().unwrap().iter().for_each(|(k, v)| webhook[k] = v.clone());
            json!([{"type": "Webhook", "name": "w", "webhook": webhook}])
        };
        for (authorizers, why) in [
            (json!([]), "authorizers: Required value: at least one authorization mode must be defined"),
            (json!([{"type": "ABAC", "name": "a"}]), "authorizers[0].type: Unsupported value: \"ABAC\""),
            (
                json!([{"type": "Node", "name": "a"}, {"type": "Node", "name": "b"}]),
                "authorizers[1].type: Duplicate value: \"Node\"",
            ),
            (json!([{"type": "RBAC", "name": "A"}]), "authorizer name is invalid: "),
            (
                json!([{"type": "Webhook", "name": "a"}]),
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            (
                hook(json!({"timeout": "31s"})),
                "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
            ),
            (hook(json!({"failurePolicy": ""})), "authorizers[0].failurePolicy: Required value"),
            (
                hook(json!({"matchConditions": [{"expression": "request.x"}]})),
                "authorizers[0].matchConditions[0].expression: Invalid value: \"request.x\": compilation failed: ",
            ),
            (hook(json!({"matchConditions": [{"expression": "request.user"}]})), "must evaluate to bool"),
            (
                hook(json!({})),
                "authorizers[0].connectionInfo.kubeConfigFile: Invalid value: \"/nowhere\": error loading file: ",
            ),
        ] {
            let error = file(authorizers).err().unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
        let steps = file(json!([{"type": "RBAC", "name": "r"}, {"type": "Node", "name": "n"}])).ok().unwrap();
        assert!(matches!(steps.as_slice(), [Step::Rbac, Step::Node]));
    }
}

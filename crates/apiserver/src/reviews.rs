//! Reviews: kinds that are questions. They are answered, not stored.

use crate::Api;
use crate::authz::{Attributes, Decision, Step};
use crate::rbac::aggregate;
use crate::rbac::rules::Rule;
use crate::rules;
use crate::verbs::Call;
use auth::{Identity, SYSTEM_MASTERS};
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};

impl Api {
    /// The answer, when the resource is a review; `None` for everything that is stored.
    pub(crate) async fn review(&self, call: &Call, body: &Value) -> Result<Option<Value>, ApiError> {
        if call.resource.offers("get") || !call.subresource.is_empty() {
            return Ok(None);
        }
        let (mut body, _) = rules::decode(&call.resource, body.clone(), &call.options)?;
        let gvr = call.resource.gvr();
        let (kind, spec) = (&*call.resource.row.kind, &body["spec"]);
        let status = match (&*gvr.group, &*gvr.resource) {
            ("authorization.k8s.io", "selfsubjectaccessreviews") => {
                check(kind, spec, false)?;
                self.access(&call.identity, spec).await?
            }
            ("authorization.k8s.io", "subjectaccessreviews") => {
                check(kind, spec, true)?;
                self.access(&subject(spec), spec).await?
            }
            ("authorization.k8s.io", "localsubjectaccessreviews") => {
                check(kind, spec, true)?;
                let (given, own) = (&spec["resourceAttributes"]["namespace"], &*call.key.namespace);
                if given != own {
                    return Err(ApiError::bad_request(format!(
                        "spec.resourceAttributes.namespace must match namespace: {own}"
                    )));
                }
                self.access(&subject(spec), spec).await?
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews") => {
                let namespace = spec["namespace"].as_str().unwrap_or_default();
                if namespace.is_empty() {
                    return Err(ApiError::bad_request("no namespace on request"));
                }
                self.storage.cache.wait_fresh().await?;
                self.rules_of(&call.identity, namespace)
            }
            ("authentication.k8s.io", "selfsubjectreviews") => json!({"userInfo": user_info(&call.identity)}),
            ("authentication.k8s.io", "tokenreviews") => self.token_review(spec).await?,
            _ => return Ok(None),
        };
        body["status"] = status;
        body["kind"] = json!(&*call.resource.row.kind);
        body["apiVersion"] = json!(call.resource.row.api_version());
        if !body["metadata"].is_object() {
            body["metadata"] = json!({});
        }
        Ok(Some(body))
    }

    async fn access(&self, identity: &Identity, spec: &Value) -> Result<Value, ApiError> {
        self.storage.cache.wait_fresh().await?;
        let attributes = attributes(spec);
        Ok(match self.decide(identity, &attributes).await {
            Decision::Allow => match self.authorizer.explain(identity, &attributes) {
                reason if reason.is_empty() => json!({"allowed": true}),
                reason => json!({"allowed": true, "reason": reason}),
            },
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        })
    }

    fn rules_of(&self, identity: &Identity, namespace: &str) -> Value {
        let mut held = self.rbac.held(identity, namespace);
        if identity.in_group(SYSTEM_MASTERS) {
            let all = || vec!["*".to_string()];
            held.rules.push(Rule { api_groups: all(), resources: all(), verbs: all(), ..Rule::default() });
            held.rules.push(Rule { non_resource_urls: all(), verbs: all(), ..Rule::default() });
        }
        if crate::node_access::node_of(identity).is_some() {
            held.errors.push("node authorizer does not support user rule resolution".into());
        }
        if self.authorizer.steps().iter().any(|step| matches!(step, Step::Webhook(_))) {
            held.errors.push("webhook authorizer does not support user rule resolution".into());
        }
        let (paths, resources): (Vec<Rule>, Vec<Rule>) =
            held.rules.into_iter().partition(|r| !r.non_resource_urls.is_empty());
        let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
        if !held.errors.is_empty() {
            status["incomplete"] = json!(true);
            status["evaluationError"] = json!(aggregate(&held.errors));
        }
        status
    }

    async fn token_review(&self, spec: &Value) -> Result<Value, ApiError> {
        let token = spec["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        let mut audiences = texts(&spec["audiences"]);
        let asked = !audiences.is_empty();
        if !asked {
            audiences = self.own_audiences();
        }
        Ok(match self.bearer(token, &audiences).await {
            Ok(Some(bearer)) => {
                let mut status = json!({"authenticated": true, "user": user_info(&bearer.identity)});
                if !bearer.audiences.is_empty() {
                    status["audiences"] = json!(bearer.audiences);
                }
                status
            }
            Ok(None) => json!({"user": {}, "error": "invalid bearer token"}),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        })
    }
}

/// What a review asks about.
fn attributes(spec: &Value) -> Attributes {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let Some(_) = spec["resourceAttributes"].as_object() else {
        return Attributes {
            verb: text(&spec["nonResourceAttributes"]["verb"]),
            path: text(&spec["nonResourceAttributes"]["path"]),
            ..Attributes::default()
        };
    };
    let a = &spec["resourceAttributes"];
    Attributes {
        verb: text(&a["verb"]),
        group: text(&a["group"]),
        version: text(&a["version"]),
        resource: text(&a["resource"]),
        subresource: text(&a["subresource"]),
        namespace: text(&a["namespace"]),
        name: text(&a["name"]),
        path: String::new(),
        field_selector: text(&a["fieldSelector"]["rawSelector"]),
    }
}

fn check(kind: &str, spec: &Value, needs_subject: bool) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    match (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object()) {
        (true, true) => errors.invalid(
            "spec.nonResourceAttributes",
            spec["nonResourceAttributes"].clone(),
            "cannot be specified in combination with resourceAttributes",
        ),
        (false, false) => errors.invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    let nobody = spec["user"].as_str().is_none_or(str::is_empty) && texts(&spec["groups"]).is_empty();
    if needs_subject && nobody {
        errors.invalid("spec.user", "", "at least one of user or group must be specified");
    }
    errors.into_result("authorization.k8s.io", kind, "")
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_string)).collect()
}

fn subject(spec: &Value) -> Identity {
    let extra = spec["extra"].as_object().into_iter().flatten();
    Identity {
        user: spec["user"].as_str().unwrap_or_default().into(),
        uid: spec["uid"].as_str().unwrap_or_default().into(),
        groups: texts(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
    }
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

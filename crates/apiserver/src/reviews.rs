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
        field_selector: selector(&a["fieldSelector"], field_requirement),
        label_selector: selector(&a["labelSelector"], label_requirement),
    }
}

/// A selector of a review as text: as it was given so, or of its requirements as far as text can say them.
fn selector(selector: &Value, text_of: fn(&str, &str, &[String]) -> Option<String>) -> String {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    if !raw.is_empty() {
        return raw.to_string();
    }
    let all = selector["requirements"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| text_of(r["key"].as_str()?, r["operator"].as_str()?, &texts(&r["values"])));
    all.collect::<Vec<_>>().join(",")
}

fn field_requirement(key: &str, operator: &str, values: &[String]) -> Option<String> {
    match (operator, values) {
        ("In", [one]) => Some(format!("{key}={one}")),
        ("NotIn", [one]) => Some(format!("{key}!={one}")),
        _ => None,
    }
}

fn label_requirement(key: &str, operator: &str, values: &[String]) -> Option<String> {
    match operator {
        "In" => Some(format!("{key} in ({})", values.join(","))),
        "NotIn" => Some(format!("{key} notin ({})", values.join(","))),
        "Exists" => Some(key.to_string()),
        "DoesNotExist" => Some(format!("!{key}")),
        _ => None,
    }
}

/// Complains about a selector that says nothing, says it twice, or says it wrongly.
fn check_selector(attributes: &Value, field: &str, errors: &mut FieldErrors) {
    let (given, at) = (&attributes[field], format!("spec.resourceAttributes.{field}"));
    if !given.is_object() {
        return;
    }
    let raw = given["rawSelector"].as_str().unwrap_or_default();
    let requirements: Vec<&Value> = given["requirements"].as_array().into_iter().flatten().collect();
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => {
            let why = "may not specified at the same time as requirements";
            errors.invalid(&format!("{at}.rawSelector"), raw, why);
        }
        (true, true) => {
            let why = format!("when {at} is specified, requirements or rawSelector is required");
            errors.required(&format!("{at}.requirements"), &why);
        }
        _ => {}
    }
    for (i, requirement) in requirements.into_iter().enumerate() {
        let at = format!("{at}.requirements[{i}]");
        if requirement["key"].as_str().is_none_or(str::is_empty) {
            errors.required(&format!("{at}.key"), "must be specified");
        }
        let (none, operator) = (texts(&requirement["values"]).is_empty(), requirement["operator"].as_str());
        match operator.unwrap_or_default() {
            "In" | "NotIn" if none => errors
                .required(&format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'"),
            "Exists" | "DoesNotExist" if !none => errors.forbidden(
                &format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&format!("{at}.operator"), other, "not a valid selector operator"),
        }
    }
}

fn check(kind: &str, spec: &Value, needs_subject: bool) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    for field in ["fieldSelector", "labelSelector"] {
        check_selector(&spec["resourceAttributes"], field, &mut errors);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_said_once_and_rightly() {
        let asked = |selector: Value| {
            let spec = json!({"resourceAttributes": {"verb": "list", "fieldSelector": selector}});
            (
                attributes(&spec).field_selector,
                check("X", &spec, false).map_err(|e| e.causes[0].field.clone()),
            )
        };
        let at = |field: &str| Err(format!("spec.resourceAttributes.fieldSelector.{field}"));
        let node = json!({"key": "spec.nodeName", "operator": "In", "values": ["n"]});
        assert_eq!(asked(json!({"rawSelector": "a=b"})), ("a=b".into(), Ok(())));
        assert_eq!(asked(json!({"requirements": [node]})), ("spec.nodeName=n".into(), Ok(())));
        assert_eq!(asked(json!({"requirements": [node], "rawSelector": "a=b"})).1, at("rawSelector"));
        assert_eq!(asked(json!({})).1, at("requirements"));
        let wrong = |operator: &str, values: Value| {
            asked(json!({"requirements": [{"key": "a", "operator": operator, "values": values}]})).1
        };
        assert_eq!(wrong("In", json!([])), at("requirements[0].values"));
        assert_eq!(wrong("Exists", json!(["x"])), at("requirements[0].values"));
        assert_eq!(wrong("Is", json!([])), at("requirements[0].operator"));
        let labels = json!({"resourceAttributes": {"labelSelector": {"requirements": [
            {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "DoesNotExist"}]}}});
        assert_eq!(attributes(&labels).label_selector, "a in (x,y),!b");
    }
}

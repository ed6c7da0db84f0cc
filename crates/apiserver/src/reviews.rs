//! Reviews: kinds that are questions. They are answered, not stored.

use crate::Api;
use crate::authz::{Attributes, Decision};
use crate::rules;
use crate::verbs::Call;
use auth::Identity;
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
        let status = match (&*gvr.group, &*gvr.resource) {
            ("authorization.k8s.io", "selfsubjectaccessreviews") => {
                self.access(&call.identity, &body["spec"])
            }
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => {
                self.access(&subject(&body["spec"]), &body["spec"])
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews") => json!({
                "resourceRules": [], "nonResourceRules": [], "incomplete": true,
                "evaluationError": "the authorizer does not support rule resolution",
            }),
            ("authentication.k8s.io", "selfsubjectreviews") => json!({"userInfo": user_info(&call.identity)}),
            ("authentication.k8s.io", "tokenreviews") => self.token_review(&body["spec"]).await,
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

    fn access(&self, identity: &Identity, spec: &Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let attributes = match spec["resourceAttributes"].as_object() {
            Some(_) => {
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
                }
            }
            None => Attributes {
                verb: text(&spec["nonResourceAttributes"]["verb"]),
                path: text(&spec["nonResourceAttributes"]["path"]),
                ..Attributes::default()
            },
        };
        match self.config.authorizer.authorize(identity, &attributes) {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        }
    }

    async fn token_review(&self, spec: &Value) -> Value {
        let token = spec["token"].as_str().unwrap_or_default();
        let identity = match &self.config.authenticator {
            Some(authenticator) => authenticator.authenticate(token).await,
            None => None,
        };
        match identity {
            Some(identity) => json!({"authenticated": true, "user": user_info(&identity)}),
            None => json!({"authenticated": false, "user": {}}),
        }
    }
}

fn subject(spec: &Value) -> Identity {
    let groups = spec["groups"].as_array().into_iter().flatten();
    Identity {
        user: spec["user"].as_str().unwrap_or_default().into(),
        uid: spec["uid"].as_str().unwrap_or_default().into(),
        groups: groups.filter_map(|g| g.as_str().map(str::to_string)).collect(),
        ..Identity::default()
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

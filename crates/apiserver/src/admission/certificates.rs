//! Certificate requests: who asked is what the server knows, not what the body says; approving and signing need the
//! right to, by signer; nobody becomes a superuser by a certificate.

use super::{Attempt, Operation};
use crate::authz::{Attributes, Decision};
use auth::csr::Request;
use auth::{Identity, SYSTEM_MASTERS};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use machinery::field_errors::FieldErrors;
use machinery::kinds::spot::Spot;
use machinery::status::ApiError;
use serde_json::{Value, json};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// What the server writes into `spec`.
const ASKER: [&str; 4] = ["username", "uid", "groups", "extra"];

pub(super) fn admit(attempt: &Attempt<'_>, csr: &mut Value) -> Result<(), ApiError> {
    if !attempt.call.resource.is(GROUP, "certificatesigningrequests") {
        return Ok(());
    }
    let Some(old) = attempt.old else {
        return if attempt.operation == Operation::Create { create(attempt, csr) } else { Ok(()) };
    };
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let (before, after) = (&old["status"], &csr["status"]);
    match attempt.call.subresource.as_str() {
        "approval" if before["conditions"] != after["conditions"] => permitted(attempt, "approve", signer)?,
        "status" if before["certificate"] != after["certificate"] || failed(before) != failed(after) => {
            permitted(attempt, "sign", signer)?;
        }
        _ => {}
    }
    csr["spec"] = old["spec"].clone();
    Ok(())
}

fn create(attempt: &Attempt<'_>, csr: &mut Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    machinery::kinds::certificates::request(&Spot::new(csr, "", &mut errors));
    let Some(spec) = csr["spec"].as_object_mut() else { return Ok(()) };
    ASKER.iter().for_each(|field| drop(spec.remove(*field)));
    spec.extend(asker(&attempt.call.identity));
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let request = BASE64_STANDARD.decode(text("request")).ok().and_then(|b| String::from_utf8(b).ok());
    let signer = text("signerName");
    match Request::parse(&request.unwrap_or_default()) {
        Err(error) => errors.invalid("spec.request", text("request"), &error.to_string()),
        Ok(request) if signer == CLIENT_SIGNER && request.groups.iter().any(|g| g == SYSTEM_MASTERS) => {
            let why = format!("use of {CLIENT_SIGNER} signer with {SYSTEM_MASTERS} group is not allowed");
            return Err(ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, &why));
        }
        Ok(_) => {}
    }
    errors.into_result(GROUP, "CertificateSigningRequest", &attempt.key.name)
}

fn asker(identity: &Identity) -> serde_json::Map<String, Value> {
    let mut fields = serde_json::Map::new();
    fields.insert("username".into(), json!(identity.user));
    fields.insert("groups".into(), json!(identity.groups));
    if !identity.uid.is_empty() {
        fields.insert("uid".into(), json!(identity.uid));
    }
    if !identity.extra.is_empty() {
        fields.insert("extra".into(), json!(identity.extra));
    }
    fields
}

fn failed(status: &Value) -> bool {
    status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Failed")
}

/// May the caller do this as that signer, or as every signer of its domain?
fn permitted(attempt: &Attempt<'_>, verb: &str, signer: &str) -> Result<(), ApiError> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let may = |name: &str| {
        let attributes = Attributes {
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name: name.into(),
            ..Attributes::default()
        };
        attempt.api.authorizer.authorize(&attempt.call.identity, &attributes) == Decision::Allow
    };
    if may(signer) || may(&domain) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, &why))
}

//! CertificateSigningRequest; and APIService, the other kind about who serves and signs what.
//!
//! Deliberately not here: reading the request and the right to approve or sign (admission), signing itself.

use super::get::{at, default, flag, has, int, list, set, text, texts};
use super::pod::condition;
use super::webhooks::port;
use super::{Behaviour, FieldKind, GENERIC, NameRule};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::status::ApiError;
use crate::table::{Cell, Column};
use serde_json::Value;
use std::collections::BTreeSet;

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const EXPIRATION_SECONDS_MIN: i64 = 600;
/// A domain, a slash, a namespace, a dot and a name.
const SIGNER_MAX: usize = 571;
const DOMAIN_MAX: usize = 253;
/// Conditions that are only ever true.
const TRUE_ONLY: [&str; 3] = ["Approved", "Denied", "Failed"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: "certificates.k8s.io",
        resource: "certificatesigningrequests",
        validated: true,
        name: NameRule::PathSegment,
        prepare_update: |new, old| set(new, "spec", old["spec"].clone()),
        validate_create: request,
        validate_status: |new, old, errors| {
            conditions(new, errors);
            kept(new, old, false, errors);
            if has(old, "/status/certificate")
                && text(new, "/status/certificate") != text(old, "/status/certificate")
            {
                let words = "updates may not modify existing certificate content";
                errors.forbidden("status.certificate", words);
            }
        },
        fields: &[("spec.signerName", FieldKind::Text("/spec/signerName"))],
        columns: &[
            Column::NAME,
            Column::AGE,
            Column::new("SignerName", Cell::TextOrNone("/spec/signerName")),
            Column::new("Requestor", Cell::Text("/spec/username")),
            Column::new("RequestedDuration", Cell::Fn(|c| duration(c).into())),
            Column::new("Condition", Cell::Fn(|c| csr_condition(c).into())),
        ],
        ..GENERIC
    },
    Behaviour {
        group: "apiregistration.k8s.io",
        resource: "apiservices",
        validated: true,
        name: NameRule::PathSegment,
        unconditional_update: false,
        defaults: |obj| at(obj, "/spec/service", |s| default(s, "port", 443)),
        validate_create: api_service,
        validate_update: |new, _, errors| api_service(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Service", Cell::Fn(|a| service_text(a).into())),
            Column::new("Available", Cell::Fn(|a| available(a).into())),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn duration(c: &Value) -> String {
    match int(c, "/spec/expirationSeconds") {
        Some(seconds) => {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            crate::time::human_duration(std::time::Duration::from_secs(seconds))
        }
        None => "<none>".into(),
    }
}

fn csr_condition(c: &Value) -> String {
    let mut words: Vec<&str> = TRUE_ONLY.into_iter().filter(|ty| condition(c, ty) == "True").collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if has(c, "/status/certificate") {
        words.push("Issued");
    }
    words.join(",")
}

fn service_text(a: &Value) -> String {
    if !has(a, "/spec/service") {
        return "Local".into();
    }
    format!("{}/{}", text(a, "/spec/service/namespace"), text(a, "/spec/service/name"))
}

fn available(a: &Value) -> String {
    let found = list(a, "/status/conditions").iter().find(|c| text(c, "/type") == "Available");
    match found {
        Some(c) if text(c, "/status") != "True" => format!("{} ({})", text(c, "/status"), text(c, "/reason")),
        Some(_) => "True".into(),
        None => "Unknown".into(),
    }
}

/// Checks all of a new request but the request itself.
pub fn request(obj: &Value, errors: &mut FieldErrors) {
    let usages: Vec<&str> = texts(obj, "/spec/usages").collect();
    if usages.is_empty() {
        errors.required("spec.usages", "usages must be provided");
    }
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.iter().enumerate() {
        errors.one_of(&format!("spec.usages[{i}]"), usage, &USAGES);
        if !seen.insert(*usage) {
            errors.duplicate(&format!("spec.usages[{i}]"), *usage);
        }
    }
    match text(obj, "/spec/signerName") {
        LEGACY_SIGNER => {
            let words = "the legacy signerName is not allowed via this API version";
            errors.invalid("spec.signerName", LEGACY_SIGNER, words);
        }
        signer => signer_name(signer, "spec.signerName", errors),
    }
    if let Some(seconds) = int(obj, "/spec/expirationSeconds").filter(|s| *s < EXPIRATION_SECONDS_MIN) {
        let words = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid("spec.expirationSeconds", seconds, words);
    }
    conditions(obj, errors);
}

/// `example.com/signer`.
fn signer_name(signer: &str, path: &str, errors: &mut FieldErrors) {
    if signer.is_empty() {
        return errors.required(path, "signerName must be provided");
    }
    let Some((domain, own)) = signer.split_once('/').filter(|(_, own)| !own.contains('/')) else {
        let words = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.invalid(path, signer, words);
    };
    if domain.len() > DOMAIN_MAX {
        errors.too_long(path, DOMAIN_MAX);
    }
    type Rule = fn(&str) -> Vec<String>;
    let parts: [(&str, Rule); 2] = [(domain, name::dns1123_label), (own, name::dns1123_subdomain)];
    for (i, (part, rule)) in parts.into_iter().enumerate() {
        if let Some(label) = part.split('.').find(|l| !rule(l).is_empty()) {
            for words in rule(label) {
                errors.invalid(path, part, &format!("validating label {label:?}: {words}"));
            }
        }
        if i == 0 && !domain.contains('.') {
            errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
        }
    }
    if signer.len() > SIGNER_MAX {
        errors.too_long(path, SIGNER_MAX);
    }
}

fn conditions(obj: &Value, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, c) in list(obj, "/status/conditions").iter().enumerate() {
        let path = format!("status.conditions[{i}]");
        let (ty, status) = (text(c, "/type"), text(c, "/status"));
        if ty.is_empty() {
            errors.required(&format!("{path}.type"), "");
        }
        let allowed: &[&str] = if TRUE_ONLY.contains(&ty) { &["True"] } else { &STATUSES };
        if status.is_empty() {
            errors.required(&format!("{path}.status"), "");
        } else {
            errors.one_of(&format!("{path}.status"), status, allowed);
        }
        let other = match ty {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(other) {
            let words = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&format!("{path}.type"), ty, words);
        }
        if !seen.insert(ty) {
            errors.duplicate(&format!("{path}.type"), ty);
        }
    }
}

/// What is decided stays decided; only an approval decides.
fn kept(new: &Value, old: &Value, approving: bool, errors: &mut FieldErrors) {
    let of = |v: &Value, ty: &str| -> Vec<Value> {
        list(v, "/status/conditions").iter().filter(|c| text(c, "/type") == ty).cloned().collect()
    };
    for ty in TRUE_ONLY {
        let (before, after) = (of(old, ty), of(new, ty));
        let path = "status.conditions";
        if after.len() < before.len() {
            errors.forbidden(path, &format!("updates may not remove a condition of type {ty:?}"));
        } else if ty == "Failed" || approving {
            continue;
        } else if after.len() > before.len() {
            errors.forbidden(path, &format!("updates may not add a condition of type {ty:?}"));
        } else if before != after {
            errors.forbidden(path, &format!("updates may not modify a condition of type {ty:?}"));
        }
    }
}

/// Checks an update of the `approval` subresource: 422 with every cause.
pub fn validate_approval(new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    super::meta::validate_update(new, old, &mut errors);
    conditions(new, &mut errors);
    kept(new, old, true, &mut errors);
    errors.into_result("certificates.k8s.io", "CertificateSigningRequest", text(new, "/metadata/name"))
}

fn api_service(obj: &Value, errors: &mut FieldErrors) {
    const GROUP_PRIORITY_MAX: i64 = 20_000;
    const VERSION_PRIORITY_MAX: i64 = 1_000;
    let spec = &obj["spec"];
    let (group, version) = (text(spec, "/group"), text(spec, "/version"));
    let wanted = format!("{version}.{group}");
    if text(obj, "/metadata/name") != wanted {
        let words = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.invalid("metadata.name", text(obj, "/metadata/name"), &words);
    }
    if group.is_empty() && version != "v1" {
        errors.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
    }
    if !group.is_empty() {
        errors.invalid_all("spec.group", group, name::dns1123_subdomain(group));
    }
    errors.invalid_all("spec.version", version, name::dns1035_label(version));
    for (key, max) in
        [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)]
    {
        let given = int(spec, &format!("/{key}")).unwrap_or(0);
        if !(1..=max).contains(&given) {
            errors.invalid(&format!("spec.{key}"), given, &format!("must be positive and less than {max}"));
        }
    }
    let (bundle, insecure) = (text(spec, "/caBundle"), flag(spec, "/insecureSkipTLSVerify"));
    let Some(service) = spec.get("service").filter(|s| !s.is_null()) else {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            errors.invalid("spec.caBundle", shown, "local APIServices may not have a caBundle");
        }
        if insecure {
            let words = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid("spec.insecureSkipTLSVerify", true, words);
        }
        return;
    };
    for key in ["namespace", "name"] {
        super::get::required(service, "spec.service", key, errors);
    }
    port(service, "spec.service", errors);
    if insecure && !bundle.is_empty() {
        errors.invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(errors: &FieldErrors) -> Vec<String> {
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn requests() {
        let check = |spec: Value| {
            let mut errors = FieldErrors::new();
            request(&json!({"spec": spec}), &mut errors);
            words(&errors)
        };
        assert_eq!(
            check(json!({"signerName": "example.com/a", "usages": ["client auth"]})),
            Vec::<String>::new()
        );
        assert_eq!(
            check(
                json!({"signerName": "example/a", "usages": ["client auth", "client auth"], "expirationSeconds": 5})
            ),
            [
                "spec.usages[1]: Duplicate value: \"client auth\"",
                "spec.signerName: Invalid value: \"example\": should be a domain with at least two segments separated by dots",
                "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)",
            ]
        );
        assert_eq!(check(json!({})).len(), 2);
    }

    #[test]
    fn decisions_stand() {
        let with = |types: &[&str]| {
            let all: Vec<Value> = types.iter().map(|t| json!({"type": t, "status": "True"})).collect();
            json!({"metadata": {"name": "x"}, "status": {"conditions": all}})
        };
        assert!(validate_approval(&with(&["Approved"]), &with(&[])).is_ok());
        let both = validate_approval(&with(&["Approved", "Denied"]), &with(&["Approved"])).unwrap_err();
        assert!(
            both.message.contains("Approved and Denied conditions are mutually exclusive"),
            "{}",
            both.message
        );
        let gone = validate_approval(&with(&[]), &with(&["Denied"])).unwrap_err();
        assert!(gone.message.contains("updates may not remove a condition of type \"Denied\""));
        let mut errors = FieldErrors::new();
        kept(&with(&["Approved"]), &with(&[]), false, &mut errors);
        assert_eq!(
            words(&errors),
            ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
        );
    }

    #[test]
    fn api_services() {
        let mut a = json!({"metadata": {"name": "v1.x.io"}, "spec": {"group": "x.io", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"name": "s", "namespace": "n", "port": 443}}});
        let mut errors = FieldErrors::new();
        api_service(&a, &mut errors);
        assert_eq!(errors, FieldErrors::new());
        a["spec"]["versionPriority"] = json!(0);
        a["metadata"]["name"] = json!("x");
        api_service(&a, &mut errors);
        assert_eq!(
            words(&errors),
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.x.io\"",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ]
        );
    }
}

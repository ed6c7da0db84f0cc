//! CertificateSigningRequest; and APIService, the other kind about who serves and signs what.
//!
//! Deliberately not here: reading the request and the right to approve or sign (admission), signing itself.

use super::get::{at, default, has, int, list, set, text};
use super::pod::condition;
use super::spot::{Rule, Spot};
use super::webhooks::port;
use super::{Behaviour, CHECKED, FieldKind, NameRule, UNCHECKED};
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
        name: NameRule::PathSegment,
        prepare_update: |new, old| set(new, "spec", old["spec"].clone()),
        validate: request,
        validate_update: UNCHECKED,
        validate_status: |s, old| {
            conditions(s);
            kept(s, old, false);
            if has(old, "/status/certificate")
                && s.text("status.certificate") != text(old, "/status/certificate")
            {
                s.forbidden("status.certificate", "updates may not modify existing certificate content");
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
        ..CHECKED
    },
    Behaviour {
        group: "apiregistration.k8s.io",
        resource: "apiservices",
        name: NameRule::PathSegment,
        unconditional_update: false,
        defaults: |obj| at(obj, "/spec/service", |s| default(s, "port", 443)),
        validate: api_service,

        columns: &[
            Column::NAME,
            Column::new("Service", Cell::Fn(|a| service_text(a).into())),
            Column::new("Available", Cell::Fn(|a| available(a).into())),
            Column::AGE,
        ],
        ..CHECKED
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
    let is = |ty: &str| condition(c, ty) == "True";
    let decided = [(is("Denied"), "Denied"), (is("Approved"), "Approved"), (true, "Pending")];
    let decided = decided.into_iter().find(|(holds, _)| *holds);
    let further = [(is("Failed"), "Failed"), (has(c, "/status/certificate"), "Issued")];
    let words = decided.into_iter().chain(further).filter(|(holds, _)| *holds).map(|(_, word)| word);
    words.collect::<Vec<_>>().join(",")
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
pub fn request(obj: &Spot) {
    let spec = obj.key("spec");
    if spec.list("usages").is_empty() {
        spec.required("usages", "usages must be provided");
    }
    let mut seen = BTreeSet::new();
    for usage in spec.each("usages") {
        usage.known("", &USAGES);
        usage.unique("", usage.text(""), &mut seen);
    }
    if spec.text("signerName") == LEGACY_SIGNER {
        spec.wrong("signerName", "the legacy signerName is not allowed via this API version");
    } else {
        signer_name(&spec.key("signerName"));
    }
    let words = "may not specify a duration less than 600 seconds (10 minutes)";
    spec.within("expirationSeconds", EXPIRATION_SECONDS_MIN..=i64::MAX, words);
    conditions(obj);
}

/// `example.com/signer`.
fn signer_name(s: &Spot) {
    let signer = s.text("");
    if signer.is_empty() {
        return s.required("", "signerName must be provided");
    }
    let Some((domain, own)) = signer.split_once('/').filter(|(_, own)| !own.contains('/')) else {
        let words = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return s.wrong("", words);
    };
    s.no_longer("", domain.len(), DOMAIN_MAX);
    let parts: [(&str, Rule); 2] = [(domain, name::dns1123_label), (own, name::dns1123_subdomain)];
    for (i, (part, rule)) in parts.into_iter().enumerate() {
        if let Some(label) = part.split('.').find(|l| !rule(l).is_empty()) {
            for words in rule(label) {
                s.invalid("", part, &format!("validating label {label:?}: {words}"));
            }
        }
        if i == 0 && !domain.contains('.') {
            s.invalid("", domain, "should be a domain with at least two segments separated by dots");
        }
    }
    s.no_longer("", signer.len(), SIGNER_MAX);
}

fn conditions(obj: &Spot) {
    let mut seen = BTreeSet::new();
    for c in obj.each("status.conditions") {
        let ty = c.text("type");
        c.need("type");
        c.one_of("status", if TRUE_ONLY.contains(&ty) { &["True"] } else { &STATUSES });
        let other = match ty {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(other) {
            c.invalid("type", ty, "Approved and Denied conditions are mutually exclusive");
        }
        c.unique("type", ty, &mut seen);
    }
}

/// What is decided stays decided; only an approval decides.
fn kept(new: &Spot, old: &Value, approving: bool) {
    let of = |v: &Value, ty: &str| -> Vec<Value> {
        list(v, "/status/conditions").iter().filter(|c| text(c, "/type") == ty).cloned().collect()
    };
    for ty in TRUE_ONLY {
        let (before, after) = (of(old, ty), of(new.v, ty));
        let what = if after.len() < before.len() {
            "remove"
        } else if ty == "Failed" || approving {
            continue;
        } else if after.len() > before.len() {
            "add"
        } else if before != after {
            "modify"
        } else {
            continue;
        };
        let words = format!("updates may not {what} a condition of type {ty:?}");
        new.forbidden("status.conditions", &words);
    }
}

/// Checks an update of the `approval` subresource: 422 with every cause.
pub fn validate_approval(new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = FieldErrors::new();
    let spot = Spot::new(new, "", &mut errors);
    super::meta::validate_update(&spot, old);
    conditions(&spot);
    kept(&spot, old, true);
    errors.into_result("certificates.k8s.io", "CertificateSigningRequest", text(new, "/metadata/name"))
}

fn api_service(obj: &Spot) {
    const GROUP_PRIORITY_MAX: i64 = 20_000;
    const VERSION_PRIORITY_MAX: i64 = 1_000;
    let spec = obj.key("spec");
    let (group, version) = (spec.text("group"), spec.text("version"));
    let wanted = format!("{version}.{group}");
    if obj.text("metadata.name") != wanted {
        let words = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        obj.invalid("metadata.name", obj.text("metadata.name"), &words);
    }
    if group.is_empty() && version != "v1" {
        spec.required("group", "only v1 may have an empty group and it better be legacy kube");
    }
    spec.like_opt("group", name::dns1123_subdomain);
    spec.like("version", name::dns1035_label);
    for (key, max) in
        [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)]
    {
        spec.within_or_zero(key, 1..=max, &format!("must be positive and less than {max}"));
    }
    let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
    let Some(service) = spec.opt("service") else {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            spec.invalid("caBundle", shown, "local APIServices may not have a caBundle");
        }
        if insecure {
            let words = "local APIServices may not have insecureSkipTLSVerify";
            spec.invalid("insecureSkipTLSVerify", true, words);
        }
        return;
    };
    service.need("namespace");
    service.need("name");
    port(&service);
    if insecure && !bundle.is_empty() {
        spec.invalid("insecureSkipTLSVerify", true, "may not be true if caBundle is present");
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
            request(&Spot::new(&json!({"spec": spec}), "", &mut errors));
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
        kept(&Spot::new(&with(&["Approved"]), "", &mut errors), &with(&[]), false);
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
        api_service(&Spot::new(&a, "", &mut errors));
        assert_eq!(errors, FieldErrors::new());
        a["spec"]["versionPriority"] = json!(0);
        a["metadata"]["name"] = json!("x");
        api_service(&Spot::new(&a, "", &mut errors));
        assert_eq!(
            words(&errors),
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.x.io\"",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ]
        );
    }
}

//! Validation of what few pods have: resource claims, Windows options, the fields an operating system excludes.

use crate::field_errors::FieldErrors;
use crate::kinds::get::{flag, has, list, required, text};
use crate::name;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Fields of a pod's security context that only Linux has.
const LINUX_POD: [&str; 11] = [
    "appArmorProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "runAsGroup",
    "runAsUser",
    "seLinuxChangePolicy",
    "seLinuxOptions",
    "seccompProfile",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "sysctls",
];
/// The same of a container's.
const LINUX_CONTAINER: [&str; 10] = [
    "allowPrivilegeEscalation",
    "appArmorProfile",
    "capabilities",
    "privileged",
    "procMount",
    "readOnlyRootFilesystem",
    "runAsGroup",
    "runAsUser",
    "seLinuxOptions",
    "seccompProfile",
];
const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
const SPEC_MAX: usize = 64 * 1024;
const USER_MAX: usize = 256;

/// All of it, for a pod spec at `path`.
pub fn validate(spec: &Value, path: &str, errors: &mut FieldErrors) {
    claims(spec, path, errors);
    windows(spec, path, errors);
    system(spec, path, errors);
}

fn claims(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, claim) in list(spec, "/resourceClaims").iter().enumerate() {
        let path = format!("{path}.resourceClaims[{i}]");
        if let Some(own) = required(claim, &path, "name", errors) {
            errors.invalid_all(&format!("{path}.name"), own, name::dns1123_label(own));
            if !names.insert(own) {
                errors.duplicate(&format!("{path}.name"), own);
            }
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|s| has(claim, &format!("/{s}"))).count() {
            0 => errors.invalid(
                &path,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            1 => {}
            _ => errors.invalid(
                &path,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
        }
        for key in sources {
            if let Some(given) = claim.get(key).and_then(Value::as_str) {
                errors.invalid_all(&format!("{path}.{key}"), given, name::dns1123_subdomain(given));
            }
        }
    }
    for key in LISTS {
        for (i, c) in list(spec, &format!("/{key}")).iter().enumerate() {
            used_claims(c, &names, &format!("{path}.{key}[{i}].resources.claims"), errors);
        }
    }
}

fn used_claims(c: &Value, known: &BTreeSet<&str>, path: &str, errors: &mut FieldErrors) {
    // With and without a request: a claim as a whole stands alone.
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (i, claim) in list(c, "/resources/claims").iter().enumerate() {
        let path = format!("{path}[{i}]");
        let Some(own) = required(claim, &path, "name", errors) else { continue };
        if !known.contains(own) {
            errors.not_found(&format!("{path}.name"), own);
        }
        let requests = used.entry(own).or_default();
        if !requests.insert(text(claim, "/request")) || (requests.len() > 1 && requests.contains("")) {
            errors.duplicate(&path, own);
        }
    }
}

/// `windowsOptions` of the pod and its containers.
fn windows(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let pods = &spec["securityContext"]["windowsOptions"];
    options(pods, &format!("{path}.securityContext.windowsOptions"), errors);
    let whole = pods.get("hostProcess").and_then(Value::as_bool);
    for key in LISTS {
        for (i, c) in list(spec, &format!("/{key}")).iter().enumerate() {
            let path = format!("{path}.{key}[{i}].securityContext.windowsOptions");
            let own = &c["securityContext"]["windowsOptions"];
            options(own, &path, errors);
            let host = own.get("hostProcess").and_then(Value::as_bool);
            if let (Some(a), Some(b)) = (whole, host)
                && a != b
            {
                let words = format!("pod hostProcess value must be identical if both are specified, was {a}");
                errors.invalid(&format!("{path}.hostProcess"), b, &words);
            }
            if host.or(whole) == Some(true) && !flag(spec, "/hostNetwork") {
                let words = "hostNetwork must be true if pod contains any hostProcess containers";
                errors.invalid(&format!("{path}.hostProcess"), true, words);
            }
        }
    }
}

fn options(own: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(given) = own.get("gmsaCredentialSpecName").and_then(Value::as_str) {
        errors.invalid_all(&format!("{path}.gmsaCredentialSpecName"), given, name::dns1123_subdomain(given));
    }
    if let Some(given) = own.get("gmsaCredentialSpec").and_then(Value::as_str) {
        let at = format!("{path}.gmsaCredentialSpec");
        if given.is_empty() {
            errors.invalid(&at, given, "gmsaCredentialSpec cannot be an empty string");
        } else if given.len() > SPEC_MAX {
            errors.invalid(&at, given.len(), "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(given) = own.get("runAsUserName").and_then(Value::as_str) {
        let at = format!("{path}.runAsUserName");
        if given.is_empty() {
            errors.invalid(&at, given, "runAsUserName cannot be an empty string");
        } else if given.len() > USER_MAX {
            errors.invalid(&at, given, "runAsUserName's total length cannot be longer than 256 characters");
        } else if given.contains(char::is_control) {
            errors.invalid(&at, given, "runAsUserName cannot contain control characters");
        } else if given.matches('\\').count() > 1 {
            errors.invalid(&at, given, "runAsUserName cannot contain more than one backslash");
        }
    }
}

/// A pod that says which system it is for must not ask for what the other one has.
fn system(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let (os, context) = (text(spec, "/os/name"), &spec["securityContext"]);
    let mut refuse = |given: bool, at: String| {
        if given {
            errors.forbidden(&at, &format!("cannot be set for a {os} pod"));
        }
    };
    match os {
        "linux" => {
            let at = format!("{path}.securityContext.windowsOptions");
            refuse(has(context, "/windowsOptions"), at);
        }
        "windows" => {
            for key in LINUX_POD {
                refuse(has(context, &format!("/{key}")), format!("{path}.securityContext.{key}"));
            }
            for key in ["hostPID", "hostIPC", "shareProcessNamespace"] {
                refuse(flag(spec, &format!("/{key}")), format!("{path}.{key}"));
            }
            refuse(has(spec, "/hostUsers"), format!("{path}.hostUsers"));
        }
        _ => return,
    }
    for key in LISTS {
        for (i, c) in list(spec, &format!("/{key}")).iter().enumerate() {
            let (own, path) = (&c["securityContext"], format!("{path}.{key}[{i}].securityContext"));
            let fields: &[&str] = if os == "linux" { &["windowsOptions"] } else { &LINUX_CONTAINER };
            for field in fields {
                refuse(has(own, &format!("/{field}")), format!("{path}.{field}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&spec, "spec", &mut errors);
        errors.causes().iter().map(|c| c.field.clone()).collect()
    }

    #[test]
    fn resource_claims() {
        let spec = json!({"resourceClaims": [{"name": "a", "resourceClaimName": "x"}, {"name": "a"}],
            "containers": [{"resources": {"claims": [{"name": "a"}, {"name": "a", "request": "r"}, {"name": "b"}]}}]});
        assert_eq!(
            found(spec),
            [
                "spec.resourceClaims[1].name",
                "spec.resourceClaims[1]",
                "spec.containers[0].resources.claims[1]",
                "spec.containers[0].resources.claims[2].name",
            ]
        );
    }

    #[test]
    fn systems() {
        assert_eq!(
            found(json!({"os": {"name": "windows"}, "securityContext": {"runAsUser": 1}, "hostPID": true})),
            ["spec.securityContext.runAsUser", "spec.hostPID"]
        );
        let options = json!({"windowsOptions": {"hostProcess": true, "runAsUserName": ""}});
        assert_eq!(
            found(json!({"os": {"name": "linux"}, "containers": [{"securityContext": options}]})),
            [
                "spec.containers[0].securityContext.windowsOptions.runAsUserName",
                "spec.containers[0].securityContext.windowsOptions.hostProcess",
                "spec.containers[0].securityContext.windowsOptions",
            ]
        );
        assert_eq!(found(json!({"containers": [{}]})), Vec::<String>::new());
    }
}

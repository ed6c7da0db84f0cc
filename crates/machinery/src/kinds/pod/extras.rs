//! Validation of what few pods have: resource claims, Windows options, the fields an operating system excludes.

use crate::kinds::spot::Spot;

use crate::name;
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
const SPEC_MAX: usize = 64 * 1024;
const USER_MAX: usize = 256;

/// All of it, for a pod spec.
pub fn validate(spec: &Spot) {
    claims(spec);
    windows(spec);
    system(spec);
}

fn containers<'a>(spec: &Spot<'a>) -> impl Iterator<Item = Spot<'a>> + use<'a> {
    let all = ["containers", "initContainers", "ephemeralContainers"].map(|key| spec.each(key));
    all.into_iter().flatten()
}

fn claims(spec: &Spot) {
    let mut names = BTreeSet::new();
    for claim in spec.each("resourceClaims") {
        if let Some(own) = claim.need("name") {
            claim.like("name", name::dns1123_label);
            claim.unique("name", own, &mut names);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match claim.given(&sources).len() {
            0 => {
                claim.wrong("", "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
            1 => {}
            _ => {
                let words =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                claim.wrong("", words);
            }
        }
        claim.given(&sources).iter().for_each(|key| claim.like(key, name::dns1123_subdomain));
    }
    containers(spec).for_each(|c| used_claims(&c, &names));
}

fn used_claims(c: &Spot, known: &BTreeSet<&str>) {
    // With and without a request: a claim as a whole stands alone.
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for claim in c.each("resources.claims") {
        let Some(own) = claim.need("name") else { continue };
        if !known.contains(own) {
            claim.not_found("name", own);
        }
        let requests = used.entry(own).or_default();
        if !requests.insert(claim.text("request")) || (requests.len() > 1 && requests.contains("")) {
            claim.duplicate("", own);
        }
    }
}

/// `windowsOptions` of the pod and its containers.
fn windows(spec: &Spot) {
    const OPTIONS: &str = "securityContext.windowsOptions";
    let pods = spec.key(OPTIONS);
    options(&pods);
    let whole = pods.v["hostProcess"].as_bool();
    for own in containers(spec).map(|c| c.key(OPTIONS)) {
        options(&own);
        let host = own.v["hostProcess"].as_bool();
        if let (Some(a), Some(b)) = (whole, host)
            && a != b
        {
            let words = format!("pod hostProcess value must be identical if both are specified, was {a}");
            own.invalid("hostProcess", b, &words);
        }
        if host.or(whole) == Some(true) && !spec.flag("hostNetwork") {
            let words = "hostNetwork must be true if pod contains any hostProcess containers";
            own.invalid("hostProcess", true, words);
        }
    }
}

fn options(own: &Spot) {
    own.given(&["gmsaCredentialSpecName"]).iter().for_each(|key| own.like(key, name::dns1123_subdomain));
    if let Some(s) = own.opt("gmsaCredentialSpec") {
        let given = s.text("");
        if given.is_empty() {
            s.wrong("", "gmsaCredentialSpec cannot be an empty string");
        } else if given.len() > SPEC_MAX {
            s.invalid("", given.len(), "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(s) = own.opt("runAsUserName") {
        let given = s.text("");
        if given.is_empty() {
            s.wrong("", "runAsUserName cannot be an empty string");
        } else if given.len() > USER_MAX {
            s.wrong("", "runAsUserName's total length cannot be longer than 256 characters");
        } else if given.contains(char::is_control) {
            s.wrong("", "runAsUserName cannot contain control characters");
        } else if given.matches('\\').count() > 1 {
            s.wrong("", "runAsUserName cannot contain more than one backslash");
        }
    }
}

/// A pod that says which system it is for must not ask for what the other one has.
fn system(spec: &Spot) {
    let (os, context) = (spec.text("os.name"), spec.key("securityContext"));
    let refuse = |s: &Spot, keys: &[&str]| {
        for key in s.given(keys) {
            s.forbidden(key, &format!("cannot be set for a {os} pod"));
        }
    };
    let of_containers: &[&str] = match os {
        "linux" => {
            refuse(&context, &["windowsOptions"]);
            &["windowsOptions"]
        }
        "windows" => {
            refuse(&context, &LINUX_POD);
            for key in ["hostPID", "hostIPC", "shareProcessNamespace"].into_iter().filter(|k| spec.flag(k)) {
                refuse(spec, &[key]);
            }
            refuse(spec, &["hostUsers"]);
            &LINUX_CONTAINER
        }
        _ => return,
    };
    containers(spec).for_each(|c| refuse(&c.key("securityContext"), of_containers));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::Value;
    use serde_json::json;

    fn found(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&Spot::new(&spec, "spec", &mut errors));
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

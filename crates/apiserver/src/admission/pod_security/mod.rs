//! PodSecurity: pods keep to the level that their namespace's labels ask for (`pod-security.kubernetes.io/enforce`,
//! `audit`, `warn`, each with a version). What makes pods is only warned about.
//!
//! There are no exemptions. An enforced level that cannot be read counts as the strictest.

mod checks;

use super::{Attempt, Operation};
use crate::audit;
use checks::{Level, Pod};
use k8s_schema::gvr;
use machinery::field_errors::FieldErrors;
use machinery::kinds::get::text;
use machinery::status::ApiError;
use serde_json::Value;
use std::collections::BTreeMap;

const LABEL: &str = "pod-security.kubernetes.io/";
/// Pods of a namespace that are looked at when its level changes.
const PODS_MAX: usize = 3000;
/// Subresources of pods that change nothing of what is checked.
const IGNORED: [&str; 4] = ["binding", "eviction", "status", "resize"];
/// Where the pod is in what makes pods.
const MAKERS: [(&str, &str, &str); 8] = [
    ("", "replicationcontrollers", "/spec/template"),
    ("", "podtemplates", "/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

/// A level of a version; `None` is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standard {
    level: Level,
    minor: Option<u32>,
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

impl Standard {
    /// What a pod does against it: reasons, and reasons with details.
    fn complaints(&self, pod: &Pod<'_>) -> Option<(String, String)> {
        let found = checks::refusals(pod, self.level, self.minor.unwrap_or(u32::MAX - 1));
        let reasons: Vec<&str> = found.iter().map(|(reason, _)| reason.as_str()).collect();
        let details: Vec<String> =
            found.iter().map(|(reason, detail)| format!("{reason} ({detail})")).collect();
        (!found.is_empty()).then(|| (reasons.join(", "), details.join(", ")))
    }
}

/// What a namespace asks for.
#[derive(Debug, PartialEq)]
struct Policy {
    enforce: Standard,
    audit: Standard,
    warn: Standard,
    /// Labels that cannot be read.
    errors: Vec<(String, String, &'static str)>,
}

impl Policy {
    fn read(labels: &Value) -> Policy {
        let mut errors = Vec::new();
        let mut standard = |mode: &str, otherwise: Level| {
            let label = |key: String| labels[&key].as_str().map(|value| (key.clone(), value));
            let level = label(format!("{LABEL}{mode}"));
            let version = label(format!("{LABEL}{mode}-version"));
            let mut out = Standard { level: Level::Privileged, minor: None };
            if let Some((key, value)) = &level {
                out.level = parse_level(value).unwrap_or_else(|| {
                    errors.push((
                        key.clone(),
                        value.to_string(),
                        "must be one of privileged, baseline, restricted",
                    ));
                    otherwise
                });
            }
            if let Some((key, value)) = &version {
                out.minor = parse_version(value).unwrap_or_else(|| {
                    errors.push((key.clone(), value.to_string(), "must be \"latest\" or \"v1.x\""));
                    None
                });
            }
            (out, level.is_some(), version.is_some())
        };
        let (enforce, enforced, _) = standard("enforce", Level::Restricted);
        let (audit, ..) = standard("audit", Level::Privileged);
        let (mut warn, warned, warned_of) = standard("warn", Level::Privileged);
        // Who enforces a level wants to hear of it where it is not enforced: in what makes pods.
        if enforced && !warned && enforce.level > warn.level {
            warn.level = enforce.level;
            if !warned_of {
                warn.minor = enforce.minor;
            }
        }
        Policy { enforce, audit, warn, errors }
    }
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain = minor == "0" || !minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit());
    minor.parse().ok().filter(|_| plain).map(Some)
}

pub(super) fn judge(
    attempt: &Attempt<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    let sub = attempt.call.subresource.as_str();
    if resource.is("", "namespaces") && sub.is_empty() {
        return namespace(attempt, object, warnings);
    }
    if resource.is("", "pods") {
        if IGNORED.contains(&sub) || attempt.old.is_some_and(|old| !is_significant(old, object)) {
            return Ok(());
        }
        return judge_pod(attempt, object, true, warnings);
    }
    let maker = MAKERS.iter().find(|(group, name, _)| sub.is_empty() && resource.is(group, name));
    match maker.and_then(|(_, _, at)| object.pointer(at)) {
        Some(template) => judge_pod(attempt, template, false, warnings),
        None => Ok(()),
    }
}

/// Can the change matter? Nearly everything about a pod's safety cannot be changed.
fn is_significant(old: &Value, new: &Value) -> bool {
    let notes = |pod: &Value| pod["metadata"]["annotations"].clone();
    old["spec"]["ephemeralContainers"] != new["spec"]["ephemeralContainers"] || notes(old) != notes(new)
}

fn judge_pod(
    attempt: &Attempt<'_>,
    pod: &Value,
    enforced: bool,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let namespace = attempt.api.cached(&gvr::NAMESPACES, "", &attempt.key.namespace);
    let Some(namespace) = namespace else { return Ok(()) };
    if !namespace.meta().labels.keys().any(|key| key.starts_with(LABEL)) {
        return Ok(());
    }
    let value = namespace.value().map_err(ApiError::internal)?;
    let policy = Policy::read(&value["metadata"]["labels"]);
    let pod = Pod { metadata: &pod["metadata"], spec: &pod["spec"] };
    if enforced {
        audit::annotate(&format!("{LABEL}enforce-policy"), &policy.enforce.to_string());
    }
    if let Some((_, details)) = policy.audit.complaints(&pod) {
        let violations = format!("would violate PodSecurity \"{}\": {details}", policy.audit);
        audit::annotate(&format!("{LABEL}audit-violations"), &violations);
    }
    if enforced && let Some((_, details)) = policy.enforce.complaints(&pod) {
        let why = format!("violates PodSecurity \"{}\": {details}", policy.enforce);
        return Err(ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, &why));
    }
    if let Some((_, details)) = policy.warn.complaints(&pod) {
        warnings.push(format!("would violate PodSecurity \"{}\": {details}", policy.warn));
    }
    Ok(())
}

/// A namespace's labels must be readable; of a stricter level, its present pods are told.
fn namespace(attempt: &Attempt<'_>, object: &Value, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let labels = |object: &Value| Policy::read(&object["metadata"]["labels"]);
    if !matches!(attempt.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    let (new, old) = (labels(object), attempt.old.map(labels));
    if !new.errors.is_empty() && old.as_ref().is_none_or(|old| old.errors != new.errors) {
        let mut errors = FieldErrors::new();
        for (label, value, why) in &new.errors {
            errors.invalid(&format!("metadata.labels[{label}]"), value.as_str(), why);
        }
        return errors.into_result("", "Namespace", &attempt.key.name);
    }
    let Some(old) = old else { return Ok(()) };
    let stricter = new.enforce.level > old.enforce.level
        || new.enforce.minor != old.enforce.minor && new.enforce.level > Level::Privileged;
    if stricter {
        let pods = attempt.api.cached_in(&gvr::PODS, &attempt.key.name);
        let pods = pods.iter().take(PODS_MAX).filter_map(|pod| pod.value().ok());
        warnings.extend(present(&attempt.key.name, new.enforce, pods));
    }
    Ok(())
}

/// What to say about the pods that are there.
fn present(namespace: &str, standard: Standard, pods: impl Iterator<Item = Value>) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let seen = Pod { metadata: &pod["metadata"], spec: &pod["spec"] };
        if let Some((reasons, _)) = standard.complaints(&seen) {
            by_reason.entry(reasons).or_default().push(text(&pod, "/metadata/name").to_string());
        }
    }
    if by_reason.is_empty() {
        return Vec::new();
    }
    let mut lines: Vec<String> = by_reason
        .iter()
        .map(|(reasons, pods)| {
            let first = pods.first().map_or("", String::as_str);
            match pods.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                n => format!("{first} (and {} other pods): {reasons}", n - 1),
            }
        })
        .collect();
    lines.sort();
    let head = format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
    );
    std::iter::once(head).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn standard(text: &str) -> Standard {
        let policy = Policy::read(&json!({"pod-security.kubernetes.io/enforce": text}));
        policy.enforce
    }

    fn details(level: &str, metadata: Value, spec: Value) -> String {
        let pod = Pod { metadata: &metadata, spec: &spec };
        standard(level).complaints(&pod).map(|(_, details)| details).unwrap_or_default()
    }

    #[test]
    fn an_ordinary_pod_is_baseline_and_not_restricted() {
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        assert_eq!(details("baseline", json!({}), spec.clone()), "");
        assert_eq!(
            details("restricted", json!({}), spec),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let safe = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        assert_eq!(details("restricted", json!({}), safe), "");
    }

    #[test]
    fn each_way_out_is_named() {
        let c = |more: Value| {
            let mut c = json!({"name": "c"});
            more.as_object().unwrap().iter().for_each(|(k, v)| c[k] = v.clone());
            json!({"containers": [c]})
        };
        let context = |more: Value| c(json!({"securityContext": more}));
        for (spec, expected) in [
            (
                json!({"hostNetwork": true, "hostIPC": true}),
                "host namespaces (hostNetwork=true, hostIPC=true)",
            ),
            (
                context(json!({"privileged": true})),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                c(json!({"ports": [{"hostPort": 80}, {"hostPort": 8080}]})),
                "hostPorts (container \"c\" uses hostPorts 80, 8080)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                context(json!({"capabilities": {"add": ["NET_RAW", "CHOWN"]}})),
                "non-default capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
            ),
            (
                context(json!({"procMount": "Unmasked"})),
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                context(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                context(json!({"seLinuxOptions": {"type": "foo", "user": "u"}})),
                "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"foo\"; user may not be set)",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                c(json!({"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}})),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"10.0.0.1\")",
            ),
            (
                context(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
            ),
        ] {
            assert_eq!(details("baseline", json!({}), spec), expected);
        }
    }

    #[test]
    fn versions_and_labels() {
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        let pod = Pod { metadata: &json!({}), spec: &sysctl };
        let at = |minor| Standard { level: Level::Baseline, minor }.complaints(&pod).is_some();
        assert!(at(Some(31)) && !at(Some(32)) && !at(None) && !at(Some(99)));
        let policy = Policy::read(&json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.25"}));
        assert_eq!((policy.enforce.to_string(), policy.warn), ("baseline:v1.25".into(), policy.enforce));
        let broken = Policy::read(&json!({"pod-security.kubernetes.io/enforce": "strict",
            "pod-security.kubernetes.io/warn-version": "1.2"}));
        assert_eq!((broken.enforce.level, broken.errors.len()), (Level::Restricted, 2));
        for text in ["v1.01", "v2.0", "1.2", "v1.+5", "v1."] {
            assert_eq!(parse_version(text), None, "{text}");
        }
        let pods = (0..3).map(|n| json!({"metadata": {"name": format!("p{n}")}, "spec": {"hostPID": true}}));
        assert_eq!(
            present("n", standard("baseline"), pods),
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "p0 (and 2 other pods): host namespaces"
            ]
        );
    }
}

//! Plug-ins that run only where they are asked for, as upstream's of these names, and which of all run.
//!
//! Deliberately not here: plug-ins with a file of their own that are optional too.

use super::{Attempt, Operation};
use k8s_schema::gvr;
use machinery::kinds::get::{list, text};
use machinery::kinds::pod::qos;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Those that run only where they are asked for.
const OPTIONAL: [&str; 7] = [
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "ExtendedResourceToleration",
    "LimitPodHardAntiAffinityTopology",
    "OwnerReferencesPermissionEnforcement",
    "PodNodeSelector",
    "PodTolerationRestriction",
];
/// Those of the others that one may do without.
const SPARED: [&str; 7] = [
    "DefaultTolerationSeconds",
    "LimitRanger",
    "NodeRestriction",
    "PersistentVolumeClaimResize",
    "PodSecurity",
    "Priority",
    "RuntimeClass",
];
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const HOSTNAME: &str = "kubernetes.io/hostname";
const NODE_SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";
const DEFAULT_TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const TOLERATIONS_ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// Which plug-ins run.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    on: BTreeSet<String>,
    off: BTreeSet<String>,
}

impl Plugins {
    /// From upstream's flags: names between commas. The error is a sentence.
    pub fn read(on: &str, off: &str) -> Result<Plugins, String> {
        let names = |text: &str, flag: &str, known: &[&str]| {
            let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
            let known = |n: &str| match known.contains(&n) {
                true => Ok(n.to_string()),
                false => Err(format!("{flag} plugin {n:?} is unknown, or not ours to choose")),
            };
            names.map(known).collect::<Result<BTreeSet<String>, String>>()
        };
        let all = [&OPTIONAL[..], &SPARED].concat();
        let (on, off) =
            (names(on, "enable-admission-plugins", &all)?, names(off, "disable-admission-plugins", &all)?);
        match on.intersection(&off).next() {
            Some(both) => {
                Err(format!("{both:?} in enable-admission-plugins and disable-admission-plugins overlapped"))
            }
            None => Ok(Plugins { on, off }),
        }
    }

    /// Does it run?
    pub fn run(&self, name: &str) -> bool {
        !self.off.contains(name) && (!OPTIONAL.contains(&name) || self.on.contains(name))
    }
}

/// Is this a write of a pod itself?
fn writes_pod(attempt: &Attempt<'_>) -> bool {
    let writes = matches!(attempt.operation, Operation::Create | Operation::Update);
    writes && attempt.call.resource.is("", "pods") && attempt.call.subresource.is_empty()
}

fn forbidden(attempt: &Attempt<'_>, why: &str) -> ApiError {
    ApiError::forbidden(attempt.call.resource.gvr(), &attempt.key.name, why)
}

/// An annotation of the pod's namespace.
fn noted(attempt: &Attempt<'_>, key: &str) -> Option<String> {
    let namespace = attempt.api.cached(&gvr::NAMESPACES, "", &attempt.key.namespace)?;
    namespace.meta().annotations.get(key).cloned()
}

/// AlwaysPullImages: whoever names an image must be able to pull it.
pub fn pull_always(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !writes_pod(attempt) {
        return Ok(());
    }
    for kind in CONTAINERS {
        for container in pod["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            container["imagePullPolicy"] = json!("Always");
        }
    }
    for volume in pod["spec"].get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
            image["pullPolicy"] = json!("Always");
        }
    }
    Ok(())
}

/// The same for containers that are added to a running pod.
pub fn judge_pull(attempt: &Attempt<'_>, pod: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    if !attempt.call.resource.is("", "pods")
        || !matches!(&*attempt.call.subresource, "" | "ephemeralcontainers")
    {
        return Ok(());
    }
    for kind in CONTAINERS {
        for (i, container) in list(pod, &format!("/spec/{kind}")).iter().enumerate() {
            if container["imagePullPolicy"] != "Always" {
                let why = format!(
                    "spec.{kind}[{i}].imagePullPolicy: Unsupported value: {}: supported values: \"Always\"",
                    container["imagePullPolicy"]
                );
                return Err(forbidden(attempt, &why));
            }
        }
    }
    Ok(())
}

/// PodNodeSelector: pods run on the nodes that their namespace's annotation says.
pub fn select_nodes(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !attempt.creates_pod() || !pod["spec"].is_object() {
        return Ok(());
    }
    let Some(wanted) = noted(attempt, NODE_SELECTOR) else { return Ok(()) };
    for pair in wanted.split(',').filter(|p| !p.trim().is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (key.trim(), value.trim());
        let own = &pod["spec"]["nodeSelector"][key];
        if own.as_str().is_some_and(|own| own != value) {
            let why = "pod node label selector conflicts with its namespace node label selector";
            return Err(forbidden(attempt, why));
        }
        pod["spec"]["nodeSelector"][key] = json!(value);
    }
    Ok(())
}

/// Does one toleration tolerate all that another does?
fn covers(wide: &Value, narrow: &Value) -> bool {
    let of = |t: &Value, field: &str| text(t, &format!("/{field}")).to_string();
    if wide == narrow {
        return true;
    }
    let exists = of(wide, "operator") == "Exists";
    if of(wide, "key") != of(narrow, "key") && !(exists && of(wide, "key").is_empty()) {
        return false;
    }
    if of(wide, "effect") != of(narrow, "effect") && !of(wide, "effect").is_empty() {
        return false;
    }
    if let Some(most) = wide["tolerationSeconds"].as_i64().filter(|_| of(wide, "effect") == "NoExecute")
        && narrow["tolerationSeconds"].as_i64().is_none_or(|seconds| seconds > most)
    {
        return false;
    }
    exists || matches!(&*of(narrow, "operator"), "" | "Equal") && of(wide, "value") == of(narrow, "value")
}

/// Both lists, without what another one covers.
fn merged(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, one) in all.iter().enumerate() {
        let later = all[i + 1..].iter().any(|other| *other != *one && covers(other, one));
        if !later && !merged.iter().any(|other| covers(other, one)) {
            merged.push((*one).clone());
        }
    }
    merged
}

fn tolerations(attempt: &Attempt<'_>, key: &str) -> Result<Vec<Value>, ApiError> {
    match noted(attempt, key).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str(&text).map_err(|e| ApiError::internal(e.to_string())),
    }
}

/// PodTolerationRestriction: pods get the tolerations that their namespace's annotation says.
pub fn tolerate(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !writes_pod(attempt) || !pod["spec"].is_object() {
        return Ok(());
    }
    let mut more = Vec::new();
    if attempt.operation == Operation::Create {
        more = tolerations(attempt, DEFAULT_TOLERATIONS)?;
    }
    if qos(pod) != "BestEffort" {
        more.push(json!({"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"}));
    }
    if !more.is_empty() {
        pod["spec"]["tolerations"] = json!(merged(list(pod, "/spec/tolerations"), &more));
    }
    Ok(())
}

/// The other half of PodTolerationRestriction: no others than the namespace's annotation allows.
pub fn judge_tolerations(attempt: &Attempt<'_>, pod: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    if !writes_pod(attempt) {
        return Ok(());
    }
    let allowed = tolerations(attempt, TOLERATIONS_ALLOWED)?;
    let wanted = list(pod, "/spec/tolerations");
    if allowed.is_empty() || wanted.iter().all(|t| allowed.iter().any(|a| covers(a, t))) {
        return Ok(());
    }
    let why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
    Err(forbidden(attempt, why))
}

/// ExtendedResourceToleration: who asks for a device tolerates the taint that keeps others off its nodes.
pub fn tolerate_devices(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !writes_pod(attempt) || !pod["spec"].is_object() {
        return Ok(());
    }
    let mut devices = BTreeSet::new();
    for kind in ["initContainers", "containers"] {
        for container in list(pod, &format!("/spec/{kind}")) {
            let requests = container["resources"]["requests"].as_object().into_iter().flatten();
            devices.extend(requests.map(|(name, _)| name.clone()).filter(|name| is_extended(name)));
        }
    }
    let more: Vec<Value> = devices
        .iter()
        .map(|name| json!({"key": name, "operator": "Exists", "effect": "NoSchedule"}))
        .collect();
    let own = list(pod, "/spec/tolerations").to_vec();
    let mut all = own.clone();
    all.extend(
        more.into_iter().filter(|m| !own.iter().any(|o| o["key"] == m["key"] && o["effect"] == m["effect"])),
    );
    if all.len() > own.len() {
        pod["spec"]["tolerations"] = json!(all);
    }
    Ok(())
}

fn is_extended(resource: &str) -> bool {
    let domain = resource.split_once('/').map_or("", |(domain, _)| domain);
    !domain.is_empty() && !domain.ends_with("kubernetes.io")
}

/// DenyServiceExternalIPs: services get no addresses that nobody gave them.
pub fn deny_external_ips(
    attempt: &Attempt<'_>,
    service: &Value,
    _: &mut Vec<String>,
) -> Result<(), ApiError> {
    if !attempt.call.resource.is("", "services") || attempt.operation == Operation::Delete {
        return Ok(());
    }
    let old = attempt.old.map(|old| list(old, "/spec/externalIPs")).unwrap_or_default();
    if list(service, "/spec/externalIPs").iter().all(|ip| old.contains(ip)) {
        return Ok(());
    }
    Err(forbidden(attempt, "Use of external IPs is denied by admission control"))
}

/// LimitPodHardAntiAffinityTopology: nobody keeps others off a whole zone.
pub fn limit_anti_affinity(attempt: &Attempt<'_>, pod: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    if !writes_pod(attempt) {
        return Ok(());
    }
    let terms = list(pod, "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution");
    match terms.iter().map(|t| text(t, "/topologyKey")).find(|key| *key != HOSTNAME) {
        None => Ok(()),
        Some(key) => Err(forbidden(
            attempt,
            &format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_the_operators_choice_within_reason() {
        let usual = Plugins::default();
        assert!(usual.run("Priority") && !usual.run("AlwaysPullImages"));
        let chosen = Plugins::read("AlwaysPullImages, PodNodeSelector", "Priority").unwrap();
        assert!(
            !chosen.run("Priority") && chosen.run("AlwaysPullImages") && chosen.run("NamespaceLifecycle")
        );
        for (on, off) in [("Nonsense", ""), ("", "NamespaceLifecycle"), ("Priority", "Priority")] {
            assert!(Plugins::read(on, off).is_err(), "{on} {off}");
        }
    }

    #[test]
    fn tolerations_are_merged_as_upstream_does() {
        let t = |key: &str, operator: &str, effect: &str| json!({"key": key, "operator": operator, "effect": effect});
        let all = json!({"operator": "Exists"});
        assert!(covers(&all, &t("a", "Exists", "NoSchedule")));
        assert!(!covers(&t("a", "Exists", "NoSchedule"), &all));
        assert_eq!(
            merged(&[t("a", "Exists", "NoSchedule")], &[t("a", "Exists", "")]),
            [t("a", "Exists", "")]
        );
        assert_eq!(
            merged(&[t("a", "Exists", "")], &[t("a", "Exists", "NoSchedule")]),
            [t("a", "Exists", "")]
        );
        let same = t("a", "Exists", "NoExecute");
        let one = std::slice::from_ref(&same);
        assert_eq!(merged(one, one), one);
        let mut short = same.clone();
        short["tolerationSeconds"] = json!(5);
        assert!(covers(&same, &short) && !covers(&short, &same));
    }
}

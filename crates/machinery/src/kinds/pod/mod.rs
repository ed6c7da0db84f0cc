//! Pod, and the pod template of workload kinds: row, validation, update rules, QoS class.

mod cells;
pub mod containers;
pub mod defaults;
pub mod ephemeral;
mod extras;
pub mod resize;
pub mod scheduling;
pub mod volumes;
mod whole;

pub use cells::condition;

use super::get::{
    each, entries, enumerated, enumerated_opt, flag, has, int, list, remove, same, set, text, texts,
};
use super::{Behaviour, FieldKind, GENERIC, meta};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// What a pod may set without harm to others (Kubernetes' safe list), in the order in which versions began to allow it.
pub const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "pods",
        validated: true,
        generation: true,
        defaults: defaults::pod,
        prepare_create,
        prepare_update,
        prepare_status,
        validate_create,
        validate_update,
        grace,
        fields: &[
            ("spec.nodeName", FieldKind::Text("/spec/nodeName")),
            ("spec.restartPolicy", FieldKind::Text("/spec/restartPolicy")),
            ("spec.schedulerName", FieldKind::Text("/spec/schedulerName")),
            ("spec.serviceAccountName", FieldKind::Text("/spec/serviceAccountName")),
            ("spec.hostNetwork", FieldKind::Bool("/spec/hostNetwork")),
            ("status.phase", FieldKind::Text("/status/phase")),
            ("status.podIP", FieldKind::Either("/status/podIPs/0/ip", "/status/podIP")),
            ("status.podIPs", FieldKind::Either("/status/podIPs/0/ip", "/status/podIP")),
            ("status.nominatedNodeName", FieldKind::Text("/status/nominatedNodeName")),
        ],
        columns: cells::COLUMNS,
        ..GENERIC
    },
    Behaviour {
        resource: "podtemplates",
        validated: true,
        defaults: defaults::template,
        validate_create: |v, e| template(&v["template"], "template", e),
        validate_update: |v, _, e| template(&v["template"], "template", e),
        ..GENERIC
    },
];

fn prepare_create(obj: &mut Value) {
    if let Some(spec) = obj.get_mut("spec") {
        defaults::mirror_service_account(spec);
    }
    let mut status = json!({"phase": "Pending", "qosClass": qos(obj)});
    if !list(obj, "/spec/schedulingGates").is_empty() {
        status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
    }
    set(obj, "status", status);
}

/// Old clients may clear a grace period that was negative to 1; all else is kept or refused by validation.
fn prepare_update(new: &mut Value, old: &Value) {
    if let Some(status) = old.get("status") {
        set(new, "status", status.clone());
    }
}

/// `podIP` and `podIPs` say the same, and the QoS class stays.
fn prepare_status(new: &mut Value, old: &Value) {
    let first = text(new, "/status/podIPs/0/ip").to_string();
    let single = text(new, "/status/podIP").to_string();
    let qos = old.pointer("/status/qosClass").cloned();
    let Some(status) = new.get_mut("status") else { return };
    match (first.is_empty(), single.is_empty()) {
        (true, false) => set(status, "podIPs", json!([{"ip": single}])),
        (false, true) => set(status, "podIP", first),
        _ => {}
    }
    if let Some(qos) = qos {
        super::get::default(status, "qosClass", qos);
    }
}

/// The grace of a delete: asked for, else the pod's own; none when it never ran or has ended.
fn grace(p: &Value, asked: Option<i64>) -> Option<i64> {
    let own = asked.or(int(p, "/spec/terminationGracePeriodSeconds")).unwrap_or(0);
    let idle =
        text(p, "/spec/nodeName").is_empty() || matches!(text(p, "/status/phase"), "Failed" | "Succeeded");
    Some(match own {
        _ if idle => 0,
        n if n < 0 => 1,
        n => n,
    })
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from cpu and memory of all containers.
pub fn qos(p: &Value) -> &'static str {
    let all = list(p, "/spec/initContainers").iter().chain(list(p, "/spec/containers"));
    let amount = |c: &Value, side: &str, resource: &str| {
        let given = c.pointer(&format!("/resources/{side}/{resource}"));
        given.and_then(Quantity::from_json).and_then(Result::ok).filter(|q| q.sign() > 0)
    };
    let (mut any, mut guaranteed) = (false, true);
    // Resources of the pod as a whole decide alone.
    let whole = p.get("spec").filter(|s| s.get("resources").is_some_and(Value::is_object));
    let all: Vec<&Value> = whole.map_or_else(|| all.collect(), |spec| vec![spec]);
    for c in all {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount(c, "requests", resource), amount(c, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn validate_create(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    pod_spec(spec, "spec", errors);
    if !list(spec, "/ephemeralContainers").is_empty() {
        errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    for (kind, key) in [("containers", "/containers"), ("initContainers", "/initContainers")] {
        for (i, c) in list(spec, key).iter().enumerate() {
            let image = text(c, "/image");
            if image != image.trim() {
                errors.invalid(
                    &format!("spec.{kind}[{i}].image"),
                    image,
                    "must not have leading or trailing whitespace",
                );
            }
        }
    }
    if flag(spec, "/hostNetwork") {
        host_ports(spec, errors);
    }
    if !list(spec, "/schedulingGates").is_empty() && !text(spec, "/nodeName").is_empty() {
        errors.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
    }
}

fn host_ports(spec: &Value, errors: &mut FieldErrors) {
    for (i, c) in list(spec, "/containers").iter().enumerate() {
        for (j, port) in list(c, "/ports").iter().enumerate() {
            let host = int(port, "/hostPort").unwrap_or(0);
            if host != int(port, "/containerPort").unwrap_or(0) {
                let path = format!("spec.containers[{i}].ports[{j}].hostPort");
                errors.invalid(&path, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

/// A pod template at `path` (`spec.template`).
pub fn template(t: &Value, path: &str, errors: &mut FieldErrors) {
    meta::labels(t, "/metadata/labels", &format!("{path}.labels"), errors);
    meta::annotations(t, "/metadata/annotations", &format!("{path}.annotations"), errors);
    let path = format!("{path}.spec");
    pod_spec(&t["spec"], &path, errors);
    if !list(t, "/spec/ephemeralContainers").is_empty() {
        errors.forbidden(
            &format!("{path}.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// A pod spec at `path`.
pub fn pod_spec(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let names = volumes::validate(spec, &format!("{path}.volumes"), errors);
    containers::validate(spec, &names, path, errors);
    enumerated(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    enumerated(spec, path, "dnsPolicy", &policies, errors);
    dns(spec, path, errors);
    volumes::label_map(spec, "nodeSelector", &format!("{path}.nodeSelector"), errors);
    security(spec, path, errors);
    scheduling::validate(spec, path, errors);
    names_of(spec, path, errors);
    host_aliases(spec, path, errors);
    containers::resources(&spec["resources"], &format!("{path}.resources"), errors);
    whole::validate(spec, path, errors);
    match int(spec, "/activeDeadlineSeconds") {
        Some(n) if !(1..=i64::from(i32::MAX)).contains(&n) => {
            let words = name::range_words(1, i64::from(i32::MAX));
            errors.invalid(&format!("{path}.activeDeadlineSeconds"), n, &words);
        }
        _ => {}
    }
    enumerated_opt(spec, path, "preemptionPolicy", &["Never", "PreemptLowerPriority"], errors);
    for (i, gate) in list(spec, "/readinessGates").iter().enumerate() {
        let own = text(gate, "/conditionType");
        errors.invalid_all(
            &format!("{path}.readinessGates[{i}].conditionType"),
            own,
            name::qualified_name(own),
        );
    }
    for (resource, amount) in entries(spec, "/overhead") {
        let path = format!("{path}.overhead[{resource}]");
        containers::resource_name(resource, &path, errors);
        containers::amount_of(resource, amount, &path, errors);
    }
    if has(spec, "/os") {
        enumerated(&spec["os"], &format!("{path}.os"), "name", &["linux", "windows"], errors);
    }
    extras::validate(spec, path, errors);
}

/// Fields that must be names of a certain form; absent is fine.
fn names_of(spec: &Value, path: &str, errors: &mut FieldErrors) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 7] = [
        ("hostnameOverride", name::dns1123_subdomain),
        ("serviceAccountName", name::dns1123_subdomain),
        ("nodeName", name::dns1123_subdomain),
        ("hostname", name::dns1123_label),
        ("subdomain", name::dns1123_label),
        ("priorityClassName", name::dns1123_subdomain),
        ("runtimeClassName", name::dns1123_subdomain),
    ];
    for (key, rule) in rules {
        let given = text(spec, &format!("/{key}"));
        if !given.is_empty() {
            errors.invalid_all(&format!("{path}.{key}"), given, rule(given));
        }
    }
    if has(spec, "/hostnameOverride") {
        let path = format!("{path}.hostnameOverride");
        if text(spec, "/hostnameOverride").len() > HOSTNAME_MAX {
            errors.too_long(&path, HOSTNAME_MAX);
        }
        for key in ["hostNetwork", "setHostnameAsFQDN"] {
            if flag(spec, &format!("/{key}")) {
                errors.forbidden(&path, &format!("may not be specified when `{key}` is true"));
            }
        }
    }
}

fn host_aliases(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        errors.invalid_all(&format!("{path}.ip"), text(alias, "/ip"), name::ip(text(alias, "/ip")));
        for (j, host) in texts(alias, "/hostnames").enumerate() {
            errors.invalid_all(&format!("{path}.hostnames[{j}]"), host, name::dns1123_subdomain(host));
        }
    }
}

fn dns(spec: &Value, path: &str, errors: &mut FieldErrors) {
    const NAMESERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    let path = format!("{path}.dnsConfig");
    let servers: Vec<&str> = texts(spec, "/dnsConfig/nameservers").collect();
    if text(spec, "/dnsPolicy") == "None" {
        if !has(spec, "/dnsConfig") {
            return errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let words = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(&format!("{path}.nameservers"), words);
        }
    }
    if servers.len() > NAMESERVERS_MAX {
        errors.invalid(
            &format!("{path}.nameservers"),
            servers.clone(),
            "must not have more than 3 nameservers",
        );
    }
    for (i, server) in servers.iter().enumerate() {
        errors.invalid_all(&format!("{path}.nameservers[{i}]"), server, name::ip(server));
    }
    let searches: Vec<&str> = texts(spec, "/dnsConfig/searches").collect();
    if searches.len() > SEARCHES_MAX {
        errors.invalid(
            &format!("{path}.searches"),
            searches.clone(),
            "must not have more than 32 search paths",
        );
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        let words = name::dns1123_subdomain(plain.trim_matches('-'));
        errors.invalid_all(&format!("{path}.searches[{i}]"), search, words);
    }
    for (i, option) in list(spec, "/dnsConfig/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.required(&format!("{path}.options[{i}]"), "must not be empty");
        }
    }
}

fn security(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let context = &spec["securityContext"];
    let own = format!("{path}.securityContext");
    containers::ids(context, &own, &["runAsUser", "runAsGroup", "fsGroup"], errors);
    containers::profile(context, &own, errors);
    enumerated_opt(context, &own, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], errors);
    for (i, group) in list(context, "/supplementalGroups").iter().enumerate() {
        let id = group.as_i64().unwrap_or(-1);
        if !(0..=i64::from(i32::MAX)).contains(&id) {
            let words = name::range_words(0, i64::from(i32::MAX));
            errors.invalid(&format!("{own}.supplementalGroups[{i}]"), id, &words);
        }
    }
    let mut sysctls = std::collections::BTreeSet::new();
    for (i, sysctl) in list(context, "/sysctls").iter().enumerate() {
        let given = text(sysctl, "/name");
        let at = format!("{own}.sysctls[{i}].name");
        if given.is_empty() {
            errors.required(&at, "");
        } else if !is_sysctl(given) {
            let words = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.invalid(&at, given, words);
        } else if !sysctls.insert(given.replace('/', ".")) {
            errors.duplicate(&at, given);
        }
    }
    if flag(spec, "/shareProcessNamespace") && flag(spec, "/hostPID") {
        let words = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&format!("{own}.shareProcessNamespace"), true, words);
    }
    if spec.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if flag(spec, &format!("/{key}")) {
                errors.forbidden(&format!("{path}.{shown}"), "when `pod.Spec.HostUsers` is false");
            }
        }
        return;
    }
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, c) in list(spec, &format!("/{key}")).iter().enumerate() {
            if text(c, "/securityContext/procMount") == "Unmasked" {
                let at = format!("{path}.{key}[{i}].securityContext.procMount");
                errors.invalid(&at, "Unmasked", "`hostUsers` must be false to use `Unmasked`");
            }
        }
    }
}

/// `net.core.somaxconn`, with dots or slashes.
fn is_sysctl(name: &str) -> bool {
    const SYSCTL_MAX: usize = 253;
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |p: &str| {
        let bytes = p.as_bytes();
        bytes.first().is_some_and(|b| edge(*b))
            && bytes.last().is_some_and(|b| edge(*b))
            && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_MAX && name.split(['.', '/']).all(part)
}

/// The kernel takes no longer host name.
const HOSTNAME_MAX: usize = 64;
const UPDATE_WORDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    for key in ["containers", "initContainers"] {
        let at = format!("/{key}");
        if list(spec, &at).len() != list(before, &at).len() {
            return errors.forbidden(&format!("spec.{key}"), "pod updates may not add or remove containers");
        }
        for (i, c) in list(spec, &at).iter().enumerate() {
            if text(c, "/image").is_empty() {
                errors.required(&format!("spec.{key}[{i}].image"), "");
            }
        }
    }
    deadline(spec, before, errors);
    let added = list(spec, "/tolerations");
    for old in list(before, "/tolerations") {
        let same = |t: &&Value| {
            let strip = |t: &Value| {
                let mut t = t.clone();
                remove(&mut t, "tolerationSeconds");
                t
            };
            strip(t) == strip(old)
        };
        if !added.iter().any(|t| same(&t)) {
            errors.forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            );
            break;
        }
    }
    let gated = !list(before, "/schedulingGates").is_empty();
    let gates: Vec<&Value> = list(before, "/schedulingGates").iter().collect();
    if let Some(i) = list(spec, "/schedulingGates").iter().position(|g| !gates.contains(&g)) {
        let words = "only deletion is allowed, but found new scheduling gate";
        errors.forbidden(&format!("spec.schedulingGates[{i}]"), words);
    }
    if gated {
        scheduling::tightened(spec, before, errors);
    }
    if !same(&comparable(spec, before, gated), &comparable(before, before, gated)) {
        errors.forbidden("spec", UPDATE_WORDS);
    }
}

fn deadline(spec: &Value, before: &Value, errors: &mut FieldErrors) {
    let path = "spec.activeDeadlineSeconds";
    match (int(before, "/activeDeadlineSeconds"), int(spec, "/activeDeadlineSeconds")) {
        (Some(_), None) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value")
        }
        (_, Some(n)) if n < 0 => errors.non_negative(path, n),
        (Some(old), Some(n)) if n > old => {
            errors.invalid(path, n, &format!("must be less than or equal to previous value of {old}"));
        }
        _ => {}
    }
}

/// A spec with the fields that may change blotted out.
fn comparable(spec: &Value, before: &Value, gated: bool) -> Value {
    let mut spec = spec.clone();
    for key in ["/containers", "/initContainers"] {
        each(&mut spec, key, |c| drop(remove(c, "image")));
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"] {
        remove(&mut spec, key);
    }
    if gated {
        remove(&mut spec, "nodeSelector");
        if let Some(affinity) = spec.get_mut("affinity") {
            remove(affinity, "nodeAffinity");
        }
    }
    let was_negative = int(before, "/terminationGracePeriodSeconds").is_some_and(|n| n < 0);
    if was_negative && int(&spec, "/terminationGracePeriodSeconds") == Some(1) {
        set(&mut spec, "terminationGracePeriodSeconds", before["terminationGracePeriodSeconds"].clone());
    }
    spec
}

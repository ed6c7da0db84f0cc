//! Pod, and the pod template of workload kinds: row, validation, update rules, QoS class.

mod cells;
pub mod containers;
pub mod defaults;
pub mod ephemeral;
mod extras;
mod label_keys;
pub mod resize;
pub mod scheduling;
pub mod volumes;
mod whole;

pub use cells::condition;

use super::get::{each, int, list, remove, same, set, text};
use super::service::selector_text;
use super::spot::{Rule, Spot};
use super::workload::template_texts;
use super::{Behaviour, CHECKED, COUNTED, FieldKind, meta};
use crate::name;
use crate::quantity::Quantity;
use crate::table::{Cell, Column};
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
        defaults: defaults::pod,
        prepare_create,
        prepare_update,
        prepare_status,
        validate: validate_create,
        validate_update: Some(validate_update),
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
        ..COUNTED
    },
    Behaviour {
        resource: "podtemplates",
        defaults: defaults::template,
        validate: |s| template(&s.key("template")),
        columns: &[
            Column::NAME,
            Column::new("Containers", Cell::Fn(|t| template_texts(&t["template"], "/name").into())),
            Column::new("Images", Cell::Fn(|t| template_texts(&t["template"], "/image").into())),
            Column::new("Pod Labels", Cell::Fn(|t| selector_text(t, "/template/metadata/labels").into())),
        ],
        ..CHECKED
    },
];

fn prepare_create(obj: &mut Value) {
    if let Some(spec) = obj.get_mut("spec") {
        defaults::mirror_service_account(spec);
    }
    label_keys::merge(obj);
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

fn validate_create(obj: &Spot) {
    let spec = obj.key("spec");
    pod_spec(&spec);
    if !spec.list("ephemeralContainers").is_empty() {
        spec.forbidden("ephemeralContainers", "cannot be set on create");
    }
    for c in spec.each("containers").chain(spec.each("initContainers")) {
        if c.text("image") != c.text("image").trim() {
            c.wrong("image", "must not have leading or trailing whitespace");
        }
    }
    if spec.flag("hostNetwork") {
        for port in spec.each("containers").flat_map(|c| c.each("ports")) {
            let host = port.int("hostPort").unwrap_or(0);
            if host != port.int("containerPort").unwrap_or(0) {
                port.invalid("hostPort", host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
    if !spec.list("schedulingGates").is_empty() && !spec.text("nodeName").is_empty() {
        spec.forbidden("nodeName", "cannot be set until all schedulingGates have been cleared");
    }
}

/// A pod template.
pub fn template(t: &Spot) {
    meta::labels(&t.key("metadata.labels").named(t.at("labels")));
    meta::annotations(&t.key("metadata.annotations").named(t.at("annotations")));
    let spec = t.key("spec");
    pod_spec(&spec);
    if !spec.list("ephemeralContainers").is_empty() {
        spec.forbidden("ephemeralContainers", "ephemeral containers not allowed in pod template");
    }
}

/// A pod spec.
pub fn pod_spec(spec: &Spot) {
    let names = volumes::validate(spec);
    containers::validate(spec, &names);
    spec.one_of("restartPolicy", &["Always", "OnFailure", "Never"]);
    spec.one_of("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    dns(spec);
    meta::labels(&spec.key("nodeSelector"));
    security(spec);
    scheduling::validate(spec);
    names_of(spec);
    for alias in spec.each("hostAliases") {
        alias.like("ip", name::ip);
        alias.each("hostnames").for_each(|host| host.like("", name::dns1123_subdomain));
    }
    containers::resources(&spec.key("resources"));
    spec.with(whole::validate);
    let most = i64::from(i32::MAX);
    spec.within("activeDeadlineSeconds", 1..=most, &name::range_words(1, most));
    spec.one_of_opt("preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    for gate in spec.each("readinessGates") {
        gate.like("conditionType", name::qualified_name);
    }
    for (resource, amount) in spec.entries("overhead") {
        containers::resource_amount(resource, &amount);
    }
    if let Some(os) = spec.opt("os") {
        os.one_of("name", &["linux", "windows"]);
    }
    extras::validate(spec);
}

/// Fields that must be names of a certain form; absent is fine.
fn names_of(spec: &Spot) {
    let rules: [(&str, Rule); 7] = [
        ("hostnameOverride", name::dns1123_subdomain),
        ("serviceAccountName", name::dns1123_subdomain),
        ("nodeName", name::dns1123_subdomain),
        ("hostname", name::dns1123_label),
        ("subdomain", name::dns1123_label),
        ("priorityClassName", name::dns1123_subdomain),
        ("runtimeClassName", name::dns1123_subdomain),
    ];
    rules.iter().for_each(|(key, rule)| spec.like_opt(key, *rule));
    if let Some(own) = spec.opt("hostnameOverride") {
        own.no_longer("", own.text("").len(), HOSTNAME_MAX);
        for key in ["hostNetwork", "setHostnameAsFQDN"].iter().filter(|key| spec.flag(key)) {
            own.forbidden("", &format!("may not be specified when `{key}` is true"));
        }
    }
}

fn dns(spec: &Spot) {
    const NAMESERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    let config = spec.key("dnsConfig");
    let (servers, searches) = (config.texts("nameservers"), config.texts("searches"));
    if spec.text("dnsPolicy") == "None" {
        if config.v.is_null() {
            return config.required("", "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let words = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return config.required("nameservers", words);
        }
    }
    if servers.len() > NAMESERVERS_MAX {
        config.wrong("nameservers", "must not have more than 3 nameservers");
    }
    config.each("nameservers").for_each(|server| server.like("", name::ip));
    if searches.len() > SEARCHES_MAX {
        config.wrong("searches", "must not have more than 32 search paths");
    }
    for search in config.each("searches").filter(|s| s.text("") != ".") {
        let given = search.text("");
        let plain = given.strip_suffix('.').unwrap_or(given).replace('_', "-");
        search.invalid_all("", given, name::dns1123_subdomain(plain.trim_matches('-')));
    }
    for option in config.each("options").filter(|o| o.text("name").is_empty()) {
        option.required("", "must not be empty");
    }
}

fn security(spec: &Spot) {
    let context = spec.key("securityContext");
    containers::ids(&context, &["runAsUser", "runAsGroup", "fsGroup"]);
    containers::profile(&context);
    context.one_of_opt("fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    context.each("supplementalGroups").for_each(|group| containers::ids(&group, &[""]));
    let mut sysctls = std::collections::BTreeSet::new();
    for sysctl in context.each("sysctls") {
        let given = sysctl.text("name");
        if given.is_empty() {
            sysctl.required("name", "");
        } else if !is_sysctl(given) {
            let words = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            sysctl.wrong("name", words);
        } else if !sysctls.insert(given.replace('/', ".")) {
            sysctl.duplicate("name", given);
        }
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let words = "ShareProcessNamespace and HostPID cannot both be enabled";
        context.invalid("shareProcessNamespace", true, words);
    }
    if spec.v["hostUsers"] == false {
        for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if spec.flag(key) {
                spec.forbidden(shown, "when `pod.Spec.HostUsers` is false");
            }
        }
        return;
    }
    for c in ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|key| spec.each(key)) {
        if c.text("securityContext.procMount") == "Unmasked" {
            c.wrong("securityContext.procMount", "`hostUsers` must be false to use `Unmasked`");
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

fn validate_update(new: &Spot, old: &Value) {
    let (spec, before) = (new.key("spec"), &old["spec"]);
    for key in ["containers", "initContainers"] {
        if spec.list(key).len() != list(before, &format!("/{key}")).len() {
            return spec.forbidden(key, "pod updates may not add or remove containers");
        }
        for c in spec.each(key) {
            c.need("image");
        }
    }
    deadline(&spec, before);
    let added = spec.list("tolerations");
    for old in list(before, "/tolerations") {
        let strip = |t: &Value| {
            let mut t = t.clone();
            remove(&mut t, "tolerationSeconds");
            t
        };
        if !added.iter().any(|t| strip(t) == strip(old)) {
            let words = "existing toleration can not be modified except its tolerationSeconds";
            spec.forbidden("tolerations", words);
            break;
        }
    }
    let gates = list(before, "/schedulingGates");
    if let Some(gate) = spec.each("schedulingGates").find(|g| !gates.contains(g.v)) {
        gate.forbidden("", "only deletion is allowed, but found new scheduling gate");
    }
    let gated = !gates.is_empty();
    if gated {
        scheduling::tightened(&spec, before);
    }
    if !same(&comparable(spec.v, before, gated), &comparable(before, before, gated)) {
        spec.forbidden("", UPDATE_WORDS);
    }
}

fn deadline(spec: &Spot, before: &Value) {
    let key = "activeDeadlineSeconds";
    match (before[key].as_i64(), spec.int(key)) {
        (Some(_), None) => {
            spec.invalid(key, Value::Null, "must not update from a positive integer to nil value");
        }
        (_, Some(n)) if n < 0 => spec.non_negative(&[key]),
        (Some(old), Some(n)) if n > old => {
            spec.invalid(key, n, &format!("must be less than or equal to previous value of {old}"));
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

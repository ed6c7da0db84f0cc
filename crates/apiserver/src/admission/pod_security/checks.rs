//! The checks of the Pod Security Standards, a row each: from which version on, at which level, and what they say.

use machinery::kinds::get::{list, text};
use machinery::kinds::pod::SAFE_SYSCTLS;
use serde_json::Value;
use std::collections::BTreeSet;

/// Why a check refuses: reason and detail.
pub type Refusal = (String, String);

/// A pod as checks see it: its metadata and spec.
pub struct Pod<'a> {
    /// The metadata.
    pub metadata: &'a Value,
    /// The spec.
    pub spec: &'a Value,
}

/// How strict a level is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything goes.
    Privileged,
    /// Known ways out of the sandbox are closed.
    Baseline,
    /// Best practice.
    Restricted,
}

/// When a check applies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At both levels.
    Both,
    /// At baseline only: restricted has a stricter one.
    Baseline,
    /// At restricted only.
    Restricted,
}

struct Check {
    at: At,
    /// Minor versions: the first, and the first one no more.
    versions: std::ops::Range<u32>,
    run: fn(&Pod<'_>) -> Option<Refusal>,
}

const EVER: u32 = u32::MAX;
/// From here on a pod with its own user namespace may be root in it.
const USER_NAMESPACES: u32 = 35;

const fn check(at: At, from: u32, to: u32, run: fn(&Pod<'_>) -> Option<Refusal>) -> Check {
    Check { at, versions: from..to, run }
}

/// All checks, in the order in which their complaints are listed: those of baseline, then those of restricted.
const CHECKS: &[Check] = &[
    check(At::Both, 0, EVER, app_armor),
    check(At::Both, 0, EVER, host_namespaces),
    check(At::Both, 0, EVER, host_ports),
    check(At::Both, 34, EVER, host_probes),
    check(At::Both, 0, EVER, privileged),
    check(At::Both, 0, USER_NAMESPACES, proc_mount),
    check(At::Baseline, USER_NAMESPACES, EVER, |pod| proc_mount(pod).filter(|_| !is_relaxed(pod))),
    check(At::Both, 0, 31, |pod| selinux(pod, &SELINUX_TYPES[..4])),
    check(At::Both, 31, EVER, |pod| selinux(pod, &SELINUX_TYPES)),
    check(At::Both, 0, 27, |pod| sysctls(pod, &SAFE_SYSCTLS[..5])),
    check(At::Both, 27, 29, |pod| sysctls(pod, &SAFE_SYSCTLS[..6])),
    check(At::Both, 29, 32, |pod| sysctls(pod, &SAFE_SYSCTLS[..10])),
    check(At::Both, 32, EVER, |pod| sysctls(pod, &SAFE_SYSCTLS)),
    check(At::Both, 0, EVER, windows_host),
    check(At::Baseline, 0, EVER, capabilities),
    check(At::Baseline, 0, EVER, host_paths),
    check(At::Baseline, 0, 19, seccomp_notes),
    check(At::Baseline, 19, EVER, seccomp),
    check(At::Restricted, 8, 25, escalation),
    check(At::Restricted, 25, EVER, |pod| escalation(pod).filter(|_| !is_windows(pod))),
    check(At::Restricted, 22, 25, dropped),
    check(At::Restricted, 25, EVER, |pod| dropped(pod).filter(|_| !is_windows(pod))),
    check(At::Restricted, USER_NAMESPACES, EVER, proc_mount),
    check(At::Restricted, 0, EVER, volumes),
    check(At::Restricted, 0, USER_NAMESPACES, non_root),
    check(At::Restricted, USER_NAMESPACES, EVER, |pod| non_root(pod).filter(|_| !is_relaxed(pod))),
    check(At::Restricted, 23, USER_NAMESPACES, root_user),
    check(At::Restricted, USER_NAMESPACES, EVER, |pod| root_user(pod).filter(|_| !is_relaxed(pod))),
    check(At::Restricted, 19, 25, seccomp_set),
    check(At::Restricted, 25, EVER, |pod| seccomp_set(pod).filter(|_| !is_windows(pod))),
];

/// Everything that the pod does against a level of a version (its minor number).
pub fn refusals(pod: &Pod<'_>, level: Level, minor: u32) -> Vec<Refusal> {
    let applies = |check: &&Check| {
        check.versions.contains(&minor)
            && match level {
                Level::Privileged => false,
                Level::Baseline => check.at != At::Restricted,
                Level::Restricted => check.at != At::Baseline,
            }
    };
    CHECKS.iter().filter(applies).filter_map(|check| (check.run)(pod)).collect()
}

fn is_windows(pod: &Pod<'_>) -> bool {
    pod.spec["os"]["name"] == "windows"
}

fn is_relaxed(pod: &Pod<'_>) -> bool {
    pod.spec["hostUsers"] == false
}

fn containers<'a>(pod: &'a Pod<'_>) -> impl Iterator<Item = &'a Value> {
    let lists = ["/initContainers", "/containers", "/ephemeralContainers"];
    lists.into_iter().flat_map(|key| list(pod.spec, key))
}

/// Names of the containers that are bad.
fn bad<'a>(pod: &'a Pod<'_>, is_bad: impl Fn(&Value) -> bool + 'a) -> Vec<&'a str> {
    containers(pod).filter(|c| is_bad(c)).map(|c| text(c, "/name")).collect()
}

fn plural(one: &'static str, many: &'static str, n: usize) -> &'static str {
    if n == 1 { one } else { many }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

/// `containers "a", "b"`
fn named(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names.iter().copied()))
}

/// A refusal that names containers.
fn of_containers(reason: &str, names: &[&str], what: &str) -> Option<Refusal> {
    (!names.is_empty()).then(|| (reason.to_string(), format!("{} {what}", named(names))))
}

/// Who sets something bad in a security context: the pod, containers, both; `""` for nobody.
fn setters(pod: &Pod<'_>, is_bad: impl Fn(&Value) -> bool) -> String {
    let names = bad(pod, |c| is_bad(&c["securityContext"]));
    let mut who = Vec::new();
    if is_bad(&pod.spec["securityContext"]) {
        who.push("pod".to_string());
    }
    if !names.is_empty() {
        who.push(named(&names));
    }
    who.join(" and ")
}

/// All security contexts of the pod.
fn contexts<'a>(pod: &'a Pod<'_>) -> impl Iterator<Item = &'a Value> {
    std::iter::once(&pod.spec["securityContext"]).chain(containers(pod).map(|c| &c["securityContext"]))
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Refusal> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| pod.spec[*f] == true);
    let used: Vec<String> = fields.map(|f| format!("{f}=true")).collect();
    (!used.is_empty()).then(|| ("host namespaces".into(), used.join(", ")))
}

fn host_ports(pod: &Pod<'_>) -> Option<Refusal> {
    let of = |c: &Value| {
        list(c, "/ports").iter().filter_map(|p| p["hostPort"].as_u64()).filter(|p| *p > 0).collect::<Vec<_>>()
    };
    let names = bad(pod, |c| !of(c).is_empty());
    let ports: BTreeSet<String> = containers(pod).flat_map(of).map(|p| p.to_string()).collect();
    let word = plural("hostPort", "hostPorts", ports.len());
    let uses = plural("uses", "use", names.len());
    let ports = ports.into_iter().collect::<Vec<_>>().join(", ");
    of_containers(word, &names, &format!("{uses} {word} {ports}"))
}

fn host_probes(pod: &Pod<'_>) -> Option<Refusal> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    fn of(container: &Value) -> BTreeSet<&str> {
        let handlers = HANDLERS.iter().filter_map(|h| container.pointer(h));
        let hosts = handlers.flat_map(|h| [text(h, "/httpGet/host"), text(h, "/tcpSocket/host")]);
        hosts.filter(|host| !host.is_empty()).collect()
    }
    let mut names = bad(pod, |c| !of(c).is_empty());
    names.sort_unstable();
    let hosts: BTreeSet<&str> = containers(pod).flat_map(of).collect();
    let uses = plural("uses", "use", names.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    of_containers("probe or lifecycle host", &names, &format!("{uses} {word} {}", quoted(hosts)))
}

fn privileged(pod: &Pod<'_>) -> Option<Refusal> {
    let names = bad(pod, |c| c["securityContext"]["privileged"] == true);
    of_containers("privileged", &names, "must not set securityContext.privileged=true")
}

fn proc_mount(pod: &Pod<'_>) -> Option<Refusal> {
    let of = |c: &Value| {
        Some(text(c, "/securityContext/procMount").to_string()).filter(|p| !p.is_empty() && p != "Default")
    };
    let names = bad(pod, |c| of(c).is_some());
    let kinds: BTreeSet<String> = containers(pod).filter_map(of).collect();
    let what =
        format!("must not set securityContext.procMount to {}", quoted(kinds.iter().map(String::as_str)));
    of_containers("procMount", &names, &what)
}

const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn selinux(pod: &Pod<'_>, allowed: &[&str]) -> Option<Refusal> {
    let options = |context: &Value| context["seLinuxOptions"].clone();
    let bad_type = |o: &Value| !allowed.contains(&text(o, "/type"));
    let set = |o: &Value, field: &str| !text(o, field).is_empty();
    let is_bad = |o: &Value| bad_type(o) || set(o, "/user") || set(o, "/role");
    let who = setters(pod, |context| is_bad(&options(context)));
    if who.is_empty() {
        return None;
    }
    let all: Vec<Value> = contexts(pod).map(options).collect();
    let types: BTreeSet<&str> = all.iter().filter(|o| bad_type(o)).map(|o| text(o, "/type")).collect();
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|o| set(o, &format!("/{field}"))) {
            what.push(format!("{field} may not be set"));
        }
    }
    let what = what.join("; ");
    Some(("seLinuxOptions".into(), format!("{who} set forbidden securityContext.seLinuxOptions: {what}")))
}

fn sysctls(pod: &Pod<'_>, allowed: &[&str]) -> Option<Refusal> {
    let set = list(pod.spec, "/securityContext/sysctls").iter().map(|s| text(s, "/name"));
    let forbidden: Vec<&str> = set.filter(|name| !allowed.contains(name)).collect();
    (!forbidden.is_empty()).then(|| ("forbidden sysctls".into(), forbidden.join(", ")))
}

fn windows_host(pod: &Pod<'_>) -> Option<Refusal> {
    let who = setters(pod, |context| context["windowsOptions"]["hostProcess"] == true);
    let what = "must not set securityContext.windowsOptions.hostProcess=true";
    (!who.is_empty()).then(|| ("hostProcess".into(), format!("{who} {what}")))
}

const APP_ARMOR_NOTE: &str = "container.apparmor.security.beta.kubernetes.io/";

fn app_armor(pod: &Pod<'_>) -> Option<Refusal> {
    let kind = |context: &Value| text(context, "/appArmorProfile/type").to_string();
    let is_bad = |context: &Value| !matches!(kind(context).as_str(), "" | "RuntimeDefault" | "Localhost");
    let who = setters(pod, is_bad);
    let kinds: BTreeSet<String> = contexts(pod).filter(|c| is_bad(c)).map(kind).collect();
    let fine = |profile: &str| matches!(profile, "" | "runtime/default") || profile.starts_with("localhost/");
    let notes = forbidden_notes(pod, |key| key.starts_with(APP_ARMOR_NOTE), fine);
    let mut what = Vec::new();
    if !who.is_empty() {
        let kinds = quoted(kinds.iter().map(String::as_str));
        what.push(format!("{who} must not set AppArmor profile type to {kinds}"));
    }
    if !notes.is_empty() {
        what.push(format!("{} {}", plural("annotation", "annotations", notes.len()), notes.join(", ")));
    }
    let reason =
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", kinds.len() + notes.len());
    (!what.is_empty()).then(|| (reason.into(), what.join("; ")))
}

/// Annotations with such a key and no fine value, as `key="value"`, sorted.
fn forbidden_notes(
    pod: &Pod<'_>,
    concerned: impl Fn(&str) -> bool,
    fine: impl Fn(&str) -> bool,
) -> Vec<String> {
    let notes = pod.metadata["annotations"].as_object().into_iter().flatten();
    let notes = notes.filter_map(|(key, value)| Some((key, value.as_str()?)));
    let mut notes: Vec<String> = notes
        .filter(|(key, value)| concerned(key) && !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    notes.sort();
    notes
}

fn added<'a>(container: &'a Value, allowed: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let added = list(container, "/securityContext/capabilities/add").iter().filter_map(Value::as_str);
    added.filter(|c| !allowed.contains(c))
}

fn forbidden_capabilities(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let names = bad(pod, |c| added(c, allowed).next().is_some());
    let capabilities: BTreeSet<&str> = containers(pod).flat_map(|c| added(c, allowed)).collect();
    let who = named(&names);
    let what =
        || format!("{who} must not include {} in securityContext.capabilities.add", quoted(capabilities));
    (!names.is_empty()).then(what)
}

fn capabilities(pod: &Pod<'_>) -> Option<Refusal> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    forbidden_capabilities(pod, &DEFAULT).map(|what| ("non-default capabilities".into(), what))
}

fn dropped(pod: &Pod<'_>) -> Option<Refusal> {
    let drops = |c: &Value| list(c, "/securityContext/capabilities/drop").iter().any(|c| c == "ALL");
    let names = bad(pod, |c| !drops(c));
    let missing = of_containers("", &names, "must set securityContext.capabilities.drop=[\"ALL\"]")
        .map(|(_, what)| what);
    let both: Vec<String> =
        missing.into_iter().chain(forbidden_capabilities(pod, &["NET_BIND_SERVICE"])).collect();
    (!both.is_empty()).then(|| ("unrestricted capabilities".into(), both.join("; ")))
}

fn host_paths(pod: &Pod<'_>) -> Option<Refusal> {
    let volumes = list(pod.spec, "/volumes").iter().filter(|v| !v["hostPath"].is_null());
    let names: Vec<&str> = volumes.map(|v| text(v, "/name")).collect();
    let what = || format!("{} {}", plural("volume", "volumes", names.len()), quoted(names.iter().copied()));
    (!names.is_empty()).then(|| ("hostPath volumes".into(), what()))
}

fn volumes(pod: &Pod<'_>) -> Option<Refusal> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    fn kind(volume: &Value) -> &str {
        let mut members = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null());
        members.next().map_or("unknown", |(key, _)| key)
    }
    let bad: Vec<&Value> =
        list(pod.spec, "/volumes").iter().filter(|v| !ALLOWED.contains(&kind(v))).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad.iter().map(|v| kind(v)).collect();
    let what = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|v| text(v, "/name"))),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(kinds)
    );
    Some(("restricted volume types".into(), what))
}

fn escalation(pod: &Pod<'_>) -> Option<Refusal> {
    let names = bad(pod, |c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    let what = "must set securityContext.allowPrivilegeEscalation=false";
    of_containers("allowPrivilegeEscalation != false", &names, what)
}

fn non_root(pod: &Pod<'_>) -> Option<Refusal> {
    const REASON: &str = "runAsNonRoot != true";
    let who = setters(pod, |context| context["runAsNonRoot"] == false);
    if !who.is_empty() {
        return Some((REASON.into(), format!("{who} must not set securityContext.runAsNonRoot=false")));
    }
    let silent = bad(pod, |c| c["securityContext"]["runAsNonRoot"].is_null());
    let covered = pod.spec["securityContext"]["runAsNonRoot"] == true;
    let what = || format!("pod or {} must set securityContext.runAsNonRoot=true", named(&silent));
    (!covered && !silent.is_empty()).then(|| (REASON.into(), what()))
}

fn root_user(pod: &Pod<'_>) -> Option<Refusal> {
    let who = setters(pod, |context| context["runAsUser"] == 0);
    (!who.is_empty()).then(|| ("runAsUser=0".into(), format!("{who} must not set runAsUser=0")))
}

fn seccomp_notes(pod: &Pod<'_>) -> Option<Refusal> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let fine = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let names: Vec<&str> = containers(pod).map(|c| text(c, "/name")).collect();
    let concerned = |key: &str| key == POD || key.strip_prefix(CONTAINER).is_some_and(|c| names.contains(&c));
    let notes = forbidden_notes(pod, concerned, fine);
    let word = plural("annotation", "annotations", notes.len());
    (!notes.is_empty()).then(|| ("seccompProfile".into(), format!("forbidden {word} {}", notes.join(", "))))
}

fn seccomp(pod: &Pod<'_>) -> Option<Refusal> {
    let kind = |context: &Value| text(context, "/seccompProfile/type").to_string();
    let is_bad = |context: &Value| {
        !context["seccompProfile"].is_null()
            && !matches!(kind(context).as_str(), "RuntimeDefault" | "Localhost")
    };
    let who = setters(pod, is_bad);
    let kinds: BTreeSet<String> = contexts(pod).filter(|c| is_bad(c)).map(kind).collect();
    let kinds = quoted(kinds.iter().map(String::as_str));
    let what = || format!("{who} must not set securityContext.seccompProfile.type to {kinds}");
    (!who.is_empty()).then(|| ("seccompProfile".into(), what()))
}

fn seccomp_set(pod: &Pod<'_>) -> Option<Refusal> {
    let refused = seccomp(pod);
    let silent = bad(pod, |c| c["securityContext"]["seccompProfile"].is_null());
    if refused.is_some() || silent.is_empty() || !pod.spec["securityContext"]["seccompProfile"].is_null() {
        return refused;
    }
    let what = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    Some(("seccompProfile".into(), format!("pod or {} {what}", named(&silent))))
}

//! What one policy makes of a pod: values for what it leaves open, and what it does against the policy, in upstream's
//! words. Pure.

use machinery::field_errors::FieldErrors;
use machinery::kinds::get::{list, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// Sysctls that are safe, as 1.20 had them: what a policy need not name.
const SAFE_SYSCTLS: [&str; 4] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
];
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A policy.
pub struct Policy {
    /// Its name.
    pub name: String,
    spec: Value,
    annotations: Value,
}

fn texts(value: &Value, at: &str) -> BTreeSet<String> {
    list(value, at).iter().filter_map(|t| t.as_str().map(str::to_string)).collect()
}

/// A container's own setting, or the pod's.
fn effective<'a>(pod: &'a Value, container: &'a Value, field: &str) -> &'a Value {
    match &container["securityContext"][field] {
        Value::Null => &pod["spec"]["securityContext"][field],
        own => own,
    }
}

/// A profile of today in the notation of annotations; "" for none.
fn profile(field: &Value) -> String {
    match text(field, "/type") {
        "RuntimeDefault" => "runtime/default".into(),
        "Unconfined" => "unconfined".into(),
        "Localhost" => format!("localhost/{}", text(field, "/localhostProfile")),
        _ => String::new(),
    }
}

/// The reverse.
fn profile_field(annotation: &str) -> Value {
    match annotation.split_once('/') {
        Some(("localhost", path)) => json!({"type": "Localhost", "localhostProfile": path}),
        Some(_) => json!({"type": "RuntimeDefault"}),
        None => json!({"type": "Unconfined"}),
    }
}

fn starts(name: &str, patterns: &BTreeSet<String>) -> bool {
    patterns.iter().any(|p| p.strip_suffix('*').map_or(name == p, |prefix| name.starts_with(prefix)))
}

fn below(path: &str, prefix: &str) -> bool {
    let (path, prefix) = (path.trim_end_matches('/'), prefix.trim_end_matches('/'));
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Does a projected volume hold nothing but what every pod's token volume does?
fn is_token_volume(projected: &Value) -> bool {
    let sources = list(projected, "/sources");
    let fits = |source: &Value| {
        let item = |at: &str, key: &str, value: &str| list(source, at).iter().all(|i| text(i, key) == value);
        if source["serviceAccountToken"].is_object() {
            return text(source, "/serviceAccountToken/path") == "token";
        }
        if source["configMap"].is_object() {
            return text(source, "/configMap/name") == "kube-root-ca.crt"
                && item("/configMap/items", "/key", "ca.crt")
                && item("/configMap/items", "/path", "ca.crt");
        }
        source["downwardAPI"].is_object()
            && item("/downwardAPI/items", "/path", "namespace")
            && item("/downwardAPI/items", "/fieldRef/fieldPath", "metadata.namespace")
    };
    !sources.is_empty() && sources.iter().all(fits)
}

impl Policy {
    /// Reads a policy; `None` for one that cannot be kept to: a rule without the ranges that it needs.
    pub fn read(object: &Value) -> Option<Policy> {
        let spec = &object["spec"];
        let groups = ["runAsGroup", "fsGroup", "supplementalGroups"];
        let ranged = |field: &&str| {
            let rule = text(spec, &format!("/{field}/rule"));
            let needs = rule == "MustRunAs" || rule == "MayRunAs" && *field != "runAsUser";
            !needs || !list(spec, &format!("/{field}/ranges")).is_empty()
        };
        let labelled =
            text(spec, "/seLinux/rule") != "MustRunAs" || spec["seLinux"]["seLinuxOptions"].is_object();
        let whole = groups.iter().chain([&"runAsUser"]).all(ranged) && labelled;
        whole.then(|| Policy {
            name: text(object, "/metadata/name").to_string(),
            spec: spec.clone(),
            annotations: object["metadata"]["annotations"].clone(),
        })
    }

    /// The least id of a `MustRunAs` rule.
    fn least(&self, field: &str) -> Option<&Value> {
        (text(&self.spec, &format!("/{field}/rule")) == "MustRunAs")
            .then(|| &list(&self.spec, &format!("/{field}/ranges"))[0]["min"])
    }

    fn note(&self, key: &str) -> &str {
        self.annotations[key].as_str().unwrap_or_default()
    }

    /// Gives a pod what it leaves open.
    pub fn complete(&self, pod: &mut Value) {
        let context = pod["spec"]["securityContext"].clone();
        if context["supplementalGroups"].is_null()
            && let Some(least) = self.least("supplementalGroups")
        {
            pod["spec"]["securityContext"]["supplementalGroups"] = json!([least]);
        }
        if context["fsGroup"].is_null()
            && let Some(least) = self.least("fsGroup")
        {
            pod["spec"]["securityContext"]["fsGroup"] = least.clone();
        }
        if context["seLinuxOptions"].is_null() && text(&self.spec, "/seLinux/rule") == "MustRunAs" {
            pod["spec"]["securityContext"]["seLinuxOptions"] = self.spec["seLinux"]["seLinuxOptions"].clone();
        }
        // The annotation that 1.20 set here means nothing to nodes any more; the field does.
        let default = self.note("seccomp.security.alpha.kubernetes.io/defaultProfileName");
        let given =
            context["seccompProfile"].is_object() || pod["metadata"]["annotations"][SECCOMP_POD].is_string();
        if !default.is_empty() && !given {
            pod["spec"]["securityContext"]["seccompProfile"] = profile_field(default);
        }
        let class = &self.spec["runtimeClass"]["defaultRuntimeClassName"];
        if class.is_string() && pod["spec"]["runtimeClassName"].is_null() {
            pod["spec"]["runtimeClassName"] = class.clone();
        }
        for kind in CONTAINERS {
            for i in 0..list(pod, &format!("/spec/{kind}")).len() {
                self.complete_container(pod, kind, i);
            }
        }
    }

    fn complete_container(&self, pod: &mut Value, kind: &str, i: usize) {
        let container = pod["spec"][kind][i].clone();
        let mut wanted: Vec<(&str, Value)> = Vec::new();
        let open = |field: &str| effective(pod, &container, field).is_null();
        for field in ["runAsUser", "runAsGroup"] {
            if let Some(least) = self.least(field).filter(|_| open(field)) {
                wanted.push((field, least.clone()));
            }
        }
        if text(&self.spec, "/runAsUser/rule") == "MustRunAsNonRoot"
            && open("runAsNonRoot")
            && open("runAsUser")
        {
            wanted.push(("runAsNonRoot", json!(true)));
        }
        let own = &container["securityContext"];
        wanted.extend(self.capabilities(&own["capabilities"]).map(|all| ("capabilities", all)));
        if self.spec["readOnlyRootFilesystem"] == true && own["readOnlyRootFilesystem"].is_null() {
            wanted.push(("readOnlyRootFilesystem", json!(true)));
        }
        if own["allowPrivilegeEscalation"].is_null() {
            let default = &self.spec["defaultAllowPrivilegeEscalation"];
            let fixed = &self.spec["allowPrivilegeEscalation"];
            if default.is_boolean() {
                wanted.push(("allowPrivilegeEscalation", default.clone()));
            } else if *fixed == false {
                wanted.push(("allowPrivilegeEscalation", fixed.clone()));
            }
        }
        let armour = self.note("apparmor.security.beta.kubernetes.io/defaultProfileName");
        if !armour.is_empty() && self.armour(pod, &container).is_empty() {
            wanted.push(("appArmorProfile", profile_field(armour)));
        }
        for (field, value) in wanted {
            pod["spec"][kind][i]["securityContext"][field] = value;
        }
    }

    /// What is added and dropped, where the policy changes that.
    fn capabilities(&self, own: &Value) -> Option<Value> {
        let (add, drop) = (texts(own, "/add"), texts(own, "/drop"));
        let more: BTreeSet<String> =
            texts(&self.spec, "/defaultAddCapabilities").difference(&drop).cloned().collect();
        let all_add: BTreeSet<String> = add.union(&more).cloned().collect();
        let all_drop: BTreeSet<String> =
            drop.union(&texts(&self.spec, "/requiredDropCapabilities")).cloned().collect();
        if all_add.len() == add.len() && all_drop.len() == drop.len() {
            return None;
        }
        let mut all = json!({});
        for (key, set) in [("add", all_add), ("drop", all_drop)] {
            if !set.is_empty() {
                all[key] = json!(set);
            }
        }
        Some(all)
    }

    fn armour(&self, pod: &Value, container: &Value) -> String {
        let note = format!("{APPARMOR_CONTAINER}{}", text(container, "/name"));
        match pod["metadata"]["annotations"][&note].as_str() {
            Some(note) => note.to_string(),
            None => profile(effective(pod, container, "appArmorProfile")),
        }
    }

    /// What a pod does against the policy.
    pub fn check(&self, pod: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let context = &pod["spec"]["securityContext"];
        let groups: Vec<&Value> = context.get("fsGroup").filter(|g| !g.is_null()).into_iter().collect();
        self.ids("fsGroup", "spec.securityContext.fsGroup", &groups, &mut errors);
        let groups: Vec<&Value> = list(context, "/supplementalGroups").iter().collect();
        self.ids("supplementalGroups", "spec.securityContext.supplementalGroups", &groups, &mut errors);
        let note = pod["metadata"]["annotations"][SECCOMP_POD].as_str();
        let own = note.map_or_else(|| profile(&context["seccompProfile"]), str::to_string);
        self.seccomp(&own, SECCOMP_POD, &mut errors);
        self.labels(&context["seLinuxOptions"], "spec.securityContext.seLinuxOptions", &mut errors);
        for (field, words) in [("hostNetwork", "network"), ("hostPID", "PID"), ("hostIPC", "IPC")] {
            if pod["spec"][field] == true && self.spec[field] != true {
                let why = format!("Host {words} is not allowed to be used");
                errors.invalid(&format!("spec.securityContext.{field}"), true, &why);
            }
        }
        self.sysctls(pod, &mut errors);
        self.volumes(pod, &mut errors);
        let allowed = texts(&self.spec, "/runtimeClass/allowedRuntimeClassNames");
        let class = text(pod, "/spec/runtimeClassName");
        if self.spec["runtimeClass"].is_object()
            && !class.is_empty()
            && !allowed.contains("*")
            && !allowed.contains(class)
        {
            errors.invalid("spec.runtimeClassName", class, "");
        }
        for kind in CONTAINERS {
            for (i, container) in list(pod, &format!("/spec/{kind}")).iter().enumerate() {
                self.container(pod, container, &format!("spec.{kind}[{i}]"), &mut errors);
            }
        }
        errors
    }

    /// Group ids in the ranges of a rule.
    fn ids(&self, field: &str, path: &str, ids: &[&Value], errors: &mut FieldErrors) {
        let rule = text(&self.spec, &format!("/{field}/rule"));
        if !matches!(rule, "MustRunAs" | "MayRunAs") {
            return;
        }
        if rule == "MustRunAs" && ids.is_empty() {
            errors.invalid(path, json!([]), "unable to validate empty groups against required ranges");
        }
        for id in ids.iter().filter(|id| !self.in_ranges(field, id)) {
            let why = format!("group {id} must be in the ranges: {}", self.ranges(field));
            errors.invalid(path, json!(ids), &why);
        }
    }

    fn in_ranges(&self, field: &str, id: &Value) -> bool {
        let number = |v: &Value| v.as_i64().unwrap_or_default();
        let within = |r: &Value| (number(&r["min"])..=number(&r["max"])).contains(&number(id));
        list(&self.spec, &format!("/{field}/ranges")).iter().any(within)
    }

    /// Ranges as Go prints them.
    fn ranges(&self, field: &str) -> String {
        let all = list(&self.spec, &format!("/{field}/ranges"));
        let all: Vec<String> = all.iter().map(|r| format!("{{{} {}}}", r["min"], r["max"])).collect();
        format!("[{}]", all.join(" "))
    }

    fn seccomp(&self, profile: &str, key: &str, errors: &mut FieldErrors) {
        let note = self.note("seccomp.security.alpha.kubernetes.io/allowedProfileNames");
        let mut allowed: BTreeSet<&str> = note.split(',').filter(|p| !p.is_empty()).collect();
        let path = format!("pod.metadata.annotations[{key}]");
        if allowed.contains("*") {
            return;
        }
        const SAME: [&str; 2] = ["runtime/default", "docker/default"];
        if SAME.iter().any(|p| allowed.contains(p)) {
            allowed.extend(SAME);
        }
        match (allowed.is_empty(), profile) {
            (true, "") => {}
            (true, _) => errors.forbidden(&path, "seccomp may not be set"),
            (false, profile) if allowed.contains(profile) => {}
            (false, profile) => {
                let why = format!("{profile} is not an allowed seccomp profile. Valid values are {note}");
                errors.forbidden(&path, &why);
            }
        }
    }

    fn labels(&self, own: &Value, path: &str, errors: &mut FieldErrors) {
        if text(&self.spec, "/seLinux/rule") != "MustRunAs" {
            return;
        }
        if !own.is_object() {
            errors.required(path, "");
            return;
        }
        let sorted = |level: &str| -> Vec<String> {
            let (first, rest) = level.split_once(':').unwrap_or((level, ""));
            let mut parts: Vec<String> = rest.split(',').map(str::to_string).collect();
            parts.sort();
            parts.insert(0, first.to_string());
            parts
        };
        let wanted = &self.spec["seLinux"]["seLinuxOptions"];
        for field in ["level", "role", "type", "user"] {
            let at = format!("/{field}");
            let (wanted, got) = (text(wanted, &at), text(own, &at));
            if wanted != got && (field != "level" || sorted(wanted) != sorted(got)) {
                errors.invalid(&format!("{path}.{field}"), got, &format!("must be {wanted}"));
            }
        }
    }

    fn sysctls(&self, pod: &Value, errors: &mut FieldErrors) {
        let forbidden = texts(&self.spec, "/forbiddenSysctls");
        let unsafe_ones = texts(&self.spec, "/allowedUnsafeSysctls");
        for (i, sysctl) in list(pod, "/spec/securityContext/sysctls").iter().enumerate() {
            let (path, name) = (format!("pod.spec.securityContext.sysctls[{i}]"), text(sysctl, "/name"));
            if starts(name, &forbidden) {
                errors.forbidden(&path, &format!("sysctl {name:?} is not allowed"));
            } else if !SAFE_SYSCTLS.contains(&name) && !starts(name, &unsafe_ones) {
                errors.forbidden(&path, &format!("unsafe sysctl {name:?} is not allowed"));
            }
        }
    }

    fn volumes(&self, pod: &Value, errors: &mut FieldErrors) {
        let allowed: BTreeSet<String> =
            texts(&self.spec, "/volumes").iter().map(|v| v.to_lowercase()).collect();
        for (i, volume) in list(pod, "/spec/volumes").iter().enumerate() {
            let path = format!("spec.volumes[{i}]");
            let kind = volume.as_object().and_then(|v| v.keys().find(|k| *k != "name"));
            let kind = kind.map_or("", String::as_str);
            let of_token =
                kind == "projected" && allowed.contains("secret") && is_token_volume(&volume["projected"]);
            if !allowed.contains("*") && !allowed.contains(&kind.to_lowercase()) && !of_token {
                errors.invalid(&path, kind, &format!("{kind} volumes are not allowed to be used"));
                continue;
            }
            match kind {
                "hostPath" => self.host_path(pod, volume, &path, errors),
                "flexVolume" => self
                    .driver("/allowedFlexVolumes", "/driver", text(volume, "/flexVolume/driver"))
                    .unwrap_or_else(|driver| {
                        errors.invalid(
                            &format!("{path}.driver"),
                            driver,
                            "Flexvolume driver is not allowed to be used",
                        );
                    }),
                "csi" => self
                    .driver("/allowedCSIDrivers", "/name", text(volume, "/csi/driver"))
                    .unwrap_or_else(|driver| {
                        errors.invalid(
                            &format!("{path}.csi.driver"),
                            driver,
                            "Inline CSI driver is not allowed to be used",
                        );
                    }),
                _ => {}
            }
        }
    }

    /// A driver that is not among those that are listed, where some are.
    fn driver<'a>(&self, all: &str, key: &str, driver: &'a str) -> Result<(), &'a str> {
        let all = list(&self.spec, all);
        if all.is_empty() || all.iter().any(|a| text(a, key) == driver) { Ok(()) } else { Err(driver) }
    }

    fn host_path(&self, pod: &Value, volume: &Value, path: &str, errors: &mut FieldErrors) {
        let allowed = list(&self.spec, "/allowedHostPaths");
        let host = text(volume, "/hostPath/path");
        let fitting: Vec<&Value> = allowed.iter().filter(|a| below(host, text(a, "/pathPrefix"))).collect();
        // A path that climbs is under no prefix, whatever it begins with.
        let climbs = host.split('/').any(|part| part == "..");
        if allowed.is_empty() {
            return;
        }
        if fitting.is_empty() || climbs {
            errors.invalid(&format!("{path}.hostPath.pathPrefix"), host, "is not allowed to be used");
        } else if fitting.iter().all(|a| a["readOnly"] == true) {
            for kind in CONTAINERS {
                for (c, container) in list(pod, &format!("/spec/{kind}")).iter().enumerate() {
                    for (m, mount) in list(container, "/volumeMounts").iter().enumerate() {
                        if mount["name"] == volume["name"] && mount["readOnly"] != true {
                            let at = format!("spec.{kind}[{c}].volumeMounts[{m}].readOnly");
                            errors.invalid(&at, false, "must be read-only");
                        }
                    }
                }
            }
        }
    }

    fn user(&self, pod: &Value, container: &Value, path: &str, errors: &mut FieldErrors) {
        let (user, non_root) =
            (effective(pod, container, "runAsUser"), effective(pod, container, "runAsNonRoot"));
        let at = format!("{path}.runAsUser");
        match text(&self.spec, "/runAsUser/rule") {
            "MustRunAs" if user.is_null() => errors.required(&at, ""),
            "MustRunAs" if !self.in_ranges("runAsUser", user) => {
                let why = format!("must be in the ranges: {}", self.ranges("runAsUser"));
                errors.invalid(&at, user.clone(), &why);
            }
            "MustRunAsNonRoot" if user.is_null() && non_root.is_null() => {
                errors.required(&format!("{path}.runAsNonRoot"), "must be true");
            }
            "MustRunAsNonRoot" if *non_root == false => {
                errors.invalid(&format!("{path}.runAsNonRoot"), false, "must be true");
            }
            "MustRunAsNonRoot" if *user == 0 => {
                errors.invalid(&at, 0, "running with the root UID is forbidden");
            }
            _ => {}
        }
    }

    fn container(&self, pod: &Value, container: &Value, path: &str, errors: &mut FieldErrors) {
        let own = &container["securityContext"];
        let at = |field: &str| format!("{path}.securityContext.{field}");
        self.user(pod, container, &format!("{path}.securityContext"), errors);
        let group = effective(pod, container, "runAsGroup");
        let groups: Vec<&Value> = Some(group).filter(|g| !g.is_null()).into_iter().collect();
        self.ids("runAsGroup", &format!("{path}.securityContext"), &groups, errors);
        self.labels(effective(pod, container, "seLinuxOptions"), &at("seLinuxOptions"), errors);
        let name = text(container, "/name");
        let armour = self.armour(pod, container);
        let allowed = self.note("apparmor.security.beta.kubernetes.io/allowedProfileNames");
        if !allowed.is_empty() && !allowed.split(',').any(|a| a == "*" || a == armour) {
            let words: Vec<String> = allowed.split(',').map(|a| format!("{a:?}")).collect();
            let key = format!("metadata.annotations[{APPARMOR_CONTAINER}{name}]");
            errors.forbidden(
                &key,
                &format!("{armour} is not an allowed profile. Allowed values: {}", words.join(", ")),
            );
        }
        let key = format!("{SECCOMP_CONTAINER}{name}");
        let notes = &pod["metadata"]["annotations"];
        let profiles = [
            profile(&own["seccompProfile"]),
            notes[&key].as_str().unwrap_or_default().to_string(),
            profile(&pod["spec"]["securityContext"]["seccompProfile"]),
            notes[SECCOMP_POD].as_str().unwrap_or_default().to_string(),
        ];
        let seccomp = profiles.into_iter().find(|p| !p.is_empty()).unwrap_or_default();
        self.seccomp(&seccomp, &key, errors);
        if own["privileged"] == true && self.spec["privileged"] != true {
            errors.invalid(&at("privileged"), true, "Privileged containers are not allowed");
        }
        let (mount, allowed) =
            (own["procMount"].as_str().unwrap_or("Default"), texts(&self.spec, "/allowedProcMountTypes"));
        if !(allowed.contains(mount) || allowed.is_empty() && mount == "Default") {
            errors.invalid(&at("procMount"), mount, "ProcMountType is not allowed");
        }
        self.check_capabilities(&own["capabilities"], &at("capabilities"), errors);
        self.host_ports(container, path, errors);
        if self.spec["readOnlyRootFilesystem"] == true && own["readOnlyRootFilesystem"] != true {
            let why = match own["readOnlyRootFilesystem"].is_null() {
                true => "ReadOnlyRootFilesystem may not be nil and must be set to true",
                false => "ReadOnlyRootFilesystem must be set to true",
            };
            errors.invalid(&at("readOnlyRootFilesystem"), own["readOnlyRootFilesystem"].clone(), why);
        }
        if self.spec["allowPrivilegeEscalation"] == false && own["allowPrivilegeEscalation"] != false {
            let why = "Allowing privilege escalation for containers is not allowed";
            errors.invalid(&at("allowPrivilegeEscalation"), own["allowPrivilegeEscalation"].clone(), why);
        }
    }

    fn check_capabilities(&self, own: &Value, path: &str, errors: &mut FieldErrors) {
        let (default, required) =
            (texts(&self.spec, "/defaultAddCapabilities"), texts(&self.spec, "/requiredDropCapabilities"));
        if own.is_null() {
            if !default.is_empty() || !required.is_empty() {
                errors.invalid(path, Value::Null, "required capabilities are not set on the securityContext");
            }
            return;
        }
        let allowed = texts(&self.spec, "/allowedCapabilities");
        if allowed.contains("*") {
            return;
        }
        for add in texts(own, "/add").iter().filter(|a| !default.contains(*a) && !allowed.contains(*a)) {
            errors.invalid(&format!("{path}.add"), add.as_str(), "capability may not be added");
        }
        for drop in required.difference(&texts(own, "/drop")) {
            let why = format!("{drop} is required to be dropped but was not found");
            errors.invalid(&format!("{path}.drop"), own["drop"].clone(), &why);
        }
    }

    fn host_ports(&self, container: &Value, path: &str, errors: &mut FieldErrors) {
        let number = |v: &Value| v.as_i64().unwrap_or_default();
        let ranges: Vec<(i64, i64)> =
            list(&self.spec, "/hostPorts").iter().map(|r| (number(&r["min"]), number(&r["max"]))).collect();
        for port in list(container, "/ports").iter().map(|p| number(&p["hostPort"])).filter(|p| *p > 0) {
            if ranges.iter().any(|(min, max)| (*min..=*max).contains(&port)) {
                continue;
            }
            let shown = |(min, max): &(i64, i64)| {
                if min == max { min.to_string() } else { format!("{min}-{max}") }
            };
            let all: Vec<String> = ranges.iter().map(shown).collect();
            let why =
                format!("Host port {port} is not allowed to be used. Allowed ports: [{}]", all.join(","));
            errors.invalid(&format!("{path}.hostPort"), port, &why);
        }
    }
}

#[cfg(test)]
mod tests;

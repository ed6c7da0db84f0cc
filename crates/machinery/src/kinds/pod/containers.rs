//! Validation of containers: ports, environment, probes, hooks, resources, security context.

use super::defaults::PROBES;
use super::volumes;
use crate::kinds::get::{entries, has, text};
use crate::kinds::spot::Spot;
use crate::name;
use crate::quantity::Quantity;
use std::collections::BTreeSet;

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const HANDLERS: [&str; 5] = ["exec", "grpc", "httpGet", "sleep", "tcpSocket"];

/// The containers and init containers of a pod spec.
pub fn validate(spec: &Spot, volumes: &BTreeSet<&str>) {
    let mut names = BTreeSet::new();
    if spec.list("containers").is_empty() {
        spec.required("containers", "");
    }
    for c in spec.each("containers") {
        one(&c, volumes);
        unique_name(&c, &mut names);
        restart_rules(&c);
        hooks_and_probes(&c);
        resize_policy(&c, spec);
    }
    host_port_conflicts(spec.each("containers"));
    file_sources(spec);
    for c in spec.each("initContainers") {
        one(&c, volumes);
        unique_name(&c, &mut names);
        // The path says it twice, as upstream's does.
        host_port_conflicts(std::iter::once(c.named(format!("{}[0]", c.at("")))));
        if c.text("restartPolicy") == "Always" {
            hooks_and_probes(&c);
            resize_policy(&c, spec);
            continue;
        }
        restart_rules(&c);
        for key in ["lifecycle"].iter().chain(&PROBES).filter(|key| c.has(key)) {
            c.forbidden(key, "may not be set for init containers without restartPolicy=Always");
        }
    }
}

/// The container's own restart policy, and its rules.
fn restart_rules(c: &Spot) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    c.one_of_opt("restartPolicy", &RESTART_POLICIES);
    if !c.list("restartPolicyRules").is_empty() && !c.has("restartPolicy") {
        c.required("restartPolicy", "must specify restartPolicy when restart rules are used");
    }
    c.at_most("restartPolicyRules", RULES_MAX);
    for rule in c.each("restartPolicyRules") {
        rule.one_of("action", &["Restart", "RestartAllContainers"]);
        let Some(codes) = rule.opt("exitCodes") else {
            rule.required("exitCodes", "must be specified");
            continue;
        };
        codes.one_of("operator", &["In", "NotIn"]);
        codes.at_most("values", CODES_MAX);
    }
}

/// Variables from files come from volumes that the pod fills itself.
fn file_sources(spec: &Spot) {
    for c in spec.each("initContainers").chain(spec.each("containers")) {
        for source in c.each("env").map(|var| var.key("valueFrom.fileKeyRef")) {
            let volume = source.text("volumeName");
            if volume.is_empty() {
                continue;
            }
            match spec.list("volumes").iter().find(|v| text(v, "/name") == volume) {
                None => source.not_found("volumeName", volume),
                Some(found) if !has(found, "/emptyDir") => {
                    source.wrong("volumeName", "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}

fn resize_policy(c: &Spot, spec: &Spot) {
    let mut seen = BTreeSet::new();
    for policy in c.each("resizePolicy") {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        policy.unique("", resource, &mut seen);
        // The field is not named.
        for (key, known) in
            [("resourceName", ["cpu", "memory"]), ("restartPolicy", ["NotRequired", "RestartContainer"])]
        {
            policy.key(key).named(c.at("resizePolicy")).one_of("", &known);
        }
        if spec.text("restartPolicy") == "Never" && restart == "RestartContainer" {
            c.invalid("resizePolicy", restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

pub(super) fn unique_name<'a>(c: &Spot<'a>, names: &mut BTreeSet<&'a str>) {
    if !c.text("name").is_empty() {
        c.unique("name", c.text("name"), names);
    }
}

/// What holds for containers of every sort.
pub(super) fn one(c: &Spot, volumes: &BTreeSet<&str>) {
    c.need_like("name", name::dns1123_label);
    c.need("image");
    c.one_of("terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(c);
    for var in c.each("env") {
        var.need_like("name", name::env_var_name);
        var.opt("valueFrom").iter().for_each(|from| value_from(&var, from));
    }
    c.each("envFrom").for_each(|source| env_from(&source));
    volumes::mounts(c, volumes);
    c.one_of("imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    resources(&c.key("resources"));
    c.opt("securityContext").iter().for_each(security_context);
}

fn ports(c: &Spot) {
    let mut names = BTreeSet::new();
    for port in c.each("ports") {
        let own = port.text("name");
        if !own.is_empty() && name::port_name(own).is_empty() {
            port.unique("name", own, &mut names);
        }
        port.like_opt("name", name::port_name);
        match port.int("containerPort").unwrap_or(0) {
            0 => port.required("containerPort", ""),
            _ => port.port("containerPort"),
        }
        if port.int("hostPort").is_some_and(|n| n != 0) {
            port.port("hostPort");
        }
        port.one_of("protocol", &["SCTP", "TCP", "UDP"]);
    }
}

fn host_port_conflicts<'a>(containers: impl Iterator<Item = Spot<'a>>) {
    let mut taken = BTreeSet::new();
    for port in containers.flat_map(|c| c.each("ports")) {
        let Some(n) = port.int("hostPort").filter(|n| *n != 0) else { continue };
        let key = format!("{}/{}/{n}", port.text("protocol"), port.text("hostIP"));
        if !taken.insert(key.clone()) {
            port.duplicate("hostPort", key);
        }
    }
}

fn value_from(var: &Spot, from: &Spot) {
    let given =
        from.given(&["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]);
    for kind in &given {
        let r = from.key(kind);
        match *kind {
            "fieldRef" => volumes::field_ref(&r, &volumes::POD_FIELDS),
            "resourceFieldRef" => volumes::resource_ref(&r),
            "configMapKeyRef" | "secretKeyRef" => {
                r.need("name");
                r.need_like("key", name::config_key);
            }
            _ => {
                r.need("key");
                r.need("volumeName");
                if r.need("path").is_some() {
                    volumes::local_path(&r.key("path"));
                }
            }
        }
    }
    if given.is_empty() {
        let words =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        from.invalid("", "", words);
    } else if !var.text("value").is_empty() {
        from.invalid("", "", "may not be specified when `value` is not empty");
    } else if given.len() > 1 {
        from.invalid("", "", "may not have more than one field specified at a time");
    }
}

fn env_from(source: &Spot) {
    source.like_opt("prefix", name::env_var_name);
    let given = source.given(&["configMapRef", "secretRef"]);
    given.iter().for_each(|kind| source.key(kind).need_like("name", name::dns1123_subdomain));
    match given.len() {
        0 => source.invalid("", "", "must specify one of: `configMapRef` or `secretRef`"),
        1 => {}
        _ => source.invalid("", "", "may not have more than one field specified at a time"),
    }
}

fn hooks_and_probes(c: &Spot) {
    for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
        c.opt(hook).iter().for_each(one_handler);
    }
    for key in PROBES {
        let Some(probe) = c.opt(key) else { continue };
        one_handler(&probe);
        probe.non_negative(&[
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ]);
        let ready = key == "readinessProbe";
        if !ready {
            probe.within("successThreshold", 1..=1, "must be 1");
        }
        match probe.int("terminationGracePeriodSeconds") {
            Some(n) if ready => {
                probe.invalid("terminationGracePeriodSeconds", n, "must not be set for readinessProbes");
            }
            _ => probe.within("terminationGracePeriodSeconds", 1..=i64::MAX, "must be greater than 0"),
        }
    }
}

fn one_handler(h: &Spot) {
    let given = h.given(&HANDLERS);
    if given.is_empty() {
        h.required("", "must specify a handler type");
    }
    for (n, kind) in given.iter().enumerate() {
        let v = h.key(kind);
        if n > 0 {
            v.forbidden("", "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if v.list("command").is_empty() => v.required("command", ""),
            "httpGet" => {
                v.need("path");
                port(&v);
                v.one_of("scheme", &["HTTP", "HTTPS"]);
                for header in v.list("httpHeaders") {
                    let own = text(header, "/name");
                    v.invalid_all("httpHeaders", own, name::http_header_name(own));
                }
            }
            "tcpSocket" => port(&v),
            "grpc" => v.port("port"),
            "sleep" => v.non_negative(&["seconds"]),
            _ => {}
        }
    }
}

fn port(v: &Spot) {
    if v.v["port"].is_string() { v.like("port", name::port_name) } else { v.port("port") }
}

/// `resources` of a container (or of a pod): names, amounts, requests within limits.
pub fn resources(r: &Spot) {
    for (resource, amount) in r.entries("limits").chain(r.entries("requests")) {
        resource_amount(resource, &amount);
    }
    for (resource, request) in entries(r.v, "/requests") {
        let limit = entries(r.v, "/limits").find(|(n, _)| *n == resource);
        let limit = limit.and_then(|(_, l)| Quantity::from_json(l)?.ok());
        let Some(Ok(wanted)) = Quantity::from_json(request) else { continue };
        match limit {
            Some(limit) if !overcommits(resource) && wanted != limit => {
                let words = format!("must be equal to {resource} limit of {limit}");
                r.invalid("requests", wanted.to_string(), &words);
            }
            Some(limit) if wanted > limit => {
                let words = format!("must be less than or equal to {resource} limit of {limit}");
                r.invalid("requests", wanted.to_string(), &words);
            }
            None if !overcommits(resource) => {
                r.required("requests.limits", "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
}

fn overcommits(resource: &str) -> bool {
    !resource.contains('/') && !resource.starts_with("hugepages-")
}

/// A resource as containers may ask for it, and how much of it.
pub fn resource_amount(resource: &str, s: &Spot) {
    resource_name(resource, s);
    amount_of(resource, s);
}

/// A resource name as containers may use it.
pub fn resource_name(resource: &str, s: &Spot) {
    s.invalid_all("", resource, name::qualified_name(resource));
    let standard =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !resource.contains('/') && !standard {
        s.invalid("", resource, "must be a standard resource for containers");
    }
}

/// An amount of a resource: not negative, whole where the resource is counted.
pub fn amount_of(resource: &str, s: &Spot) {
    let Some(Ok(quantity)) = Quantity::from_json(s.v) else { return };
    if quantity.sign() < 0 {
        s.invalid("", quantity.to_string(), "must be greater than or equal to 0");
    }
    if resource.contains('/') && !quantity.is_whole() {
        s.invalid("", quantity.to_string(), "must be an integer");
    }
}

fn security_context(context: &Spot) {
    ids(context, &["runAsUser", "runAsGroup"]);
    context.one_of_opt("procMount", &["Default", "Unmasked"]);
    profile(context);
    if context.v["allowPrivilegeEscalation"] == false {
        let wrong = "cannot set `allowPrivilegeEscalation` to false and";
        if context.flag("privileged") {
            context.wrong("", &format!("{wrong} `privileged` to true"));
        }
        let added = context.texts("capabilities.add");
        if added.iter().any(|c| matches!(*c, "SYS_ADMIN" | "CAP_SYS_ADMIN")) {
            context.wrong("", &format!("{wrong} `capabilities.Add` CAP_SYS_ADMIN"));
        }
    }
}

/// User and group ids.
pub fn ids(context: &Spot, keys: &[&str]) {
    let most = i64::from(i32::MAX);
    keys.iter().for_each(|key| context.within(key, 0..=most, &name::range_words(0, most)));
}

/// `seccompProfile` and `appArmorProfile`.
pub fn profile(context: &Spot) {
    for profile in ["seccompProfile", "appArmorProfile"].iter().filter_map(|kind| context.opt(kind)) {
        profile.one_of("type", &["Localhost", "RuntimeDefault", "Unconfined"]);
        match (profile.text("type"), profile.text("localhostProfile")) {
            ("Localhost", "") => {
                profile.required("localhostProfile", "must be set when seccomp type is Localhost");
            }
            ("Localhost", _) => volumes::local_path(&profile.key("localhostProfile")),
            (_, "") => {}
            _ => profile.wrong("localhostProfile", "can only be set when seccomp type is Localhost"),
        }
    }
}

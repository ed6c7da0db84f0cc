//! Validation of containers: ports, environment, probes, hooks, resources, security context.

use super::defaults::PROBES;
use super::volumes;
use crate::field_errors::FieldErrors;
use crate::kinds::get::{
    entries, enumerated, enumerated_opt, flag, has, int, list, non_negative, required, text, texts,
};
use crate::name;
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeSet;

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const HANDLERS: [&str; 5] = ["exec", "grpc", "httpGet", "sleep", "tcpSocket"];

/// The containers and init containers of a pod spec at `path`.
pub fn validate(spec: &Value, volumes: &BTreeSet<&str>, path: &str, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    let regular = list(spec, "/containers");
    if regular.is_empty() {
        errors.required(&format!("{path}.containers"), "");
    }
    for (i, c) in regular.iter().enumerate() {
        let path = format!("{path}.containers[{i}]");
        one(c, volumes, &path, errors);
        unique_name(c, &mut names, &path, errors);
        restart_rules(c, &path, errors);
        hooks_and_probes(c, &path, errors);
        resize_policy(c, spec, &path, errors);
    }
    host_port_conflicts(regular, &format!("{path}.containers"), errors);
    file_sources(spec, path, errors);
    for (i, c) in list(spec, "/initContainers").iter().enumerate() {
        let path = format!("{path}.initContainers[{i}]");
        one(c, volumes, &path, errors);
        unique_name(c, &mut names, &path, errors);
        host_port_conflicts(std::slice::from_ref(c), &path, errors);
        if text(c, "/restartPolicy") == "Always" {
            hooks_and_probes(c, &path, errors);
            resize_policy(c, spec, &path, errors);
            continue;
        }
        restart_rules(c, &path, errors);
        for key in ["lifecycle"].iter().chain(&PROBES) {
            if has(c, &format!("/{key}")) {
                let words = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&format!("{path}.{key}"), words);
            }
        }
    }
}

/// The container's own restart policy, and its rules.
fn restart_rules(c: &Value, path: &str, errors: &mut FieldErrors) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    enumerated_opt(c, path, "restartPolicy", &RESTART_POLICIES, errors);
    let rules = list(c, "/restartPolicyRules");
    if !rules.is_empty() && !has(c, "/restartPolicy") {
        errors.required(
            &format!("{path}.restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        );
    }
    let path = format!("{path}.restartPolicyRules");
    if rules.len() > RULES_MAX {
        errors.too_many(&path, rules.len(), RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        enumerated(rule, &path, "action", &["Restart", "RestartAllContainers"], errors);
        let codes = &rule["exitCodes"];
        let path = format!("{path}.exitCodes");
        if codes.is_null() {
            errors.required(&path, "must be specified");
            continue;
        }
        enumerated(codes, &path, "operator", &["In", "NotIn"], errors);
        let count = list(codes, "/values").len();
        if count > CODES_MAX {
            errors.too_many(&format!("{path}.values"), count, CODES_MAX);
        }
    }
}

/// Variables from files come from volumes that the pod fills itself.
fn file_sources(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["initContainers", "containers"] {
        for (i, c) in list(spec, &format!("/{key}")).iter().enumerate() {
            for (n, var) in list(c, "/env").iter().enumerate() {
                let volume = text(var, "/valueFrom/fileKeyRef/volumeName");
                if volume.is_empty() {
                    continue;
                }
                let at = format!("{path}.{key}[{i}].env[{n}].valueFrom.fileKeyRef.volumeName");
                match list(spec, "/volumes").iter().find(|v| text(v, "/name") == volume) {
                    None => errors.not_found(&at, volume),
                    Some(found) if !has(found, "/emptyDir") => {
                        errors.invalid(&at, volume, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn resize_policy(c: &Value, spec: &Value, path: &str, errors: &mut FieldErrors) {
    let path = format!("{path}.resizePolicy");
    let mut seen = BTreeSet::new();
    for (i, policy) in list(c, "/resizePolicy").iter().enumerate() {
        let (resource, restart) = (text(policy, "/resourceName"), text(policy, "/restartPolicy"));
        if !seen.insert(resource) {
            errors.duplicate(&format!("{path}[{i}]"), resource);
        }
        for (given, known) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])]
        {
            if given.is_empty() {
                errors.required(&path, "");
            } else {
                errors.one_of(&path, given, &known);
            }
        }
        if text(spec, "/restartPolicy") == "Never" && restart == "RestartContainer" {
            let words = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(&path, restart, words);
        }
    }
}

pub(super) fn unique_name<'a>(
    c: &'a Value,
    names: &mut BTreeSet<&'a str>,
    path: &str,
    errors: &mut FieldErrors,
) {
    let own = text(c, "/name");
    if !names.insert(own) && !own.is_empty() {
        errors.duplicate(&format!("{path}.name"), own);
    }
}

/// What holds for containers of every sort.
pub(super) fn one(c: &Value, volumes: &BTreeSet<&str>, path: &str, errors: &mut FieldErrors) {
    if let Some(own) = required(c, path, "name", errors) {
        errors.invalid_all(&format!("{path}.name"), own, name::dns1123_label(own));
    }
    required(c, path, "image", errors);
    enumerated(c, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], errors);
    ports(c, path, errors);
    env(c, path, errors);
    env_from(c, path, errors);
    volumes::mounts(c, volumes, path, errors);
    enumerated(c, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    resources(c.get("resources").unwrap_or(&Value::Null), &format!("{path}.resources"), errors);
    security_context(c, path, errors);
}

fn ports(c: &Value, path: &str, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, port) in list(c, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let own = text(port, "/name");
        if !own.is_empty() {
            let complaints = name::port_name(own);
            if complaints.is_empty() && !names.insert(own) {
                errors.duplicate(&format!("{path}.name"), own);
            }
            errors.invalid_all(&format!("{path}.name"), own, complaints);
        }
        match int(port, "/containerPort").unwrap_or(0) {
            0 => errors.required(&format!("{path}.containerPort"), ""),
            n => number(n, &format!("{path}.containerPort"), errors),
        }
        if let Some(n) = int(port, "/hostPort").filter(|n| *n != 0) {
            number(n, &format!("{path}.hostPort"), errors);
        }
        enumerated(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
    }
}

/// A port number.
pub fn number(n: i64, path: &str, errors: &mut FieldErrors) {
    for words in name::port_number(n) {
        errors.invalid(path, n, &words);
    }
}

fn host_port_conflicts(containers: &[Value], path: &str, errors: &mut FieldErrors) {
    let mut taken = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        for (j, port) in list(c, "/ports").iter().enumerate() {
            let Some(n) = int(port, "/hostPort").filter(|n| *n != 0) else { continue };
            let key = format!("{}/{}/{n}", text(port, "/protocol"), text(port, "/hostIP"));
            if !taken.insert(key.clone()) {
                errors.duplicate(&format!("{path}[{i}].ports[{j}].hostPort"), key);
            }
        }
    }
}

fn env(c: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, var) in list(c, "/env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        if let Some(own) = required(var, &path, "name", errors) {
            errors.invalid_all(&format!("{path}.name"), own, name::env_var_name(own));
        }
        if let Some(from) = var.get("valueFrom").filter(|f| !f.is_null()) {
            value_from(var, from, &format!("{path}.valueFrom"), errors);
        }
    }
}

fn value_from(var: &Value, from: &Value, path: &str, errors: &mut FieldErrors) {
    const SOURCES: [&str; 5] =
        ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given: Vec<&str> = SOURCES.iter().filter(|s| has(from, &format!("/{s}"))).copied().collect();
    for kind in &given {
        let (r, path) = (&from[*kind], format!("{path}.{kind}"));
        match *kind {
            "fieldRef" => volumes::field_ref(r, &path, &volumes::POD_FIELDS, errors),
            "resourceFieldRef" => volumes::resource_ref(r, &path, errors),
            "configMapKeyRef" | "secretKeyRef" => {
                required(r, &path, "name", errors);
                if let Some(key) = required(r, &path, "key", errors) {
                    errors.invalid_all(&format!("{path}.key"), key, name::config_key(key));
                }
            }
            _ => {
                for key in ["key", "volumeName"] {
                    required(r, &path, key, errors);
                }
                if let Some(file) = required(r, &path, "path", errors) {
                    volumes::local_path(file, &format!("{path}.path"), errors);
                }
            }
        }
    }
    let value = text(var, "/value");
    if given.is_empty() {
        let words =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.invalid(path, "", words);
    } else if !value.is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if given.len() > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn env_from(c: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, source) in list(c, "/envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() {
            errors.invalid_all(&format!("{path}.prefix"), prefix, name::env_var_name(prefix));
        }
        let given: Vec<&str> =
            ["configMapRef", "secretRef"].iter().filter(|s| has(source, &format!("/{s}"))).copied().collect();
        for kind in &given {
            let path = format!("{path}.{kind}");
            if let Some(own) = required(&source[*kind], &path, "name", errors) {
                errors.invalid_all(&format!("{path}.name"), own, name::dns1123_subdomain(own));
            }
        }
        match given.len() {
            0 => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn hooks_and_probes(c: &Value, path: &str, errors: &mut FieldErrors) {
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = c.pointer(&format!("/lifecycle/{hook}")).filter(|h| !h.is_null()) {
            one_handler(handler, &format!("{path}.lifecycle.{hook}"), errors);
        }
    }
    for key in PROBES {
        let Some(probe) = c.get(key).filter(|p| !p.is_null()) else { continue };
        let path = format!("{path}.{key}");
        one_handler(probe, &path, errors);
        for key in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            non_negative(probe, &path, key, errors);
        }
        let successes = int(probe, "/successThreshold").unwrap_or(1);
        if key != "readinessProbe" && successes != 1 {
            errors.invalid(&format!("{path}.successThreshold"), successes, "must be 1");
        }
        let grace = int(probe, "/terminationGracePeriodSeconds");
        match grace {
            Some(_) if key == "readinessProbe" => {
                let words = "must not be set for readinessProbes";
                errors.invalid(&format!("{path}.terminationGracePeriodSeconds"), grace.unwrap_or(0), words);
            }
            Some(n) if n <= 0 => {
                errors.invalid(&format!("{path}.terminationGracePeriodSeconds"), n, "must be greater than 0");
            }
            _ => {}
        }
    }
}

fn one_handler(h: &Value, path: &str, errors: &mut FieldErrors) {
    let given: Vec<&str> = HANDLERS.iter().filter(|k| has(h, &format!("/{k}"))).copied().collect();
    if given.is_empty() {
        errors.required(path, "must specify a handler type");
    }
    for (n, kind) in given.iter().enumerate() {
        let (v, path) = (&h[*kind], format!("{path}.{kind}"));
        if n > 0 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if list(v, "/command").is_empty() => errors.required(&format!("{path}.command"), ""),
            "httpGet" => {
                required(v, &path, "path", errors);
                port(v, &path, errors);
                enumerated(v, &path, "scheme", &["HTTP", "HTTPS"], errors);
                for header in list(v, "/httpHeaders") {
                    let own = text(header, "/name");
                    errors.invalid_all(&format!("{path}.httpHeaders"), own, name::http_header_name(own));
                }
            }
            "tcpSocket" => port(v, &path, errors),
            "grpc" => number(int(v, "/port").unwrap_or(0), &format!("{path}.port"), errors),
            "sleep" => non_negative(v, &path, "seconds", errors),
            _ => {}
        }
    }
}

fn port(v: &Value, path: &str, errors: &mut FieldErrors) {
    let path = format!("{path}.port");
    match v.get("port") {
        Some(Value::String(own)) => errors.invalid_all(&path, own, name::port_name(own)),
        other => number(other.and_then(Value::as_i64).unwrap_or(0), &path, errors),
    }
}

/// `resources` of a container (or of a pod): names, amounts, requests within limits.
pub fn resources(r: &Value, path: &str, errors: &mut FieldErrors) {
    for side in ["limits", "requests"] {
        for (resource, amount) in entries(r, &format!("/{side}")) {
            let path = format!("{path}.{side}[{resource}]");
            resource_name(resource, &path, errors);
            amount_of(resource, amount, &path, errors);
        }
    }
    for (resource, request) in entries(r, "/requests") {
        let limit = entries(r, "/limits")
            .find(|(n, _)| *n == resource)
            .and_then(|(_, l)| Quantity::from_json(l)?.ok());
        let Some(Ok(wanted)) = Quantity::from_json(request) else { continue };
        let path = format!("{path}.requests");
        match limit {
            Some(limit) if !overcommits(resource) && wanted != limit => {
                let words = format!("must be equal to {resource} limit of {limit}");
                errors.invalid(&path, wanted.to_string(), &words);
            }
            Some(limit) if wanted > limit => {
                let words = format!("must be less than or equal to {resource} limit of {limit}");
                errors.invalid(&path, wanted.to_string(), &words);
            }
            None if !overcommits(resource) => {
                errors.required(
                    &format!("{path}.limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
            _ => {}
        }
    }
}

fn overcommits(resource: &str) -> bool {
    !resource.contains('/') && !resource.starts_with("hugepages-")
}

/// A resource name as containers may use it.
pub fn resource_name(resource: &str, path: &str, errors: &mut FieldErrors) {
    errors.invalid_all(path, resource, name::qualified_name(resource));
    let standard =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !resource.contains('/') && !standard {
        errors.invalid(path, resource, "must be a standard resource for containers");
    }
}

/// An amount of a resource: not negative, whole where the resource is counted.
pub fn amount_of(resource: &str, amount: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(Ok(quantity)) = Quantity::from_json(amount) else { return };
    if quantity.sign() < 0 {
        errors.invalid(path, quantity.to_string(), "must be greater than or equal to 0");
    }
    if resource.contains('/') && !quantity.is_whole() {
        errors.invalid(path, quantity.to_string(), "must be an integer");
    }
}

fn security_context(c: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(context) = c.get("securityContext").filter(|s| !s.is_null()) else { return };
    let path = format!("{path}.securityContext");
    ids(context, &path, &["runAsUser", "runAsGroup"], errors);
    enumerated_opt(context, &path, "procMount", &["Default", "Unmasked"], errors);
    profile(context, &path, errors);
    if context.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if flag(context, "/privileged") {
            let words = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(&path, context.clone(), words);
        }
        if texts(context, "/capabilities/add").any(|c| matches!(c, "SYS_ADMIN" | "CAP_SYS_ADMIN")) {
            let words = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(&path, context.clone(), words);
        }
    }
}

/// User and group ids.
pub fn ids(context: &Value, path: &str, keys: &[&str], errors: &mut FieldErrors) {
    for key in keys {
        if let Some(id) = int(context, &format!("/{key}"))
            && !(0..=i64::from(i32::MAX)).contains(&id)
        {
            errors.invalid(&format!("{path}.{key}"), id, &name::range_words(0, i64::from(i32::MAX)));
        }
    }
}

/// `seccompProfile` and `appArmorProfile`.
pub fn profile(context: &Value, path: &str, errors: &mut FieldErrors) {
    for kind in ["seccompProfile", "appArmorProfile"] {
        let Some(profile) = context.get(kind).filter(|p| !p.is_null()) else { continue };
        let path = format!("{path}.{kind}");
        enumerated(profile, &path, "type", &["Localhost", "RuntimeDefault", "Unconfined"], errors);
        let local = text(profile, "/localhostProfile");
        match (text(profile, "/type"), local.is_empty()) {
            ("Localhost", true) => errors
                .required(&format!("{path}.localhostProfile"), "must be set when seccomp type is Localhost"),
            ("Localhost", false) => volumes::local_path(local, &format!("{path}.localhostProfile"), errors),
            (_, false) => errors.invalid(
                &format!("{path}.localhostProfile"),
                local,
                "can only be set when seccomp type is Localhost",
            ),
            _ => {}
        }
    }
}

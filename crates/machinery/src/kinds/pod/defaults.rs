//! Defaults of a Pod, and of the pod template that workload kinds carry.

use crate::kinds::get::{at, child, default, default_nonzero, each, entries, flag, has, int, set, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// The container lists of a pod spec.
pub const CONTAINER_LISTS: [&str; 3] = ["/initContainers", "/containers", "/ephemeralContainers"];
/// Probes of a container.
pub const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
/// Permission bits of projected files: 0644.
const FILE_MODE: i64 = 0o644;

/// Everything a Pod gets: the spec's defaults, then what only materialises in Pods.
pub fn pod(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    pod_spec(spec);
    // Of Pods only, as upstream: a template keeps what it says.
    if int(spec, "/terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        set(spec, "terminationGracePeriodSeconds", 1);
    }
    for list in ["/containers", "/initContainers"] {
        each(spec, list, |c| at(c, "/resources", requests_from_limits));
    }
    super::whole::default_requests(spec);
    default(spec, "enableServiceLinks", true);
    if flag(spec, "/hostNetwork") {
        host_ports(spec);
    }
}

/// The defaults of `template.spec` of a workload (the template is made when it is missing, as Go's zero value is).
pub fn template(spec: &mut Value) {
    if let Some(spec) = child(spec, "template").and_then(|t| child(t, "spec")) {
        pod_spec(spec);
        if flag(spec, "/hostNetwork") {
            host_ports(spec);
        }
    }
}

fn host_ports(spec: &mut Value) {
    for list in ["/containers", "/initContainers"] {
        each(spec, list, |c| {
            each(c, "/ports", |p| {
                let number = p.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
                default_nonzero(p, "hostPort", number);
            });
        });
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    child(spec, "securityContext");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    each(spec, "/volumes", volume);
    for list in CONTAINER_LISTS {
        each(spec, list, container);
    }
    at(spec, "/overhead", resource_list);
    each(spec, "/topologySpreadConstraints", |_| {});
}

/// `serviceAccount` is the old name of `serviceAccountName`: both are always shown.
pub fn mirror_service_account(spec: &mut Value) {
    let new = text(spec, "/serviceAccountName").to_string();
    let old = text(spec, "/serviceAccount").to_string();
    let name = if new.is_empty() { old } else { new };
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.clone());
        set(spec, "serviceAccount", name);
    }
}

fn container(c: &mut Value) {
    let policy = if is_latest(text(c, "/image")) { "Always" } else { "IfNotPresent" };
    default(c, "imagePullPolicy", policy);
    default(c, "terminationMessagePath", "/dev/termination-log");
    default(c, "terminationMessagePolicy", "File");
    child(c, "resources");
    each(c, "/ports", |p| default(p, "protocol", "TCP"));
    each(c, "/env", |e| at(e, "/valueFrom/fieldRef", |r| default(r, "apiVersion", "v1")));
    at(c, "/resources/limits", resource_list);
    at(c, "/resources/requests", resource_list);
    for key in PROBES {
        at(c, &format!("/{key}"), probe);
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        at(c, hook, http_get);
    }
}

/// Does an image reference mean the tag `latest` (given, or none and no digest)?
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(p: &mut Value) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_nonzero(p, key, value);
    }
    at(p, "/httpGet", http_get);
    at(p, "/grpc", |g| default(g, "service", ""));
}

fn http_get(h: &mut Value) {
    default(h, "path", "/");
    default(h, "scheme", "HTTP");
}

fn resource_list(list: &mut Value) {
    for amount in list.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        if let Some(Ok(quantity)) = Quantity::from_json(amount) {
            *amount = quantity.rounded_to_milli().to_string().into();
        }
    }
}

fn requests_from_limits(resources: &mut Value) {
    let limits: Vec<(String, Value)> =
        entries(resources, "/limits").map(|(k, v)| (k.into(), v.clone())).collect();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = child(resources, "requests") {
        for (name, limit) in limits {
            default(requests, &name, limit);
        }
    }
}

fn volume(v: &mut Value) {
    if v.as_object().is_some_and(|fields| fields.keys().all(|k| k == "name")) {
        set(v, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        at(v, &format!("/{source}"), |s| default(s, "defaultMode", FILE_MODE));
    }
    at(v, "/hostPath", |h| {
        if !has(h, "/type") {
            set(h, "type", "");
        }
    });
    each(v, "/downwardAPI/items", |i| at(i, "/fieldRef", |r| default(r, "apiVersion", "v1")));
    each(v, "/projected/sources", |s| {
        at(s, "/serviceAccountToken", |t| default(t, "expirationSeconds", 3600));
        each(s, "/downwardAPI/items", |i| at(i, "/fieldRef", |r| default(r, "apiVersion", "v1")));
    });
    at(v, "/ephemeral/volumeClaimTemplate/spec", |s| default(s, "volumeMode", "Filesystem"));
    at(v, "/image", |i| {
        let policy = if is_latest(text(i, "/reference")) { "Always" } else { "IfNotPresent" };
        default(i, "pullPolicy", policy);
    });
    at(v, "/iscsi", |s| default(s, "iscsiInterface", "default"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_pod() {
        let mut p = json!({"metadata": {"name": "x"}, "spec": {"serviceAccount": "sa", "containers": [{
            "name": "c", "image": "localhost:5000/nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "0.1001m"}}, "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}}]}});
        pod(&mut p);
        assert_eq!(
            p,
            json!({"metadata": {"name": "x"}, "spec": {
            "serviceAccount": "sa", "serviceAccountName": "sa", "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
            "securityContext": {}, "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "enableServiceLinks": true,
            "containers": [{"name": "c", "image": "localhost:5000/nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "resources": {"limits": {"cpu": "1m"}, "requests": {"cpu": "1m"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 10,
                    "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}]}})
        );
        let again = p.clone();
        pod(&mut p);
        assert_eq!(p, again);
    }

    #[test]
    fn pull_policies() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("a.b:5000/x", true),
            ("a.b:5000/x:1", false),
            ("x@sha256:0", false),
            ("x:latest@sha256:0", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}

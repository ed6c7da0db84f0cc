//! The members of a Service: its pods with their addresses, readiness and resolved ports. Pure.

use client::Object;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;

/// One port as an endpoint offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The Service port's name, "" when unnamed.
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Number in the pod.
    pub port: i32,
    /// Hint for proxies.
    pub app_protocol: Option<String>,
}

/// One pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Address.
    pub ip: String,
    /// Ports, sorted.
    pub ports: Vec<Port>,
    /// Takes traffic: serving and not leaving (or the Service publishes everything).
    pub ready: bool,
    /// Its Ready condition.
    pub serving: bool,
    /// Being deleted.
    pub terminating: bool,
    /// Node name, "" before it is bound.
    pub node: String,
    /// The node's zone, "" when it has none.
    pub zone: String,
    /// Name under the Service, "" when it has none.
    pub hostname: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Started and will not be again (Endpoints leave it out).
    pub over: bool,
}

/// The members among `pods`, sorted by name. `zone_of` maps a node to its zone.
pub fn of(
    service: &core::Service,
    pods: impl Iterator<Item = Arc<Object>>,
    zone_of: impl Fn(&str) -> String,
) -> Vec<Member> {
    let Some(spec) = &service.spec else { return Vec::new() };
    pods.filter_map(|object| {
        let pod = object.view::<core::Pod>().ok()?;
        member(service, spec, &pod, &zone_of)
    })
    .collect()
}

fn member(
    service: &core::Service,
    spec: &core::ServiceSpec,
    pod: &core::Pod,
    zone_of: &impl Fn(&str) -> String,
) -> Option<Member> {
    let (pod_spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let ip = status.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let serving = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let node = pod_spec.node_name.clone().unwrap_or_default();
    let named =
        pod_spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    let mut ports: Vec<Port> = Vec::new();
    for port in spec.ports.iter().flatten() {
        ports.extend(resolve(port, pod_spec));
    }
    // A pod that has none of a Service's (named) ports is no member of it.
    if ports.is_empty() && spec.ports.as_ref().is_some_and(|p| !p.is_empty()) {
        return None;
    }
    ports.sort();
    Some(Member {
        zone: zone_of(&node),
        ip,
        ports,
        ready: publish_all || (serving && !terminating),
        serving: serving || publish_all,
        terminating,
        node,
        hostname: pod_spec.hostname.clone().filter(|_| named).unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        over: terminating && !publish_all,
    })
}

/// The port's number in this pod; `None` when the pod has no port of that name.
fn resolve(port: &core::ServicePort, pod: &core::PodSpec) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or("TCP".into());
    let named = |name: &str| {
        let sidecars =
            pod.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut ports = pod.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
        let same = |p: &&core::ContainerPort| {
            p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
        };
        ports.find(same).map(|p| p.container_port)
    };
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named(name)?,
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
        app_protocol: port.app_protocol.clone(),
    })
}

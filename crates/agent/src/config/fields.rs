//! The downward API: fields of the pod and resources of its containers as text.

use crate::facts::NodeFacts;
use crate::pod::PodView;
use k8s_openapi::api::core::v1::ResourceFieldSelector;
use machinery::quantity::Quantity;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The text of a field; an error where the field is none that pods may read.
pub fn field(pod: &PodView, path: &str, facts: &NodeFacts, pod_ips: &[IpAddr]) -> Result<String, String> {
    let meta = pod.object.meta();
    if let Some((which, key)) = subscript(path) {
        let map = match which {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    let ips = if pod.host_network() { &facts.host_ips } else { pod_ips };
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => pod.name().into(),
        "metadata.namespace" => pod.namespace().into(),
        "metadata.uid" => pod.uid().into(),
        "metadata.labels" => quoted(&meta.labels),
        "metadata.annotations" => quoted(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => all(&facts.host_ips),
        "status.podIP" => first(ips),
        "status.podIPs" => all(ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (which, rest) = path.split_once("['")?;
    Some((which, rest.strip_suffix("']")?))
}

fn quoted(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// A request or limit of a container, divided and rounded up; where none is set, what the node has.
pub fn resource(
    pod: &PodView,
    container: &str,
    selector: &ResourceFieldSelector,
    facts: &NodeFacts,
) -> Result<String, String> {
    let container = pod.container(container).ok_or_else(|| format!("container {container} not found"))?;
    let bad = || format!("Unsupported container resource : {}", selector.resource);
    let (which, name) = selector.resource.split_once('.').ok_or_else(bad)?;
    let resources = container.spec.resources.as_ref();
    let list = match which {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(bad()),
    };
    let set = list.and_then(|l| l.get(name)).and_then(|q| q.0.parse::<Quantity>().ok());
    let node = match (which, name) {
        ("limits", "cpu") => Quantity::from_milli(facts.cpu_milli),
        ("limits", "memory") => Quantity::from_bytes(facts.memory_bytes),
        ("limits", "ephemeral-storage") => Quantity::from_bytes(facts.storage_bytes),
        _ => Quantity::ZERO,
    };
    let value = set.unwrap_or(node);
    let divisor =
        selector.divisor.as_ref().and_then(|d| d.0.parse::<Quantity>().ok()).filter(|d| d.sign() > 0);
    let divide = |a: i64, b: i64| if b <= 0 { a } else { a.div_euclid(b) + i64::from(a.rem_euclid(b) > 0) };
    Ok(match name {
        "cpu" => divide(value.milli(), divisor.map_or(1000, |d| d.milli())).to_string(),
        _ => divide(value.units(), divisor.map_or(1, |d| d.units())).to_string(),
    })
}

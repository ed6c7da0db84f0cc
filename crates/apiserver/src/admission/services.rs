//! Services: cluster IPs and node ports are taken, kept over updates, and let go when the type no longer needs them.

use super::{Attempt, Operation};
use crate::services::{Refused, Reservation};
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

fn spec_text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn service_type(service: &Value) -> &str {
    match spec_text(service, "type") {
        "" => "ClusterIP",
        other => other,
    }
}

/// Does the type come with a cluster IP (or an explicit "None")?
fn needs_ip(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

fn node_ports(service: &Value) -> Vec<u32> {
    ports(service).filter_map(|p| p["nodePort"].as_u64()).filter(|n| *n > 0).map(|n| n as u32).collect()
}

/// Fills in from the old service what the new one leaves out, and drops what its type no longer has.
pub(super) fn carry_allocated(attempt: &Attempt<'_>, new: &mut Value) -> Result<(), ApiError> {
    let is_service = attempt.call.resource.is("", "services") && attempt.operation == Operation::Update;
    let Some(old) = attempt.old.filter(|_| is_service) else { return Ok(()) };
    carry(new, old);
    Ok(())
}

fn carry(new: &mut Value, old: &Value) {
    if !new["spec"].is_object() {
        return;
    }
    if needs_ip(old) && needs_ip(new) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let missing = match &new["spec"][field] {
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => true,
            };
            if missing && !old["spec"][field].is_null() {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if needs_ip(old) && !needs_ip(new) && new["spec"]["clusterIP"] == old["spec"]["clusterIP"] {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            new["spec"].as_object_mut().and_then(|spec| spec.remove(field));
        }
    }
    let wants = needs_node_ports(new);
    let drop_ports = needs_node_ports(old) && !wants && node_ports(new) == node_ports(old);
    let Some(list) = new["spec"]["ports"].as_array_mut() else { return };
    for port in list {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        if drop_ports {
            port.as_object_mut().and_then(|p| p.remove("nodePort"));
        } else if wants
            && port["nodePort"].as_u64().unwrap_or(0) == 0
            && let Some(kept) = ports(old).find(same).and_then(|o| o["nodePort"].as_u64()).filter(|n| *n > 0)
        {
            port["nodePort"] = json!(kept);
        }
    }
}

/// Takes what the service asks for or needs.
pub(super) fn allocate(attempt: &Attempt<'_>, service: &mut Value) -> Result<Reservation, ApiError> {
    let mut reservation = Reservation::of(&attempt.api.services, attempt.key);
    if !service["spec"].is_object() {
        return Ok(reservation);
    }
    let mut errors = FieldErrors::new();
    allocate_ip(attempt, service, &mut reservation, &mut errors);
    allocate_ports(attempt, service, &mut reservation, &mut errors);
    errors.into_result("", "Service", &attempt.key.name)?;
    if let Some(old) = attempt.old {
        let before: Option<Ipv4Addr> = spec_text(old, "clusterIP").parse().ok();
        if let Some(ip) = before.filter(|ip| spec_text(service, "clusterIP") != ip.to_string()) {
            reservation.freed_ips.push(ip.into());
        }
        let kept = node_ports(service);
        reservation.freed_ports.extend(node_ports(old).into_iter().filter(|p| !kept.contains(p)));
    }
    Ok(reservation)
}

fn allocate_ip(
    attempt: &Attempt<'_>,
    service: &mut Value,
    reservation: &mut Reservation,
    errors: &mut FieldErrors,
) {
    if !needs_ip(service) {
        return;
    }
    let asked = match spec_text(service, "clusterIP") {
        "" => service["spec"]["clusterIPs"][0].as_str().unwrap_or_default().to_string(),
        ip => ip.to_string(),
    };
    let pools = &attempt.api.services;
    pools.ips.lock().set_spans(attempt.api.service_spans());
    let held = attempt.old.is_some_and(|old| !asked.is_empty() && spec_text(old, "clusterIP") == asked);
    let refused =
        |errors: &mut FieldErrors, why: String| errors.invalid("spec.clusterIPs", json!([asked]), &why);
    let ip = match asked.as_str() {
        "None" => None,
        "" => {
            let never = u32::from(attempt.api.config.cluster_dns_ip);
            let free = |n: u32| n != never && !attempt.api.is_address_held(Ipv4Addr::from(n));
            match pools.ips.lock().take_any(attempt.key, (attempt.api.config.random)(), free) {
                Ok(number) => {
                    reservation.took_ip(number);
                    Some(Ipv4Addr::from(number))
                }
                Err(_) => return refused(errors, "failed to allocate a serviceIP: range is full".into()),
            }
        }
        text => match text.parse::<Ipv4Addr>() {
            Err(_) => {
                return refused(
                    errors,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into(),
                );
            }
            Ok(ip) if held => Some(ip),
            Ok(ip) => match pools.ips.lock().take(ip.into(), attempt.key) {
                Ok(new) => {
                    if new {
                        reservation.took_ip(ip.into());
                    }
                    Some(ip)
                }
                Err(Refused::OutOfRange) => {
                    let why = "the provided network does not match the current range";
                    return refused(errors, format!("failed to allocate IP {ip}: {why}"));
                }
                Err(_) => {
                    return refused(
                        errors,
                        format!("failed to allocate IP {ip}: provided IP is already allocated"),
                    );
                }
            },
        },
    };
    let shown = ip.map_or("None".to_string(), |ip| ip.to_string());
    service["spec"]["clusterIP"] = json!(shown);
    service["spec"]["clusterIPs"] = json!([shown]);
    if service["spec"]["ipFamilies"].as_array().is_none_or(|f| f.is_empty()) {
        service["spec"]["ipFamilies"] = json!(["IPv4"]);
    }
    if spec_text(service, "ipFamilyPolicy").is_empty() {
        service["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    }
}

fn allocate_ports(
    attempt: &Attempt<'_>,
    service: &mut Value,
    reservation: &mut Reservation,
    errors: &mut FieldErrors,
) {
    let wanted = needs_node_ports(service);
    let held = attempt.old.map(node_ports).unwrap_or_default();
    let pools = &attempt.api.services;
    let mut pool = pools.ports.lock();
    let mut by_port: Vec<(Value, u32)> = Vec::new();
    let Some(list) = service["spec"]["ports"].as_array_mut() else { return };
    // Explicit ports first, so that a free choice does not take them.
    for (i, port) in list.iter().enumerate() {
        let asked = port["nodePort"].as_u64().unwrap_or(0) as u32;
        if asked == 0 {
            continue;
        }
        by_port.push((port["port"].clone(), asked));
        if held.contains(&asked) {
            continue;
        }
        let field = format!("spec.ports[{i}].nodePort");
        match pool.take(asked, attempt.key) {
            Ok(true) => reservation.took_port(asked),
            Ok(false) => {}
            Err(Refused::OutOfRange) => {
                let range = &pools.port_range;
                let why =
                    format!("provided port is not in the valid range. The range of valid ports is {range}");
                errors.invalid(&field, asked, &why);
            }
            Err(_) => errors.invalid(&field, asked, "provided port is already allocated"),
        }
    }
    for port in list.iter_mut().filter(|_| wanted) {
        if port["nodePort"].as_u64().unwrap_or(0) != 0 {
            continue;
        }
        // The same port over another protocol shares its node port.
        let shared = by_port.iter().find(|(p, _)| *p == port["port"]).map(|(_, n)| *n);
        let number = match shared {
            Some(number) => number,
            None => match pool.take_any(attempt.key, (attempt.api.config.random)(), |_| true) {
                Ok(number) => {
                    reservation.took_port(number);
                    number
                }
                Err(_) => {
                    return errors.invalid("spec.ports", 0, "failed to allocate a nodePort: range is full");
                }
            },
        };
        by_port.push((port["port"].clone(), number));
        port["nodePort"] = json!(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        carry(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.5");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        let mut cluster = old.clone();
        cluster["spec"]["type"] = json!("ClusterIP");
        carry(&mut cluster, &old);
        assert!(cluster["spec"]["ports"][0]["nodePort"].is_null());
        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        carry(&mut external, &old);
        assert!(external["spec"]["clusterIP"].is_null());
    }
}

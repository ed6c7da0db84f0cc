//! Services of a namespace, with their DNS records.

use super::State;
use super::find::{PAGES, arn, bare, fits, instances, invalid, namespace, new_id, service};
use super::operation::done;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Value, json};

/// Attributes of one service; Cloud Map's limit.
const ATTRIBUTES_MAX: usize = 30;

/// Checks and completes a DNS configuration.
fn dns(given: &Value, namespace: &Value) -> Outcome {
    if given.is_null() {
        return Ok(Value::Null);
    }
    if text(namespace, "Type") == "HTTP" {
        return Err(invalid("DnsConfig cannot be specified for a service in an HTTP namespace"));
    }
    let records = items(&given["DnsRecords"]);
    let kinds: Vec<&str> = records.iter().map(|r| text(r, "Type")).collect();
    refuse_if(kinds.is_empty(), || invalid("At least one DNS record must be specified"))?;
    if kinds.contains(&"CNAME") && kinds.len() > 1 {
        return Err(invalid("A CNAME record cannot be combined with other records"));
    }
    refuse_if(kinds.contains(&"AAAA"), || invalid("Gantry has no AAAA records"))?;
    let policy = given["RoutingPolicy"].as_str().unwrap_or("MULTIVALUE");
    if kinds.contains(&"CNAME") && policy != "WEIGHTED" {
        return Err(invalid("A CNAME record needs the routing policy WEIGHTED"));
    }
    Ok(json!({"NamespaceId": namespace["Id"], "RoutingPolicy": policy, "DnsRecords": records}))
}

/// CreateService.
pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let input = &call.input;
    let name = text(input, "Name");
    let given = input["NamespaceId"].as_str().or(input["DnsConfig"]["NamespaceId"].as_str());
    let namespace = namespace(state, call, given.unwrap_or_default()).await?;
    if !input["HealthCheckConfig"].is_null() {
        return Err(invalid("HealthCheckConfig is only for services in public DNS namespaces"));
    }
    let dns = dns(&input["DnsConfig"], &namespace)?;
    let all = state.services.list(call).await?;
    let twin = |s: &&Value| s["NamespaceId"] == namespace["Id"] && text(s, "Name").eq_ignore_ascii_case(name);
    if let Some(old) = all.iter().find(twin) {
        let mut error = AwsError::client("ServiceAlreadyExists", "Service already exists.");
        for (member, own) in
            [("ServiceId", "Id"), ("ServiceArn", "Arn"), ("CreatorRequestId", "CreatorRequestId")]
        {
            error.more.insert(member.into(), old[own].clone());
        }
        return Err(error);
    }
    let kind = match (text(&namespace, "Type"), text(input, "Type")) {
        ("HTTP", _) | (_, "HTTP") => "HTTP",
        _ if dns.is_null() => "HTTP",
        _ => "DNS_HTTP",
    };
    let mut custom = input["HealthCheckCustomConfig"].clone();
    if custom.is_object() {
        custom["FailureThreshold"] = json!(1);
    }
    let id = new_id("srv-");
    let spec = bare(json!({
        "Id": id, "Arn": arn(call, &format!("service/{id}")), "Name": name, "NamespaceId": namespace["Id"],
        "Description": input["Description"], "DnsConfig": dns, "HealthCheckCustomConfig": custom, "Type": kind,
        "CreateDate": now(call), "CreatorRequestId": input["CreatorRequestId"], "Tags": input["Tags"],
        "ResourceOwner": call.caller.account, "CreatedByAccount": call.caller.account,
    }));
    state.services.create(call, &id, spec.clone()).await?;
    Ok(json!({"Service": spec}))
}

async fn shown(state: &State, call: &Call, mut spec: Value) -> Outcome {
    let count = instances(state, call, text(&spec, "Id")).await?.len();
    spec["InstanceCount"] = json!(count);
    Ok(spec)
}

/// GetService.
pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("Id")).await?;
    Ok(json!({"Service": shown(state, call, spec).await?}))
}

/// ListServices.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut rows = Vec::new();
    for spec in state.services.list(call).await? {
        if fits(call, |name| if name == "NAMESPACE_ID" { text(&spec, "NamespaceId") } else { "SELF" }) {
            rows.push(shown(state, call, spec).await?);
        }
    }
    PAGES.answer(call, "Services", rows, "Id")
}

/// UpdateService.
pub(super) async fn update(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("Id")).await?;
    let (id, new) = (text(&spec, "Id"), &call.input["Service"]);
    if !new["HealthCheckConfig"].is_null() {
        return Err(invalid("HealthCheckConfig is only for services in public DNS namespaces"));
    }
    let mut wanted = new["DnsConfig"].clone();
    if wanted.is_object() {
        wanted["RoutingPolicy"] = spec["DnsConfig"]["RoutingPolicy"].clone();
        let namespace = namespace(state, call, text(&spec, "NamespaceId")).await?;
        wanted = dns(&wanted, &namespace)?;
    }
    state
        .services
        .change(call, id, |spec| {
            for (member, value) in [("Description", &new["Description"]), ("DnsConfig", &wanted)] {
                if !value.is_null() {
                    spec[member] = value.clone();
                }
            }
            Ok(())
        })
        .await?;
    done(state, call, "UPDATE_SERVICE", ("SERVICE", id))
}

/// DeleteService: one without instances.
pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("Id")).await?;
    let id = text(&spec, "Id");
    refuse_if(!instances(state, call, id).await?.is_empty(), || {
        AwsError::client("ResourceInUse", format!("Service contains registered instances: {id}"))
    })?;
    state.services.remove(call, id).await?;
    Ok(json!({}))
}

/// GetServiceAttributes.
pub(super) async fn attributes(state: &State, call: &Call) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    let own = spec["ServiceAttributes"].as_object().cloned().unwrap_or_default();
    Ok(json!({"ServiceAttributes": {"ServiceArn": spec["Arn"], "Attributes": own,
        "ResourceOwner": call.caller.account}}))
}

async fn change_attributes(state: &State, call: &Call, change: impl Fn(&mut Map<String, Value>)) -> Outcome {
    let spec = service(state, call, call.text("ServiceId")).await?;
    state
        .services
        .change(call, text(&spec, "Id"), |spec| {
            let mut own = spec["ServiceAttributes"].as_object().cloned().unwrap_or_default();
            change(&mut own);
            if own.len() > ATTRIBUTES_MAX {
                let words = format!("A service can have at most {ATTRIBUTES_MAX} attributes");
                return Err(AwsError::client("ServiceAttributesLimitExceededException", words));
            }
            spec["ServiceAttributes"] = Value::Object(own);
            Ok(())
        })
        .await?;
    Ok(json!({}))
}

/// UpdateServiceAttributes.
pub(super) async fn update_attributes(state: &State, call: &Call) -> Outcome {
    let new = call.input["Attributes"].as_object().cloned().unwrap_or_default();
    change_attributes(state, call, |own| own.extend(new.clone())).await
}

/// DeleteServiceAttributes.
pub(super) async fn delete_attributes(state: &State, call: &Call) -> Outcome {
    let gone = call.items("Attributes");
    change_attributes(state, call, |own| own.retain(|key, _| !gone.iter().any(|g| g == key))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_fit_their_namespace_and_policy() {
        let (private, http) = (json!({"Id": "ns-1", "Type": "DNS_PRIVATE"}), json!({"Type": "HTTP"}));
        let of = |kind: &str| json!({"DnsRecords": [{"Type": kind, "TTL": 60}]});
        assert_eq!(dns(&of("A"), &private).unwrap()["RoutingPolicy"], "MULTIVALUE");
        assert_eq!(dns(&Value::Null, &http).unwrap(), Value::Null);
        for (given, namespace) in
            [(of("A"), &http), (of("CNAME"), &private), (of("AAAA"), &private), (json!({}), &private)]
        {
            assert_eq!(dns(&given, namespace).unwrap_err().code, "InvalidInput");
        }
    }
}

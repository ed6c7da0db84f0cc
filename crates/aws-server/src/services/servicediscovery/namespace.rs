//! Namespaces: HTTP ones, and private DNS ones, which are zones.

use super::State;
use super::find::{PAGES, arn, bare, fits, invalid, namespace, new_id};
use super::operation::done;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Seconds that resolvers may keep a negative answer; Cloud Map's default.
const SOA_TTL: u64 = 15;

/// CreateHttpNamespace.
pub(super) async fn create_http(state: &State, call: &Call) -> Outcome {
    create(state, call, "HTTP", json!({})).await
}

/// CreatePrivateDnsNamespace.
pub(super) async fn create_private(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    refuse_if(!is_domain(name), || invalid(format!("Name is not a valid domain name: {name}")))?;
    let ttl = &call.input["Properties"]["DnsProperties"]["SOA"]["TTL"];
    let zone = new_id("Z").to_uppercase();
    let dns = json!({"HostedZoneId": zone, "SOA": {"TTL": ttl.as_u64().unwrap_or(SOA_TTL)}});
    create(state, call, "DNS_PRIVATE", dns).await
}

fn is_domain(name: &str) -> bool {
    let label = |l: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !l.is_empty() && l.len() <= 63 && l.bytes().all(good) && !l.starts_with('-') && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

async fn create(state: &State, call: &Call, kind: &str, dns: Value) -> Outcome {
    let name = call.text("Name");
    let all = state.namespaces.list(call).await?;
    if let Some(old) = all.iter().find(|n| text(n, "Name") == name) {
        let mut error = AwsError::client("NamespaceAlreadyExists", "Namespace already exists");
        error.more.insert("NamespaceId".into(), old["Id"].clone());
        error.more.insert("CreatorRequestId".into(), old["CreatorRequestId"].clone());
        return Err(error);
    }
    let id = new_id("ns-");
    let spec = json!({
        "Id": id, "Arn": arn(call, &format!("namespace/{id}")), "Name": name, "Type": kind,
        "Description": call.input["Description"], "CreateDate": now(call),
        "CreatorRequestId": call.input["CreatorRequestId"], "ResourceOwner": call.caller.account,
        "Properties": {"DnsProperties": if kind == "HTTP" { json!({"SOA": {}}) } else { dns },
            "HttpProperties": {"HttpName": name}},
        "Vpc": call.input["Vpc"], "Tags": call.input["Tags"],
    });
    state.namespaces.create(call, &id, bare(spec)).await?;
    done(state, call, "CREATE_NAMESPACE", ("NAMESPACE", &id))
}

async fn shown(state: &State, call: &Call, mut spec: Value) -> Outcome {
    let services = state.services.list(call).await?;
    spec["ServiceCount"] = json!(services.iter().filter(|s| s["NamespaceId"] == spec["Id"]).count());
    Ok(spec)
}

/// GetNamespace.
pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let spec = namespace(state, call, call.text("Id")).await?;
    Ok(json!({"Namespace": shown(state, call, spec).await?}))
}

/// ListNamespaces.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut rows = Vec::new();
    for spec in state.namespaces.list(call).await? {
        let fit = fits(call, |name| match name {
            "TYPE" => text(&spec, "Type"),
            "NAME" | "HTTP_NAME" => text(&spec, "Name"),
            _ => "SELF",
        });
        if fit {
            rows.push(shown(state, call, spec).await?);
        }
    }
    PAGES.answer(call, "Namespaces", rows, "Id")
}

/// UpdateHttpNamespace, UpdatePrivateDnsNamespace.
pub(super) async fn update(state: &State, call: &Call) -> Outcome {
    let spec = namespace(state, call, call.text("Id")).await?;
    let (id, new) = (text(&spec, "Id"), &call.input["Namespace"]);
    state
        .namespaces
        .change(call, id, |spec| {
            if !new["Description"].is_null() {
                spec["Description"] = new["Description"].clone();
            }
            let soa = &new["Properties"]["DnsProperties"]["SOA"];
            if !soa.is_null() {
                spec["Properties"]["DnsProperties"]["SOA"] = soa.clone();
            }
            Ok(())
        })
        .await?;
    done(state, call, "UPDATE_NAMESPACE", ("NAMESPACE", id))
}

/// DeleteNamespace: an empty one.
pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let spec = namespace(state, call, call.text("Id")).await?;
    let id = text(&spec, "Id");
    refuse_if(state.services.list(call).await?.iter().any(|s| text(s, "NamespaceId") == id), || {
        AwsError::client("ResourceInUse", format!("Namespace has associated services: {id}"))
    })?;
    state.namespaces.remove(call, id).await?;
    done(state, call, "DELETE_NAMESPACE", ("NAMESPACE", id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_domains() {
        for (name, good) in
            [("prod.local", true), ("local", true), ("a..b", false), ("-a.b", false), ("", false)]
        {
            assert_eq!(is_domain(name), good, "{name}");
        }
    }
}

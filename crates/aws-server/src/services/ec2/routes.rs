//! Route tables, gateways, addresses and key pairs: kept as they are told, nothing routes by them.

use super::filter::pick;
use super::generic::{change, delete, dry, get, listed, make, missing, new_id};
use super::kinds::{ADDRESS, INTERNET_GATEWAY, KEY_PAIR, Kind, ROUTE_TABLE, SUBNET, VPC};
use super::store::{Store, bad};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// What a route leads to.
const NEXT_HOPS: [&str; 6] = [
    "GatewayId",
    "NatGatewayId",
    "InstanceId",
    "NetworkInterfaceId",
    "VpcPeeringConnectionId",
    "EgressOnlyInternetGatewayId",
];
const DESTINATIONS: [&str; 3] =
    ["DestinationCidrBlock", "DestinationIpv6CidrBlock", "DestinationPrefixListId"];

/// DescribeRouteTables: each knows the way inside its VPC.
pub(super) async fn describe_tables(store: &Store, call: &Call) -> Outcome {
    let vpcs = store.all(call, &VPC).await?;
    let mut tables = store.all(call, &ROUTE_TABLE).await?;
    for table in &mut tables {
        let own = vpcs.iter().find(|v| v["VpcId"] == table["VpcId"]);
        let mut routes =
            vec![json!({"DestinationCidrBlock": own.map(|v| &v["CidrBlock"]), "GatewayId": "local",
            "State": "active", "Origin": "CreateRouteTable"})];
        routes.extend(items(&table["Routes"]).iter().cloned());
        table["Routes"] = json!(routes);
    }
    listed(call, &ROUTE_TABLE, tables)
}

fn same_destination(a: &Value, b: &Value) -> bool {
    DESTINATIONS.iter().all(|m| a[*m] == b[*m])
}

fn no_route(call: &Call) -> AwsError {
    let words = format!(
        "no route with destination-cidr-block {} in route table {}",
        call.text("DestinationCidrBlock"),
        call.text("RouteTableId")
    );
    AwsError::client("InvalidRoute.NotFound", words)
}

/// CreateRoute, ReplaceRoute.
pub(super) async fn put_route(store: &Store, call: &Call, replaces: bool) -> Outcome {
    dry(call)?;
    let mut route = json!({"State": "active", "Origin": "CreateRoute"});
    for member in DESTINATIONS.iter().chain(&NEXT_HOPS) {
        route[*member] = call.input[*member].clone();
    }
    if NEXT_HOPS.iter().all(|m| route[*m].is_null()) {
        return Err(AwsError::client("MissingParameter", "The request must contain the parameter gatewayId"));
    }
    let table = call.text("RouteTableId");
    let changed = change(store, call, (&ROUTE_TABLE, table), |spec| {
        let mut routes = items(&spec["Routes"]).to_vec();
        match routes.iter_mut().find(|r| same_destination(r, &route)) {
            Some(old) if replaces => *old = route.clone(),
            None if !replaces => routes.push(route.clone()),
            None => return Err(no_route(call)),
            Some(_) => {
                let cidr = text(&route, "DestinationCidrBlock");
                let words = format!("The route identified by {cidr} already exists.");
                return Err(AwsError::client("RouteAlreadyExists", words));
            }
        }
        spec["Routes"] = json!(routes);
        Ok(json!({"Return": true}))
    });
    changed.await
}

/// DeleteRoute.
pub(super) async fn delete_route(store: &Store, call: &Call) -> Outcome {
    dry(call)?;
    let changed = change(store, call, (&ROUTE_TABLE, call.text("RouteTableId")), |spec| {
        let mut routes = items(&spec["Routes"]).to_vec();
        let before = routes.len();
        routes.retain(|r| !same_destination(r, &call.input));
        refuse_if(routes.len() == before, || no_route(call))?;
        spec["Routes"] = json!(routes);
        Ok(json!({}))
    });
    changed.await
}

/// AssociateRouteTable.
pub(super) async fn associate(store: &Store, call: &Call) -> Outcome {
    let (table, subnet) = (call.text("RouteTableId"), call.text("SubnetId"));
    get(store, call, &SUBNET, subnet).await?;
    dry(call)?;
    let taken = |t: &Value| items(&t["Associations"]).iter().any(|a| text(a, "SubnetId") == subnet);
    if let Some(other) = store.all(call, &ROUTE_TABLE).await?.iter().find(|t| taken(t)) {
        let words = format!(
            "the specified association for route table {} conflicts with an existing association",
            text(other, "RouteTableId")
        );
        return Err(AwsError::client("Resource.AlreadyAssociated", words));
    }
    let id = new_id("rtbassoc-");
    let row = json!({"RouteTableAssociationId": id, "RouteTableId": table, "SubnetId": subnet, "Main": false,
        "AssociationState": {"State": "associated"}});
    let changed = change(store, call, (&ROUTE_TABLE, table), |spec| {
        let mut all = items(&spec["Associations"]).to_vec();
        all.push(row.clone());
        spec["Associations"] = json!(all);
        Ok(json!({"AssociationId": id, "AssociationState": {"State": "associated"}}))
    });
    changed.await
}

/// The table that has an association.
async fn holder(store: &Store, call: &Call, id: &str) -> Result<String, AwsError> {
    let tables = store.all(call, &ROUTE_TABLE).await?;
    let has = |t: &&Value| items(&t["Associations"]).iter().any(|a| text(a, "RouteTableAssociationId") == id);
    tables.iter().find(has).map(|t| text(t, "RouteTableId").to_string()).ok_or_else(|| {
        let words = format!("The association ID '{id}' does not exist");
        AwsError::client("InvalidAssociationID.NotFound", words)
    })
}

/// DisassociateRouteTable.
pub(super) async fn disassociate(store: &Store, call: &Call) -> Outcome {
    let id = call.text("AssociationId");
    let table = holder(store, call, id).await?;
    dry(call)?;
    let changed = change(store, call, (&ROUTE_TABLE, &table), |spec| {
        let mut all = items(&spec["Associations"]).to_vec();
        if all.iter().any(|a| text(a, "RouteTableAssociationId") == id && a["Main"] == true) {
            let words = format!("cannot disassociate the main route table association {id}");
            return Err(AwsError::client("InvalidParameterValue", words));
        }
        all.retain(|a| text(a, "RouteTableAssociationId") != id);
        spec["Associations"] = json!(all);
        Ok(json!({}))
    });
    changed.await
}

/// AttachInternetGateway.
pub(super) async fn attach(store: &Store, call: &Call) -> Outcome {
    let (id, vpc) = (call.text("InternetGatewayId"), call.text("VpcId"));
    get(store, call, &VPC, vpc).await?;
    dry(call)?;
    let within = |g: &Value| items(&g["Attachments"]).iter().any(|a| text(a, "VpcId") == vpc);
    if store.all(call, &INTERNET_GATEWAY).await?.iter().any(within) {
        let words = format!("Network {vpc} already has an internet gateway attached");
        return Err(AwsError::client("InvalidParameterValue", words));
    }
    let changed = change(store, call, (&INTERNET_GATEWAY, id), |spec| {
        if !items(&spec["Attachments"]).is_empty() {
            let words = format!("resource {id} is already attached to network");
            return Err(AwsError::client("Resource.AlreadyAssociated", words));
        }
        spec["Attachments"] = json!([{"VpcId": vpc, "State": "available"}]);
        Ok(json!({}))
    });
    changed.await
}

/// DetachInternetGateway.
pub(super) async fn detach(store: &Store, call: &Call) -> Outcome {
    let (id, vpc) = (call.text("InternetGatewayId"), call.text("VpcId"));
    dry(call)?;
    let changed = change(store, call, (&INTERNET_GATEWAY, id), |spec| {
        refuse_if(!items(&spec["Attachments"]).iter().any(|a| text(a, "VpcId") == vpc), || {
            AwsError::client("Gateway.NotAttached", format!("resource {id} is not attached to network {vpc}"))
        })?;
        spec["Attachments"] = json!([]);
        Ok(json!({}))
    });
    changed.await
}

/// DeleteInternetGateway, DeleteRouteTable: one whose list `member` is empty.
pub(super) async fn delete_free(store: &Store, call: &Call, kind: &Kind, member: &str) -> Outcome {
    let id = call.text(kind.id);
    if !items(&get(store, call, kind, id).await?[member]).is_empty() {
        let mut word = kind.one.to_string();
        word[..1].make_ascii_lowercase();
        let words = format!("The {word} '{id}' has dependencies and cannot be deleted.");
        return Err(AwsError::client("DependencyViolation", words));
    }
    delete(store, call, kind).await
}

/// DescribeAddresses.
pub(super) async fn describe_addresses(store: &Store, call: &Call) -> Outcome {
    let mut all = store.all(call, &ADDRESS).await?;
    pick(call, "PublicIps", &mut all, "PublicIp", |ip| {
        AwsError::client("InvalidAddress.NotFound", format!("Address '{ip}' not found."))
    })?;
    listed(call, &ADDRESS, all)
}

async fn key_pair(store: &Store, call: &Call) -> Result<Option<Value>, AwsError> {
    let (id, name) = (&call.input["KeyPairId"], &call.input["KeyName"]);
    let all = store.all(call, &KEY_PAIR).await?;
    let own = |k: &Value| if id.is_null() { k["KeyName"] == *name } else { k["KeyPairId"] == *id };
    Ok(all.into_iter().find(own))
}

/// ImportKeyPair.
pub(super) async fn import_key(store: &Store, call: &Call) -> Outcome {
    if key_pair(store, call).await?.is_some() {
        let words = format!("The keypair '{}' already exists.", call.text("KeyName"));
        return Err(AwsError::client("InvalidKeyPair.Duplicate", words));
    }
    refuse_if(call.text("PublicKeyMaterial").is_empty(), || bad("publicKeyMaterial", ""))?;
    make(store, call, &KEY_PAIR).await
}

/// DeleteKeyPair: of one that is not there it succeeds.
pub(super) async fn delete_key(store: &Store, call: &Call) -> Outcome {
    dry(call)?;
    if let Some(key) = key_pair(store, call).await? {
        store.kept(KEY_PAIR.slot).remove(call, text(&key, "KeyPairId")).await?;
        return Ok(json!({"Return": true, "KeyPairId": key["KeyPairId"]}));
    }
    Ok(json!({"Return": true}))
}

/// DescribeKeyPairs.
pub(super) async fn describe_keys(store: &Store, call: &Call) -> Outcome {
    let mut all = store.all(call, &KEY_PAIR).await?;
    pick(call, "KeyNames", &mut all, "KeyName", |name| missing(&KEY_PAIR, name))?;
    listed(call, &KEY_PAIR, all)
}

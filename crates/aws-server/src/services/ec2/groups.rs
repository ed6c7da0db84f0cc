//! Security groups: their rules, a row each in `spec.Rules`; `IpPermissions` are made of them for answers.
//!
//! The rules are kept, not enforced.

use super::filter::{Filters, PAGES, pick};
use super::generic::{change, delete, dry, get, listed, make, missing, new_id, tags_of};
use super::kinds::{GROUP, INTERFACE, Kind};
use super::store::Store;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Rules of a group and direction; EC2's quota.
const RULES_MAX: usize = 60;
/// Where a rule points: its member, the list of a permission it comes from, the member there.
const PEERS: [(&str, &str, &str); 3] = [
    ("CidrIpv4", "IpRanges", "CidrIp"),
    ("CidrIpv6", "Ipv6Ranges", "CidrIpv6"),
    ("PrefixListId", "PrefixListIds", "PrefixListId"),
];

/// What makes two rules the same.
fn same(a: &Value, b: &Value) -> bool {
    ["IsEgress", "IpProtocol", "FromPort", "ToPort", "CidrIpv4", "CidrIpv6", "PrefixListId"]
        .iter()
        .all(|m| a[*m] == b[*m])
        && a["ReferencedGroupInfo"]["GroupId"] == b["ReferencedGroupInfo"]["GroupId"]
}

/// The rules that a permission stands for.
fn rules(permission: &Value, egress: bool, owner: &str) -> Vec<Value> {
    let protocol = match text(permission, "IpProtocol") {
        "6" => "tcp",
        "17" => "udp",
        "1" => "icmp",
        other => other,
    };
    let all = protocol == "-1";
    let port = |member: &str| if all { json!(-1) } else { permission[member].clone() };
    let base = json!({"IsEgress": egress, "IpProtocol": protocol, "FromPort": port("FromPort"),
        "ToPort": port("ToPort")});
    let mut out = Vec::new();
    for (member, list, inner) in PEERS {
        for peer in items(&permission[list]) {
            let mut rule = base.clone();
            rule[member] = peer[inner].clone();
            rule["Description"] = peer["Description"].clone();
            out.push(rule);
        }
    }
    for pair in items(&permission["UserIdGroupPairs"]) {
        let mut rule = base.clone();
        let owner = pair["UserId"].as_str().unwrap_or(owner);
        rule["ReferencedGroupInfo"] = json!({"GroupId": pair["GroupId"], "UserId": owner});
        rule["Description"] = pair["Description"].clone();
        out.push(rule);
    }
    out
}

/// The permissions that rules come to: one for each protocol and ports.
fn permissions(all: &[Value], egress: bool) -> Value {
    let mut out: Vec<Value> = Vec::new();
    for rule in all.iter().filter(|r| r["IsEgress"] == egress) {
        let any = rule["IpProtocol"] == "-1";
        let mut head = json!({"IpProtocol": rule["IpProtocol"]});
        if !any {
            head["FromPort"] = rule["FromPort"].clone();
            head["ToPort"] = rule["ToPort"].clone();
        }
        let fits = |p: &Value| ["IpProtocol", "FromPort", "ToPort"].iter().all(|m| p[*m] == head[*m]);
        let at = out.iter().position(fits).unwrap_or_else(|| {
            let mut fresh = head.clone();
            ["IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs"]
                .iter()
                .for_each(|l| fresh[*l] = json!([]));
            out.push(fresh);
            out.len() - 1
        });
        let mut add = |list: &str, mut entry: Value| {
            if !rule["Description"].is_null() {
                entry["Description"] = rule["Description"].clone();
            }
            if let Some(entries) = out[at][list].as_array_mut() {
                entries.push(entry);
            }
        };
        for (member, list, inner) in PEERS {
            if !rule[member].is_null() {
                add(list, json!({inner: rule[member]}));
            }
        }
        if rule["ReferencedGroupInfo"].is_object() {
            add("UserIdGroupPairs", rule["ReferencedGroupInfo"].clone());
        }
    }
    json!(out)
}

/// The rows of a new group; the default one lets its own members in.
pub(super) fn first_rules(id: &str, owner: &str, default: bool) -> Value {
    let mut out = rules(&json!({"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}), true, owner);
    if default {
        let pairs = json!([{"GroupId": id, "UserId": owner}]);
        out.extend(rules(&json!({"IpProtocol": "-1", "UserIdGroupPairs": pairs}), false, owner));
    }
    out.iter_mut().for_each(|rule| number(rule, id, owner));
    json!(out)
}

/// Gives a rule its id and group.
fn number(rule: &mut Value, group: &str, owner: &str) {
    rule["SecurityGroupRuleId"] = json!(new_id("sgr-"));
    rule["GroupId"] = json!(group);
    rule["GroupOwnerId"] = json!(owner);
}

fn shown(mut spec: Value) -> Value {
    for (member, egress) in [("IpPermissions", false), ("IpPermissionsEgress", true)] {
        spec[member] = permissions(items(&spec["Rules"]), egress);
    }
    spec
}

/// CreateSecurityGroup.
pub(super) async fn create(store: &Store, call: &Call) -> Outcome {
    let name = call.text("GroupName");
    let vpc = match call.text("VpcId") {
        "" => store
            .default_vpc(call)
            .await?
            .ok_or_else(|| AwsError::client("VPCIdNotSpecified", "No default VPC for this user"))?,
        id => text(&get(store, call, &super::kinds::VPC, id).await?, "VpcId").to_string(),
    };
    let all = store.all(call, &GROUP).await?;
    if all.iter().any(|g| text(g, "VpcId") == vpc && text(g, "GroupName") == name) {
        let words = format!("The security group '{name}' already exists for VPC '{vpc}'");
        return Err(AwsError::client("InvalidGroup.Duplicate", words));
    }
    let mut call = call.clone();
    call.input["VpcId"] = json!(vpc);
    make(store, &call, &GROUP).await
}

/// The group that a call means, by id or, in the default VPC, by name.
async fn meant(store: &Store, call: &Call) -> Result<String, AwsError> {
    let (id, name) = (call.text("GroupId"), call.text("GroupName"));
    if !id.is_empty() {
        return get(store, call, &GROUP, id).await.map(|_| id.to_string());
    }
    refuse_if(name.is_empty(), || {
        AwsError::client("MissingParameter", "The request must contain the parameter groupName or groupId")
    })?;
    let vpc = store.default_vpc(call).await?.unwrap_or_default();
    let all = store.all(call, &GROUP).await?;
    let own = all.iter().find(|g| text(g, "VpcId") == vpc && text(g, "GroupName") == name);
    own.map(|g| text(g, "GroupId").to_string()).ok_or_else(|| missing(&GROUP, name))
}

/// DescribeSecurityGroups.
pub(super) async fn describe(store: &Store, call: &Call) -> Outcome {
    let mut all: Vec<Value> = store.all(call, &GROUP).await?.into_iter().map(shown).collect();
    pick(call, "GroupNames", &mut all, "GroupName", |name| missing(&GROUP, name))?;
    listed(call, &GROUP, all)
}

/// DeleteSecurityGroup.
pub(super) async fn remove(store: &Store, call: &Call) -> Outcome {
    let id = meant(store, call).await?;
    let spec = get(store, call, &GROUP, &id).await?;
    if text(&spec, "GroupName") == "default" {
        let words = format!("the specified group: \"{id}\" name: \"default\" cannot be deleted by a user");
        return Err(AwsError::client("CannotDelete", words));
    }
    let refers = |rule: &Value| text(&rule["ReferencedGroupInfo"], "GroupId") == id;
    let others = store.all(call, &GROUP).await?;
    let other = others.iter().filter(|g| text(g, "GroupId") != id);
    let used = store.all(call, &INTERFACE).await?;
    let within = |i: &Value| items(&i["Groups"]).iter().any(|g| text(g, "GroupId") == id);
    refuse_if(other.flat_map(|g| items(&g["Rules"])).any(refers) || used.iter().any(within), || {
        AwsError::client("DependencyViolation", format!("resource {id} has a dependent object"))
    })?;
    let mut call = call.clone();
    call.input["GroupId"] = json!(id);
    delete(store, &call, &GROUP as &Kind).await
}

/// The rules that a call gives: as permissions, or the old way with one flat one.
fn given(call: &Call, egress: bool) -> Vec<Value> {
    let input = &call.input;
    let mut list = items(&input["IpPermissions"]).to_vec();
    if !input["IpProtocol"].is_null() {
        let mut flat = json!({"IpProtocol": input["IpProtocol"], "FromPort": input["FromPort"],
            "ToPort": input["ToPort"]});
        if !input["CidrIp"].is_null() {
            flat["IpRanges"] = json!([{"CidrIp": input["CidrIp"]}]);
        }
        list.push(flat);
    }
    list.iter().flat_map(|p| rules(p, egress, &call.caller.account)).collect()
}

/// AuthorizeSecurityGroupIngress, AuthorizeSecurityGroupEgress.
pub(super) async fn authorize(store: &Store, call: &Call, egress: bool) -> Outcome {
    let id = meant(store, call).await?;
    dry(call)?;
    let mut new = given(call, egress);
    refuse_if(new.is_empty(), || {
        AwsError::client("MissingParameter", "The request must contain the parameter ipPermissions")
    })?;
    let tags = tags_of(call, "security-group-rule");
    for rule in &mut new {
        number(rule, &id, &call.caller.account);
        rule["Tags"] = tags.clone();
    }
    let changed = change(store, call, (&GROUP, &id), |spec| {
        let mut all = items(&spec["Rules"]).to_vec();
        if let Some(twice) = new.iter().find(|n| all.iter().any(|old| same(old, n))) {
            return Err(AwsError::client("InvalidPermission.Duplicate", already(twice)));
        }
        all.extend(new.iter().cloned());
        if all.iter().filter(|r| r["IsEgress"] == egress).count() > RULES_MAX {
            let words = "The maximum number of rules per security group has been reached.";
            return Err(AwsError::client("RulesPerSecurityGroupLimitExceeded", words));
        }
        spec["Rules"] = json!(all);
        Ok(json!({"Return": true, "SecurityGroupRules": new}))
    });
    changed.await
}

fn already(rule: &Value) -> String {
    let peers = [&rule["CidrIpv4"], &rule["CidrIpv6"], &rule["ReferencedGroupInfo"]["GroupId"]];
    let peer = peers.iter().find_map(|p| p.as_str()).unwrap_or_default();
    let protocol = text(rule, "IpProtocol").to_uppercase();
    let ports = match &*protocol {
        "-1" => "ALL, ALLOW".to_string(),
        _ => format!("{protocol}, from port: {}, to port: {}, ALLOW", rule["FromPort"], rule["ToPort"]),
    };
    format!("the specified rule \"peer: {peer}, {ports}\" already exists")
}

fn no_rule(id: &Value) -> AwsError {
    let words = format!("The security group rule ID {id} does not exist");
    AwsError::client("InvalidSecurityGroupRuleId.NotFound", words)
}

/// RevokeSecurityGroupIngress, RevokeSecurityGroupEgress.
pub(super) async fn revoke(store: &Store, call: &Call, egress: bool) -> Outcome {
    let id = meant(store, call).await?;
    dry(call)?;
    let (gone, ids) = (given(call, egress), call.items("SecurityGroupRuleIds"));
    let changed = change(store, call, (&GROUP, &id), |spec| {
        let all = items(&spec["Rules"]);
        if let Some(unknown) = ids.iter().find(|i| !all.iter().any(|r| r["SecurityGroupRuleId"] == **i)) {
            return Err(no_rule(unknown));
        }
        if gone.iter().any(|g| !all.iter().any(|r| same(r, g))) {
            let words = "The specified rule does not exist in this security group.";
            return Err(AwsError::client("InvalidPermission.NotFound", words));
        }
        let goes = |r: &&Value| ids.contains(&r["SecurityGroupRuleId"]) || gone.iter().any(|g| same(r, g));
        let (out, kept): (Vec<&Value>, Vec<&Value>) = all.iter().partition(goes);
        let (out, kept) = (json!(out), json!(kept));
        spec["Rules"] = kept;
        Ok(json!({"Return": true, "RevokedSecurityGroupRules": out}))
    });
    changed.await
}

/// DescribeSecurityGroupRules.
pub(super) async fn describe_rules(store: &Store, call: &Call) -> Outcome {
    let filters = Filters::of(call);
    let all = store.all(call, &GROUP).await?;
    let mut rules: Vec<Value> = all.iter().flat_map(|g| items(&g["Rules"])).cloned().collect();
    pick(call, "SecurityGroupRuleIds", &mut rules, "SecurityGroupRuleId", |id| no_rule(&json!(id)))?;
    rules.retain(|r| filters.fit(r));
    PAGES.answer(call, "SecurityGroupRules", rules, "SecurityGroupRuleId")
}

/// ModifySecurityGroupRules.
pub(super) async fn modify_rules(store: &Store, call: &Call) -> Outcome {
    let id = meant(store, call).await?;
    dry(call)?;
    let owner = &call.caller.account;
    let changed = change(store, call, (&GROUP, &id), |spec| {
        let mut all = items(&spec["Rules"]).to_vec();
        for update in call.items("SecurityGroupRules") {
            let own = all.iter_mut().find(|r| r["SecurityGroupRuleId"] == update["SecurityGroupRuleId"]);
            let rule = own.ok_or_else(|| no_rule(&update["SecurityGroupRuleId"]))?;
            let new = &update["SecurityGroupRule"];
            let members =
                ["IpProtocol", "FromPort", "ToPort", "CidrIpv4", "CidrIpv6", "PrefixListId", "Description"];
            members.iter().for_each(|m| rule[*m] = new[*m].clone());
            rule["ReferencedGroupInfo"] = match &new["ReferencedGroupId"] {
                Value::Null => Value::Null,
                group => json!({"GroupId": group, "UserId": owner}),
            };
        }
        spec["Rules"] = json!(all);
        Ok(json!({"Return": true}))
    });
    changed.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_what_their_rules_were() {
        let given = json!({"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80,
            "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "in"}, {"CidrIp": "192.0.2.0/24"}],
            "Ipv6Ranges": [], "PrefixListIds": [], "UserIdGroupPairs": [{"GroupId": "sg-1", "UserId": "1"}]});
        let rows = rules(&given, false, "1");
        assert_eq!(rows.len(), 3);
        assert_eq!(permissions(&rows, false), json!([given]));
        assert_eq!(permissions(&rows, true), json!([]));
        assert!(already(&rows[0]).contains("peer: 10.0.0.0/8, TCP, from port: 80, to port: 80, ALLOW"));
        let first = first_rules("sg-1", "1", true);
        assert_eq!(items(&first).len(), 2);
    }
}

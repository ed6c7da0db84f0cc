//! Tasks as targets of load balancers and as instances of Cloud Map. Pure.
//!
//! A task is registered from ACTIVATING on until it is no more wanted. Entries of a target group are told apart by their
//! `owner`, the task's ARN: those of others are never touched.

use super::view::Traffic;
use ecs_model::targets::{is_same, state, target};
use machinery::kinds::get::{int, list, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A task as targets know it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its spec.
    pub spec: &'a Value,
    /// Its status.
    pub status: &'a Value,
    /// It is of the wanted deployment: the service's own load balancers are its.
    pub current: bool,
    /// The EC2 instance that its node is.
    pub instance_id: Option<&'a str>,
}

impl Member<'_> {
    /// Shall it be registered?
    pub fn is_up(&self) -> bool {
        let runs = matches!(text(self.status, "/lastStatus"), "ACTIVATING" | "RUNNING");
        text(self.spec, "/desiredStatus") != "STOPPED" && runs
    }

    fn arn(&self) -> &str {
        text(self.spec, "/taskArn")
    }
}

/// A task's own address.
pub fn address(status: &Value) -> Option<&str> {
    let containers = list(status, "/containers").iter();
    let mut all =
        containers.flat_map(|c| list(c, "/networkInterfaces")).map(|i| text(i, "/privateIpv4Address"));
    all.find(|a| !a.is_empty())
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|p| u16::try_from(p).ok())
}

/// The port that a container's port has on its node.
fn host_port(status: &Value, container: &str, wanted: u16) -> Option<u16> {
    let found = list(status, "/containers").iter().find(|c| text(c, "/name") == container)?;
    let bound = list(found, "/networkBindings").iter().find(|b| port(&b["containerPort"]) == Some(wanted))?;
    port(&bound["hostPort"])
}

/// The target that a task is in a group of that type, for an entry of `loadBalancers`.
fn entry(kind: &str, balancer: &Value, member: &Member) -> Option<Value> {
    let (container, wanted) = (text(balancer, "/containerName"), port(&balancer["containerPort"])?);
    let zone = text(member.spec, "/availabilityZone");
    if kind == "ip" {
        return Some(target(address(member.status)?, wanted, zone, member.arn()));
    }
    let port = host_port(member.status, container, wanted)?;
    Some(target(member.instance_id?, port, zone, member.arn()))
}

/// What a group's targets shall be, and how many come and go; `None` where nothing changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// All of `spec.targets`.
    pub targets: Value,
    /// Registered now.
    pub added: usize,
    /// Deregistered now.
    pub removed: usize,
}

/// Brings a group (its spec) to what the service's tasks ask for. `stale` tells owners that are gone for good.
pub fn change(
    group: &Value,
    balancers: &[Value],
    members: &[Member],
    stale: impl Fn(&str) -> bool,
) -> Option<Change> {
    let ours: BTreeSet<&str> = members.iter().map(Member::arn).collect();
    let held = list(group, "/targets");
    let mut wanted: Vec<Value> = Vec::new();
    let here = |b: &&Value| text(b, "/targetGroupArn") == text(group, "/TargetGroupArn");
    for member in members.iter().filter(|m| m.is_up()) {
        if member.current {
            let entries = balancers.iter().filter(here);
            wanted.extend(entries.filter_map(|b| entry(text(group, "/TargetType"), b, member)));
        } else {
            wanted.extend(held.iter().filter(|t| text(t, "/owner") == member.arn()).cloned());
        }
    }
    let theirs = |t: &&Value| {
        let owner = text(t, "/owner");
        !ours.contains(owner) && !stale(owner)
    };
    let mut targets: Vec<Value> = held.iter().filter(theirs).cloned().collect();
    targets.extend(wanted);
    let among = |all: &[Value], one: &Value| all.iter().any(|t| is_same(t, one));
    let added = targets.iter().filter(|t| !among(held, t)).count();
    let removed = held.iter().filter(|t| !among(&targets, t)).count();
    (added + removed > 0).then_some(Change { targets: Value::Array(targets), added, removed })
}

/// How the load balancers see a task; groups (whole objects) by ARN.
pub fn traffic(member: &Member, balancers: &[Value], groups: &BTreeMap<String, &Value>) -> Traffic {
    if !member.current || balancers.is_empty() {
        return Traffic::Unasked;
    }
    let mut out = Traffic::Unasked;
    for balancer in balancers {
        let arn = text(balancer, "/targetGroupArn");
        let Some(group) = groups.get(arn) else { return Traffic::Waiting };
        let Some(entry) = entry(text(group, "/spec/TargetType"), balancer, member) else {
            return Traffic::Waiting;
        };
        let number = port(&entry["port"]).unwrap_or(0);
        let registered = list(group, "/spec/targets").iter().any(|t| is_same(t, &entry));
        match state(&group["status"], text(&entry, "/id"), number) {
            "unhealthy" => return Traffic::Failing(arn.to_string()),
            // A group that no listener uses tells nothing more.
            "healthy" | "unused" if registered => out = Traffic::Serving,
            _ => return Traffic::Waiting,
        }
    }
    out
}

/// Has no group a task among its targets any more, not even as one that drains?
pub fn is_drained(owner: &str, known: &[Value], groups: &BTreeMap<String, &Value>) -> bool {
    groups.values().all(|group| {
        let registered = list(group, "/spec/targets").iter().any(|t| text(t, "/owner") == owner);
        let shown = list(group, "/status/targets").iter().any(|t| known.iter().any(|k| is_same(k, t)));
        !registered && !shown
    })
}

/// All targets that a task can be, for [`is_drained`].
pub fn targets_of(member: &Member, balancers: &[Value]) -> Vec<Value> {
    let both = ["ip", "instance"].into_iter();
    both.flat_map(|kind| balancers.iter().filter_map(move |b| entry(kind, b, member))).collect()
}

/// What Cloud Map shall know of a task; `None` where it has no address.
pub fn attributes(
    registry: &Value,
    member: &Member,
    node_address: Option<&str>,
) -> Option<BTreeMap<String, String>> {
    let (spec, status) = (member.spec, member.status);
    let own = address(status);
    let ip = own.or(node_address)?;
    let part = |arn: &str, at: usize| {
        text(spec, arn)
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .split('/')
            .nth(at)
            .unwrap_or_default()
            .to_string()
    };
    let definition = text(spec, "/taskDefinitionArn");
    let family = definition.rsplit('/').next().and_then(|f| f.split(':').next()).unwrap_or_default();
    let mut out = BTreeMap::from([
        ("AWS_INSTANCE_IPV4", ip.to_string()),
        ("AVAILABILITY_ZONE", text(spec, "/availabilityZone").to_string()),
        ("REGION", definition.split(':').nth(3).unwrap_or_default().to_string()),
        ("ECS_CLUSTER_NAME", part("/taskArn", 1)),
        ("ECS_SERVICE_NAME", text(spec, "/group").trim_start_matches("service:").to_string()),
        ("ECS_TASK_DEFINITION_FAMILY", family.to_string()),
    ]);
    let (container, wanted) = (text(registry, "/containerName"), int(registry, "/containerPort"));
    let fixed = int(registry, "/port").or(wanted.filter(|_| own.is_some()));
    let number = match (fixed, wanted.and_then(|w| u16::try_from(w).ok())) {
        (Some(port), _) => Some(port),
        (None, Some(wanted)) => host_port(status, container, wanted).map(i64::from),
        (None, None) => None,
    };
    if let Some(number) = number {
        out.insert("AWS_INSTANCE_PORT", number.to_string());
    }
    Some(out.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GROUP: &str =
        "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/web/0123456789abcdef";

    fn task(id: &str, last: &str, ip: &str) -> (Value, Value) {
        let spec = json!({"taskArn": format!("arn:aws:ecs:us-east-1:1:task/c/{id}"), "desiredStatus": "RUNNING",
            "availabilityZone": "z", "group": "service:web",
            "taskDefinitionArn": "arn:aws:ecs:us-east-1:1:task-definition/f:1"});
        let status = json!({"lastStatus": last, "containers": [{"name": "web",
            "networkInterfaces": [{"privateIpv4Address": ip}],
            "networkBindings": [{"containerPort": 80, "hostPort": 32768}]}]});
        (spec, status)
    }

    fn member<'a>((spec, status): &'a (Value, Value), current: bool) -> Member<'a> {
        Member { spec, status, current, instance_id: Some("i-1") }
    }

    #[test]
    fn tasks_come_and_go_and_others_stay() {
        let balancers = [json!({"targetGroupArn": GROUP, "containerName": "web", "containerPort": 80})];
        let foreign = json!({"id": "10.0.0.9", "port": 80});
        let gone = json!({"id": "10.0.0.8", "port": 80, "owner": "arn:gone"});
        let old = json!({"id": "10.0.0.7", "port": 8080, "owner": "arn:aws:ecs:us-east-1:1:task/c/o"});
        let mut group = json!({"TargetGroupArn": GROUP, "TargetType": "ip", "targets": [foreign, gone, old]});
        let (one, two) = (task("1", "RUNNING", "10.0.0.1"), task("2", "PENDING", "10.0.0.2"));
        let older = task("o", "RUNNING", "10.0.0.7");
        let mut members = vec![member(&one, true), member(&two, true), member(&older, false)];
        let first = change(&group, &balancers, &members, |o| o == "arn:gone").unwrap();
        assert_eq!((first.added, first.removed), (1, 1));
        let ids: Vec<&str> = list(&first.targets, "").iter().map(|t| text(t, "/id")).collect();
        assert_eq!(ids, ["10.0.0.9", "10.0.0.1", "10.0.0.7"]);
        group["targets"] = first.targets;
        assert_eq!(change(&group, &balancers, &members, |_| false), None);
        let mut stopped = older.clone();
        stopped.0["desiredStatus"] = json!("STOPPED");
        members[2] = member(&stopped, false);
        assert_eq!(change(&group, &balancers, &members, |_| false).unwrap().removed, 1);
        group["TargetType"] = json!("instance");
        let by_instance = change(&group, &balancers, &members[..1], |_| false).unwrap();
        assert!(list(&by_instance.targets, "").iter().any(|t| t["id"] == "i-1" && t["port"] == 32768));
    }

    #[test]
    fn health_and_draining_follow_the_groups_status() {
        let balancers = [json!({"targetGroupArn": GROUP, "containerName": "web", "containerPort": 80})];
        let one = task("1", "RUNNING", "10.0.0.1");
        let member = member(&one, true);
        let entry = entry("ip", &balancers[0], &member).unwrap();
        let see = |state: &str, registered: bool| {
            let targets = if registered { json!([entry]) } else { json!([]) };
            let group = json!({"spec": {"TargetGroupArn": GROUP, "TargetType": "ip", "targets": targets},
                "status": {"targets": if state.is_empty() { json!([]) } else { json!([{"id": "10.0.0.1", "port": 80, "state": state}]) }}});
            let groups = BTreeMap::from([(GROUP.to_string(), &group)]);
            let known = targets_of(&member, &balancers);
            (
                traffic(&member, &balancers, &groups),
                is_drained(text(member.spec, "/taskArn"), &known, &groups),
            )
        };
        assert_eq!(see("initial", true), (Traffic::Waiting, false));
        assert_eq!(see("healthy", true), (Traffic::Serving, false));
        assert_eq!(see("unhealthy", true), (Traffic::Failing(GROUP.into()), false));
        assert_eq!(see("draining", false), (Traffic::Waiting, false));
        assert_eq!(see("", false), (Traffic::Waiting, true));
        assert_eq!(traffic(&member, &balancers, &BTreeMap::new()), Traffic::Waiting);
    }

    #[test]
    fn cloud_map_attributes() {
        let one = task("1", "RUNNING", "10.0.0.1");
        let seen =
            attributes(&json!({"containerName": "web", "containerPort": 80}), &member(&one, true), None)
                .unwrap();
        assert_eq!((&*seen["AWS_INSTANCE_IPV4"], &*seen["AWS_INSTANCE_PORT"]), ("10.0.0.1", "80"));
        assert_eq!(
            (&*seen["ECS_SERVICE_NAME"], &*seen["ECS_CLUSTER_NAME"], &*seen["REGION"]),
            ("web", "c", "us-east-1")
        );
        assert_eq!(seen["ECS_TASK_DEFINITION_FAMILY"], "f");
        let (spec, mut status) = task("2", "RUNNING", "");
        status["containers"][0]["networkInterfaces"] = json!([]);
        let bridge = (spec, status);
        let seen = attributes(
            &json!({"containerName": "web", "containerPort": 80}),
            &member(&bridge, true),
            Some("192.0.2.1"),
        )
        .unwrap();
        assert_eq!((&*seen["AWS_INSTANCE_IPV4"], &*seen["AWS_INSTANCE_PORT"]), ("192.0.2.1", "32768"));
        assert_eq!(attributes(&json!({}), &member(&bridge, true), None), None);
    }
}

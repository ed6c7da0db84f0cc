//! FlowSchemas and PriorityLevelConfigurations, read: to which level and flow a request belongs. Pure.

use super::queues::Shape;
use crate::authz::Attributes;
use auth::Identity;
use serde::Deserialize;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    service_account: Named,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SchemaSpec {
    matching_precedence: i64,
    priority_level_configuration: Named,
    distinguisher_method: Option<Method>,
    rules: Vec<Rule>,
}

/// A FlowSchema, read.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Name.
    pub name: Arc<str>,
    /// UID, for the answer's header.
    pub uid: String,
    /// Its priority level.
    pub level: Arc<str>,
    spec: SchemaSpec,
}

/// A PriorityLevelConfiguration, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelSpec {
    /// Name.
    pub name: Arc<str>,
    /// UID, for the answer's header.
    pub uid: String,
    /// Without limit?
    pub exempt: bool,
    /// Its part of the seats.
    pub shares: u32,
    /// Percent of its seats that others may use while it does not.
    pub lendable: u32,
    /// Percent of its seats that it may use of others at most.
    pub borrowing_max: Option<u32>,
    /// Its queues.
    pub shape: Shape,
}

/// Schemas in their order, and levels.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// By precedence, then name.
    pub schemas: Vec<Schema>,
    /// All levels.
    pub levels: Vec<LevelSpec>,
}

fn name_and_uid(object: &Value) -> (Arc<str>, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("name").into(), text("uid").to_string())
}

impl Schema {
    /// Reads an object.
    pub fn read(object: &Value) -> Option<Schema> {
        let spec: SchemaSpec = serde_json::from_value(object["spec"].clone()).ok()?;
        let (name, uid) = name_and_uid(object);
        Some(Schema { name, uid, level: spec.priority_level_configuration.name.as_str().into(), spec })
    }

    /// The flow of a request that matches: a hash of the schema and what tells flows apart.
    pub fn flow(&self, identity: &Identity, a: &Attributes) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.spec.distinguisher_method.as_ref().map(|m| m.kind.as_str()) {
            Some("ByUser") => identity.user.hash(&mut hasher),
            Some("ByNamespace") => a.namespace.hash(&mut hasher),
            _ => {}
        }
        hasher.finish()
    }

    fn matches(&self, identity: &Identity, a: &Attributes) -> bool {
        self.spec.rules.iter().any(|rule| {
            rule.subjects.iter().any(|s| s.is(identity))
                && if a.is_resource() {
                    rule.resource_rules.iter().any(|r| r.matches(a))
                } else {
                    rule.non_resource_rules.iter().any(|r| r.matches(a))
                }
        })
    }
}

impl Subject {
    fn is(&self, identity: &Identity) -> bool {
        match self.kind.as_str() {
            "User" => self.user.name == "*" || self.user.name == identity.user,
            "Group" => self.group.name == "*" || identity.in_group(&self.group.name),
            "ServiceAccount" => {
                let Some(account) = identity.user.strip_prefix("system:serviceaccount:") else {
                    return false;
                };
                let Some((namespace, name)) = account.split_once(':') else { return false };
                let wanted = &self.service_account;
                wanted.namespace == namespace && (wanted.name == "*" || wanted.name == name)
            }
            _ => false,
        }
    }
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|t| t == "*" || t == text)
}

impl ResourceRule {
    fn matches(&self, a: &Attributes) -> bool {
        let resource = || match a.subresource.as_str() {
            "" => has(&self.resources, &a.resource),
            sub => has(&self.resources, &format!("{}/{sub}", a.resource)),
        };
        let scope =
            if a.namespace.is_empty() { self.cluster_scope } else { has(&self.namespaces, &a.namespace) };
        scope && has(&self.verbs, &a.verb) && has(&self.api_groups, &a.group) && resource()
    }
}

impl PathRule {
    fn matches(&self, a: &Attributes) -> bool {
        let path = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => a.path.starts_with(prefix),
            None => *pattern == a.path,
        };
        has(&self.verbs, &a.verb) && self.urls.iter().any(path)
    }
}

impl LevelSpec {
    /// Reads an object.
    pub fn read(object: &Value) -> LevelSpec {
        let spec = &object["spec"];
        let exempt = spec["type"] == "Exempt";
        let part = &spec[if exempt { "exempt" } else { "limited" }];
        let number = |value: &Value, default: u64| value.as_u64().unwrap_or(default);
        let small = |value: &Value, default: u64| u32::try_from(number(value, default)).unwrap_or(u32::MAX);
        let (name, uid) = name_and_uid(object);
        let response = &part["limitResponse"];
        let queuing = &response["queuing"];
        let size = |field: &str, default: u64| usize::try_from(number(&queuing[field], default)).unwrap_or(1);
        let shape = match response["type"] == "Queue" {
            true => Shape {
                queues: size("queues", 64),
                hand: size("handSize", 8),
                length: size("queueLengthLimit", 50),
            },
            false => Shape::default(),
        };
        LevelSpec {
            name,
            uid,
            exempt,
            shares: small(&part["nominalConcurrencyShares"], if exempt { 0 } else { 30 }),
            lendable: small(&part["lendablePercent"], 0).min(100),
            borrowing_max: part["borrowingLimitPercent"].as_u64().and_then(|p| u32::try_from(p).ok()),
            shape,
        }
    }
}

impl Rules {
    /// Reads all objects.
    pub fn read<'a>(
        schemas: impl Iterator<Item = &'a Value>,
        levels: impl Iterator<Item = &'a Value>,
    ) -> Rules {
        let mut schemas: Vec<Schema> = schemas.filter_map(Schema::read).collect();
        let levels: Vec<LevelSpec> = levels.map(LevelSpec::read).collect();
        schemas.retain(|s| levels.iter().any(|l| l.name == s.level));
        schemas.sort_by(|a, b| {
            let precedence = |s: &Schema| s.spec.matching_precedence;
            precedence(a).cmp(&precedence(b)).then_with(|| a.name.cmp(&b.name))
        });
        Rules { schemas, levels }
    }

    /// The first schema that matches.
    pub fn classify(&self, identity: &Identity, a: &Attributes) -> Option<&Schema> {
        self.schemas.iter().find(|s| s.matches(identity, a))
    }
}

#[cfg(test)]
mod tests {
    use super::super::bootstrap;
    use super::*;

    fn rules() -> Rules {
        let (schemas, levels) = bootstrap::objects();
        Rules::read(schemas.iter(), levels.iter())
    }

    #[test]
    fn the_first_rules_sort_requests_as_upstream_does() {
        let rules = rules();
        assert_eq!((rules.schemas.len(), rules.levels.len()), (13, 8));
        let level = |user: &str, group: &str, a: Attributes| {
            let identity = Identity::new(user, [group, "system:authenticated"]);
            let schema = rules.classify(&identity, &a).unwrap();
            format!("{} {}", schema.name, schema.level)
        };
        let of = |verb: &str, group: &str, resource: &str, namespace: &str| Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        let pods = || of("list", "", "pods", "x");
        assert_eq!(level("admin", "system:masters", pods()), "exempt exempt");
        assert_eq!(level("bob", "dev", pods()), "global-default global-default");
        assert_eq!(level("system:node:n", "system:nodes", pods()), "system-nodes system");
        let mut status = of("patch", "", "nodes", "");
        status.subresource = "status".into();
        assert_eq!(level("system:node:n", "system:nodes", status), "system-node-high node-high");
        let lease = of("update", "coordination.k8s.io", "leases", "kube-system");
        assert_eq!(level("system:kube-scheduler", "", lease), "system-leader-election leader-election");
        assert_eq!(level("system:kube-scheduler", "", pods()), "kube-scheduler workload-high");
        let account = "system:serviceaccount:x:y";
        assert_eq!(level(account, "system:serviceaccounts", pods()), "service-accounts workload-low");
        let probe = Attributes { verb: "get".into(), path: "/livez".into(), ..Attributes::default() };
        assert_eq!(level("bob", "dev", probe), "probes exempt");
    }

    #[test]
    fn flows_differ_by_what_distinguishes_them() {
        let rules = rules();
        let pods = Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let flow = |user: &str| {
            let identity = Identity::new(user, ["system:authenticated"]);
            rules.classify(&identity, &pods).unwrap().flow(&identity, &pods)
        };
        assert_eq!(flow("a"), flow("a"));
        assert_ne!(flow("a"), flow("b"));
    }
}

//! The audit policy: which requests are recorded, and how much of them. Pure.
//!
//! `audit.k8s.io/v1` Policy as upstream reads it: the first rule that matches decides; none means no record.

use crate::authz::Attributes;
use auth::Identity;
use serde::Deserialize;

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when; no bodies.
    Metadata,
    /// The request's body too.
    Request,
    /// The answer's body too.
    RequestResponse,
}

impl Level {
    /// As events show it.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// The request is read.
    RequestReceived,
    /// The head of a long answer is sent.
    ResponseStarted,
    /// All is sent.
    ResponseComplete,
    /// The handler broke.
    Panic,
}

impl Stage {
    /// As events show it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// A policy, read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    kind: String,
    api_version: String,
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// What is recorded of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// How much.
    pub level: Level,
    /// Stages without an event.
    pub omit_stages: Vec<Stage>,
    /// Bodies are recorded without `metadata.managedFields`.
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy file (YAML or JSON); the error is a sentence.
    pub fn read(text: &[u8]) -> Result<Policy, String> {
        let value = machinery::body::yaml(text).map_err(|e| e.message)?.value;
        let policy: Policy = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let known = policy.api_version.strip_prefix("audit.k8s.io/v1").is_some();
        if policy.kind != "Policy" || !known {
            return Err(format!(
                "unknown group version field {}/{} in policy",
                policy.api_version, policy.kind
            ));
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(policy)
    }

    /// What is recorded of this request.
    pub fn extent(&self, identity: &Identity, attributes: &Attributes) -> Extent {
        let Some(rule) = self.rules.iter().find(|r| r.matches(identity, attributes)) else {
            return Extent::default();
        };
        let omit_stages = self.omit_stages.iter().chain(&rule.omit_stages).copied().collect();
        let omit_managed_fields = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
        Extent { level: rule.level, omit_stages, omit_managed_fields }
    }
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|t| t == text)
}

impl Rule {
    fn matches(&self, identity: &Identity, a: &Attributes) -> bool {
        let user = self.users.is_empty() || has(&self.users, &identity.user);
        let group = self.user_groups.is_empty() || self.user_groups.iter().any(|g| identity.in_group(g));
        let verb = self.verbs.is_empty() || has(&self.verbs, &a.verb);
        if !(user && group && verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return a.is_resource() && self.matches_resource(a);
        }
        if !self.non_resource_urls.is_empty() {
            return !a.is_resource() && self.non_resource_urls.iter().any(|p| matches_path(p, &a.path));
        }
        true
    }

    fn matches_resource(&self, a: &Attributes) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, &a.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|g| g.matches(a))
    }
}

impl GroupResources {
    fn matches(&self, a: &Attributes) -> bool {
        if self.group != a.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !has(&self.resource_names, &a.name) {
            return false;
        }
        self.resources.iter().any(|wanted| match wanted.split_once('/') {
            None => wanted == "*" || (*wanted == a.resource && a.subresource.is_empty()),
            Some(("*", sub)) => !a.subresource.is_empty() && sub == a.subresource,
            Some((resource, "*")) => resource == a.resource,
            Some((resource, sub)) => resource == a.resource && sub == a.subresource,
        })
    }
}

fn matches_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
  resources: [{group: "", resources: ["endpoints"]}]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: RequestResponse
  userGroups: ["dev"]
  namespaces: ["prod"]
  resources: [{group: "", resources: ["pods/*", "configmaps"], resourceNames: ["a"]}, {group: "apps"}]
  omitManagedFields: true
- level: Request
  resources: [{group: "", resources: ["*/status"]}]
  omitStages: [ResponseStarted]
- level: Metadata
"#;

    fn attributes(verb: &str, resource: &str, namespace: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: "a".into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::read(POLICY.as_bytes()).unwrap();
        let level = |user: &str, a: &Attributes| policy.extent(&Identity::new(user, ["dev"]), a).level;
        assert_eq!(level("system:kube-proxy", &attributes("watch", "endpoints", "")), Level::None);
        assert_eq!(level("x", &attributes("watch", "endpoints", "")), Level::Metadata);
        assert_eq!(level("x", &attributes("get", "pods/log", "prod")), Level::RequestResponse);
        assert_eq!(level("x", &attributes("get", "configmaps/x", "prod")), Level::Metadata);
        let mut other = attributes("get", "pods", "prod");
        other.name = "b".into();
        assert_eq!(level("x", &other), Level::Metadata);
        assert_eq!(level("x", &attributes("update", "nodes/status", "")), Level::Request);
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Attributes::default() };
        assert_eq!(level("x", &path("/healthz/etcd")), Level::None);
        assert_eq!(level("x", &path("/versions")), Level::Metadata);
        let extent = policy.extent(&Identity::new("x", []), &attributes("update", "nodes/status", ""));
        assert_eq!(extent.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for bad in [
            "{}",
            "kind: Policy\napiVersion: audit.k8s.io/v1\nrules: []",
            "kind: X\nrules: [{level: None}]",
            "kind: Policy\napiVersion: audit.k8s.io/v1\nrules: [{level: Sometimes}]",
        ] {
            assert!(Policy::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

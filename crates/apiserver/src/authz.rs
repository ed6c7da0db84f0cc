//! Authorization: the seam, and the order of those who decide: the superusers' group, then as the operator says, nodes
//! and RBAC unless he says otherwise.
//!
//! Every caller, in process or remote, passes through one [`Authorizer`]; there is no way around it. Reviewers outside
//! have their say wherever they stand in the order, for questions that come up within admission too.

use crate::access_webhook::{AccessWebhook, Verdict};
use crate::node_access::NodeAccess;
use crate::rbac::Rbac;
use async_trait::async_trait;
use auth::{Identity, SYSTEM_MASTERS};
use futures_util::FutureExt;
use machinery::selector::FieldSelector;
use parking_lot::RwLock;
use std::sync::Arc;
use tokio::runtime::{Handle, RuntimeFlavor};

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, …; for other paths the lower-case HTTP method.
    pub verb: String,
    /// API group; "" is core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource; "" for other paths.
    pub resource: String,
    /// Subresource or "".
    pub subresource: String,
    /// Namespace or "".
    pub namespace: String,
    /// Object name or "".
    pub name: String,
    /// The path, when this is no resource request.
    pub path: String,
    /// Field selector of a list or watch; "" for none.
    pub field_selector: String,
    /// Its label selector likewise.
    pub label_selector: String,
}

impl Attributes {
    /// Is this about a resource (not a bare path)?
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// The same for a list or watch with these selectors of fields and labels: one that names an object asks for that
    /// object.
    pub fn selecting(mut self, field_selector: &str, label_selector: &str) -> Self {
        if let Ok(fields) = FieldSelector::parse(field_selector)
            && self.name.is_empty()
            && let Some(name) = fields.exact("metadata.name")
        {
            self.name = name.to_string();
        }
        self.field_selector = field_selector.to_string();
        self.label_selector = label_selector.to_string();
        self
    }
}

/// The answer of an authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refused; the reason may be "".
    Deny(String),
}

/// Decides who may do what.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// May `identity` do this? For callers that cannot wait; what must ask elsewhere holds its thread up.
    fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision;

    /// The same for callers that can wait.
    async fn decide(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        self.authorize(identity, attributes)
    }

    /// Why something allowed is allowed; "" where nobody can tell.
    fn explain(&self, _: &Identity, _: &Attributes) -> String {
        String::new()
    }

    /// Who has a say here; empty where that is not known.
    fn steps(&self) -> Arc<[Step]> {
        Arc::new([])
    }

    /// Others have a say from now on.
    fn reorder(&self, _: Vec<Step>) {}
}

/// Who has a say.
#[derive(Clone)]
pub enum Step {
    /// Nodes, limited to what is theirs.
    Node,
    /// Everybody, by roles and bindings.
    Rbac,
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is.
    AlwaysDeny,
    /// A reviewer outside.
    Webhook(Arc<AccessWebhook>),
}

/// The authorizers of a cluster, in order. The first with an opinion decides; the reasons of those without are joined.
pub(crate) struct Standard {
    /// Nodes.
    pub nodes: NodeAccess,
    /// Roles.
    pub rbac: Arc<Rbac>,
    /// The order.
    pub order: RwLock<Arc<[Step]>>,
}

#[async_trait]
impl Authorizer for Standard {
    fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        if let Some(decision) = self.decide(identity, attributes).now_or_never() {
            return decision;
        }
        match Handle::try_current() {
            Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| handle.block_on(self.decide(identity, attributes)))
            }
            _ => Decision::Deny("the authorization webhook could not be asked".into()),
        }
    }

    async fn decide(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        if identity.in_group(SYSTEM_MASTERS) {
            return Decision::Allow;
        }
        let order = self.order.read().clone();
        let mut reasons = Vec::new();
        for step in order.iter() {
            let reason = match step {
                Step::AlwaysAllow => return Decision::Allow,
                Step::AlwaysDeny => "Everything is forbidden.".to_string(),
                Step::Webhook(webhook) => match webhook.judge(identity, attributes).await {
                    Verdict::Allow => return Decision::Allow,
                    Verdict::Deny(reason) => return Decision::Deny(reason),
                    Verdict::NoOpinion(reason) => reason,
                },
                Step::Node => match self.nodes.authorize(identity, attributes) {
                    Decision::Allow => return Decision::Allow,
                    Decision::Deny(reason) => reason,
                },
                Step::Rbac => match self.rbac.authorize(identity, attributes) {
                    Decision::Allow => return Decision::Allow,
                    Decision::Deny(reason) => reason,
                },
            };
            reasons.push(reason);
        }
        reasons.retain(|reason| !reason.is_empty());
        Decision::Deny(reasons.join("\n"))
    }

    fn explain(&self, identity: &Identity, attributes: &Attributes) -> String {
        if identity.in_group(SYSTEM_MASTERS) {
            return String::new();
        }
        self.rbac.explain(identity, attributes)
    }

    fn steps(&self) -> Arc<[Step]> {
        self.order.read().clone()
    }

    fn reorder(&self, steps: Vec<Step>) {
        *self.order.write() = steps.into();
    }
}

/// The user of requests that carry no credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// Kubernetes' sentence for a refusal.
pub fn refusal(identity: &Identity, a: &Attributes, reason: &str) -> String {
    let user = &identity.user;
    let mut text = if a.is_resource() {
        let resource = match a.subresource.as_str() {
            "" => a.resource.clone(),
            sub => format!("{}/{sub}", a.resource),
        };
        let scope = match a.namespace.as_str() {
            "" => "at the cluster scope".to_string(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        format!(
            "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            a.verb, a.group
        )
    } else {
        format!("User \"{user}\" cannot {} path \"{}\"", a.verb, a.path)
    };
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_upstreams_words() {
        let mut pods = Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "y".into(),
            ..Default::default()
        };
        let of = |a: &Attributes, reason: &str| refusal(&Identity::new("x", []), a, reason);
        let text = "User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"y\"";
        assert_eq!(of(&pods, ""), text);
        assert_eq!(of(&pods, "RBAC: no"), format!("{text}: RBAC: no"));
        pods.subresource = "log".into();
        assert!(of(&pods, "").contains("resource \"pods/log\""));
    }
}

//! Authorization: the seam, and the rule that stands until RBAC does.
//!
//! Every caller, in process or remote, passes through one [`Authorizer`]; there is no way around it.

use auth::Identity;

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
}

impl Attributes {
    /// Is this about a resource (not a bare path)?
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
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
pub trait Authorizer: Send + Sync + 'static {
    /// May `identity` do this?
    fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision;
}

/// Paths that anybody may read.
const PUBLIC_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Until RBAC: `system:masters` and Gantry's own components (`system:…`, except the anonymous user) may do
/// everything; everybody may read health and version.
pub struct ComponentAuthorizer;

impl Authorizer for ComponentAuthorizer {
    fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        let component = identity.user.starts_with("system:") && identity.user != ANONYMOUS;
        if component || identity.groups.iter().any(|g| g == "system:masters") {
            return Decision::Allow;
        }
        let path = attributes.path.as_str();
        let public = PUBLIC_PATHS
            .iter()
            .any(|p| path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        if !attributes.is_resource() && public && attributes.verb == "get" {
            return Decision::Allow;
        }
        Decision::Deny(String::new())
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
    fn who_may_what() {
        let pods = Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            namespace: "y".into(),
            ..Default::default()
        };
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Default::default() };
        let ask = |i: &Identity, a: &Attributes| ComponentAuthorizer.authorize(i, a) == Decision::Allow;
        assert!(ask(&Identity::new("admin", ["system:masters"]), &pods));
        assert!(ask(&Identity::component("system:kube-scheduler"), &pods));
        assert!(!ask(&Identity::anonymous(), &pods));
        assert!(!ask(&Identity::new("x", ["dev"]), &pods));
        assert!(
            ask(&Identity::anonymous(), &path("/healthz"))
                && ask(&Identity::anonymous(), &path("/livez/ping"))
        );
        assert!(
            !ask(&Identity::anonymous(), &path("/metrics"))
                && !ask(&Identity::anonymous(), &path("/healthzz"))
        );
        assert_eq!(
            refusal(&Identity::new("x", []), &pods, ""),
            "User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"y\""
        );
    }
}

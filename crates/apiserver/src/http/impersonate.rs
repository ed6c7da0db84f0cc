//! Impersonation: a request made in another's name.
//!
//! Constrained first, as upstream since 1.36: who may `impersonate:<mode>` that user, and may do what the request asks
//! while he does so (`impersonate-on:<mode>:<verb>`); there is a mode for the node that a service account runs on, for
//! nodes, service accounts and others. Then as ever: who may `impersonate` the user and each group, UID and extra.
//! Which rights are asked for is pure ([`Mode::questions`]).

use crate::Api;
use crate::authz::{ANONYMOUS, Attributes};
use crate::path::decode;
use ::http::HeaderMap;
use auth::{Identity, SYSTEM_MASTERS};
use machinery::name;
use machinery::status::ApiError;
use std::sync::Arc;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ACCOUNT: &str = "system:serviceaccount:";
const NODE: &str = "system:node:";
const NODES: &str = "system:nodes";
/// Where a service account's token says which node it is used on.
const ON_NODE: &str = "authentication.kubernetes.io/node-name";
const ON_NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom the headers ask to be; `None` when they ask nothing.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, ApiError> {
    let text = |value: &::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut wanted = Identity {
        user: headers.get(USER).map(text).unwrap_or_default(),
        uid: headers.get(UID).map(text).unwrap_or_default(),
        groups: headers.get_all(GROUP).iter().map(text).collect(),
        ..Identity::default()
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            wanted.extra.entry(decode(key)).or_default().push(text(value));
        }
    }
    if wanted == Identity::default() {
        return Ok(None);
    }
    if wanted.user.is_empty() {
        let message = "requested groups, uid or extra without impersonating a user name";
        return Err(ApiError::bad_request(message));
    }
    Ok(Some(wanted))
}

/// A way to impersonate, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The node that the caller, a service account, runs on.
    AssociatedNode,
    /// Any node.
    ArbitraryNode,
    /// A service account.
    ServiceAccount,
    /// Anybody else.
    UserInfo,
    /// Everybody, whatever is then done in his name.
    Legacy,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

fn node(user: &str) -> Option<&str> {
    user.strip_prefix(NODE).filter(|n| name::dns1123_subdomain(n).is_empty())
}

fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT)?
        .split_once(':')
        .filter(|(n, a)| !n.is_empty() && !a.is_empty() && !a.contains(':'))
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// Is it about this user? Of nodes and service accounts nothing but the name can be asked for.
    fn fits(self, wanted: &Identity, caller: &Identity) -> bool {
        let bare = wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node(&wanted.user), account(&wanted.user));
        match self {
            Mode::AssociatedNode => {
                let own = caller.extra.get(ON_NODE).map(Vec::as_slice);
                let there = matches!(own, Some([one]) if Some(one.as_str()) == node);
                bare && there && self::account(&caller.user).is_some()
            }
            Mode::ArbitraryNode => bare && node.is_some(),
            Mode::ServiceAccount => bare && account.is_some(),
            Mode::UserInfo => node.is_none() && account.is_none(),
            Mode::Legacy => true,
        }
    }

    /// Everything that the caller must be allowed; an error for what nobody may.
    fn questions(self, wanted: &Identity, request: &Attributes) -> Result<Vec<Attributes>, String> {
        let constrained = self != Mode::Legacy;
        let (verb, group) = match constrained {
            true => (format!("impersonate:{}", self.name()), AUTHENTICATION),
            false => ("impersonate".to_string(), ""),
        };
        let about = |group: &str, resource: &str, name: &str| Attributes {
            verb: verb.clone(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let mut all = Vec::new();
        if constrained {
            let verb = format!("impersonate-on:{}:{}", self.name(), request.verb);
            all.push(Attributes { verb, ..request.clone() });
        }
        all.push(match (account(&wanted.user), node(&wanted.user).filter(|_| constrained)) {
            (Some((namespace, name)), _) => {
                Attributes { namespace: namespace.into(), ..about(group, "serviceaccounts", name) }
            }
            // The answer is good for whichever node the account runs on.
            (_, Some(_)) if self == Mode::AssociatedNode => about(group, "nodes", "*"),
            (_, Some(node)) => about(group, "nodes", node),
            _ => about(group, "users", &wanted.user),
        });
        if constrained {
            bounds(wanted)?;
        }
        if !wanted.uid.is_empty() {
            all.push(about(AUTHENTICATION, "uids", &wanted.uid));
        }
        all.extend(wanted.groups.iter().map(|g| about(group, "groups", g)));
        for (key, values) in &wanted.extra {
            all.extend(values.iter().map(|value| Attributes {
                subresource: key.clone(),
                ..about(AUTHENTICATION, "userextras", value)
            }));
        }
        Ok(all)
    }

    /// Who the request is made as: the groups that come with a name are added.
    fn complete(self, mut wanted: Identity) -> Identity {
        if let (Some((namespace, name)), true) = (account(&wanted.user), wanted.groups.is_empty()) {
            wanted.groups = Identity::service_account(namespace, name).groups;
        }
        if self != Mode::Legacy && node(&wanted.user).is_some() {
            wanted.groups = vec![NODES.into()];
        }
        let own = if wanted.user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        if !wanted.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
            wanted.groups.push(own.into());
        }
        wanted
    }
}

/// What nobody may impersonate in a constrained mode.
fn bounds(wanted: &Identity) -> Result<(), String> {
    if wanted.groups.iter().any(String::is_empty) {
        return Err("impersonating the empty string group is not allowed".into());
    }
    if wanted.in_group(SYSTEM_MASTERS) {
        return Err("impersonating the system:masters group is not allowed".into());
    }
    for (key, values) in &wanted.extra {
        let (domain, rest) = key.split_once('/').unwrap_or_default();
        let why = match key.as_str() {
            "" => "impersonating the empty string key in extra is not allowed",
            _ if rest.is_empty() || !name::dns1123_subdomain(domain).is_empty() => {
                "impersonating an invalid key in extra is not allowed"
            }
            key if key != key.to_lowercase() => "impersonating a non-lowercase key in extra is not allowed",
            _ if values.iter().any(String::is_empty) => {
                "impersonating the empty string value in extra is not allowed"
            }
            _ => continue,
        };
        return Err(why.into());
    }
    Ok(())
}

/// Who the request is made as, and by which right (`""`: by the old one).
pub(super) struct Acting {
    /// Who.
    pub identity: Arc<Identity>,
    /// The verb that allowed it.
    pub constraint: String,
}

/// Who the request is made as; `None`: its caller.
pub(super) async fn apply(
    api: &Api,
    caller: &Identity,
    headers: &HeaderMap,
    request: &Attributes,
) -> Result<Option<Acting>, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let mut first = None;
    for mode in MODES.into_iter().filter(|m| m.fits(&wanted, caller)) {
        match allowed(api, mode, caller, &wanted, request).await {
            Ok(()) => {
                tracing::debug!(user = caller.user, r#as = wanted.user, "impersonation");
                let constraint = match mode {
                    Mode::Legacy => String::new(),
                    mode => format!("impersonate:{}", mode.name()),
                };
                return Ok(Some(Acting { identity: Arc::new(mode.complete(wanted)), constraint }));
            }
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    Err(first.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

async fn allowed(
    api: &Api,
    mode: Mode,
    caller: &Identity,
    wanted: &Identity,
    request: &Attributes,
) -> Result<(), ApiError> {
    let mut caller = caller.clone();
    if mode == Mode::AssociatedNode {
        let keys = caller.extra.keys().cloned().collect();
        caller.extra = [(ON_NODE_KEYS.to_string(), keys)].into();
    }
    let questions = mode.questions(wanted, request);
    for attributes in questions.map_err(|why| ApiError::new(403, "Forbidden", format!("forbidden: {why}")))? {
        api.authorize(&caller, &attributes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_become_questions_and_an_identity() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.append(GROUP, "dev".parse().unwrap());
        assert_eq!(wanted(&headers).unwrap_err().code, 400);
        headers.append(USER, "bob".parse().unwrap());
        headers.append("impersonate-extra-a%2fb", "x".parse().unwrap());
        let bob = wanted(&headers).unwrap().unwrap();
        let list = Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let asked = |mode: Mode, who: &Identity| -> Vec<String> {
            let all = mode.questions(who, &list).unwrap();
            all.iter()
                .map(|a| format!("{} {}/{}/{}/{}", a.verb, a.group, a.resource, a.subresource, a.name))
                .collect()
        };
        assert_eq!(
            asked(Mode::Legacy, &bob),
            [
                "impersonate /users//bob",
                "impersonate /groups//dev",
                "impersonate authentication.k8s.io/userextras/a/b/x"
            ]
        );
        assert_eq!(asked(Mode::UserInfo, &bob).len(), 4);
        let mut odd = bob.clone();
        odd.extra.insert("x".into(), vec!["y".into()]);
        assert!(Mode::UserInfo.questions(&odd, &list).unwrap_err().contains("invalid key"));
        assert_eq!(Mode::Legacy.complete(bob).groups, ["dev", AUTHENTICATED]);
        let plain = Identity::new("bob", ["dev"]);
        assert_eq!(
            asked(Mode::UserInfo, &plain),
            [
                "impersonate-on:user-info:list /pods//",
                "impersonate:user-info authentication.k8s.io/users//bob",
                "impersonate:user-info authentication.k8s.io/groups//dev"
            ]
        );
        assert!(Mode::UserInfo.questions(&Identity::new("bob", [SYSTEM_MASTERS]), &list).is_err());
        let account = Identity::new("system:serviceaccount:n:a", []);
        assert_eq!(Mode::Legacy.questions(&account, &list).unwrap()[0].namespace, "n");
        assert_eq!(Mode::Legacy.complete(account.clone()).groups[1], "system:serviceaccounts:n");
        assert_eq!(Mode::Legacy.complete(Identity::new(ANONYMOUS, [])).groups, [UNAUTHENTICATED]);
    }

    #[test]
    fn modes_are_about_those_they_name() {
        let fit = |user: &str, caller: &Identity| -> Vec<&str> {
            let wanted = Identity::new(user, []);
            MODES.into_iter().filter(|m| m.fits(&wanted, caller)).map(Mode::name).collect()
        };
        let nobody = Identity::new("x", []);
        assert_eq!(fit("bob", &nobody), ["user-info", ""]);
        assert_eq!(fit("system:serviceaccount:n:a", &nobody), ["serviceaccount", ""]);
        assert_eq!(fit("system:node:one", &nobody), ["arbitrary-node", ""]);
        let mut agent = Identity::service_account("n", "agent");
        agent.extra.insert(ON_NODE.into(), vec!["one".into()]);
        assert_eq!(fit("system:node:one", &agent), ["associated-node", "arbitrary-node", ""]);
        assert_eq!(fit("system:node:two", &agent), ["arbitrary-node", ""]);
        let node = Identity::new("system:node:one", []);
        assert_eq!(Mode::ArbitraryNode.complete(node.clone()).groups, [NODES, AUTHENTICATED]);
        let all = Mode::AssociatedNode.questions(&node, &Attributes::default()).unwrap();
        assert_eq!((all[1].resource.as_str(), all[1].name.as_str()), ("nodes", "*"));
    }
}

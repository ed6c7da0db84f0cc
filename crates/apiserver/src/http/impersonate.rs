//! Impersonation: a request made in another's name by who may `impersonate` that user and each group, UID and extra.

use crate::Api;
use crate::authz::{ANONYMOUS, Attributes};
use crate::path::decode;
use ::http::HeaderMap;
use auth::Identity;
use machinery::status::ApiError;
use std::sync::Arc;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ACCOUNT: &str = "system:serviceaccount:";
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
        let message = "requested groups, uid or extra without impersonating a user";
        return Err(ApiError::internal(message));
    }
    Ok(Some(wanted))
}

/// Everything that the caller must be allowed to impersonate.
fn questions(wanted: &Identity) -> Vec<Attributes> {
    let about = |group: &str, resource: &str, name: &str| Attributes {
        verb: "impersonate".into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..Attributes::default()
    };
    let account = wanted.user.strip_prefix(ACCOUNT).and_then(|a| a.split_once(':'));
    let mut all = vec![match account {
        Some((namespace, name)) => {
            Attributes { namespace: namespace.into(), ..about("", "serviceaccounts", name) }
        }
        None => about("", "users", &wanted.user),
    }];
    all.extend(wanted.groups.iter().map(|g| about("", "groups", g)));
    if !wanted.uid.is_empty() {
        all.push(about(AUTHENTICATION, "uids", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        all.extend(values.iter().map(|value| Attributes {
            subresource: key.clone(),
            ..about(AUTHENTICATION, "userextras", value)
        }));
    }
    all
}

/// The groups that come with a name.
fn complete(mut wanted: Identity) -> Identity {
    if let Some((namespace, _)) = wanted.user.strip_prefix(ACCOUNT).and_then(|a| a.split_once(':'))
        && wanted.groups.is_empty()
    {
        wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let own = if wanted.user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
        wanted.groups.push(own.into());
    }
    wanted
}

/// Who the request is made as.
pub(super) async fn apply(
    api: &Api,
    identity: Arc<Identity>,
    headers: &HeaderMap,
) -> Result<Arc<Identity>, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(identity) };
    for attributes in questions(&wanted) {
        api.authorize(&identity, &attributes).await?;
    }
    tracing::debug!(user = identity.user, r#as = wanted.user, "impersonation");
    Ok(Arc::new(complete(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_become_questions_and_an_identity() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.append(GROUP, "dev".parse().unwrap());
        assert_eq!(wanted(&headers).unwrap_err().code, 500);
        headers.append(USER, "bob".parse().unwrap());
        headers.append("impersonate-extra-a%2fb", "x".parse().unwrap());
        let bob = wanted(&headers).unwrap().unwrap();
        let asked: Vec<String> =
            questions(&bob).iter().map(|a| format!("{}/{}/{}", a.resource, a.subresource, a.name)).collect();
        assert_eq!(asked, ["users//bob", "groups//dev", "userextras/a/b/x"]);
        assert_eq!(complete(bob).groups, ["dev", AUTHENTICATED]);
        let account = Identity::new("system:serviceaccount:n:a", []);
        assert_eq!(questions(&account)[0].namespace, "n");
        assert_eq!(complete(account).groups[1], "system:serviceaccounts:n");
        assert_eq!(complete(Identity::new(ANONYMOUS, [])).groups, [UNAUTHENTICATED]);
    }
}

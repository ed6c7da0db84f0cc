//! Who may use the guarded registry: nodes and administrators by certificate, whoever the API server knows by token,
//! and the users of a file.
//!
//! Nodes pull everything; administrators do everything. For all others the API server's rules decide: verbs `get`
//! (pull), `create` (push), `delete` and `list` on `repositories` of the group `registry.gantry.dev`, which a Role or
//! ClusterRole may grant by name. A user of the file pulls and pushes everything, or only pulls.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use auth::tokens::TOKEN_MAX_BYTES;
use auth::{Identity, SYSTEM_MASTERS, identity_of};
use client::ApiClient;
use image::Digest;
use k8s_schema::Gvr;
use k8s_schema::gvr::SUBJECT_ACCESS_REVIEWS;
use registry::{Action, Authorizer, Credentials, Principal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const TOKEN_REVIEWS: Gvr = Gvr::new("authentication.k8s.io", "v1", "tokenreviews");
const GROUP: &str = "registry.gantry.dev";
const NODES: &str = "system:nodes";

/// Certificates and tokens of the cluster.
pub struct ClusterUsers {
    /// The API, as somebody who may ask about others.
    pub client: ApiClient,
}

struct Caller {
    client: ApiClient,
    user: Value,
    name: String,
    groups: Vec<String>,
}

impl ClusterUsers {
    fn caller(&self, identity: &Identity) -> Caller {
        let user = json!({"username": identity.user, "groups": identity.groups});
        self.known(user)
    }

    fn known(&self, user: Value) -> Caller {
        let groups = user["groups"].as_array().into_iter().flatten();
        let groups = groups.filter_map(|g| g.as_str().map(String::from)).collect();
        let name = user["username"].as_str().unwrap_or_default().to_string();
        Caller { client: self.client.clone(), user, name, groups }
    }

    async fn token(&self, token: &str) -> Option<Caller> {
        if token.len() > TOKEN_MAX_BYTES {
            return None;
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {"token": token}});
        let answer = match self.client.create(&TOKEN_REVIEWS, body).await {
            Ok(answer) => answer.value().ok()?,
            Err(error) => {
                tracing::warn!(%error, "registry: a token was not reviewed");
                return None;
            }
        };
        let status = &answer["status"];
        (status["authenticated"] == true).then(|| self.known(status["user"].clone()))
    }
}

#[async_trait]
impl Authorizer for ClusterUsers {
    async fn identify(&self, credentials: Credentials<'_>) -> Option<Arc<dyn Principal>> {
        let caller = match credentials {
            Credentials::Certificate(certificate) => {
                self.caller(&identity_of(std::slice::from_ref(certificate))?)
            }
            Credentials::Token(token) => self.token(token).await?,
            // Only what can be a token is worth a review.
            Credentials::Password { password, .. } if password.contains('.') => self.token(password).await?,
            Credentials::Password { .. } => return None,
        };
        Some(Arc::new(caller))
    }
}

#[async_trait]
impl Principal for Caller {
    fn name(&self) -> &str {
        &self.name
    }

    async fn allows(&self, action: Action, repository: &str) -> bool {
        let within = |group: &str| self.groups.iter().any(|g| g == group);
        if within(SYSTEM_MASTERS) || (within(NODES) && action == Action::Pull) {
            return true;
        }
        let verb = match action {
            Action::Pull => "get",
            Action::Push => "create",
            Action::Delete => "delete",
            Action::List => "list",
        };
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "metadata": {}, "spec": {
                "user": self.user["username"], "groups": self.user["groups"], "uid": self.user["uid"],
                "extra": self.user["extra"],
                "resourceAttributes": {"group": GROUP, "resource": "repositories", "verb": verb,
                    "name": repository}}});
        let reviewed = self.client.create(&SUBJECT_ACCESS_REVIEWS, body).await;
        let allowed = reviewed.map(|answer| answer.value().is_ok_and(|v| v["status"]["allowed"] == true));
        allowed.unwrap_or_else(|error| {
            tracing::warn!(%error, "registry: access was not reviewed");
            false
        })
    }
}

/// The users of a file: `name:password` a line, or `name:password:pull` for one who only pulls.
#[derive(Debug, Default)]
pub struct FileUsers(BTreeMap<String, (Digest, bool)>);

impl FileUsers {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<FileUsers> {
        let mut users = BTreeMap::new();
        for (number, line) in
            text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'))
        {
            // The line itself is not repeated: it holds a password.
            let place = || format!("line {}", number + 1);
            let (name, rest) = line.split_once(':').with_context(place)?;
            let (password, pulls) = match rest.rsplit_once(':') {
                Some((password, "pull")) => (password, true),
                Some(_) => bail!("{}: a password has no colon, and the only right is \"pull\"", place()),
                None => (rest, false),
            };
            if name.is_empty() || password.is_empty() {
                bail!("{}: a name or a password is missing", place());
            }
            users.insert(name.into(), (Digest::of(password.as_bytes()), pulls));
        }
        Ok(FileUsers(users))
    }
}

struct FileUser {
    name: String,
    pulls: bool,
}

#[async_trait]
impl Authorizer for FileUsers {
    async fn identify(&self, credentials: Credentials<'_>) -> Option<Arc<dyn Principal>> {
        let Credentials::Password { user, password } = credentials else { return None };
        let (digest, pulls) = self.0.get(user)?;
        // Digests are compared, so the time says nothing of the password.
        (*digest == Digest::of(password.as_bytes()))
            .then(|| Arc::new(FileUser { name: user.into(), pulls: *pulls }) as Arc<dyn Principal>)
    }
}

#[async_trait]
impl Principal for FileUser {
    fn name(&self) -> &str {
        &self.name
    }

    async fn allows(&self, action: Action, _: &str) -> bool {
        !self.pulls || action == Action::Pull
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn users_of_a_file() {
        let users = FileUsers::parse("# people\nann:secret\nrobot:pw:pull\n\n").unwrap();
        let ask = |user, password, action| {
            let users = &users;
            async move {
                let found = users.identify(Credentials::Password { user, password }).await;
                match found {
                    None => None,
                    Some(principal) => Some(principal.allows(action, "x").await),
                }
            }
        };
        assert_eq!(ask("ann", "secret", Action::Push).await, Some(true));
        assert_eq!(ask("robot", "pw", Action::Pull).await, Some(true));
        assert_eq!(ask("robot", "pw", Action::Push).await, Some(false));
        assert_eq!(ask("ann", "wrong", Action::Pull).await, None);
        assert_eq!(ask("bob", "secret", Action::Pull).await, None);
        assert!(users.identify(Credentials::Token("secret")).await.is_none());
        for bad in ["ann", ":x", "ann:", "a:b:push"] {
            let error = FileUsers::parse(bad).unwrap_err().to_string();
            assert!(error.contains("line 1"), "{error}");
        }
    }
}

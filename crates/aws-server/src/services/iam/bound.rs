//! Whom policies bind, and which: the front end asks here before an operation runs.
//!
//! An account's own keys (root, and the configured ones) may do everything; users and assumed roles what their policies
//! allow. Policies are read anew at each call: a change counts at once.

use super::managed;
use super::{ACCESS_KEYS, POLICIES, USERS};
use crate::service::{AwsError, Caller, Shared};
use crate::services::kept::{Kept, Reach, items, text};
use auth::access::Principal;
use k8s_schema::gvr;
use serde_json::Value;

/// Users, roles, keys and policies, read only.
pub struct Bound {
    region: String,
    account: String,
    users: Kept,
    roles: Kept,
    policies: Kept,
    keys: Kept,
}

impl Bound {
    /// Over the objects of IAM.
    pub fn new(shared: &Shared) -> Bound {
        let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Global);
        Bound {
            region: shared.region.clone(),
            account: shared.account.clone(),
            users: kept(USERS, "User"),
            roles: kept(gvr::IAM_ROLES, "Role"),
            policies: kept(POLICIES, "Policy"),
            keys: kept(ACCESS_KEYS, "AccessKey"),
        }
    }

    /// Whose a user's access key is, while it is active.
    ///
    /// # Errors
    /// The objects cannot be read.
    pub async fn holder(&self, access_key: &str) -> Result<Option<Principal>, AwsError> {
        let key = self.keys.get_of(&self.account, &self.region, access_key).await?;
        Ok(key.filter(|key| key["Status"] == "Active").map(|key| Principal {
            account: text(&key, "Account").into(),
            arn: text(&key, "UserArn").into(),
            user_id: text(&key, "UserId").into(),
        }))
    }

    /// The policies that bind a caller; `None`: nothing does.
    ///
    /// # Errors
    /// The objects cannot be read.
    pub async fn policies(&self, caller: &Caller) -> Result<Option<Vec<Value>>, AwsError> {
        let (kind, name) = match holder_of(&caller.arn) {
            None => return Ok(None),
            Some(found) => found,
        };
        let kept = if kind == Kind::User { &self.users } else { &self.roles };
        let holder = kept.get_of(&caller.account, &self.region, name).await?.unwrap_or_default();
        let inline = holder["Inline"].as_object().into_iter().flat_map(|inline| inline.values());
        let mut documents: Vec<Value> = inline.filter_map(parsed).collect();
        for arn in items(&holder["Attached"]).iter().filter_map(Value::as_str) {
            match managed::document(arn) {
                Some(document) => documents.push(document),
                None => documents.extend(self.attached(&caller.account, arn).await?),
            }
        }
        Ok(Some(documents))
    }

    /// The default version of a customer's policy.
    async fn attached(&self, account: &str, arn: &str) -> Result<Option<Value>, AwsError> {
        let name = arn.rsplit('/').next().unwrap_or_default();
        let policy = self.policies.get_of(account, &self.region, name).await?.unwrap_or_default();
        let versions = items(&policy["Versions"]);
        let current = versions.iter().find(|v| v["VersionId"] == policy["DefaultVersionId"]);
        Ok(current.filter(|_| text(&policy, "Arn") == arn).and_then(|v| parsed(&v["Document"])))
    }
}

fn parsed(document: &Value) -> Option<Value> {
    serde_json::from_str(document.as_str()?).ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    User,
    Role,
}

/// Who holds the policies of a caller with that ARN.
fn holder_of(arn: &str) -> Option<(Kind, &str)> {
    let resource = arn.splitn(6, ':').nth(5)?;
    match resource.split_once('/') {
        Some(("user", path)) => Some((Kind::User, path.rsplit('/').next().unwrap_or(path))),
        Some(("assumed-role", rest)) => Some((Kind::Role, rest.split('/').next().unwrap_or(rest))),
        // Whoever else there may be has no policies: nothing is allowed.
        Some((_, rest)) => Some((Kind::Role, rest)),
        None => (resource != "root").then_some((Kind::Role, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_policies_count() {
        for (arn, holder) in [
            ("arn:aws:iam::1:root", None),
            ("", None),
            ("arn:aws:iam::1:user/team/ann", Some((Kind::User, "ann"))),
            ("arn:aws:sts::1:assumed-role/web/session/x", Some((Kind::Role, "web"))),
            ("arn:aws:sts::1:federated-user/x", Some((Kind::Role, "x"))),
        ] {
            assert_eq!(holder_of(arn), holder, "{arn}");
        }
    }
}

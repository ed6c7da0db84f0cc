//! Bootstrap tokens: what a new node shows before it has a certificate. A token is a Secret in `kube-system`, as
//! kubeadm makes them: `bootstrap-token-<id>`, with its end, what it may be used for, and groups.
//!
//! Invariants: a token speaks for `system:bootstrap:<id>` in `system:bootstrappers` and groups below that name only;
//! secrets are compared without telling by time how much fits.

use crate::Api;
use auth::Identity;
use auth::tokens::TokenError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::Object;
use k8s_schema::gvr;
use serde_json::Value;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
const GROUP: &str = "system:bootstrappers";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;

/// Id and secret of a text in the form of a bootstrap token; other tokens are longer.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain =
        |t: &str, len| t.len() == len && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (plain(id, ID_LEN) && plain(secret, SECRET_LEN)).then_some((id, secret))
}

impl Api {
    /// Whom a bootstrap token speaks for; `None`: the text is no such token.
    pub(crate) async fn bootstrapper(&self, token: &str) -> Option<Result<Identity, TokenError>> {
        let (id, secret) = split(token)?;
        if self.storage.cache.wait_fresh().await.is_err() {
            return Some(Err(TokenError::Gone(
                "the server cannot tell whether the token still exists".into(),
            )));
        }
        let held = self.cached(&gvr::SECRETS, NAMESPACE, &format!("bootstrap-token-{id}"));
        let now = (self.config.clock)();
        Some(
            check(held.as_deref(), id, secret, now)
                .map_err(|why| TokenError::Gone(format!("bootstrap token {id}: {why}"))),
        )
    }
}

fn check(
    held: Option<&Object>,
    id: &str,
    secret: &str,
    now: jiff::Timestamp,
) -> Result<Identity, &'static str> {
    let held = held.ok_or("there is none of that id")?;
    let value = held.value().map_err(|_| "its secret is damaged")?;
    let text = |key: &str| decoded(&value["data"][key]);
    if value["type"] != TYPE || held.meta().deletion_timestamp.is_some() || text("token-id") != id {
        return Err("its secret is none of a token");
    }
    if !same(text("token-secret").as_bytes(), secret.as_bytes()) {
        return Err("wrong");
    }
    let ends = text("expiration");
    if !ends.is_empty() && machinery::time::parse(&ends).map_or(true, |end| end <= now) {
        return Err("expired");
    }
    if text("usage-bootstrap-authentication") != "true" {
        return Err("not for authentication");
    }
    let below = format!("{GROUP}:");
    let more = text("auth-extra-groups");
    let more: Vec<&str> = more.split(',').map(str::trim).filter(|g| !g.is_empty()).collect();
    if more.iter().any(|g| !g.starts_with(&below)) {
        return Err("its groups are not below system:bootstrappers");
    }
    let mut identity = Identity::new(&format!("system:bootstrap:{id}"), [GROUP, "system:authenticated"]);
    identity.groups.extend(more.into_iter().map(String::from));
    Ok(identity)
}

/// Compares in a time that depends on the length alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn decoded(value: &Value) -> String {
    let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(change: impl FnOnce(&mut Value)) -> Object {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "expiration": "2026-01-02T00:00:00Z",
            "auth-extra-groups": "system:bootstrappers:x"});
        change(&mut data);
        for value in data.as_object_mut().unwrap().values_mut() {
            *value = json!(BASE64_STANDARD.encode(value.as_str().unwrap()));
        }
        let body = json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": NAMESPACE}, "type": TYPE, "data": data});
        Object::parse(body.to_string().into()).unwrap()
    }

    #[test]
    fn a_token_counts_while_its_secret_says_so() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (id, good) = split("abcdef.0123456789abcdef").unwrap();
        let of = |s: &Object, secret: &str| check(Some(s), id, secret, now);
        let identity = of(&secret(|_| ()), good).unwrap();
        assert_eq!(identity.user, "system:bootstrap:abcdef");
        assert_eq!(identity.groups, [GROUP, "system:authenticated", "system:bootstrappers:x"]);
        assert_eq!(of(&secret(|_| ()), "0123456789abcdeX"), Err("wrong"));
        assert_eq!(of(&secret(|d| d["expiration"] = json!("2025-12-31T00:00:00Z")), good), Err("expired"));
        assert_eq!(of(&secret(|d| d["expiration"] = json!("soon")), good), Err("expired"));
        let unused = secret(|d| d["usage-bootstrap-authentication"] = json!("false"));
        assert_eq!(of(&unused, good), Err("not for authentication"));
        assert!(of(&secret(|d| d["auth-extra-groups"] = json!("system:masters")), good).is_err());
        assert!(of(&secret(|d| d["token-id"] = json!("zzzzzz")), good).is_err());
        assert!(check(None, id, good, now).is_err());
    }

    #[test]
    fn only_that_form_is_a_bootstrap_token() {
        for other in
            ["", "abcdef", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef.x"]
        {
            assert_eq!(split(other), None, "{other}");
        }
    }
}

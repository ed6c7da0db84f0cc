//! Bearer tokens against the cluster: whom a token speaks for now, and what a TokenRequest asks for.
//!
//! Invariant: a token is worth nothing once its account, or the pod, secret or node that it is bound to, has gone
//! or has another UID. Deliberately not here: keys, signatures, claims (`auth::tokens`).

use crate::Api;
use auth::Identity;
use auth::tokens::{Bound, Claims, Reference, TokenError, account_user};
use client::Object;
use jiff::Timestamp;
use k8s_schema::{Gvr, gvr};
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Life of a token when nobody says otherwise.
const LIFE_SECONDS: i64 = 3_600;
/// Shortest life: less would be a stream of renewals.
const LIFE_SECONDS_MIN: i64 = 600;
/// Longest life, upstream's bound.
const LIFE_SECONDS_MAX: i64 = 1 << 32;
/// The life that admission asks for in pods' volumes. Such tokens last [`EXTENDED_SECONDS`], for programs that
/// never read their token again; a warning is due once the asked life is over.
pub const VOLUME_LIFE_SECONDS: i64 = 3_607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;
/// An object that is being deleted holds its tokens up for that long after its end was due.
const DELETION_GRACE_SECONDS: i64 = 60;
const EXTRA: &str = "authentication.kubernetes.io/";
/// Secrets with old tokens: their type, the label with the day of their last use, and the one that ends them.
const LEGACY_TYPE: &str = "kubernetes.io/service-account-token";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A caller known by a token.
pub struct Bearer {
    /// Who.
    pub identity: Identity,
    /// For which of the asked audiences the token is meant.
    pub audiences: Vec<String>,
}

/// What a TokenRequest asks for, checked.
struct Asked {
    audiences: Vec<String>,
    seconds: i64,
    bound: Option<(Kind, Reference)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Pod,
    Secret,
}

impl Kind {
    fn of(api_version: &str, kind: &str) -> Option<Kind> {
        match (api_version, kind) {
            ("v1", "Node") => Some(Kind::Node),
            ("v1", "Pod") => Some(Kind::Pod),
            ("v1", "Secret") => Some(Kind::Secret),
            _ => None,
        }
    }

    fn gvr(self) -> Gvr {
        match self {
            Kind::Node => gvr::NODES,
            Kind::Pod => gvr::PODS,
            Kind::Secret => gvr::SECRETS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::Secret => "Secret",
        }
    }
}

impl Api {
    /// The audience of tokens for this server.
    pub(crate) fn own_audiences(&self) -> Vec<String> {
        self.config.service_tokens.iter().map(|t| t.issuer().to_string()).collect()
    }

    /// Whom a bearer token speaks for. `None`: this server knows no such tokens.
    pub(crate) async fn bearer(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Bearer>, TokenError> {
        let own = self.own_bearer(token, audiences).await;
        if !matches!(own, Ok(Some(_)))
            && let Some(other) = &self.config.authenticator
            && let Some(identity) = other.authenticate(token).await
        {
            return Ok(Some(Bearer { identity, audiences: audiences.to_vec() }));
        }
        own
    }

    /// Whom a token of this cluster speaks for.
    async fn own_bearer(&self, token: &str, audiences: &[String]) -> Result<Option<Bearer>, TokenError> {
        if let Some(identity) = self.bootstrapper(token).await {
            return Ok(Some(Bearer { identity: identity?, audiences: audiences.to_vec() }));
        }
        let Some(tokens) = &self.config.service_tokens else { return Ok(None) };
        let now = (self.config.clock)().as_second();
        let claims = tokens.verify(token, now)?;
        let audiences = claims.audiences(audiences)?;
        if self.storage.cache.wait_fresh().await.is_err() {
            return Err(TokenError::Gone("the server cannot tell whether the account still exists".into()));
        }
        self.check_bound(&claims, now)?;
        self.note_legacy(&claims).await?;
        if let Some(after) = claims.bound.warnafter.filter(|after| *after < now) {
            let late = format!("subject: {}, seconds after warning threshold: {}", claims.sub, now - after);
            crate::audit::annotate("authentication.k8s.io/stale-token", &late);
            tracing::warn!(account = %claims.sub, after, "an old token is in use; its program does not read renewed ones");
        }
        Ok(Some(Bearer { identity: identity_of(&claims), audiences }))
    }

    /// Notes that the token of a Secret was used, once a day; refuses one that is marked invalid.
    async fn note_legacy(&self, claims: &Claims) -> Result<(), TokenError> {
        let bound = &claims.bound;
        let Some(reference) = &bound.secret else { return Ok(()) };
        let Some(secret) = self.cached(&gvr::SECRETS, &bound.namespace, &reference.name) else {
            return Ok(());
        };
        if crate::scan::string_at(&secret.raw, &["type"]) != Some(LEGACY_TYPE) {
            return Ok(());
        }
        let (namespace, name, account) = (&bound.namespace, &reference.name, &bound.serviceaccount.name);
        let labels = &secret.meta().labels;
        if labels.get(INVALID_SINCE).is_some_and(|since| since.parse::<jiff::civil::Date>().is_ok()) {
            crate::audit::annotate(
                "authentication.k8s.io/legacy-token-invalidated",
                &format!("{namespace}/{name}"),
            );
            return Err(TokenError::Gone(format!(
                "the token in secret {namespace}/{name} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            )));
        }
        crate::audit::annotate("authentication.k8s.io/legacy-token", &claims.sub);
        let today = self.now_text().chars().take("2026-01-01".len()).collect::<String>();
        if labels.get(LAST_USED) == Some(&today) {
            return Ok(());
        }
        if let (Some(resource), Ok(mut value)) = (self.registry.find(&gvr::SECRETS), secret.value()) {
            value["metadata"]["labels"][LAST_USED] = json!(today);
            // Who is faster notes the same.
            let _ = self.storage.replace(&resource, &secret, value).await;
        }
        Ok(())
    }

    fn check_bound(&self, claims: &Claims, now: i64) -> Result<(), TokenError> {
        let bound = &claims.bound;
        let account = &bound.serviceaccount;
        if claims.sub != account_user(&bound.namespace, &account.name) {
            return Err(TokenError::Malformed);
        }
        let gone = |text: String| Err(TokenError::Gone(text));
        let alive = |object: &Arc<Object>| {
            let due =
                object.meta().deletion_timestamp.as_deref().and_then(|t| machinery::time::parse(t).ok());
            due.is_none_or(|t| now < t.as_second().saturating_add(DELETION_GRACE_SECONDS))
        };
        match self.cached(&gvr::SERVICE_ACCOUNTS, &bound.namespace, &account.name) {
            None => return gone(format!("serviceaccounts {:?} not found", account.name)),
            Some(o) if !alive(&o) => {
                return gone(format!(
                    "service account {}/{} has been deleted",
                    bound.namespace, account.name
                ));
            }
            Some(o) if o.uid() != account.uid => {
                return gone(format!(
                    "service account UID ({}) does not match claim ({})",
                    o.uid(),
                    account.uid
                ));
            }
            Some(_) => {}
        }
        // A pod's token names the node for information only.
        let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
        let all =
            [(Kind::Pod, bound.pod.as_ref()), (Kind::Secret, bound.secret.as_ref()), (Kind::Node, node)];
        for (kind, reference) in all.into_iter().filter_map(|(k, r)| Some((k, r?))) {
            let namespace = if kind == Kind::Node { "" } else { &bound.namespace };
            match self.cached(&kind.gvr(), namespace, &reference.name) {
                Some(object) if !alive(&object) => return gone(INVALIDATED.into()),
                Some(object) if object.uid() != reference.uid => {
                    let (name, uid) = (kind.name(), object.uid());
                    let lower = name.to_lowercase();
                    return gone(format!(
                        "{name} UID ({uid}) does not match service account {lower} ref claim ({})",
                        reference.uid
                    ));
                }
                Some(_) => {}
                None => return gone(INVALIDATED.into()),
            }
        }
        Ok(())
    }

    /// Answers a TokenRequest for an account: the request with its defaults and its status.
    pub(crate) fn token_for(&self, account: &Object, mut request: Value) -> Result<Value, ApiError> {
        let Some(tokens) = &self.config.service_tokens else {
            let message = "this server does not issue service account tokens";
            return Err(ApiError::new(501, "NotImplemented", message));
        };
        let asked = asked(&request, tokens.issuer())?;
        let mut bound = Bound {
            namespace: account.key.namespace.to_string(),
            serviceaccount: Reference { name: account.key.name.to_string(), uid: account.uid().into() },
            ..Bound::default()
        };
        if let Some((kind, reference)) = &asked.bound {
            self.bind_token(&mut bound, *kind, reference)?;
        }
        let now = (self.config.clock)().as_second();
        let asked_until = now.saturating_add(asked.seconds);
        let mut until = asked_until;
        if asked.seconds == VOLUME_LIFE_SECONDS && asked.audiences == [tokens.issuer()] {
            bound.warnafter = Some(asked_until);
            until = now.saturating_add(EXTENDED_SECONDS);
        }
        let jti = uuid::Builder::from_random_bytes((self.config.random)().to_be_bytes()).into_uuid();
        let claims = Claims {
            aud: asked.audiences.clone(),
            exp: until,
            iat: now,
            iss: tokens.issuer().to_string(),
            jti: jti.to_string(),
            nbf: now,
            sub: account_user(&account.key.namespace, &account.key.name),
            bound,
        };
        let token = tokens.sign(&claims).map_err(ApiError::internal)?;
        let expires = Timestamp::from_second(asked_until).map_err(ApiError::internal)?;
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        request["metadata"] = json!({"name": &*account.key.name, "namespace": &*account.key.namespace,
            "creationTimestamp": self.now_text()});
        request["spec"]["audiences"] = json!(asked.audiences);
        request["spec"]["expirationSeconds"] = json!(asked.seconds);
        request["status"] = json!({"token": token, "expirationTimestamp": machinery::time::format(expires)});
        Ok(request)
    }

    /// Binds a token to an object that must be there and, for a pod, run as the account.
    fn bind_token(&self, bound: &mut Bound, kind: Kind, wanted: &Reference) -> Result<(), ApiError> {
        let namespace = if kind == Kind::Node { "" } else { &*bound.namespace };
        let object = self
            .cached(&kind.gvr(), namespace, &wanted.name)
            .ok_or_else(|| ApiError::not_found(&kind.gvr(), &wanted.name))?;
        if !wanted.uid.is_empty() && wanted.uid != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                wanted.uid
            );
            return Err(ApiError::conflict(&kind.gvr(), &wanted.name, &why));
        }
        let reference = Reference { name: wanted.name.clone(), uid: object.uid().into() };
        match kind {
            Kind::Node => bound.node = Some(reference),
            Kind::Secret => bound.secret = Some(reference),
            Kind::Pod => {
                let pod = object.value().map_err(ApiError::internal)?;
                let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                if account != bound.serviceaccount.name {
                    return Err(ApiError::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        bound.serviceaccount.name
                    )));
                }
                if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    let uid = self.cached(&gvr::NODES, "", node).map(|o| o.uid().to_string());
                    bound.node = Some(Reference { name: node.into(), uid: uid.unwrap_or_default() });
                }
                bound.pod = Some(reference);
            }
        }
        Ok(())
    }
}

const INVALIDATED: &str = "service account token has been invalidated";

/// Reads and checks a TokenRequest.
fn asked(request: &Value, issuer: &str) -> Result<Asked, ApiError> {
    let spec = &request["spec"];
    let number = &spec["expirationSeconds"];
    if !number.is_null() && !number.is_i64() {
        return Err(ApiError::bad_request(
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: json: cannot unmarshal into Go struct field TokenRequestSpec.spec.expirationSeconds of type int64",
        ));
    }
    let seconds = number.as_i64().unwrap_or(LIFE_SECONDS);
    let mut errors = FieldErrors::new();
    if seconds < LIFE_SECONDS_MIN {
        errors.invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > LIFE_SECONDS_MAX {
        errors.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    errors.into_result("authentication.k8s.io", "TokenRequest", "")?;
    let texts = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut audiences: Vec<String> = texts.map(str::to_string).collect();
    if audiences.is_empty() {
        audiences.push(issuer.to_string());
    }
    let reference = &spec["boundObjectRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let bound = match reference {
        Value::Object(_) => {
            let kind = Kind::of(text("apiVersion"), text("kind")).ok_or_else(|| {
                let version = text("apiVersion");
                ApiError::bad_request(format!(
                    "cannot bind token to object of type {version}, Kind={}",
                    text("kind")
                ))
            })?;
            Some((kind, Reference { name: text("name").into(), uid: text("uid").into() }))
        }
        _ => None,
    };
    Ok(Asked { audiences, seconds, bound })
}

fn identity_of(claims: &Claims) -> Identity {
    let bound = &claims.bound;
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("{EXTRA}{key}"), vec![value.to_string()]);
        }
    };
    if !claims.jti.is_empty() {
        add("credential-id", &format!("JTI={}", claims.jti));
    }
    for (name, uid, reference) in
        [("node-name", "node-uid", &bound.node), ("pod-name", "pod-uid", &bound.pod)]
    {
        if let Some(reference) = reference {
            add(name, &reference.name);
            add(uid, &reference.uid);
        }
    }
    let account = Identity::service_account(&bound.namespace, &bound.serviceaccount.name);
    Identity { uid: bound.serviceaccount.uid.clone(), extra, ..account }
}

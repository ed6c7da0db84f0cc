//! Who asks, and what they may do: the seam between the registry and whoever knows users.
//!
//! An [`Authorizer`] turns credentials into a [`Principal`], or says that they are none of its own; a principal
//! answers for each repository. Several authorizers stand behind each other in [`Authorizers`], to which a front end
//! may add its own while the registry serves. On the wire: `Basic` (every client knows it), `Bearer`, and client
//! certificates that TLS has verified.

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, PoisonError, RwLock};

/// What somebody shows.
#[derive(Clone, Copy)]
pub enum Credentials<'a> {
    /// A user's name and password; for a token, clients put it here with any name.
    Password {
        /// Name.
        user: &'a str,
        /// Password, or token.
        password: &'a str,
    },
    /// A bearer token.
    Token(&'a str),
    /// A certificate of the instance's authority.
    Certificate(&'a CertificateDer<'static>),
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read manifests, blobs, tags.
    Pull,
    /// Write them.
    Push,
    /// Remove them.
    Delete,
    /// List all repositories.
    List,
}

/// Somebody who was recognised.
#[async_trait]
pub trait Principal: Send + Sync {
    /// For the log.
    fn name(&self) -> &str;

    /// May they do this to a repository ("" for [`Action::List`])?
    async fn allows(&self, action: Action, repository: &str) -> bool;
}

/// Recognises credentials.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Whose they are; `None`: not known here.
    async fn identify(&self, credentials: Credentials<'_>) -> Option<Arc<dyn Principal>>;
}

/// Authorizers, asked in order. A cheap handle; what is added counts for the next request.
#[derive(Clone, Default)]
pub struct Authorizers(Arc<RwLock<Vec<Arc<dyn Authorizer>>>>);

impl Authorizers {
    /// Adds one behind the others.
    pub fn add(&self, authorizer: Arc<dyn Authorizer>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(authorizer);
    }

    /// The first that recognises the credentials decides.
    pub async fn identify(&self, credentials: Credentials<'_>) -> Option<Arc<dyn Principal>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        for authorizer in all {
            if let Some(found) = authorizer.identify(credentials).await {
                return Some(found);
            }
        }
        None
    }
}

/// An `Authorization` header, read.
pub(crate) enum Header {
    Password(String, String),
    Token(String),
}

impl Header {
    pub(crate) fn parse(value: &HeaderValue) -> Option<Header> {
        let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Header::Token(rest.into()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(BASE64_STANDARD.decode(rest).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Header::Password(user.into(), password.into()))
    }

    pub(crate) fn credentials(&self) -> Credentials<'_> {
        match self {
            Header::Password(user, password) => Credentials::Password { user, password },
            Header::Token(token) => Credentials::Token(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let of = |text: &str| match Header::parse(&text.parse().unwrap()) {
            Some(Header::Password(user, password)) => format!("{user} {password}"),
            Some(Header::Token(token)) => token,
            None => "-".into(),
        };
        assert_eq!(of("Basic dTpwOnE="), "u p:q");
        assert_eq!(of("bearer  abc"), "abc");
        for bad in ["Basic", "Basic %%", "Basic dQ==", "Digest x", ""] {
            assert_eq!(of(bad), "-", "{bad}");
        }
    }
}

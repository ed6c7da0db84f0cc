//! The guarded door: TLS, and every request checked against what its sender may do.
//!
//! What was recognised on a connection is kept for [`KNOWN_MAX`], so that a push does not ask anew for each piece.

use crate::access::{Action, Authorizers, Credentials, Header, Principal};
use crate::reply::ApiError;
use crate::route::{Query, Route};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request};
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For a TLS handshake.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long credentials count on a connection without being looked at again.
const KNOWN_MAX: Duration = Duration::from_secs(30);

/// What guards a listener.
#[derive(Clone)]
pub struct Guard {
    /// Its certificate; should verify (but not demand) client certificates.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who knows users.
    pub authorizers: Authorizers,
}

struct Known {
    header: Option<HeaderValue>,
    principal: Arc<dyn Principal>,
    at: Instant,
}

/// One guarded connection.
pub(crate) struct Visitor {
    authorizers: Authorizers,
    certificate: Option<CertificateDer<'static>>,
    known: Mutex<Option<Known>>,
}

impl Visitor {
    pub(crate) fn new(authorizers: Authorizers, certificate: Option<CertificateDer<'static>>) -> Visitor {
        Visitor { authorizers, certificate, known: Mutex::default() }
    }

    /// Lets the request through, or says why not.
    pub(crate) async fn check(&self, route: &Route, request: &Request<Incoming>) -> Result<(), ApiError> {
        let header = request.headers().get(AUTHORIZATION);
        let principal = self.principal(header).await.ok_or(ApiError::Unauthorized)?;
        for (action, repository) in wanted(route, request.method(), &Query::of(request.uri())) {
            if !principal.allows(action, &repository).await {
                tracing::info!(who = principal.name(), ?action, repository, "registry: denied");
                return Err(ApiError::Denied);
            }
        }
        Ok(())
    }

    /// A header decides alone where there is one; then the certificate.
    async fn principal(&self, header: Option<&HeaderValue>) -> Option<Arc<dyn Principal>> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |k: &&Known| k.header.as_ref() == header && k.at.elapsed() < KNOWN_MAX;
        if let Some(known) = lock().as_ref().filter(same) {
            return Some(known.principal.clone());
        }
        let found = match header {
            Some(value) => self.authorizers.identify(Header::parse(value)?.credentials()).await,
            None => self.authorizers.identify(Credentials::Certificate(self.certificate.as_ref()?)).await,
        };
        let principal = found?;
        let known = Known { header: header.cloned(), principal: principal.clone(), at: Instant::now() };
        *lock() = Some(known);
        Some(principal)
    }
}

/// What a request needs: all of these.
fn wanted(route: &Route, method: &Method, query: &Query) -> Vec<(Action, String)> {
    let by_method = match *method {
        Method::GET | Method::HEAD => Action::Pull,
        Method::DELETE => Action::Delete,
        _ => Action::Push,
    };
    match route {
        Route::Base => Vec::new(),
        Route::Catalog => vec![(Action::List, String::new())],
        Route::Tags(name) | Route::Referrers(name, _) | Route::Manifest(name, _) | Route::Blob(name, _) => {
            vec![(by_method, name.clone())]
        }
        Route::Upload(name, _) => vec![(Action::Push, name.clone())],
        Route::Uploads(name) => {
            let mut all = vec![(Action::Push, name.clone())];
            // Without `from` any repository may be the source: then it must be one that everybody here may read.
            if query.get("mount").is_some() {
                let from = query.get("from").unwrap_or_default();
                all.push(if from.is_empty() {
                    (Action::List, String::new())
                } else {
                    (Action::Pull, from.into())
                });
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs() {
        let of = |method: Method, path: &str| {
            let uri: http::Uri = path.parse().unwrap();
            wanted(&Route::parse(uri.path()).unwrap(), &method, &Query::of(&uri))
        };
        assert_eq!(of(Method::GET, "/v2/"), []);
        assert_eq!(of(Method::GET, "/v2/_catalog"), [(Action::List, String::new())]);
        assert_eq!(of(Method::HEAD, "/v2/a/b/manifests/x"), [(Action::Pull, "a/b".into())]);
        assert_eq!(of(Method::PUT, "/v2/a/manifests/x"), [(Action::Push, "a".into())]);
        assert_eq!(of(Method::DELETE, "/v2/a/manifests/x"), [(Action::Delete, "a".into())]);
        assert_eq!(of(Method::GET, "/v2/a/blobs/uploads/1"), [(Action::Push, "a".into())]);
        let digest = image::Digest::of(b"");
        assert_eq!(
            of(Method::POST, &format!("/v2/a/blobs/uploads/?mount={digest}&from=b%2Fc")),
            [(Action::Push, "a".into()), (Action::Pull, "b/c".into())]
        );
        assert_eq!(of(Method::POST, &format!("/v2/a/blobs/uploads/?mount={digest}"))[1].0, Action::List);
    }
}

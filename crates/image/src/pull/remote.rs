//! One repository of a registry elsewhere: documents and blobs, with authorization, redirects and retries.
//!
//! Invariants: credentials go to the registry itself only (not along a redirect to another host); a blob that is cut
//! off goes on where it stopped; nothing is returned whose digest was not checked by the caller or here.

use super::PullError;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::net::auth::{AuthError, Challenge, authorize};
use crate::net::http::{Ask, Manners, NetError, Reply, Trust, get};
use crate::net::keyring::Credentials;
use crate::net::url::Url;
use crate::spool::{PumpError, Writing, pump};
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, RANGE};
use parking_lot::Mutex;
use std::time::Duration;
use stdx::backoff::Backoff;

/// What we can read.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
const REDIRECTS_MAX: usize = 5;
/// Attempts in a row that bring nothing; one that brings bytes begins the count anew.
const ATTEMPTS_MAX: u32 = 4;
/// The longest wait that a registry may ask for: the pod's own back-off does the rest.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// What a server says of an error, in a message.
const SAID_BYTES: u64 = 4096;

/// A repository.
pub(super) struct Remote {
    pub(super) base: Url,
    pub(super) repository: String,
    /// The domain that a mirror stands for.
    pub(super) stands_for: Option<String>,
    pub(super) credentials: Option<Credentials>,
    /// Whose they are; `None`: the node's, or nobody's.
    pub(super) mark: Option<String>,
    pub(super) manners: Manners,
    pub(super) retry: Backoff,
    /// The `Authorization` header that worked last.
    pub(super) pass: Mutex<Option<String>>,
}

/// How one attempt failed.
enum Failed {
    /// For good.
    Now(PullError),
    /// Perhaps not next time; the registry may say when.
    Again(PullError, Option<Duration>),
}

impl From<NetError> for Failed {
    fn from(error: NetError) -> Failed {
        match error {
            // An address that cannot be reached is the pod's back-off's business.
            NetError::Http(_) | NetError::Timeout(_) => Failed::Again(error.into(), None),
            other => Failed::Now(other.into()),
        }
    }
}

impl Remote {
    /// A manifest or index by tag or digest; at most `max` bytes. The digest that the registry claims, too.
    pub(super) async fn document(
        &self,
        reference: &str,
        max: u64,
    ) -> Result<(Vec<u8>, Option<Digest>), PullError> {
        let mut attempt = 0;
        loop {
            let failed = match self.try_document(reference, max).await {
                Ok(document) => return Ok(document),
                Err(failed) => failed,
            };
            self.wait(failed, &mut attempt).await?;
        }
    }

    async fn try_document(&self, reference: &str, max: u64) -> Result<(Vec<u8>, Option<Digest>), Failed> {
        let headers = [(ACCEPT.as_str(), MANIFESTS.to_string())];
        let reply = self.get(&format!("manifests/{reference}"), &headers).await?;
        let claimed = reply.header("docker-content-digest").and_then(Digest::parse);
        let too_big = || Failed::Now(ImageError::too_big("a manifest", format!("{max} bytes")).into());
        let bytes = reply.small(max).await?.ok_or_else(too_big)?;
        Ok((bytes, claimed))
    }

    /// A blob, whole and with that digest, into `writing`.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        writing: Writing,
    ) -> Result<Writing, PullError> {
        let (mut attempt, mut boxed) = (0, Box::new(writing));
        loop {
            let before = boxed.offset();
            let (writing, result) = self.try_blob(digest, size, boxed).await;
            boxed = writing.ok_or(ImageError::Cancelled)?;
            let Err(failed) = result else { break };
            if boxed.offset() > before {
                attempt = 0;
            }
            self.wait(failed, &mut attempt).await?;
        }
        let (found, bytes) = (boxed.digest(), boxed.offset());
        if found != *digest {
            let (what, wanted) = (format!("blob ({bytes} bytes)"), digest.to_string());
            return Err(ImageError::Digest { what, wanted, found: found.to_string() }.into());
        }
        Ok(*boxed)
    }

    async fn try_blob(
        &self,
        digest: &Digest,
        size: u64,
        mut writing: Box<Writing>,
    ) -> (Option<Box<Writing>>, Result<(), Failed>) {
        let offset = writing.offset();
        let range = (RANGE.as_str(), format!("bytes={offset}-"));
        let headers: &[_] = if offset > 0 { &[range] } else { &[] };
        let mut reply = match self.get(&format!("blobs/{digest}"), headers).await {
            Ok(reply) => reply,
            Err(failed) => return (Some(writing), Err(failed)),
        };
        let continues = reply.status == StatusCode::PARTIAL_CONTENT
            && reply.header("content-range").is_some_and(|r| r.starts_with(&format!("bytes {offset}-")));
        if offset > 0
            && !continues
            && let Err(error) = writing.restart()
        {
            return (Some(writing), Err(Failed::Now(error.into())));
        }
        let (writing, pumped) = pump(writing, &mut reply).await;
        let result = match pumped {
            Ok(()) if writing.as_ref().is_some_and(|w| w.offset() < size) => {
                Err(Failed::Again(NetError::Http("unexpected EOF".into()).into(), None))
            }
            Ok(()) => Ok(()),
            Err(PumpError::Input(error)) => Err(error.into()),
            Err(PumpError::Disk(error)) => Err(Failed::Now(error.into())),
        };
        (writing, result)
    }

    /// Waits before the next attempt, or gives the error up.
    async fn wait(&self, failed: Failed, attempt: &mut u32) -> Result<(), PullError> {
        let (error, asked) = match failed {
            Failed::Now(error) => return Err(error),
            Failed::Again(error, asked) => (error, asked),
        };
        *attempt += 1;
        if *attempt >= ATTEMPTS_MAX || asked.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
            return Err(error);
        }
        tracing::debug!(%error, registry = %self.base, "tried again soon");
        tokio::time::sleep(asked.unwrap_or_else(|| self.retry.delay(*attempt - 1))).await;
        Ok(())
    }

    /// A GET below the repository; its answer is a success.
    async fn get(&self, what: &str, headers: &[(&str, String)]) -> Result<Reply, Failed> {
        let ns = self.stands_for.as_ref().map(|domain| format!("?ns={domain}")).unwrap_or_default();
        let path = format!("{}/v2/{}/{what}{ns}", self.base.path.trim_end_matches('/'), self.repository);
        let start = Url { path, ..self.base.clone() };
        let known = self.pass.lock().clone();
        let reply = self.follow(&start, headers, known.clone()).await?;
        let Some(challenge) = self.challenge(&reply) else { return self.checked(&start, reply).await };
        let pass = self.authorize(&challenge).await?;
        if known.as_ref() == Some(&pass) {
            return self.checked(&start, reply).await;
        }
        let reply = self.follow(&start, headers, Some(pass.clone())).await?;
        *self.pass.lock() = Some(pass);
        self.checked(&start, reply).await
    }

    fn challenge(&self, reply: &Reply) -> Option<Challenge> {
        let wants = reply.status == StatusCode::UNAUTHORIZED;
        wants.then(|| reply.header("www-authenticate").and_then(Challenge::parse)).flatten()
    }

    async fn authorize(&self, challenge: &Challenge) -> Result<String, Failed> {
        let authorized =
            authorize(challenge, &self.base, &self.repository, self.credentials.as_ref(), &self.manners)
                .await;
        authorized.map_err(|error| match error {
            AuthError::Net(error) => error.into(),
            AuthError::Refused { status, .. } if again(status) => {
                Failed::Again(PullError::Auth(error.into()), None)
            }
            error => Failed::Now(PullError::Auth(error.into())),
        })
    }

    /// One request and the redirects that it meets.
    async fn follow(
        &self,
        start: &Url,
        headers: &[(&str, String)],
        pass: Option<String>,
    ) -> Result<Reply, Failed> {
        let mut url = start.clone();
        for _ in 0..=REDIRECTS_MAX {
            let own = url.same_origin(start);
            let mut all = headers.to_vec();
            all.extend(pass.iter().filter(|_| own).map(|p| (AUTHORIZATION.as_str(), p.clone())));
            let trust = if url.host == start.host || !start.tls { Trust::Named } else { Trust::Told };
            let reply = get(Ask { url: &url, trust, headers: &all }, &self.manners).await?;
            let moves = reply.status.is_redirection() && reply.status != StatusCode::NOT_MODIFIED;
            if !moves {
                return Ok(reply);
            }
            let refuse = |why: String| Failed::Now(PullError::Redirect(why));
            let location = reply.header("location").unwrap_or_default();
            let next = url.join(location).ok_or_else(|| refuse(format!("{url} leads to {location:?}")))?;
            if url.tls && !next.tls {
                return Err(refuse(format!("{url} leads to an unencrypted address")));
            }
            url = next;
        }
        Err(Failed::Now(PullError::Redirect(format!(
            "{start} leads through more than {REDIRECTS_MAX} addresses"
        ))))
    }

    /// The reply when it is a success; the error that it stands for when not.
    async fn checked(&self, url: &Url, reply: Reply) -> Result<Reply, Failed> {
        let status = reply.status;
        if status.is_success() {
            return Ok(reply);
        }
        let asked = reply.header("retry-after").and_then(|s| s.trim().parse().ok()).map(Duration::from_secs);
        if status == StatusCode::NOT_FOUND {
            return Err(Failed::Now(PullError::NotFound));
        }
        let said = reply.small(SAID_BYTES).await.ok().flatten().unwrap_or_default();
        let said = server_message(&said);
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(Failed::Now(PullError::Denied(said)));
        }
        let error = PullError::Status { url: url.to_string(), status, said };
        if again(status) { Err(Failed::Again(error, asked)) } else { Err(Failed::Now(error)) }
    }
}

fn again(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// The codes and messages of a registry's error document, on one line without control characters.
fn server_message(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let word = |error: &serde_json::Value| {
        let field = |name: &str| error[name].as_str().unwrap_or_default().to_string();
        format!("{}: {}", field("code").to_lowercase(), field("message"))
    };
    let words: Vec<String> = document["errors"].as_array().into_iter().flatten().take(3).map(word).collect();
    words.join("; ").chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\n\u001b[2J"},{"code":"X","message":"y"}]}"#;
        assert_eq!(server_message(body), "denied: no[2J; x: y");
        assert_eq!(server_message(b"<html>"), "");
    }
}

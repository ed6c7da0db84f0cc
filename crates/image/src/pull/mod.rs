//! [`Puller`]: from an image's name to the image in the store, from wherever the name may be had.
//!
//! The order: our own registry (under the names that a push may have used), the cluster's ([`Parent`], the same
//! names), the mirrors of the name's domain, the domain itself. A name of our own registry is looked for elsewhere only where a mirror is set for it (a node that
//! has no control plane). One pull of a name at a time; a tag that
//! moves meanwhile does no harm, since everything after the first document is asked for by digest.
//! Deliberately not here: when to pull (policies), how often to try again (the pod's back-off).

mod fetch;
mod remote;

pub use crate::net::http::TlsSource;
pub use crate::net::keyring::Keyring;

use crate::depot::{Depot, DepotError, ManifestRef};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::net::auth::AuthError;
use crate::net::http::{Manners, NetError};
use crate::net::keyring::Credentials;
use crate::net::url::Url;
use crate::reference::{Reference, is_repository};
use crate::store::{Images, Lease};
use fetch::{Fetch, Origin};
use parking_lot::Mutex;
use remote::Remote;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use stdx::backoff::Backoff;
use tokio::sync::Semaphore;

/// Images on their way at once.
const PULLS_AT_ONCE: usize = 4;
/// Sets of credentials that are tried for one image.
const CREDENTIALS_MAX: usize = 8;
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), factor: 2, max: Duration::from_secs(8) };
/// The cluster's registry is near: it is there, or it is not.
const PARENT_RETRY: Backoff =
    Backoff { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(1) };
const HUB: &str = "docker.io";
const HUB_ADDRESS: &str = "https://registry-1.docker.io/";

/// The registry of the cluster that this node joined: what was pushed there is every node's.
#[derive(Clone)]
pub struct Parent {
    /// `https://host:port`
    pub url: String,
    /// Whom to believe, and who this node is.
    pub tls: TlsSource,
}

impl std::fmt::Debug for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parent({})", self.url)
    }
}

/// Where images may come from.
#[derive(Clone, Debug)]
pub struct PullConfig {
    /// Domains that mean our own registry (`localhost:5000`).
    pub own: BTreeSet<String>,
    /// By domain: addresses (`http://host:port`) that are asked before the domain itself.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Domains that are spoken to in the clear.
    pub insecure: BTreeSet<String>,
    /// The registry of the cluster that this node joined.
    pub parent: Option<Parent>,
    /// Credentials of the whole node.
    pub keys: Keyring,
    /// Between attempts at one document.
    pub retry: Backoff,
    manners: Manners,
}

impl Default for PullConfig {
    fn default() -> Self {
        PullConfig {
            own: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            insecure: BTreeSet::new(),
            parent: None,
            keys: Keyring::default(),
            retry: RETRY,
            manners: Manners::default(),
        }
    }
}

impl PullConfig {
    /// The same with other deadlines: for a connection, for an answer, and for a slow body to speed up.
    pub fn with_deadlines(mut self, connect: Duration, answer: Duration, window: Duration) -> PullConfig {
        (self.manners.connect, self.manners.answer, self.manners.window) = (connect, answer, window);
        self
    }

    /// The same with authorities of single registries at `<folder>/<host[:port]>/*.crt`, beside the system's
    /// (`/etc/docker/certs.d` when not said).
    pub fn with_authorities(mut self, folder: &Path) -> PullConfig {
        self.manners.authorities = folder.into();
        self
    }
}

/// Why an image could not be pulled, in the words of the field.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No such image there.
    #[error("not found")]
    NotFound,
    /// The registry refuses.
    #[error(
        "pull access denied, repository does not exist or may require authorization: server message: {0}"
    )]
    Denied(String),
    /// No token.
    #[error("failed to authorize: {0}")]
    Auth(AuthErrorText),
    /// Another answer than a document.
    #[error("unexpected status from GET request to {url}: {status}: {said}")]
    Status {
        /// Asked for.
        url: String,
        /// The answer.
        status: http::StatusCode,
        /// And what it said.
        said: String,
    },
    /// A redirect that is not followed.
    #[error("redirect refused: {0}")]
    Redirect(String),
    /// No answer.
    #[error("failed to do request: {0}")]
    Net(String),
    /// The image itself, or this node's disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Our own registry.
    #[error(transparent)]
    Own(DepotError),
}

/// Why there was no token.
#[derive(Debug)]
pub struct AuthErrorText(String);

impl std::fmt::Display for AuthErrorText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<NetError> for PullError {
    fn from(error: NetError) -> PullError {
        PullError::Net(error.to_string())
    }
}

impl From<DepotError> for PullError {
    fn from(error: DepotError) -> PullError {
        match error {
            DepotError::ManifestUnknown(_) | DepotError::BlobUnknown(_) | DepotError::NameUnknown(_) => {
                PullError::NotFound
            }
            DepotError::Image(error) => PullError::Image(error),
            other => PullError::Own(other),
        }
    }
}

/// A pulled image.
pub struct Pulled {
    /// Keeps it on disk.
    pub lease: Lease,
    /// How long it took, waiting for other pulls not included.
    pub took: Duration,
    /// How long it took, all in all.
    pub waited: Duration,
}

/// Pulls images. A cheap handle.
#[derive(Clone)]
pub struct Puller {
    inner: Arc<Inner>,
}

struct Inner {
    images: Images,
    depot: Option<Depot>,
    config: PullConfig,
    /// Names that are being pulled.
    flights: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    slots: Semaphore,
}

impl Puller {
    /// Pulls into `images`, from `depot` before anywhere else.
    pub fn new(images: Images, depot: Option<Depot>, config: PullConfig) -> Puller {
        let (flights, slots) = (Mutex::default(), Semaphore::new(PULLS_AT_ONCE));
        Puller { inner: Arc::new(Inner { images, depot, config, flights, slots }) }
    }

    /// The store that it pulls into.
    pub fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Our own registry's content.
    pub fn depot(&self) -> Option<&Depot> {
        self.inner.depot.as_ref()
    }

    /// The image when it is unpacked on this node and is still what the name means: a name of our own registry
    /// means what was pushed last.
    pub fn unpacked(&self, reference: &Reference) -> Option<Lease> {
        let lease = self.inner.images.lease(&reference.to_string())?;
        let own = self.inner.config.own.contains(&reference.domain);
        let (Some(depot), Some(tag), None, true) =
            (&self.inner.depot, &reference.tag, &reference.digest, own)
        else {
            return Some(lease);
        };
        let Some(now) = depot.resolve(&reference.path, tag) else { return Some(lease) };
        let means = format!("{}@{now}", reference.repository());
        lease.image().digests.contains(&means).then_some(lease)
    }

    /// Can the image be had without asking anybody elsewhere?
    pub fn is_here(&self, name: &str) -> bool {
        match Reference::parse(name) {
            Ok(reference) => self.unpacked(&reference).is_some() || self.is_pushed(&reference),
            Err(_) => self.inner.images.get(name).is_some(),
        }
    }

    /// Does our own registry have the image, under whichever name?
    pub fn is_pushed(&self, reference: &Reference) -> bool {
        self.pushed_as(reference).is_some()
    }

    fn pushed_as(&self, reference: &Reference) -> Option<(Depot, String)> {
        let depot = self.inner.depot.clone()?;
        let wanted = match reference.digest.as_deref().and_then(Digest::parse) {
            Some(digest) => ManifestRef::Digest(digest),
            None => ManifestRef::Tag(reference.tag.clone()?),
        };
        let name = self.names(reference).into_iter().find(|name| depot.has_manifest(name, &wanted))?;
        Some((depot, name))
    }

    /// The repositories that a push to the cluster's registries may have used for this name.
    fn names(&self, reference: &Reference) -> Vec<String> {
        let mut names = vec![reference.path.clone()];
        if !self.inner.config.own.contains(&reference.domain) {
            names.insert(0, reference.repository());
            names.extend(
                reference.path.strip_prefix("library/").filter(|_| reference.domain == HUB).map(String::from),
            );
        }
        // A domain with a port is no part of a repository's name.
        names.retain(|name| is_repository(name));
        names
    }

    /// From the cluster's registry, under the first name that it has.
    async fn pull_from_parent(&self, reference: &Reference) -> Option<Lease> {
        let parent = self.inner.config.parent.as_ref()?;
        let base = Url::parse(&parent.url)?;
        for name in self.names(reference) {
            let mut remote = self.remote(base.clone(), reference, None);
            remote.repository = name;
            remote.retry = PARENT_RETRY;
            remote.manners.tls = Some(parent.tls.clone());
            match self.pull_from(reference, &Origin::Remote(Box::new(remote))).await {
                Ok(lease) => return Some(lease),
                Err(PullError::NotFound) => {}
                Err(error) => {
                    tracing::warn!(%error, image = %reference, "not from the cluster's registry");
                    break;
                }
            }
        }
        None
    }

    /// Brings what the name means now into the store, whatever is there already; only what is missing is moved.
    /// `keys` go before the node's own.
    ///
    /// # Errors
    /// Nobody who was asked has it, or it is not taken. Nothing half-done stays.
    pub async fn pull(&self, reference: &Reference, keys: &Keyring) -> Result<Pulled, PullError> {
        let begun = Instant::now();
        let name = reference.to_string();
        let flight = {
            let mut flights = self.inner.flights.lock();
            flights.retain(|_, flight| flight.strong_count() > 0);
            let known = flights.get(&name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let flight = Arc::new(tokio::sync::Mutex::new(()));
                flights.insert(name.clone(), Arc::downgrade(&flight));
                flight
            })
        };
        let _alone = flight.lock().await;
        // What is on this node waits for no registry elsewhere, which may hang.
        let _slot = match self.is_pushed(reference) {
            true => None,
            false => self.inner.slots.acquire().await.ok(),
        };
        let started = Instant::now();
        let lease = self.pull_now(reference, keys).await?;
        Ok(Pulled { lease, took: started.elapsed(), waited: begun.elapsed() })
    }

    async fn pull_now(&self, reference: &Reference, keys: &Keyring) -> Result<Lease, PullError> {
        if let Some((depot, repository)) = self.pushed_as(reference) {
            return self.pull_from(reference, &Origin::Own { depot, repository }).await;
        }
        if let Some(lease) = self.pull_from_parent(reference).await {
            return Ok(lease);
        }
        let mut all = keys.clone();
        all.extend(&self.inner.config.keys);
        let mut candidates: Vec<Option<Credentials>> = all
            .matching(&reference.domain, &reference.path)
            .into_iter()
            .take(CREDENTIALS_MAX)
            .map(Some)
            .collect();
        if candidates.is_empty() {
            candidates.push(None);
        }
        for mirror in self.inner.config.mirrors.get(&reference.domain).into_iter().flatten() {
            let Some(base) = Url::parse(mirror) else { continue };
            let mut remote = self.remote(base, reference, None);
            remote.stands_for = Some(reference.domain.clone());
            match self.pull_from(reference, &Origin::Remote(Box::new(remote))).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tracing::info!(%error, mirror, image = %reference, "not from the mirror"),
            }
        }
        if self.inner.config.own.contains(&reference.domain) && self.inner.depot.is_some() {
            return Err(PullError::NotFound);
        }
        let base = self.base(&reference.domain).ok_or_else(|| PullError::Net("not an address".into()))?;
        let mut refused = PullError::NotFound;
        let nodes = self.inner.config.keys.matching(&reference.domain, &reference.path);
        for credentials in candidates {
            let mark = credentials.as_ref().filter(|c| !nodes.contains(c)).map(Credentials::mark);
            let remote = Remote { mark, ..self.remote(base.clone(), reference, credentials) };
            match self.pull_from(reference, &Origin::Remote(Box::new(remote))).await {
                Err(error @ (PullError::Denied(_) | PullError::Auth(_))) => refused = error,
                other => return other,
            }
        }
        Err(refused)
    }

    fn base(&self, domain: &str) -> Option<Url> {
        if domain == HUB {
            return Url::parse(HUB_ADDRESS);
        }
        let url = Url::parse(&format!("https://{domain}/"))?;
        let here = matches!(url.host.as_str(), "localhost" | "127.0.0.1" | "::1");
        let clear = here || self.inner.config.insecure.contains(domain);
        if clear { Url::parse(&format!("http://{domain}/")) } else { Some(url) }
    }

    fn remote(&self, base: Url, reference: &Reference, credentials: Option<Credentials>) -> Remote {
        Remote {
            base,
            repository: reference.path.clone(),
            stands_for: None,
            credentials,
            mark: None,
            manners: self.inner.config.manners.clone(),
            retry: self.inner.config.retry,
            pass: Mutex::default(),
        }
    }

    async fn pull_from(&self, reference: &Reference, origin: &Origin) -> Result<Lease, PullError> {
        match self.pull_once(reference, origin).await {
            // A layer that was here when it was looked for was swept before it was taken: once more, with all of them.
            Err(PullError::Image(ImageError::Missing(_))) => self.pull_once(reference, origin).await,
            other => other,
        }
    }

    async fn pull_once(&self, reference: &Reference, origin: &Origin) -> Result<Lease, PullError> {
        let fetched = Fetch { images: &self.inner.images, origin }.run(reference).await?;
        let (images, name) = (self.inner.images.clone(), reference.clone());
        let mark = match origin {
            Origin::Remote(remote) => remote.mark.clone(),
            Origin::Own { .. } => None,
        };
        let work = move || {
            images.take_pulled(&fetched.source, &fetched.top, &name, mark)?;
            images.lease(&name.to_string()).ok_or_else(|| ImageError::Missing(name.to_string()))
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Cancelled)??)
    }
}

impl From<AuthError> for AuthErrorText {
    fn from(error: AuthError) -> Self {
        AuthErrorText(error.to_string())
    }
}

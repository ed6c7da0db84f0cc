//! Sessions that were granted and not yet opened, and the way in for the front end.

use super::{Exec, PATH_PREFIX, Target, bridge, ws};
use crate::http::{Body, Upgrade, full};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// A token that is not used by then is void.
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Sessions granted and not opened; the oldest is forgotten beyond that.
const GRANTED_MAX: usize = 1_000;
/// Open sessions at a time.
const OPEN_MAX: usize = 1_000;
/// Letters and digits in a session's id, as AWS's have.
const ID_LENGTH: usize = 17;
const TOKEN_BYTES: usize = 32;
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What a session is for.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub target: Target,
    pub command: Vec<String>,
    pub token: String,
    pub until: Instant,
}

/// All sessions.
pub struct Sessions {
    granted: Mutex<BTreeMap<String, Grant>>,
    exec: Arc<dyn Exec>,
    places: Arc<Semaphore>,
    random: SystemRandom,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(exec: Arc<dyn Exec>) -> Arc<Sessions> {
        Arc::new(Sessions {
            granted: Mutex::default(),
            exec,
            places: Arc::new(Semaphore::new(OPEN_MAX)),
            random: SystemRandom::new(),
        })
    }

    fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).expect("the kernel gives random bytes");
        bytes
    }

    /// Grants a session: its id and its token.
    pub(super) fn grant(&self, target: Target, command: Vec<String>, now: Instant) -> (String, String) {
        let letter = |byte: u8| char::from(LETTERS[usize::from(byte) % LETTERS.len()]);
        let id: String = self.random::<ID_LENGTH>().into_iter().map(letter).collect();
        let (id, token) =
            (format!("ecs-execute-command-{id}"), URL_SAFE_NO_PAD.encode(self.random::<TOKEN_BYTES>()));
        let mut granted = self.granted.lock();
        granted.retain(|_, grant| grant.until > now);
        if granted.len() >= GRANTED_MAX
            && let Some(oldest) = granted.iter().min_by_key(|(_, g)| g.until).map(|(id, _)| id.clone())
        {
            granted.remove(&oldest);
        }
        granted.insert(id.clone(), Grant { target, command, token: token.clone(), until: now + TOKEN_LIFE });
        (id, token)
    }

    /// Takes a grant, once, for its token. A wrong token ends the grant too.
    pub(super) fn take(&self, id: &str, token: &str, now: Instant) -> Option<Grant> {
        let grant = self.granted.lock().remove(id)?;
        let same = token.len() == grant.token.len()
            && token.bytes().zip(grant.token.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
        (same && grant.until > now).then_some(grant)
    }

    /// Is a session of that id waiting to be opened?
    pub fn knows(&self, id: &str) -> bool {
        self.granted.lock().contains_key(id)
    }

    /// Serves an upgraded connection to a session's stream URL until either side ends it.
    pub async fn serve(
        self: Arc<Self>,
        id: String,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) {
        let Ok(_place) = self.places.clone().try_acquire_owned() else {
            return tracing::warn!("too many exec sessions");
        };
        if let Err(error) = bridge::serve(&self, &id, self.exec.as_ref(), io).await {
            tracing::debug!(session = id, %error, "exec session ends");
        }
    }
}

impl Sessions {
    /// Switches a request for a session's stream URL to the WebSocket and serves it.
    fn open(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let refuse = |status: StatusCode, text: &'static str| {
            let mut response = Response::new(full(text));
            *response.status_mut() = status;
            response
        };
        let id = request.uri().path().strip_prefix(PATH_PREFIX).unwrap_or_default().to_string();
        if !self.knows(&id) {
            return refuse(StatusCode::NOT_FOUND, "no such session\n");
        }
        let is_websocket = request
            .headers()
            .get(header::UPGRADE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.eq_ignore_ascii_case("websocket"));
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY).and_then(|v| v.to_str().ok());
        let Some(key) = key.filter(|_| is_websocket && request.method() == Method::GET) else {
            return refuse(StatusCode::BAD_REQUEST, "this is a WebSocket\n");
        };
        let accept = ws::accept(key);
        let sessions = self.clone();
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => sessions.serve(id, TokioIo::new(upgraded)).await,
                Err(error) => tracing::debug!(%error, "exec session not upgraded"),
            }
        });
        let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = accept.parse() {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }
}

/// The stream URLs, for the front end.
pub struct StreamUrls(pub Arc<Sessions>);

impl Upgrade for StreamUrls {
    fn prefix(&self) -> &'static str {
        PATH_PREFIX
    }

    fn answer(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let response = self.0.open(request);
        Box::pin(async move { response })
    }
}

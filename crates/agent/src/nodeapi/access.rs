//! Who else may call a node, and for what: callers that the API server vouches for, as upstream asks it.
//!
//! A caller shows a certificate of the cluster's or a bearer token (`TokenReview`); what it may do is a question about
//! `nodes/<subresource>` (`SubjectAccessReview`), the finest one first. Answers are remembered for upstream's times.
//! Deliberately not here: the API server's own calls, which are admitted without asking (`Authorize`).

use auth::Identity;
use client::ApiClient;
use http::{HeaderMap, Method, header};
use k8s_schema::Gvr;
use k8s_schema::gvr::SUBJECT_ACCESS_REVIEWS;
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const TOKEN_REVIEWS: Gvr = Gvr::new("authentication.k8s.io", "v1", "tokenreviews");
/// How long a token's holder, a yes and a no are believed (the kubelet's figures).
const TOKEN_FOR: Duration = Duration::from_secs(120);
const YES_FOR: Duration = Duration::from_secs(300);
const NO_FOR: Duration = Duration::from_secs(30);
/// Answers remembered of each sort: callers are few, and one that asks with ever new tokens gains nothing.
const REMEMBERED_MAX: usize = 1_000;

/// What the first part of a path is about, finest first; everything else is `proxy` alone.
const SUBRESOURCES: [(&str, &[&str]); 10] = [
    ("stats", &["stats"]),
    ("metrics", &["metrics"]),
    ("logs", &["log"]),
    ("checkpoint", &["checkpoint"]),
    ("statusz", &["statusz"]),
    ("flagz", &["configz"]),
    ("pods", &["pods", "proxy"]),
    ("runningpods", &["pods", "proxy"]),
    ("healthz", &["healthz", "proxy"]),
    ("configz", &["configz", "proxy"]),
];

/// Answers that hold for a while.
struct Remembered<T>(Mutex<BTreeMap<[u8; 32], (Instant, T)>>);

impl<T: Clone> Remembered<T> {
    fn get(&self, key: &[u8; 32]) -> Option<T> {
        self.0.lock().get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: [u8; 32], value: T, time: Duration) {
        let mut all = self.0.lock();
        if all.len() >= REMEMBERED_MAX {
            all.retain(|_, (until, _)| *until > Instant::now());
        }
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        all.insert(key, (Instant::now() + time, value));
    }
}

/// Asks the API server about callers.
pub struct Reviews {
    client: ApiClient,
    node: String,
    holders: Remembered<Option<Identity>>,
    answers: Remembered<bool>,
}

/// Why a caller is sent away: status and text.
pub(super) type Refusal = (u16, String);

impl Reviews {
    /// Asks as this node.
    pub fn new(client: ApiClient, node: &str) -> Reviews {
        let (holders, answers) = (Remembered(Mutex::default()), Remembered(Mutex::default()));
        Reviews { client, node: node.into(), holders, answers }
    }

    async fn review(&self, gvr: &Gvr, kind: &str, spec: &Value) -> Result<Value, ApiError> {
        let body =
            json!({"apiVersion": format!("{}/{}", gvr.group, gvr.version), "kind": kind, "spec": spec});
        let answer = self.client.create(gvr, body).await?.value().map_err(ApiError::internal)?;
        Ok(answer["status"].clone())
    }

    /// Whose bearer token a request shows.
    pub(super) async fn holder(&self, headers: &HeaderMap) -> Option<Identity> {
        let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        let token = Some(token.trim()).filter(|t| !t.is_empty() && scheme.eq_ignore_ascii_case("bearer"))?;
        let key = Sha256::digest(token).into();
        if let Some(known) = self.holders.get(&key) {
            return known;
        }
        let status = match self.review(&TOKEN_REVIEWS, "TokenReview", &json!({"token": token})).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                return None;
            }
        };
        let holder = (status["authenticated"] == true).then(|| identity(&status["user"]));
        self.holders.put(key, holder.clone(), TOKEN_FOR);
        holder
    }

    /// May this caller do that?
    pub(super) async fn check(&self, caller: &Identity, method: &Method, path: &str) -> Result<(), Refusal> {
        let (verb, subresources) = (verb(method), subresources(path));
        for subresource in subresources {
            let spec = json!({"user": caller.user, "uid": caller.uid, "groups": caller.groups,
                "extra": caller.extra, "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes",
                    "subresource": subresource, "name": self.node}});
            let key = Sha256::digest(spec.to_string()).into();
            let allowed = match self.answers.get(&key) {
                Some(known) => known,
                None => {
                    let asked = self.review(&SUBJECT_ACCESS_REVIEWS, "SubjectAccessReview", &spec).await;
                    let allowed = asked.map_err(|error| {
                        tracing::warn!(%error, "a request to the node could not be reviewed");
                        (500, format!("Authorization error ({})", told(caller, verb, &[subresource])))
                    })?["allowed"]
                        == true;
                    self.answers.put(key, allowed, if allowed { YES_FOR } else { NO_FOR });
                    allowed
                }
            };
            if allowed {
                return Ok(());
            }
        }
        Err((403, format!("Forbidden ({})", told(caller, verb, subresources))))
    }
}

fn told(caller: &Identity, verb: &str, subresources: &[&str]) -> String {
    let list = subresources.join(" ");
    format!("user={}, verb={verb}, resource=nodes, subresource(s)=[{list}]", caller.user)
}

fn identity(user: &Value) -> Identity {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let list = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let extra = user["extra"].as_object().into_iter().flatten();
    Identity {
        user: text(&user["username"]),
        uid: text(&user["uid"]),
        groups: list(&user["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), list(values))).collect(),
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.split('/').find(|part| !part.is_empty()).unwrap_or_default();
    SUBRESOURCES.iter().find(|(name, _)| *name == first).map_or(&["proxy"], |(_, list)| list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use client::{
        Client, EventStream, ListOptions, Object, ObjectKey, ObjectList, Verb, WatchOptions, Write,
    };
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Knows one token, and allows its holder metrics and pods.
    #[derive(Default)]
    struct Api(AtomicUsize);

    #[async_trait]
    impl Client for Api {
        async fn get(&self, _: &Gvr, _: &ObjectKey) -> Result<Arc<Object>, ApiError> {
            unreachable!()
        }
        async fn list(&self, _: &Gvr, _: &ListOptions) -> Result<ObjectList, ApiError> {
            unreachable!()
        }
        async fn watch(&self, _: &Gvr, _: &WatchOptions) -> Result<EventStream, ApiError> {
            unreachable!()
        }
        async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let Verb::Create(mut body) = write.verb else { unreachable!() };
            let asked = &body["spec"]["resourceAttributes"];
            let allowed = body["spec"]["user"] == "scraper"
                && asked["verb"] == "get"
                && asked["name"] == "node-1"
                && ["metrics", "proxy"].iter().any(|s| asked["subresource"] == **s);
            body["status"] = match write.gvr == TOKEN_REVIEWS {
                true if body["spec"]["token"] == "good" => {
                    json!({"authenticated": true, "user": {"username": "scraper", "groups": ["g"]}})
                }
                true => json!({"authenticated": false}),
                false => json!({"allowed": allowed}),
            };
            Ok(Arc::new(Object::new(write.key, 0, body.to_string().into())))
        }
    }

    #[tokio::test]
    async fn the_api_server_vouches_and_is_asked_once() {
        let api = Arc::new(Api::default());
        let reviews = Reviews::new(api.clone(), "node-1");
        let holder = async |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            reviews.holder(&headers).await
        };
        for bad in ["Bearer bad", "Basic good", "good", "Bearer "] {
            assert_eq!(holder(bad).await, None, "{bad}");
        }
        let caller = holder("bearer good").await.unwrap();
        assert_eq!((caller.user.as_str(), caller.groups.as_slice()), ("scraper", &["g".to_string()][..]));
        assert_eq!(holder("Bearer good").await, Some(caller.clone()));
        assert_eq!(api.0.load(Ordering::Relaxed), 2);
        for path in ["/metrics", "/metrics/cadvisor", "/pods", "/containerLogs/a/b/c"] {
            assert_eq!(reviews.check(&caller, &Method::GET, path).await, Ok(()), "{path}");
        }
        let refused = reviews.check(&caller, &Method::GET, "/stats/summary").await.unwrap_err();
        assert_eq!(
            refused,
            (403, "Forbidden (user=scraper, verb=get, resource=nodes, subresource(s)=[stats])".into())
        );
        assert_eq!(reviews.check(&caller, &Method::POST, "/exec/a/b/c").await.unwrap_err().0, 403);
        let before = api.0.load(Ordering::Relaxed);
        assert_eq!(reviews.check(&caller, &Method::GET, "/metrics/resource").await, Ok(()));
        assert_eq!(api.0.load(Ordering::Relaxed), before);
    }

    #[test]
    fn answers_are_forgotten() {
        let known = Remembered(Mutex::default());
        for n in 0..=u16::try_from(REMEMBERED_MAX).unwrap() {
            known.put(Sha256::digest(n.to_le_bytes()).into(), n, YES_FOR);
        }
        assert!(known.0.lock().len() <= REMEMBERED_MAX);
        known.put([0; 32], 1, Duration::ZERO);
        assert_eq!(known.get(&[0; 32]), None);
    }
}

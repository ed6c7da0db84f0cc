//! Follows APIService objects: keeps those of our own group versions, asks the servers of the others, writes conditions.
//!
//! One task a realm. It sleeps until an APIService or what is served here changes while no other server is named; else it
//! also looks at their services every second and asks each of them again after [`ASK_EVERY`].

use super::decide::{self, Availability, Step};
use super::target::Target;
use super::{GroupVersion, Remote, Remotes};
use crate::Api;
use crate::cache::Interest;
use client::{ApiClient, DeleteOptions, ObjectKey};
use futures_util::future::join_all;
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// APIService objects.
pub const API_SERVICES: Gvr = Gvr::new("apiregistration.k8s.io", "v1", "apiservices");
/// A server that answered is asked again this much later.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// One that did not answer: first and longest pause.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at the services of other servers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What changes within such a time is looked at together.
const GATHER_PAUSE: Duration = Duration::from_millis(20);
/// With thousands of definitions a look takes long: the pause is so many times that, up to [`GATHER_MAX`].
const GATHER_TIMES: u32 = 10;
const GATHER_MAX: Duration = Duration::from_millis(500);
/// Pause after the watch was cut.
const RELIST_PAUSE: Duration = Duration::from_millis(50);

/// What is known about asking one server.
#[derive(Default)]
struct Asked {
    /// Revisions of its APIService, service and endpoints when it was asked.
    seen: [u64; 3],
    again: Option<Instant>,
    pause: Duration,
}

/// Follows the objects until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient) {
    let mut asked: BTreeMap<GroupVersion, Asked> = BTreeMap::new();
    if let Some(now) = api.upgrade()
        && let Err(error) = publish_authorities(&now, &client).await
    {
        tracing::warn!(%error, "extension servers cannot learn the cluster's authorities");
    }
    loop {
        let Some(now) = api.upgrade() else { return };
        let mut closing = now.closing();
        let Some(services) = now.registry.find(&API_SERVICES) else { return };
        let (_, mut services) = now.storage.cache.subscribe_now(&services.prefix, Interest::default());
        let mut served = now.registry.changed();
        drop(now);
        loop {
            let Some(now) = api.upgrade() else { return };
            let began = Instant::now();
            round(&now, &client, &mut asked).await;
            let pause = (began.elapsed() * GATHER_TIMES).clamp(GATHER_PAUSE, GATHER_MAX);
            let next = next_look(&asked);
            drop(now);
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let alive = tokio::select! {
                change = services.changes.recv() => change.is_some(),
                changed = served.changed() => changed.is_ok(),
                () = sleep => true,
                _ = closing.wait_for(|c| *c) => return,
            };
            if !alive {
                break;
            }
            // Definitions come in crowds: one look for all of a moment.
            tokio::time::sleep(pause).await;
            while services.changes.try_recv().is_ok() {}
        }
        tokio::time::sleep(RELIST_PAUSE).await;
    }
}

fn next_look(asked: &BTreeMap<GroupVersion, Asked>) -> Option<Instant> {
    let look = (!asked.is_empty()).then(|| Instant::now() + LOOK_EVERY);
    asked.values().filter_map(|a| a.again).chain(look).min()
}

fn present(api: &Api) -> BTreeMap<String, Value> {
    let all = api.cached_all(&API_SERVICES);
    all.values().filter_map(|o| Some((o.key.name.to_string(), o.value().ok()?))).collect()
}

/// One look at everything.
async fn round(api: &Arc<Api>, client: &ApiClient, asked: &mut BTreeMap<GroupVersion, Asked>) {
    let objects = present(api);
    let steps = decide::steps(&decide::local_services(&api.registry.now()), &objects);
    join_all(steps.into_iter().map(|step| take(client, step))).await;
    let objects = present(api);
    api.metrics.only_services(|name| objects.contains_key(name));
    let local = objects.values().filter(|o| !o["spec"]["service"].is_object());
    join_all(local.map(|o| write(api, client, o, decide::local()))).await;
    route(api, &objects, asked);
    let due: Vec<(GroupVersion, &Value)> = objects
        .values()
        .filter(|o| o["spec"]["service"].is_object())
        .map(|o| (decide::group_version(&o["spec"]), o))
        .filter(|(at, o)| asked.get(at).is_some_and(|a| is_due(api, a, o)))
        .collect();
    let answers = join_all(due.iter().map(|(at, o)| ask(api, client, at, o))).await;
    for ((at, object), available) in due.iter().zip(answers) {
        let Some(entry) = asked.get_mut(at) else { continue };
        entry.seen = revisions(api, object);
        entry.pause = match available {
            true => ASK_EVERY,
            false => (entry.pause * 2).clamp(RETRY_MIN, RETRY_MAX),
        };
        entry.again = Some(Instant::now() + entry.pause);
        if available {
            entry.pause = Duration::ZERO;
        }
    }
}

async fn take(client: &ApiClient, step: Step) {
    let key = |body: &Value| ObjectKey::cluster(body["metadata"]["name"].as_str().unwrap_or_default());
    let done = match step {
        Step::Create(body) => client.create(&API_SERVICES, body).await.map(|_| ()),
        Step::Update(body) => client.update(&API_SERVICES, &key(&body), body).await.map(|_| ()),
        Step::Delete(name) => {
            let key = ObjectKey::cluster(name.as_str());
            client.delete(&API_SERVICES, &key, DeleteOptions::default()).await.map(|_| ())
        }
    };
    if let Err(error) = done {
        // The next change brings another look.
        tracing::debug!(%error, "an APIService was not written");
    }
}

/// The routes as the objects say, with what is known of each server already.
fn route(api: &Api, objects: &BTreeMap<String, Value>, asked: &mut BTreeMap<GroupVersion, Asked>) {
    let before = api.aggregator.now();
    let mut remotes = Remotes::new();
    for object in objects.values() {
        let Some(target) = Target::of(&object["spec"]) else { continue };
        let at = decide::group_version(&object["spec"]);
        let built_in = k8s_schema::resources().iter().any(|r| r.gvr.group == at.0 && r.gvr.version == at.1);
        if (built_in && at.0 != decide::YIELDED) || at.0.is_empty() {
            continue;
        }
        let number = |field: &str| object["spec"][field].as_i64().unwrap_or_default();
        let known = before.get(&at).filter(|r| r.target == target);
        let mut remote = known.map(|r| Remote::clone(r)).unwrap_or(Remote {
            name: String::new(),
            group_priority: 0,
            version_priority: 0,
            target,
            available: false,
            resources: None,
            v2: None,
            v2_tag: String::new(),
            v3: None,
        });
        remote.name = object["metadata"]["name"].as_str().unwrap_or_default().into();
        remote.group_priority = number("groupPriorityMinimum");
        remote.version_priority = number("versionPriority");
        remotes.insert(at, Arc::new(remote));
    }
    asked.retain(|at, _| remotes.contains_key(at));
    for at in remotes.keys() {
        asked.entry(at.clone()).or_default();
    }
    if !(remotes.is_empty() && before.is_empty()) {
        api.aggregator.set(remotes);
    }
}

fn service_key(object: &Value) -> (&str, &str) {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
    (text("/spec/service/namespace"), text("/spec/service/name"))
}

fn revisions(api: &Api, object: &Value) -> [u64; 3] {
    let (namespace, name) = service_key(object);
    let of = |gvr| api.cached(gvr, namespace, name).map_or(0, |o| o.revision);
    let own = object["metadata"]["generation"].as_u64().unwrap_or(0);
    [own, of(&gvr::SERVICES), of(&gvr::ENDPOINTS)]
}

fn is_due(api: &Api, asked: &Asked, object: &Value) -> bool {
    asked.again.is_none_or(|at| at <= Instant::now()) || asked.seen != revisions(api, object)
}

/// Asks one server, writes its condition; is it available?
async fn ask(api: &Arc<Api>, client: &ApiClient, at: &GroupVersion, object: &Value) -> bool {
    let Some(remote) = api.aggregator.now().get(at).cloned() else { return false };
    let target = &remote.target;
    let value = |gvr| api.cached(gvr, &target.namespace, &target.service).and_then(|o| o.value().ok());
    let (service, endpoints) =
        (value(&gvr::SERVICES).unwrap_or_default(), value(&gvr::ENDPOINTS).unwrap_or_default());
    let early = decide::reachable(&target.namespace, &target.service, target.port, &service, &endpoints);
    let outcome = match early {
        Some(failure) => Err(failure),
        None => discover(api, target, at).await,
    };
    let (availability, resources) = match outcome {
        Ok(resources) => (decide::passed(), Some(resources)),
        Err(failure) => (failure, None),
    };
    let available = resources.is_some();
    api.aggregator.edit(at, |r| {
        r.available = available;
        if let Some(resources) = resources
            && r.resources.as_deref() != Some(&resources)
        {
            r.resources = Some(Arc::new(resources));
        }
    });
    write(api, client, object, availability).await;
    if available {
        documents(api, &remote, at).await;
    }
    available
}

async fn discover(api: &Api, target: &Target, at: &GroupVersion) -> Result<Value, Availability> {
    let failed = |why: String| ("False", "FailedDiscoveryCheck", why);
    let path = format!("/apis/{}/{}", at.0, at.1);
    let answer = api.ask_extension(target, &path, "").await.map_err(failed)?;
    if !(200..300).contains(&answer.code) {
        let url = format!("https://{}:{}{path}", target.host(), target.port);
        let code = answer.code;
        return Err(failed(format!("failing or missing response from {url}: bad status from {url}: {code}")));
    }
    Ok(serde_json::from_slice(&answer.body).unwrap_or_else(|_| json!({"resources": []})))
}

/// Fetches the OpenAPI documents; a server without them is fine.
async fn documents(api: &Api, remote: &Remote, at: &GroupVersion) {
    let (target, root) = (&remote.target, format!("/apis/{}/{}", at.0, at.1));
    if let Ok(answer) = api.ask_extension(target, "/openapi/v2", &remote.v2_tag).await
        && answer.code == 200
        && let Ok(document) = serde_json::from_slice::<Value>(&answer.body)
    {
        let part = Arc::new(super::discovery::v2_part(document, &root));
        api.aggregator.edit(at, |r| {
            r.v2_tag = answer.tag;
            if r.v2.as_ref() != Some(&part) {
                r.v2 = Some(part);
            }
        });
    }
    if let Ok(answer) = api.ask_extension(target, "/openapi/v3", "").await
        && answer.code == 200
        && let Ok(index) = serde_json::from_slice::<Value>(&answer.body)
    {
        let url = index["paths"][root.trim_start_matches('/')]["serverRelativeURL"].as_str();
        let own = url.filter(|u| u.starts_with("/openapi/v3/")).map(str::to_string);
        api.aggregator.edit(at, |r| r.v3 = own);
    }
}

async fn write(api: &Arc<Api>, client: &ApiClient, object: &Value, availability: Availability) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    api.metrics.available(name, availability.0 == "True");
    let Some(status) = decide::with_condition(&object["status"], &availability, &api.now_text()) else {
        return;
    };
    let mut body = object.clone();
    body["status"] = status;
    if let Err(error) = client.update_status(&API_SERVICES, &ObjectKey::cluster(name), body).await {
        // A newer version is on its way to us.
        tracing::debug!(name, %error, "an APIService's condition was not written");
    }
}

/// `kube-system/extension-apiserver-authentication`: whom extension servers can trust about callers.
async fn publish_authorities(api: &Arc<Api>, client: &ApiClient) -> Result<(), ApiError> {
    let Some(proxy) = &api.config.front_proxy else { return Ok(()) };
    let key = ObjectKey::new("kube-system", "extension-apiserver-authentication");
    let list = |items: &[&str]| json!(items).to_string();
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
    "metadata": {"name": &*key.name, "namespace": &*key.namespace},
    "data": {
        "client-ca-file": proxy.client_ca_pem,
        "requestheader-client-ca-file": proxy.ca_pem,
        "requestheader-allowed-names": list(&[super::FRONT_PROXY_CLIENT]),
        "requestheader-username-headers": list(&["X-Remote-User"]),
        "requestheader-uid-headers": list(&["X-Remote-Uid"]),
        "requestheader-group-headers": list(&["X-Remote-Group"]),
        "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
    }});
    match api.cached(&gvr::CONFIG_MAPS, &key.namespace, &key.name).and_then(|o| o.value().ok()) {
        Some(present) if present["data"] == body["data"] => Ok(()),
        Some(_) => client.update(&gvr::CONFIG_MAPS, &key, body).await.map(|_| ()),
        None => match client.create(&gvr::CONFIG_MAPS, body).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        },
    }
}

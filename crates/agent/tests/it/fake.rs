//! An API in memory: create, update, merge patch, delete with grace, list and watch with the selectors that the
//! agent uses. No validation.

use async_trait::async_trait;
use client::{
    Client, Event, EventKind, EventStream, ListOptions, Object, ObjectKey, ObjectList, PatchKind, Verb,
    WatchOptions, Write,
};
use k8s_schema::Gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(Gvr, ObjectKey), Value>,
    history: Vec<(Gvr, Event)>,
    uids: u64,
}

/// The API; clones are the same one.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Does it answer nobody?
    pub away: Arc<AtomicBool>,
}

fn object(key: &ObjectKey, revision: u64, value: &Value) -> Arc<Object> {
    Arc::new(Object::new(key.clone(), revision, serde_json::to_vec(value).unwrap().into()))
}

fn selected(options: &ListOptions, key: &ObjectKey, value: &Value) -> bool {
    let field = |path: &str| match path {
        "metadata.name" => key.name.to_string(),
        "spec.nodeName" => value["spec"]["nodeName"].as_str().unwrap_or_default().to_string(),
        other => panic!("field selector {other}"),
    };
    let fields = options.field_selector.split(',').filter(|s| !s.is_empty());
    options.namespace.as_deref().is_none_or(|n| n == &*key.namespace)
        && fields.map(|s| s.split_once('=').unwrap()).all(|(path, wanted)| field(path) == wanted)
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::new(Fake { state: Arc::default(), changed: watch::Sender::new(0), away: Arc::default() })
    }

    fn answers(&self) -> Result<(), ApiError> {
        match self.away.load(Ordering::Relaxed) {
            true => Err(ApiError::new(503, "ServiceUnavailable", "away")),
            false => Ok(()),
        }
    }

    /// The object as JSON; `Null` when there is none.
    pub fn value(&self, gvr: &Gvr, namespace: &str, name: &str) -> Value {
        let key = (gvr.clone(), ObjectKey::new(namespace, name));
        self.state.lock().unwrap().objects.get(&key).cloned().unwrap_or_default()
    }

    /// All objects of a resource.
    pub fn all(&self, gvr: &Gvr) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|((g, _), _)| g == gvr).map(|(_, v)| v.clone()).collect()
    }

    fn store(
        &self,
        state: &mut State,
        (gvr, key): (&Gvr, &ObjectKey),
        mut value: Value,
        kind: EventKind,
    ) -> Arc<Object> {
        state.revision += 1;
        value["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let stored = object(key, state.revision, &value);
        let id = (gvr.clone(), key.clone());
        if kind == EventKind::Deleted {
            state.objects.remove(&id);
        } else {
            state.objects.insert(id, value);
        }
        state.history.push((gvr.clone(), Event { kind, object: stored.clone() }));
        self.changed.send_replace(state.revision);
        stored
    }
}

#[async_trait]
impl Client for Fake {
    async fn get(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.answers()?;
        let state = self.state.lock().unwrap();
        let value = state
            .objects
            .get(&(gvr.clone(), key.clone()))
            .ok_or_else(|| ApiError::not_found(gvr, &key.name))?;
        let revision = value["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        Ok(object(key, revision, value))
    }

    async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError> {
        self.answers()?;
        let state = self.state.lock().unwrap();
        let wanted = state.objects.iter().filter(|((g, k), v)| g == gvr && selected(options, k, v));
        let items = wanted.map(|((_, key), value)| {
            object(key, value["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap(), value)
        });
        Ok(ObjectList { items: items.collect(), revision: state.revision })
    }

    async fn watch(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError> {
        self.answers()?;
        let after = options.after.expect("caches list first");
        let (gvr, options, mut changed) = (gvr.clone(), options.list.clone(), self.changed.subscribe());
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        // The history only grows, so a watcher is a cursor in it.
        let history = {
            let state = self.state.lock().unwrap();
            state.history.iter().position(|(_, e)| e.object.revision > after).unwrap_or(state.history.len())
        };
        let state = self.state.clone();
        tokio::spawn(async move {
            let mut cursor = history;
            loop {
                let fresh: Vec<(Gvr, Event)> = state.lock().unwrap().history[cursor..].to_vec();
                cursor += fresh.len();
                for (of, event) in fresh {
                    let value = event.object.value().unwrap();
                    if of == gvr
                        && selected(&options, &event.object.key, &value)
                        && sender.send(Ok(event)).is_err()
                    {
                        return;
                    }
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        });
        let stream =
            futures_util::stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
        Ok(Box::pin(stream))
    }

    async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError> {
        self.answers()?;
        let mut state = self.state.lock().unwrap();
        let Write { gvr, key, subresource, verb } = write;
        let current = state.objects.get(&(gvr.clone(), key.clone())).cloned();
        if let Verb::Create(mut body) = verb {
            if subresource == "token" {
                body["status"] = json!({"token": "t0ken", "expirationTimestamp": "2999-01-01T00:00:00Z"});
                return Ok(object(&key, state.revision, &body));
            }
            if current.is_some() {
                return Err(ApiError::already_exists(&gvr, &key.name));
            }
            state.uids += 1;
            body["metadata"]["uid"] = json!(format!("uid-{}-{}", std::process::id(), state.uids));
            body["metadata"]["generation"] = json!(1);
            return Ok(self.store(&mut state, (&gvr, &key), body, EventKind::Added));
        }
        let mut current = current.ok_or_else(|| ApiError::not_found(&gvr, &key.name))?;
        match verb {
            Verb::Update(body) => {
                let sent = &body["metadata"]["resourceVersion"];
                if sent.is_string() && *sent != current["metadata"]["resourceVersion"] {
                    return Err(ApiError::conflict(&gvr, &key.name, ApiError::MODIFIED));
                }
                if subresource == "status" {
                    current["status"] = body["status"].clone();
                } else {
                    current = body;
                }
            }
            Verb::Patch(kind, patch) => {
                assert_eq!(kind, PatchKind::Merge);
                merge(&mut current, &patch);
            }
            Verb::Delete(options) => {
                if options.uid.is_some_and(|uid| current["metadata"]["uid"] != uid) {
                    return Err(ApiError::conflict(&gvr, &key.name, "the UID differs"));
                }
                let grace = options
                    .grace_period_seconds
                    .or(current["spec"]["terminationGracePeriodSeconds"].as_i64());
                let grace = if gvr.resource == "pods" { grace.unwrap_or(30) } else { 0 };
                if grace == 0 {
                    return Ok(self.store(&mut state, (&gvr, &key), current, EventKind::Deleted));
                }
                current["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                current["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            Verb::Create(_) => unreachable!(),
        }
        Ok(self.store(&mut state, (&gvr, &key), current, EventKind::Modified))
    }
}

//! The client of components in this process: shared objects, no JSON on reads, no TLS.
//!
//! Its identity goes through the same authorizer, admission and verbs as a caller over HTTP.

use crate::Api;
use crate::aggregation::Remote;
use crate::authz::Attributes;
use crate::http::proxy::with_query;
use crate::owners;
use crate::resources::Resource;
use crate::rules;
use crate::select::Selection;
use crate::storage::unstored;
use crate::subresources::scale;
use crate::verbs::list::{Freshness, Paging};
use crate::verbs::{Call, WriteOptions, no_such_resource, verb_name};
use crate::watch::{Start, Watcher};
use async_trait::async_trait;
use auth::Identity;
use client::metrics::Calls;
use client::remote::percent_encoded;
use client::{
    Client, Event, EventKind, EventStream, ListOptions, Object, ObjectKey, ObjectList, Verb, WatchOptions,
    Write,
};
use futures_util::stream;
use k8s_schema::Gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// What figures call the server that is asked.
const HOST: &str = "in-process";

/// One component's door.
pub struct InProcess {
    api: Arc<Api>,
    identity: Arc<Identity>,
    /// Its name as a field manager.
    manager: String,
    calls: Calls,
}

impl InProcess {
    /// A door for `identity`.
    pub fn new(api: Arc<Api>, identity: Identity) -> Self {
        let manager = owners::of_component(&identity.user);
        InProcess { api, identity: Arc::new(identity), manager, calls: Calls::new(HOST) }
    }

    /// Takes calls pinned: as values they are kilobytes, and would be copied and held twice.
    async fn counted<T>(
        &self,
        method: &'static str,
        call: Pin<&mut impl Future<Output = Result<T, ApiError>>>,
    ) -> Result<T, ApiError> {
        let begun = Instant::now();
        let answer = call.await;
        self.calls.done(method, answer.as_ref().map_or_else(|error| error.code, |_| 200), begun.elapsed());
        answer
    }

    fn call(&self, gvr: &Gvr, key: ObjectKey, subresource: &str) -> Result<Call, ApiError> {
        let resource = self.api.registry.find(gvr).ok_or_else(no_such_resource)?;
        Ok(Call {
            identity: self.identity.clone(),
            resource,
            key,
            subresource: subresource.to_string(),
            options: WriteOptions { manager: self.manager.clone(), ..WriteOptions::default() },
        })
    }

    async fn authorized(&self, verb: &str, call: &Call) -> Result<(), ApiError> {
        self.allowed(call.attributes(verb)).await
    }

    /// A refused component is a gap in its role, which nobody else would notice.
    async fn allowed(&self, attributes: Attributes) -> Result<(), ApiError> {
        let answer = self.api.authorize(&self.identity, &attributes).await;
        if let Err(error) = &answer {
            tracing::warn!(%error, "a component of this process was refused");
        }
        answer
    }

    /// Authorizes and parses what a list or watch is about.
    async fn selection(&self, verb: &str, gvr: &Gvr, options: &ListOptions) -> Result<Selection, ApiError> {
        let namespace = options.namespace.as_deref();
        let call = self.call(gvr, ObjectKey::new(namespace.unwrap_or_default(), ""), "")?;
        let attributes = call.attributes(verb).selecting(&options.field_selector, &options.label_selector);
        self.allowed(attributes).await?;
        Selection::parse(&call.resource, namespace, &options.label_selector, &options.field_selector)
    }
}

#[async_trait]
impl Client for InProcess {
    async fn get(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.counted("GET", pin!(self.read(gvr, key))).await
    }

    async fn scale(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.counted("GET", pin!(self.read_scale(gvr, key))).await
    }

    async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError> {
        self.counted("GET", pin!(self.read_all(gvr, options))).await
    }

    async fn watch(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError> {
        self.counted("GET", pin!(self.follow(gvr, options))).await
    }

    async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError> {
        let method = match &write.verb {
            Verb::Create(_) => "POST",
            Verb::Update(_) => "PUT",
            Verb::Patch(..) => "PATCH",
            Verb::Delete(_) => "DELETE",
        };
        self.counted(method, pin!(self.put(write))).await
    }
}

impl InProcess {
    async fn read(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        if let Some(remote) = self.elsewhere(gvr) {
            let attributes = foreign(gvr, "get", key);
            self.allowed(attributes).await?;
            let path = format!("{}/{}", collection(gvr, &key.namespace), key.name);
            let body = self.api.ask_remote(&self.identity, &remote, &path).await?;
            return Ok(unstored(key, 0, body));
        }
        let call = self.call(gvr, key.clone(), "")?;
        self.authorized("get", &call).await?;
        let object = self.api.get(&call, Freshness::Current).await?;
        rules::serve(&call.resource, &object)
    }

    async fn read_scale(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        let call = self.call(gvr, key.clone(), "scale")?;
        if !call.resource.has_subresource("scale") {
            return Err(ApiError::not_found(gvr, &key.name));
        }
        self.authorized("get", &call).await?;
        let object = self.api.get(&call, Freshness::Current).await?;
        scale::read(&call.resource, &object)
    }

    async fn read_all(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError> {
        let version = self.api.figures_elsewhere(&gvr.group);
        let exact = self.elsewhere(gvr).is_some();
        let other = version.filter(|_| !exact).map(|v| Gvr { version: v.into(), ..gvr.clone() });
        let gvr = other.as_ref().unwrap_or(gvr);
        if let Some(remote) = self.elsewhere(gvr) {
            return self.list_elsewhere(&remote, gvr, options).await;
        }
        if self.api.serves_figures(&gvr.group, &gvr.version) {
            let place = ObjectKey::new(options.namespace.as_deref().unwrap_or_default(), "");
            self.allowed(foreign(gvr, "list", &place)).await?;
            return self.api.list_figures(gvr, options).await;
        }
        let selection = self.selection("list", gvr, options).await?;
        let page = self.api.list(&selection, &Paging::default()).await?;
        let items =
            page.items.iter().map(|o| rules::serve(&selection.resource, o)).collect::<Result<_, _>>()?;
        Ok(ObjectList { items, revision: page.revision })
    }

    async fn follow(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError> {
        let selection = self.selection("watch", gvr, &options.list).await?;
        let start = options.after.map_or(Start::Current, Start::After);
        if options.after.is_none() {
            self.api.storage.cache.wait_fresh().await?;
        }
        let resource = selection.resource.clone();
        let mut watcher = Watcher::start(&self.api.storage.cache, selection, start).await?;
        watcher.convert_initial(&self.api).await?;
        let feed = Feed {
            api: self.api.clone(),
            watcher,
            resource,
            mark: options.after.is_none(),
            closing: self.api.closing(),
            done: false,
        };
        Ok(Box::pin(stream::unfold(feed, |mut feed| async move {
            let event = feed.next().await?;
            Some((event, feed))
        })))
    }

    async fn put(&self, write: Write) -> Result<Arc<Object>, ApiError> {
        let call = self.call(&write.gvr, write.key, write.subresource)?;
        let attributes = call.attributes(verb_name(&write.verb));
        let body = match (&self.api.audit, &write.verb) {
            (None, _) | (_, Verb::Delete(_)) => None,
            (_, Verb::Create(body) | Verb::Update(body) | Verb::Patch(_, body)) => Some(body.clone()),
        };
        let done = self.write_allowed(call, write.verb).await;
        if let Some(audit) = &self.api.audit {
            audit.component(&self.identity, &attributes, body.as_ref(), done.as_ref().map(|_| 200)).await;
        }
        done
    }
}

/// What the authorizer is asked about a resource of another server.
fn foreign(gvr: &Gvr, verb: &str, key: &ObjectKey) -> Attributes {
    Attributes {
        verb: verb.into(),
        group: gvr.group.to_string(),
        version: gvr.version.to_string(),
        resource: gvr.resource.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ..Attributes::default()
    }
}

fn collection(gvr: &Gvr, namespace: &str) -> String {
    let place = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    format!("/apis/{}/{}{place}/{}", gvr.group, gvr.version, gvr.resource)
}

impl InProcess {
    /// The server that answers this group version, if another does. Only reads go there.
    fn elsewhere(&self, gvr: &Gvr) -> Option<Arc<Remote>> {
        self.api.aggregator.now().get(&(gvr.group.to_string(), gvr.version.to_string())).cloned()
    }

    /// A list of another server's: of objects, or of values such as custom metrics, which have no names.
    async fn list_elsewhere(
        &self,
        remote: &Remote,
        gvr: &Gvr,
        options: &ListOptions,
    ) -> Result<ObjectList, ApiError> {
        let namespace = options.namespace.as_deref().unwrap_or_default();
        self.allowed(foreign(gvr, "list", &ObjectKey::new(namespace, ""))).await?;
        let selectors =
            [("labelSelector", &options.label_selector), ("fieldSelector", &options.field_selector)];
        let query: Vec<String> = selectors
            .iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| format!("{key}={}", percent_encoded(text)))
            .collect();
        let path = collection(gvr, namespace);
        let query = path.split_once('?').map(|(_, q)| q.to_string()).into_iter().chain(query);
        let query = query.collect::<Vec<_>>().join("&");
        let path = with_query(path.split('?').next().unwrap_or_default(), Some(&query));
        let mut list = self.api.ask_remote(&self.identity, remote, &path).await?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let revision = text(&list["metadata"]["resourceVersion"]).parse().unwrap_or(0);
        let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let object = |item: Value| {
            let metadata = &item["metadata"];
            unstored(&ObjectKey::new(text(&metadata["namespace"]), text(&metadata["name"])), 0, item)
        };
        Ok(ObjectList { items: items.into_iter().map(object).collect(), revision })
    }

    async fn write_allowed(&self, call: Call, verb: Verb) -> Result<Arc<Object>, ApiError> {
        self.authorized(verb_name(&verb), &call).await?;
        if let Verb::Create(body) = &verb
            && let Some(answer) = self.api.review(&call, body).await?
        {
            return Ok(unstored(&call.key, 0, answer));
        }
        Ok(self.api.write(call, verb).await?.object)
    }
}

struct Feed {
    api: Arc<Api>,
    watcher: Watcher,
    resource: Arc<Resource>,
    /// A bookmark is owed at the end of the initial objects.
    mark: bool,
    closing: watch::Receiver<bool>,
    done: bool,
}

impl Feed {
    async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        if self.done {
            return None;
        }
        loop {
            if self.mark && self.watcher.initial_left() == 0 {
                self.mark = false;
                return Some(Ok(bookmark(self.watcher.initial_revision())));
            }
            let seen = tokio::select! {
                biased;
                seen = self.watcher.next() => seen,
                _ = self.closing.wait_for(|c| *c) => return None,
            };
            let seen = match seen {
                Ok(None) => return None,
                Ok(Some(seen)) => self.api.seen_in_served(&self.resource, self.watcher.late(), seen).await,
                Err(error) => Err(error),
            };
            let event = match seen {
                Ok(None) => continue,
                Ok(Some(s)) => {
                    rules::serve(&self.resource, &s.object).map(|object| Event { kind: s.kind, object })
                }
                Err(error) => Err(error),
            };
            self.done = event.is_err();
            return Some(event);
        }
    }
}

fn bookmark(revision: u64) -> Event {
    let raw = json!({"metadata": {"resourceVersion": revision.to_string()}}).to_string();
    Event {
        kind: EventKind::Bookmark,
        object: Arc::new(Object::new(ObjectKey::cluster(""), revision, raw.into())),
    }
}

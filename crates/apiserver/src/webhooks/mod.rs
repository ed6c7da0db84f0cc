//! Webhooks: programs outside that change, or object to, what is written; and the client that calls them.
//!
//! A [`Request`] is what they are asked about. [`matching`] says who is asked, [`review`] what exactly and what an
//! answer means, [`dispatch`] asks. Nothing is paid where nobody has registered.
//! Invariant: webhooks are never asked about the objects that register webhooks and policies, so that nobody can lock
//! everybody out.

pub mod client;
pub mod conditions;
mod dispatch;
pub mod matching;
mod review;

pub use dispatch::{Rounds, mutate, validate};

use crate::Api;
use crate::custom::convert::Webhook as Converter;
use crate::resources::Resource;
use crate::verbs::Call;
use ::client::ObjectKey;
use client::Connections;
use conditions::Conditions;
use k8s_schema::Gvr;
use machinery::status::ApiError;
use matching::{Matcher, Subject};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: Gvr = Gvr::new(GROUP, "v1", "mutatingwebhookconfigurations");
const VALIDATING: Gvr = Gvr::new(GROUP, "v1", "validatingwebhookconfigurations");
/// As upstream's default, where the configuration leaves it out.
const TIMEOUT_SECONDS: u64 = 10;

/// One registered webhook, read.
pub struct Hook {
    /// Its configuration's name, with its own: unique.
    id: String,
    name: String,
    matcher: Result<Matcher, String>,
    conditions: Conditions,
    client: Value,
    /// Does a failed call fail the request?
    fails: bool,
    timeout: Duration,
    /// May it be asked about dry runs?
    dry_run: bool,
    /// The review version that is sent; `None`: it knows none of ours.
    version: Option<&'static str>,
    /// Is it asked again when others changed the object after it?
    reinvoked: bool,
}

impl Hook {
    fn read(configuration: &str, hook: &Value) -> Hook {
        let name = hook["name"].as_str().unwrap_or_default().to_string();
        let versions = hook["admissionReviewVersions"].as_array();
        let known = |v: &Value| ["v1", "v1beta1"].into_iter().find(|k| v == k);
        Hook {
            id: format!("{configuration}/{name}"),
            matcher: Matcher::read(hook),
            conditions: Conditions::read(&hook["matchConditions"], &conditions::environment()),
            client: hook["clientConfig"].clone(),
            fails: hook["failurePolicy"] != "Ignore",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS)),
            dry_run: matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            version: versions.into_iter().flatten().find_map(known),
            reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            name,
        }
    }
}

type Hooks = Arc<[Arc<Hook>]>;
/// Kind (`mutating`, `validating`) and name.
type Configuration = (&'static str, Arc<str>);

/// What a server keeps about webhooks.
#[derive(Default)]
pub struct Webhooks {
    pub(crate) connections: Connections,
    /// By configuration: its revision and its webhooks.
    read: Mutex<BTreeMap<Configuration, (u64, Hooks)>>,
}

impl Webhooks {
    /// The webhooks of all configurations of a kind, in the order in which they are asked.
    fn all(&self, api: &Api, gvr: &Gvr, kind: &'static str) -> Vec<Arc<Hook>> {
        let configurations = api.cached_all(gvr);
        if configurations.is_empty() {
            return Vec::new();
        }
        let mut read = self.read.lock();
        read.retain(|(k, name), _| *k != kind || configurations.values().any(|c| c.key.name == *name));
        let mut all = Vec::new();
        for object in configurations.values() {
            let kept = read.entry((kind, object.key.name.clone())).or_insert_with(|| (0, Arc::new([])));
            if kept.0 != object.revision {
                let value = object.value().unwrap_or_default();
                let hooks = value["webhooks"].as_array().into_iter().flatten();
                *kept = (object.revision, hooks.map(|h| Arc::new(Hook::read(&object.key.name, h))).collect());
            }
            all.extend(kept.1.iter().cloned());
        }
        all
    }
}

/// What a request's documents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// The resource's own objects, in the stored version.
    Stored,
    /// Something else, of the subresource's kind, sent as it is.
    Own,
}

/// One request under admission, as programs outside are told of it.
pub struct Request<'a> {
    /// The server.
    pub api: &'a Api,
    /// Who, what resource, which subresource.
    pub call: &'a Call,
    /// The object.
    pub key: &'a ObjectKey,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'static str,
    /// What the documents are.
    pub document: Document,
    /// The object before, if there was one.
    pub old: Option<&'a Value>,
    /// Documents in other versions, where a webhook converts.
    pub others: Others,
}

/// Documents with what a conversion webhook made of them in another version.
#[derive(Default)]
pub struct Others(Mutex<Vec<(Gvr, Value, Value)>>);

impl Request<'_> {
    /// The namespace as webhooks are told it: a Namespace's is itself.
    pub fn namespace(&self) -> &str {
        if self.call.resource.is("", "namespaces") { &self.key.name } else { &self.key.namespace }
    }

    /// Are webhooks and policies not asked about this?
    pub fn is_exempt(&self) -> bool {
        const PARTS: [&str; 6] = [
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        ];
        let resource = &self.call.resource;
        (resource.group() == GROUP && PARTS.contains(&resource.name()))
            // Answers of the server itself, which nothing is written of.
            || matches!(resource.group(), "authentication.k8s.io" | "authorization.k8s.io") && !resource.offers("get")
    }

    /// The resource in the request's version, then in all others that it is served in.
    pub fn forms(&self) -> Vec<Arc<Resource>> {
        let own = &self.call.resource;
        let sub = self.call.subresource.as_str();
        let mut forms = vec![own.clone()];
        let now = self.api.registry.now();
        let others = now.all().filter(|r| {
            r.prefix == own.prefix && r.gvr() != own.gvr() && (sub.is_empty() || r.has_subresource(sub))
        });
        forms.extend(others.cloned());
        forms
    }

    /// A form as rules see it.
    pub fn subject<'r>(&'r self, form: &'r Resource) -> Subject<'r> {
        let gvr = form.gvr();
        Subject {
            operation: self.operation,
            group: &gvr.group,
            version: &gvr.version,
            resource: &gvr.resource,
            subresource: &self.call.subresource,
            namespaced: !self.key.namespace.is_empty(),
            name: &self.key.name,
        }
    }

    /// Group, version, kind of the documents in a form.
    pub fn kind<'r>(&self, form: &'r Resource) -> (&'r str, &'r str, &'r str) {
        let row = &*form.row;
        let sub = row.subresources.iter().find(|s| *s.name == *self.call.subresource);
        match sub.filter(|_| self.document == Document::Own) {
            Some(sub) => (&sub.gvk.0, &sub.gvk.1, &sub.gvk.2),
            None => (&row.gvr.group, &row.gvr.version, &row.kind),
        }
    }

    /// Is this what the matcher is about? Then in which form; an error where that cannot be told.
    pub fn matched(
        &self,
        matcher: &Matcher,
        forms: &[Arc<Resource>],
        object: Option<&Value>,
    ) -> Result<Option<Arc<Resource>>, ApiError> {
        let subjects: Vec<Subject<'_>> = forms.iter().map(|f| self.subject(f)).collect();
        let Some(found) = matcher.form(&subjects) else { return Ok(None) };
        if !matcher.selects_object([object, self.old]) || !self.in_namespace(matcher, object)? {
            return Ok(None);
        }
        Ok(forms.get(found).cloned())
    }

    /// Is this what a binding is about? One without rules narrows its policy by selectors only.
    pub fn bound(
        &self,
        matcher: &Matcher,
        forms: &[Arc<Resource>],
        object: Option<&Value>,
    ) -> Result<bool, ApiError> {
        if matcher.has_rules() {
            return Ok(self.matched(matcher, forms, object)?.is_some());
        }
        let subjects: Vec<Subject<'_>> = forms.iter().map(|f| self.subject(f)).collect();
        Ok(!matcher.excludes(&subjects)
            && matcher.selects_object([object, self.old])
            && self.in_namespace(matcher, object)?)
    }

    fn in_namespace(&self, matcher: &Matcher, object: Option<&Value>) -> Result<bool, ApiError> {
        if !matcher.minds_namespace() {
            return Ok(true);
        }
        if self.call.resource.is("", "namespaces") && self.call.subresource.is_empty() {
            let labels = object.or(self.old).and_then(|o| o["metadata"].get("labels"));
            return Ok(matcher.selects_namespace(labels));
        }
        let name = self.namespace();
        if name.is_empty() {
            return Ok(true);
        }
        let namespace = self.api.cached(&k8s_schema::gvr::NAMESPACES, "", name);
        let namespace = namespace.ok_or_else(|| ApiError::not_found(&k8s_schema::gvr::NAMESPACES, name))?;
        let value = namespace.value().map_err(ApiError::internal)?;
        Ok(matcher.selects_namespace(value["metadata"].get("labels")))
    }

    /// The webhook that converts between the request's version and a form.
    fn converter(&self, form: &Resource) -> Option<&Converter> {
        let own = &self.call.resource;
        own.webhook().filter(|_| self.document == Document::Stored && own.gvr() != form.gvr())
    }

    /// Converts the documents to a form where a webhook does that, so that they can be [`Request::shown`] in it.
    pub async fn settle(&self, form: &Resource, object: Option<&Value>) -> Result<(), ApiError> {
        let Some(converter) = self.converter(form) else { return Ok(()) };
        let known =
            |d: &Value| self.others.0.lock().iter().any(|(gvr, from, _)| gvr == form.gvr() && from == d);
        let new: Vec<Value> =
            [object, self.old].into_iter().flatten().filter(|d| !known(d)).cloned().collect();
        let made = converter.convert(self.api, &form.row.api_version(), new.clone()).await?;
        let pairs = new.into_iter().zip(made).map(|(from, to)| (form.gvr().clone(), from, to));
        self.others.0.lock().extend(pairs);
        Ok(())
    }

    /// A document in a form, as it is sent.
    pub fn shown(&self, form: &Resource, document: &Value) -> Value {
        if self.document == Document::Own {
            return document.clone();
        }
        let others = self.others.0.lock();
        let other = others.iter().find(|(gvr, from, _)| gvr == form.gvr() && from == document);
        crate::rules::to_served(form, other.map_or(document, |(.., to)| to).clone())
    }

    /// A document of a form, read from a changed one, in the request's version.
    pub async fn back(&self, form: &Resource, document: Value) -> Result<Value, ApiError> {
        let Some(converter) = self.converter(form) else { return Ok(document) };
        let own = self.call.resource.row.api_version();
        let mut made = converter.convert(self.api, &own, vec![document]).await?;
        made.pop().ok_or_else(|| ApiError::internal("a conversion lost its object"))
    }

    /// The options of the request as an object.
    pub fn options(&self) -> Value {
        let kind = match self.operation {
            "CREATE" => "CreateOptions",
            "UPDATE" => "UpdateOptions",
            "DELETE" => "DeleteOptions",
            _ => return Value::Null,
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        let given = &self.call.options;
        if given.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !given.manager.is_empty() && kind != "DeleteOptions" {
            options["fieldManager"] = json!(given.manager);
        }
        options
    }
}

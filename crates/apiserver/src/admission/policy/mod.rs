//! Admission policies: rules in CEL that are objects, bound to what they are about by other objects.
//!
//! [`validating`] judges, [`mutating`] changes. Here is what both share: which policy and binding are about a request,
//! with which parameters. [`check`] refuses objects whose expressions do not compile, [`types`] tells what they confuse.

pub mod check;
pub mod mutating;
pub mod types;
pub mod validating;

use crate::Api;
use crate::metrics::expressions::compile;
use crate::resources::Resource;
use crate::rules;
use crate::webhooks::Request;
use crate::webhooks::conditions::{Conditions, Facts, environment};
use crate::webhooks::matching::Matcher;
use client::Object;
use k8s_schema::{Gvr, gvr};
use machinery::cel::{Env, Program, Type, Value};
use machinery::kinds::get::{list, text};
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::sync::Arc;

const GROUP: &str = "admissionregistration.k8s.io";

/// A compiled expression with its text.
pub struct Expression {
    /// As written.
    pub text: String,
    /// What it compiled to, or why it did not.
    pub program: Result<Arc<Program>, String>,
}

impl Expression {
    /// Compiles.
    pub fn read(text: &str, env: &Env) -> Expression {
        let program = compile(env, text).map(Arc::new).map_err(|e| e.to_string());
        Expression { text: text.to_string(), program }
    }

    /// Evaluates; the error is a sentence.
    pub fn eval(&self, facts: &Facts) -> Result<Value, String> {
        let program = self.program.as_ref().map_err(|why| format!("compilation error: {why}"))?;
        facts
            .eval(program)
            .map_err(|error| format!("expression '{}' resulted in error: {error}", self.text.trim()))
    }
}

/// What every policy has.
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    matcher: Result<Matcher, String>,
    conditions: Conditions,
    variables: Vec<(String, Arc<Program>)>,
    /// Kind of its parameters: API version and kind; empty for none.
    param_kind: Option<(String, String)>,
    /// Does a failure refuse the request?
    pub fails: bool,
    /// Does it want to see what others change after it?
    pub reinvoked: bool,
    /// What this kind of policy does, compiled with the variables.
    pub body: Body,
}

/// What a policy does.
pub enum Body {
    /// Judges.
    Validations(Vec<validating::Validation>, Vec<validating::Note>),
    /// Changes.
    Mutations(Vec<mutating::Mutation>),
}

/// A named expression: its name (`variables.x`), and what it compiled to or why it did not.
pub type Variable = (String, Result<Arc<Program>, String>);

/// The variables of a policy's expressions; with its own as far as they compile, and why the others do not.
pub fn policy_environment(spec: &Json) -> (Env, Vec<Variable>) {
    let mut env = environment().var("namespaceObject", Type::Dyn);
    if !spec["paramKind"].is_null() {
        env = env.var("params", Type::Dyn);
    }
    let mut variables = Vec::new();
    for variable in list(spec, "/variables") {
        let name = format!("variables.{}", text(variable, "/name"));
        let program = compile(&env, text(variable, "/expression")).map(Arc::new).map_err(|e| e.to_string());
        let ty = program.as_ref().map_or(Type::Dyn, |p| p.output().clone());
        env = env.var(&name, ty);
        variables.push((name, program));
    }
    (env, variables)
}

impl Policy {
    fn read(object: &Object) -> Policy {
        let value = object.value().unwrap_or_default();
        let spec = &value["spec"];
        let (env, variables) = policy_environment(spec);
        let mut plain = environment().var("namespaceObject", Type::Dyn);
        let kind = &spec["paramKind"];
        let param_kind =
            kind.is_object().then(|| (text(kind, "/apiVersion").into(), text(kind, "/kind").into()));
        if param_kind.is_some() {
            plain = plain.var("params", Type::Dyn);
        }
        let body = match list(spec, "/mutations") {
            [] => Body::Validations(
                validating::Validation::read_all(spec, &env),
                validating::Note::read_all(&object.key.name, spec, &env),
            ),
            mutations => Body::Mutations(mutating::Mutation::read_all(mutations, &env)),
        };
        Policy {
            name: object.key.name.clone(),
            matcher: Matcher::read(&spec["matchConstraints"]),
            conditions: Conditions::read(&spec["matchConditions"], &plain),
            variables: variables.into_iter().filter_map(|(name, p)| Some((name, p.ok()?))).collect(),
            param_kind,
            fails: spec["failurePolicy"] != "Ignore",
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
            body,
        }
    }
}

/// A binding.
pub struct Binding {
    /// Its name.
    pub name: Arc<str>,
    policy: String,
    matcher: Option<Result<Matcher, String>>,
    params: Json,
    /// `Deny`, `Warn`, `Audit`.
    pub actions: Vec<String>,
}

impl Binding {
    /// What it does about a failure, for the figures: the strongest of its actions.
    pub fn enforces(&self) -> &'static str {
        let has = |action: &str| self.actions.iter().any(|a| a == action);
        let known = [("Deny", "deny"), ("Warn", "warn"), ("Audit", "audit")];
        known.into_iter().find(|(action, _)| has(action)).map_or("allow", |(_, name)| name)
    }

    fn read(object: &Object) -> Binding {
        let value = object.value().unwrap_or_default();
        let spec = &value["spec"];
        let actions = list(spec, "/validationActions").iter().filter_map(Json::as_str);
        Binding {
            name: object.key.name.clone(),
            policy: text(spec, "/policyName").to_string(),
            matcher: spec["matchResources"].is_object().then(|| Matcher::read(&spec["matchResources"])),
            params: spec["paramRef"].clone(),
            actions: actions.map(str::to_string).collect(),
        }
    }
}

type Kept<T> = Mutex<BTreeMap<(&'static str, Arc<str>), (u64, Arc<T>)>>;

/// Compiled policies and bindings, by kind and name, with their revisions.
#[derive(Default)]
pub struct Policies {
    policies: Kept<Policy>,
    bindings: Kept<Binding>,
}

/// The objects of a kind, read; each revision once.
fn read_all<T>(
    api: &Api,
    gvr: &Gvr,
    kind: &'static str,
    kept: &Kept<T>,
    read: fn(&Object) -> T,
) -> Vec<Arc<T>> {
    let objects = api.cached_all(gvr);
    let mut kept = kept.lock();
    if objects.is_empty() {
        kept.retain(|(k, _), _| *k != kind);
        return Vec::new();
    }
    kept.retain(|(k, name), _| *k != kind || objects.values().any(|o| o.key.name == *name));
    let mut all = Vec::new();
    for object in objects.values() {
        let key = (kind, object.key.name.clone());
        let known = kept.get(&key).filter(|(revision, _)| *revision == object.revision);
        let read = known.map_or_else(|| Arc::new(read(object)), |(_, known)| known.clone());
        kept.insert(key, (object.revision, read.clone()));
        all.push(read);
    }
    all
}

/// A policy and a binding that are about a request, in the form that it is about, with what to do for each parameter.
pub struct Applicable {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The binding.
    pub binding: Arc<Binding>,
    /// The form.
    pub form: Arc<Resource>,
}

/// Which policies of a kind (`validating`, `mutating`) are about the request, by which bindings.
pub async fn applicable(
    request: &Request<'_>,
    kind: &'static str,
    object: Option<&Json>,
) -> Result<Vec<Applicable>, ApiError> {
    let api = request.api;
    let gvr = |what: &str| Gvr {
        group: GROUP.into(),
        version: "v1".into(),
        resource: format!("{kind}admissionpolic{what}").into(),
    };
    let policies = read_all(api, &gvr("ies"), kind, &api.policies.policies, Policy::read);
    if policies.is_empty() || request.is_exempt() {
        return Ok(Vec::new());
    }
    let bindings = read_all(api, &gvr("ybindings"), kind, &api.policies.bindings, Binding::read);
    let forms = request.forms();
    let mut found = Vec::new();
    for policy in policies {
        let matcher = policy.matcher.as_ref().map_err(ApiError::internal)?;
        let Some(form) = request.matched(matcher, &forms, object)? else { continue };
        request.settle(&form, object).await?;
        for binding in bindings.iter().filter(|b| *b.policy == *policy.name) {
            let bound = match &binding.matcher {
                None => true,
                Some(matcher) => {
                    request.bound(matcher.as_ref().map_err(ApiError::internal)?, &forms, object)?
                }
            };
            if bound {
                found.push(Applicable {
                    policy: policy.clone(),
                    binding: binding.clone(),
                    form: form.clone(),
                });
            }
        }
    }
    Ok(found)
}

impl Applicable {
    /// The facts of the request for each parameter of the binding: one set where there are no parameters, none where
    /// the match conditions say so. The error is a sentence, to be met with the failure policy.
    pub fn facts(&self, request: &Request<'_>, object: Option<&Json>) -> Result<Vec<Facts>, String> {
        let params = self.params(request)?;
        let mut all = Vec::new();
        for param in params {
            let mut facts = Facts::of(request, &self.form, object);
            facts.put("namespaceObject", namespace_object(request));
            facts.put("params", param);
            if !self.policy.conditions.hold(&facts)? {
                continue;
            }
            facts.name(self.policy.variables.clone());
            all.push(facts);
        }
        Ok(all)
    }

    fn params(&self, request: &Request<'_>) -> Result<Vec<Value>, String> {
        let reference = &self.binding.params;
        let (Some((version, kind)), true) = (&self.policy.param_kind, reference.is_object()) else {
            return Ok(vec![Value::Null]);
        };
        let configured = |why: &str| format!("failed to configure binding: {why}");
        let now = request.api.registry.now();
        let resource =
            now.all().find(|r| r.row.api_version() == *version && *r.row.kind == **kind && r.offers("get"));
        let resource = resource
            .ok_or_else(|| configured(&format!("paramKind kind `{version}, Kind={kind}` not known")))?;
        let namespace = match (resource.row.namespaced, text(reference, "/namespace"), request.namespace()) {
            (false, "", _) => "",
            (false, ..) => {
                return Err(configured(
                    "paramRef.namespace must not be provided for a cluster-scoped `paramKind`",
                ));
            }
            (true, "", "") => {
                return Err(configured(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources",
                ));
            }
            (true, "", own) => own,
            (true, given, _) => given,
        };
        let cache = &request.api.storage.cache;
        let found: Vec<Arc<Object>> = match text(reference, "/name") {
            "" => {
                let selector = LabelSelector::from_json(reference.get("selector"))
                    .map_err(|e| configured(&e.to_string()))?;
                let all = cache.snapshot(&resource.prefix).objects;
                let own = all.values().filter(|o| *o.key.namespace == *namespace);
                own.filter(|o| selector.matches(&o.meta().labels)).cloned().collect()
            }
            name => cache.get(&resource.prefix, &resource.suffix(namespace, name)).into_iter().collect(),
        };
        if found.is_empty() {
            return match text(reference, "/parameterNotFoundAction") {
                "Allow" => Ok(Vec::new()),
                _ => {
                    Err(configured("no params found for policy binding with `Deny` parameterNotFoundAction"))
                }
            };
        }
        let shown = |o: &Arc<Object>| Ok(Value::from_json(&rules::to_served(resource, o.value()?)));
        let shown: Result<Vec<Value>, serde_json::Error> = found.iter().map(shown).collect();
        shown.map_err(|e| configured(&e.to_string()))
    }
}

/// The namespace of the object as expressions see it; null for objects without one.
fn namespace_object(request: &Request<'_>) -> Value {
    if request.key.namespace.is_empty() {
        return Value::Null;
    }
    let namespace = request.api.cached(&gvr::NAMESPACES, "", &request.key.namespace);
    namespace.and_then(|n| n.value().ok()).map_or(Value::Null, |n| Value::from_json(&n))
}

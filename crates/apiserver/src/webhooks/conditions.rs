//! CEL over requests: the variables that match conditions and admission policies may use, and match conditions.

use super::{Request, review};
use crate::authz::{Attributes, Authorizer, Decision};
use crate::metrics::expressions::{compile, evaluated};
use crate::resources::Resource;
use auth::Identity;
use machinery::cel::{
    Authority, Budget, Env, EvalError, Inquiry, Program, Scope, Type, Value, authorizer, request_resource,
};
use serde_json::Value as Json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables that hold documents.
const DOCUMENTS: [&str; 3] = ["object", "oldObject", "request"];

/// The variables of every expression about a request.
pub fn environment() -> Env {
    let env = DOCUMENTS.into_iter().fold(Env::new(), |env, name| env.var(name, Type::Dyn));
    env.var("authorizer", Type::read("authorizer"))
        .var("authorizer.requestResource", Type::read("resourcecheck"))
}

/// The values of the variables for one request, and what expressions named before them came to.
pub struct Facts {
    values: BTreeMap<&'static str, Value>,
    /// `variables.x`: evaluated when first asked for.
    lazy: Vec<(String, Arc<Program>)>,
    known: RefCell<BTreeMap<String, Result<Value, EvalError>>>,
    budget: RefCell<Budget>,
}

impl Facts {
    /// The facts of a request about `object`, in a form.
    pub fn of(request: &Request<'_>, form: &Resource, object: Option<&Json>) -> Facts {
        let review = review::review(request, form, "v1", "", object);
        let mut asked = review["request"].clone();
        let mut values = BTreeMap::new();
        for (name, member) in [("object", "object"), ("oldObject", "oldObject")] {
            values.insert(name, Value::from_json(&asked[member]));
        }
        if let Some(map) = asked.as_object_mut() {
            ["object", "oldObject", "uid"].iter().for_each(|member| drop(map.remove(*member)));
        }
        values.insert("request", Value::from_json(&asked));
        let identity = request.call.identity.clone();
        let authority: Arc<dyn Authority> =
            Arc::new(Asker { authorizer: request.api.authorizer.clone(), identity });
        let gvr = request.call.resource.gvr();
        let inquiry = Inquiry {
            group: gvr.group.to_string(),
            resource: gvr.resource.to_string(),
            subresource: request.call.subresource.clone(),
            namespace: request.key.namespace.to_string(),
            name: request.key.name.to_string(),
            ..Inquiry::default()
        };
        values.insert("authorizer.requestResource", request_resource(authority.clone(), inquiry));
        values.insert("authorizer", authorizer(authority));
        Facts { values, lazy: Vec::new(), known: RefCell::default(), budget: RefCell::default() }
    }

    /// Adds or replaces a variable's value; what was computed is computed anew.
    pub fn put(&mut self, name: &'static str, value: Value) {
        self.values.insert(name, value);
        self.known.borrow_mut().clear();
    }

    /// Adds named expressions.
    pub fn name(&mut self, lazy: Vec<(String, Arc<Program>)>) {
        self.lazy = lazy;
        self.known.borrow_mut().clear();
    }

    /// Evaluates an expression, at the request's cost.
    pub fn eval(&self, program: &Program) -> Result<Value, EvalError> {
        // Named expressions take from the budget while this one runs.
        let mut own = self.budget.borrow().clone();
        let before = own.left();
        let outcome = evaluated(|| program.eval(self, &mut own));
        let spent = before.saturating_sub(own.left());
        let mut budget = self.budget.borrow_mut();
        *budget = Budget::new(budget.left().saturating_sub(spent));
        outcome
    }
}

impl Scope for Facts {
    fn get(&self, name: &str) -> Option<Result<Value, EvalError>> {
        if let Some(value) = self.values.get(name) {
            return Some(Ok(value.clone()));
        }
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let (_, program) = self.lazy.iter().find(|(own, _)| own == name)?;
        let outcome = self.eval(program);
        self.known.borrow_mut().insert(name.to_string(), outcome.clone());
        Some(outcome)
    }
}

/// Answers `authorizer` with what the requester, or a service account, may do.
struct Asker {
    authorizer: Arc<dyn Authorizer>,
    identity: Arc<Identity>,
}

impl Authority for Asker {
    fn decide(&self, inquiry: &Inquiry) -> Result<(bool, String), String> {
        let account = inquiry.service_account.as_ref();
        let account = account.map(|(namespace, name)| Identity::service_account(namespace, name));
        let attributes = Attributes {
            verb: inquiry.verb.clone(),
            group: inquiry.group.clone(),
            version: "*".into(),
            resource: inquiry.resource.clone(),
            subresource: inquiry.subresource.clone(),
            namespace: inquiry.namespace.clone(),
            name: inquiry.name.clone(),
            path: inquiry.path.clone(),
            field_selector: inquiry.field_selector.clone(),
            label_selector: inquiry.label_selector.clone(),
        };
        Ok(match self.authorizer.authorize(account.as_ref().unwrap_or(&self.identity), &attributes) {
            Decision::Allow => (true, String::new()),
            Decision::Deny(why) => (false, why),
        })
    }
}

/// Match conditions, compiled: names and programs, or why one is none.
#[derive(Clone, Debug, Default)]
pub struct Conditions(Vec<(String, Result<Program, String>)>);

impl Conditions {
    /// Compiles a `matchConditions` list.
    pub fn read(list: &Json, env: &Env) -> Conditions {
        let text = |value: &Json| value.as_str().unwrap_or_default().to_string();
        let compiled =
            |c: &Json| (text(&c["name"]), compile(env, &text(&c["expression"])).map_err(|e| e.to_string()));
        Conditions(list.as_array().into_iter().flatten().map(compiled).collect())
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Do all hold? One that does not decides, even where another fails.
    pub fn hold(&self, facts: &Facts) -> Result<bool, String> {
        let mut failures = Vec::new();
        for (name, program) in &self.0 {
            let outcome = match program {
                Ok(program) => facts.eval(program).map_err(|e| e.to_string()),
                Err(why) => Err(why.clone()),
            };
            match outcome.map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => failures.push(format!("matchCondition {name:?} is no boolean")),
                Err(why) => failures.push(format!("matchCondition {name:?} failed: {why}")),
            }
        }
        if failures.is_empty() { Ok(true) } else { Err(failures.join(", ")) }
    }
}

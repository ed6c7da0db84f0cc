//! MutatingAdmissionPolicy: changes objects by what its expressions make: a configuration to be applied, or a patch.

use super::{Applicable, Body, Expression, applicable};
use crate::resources::Resource;
use crate::webhooks::conditions::Facts;
use crate::webhooks::{Request, Rounds};
use machinery::cel::Env;
use machinery::kinds::get::text;
use machinery::patch;
use machinery::status::ApiError;
use serde_json::Value as Json;

/// One mutation.
pub struct Mutation {
    applies: bool,
    expression: Expression,
}

impl Mutation {
    /// Those of a policy.
    pub fn read_all(mutations: &[Json], env: &Env) -> Vec<Mutation> {
        let env = env.clone().message("Object").message("JSONPatch");
        let read = |m: &Json| {
            let applies = text(m, "/patchType") == "ApplyConfiguration";
            let key = if applies { "/applyConfiguration/expression" } else { "/jsonPatch/expression" };
            Mutation { applies, expression: Expression::read(text(m, key), &env) }
        };
        mutations.iter().map(read).collect()
    }

    /// Changes a document of a form.
    fn apply(&self, facts: &Facts, form: &Resource, document: &mut Json) -> Result<(), String> {
        let made = self.expression.eval(facts)?.to_json().map_err(|e| e.to_string())?;
        if !self.applies {
            return patch::json(document, &made).map_err(|e| e.to_string());
        }
        if !made.is_object() {
            return Err("the expression made no Object".into());
        }
        // A configuration never takes anything away, so merging it by the schema's list keys is applying it.
        match form.custom {
            None => patch::strategic(document, &made, form.row.def.get()).map_err(|e| e.to_string()),
            Some(_) => {
                patch::merge(document, &made);
                Ok(())
            }
        }
    }
}

/// Lets the policies of this round change the object. Returns whether one did.
pub async fn mutate(request: &Request<'_>, object: &mut Json, rounds: &mut Rounds) -> Result<bool, ApiError> {
    if object.is_null() {
        return Ok(false);
    }
    let mut any = false;
    for one in applicable(request, "mutating", Some(object)).await? {
        let id = format!("{}/{}", one.policy.name, one.binding.name);
        if !rounds.wants(&id) {
            continue;
        }
        match changed(&one, request, object).await {
            Ok(new) if new == *object => {}
            Ok(new) => {
                *object = new;
                any = true;
                rounds.changed();
            }
            Err(_) if !one.policy.fails => {}
            Err(why) => {
                let (policy, binding) = (&one.policy.name, &one.binding.name);
                let why = format!("policy '{policy}' with binding '{binding}' denied request: {why}");
                return Err(ApiError::forbidden(request.call.resource.gvr(), &request.key.name, &why));
            }
        }
        if one.policy.reinvoked {
            rounds.asked(id);
        }
    }
    Ok(any)
}

/// The object as one policy leaves it.
async fn changed(one: &Applicable, request: &Request<'_>, object: &Json) -> Result<Json, String> {
    let Body::Mutations(mutations) = &one.policy.body else { return Ok(object.clone()) };
    let mut now = object.clone();
    let count = one.facts(request, Some(&now))?.len();
    for nth in 0..count {
        for mutation in mutations {
            // Each sees what the one before it did.
            request.settle(&one.form, Some(&now)).await.map_err(|e| e.message)?;
            let all = one.facts(request, Some(&now))?;
            let Some(facts) = all.get(nth) else { break };
            let mut shown = request.shown(&one.form, &now);
            mutation.apply(facts, &one.form, &mut shown)?;
            now = request.read_back(&one.form, &now, shown).await.map_err(|e| e.message)?;
        }
    }
    Ok(now)
}

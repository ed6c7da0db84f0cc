//! Type checks of validating policies: expressions are compiled anew with the types of what they are about, and what is
//! found goes into the policy's status. Nobody is refused by it: rules may be about kinds that come later.

use super::{Expression, environment};
use crate::api::Api;
use crate::cache::Interest;
use crate::resources::Resource;
use client::{ApiClient, EventKind, Object, Verb, Write};
use k8s_schema::{Def, Gvr};
use machinery::cel::{self, Env};
use machinery::kinds::get::{int, list, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

const POLICIES: Gvr = Gvr::new(super::GROUP, "v1", "validatingadmissionpolicies");
/// Kinds that one policy is checked against; upstream's limit.
const KINDS_MAX: usize = 10;
/// Pause before the policies are listed anew after the watch was cut.
const RELIST_PAUSE: Duration = Duration::from_millis(50);

/// Follows the policies until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient) {
    loop {
        let Some(now) = api.upgrade() else { return };
        let mut closing = now.closing();
        let Some(resource) = now.registry.find(&POLICIES) else { return };
        let (present, mut watch) = now.storage.cache.subscribe_now(&resource.prefix, Interest::default());
        for object in present.objects.values() {
            settle(&now, &client, object).await;
        }
        drop((now, resource, present));
        loop {
            let change = tokio::select! {
                change = watch.changes.recv() => change,
                _ = closing.wait_for(|c| *c) => return,
            };
            let (Some(change), Some(now)) = (change, api.upgrade()) else { break };
            if change.kind != EventKind::Deleted {
                settle(&now, &client, &change.object).await;
            }
        }
        tokio::time::sleep(RELIST_PAUSE).await;
    }
}

async fn settle(api: &Api, client: &ApiClient, object: &Object) {
    let Ok(mut policy) = object.value() else { return };
    let generation = int(&policy, "/metadata/generation").unwrap_or(0);
    if int(&policy, "/status/observedGeneration") == Some(generation) {
        return;
    }
    let warnings = warnings(&kinds(api, &policy["spec"]), &policy["spec"]);
    let checked = if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
    policy["status"]["observedGeneration"] = json!(generation);
    policy["status"]["typeChecking"] = checked;
    let (gvr, key, verb) = (POLICIES, object.key.clone(), Verb::Update(policy));
    let written = client.write(Write { gvr, key, subresource: "status", verb }).await;
    // A conflict or a deletion: the change that caused it is on its way here.
    if let Err(error) = written
        && !error.is_conflict()
        && !error.is_not_found()
    {
        tracing::warn!(policy = %object.key, %error, "the type check's outcome could not be written");
    }
}

/// The kinds that the policy's rules name one by one.
fn kinds(api: &Api, spec: &Value) -> Vec<Arc<Resource>> {
    let texts = |rule: &Value, key: &str| -> Vec<String> {
        list(rule, key).iter().filter_map(|t| t.as_str().map(str::to_string)).collect()
    };
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for rule in list(spec, "/matchConstraints/resourceRules") {
        for group in texts(rule, "/apiGroups") {
            for version in texts(rule, "/apiVersions") {
                for resource in texts(rule, "/resources") {
                    let gvr = Gvr {
                        group: group.clone().into(),
                        version: version.clone().into(),
                        resource: resource.into(),
                    };
                    let resource = api.registry.find(&gvr).filter(|_| seen.insert(gvr));
                    found.extend(resource);
                }
            }
        }
    }
    found.truncate(KINDS_MAX);
    found
}

/// What is wrong with the expressions, for each of the kinds.
fn warnings(kinds: &[Arc<Resource>], spec: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    let environments: Vec<(String, Env)> = kinds.iter().map(|kind| typed(kind, spec)).collect();
    let mut check = |at: String, text: &str| {
        let wrong = |(kind, env): &(String, Env)| {
            let why = Expression::read(text, env).program.err()?;
            Some(format!("{kind}: {why}"))
        };
        let found: Vec<String> = environments.iter().filter_map(wrong).collect();
        if !found.is_empty() {
            out.push(json!({"fieldRef": at, "warning": found.join("\n")}));
        }
    };
    for (i, validation) in list(spec, "/validations").iter().enumerate() {
        for key in ["expression", "messageExpression"] {
            let given = text(validation, &format!("/{key}"));
            if !given.is_empty() {
                check(format!("spec.validations[{i}].{key}"), given);
            }
        }
    }
    out
}

/// The variables, with the types of one kind; the kind's name for messages.
fn typed(kind: &Resource, spec: &Value) -> (String, Env) {
    let row = &*kind.row;
    let object = object_type(row.def.get(), &mut Vec::new());
    let mut env = environment().var("object", object.clone()).var("oldObject", object);
    env = env.var("namespaceObject", cel::Type::Dyn).var("params", cel::Type::Dyn);
    for variable in list(spec, "/variables") {
        let program = cel::compile(&env, text(variable, "/expression"));
        let ty = program.map_or(cel::Type::Dyn, |p| p.output().clone());
        env = env.var(&format!("variables.{}", text(variable, "/name")), ty);
    }
    (format!("{}, Kind={}", row.api_version(), row.kind), env)
}

/// A definition as a type; what contains itself is not looked into.
fn object_type<'a>(def: &'a Def, above: &mut Vec<&'a str>) -> cel::Type {
    if def.fields.is_empty() || above.contains(&&*def.name) {
        return cel::Type::Dyn;
    }
    above.push(&def.name);
    let fields = def.fields.iter().filter_map(|f| Some((cel::escape(&f.name)?, value_type(&f.ty, above))));
    let fields: Vec<(String, cel::Type)> = fields.collect();
    above.pop();
    cel::Type::object(&def.name, fields)
}

fn value_type<'a>(ty: &'a k8s_schema::Type, above: &mut Vec<&'a str>) -> cel::Type {
    use k8s_schema::Type;
    match ty {
        Type::String => cel::Type::String,
        Type::Bytes => cel::Type::read("bytes"),
        Type::Time | Type::MicroTime => cel::Type::read("timestamp"),
        Type::Int32 | Type::Int64 => cel::Type::Int,
        Type::Number => cel::Type::Double,
        Type::Bool => cel::Type::Bool,
        Type::Quantity | Type::IntOrString | Type::Any => cel::Type::Dyn,
        Type::Object(def) => object_type(def.get(), above),
        Type::Map(of) => cel::Type::map(value_type(of, above)),
        Type::Array(of) => cel::Type::list(value_type(of, above)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Registry;

    fn found(validation: Value) -> Vec<(String, String)> {
        let registry = Registry::builtin("main", false, &Default::default());
        let deployments = registry.find(&k8s_schema::gvr::DEPLOYMENTS).unwrap().clone();
        let spec = json!({"validations": [validation], "variables": [{"name": "n", "expression": "object.spec.replicas"}]});
        let all = warnings(&[deployments], &spec);
        let short = |w: &Value| (text(w, "/fieldRef").to_string(), text(w, "/warning").to_string());
        all.iter().map(short).collect()
    }

    #[test]
    fn confusions_are_found() {
        assert_eq!(found(json!({"expression": "object.spec.replicas > 1 && variables.n > 1"})), []);
        let wrong = found(json!({"expression": "object.spec.replicas > '1'",
            "messageExpression": "'wants more, got ' + object.spec.replicas"}));
        assert_eq!(wrong[0].0, "spec.validations[0].expression");
        assert!(wrong[0].1.starts_with("apps/v1, Kind=Deployment: ERROR: "), "{}", wrong[0].1);
        assert!(wrong[0].1.contains("found no matching overload for '_>_' applied to '(int, string)'"));
        assert!(wrong[1].1.contains("found no matching overload for '_+_' applied to '(string, int)'"));
        let missing = found(json!({"expression": "object.spec.nothing == 1"}));
        assert!(missing[0].1.contains("undefined field 'nothing'"), "{}", missing[0].1);
        assert!(!found(json!({"expression": "variables.n == 'x'"})).is_empty());
    }
}

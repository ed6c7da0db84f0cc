//! ResourceQuota: a write is charged to the quotas it falls under before it is stored, by compare-and-swap of their
//! status, so that two writes at once never spend the same; the controller counts anew what is really there.
//!
//! [`assess`] is pure. A write that fails after it was charged is refunded ([`Charge`]).

use super::{Attempt, Operation};
use crate::Api;
use crate::storage::Swap;
use client::{Object, ObjectKey};
use k8s_schema::Gvr;
use machinery::quantity::Quantity;
use machinery::quota::{self, Kind};
use machinery::status::ApiError;
use machinery::usage::{self, Amounts};
use serde_json::{Value, json};
use std::sync::Arc;

const QUOTAS: Gvr = Gvr::new("", "v1", "resourcequotas");
/// Lost races for one quota before a write gives up: far above what real contention shows.
const TRIES_MAX: usize = 200;
/// Records that come and go by themselves are not counted.
const UNCOUNTED: [&str; 2] = ["events", "bindings"];

/// What a write was charged, by quota.
#[derive(Default)]
pub struct Charge(Vec<(ObjectKey, Amounts)>);

fn kind<'a>(attempt: &'a Attempt<'_>) -> Kind<'a> {
    Kind { group: attempt.call.resource.group(), resource: &attempt.call.resource.row.gvr.resource }
}

/// Is this write one that can use more of something?
fn counts(attempt: &Attempt<'_>) -> bool {
    let call = attempt.call;
    let core = |names: &[&str]| call.resource.group().is_empty() && names.contains(&call.resource.name());
    call.resource.row.namespaced
        && !UNCOUNTED.contains(&call.resource.name())
        && match (attempt.operation, call.subresource.as_str()) {
            (Operation::Create, "") => true,
            (Operation::Update, "") => core(&["services", "persistentvolumeclaims"]),
            (Operation::UpdatePart, "resize") => core(&["pods"]),
            _ => false,
        }
}

/// Charges the write. On an error nothing stays charged.
pub async fn charge(attempt: &Attempt<'_>, object: &Value) -> Result<Charge, ApiError> {
    let mut charge = Charge::default();
    if !counts(attempt) {
        return Ok(charge);
    }
    let api = attempt.api;
    let quotas = api.cached_in(&QUOTAS, &attempt.key.namespace);
    let mut bills = Vec::new();
    // All are asked before the first is charged.
    for quota in quotas {
        let value = quota.value().map_err(ApiError::internal)?;
        if let Some(more) = assess(attempt, &value, object)? {
            bills.push((quota, more));
        }
    }
    if attempt.call.options.dry_run {
        return Ok(charge);
    }
    for (quota, more) in bills {
        match charge_one(attempt, object, quota.clone()).await {
            Ok(true) => charge.0.push((quota.key.clone(), more)),
            Ok(false) => {}
            Err(error) => {
                refund(api, charge).await;
                return Err(error);
            }
        }
    }
    Ok(charge)
}

/// Charges one quota; false when it is gone.
async fn charge_one(attempt: &Attempt<'_>, object: &Value, mut quota: Arc<Object>) -> Result<bool, ApiError> {
    let api = attempt.api;
    let resource = api.registry.find(&QUOTAS).ok_or_else(|| ApiError::internal("no quotas"))?;
    for _ in 0..TRIES_MAX {
        let mut value = quota.value().map_err(ApiError::internal)?;
        let Some(more) = assess(attempt, &value, object)? else { return Ok(true) };
        let mut used = usage::amounts(&value, "/status/used");
        usage::add(&mut used, &more);
        put_used(&mut value, &used);
        match api.storage.replace(&resource, &quota, value).await? {
            Swap::Done(_) => return Ok(true),
            Swap::Lost(Some(now)) => quota = now,
            Swap::Lost(None) => return Ok(false),
        }
    }
    Err(ApiError::conflict(&QUOTAS, &quota.key.name, ApiError::MODIFIED))
}

/// Gives back what a write was charged that did not come about. What fails here the controller mends.
pub async fn refund(api: &Api, charge: Charge) {
    let Some(resource) = api.registry.find(&QUOTAS) else { return };
    for (key, more) in charge.0 {
        let Ok(mut current) = api.storage.get(&resource, &key).await else { continue };
        for _ in 0..TRIES_MAX {
            let Some(quota) = current.take() else { break };
            let Ok(mut value) = quota.value() else { break };
            let mut used = usage::amounts(&value, "/status/used");
            for (name, amount) in &more {
                if let Some(own) = used.get_mut(name) {
                    *own = own.sub(*amount);
                }
            }
            put_used(&mut value, &used);
            match api.storage.replace(&resource, &quota, value).await {
                Ok(Swap::Lost(now)) => current = now,
                _ => break,
            }
        }
    }
}

fn put_used(quota: &mut Value, used: &Amounts) {
    let shown = used.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string())));
    quota["status"]["used"] = Value::Object(shown.collect());
}

/// What the write uses more of this quota; `None` when nothing; an error when that is too much.
fn assess(attempt: &Attempt<'_>, quota: &Value, object: &Value) -> Result<Option<Amounts>, ApiError> {
    let (kind, now) = (kind(attempt), (attempt.api.config.clock)());
    let used = |object: &Value| quota::used(kind, object, now);
    let asked = Asked { kind, object, new: used(object), old: attempt.old.map(used).unwrap_or_default() };
    let resource = attempt.call.resource.gvr();
    asked.of(quota).map_err(|why| ApiError::forbidden(resource, &attempt.key.name, &why))
}

/// What a write uses, before and after.
struct Asked<'a> {
    kind: Kind<'a>,
    object: &'a Value,
    new: Amounts,
    old: Amounts,
}

impl Asked<'_> {
    fn of(&self, quota: &Value) -> Result<Option<Amounts>, String> {
        let name = quota["metadata"]["name"].as_str().unwrap_or_default();
        let hard = usage::amounts(quota, "/status/hard");
        let limited = quota::concerned(self.kind, hard.keys().map(String::as_str));
        if limited.is_empty() || !quota::in_scope(quota, self.kind, self.object) {
            return Ok(None);
        }
        if self.kind.resource == "pods"
            && let Some(missing) = quota::missing(self.object, &limited)
        {
            return Err(format!("failed quota: {name}: must specify {missing}"));
        }
        let used = usage::amounts(quota, "/status/used");
        if limited.iter().any(|resource| !used.contains_key(*resource)) {
            let unknown: Vec<&str> = limited.iter().copied().collect();
            return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
        }
        let zero = Quantity::from_units(0);
        let mut more = Amounts::new();
        for resource in limited {
            let of = |amounts: &Amounts| amounts.get(resource).copied();
            let delta = match (of(&self.new), of(&self.old)) {
                (None, None) => continue,
                (Some(new), None) => new,
                (new, Some(old)) => new.unwrap_or(zero).sub(old),
            };
            if delta.sign() != 0 {
                more.insert(resource.to_string(), delta);
            }
        }
        let over = |name: &String, delta: &Quantity| {
            delta.sign() > 0 && used.get(name).copied().unwrap_or(zero).add(*delta) > hard[name]
        };
        let exceeded: Amounts =
            more.iter().filter(|(n, d)| over(n, d)).map(|(n, d)| (n.clone(), *d)).collect();
        if exceeded.is_empty() {
            return Ok(Some(more).filter(|m| !m.is_empty()));
        }
        let same = |from: &Amounts| {
            let of = |name: &String| Some((name.clone(), *from.get(name)?));
            quota::shown(&exceeded.keys().filter_map(of).collect())
        };
        Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            quota::shown(&exceeded),
            same(&used),
            same(&hard)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Kind<'static> = Kind { group: "", resource: "pods" };

    fn asked(object: &Value) -> Asked<'_> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Asked { kind: PODS, object, new: quota::used(PODS, object, now), old: Amounts::new() }
    }

    #[test]
    fn charges_and_refusals() {
        let pod =
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]}});
        let quota = |hard: Value, used: Value| json!({"metadata": {"name": "q"}, "status": {"hard": hard, "used": used}});
        let free = quota(
            json!({"pods": "5", "cpu": "1", "secrets": "1"}),
            json!({"pods": "1", "cpu": "400m", "secrets": "1"}),
        );
        assert_eq!(quota::shown(&asked(&pod).of(&free).unwrap().unwrap()), "cpu=600m,pods=1");
        let full = quota(json!({"pods": "5", "cpu": "1"}), json!({"pods": "5", "cpu": "500m"}));
        assert_eq!(
            asked(&pod).of(&full).unwrap_err(),
            "exceeded quota: q, requested: cpu=600m,pods=1, used: cpu=500m,pods=5, limited: cpu=1,pods=5"
        );
        let young = quota(json!({"pods": "5"}), json!({}));
        assert_eq!(asked(&pod).of(&young).unwrap_err(), "status unknown for quota: q, resources: pods");
        let strict = quota(json!({"memory": "1Gi"}), json!({"memory": "0"}));
        assert_eq!(asked(&pod).of(&strict).unwrap_err(), "failed quota: q: must specify memory for: c");
        let other = quota(json!({"secrets": "0"}), json!({"secrets": "0"}));
        assert_eq!(asked(&pod).of(&other).unwrap(), None);
        // A change that uses less passes, and is credited, even where too much is used.
        let over = quota(json!({"cpu": "1"}), json!({"cpu": "2"}));
        let less = Asked { old: Amounts::from([("cpu".into(), Quantity::from_units(1))]), ..asked(&pod) };
        assert_eq!(quota::shown(&less.of(&over).unwrap().unwrap()), "cpu=-400m");
    }
}

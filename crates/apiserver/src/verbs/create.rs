//! Create: a new object from a body.

use super::{Call, Effect, Written};
use crate::Api;
use crate::admission::{self, Attempt, Operation};
use crate::owners;
use crate::rules;
use crate::storage::{Swap, unstored};
use crate::verbs::modify::{Owners, Part};
use client::ObjectKey;
use machinery::kinds::strategy;
use machinery::status::ApiError;
use serde_json::{Value, json};

/// The alphabet of generated suffixes: no vowels (no words), no look-alikes.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
/// A generated name keeps within a DNS label with its suffix.
const GENERATED_BASE_MAX: usize = 63 - SUFFIX_LEN;
/// Draws of a generated name before the collision is reported (upstream: 8).
const GENERATE_TRIES: usize = 8;

impl Api {
    /// Creates the object.
    pub async fn create(&self, call: &Call, body: Value) -> Result<Written, ApiError> {
        self.create_owned(call, body, Owners::Writer).await
    }

    /// Creates the object, whose owners are told.
    pub async fn create_owned(&self, call: &Call, body: Value, owners: Owners) -> Result<Written, ApiError> {
        let (mut value, mut warnings) = rules::decode(&call.resource, body, &call.options)?;
        let base = settle_names(call, &mut value)?;
        let given_name = text(&value, "name").to_string();
        if !given_name.is_empty() && !call.key.name.is_empty() && *given_name != *call.key.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given_name}) does not match the name on the URL ({})",
                call.key.name
            )));
        }
        if owners == Owners::Writer {
            let managers = owners::updated(call, &self.now_text(), None, &mut value);
            owners::put(&mut value, managers, None);
        }
        self.stamp(&mut value);
        // Admission reads namespaces, classes and the like: it must see every acknowledged write.
        self.storage.cache.wait_fresh().await?;
        if let Some(base) = base {
            value["metadata"]["name"] = json!(self.free_name(call, &base));
        }
        let key = ObjectKey::new(call.key.namespace.clone(), text(&value, "name"));
        self.create_once(call, &key, value, &mut warnings).await
    }

    /// A generated name that nothing has yet; after so many draws, any.
    fn free_name(&self, call: &Call, base: &str) -> String {
        let mut tries = GENERATE_TRIES;
        loop {
            let name = generated_name(base, (self.config.random)());
            tries -= 1;
            let suffix = call.resource.suffix(&call.key.namespace, &name);
            if tries == 0 || self.storage.cache.get(&call.resource.prefix, &suffix).is_none() {
                return name;
            }
        }
    }

    async fn create_once(
        &self,
        call: &Call,
        key: &ObjectKey,
        mut value: Value,
        warnings: &mut Vec<String>,
    ) -> Result<Written, ApiError> {
        admission::service_account::settle(self, call, &value).await;
        let revised = !matches!(text(&value, "resourceVersion"), "" | "0");
        let mut attempt = Attempt::new(self, call, Operation::Create, key, None);
        admission::mutate(&mut attempt, &mut value)?;
        admission::mutate_outside(&mut attempt, &mut value).await?;
        rules::prepare_create(&call.resource, &mut value);
        strategy::drop_gated(&call.resource.stored, &self.config.gates, &mut value, None);
        rules::validate(&call.resource, Part::Whole, &value, None)?;
        admission::validate(&mut attempt, &value).await?;
        // Who may not create it at all learns that first, as upstream, where the store says this.
        if revised {
            return Err(ApiError::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        admission::allocate(&mut attempt, &mut value)?;
        let charge = admission::quota::charge(&attempt, &value).await?;
        warnings.append(&mut attempt.warnings);
        let reserved = attempt.take_reservations();
        if call.options.dry_run {
            let taken = self.storage.get(&call.resource, key).await?.is_some();
            if taken {
                return Err(ApiError::already_exists(call.resource.gvr(), &key.name));
            }
            let object = rules::serve(&call.resource, &unstored(key, 0, value))?;
            return Ok(Written { object, effect: Effect::Created, warnings: std::mem::take(warnings) });
        }
        for ip in reserved.addresses() {
            self.hold_address(key, ip).await?;
        }
        match self.save(&call.resource, key, None, value).await? {
            Swap::Done(object) => {
                reserved.commit();
                let object = rules::serve(&call.resource, &object)?;
                Ok(Written { object, effect: Effect::Created, warnings: std::mem::take(warnings) })
            }
            Swap::Lost(_) => {
                admission::quota::refund(self, charge).await;
                Err(ApiError::already_exists(call.resource.gvr(), &key.name))
            }
        }
    }

    /// What the server alone decides about a new object.
    fn stamp(&self, value: &mut Value) {
        let Some(metadata) = value["metadata"].as_object_mut() else { return };
        let uid = uuid::Builder::from_random_bytes((self.config.random)().to_be_bytes()).into_uuid();
        metadata.insert("uid".into(), json!(uid.to_string()));
        metadata.insert("creationTimestamp".into(), json!(self.now_text()));
    }
}

/// Checks namespace and name against the request; the base when the name is to be generated.
fn settle_names(call: &Call, value: &mut Value) -> Result<Option<String>, ApiError> {
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    rules::settle_namespace(call, value)?;
    let generate = text(value, "generateName").to_string();
    let wanted = text(value, "name").is_empty() && !generate.is_empty();
    Ok(wanted.then_some(generate))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value["metadata"][field].as_str().unwrap_or_default()
}

/// `base` cut to fit, and five characters drawn from `random`.
pub fn generated_name(base: &str, mut random: u128) -> String {
    let mut cut = base.len().min(GENERATED_BASE_MAX);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = base[..cut].to_string();
    for _ in 0..SUFFIX_LEN {
        let letters = SUFFIX_ALPHABET.len() as u128;
        name.push(SUFFIX_ALPHABET[(random % letters) as usize] as char);
        random /= letters;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        let name = generated_name(&"é".repeat(40), 123_456_789);
        assert!(name.len() <= 63);
        let suffix: String = generated_name("web-", 987_654_321).split_off(4);
        assert_eq!(suffix.len(), 5);
        assert!(suffix.bytes().all(|b| SUFFIX_ALPHABET.contains(&b)));
    }
}

//! Custom objects against their schema, in upstream's words (those of its OpenAPI validator).
//!
//! On an update a part that did not change is not checked again (ratcheting): parts are told apart by property name
//! and, in lists of type map, by their keys. Expressions are not here.

use super::prune::join;
use super::schema::{Checks, Schema, Ty};
use crate::field_errors::FieldErrors;
use crate::kinds::get::same_exactly;
use k8s_schema::ListType;
use serde_json::Value;
use std::collections::HashSet;

/// Checks a value; `old` is the value at the same place before, when there was one. `path` is "" for the root.
pub fn validate(value: &Value, schema: &Schema, old: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    if old.is_some_and(|old| same_exactly(old, value)) {
        return;
    }
    if value.is_null() && (schema.nullable || schema.ty == Ty::Any) {
        return;
    }
    if !fits(value, schema.ty) {
        let why = format!("{} must be of type {}: \"{}\"", named(path), schema.ty.name(), type_of(value));
        return errors.type_invalid(path, type_of(value), &why);
    }
    if let Some(checks) = &schema.checks {
        check(value, checks, path, errors);
    }
    if schema.embedded && value.is_object() {
        for name in ["apiVersion", "kind"].into_iter().filter(|n| value[n].as_str().is_none_or(str::is_empty))
        {
            errors.required(&join(path, name), "must not be empty");
        }
    }
    match value {
        Value::Object(map) => {
            for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
                errors.required(&join(path, name), "");
            }
            for (key, value) in map {
                if let Some(below) = schema.property(key) {
                    validate(value, below, old.and_then(|o| o.get(key)), &join(path, key), errors);
                }
            }
        }
        Value::Array(items) => {
            doubles(items, schema, path, errors);
            let Some(below) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                let before = old.and_then(|old| counterpart(item, schema, old));
                validate(item, below, before, &format!("{path}[{index}]"), errors);
            }
        }
        _ => {}
    }
}

/// The item of the old list that has the same keys.
pub fn counterpart<'a>(item: &Value, schema: &Schema, old: &'a Value) -> Option<&'a Value> {
    if schema.list_type != ListType::Map {
        return None;
    }
    let same = |other: &&Value| schema.list_keys.iter().all(|k| item.get(k) == other.get(k));
    old.as_array()?.iter().find(same)
}

/// Items that a list of type set or map holds twice.
fn doubles(items: &[Value], schema: &Schema, path: &str, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let name = match schema.list_type {
            ListType::Atomic => return,
            ListType::Set => item.clone(),
            ListType::Map => {
                let default = |key: &str| schema.items.as_ref()?.properties.get(key)?.default.clone();
                let part = |key: &String| {
                    let value = item.get(key).cloned().or_else(|| default(key));
                    Some((key.clone(), value?))
                };
                Value::Object(schema.list_keys.iter().filter_map(part).collect())
            }
        };
        if !seen.insert(name.to_string()) {
            errors.duplicate(&format!("{path}[{index}]"), name);
        }
    }
}

fn fits(value: &Value, ty: Ty) -> bool {
    match ty {
        Ty::Any => true,
        Ty::Object => value.is_object(),
        Ty::Array => value.is_array(),
        Ty::String => value.is_string(),
        Ty::Integer => whole(value),
        Ty::Number => value.is_number(),
        Ty::Boolean => value.is_boolean(),
        Ty::IntOrString => value.is_string() || whole(value),
    }
}

fn whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if whole(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// How messages name a place.
fn named(path: &str) -> String {
    format!("{path} in body").trim_start().to_string()
}

fn check(value: &Value, checks: &Checks, path: &str, errors: &mut FieldErrors) {
    if !checks.choices.is_empty() && !checks.choices.iter().any(|c| same_exactly(c, value)) {
        let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        let choices: Vec<String> = checks.choices.iter().map(shown).collect();
        let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
        errors.not_supported(path, value.clone(), &choices);
    }
    let found = errors.causes().len();
    match value {
        Value::Number(_) => check_number(value, checks, path, errors),
        Value::String(text) => check_text(text, checks, path, errors),
        Value::Array(items) => check_list(items, checks, path, errors),
        Value::Object(map) => {
            let count = map.len() as u64;
            if let Some(min) = checks.min_properties.filter(|min| count < *min) {
                let why = format!("{} should have at least {min} properties", named(path));
                errors.invalid(path, value.clone(), &why);
            }
            if let Some(max) = checks.max_properties.filter(|max| count > *max) {
                errors.too_many(path, count as usize, max as usize);
            }
        }
        _ => {}
    }
    if errors.causes().len() == found {
        check_combined(value, checks, path, errors);
    }
}

fn check_number(value: &Value, checks: &Checks, path: &str, errors: &mut FieldErrors) {
    let number = value.as_f64().unwrap_or_default();
    let mut complain = |why: String| errors.invalid(path, value.clone(), &format!("{} {why}", named(path)));
    match checks.minimum {
        Some((min, true)) if number <= min => complain(format!("should be greater than {min}")),
        Some((min, false)) if number < min => complain(format!("should be greater than or equal to {min}")),
        _ => {}
    }
    match checks.maximum {
        Some((max, true)) if number >= max => complain(format!("should be less than {max}")),
        Some((max, false)) if number > max => complain(format!("should be less than or equal to {max}")),
        _ => {}
    }
    if let Some(divisor) = checks.multiple_of {
        let times = number / divisor;
        if (times - times.round()).abs() > f64::EPSILON * times.abs().max(1.0) {
            complain(format!("should be a multiple of {divisor}"));
        }
    }
    let range = match checks.format.as_str() {
        "int32" => f64::from(i32::MIN)..=f64::from(i32::MAX),
        "int64" => -(2f64.powi(63))..=2f64.powi(63),
        _ => return,
    };
    if !range.contains(&number) {
        complain(format!("must be of type {}: \"{value}\"", checks.format));
    }
}

fn check_text(text: &str, checks: &Checks, path: &str, errors: &mut FieldErrors) {
    let length = text.chars().count() as u64;
    if checks.max_length.is_some_and(|max| length > max) {
        let max = checks.max_length.unwrap_or_default();
        errors.too_long(path, max as usize);
    }
    let mut complain = |why: String| errors.invalid(path, text, &format!("{} {why}", named(path)));
    if let Some(min) = checks.min_length.filter(|min| length < *min) {
        complain(format!("should be at least {min} chars long"));
    }
    if let Some((pattern, regex)) = &checks.pattern
        && !regex.as_ref().is_some_and(|r| r.is_match(text))
    {
        complain(format!("should match '{pattern}'"));
    }
    if !well_formed(&checks.format, text) {
        complain(format!("must be of type {}: \"{text}\"", checks.format));
    }
}

fn check_list(items: &[Value], checks: &Checks, path: &str, errors: &mut FieldErrors) {
    let count = items.len() as u64;
    if let Some(min) = checks.min_items.filter(|min| count < *min) {
        let why = format!("{} should have at least {min} items", named(path));
        errors.invalid(path, Value::Array(items.to_vec()), &why);
    }
    if let Some(max) = checks.max_items.filter(|max| count > *max) {
        errors.too_many(path, items.len(), max as usize);
    }
    let mut seen = HashSet::new();
    if checks.unique && !items.iter().all(|i| seen.insert(i.to_string())) {
        let why = format!("{} shouldn't contain duplicates", named(path));
        errors.invalid(path, Value::Array(items.to_vec()), &why);
    }
}

fn check_combined(value: &Value, checks: &Checks, path: &str, errors: &mut FieldErrors) {
    let holds = |schema: &Schema| {
        let mut found = FieldErrors::new();
        validate(value, schema, None, path, &mut found);
        found
    };
    let mut complain = |why: String| errors.invalid(path, value.clone(), &format!("\"{path}\" {why}"));
    if !checks.any_of.is_empty() && !checks.any_of.iter().any(|s| holds(s).is_empty()) {
        complain("must validate at least one schema (anyOf)".to_string());
    }
    if !checks.one_of.is_empty() {
        match checks.one_of.iter().filter(|s| holds(s).is_empty()).count() {
            1 => {}
            0 => complain("must validate one and only one schema (oneOf). Found none valid".to_string()),
            n => complain(format!(
                "must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if checks.not.as_ref().is_some_and(|s| holds(s).is_empty()) {
        complain("must not validate the schema (not)".to_string());
    }
    for schema in &checks.all_of {
        errors.append(holds(schema));
    }
}

/// Does the text have the form? Unknown forms are not checked.
fn well_formed(format: &str, text: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    match format {
        "date-time" | "datetime" => crate::time::parse(text).is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, prefix)| {
            let widest = if address.contains(':') { 128 } else { 32 };
            address.parse::<std::net::IpAddr>().is_ok() && prefix.parse::<u8>().is_ok_and(|p| p <= widest)
        }),
        "mac" => {
            text.split([':', '-']).count() >= 6 && text.split([':', '-']).all(|p| p.len() == 2 && hex(p))
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            let plain: String = text.chars().filter(|c| *c != '-').collect();
            let version = |v: char| format.ends_with('d') || plain.as_bytes().get(12) == Some(&(v as u8));
            plain.len() == 32 && hex(&plain) && version(format.chars().last().unwrap_or_default())
        }
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "hostname" => {
            let label = |l: &str| {
                !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            text.len() <= 253 && text.split('.').all(label)
        }
        "uri" => text.split_once(':').is_some_and(|(scheme, rest)| {
            let letters = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(letters)
                && !rest.contains(' ')
        }),
        _ => true,
    }
}

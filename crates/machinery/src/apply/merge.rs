//! An applied configuration: checked, merged into an object; and members of a field set taken out of an object.

use super::set::{Node, children, element_text, is_member};
use super::shape::{Items, Shape, Spot};
use crate::body::REPORTS_MAX;
use k8s_schema::Type;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks a configuration against the schema; what is wrong with it, in upstream's words.
pub fn check(root: Spot<'_>, config: &Value) -> Result<(), String> {
    let mut check = Check { path: String::new(), errors: Vec::new() };
    check.value(root, config);
    match check.errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n{}", many.iter().map(|e| format!("  {e}\n")).collect::<String>())),
    }
}

struct Check {
    path: String,
    errors: Vec<String>,
}

impl Check {
    fn fail(&mut self, words: &str) {
        if self.errors.len() < REPORTS_MAX {
            self.errors.push(format!("{}: {words}", self.path));
        }
    }

    fn below(&mut self, spot: Spot<'_>, value: &Value, step: &str) {
        let length = self.path.len();
        self.path.push_str(step);
        self.value(spot, value);
        self.path.truncate(length);
    }

    fn value(&mut self, spot: Spot<'_>, value: &Value) {
        if value.is_null() {
            return;
        }
        let (fits, wanted) = fits(spot.ty(), value);
        if !fits {
            return self.fail(&format!("expected {wanted}, got {value}"));
        }
        let shape = spot.shape([Some(value), None]);
        match (&shape, value) {
            (Shape::Struct(_) | Shape::Map(_), Value::Object(entries)) => {
                for (name, value) in entries {
                    match shape.entry(&spot, name) {
                        Some(inner) => self.below(inner, value, &format!(".{name}")),
                        None => {
                            let length = self.path.len();
                            self.path.push_str(&format!(".{name}"));
                            self.fail("field not declared in schema");
                            self.path.truncate(length);
                        }
                    }
                }
            }
            (Shape::Items(list), Value::Array(items)) => self.items(list, items),
            _ => {}
        }
    }

    fn items(&mut self, list: &Items<'_>, items: &[Value]) {
        let mut seen = BTreeSet::new();
        for (nth, item) in items.iter().enumerate() {
            match list.element(item) {
                Err(words) => self.fail(&format!("element {nth}: {words}")),
                Ok(element) => {
                    let text = element_text(&element);
                    self.below(list.spot, item, &text);
                    if !seen.insert(element) {
                        self.fail(&format!("duplicate entries for key {text}"));
                    }
                }
            }
        }
    }
}

/// Can the value be of this type, and what is it called if not?
fn fits(ty: &Type, value: &Value) -> (bool, &'static str) {
    match ty {
        Type::String | Type::Bytes => (value.is_string(), "string"),
        Type::Int32 | Type::Int64 | Type::Number => (value.is_number(), "numeric (int or float)"),
        Type::Bool => (value.is_boolean(), "boolean"),
        Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString => {
            (!value.is_object() && !value.is_array(), "a scalar")
        }
        Type::Object(_) | Type::Map(_) => (value.is_object(), "map"),
        Type::Array(_) => (value.is_array(), "list"),
        Type::Any => (true, ""),
    }
}

/// Merges a configuration into the live value: leaves are the configuration's, the rest is united.
pub fn merge(spot: Spot<'_>, live: Value, config: &Value) -> Value {
    let shape = spot.shape([Some(&live), Some(config)]);
    match (&shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(mut live), Value::Object(config)) => {
            for (name, value) in config {
                let merged = match (live.remove(name), shape.entry(&spot, name)) {
                    (Some(before), Some(inner)) => merge(inner, before, value),
                    _ => value.clone(),
                };
                live.insert(name.clone(), merged);
            }
            Value::Object(live)
        }
        (Shape::Items(list), Value::Array(live), Value::Array(config)) => {
            Value::Array(merge_items(list, live, config))
        }
        // A null gives up the field, it does not empty it.
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Null) if !live.is_empty() => {
            Value::Object(live)
        }
        (Shape::Items(_), Value::Array(live), Value::Null) if !live.is_empty() => Value::Array(live),
        (_, _, config) => config.clone(),
    }
}

/// Items of the configuration in its order; items that are only live keep their place before the shared item that
/// they stood before.
fn merge_items(list: &Items<'_>, live: Vec<Value>, config: &[Value]) -> Vec<Value> {
    let wished: Vec<String> = config.iter().map(|c| list.element(c).unwrap_or_default()).collect();
    let wished_set: BTreeSet<&str> = wished.iter().map(String::as_str).collect();
    let mut shared: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    // The live order: the element of a shared item, the value of any other.
    let mut order: Vec<(String, Option<Value>)> = Vec::new();
    for item in live {
        let element = list.element(&item).unwrap_or_default();
        if wished_set.contains(element.as_str()) {
            shared.entry(element.clone()).or_default().push(item);
            order.push((element, None));
        } else {
            order.push((element, Some(item)));
        }
    }
    let mut merged = Vec::with_capacity(order.len().max(config.len()));
    let mut order = order.into_iter().peekable();
    for (nth, item) in config.iter().enumerate() {
        let next_shared = wished[nth..].iter().find(|e| shared.contains_key(*e)).cloned();
        while let Some((element, _)) = order.peek() {
            if next_shared.as_ref() == Some(element) {
                break;
            }
            merged.extend(order.next().and_then(|(_, item)| item));
        }
        match shared.remove(&wished[nth]) {
            Some(before) => {
                order.next_if(|(element, _)| *element == wished[nth]);
                // Of several items of one name none is the one to merge with.
                let before = <[Value; 1]>::try_from(before).ok();
                merged.push(before.map_or_else(|| item.clone(), |[before]| merge(list.spot, before, item)));
            }
            None => merged.push(item.clone()),
        }
    }
    merged.extend(order.filter_map(|(_, item)| item));
    merged
}

/// Takes the members of `set` out of the value. Parts that end up empty go too.
pub fn remove(spot: Spot<'_>, value: &mut Value, set: &Node) {
    if set.is_empty() {
        return;
    }
    let shape = spot.shape([Some(value), None]);
    match (&shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(entries)) => {
            for (element, node) in children(set) {
                let Some(name) = element.strip_prefix("f:") else { continue };
                let (Some(below), Some(inner)) = (entries.get_mut(name), shape.entry(&spot, name)) else {
                    continue;
                };
                if is_member(node) || removes_all(inner, below, node) {
                    entries.remove(name);
                }
            }
        }
        (Shape::Items(list), Value::Array(items)) => items.retain_mut(|item| {
            let Some(node) = list.element(item).ok().and_then(|e| set.get(&e)?.as_object()) else {
                return true;
            };
            !is_member(node) && !removes_all(list.spot, item, node)
        }),
        _ => {}
    }
}

/// Removes below; was that all there was?
fn removes_all(spot: Spot<'_>, value: &mut Value, set: &Node) -> bool {
    remove(spot, value, set);
    match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

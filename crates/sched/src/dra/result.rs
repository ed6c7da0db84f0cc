//! What was found as the API's `AllocationResult`.

use super::allocate::{Search, ways};
use super::read::{Place, list};
use serde_json::{Value, json};

/// The result for one claim.
pub fn allocation(search: &Search<'_>, c: usize) -> Value {
    let mut devices = json!({"results": results(search, c)});
    let config = config(search, c);
    if !config.is_empty() {
        devices["config"] = Value::Array(config);
    }
    let mut result = json!({"devices": devices});
    if let Some(selector) = node_selector(search, c) {
        result["nodeSelector"] = selector;
    }
    result
}

fn results(search: &Search<'_>, c: usize) -> Vec<Value> {
    let claim = search.claims[c];
    let one = |pick: &super::allocate::Pick| {
        let ((driver, pool, name), device, _) = search.chosen(pick);
        let request = &claim.requests[pick.request];
        let exact = &request.ways[pick.way];
        let mut result = json!({"request": request.full_name(pick.way), "driver": &*driver, "pool": &*pool,
            "device": &*name});
        if exact.admin {
            result["adminAccess"] = json!(true);
        }
        if exact.written.is_array() {
            result["tolerations"] = exact.written.clone();
        }
        for (key, value) in ["bindingConditions", "bindingFailureConditions"].iter().zip(&device.conditions) {
            if value.is_array() {
                result[*key] = value.clone();
            }
        }
        if let Some(part) = &pick.part {
            result["shareID"] = json!("");
            if !part.is_empty() {
                let amounts = part.iter().map(|(name, q)| (name.clone(), json!(q.to_string())));
                result["consumedCapacity"] = Value::Object(amounts.collect());
            }
        }
        result
    };
    search.picks[c].iter().map(one).collect()
}

/// Configurations of the classes, once each, and those of the claim for the requests as they were fulfilled.
fn config(search: &Search<'_>, c: usize) -> Vec<Value> {
    let claim = search.claims[c];
    let chosen = ways(&search.picks[c]);
    let mut all: Vec<Value> = Vec::new();
    let mut classes: Vec<(&str, std::ops::Range<usize>)> = Vec::new();
    for (r, request) in claim.requests.iter().enumerate() {
        let way = chosen.get(&r).copied().unwrap_or(0);
        let (name, Some(class)) = (request.full_name(way), search.class((c, r, way))) else { continue };
        if let Some((_, known)) = classes.iter().find(|(n, _)| *n == class.name) {
            for entry in &mut all[known.clone()] {
                entry["requests"].as_array_mut().into_iter().for_each(|l| l.push(json!(name)));
            }
            continue;
        }
        let start = all.len();
        all.extend(class.config.iter().map(|own| {
            let mut entry = own.clone();
            entry["source"] = json!("FromClass");
            entry["requests"] = json!([name]);
            entry
        }));
        classes.push((&class.name, start..all.len()));
    }
    for own in &claim.config {
        let named: Vec<&str> = list(own, "requests").filter_map(Value::as_str).collect();
        let about = |(r, request): (usize, &super::read::Request)| {
            let way = chosen.get(&r).copied().unwrap_or(0);
            named.contains(&request.name.as_str()) || named.contains(&request.full_name(way).as_str())
        };
        if named.is_empty() || claim.requests.iter().enumerate().any(about) {
            let mut entry = own.clone();
            entry["source"] = json!("FromClaim");
            all.push(entry);
        }
    }
    for entry in &mut all {
        // None named: all.
        if entry["requests"].as_array().is_some_and(|l| l.len() == claim.requests.len())
            && let Some(fields) = entry.as_object_mut()
        {
            fields.remove("requests");
        }
    }
    all
}

/// Nodes that reach all devices of the claim; `None`: all nodes.
fn node_selector(search: &Search<'_>, c: usize) -> Option<Value> {
    let (mut fields, mut expressions): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for pick in &search.picks[c] {
        let (_, device, place) = search.chosen(pick);
        if device.binds_to_node || matches!(place, Place::Node(_)) {
            let name = json!({"key": "metadata.name", "operator": "In", "values": [search.node.name]});
            return Some(json!({"nodeSelectorTerms": [{"matchFields": [name]}]}));
        }
        let Place::Chosen(_, selector) = place else { continue };
        let term = &selector["nodeSelectorTerms"][0];
        for (key, all) in [("matchFields", &mut fields), ("matchExpressions", &mut expressions)] {
            let new: Vec<Value> = list(term, key).filter(|r| !all.contains(r)).cloned().collect();
            all.extend(new);
        }
    }
    let mut term = json!({});
    for (key, all) in [("matchFields", fields), ("matchExpressions", expressions)] {
        if !all.is_empty() {
            term[key] = Value::Array(all);
        }
    }
    (term != json!({})).then(|| json!({"nodeSelectorTerms": [term]}))
}

//! Other servers' group versions in this server's discovery and OpenAPI documents. Pure.

use super::decide::group_priority;
use super::{Remote, Remotes};
use crate::discovery::{Form, Root};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The remotes of one group, preferred version first.
fn versions<'a>(remotes: &'a Remotes, group: &str) -> Vec<(&'a str, &'a Arc<Remote>)> {
    let mut all: Vec<(&str, &Arc<Remote>)> =
        remotes.iter().filter(|((g, _), _)| g == group).map(|((_, v), r)| (v.as_str(), r)).collect();
    all.sort_by(|a, b| {
        b.1.version_priority.cmp(&a.1.version_priority).then_with(|| k8s_schema::compare_versions(a.0, b.0))
    });
    all
}

/// The groups that others serve, by priority, with it.
fn groups(remotes: &Remotes) -> Vec<(&str, i64)> {
    let mut all: Vec<(&str, i64)> = Vec::new();
    for ((group, _), remote) in remotes {
        match all.iter_mut().find(|(g, _)| g == group) {
            Some((_, priority)) => *priority = (*priority).max(remote.group_priority),
            None => all.push((group, remote.group_priority)),
        }
    }
    all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    all
}

/// Puts a group where its priority belongs among those of this server.
fn insert(list: &mut Vec<Value>, priority: i64, item: Value, name: impl Fn(&Value) -> String) {
    let lower = |other: &Value| {
        let other = name(other);
        let custom = !k8s_schema::resources().iter().any(|r| *r.gvr.group == *other);
        group_priority(&other, custom) < priority
    };
    let at = list.iter().position(lower).unwrap_or(list.len());
    list.insert(at, item);
}

fn plain_group(remotes: &Remotes, group: &str) -> Value {
    let versions: Vec<Value> = versions(remotes, group)
        .into_iter()
        .map(|(v, _)| json!({"groupVersion": format!("{group}/{v}"), "version": v}))
        .collect();
    json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
}

/// Adds other servers' versions to a group's `versions`.
fn join(own: &mut Value, more: &Value, field: &str) {
    let Some(list) = own["versions"].as_array_mut() else { return };
    for version in more["versions"].as_array().into_iter().flatten() {
        if !list.iter().any(|v| v[field] == version[field]) {
            list.push(version.clone());
        }
    }
}

/// `/apis`, plain.
pub fn add_to_list(list: &mut Value, remotes: &Remotes) {
    let Some(items) = list["groups"].as_array_mut() else { return };
    for (group, priority) in groups(remotes) {
        let more = plain_group(remotes, group);
        match items.iter_mut().find(|g| g["name"] == group) {
            Some(own) => join(own, &more, "version"),
            None => insert(items, priority, more, |g| g["name"].as_str().unwrap_or_default().into()),
        }
    }
}

/// `/apis/{group}`: `own` is what this server has of the group.
pub fn group(own: Option<Value>, remotes: &Remotes, name: &str) -> Option<Value> {
    if versions(remotes, name).is_empty() {
        return own;
    }
    let mut more = plain_group(remotes, name);
    more["kind"] = "APIGroup".into();
    more["apiVersion"] = "v1".into();
    match own {
        Some(mut own) => {
            join(&mut own, &more, "version");
            Some(own)
        }
        None => Some(more),
    }
}

/// `/apis`, aggregated.
pub fn add_to_aggregated(list: &mut Value, remotes: &Remotes, root: Root, form: Form) {
    if root != Root::Groups || form == Form::Plain {
        return;
    }
    let Some(items) = list["items"].as_array_mut() else { return };
    for (group, priority) in groups(remotes) {
        let versions: Vec<Value> =
            versions(remotes, group).into_iter().map(|(v, r)| aggregated(group, v, r)).collect();
        let more = json!({"metadata": {"name": group}, "versions": versions});
        match items.iter_mut().find(|g| g["metadata"]["name"] == group) {
            Some(own) => join(own, &more, "version"),
            None => {
                insert(items, priority, more, |g| g["metadata"]["name"].as_str().unwrap_or_default().into());
            }
        }
    }
}

/// One version from its `APIResourceList`.
fn aggregated(group: &str, version: &str, remote: &Remote) -> Value {
    let listed = remote.resources.as_deref().and_then(|r| r["resources"].as_array());
    let mut resources: Vec<Value> = Vec::new();
    let entries = || listed.into_iter().flatten();
    for entry in entries().filter(|e| !e["name"].as_str().unwrap_or_default().contains('/')) {
        resources.push(resource(group, version, entry));
    }
    for entry in entries() {
        let Some((parent, sub)) = entry["name"].as_str().and_then(|n| n.split_once('/')) else { continue };
        let item =
            json!({"subresource": sub, "responseKind": kind(group, version, entry), "verbs": entry["verbs"]});
        // Metrics stand below resources of other groups.
        if !resources.iter().any(|r| r["resource"] == parent) {
            let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
            let nothing = json!({"group": "", "version": "", "kind": ""});
            resources.push(json!({"resource": parent, "responseKind": nothing, "scope": scope,
                "singularResource": "", "verbs": []}));
        }
        let Some(owner) = resources.iter_mut().find(|r| r["resource"] == parent) else { continue };
        match owner["subresources"].as_array_mut() {
            Some(all) => all.push(item),
            None => owner["subresources"] = json!([item]),
        }
    }
    let freshness = if remote.available { "Current" } else { "Stale" };
    json!({"version": version, "resources": resources, "freshness": freshness})
}

fn kind(group: &str, version: &str, entry: &Value) -> Value {
    let own = |field: &str, else_: &str| {
        entry[field].as_str().filter(|t| !t.is_empty()).unwrap_or(else_).to_string()
    };
    json!({"group": own("group", group), "version": own("version", version), "kind": entry["kind"]})
}

fn resource(group: &str, version: &str, entry: &Value) -> Value {
    let mut value = Map::new();
    value.insert("resource".into(), entry["name"].clone());
    value.insert("responseKind".into(), kind(group, version, entry));
    let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
    value.insert("scope".into(), scope.into());
    value.insert("singularResource".into(), entry["singularName"].clone());
    value.insert("verbs".into(), entry["verbs"].clone());
    for field in ["shortNames", "categories"] {
        if entry[field].is_array() {
            value.insert(field.into(), entry[field].clone());
        }
    }
    value.into()
}

/// The part of another server's OpenAPI v2 document that is about one group version.
pub fn v2_part(mut document: Value, root: &str) -> Value {
    let below =
        |path: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let paths: Map<String, Value> = match document["paths"].take() {
        Value::Object(paths) => paths.into_iter().filter(|(path, _)| below(path)).collect(),
        _ => Map::new(),
    };
    json!({"paths": paths, "definitions": document["definitions"].take()})
}

/// Such a part without the definitions that are `known`; they become known.
pub fn only_new(part: &Value, known: &mut BTreeSet<String>) -> Value {
    let definitions = part["definitions"].as_object().into_iter().flatten();
    let new = definitions.filter(|(name, _)| known.insert((*name).clone()));
    let new: Map<String, Value> = new.map(|(name, value)| (name.clone(), value.clone())).collect();
    json!({"paths": part["paths"], "definitions": new})
}

/// Adds to the index of OpenAPI v3 documents.
pub fn add_to_v3(index: &mut Value, remotes: &Remotes) {
    for ((group, version), remote) in remotes {
        if let Some(url) = &remote.v3 {
            index["paths"][format!("apis/{group}/{version}")] = json!({"serverRelativeURL": url});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Target;
    use super::*;

    fn remotes() -> Remotes {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "kind": "Flunder", "verbs": ["update"]},
            {"name": "pods/depth", "namespaced": true, "kind": "MetricValueList", "verbs": ["get"]}]});
        let spec = json!({"service": {"name": "s", "namespace": "n"}});
        let remote = Remote {
            name: "v1.wardle.example".into(),
            group_priority: 2_000,
            version_priority: 10,
            target: Target::of(&spec).unwrap(),
            available: true,
            resources: Some(Arc::new(list)),
            v2: None,
            v2_tag: String::new(),
            v3: Some("/openapi/v3/apis/wardle.example/v1?hash=1".into()),
        };
        Remotes::from([(("wardle.example".to_string(), "v1".to_string()), Arc::new(remote))])
    }

    #[test]
    fn groups_stand_where_their_priority_belongs() {
        let rows: Vec<&k8s_schema::ResourceRow> = k8s_schema::resources().iter().collect();
        let mut list = crate::discovery::group_list(&rows);
        list["groups"].as_array_mut().unwrap().push(json!({"name": "custom.example", "versions": []}));
        add_to_list(&mut list, &remotes());
        let names: Vec<&str> =
            list["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names[names.len() - 2..], ["wardle.example", "custom.example"]);
        let group = group(None, &remotes(), "wardle.example").unwrap();
        assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example/v1");
        assert!(super::group(None, &remotes(), "other").is_none());
    }

    #[test]
    fn aggregated_discovery_is_made_from_the_resource_list() {
        let mut list = json!({"items": [{"metadata": {"name": "apps"}, "versions": []}]});
        add_to_aggregated(&mut list, &remotes(), Root::Groups, Form::V2);
        let version = &list["items"][1]["versions"][0];
        assert_eq!(version["freshness"], "Current");
        assert_eq!(version["resources"][0]["subresources"][0]["subresource"], "status");
        assert_eq!(version["resources"][0]["responseKind"]["group"], "wardle.example");
        assert_eq!(version["resources"][1]["resource"], "pods");
        assert_eq!(version["resources"][1]["subresources"][0]["subresource"], "depth");
    }

    #[test]
    fn documents_are_joined_without_replacing_ours() {
        let foreign = json!({"paths": {"/apis/a/v1/x": {}, "/apis/a/v10/x": {}, "/version/": {}},
            "definitions": {"D": {"type": "string"}, "E": {}}});
        let part = v2_part(foreign, "/apis/a/v1");
        assert_eq!(part["paths"], json!({"/apis/a/v1/x": {}}));
        let mut known = BTreeSet::from(["D".to_string()]);
        assert_eq!(only_new(&part, &mut known)["definitions"], json!({"E": {}}));
        assert_eq!(only_new(&part, &mut known)["definitions"], json!({}), "once");
        let mut index = json!({"paths": {}});
        add_to_v3(&mut index, &remotes());
        assert!(index["paths"]["apis/wardle.example/v1"].is_object());
    }
}

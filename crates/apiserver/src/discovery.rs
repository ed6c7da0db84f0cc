//! Discovery documents: which groups, versions and resources are served, as pure functions of resource rows.
//!
//! Reads a slice of rows (built-in ones and those of CustomResourceDefinitions alike); writes JSON values.
//! Not here: HTTP, caching, and the decision which rows are visible (the caller filters legacy rows).
//!
//! | request | call |
//! |---|---|
//! | `GET /api` | [`Form::negotiate`], then [`api_versions`] or [`aggregated`] with [`Root::Core`] |
//! | `GET /apis` | [`Form::negotiate`], then [`group_list`] or [`aggregated`] with [`Root::Groups`] |
//! | `GET /apis/{group}` | [`group`] (`None`: 404) |
//! | `GET /api/v1`, `/apis/{group}/{version}` | [`resource_list`] (`None`: 404) |
//!
//! The answer's `Content-Type` is [`Form::content_type`]; send `Vary: Accept` on `/api` and `/apis`.

use crate::aggregation::Remotes;
use crate::openapi::Document;
use crate::resources::Registry;
use base64::Engine as _;
use k8s_schema::{ResourceRow, Subresource, compare_groups, compare_versions};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The group of the aggregated documents.
const GROUP: &str = "apidiscovery.k8s.io";
const AGGREGATED_KIND: &str = "APIGroupDiscoveryList";

/// Which of the two discovery roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// `/api`: the core group.
    Core,
    /// `/apis`: all named groups.
    Groups,
}

/// The shape that the client asked a discovery root for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `APIVersions`, `APIGroupList`: one request a group version follows.
    Plain,
    /// `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
    V2,
    /// The same of `v2beta1`.
    V2beta1,
}

impl Form {
    /// The first form in an `Accept` header that is served here; [`Form::Plain`] when it names none.
    pub fn negotiate(accept: &str) -> Form {
        accept.split(',').find_map(Form::of_media_range).unwrap_or(Form::Plain)
    }

    fn of_media_range(range: &str) -> Option<Form> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
            return None;
        }
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map(|(_, v)| v.trim());
        match (get("g"), get("v"), get("as")) {
            (None, None, None) => Some(Form::Plain),
            (Some(GROUP), Some("v2"), Some(AGGREGATED_KIND)) => Some(Form::V2),
            (Some(GROUP), Some("v2beta1"), Some(AGGREGATED_KIND)) => Some(Form::V2beta1),
            _ => None,
        }
    }

    /// What the answer's `Content-Type` must be: clients compare its parameters with what they asked.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Plain => "application/json",
            Form::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Form::V2beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// The documents of `/api` and `/apis` as they were made last: clients ask often, what is served seldom changes.
#[derive(Default)]
pub struct Kept(Mutex<Option<Made>>);

/// Of what was served here and elsewhere.
struct Made {
    registry: Arc<Registry>,
    remotes: Arc<Remotes>,
    documents: BTreeMap<(Root, Form), Document>,
}

impl Kept {
    /// The document, made if it is not there for these two.
    pub fn get(
        &self,
        registry: &Arc<Registry>,
        remotes: &Arc<Remotes>,
        at: (Root, Form),
        make: impl FnOnce() -> Value,
    ) -> Document {
        let mut kept = self.0.lock();
        let same = |m: &Made| Arc::ptr_eq(&m.registry, registry) && Arc::ptr_eq(&m.remotes, remotes);
        let mut made = kept.take().filter(same).unwrap_or_else(|| Made {
            registry: registry.clone(),
            remotes: remotes.clone(),
            documents: BTreeMap::new(),
        });
        let mut document = made.documents.entry(at).or_insert_with(|| Document::json(&make())).clone();
        *kept = Some(made);
        document.content_type = at.1.content_type();
        document
    }
}

/// `/api`, plain. `server_address` is `host:port` as clients reach it.
pub fn api_versions(rows: &[&ResourceRow], server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": versions(rows, ""),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`, plain: an `APIGroupList`.
pub fn group_list(rows: &[&ResourceRow]) -> Value {
    let groups: Vec<Value> = groups(rows).into_iter().map(|(g, rows)| group_value(&rows, g)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`: an `APIGroup`; `None` when no row is in it.
pub fn group(rows: &[&ResourceRow], name: &str) -> Option<Value> {
    if name.is_empty() || versions(rows, name).is_empty() {
        return None;
    }
    let mut value = group_value(rows, name);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// `/api/v1` (group "") and `/apis/{group}/{version}`: an `APIResourceList`; `None` when no row is in it.
pub fn resource_list(rows: &[&ResourceRow], group: &str, version: &str) -> Option<Value> {
    let rows = resources(rows, group, version);
    let group_version = rows.first()?.api_version();
    let mut resources = Vec::new();
    for row in rows {
        resources.push(resource_value(row));
        resources.extend(row.subresources.iter().map(|sub| subresource_value(row, sub)));
    }
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Some(list)
}

/// `/api` or `/apis`, aggregated, in form [`Form::V2`] or [`Form::V2beta1`].
pub fn aggregated(rows: &[&ResourceRow], root: Root, form: Form) -> Value {
    let items: Vec<Value> = match root {
        Root::Core => vec![aggregated_group(rows, "")],
        Root::Groups => groups(rows).into_iter().map(|(g, rows)| aggregated_group(&rows, g)).collect(),
    };
    let version = if form == Form::V2beta1 { "v2beta1" } else { "v2" };
    json!({
        "kind": AGGREGATED_KIND,
        "apiVersion": format!("{GROUP}/{version}"),
        "metadata": {},
        "items": items,
    })
}

/// The named groups with their rows, in discovery's order.
fn groups<'a>(rows: &[&'a ResourceRow]) -> Vec<(&'a str, Vec<&'a ResourceRow>)> {
    let mut groups: BTreeMap<&str, Vec<&ResourceRow>> = BTreeMap::new();
    for row in rows.iter().filter(|r| !r.gvr.group.is_empty()) {
        groups.entry(&row.gvr.group).or_default().push(row);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(a, _), (b, _)| compare_groups(a, b));
    groups
}

/// The versions of a group, preferred first.
fn versions<'a>(rows: &[&'a ResourceRow], group: &str) -> Vec<&'a str> {
    let in_group = rows.iter().filter(|r| r.gvr.group == group);
    let mut names: Vec<&str> = in_group.map(|r| &*r.gvr.version).collect();
    names.sort_by(|a, b| compare_versions(a, b));
    names.dedup();
    names
}

/// The resources of a group version, by name.
fn resources<'a>(rows: &[&'a ResourceRow], group: &str, version: &str) -> Vec<&'a ResourceRow> {
    let here = |r: &&&ResourceRow| r.gvr.group == group && r.gvr.version == version;
    let mut found: Vec<&ResourceRow> = rows.iter().filter(here).copied().collect();
    found.sort_by(|a, b| a.gvr.resource.cmp(&b.gvr.resource));
    found
}

fn group_value(rows: &[&ResourceRow], name: &str) -> Value {
    let versions: Vec<Value> = versions(rows, name)
        .into_iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

fn resource_value(row: &ResourceRow) -> Value {
    let mut value = json!({
        "name": row.gvr.resource,
        "singularName": &*row.singular,
        "namespaced": row.namespaced,
        "kind": &*row.kind,
        "verbs": &*row.verbs,
    });
    set_names(&mut value, row);
    if row.verbs.contains(&"create") && row.verbs.contains(&"get") {
        value["storageVersionHash"] = storage_version_hash(row).into();
    }
    value
}

fn set_names(value: &mut Value, row: &ResourceRow) {
    for (key, names) in [("shortNames", &row.short_names), ("categories", &row.categories)] {
        if !names.is_empty() {
            value[key] = json!(&**names);
        }
    }
}

/// Tells clients when the storage version changed: the first 8 bytes of a hash of group, version and kind.
fn storage_version_hash(row: &ResourceRow) -> String {
    let text = format!("{}/{}/{}", row.storage_group, row.storage_version, row.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}

fn subresource_value(row: &ResourceRow, sub: &Subresource) -> Value {
    let (group, version, kind) = &sub.gvk;
    let mut value = json!({
        "name": format!("{}/{}", row.gvr.resource, sub.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": &**kind,
        "verbs": &*sub.verbs,
    });
    if is_foreign(row, sub) {
        value["group"] = group.to_string().into();
        value["version"] = version.to_string().into();
    }
    value
}

/// Is the subresource's body of another group version than the row?
fn is_foreign(row: &ResourceRow, sub: &Subresource) -> bool {
    row.gvr.group != *sub.gvk.0 || row.gvr.version != *sub.gvk.1
}

fn aggregated_group(rows: &[&ResourceRow], group: &str) -> Value {
    let versions: Vec<Value> = versions(rows, group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> =
                resources(rows, group, version).into_iter().map(aggregated_resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = Map::new();
    if !group.is_empty() {
        metadata.insert("name".into(), group.into());
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(row: &ResourceRow) -> Value {
    let mut value = json!({
        "resource": row.gvr.resource,
        "responseKind": {"group": row.gvr.group, "version": row.gvr.version, "kind": &*row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*row.singular,
        "verbs": &*row.verbs,
    });
    set_names(&mut value, row);
    if !row.subresources.is_empty() {
        let subresources: Vec<Value> = row.subresources.iter().map(aggregated_subresource).collect();
        value["subresources"] = subresources.into();
    }
    value
}

fn aggregated_subresource(sub: &Subresource) -> Value {
    let (group, version, kind) = &sub.gvk;
    json!({
        "subresource": &*sub.name,
        "responseKind": {"group": &**group, "version": &**version, "kind": &**kind},
        "verbs": &*sub.verbs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<&'static ResourceRow> {
        k8s_schema::resources().iter().collect()
    }

    fn find<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
        list.as_array().unwrap().iter().find(|v| v[key] == name).unwrap()
    }

    #[test]
    fn the_first_form_that_is_served_wins() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        for (accept, form) in [
            (kubectl, Form::V2),
            ("application/json; as=APIGroupDiscoveryList; v=v2beta1; g=apidiscovery.k8s.io", Form::V2beta1),
            (
                "application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,application/json",
                Form::Plain,
            ),
            ("application/json, */*", Form::Plain),
            ("", Form::Plain),
        ] {
            assert_eq!(Form::negotiate(accept), form, "{accept}");
            assert_eq!(Form::negotiate(form.content_type()), form);
        }
    }

    #[test]
    fn core_resources_as_upstream_lists_them() {
        let list = resource_list(&rows(), "", "v1").unwrap();
        let pods = find(&list["resources"], "name", "pods");
        let want = json!({"categories": ["all"], "kind": "Pod", "name": "pods", "namespaced": true,
            "shortNames": ["po"], "singularName": "pod", "storageVersionHash": "xPOwRZ+Yhw8=",
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]});
        assert_eq!(*pods, want);
        let eviction = find(&list["resources"], "name", "pods/eviction");
        let want = json!({"group": "policy", "version": "v1", "kind": "Eviction", "name": "pods/eviction",
            "namespaced": true, "singularName": "", "verbs": ["create"]});
        assert_eq!(*eviction, want);
        let binding = find(&list["resources"], "name", "bindings");
        assert!(binding.get("storageVersionHash").is_none());
    }

    /// Hashes as a real server prints them: of the storage version, not of the served one.
    #[test]
    fn storage_version_hashes_equal_upstream() {
        for (group, version, plural, hash) in [
            ("", "v1", "configmaps", "qFsyl6wFWjQ="),
            ("events.k8s.io", "v1", "events", "r2yiGXH7wu8="),
            ("autoscaling", "v1", "horizontalpodautoscalers", "qwQve8ut294="),
            ("networking.k8s.io", "v1", "ingresses", "39NQlfNR+bo="),
        ] {
            let list = resource_list(&rows(), group, version).unwrap();
            assert_eq!(find(&list["resources"], "name", plural)["storageVersionHash"], hash);
        }
    }

    #[test]
    fn groups_and_versions_in_order_of_preference() {
        let rows = rows();
        let list = group_list(&rows);
        let names: Vec<&str> =
            list["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names[..3], ["apiregistration.k8s.io", "apps", "events.k8s.io"]);
        assert!(names.contains(&"extensions") && names.last() == Some(&"autoscaling.gantry.dev"));
        assert_eq!(group(&rows, "autoscaling").unwrap()["preferredVersion"]["version"], "v2");
        assert_eq!(group(&rows, "apps").unwrap()["versions"][2]["groupVersion"], "apps/v1beta1");
        assert!(group(&rows, "nope").is_none() && group(&rows, "").is_none());
        assert!(resource_list(&rows, "apps", "v7").is_none());
        assert_eq!(api_versions(&rows, "a:1")["versions"], json!(["v1"]));
    }

    #[test]
    fn aggregated_holds_every_row_once() {
        let rows = rows();
        let mut count = 0;
        for root in [Root::Core, Root::Groups] {
            let list = aggregated(&rows, root, Form::V2);
            for group in list["items"].as_array().unwrap() {
                for version in group["versions"].as_array().unwrap() {
                    count += version["resources"].as_array().unwrap().len();
                }
            }
        }
        assert_eq!(count, rows.len());
        let core = aggregated(&rows, Root::Core, Form::V2beta1);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        let groups = aggregated(&rows, Root::Groups, Form::V2);
        let apps =
            groups["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let deployments = find(&apps["versions"][0]["resources"], "resource", "deployments");
        let scale = json!({"subresource": "scale", "verbs": ["get", "patch", "update"],
            "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}});
        assert_eq!(deployments["subresources"][0], scale);
    }
}

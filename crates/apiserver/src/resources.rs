//! The resources that this server serves, by group, version and plural name, and where each is stored.
//!
//! A [`Resource`] joins the served row with the row it is stored as: all versions of a resource share one place
//! in the store and one cache. Deliberately not here: behaviour of kinds (`rules`).

use crate::custom::Custom;
use imbl::{HashMap, OrdMap};
use k8s_schema::{Gates, Gvr, Held, ResourceRow};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Built-in kinds (group, resource) that upstream advises against, and its words (`APILifecycleDeprecated`).
pub const DEPRECATED_KINDS: [(&str, &str, &str); 2] = [
    ("", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
    ("", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
];

/// One served resource in one version.
pub struct Resource {
    /// The row as served.
    pub row: Held<ResourceRow>,
    /// The row as stored; the same one for most.
    pub stored: Held<ResourceRow>,
    /// Key prefix in the store: `/<realm>/<group or core>/<resource>/`.
    pub prefix: Arc<str>,
    /// What a custom resource has beyond the row.
    pub custom: Option<Arc<Custom>>,
}

impl Resource {
    /// Served as stored? Not where a schema's defaults must be filled in that came after the object.
    pub fn is_storage_version(&self) -> bool {
        std::ptr::eq(&*self.row, &*self.stored) && !self.custom.as_ref().is_some_and(|c| c.reshapes)
    }

    /// The webhook that converts its objects, if one does.
    pub fn webhook(&self) -> Option<&crate::custom::convert::Webhook> {
        self.custom.as_ref()?.webhook.as_ref()
    }

    /// Group, version, plural as served.
    pub fn gvr(&self) -> &Gvr {
        &self.row.gvr
    }

    /// Group of the stored form.
    pub fn group(&self) -> &str {
        &self.stored.gvr.group
    }

    /// Plural name.
    pub fn name(&self) -> &str {
        &self.row.gvr.resource
    }

    /// Is this the stored resource `group/resource`?
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.stored.gvr.group == group && self.stored.gvr.resource == resource
    }

    /// Does the row offer this verb?
    pub fn offers(&self, verb: &str) -> bool {
        self.row.verbs.contains(&verb)
    }

    /// Does the row offer this subresource?
    pub fn has_subresource(&self, name: &str) -> bool {
        self.row.subresources.iter().any(|s| &*s.name == name)
    }

    /// What follows the prefix in the store's key: `<namespace or ->/<name>`.
    pub fn suffix(&self, namespace: &str, name: &str) -> String {
        let namespace = if self.row.namespaced { namespace } else { "-" };
        format!("{namespace}/{name}")
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        format!("{}{}", self.prefix, self.suffix(namespace, name)).into()
    }
}

/// Splits a store key of a realm into (prefix with group and resource, suffix).
pub fn split_key<'a>(realm_prefix: &str, key: &'a str) -> Option<(&'a str, &'a str)> {
    let rest = key.strip_prefix(realm_prefix)?;
    let group = rest.find('/')? + 1;
    let resource = group + rest.get(group..)?.find('/')? + 1;
    Some(key.split_at(realm_prefix.len() + resource))
}

/// Namespace ("" for cluster-scoped) and name of a key's suffix.
pub fn split_suffix(suffix: &str) -> Option<(&str, &str)> {
    let (namespace, name) = suffix.split_once('/')?;
    Some((if namespace == "-" { "" } else { namespace }, name))
}

/// All served resources. Cheap to clone: a change of one definition shares the rest.
#[derive(Clone)]
pub struct Registry {
    by_gvr: OrdMap<Gvr, Arc<Resource>>,
    /// The same, for the look-ups of every request.
    hashed: HashMap<Gvr, Arc<Resource>>,
    /// What each CustomResourceDefinition added.
    defined: OrdMap<Arc<str>, Arc<[Arc<Resource>]>>,
}

impl Registry {
    /// The built-in resources of a realm.
    pub fn builtin(realm: &str, legacy: bool, gates: &Gates) -> Self {
        let rows = k8s_schema::resources().iter().filter(|r| (legacy || !r.legacy) && gates.serve(r));
        let by_gvr: OrdMap<Gvr, Arc<Resource>> =
            rows.map(|row| (row.gvr.clone(), Arc::new(builtin(realm, row)))).collect();
        let hashed = by_gvr.iter().map(|(gvr, resource)| (gvr.clone(), resource.clone())).collect();
        Registry { by_gvr, hashed, defined: OrdMap::new() }
    }

    /// The resource served under this path.
    pub fn find(&self, gvr: &Gvr) -> Option<&Arc<Resource>> {
        self.hashed.get(gvr)
    }

    /// Is there a resource of these names?
    pub fn serves(&self, group: &str, version: &str, resource: &str) -> bool {
        let owned = |text: &str| std::borrow::Cow::Owned(text.to_string());
        self.hashed.contains_key(&Gvr {
            group: owned(group),
            version: owned(version),
            resource: owned(resource),
        })
    }

    /// Every resource: built-in ones in discovery's order, then custom ones, sorted.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let builtin = k8s_schema::resources().iter().filter_map(|row| self.find(&row.gvr));
        builtin.chain(self.by_gvr.values().filter(|r| r.custom.is_some()))
    }

    /// Makes these the resources of a definition. Returns the prefixes whose watches must end: of versions that are no
    /// longer served.
    pub fn define(&mut self, definition: &Arc<str>, resources: Vec<Arc<Resource>>) -> Vec<Arc<str>> {
        let before = self.take(definition);
        let gone = |old: &&Arc<Resource>| !resources.iter().any(|new| new.gvr() == old.gvr());
        let gone = before.iter().filter(gone).map(|r| r.prefix.clone()).collect();
        for resource in &resources {
            self.by_gvr.insert(resource.gvr().clone(), resource.clone());
            self.hashed.insert(resource.gvr().clone(), resource.clone());
        }
        if !resources.is_empty() {
            self.defined.insert(definition.clone(), resources.into());
        }
        gone
    }

    /// Takes a definition's resources away; returns their prefixes.
    pub fn withdraw(&mut self, definition: &str) -> Vec<Arc<str>> {
        self.take(definition).iter().map(|r| r.prefix.clone()).collect()
    }

    fn take(&mut self, definition: &str) -> Arc<[Arc<Resource>]> {
        let before = self.defined.remove(definition).unwrap_or_else(|| Arc::new([]));
        for resource in before.iter() {
            self.by_gvr.remove(resource.gvr());
            self.hashed.remove(resource.gvr());
        }
        before
    }

    /// The definitions that add something.
    pub fn definitions(&self) -> Vec<Arc<str>> {
        self.defined.keys().cloned().collect()
    }

    /// A served version of a definition, the storage version where that is served.
    pub fn of_definition(&self, definition: &str) -> Option<Arc<Resource>> {
        let all = self.defined.get(definition)?;
        all.iter().find(|r| *r.row.storage_version == *r.row.gvr.version).or(all.first()).cloned()
    }

    /// The names of those custom resources of a group that have one of the `wished`, but for one definition's.
    pub fn accepted_names(&self, group: &str, but: &str, wished: &BTreeSet<&str>) -> Vec<Value> {
        let first = Gvr { group: group.to_string().into(), version: "".into(), resource: "".into() };
        let in_group = self.by_gvr.range(first..).take_while(|(gvr, _)| gvr.group == group);
        let has = |r: &ResourceRow| {
            let own = [&*r.gvr.resource, &*r.singular, &*r.kind];
            let mut own = own.into_iter().chain(r.short_names.iter().map(|s| &**s));
            own.any(|name| wished.contains(name))
                || wished.iter().any(|w| w.strip_suffix("List") == Some(&*r.kind))
        };
        let others = in_group.filter(|(gvr, r)| r.custom.is_some() && has(&r.row) && !is_name(but, gvr));
        let names = others.map(|(_, r)| {
            let short: Vec<&str> = r.row.short_names.iter().map(|s| &**s).collect();
            json!({"plural": &*r.row.gvr.resource, "singular": &*r.row.singular, "kind": &*r.row.kind,
                "listKind": format!("{}List", r.row.kind), "shortNames": short})
        });
        names.collect()
    }
}

/// Is this the name of the definition of that resource: `<plural>.<group>`?
fn is_name(definition: &str, gvr: &Gvr) -> bool {
    let rest = definition.strip_prefix(&*gvr.resource).and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|group| gvr.group == group)
}

/// The registry of a running server: read without waiting, changed as a whole.
pub struct LiveRegistry {
    now: RwLock<Arc<Registry>>,
    emptying: Mutex<BTreeSet<Arc<str>>>,
    changes: tokio::sync::watch::Sender<u64>,
}

impl LiveRegistry {
    /// Starts with this one.
    pub fn new(registry: Registry) -> Self {
        LiveRegistry {
            now: RwLock::new(Arc::new(registry)),
            emptying: Mutex::default(),
            changes: tokio::sync::watch::Sender::new(0),
        }
    }

    /// The registry as it is now; it does not change under its reader.
    pub fn now(&self) -> Arc<Registry> {
        self.now.read().clone()
    }

    /// The resource served under this path now.
    pub fn find(&self, gvr: &Gvr) -> Option<Arc<Resource>> {
        self.now.read().find(gvr).cloned()
    }

    /// Turns when it changes.
    pub fn changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes it.
    pub fn change<T>(&self, edit: impl FnOnce(&mut Registry) -> T) -> T {
        let mut now = self.now.write();
        let mut next = Registry::clone(&now);
        let outcome = edit(&mut next);
        *now = Arc::new(next);
        self.changes.send_modify(|n| *n += 1);
        outcome
    }

    /// Notes that a definition's objects are being removed; false when somebody is at it.
    pub fn begin_emptying(&self, definition: &Arc<str>) -> bool {
        self.emptying.lock().insert(definition.clone())
    }

    /// The reverse.
    pub fn end_emptying(&self, definition: &str) {
        self.emptying.lock().remove(definition);
    }
}

fn builtin(realm: &str, row: &'static ResourceRow) -> Resource {
    let at = row.storage_gvr();
    let stored = k8s_schema::resource(&at.group, &at.version, &at.resource).unwrap_or(row);
    let group = if at.group.is_empty() { "core" } else { &at.group };
    let (row, stored) = (Held::Static(row), Held::Static(stored));
    Resource { row, stored, prefix: format!("/{realm}/{group}/{}/", at.resource).into(), custom: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_as_they_were_made() {
        let registry = Registry::builtin("main", true, &Default::default());
        let pods = registry.find(&k8s_schema::gvr::PODS).unwrap();
        let key = pods.key("default", "a");
        assert_eq!(&*key, "/main/core/pods/default/a");
        assert_eq!(split_key("/main/", &key), Some(("/main/core/pods/", "default/a")));
        let nodes = registry.find(&k8s_schema::gvr::NODES).unwrap();
        assert_eq!(&*nodes.key("", "n"), "/main/core/nodes/-/n");
        assert_eq!(split_suffix("-/n"), Some(("", "n")));
        assert_eq!(split_key("/main/", "/main/core"), None);
    }

    #[test]
    fn legacy_versions_share_the_place_of_todays() {
        let registry = Registry::builtin("main", true, &Default::default());
        let today = registry.find(&k8s_schema::gvr::DEPLOYMENTS).unwrap();
        let old = registry.find(&Gvr::new("extensions", "v1beta1", "deployments")).unwrap();
        assert_eq!(old.prefix, today.prefix);
        assert!(!old.is_storage_version() && today.is_storage_version());
        assert!(
            Registry::builtin("main", false, &Default::default())
                .find(&Gvr::new("extensions", "v1beta1", "deployments"))
                .is_none()
        );
    }
}

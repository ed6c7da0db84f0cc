//! The resources that this server serves, by group, version and plural name, and where each is stored.
//!
//! A [`Resource`] joins the served row with the row it is stored as: all versions of a resource share one place
//! in the store and one cache. Deliberately not here: behaviour of kinds (`rules`).

use k8s_schema::{Gvr, ResourceRow};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One served resource in one version.
pub struct Resource {
    /// The row as served.
    pub row: &'static ResourceRow,
    /// The row as stored; the same one for most.
    pub stored: &'static ResourceRow,
    /// Key prefix in the store: `/<realm>/<group or core>/<resource>/`.
    pub prefix: Arc<str>,
}

impl Resource {
    /// Served as stored?
    pub fn is_storage_version(&self) -> bool {
        std::ptr::eq(self.row, self.stored)
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

/// All served resources.
pub struct Registry {
    by_gvr: BTreeMap<Gvr, Arc<Resource>>,
}

impl Registry {
    /// The built-in resources of a realm.
    pub fn builtin(realm: &str, legacy: bool) -> Self {
        let rows = k8s_schema::resources().iter().filter(|r| legacy || !r.legacy);
        let by_gvr = rows.map(|row| (row.gvr.clone(), Arc::new(resource(realm, row)))).collect();
        Registry { by_gvr }
    }

    /// The resource served under this path.
    pub fn find(&self, gvr: &Gvr) -> Option<&Arc<Resource>> {
        self.by_gvr.get(gvr)
    }

    /// Every resource, sorted.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_gvr.values()
    }
}

fn resource(realm: &str, row: &'static ResourceRow) -> Resource {
    let at = row.storage_gvr();
    let stored = k8s_schema::resource(&at.group, &at.version, &at.resource).unwrap_or(row);
    let group = if at.group.is_empty() { "core" } else { &at.group };
    Resource { row, stored, prefix: format!("/{realm}/{group}/{}/", at.resource).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_as_they_were_made() {
        let registry = Registry::builtin("main", true);
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
        let registry = Registry::builtin("main", true);
        let today = registry.find(&k8s_schema::gvr::DEPLOYMENTS).unwrap();
        let old = registry.find(&Gvr::new("extensions", "v1beta1", "deployments")).unwrap();
        assert_eq!(old.prefix, today.prefix);
        assert!(!old.is_storage_version() && today.is_storage_version());
        assert!(
            Registry::builtin("main", false)
                .find(&Gvr::new("extensions", "v1beta1", "deployments"))
                .is_none()
        );
    }
}

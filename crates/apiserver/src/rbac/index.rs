//! Bindings by subject: what an authorizer must find without walking through every binding.

use crate::cache::Objects;
use crate::rbac::rules::Rule;
use auth::Identity;
use k8s_schema::View;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::sync::Arc;

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A Role or ClusterRole, as far as it decides.
#[derive(Debug, Default, Deserialize)]
pub struct Role {
    /// Its rules.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rules: Vec<Rule>,
}

/// A RoleBinding or ClusterRoleBinding, as far as it decides.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// To whom.
    #[serde(default, deserialize_with = "null_as_default")]
    pub subjects: Vec<Subject>,
    /// What.
    pub role_ref: RoleRef,
}

/// One entry of `subjects`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// `User`, `Group`, `ServiceAccount`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Of a service account.
    pub namespace: String,
}

/// `roleRef`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Name.
    pub name: String,
}

impl View for Role {
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(raw)
    }
}

impl View for Binding {
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(raw)
    }
}

/// One role given to one subject by one binding.
#[derive(Clone)]
pub struct Grant {
    /// Name of the binding.
    pub binding: Arc<str>,
    /// Namespace of the binding; "" for a ClusterRoleBinding.
    pub namespace: Arc<str>,
    /// The role.
    pub role: Arc<RoleRef>,
    /// Where the role is in its cache.
    pub suffix: Arc<str>,
    /// To whom.
    pub subject: Arc<Subject>,
}

#[derive(Default)]
struct Scope {
    users: BTreeMap<String, Vec<Grant>>,
    groups: BTreeMap<String, Vec<Grant>>,
}

/// The grants of one namespace, or of the whole cluster under "".
#[derive(Default)]
pub struct Index {
    scopes: BTreeMap<Arc<str>, Scope>,
}

impl Index {
    /// Reads all bindings.
    pub fn build(cluster: &Objects, namespaced: &Objects) -> Index {
        let mut index = Index::default();
        for object in cluster.values().chain(namespaced.values()) {
            let Ok(binding) = object.view::<Binding>() else { continue };
            let namespace = &object.key.namespace;
            let of_cluster = binding.role_ref.kind == "ClusterRole";
            let place = if of_cluster { "-" } else { namespace };
            let suffix: Arc<str> = format!("{place}/{}", binding.role_ref.name).into();
            let role = Arc::new(binding.role_ref.clone());
            for subject in &binding.subjects {
                let grant = Grant {
                    binding: object.key.name.clone(),
                    namespace: namespace.clone(),
                    role: role.clone(),
                    suffix: suffix.clone(),
                    subject: Arc::new(subject.clone()),
                };
                index.put(subject, grant);
            }
        }
        index
    }

    fn put(&mut self, subject: &Subject, grant: Grant) {
        let scope = self.scopes.entry(grant.namespace.clone()).or_default();
        let (map, name) = match subject.kind.as_str() {
            "User" => (&mut scope.users, subject.name.clone()),
            "Group" => (&mut scope.groups, subject.name.clone()),
            "ServiceAccount" => {
                let own = Some(&*subject.namespace).filter(|n| !n.is_empty()).unwrap_or(&grant.namespace);
                (&mut scope.users, auth::tokens::account_user(own, &subject.name))
            }
            _ => return,
        };
        map.entry(name).or_default().push(grant);
    }

    /// What an identity has been given for a namespace ("" for the cluster scope alone), cluster-wide grants first.
    pub fn grants<'a>(
        &'a self,
        identity: &'a Identity,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Grant> {
        let scopes = [Some(""), Some(namespace).filter(|n| !n.is_empty())];
        scopes.into_iter().flatten().filter_map(|n| self.scopes.get(n)).flat_map(|scope| {
            let groups = identity.groups.iter().filter_map(|g| scope.groups.get(g));
            scope.users.get(&identity.user).into_iter().chain(groups).flatten()
        })
    }
}

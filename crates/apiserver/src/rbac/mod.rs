//! RBAC: who may do what, by the Roles and Bindings in the realm's cache.
//!
//! Invariants: a question parses nothing (roles and bindings are decoded once an object, and indexed by subject
//! when a binding changes); an identity has what any one of its grants allows, and nothing else.
//! Deliberately not here: the superuser group and nodes (`authz`, `node_access`), escalation (`admission`).

mod index;
pub mod policy;
pub mod rules;

use crate::authz::{Attributes, Decision};
use crate::cache::{Cache, Objects};
use crate::resources::Registry;
use auth::Identity;
use index::{Grant, Index, Role};
use k8s_schema::{Gvr, gvr};
use parking_lot::RwLock;
use rules::Rule;
use std::sync::Arc;

/// The API group.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The four resources, in the order of [`View`]'s fields.
const RESOURCES: [&Gvr; 4] =
    [&gvr::CLUSTER_ROLES, &gvr::ROLES, &gvr::CLUSTER_ROLE_BINDINGS, &gvr::ROLE_BINDINGS];

/// What the answers are made from, as of one revision.
#[derive(Clone, Default)]
struct View {
    /// Nothing has changed between the objects' revision and this one.
    revision: u64,
    objects: [Objects; 4],
    index: Arc<Index>,
}

/// The authorizer.
pub struct Rbac {
    cache: Arc<Cache>,
    prefixes: [Arc<str>; 4],
    view: RwLock<View>,
}

/// The rules an identity has in a namespace.
#[derive(Default)]
pub struct Held {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Roles that bindings name and that are not there, in words.
    pub errors: Vec<String>,
}

fn same(a: &Objects, b: &Objects) -> bool {
    a.ptr_eq(b) || (a.is_empty() && b.is_empty())
}

impl Rbac {
    /// An authorizer over a realm's cache.
    pub fn new(cache: Arc<Cache>, registry: &Registry) -> Rbac {
        let prefix = |gvr| registry.find(gvr).map(|r| r.prefix.clone()).unwrap_or_else(|| "".into());
        Rbac { cache, prefixes: RESOURCES.map(prefix), view: RwLock::default() }
    }

    fn view(&self) -> View {
        let revision = self.cache.revision();
        let held = self.view.read().clone();
        if held.revision == revision {
            return held;
        }
        let objects = self.prefixes.each_ref().map(|p| self.cache.snapshot(p).objects);
        let same_bindings = same(&held.objects[2], &objects[2]) && same(&held.objects[3], &objects[3]);
        let index = if same_bindings { held.index } else { Arc::new(Index::build(&objects[2], &objects[3])) };
        let view = View { revision, objects, index };
        let mut kept = self.view.write();
        if kept.revision < revision {
            *kept = view.clone();
        }
        view
    }

    /// May `identity` do this?
    pub fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        match self.allowing(identity, attributes) {
            Ok(_) => Decision::Allow,
            Err(errors) if errors.is_empty() => Decision::Deny(String::new()),
            Err(errors) => Decision::Deny(format!("RBAC: {}", aggregate(&errors))),
        }
    }

    /// The grant that allows this, or why roles could not be read.
    fn allowing(&self, identity: &Identity, attributes: &Attributes) -> Result<Grant, Vec<String>> {
        let view = self.view();
        let mut errors = Vec::new();
        for grant in view.index.grants(identity, &attributes.namespace) {
            match view.role(grant) {
                Ok(role) if role.rules.iter().any(|r| r.allows(attributes)) => return Ok(grant.clone()),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    /// Why this is allowed, in upstream's words; "" when it is not.
    pub fn explain(&self, identity: &Identity, attributes: &Attributes) -> String {
        self.allowing(identity, attributes).map(|grant| explanation(&grant)).unwrap_or_default()
    }

    /// All rules of an identity in a namespace.
    pub fn held(&self, identity: &Identity, namespace: &str) -> Held {
        let view = self.view();
        let mut held = Held::default();
        for grant in view.index.grants(identity, namespace) {
            match view.role(grant) {
                Ok(role) => held.rules.extend(role.rules.iter().cloned()),
                Err(error) => held.errors.push(error),
            }
        }
        held
    }
}

impl View {
    fn role(&self, grant: &Grant) -> Result<Arc<Role>, String> {
        let of_cluster = grant.role.kind == "ClusterRole";
        let object = self.objects[usize::from(!of_cluster)].get(&grant.suffix);
        object.and_then(|o| o.view::<Role>().ok()).ok_or_else(|| {
            let kind = grant.role.kind.to_lowercase();
            format!("{kind}.{GROUP} \"{}\" not found", grant.role.name)
        })
    }
}

fn explanation(grant: &Grant) -> String {
    let subject = match (&*grant.subject.kind, &*grant.subject.namespace) {
        ("ServiceAccount", own) => {
            let namespace = if own.is_empty() { &*grant.namespace } else { own };
            format!("ServiceAccount \"{}/{namespace}\"", grant.subject.name)
        }
        (kind, _) => format!("{kind} {:?}", grant.subject.name),
    };
    let binding = match &*grant.namespace {
        "" => format!("ClusterRoleBinding {:?}", grant.binding),
        namespace => format!("RoleBinding \"{}/{namespace}\"", grant.binding),
    };
    format!("RBAC: allowed by {binding} of {} {:?} to {subject}", grant.role.kind, grant.role.name)
}

/// Several errors as upstream joins them.
pub fn aggregate(errors: &[String]) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    for error in errors {
        if !distinct.contains(&error.as_str()) {
            distinct.push(error);
        }
    }
    match distinct.as_slice() {
        [one] => one.to_string(),
        many => format!("[{}]", many.join(", ")),
    }
}

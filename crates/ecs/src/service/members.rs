//! Which tasks are a service's: kept up with the tasks, so that nobody looks through all of a cluster's.

use client::{Object, ObjectKey};
use ecs_model::doc::Doc;
use ecs_model::names::{Arn, Place, Scope};
use machinery::kinds::get::text;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Tasks by service.
pub struct Members {
    defaults: Place,
    tasks: Mutex<BTreeMap<ObjectKey, BTreeSet<ObjectKey>>>,
}

impl Members {
    /// None yet.
    pub fn new(defaults: Place) -> Members {
        Members { defaults, tasks: Mutex::default() }
    }

    /// The service that a task is of.
    fn service(&self, task: &Object) -> Option<ObjectKey> {
        let doc = task.view::<Doc>().ok()?;
        let name = text(doc.spec(), "/group").strip_prefix("service:")?;
        let arn = Arn::parse(text(doc.spec(), "/taskArn"))?;
        let scope = Scope { place: Place::new(arn.account, arn.region), defaults: self.defaults.clone() };
        Some(ObjectKey::new(task.key.namespace.clone(), scope.object_name(name)))
    }

    /// A task changed; the service that should look.
    pub fn change(&self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) -> Option<ObjectKey> {
        let task = new.or(old)?;
        let service = self.service(task)?;
        let mut tasks = self.tasks.lock();
        let own = tasks.entry(service.clone()).or_default();
        match new {
            Some(_) => own.insert(task.key.clone()),
            None => own.remove(&task.key),
        };
        if own.is_empty() {
            tasks.remove(&service);
        }
        Some(service)
    }

    /// A service's tasks.
    pub fn of(&self, service: &ObjectKey) -> Vec<ObjectKey> {
        self.tasks.lock().get(service).into_iter().flatten().cloned().collect()
    }
}

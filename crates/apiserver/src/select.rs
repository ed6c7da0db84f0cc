//! Selections: which objects of a resource a list or watch is about.
//!
//! Label selectors read the object's shared metadata; field selectors read single strings straight from the
//! bytes where they can and parse only for the rest.

use crate::cache::{Change, Interest};
use crate::resources::Resource;
use crate::{rules, scan};
use client::{EventKind, Object};
use machinery::selector::{FieldSelector, LabelSelector};
use machinery::status::ApiError;
use std::sync::Arc;

/// Fields of pods that are plain strings, absent meaning "": read without parsing.
const POD_STRINGS: [&str; 6] = [
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
];

/// A checked selection.
#[derive(Clone)]
pub struct Selection {
    /// Of which resource.
    pub resource: Arc<Resource>,
    /// Only in this namespace.
    pub namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Only this name: from the path of a named watch, or the field selector.
    pub name: Option<String>,
}

impl Selection {
    /// Parses both selectors; 400 in Kubernetes' words when one is bad or names a field that cannot be selected.
    pub fn parse(
        resource: &Arc<Resource>,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(labels).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(fields).map_err(|e| ApiError::bad_request(e.to_string()))?;
        rules::check_selectable(resource, &fields)?;
        let name = fields.exact("metadata.name").map(str::to_string);
        let namespace = namespace.filter(|n| !n.is_empty()).map(str::to_string);
        Ok(Selection { resource: resource.clone(), namespace, labels, fields, name })
    }

    /// Narrows to one object.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_string());
        self
    }

    /// Where a webhook converts the objects, their fields can only be selected afterwards: what can be selected before,
    /// when that is less than all.
    pub fn early(&self) -> Option<Selection> {
        let own = |field: &str| !matches!(field, "metadata.name" | "metadata.namespace");
        let late =
            self.resource.webhook().is_some() && self.fields.requirements.iter().any(|r| own(&r.field));
        late.then(|| {
            let mut early = self.clone();
            early.fields.requirements.retain(|r| !own(&r.field));
            early
        })
    }

    /// Is there any selector beside the namespace?
    pub fn is_selective(&self) -> bool {
        self.name.is_some() || !self.labels.is_everything() || !self.fields.is_empty()
    }

    /// The sieve for the cache.
    pub fn interest(&self) -> Interest {
        Interest { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Does the selection hold this object?
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|n| *n == *object.key.namespace)
            && self.name.as_deref().is_none_or(|n| *n == *object.key.name)
            && (self.labels.is_everything() || self.labels.matches(&object.meta().labels))
            && (self.fields.is_empty() || self.fields_match(object))
    }

    fn fields_match(&self, object: &Object) -> bool {
        let mut parsed = None;
        self.fields.matches(|field| match field {
            "metadata.name" => Some(object.key.name.to_string()),
            "metadata.namespace" => Some(object.key.namespace.to_string()),
            field if self.resource.is("", "pods") && POD_STRINGS.contains(&field) => {
                let path: Vec<&str> = field.split('.').collect();
                Some(scan::string_at(&object.raw, &path).unwrap_or_default().to_string())
            }
            field => {
                let value = parsed.get_or_insert_with(|| object.value().unwrap_or_default());
                rules::field(&self.resource, value, field)
            }
        })
    }

    /// What a change looks like from inside the selection: objects enter and leave it.
    pub fn transition(&self, change: &Change) -> Option<EventKind> {
        let now = change.kind != EventKind::Deleted && self.matches(&change.object);
        let before = change.previous.as_ref().is_some_and(|o| self.matches(o));
        match (before, now) {
            (false, true) => Some(EventKind::Added),
            (true, true) => Some(EventKind::Modified),
            (true, false) => Some(EventKind::Deleted),
            (false, false) => None,
        }
    }

    /// The selected objects of a snapshot, in key order.
    pub fn filter<'a>(
        &'a self,
        objects: &'a crate::cache::Objects,
        after: &str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let prefix = self.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
        let from: Arc<str> = if after > prefix.as_str() { after.into() } else { prefix.as_str().into() };
        let after: Arc<str> = after.into();
        objects
            .range(from..)
            .skip_while(move |(key, _)| **key == after)
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .map(|(_, object)| object)
            .filter(|object| self.matches(object))
    }
}

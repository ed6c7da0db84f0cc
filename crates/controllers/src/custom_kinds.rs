//! The custom kinds that are served now, from the shared cache of their definitions.
//!
//! For controllers that deal with objects of every kind. A kind is named by the version that is stored, where that is
//! served: reading it needs no conversion.

use crate::context::Informers;
use client::Object;
use client::cache::Cache;
use k8s_schema::{Gvr, gvr};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// A kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Where its objects are.
    pub gvr: Gvr,
    /// Are they in namespaces?
    pub namespaced: bool,
    kind: String,
    versions: BTreeSet<String>,
}

impl Kind {
    /// Of a definition that is established and serves something.
    fn read(definition: &Value) -> Option<Kind> {
        let text = |at: &str| definition.pointer(at).and_then(Value::as_str).map(str::to_string);
        let conditions = definition["status"]["conditions"].as_array()?.iter();
        let mut established = conditions.filter(|c| c["type"] == "Established" && c["status"] == "True");
        established.next()?;
        let served = definition["spec"]["versions"].as_array()?.iter().filter(|v| v["served"] == true);
        let served: Vec<&Value> = served.collect();
        let chosen = served.iter().find(|v| v["storage"] == true).or(served.first())?;
        Some(Kind {
            gvr: Gvr {
                group: text("/spec/group")?.into(),
                version: chosen["name"].as_str()?.to_string().into(),
                resource: text("/spec/names/plural")?.into(),
            },
            namespaced: definition["spec"]["scope"] == "Namespaced",
            kind: text("/spec/names/kind")?,
            versions: served.iter().filter_map(|v| v["name"].as_str().map(str::to_string)).collect(),
        })
    }
}

/// All custom kinds, kept fresh.
pub struct Kinds {
    /// By the definition's name.
    known: Mutex<BTreeMap<Arc<str>, Kind>>,
    changed: watch::Sender<()>,
    cache: Arc<Cache>,
}

impl Kinds {
    /// Follows the definitions.
    pub fn start(informers: &Informers) -> Arc<Kinds> {
        let cache = informers.of(&gvr::CUSTOM_RESOURCE_DEFINITIONS);
        let kinds = Arc::new(Kinds { known: Mutex::default(), changed: watch::Sender::new(()), cache });
        let weak: Weak<Kinds> = Arc::downgrade(&kinds);
        kinds.cache.on_change(Box::new(move |old, new| {
            let (Some(kinds), Some(object)) = (weak.upgrade(), new.or(old)) else { return };
            kinds.note(object, new.is_some());
        }));
        kinds
    }

    fn note(&self, object: &Arc<Object>, there: bool) {
        let kind = object.value().ok().filter(|_| there).and_then(|definition| Kind::read(&definition));
        let mut known = self.known.lock();
        let before = match kind.clone() {
            Some(kind) => known.insert(object.key.name.clone(), kind),
            None => known.remove(&object.key.name),
        };
        drop(known);
        if before != kind {
            self.changed.send_replace(());
        }
    }

    /// Waits until the definitions were listed once.
    pub async fn wait_synced(&self) {
        self.cache.wait_synced().await;
    }

    /// Changes when the kinds do.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Every kind.
    pub fn all(&self) -> Vec<Kind> {
        self.known.lock().values().cloned().collect()
    }

    /// The kind of that name in a served version.
    pub fn find(&self, group: &str, version: &str, kind: &str) -> Option<Kind> {
        let known = self.known.lock();
        let mut named = known.values().filter(|k| k.gvr.group == group && k.kind == kind);
        named.find(|k| k.versions.contains(version)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_established_is_a_kind() {
        let mut definition = json!({"spec": {"group": "example.org", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": false}, {"name": "v2", "served": true, "storage": true},
                {"name": "v3", "served": false, "storage": false}]}});
        assert_eq!(Kind::read(&definition), None);
        definition["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        let kind = Kind::read(&definition).unwrap();
        assert_eq!(kind.gvr, Gvr::new("example.org", "v2", "widgets"));
        assert_eq!(kind.versions, BTreeSet::from(["v1".to_string(), "v2".to_string()]));
        definition["spec"]["versions"][1]["served"] = json!(false);
        assert_eq!(Kind::read(&definition).unwrap().gvr.version, "v1");
        definition["spec"]["versions"][0]["served"] = json!(false);
        assert_eq!(Kind::read(&definition), None);
    }
}

//! `metadata.managedFields`: who owns what, read, bounded, sorted and written.

use super::set::{self, Node};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Update entries kept apart, as upstream; the oldest beyond them share one entry a version.
pub const UPDATERS_MAX: usize = 10;
const SHARED_NAME: &str = "ancient-changes";

/// One manager's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The manager's name.
    pub manager: String,
    /// Does it apply (or update)?
    pub applies: bool,
    /// The version that its paths are of.
    pub api_version: String,
    /// The subresource that it writes through.
    pub subresource: String,
    /// When it last changed something (RFC 3339).
    pub time: Option<String>,
    /// What it owns.
    pub fields: Node,
}

impl Entry {
    /// Do both stand for the same manager? An applier is the same in every version.
    pub fn is_same(&self, other: &Entry) -> bool {
        self.applies == other.applies
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.applies || self.api_version == other.api_version)
    }

    fn order(&self) -> (bool, &Option<String>, &str, &str, &str) {
        (!self.applies, &self.time, &self.manager, &self.api_version, &self.subresource)
    }

    /// As conflicts name it: `"name" with subresource "status" using apps/v1`.
    pub fn title(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.applies {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

/// Reads entries that this server wrote; `None` when there is something that it would not write.
pub fn read(list: Value) -> Option<Vec<Entry>> {
    let Value::Array(list) = list else { return list.is_null().then(Vec::new) };
    list.into_iter().map(entry).collect()
}

/// Reads entries that a client sent.
pub fn read_foreign(list: Value) -> Option<Vec<Entry>> {
    let mut entries = read(list)?;
    for entry in &mut entries {
        entry.fields = set::parse(&entry.fields)?;
    }
    Some(entries)
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Object(mut map) = value else { return None };
    let mut text = |name: &str| match map.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (operation, fields_type, time) = (text("operation"), text("fieldsType"), text("time"));
    let (manager, api_version, subresource) = (text("manager"), text("apiVersion"), text("subresource"));
    let fields = match map.remove("fieldsV1") {
        Some(Value::Object(fields)) => fields,
        None | Some(Value::Null) => Node::new(),
        Some(_) => return None,
    };
    let valid = matches!(operation.as_str(), "Apply" | "Update") && fields_type == "FieldsV1";
    let time = Some(time).filter(|t| !t.is_empty());
    let entry = Entry { manager, applies: operation == "Apply", api_version, subresource, time, fields };
    valid.then_some(entry)
}

/// Is this the list that asks to forget all managers (`[{}]`)?
pub fn is_reset(list: &Value) -> bool {
    matches!(list.as_array().map(Vec::as_slice), Some([Value::Object(only)]) if only.is_empty())
}

/// Writes entries; `None` when there are none.
pub fn write(mut entries: Vec<Entry>) -> Option<Value> {
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
    Some(entries.into_iter().map(entry_value).collect())
}

fn entry_value(entry: Entry) -> Value {
    let mut map = Map::new();
    map.insert("apiVersion".into(), entry.api_version.into());
    map.insert("fieldsType".into(), "FieldsV1".into());
    map.insert("fieldsV1".into(), entry.fields.into());
    map.insert("manager".into(), entry.manager.into());
    map.insert("operation".into(), json!(if entry.applies { "Apply" } else { "Update" }));
    if !entry.subresource.is_empty() {
        map.insert("subresource".into(), entry.subresource.into());
    }
    if let Some(time) = entry.time {
        map.insert("time".into(), time.into());
    }
    Value::Object(map)
}

/// Do two lists differ in nothing but times?
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else { return a == b };
    let timeless = |entry: &Value, other: &Value| match (entry.as_object(), other.as_object()) {
        (Some(a), Some(b)) => {
            a.iter().filter(|(k, _)| *k != "time").eq(b.iter().filter(|(k, _)| *k != "time"))
        }
        _ => entry == other,
    };
    a.len() == b.len() && a.iter().all(|entry| b.iter().any(|other| timeless(entry, other)))
}

/// Joins the oldest updaters of each version until at most [`UPDATERS_MAX`] are left.
pub fn cap(entries: &mut Vec<Entry>) {
    let updaters = entries.iter().filter(|e| !e.applies).count();
    let Some(mut surplus) = updaters.checked_sub(UPDATERS_MAX).filter(|n| *n > 0) else { return };
    // The shared entry is the oldest of its time, so that there is never a second one.
    let age = |e: &Entry| (e.time.clone(), e.manager != SHARED_NAME);
    entries.sort_by(|a, b| age(a).cmp(&age(b)).then_with(|| a.order().cmp(&b.order())));
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    // The first of a version waits under its own name until a second one comes.
    let mut firsts: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::mem::take(entries) {
        if entry.applies || surplus == 0 {
            kept.push(entry);
            continue;
        }
        let Some(first) = firsts.get(&entry.api_version) else {
            firsts.insert(entry.api_version.clone(), kept.len());
            kept.push(entry);
            continue;
        };
        let bucket = &mut kept[*first];
        bucket.manager = SHARED_NAME.into();
        bucket.subresource.clear();
        bucket.time = entry.time;
        set::unite(&mut bucket.fields, &entry.fields);
        surplus -= 1;
    }
    *entries = kept;
}

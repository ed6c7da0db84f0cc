//! The two operations: what a write changed becomes its writer's; an applied configuration meets its object.

use super::compare::{Comparison, compare, field_set, with_structures};
use super::managers::{self, Entry};
use super::set::{self, Node};
use super::shape::{EMPTY, Spot};
use super::{ApplyError, Conflict, Writer, last_applied, merge};
use crate::convert;
use crate::kinds::behaviour_of;
use k8s_schema::{ResourceRow, Type};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The updater that owns what was there before the first apply to an object without managers.
const BEFORE_FIRST: &str = "before-first-apply";

/// Nobody owns these: they name the object or are the server's.
const UNOWNED: [&str; 11] = [
    "/apiVersion",
    "/kind",
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/creationTimestamp",
    "/metadata/selfLink",
    "/metadata/uid",
    "/metadata/clusterName",
    "/metadata/generation",
    "/metadata/managedFields",
    "/metadata/resourceVersion",
];

static UNOWNED_SET: LazyLock<Node> = LazyLock::new(|| set::of_fields(&UNOWNED));

/// Fields that a write through this door cannot set, so that it does not come to own them.
fn ignored(row: &ResourceRow, subresource: &str) -> Node {
    let splits = row.subresources.iter().any(|s| &*s.name == "status") && behaviour_of(row).drops_status;
    set::of_fields(match (subresource, &*row.storage_group, &*row.gvr.resource) {
        ("" | "scale" | "resize" | "ephemeralcontainers", ..) if splits => &["/status"],
        ("status", "", "pods") => &["/spec", "/metadata/deletionTimestamp", "/metadata/ownerReferences"],
        ("status", "apps", _) => &["/spec", "/metadata/labels"],
        ("status" | "approval", ..) => &["/spec"],
        _ => &[],
    })
}

fn body_type(row: &ResourceRow) -> Type {
    Type::Object(row.def.clone())
}

/// An object of one version in another.
fn converted<'v>(value: &'v Value, from: &ResourceRow, to: &ResourceRow) -> Cow<'v, Value> {
    if from.gvr == to.gvr {
        return Cow::Borrowed(value);
    }
    let mut value = value.clone();
    convert::to_storage(from, &mut value);
    convert::from_storage(to, &mut value);
    Cow::Owned(value)
}

/// What two objects differ in, in every version that somebody asks about.
struct Differences<'v> {
    old: &'v Value,
    new: &'v Value,
    found: BTreeMap<String, Option<Comparison>>,
}

impl Differences<'_> {
    /// `None`: that version is not served.
    fn in_version(&mut self, writer: &Writer<'_>, api_version: &str) -> Option<&Comparison> {
        if !self.found.contains_key(api_version) {
            let compared = writer.row_of(api_version).map(|row| writer.compare(row, self.old, self.new));
            self.found.insert(api_version.into(), compared);
        }
        self.found.get(api_version)?.as_ref()
    }
}

impl<'a> Writer<'a> {
    fn entry(&self, applies: bool) -> Entry {
        Entry {
            manager: if self.manager.is_empty() { "unknown" } else { self.manager }.into(),
            applies,
            api_version: self.row.api_version(),
            subresource: self.subresource.into(),
            time: Some(self.now.into()),
            fields: Node::new(),
        }
    }

    /// The row of that version.
    fn row_of(&self, api_version: &str) -> Option<&'a ResourceRow> {
        if self.row.api_version() == api_version { Some(self.row) } else { (self.sibling)(api_version) }
    }

    fn compare(&self, row: &ResourceRow, old: &Value, new: &Value) -> Comparison {
        let (ty, ignored) = (body_type(row), ignored(row, self.subresource));
        let mut found =
            compare(Spot::root(&ty), Some(&converted(old, self.row, row)), &converted(new, self.row, row));
        for set in [&mut found.added, &mut found.modified, &mut found.removed] {
            set::subtract_deep(set, &ignored);
        }
        found
    }

    /// Takes from all managers but `me` what differs. What they lose to an applier are the conflicts; an updater
    /// (no `me`) is not told.
    fn take(
        &self,
        entries: &mut Vec<Entry>,
        me: Option<&Entry>,
        differences: &mut Differences<'_>,
    ) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        entries.retain_mut(|entry| {
            if me.is_some_and(|me| me.is_same(entry)) {
                return true;
            }
            // Nobody can say any more what a version meant that is not served.
            let Some(found) = differences.in_version(self, &entry.api_version) else { return false };
            if me.is_some() {
                let mut wanted = set::intersection(&entry.fields, &found.modified);
                set::unite(&mut wanted, &set::intersection(&entry.fields, &found.added));
                let conflict = |path| Conflict { owner: entry.title(), path };
                conflicts.extend(set::paths(&wanted).into_iter().map(conflict));
            }
            for gone in [&found.added, &found.modified, &found.removed] {
                set::subtract(&mut entry.fields, gone);
            }
            !entry.fields.is_empty()
        });
        conflicts.sort_by(|a, b| a.owner.cmp(&b.owner));
        conflicts
    }

    /// Records what changed from `old` to `new` as the writer's.
    fn record(&self, entries: &mut Vec<Entry>, (old, new): (&Value, &Value), changed: Comparison) {
        if changed.is_empty() {
            return;
        }
        let version = self.row.api_version();
        let mut differences =
            Differences { old, new, found: BTreeMap::from([(version.clone(), Some(changed))]) };
        self.take(entries, None, &mut differences);
        let mut changed = differences.found.remove(&version).flatten().unwrap_or_default();
        let mut taken = std::mem::take(&mut changed.added);
        set::unite(&mut taken, &changed.modified);
        set::subtract(&mut taken, &UNOWNED_SET);
        if !taken.is_empty() {
            let own = self.entry(false);
            match entries.iter_mut().find(|e| e.is_same(&own)) {
                Some(present) => {
                    set::unite(&mut present.fields, &taken);
                    present.time = own.time;
                }
                None => entries.push(Entry { fields: taken, ..own }),
            }
        }
        managers::cap(entries);
    }
}

/// Takes the list of managers out of an object.
fn take_list(object: &mut Value) -> Value {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|m| m.remove("managedFields")).unwrap_or_default()
}

fn put_list(object: &mut Value, entries: Vec<Entry>) {
    if let (Some(list), Some(metadata)) = (managers::write(entries), object.get_mut("metadata")) {
        metadata["managedFields"] = list;
    }
}

/// The managers after a create (`old` is `None`), update or patch that made `new`: what becomes
/// `metadata.managedFields`. Takes the list that the client sent out of `new`; one that makes sense is believed
/// (through a subresource the present one is).
pub fn update(writer: &Writer<'_>, old: Option<&Value>, new: &mut Value) -> Option<Value> {
    let present = || old.map(|o| o["metadata"]["managedFields"].clone()).unwrap_or_default();
    let sent = take_list(new);
    let unchanged = old.is_some_and(|o| o["metadata"]["managedFields"] == sent);
    let is_main = writer.subresource.is_empty();
    let nobody = unchanged && sent.is_null();
    if nobody || (is_main && managers::is_reset(&sent)) {
        return None;
    }
    let before = old.unwrap_or(&EMPTY);
    let changed = writer.compare(writer.row, before, new);
    if unchanged && changed.is_empty() {
        return Some(sent);
    }
    let sent = match (unchanged, is_main) {
        (true, _) => managers::read(sent),
        (false, true) => managers::read_foreign(sent),
        (false, false) => None,
    };
    let mut entries = match sent.filter(|list| !list.is_empty()) {
        Some(list) => list,
        None => managers::read(present()).unwrap_or_default(),
    };
    // An object without managers goes without until somebody applies to it.
    if old.is_none() || !entries.is_empty() {
        writer.record(&mut entries, (before, new), changed);
    }
    managers::write(entries)
}

/// Applies `config` to `live` (`None`: there is no such object yet): the object as it shall be, not defaulted, with
/// its managers. An object that does not change is returned as it is.
pub fn apply(
    writer: &Writer<'_>,
    live: Option<Value>,
    config: &Value,
    force: bool,
) -> Result<Value, ApplyError> {
    let ty = body_type(writer.row);
    let root = Spot::root(&ty);
    check(writer, root, config)?;
    let (mut live, exists) = match live {
        Some(live) => (live, true),
        None => (json!({"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {}}), false),
    };
    let given = take_list(&mut live);
    let mut entries = managers::read(given).unwrap_or_default();
    if exists && entries.is_empty() {
        let all = writer.compare(writer.row, &EMPTY, &live);
        Writer { manager: BEFORE_FIRST, ..*writer }.record(&mut entries, (&EMPTY, &live), all);
    }
    let settled = match settle(writer, root, &live, (entries.clone(), config), force) {
        Err(conflicts) if writer.manager == last_applied::KUBECTL => {
            let mine = set::paths(&last_applied::still_true(root, &live, &writer.row.api_version()));
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !mine.contains(&c.path)).collect();
            if left.is_empty() { settle(writer, root, &live, (entries, config), true) } else { Err(left) }
        }
        settled => settled,
    };
    let (mut object, entries) = settled.map_err(ApplyError::Conflicts)?;
    if writer.manager == last_applied::KUBECTL {
        last_applied::sync(&mut object, config);
    }
    put_list(&mut object, entries);
    Ok(object)
}

/// The configuration must be of the right kind, without managers, and fit the schema.
fn check(writer: &Writer<'_>, root: Spot<'_>, config: &Value) -> Result<(), ApplyError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (version, kind) = (text(&config["apiVersion"]), text(&config["kind"]));
    let gvk = format!("{}{version}, Kind={kind}", if version.contains('/') { "" } else { "/" });
    if version != writer.row.api_version() || kind != *writer.row.kind {
        return Err(ApplyError::Malformed(format!("invalid object type: {gvk}")));
    }
    if !config["metadata"]["managedFields"].is_null() {
        return Err(ApplyError::Malformed("metadata.managedFields must be nil".into()));
    }
    merge::check(root, config).map_err(|words| {
        let (namespace, name) = (text(&config["metadata"]["namespace"]), text(&config["metadata"]["name"]));
        ApplyError::Untyped(format!(
            "failed to create typed patch object ({namespace}/{name}; {gvk}): {words}"
        ))
    })
}

/// Merges, prunes, and settles who owns what.
fn settle(
    writer: &Writer<'_>,
    root: Spot<'_>,
    live: &Value,
    (mut entries, config): (Vec<Entry>, &Value),
    force: bool,
) -> Result<(Value, Vec<Entry>), Vec<Conflict>> {
    let mut own = writer.entry(true);
    own.fields = field_set(root, config);
    set::subtract_deep(&mut own.fields, &ignored(writer.row, writer.subresource));
    let last = entries.iter().position(|e| e.is_same(&own)).map(|at| entries.remove(at));
    entries.push(own.clone());
    let merged = merge::merge(root, live.clone(), config);
    let object = prune(writer, merged, &entries, last.as_ref());
    let mut differences = Differences { old: live, new: &object, found: BTreeMap::new() };
    let conflicts = writer.take(&mut entries, Some(&own), &mut differences);
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    for entry in entries.iter_mut().filter(|e| e.is_same(&own)) {
        set::subtract(&mut entry.fields, &UNOWNED_SET);
        // A repeated apply that changes nothing is no event.
        if let Some(last) = last.as_ref().filter(|l| *live == object && l.fields == entry.fields) {
            entry.time = last.time.clone();
        }
    }
    entries.retain(|e| !e.fields.is_empty());
    Ok((object, entries))
}

/// Takes out of `merged` what the manager applied last time, does not apply now, and nobody else owns.
fn prune(writer: &Writer<'_>, merged: Value, entries: &[Entry], last: Option<&Entry>) -> Value {
    let Some(last) = last.filter(|l| !l.fields.is_empty()) else { return merged };
    let Some(base) = writer.row_of(&last.api_version) else { return merged };
    let mut given_up = last.fields.clone();
    for entry in entries.iter().filter(|e| e.is_same(last) && e.api_version == last.api_version) {
        set::subtract(&mut given_up, &entry.fields);
    }
    if given_up.is_empty() {
        return merged;
    }
    let base_type = body_type(base);
    let base_root = Spot::root(&base_type);
    let merged = converted(&merged, writer.row, base).into_owned();
    let last = structured(base_root, last.fields.clone());
    let mut pruned = merged.clone();
    merge::remove(base_root, &mut pruned, &last);
    // First in the version of the last apply, then in those of all other managers.
    let mut versions: Vec<&str> = entries.iter().map(|e| e.api_version.as_str()).collect();
    versions.sort_by_key(|v| (*v != base.api_version(), *v));
    versions.dedup();
    for version in versions {
        let Some(row) = writer.row_of(version) else { continue };
        let ty = body_type(row);
        let root = Spot::root(&ty);
        let full = converted(&merged, base, row).into_owned();
        let mut doomed = structured(root, field_set(root, &full));
        set::subtract(&mut doomed, &structured(root, field_set(root, &converted(&pruned, base, row))));
        for entry in entries.iter().filter(|e| e.api_version == version) {
            set::subtract(&mut doomed, &structured(root, entry.fields.clone()));
        }
        let mut kept = full;
        merge::remove(root, &mut kept, &doomed);
        pruned = converted(&kept, row, base).into_owned();
    }
    let all = structured(base_root, field_set(base_root, &merged));
    let mut doomed = all;
    set::subtract(&mut doomed, &structured(base_root, field_set(base_root, &pruned)));
    let mut object = merged;
    merge::remove(base_root, &mut object, &set::intersection(&doomed, &last));
    converted(&object, base, writer.row).into_owned()
}

fn structured(root: Spot<'_>, mut set: Node) -> Node {
    with_structures(root, &mut set);
    set
}

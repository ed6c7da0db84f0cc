//! Behaviour rows: what is special about each kind (defaults, validation, strategy, columns), as data plus
//! one small function where data is not enough. One file a family, one row a kind, one table ([`ROWS`]).
//!
//! Every resource without a row gets [`GENERIC`]: metadata rules, the status split, NAME and AGE.
//! Deliberately not here: allocation (cluster IPs, node ports), admission, storage.

mod addresses;
mod admission_policy;
mod autoscaler;
mod batch;
pub mod certificates;
mod config;
pub mod coordination;
pub mod crd;
mod csi;
mod devices;
mod ecs;
mod endpoints;
mod event;
mod flow;
pub mod get;
mod job_rules;
mod job_status;
mod limits;
pub mod meta;
mod metrics;
mod namespace;
mod networking;
mod node;
pub mod pod;
mod pod_groups;
mod policy;
mod service;
pub mod spot;
mod storage;
mod storage_migration;
pub mod strategy;
mod webhooks;
mod workload;

use crate::table::Column;
use k8s_schema::ResourceRow;
use serde_json::Value;
use spot::Spot;

/// How names of a kind must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain (most kinds).
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    Label1035,
    /// Anything that can be one path segment (RBAC).
    PathSegment,
    /// What a key of a ConfigMap may be.
    ConfigKey,
    /// RFC 1123 subdomain of limited length.
    SubdomainUpTo(usize),
}

/// How a field selector label is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// The string at this JSON pointer.
    Text(&'static str),
    /// The first of two strings that is there.
    Either(&'static str, &'static str),
    /// `true` or `false`.
    Bool(&'static str),
    /// A number; 0 when absent.
    Number(&'static str),
}

/// What is special about one kind.
pub struct Behaviour {
    /// API group of the rows this applies to ("" is core), storage group for shared kinds.
    pub group: &'static str,
    /// Plural.
    pub resource: &'static str,
    /// Does the row validate what is stored?
    pub validated: bool,
    /// Name rule.
    pub name: NameRule,
    /// Does the kind count generations?
    pub generation: bool,
    /// Do changed annotations count as a new generation (Deployment)?
    pub annotations_count: bool,
    /// Does a create or main update ignore `status` (where there is a status subresource)?
    pub drops_status: bool,
    /// May a PUT create the object?
    pub create_on_update: bool,
    /// May an update leave out the resourceVersion?
    pub unconditional_update: bool,
    /// Fills in defaults.
    pub defaults: fn(&mut Value),
    /// Fills in what a create always starts with.
    pub prepare_create: fn(&mut Value),
    /// Takes over from `old` what a main update may not change, beyond status and metadata.
    pub prepare_update: fn(&mut Value, &Value),
    /// The same for a status update.
    pub prepare_status: fn(&mut Value, &Value),
    /// Checks a new object, metadata apart; what an update makes of one, too, unless there is `validate_update`.
    pub validate: fn(&Spot),
    /// Checks a main update (new, old), metadata apart.
    pub validate_update: Option<fn(&Spot, &Value)>,
    /// What a main update may not change: paths, looked at last.
    pub immutable: &'static [&'static str],
    /// Checks a status update (new, old).
    pub validate_status: fn(&Spot, &Value),
    /// Grace of a delete in seconds (object, asked); `None`: the kind has no graceful deletion.
    pub grace: fn(&Value, Option<i64>) -> Option<i64>,
    /// Field selector labels beyond metadata.name and metadata.namespace.
    pub fields: &'static [(&'static str, FieldKind)],
    /// Printer columns.
    pub columns: &'static [Column],
}

fn nothing(_: &mut Value) {}
fn nothing2(_: &mut Value, _: &Value) {}
fn valid(_: &Spot) {}
fn valid2(_: &Spot, _: &Value) {}
fn no_grace(_: &Value, _: Option<i64>) -> Option<i64> {
    None
}

/// The row of every resource that has none of its own.
pub const GENERIC: Behaviour = Behaviour {
    group: "",
    resource: "",
    validated: false,
    name: NameRule::Subdomain,
    generation: false,
    annotations_count: false,
    drops_status: true,
    create_on_update: false,
    unconditional_update: true,
    defaults: nothing,
    prepare_create: nothing,
    prepare_update: nothing2,
    prepare_status: nothing2,
    validate: valid,
    validate_update: None,
    immutable: &[],
    validate_status: valid2,
    grace: no_grace,
    fields: &[],
    columns: &[Column::NAME, Column::AGE],
};

/// Where kinds that are checked start from.
const CHECKED: Behaviour = Behaviour { validated: true, ..GENERIC };
/// The same, where generations are counted.
const COUNTED: Behaviour = Behaviour { generation: true, ..CHECKED };
/// An update is only asked what it may not change.
const UNCHECKED: Option<fn(&Spot, &Value)> = Some(valid2);

static GENERIC_ROW: Behaviour = GENERIC;
/// Unlisted resources that count generations: custom resources and kinds with a reconciled spec.
static GENERIC_COUNTED: Behaviour = Behaviour { generation: true, ..GENERIC };

/// The table. One line a family.
static ROWS: &[&[Behaviour]] = &[
    addresses::ROWS,
    admission_policy::ROWS,
    autoscaler::ROWS,
    batch::ROWS,
    certificates::ROWS,
    config::ROWS,
    coordination::ROWS,
    crd::ROWS,
    csi::ROWS,
    devices::ROWS,
    ecs::ROWS,
    endpoints::ROWS,
    event::ROWS,
    flow::ROWS,
    limits::ROWS,
    metrics::ROWS,
    namespace::ROWS,
    networking::ROWS,
    node::ROWS,
    pod::ROWS,
    pod_groups::ROWS,
    policy::ROWS,
    service::ROWS,
    storage::ROWS,
    storage_migration::ROWS,
    webhooks::ROWS,
    workload::ROWS,
];

/// The row of a resource; the generic one where there is none.
pub fn behaviour(group: &str, resource: &str) -> &'static Behaviour {
    let all = ROWS.iter().flat_map(|family| family.iter());
    let mut found = all.filter(|b| b.resource == resource && b.group == group);
    found.next().unwrap_or(if group.is_empty() { &GENERIC_ROW } else { &GENERIC_COUNTED })
}

/// The row of a served resource: that of its storage group, so that all versions share it.
pub fn behaviour_of(row: &ResourceRow) -> &'static Behaviour {
    behaviour(&row.storage_group, &row.gvr.resource)
}

fn field_label(behaviour: &Behaviour, namespaced: bool, label: &str) -> Option<FieldKind> {
    match label {
        "metadata.name" => Some(FieldKind::Text("/metadata/name")),
        "metadata.namespace" if namespaced || behaviour.fields.is_empty() => {
            Some(FieldKind::Text("/metadata/namespace"))
        }
        _ => behaviour.fields.iter().find(|(l, _)| *l == label).map(|(_, kind)| *kind),
    }
}

/// The value of a field selector label on an object; `None` when the kind does not support the label.
pub fn field_value(row: &ResourceRow, obj: &Value, label: &str) -> Option<String> {
    let kind = field_label(behaviour_of(row), row.namespaced, label)?;
    Some(match kind {
        FieldKind::Text(at) => get::text(obj, at).to_string(),
        FieldKind::Either(a, b) => {
            let first = get::text(obj, a);
            if first.is_empty() { get::text(obj, b).to_string() } else { first.to_string() }
        }
        FieldKind::Bool(at) => get::flag(obj, at).to_string(),
        FieldKind::Number(at) => get::int(obj, at).unwrap_or(0).to_string(),
    })
}

/// The resources whose objects are *stored, not validated* beyond schema and metadata: `plural.group`.
pub fn stored_not_validated() -> Vec<String> {
    let rows = k8s_schema::resources().iter();
    let stored = rows.filter(|r| r.verbs.contains(&"update") && !r.legacy && !behaviour_of(r).validated);
    stored.map(|r| r.gvr.group_resource()).collect()
}

#[cfg(test)]
mod tests;

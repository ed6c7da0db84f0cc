//! `meta.k8s.io/v1` Tables: what `kubectl get` shows, rendered from column rows.

use crate::kinds::behaviour_of;
use crate::kinds::get::{flag, int, list, text};
use crate::time;
use jiff::Timestamp;
use k8s_schema::ResourceRow;
use serde_json::{Value, json};

/// How a cell is read from an object.
#[derive(Clone, Copy)]
pub enum Cell {
    /// The string at a JSON pointer, "" when absent.
    Text(&'static str),
    /// The string at a JSON pointer, `<none>` when absent.
    TextOrNone(&'static str),
    /// The integer at a JSON pointer, 0 when absent.
    Int(&'static str),
    /// How many items the list at a JSON pointer has.
    Count(&'static str),
    /// The boolean at a JSON pointer, false when absent.
    Bool(&'static str),
    /// The age of the time at a JSON pointer.
    Age(&'static str),
    /// Computed.
    Fn(fn(&Value) -> Value),
    /// Computed with the time of the call.
    At(fn(&Value, Timestamp) -> Value),
}

/// One printer column.
#[derive(Clone, Copy)]
pub struct Column {
    /// Header as the Table has it ("Cluster-IP"; kubectl writes capitals).
    pub name: &'static str,
    /// `string`, `integer`, `boolean`, `date`.
    pub ty: &'static str,
    /// `name` for the name column.
    pub format: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: i32,
    /// Where the cell comes from.
    pub cell: Cell,
}

impl Column {
    /// The object's name.
    pub const NAME: Column = Column {
        name: "Name",
        ty: "string",
        format: "name",
        priority: 0,
        cell: Cell::Text("/metadata/name"),
    };
    /// The object's age.
    pub const AGE: Column = Column::new("Age", Cell::Age("/metadata/creationTimestamp"));

    /// When the object was made, as a time.
    pub const CREATED: Column =
        Column { ty: "date", ..Column::new("Created At", Cell::Text("/metadata/creationTimestamp")) };

    /// A string column that is always shown.
    pub const fn new(name: &'static str, cell: Cell) -> Column {
        let ty = match cell {
            Cell::Int(_) | Cell::Count(_) => "integer",
            Cell::Bool(_) => "boolean",
            _ => "string",
        };
        Column { name, ty, format: "", priority: 0, cell }
    }

    /// A string column that only `-o wide` shows.
    pub const fn wide(name: &'static str, cell: Cell) -> Column {
        Column { priority: 1, ..Column::new(name, cell) }
    }

    fn render(&self, obj: &Value, now: Timestamp) -> Value {
        match self.cell {
            Cell::Text(at) => text(obj, at).into(),
            Cell::TextOrNone(at) => none_if_empty(text(obj, at)).into(),
            Cell::Int(at) => int(obj, at).unwrap_or(0).into(),
            Cell::Count(at) => list(obj, at).len().into(),
            Cell::Bool(at) => flag(obj, at).into(),
            Cell::Age(at) => time::age(now, obj.pointer(at).and_then(Value::as_str)).into(),
            Cell::Fn(f) => f(obj),
            Cell::At(f) => f(obj, now),
        }
    }
}

/// `<none>` for an empty string.
pub fn none_if_empty(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// What a row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Include {
    /// `PartialObjectMetadata` (the default).
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// From the `includeObject` query parameter; `None` for an unknown value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Include::Metadata),
            "Object" => Some(Include::Object),
            "None" => Some(Include::None),
            _ => None,
        }
    }
}

/// What a Scale shows, of whichever resource it is.
const SCALE: &[Column] = &[
    Column::NAME,
    Column::new("Desired", Cell::Int("/spec/replicas")),
    Column::new("Available", Cell::Int("/status/replicas")),
    Column::AGE,
];

/// The `columnDefinitions` of a resource.
pub fn columns(row: &ResourceRow) -> Value {
    definitions(behaviour_of(row).columns)
}

fn definitions(columns: &[Column]) -> Value {
    let all = columns.iter();
    all.map(|c| {
        json!({"name": c.name, "type": c.ty, "format": c.format, "description": "", "priority": c.priority})
    })
    .collect()
}

/// The Table of one Scale.
pub fn scale(scale: &Value, metadata: Value, now: Timestamp, include: Include, group_version: &str) -> Value {
    let cells = SCALE.iter().map(|c| c.render(scale, now)).collect();
    let row = self::row(cells, scale, include, group_version);
    table(group_version, metadata, Some(definitions(SCALE)), vec![row])
}

/// One table row of an object. `group_version` is the Table's own ("meta.k8s.io/v1").
pub fn table_row(
    row: &ResourceRow,
    obj: &Value,
    now: Timestamp,
    include: Include,
    group_version: &str,
) -> Value {
    let cells = behaviour_of(row).columns.iter().map(|c| c.render(obj, now)).collect();
    self::row(cells, obj, include, group_version)
}

/// One table row with these cells.
pub fn row(cells: Vec<Value>, obj: &Value, include: Include, group_version: &str) -> Value {
    let mut out = json!({"cells": cells});
    let object = match include {
        Include::Object => Some(obj.clone()),
        Include::Metadata => {
            let metadata = obj.get("metadata").cloned().unwrap_or_default();
            Some(json!({"kind": "PartialObjectMetadata", "apiVersion": group_version, "metadata": metadata}))
        }
        Include::None => None,
    };
    if let Some(object) = object {
        out["object"] = object;
    }
    out
}

/// A whole `Table`. `list_meta` is the list's metadata (resourceVersion, continue, …); `with_columns` is false
/// for watch events after the first.
pub fn table(group_version: &str, list_meta: Value, columns: Option<Value>, rows: Vec<Value>) -> Value {
    let mut out = json!({"kind": "Table", "apiVersion": group_version, "metadata": list_meta, "rows": rows});
    out["columnDefinitions"] = columns.unwrap_or_default();
    out
}

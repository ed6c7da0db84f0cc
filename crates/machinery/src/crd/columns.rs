//! Printer columns of custom resources.

use super::jsonpath::JsonPath;
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

/// One column, as the definition gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    name: String,
    ty: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

/// The columns of a version: the name, then `additionalPrinterColumns`, or the age where there are none.
pub fn columns(version: &Value) -> Vec<Column> {
    let listed = version["additionalPrinterColumns"].as_array().filter(|list| !list.is_empty());
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "CreationTimestamp is a timestamp representing the server time when this object was created."});
    listed.map_or_else(|| vec![column(&age)], |list| list.iter().map(column).collect())
}

fn column(json: &Value) -> Column {
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_string();
    let path = json["jsonPath"].as_str().or(json["JSONPath"].as_str()).unwrap_or_default();
    Column {
        name: text("name"),
        ty: text("type"),
        format: text("format"),
        description: text("description"),
        priority: json["priority"].as_i64().unwrap_or(0),
        path: JsonPath::parse(path),
    }
}

/// `columnDefinitions` of the Table.
pub fn definitions(columns: &[Column]) -> Value {
    let name = json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0});
    let of = |c: &Column| json!({"name": c.name, "type": c.ty, "format": c.format, "description": c.description, "priority": c.priority});
    std::iter::once(name).chain(columns.iter().map(of)).collect()
}

/// The cells of one object.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    std::iter::once(name).chain(columns.iter().map(|c| c.cell(object, now))).collect()
}

impl Column {
    /// Null where there is nothing to show, or nothing of the column's type.
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.path.as_ref().map(|p| p.find(object)).unwrap_or_default();
        let Some(first) = found.first() else { return Value::Null };
        match self.ty.as_str() {
            "integer" => first.as_f64().map_or(Value::Null, |n| json!(n.trunc() as i64)),
            "number" => first.as_f64().map_or(Value::Null, |n| json!(n)),
            "boolean" if first.is_boolean() => (*first).clone(),
            "date" => match first.as_str() {
                Some(at) if time::parse(at).is_ok() => time::age(now, Some(at)).into(),
                _ => "<invalid>".into(),
            },
            "string" => {
                let shown = |v: &&Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
                found.iter().map(shown).collect::<Vec<_>>().join(" ").into()
            }
            _ => Value::Null,
        }
    }
}

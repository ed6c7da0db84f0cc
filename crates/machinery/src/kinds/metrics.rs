//! Kinds that are made when asked and never stored: usage of nodes and pods, health of components. Columns only.

use super::get::{list, text};
use super::{Behaviour, GENERIC};
use crate::quantity::Quantity;
use crate::table::{Cell, Column};
use serde_json::Value;

/// Columns as the usual metrics server has them.
const USAGE: &[Column] = &[
    Column::NAME,
    Column::new("cpu", Cell::Fn(|o| used(o, "cpu"))),
    Column::new("memory", Cell::Fn(|o| used(o, "memory"))),
    Column::new("Window", Cell::Text("/window")),
];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour { group: "metrics.k8s.io", resource: "nodes", columns: USAGE, ..GENERIC },
    Behaviour { group: "metrics.k8s.io", resource: "pods", columns: USAGE, ..GENERIC },
    Behaviour {
        group: "",
        resource: "componentstatuses",
        columns: &[
            Column::NAME,
            Column::new("Status", Cell::Fn(healthy)),
            Column::new("Message", Cell::Text("/conditions/0/message")),
            Column::new("Error", Cell::Text("/conditions/0/error")),
        ],
        ..GENERIC
    },
];

/// What a node uses, or all containers of a pod.
fn used(object: &Value, resource: &str) -> Value {
    let containers = list(object, "/containers").iter().map(|c| &c["usage"][resource]);
    let parts = containers.chain([&object["usage"][resource]]);
    let parts = parts.filter_map(|part| part.as_str()?.parse::<Quantity>().ok());
    parts.fold(Quantity::ZERO, Quantity::add).to_string().into()
}

fn healthy(object: &Value) -> Value {
    match text(object, "/conditions/0/status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_summed() {
        let of = |cpu: &str| json!({"usage": {"cpu": cpu}});
        assert_eq!(used(&json!({"containers": [of("1500u"), of("1m")]}), "cpu"), "2500u");
        assert_eq!(used(&of("7n"), "cpu"), "7n");
        assert_eq!(used(&json!({}), "memory"), "0");
    }
}

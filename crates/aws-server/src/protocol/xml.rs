//! XML answers of the query and EC2 protocols.

use super::time;
use aws_schema::{Kind, Operation, Service, ShapeId};
use serde_json::Value;

/// A text inside an element.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#xD;"),
            // XML 1.0 has no way to write other control characters.
            c if c < ' ' && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// `<RunResponse><RunResult>…</RunResult><ResponseMetadata>…`.
pub(super) fn query_answer(service: &Service, operation: &Operation, output: &Value, id: &str) -> String {
    let (name, ns) = (operation.name, service.head.xml_namespace);
    let mut out = format!("<{name}Response xmlns=\"{ns}\">\n");
    let mut inner = String::new();
    if let Some(shape) = operation.output {
        members(&mut inner, service, shape, output);
    }
    match operation.result_wrapper {
        "" => out += &inner,
        wrapper => out += &format!("<{wrapper}>{inner}</{wrapper}>\n"),
    }
    out + &format!("<ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata>\n</{name}Response>\n")
}

/// `<DescribeResponse><requestId>…</requestId>…`.
pub(super) fn ec2_answer(service: &Service, operation: &Operation, output: &Value, id: &str) -> String {
    let (name, ns) = (operation.name, service.head.xml_namespace);
    let mut inner = String::new();
    match operation.output {
        Some(shape) => members(&mut inner, service, shape, output),
        // Operations without an output say that they were done.
        None => inner.push_str("<return>true</return>"),
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name}Response xmlns=\"{ns}/\">\n\
         <requestId>{id}</requestId>{inner}</{name}Response>\n"
    )
}

fn members(out: &mut String, service: &Service, shape: ShapeId, value: &Value) {
    let Some(structure) = service.structure(shape) else { return };
    for member in &structure.members {
        if let Some(value) = value.get(member.name).filter(|v| !v.is_null()) {
            element(out, service, member.shape, member.wire, value);
        }
    }
}

fn element(out: &mut String, service: &Service, shape: ShapeId, name: &str, value: &Value) {
    match &service.shape(shape).kind {
        Kind::Structure(_) => tag(out, name, |out| members(out, service, shape, value)),
        Kind::List { member, item, flat } => {
            let item = match (*item, *flat) {
                ("", true) => name,
                ("", false) => "member",
                (item, _) => item,
            };
            let all = |out: &mut String| {
                value.as_array().into_iter().flatten().for_each(|v| element(out, service, *member, item, v));
            };
            if *flat { all(out) } else { tag(out, name, all) }
        }
        Kind::Map { key, value: shape, names, flat } => {
            let or = |name: &'static str, own: &'static str| if name.is_empty() { own } else { name };
            let (key_name, value_name) = (or(names.0, "key"), or(names.1, "value"));
            let all = |out: &mut String| {
                for (k, v) in value.as_object().into_iter().flatten() {
                    tag(out, if *flat { name } else { "entry" }, |out| {
                        element(out, service, *key, key_name, &Value::from(k.as_str()));
                        element(out, service, *shape, value_name, v);
                    });
                }
            };
            if *flat { all(out) } else { tag(out, name, all) }
        }
        kind => tag(out, name, |out| out.push_str(&escape(&scalar(kind, value)))),
    }
}

fn tag(out: &mut String, name: &str, inner: impl FnOnce(&mut String)) {
    out.push_str(&format!("<{name}>"));
    inner(out);
    out.push_str(&format!("</{name}>"));
}

fn scalar(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Timestamp(_), value) => time::iso(value),
        (_, Value::String(text)) => text.clone(),
        (_, value) => value.to_string(),
    }
}

//! Named formats: `format.dns1123Label().validate(text)`.

use super::time;
use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use crate::name;

type Outcome = Result<Value, EvalError>;

/// A format and what checks it: complaints, none for a text that has the format.
#[derive(Debug)]
pub struct Named {
    /// As `format.named` knows it.
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

/// A text of which a part may come from `generateName`: as if something followed.
fn as_prefix(check: fn(&str) -> Vec<String>, text: &str) -> Vec<String> {
    check(&format!("{text}a"))
}

fn complain(fine: bool, words: &str) -> Vec<String> {
    if fine { Vec::new() } else { vec![words.to_string()] }
}

fn uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

static NAMED: &[Named] = &[
    Named { name: "dns1123Label", check: name::dns1123_label },
    Named { name: "dns1123Subdomain", check: name::dns1123_subdomain },
    Named { name: "dns1035Label", check: name::dns1035_label },
    Named { name: "qualifiedName", check: name::qualified_name },
    Named { name: "labelValue", check: name::label_value },
    Named { name: "dns1123LabelPrefix", check: |t| as_prefix(name::dns1123_label, t) },
    Named { name: "dns1123SubdomainPrefix", check: |t| as_prefix(name::dns1123_subdomain, t) },
    Named { name: "dns1035LabelPrefix", check: |t| as_prefix(name::dns1035_label, t) },
    Named { name: "uri", check: |t| complain(super::url::is_url(t), "invalid URI for request") },
    Named { name: "uuid", check: |t| complain(uuid(t), "does not match the UUID format") },
    Named { name: "byte", check: |t| complain(base64(t), "invalid base64") },
    Named {
        name: "date",
        check: |t| complain(t.len() == 10 && t.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
    },
    Named {
        name: "datetime",
        check: |t| complain(time::timestamp(t).is_ok() && t.len() > 10, "invalid datetime"),
    },
];

macro_rules! rows {
    ($($name:literal),*) => {
        &[
            ("format.named(string) optional<format>", Cost::Scan, |a| Ok(found(a[0].as_str().unwrap_or_default()).map_or(Value::NONE, Value::some))),
            ("format:validate(string) optional<list<string>>", Cost::Scan, validate),
            $((concat!("format.", $name, "() format"), Cost::Flat, |_| found($name).ok_or_else(EvalError::no_such_overload)),)*
        ]
    };
}

/// Rows of this library.
pub const ROWS: &[Row] = rows!(
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "labelValue",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime"
);

fn found(name: &str) -> Option<Value> {
    NAMED.iter().find(|n| n.name == name).map(|n| Ext::Format(n).into())
}

fn validate(a: &[Value]) -> Outcome {
    let Value::Ext(ext) = &a[0] else { return Err(EvalError::no_such_overload()) };
    let Ext::Format(named) = &**ext else { return Err(EvalError::no_such_overload()) };
    let complaints = (named.check)(a[1].as_str().unwrap_or_default());
    if complaints.is_empty() {
        return Ok(Value::NONE);
    }
    Ok(Value::some(complaints.into_iter().map(Value::from).collect::<Vec<_>>().into()))
}

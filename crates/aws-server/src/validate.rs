//! The model's constraints on an input document, and each service's words for what breaks them.
//!
//! Pure. A pattern that the regular-expression engine does not know (look-around) or that would grow too big is not
//! enforced; a test counts them.

use crate::service::AwsError;
use aws_schema::{Kind, Service, Shape, ShapeId};
use parking_lot::RwLock;
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// Violations that are told at once.
const TOLD_MAX: usize = 10;
/// Compiled size of one pattern in bytes; bigger ones (long counted repeats of letters of all scripts) are dropped.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// A longer text is not matched: no pattern is about such texts, and matching costs time by length.
const MATCHED_MAX: usize = 64 << 10;
/// A longer value is not repeated in a message.
const REPEATED_MAX: usize = 256;

/// One broken constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Violation {
    /// `tags.1.member.key`.
    at: String,
    /// The value as a message shows it; `None`: it is missing.
    value: Option<String>,
    /// `Member must not be null`.
    constraint: String,
}

/// Checks an input.
///
/// # Errors
/// It breaks the model's constraints: the service's own code and words.
pub fn check(service: &Service, operation: &str, shape: ShapeId, input: &Value) -> Result<(), AwsError> {
    let mut found = Vec::new();
    walk(service, shape, input, &mut Vec::new(), &mut found);
    if found.is_empty() { Ok(()) } else { Err(word(service.head.name, operation, &found)) }
}

fn walk(service: &Service, id: ShapeId, value: &Value, at: &mut Vec<String>, found: &mut Vec<Violation>) {
    if found.len() >= TOLD_MAX {
        return;
    }
    let shape = service.shape(id);
    let mut tell = |value: Option<&Value>, constraint: String, at: &[String]| {
        found.push(Violation { at: at.join("."), value: value.map(shown), constraint });
    };
    for constraint in broken(shape, value) {
        tell(Some(value), constraint, at);
    }
    match (&shape.kind, value) {
        (Kind::Structure(structure), Value::Object(map)) => {
            for member in &structure.members {
                at.push(lower(member.name));
                match map.get(member.name) {
                    Some(value) => walk(service, member.shape, value, at, found),
                    None if member.required => found.push(Violation {
                        at: at.join("."),
                        value: None,
                        constraint: "Member must not be null".into(),
                    }),
                    None => {}
                }
                at.pop();
            }
        }
        (Kind::List { member, .. }, Value::Array(list)) => {
            for (number, value) in (1..).zip(list) {
                at.extend([number.to_string(), "member".into()]);
                walk(service, *member, value, at, found);
                at.truncate(at.len() - 2);
            }
        }
        (Kind::Map { key, value: shape, .. }, Value::Object(map)) => {
            for (name, value) in map {
                at.extend([name.clone(), "member".into()]);
                walk(service, *key, &Value::from(name.as_str()), at, found);
                walk(service, *shape, value, at, found);
                at.truncate(at.len() - 2);
            }
        }
        _ => {}
    }
}

/// The constraints of a shape that its own value breaks.
fn broken(shape: &Shape, value: &Value) -> Vec<String> {
    let mut list = Vec::new();
    let size = match value {
        Value::String(text) if matches!(shape.kind, Kind::Blob) => Some(("length", blob_bytes(text))),
        Value::String(text) => Some(("length", text.chars().count() as f64)),
        Value::Array(items) => Some(("length", items.len() as f64)),
        Value::Object(map) if matches!(shape.kind, Kind::Map { .. }) => Some(("length", map.len() as f64)),
        Value::Number(number) => Some(("value", number.as_f64().unwrap_or_default())),
        _ => None,
    };
    if let Some((what, size)) = size {
        if let Some(max) = shape.max.filter(|max| size > *max) {
            list.push(format!("Member must have {what} less than or equal to {max}"));
        }
        if let Some(min) = shape.min.filter(|min| size < *min) {
            list.push(format!("Member must have {what} greater than or equal to {min}"));
        }
    }
    if let (Kind::String { pattern, values }, Value::String(text)) = (&shape.kind, value) {
        if !values.is_empty() && !values.contains(&text.as_str()) {
            list.push(format!("Member must satisfy enum value set: [{}]", values.join(", ")));
        }
        if !pattern.is_empty()
            && text.len() <= MATCHED_MAX
            && compiled(pattern).is_some_and(|p| !p.is_match(text))
        {
            list.push(format!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }
    list
}

fn blob_bytes(base64: &str) -> f64 {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding) as f64
}

/// `None`: not enforced.
type Patterns = BTreeMap<&'static str, Option<Arc<Regex>>>;

/// Patterns by text, compiled when first needed. There are as many as the models have.
fn compiled(pattern: &'static str) -> Option<Arc<Regex>> {
    static PATTERNS: LazyLock<RwLock<Patterns>> = LazyLock::new(RwLock::default);
    if let Some(known) = PATTERNS.read().get(pattern) {
        return known.clone();
    }
    let made = compile(pattern).map(Arc::new);
    PATTERNS.write().insert(pattern, made.clone());
    made
}

/// The models' patterns are Java's and about whole values.
fn compile(pattern: &str) -> Option<Regex> {
    let pattern = DIALECT.iter().fold(pattern.to_string(), |p, (theirs, ours)| p.replace(theirs, ours));
    RegexBuilder::new(&format!(r"\A(?:{})\z", ascii_classes(&pattern)))
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .ok()
}

/// What Java writes otherwise: UTF-16's pairs, and the one look-ahead that has a plain form.
const DIALECT: [(&str, &str); 3] = [
    (r"\uD800\uDC00-\uDBFF\uDFFF", r"\x{10000}-\x{10FFFF}"),
    (r"(?!\s*$).+", r".*\S.*"),
    (r"\p{Print}", r"[ -~]"),
];

/// Java's `\w`, `\d` and `\s` are ASCII's; here they would be all scripts', and big.
fn ascii_classes(pattern: &str) -> String {
    let (mut out, mut letters) = (String::with_capacity(pattern.len()), pattern.chars());
    while let Some(letter) = letters.next() {
        match (letter, if letter == '\\' { letters.next() } else { None }) {
            ('\\', Some('w')) => out.push_str("[0-9A-Za-z_]"),
            ('\\', Some('W')) => out.push_str("[^0-9A-Za-z_]"),
            ('\\', Some('d')) => out.push_str("[0-9]"),
            ('\\', Some('D')) => out.push_str("[^0-9]"),
            ('\\', Some('s')) => out.push_str(r"[ \t\n\x0B\f\r]"),
            ('\\', Some('S')) => out.push_str(r"[^ \t\n\x0B\f\r]"),
            ('\\', Some('/')) => out.push('/'),
            ('\\', Some(other)) => out.extend(['\\', other]),
            (letter, _) => out.push(letter),
        }
    }
    out
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    };
    match text.char_indices().nth(REPEATED_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Messages name members with a small first letter, whatever the model does.
fn lower(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|c| c.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// How a service words it.
enum Style {
    /// `1 validation error detected: Value 'x' at 'y' failed to satisfy constraint: …`.
    Listed,
    /// `Invalid parameter at 'y' failed to satisfy constraint: '…'`.
    Single,
    /// `The request must contain the parameter Y`.
    Ec2,
}

/// Services with the code of their validation errors. Those that are not here: `ValidationException`.
const STYLES: &[(&str, &str, Style)] = &[
    ("appmesh", "BadRequestException", Style::Listed),
    ("autoscaling", "ValidationError", Style::Listed),
    ("cloudwatch", "InvalidParameterValueException", Style::Listed),
    ("ec2", "InvalidParameterValue", Style::Ec2),
    ("ecr", "InvalidParameterException", Style::Single),
    ("ecs", "InvalidParameterException", Style::Listed),
    ("eks", "InvalidParameterException", Style::Listed),
    ("eks-auth", "InvalidRequestException", Style::Listed),
    ("elbv2", "ValidationError", Style::Listed),
    ("iam", "ValidationError", Style::Listed),
    ("logs", "InvalidParameterException", Style::Listed),
    ("servicediscovery", "InvalidInput", Style::Listed),
    ("sts", "ValidationError", Style::Listed),
];

fn word(service: &str, operation: &str, found: &[Violation]) -> AwsError {
    let row = STYLES.iter().find(|(name, ..)| *name == service);
    let (code, style) =
        row.map_or(("ValidationException", &Style::Listed), |(_, code, style)| (*code, style));
    let first = &found[0];
    match style {
        Style::Ec2 if first.value.is_none() => {
            let name: String = upper_path(&first.at);
            AwsError::client("MissingParameter", format!("The request must contain the parameter {name}"))
        }
        Style::Ec2 => {
            let value = first.value.as_deref().unwrap_or_default();
            let name = upper_path(&first.at);
            AwsError::client(
                code,
                format!("Value ({value}) for parameter {name} is invalid. {}", first.constraint),
            )
        }
        Style::Single => AwsError::client(
            code,
            format!(
                "Invalid parameter at '{}' failed to satisfy constraint: '{}'",
                first.at, first.constraint
            ),
        ),
        Style::Listed => {
            let plural = if found.len() == 1 { "error" } else { "errors" };
            let list: Vec<String> = found.iter().map(listed).collect();
            let text = format!("{} validation {plural} detected: {}", found.len(), list.join("; "));
            // Task definitions are checked by another part of ECS than the rest.
            let code = if operation == "RegisterTaskDefinition" { "ClientException" } else { code };
            AwsError::client(code, text)
        }
    }
}

fn listed(violation: &Violation) -> String {
    let value = violation.value.as_ref().map_or("null".into(), |v| format!("'{v}'"));
    format!("Value {value} at '{}' failed to satisfy constraint: {}", violation.at, violation.constraint)
}

/// EC2's parameters have capital letters and no `member`.
fn upper_path(at: &str) -> String {
    let parts = at.split('.').filter(|p| *p != "member").map(|part| {
        let mut letters = part.chars();
        letters.next().map(|c| c.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(service: &str, operation: &str, input: &Value) -> String {
        let service = aws_schema::service(service).unwrap();
        let shape = service.operation(operation).unwrap().input.unwrap();
        check(service, operation, shape, input).unwrap_err().to_string()
    }

    #[test]
    fn each_service_has_its_words() {
        assert_eq!(
            refused("logs", "CreateLogGroup", &json!({"logGroupName": "a b"})),
            "InvalidParameterException: 1 validation error detected: Value 'a b' at 'logGroupName' failed to satisfy \
             constraint: Member must satisfy regular expression pattern: [\\.\\-_/#A-Za-z0-9]+"
        );
        assert_eq!(
            refused("logs", "PutRetentionPolicy", &json!({"logGroupName": ""})).matches("; ").count(),
            2
        );
        assert_eq!(
            refused("ec2", "CreateSubnet", &json!({})),
            "MissingParameter: The request must contain the parameter VpcId"
        );
        assert_eq!(
            refused("ecr", "CreateRepository", &json!({"repositoryName": "A"})),
            "InvalidParameterException: Invalid parameter at 'repositoryName' failed to satisfy constraint: \
             'Member must have length greater than or equal to 2'"
        );
        assert!(refused("iam", "CreateRole", &json!({"RoleName": "r"})).starts_with(
            "ValidationError: 1 validation error detected: Value null at 'assumeRolePolicyDocument' failed"
        ));
        let input = json!({"taskDefinition": "x", "launchType": "MOON", "tags": [{"key": "?\u{0}"}]});
        let text = refused("ecs", "RunTask", &input);
        assert!(
            text.contains("Value 'MOON' at 'launchType'") && text.contains("at 'tags.1.member.key'"),
            "{text}"
        );
    }

    #[test]
    fn good_input_passes() {
        let ecs = aws_schema::service("ecs").unwrap();
        let shape = ecs.operation("RunTask").unwrap().input.unwrap();
        let input = json!({"taskDefinition": "web:1", "launchType": "FARGATE", "count": 2,
            "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["s"]}}});
        assert_eq!(check(ecs, "RunTask", shape, &input), Ok(()));
    }

    #[test]
    fn nearly_all_patterns_are_enforced() {
        let all = aws_schema::heads().flat_map(|h| &aws_schema::service(h.name).unwrap().shapes);
        let patterns: Vec<(&str, &str)> = all
            .filter_map(|s| match &s.kind {
                Kind::String { pattern, .. } if !pattern.is_empty() => Some((s.name, *pattern)),
                _ => None,
            })
            .collect();
        let not: Vec<_> = patterns.iter().filter(|(_, p)| compile(p).is_none()).collect();
        assert!(patterns.len() > 300 && not.len() < 12, "{} of {}: {not:?}", not.len(), patterns.len());
    }
}

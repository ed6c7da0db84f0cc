//! Policies that AWS itself has and that people attach to the roles of containers, in short forms.

use serde_json::{Value, json};

/// Path and name after `arn:aws:iam::aws:policy/`, and what it allows on everything (`!`: all but that), as far as it
/// is about services that are here; actions stand between spaces.
const KNOWN: &str = include_str!("managed.txt");

const PREFIX: &str = "arn:aws:iam::aws:policy/";

/// What one allows.
fn known(rest: &str) -> Option<Vec<&'static str>> {
    let [_, actions] = stdx::rows(KNOWN).find(|[name, _]| *name == rest)?;
    Some(actions.split_whitespace().collect())
}

/// The policy of an ARN, as GetPolicy shows it; `None`: it is not one of these.
pub(super) fn policy(arn: &str) -> Option<Value> {
    let rest = arn.strip_prefix(PREFIX)?;
    known(rest)?;
    let (path, name) = rest.rsplit_once('/').unwrap_or(("", rest));
    let path = if path.is_empty() { "/".to_string() } else { format!("/{path}/") };
    Some(
        json!({"PolicyName": name, "Arn": arn, "Path": path, "DefaultVersionId": "v1", "IsAttachable": true}),
    )
}

/// What it says.
pub(super) fn document(arn: &str) -> Option<Value> {
    let rest = arn.strip_prefix(PREFIX)?;
    let actions = known(rest)?;
    let not: Vec<&str> = actions.iter().filter_map(|a| a.strip_prefix('!')).collect();
    let (member, actions) = if not.is_empty() { ("Action", actions) } else { ("NotAction", not) };
    Some(json!({"Statement": [{"Effect": "Allow", member: actions, "Resource": "*"}]}))
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Value> {
    stdx::rows(KNOWN).filter_map(|[rest, _]| policy(&format!("{PREFIX}{rest}")))
}

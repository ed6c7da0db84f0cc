//! What a target is given: the event, a part of it, a fixed text, or a template with parts of it. Pure.

use serde_json::Value;
use std::collections::BTreeMap;

/// One key and the start of a template's `<…>`.
const RESERVED: [&str; 4] = [
    "aws.events.rule-arn",
    "aws.events.rule-name",
    "aws.events.event.ingestion-time",
    "aws.events.event.json",
];

/// What a path (`$.detail.containers[0].name`) finds.
fn at<'a>(event: &'a Value, path: &str) -> Option<&'a Value> {
    let mut found = event;
    for step in path.strip_prefix('$')?.split('.').filter(|s| !s.is_empty()) {
        let (name, mut indexes) = step.split_once('[').unwrap_or((step, ""));
        if !name.is_empty() {
            found = found.get(name)?;
        }
        while !indexes.is_empty() {
            let (index, rest) = indexes.split_once(']')?;
            found = found.get(index.parse::<usize>().ok()?)?;
            indexes = rest.strip_prefix('[').unwrap_or_default();
        }
    }
    Some(found)
}

/// Does it look like a path?
pub(super) fn is_path(text: &str) -> bool {
    text == "$" || text.starts_with("$.")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// The text for a target: by its `Input`, `InputPath` or `InputTransformer`, or the whole event.
pub(super) fn input(target: &Value, rule: &Value, event: &Value) -> String {
    if let Some(fixed) = target["Input"].as_str() {
        return fixed.to_string();
    }
    if let Some(path) = target["InputPath"].as_str() {
        return at(event, path).map_or_else(|| "null".into(), Value::to_string);
    }
    match target["InputTransformer"]["InputTemplate"].as_str() {
        Some(template) => filled(template, &parts(target, rule, event)),
        None => event.to_string(),
    }
}

fn parts(target: &Value, rule: &Value, event: &Value) -> BTreeMap<String, Value> {
    let paths = target["InputTransformer"]["InputPathsMap"].as_object();
    let mut out: BTreeMap<String, Value> = paths
        .into_iter()
        .flatten()
        .map(|(name, path)| {
            let found = at(event, path.as_str().unwrap_or_default());
            (name.clone(), found.cloned().unwrap_or_default())
        })
        .collect();
    let reserved = [&rule["Arn"], &rule["Name"], &event["time"], event];
    out.extend(RESERVED.iter().zip(reserved).map(|(name, value)| ((*name).to_string(), value.clone())));
    out.insert("aws.events.event".into(), event.clone());
    out
}

/// `<name>` inside a quoted text becomes the bare text, elsewhere the value as JSON. Unknown names stay.
fn filled(template: &str, parts: &BTreeMap<String, Value>) -> String {
    let (mut out, mut rest, mut quoted) = (String::new(), template, false);
    while let Some(next) = rest.find(['<', '"', '\\']) {
        out.push_str(&rest[..next]);
        rest = &rest[next..];
        let named = rest.strip_prefix('<').and_then(|r| r.split_once('>'));
        if let Some((value, after)) = named.and_then(|(name, after)| Some((parts.get(name)?, after))) {
            out.push_str(&if quoted { escaped(&plain(value)) } else { value.to_string() });
            rest = after;
            continue;
        }
        // A backslash takes the next character with it.
        let width = if rest.starts_with('\\') { 2 } else { 1 };
        quoted ^= rest.starts_with('"');
        let taken: String = rest.chars().take(width).collect();
        rest = &rest[taken.len()..];
        out.push_str(&taken);
    }
    out + rest
}

/// As it stands between quotes.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_target_is_given_what_it_asks_for() {
        let event = json!({"time": "t", "detail": {"name": "say \"hi\"", "list": [{"n": 1}, {"n": 2}]}});
        let rule = json!({"Name": "r", "Arn": "arn:r"});
        let given = |target: Value| input(&target, &rule, &event);
        assert_eq!(given(json!({})), event.to_string());
        assert_eq!(given(json!({"Input": "{\"a\": 1}"})), "{\"a\": 1}");
        assert_eq!(given(json!({"InputPath": "$.detail.list[1].n"})), "2");
        assert_eq!(given(json!({"InputPath": "$.detail.no"})), "null");
        let template = |text: &str| {
            given(json!({"InputTransformer": {
                "InputPathsMap": {"n": "$.detail.name", "l": "$.detail.list", "x": "$.no"}, "InputTemplate": text}}))
        };
        assert_eq!(
            template(r#"{"who": <n>, "all": <l>}"#),
            r#"{"who": "say \"hi\"", "all": [{"n":1},{"n":2}]}"#
        );
        assert_eq!(template(r#""<n> by <aws.events.rule-name>""#), r#""say \"hi\" by r""#);
        assert_eq!(
            template(r#"{"x": <x>, "y": <y>, "z": "\"<n>\""}"#),
            r#"{"x": null, "y": <y>, "z": "\"say \"hi\"\""}"#
        );
    }

    #[test]
    fn paths_and_templates_never_panic() {
        for path in ["", "$", "$.", "$.a[", "$.a[x]", "$[0]", "a.b", "$.a[0][1]", "$.ä"] {
            let _ = at(&json!({"a": [[1, 2]]}), path);
            filled(path, &BTreeMap::new());
        }
        assert_eq!(filled("\\", &BTreeMap::new()), "\\");
        assert_eq!(filled("<", &BTreeMap::new()), "<");
    }
}

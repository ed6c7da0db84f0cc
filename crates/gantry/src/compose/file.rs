//! A compose file as a document: variables filled in, keys checked against what is understood.
//!
//! Invariant: a key that would be ignored is refused by name, with what to do instead; nothing is silently dropped.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Which part of the file, a key of it, and what is said where it is refused ("" for those that are fine).
const KEYS: &str = include_str!("keys.txt");
/// Services of a file: the containers of a task definition.
const SERVICES_MAX: usize = 10;

/// Refuses keys that are not known or not served. `x-…` may be anything.
fn known(at: &str, value: &Value, part: &str) -> Result<()> {
    let Some(map) = value.as_object() else {
        ensure!(value.is_null(), "{at}: a mapping is expected");
        return Ok(());
    };
    for key in map.keys().filter(|k| !k.starts_with("x-")) {
        match stdx::rows(KEYS).find(|[of, name, _]| *of == part && name == key) {
            Some([_, _, ""]) => {}
            Some([_, _, instead]) => bail!("{at}: {key} is not supported: {instead}"),
            None => bail!("{at}: {key} is not supported"),
        }
    }
    Ok(())
}

/// Reads a file's text. `variables`: what `${…}` stands for.
pub fn parse(text: &str, variables: &BTreeMap<String, String>) -> Result<Value> {
    let body = machinery::body::yaml(text.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
    if let Some(twice) = body.duplicates.before(&[]).first() {
        bail!("{twice}: it is there twice");
    }
    let file = filled(body.value, variables)?;
    known("the file", &file, "file")?;
    let services = file["services"].as_object().context("the file has no services")?;
    ensure!(!services.is_empty(), "the file has no services");
    ensure!(services.len() <= SERVICES_MAX, "a task has at most {SERVICES_MAX} containers");
    for (name, service) in services {
        check(name, service)?;
    }
    Ok(file)
}

fn check(name: &str, service: &Value) -> Result<()> {
    ensure!(ecs_model::taskdef::is_name(name), "services.{name}: no name for a container");
    let at = format!("services.{name}");
    known(&at, service, "service")?;
    ensure!(service["image"].as_str().is_some_and(|i| !i.is_empty()), "{at}: image is missing");
    known(&format!("{at}.deploy"), &service["deploy"], "deploy")?;
    known(&format!("{at}.healthcheck"), &service["healthcheck"], "healthcheck")?;
    let resources = &service["deploy"]["resources"];
    known(&format!("{at}.deploy.resources"), resources, "resources")?;
    for part in ["limits", "reservations"] {
        known(&format!("{at}.deploy.resources.{part}"), &resources[part], "amounts")?;
    }
    Ok(())
}

/// Fills in variables in every text.
fn filled(value: Value, variables: &BTreeMap<String, String>) -> Result<Value> {
    Ok(match value {
        Value::String(text) => Value::String(substitute(&text, variables)?),
        Value::Array(items) => items.into_iter().map(|v| filled(v, variables)).collect::<Result<_>>()?,
        Value::Object(map) => {
            let members = map.into_iter().map(|(k, v)| Ok((k, filled(v, variables)?)));
            Value::Object(members.collect::<Result<Map<_, _>>>()?)
        }
        other => other,
    })
}

/// `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?words}`, `${NAME?words}`, `$$`.
fn substitute(text: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        if let Some(inner) = after.strip_prefix('{') {
            let (inner, after) =
                inner.split_once('}').with_context(|| format!("{text:?}: a brace is open"))?;
            out.push_str(&braced(text, inner, variables)?);
            rest = after;
            continue;
        }
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        ensure!(is_name(name), "{text:?}: a dollar sign is written $$");
        out.push_str(variables.get(name).map_or("", String::as_str));
        rest = after;
    }
    Ok(out + rest)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn braced(text: &str, inner: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, operator) = inner.split_at(end);
    ensure!(is_name(name), "{text:?}: a dollar sign is written $$");
    let set = variables.get(name);
    let (set, operator) = match operator.strip_prefix(':') {
        Some(operator) => (set.filter(|v| !v.is_empty()), operator),
        None => (set, operator),
    };
    if let Some(default) = operator.strip_prefix('-') {
        return Ok(set.map_or(default, String::as_str).to_string());
    }
    if let Some(words) = operator.strip_prefix('?') {
        return set.cloned().with_context(|| format!("{name} is not set: {words}"));
    }
    ensure!(operator.is_empty(), "{text:?}: {operator:?} is not understood");
    Ok(set.cloned().unwrap_or_default())
}

/// Lines of `NAME=value`, as in `.env` and `env_file`.
pub fn variables(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        (!name.starts_with('#')).then(|| (name.trim().to_string(), quoted.unwrap_or(value).to_string()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let set = variables("A=one\n# B=2\nexport C=\"x y\"\nEMPTY=\n");
        let of = |text: &str| substitute(text, &set).unwrap();
        assert_eq!(of("$A-${A}!${C}"), "one-one!x y");
        assert_eq!(of("${N:-d}${EMPTY:-e}${EMPTY-f}${A:-g}"), "deone");
        assert_eq!(of("$$A costs 5$$"), "$A costs 5$");
        assert_eq!(of("[$NONE]"), "[]");
        for bad in ["${A", "$ 5", "${A+x}", "${N:?must be}", "${N?}"] {
            assert!(substitute(bad, &set).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let of = |text: &str| format!("{:#}", parse(text, &BTreeMap::new()).unwrap_err());
        for (text, words) in [
            ("services: {}", "has no services"),
            ("version: '3'", "has no services"),
            ("services: {web: {build: .}}", "services.web: build is not supported: build and push"),
            ("services: {web: {imagee: x}}", "services.web: imagee is not supported"),
            ("services: {web: {command: x}}", "services.web: image is missing"),
            (
                "services: {web: {image: x, deploy: {mode: global}}}",
                "services.web.deploy: mode is not supported",
            ),
            (
                "services: {web: {image: x, healthcheck: {start_interval: 1s}}}",
                "start_interval is not supported",
            ),
            ("services: {web: {image: x}}\nnetworks: {a: {}}", "the file: networks is not supported"),
            ("services: {web: {image: x}}\nnope: 1", "the file: nope is not supported"),
            ("services: {'a b': {image: x}}", "no name for a container"),
            ("services: {web: {image: x, image: y}}", "twice"),
            ("services: {web: [", "YAML"),
        ] {
            assert!(of(text).contains(words), "{text}: {}", of(text));
        }
        assert!(parse("x-any: 1\nservices: {web: {image: x, x-more: {}}}", &BTreeMap::new()).is_ok());
    }
}

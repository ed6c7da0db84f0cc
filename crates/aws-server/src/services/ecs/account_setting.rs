//! Account settings: the account's own, and those of one principal over them. One object a principal.

use super::context::{Context, doc, parameter};
use super::paging::Page;
use crate::service::{AwsError, Outcome};
use client::ObjectKey;
use ecs_model::names::ECS_NAMESPACE;
use ecs_model::refusal::refuse_if;
use machinery::kinds::get::text;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most settings of one page.
const PAGE_MAX: usize = 100;
const SWITCH: &[&str] = &["enabled", "disabled"];

/// Name, default, allowed values (none: any number).
const SETTINGS: [(&str, &str, &[&str]); 11] = [
    ("awsvpcTrunking", "disabled", SWITCH),
    ("containerInsights", "disabled", &["enabled", "disabled", "enhanced"]),
    ("containerInstanceLongArnFormat", "enabled", SWITCH),
    ("defaultLogDriverMode", "non-blocking", &["blocking", "non-blocking"]),
    ("fargateEventWindows", "disabled", SWITCH),
    ("fargateFIPSMode", "disabled", SWITCH),
    ("fargateTaskRetirementWaitPeriod", "7", &["0", "7", "14"]),
    ("guardDutyActivate", "off", &["on", "off"]),
    ("serviceLongArnFormat", "enabled", SWITCH),
    ("tagResourceAuthorization", "off", &["on", "off"]),
    ("taskLongArnFormat", "enabled", SWITCH),
];

fn row(name: &str) -> Result<(&'static str, &'static str, &'static [&'static str]), AwsError> {
    let names = || SETTINGS.map(|s| s.0).join(",");
    let found = SETTINGS.iter().find(|s| s.0 == name).copied();
    found.ok_or_else(|| parameter(format!("{name} should be one of [{}]", names())))
}

fn root(cx: &Context<'_>) -> String {
    format!("arn:aws:iam::{}:root", cx.call.caller.account)
}

fn principal(cx: &Context<'_>) -> String {
    match cx.text("principalArn") {
        "" => cx.call.caller.arn.clone(),
        given => given.to_string(),
    }
}

fn key(cx: &Context<'_>, principal: &str) -> ObjectKey {
    ObjectKey::new(ECS_NAMESPACE, cx.scope.object_name(principal))
}

/// What a principal has set, by name.
fn set_by(cx: &Context<'_>, principal: &str) -> BTreeMap<String, String> {
    let object = cx.views.settings.get(&key(cx, principal));
    let doc = object.and_then(|o| doc(&o).ok()).filter(|d| text(d.spec(), "/principalArn") == principal);
    let settings = doc.as_ref().and_then(|d| d.spec()["settings"].as_object());
    let pairs = settings.into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string())).collect()
}

/// The value that holds for the caller.
pub fn value(cx: &Context<'_>, name: &str) -> String {
    let default = row(name).map_or("", |r| r.1);
    let set = |who: &str| set_by(cx, who).remove(name);
    set(&cx.call.caller.arn).or_else(|| set(&root(cx))).unwrap_or_else(|| default.to_string())
}

fn shown(name: &str, value: &str, principal: &str) -> Value {
    json!({"name": name, "value": value, "principalArn": principal, "type": "user"})
}

async fn write(cx: &Context<'_>, principal: &str, value: Option<&str>) -> Result<(), AwsError> {
    let name = cx.text("name");
    let (key, spec) = (key(cx, principal), json!({"principalArn": principal, "settings": {name: value}}));
    let put = cx.put(&cx.views.settings, ("AccountSetting", &key), &spec, |_| Ok(spec.clone()));
    put.await.map(drop)
}

async fn put_for(cx: &Context<'_>, principal: String) -> Outcome {
    let (name, _, allowed) = row(cx.text("name"))?;
    let value = cx.text("value");
    refuse_if(!allowed.contains(&value), || {
        parameter(format!("Invalid value for setting '{name}': should be one of [{}]", allowed.join(",")))
    })?;
    refuse_if(name.ends_with("LongArnFormat") && value == "disabled", || {
        parameter(format!("The setting '{name}' cannot be disabled: all ARNs have the long format."))
    })?;
    write(cx, &principal, Some(value)).await?;
    Ok(json!({"setting": shown(name, value, &principal)}))
}

/// PutAccountSetting.
pub async fn put(cx: &Context<'_>) -> Outcome {
    put_for(cx, principal(cx)).await
}

/// PutAccountSettingDefault.
pub async fn put_default(cx: &Context<'_>) -> Outcome {
    put_for(cx, root(cx)).await
}

/// DeleteAccountSetting.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    let (name, _, _) = row(cx.text("name"))?;
    let principal = principal(cx);
    let had = set_by(cx, &principal).remove(name).unwrap_or_default();
    if !had.is_empty() {
        write(cx, &principal, None).await?;
    }
    Ok(json!({"setting": shown(name, &had, &principal)}))
}

/// ListAccountSettings.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let (name, wanted) = (cx.text("name"), cx.text("value"));
    if !name.is_empty() {
        row(name)?;
    }
    let principal = principal(cx);
    let own = set_by(cx, &principal);
    let mut all: BTreeMap<String, (String, String)> = BTreeMap::new();
    if cx.call.input["effectiveSettings"] == true {
        all.extend(SETTINGS.map(|(n, default, _)| (n.to_string(), (default.to_string(), principal.clone()))));
        all.extend(set_by(cx, &root(cx)).into_iter().map(|(n, v)| (n, (v, root(cx)))));
    }
    all.extend(own.into_iter().map(|(n, v)| (n, (v, principal.clone()))));
    let rows = all
        .into_iter()
        .filter(|(n, (v, _))| (name.is_empty() || n == name) && (wanted.is_empty() || v == wanted))
        .map(|(n, (v, who))| (n.clone(), shown(&n, &v, &who)));
    Ok(page.answer("settings", rows))
}

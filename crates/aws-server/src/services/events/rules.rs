//! Rules. A rule's `spec` is AWS's document plus `CreatedAt` (what rates count from), `Tags` and `Targets`.

use super::buses::{self, DEFAULT, PAGES};
use super::{Pattern, Schedule, State, invalid, limit, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, items, now, text};
use serde_json::{Value, json};

/// AWS's quota for a bus.
const RULES_MAX: usize = 300;
/// Members of `spec` that are ours.
const OWN: [&str; 3] = ["CreatedAt", "Tags", "Targets"];

/// The name of a rule's object: rules of different buses may share a name.
pub(super) fn key(bus: &str, rule: &str) -> String {
    if bus == DEFAULT { rule.to_string() } else { format!("{bus}/{rule}") }
}

fn arn(call: &Call, bus: &str, name: &str) -> String {
    format!("arn:aws:events:{}:{}:rule/{}", call.region, call.caller.account, key(bus, name))
}

pub(super) fn unknown(bus: &str, name: &str) -> AwsError {
    not_found(format!("Rule {name} does not exist on EventBus {bus}."))
}

fn checked(call: &Call, bus: &str) -> Result<(), AwsError> {
    let (pattern, schedule) = (call.text("EventPattern"), call.text("ScheduleExpression"));
    if pattern.is_empty() && schedule.is_empty() {
        return Err(invalid("Parameter(s) EventPattern or ScheduleExpression must be specified."));
    }
    if !pattern.is_empty() {
        let parsed = Pattern::parse(pattern);
        parsed.map_err(|e| AwsError::client("InvalidEventPatternException", e.to_string()))?;
    }
    if !schedule.is_empty() {
        if bus != DEFAULT {
            return Err(invalid("ScheduleExpression is supported only on the default event bus."));
        }
        if Schedule::parse(schedule).is_none() {
            return Err(invalid("Parameter ScheduleExpression is not valid."));
        }
    }
    Ok(())
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let bus = buses::of_call(state, call).await?;
    checked(call, &bus)?;
    let name = call.text("Name");
    let arn = arn(call, &bus, name);
    let mut spec = json!({"Name": name, "Arn": arn, "EventBusName": bus, "CreatedBy": call.caller.account,
        "State": "ENABLED"});
    copy(&mut spec, &call.input, "EventPattern ScheduleExpression State Description RoleArn");
    let answer = json!({"RuleArn": arn});
    let object = key(&bus, name);
    let replaced = state.rules.change(call, &object, |old| {
        let mut new = spec.clone();
        OWN.iter().for_each(|member| new[*member] = old[*member].take());
        *old = new;
        Ok(())
    });
    if replaced.await?.is_some() {
        return Ok(answer);
    }
    let there = state.rules.list(call).await?;
    if there.iter().filter(|r| text(r, "EventBusName") == bus).count() >= RULES_MAX {
        return Err(limit("The requested resource exceeds the maximum number allowed."));
    }
    spec["CreatedAt"] = now(call);
    spec["Tags"] = json!(call.items("Tags"));
    spec["Targets"] = json!([]);
    match state.rules.create(call, &object, spec).await? {
        true => Ok(answer),
        false => {
            let words = format!("Rule {name} already exists and is being modified.");
            Err(AwsError::client("ConcurrentModificationException", words))
        }
    }
}

/// The rule that a call names by `member`.
pub(super) async fn of_call(state: &State, call: &Call, member: &str) -> Result<(String, Value), AwsError> {
    let bus = buses::of_call(state, call).await?;
    let name = call.text(member);
    let key = key(&bus, name);
    let rule = state.rules.get(call, &key).await?.ok_or_else(|| unknown(&bus, name))?;
    Ok((key, rule))
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    match of_call(state, call, "Name").await {
        Ok((_, rule)) if !items(&rule["Targets"]).is_empty() => {
            Err(invalid("Rule can't be deleted since it has targets."))
        }
        Ok((key, _)) => state.rules.remove(call, &key).await.map(|_| json!({})),
        // As on AWS: what is gone may be deleted again.
        Err(error) if error.message.starts_with("Rule ") => Ok(json!({})),
        Err(error) => Err(error),
    }
}

fn shown(rule: &Value) -> Value {
    let mut out = rule.clone();
    OWN.iter().for_each(|member| drop(out.as_object_mut().map(|o| o.remove(*member))));
    out
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    of_call(state, call, "Name").await.map(|(_, rule)| shown(&rule))
}

/// EnableRule, DisableRule.
pub(super) async fn switch(state: &State, call: &Call, to: &str) -> Outcome {
    let (key, _) = of_call(state, call, "Name").await?;
    let changed = state.rules.change(call, &key, |spec| {
        spec["State"] = json!(to);
        Ok(())
    });
    changed.await?;
    Ok(json!({}))
}

/// The rules of the call's bus, by name.
async fn on_bus(state: &State, call: &Call) -> Result<Vec<Value>, AwsError> {
    let bus = buses::of_call(state, call).await?;
    let mut all = state.rules.list(call).await?;
    all.retain(|r| text(r, "EventBusName") == bus);
    all.sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    Ok(all)
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut all = on_bus(state, call).await?;
    all.retain(|r| text(r, "Name").starts_with(call.text("NamePrefix")));
    let shown = |rule: &Value| {
        let mut out = shown(rule);
        out.as_object_mut().map(|o| o.remove("CreatedBy"));
        out
    };
    PAGES.answer(call, "Rules", all.iter().map(shown).collect(), "Name")
}

pub(super) async fn names_by_target(state: &State, call: &Call) -> Outcome {
    let mut all = on_bus(state, call).await?;
    let arn = &call.input["TargetArn"];
    all.retain(|r| items(&r["Targets"]).iter().any(|t| t["Arn"] == *arn));
    let (rows, next) = PAGES.cut(call, &all, |r| text(r, "Name").to_string())?;
    Ok(PAGES.shown("RuleNames", rows.iter().map(|r| r["Name"].clone()).collect(), next))
}

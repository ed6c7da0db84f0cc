//! Rules of HTTP listeners.

use super::Elb;
use super::find::{PAGES, What, invalid, new_id, refused};
use super::{actions, conditions};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::text;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Rules of one listener, apart from the default one; ELB's quota.
const RULES_MAX: usize = 100;

fn in_use(priority: &str) -> AwsError {
    refused("PriorityInUse", format!("Priority '{priority}' is currently in use"))
}

async fn of_listener(elb: &Elb, call: &Call, listener: &str) -> Result<Vec<Value>, AwsError> {
    let mut rules = elb.rules.list(call).await?;
    rules.retain(|r| r["ListenerArn"] == listener);
    Ok(rules)
}

fn no_transforms(call: &Call) -> Result<(), AwsError> {
    match call.items("Transforms").is_empty() {
        true => Ok(()),
        false => Err(refused("InvalidConfigurationRequest", "Gantry has no transforms of requests")),
    }
}

/// The default rule of a listener.
fn default_rule(listener: &Value) -> Value {
    let arn = text(listener, "ListenerArn").replacen(":listener/", ":listener-rule/", 1);
    json!({"RuleArn": format!("{arn}/{}", text(listener, "DefaultRuleId")), "Priority": "default",
        "Conditions": [], "Actions": listener["DefaultActions"], "IsDefault": true})
}

/// CreateRule.
pub(super) async fn create(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("ListenerArn");
    let listener = What::Listener.get(elb, call, own).await?;
    let (balancer, protocol) = (text(&listener, "LoadBalancerArn"), text(&listener, "Protocol"));
    if !protocol.starts_with("HTTP") {
        let words = format!("Rules are not supported for listeners of protocol '{protocol}'");
        return Err(refused("InvalidConfigurationRequest", words));
    }
    no_transforms(call)?;
    let priority = call.input["Priority"].to_string();
    let present = of_listener(elb, call, own).await?;
    refuse_if(present.iter().any(|r| r["Priority"] == *priority), || in_use(&priority))?;
    if present.len() >= RULES_MAX {
        return Err(refused("TooManyRules", "You've reached the limit on the number of rules"));
    }
    let id = new_id();
    let arn = own.replacen(":listener/", ":listener-rule/", 1);
    let spec = json!({
        "RuleArn": format!("{arn}/{id}"),
        "ListenerArn": own,
        "Priority": priority,
        "Conditions": conditions::checked(&call.input["Conditions"])?,
        "Actions": actions::checked(elb, call, &call.input["Actions"], (balancer, protocol)).await?,
        "IsDefault": false,
        "Tags": call.input["Tags"],
    });
    elb.rules.create(call, &id, spec.clone()).await?;
    Ok(json!({"Rules": [spec]}))
}

/// Sorts by priority, the default rule last; the key is only for paging.
fn ordered(mut rules: Vec<Value>) -> Vec<Value> {
    for rule in &mut rules {
        let number = text(rule, "Priority").parse::<u32>().unwrap_or(u32::MAX);
        let key = format!("{number:010} {}", text(rule, "RuleArn"));
        rule["order"] = json!(key);
    }
    rules
}

/// DescribeRules.
pub(super) async fn describe(elb: &Elb, call: &Call) -> Outcome {
    let arns = call.items("RuleArns");
    let rules = match call.input["ListenerArn"].as_str() {
        Some(listener) => {
            let spec = What::Listener.get(elb, call, listener).await?;
            let mut rules = of_listener(elb, call, listener).await?;
            rules.push(default_rule(&spec));
            rules
        }
        None if arns.is_empty() => {
            return Err(invalid("You must specify either a listener ARN or rule ARNs"));
        }
        None => {
            let mut rules = elb.rules.list(call).await?;
            rules.extend(elb.listeners.list(call).await?.iter().map(default_rule));
            rules.retain(|r| arns.contains(&r["RuleArn"]));
            refuse_if(rules.len() < arns.len(), || What::Rule.missing())?;
            rules
        }
    };
    PAGES.answer(call, "Rules", ordered(rules), "order")
}

/// ModifyRule.
pub(super) async fn modify(elb: &Elb, call: &Call) -> Outcome {
    no_transforms(call)?;
    let own = call.text("RuleArn");
    let rule = What::Rule.get(elb, call, own).await?;
    let listener = What::Listener.get(elb, call, text(&rule, "ListenerArn")).await?;
    let place = (text(&listener, "LoadBalancerArn"), text(&listener, "Protocol"));
    let actions = match &call.input["Actions"] {
        Value::Null => None,
        given => Some(actions::checked(elb, call, given, place).await?),
    };
    let conditions = match &call.input["Conditions"] {
        Value::Null => None,
        given => Some(conditions::checked(given)?),
    };
    let changed = What::Rule.change(elb, call, own, |spec| {
        for (member, new) in [("Actions", &actions), ("Conditions", &conditions)] {
            if let Some(new) = new {
                spec[member] = new.clone();
            }
        }
        Ok(json!({"Rules": [spec]}))
    });
    changed.await
}

/// DeleteRule.
pub(super) async fn delete(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("RuleArn");
    let name = What::Rule.name(own)?;
    refuse_if(elb.listeners.list(call).await?.iter().any(|l| text(l, "DefaultRuleId") == name), || {
        refused("OperationNotPermitted", format!("Default rule '{own}' cannot be deleted"))
    })?;
    What::Rule.get(elb, call, own).await?;
    elb.rules.remove(call, name).await?;
    Ok(json!({}))
}

/// SetRulePriorities: all rules of one listener, checked as a whole before any is written.
pub(super) async fn set_priorities(elb: &Elb, call: &Call) -> Outcome {
    let wanted = call.items("RulePriorities");
    let Some(first) = wanted.first() else { return Ok(json!({"Rules": []})) };
    let rule = What::Rule.get(elb, call, text(first, "RuleArn")).await?;
    let mut rules = of_listener(elb, call, text(&rule, "ListenerArn")).await?;
    for pair in wanted {
        let rule = rules.iter_mut().find(|r| r["RuleArn"] == pair["RuleArn"]);
        rule.ok_or_else(|| What::Rule.missing())?["Priority"] = json!(pair["Priority"].to_string());
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = rules.iter().find(|r| !seen.insert(text(r, "Priority"))) {
        return Err(in_use(text(twice, "Priority")));
    }
    let mut out = Vec::new();
    for pair in wanted {
        let changed = What::Rule.change(elb, call, text(pair, "RuleArn"), |spec| {
            spec["Priority"] = json!(pair["Priority"].to_string());
            Ok(spec.clone())
        });
        out.push(changed.await?);
    }
    Ok(json!({"Rules": out}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_rule_is_last() {
        let rules = [("10", "a"), ("default", "b"), ("9", "c")];
        let rules = rules.map(|(p, arn)| json!({"Priority": p, "RuleArn": arn})).to_vec();
        let mut rules = ordered(rules);
        rules.sort_by(|a, b| text(a, "order").cmp(text(b, "order")));
        assert_eq!(rules.iter().map(|r| text(r, "RuleArn")).collect::<Vec<_>>(), ["c", "a", "b"]);
    }
}

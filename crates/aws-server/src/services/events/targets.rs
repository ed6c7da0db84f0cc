//! Targets of rules: what kinds there are, and what each needs.

use super::buses::PAGES;
use super::rules::of_call;
use super::transform::is_path;
use super::{State, invalid, limit};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::names::{Arn, Resource};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// AWS's quota for a rule.
const TARGETS_MAX: usize = 5;

/// What a target's ARN names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A log group.
    Log { region: String, group: String },
    /// A cluster that a task is run on.
    Cluster(String),
    /// An API destination.
    Webhook(String),
    /// Another bus.
    Bus(String),
}

impl Kind {
    /// `None`: not a kind that is served.
    pub(super) fn of(arn: &str) -> Option<Kind> {
        let parsed = Arn::parse(arn)?;
        match parsed.service {
            "logs" => {
                let group = parsed.resource.strip_prefix("log-group:")?;
                let group = group.strip_suffix(":*").unwrap_or(group).to_string();
                Some(Kind::Log { region: parsed.region.to_string(), group })
            }
            "ecs" => match Resource::parse(parsed.resource)? {
                Resource::Cluster(_) => Some(Kind::Cluster(arn.to_string())),
                _ => None,
            },
            "events" => match parsed.resource.split_once('/')? {
                ("api-destination", rest) => Some(Kind::Webhook(rest.split('/').next()?.to_string())),
                ("event-bus", name) => Some(Kind::Bus(name.to_string())),
                _ => None,
            },
            _ => None,
        }
    }
}

fn check(target: &Value) -> Result<(), AwsError> {
    let (id, arn) = (text(target, "Id"), text(target, "Arn"));
    refuse_if(Arn::parse(arn).is_none(), || {
        invalid(format!("Parameter {arn} is not valid. Reason: Provided Arn is not in correct format."))
    })?;
    let Some(kind) = Kind::of(arn) else {
        return Err(invalid(format!(
            "Parameter {arn} is not valid. Reason: Gantry delivers to CloudWatch Logs groups, ECS clusters, API \
             destinations and event buses."
        )));
    };
    let inputs = ["Input", "InputPath", "InputTransformer"].iter().filter(|m| !target[**m].is_null());
    if inputs.count() > 1 {
        return Err(invalid(format!(
            "Only one of Input, InputPath, or InputTransformer must be provided for target {id}."
        )));
    }
    if let Some(input) = target["Input"].as_str()
        && serde_json::from_str::<Value>(input).is_err()
    {
        return Err(invalid(format!("JSON syntax error in input for target {id}.")));
    }
    let transformed = target["InputTransformer"]["InputPathsMap"].as_object();
    let paths = transformed.into_iter().flat_map(|m| m.values()).chain([&target["InputPath"]]);
    if paths.filter_map(Value::as_str).any(|path| !is_path(path)) {
        return Err(invalid(format!("Invalid InputPath for target {id}.")));
    }
    if matches!(kind, Kind::Cluster(_)) && target["EcsParameters"].is_null() {
        return Err(invalid(format!("Parameter(s) EcsParameters must be specified for target: {id}.")));
    }
    Ok(())
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let (key, _) = of_call(state, call, "Rule").await?;
    let new = call.items("Targets");
    new.iter().try_for_each(check)?;
    for target in new {
        if let Some(Kind::Webhook(name)) = Kind::of(text(target, "Arn"))
            && state.destinations.get(call, &name).await?.is_none()
        {
            return Err(super::webhooks::no_destination(&name));
        }
    }
    let changed = state.rules.change(call, &key, |spec| {
        let kept = items(&spec["Targets"]).iter().filter(|t| new.iter().all(|n| n["Id"] != t["Id"]));
        let all: Vec<Value> = kept.chain(new).cloned().collect();
        if all.len() > TARGETS_MAX {
            return Err(limit("The requested resource exceeds the maximum number allowed."));
        }
        spec["Targets"] = json!(all);
        Ok(())
    });
    changed.await?;
    Ok(json!({"FailedEntryCount": 0, "FailedEntries": []}))
}

pub(super) async fn remove(state: &State, call: &Call) -> Outcome {
    let (key, rule) = of_call(state, call, "Rule").await?;
    let ids = call.items("Ids");
    let changed = state.rules.change(call, &key, |spec| {
        let kept = items(&spec["Targets"]).iter().filter(|t| !ids.contains(&t["Id"]));
        spec["Targets"] = json!(kept.cloned().collect::<Vec<_>>());
        Ok(())
    });
    changed.await?;
    let unknown = ids.iter().filter(|id| items(&rule["Targets"]).iter().all(|t| t["Id"] != **id));
    let failed: Vec<Value> = unknown
        .map(|id| {
            json!({"TargetId": id, "ErrorCode": "ResourceNotFoundException",
                "ErrorMessage": format!("Rule {} does not have a target with the Id {}.", text(&rule, "Name"),
                    id.as_str().unwrap_or_default())})
        })
        .collect();
    Ok(json!({"FailedEntryCount": failed.len(), "FailedEntries": failed}))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let (_, rule) = of_call(state, call, "Rule").await?;
    PAGES.answer(call, "Targets", items(&rule["Targets"]).to_vec(), "Id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_name_what_is_served() {
        let at = |rest: &str| format!("arn:aws:{rest}");
        let kind = |rest: &str| Kind::of(&at(rest));
        let log = Kind::Log { region: "us-east-1".into(), group: "/aws/events/x".into() };
        assert_eq!(kind("logs:us-east-1:123456789012:log-group:/aws/events/x"), Some(log.clone()));
        assert_eq!(kind("logs:us-east-1:123456789012:log-group:/aws/events/x:*"), Some(log));
        let cluster = "ecs:us-east-1:123456789012:cluster/prod";
        assert_eq!(kind(cluster), Some(Kind::Cluster(at(cluster))));
        assert_eq!(
            kind("events:r:123456789012:api-destination/hook/0a-1b"),
            Some(Kind::Webhook("hook".into()))
        );
        assert_eq!(kind("events:r:123456789012:event-bus/b"), Some(Kind::Bus("b".into())));
        for other in ["lambda:us-east-1:123456789012:function:f", "ecs:us-east-1:123456789012:service/c/s"] {
            assert_eq!(kind(other), None);
        }
    }
}

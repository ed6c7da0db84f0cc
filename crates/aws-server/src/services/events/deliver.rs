//! Delivery of one event to one target, tried again by the target's retry policy.

use super::engine::{Event, Rule};
use super::targets::Kind;
use super::transform::input;
use super::{CONNECTIONS, DESTINATIONS};
use crate::service::{Call, Service, Shared};
use crate::services::kept::{Kept, Reach, copy, items, text};
use crate::services::logs::{Sink, SinkError};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::Outgoing;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use stdx::backoff::Backoff;
use stdx::{UNRESERVED, percent};

/// How often a delivery is tried again when the target does not say: some ten minutes. (AWS: 185 times in a day; here
/// the queue lives in memory.)
const RETRIES: u64 = 12;
const AGE_MAX_SECONDS: i64 = 86_400;
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(500), factor: 2, max: Duration::from_secs(60) };
/// AWS's patience with a webhook.
const WEBHOOK_MAX: Duration = Duration::from_secs(5);
/// An event is handed from bus to bus once, as on AWS.
const HOP: &str = "gantry-forwarded";
/// A target's parameters that RunTask has too, with a small first letter.
const PARAMETERS: &str = "LaunchType PlatformVersion Group EnableECSManagedTags EnableExecuteCommand PlacementConstraints \
    PlacementStrategy CapacityProviderStrategy PropagateTags ReferenceId NetworkConfiguration";

/// One event for one target of a rule.
pub(super) struct Delivery {
    pub(super) rule: Arc<Rule>,
    pub(super) target: usize,
    pub(super) event: Arc<Value>,
    pub(super) born: Timestamp,
}

/// How a try can fail.
enum Failure {
    /// For ever.
    Refused(String),
    /// For now.
    Later(String),
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Refused(why) => Failure::Refused(why),
            SinkError::Later(why) => Failure::Later(why),
        }
    }
}

/// What deliveries need.
pub(super) struct Deliverer {
    sink: Option<Sink>,
    services: OnceLock<Vec<Arc<dyn Service>>>,
    connections: Kept,
    destinations: Kept,
}

impl Deliverer {
    pub(super) fn new(shared: &Shared, sink: Option<Sink>) -> Deliverer {
        let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Regional);
        Deliverer {
            connections: kept(CONNECTIONS, "Connection"),
            destinations: kept(DESTINATIONS, "ApiDestination"),
            sink,
            services: OnceLock::new(),
        }
    }

    pub(super) fn set_services(&self, services: Vec<Arc<dyn Service>>) {
        let _ = self.services.set(services);
    }

    /// Delivers. What is returned is to be published.
    pub(super) async fn deliver(&self, delivery: Delivery) -> Option<Event> {
        let target = delivery.rule.spec["Targets"][delivery.target].clone();
        let policy = &target["RetryPolicy"];
        let tries = policy["MaximumRetryAttempts"].as_u64().unwrap_or(RETRIES);
        let age = policy["MaximumEventAgeInSeconds"].as_i64().unwrap_or(AGE_MAX_SECONDS);
        let (rule, id) = (text(&delivery.rule.spec, "Arn"), text(&target, "Id"));
        let mut failures = 0;
        loop {
            let why = match self.attempt(&delivery, &target).await {
                Ok(again) => return again,
                Err(Failure::Refused(why)) => {
                    tracing::warn!(rule, target = id, why, "event not delivered");
                    return None;
                }
                Err(Failure::Later(why)) => why,
            };
            let old = Timestamp::now().as_second() - delivery.born.as_second() >= age;
            if u64::from(failures) >= tries || old {
                tracing::warn!(rule, target = id, why, "event given up");
                return None;
            }
            tokio::time::sleep(BACKOFF.delay(failures)).await;
            failures += 1;
        }
    }

    async fn attempt(&self, delivery: &Delivery, target: &Value) -> Result<Option<Event>, Failure> {
        let (rule, event) = (&*delivery.rule, &*delivery.event);
        let given = || input(target, &rule.spec, event);
        match Kind::of(text(target, "Arn")) {
            Some(Kind::Log { region, group }) => self.log(rule, &region, &group, given()).await?,
            Some(Kind::Cluster(arn)) => self.run_task(rule, target, &arn, &given()).await?,
            Some(Kind::Webhook(name)) => self.post(rule, target, &name, given()).await?,
            Some(Kind::Bus(bus)) => return Ok(forwarded(rule, &bus, event)),
            None => return Err(Failure::Refused("no kind of target that is served".into())),
        }
        Ok(None)
    }

    async fn log(&self, rule: &Rule, region: &str, group: &str, message: String) -> Result<(), Failure> {
        let Some(sink) = &self.sink else { return Err(Failure::Refused("there are no logs here".into())) };
        let stream = text(&rule.spec, "Name");
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        sink.open(region, group, stream, true).await?;
        sink.put(region, group, stream, vec![(now, message)]).await?;
        Ok(())
    }

    async fn run_task(&self, rule: &Rule, target: &Value, arn: &str, input: &str) -> Result<(), Failure> {
        let ecs = self.services.get().and_then(|all| all.iter().find(|s| s.name() == "ecs"));
        let Some(ecs) = ecs else { return Err(Failure::Later("ECS is not up yet".into())) };
        let input = run_task(rule, target, arn, input);
        let call = Call::own(&rule.account, &rule.region, "RunTask", input);
        let answer = ecs.call(&call).await.map_err(|error| match error.status {
            500.. => Failure::Later(error.to_string()),
            _ => Failure::Refused(error.to_string()),
        })?;
        match items(&answer["failures"]).first() {
            Some(failure) => Err(Failure::Later(text(failure, "reason").to_string())),
            None => Ok(()),
        }
    }

    async fn post(&self, rule: &Rule, target: &Value, name: &str, body: String) -> Result<(), Failure> {
        let later = |e: crate::service::AwsError| Failure::Later(e.to_string());
        let gone = || Failure::Refused(format!("API destination {name} or its connection is gone"));
        let (account, region) = (&rule.account, &rule.region);
        let destination = self.destinations.get_of(account, region, name).await.map_err(later)?;
        let destination = destination.ok_or_else(gone)?;
        let connection =
            text(&destination, "ConnectionArn").split('/').nth(1).unwrap_or_default().to_string();
        let connection = self.connections.get_of(account, region, &connection).await.map_err(later)?;
        let outgoing = outgoing(&destination, &connection.ok_or_else(gone)?, target, body);
        match image::send(outgoing, WEBHOOK_MAX).await {
            Ok(200..300) => Ok(()),
            // AWS tries again what may pass.
            Ok(code @ (401 | 407 | 409 | 429 | 500..)) => Err(Failure::Later(format!("it answered {code}"))),
            Ok(code) => Err(Failure::Refused(format!("it answered {code}"))),
            Err(why) => Err(Failure::Later(why)),
        }
    }
}

fn forwarded(rule: &Rule, bus: &str, event: &Value) -> Option<Event> {
    if event[HOP] == true {
        tracing::warn!(rule = text(&rule.spec, "Arn"), "an event is handed from bus to bus once only");
        return None;
    }
    let mut document = event.clone();
    document[HOP] = json!(true);
    Some(Event { account: rule.account.clone(), region: rule.region.clone(), bus: bus.to_string(), document })
}

/// `AwsvpcConfiguration` as ECS spells it.
fn lower_first(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let lower = |name: &str| {
        let mut letters = name.chars();
        letters.next().map(|first| first.to_ascii_lowercase().to_string() + letters.as_str())
    };
    let members: Map<String, Value> =
        map.iter().filter_map(|(name, v)| Some((lower(name)?, lower_first(v)))).collect();
    Value::Object(members)
}

/// An ARN without a revision stands for the family's newest: RunTask has the bare name for that.
fn definition(arn: &str) -> &str {
    arn.split_once("task-definition/").map(|(_, name)| name).filter(|name| !name.contains(':')).unwrap_or(arn)
}

/// RunTask's input: the target's parameters, and overrides from what the target is given.
fn run_task(rule: &Rule, target: &Value, cluster: &str, input: &str) -> Value {
    let given = &target["EcsParameters"];
    let mut out = json!({
        "cluster": cluster, "taskDefinition": definition(text(given, "TaskDefinitionArn")),
        "count": given["TaskCount"].as_u64().unwrap_or(1),
        "startedBy": format!("events-rule/{}", text(&rule.spec, "Name")).chars().take(36).collect::<String>(),
    });
    let mut parameters = json!({});
    copy(&mut parameters, given, PARAMETERS);
    for (name, value) in lower_first(&parameters).as_object().into_iter().flatten() {
        out[name] = value.clone();
    }
    if let Some(tags) = given["Tags"].as_array() {
        out["tags"] = tags.iter().map(lower_first).collect();
    }
    // Only what the target says itself is meant as overrides; an event as such is not.
    let said = ["Input", "InputPath", "InputTransformer"].iter().any(|m| !target[*m].is_null());
    let overrides = serde_json::from_str::<Value>(input).ok().filter(|v| said && v.is_object());
    if let Some(overrides) = overrides {
        out["overrides"] = overrides;
    }
    out
}

/// The request to a webhook.
fn outgoing(destination: &Value, connection: &Value, target: &Value, body: String) -> Outgoing {
    let (auth, more) = (&connection["AuthParameters"], &target["HttpParameters"]);
    let mut headers = vec![("content-type".to_string(), "application/json; charset=utf-8".to_string())];
    let (user, key) = (&auth["BasicAuthParameters"], &auth["ApiKeyAuthParameters"]);
    if !user.is_null() {
        let pair = format!("{}:{}", text(user, "Username"), text(user, "Password"));
        headers.push(("authorization".into(), format!("Basic {}", BASE64_STANDARD.encode(pair))));
    }
    if !key.is_null() {
        headers.push((text(key, "ApiKeyName").to_string(), text(key, "ApiKeyValue").to_string()));
    }
    let fixed = &auth["InvocationHttpParameters"];
    let mut query = Vec::new();
    for (name, value) in more["HeaderParameters"].as_object().into_iter().flatten() {
        headers.push((name.clone(), value.as_str().unwrap_or_default().to_string()));
    }
    for header in items(&fixed["HeaderParameters"]) {
        headers.push((text(header, "Key").to_string(), text(header, "Value").to_string()));
    }
    for (name, value) in more["QueryStringParameters"].as_object().into_iter().flatten() {
        query.push((name.clone(), value.as_str().unwrap_or_default().to_string()));
    }
    for pair in items(&fixed["QueryStringParameters"]) {
        query.push((text(pair, "Key").to_string(), text(pair, "Value").to_string()));
    }
    let mut url = text(destination, "InvocationEndpoint").to_string();
    for value in items(&more["PathParameterValues"]) {
        url = url.replacen('*', &percent(value.as_str().unwrap_or_default(), UNRESERVED), 1);
    }
    for (name, value) in query {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&format!("{}={}", percent(&name, UNRESERVED), percent(&value, UNRESERVED)));
    }
    Outgoing { method: text(destination, "HttpMethod").to_string(), url, headers, body: body.into_bytes() }
}

#[cfg(test)]
mod unit {
    use super::*;
    use k8s_schema::View;

    fn rule() -> Rule {
        let spec = json!({"Name": "nightly", "Arn": "arn:aws:events:us-east-1:123456789012:rule/nightly"});
        Rule::decode(json!({"spec": spec}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn run_task_gets_ecs_own_names() {
        let target = json!({"Input": "{}", "EcsParameters": {
            "TaskDefinitionArn": "arn:d", "TaskCount": 2, "LaunchType": "FARGATE",
            "NetworkConfiguration": {"awsvpcConfiguration": {"Subnets": ["s"], "AssignPublicIp": "DISABLED"}},
            "Tags": [{"Key": "a", "Value": "b"}]}});
        let made = run_task(&rule(), &target, "arn:c", r#"{"containerOverrides": []}"#);
        assert_eq!(
            made,
            json!({"cluster": "arn:c", "taskDefinition": "arn:d", "count": 2, "startedBy": "events-rule/nightly",
                "launchType": "FARGATE", "tags": [{"key": "a", "value": "b"}], "overrides": {"containerOverrides": []},
                "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["s"], "assignPublicIp": "DISABLED"}}})
        );
        let plain = json!({"EcsParameters": {"TaskDefinitionArn": "arn:d"}});
        assert!(run_task(&rule(), &plain, "arn:c", r#"{"detail": {}}"#).get("overrides").is_none());
    }

    #[test]
    fn a_webhook_is_told_who_we_are() {
        let destination = json!({"InvocationEndpoint": "http://h/*/x", "HttpMethod": "POST"});
        let connection = json!({"AuthParameters": {
            "BasicAuthParameters": {"Username": "u", "Password": "p"},
            "InvocationHttpParameters": {"QueryStringParameters": [{"Key": "k", "Value": "1&2"}]}}});
        let target = json!({"HttpParameters": {"PathParameterValues": ["a/b"], "HeaderParameters": {"x-h": "v"},
            "QueryStringParameters": {"q": "ü"}}});
        let made = outgoing(&destination, &connection, &target, "{}".into());
        assert_eq!(made.url, "http://h/a%2Fb/x?q=%C3%BC&k=1%262");
        let header = |name: &str| made.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((header("authorization"), header("x-h")), (Some("Basic dTpw"), Some("v")));
        let key =
            json!({"AuthParameters": {"ApiKeyAuthParameters": {"ApiKeyName": "x-key", "ApiKeyValue": "s"}}});
        let made = outgoing(&destination, &key, &json!({}), String::new());
        assert_eq!(made.headers.last(), Some(&("x-key".into(), "s".into())));
    }
}

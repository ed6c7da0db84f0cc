//! The operations on a real API server, and deliveries to a log group, a webhook, ECS and another bus.

use super::{OPERATIONS, State, service, source::Source};
use crate::service::{Call, Caller, Outcome, Service, Shared};
use crate::services::{ecs, logs as cloudwatch};
use apiserver::{Api, ApiConfig};
use auth::Identity;
use client::ObjectKey;
use k8s_schema::gvr::{ECS_TASKS, NAMESPACES};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);
const ACCOUNT: &str = "123456789012";

struct World {
    services: Vec<Arc<dyn Service>>,
    shared: Shared,
    engine: Arc<super::Engine>,
    tasks: Vec<JoinHandle<()>>,
    api: Arc<Api>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.api.close();
    }
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let objects =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(objects))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    for name in ["aws", "ecs"] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        client.create(&NAMESPACES, body).await.unwrap();
    }
    let shared = Shared {
        client,
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        zones: vec!["us-east-1a".into()],
    };
    let limits = logs::Limits { disk_free_min: 0, ..logs::Limits::default() };
    let store = logs::Store::open(folder.path().join("logs"), limits).unwrap();
    let logs = cloudwatch::State::new(shared.clone(), store, None);
    let state = State::new(&shared, Some(cloudwatch::Sink::new(logs.clone())));
    let services = vec![service(state.clone()), cloudwatch::service(logs), ecs::service(&shared)];
    let engine = state.engine().clone();
    engine.prepare(services.clone()).await;
    let source = Source::new(engine.clone(), shared.clone(), &services);
    let tasks = vec![tokio::spawn(engine.clone().run()), tokio::spawn(source.run())];
    World { services, shared, engine, tasks, api, _folder: folder }
}

impl World {
    async fn run(&self, service: &str, operation: &str, input: Value) -> Outcome {
        self.run_ago(Duration::ZERO, service, operation, input).await
    }

    /// A call as if it had come so long ago.
    async fn run_ago(&self, ago: Duration, service: &str, operation: &str, input: Value) -> Outcome {
        let service = self.services.iter().find(|s| s.name() == service).unwrap();
        let operation = service.served().into_iter().find(|o| *o == operation).expect("served");
        let caller = Caller {
            account: ACCOUNT.into(),
            access_key: "testing".into(),
            arn: format!("arn:aws:iam::{ACCOUNT}:root"),
            user_id: ACCOUNT.into(),
        };
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
        let now_ms = now_ms - u64::try_from(ago.as_millis()).unwrap();
        let (region, endpoint) = ("us-east-1".into(), "http://127.0.0.1:4566".into());
        let call = Call { caller, region, operation, input, request_id: "r".into(), now_ms, endpoint };
        service.call(&call).await
    }

    async fn ok(&self, operation: &str, input: Value) -> Value {
        self.run("events", operation, input).await.unwrap_or_else(|e| panic!("{operation}: {e}"))
    }

    async fn error(&self, operation: &str, input: Value) -> String {
        self.run("events", operation, input).await.expect_err(operation).to_string()
    }

    async fn put(&self, detail: Value) -> Value {
        let entry =
            json!({"Source": "app", "DetailType": "done", "Detail": detail.to_string(), "Resources": ["r"]});
        self.ok("PutEvents", json!({"Entries": [entry]})).await
    }

    /// The messages of a group once there are so many. (A cache shows a new rule a moment after it was put.)
    async fn messages(&self, group: &str, count: usize) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let input = json!({"logGroupName": group});
            let found = self.run("logs", "FilterLogEvents", input).await.unwrap_or_default();
            let events = found["events"].as_array().cloned().unwrap_or_default();
            if events.len() >= count {
                let message = |e: &Value| e["message"].as_str().unwrap().to_string();
                return events
                    .iter()
                    .map(|e| serde_json::from_str(&message(e)).unwrap_or(json!(message(e))))
                    .collect();
            }
            assert!(tokio::time::Instant::now() < deadline, "{group}: {events:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the engine has seen that rule's targets.
    async fn known(&self, rule: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let seen = || {
            let all = self.engine.rules().list();
            all.iter().any(|o| &*o.key.name == rule && o.value().unwrap()["spec"]["Targets"][0].is_object())
        };
        while !seen() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn rule(&self, name: &str, pattern: Value, targets: Value) {
        self.ok("PutRule", json!({"Name": name, "EventPattern": pattern.to_string()})).await;
        self.ok("PutTargets", json!({"Rule": name, "Targets": targets})).await;
        self.known(name).await;
    }
}

fn group(name: &str) -> Value {
    json!(format!("arn:aws:logs:us-east-1:{ACCOUNT}:log-group:{name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_targets_are_kept_as_on_aws() {
    let world = world().await;
    let pattern = json!({"source": ["aws.ecs"]}).to_string();
    let made = world
        .ok("PutRule", json!({"Name": "r", "EventPattern": pattern, "Tags": [{"Key": "a", "Value": "1"}]}))
        .await;
    let arn = format!("arn:aws:events:us-east-1:{ACCOUNT}:rule/r");
    assert_eq!(made["RuleArn"], arn);
    let targets = json!([{"Id": "1", "Arn": group("/g")}, {"Id": "2", "Arn": group("/h")}]);
    let put = world.ok("PutTargets", json!({"Rule": "r", "Targets": targets})).await;
    assert_eq!(put["FailedEntryCount"], 0);
    assert_eq!(world.ok("ListTargetsByRule", json!({"Rule": "r"})).await["Targets"], targets);
    // A rule that is put again keeps its targets.
    world
        .ok("PutRule", json!({"Name": "r", "ScheduleExpression": "rate(5 minutes)", "State": "DISABLED"}))
        .await;
    let seen = world.ok("DescribeRule", json!({"Name": "r"})).await;
    assert_eq!((&seen["State"], &seen["EventPattern"]), (&json!("DISABLED"), &Value::Null));
    assert!(seen.get("Targets").is_none() && seen.get("CreatedAt").is_none(), "{seen}");
    world.ok("EnableRule", json!({"Name": "r"})).await;
    assert_eq!(world.ok("ListRules", json!({})).await["Rules"][0]["State"], "ENABLED");
    let names = world.ok("ListRuleNamesByTarget", json!({"TargetArn": group("/h")})).await;
    assert_eq!(names["RuleNames"], json!(["r"]));
    assert_eq!(world.ok("ListTagsForResource", json!({"ResourceARN": arn})).await["Tags"][0]["Key"], "a");
    let error = world.error("DeleteRule", json!({"Name": "r"})).await;
    assert_eq!(error, "ValidationException: Rule can't be deleted since it has targets.");
    let gone = world.ok("RemoveTargets", json!({"Rule": "r", "Ids": ["1", "2", "3"]})).await;
    assert_eq!((&gone["FailedEntryCount"], &gone["FailedEntries"][0]["TargetId"]), (&json!(1), &json!("3")));
    world.ok("DeleteRule", json!({"Name": "r"})).await;
    world.ok("DeleteRule", json!({"Name": "r"})).await;
    let error = world.error("DescribeRule", json!({"Name": "r"})).await;
    assert_eq!(error, "ResourceNotFoundException: Rule r does not exist on EventBus default.");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_and_nothing_made() {
    let world = world().await;
    for (operation, input, words) in [
        ("PutRule", json!({"Name": "r"}), "EventPattern or ScheduleExpression must be specified"),
        (
            "PutRule",
            json!({"Name": "r", "EventPattern": "{\"a\": 1}"}),
            "InvalidEventPatternException: Event pattern",
        ),
        (
            "PutRule",
            json!({"Name": "r", "ScheduleExpression": "rate(1 week)"}),
            "ScheduleExpression is not valid.",
        ),
        (
            "PutRule",
            json!({"Name": "r", "EventBusName": "no", "EventPattern": "{\"a\": [1]}"}),
            "bus no does not exist",
        ),
        ("PutTargets", json!({"Rule": "r", "Targets": []}), "Rule r does not exist"),
        ("ListRules", json!({"NextToken": "absurd"}), "NextToken"),
        ("DescribeConnection", json!({"Name": "x"}), "ResourceNotFoundException"),
        ("DescribeApiDestination", json!({"Name": "x"}), "ResourceNotFoundException"),
        ("DeleteEventBus", json!({"Name": "default"}), "Cannot delete event bus default."),
    ] {
        let error = world.error(operation, input).await;
        assert!(error.contains(words), "{operation}: {error}");
    }
    assert_eq!(world.ok("ListRules", json!({})).await["Rules"], json!([]));
    world.ok("PutRule", json!({"Name": "r", "EventPattern": "{\"a\": [1]}"})).await;
    let cluster = format!("arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/c");
    for (target, words) in [
        (json!({"Id": "1", "Arn": "x"}), "not in correct format"),
        (
            json!({"Id": "1", "Arn": format!("arn:aws:lambda:us-east-1:{ACCOUNT}:function:f")}),
            "Gantry delivers to",
        ),
        (json!({"Id": "1", "Arn": cluster}), "EcsParameters must be specified for target: 1."),
        (json!({"Id": "1", "Arn": group("/g"), "Input": "{}", "InputPath": "$"}), "Only one of Input"),
        (json!({"Id": "1", "Arn": group("/g"), "Input": "{"}), "JSON syntax error in input for target 1."),
    ] {
        let error = world.error("PutTargets", json!({"Rule": "r", "Targets": [target]})).await;
        assert!(error.contains(words), "{error}");
    }
    let many: Vec<Value> = (0..6).map(|n| json!({"Id": n.to_string(), "Arn": group("/g")})).collect();
    assert!(world.error("PutTargets", json!({"Rule": "r", "Targets": many})).await.contains("LimitExceeded"));
    let entries = json!([{"Source": "aws.x", "DetailType": "d", "Detail": "{}"}, {"Source": "x", "DetailType": "d"},
        {"Source": "x", "DetailType": "d", "Detail": "[]"}, {"Source": "x", "DetailType": "d", "Detail": "{}"}]);
    let put = world.ok("PutEvents", json!({"Entries": entries})).await;
    let codes: Vec<_> = put["Entries"].as_array().unwrap().iter().map(|e| e["ErrorCode"].as_str()).collect();
    let wanted =
        [Some("NotAuthorizedForSourceException"), Some("InvalidArgument"), Some("MalformedDetail"), None];
    assert_eq!((codes, &put["FailedEntryCount"]), (wanted.to_vec(), &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_logs_and_other_buses() {
    let world = world().await;
    world.ok("CreateEventBus", json!({"Name": "second"})).await;
    let bus = format!("arn:aws:events:us-east-1:{ACCOUNT}:event-bus/second");
    let rule = json!({"Name": "r", "EventBusName": "second", "EventPattern": "{\"source\": [\"app\"]}"});
    world.ok("PutRule", rule).await;
    let targets = json!([{"Id": "1", "Arn": group("/second"), "InputPath": "$.detail.n"}]);
    world.ok("PutTargets", json!({"Rule": "r", "EventBusName": "second", "Targets": targets})).await;
    let targets = json!([{"Id": "1", "Arn": group("/first")}, {"Id": "2", "Arn": bus}]);
    world.rule("r", json!({"detail": {"n": [{"numeric": [">", 1]}]}}), targets).await;
    for n in [1, 2] {
        world.put(json!({"n": n})).await;
    }
    let first = world.messages("/first", 1).await;
    assert_eq!(
        (first.len(), &first[0]["detail"], &first[0]["detail-type"]),
        (1, &json!({"n": 2}), &json!("done"))
    );
    assert_eq!((&first[0]["account"], &first[0]["resources"]), (&json!(ACCOUNT), &json!(["r"])));
    assert_eq!(world.messages("/second", 1).await, [json!(2)]);
    let all = world.ok("ListEventBuses", json!({})).await;
    let names: Vec<_> = all["EventBuses"].as_array().unwrap().iter().map(|b| b["Name"].clone()).collect();
    assert_eq!(names, ["default", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_comes_when_it_is_due() {
    let world = world().await;
    let _clock = Task(tokio::spawn(super::clock::run(world.engine.clone())));
    // A rate counts from the rule's making: the first minute is nearly over.
    let rule = json!({"Name": "r", "ScheduleExpression": "rate(1 minute)"});
    let ago = Duration::from_millis(57_500);
    world.run_ago(ago, "events", "PutRule", rule).await.unwrap();
    world.ok("PutTargets", json!({"Rule": "r", "Targets": [{"Id": "1", "Arn": group("/time")}]})).await;
    let seen = world.messages("/time", 1).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let (kind, source) = (&seen[0]["detail-type"], &seen[0]["source"]);
    assert_eq!((kind, source), (&json!("Scheduled Event"), &json!("aws.events")));
    assert_eq!(seen[0]["resources"], json!([format!("arn:aws:events:us-east-1:{ACCOUNT}:rule/r")]));
}

/// Ends with the test.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server that refuses the first request and takes the second; what it was sent.
async fn listen() -> (String, JoinHandle<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut requests = Vec::new();
        for status in ["503 Later", "200 OK"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = String::new();
            while !seen.ends_with('}') {
                let mut piece = [0; 4096];
                let n = stream.read(&mut piece).await.unwrap();
                assert!(n > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&piece[..n]).unwrap());
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            requests.push(seen);
        }
        requests
    });
    (url, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_called_until_it_takes_the_event() {
    let world = world().await;
    let (url, server) = listen().await;
    let auth = json!({"ApiKeyAuthParameters": {"ApiKeyName": "x-key", "ApiKeyValue": "s3cret"}});
    let connection = json!({"Name": "c", "AuthorizationType": "API_KEY", "AuthParameters": auth});
    let connection = world.ok("CreateConnection", connection).await["ConnectionArn"].clone();
    let shown = world.ok("DescribeConnection", json!({"Name": "c"})).await;
    assert!(!shown.to_string().contains("s3cret"), "{shown}");
    let destination =
        json!({"Name": "d", "ConnectionArn": connection, "InvocationEndpoint": url, "HttpMethod": "POST"});
    let arn = world.ok("CreateApiDestination", destination).await["ApiDestinationArn"].clone();
    let template = json!({"InputPathsMap": {"n": "$.detail.n"}, "InputTemplate": "{\"text\": \"n is <n>\"}"});
    world
        .rule(
            "hook",
            json!({"source": ["app"]}),
            json!([{"Id": "1", "Arn": arn, "InputTransformer": template}]),
        )
        .await;
    let error = world.error("DeleteApiDestination", json!({"Name": "d"})).await;
    assert!(error.contains("is a rule's target"), "{error}");
    world.put(json!({"n": 7})).await;
    let requests = tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
    for request in requests {
        assert!(
            request.starts_with("POST /hook HTTP/1.1\r\n") && request.contains("x-key: s3cret\r\n"),
            "{request}"
        );
        assert!(request.ends_with("\r\n\r\n{\"text\": \"n is 7\"}"), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_run_for_events_and_tell_of_themselves() {
    let world = world().await;
    for (operation, input) in [
        ("CreateCluster", json!({"clusterName": "c"})),
        (
            "RegisterTaskDefinition",
            json!({"family": "f", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256",
                "memory": "512", "containerDefinitions": [{"name": "web", "image": "nginx"}]}),
        ),
    ] {
        world.run("ecs", operation, input).await.unwrap();
    }
    let cluster = format!("arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/c");
    let parameters = json!({"TaskDefinitionArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task-definition/f"),
        "LaunchType": "FARGATE", "NetworkConfiguration": {"awsvpcConfiguration": {"Subnets": ["subnet-default-a"]}}});
    world.ok("PutRule", json!({"Name": "told", "EventPattern": "{\"source\": [\"aws.ecs\"]}"})).await;
    world.ok("PutTargets", json!({"Rule": "told", "Targets": [{"Id": "1", "Arn": group("/ecs")}]})).await;
    let target = json!([{"Id": "1", "Arn": cluster, "EcsParameters": parameters}]);
    world.rule("run", json!({"source": ["app"]}), target).await;
    world.put(json!({})).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let arn = loop {
        let listed = world.run("ecs", "ListTasks", json!({"cluster": "c"})).await.unwrap();
        if let Some(arn) = listed["taskArns"][0].as_str() {
            break arn.to_string();
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let key = ObjectKey::new("ecs-c", arn.rsplit('/').next().unwrap());
    for status in ["PROVISIONING", "RUNNING", "STOPPED"] {
        let patch = json!({"status": {"lastStatus": status}});
        world.shared.client.merge_patch_status(&ECS_TASKS, &key, patch).await.unwrap();
    }
    let told = world.messages("/ecs", 3).await;
    let mut states: Vec<_> = told.iter().map(|t| t["detail"]["lastStatus"].as_str().unwrap()).collect();
    states.sort_unstable();
    assert_eq!(states, ["PROVISIONING", "RUNNING", "STOPPED"]);
    for event in &told {
        assert_eq!((&event["resources"][0], &event["detail"]["taskArn"]), (&json!(arn), &json!(arn)));
        assert_eq!(event["detail-type"], "ECS Task State Change");
        assert_eq!(event["detail"]["startedBy"], "events-rule/run");
    }
}

#[test]
fn every_operation_is_in_the_model() {
    let model = aws_schema::service("events").unwrap();
    for operation in OPERATIONS {
        assert!(model.operation(operation.name).is_some(), "{}", operation.name);
    }
}

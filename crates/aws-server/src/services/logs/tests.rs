//! The operations on a real API server and a real store.

use super::{OPERATIONS, Sink, SinkError, State, service};
use crate::service::{AwsError, Call, Caller, Outcome, Service, Shared};
use apiserver::{Api, ApiConfig};
use auth::Identity;
use futures_util::StreamExt;
use k8s_schema::gvr::NAMESPACES;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const NOW: u64 = 1_800_000_000_000;
const ARN: &str = "arn:aws:logs:us-east-1:123456789012:log-group:/ecs/Web";

struct World {
    service: Arc<dyn Service>,
    state: Arc<State>,
    api: Arc<Api>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.api.close();
    }
}

/// Another server's log groups, reached without a wire.
struct Other {
    own: &'static str,
    service: std::sync::Mutex<Option<Arc<dyn Service>>>,
}

#[async_trait::async_trait]
impl super::Peers for Other {
    fn own(&self) -> &str {
        self.own
    }

    async fn call(&self, _: &str, call: &Call) -> Outcome {
        let service = self.service.lock().unwrap().clone();
        let away = || AwsError::server("ServiceUnavailableException", "away");
        service.ok_or_else(away)?.call(call).await
    }
}

#[tokio::test]
async fn a_group_is_one_however_many_servers_there_are() {
    let one = world().await;
    let limits = logs::Limits { disk_free_min: 0, ..logs::Limits::default() };
    let made = |own: &'static str, at: &str| {
        let store = logs::Store::open(one._folder.path().join(at), limits.clone()).unwrap();
        let other = Arc::new(Other { own, service: Default::default() });
        let state = State::new(one.state.shared.clone(), store, Some(other.clone()));
        (service(state.clone()), state, other)
    };
    let ((a, _, beside_a), (b, state_b, beside_b)) = (made("a", "logs-a"), made("b", "logs-b"));
    *beside_b.service.lock().unwrap() = Some(a.clone());
    *beside_a.service.lock().unwrap() = Some(b.clone());
    let at = |server: &Arc<dyn Service>, operation, mut input: Value| {
        input["logGroupName"] = json!("g");
        let (server, call) = (server.clone(), call_of(operation, input));
        async move { server.call(&call).await }
    };
    at(&a, "CreateLogGroup", json!({})).await.unwrap();
    let now_ms = || u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    let sink = Sink::new(state_b.clone());
    sink.open("", "g", "s", true).await.unwrap();
    sink.put("", "g", "s", vec![(now_ms(), "from b".into())]).await.unwrap();
    for server in [&a, &b] {
        let found = at(server, "GetLogEvents", json!({"logStreamName": "s"})).await.unwrap();
        assert_eq!(messages(&found), ["from b"]);
        let call = call_of("DescribeLogGroups", json!({}));
        let bytes = server.call(&call).await.unwrap()["logGroups"][0]["storedBytes"].as_u64();
        assert!(bytes > Some(0), "{bytes:?}");
    }
    assert!(state_b.store.streams("g").unwrap().is_empty(), "its events are at home only");
    let tail = call_of("StartLiveTail", json!({"logGroupIdentifiers": ["g"]}));
    let refused = b.stream(&tail).unwrap().await.err().unwrap().to_string();
    assert!(refused.contains("another server of this cluster (a)"), "{refused}");
    // Its home is away: nothing is taken, nothing is invented; but it can be deleted.
    *beside_b.service.lock().unwrap() = None;
    assert_eq!(at(&b, "GetLogEvents", json!({"logStreamName": "s"})).await.unwrap_err().status, 500);
    let later = sink.put("", "g", "s", vec![(now_ms(), "x".into())]).await;
    assert!(matches!(later, Err(SinkError::Later(_))), "{later:?}");
    at(&b, "DeleteLogGroup", json!({})).await.unwrap();
    at(&b, "CreateLogGroup", json!({})).await.unwrap();
    at(&a, "CreateLogStream", json!({"logStreamName": "s"})).await.unwrap();
    assert!(messages(&at(&b, "GetLogEvents", json!({"logStreamName": "s"})).await.unwrap()).is_empty());
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let objects =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(objects))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    let aws = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "aws"}});
    client.create(&NAMESPACES, aws).await.unwrap();
    let shared = Shared {
        client,
        account: "123456789012".into(),
        region: "us-east-1".into(),
        zones: vec!["us-east-1a".into()],
    };
    let limits = logs::Limits { disk_free_min: 0, ..logs::Limits::default() };
    let state = State::new(shared, logs::Store::open(folder.path().join("logs"), limits).unwrap(), None);
    World { service: service(state.clone()), state, api, _folder: folder }
}

fn call_of(operation: &'static str, input: Value) -> Call {
    let caller = Caller {
        account: "123456789012".into(),
        access_key: "testing".into(),
        arn: "arn:aws:iam::123456789012:root".into(),
        user_id: "123456789012".into(),
    };
    let region = "us-east-1".into();
    let endpoint = "http://127.0.0.1:4566".into();
    Call { caller, region, operation, input, request_id: "r".into(), now_ms: NOW, endpoint }
}

impl World {
    async fn run(&self, operation: &'static str, input: Value) -> Outcome {
        assert!(OPERATIONS.iter().any(|o| o.name == operation), "{operation}");
        self.service.call(&call_of(operation, input)).await
    }

    async fn ok(&self, operation: &'static str, input: Value) -> Value {
        self.run(operation, input).await.unwrap_or_else(|e| panic!("{operation}: {e}"))
    }

    async fn error(&self, operation: &'static str, input: Value) -> String {
        self.run(operation, input).await.expect_err(operation).to_string()
    }

    async fn group_and_stream(&self) {
        self.ok("CreateLogGroup", json!({"logGroupName": "/ecs/Web", "tags": {"a": "1"}})).await;
        self.ok("CreateLogStream", json!({"logGroupName": "/ecs/Web", "logStreamName": "s/1"})).await;
    }

    async fn put(&self, stream: &str, events: &[(u64, &str)]) -> Value {
        let events: Vec<Value> =
            events.iter().map(|(t, m)| json!({"timestamp": NOW + t, "message": m})).collect();
        let input = json!({"logGroupName": "/ecs/Web", "logStreamName": stream, "logEvents": events});
        self.ok("PutLogEvents", input).await
    }
}

fn messages(out: &Value) -> Vec<&str> {
    out["events"].as_array().unwrap().iter().map(|e| e["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn groups_from_birth_to_death() {
    let world = world().await;
    world.group_and_stream().await;
    let group = json!({"logGroupName": "/ecs/Web"});
    let twice = world.error("CreateLogGroup", group.clone()).await;
    assert_eq!(twice, "ResourceAlreadyExistsException: The specified log group already exists");
    world.ok("CreateLogGroup", json!({"logGroupName": "plain", "logGroupClass": "INFREQUENT_ACCESS"})).await;
    let bad = world.error("PutRetentionPolicy", json!({"logGroupName": "plain", "retentionInDays": 2})).await;
    assert!(bad.starts_with("InvalidParameterException: 1 validation error detected: Value '2'"), "{bad}");
    world.ok("PutRetentionPolicy", json!({"logGroupName": "plain", "retentionInDays": 7})).await;
    let all = world.ok("DescribeLogGroups", json!({"limit": 1})).await;
    assert_eq!(
        all["logGroups"],
        json!([{"logGroupName": "/ecs/Web", "arn": format!("{ARN}:*"), "logGroupArn": ARN, "storedBytes": 0,
            "metricFilterCount": 0, "creationTime": NOW, "logGroupClass": "STANDARD"}])
    );
    let rest = world.ok("DescribeLogGroups", json!({"nextToken": all["nextToken"]})).await;
    assert_eq!((&rest["logGroups"][0]["retentionInDays"], &rest["nextToken"]), (&json!(7), &Value::Null));
    let absurd = world.error("DescribeLogGroups", json!({"nextToken": "zzz"})).await;
    assert_eq!(absurd, "InvalidParameterException: The specified nextToken is invalid.");
    let listed = world.ok("ListLogGroups", json!({"logGroupNamePattern": "^pla|nope"})).await;
    assert_eq!(listed["logGroups"].as_array().unwrap().len(), 1);
    world.ok("DeleteRetentionPolicy", json!({"logGroupName": "plain"})).await;
    world.ok("DeleteLogGroup", group.clone()).await;
    let gone = world.error("DeleteLogGroup", group.clone()).await;
    assert_eq!(gone, "ResourceNotFoundException: The specified log group does not exist.");
    world.group_and_stream().await;
    let input = json!({"logGroupName": "/ecs/Web", "logStreamName": "s/1"});
    assert!(messages(&world.ok("GetLogEvents", input).await).is_empty());
}

#[tokio::test]
async fn tags_and_subscriptions() {
    let world = world().await;
    world.group_and_stream().await;
    world.ok("TagResource", json!({"resourceArn": ARN, "tags": {"b": "2"}})).await;
    world.ok("UntagLogGroup", json!({"logGroupName": "/ecs/Web", "tags": ["a"]})).await;
    let tags = world.ok("ListTagsForResource", json!({"resourceArn": format!("{ARN}:*")})).await;
    assert_eq!(tags, json!({"tags": {"b": "2"}}));
    assert!(world.error("ListTagsForResource", json!({"resourceArn": "x"})).await.contains("ARN is invalid"));
    for name in ["one", "two"] {
        let input = json!({"logGroupName": "/ecs/Web", "filterName": name, "filterPattern": "",
            "destinationArn": "arn:aws:lambda:us-east-1:123456789012:function:f"});
        world.ok("PutSubscriptionFilter", input).await;
    }
    let third = json!({"logGroupName": "/ecs/Web", "filterName": "three", "filterPattern": "", "destinationArn": "x"});
    assert!(world.error("PutSubscriptionFilter", third).await.starts_with("LimitExceededException"));
    world.ok("DeleteSubscriptionFilter", json!({"logGroupName": "/ecs/Web", "filterName": "one"})).await;
    let left = world.ok("DescribeSubscriptionFilters", json!({"logGroupName": "/ecs/Web"})).await;
    assert_eq!(left["subscriptionFilters"][0]["filterName"], "two");
    assert_eq!(left["subscriptionFilters"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn streams_by_name_and_by_time() {
    let world = world().await;
    world.group_and_stream().await;
    let twice = json!({"logGroupName": "/ecs/Web", "logStreamName": "s/1"});
    let error = world.error("CreateLogStream", twice.clone()).await;
    assert_eq!(error, "ResourceAlreadyExistsException: The specified log stream already exists");
    for name in ["s/2", "t"] {
        world.ok("CreateLogStream", json!({"logGroupName": "/ecs/Web", "logStreamName": name})).await;
    }
    world.put("s/1", &[(5, "x")]).await;
    world.put("t", &[(3, "x")]).await;
    let names = |out: &Value| -> Vec<String> {
        let list = out["logStreams"].as_array().unwrap().iter();
        list.map(|s| s["logStreamName"].as_str().unwrap().to_string()).collect()
    };
    let input =
        json!({"logGroupName": "/ecs/Web", "orderBy": "LastEventTime", "descending": true, "limit": 2});
    let page = world.ok("DescribeLogStreams", input.clone()).await;
    assert_eq!(names(&page), ["s/1", "t"]);
    let mut next = input;
    next["nextToken"] = page["nextToken"].clone();
    assert_eq!(names(&world.ok("DescribeLogStreams", next).await), ["s/2"]);
    let prefixed = json!({"logGroupIdentifier": ARN, "logStreamNamePrefix": "s/"});
    let page = world.ok("DescribeLogStreams", prefixed).await;
    assert_eq!(names(&page), ["s/1", "s/2"]);
    assert_eq!(page["logStreams"][0]["arn"], format!("{ARN}:log-stream:s/1"));
    assert_eq!(page["logStreams"][0]["lastEventTimestamp"], NOW + 5);
    assert_eq!(page["logStreams"][1]["lastEventTimestamp"], Value::Null);
    world.ok("DeleteLogStream", twice.clone()).await;
    let gone = world.error("GetLogEvents", twice).await;
    assert_eq!(gone, "ResourceNotFoundException: The specified log stream does not exist.");
}

#[tokio::test]
async fn events_in_pages_and_at_the_end_the_same_token() {
    let world = world().await;
    world.group_and_stream().await;
    let put = world.put("s/1", &[(0, "a"), (1, "b"), (2, "c"), (7_200_001, "far")]).await;
    assert_eq!(put["rejectedLogEventsInfo"], json!({"tooNewLogEventStartIndex": 3}));
    let get = |more: Value| {
        let mut input = json!({"logGroupName": "/ecs/Web", "logStreamName": "s/1", "limit": 2});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.ok("GetLogEvents", input)
    };
    let last = get(json!({})).await;
    assert_eq!(messages(&last), ["b", "c"]);
    assert_eq!(messages(&get(json!({"nextToken": last["nextBackwardToken"]})).await), ["a"]);
    let first = get(json!({"startFromHead": true})).await;
    assert_eq!(messages(&first), ["a", "b"]);
    let second = get(json!({"nextToken": first["nextForwardToken"]})).await;
    assert_eq!(messages(&second), ["c"]);
    let end = get(json!({"nextToken": second["nextForwardToken"]})).await;
    assert_eq!((messages(&end).len(), &end["nextForwardToken"]), (0, &second["nextForwardToken"]));
    world.put("s/1", &[(9, "new")]).await;
    assert_eq!(messages(&get(json!({"nextToken": end["nextForwardToken"]})).await), ["new"]);
    let between = get(json!({"startTime": NOW + 1, "endTime": NOW + 2})).await;
    assert_eq!(messages(&between), ["b"]);
    let bad = json!({"logGroupName": "/ecs/Web", "logStreamName": "s/1", "nextToken": "f/1"});
    assert_eq!(
        world.error("GetLogEvents", bad).await,
        "InvalidParameterException: The specified nextToken is invalid."
    );
}

#[tokio::test]
async fn bad_batches() {
    let world = world().await;
    world.group_and_stream().await;
    let put = |group: &str, stream: &str, times: &[u64]| {
        let events: Vec<Value> = times.iter().map(|t| json!({"timestamp": t, "message": "m"})).collect();
        json!({"logGroupName": group, "logStreamName": stream, "logEvents": events})
    };
    for (input, expected) in [
        (put("/ecs/Web", "s/1", &[NOW, NOW - 1]), "must be in chronological order."),
        (put("/ecs/Web", "s/1", &[NOW - 90_000_000, NOW]), "cannot span more than 24 hours."),
        (put("/ecs/Web", "no", &[NOW]), "The specified log stream does not exist."),
        (put("no", "s/1", &[NOW]), "The specified log group does not exist."),
    ] {
        let error = world.error("PutLogEvents", input).await;
        assert!(error.ends_with(expected), "{error}");
    }
}

#[tokio::test]
async fn filtering_over_streams() {
    let world = world().await;
    world.group_and_stream().await;
    world.ok("CreateLogStream", json!({"logGroupName": "/ecs/Web", "logStreamName": "t"})).await;
    world.put("s/1", &[(0, "ERROR one"), (2, "fine"), (4, "ERROR three")]).await;
    world.put("t", &[(1, "ERROR two"), (5, "late")]).await;
    let filter = |more: Value| {
        let mut input = json!({"logGroupName": "/ecs/Web", "filterPattern": "ERROR"});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let first = world.ok("FilterLogEvents", filter(json!({"limit": 2}))).await;
    assert_eq!(messages(&first), ["ERROR one", "ERROR two"]);
    let rest = world.ok("FilterLogEvents", filter(json!({"nextToken": first["nextToken"]}))).await;
    assert_eq!((messages(&rest), &rest["nextToken"]), (vec!["ERROR three"], &Value::Null));
    assert_eq!(first["events"][1]["logStreamName"], "t");
    assert_eq!(first["events"][1]["eventId"].as_str().unwrap().len(), 56);
    let of_t = world.ok("FilterLogEvents", filter(json!({"logStreamNames": ["t"]}))).await;
    assert_eq!(messages(&of_t), ["ERROR two"]);
    let until = world.ok("FilterLogEvents", filter(json!({"endTime": NOW + 1}))).await;
    assert_eq!(messages(&until), ["ERROR one", "ERROR two"]);
    let bad = world.error("FilterLogEvents", filter(json!({"filterPattern": "{ x }"}))).await;
    assert_eq!(bad, "InvalidParameterException: Invalid filter pattern");
    let unknown = world.error("FilterLogEvents", filter(json!({"logStreamNames": ["nope"]}))).await;
    assert!(unknown.contains("log stream does not exist"));
    let tested = json!({"filterPattern": "ERROR", "logEventMessages": ["x", "ERROR"]});
    assert_eq!(world.ok("TestMetricFilter", tested).await["matches"][0]["eventNumber"], 2);
}

#[tokio::test]
async fn the_drivers_door_makes_what_is_missing() {
    let world = world().await;
    let sink = Sink::new(world.state.clone());
    let missing = sink.open("", "new", "p/c/1", false).await;
    assert!(matches!(missing, Err(SinkError::Refused(text)) if text.contains("log group does not exist")));
    for _ in 0..2 {
        sink.open("us-east-1", "new", "p/c/1", true).await.unwrap();
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap();
    sink.put("", "new", "p/c/1", vec![(now, "line".into())]).await.unwrap();
    let input = json!({"logGroupName": "new", "logStreamName": "p/c/1"});
    assert_eq!(messages(&world.ok("GetLogEvents", input).await), ["line"]);
}

#[tokio::test]
async fn live_tail_streams_what_is_put() {
    let world = world().await;
    world.group_and_stream().await;
    assert!(world.service.served().contains(&"StartLiveTail"));
    let input = json!({"logGroupIdentifiers": [ARN], "logEventFilterPattern": "wanted"});
    let call = call_of("StartLiveTail", input);
    let mut events = world.service.stream(&call).unwrap().await.unwrap();
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(120), events.next()).await;
        event.unwrap().unwrap().unwrap()
    };
    assert_eq!(next().await.0, "sessionStart");
    world.put("s/1", &[(0, "wanted one"), (1, "other")]).await;
    let (kind, update) = next().await;
    assert_eq!(kind, "sessionUpdate");
    assert_eq!(update["sessionResults"].as_array().unwrap().len(), 1);
    assert_eq!(update["sessionResults"][0]["message"], "wanted one");
    let nobody = call_of("StartLiveTail", json!({"logGroupIdentifiers": ["nope"]}));
    let error: AwsError = world.service.stream(&nobody).unwrap().await.err().unwrap();
    assert_eq!(error.code, "ResourceNotFoundException");
}

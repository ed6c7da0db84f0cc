//! A small client of the data channel against the bridge, and `ExecuteCommand` on a real API server.

use super::channel::{Channel, Stamp};
use super::message::{INPUT, Message, OUTPUT, payload};
use super::ws::{self, Kind, Reader};
use super::{Exec, Input, Sessions, Target, Terminal, with_exec};
use crate::service::{Call, Caller, Operation, Service, Shared, Table};
use apiserver::{Api, ApiConfig};
use async_trait::async_trait;
use auth::Identity;
use bytes::Bytes;
use client::ObjectKey;
use k8s_schema::gvr::{ECS_CLUSTERS, ECS_TASKS, NAMESPACES};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(120);

/// Answers every line with itself and the size; `exit` ends it.
struct Echo;

#[async_trait]
impl Exec for Echo {
    async fn exec(&self, target: &Target, command: Vec<String>) -> Result<Terminal, ApiError> {
        if command[0] == "nope" {
            return Err(ApiError::bad_request("exec failed: nope: no such file"));
        }
        let (input, mut keys) = mpsc::channel(4);
        let (out, output) = mpsc::channel(4);
        let (ended, done) = oneshot::channel();
        let hello = format!("{} {} {}\n", target.namespace, target.container, command.join("|"));
        tokio::spawn(async move {
            out.send(hello.into()).await.unwrap();
            while let Some(input) = keys.recv().await {
                let text = match input {
                    Input::Bytes(bytes) if &*bytes == b"exit\r" => break,
                    Input::Bytes(bytes) => bytes,
                    Input::Size { columns, rows } => format!("{columns}x{rows}\n").into(),
                };
                if out.send(text).await.is_err() {
                    return;
                }
            }
            drop(out);
            let _ = ended.send(Ok(3));
        });
        Ok(Terminal { input, output, done })
    }
}

/// The plugin's side, as far as the tests need it.
struct Plugin {
    reader: Reader<ReadHalf<DuplexStream>>,
    write: WriteHalf<DuplexStream>,
    next_out: i64,
    text: String,
    /// Output that is not acknowledged at first, as the plugin does while it is not ready.
    deaf: usize,
    last_in: i64,
}

impl Plugin {
    async fn open(sessions: &Arc<Sessions>, id: &str, token: &str) -> Plugin {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(sessions.clone().serve(id.to_string(), far));
        let (read, write) = tokio::io::split(near);
        let reader = Reader::new(read, false);
        let mut plugin = Plugin { reader, write, next_out: 0, text: String::new(), deaf: 0, last_in: -1 };
        // The plugin pings from another thread, which may be first.
        plugin.put(Kind::Ping, b"keepalive").await;
        let opening = json!({"MessageSchemaVersion": "1.0", "TokenValue": token}).to_string();
        plugin.put(Kind::Text, opening.as_bytes()).await;
        plugin
    }

    async fn put(&mut self, kind: Kind, payload: &[u8]) {
        let mut out = Vec::new();
        ws::encode(kind, payload, Some([9, 8, 7, 6]), &mut out);
        // The other side may have gone: the next read says so.
        let _ = self.write.write_all(&out).await;
    }

    async fn send(&mut self, payload_type: u32, text: &str) {
        let message = Message {
            kind: INPUT.into(),
            created_ms: 1,
            sequence: self.next_out,
            flags: 0,
            id: Uuid::new_v4(),
            payload_type,
            payload: Bytes::from(text.to_string()),
        };
        self.next_out += 1;
        self.put(Kind::Binary, &message.encode()).await;
    }

    /// The next message that is no acknowledgement; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let (kind, bytes) = tokio::time::timeout(PATIENCE, self.reader.next()).await.unwrap().ok()?;
            match kind {
                Kind::Pong => continue,
                Kind::Binary => {}
                _ => return None,
            }
            let message = Message::decode(&bytes).unwrap();
            if message.kind == OUTPUT {
                if self.deaf > 0 && message.payload_type == payload::BYTES {
                    self.deaf -= 1;
                    continue;
                }
                let mut acknowledging = Channel::default();
                let stamp = Stamp { now_ms: 1, id: Uuid::new_v4(), at: Duration::ZERO };
                // What a channel answers to input is what the plugin answers to output.
                let mut as_input = message.clone();
                (as_input.kind, as_input.sequence) = (INPUT.into(), 0);
                let reply = acknowledging.receive(&as_input.encode(), stamp).unwrap().replies.remove(0);
                let mut reply = Message::decode(&reply).unwrap();
                let mut content: Value = serde_json::from_slice(&reply.payload).unwrap();
                content["AcknowledgedMessageSequenceNumber"] = json!(message.sequence);
                reply.payload = content.to_string().into();
                self.put(Kind::Binary, &reply.encode()).await;
                if message.sequence <= self.last_in {
                    continue;
                }
                self.last_in = message.sequence;
                return Some(message);
            }
            if message.kind == super::message::CLOSED {
                return Some(message);
            }
        }
    }

    async fn shake_hands(&mut self) {
        let request = self.next().await.unwrap();
        assert_eq!((request.payload_type, request.sequence), (payload::HANDSHAKE_REQUEST, 0));
        assert!(String::from_utf8_lossy(&request.payload).contains("InteractiveCommands"));
        self.send(payload::HANDSHAKE_RESPONSE, r#"{"ProcessedClientActions":[],"Errors":null}"#).await;
        assert_eq!(self.next().await.unwrap().payload_type, payload::HANDSHAKE_COMPLETE);
    }

    async fn read_until(&mut self, text: &str) {
        while !self.text.contains(text) {
            let message = self.next().await.expect("more output");
            self.text.push_str(&String::from_utf8_lossy(&message.payload));
        }
    }
}

fn target() -> Target {
    Target { namespace: "ecs-prod".into(), pod: "0a".into(), container: "web".into() }
}

#[tokio::test]
async fn a_session_from_token_to_end() {
    let sessions = Sessions::new(Arc::new(Echo));
    let (id, token) = sessions.grant(target(), vec!["sh".into(), "-c".into()], Instant::now());
    assert!(id.starts_with("ecs-execute-command-") && id.len() == 37);
    let mut plugin = Plugin::open(&sessions, &id, &token).await;
    plugin.deaf = 1;
    plugin.shake_hands().await;
    plugin.read_until("ecs-prod web sh|-c\n").await;
    plugin.send(payload::SIZE, r#"{"cols":120,"rows":40}"#).await;
    plugin.read_until("120x40\n").await;
    plugin.put(Kind::Ping, b"keepalive").await;
    let (kind, pong) = tokio::time::timeout(PATIENCE, plugin.reader.next()).await.unwrap().unwrap();
    // The acknowledgement of the size may come before it.
    assert!(kind == Kind::Binary || (kind, &*pong) == (Kind::Pong, b"keepalive"));
    plugin.next_out -= 1;
    plugin.send(payload::SIZE, r#"{"cols":1,"rows":1}"#).await;
    plugin.send(payload::BYTES, "exit\r").await;
    let closed = loop {
        let Some(message) = plugin.next().await else { continue };
        if message.kind == super::message::CLOSED {
            break message;
        }
    };
    let content: Value = serde_json::from_slice(&closed.payload).unwrap();
    assert_eq!((&content["SessionId"], &content["Output"]), (&json!(id), &json!("")));
    let again = Plugin::open(&sessions, &id, &token).await.next().await;
    assert!(again.is_none(), "a token works once");
}

#[tokio::test]
async fn what_opens_nothing() {
    let sessions = Sessions::new(Arc::new(Echo));
    let (id, _) = sessions.grant(target(), vec!["sh".into()], Instant::now());
    assert!(Plugin::open(&sessions, &id, "guess").await.next().await.is_none());
    assert!(!sessions.knows(&id), "nobody guesses twice");
    let long_ago = Instant::now() - super::sessions::TOKEN_LIFE;
    let (id, token) = sessions.grant(target(), vec!["sh".into()], long_ago);
    assert!(Plugin::open(&sessions, &id, &token).await.next().await.is_none());
    let (id, token) = sessions.grant(target(), vec!["nope".into()], Instant::now());
    let mut plugin = Plugin::open(&sessions, &id, &token).await;
    plugin.shake_hands().await;
    let closed = plugin.next().await.unwrap();
    assert!(String::from_utf8_lossy(&closed.payload).contains("no such file"));
}

async fn none(_: &(), _: &Call) -> crate::service::Outcome {
    Ok(json!("inner"))
}
const INNER: &[Operation<()>] = &[crate::operation!("ListTasks", none)];

/// A server with a cluster `prod` and three tasks: one to reach, one without exec, one that does not run yet.
async fn cluster(folder: &tempfile::TempDir) -> (Arc<Api>, Shared) {
    let objects =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(objects))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    let make = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ecs-prod"}});
    client.create(&NAMESPACES, make).await.unwrap();
    let meta = |name: &str| json!({"namespace": "ecs-prod", "name": name});
    let kind = |kind: &str| json!({"apiVersion": "ecs.gantry.dev/v1", "kind": kind});
    let mut cluster = kind("Cluster");
    (cluster["metadata"], cluster["spec"]) = (meta("prod"), json!({"clusterName": "prod"}));
    client.create(&ECS_CLUSTERS, cluster).await.unwrap();
    for (id, enabled, state) in [("0a", true, "RUNNING"), ("0b", false, "RUNNING"), ("0c", true, "PENDING")] {
        let mut task = kind("Task");
        task["metadata"] = meta(id);
        task["spec"] = json!({"taskArn": format!("arn:…/{id}"), "enableExecuteCommand": enabled});
        client.create(&ECS_TASKS, task).await.unwrap();
        let one =
            |name: &str| json!({"name": name, "lastStatus": state, "containerArn": format!("arn:{name}")});
        let status = json!({"status": {"lastStatus": state, "containers": [one("Web_1"), one("side")]}});
        client.merge_patch_status(&ECS_TASKS, &ObjectKey::new("ecs-prod", id), status).await.unwrap();
    }
    let (account, region) = ("123456789012".to_string(), "us-east-1".to_string());
    (api, Shared { client, account, region, zones: Vec::new() })
}

fn execute(cluster: &str, task: &str, container: &str, interactive: bool) -> Call {
    let account = "123456789012".into();
    let caller = Caller { account, access_key: "k".into(), arn: "a".into(), user_id: "u".into() };
    let mut input =
        json!({"cluster": cluster, "task": task, "command": "sh -c 'a b'", "interactive": interactive});
    if !container.is_empty() {
        input["container"] = json!(container);
    }
    let endpoint = "http://127.0.0.1:4566".into();
    let (operation, region, request_id) = ("ExecuteCommand", "us-east-1".into(), "r".into());
    Call { caller, region, operation, input, request_id, now_ms: 1, endpoint }
}

/// Cluster, task, container, interactive, and what is answered.
const REFUSALS: &[(&str, &str, &str, bool, &str)] = &[
    (
        "prod",
        "0a",
        "side",
        false,
        "InvalidParameterException: Interactive is the only mode supported currently.",
    ),
    ("none", "0a", "side", true, "ClusterNotFoundException: Cluster not found."),
    ("prod", "0f", "side", true, "InvalidParameterException: The referenced task was not found."),
    (
        "prod",
        "0b",
        "side",
        true,
        "InvalidParameterException: The execute command failed because execute command was",
    ),
    (
        "prod",
        "0c",
        "side",
        true,
        "TargetNotConnectedException: The execute command failed due to an internal error.",
    ),
    ("prod", "0a", "", true, "InvalidParameterException: A container name must be specified"),
    ("prod", "0a", "x", true, "InvalidParameterException: The container name x does not belong"),
];

#[tokio::test]
async fn execute_command_in_awss_words() {
    let folder = tempfile::tempdir().unwrap();
    let (api, shared) = cluster(&folder).await;
    let sessions = Sessions::new(Arc::new(Echo));
    let inner: Arc<dyn Service> = Arc::new(Table { name: "ecs", state: Arc::new(()), operations: INNER });
    let service = with_exec(vec![inner], &shared, &sessions).remove(0);
    assert_eq!(service.served(), ["ListTasks", "ExecuteCommand"]);
    for (cluster, task, container, interactive, expected) in REFUSALS {
        let error =
            service.call(&execute(cluster, task, container, *interactive)).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let arn = "arn:aws:ecs:us-east-1:123456789012:task/prod/0a";
    let out = service.call(&execute("prod", arn, "Web_1", true)).await.unwrap();
    let id = out["session"]["sessionId"].as_str().unwrap().to_string();
    assert_eq!(out["session"]["streamUrl"], format!("ws://127.0.0.1:4566/_gantry/exec/{id}"));
    assert_eq!(out["clusterArn"], "arn:aws:ecs:us-east-1:123456789012:cluster/prod");
    let token = out["session"]["tokenValue"].as_str().unwrap();
    let grant = sessions.take(&id, token, Instant::now()).unwrap();
    let words = vec!["sh".to_string(), "-c".into(), "a b".into()];
    assert_eq!((grant.target.pod.as_str(), grant.command), ("0a", words));
    assert!(grant.target.container.starts_with("web-1-"), "{}", grant.target.container);
    api.close();
}

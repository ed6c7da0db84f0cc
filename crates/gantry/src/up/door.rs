//! What nodes and other servers ask a server beside Kubernetes' API, over the same port and by their certificates
//! (`POST /gantry/…`): log groups, credentials and protection for the tasks of a node; log groups kept by another server.
//!
//! Invariants: a node speaks for tasks only that the API shows on it, and their role is what the API says, not what the
//! node says (as the node authorizer has it for secrets); it adds to log groups and reads none. Other servers are
//! told by their group, which is the administrators': they could do all of that anyway.

use super::Instance;
use super::ecs::{self, Calls};
use crate::kubeconfig;
use agent::taskmeta::TaskServices;
use anyhow::{Context, Result};
use async_trait::async_trait;
use auth::{Identity, SYSTEM_MASTERS};
use aws_server::service::{AwsError, Call, Caller, Outcome, Service};
use aws_server::services::logs::{Peers, Sink, SinkError, State};
use client::remote::Remote;
use client::{ApiClient, ObjectKey};
use ecs_model::annotation::{KEY, TaskNote};
use k8s_schema::gvr::{CONFIG_MAPS, PODS};
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// The questions, and the members of their documents.
pub mod ask {
    /// Makes a log stream.
    pub const LOG_OPEN: &str = "node/logs/open";
    /// Adds to one.
    pub const LOG_PUT: &str = "node/logs/put";
    /// A task role's credentials.
    pub const CREDENTIALS: &str = "node/credentials";
    /// A task's protection.
    pub const PROTECTION: &str = "node/protection";
    /// An operation of CloudWatch Logs at the server that has the group's events.
    pub const LOGS: &str = "server/logs";

    /// Of a log driver.
    pub const REGION: &str = "region";
    /// Log group.
    pub const GROUP: &str = "group";
    /// Log stream.
    pub const STREAM: &str = "stream";
    /// Make the group too?
    pub const CREATE: &str = "create";
    /// `[[time in ms, text], …]`.
    pub const EVENTS: &str = "events";
    /// Why it will never be taken.
    pub const REFUSED: &str = "refused";
    /// The pod's.
    pub const NAMESPACE: &str = "namespace";
    /// Its name.
    pub const POD: &str = "pod";
    /// Of the protection; null reads it.
    pub const CHANGE: &str = "change";
}

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Another server's certificate.
const SERVER_USER: &str = "system:gantry-server";
/// The ConfigMap that says where servers are, by their ids.
const SERVERS: (&str, &str) = ("kube-system", "gantry-servers");
/// The file with this server's id.
const ID_FILE: &str = "server-id";
/// For another server's answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is behind the door once everything has started.
struct Rooms {
    client: ApiClient,
    calls: Arc<Calls>,
    logs: Arc<State>,
    logs_service: Arc<dyn Service>,
}

/// The door; shut until the services are there.
#[derive(Default)]
pub struct Door(OnceLock<Rooms>);

/// Opens the door. Comes after the AWS endpoint.
pub async fn open(instance: &mut Instance) -> Result<()> {
    let (Some(calls), Some(logs)) = (ecs::calls(instance), instance.aws.logs.clone()) else { return Ok(()) };
    let client = instance.control.client(Identity::new("system:gantry-aws", [SYSTEM_MASTERS]))?;
    let logs_service = instance.aws.all.iter().find(|s| s.name() == "logs").cloned();
    let logs_service = logs_service.context("the door comes after the log groups' service")?;
    let _ = instance.control.door.0.set(Rooms { client, calls, logs, logs_service });
    Ok(())
}

fn text<'a>(input: &'a Value, member: &str) -> &'a str {
    input[member].as_str().unwrap_or_default()
}

fn forbidden(why: impl Into<String>) -> ApiError {
    ApiError::new(403, "Forbidden", why)
}

#[async_trait]
impl apiserver::Door for Door {
    async fn answer(&self, caller: &Identity, path: &str, input: Value) -> Result<Value, ApiError> {
        let node = caller.user.strip_prefix(NODE_PREFIX).filter(|_| caller.in_group(NODES));
        if node.is_none() && !caller.in_group(SYSTEM_MASTERS) {
            return Err(forbidden(format!(
                "{:?} is neither a node nor a server of this cluster",
                caller.user
            )));
        }
        let starting =
            || ApiError::new(503, "ServiceUnavailable", "the AWS services are starting, or are off");
        let rooms = self.0.get().ok_or_else(starting)?;
        match (path, node) {
            (ask::LOG_OPEN | ask::LOG_PUT, Some(_)) => rooms.log(path, &input).await,
            (ask::CREDENTIALS, Some(node)) => rooms.credentials(node, &input).await,
            (ask::PROTECTION, Some(node)) => rooms.protection(node, &input).await,
            (ask::LOGS, None) => rooms.forwarded(&input).await,
            _ => Err(ApiError::new(
                404,
                "NotFound",
                format!("nothing is asked at {path:?} by {:?}", caller.user),
            )),
        }
    }
}

/// `[[time, text], …]`.
fn events(input: &Value) -> Vec<(u64, String)> {
    let list = input[ask::EVENTS].as_array().into_iter().flatten();
    list.filter_map(|e| Some((e[0].as_u64()?, e[1].as_str()?.to_string()))).collect()
}

impl Rooms {
    async fn log(&self, path: &str, input: &Value) -> Result<Value, ApiError> {
        let (region, group, stream) =
            (text(input, ask::REGION), text(input, ask::GROUP), text(input, ask::STREAM));
        let sink = Sink::new(self.logs.clone());
        let done = match path {
            ask::LOG_OPEN => sink.open(region, group, stream, input[ask::CREATE] == true).await,
            _ => sink.put(region, group, stream, events(input)).await,
        };
        match done {
            Ok(()) => Ok(json!({})),
            Err(SinkError::Refused(why)) => Ok(json!({ask::REFUSED: why})),
            Err(SinkError::Later(why)) => Err(ApiError::new(503, "ServiceUnavailable", why)),
        }
    }

    /// The task of a pod that runs on that node, as the API has it.
    async fn task(&self, node: &str, input: &Value) -> Result<(ObjectKey, TaskNote), ApiError> {
        let key = ObjectKey::new(text(input, ask::NAMESPACE), text(input, ask::POD));
        // Whether a pod of another node exists is none of this one's business.
        let not_here = || forbidden(format!("no task {} runs on node {node}", key.name));
        let pod = self.client.get(&PODS, &key).await;
        let pod = pod.map_err(|e| if e.is_not_found() { not_here() } else { e })?;
        let value = pod.value().map_err(ApiError::internal)?;
        runs_on(&value, node).then_some(()).ok_or_else(not_here)?;
        let note = pod.meta().annotations.get(KEY).and_then(|text| TaskNote::parse(text).ok());
        Ok((key.clone(), note.ok_or_else(not_here)?))
    }

    async fn credentials(&self, node: &str, input: &Value) -> Result<Value, ApiError> {
        let (key, note) = self.task(node, input).await?;
        if note.task.role_arn.is_empty() {
            return Err(forbidden(format!("task {} has no role", key.name)));
        }
        self.calls.credentials(&key, &note).await.map_err(|why| ApiError::new(503, "ServiceUnavailable", why))
    }

    async fn protection(&self, node: &str, input: &Value) -> Result<Value, ApiError> {
        let (key, note) = self.task(node, input).await?;
        let change = Some(input[ask::CHANGE].clone()).filter(|c| !c.is_null());
        let done = self.calls.protection(&key, &note, change).await;
        Ok(done.unwrap_or_else(|(status, code, message)| {
            refused(AwsError { status, ..AwsError::client(&code, message) })
        }))
    }

    /// A call that came in at another server.
    async fn forwarded(&self, input: &Value) -> Result<Value, ApiError> {
        let call =
            call_of(input, &self.logs_service.served()).ok_or_else(|| ApiError::bad_request("no call"))?;
        Ok(self.logs_service.call(&call).await.unwrap_or_else(refused))
    }
}

/// Does the API show that pod alive on that node?
fn runs_on(pod: &Value, node: &str) -> bool {
    let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    !node.is_empty() && pod["spec"]["nodeName"] == node && !over
}

fn refused(error: AwsError) -> Value {
    let (status, code, message, more) = (error.status, error.code, error.message, error.more);
    json!({ask::REFUSED: {"status": status, "code": code, "message": message, "more": more}})
}

/// The refusal in an answer.
pub fn refusal(answer: &Value) -> Option<(u16, String, String)> {
    let refused = answer.get(ask::REFUSED)?;
    let status = refused["status"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(500);
    Some((status, text(refused, "code").into(), text(refused, "message").into()))
}

fn document_of(call: &Call) -> Value {
    let caller = &call.caller;
    json!({
        "caller": [caller.account, caller.access_key, caller.arn, caller.user_id], "region": call.region,
        "operation": call.operation, "input": call.input, "requestId": call.request_id, "nowMs": call.now_ms,
        "endpoint": call.endpoint,
    })
}

fn call_of(document: &Value, served: &[&'static str]) -> Option<Call> {
    let caller = |at: usize| document["caller"][at].as_str().map(String::from);
    Some(Call {
        caller: Caller { account: caller(0)?, access_key: caller(1)?, arn: caller(2)?, user_id: caller(3)? },
        region: text(document, "region").into(),
        operation: served.iter().find(|name| document["operation"] == **name)?,
        input: document["input"].clone(),
        request_id: text(document, "requestId").into(),
        now_ms: document["nowMs"].as_u64()?,
        endpoint: text(document, "endpoint").into(),
    })
}

/// The servers of a shared store.
pub struct Servers {
    own: String,
    client: ApiClient,
    ca_pem: String,
    issued: auth::Issued,
    /// Connections by URL.
    known: Mutex<BTreeMap<String, Arc<Remote>>>,
}

/// This data folder's id, made at the first start.
fn own_id(instance: &Instance) -> Result<String> {
    let file = instance.config.data_dir.join(ID_FILE);
    if let Ok(id) = std::fs::read_to_string(&file) {
        return Ok(id.trim().to_string());
    }
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let id = format!("{:016x}", u64::from_be_bytes(random));
    std::fs::write(&file, &id).with_context(|| file.display().to_string())?;
    Ok(id)
}

impl Servers {
    /// Tells the others where this one is; `None` where there can be no others.
    pub async fn start(instance: &Instance) -> Result<Option<Servers>> {
        if !instance.control.shares_store() {
            return Ok(None);
        }
        let own = own_id(instance)?;
        let client = instance.control.client(Identity::new("system:apiserver", [SYSTEM_MASTERS]))?;
        let url = format!("https://{}:{}", instance.facts.node_ip, instance.config.port);
        let (namespace, name) = SERVERS;
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": namespace, "name": name}, "data": {&own: url}});
        match client.create(&CONFIG_MAPS, body.clone()).await {
            Err(error) if error.is_already_exists() => {
                let patch = json!({"data": body["data"]});
                client.merge_patch(&CONFIG_MAPS, &ObjectKey::new(namespace, name), patch).await?;
            }
            done => drop(done?),
        }
        let ca = instance.control.ca()?;
        let issued = ca.issue_client(SERVER_USER, Some(SYSTEM_MASTERS), SystemTime::now())?;
        Ok(Some(Servers { own, client, ca_pem: ca.cert_pem().into(), issued, known: Mutex::default() }))
    }

    async fn remote(&self, home: &str) -> Result<Arc<Remote>, ApiError> {
        let (namespace, name) = SERVERS;
        let map = self.client.get(&CONFIG_MAPS, &ObjectKey::new(namespace, name)).await?;
        let map = map.value().map_err(ApiError::internal)?;
        let url = map["data"][home].as_str();
        let url = url.ok_or_else(|| ApiError::internal(format!("no server has the id {home}")))?;
        if let Some(remote) = self.known.lock().get(url) {
            return Ok(remote.clone());
        }
        let text = kubeconfig::text(url, &self.ca_pem, SERVER_USER, &self.issued);
        let remote = Arc::new(Remote::from_kubeconfig(&text).await?);
        self.known.lock().insert(url.into(), remote.clone());
        Ok(remote)
    }

    async fn asked(&self, home: &str, call: &Call) -> Result<Value, ApiError> {
        let remote = self.remote(home).await?;
        remote.ask(&format!("{}{}", apiserver::DOOR, ask::LOGS), document_of(call)).await
    }
}

#[async_trait]
impl Peers for Servers {
    fn own(&self) -> &str {
        &self.own
    }

    async fn call(&self, home: &str, call: &Call) -> Outcome {
        let away = |why: String| {
            tracing::warn!(home, why, "a log group's server cannot be asked");
            let text = "The server that keeps this log group cannot be reached.";
            AwsError { status: 503, ..AwsError::server("ServiceUnavailableException", text) }
        };
        let answer = tokio::time::timeout(PATIENCE, self.asked(home, call)).await;
        let answer = answer.map_err(|_| away("no answer".into()))?.map_err(|e| away(e.message))?;
        match refusal(&answer) {
            None => Ok(answer),
            Some((status, code, message)) => {
                let more = answer[ask::REFUSED]["more"].as_object().cloned().unwrap_or_default();
                Err(AwsError { status, more, ..AwsError::client(&code, message) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_its_nodes_while_it_lives() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node}, "status": {"phase": phase}});
        assert!(runs_on(&pod("a", "Running"), "a") && runs_on(&pod("a", "Pending"), "a"));
        assert!(!runs_on(&pod("b", "Running"), "a") && !runs_on(&pod("a", "Failed"), "a"));
        assert!(!runs_on(&json!({"spec": {}}), "") && !runs_on(&pod("", "Running"), ""));
    }

    #[test]
    fn calls_and_refusals_cross_whole() {
        let caller =
            Caller { account: "1".into(), access_key: "k".into(), arn: "arn".into(), user_id: "u".into() };
        let call = Call {
            caller,
            region: "r".into(),
            operation: "PutLogEvents",
            input: json!({"logGroupName": "g"}),
            request_id: "i".into(),
            now_ms: 7,
            endpoint: "e".into(),
        };
        let read = call_of(&document_of(&call), &["GetLogEvents", "PutLogEvents"]).unwrap();
        assert_eq!(format!("{read:?}"), format!("{call:?}"));
        assert!(call_of(&document_of(&call), &["GetLogEvents"]).is_none());
        let error = AwsError::client("X", "words");
        assert_eq!(refusal(&refused(error)), Some((400, "X".into(), "words".into())));
        assert_eq!(refusal(&json!({"events": []})), None);
    }
}

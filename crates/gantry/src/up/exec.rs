//! ECS exec's way into containers: the node's own exec endpoint, over the dialer that the API server uses.

use super::Instance;
use super::control::KUBELET_CLIENT;
use super::dial::KubeletDialer;
use anyhow::Result;
use apiserver::{Duplex, NodeDialer};
use async_trait::async_trait;
use auth::{Identity, SYSTEM_MASTERS};
use aws_server::services::exec::ws::{self, Kind, Reader};
use aws_server::services::exec::{Exec, Input, Sessions, StreamUrls, Target, Terminal};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use client::{ApiClient, ObjectKey};
use k8s_schema::gvr::PODS;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Messages that wait, each way.
const QUEUE: usize = 16;
/// The head of a node's answer, and the text of its refusal.
const HEAD_MAX: usize = 16 << 10;
/// For a node's answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Kubernetes' channels of an exec connection.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

type Io = Box<dyn Duplex>;

/// Leaves sessions and their stream URLs for the AWS endpoint.
pub async fn start(instance: &mut Instance) -> Result<()> {
    if instance.aws.shared.is_none() {
        return Ok(());
    }
    let ca = instance.control.ca()?;
    let issued = ca.issue_client(KUBELET_CLIENT, Some(SYSTEM_MASTERS), SystemTime::now())?;
    let dialer = KubeletDialer::new(&issued, ca.cert_pem())?;
    let client = instance.control.client(Identity::new("system:gantry-aws", [SYSTEM_MASTERS]))?;
    dialer.set_client(client.clone());
    let sessions = Sessions::new(Arc::new(NodeExec { dialer, client }));
    instance.aws.upgrades.push(Arc::new(StreamUrls(sessions.clone())));
    instance.aws.exec = Some(sessions);
    Ok(())
}

/// Runs commands by asking the pod's node.
struct NodeExec {
    dialer: Arc<KubeletDialer>,
    client: ApiClient,
}

fn request(target: &Target, command: &[String]) -> String {
    let mut query = String::from("input=1&output=1&tty=1");
    command
        .iter()
        .for_each(|word| query.push_str(&format!("&command={}", stdx::percent(word, stdx::UNRESERVED))));
    let Target { namespace, pod, container } = target;
    let key = STANDARD.encode(handshake_key());
    format!(
        "GET /exec/{namespace}/{pod}/{container}?{query} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    )
}

/// The protocol wants 16 bytes; TLS guards the connection, so that they need not be secret.
fn handshake_key() -> [u8; 16] {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_be_bytes()
}

/// Reads the answer's head; the connection is a WebSocket's then.
async fn upgraded(io: &mut Io) -> Result<(), ApiError> {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX {
            head.push(io.read_u8().await?);
        }
        Ok::<(), std::io::Error>(())
    };
    let read = tokio::time::timeout(ANSWER_WITHIN, read).await;
    read.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.split(' ').nth(1) == Some("101") {
        return Ok(());
    }
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    };
    let length = head.lines().find_map(header).unwrap_or(0).min(HEAD_MAX);
    let mut text = vec![0; length];
    // What is missing of a refusal's text is only words.
    let _ = tokio::time::timeout(ANSWER_WITHIN, io.read_exact(&mut text)).await;
    Err(ApiError::bad_request(String::from_utf8_lossy(&text).trim().to_string()))
}

#[async_trait]
impl Exec for NodeExec {
    async fn exec(&self, target: &Target, command: Vec<String>) -> Result<Terminal, ApiError> {
        let key = ObjectKey::new(target.namespace.as_str(), target.pod.as_str());
        let pod = self.client.get(&PODS, &key).await?.value().map_err(ApiError::internal)?;
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request("the task has no node yet"));
        }
        let mut io: Io = self.dialer.dial(node).await.map_err(ApiError::internal)?;
        io.write_all(request(target, &command).as_bytes()).await.map_err(ApiError::internal)?;
        io.flush().await.map_err(ApiError::internal)?;
        upgraded(&mut io).await?;
        let (read, write) = tokio::io::split(io);
        let (input, keys) = mpsc::channel(QUEUE);
        let (out, output) = mpsc::channel(QUEUE);
        let (ended, done) = oneshot::channel();
        let writing = tokio::spawn(send(write, keys));
        tokio::spawn(async move {
            // Nobody may wait for the end any more.
            let _ = ended.send(receive(read, out).await);
            writing.abort();
        });
        Ok(Terminal { input, output, done })
    }
}

/// Keys and sizes to the node, until the terminal is dropped; then a good-bye, at which the node lets go of it.
async fn send(mut write: WriteHalf<Io>, mut keys: mpsc::Receiver<Input>) -> std::io::Result<()> {
    let mut mask = [0x5a, 0x17, 0xc3, 0x2e];
    loop {
        let input = keys.recv().await;
        let message = match &input {
            Some(Input::Bytes(bytes)) => [&[STDIN], &bytes[..]].concat(),
            Some(Input::Size { columns, rows }) => {
                let size = json!({"Width": columns, "Height": rows}).to_string();
                [&[RESIZE], size.as_bytes()].concat()
            }
            None => 1000u16.to_be_bytes().to_vec(),
        };
        let kind = if input.is_some() { Kind::Binary } else { Kind::Close };
        let mut frame = Vec::new();
        mask.rotate_left(1);
        ws::encode(kind, &message, Some(mask), &mut frame);
        write.write_all(&frame).await?;
        write.flush().await?;
        if input.is_none() {
            return write.shutdown().await;
        }
    }
}

/// Output from the node until it ends; the exit code.
async fn receive(read: ReadHalf<Io>, out: mpsc::Sender<Bytes>) -> Result<i32, String> {
    let mut reader = Reader::new(read, false);
    let mut status = None;
    while let Ok((kind, mut message)) = reader.next().await {
        if kind == Kind::Close {
            break;
        }
        if message.is_empty() {
            continue;
        }
        let is_wanted = match message.split_to(1)[0] {
            STDOUT | STDERR if !message.is_empty() => out.send(message).await.is_ok(),
            STATUS => {
                status = serde_json::from_slice::<Value>(&message).ok();
                true
            }
            _ => true,
        };
        if !is_wanted {
            break;
        }
    }
    exit_code(&status.unwrap_or_default())
}

fn exit_code(status: &Value) -> Result<i32, String> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let code =
        causes.iter().find(|c| c["reason"] == "ExitCode").and_then(|c| c["message"].as_str()?.parse().ok());
    code.ok_or_else(|| {
        status["message"].as_str().unwrap_or("the connection to the container ended").to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_container_and_every_word() {
        let target = Target { namespace: "ecs-prod".into(), pod: "0a".into(), container: "web".into() };
        let text = request(&target, &["sh".into(), "-c".into(), "echo a&b".into()]);
        let expected =
            "GET /exec/ecs-prod/0a/web?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20a%26b ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&json!({"status": "Success"})), Ok(0));
        let failed = json!({"status": "Failure", "message": "m",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        assert_eq!(exit_code(&failed), Ok(3));
        assert_eq!(
            exit_code(&json!({"status": "Failure", "message": "no such file"})),
            Err("no such file".into())
        );
    }
}

//! One session: the WebSocket on one side, a terminal in a container on the other, the channel's rules between.
//!
//! ```text
//! opening (token) → handshake request → response → complete → data both ways → output ended → acknowledged → closed
//! ```

use super::channel::{Channel, Stamp};
use super::message::{CLOSED, Message, payload};
use super::sessions::Sessions;
use super::ws::{self, Kind, Reader};
use super::{Exec, Input, Terminal};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;
use uuid::Uuid;

/// For the token, and for the handshake.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// For the last output to be acknowledged.
const END_WITHIN: Duration = Duration::from_secs(10);
/// A client that takes nothing for so long is gone.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Messages that wait for the loop.
const QUEUE: usize = 16;
/// The plugin's flag "end the session".
const TERMINATE: u32 = 2;
/// The version of amazon-ssm-agent that this behaves like; the plugin looks at it.
const AGENT_VERSION: &str = "3.3.0.0";

fn error(text: &'static str) -> io::Error {
    io::Error::other(text)
}

fn stamp(begun: Instant) -> Stamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Stamp { now_ms, id: Uuid::new_v4(), at: begun.elapsed() }
}

/// Keys that a command has not read yet, in bytes. Acknowledgements come the same way as keys, so that neither may
/// wait for a command that reads nothing; beyond this the session ends.
const PENDING_MAX: usize = 1 << 20;

/// What goes into the terminal, as far as it has not yet.
#[derive(Default)]
struct Pending {
    list: VecDeque<Input>,
    bytes: usize,
}

/// The client's side.
struct Wire<S> {
    write: WriteHalf<S>,
    messages: mpsc::Receiver<(Kind, Bytes)>,
    channel: Channel,
    begun: Instant,
}

/// What the loop saw.
enum Seen {
    Client(Option<(Kind, Bytes)>),
    Output(Option<Bytes>),
    Room(bool),
    Due,
}

pub(super) async fn serve<S>(sessions: &Sessions, id: &str, exec: &dyn Exec, io: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(io);
    let (queue, messages) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(async move {
        let mut reader = Reader::new(read, true);
        while let Ok(message) = reader.next().await {
            let last = message.0 == Kind::Close;
            if queue.send(message).await.is_err() || last {
                return;
            }
        }
    });
    let mut wire = Wire { write, messages, channel: Channel::default(), begun: Instant::now() };
    let done = wire.session(sessions, id, exec).await;
    // A Close of ours after an error tells nothing that the end of the connection does not.
    let _ = wire.put(Kind::Close, &1000u16.to_be_bytes()).await;
    reading.abort();
    done
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(payload.len() + 16);
        ws::encode(kind, payload, None, &mut out);
        let write = async {
            self.write.write_all(&out).await?;
            self.write.flush().await
        };
        tokio::time::timeout(WRITE_WITHIN, write).await.map_err(|_| error("the client takes nothing"))?
    }

    async fn data(&mut self, payload_type: u32, payload: Bytes) -> io::Result<()> {
        let bytes = self.channel.send(payload_type, payload, stamp(self.begun));
        self.put(Kind::Binary, &bytes).await
    }

    async fn session(&mut self, sessions: &Sessions, id: &str, exec: &dyn Exec) -> io::Result<()> {
        let opening = tokio::time::timeout(BEGIN_WITHIN, self.opening()).await;
        let opening = opening.map_err(|_| error("no opening message"))??;
        let opening: Value = serde_json::from_slice(&opening).map_err(io::Error::other)?;
        let token = opening["TokenValue"].as_str().unwrap_or_default();
        let Some(grant) = sessions.take(id, token, Instant::now()) else {
            return Err(error("the token is wrong, used or too old"));
        };
        self.handshake().await?;
        let output = match exec.exec(&grant.target, grant.command).await {
            Ok(terminal) => self.run(terminal).await?,
            Err(failed) => failed.message,
        };
        self.close(id, &output).await
    }

    /// The first message that is no ping: the plugin's pings may come before it.
    async fn opening(&mut self) -> io::Result<Bytes> {
        loop {
            match self.messages.recv().await {
                Some((Kind::Text, opening)) => return Ok(opening),
                Some((Kind::Ping, payload)) => self.put(Kind::Pong, &payload).await?,
                Some((Kind::Pong, _)) => {}
                Some((Kind::Binary | Kind::Close, _)) | None => return Err(error("no opening message")),
            }
        }
    }

    async fn handshake(&mut self) -> io::Result<()> {
        let session_type = json!({"SessionType": "InteractiveCommands", "Properties": null});
        let request = json!({
            "AgentVersion": AGENT_VERSION,
            "RequestedClientActions": [{"ActionType": "SessionType", "ActionParameters": session_type}],
        });
        self.data(payload::HANDSHAKE_REQUEST, request.to_string().into()).await?;
        let until = tokio::time::Instant::now() + BEGIN_WITHIN;
        let response = loop {
            let Ok(seen) = tokio::time::timeout_at(until, self.next(None, false)).await else {
                return Err(error("no answer to the handshake"));
            };
            let payloads = self.take(seen).await?;
            let answer = payloads.into_iter().find(|(kind, _)| *kind == payload::HANDSHAKE_RESPONSE);
            if let Some((_, response)) = answer {
                break response;
            }
        };
        let response: Value = serde_json::from_slice(&response).map_err(io::Error::other)?;
        if response["Errors"].as_array().is_some_and(|list| !list.is_empty()) {
            return Err(error("the client cannot do what the handshake asks for"));
        }
        let nanoseconds = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(0);
        let complete = json!({"HandshakeTimeToComplete": nanoseconds, "CustomerMessage": ""});
        self.data(payload::HANDSHAKE_COMPLETE, complete.to_string().into()).await
    }

    /// Waits for the client, the terminal, or the time to send something again.
    async fn next(&mut self, terminal: Option<&mut Terminal>, has_input: bool) -> Seen {
        let due = self.channel.due_at().map(|at| tokio::time::Instant::from_std(self.begun + at));
        let room = self.channel.has_room();
        let (input, output) = match terminal {
            Some(Terminal { input, output, .. }) => (Some(input).filter(|_| has_input), Some(output)),
            None => (None, None),
        };
        let output = async {
            match output {
                Some(output) if room => output.recv().await,
                _ => std::future::pending().await,
            }
        };
        let takes = async {
            match input {
                Some(input) => input.reserve().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let again = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.messages.recv() => Seen::Client(message),
            output = output => Seen::Output(output),
            takes = takes => Seen::Room(takes),
            () = again => Seen::Due,
        }
    }

    /// Books what was seen of the client; payloads that are new.
    async fn take(&mut self, seen: Seen) -> io::Result<Vec<(u32, Bytes)>> {
        match seen {
            Seen::Client(Some((Kind::Binary, bytes))) => {
                let received = self.channel.receive(&bytes, stamp(self.begun)).map_err(io::Error::other)?;
                for reply in received.replies {
                    self.put(Kind::Binary, &reply).await?;
                }
                Ok(received.payloads)
            }
            Seen::Client(Some((Kind::Ping, payload))) => {
                self.put(Kind::Pong, &payload).await?;
                Ok(Vec::new())
            }
            Seen::Client(None | Some((Kind::Close, _))) => Err(error("the client is gone")),
            Seen::Due => {
                let again = self.channel.resend(self.begun.elapsed()).map_err(io::Error::other)?;
                if let Some(bytes) = again {
                    self.put(Kind::Binary, &bytes).await?;
                }
                Ok(Vec::new())
            }
            Seen::Client(Some(_)) | Seen::Output(_) | Seen::Room(_) => Ok(Vec::new()),
        }
    }

    /// Until the command's output ends, or the user ends the session; what to tell at the end.
    async fn run(&mut self, mut terminal: Terminal) -> io::Result<String> {
        let mut pending = Pending::default();
        loop {
            match self.next(Some(&mut terminal), !pending.list.is_empty()).await {
                Seen::Output(Some(bytes)) => self.data(payload::BYTES, bytes).await?,
                Seen::Output(None) => break,
                Seen::Room(true) => pending.give(&terminal),
                // It takes no more: it has ended, which its output tells.
                Seen::Room(false) => pending = Pending::default(),
                seen => {
                    for (kind, bytes) in self.take(seen).await? {
                        if kind == payload::FLAG && bytes.as_ref() == TERMINATE.to_be_bytes() {
                            return Ok(String::new());
                        }
                        pending.add(kind, bytes)?;
                    }
                }
            }
        }
        let quiet = async {
            while !self.channel.is_quiet() {
                let seen = self.next(None, false).await;
                self.take(seen).await?;
            }
            Ok(())
        };
        tokio::time::timeout(END_WITHIN, quiet).await.unwrap_or(Ok::<(), io::Error>(()))?;
        let done = tokio::time::timeout(END_WITHIN, terminal.done).await;
        Ok(match done {
            Ok(Ok(Err(why))) => why,
            _ => String::new(),
        })
    }

    async fn close(&mut self, id: &str, output: &str) -> io::Result<()> {
        let Stamp { now_ms, id: message_id, .. } = stamp(self.begun);
        let content = json!({
            "MessageId": message_id.to_string(), "CreatedDate": now_ms.to_string(), "DestinationId": id,
            "SessionId": id, "MessageType": CLOSED, "SchemaVersion": 1, "Output": output,
        });
        let closed = Message {
            kind: CLOSED.into(),
            created_ms: now_ms,
            sequence: 0,
            flags: 3,
            id: message_id,
            payload_type: 0,
            payload: content.to_string().into(),
        };
        self.put(Kind::Binary, &closed.encode()).await
    }
}

impl Pending {
    fn add(&mut self, kind: u32, bytes: Bytes) -> io::Result<()> {
        let input = match kind {
            payload::BYTES => {
                self.bytes += bytes.len();
                Input::Bytes(bytes)
            }
            payload::SIZE => {
                let size: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let number = |member: &str| size[member].as_u64().and_then(|n| u16::try_from(n).ok());
                let (Some(columns), Some(rows)) = (number("cols"), number("rows")) else { return Ok(()) };
                if let Some(Input::Size { .. }) = self.list.back() {
                    self.list.pop_back();
                }
                Input::Size { columns, rows }
            }
            _ => return Ok(()),
        };
        self.list.push_back(input);
        if self.bytes > PENDING_MAX { Err(error("the command reads none of its input")) } else { Ok(()) }
    }

    fn give(&mut self, terminal: &Terminal) {
        if let Some(input) = self.list.pop_front() {
            if let Input::Bytes(bytes) = &input {
                self.bytes -= bytes.len();
            }
            // There was room just now, and nobody else sends.
            let _ = terminal.input.try_send(input);
        }
    }
}

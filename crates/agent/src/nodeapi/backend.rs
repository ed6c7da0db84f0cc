//! What the node API asks of the agent: values and one trait. The agent implements it over `runtime`; tests over
//! plain pipes.
//!
//! Deliberately not here: HTTP, framing, any knowledge of how a container runs.

use async_trait::async_trait;
use machinery::status::ApiError;
use machinery::zpages::Page;
use runtime::api::ExecSpec;
use serde_json::Value;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Bytes out of a container or pod.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes into a container.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// A byte stream in both directions, such as a TCP connection into a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The container that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod, when the caller gave one: another pod of that name is not meant.
    pub uid: Option<String>,
    /// Name of the container.
    pub container: String,
}

/// Which streams of a running container to attach to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSpec {
    /// Write to its stdin.
    pub stdin: bool,
    /// Copy its stdout (everything, when it has a terminal).
    pub stdout: bool,
    /// Copy its stderr (never with a terminal).
    pub stderr: bool,
    /// The caller expects a terminal.
    pub tty: bool,
}

/// A process's streams and its end. Dropping it lets go of the streams; the process is not killed.
pub struct Session {
    /// Dropped (closed) when the client closes its side.
    pub stdin: Option<Input>,
    /// Its output, or all of a terminal's.
    pub stdout: Option<Output>,
    /// Its errors.
    pub stderr: Option<Output>,
    /// Sets the terminal's size: columns, rows.
    pub resize: Option<Box<dyn Fn(u16, u16) + Send + Sync>>,
    /// It ends with the client's input: the process keeps waiting for another client's.
    pub ends_with_input: bool,
    /// The exit code; an error when the process did not run. For attach: 0 when there is no more to copy.
    pub done: Pin<Box<dyn Future<Output = Result<i32, ApiError>> + Send>>,
}

/// The sets of series that a node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// The agent's own.
    Own,
    /// Few, for metrics servers.
    Resource,
    /// All of containers and the machine.
    Cadvisor,
    /// Probes' results.
    Probes,
}

/// Where a container's log is.
pub struct LogSource {
    /// The current file, in the CRI format. Older parts stand beside it as `<name>.<something that sorts by age>`.
    pub path: PathBuf,
    /// Is the container still running (may more come)? Turns false once, after the last byte was written.
    pub running: watch::Receiver<bool>,
}

/// The agent, seen from the node API. Errors become HTTP answers with their code and message.
#[async_trait]
pub trait NodeBackend: Send + Sync + 'static {
    /// Is there such a running container? Asked before a connection is upgraded; 404 `pod does not exist`,
    /// 404 `container not found ("x")`, also when it does not run. An empty container name asks for the pod alone.
    async fn check(&self, target: &Target) -> Result<(), ApiError>;

    /// Starts a command in a container.
    async fn exec(&self, target: &Target, spec: ExecSpec) -> Result<Session, ApiError>;

    /// Connects to a container's own streams.
    async fn attach(&self, target: &Target, spec: AttachSpec) -> Result<Session, ApiError>;

    /// The log of a container, or of its previous instance. 400 `container "x" in pod "y" is waiting to start: …`.
    async fn logs(&self, target: &Target, previous: bool) -> Result<LogSource, ApiError>;

    /// Connects to a port on the pod's own loopback (the node's, for host network).
    async fn port_forward(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>, ApiError>;

    /// A `PodList` of this node's pods.
    async fn pods(&self) -> Value;

    /// A `PodList` of what the runtime has, each pod with its running containers' names and images.
    fn running_pods(&self) -> Value;

    /// The agent's settings as a `KubeletConfiguration`.
    fn config(&self) -> Value;

    /// What `/statusz` or `/flagz` tells; `None`: there is no such page.
    fn page(&self, _path: &str) -> Option<Page> {
        None
    }

    /// The kubelet's stats summary.
    async fn stats_summary(&self) -> Value;

    /// A call of a CSI driver's controller service.
    async fn csi(&self, driver: &str, method: &str, _request: &Value) -> grpc::Answer {
        Err(grpc::Status::new(grpc::code::UNIMPLEMENTED, format!("no {driver} here for {method}")))
    }

    /// Metrics in Prometheus' text format.
    async fn metrics(&self, which: Metrics) -> String;
}

//! ECS exec: `ExecuteCommand`, and the data channel that session-manager-plugin speaks to its stream URL.
//!
//! Pure: [`message`], [`channel`], [`words`]. Shells: [`bridge`], [`operation`]. How a command runs in a container is
//! [`Exec`]'s business. Invariants: a token opens one channel, once, within [`sessions::TOKEN_LIFE`]; queues and the
//! resend buffer are bounded. Deliberately not here: resuming a broken channel, encryption with KMS keys.

mod bridge;
mod channel;
mod message;
mod operation;
mod sessions;
#[cfg(test)]
mod tests;
mod words;
pub mod ws;

pub use operation::with_exec;
pub use sessions::{Sessions, StreamUrls};

use async_trait::async_trait;
use bytes::Bytes;
use machinery::status::ApiError;
use tokio::sync::{mpsc, oneshot};

/// Path of the stream URLs; the session's id follows.
pub const PATH_PREFIX: &str = "/_gantry/exec/";

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container in it.
    pub container: String,
}

/// What a terminal gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Keys.
    Bytes(Bytes),
    /// Its size.
    Size {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// A command on a terminal. Dropping it closes the terminal.
pub struct Terminal {
    /// What goes in.
    pub input: mpsc::Sender<Input>,
    /// What comes out; ends after the last byte.
    pub output: mpsc::Receiver<Bytes>,
    /// The exit code, or why there is none.
    pub done: oneshot::Receiver<Result<i32, String>>,
}

/// Runs commands in containers.
#[async_trait]
pub trait Exec: Send + Sync + 'static {
    /// Starts a command on a terminal.
    async fn exec(&self, target: &Target, command: Vec<String>) -> Result<Terminal, ApiError>;
}

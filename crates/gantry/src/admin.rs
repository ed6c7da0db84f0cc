//! The local door to a running Gantry: a unix socket that only root opens; one JSON line asks, one answers.
//!
//! Deliberately not here: anything that kubectl can ask.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Longest question in bytes.
const QUESTION_MAX_BYTES: u64 = 64 << 10;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub enum Question {
    /// What runs, since when, where.
    Status,
    /// Load an image archive or folder from a path of the server's host.
    ImageLoad {
        /// Absolute path.
        path: PathBuf,
    },
    /// List images.
    ImageList,
    /// Remove images that no container uses.
    ImageGc,
    /// Stop the process (pods run on).
    Stop,
    /// Stop all pods, then the process.
    Down,
    /// End all pods in order, for good, then the process.
    Shutdown {
        /// Also stop what is left, as `Down`.
        down: bool,
    },
}

/// Asks and waits for the answer, as long as it takes.
pub fn ask(socket: &Path, question: &Question) -> Result<serde_json::Value> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)
        .with_context(|| format!("no Gantry answers at {}", socket.display()))?;
    writeln!(stream, "{}", serde_json::to_string(question)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Result<serde_json::Value, String> =
        serde_json::from_str(&line).context("Gantry ended before it answered")?;
    answer.map_err(anyhow::Error::msg)
}

/// Does somebody answer there?
pub fn answers(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Serves questions until dropped. A socket that nobody answers on any more is replaced.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    if answers(socket) {
        bail!("another Gantry answers at {}", socket.display());
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers every question by `answer`.
pub async fn serve<F, A>(listener: UnixListener, answer: A)
where
    A: Fn(Question) -> F + Send + Sync + 'static,
    F: Future<Output = Result<serde_json::Value>> + Send,
{
    let answer = Arc::new(answer);
    while let Ok((stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &*answer).await {
                tracing::debug!(%error, "admin connection");
            }
        });
    }
}

async fn converse<F, A>(mut stream: UnixStream, answer: &A) -> Result<()>
where
    A: Fn(Question) -> F,
    F: Future<Output = Result<serde_json::Value>>,
{
    let (read, mut write) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(QUESTION_MAX_BYTES)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(question) => answer(question).await.map_err(|e| format!("{e:#}")),
        Err(error) => Err(format!("not a question: {error}")),
    };
    write.write_all(format!("{}\n", serde_json::to_string(&reply)?).as_bytes()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_question_gets_its_answer_or_its_error() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = listen(&socket).unwrap();
        let server = tokio::spawn(serve(listener, |question| async move {
            match question {
                Question::ImageLoad { path } => Ok(serde_json::json!(path)),
                _ => bail!("no"),
            }
        }));
        let asked = socket.clone();
        tokio::task::spawn_blocking(move || {
            assert_eq!(ask(&asked, &Question::ImageLoad { path: "/x".into() }).unwrap(), "/x");
            assert_eq!(ask(&asked, &Question::Stop).unwrap_err().to_string(), "no");
            assert!(listen(&asked).is_err(), "a second server must not take the socket");
        })
        .await
        .unwrap();
        server.abort();
        let _ = server.await;
        assert!(listen(&socket).is_ok(), "a dead server's socket is replaced");
    }
}

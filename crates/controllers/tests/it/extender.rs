//! Extenders over HTTP, as a test answers for them.

use apiserver::Endpoint;
use controllers::{Call, SchedulerConfig};
use sched::extend::Extender;
use serde_json::Value;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The way to extenders: HTTP, as the binary has it.
struct Http;

#[async_trait::async_trait]
impl Call for Http {
    async fn call(&self, extender: &Extender, verb: &str, document: &Value) -> Result<Value, String> {
        Endpoint::of_url(&extender.url(verb), "", None)?.post(document, extender.timeout).await
    }
}

/// Serves an extender on a loopback port (`answer`: path and document in, document out) and yields what a scheduler
/// must be told that asks it; `keys` are those of its file beside the URL.
pub async fn extender(
    keys: &str,
    answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
) -> SchedulerConfig {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (mut request, mut part) = (Vec::new(), [0; 4096]);
                let (head, body) = loop {
                    let read = stream.read(&mut part).await.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    request.extend_from_slice(&part[..read]);
                    let text = String::from_utf8_lossy(&request);
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    if let Ok(body) = serde_json::from_str::<Value>(body) {
                        break (head.to_string(), body);
                    }
                };
                let said = answer(head.split(' ').nth(1).unwrap(), &body).to_string();
                let length = said.len();
                let said =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{said}");
                let _gone = stream.write_all(said.as_bytes()).await;
            });
        }
    });
    let text = format!(
        "{{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [\
         {{urlPrefix: 'http://127.0.0.1:{port}', httpTimeout: 60s, {keys}}}]}}"
    );
    let configuration = sched::config::read(text.as_bytes()).unwrap();
    SchedulerConfig { calls: Some(Arc::new(Http)), configuration, ..SchedulerConfig::default() }
}

//! The scheduler's way to its extenders: HTTP(S), as its file says.
//!
//! Certificates are read anew for each call, so that they can be changed. Deliberately not here: what is said
//! (`sched::extend`).

use apiserver::{Endpoint, EndpointTls, NameResolver};
use async_trait::async_trait;
use auth::Issued;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sched::extend::Extender;
use serde_json::Value;
use std::sync::Arc;

/// The longest answer: some thousands of whole nodes.
const ANSWER_MAX: usize = 64 << 20;

/// Calls them.
pub struct Extenders(pub Arc<dyn NameResolver>);

/// What is there inline, else in a file; "" for neither.
fn pem(data: &str, file: &str) -> Result<String, String> {
    if !data.is_empty() {
        let bytes = BASE64_STANDARD.decode(data).map_err(|e| format!("tlsConfig: {e}"))?;
        return String::from_utf8(bytes).map_err(|e| format!("tlsConfig: {e}"));
    }
    match file {
        "" => Ok(String::new()),
        path => std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}")),
    }
}

fn tls(extender: &Extender) -> Result<EndpointTls, String> {
    let tls = extender.tls();
    let cert_pem = pem(&tls.cert_data, &tls.cert_file)?;
    let key_pem = pem(&tls.key_data, &tls.key_file)?;
    Ok(EndpointTls {
        ca_pem: pem(&tls.ca_data, &tls.ca_file)?,
        unchecked: tls.insecure,
        server_name: tls.server_name,
        shown: (!cert_pem.is_empty()).then_some(Issued { cert_pem, key_pem }),
    })
}

#[async_trait]
impl controllers::Call for Extenders {
    async fn call(&self, extender: &Extender, verb: &str, document: &Value) -> Result<Value, String> {
        let endpoint = Endpoint::of_url(&extender.url(verb), "", Some(self.0.clone()))?;
        endpoint.speaking(tls(extender)?, ANSWER_MAX).post(document, extender.timeout).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use controllers::Call;
    use std::time::SystemTime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct NoNames;

    #[async_trait]
    impl NameResolver for NoNames {
        async fn resolve(&self, host: &str) -> Result<Vec<std::net::IpAddr>, String> {
            Err(format!("lookup {host}: no such host"))
        }
    }

    /// Answers one call with its path, over TLS that wants a certificate of the same authority.
    async fn peer(ca: &auth::Ca, now: SystemTime) -> u16 {
        let server = ca.issue_server("ext", &["ext.example".into()], &[], now).unwrap();
        let tls = auth::server_config(&server, ca.cert_pem(), &["http/1.1"]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
            let shown = stream.get_ref().1.peer_certificates().is_some();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let head = String::from_utf8_lossy(&request[..read]).to_string();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let body = format!("{{\"path\": \"{path}\", \"shown\": {shown}}}");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn it_is_called_as_its_file_says() {
        let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
        let client = ca.issue_client("scheduler", None, now).unwrap();
        let keys = folder.path().join("client.key");
        std::fs::write(&keys, &client.key_pem).unwrap();
        let port = peer(&ca, now).await;
        let text = format!(
            "{{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [\
             {{urlPrefix: 'https://127.0.0.1:{port}/e', filterVerb: filter, enableHTTPS: true, tlsConfig: {{\
             serverName: ext.example, caData: {}, certData: {}, keyFile: {}}}}}]}}",
            BASE64_STANDARD.encode(ca.cert_pem()),
            BASE64_STANDARD.encode(&client.cert_pem),
            keys.display()
        );
        let extender = sched::config::read(text.as_bytes()).unwrap().extenders[0].clone();
        let way = Extenders(Arc::new(NoNames));
        let answer = way.call(&extender, "filter", &Value::Null).await.unwrap();
        assert_eq!(answer, serde_json::json!({"path": "/e/filter", "shown": true}));
        let gone = way.call(&extender, "filter", &Value::Null).await.unwrap_err();
        assert!(gone.contains("/e/filter"), "{gone}");
    }
}

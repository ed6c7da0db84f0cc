//! A small client of the AWS endpoint, as any other user has one: signed JSON over plain HTTP, one connection a call.
//!
//! Where and as whom: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and the like (`gantry env` prints them), else this
//! machine's own. Deliberately not here: TLS (the endpoint has none), retries.

use crate::config::Config;
use crate::up::aws::credentials_file;
use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use ring::{digest, hmac};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const ANSWER_MAX: u64 = 64 << 20;
/// A service's name in signatures, and what its targets begin with.
pub type Service = (&'static str, &'static str);
/// ECS.
pub const ECS: Service = ("ecs", "AmazonEC2ContainerServiceV20141113");
/// CloudWatch Logs.
pub const LOGS: Service = ("logs", "Logs_20140328");

/// Where, and as whom.
pub struct Client {
    /// `host:port`.
    host: String,
    key: String,
    secret: String,
    token: String,
    /// Region of the signatures.
    pub region: String,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

impl Client {
    /// From the environment, else this machine's.
    pub fn find(config: &Config) -> Result<Client> {
        let own = format!("http://127.0.0.1:{}", config.aws_port);
        let url = variable("AWS_ENDPOINT_URL").unwrap_or(own);
        let host =
            url.strip_prefix("http://").with_context(|| format!("{url:?} does not begin with http://"))?;
        let host = host.trim_end_matches('/').replace("localhost", "127.0.0.1");
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| config.aws_region.clone());
        let token = variable("AWS_SESSION_TOKEN").unwrap_or_default();
        if let (Some(key), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        {
            return Ok(Client { host, key, secret, token, region });
        }
        let file = credentials_file(config);
        let text = std::fs::read_to_string(&file);
        let text =
            text.with_context(|| format!("no AWS keys: eval \"$(gantry env)\" ({})", file.display()))?;
        let value = |name: &str| {
            let found = text.lines().find_map(|l| l.split_once('=').filter(|(n, _)| n.trim() == name));
            found.map_or(String::new(), |(_, v)| v.trim().to_string())
        };
        let (key, secret) = (value("aws_access_key_id"), value("aws_secret_access_key"));
        Ok(Client { host, key, secret, token: String::new(), region })
    }

    /// Calls an operation.
    pub fn call(&self, service: Service, operation: &str, input: &Value) -> Result<Value> {
        let body = input.to_string();
        let headers = self.signed(service, operation, &body, Timestamp::now().as_second());
        let mut head = String::from("POST / HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in &headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        write!(head, "content-length: {}\r\n\r\n", body.len())?;
        let address = self.host.to_socket_addrs().ok().and_then(|mut a| a.next());
        let address = address.with_context(|| format!("{:?} is no address", self.host))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("no AWS endpoint at {}: does gantry run?", self.host))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
        let (code, body) = response(&answer)?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if code == 200 {
            return Ok(value);
        }
        let text = |name: &str| value[name].as_str().map(String::from);
        let kind = text("__type").unwrap_or_else(|| format!("HTTP {code}"));
        let message = text("message").or_else(|| text("Message")).unwrap_or_default();
        bail!("{message} ({})", kind.rsplit('#').next().unwrap_or_default())
    }

    /// All headers of a request, signature included.
    fn signed(
        &self,
        (service, prefix): Service,
        operation: &str,
        body: &str,
        now: i64,
    ) -> Vec<(String, String)> {
        let at = auth::sigv4::compact(now);
        let date = at.get(..8).unwrap_or_default().to_string();
        let mut headers = vec![
            ("content-type".to_string(), "application/x-amz-json-1.1".to_string()),
            ("host".into(), self.host.clone()),
            ("x-amz-date".into(), at.clone()),
        ];
        if !self.token.is_empty() {
            headers.push(("x-amz-security-token".into(), self.token.clone()));
        }
        headers.push(("x-amz-target".into(), format!("{prefix}.{operation}")));
        let names: Vec<&str> = headers.iter().map(|(n, _)| n.as_str()).collect();
        let names = names.join(";");
        let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
        let hash = |text: &str| auth::sigv4::hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hash(body));
        let scope = format!("{date}/{}/{service}/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hash(&canonical));
        let sign = |key: &[u8], text: &str| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
        };
        let first = format!("AWS4{}", self.secret).into_bytes();
        let key =
            [&*date, &*self.region, service, "aws4_request"].iter().fold(first, |key, part| sign(&key, part));
        let signature = auth::sigv4::hex(&sign(&key, &text));
        let how = format!("Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", self.key);
        headers.push(("authorization".into(), format!("AWS4-HMAC-SHA256 {how}")));
        headers
    }
}

/// Status and body of an answer that ended with its connection.
fn response(bytes: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("the endpoint does not speak HTTP")?;
    let head =
        std::str::from_utf8(&bytes[..end]).context("the endpoint does not speak HTTP")?.to_ascii_lowercase();
    let body = &bytes[end + 4..];
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).context("the answer has no status")?;
    if !head.contains("transfer-encoding: chunked") {
        return Ok((code, body.to_vec()));
    }
    let (mut out, mut rest) = (Vec::new(), body);
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").context("the answer is cut off")?;
        let size =
            std::str::from_utf8(&rest[..end]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let Some(size) = size else { bail!("the answer is garbled") };
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok((code, out));
        }
        ensure!(rest.len() >= size + 2, "the answer is cut off");
        out.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use auth::sigv4::Head;

    #[test]
    fn signatures_are_what_the_server_wants() {
        let client = Client {
            host: "127.0.0.1:4566".into(),
            key: "AKIDEXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            token: "t".into(),
            region: "us-east-1".into(),
        };
        let headers = client.signed(ECS, "ListTasks", "{}", 1_700_000_000);
        let head = Head { method: "POST", path: "/", query: "", headers: &headers };
        let presented = head.presented().unwrap().unwrap();
        assert_eq!((presented.access_key.as_str(), presented.service.as_str()), ("AKIDEXAMPLE", "ecs"));
        presented.check_time(1_700_000_010).unwrap();
        presented.verify(&head, &client.secret, b"{}").unwrap();
        assert!(presented.verify(&head, "other", b"{}").is_err());
        assert!(presented.verify(&head, &client.secret, b"{\"a\": 1}").is_err());
    }

    #[test]
    fn answers_in_one_piece_or_several() {
        let plain = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(response(plain).unwrap(), (400, b"{}".to_vec()));
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(response(chunked).unwrap(), (200, b"abc0123456789".to_vec()));
        for bad in [&b"SSH-2.0"[..], b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nabc"] {
            assert!(response(bad).is_err());
        }
    }
}

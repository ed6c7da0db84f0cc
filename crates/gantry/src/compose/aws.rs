//! A small client of the AWS endpoint, as any other user has one: signed JSON over plain HTTP, one connection a call.
//!
//! Where and as whom: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` and the like (`gantry env` prints them), else this
//! machine's own. Deliberately not here: TLS (the endpoint has none), retries.

use crate::config::Config;
use crate::up::aws::credentials_file;
use anyhow::{Context, Result, bail, ensure};
use auth::sigv4::Signer;
use jiff::Timestamp;
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
pub struct Client(Signer);

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
        let keys = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
        if let (Some(access_key), Some(secret)) = keys {
            return Ok(Client(Signer { access_key, secret, token, region, host }));
        }
        let file = credentials_file(config);
        let text = std::fs::read_to_string(&file);
        let text =
            text.with_context(|| format!("no AWS keys: eval \"$(gantry env)\" ({})", file.display()))?;
        let value = |name: &str| {
            let found = text.lines().find_map(|l| l.split_once('=').filter(|(n, _)| n.trim() == name));
            found.map_or(String::new(), |(_, v)| v.trim().to_string())
        };
        let (access_key, secret) = (value("aws_access_key_id"), value("aws_secret_access_key"));
        Ok(Client(Signer { access_key, secret, token: String::new(), region, host }))
    }

    /// Region of the signatures.
    pub fn region(&self) -> &str {
        &self.0.region
    }

    /// Calls an operation.
    pub fn call(&self, (service, prefix): Service, operation: &str, input: &Value) -> Result<Value> {
        let body = input.to_string();
        let target = format!("{prefix}.{operation}");
        let headers = self.0.json(service, &target, &body, Timestamp::now().as_second());
        let mut head = String::from("POST / HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in &headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        write!(head, "content-length: {}\r\n\r\n", body.len())?;
        let address = self.0.host.to_socket_addrs().ok().and_then(|mut a| a.next());
        let address = address.with_context(|| format!("{:?} is no address", self.0.host))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("no AWS endpoint at {}: does gantry run?", self.0.host))?;
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

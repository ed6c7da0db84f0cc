//! Signing, for our own clients: calls of services that speak JSON.

use super::{ALGORITHM, compact, hex};
use ring::{digest, hmac};

/// Who signs, and for where.
#[derive(Clone, Debug, Default)]
pub struct Signer {
    /// Key.
    pub access_key: String,
    /// Its secret.
    pub secret: String,
    /// Session token; "" for lasting keys.
    pub token: String,
    /// `us-east-1`.
    pub region: String,
    /// `host:port`.
    pub host: String,
}

impl Signer {
    /// All headers of a call (`POST /`), in lower case: `service` as in scopes, `target` as in `X-Amz-Target`, the time in
    /// seconds since 1970.
    pub fn json(&self, service: &str, target: &str, body: &str, now: i64) -> Vec<(String, String)> {
        let at = compact(now);
        let date = at.get(..8).unwrap_or_default().to_string();
        let mut headers = vec![
            ("content-type".to_string(), "application/x-amz-json-1.1".to_string()),
            ("host".into(), self.host.clone()),
            ("x-amz-date".into(), at.clone()),
        ];
        if !self.token.is_empty() {
            headers.push(("x-amz-security-token".into(), self.token.clone()));
        }
        headers.push(("x-amz-target".into(), target.into()));
        let names: Vec<&str> = headers.iter().map(|(n, _)| n.as_str()).collect();
        let names = names.join(";");
        let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
        let hash = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hash(body));
        let scope = format!("{date}/{}/{service}/aws4_request", self.region);
        let text = format!("{ALGORITHM}\n{at}\n{scope}\n{}", hash(&canonical));
        let sign = |key: &[u8], text: &str| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
        };
        let first = format!("AWS4{}", self.secret).into_bytes();
        let key =
            [&*date, &*self.region, service, "aws4_request"].iter().fold(first, |key, part| sign(&key, part));
        let signature = hex(&sign(&key, &text));
        let key = &self.access_key;
        let how = format!("Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}");
        headers.push(("authorization".into(), format!("{ALGORITHM} {how}")));
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;

    #[test]
    fn signatures_are_what_the_server_wants() {
        let signer = Signer {
            access_key: "AKIDEXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            token: "t".into(),
            region: "us-east-1".into(),
            host: "127.0.0.1:4566".into(),
        };
        let headers = signer.json("ecs", "X.ListTasks", "{}", 1_700_000_000);
        let head = Head { method: "POST", path: "/", query: "", headers: &headers };
        let presented = head.presented().unwrap().unwrap();
        assert_eq!((presented.access_key.as_str(), presented.service.as_str()), ("AKIDEXAMPLE", "ecs"));
        presented.check_time(1_700_000_010).unwrap();
        presented.verify(&head, &signer.secret, b"{}").unwrap();
        assert!(presented.verify(&head, "other", b"{}").is_err());
        assert!(presented.verify(&head, &signer.secret, b"{\"a\": 1}").is_err());
    }
}

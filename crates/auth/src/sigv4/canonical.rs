//! The canonical request: pure text.

use super::Head;

/// Name and value pairs of a query, decoded.
pub(super) fn parameters(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|p| !p.is_empty());
    pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(n, v)| (unescape(n), unescape(v))).collect()
}

/// The text whose hash is signed. `double`: the path is encoded once more than it came.
pub(super) fn request(
    head: &Head<'_>,
    signed: &[String],
    presigned: bool,
    double: bool,
    payload: &str,
) -> String {
    // Keys of S3 keep their empty segments and dots.
    let path = if double { encode(&normal(head.path), true) } else { head.path.to_string() };
    let headers: String = signed.iter().map(|name| format!("{name}:{}\n", values(head, name))).collect();
    format!(
        "{}\n{path}\n{}\n{headers}\n{}\n{payload}",
        head.method,
        query(head.query, presigned),
        signed.join(";")
    )
}

/// Without empty segments and dots.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let slash = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

fn query(query: &str, presigned: bool) -> String {
    let mut pairs: Vec<(String, String)> = parameters(query)
        .into_iter()
        .filter(|(name, _)| !(presigned && name == "X-Amz-Signature"))
        .map(|(name, value)| (encode(&name, false), encode(&value, false)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join("&")
}

/// All values of a header, inner blanks made one.
fn values(head: &Head<'_>, name: &str) -> String {
    let name = if name == ":authority" { "host" } else { name };
    let all = head.headers.iter().filter(|(n, _)| n == name);
    all.map(|(_, v)| v.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(",")
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            b'/' if keep_slash => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A percent-encoded form text, decoded.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after
            .get(..2)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (byte, _) => {
                bytes.push(if *byte == b'+' { b' ' } else { *byte });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

//! URLs: absolute ones, and absolute paths, as Go's `url.ParseRequestURI` takes them.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};

type Outcome = Result<Value, EvalError>;

/// A URL in its parts.
#[derive(Debug)]
pub struct Url {
    /// As written.
    pub text: String,
    scheme: String,
    /// With the port.
    host: String,
    path: String,
    query: Vec<(String, String)>,
}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("url(string) url", Cost::Scan, |a| {
        let text = a[0].as_str().unwrap_or_default();
        let bad = || {
            EvalError::failed(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            ))
        };
        parse(text).map(|url| Ext::Url(url).into()).ok_or_else(bad)
    }),
    ("isURL(string) bool", Cost::Scan, |a| Ok(parse(a[0].as_str().unwrap_or_default()).is_some().into())),
    ("url:getScheme() string", Cost::Flat, |a| with(a, |u| u.scheme.clone().into())),
    ("url:getHost() string", Cost::Flat, |a| with(a, |u| u.host.clone().into())),
    ("url:getHostname() string", Cost::Flat, |a| with(a, |u| split_host(&u.host).0.into())),
    ("url:getPort() string", Cost::Flat, |a| with(a, |u| split_host(&u.host).1.into())),
    ("url:getEscapedPath() string", Cost::Flat, |a| with(a, |u| escaped(&u.path).into())),
    ("url:getQuery() map<string, list<string>>", Cost::Flat, |a| {
        with(a, |u| {
            let mut keys: Vec<&String> = u.query.iter().map(|(k, _)| k).collect();
            keys.dedup();
            Value::map(keys.into_iter().map(|key| {
                let own = u.query.iter().filter(|(k, _)| k == key).map(|(_, v)| Value::from(v.as_str()));
                (key.clone(), own.collect::<Vec<_>>().into())
            }))
        })
    }),
];

fn with(a: &[Value], use_it: impl FnOnce(&Url) -> Value) -> Outcome {
    match &a[0] {
        Value::Ext(ext) => match &**ext {
            Ext::Url(url) => Ok(use_it(url)),
            _ => Err(EvalError::no_such_overload()),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Host name without brackets, and port.
fn split_host(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[') {
        let (name, after) = rest.split_once(']').unwrap_or((rest, ""));
        return (name, after.strip_prefix(':').unwrap_or(""));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

/// Is it one?
pub fn is_url(text: &str) -> bool {
    parse(text).is_some()
}

fn parse(text: &str) -> Option<Url> {
    if text.is_empty() || text.bytes().any(|b| b.is_ascii_control()) {
        return None;
    }
    let (scheme, rest) = match text.strip_prefix('/') {
        Some(_) => ("", text),
        None => {
            let (scheme, rest) = text.split_once(':')?;
            let fine = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            (fine.then_some(scheme)?, rest)
        }
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty() || rest.starts_with("//"))
    {
        Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
        None => ("", rest),
    };
    if scheme.is_empty() && !path.starts_with('/') && host.is_empty() {
        return None;
    }
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let (name, port) = split_host(host);
    if host.contains(' ')
        || port.bytes().any(|b| !b.is_ascii_digit())
        || (name.contains(':') && !host.starts_with('['))
    {
        return None;
    }
    if !percent_is_fine(path) {
        return None;
    }
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Some(Url {
        text: text.into(),
        scheme: scheme.to_ascii_lowercase(),
        host: host.into(),
        path: path.into(),
        query: pairs,
    })
}

/// A path as it is written, where that is allowed; else with everything escaped that must be (as Go does).
fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+/:=@".contains(&b);
    if path.bytes().all(|b| plain(b) || b"!'()*,;[]%".contains(&b)) {
        return path.into();
    }
    let mut out = String::new();
    // A plus sign is one, outside of queries.
    for byte in unescape(&path.replace('+', "%2B")).bytes() {
        match plain(byte) {
            true => out.push(byte.into()),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn percent_is_fine(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let code = || {
            std::str::from_utf8(bytes.get(i + 1..i + 3)?).ok().and_then(|h| u8::from_str_radix(h, 16).ok())
        };
        match (bytes[i], code()) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

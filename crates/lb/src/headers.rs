//! What changes about a request's and an answer's head on the way: pure but for the trace id's randomness, passed in.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use std::net::IpAddr;

/// Headers between two neighbours (RFC 9110 7.6.1 and the older ones); they do not travel on.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const TRACE: HeaderName = HeaderName::from_static("x-amzn-trace-id");

/// Names of the cookies by which clients stay: the target's and the group's.
pub const TARGET_COOKIE: &str = "AWSALB";
/// The group's.
pub const GROUP_COOKIE: &str = "AWSALBTG";

/// Does the request ask for another protocol on the connection?
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let mut tokens = connection.flat_map(|v| v.split(','));
    headers.contains_key(header::UPGRADE) && tokens.any(|t| t.trim().eq_ignore_ascii_case("upgrade"))
}

/// Takes away what is between two neighbours; an upgrade is kept when it is wanted.
pub fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| keep_upgrade);
    let listed = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let listed: Vec<HeaderName> =
        listed.flat_map(|v| v.split(',')).filter_map(|t| t.trim().parse().ok()).collect();
    for name in listed.iter().chain(&HOP).chain([&KEEP_ALIVE]) {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The client's address.
    pub source: IpAddr,
    /// The listener's port.
    pub port: u16,
    /// Over TLS?
    pub tls: bool,
}

/// Adds the headers by which a target learns about the client; `trace` is 24 hex digits, `seconds` since 1970.
pub fn tell(parts: &mut Parts, entry: Entry, trace: &str, seconds: u64) {
    let earlier = parts.headers.get_all(&FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let mut list: Vec<String> = earlier.map(str::to_string).collect();
    list.push(entry.source.to_canonical().to_string());
    let value = |text: &str| HeaderValue::from_str(text).expect("addresses and digits are header text");
    if let Ok(list) = HeaderValue::from_str(&list.join(", ")) {
        parts.headers.insert(FORWARDED_FOR, list);
    }
    parts.headers.insert(FORWARDED_PROTO, value(if entry.tls { "https" } else { "http" }));
    parts.headers.insert(FORWARDED_PORT, value(&entry.port.to_string()));
    if !parts.headers.contains_key(&TRACE) {
        parts.headers.insert(TRACE, value(&format!("Root=1-{seconds:08x}-{trace}")));
    }
    if !parts.headers.contains_key(header::HOST) {
        let authority = parts.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        if let Some(authority) = authority {
            parts.headers.insert(header::HOST, authority);
        }
    }
}

/// A cookie's value in a request.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(n, _)| *n == name).map(|(_, value)| value).next()
}

/// Tells the client to come back to the same place. The value is a hash: names of targets are not for clients.
pub fn stay(headers: &mut HeaderMap, cookie: &str, id: &str, seconds: u64) {
    let text = format!("{cookie}={}; Max-Age={seconds}; Path=/", token(id));
    headers.append(header::SET_COOKIE, HeaderValue::from_str(&text).expect("hex digits are header text"));
}

/// What stands for a name in a cookie.
pub fn token(id: &str) -> String {
    let hash = |seed: u64| id.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_words_stay_between_them() {
        let request = http::Request::builder()
            .header("connection", "x-secret, keep-alive")
            .header("x-secret", "1")
            .header("keep-alive", "timeout=5")
            .header("te", "trailers")
            .header("upgrade", "websocket")
            .header("x-kept", "1");
        let mut parts = request.body(()).unwrap().into_parts().0;
        assert!(!wants_upgrade(&parts.headers));
        strip(&mut parts.headers, false);
        assert_eq!(parts.headers.keys().map(|k| k.as_str()).collect::<Vec<_>>(), ["x-kept"]);
        parts.headers.insert("connection", HeaderValue::from_static("keep-alive, Upgrade"));
        parts.headers.insert("upgrade", HeaderValue::from_static("websocket"));
        assert!(wants_upgrade(&parts.headers));
        strip(&mut parts.headers, true);
        assert_eq!(parts.headers["connection"], "upgrade");
    }

    #[test]
    fn targets_learn_about_the_client() {
        let request = http::Request::builder().uri("http://shop:80/x").header("x-forwarded-for", "1.2.3.4");
        let mut parts = request.body(()).unwrap().into_parts().0;
        let entry = Entry { source: "::ffff:10.0.0.9".parse().unwrap(), port: 443, tls: true };
        tell(&mut parts, entry, "0123456789abcdef01234567", 0x6501_0203);
        assert_eq!(parts.headers["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(parts.headers["x-forwarded-proto"], "https");
        assert_eq!(parts.headers["x-forwarded-port"], "443");
        assert_eq!(parts.headers["x-amzn-trace-id"], "Root=1-65010203-0123456789abcdef01234567");
        assert_eq!(parts.headers["host"], "shop:80");
    }

    #[test]
    fn cookies_are_found() {
        let request = http::Request::builder().header("cookie", "a=1; AWSALB=xyz").header("cookie", "b=2");
        let parts = request.body(()).unwrap().into_parts().0;
        assert_eq!(cookie(&parts.headers, TARGET_COOKIE), Some("xyz"));
        assert_eq!((cookie(&parts.headers, "b"), cookie(&parts.headers, "c")), (Some("2"), None));
        assert!(token("a") != token("b") && token("a").len() == 32);
    }
}

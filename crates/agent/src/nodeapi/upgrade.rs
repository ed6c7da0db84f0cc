//! HTTP upgrades: which streaming protocol a client gets, and the 101 answer.
//!
//! The client's order of preference decides, among what we speak. Deliberately not here: the protocols.

use super::remote::Dialect;
use super::ws::Codec;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const STREAM_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Joined to the client's key by RFC 6455.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The tunnel that kubectl tries first since 1.31.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

const V4: Dialect = Dialect { json: true, resize: true };
const V3: Dialect = Dialect { json: false, resize: true };
const V1: Dialect = Dialect { json: false, resize: false };
const RAW: Codec = Codec { base64: false, half_close: false };
const TEXT: Codec = Codec { base64: true, half_close: false };

/// SPDY sub-protocols of exec and attach.
const SPDY: [(&str, Dialect); 5] = [
    ("v5.channel.k8s.io", V4),
    ("v4.channel.k8s.io", V4),
    ("v3.channel.k8s.io", V3),
    ("v2.channel.k8s.io", V1),
    ("channel.k8s.io", V1),
];

/// WebSocket sub-protocols of exec and attach; "" is a client that asks for none.
const WEBSOCKET: [(&str, Codec, Dialect); 6] = [
    ("v5.channel.k8s.io", Codec { base64: false, half_close: true }, V4),
    ("v4.channel.k8s.io", RAW, V4),
    ("v4.base64.channel.k8s.io", TEXT, V4),
    ("channel.k8s.io", RAW, V3),
    ("base64.channel.k8s.io", TEXT, V3),
    ("", RAW, V3),
];

/// WebSocket sub-protocols of port-forward without SPDY.
const WEBSOCKET_FORWARD: [(&str, Codec); 3] =
    [("v4.channel.k8s.io", RAW), ("v4.base64.channel.k8s.io", TEXT), ("", RAW)];

/// WebSocket sub-protocols of a stream that only goes out (logs): is it base64 text?
const WEBSOCKET_OUT: [(&str, bool); 3] =
    [("", false), ("binary.k8s.io", false), ("base64.binary.k8s.io", true)];

/// What an exec or attach connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remote {
    Spdy(Dialect),
    WebSocket(Codec, Dialect),
}

/// What a port-forward connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    Spdy,
    Tunnel,
    WebSocket(Codec),
}

/// An agreed protocol and the headers of the answer; or the answer that refuses.
type Agreed<T> = Result<(T, HeaderMap), Response<String>>;

/// Agrees on exec and attach.
pub(super) fn remote(request: &HeaderMap) -> Agreed<Remote> {
    if let Some(accept) = websocket_accept(request)? {
        let names: Vec<&str> = WEBSOCKET.iter().map(|row| row.0).collect();
        let (at, headers) = websocket(request, accept, &names)?;
        let (_, codec, dialect) = WEBSOCKET[at];
        return Ok((Remote::WebSocket(codec, dialect), headers));
    }
    let names: Vec<&str> = SPDY.iter().map(|row| row.0).collect();
    let (at, headers) = spdy(request, &names, "channel.k8s.io")?;
    Ok((Remote::Spdy(SPDY[at].1), headers))
}

/// Agrees on port-forward.
pub(super) fn forward(request: &HeaderMap) -> Agreed<Forward> {
    if let Some(accept) = websocket_accept(request)? {
        let names: Vec<&str> =
            std::iter::once(TUNNEL).chain(WEBSOCKET_FORWARD.iter().map(|row| row.0)).collect();
        let (at, headers) = websocket(request, accept, &names)?;
        let protocol =
            if at == 0 { Forward::Tunnel } else { Forward::WebSocket(WEBSOCKET_FORWARD[at - 1].1) };
        return Ok((protocol, headers));
    }
    let (_, headers) = spdy(request, &[PORT_FORWARD], PORT_FORWARD)?;
    Ok((Forward::Spdy, headers))
}

/// Agrees on a stream out; `None` when the client asks for a plain answer. The value says whether as base64 text.
pub(super) fn out(request: &HeaderMap) -> Result<Option<(bool, HeaderMap)>, Response<String>> {
    let Some(accept) = websocket_accept(request)? else { return Ok(None) };
    let names: Vec<&str> = WEBSOCKET_OUT.iter().map(|row| row.0).collect();
    let (at, headers) = websocket(request, accept, &names)?;
    Ok(Some((WEBSOCKET_OUT[at].1, headers)))
}

/// The 101 answer.
pub(super) fn switching(headers: HeaderMap) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn spdy(request: &HeaderMap, ours: &[&'static str], default: &'static str) -> Agreed<usize> {
    let upgrades = values(request, &header::CONNECTION).iter().any(|v| v.eq_ignore_ascii_case("upgrade"));
    let wanted = values(request, &header::UPGRADE).iter().any(|v| v.eq_ignore_ascii_case("SPDY/3.1"));
    if !upgrades || !wanted {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request".into(),
        ));
    }
    let mut theirs = values(request, &STREAM_VERSION);
    if theirs.is_empty() {
        theirs.push(default);
    }
    let Some(at) = theirs.iter().find_map(|name| ours.iter().position(|our| our == name)) else {
        let text = "unable to upgrade: unable to negotiate protocol: client supports";
        let mut answer = refuse(
            StatusCode::FORBIDDEN,
            format!("{text} [{}], server accepts [{}]", theirs.join(" "), ours.join(" ")),
        );
        for name in ours {
            answer.headers_mut().append(STREAM_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_VERSION, HeaderValue::from_static(ours[at]));
    Ok((at, headers))
}

/// The answer to a WebSocket key; `None` when the request asks for no WebSocket.
fn websocket_accept(request: &HeaderMap) -> Result<Option<String>, Response<String>> {
    let asks =
        |name: &HeaderName, what: &str| values(request, name).iter().any(|v| v.eq_ignore_ascii_case(what));
    if !asks(&header::UPGRADE, "websocket") || !asks(&header::CONNECTION, "upgrade") {
        return Ok(None);
    }
    if !asks(&header::SEC_WEBSOCKET_VERSION, "13") {
        let mut answer =
            refuse(StatusCode::UPGRADE_REQUIRED, "unable to upgrade: WebSocket version 13 only".into());
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let Some(key) = request.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: no Sec-WebSocket-Key".into()));
    };
    let joined = format!("{}{WEBSOCKET_GUID}", key.trim());
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, joined.as_bytes());
    Ok(Some(STANDARD.encode(digest)))
}

fn websocket(request: &HeaderMap, accept: String, ours: &[&'static str]) -> Agreed<usize> {
    let mut theirs = values(request, &header::SEC_WEBSOCKET_PROTOCOL);
    if theirs.is_empty() {
        theirs.push("");
    }
    let Some(at) = theirs.iter().find_map(|name| ours.iter().position(|our| our == name)) else {
        let text = format!("requested protocol(s) are not supported: {theirs:?}; supports {ours:?}");
        return Err(refuse(StatusCode::FORBIDDEN, text));
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        header::SEC_WEBSOCKET_ACCEPT,
        HeaderValue::from_str(&accept).expect("base64 is a header value"),
    );
    if !ours[at].is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(ours[at]));
    }
    Ok((at, headers))
}

/// All comma-separated values of a header.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()).collect()
}

fn refuse(status: StatusCode, message: String) -> Response<String> {
    let mut response = Response::new(message);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn spdy_as_kubectl_asks() {
        let base = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let ask = |versions: &[&str]| {
            let list = base.iter().copied().chain(versions.iter().map(|v| ("x-stream-protocol-version", *v)));
            remote(&headers(&list.collect::<Vec<_>>()))
        };
        let (protocol, answer) = ask(&["v4.channel.k8s.io", "v3.channel.k8s.io"]).unwrap();
        assert_eq!(protocol, Remote::Spdy(V4));
        assert_eq!(answer[STREAM_VERSION], "v4.channel.k8s.io");
        assert_eq!(ask(&["v9.channel.k8s.io, v2.channel.k8s.io"]).unwrap().0, Remote::Spdy(V1));
        assert_eq!(ask(&[]).unwrap().0, Remote::Spdy(V1));
        let refused = ask(&["v9.channel.k8s.io"]).unwrap_err();
        assert_eq!(refused.status(), 403);
        assert_eq!(refused.headers().get_all(STREAM_VERSIONS).iter().count(), 5);
        assert_eq!(remote(&HeaderMap::new()).unwrap_err().status(), 400);
        let asked = headers(&[base[0], base[1], ("x-stream-protocol-version", PORT_FORWARD)]);
        assert_eq!(forward(&asked).unwrap().0, Forward::Spdy);
    }

    #[test]
    fn websocket_as_the_standard_shows() {
        let ask = |protocol: &str| {
            headers(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "WebSocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-protocol", protocol),
            ])
        };
        let (protocol, answer) = remote(&ask("v5.channel.k8s.io, v4.channel.k8s.io")).unwrap();
        assert_eq!(protocol, Remote::WebSocket(Codec { base64: false, half_close: true }, V4));
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(remote(&ask("base64.channel.k8s.io")).unwrap().0, Remote::WebSocket(TEXT, V3));
        assert_eq!(remote(&ask("")).unwrap().0, Remote::WebSocket(RAW, V3));
        assert_eq!(remote(&ask("soap")).unwrap_err().status(), 403);
        assert_eq!(forward(&ask(TUNNEL)).unwrap().0, Forward::Tunnel);
        assert_eq!(forward(&ask("v4.channel.k8s.io")).unwrap().0, Forward::WebSocket(RAW));
        let mut old = ask("");
        old.insert("sec-websocket-version", HeaderValue::from_static("8"));
        assert_eq!(remote(&old).unwrap_err().status(), 426);
    }
}

//! Links in proxied pages: what a backend names from its root is below the proxy's path for the caller.
//!
//! As upstream's proxy transport: `Location` headers, and URL attributes of HTML, when they are absolute paths or name
//! the backend's or the request's own host. Everything else passes byte by byte, as it comes.
//! Invariant: memory is bounded by one tag and one unpacked piece. Deliberately not here: links in scripts and styles.

use super::respond::Body;
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::io::{self, Write};
use std::ops::Range;

/// A longer tag passes as it is: no link is that long.
const TAG_MAX: usize = 64 << 10;
/// Packed bytes looked at in one go: they unpack to at most a thousand times as many.
const PACKED_PIECE: usize = 1 << 10;

/// URL attributes by element.
const ATTRIBUTES: [(&str, &[&str]); 27] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("use", &["href"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is no markup.
const RAW: [&str; 3] = ["script", "style", "textarea"];

/// How links change.
#[derive(Clone, Debug)]
pub struct Links {
    /// Path of the proxy, without a slash at its end.
    pub prefix: String,
    /// `host:port` of the backend, and what the caller's request named as host.
    pub hosts: [String; 2],
}

impl Links {
    /// The link as the caller must follow it; `None`: as it is.
    fn moved(&self, link: &str) -> Option<String> {
        let path = match link.split_once("://") {
            Some(("http" | "https", rest)) => {
                let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                self.hosts.iter().any(|own| own == host).then_some(path)?
            }
            _ if link.starts_with("//") => {
                let (host, path) =
                    link[2..].split_at(link[2..].find(['/', '?', '#']).unwrap_or(link.len() - 2));
                self.hosts.iter().any(|own| own == host).then_some(path)?
            }
            _ => link,
        };
        (path.starts_with('/') && !path.starts_with(&self.prefix)).then(|| format!("{}{path}", self.prefix))
    }

    /// Changes an answer's redirect, or else its page.
    pub fn apply(self, response: Response<Incoming>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        let text = |headers: &HeaderMap, name| {
            headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default().to_string()
        };
        let location = text(&parts.headers, LOCATION);
        let packing = text(&parts.headers, CONTENT_ENCODING);
        let kind = text(&parts.headers, CONTENT_TYPE);
        let is_page = kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("text/html"));
        if let Some(moved) = self.moved(&location).and_then(|l| HeaderValue::from_str(&l).ok()) {
            parts.headers.insert(LOCATION, moved);
        }
        if !location.is_empty() || !is_page || !matches!(packing.as_str(), "" | "gzip") {
            let body = body.map_err(|e| Box::new(e) as Box<dyn std::error::Error + Send + Sync>);
            return Response::from_parts(parts, body.boxed_unsync());
        }
        for name in [CONTENT_ENCODING, CONTENT_LENGTH, ETAG] {
            parts.headers.remove(name);
        }
        let unpacker = (packing == "gzip").then(|| GzDecoder::new(Vec::new()));
        let page = Page { body: Some(body), unpacker, input: Bytes::new(), rewriter: Rewriter::new(self) };
        let frames = stream::unfold(page, |mut page| async move { Some((page.next().await?, page)) });
        Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
    }
}

/// A page on its way.
struct Page {
    /// `None`: all was read.
    body: Option<Incoming>,
    unpacker: Option<GzDecoder<Vec<u8>>>,
    input: Bytes,
    rewriter: Rewriter,
}

impl Page {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>> {
        loop {
            let out = if self.input.is_empty() {
                match self.body.as_mut()?.frame().await {
                    Some(Ok(frame)) => {
                        self.input = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => {
                        self.body = None;
                        return Some(Err(Box::new(error)));
                    }
                    None => {
                        self.body = None;
                        self.rewriter.finish()
                    }
                }
            } else {
                match self.unpack() {
                    Ok(plain) => self.rewriter.push(&plain),
                    Err(error) => {
                        self.body = None;
                        return Some(Err(Box::new(error)));
                    }
                }
            };
            if !out.is_empty() {
                return Some(Ok(Frame::data(out.into())));
            }
        }
    }

    fn unpack(&mut self) -> io::Result<Bytes> {
        let Some(unpacker) = &mut self.unpacker else { return Ok(std::mem::take(&mut self.input)) };
        let piece = self.input.split_to(self.input.len().min(PACKED_PIECE));
        unpacker.write_all(&piece)?;
        unpacker.flush()?;
        Ok(std::mem::take(unpacker.get_mut()).into())
    }
}

/// Rewrites a page that comes in pieces.
struct Rewriter {
    links: Links,
    /// The beginning of a tag whose end has not come.
    held: Vec<u8>,
    /// Inside an element without markup: its name.
    raw: Option<&'static str>,
}

impl Rewriter {
    fn new(links: Links) -> Rewriter {
        Rewriter { links, held: Vec::new(), raw: None }
    }

    /// What is known to be final.
    fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len());
        let mut rest = held.as_slice();
        while let Some(at) = rest.iter().position(|b| *b == b'<') {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            match tag_length(rest, self.raw) {
                Some(length) => {
                    self.tag(&rest[..length], &mut out);
                    rest = &rest[length..];
                }
                None if rest.len() > TAG_MAX => break,
                None => {
                    self.held = rest.to_vec();
                    return out;
                }
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// The end: what was held back.
    fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// One tag (or, inside an element without markup, one `<`).
    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name = name_of(tag);
        if let Some(raw) = self.raw {
            if name.strip_prefix('/') == Some(raw) {
                self.raw = None;
            }
            return out.extend_from_slice(tag);
        }
        self.raw = RAW.into_iter().find(|raw| *raw == name);
        let Some((_, wanted)) = ATTRIBUTES.iter().find(|(element, _)| *element == name) else {
            return out.extend_from_slice(tag);
        };
        let mut from = 0;
        for (attribute, value) in attributes(tag, 1 + name.len()) {
            let text = std::str::from_utf8(&tag[value.clone()]).unwrap_or_default();
            if wanted.contains(&attribute.as_str())
                && let Some(moved) = self.links.moved(text)
            {
                out.extend_from_slice(&tag[from..value.start]);
                out.extend_from_slice(moved.as_bytes());
                from = value.end;
            }
        }
        out.extend_from_slice(&tag[from..]);
    }
}

/// Bytes of the tag or comment that `text` begins with; `None`: its end is not there yet.
fn tag_length(text: &[u8], raw: Option<&str>) -> Option<usize> {
    if let Some(raw) = raw {
        // Only the element's own end counts.
        let end = format!("</{raw}");
        let seen = text.get(..end.len());
        let begins = |seen: &[u8]| end.as_bytes()[..seen.len()].eq_ignore_ascii_case(seen);
        return match seen {
            Some(seen) if begins(seen) => Some(text.iter().position(|b| *b == b'>')? + 1),
            None if begins(text) => None,
            _ => Some(1),
        };
    }
    if text.starts_with(b"<!--") {
        return Some(text.windows(3).skip(2).position(|w| w == b"-->")? + 5);
    }
    let second = *text.get(1)?;
    if !(second.is_ascii_alphabetic() || matches!(second, b'/' | b'!' | b'?')) {
        return Some(1);
    }
    let mut quote = None;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if text[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
            (Some(q), b) if q == *b => quote = None,
            _ => {}
        }
    }
    None
}

/// The tag's name in lower case, with the slash of an end tag.
fn name_of(tag: &[u8]) -> String {
    let name = tag.iter().skip(1).enumerate();
    let name = name.take_while(|(at, b)| b.is_ascii_alphanumeric() || (*at == 0 && **b == b'/'));
    name.map(|(_, b)| char::from(b.to_ascii_lowercase())).collect()
}

/// Names (lower case) and places of the values of a tag's attributes.
fn attributes(tag: &[u8], mut at: usize) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    let until = |from: usize, stop: &dyn Fn(u8) -> bool| {
        from + tag[from..].iter().position(|b| stop(*b)).unwrap_or(tag.len() - from)
    };
    let blank = |b: u8| b.is_ascii_whitespace();
    while at < tag.len() {
        at = until(at, &|b| !blank(b) && b != b'/');
        let end = until(at, &|b| blank(b) || matches!(b, b'=' | b'>' | b'/'));
        let name = String::from_utf8_lossy(&tag[at..end]).to_ascii_lowercase();
        let equals = until(end, &|b| !blank(b));
        if tag.get(equals) != Some(&b'=') {
            at = end.max(at + 1);
            continue;
        }
        let start = until(equals + 1, &|b| !blank(b));
        let value = match tag.get(start) {
            Some(quote @ (b'"' | b'\'')) => start + 1..until(start + 1, &|b| b == *quote),
            _ => start..until(start, &|b| blank(b) || b == b'>'),
        };
        at = value.end + 1;
        found.push((name, value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn links() -> Links {
        Links { prefix: "/p".into(), hosts: ["10.0.0.1:80".into(), "api:6443".into()] }
    }

    fn whole(page: &str) -> String {
        let mut rewriter = Rewriter::new(links());
        let mut out = rewriter.push(page.as_bytes());
        out.extend(rewriter.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_of_the_backend_move_below_the_proxy() {
        for (link, moved) in [
            ("/x?a=1", Some("/p/x?a=1")),
            ("http://10.0.0.1:80/x", Some("/p/x")),
            ("https://api:6443/x/", Some("/p/x/")),
            ("//10.0.0.1:80/x", Some("/p/x")),
            ("/p/x", None),
            ("x/y", None),
            ("#top", None),
            ("http://elsewhere/x", None),
            ("//elsewhere/x", None),
            ("mailto:a@b", None),
            ("", None),
        ] {
            assert_eq!(links().moved(link).as_deref(), moved, "{link}");
        }
    }

    #[test]
    fn pages() {
        for (page, rewritten) in [
            (r#"<a href="/x">t</a>"#, r#"<a href="/p/x">t</a>"#),
            ("<A class='c' HREF = '/x' >/y</A>", "<A class='c' HREF = '/p/x' >/y</A>"),
            ("<img src=/x><img src=/y/>", "<img src=/p/x><img src=/p/y/>"),
            (
                r#"<img alt="a > b" src="/x" longdesc="/y">"#,
                r#"<img alt="a > b" src="/p/x" longdesc="/p/y">"#,
            ),
            (r#"<p href="/x" title="/y">"#, r#"<p href="/x" title="/y">"#),
            (r#"<!-- <a href="/x"> --><a href="/x">"#, r#"<!-- <a href="/x"> --><a href="/p/x">"#),
            (
                r#"<script src="/x">if (a<b) "<a href='/y'>"</script><a href="/z">"#,
                r#"<script src="/p/x">if (a<b) "<a href='/y'>"</script><a href="/p/z">"#,
            ),
            ("1 < 2 <3 <a disabled href=/x", "1 < 2 <3 <a disabled href=/x"),
        ] {
            assert_eq!(whole(page), rewritten);
        }
    }

    #[test]
    fn a_tag_without_end_is_not_kept_for_ever() {
        let mut rewriter = Rewriter::new(links());
        let mut out = rewriter.push(b"<a href=\"/x");
        assert!(out.is_empty());
        out.extend(rewriter.push(&vec![b'x'; TAG_MAX]));
        assert_eq!(out.len(), TAG_MAX + 11);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(parts in prop::collection::vec(prop::sample::select(vec![
            "<a href='/x'>", "</a>", "<!--", "-->", "<script>", "</script>", "text", "<", ">", "\"", "<img src=/y>", "é",
        ]), 0..20), cut in 1usize..7) {
            let page = parts.concat();
            let mut rewriter = Rewriter::new(links());
            let mut out: Vec<u8> = page.as_bytes().chunks(cut).flat_map(|c| rewriter.push(c)).collect();
            out.extend(rewriter.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), whole(&page));
        }
    }
}

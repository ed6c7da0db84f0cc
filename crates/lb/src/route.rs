//! Which rule answers a request: pure.

use crate::config::{Action, Condition, Listener, Redirect};
use http::request::Parts;
use std::net::IpAddr;

/// The host name that the request is for, without port, as written.
pub fn host(parts: &Parts) -> &str {
    let authority = parts.uri.authority().map(|a| a.as_str());
    let header = || parts.headers.get(http::header::HOST).and_then(|h| h.to_str().ok());
    let text = authority.or_else(header).unwrap_or_default();
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((v6, _)) => v6,
        None => text.rsplit_once(':').map_or(text, |(host, _)| host),
    }
}

/// The action of the first rule that holds, else the default.
pub fn action<'a>(listener: &'a Listener, parts: &Parts, source: IpAddr) -> &'a Action {
    let holds = |c: &Condition| holds(c, parts, source);
    listener.rules.iter().find(|r| r.conditions.iter().all(holds)).map_or(&listener.default, |r| &r.action)
}

fn holds(condition: &Condition, parts: &Parts, source: IpAddr) -> bool {
    let any = |patterns: &[String], text: &str| patterns.iter().any(|p| like(p, text));
    let any_case = |patterns: &[String], text: &str| any_folded(patterns, &text.to_ascii_lowercase());
    match condition {
        Condition::Host(patterns) => any_case(patterns, host(parts)),
        Condition::Path(patterns) => any(patterns, parts.uri.path()),
        Condition::PathPrefix(prefixes) => prefixes.iter().any(|p| begins(p, parts.uri.path())),
        Condition::Header(name, patterns) => parts
            .headers
            .get_all(name.as_str())
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| any_case(patterns, v))),
        Condition::Method(methods) => methods.iter().any(|m| m == parts.method.as_str()),
        Condition::Query(wanted) => {
            let query = parts.uri.query().unwrap_or_default();
            let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            wanted.iter().any(|(name, value)| {
                pairs().any(|(n, v)| name.as_ref().is_none_or(|name| like(name, n)) && like(value, v))
            })
        }
        Condition::Source(ranges) => ranges.iter().any(|r| r.contains(source)),
    }
}

fn any_folded(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|p| like(&p.to_ascii_lowercase(), text))
}

/// Does the path begin with the prefix, whole segments only?
fn begins(prefix: &str, path: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Does the pattern with `*` and `?` match all of the text? Linear in pattern × text at worst, no recursion.
pub fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                // The last star takes one byte more.
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// The location that a redirect points to.
pub fn location(redirect: &Redirect, parts: &Parts, tls: bool, port: u16) -> String {
    let protocol = if tls { "https" } else { "http" };
    let own = [
        ("#{protocol}", protocol.to_string()),
        ("#{host}", host(parts).to_string()),
        ("#{port}", port.to_string()),
        ("#{path}", parts.uri.path().trim_start_matches('/').to_string()),
        ("#{query}", parts.uri.query().unwrap_or_default().to_string()),
    ];
    let fill = |text: &str| own.iter().fold(text.to_string(), |t, (mark, value)| t.replace(mark, value));
    let protocol = fill(&redirect.protocol).to_ascii_lowercase();
    let port = fill(&redirect.port);
    let usual = matches!((&*protocol, &*port), ("http", "80") | ("https", "443"));
    let port = if usual { String::new() } else { format!(":{port}") };
    let query = fill(&redirect.query);
    let query = if query.is_empty() { query } else { format!("?{query}") };
    format!("{protocol}://{}{port}{}{query}", fill(&redirect.host), fill(&redirect.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fixed, Protocol, Rule};
    use proptest::prelude::*;
    use std::time::Duration;

    fn parts(uri: &str, host: &str) -> Parts {
        let request = http::Request::builder().uri(uri).header("host", host).header("x-team", "Blue");
        request.body(()).unwrap().into_parts().0
    }

    fn fixed(body: &str) -> Action {
        Action::Fixed(Fixed { status: 200, content_type: "text/plain".into(), body: body.into() })
    }

    fn chosen(conditions: Vec<Condition>, parts: &Parts) -> bool {
        let listener = Listener {
            id: "l".into(),
            address: ([127, 0, 0, 1], 0).into(),
            protocol: Protocol::Http,
            certificates: Vec::new(),
            rules: vec![Rule { conditions, action: fixed("rule") }],
            default: fixed("default"),
            idle_timeout: Duration::from_secs(60),
        };
        *action(&listener, parts, [10, 0, 0, 7].into()) == fixed("rule")
    }

    #[test]
    fn each_condition_looks_at_its_own_part() {
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let parts = parts("/api/v1?page=2&x", "Shop.example.org:8080");
        for (condition, expected) in [
            (Condition::Host(words(&["*.EXAMPLE.org"])), true),
            (Condition::Host(words(&["example.org"])), false),
            (Condition::Path(words(&["/img/*", "/api/*"])), true),
            (Condition::Path(words(&["/API/*"])), false),
            (Condition::PathPrefix(words(&["/api/"])), true),
            (Condition::PathPrefix(words(&["/ap"])), false),
            (Condition::PathPrefix(words(&["/"])), true),
            (Condition::Header("X-Team".into(), words(&["bl?e"])), true),
            (Condition::Header("x-other".into(), words(&["*"])), false),
            (Condition::Method(words(&["GET"])), true),
            (Condition::Method(words(&["POST"])), false),
            (Condition::Query(vec![(Some("page".into()), "2".into())]), true),
            (Condition::Query(vec![(None, "3".into())]), false),
            (Condition::Source(vec!["10.0.0.0/8".parse().unwrap()]), true),
            (Condition::Source(vec!["192.168.0.0/16".parse().unwrap()]), false),
        ] {
            assert_eq!(chosen(vec![condition.clone()], &parts), expected, "{condition:?}");
        }
        assert!(!chosen(
            vec![Condition::Method(words(&["GET"])), Condition::Method(words(&["PUT"]))],
            &parts
        ));
    }

    #[test]
    fn redirects_are_filled_in() {
        let redirect = |port: &str, path: &str| Redirect {
            status: 301,
            protocol: "HTTPS".into(),
            host: "#{host}".into(),
            port: port.into(),
            path: path.into(),
            query: "#{query}".into(),
        };
        let parts = parts("/a/b?c=d", "h:80");
        assert_eq!(location(&redirect("443", "/#{path}"), &parts, false, 80), "https://h/a/b?c=d");
        assert_eq!(location(&redirect("#{port}", "/new"), &parts, false, 8080), "https://h:8080/new?c=d");
    }

    /// The obvious, exponential way.
    fn twin(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => twin(rest, text) || !text.is_empty() && twin(pattern, &text[1..]),
            (Some((c, rest)), Some((t, more))) => (*c == b'?' || c == t) && twin(rest, more),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_the_twin_says(pattern in "[ab*?]{0,7}", text in "[ab]{0,8}") {
            prop_assert_eq!(like(&pattern, &text), twin(pattern.as_bytes(), text.as_bytes()));
        }
    }
}

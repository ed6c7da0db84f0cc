//! `/statusz` and `/flagz`: what this process is, and what it was told, for people; for programs on request.
//!
//! As upstream since 1.36: plain text by default; JSON only by its full name
//! (`application/json;g=config.k8s.io;v=v1beta1;as=Statusz`), else 406. Values of settings that are secret are not told.
//! Deliberately not here: `/debug/pprof` (see `docs/decisions`), the nodes' `/configz` (`agent`).

use super::negotiate::{not_acceptable, ranges};
use super::respond::{self, Body};
use super::{Inbound, meta};
use crate::Api;
use ::http::{Response, header};
use jiff::Timestamp;
use jiff::fmt::strtime;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::fmt::Write;

const COMPONENT: &str = "kube-apiserver";
const GROUP: &str = "config.k8s.io";
/// Versions of the structured answer, and whether each is deprecated.
const VERSIONS: [(&str, bool); 2] = [("v1beta1", false), ("v1alpha1", true)];
const RELEASE: &str = "1.36.0";
const EMULATED: &str = "1.36";

/// What is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    /// A document of this version, which may be deprecated.
    Document(&'static str, bool),
}

fn shape(accept: &str, kind: &str) -> Result<Shape, ApiError> {
    if accept.trim().is_empty() {
        return Ok(Shape::Text);
    }
    for (media, parameters) in ranges(accept) {
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
        match media {
            "text/plain" | "text/*" | "*/*" => return Ok(Shape::Text),
            "application/json" if get("g") == GROUP && get("as") == kind => {
                if let Some((version, old)) = VERSIONS.iter().find(|(v, _)| *v == get("v")) {
                    return Ok(Shape::Document(version, *old));
                }
            }
            _ => {}
        }
    }
    Err(not_acceptable())
}

fn head(what: &str) -> String {
    format!(
        "\n{COMPONENT} {what}\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
         compatibility guarantees and is for debugging purposes only.\n\n"
    )
}

/// What `/statusz` tells, in words and as fields.
fn statusz(started: Timestamp, now: Timestamp, paths: &[String]) -> (String, Value) {
    let up = machinery::time::since(now, started).as_secs();
    let mut text = head("statusz");
    let began = strtime::format("%a %b %e %H:%M:%S UTC %Y", started).unwrap_or_default();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "Started: {began}\nUp: {} hr {:02} min {:02} sec\nGo version: {}\nBinary version: {RELEASE}\nEmulation version: {EMULATED}\nPaths: {}\n",
        up / 3600,
        up / 60 % 60,
        up % 60,
        meta::COMPILER,
        paths.join(" ")
    );
    let fields = json!({"startTime": machinery::time::format(started), "uptimeSeconds": up,
        "goVersion": meta::COMPILER, "binaryVersion": RELEASE, "emulationVersion": EMULATED, "paths": paths});
    (text, fields)
}

fn answer(
    inbound: &Inbound,
    kind: &str,
    (text, mut fields): (String, Value),
) -> Result<Response<Body>, ApiError> {
    match shape(inbound.header(header::ACCEPT), kind)? {
        Shape::Text => Ok(respond::raw(200, "text/plain; charset=utf-8", respond::full(text))),
        Shape::Document(version, old) => {
            fields["kind"] = json!(kind);
            fields["apiVersion"] = json!(format!("{GROUP}/{version}"));
            fields["metadata"] = json!({"name": COMPONENT});
            let mut response = respond::json_value(200, "application/json", &fields, inbound.wishes());
            if old {
                let words =
                    format!("{GROUP}/{version} {kind} is deprecated; use {GROUP}/{} {kind}", VERSIONS[0].0);
                respond::warn(&mut response, &[words]);
            }
            Ok(response)
        }
    }
}

/// `/statusz`; `paths` are those that the server's index names.
pub(super) fn status(api: &Api, inbound: &Inbound, paths: &[String]) -> Result<Response<Body>, ApiError> {
    // The first parts alone.
    let mut roots: Vec<String> =
        paths.iter().filter_map(|p| p.split('/').nth(1)).map(|root| format!("/{root}")).collect();
    roots.dedup();
    answer(inbound, "Statusz", statusz(api.started, (api.config.clock)(), &roots))
}

/// `/flagz`.
pub(super) fn flags(api: &Api, inbound: &Inbound) -> Result<Response<Body>, ApiError> {
    let flags = &api.config.flags;
    let lines: String = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    answer(inbound, "Flagz", (head("flagz") + &lines, json!({"flags": **flags})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_must_say_what_they_want() {
        let text = Ok(Shape::Text);
        for (accept, want) in [
            ("", text),
            ("*/*", text),
            ("text/plain;q=0.5", text),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", Ok(Shape::Document("v1beta1", false))),
            ("application/json;v=v1alpha1;g=config.k8s.io;as=Statusz", Ok(Shape::Document("v1alpha1", true))),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", Err(())),
            ("application/json", Err(())),
        ] {
            assert_eq!(shape(accept, "Statusz").map_err(drop), want.map_err(drop), "{accept}");
        }
    }

    #[test]
    fn people_read_how_long_it_runs() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let (text, fields) = statusz(at(1_729_112_623), at(1_729_112_623 + 3_725), &["/healthz".into()]);
        assert!(text.starts_with("\nkube-apiserver statusz\nWarning: This endpoint is not meant"));
        assert!(text.contains("\nStarted: Wed Oct 16 21:03:43 UTC 2024\nUp: 1 hr 02 min 05 sec\n"), "{text}");
        assert_eq!((&fields["uptimeSeconds"], &fields["paths"][0]), (&json!(3_725), &json!("/healthz")));
    }
}

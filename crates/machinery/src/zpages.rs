//! `/statusz` and `/flagz`: what a process is, and what it was told, for people; for programs on request. Pure.
//!
//! As upstream since 1.36: plain text by default; JSON only by its full name
//! (`application/json;g=config.k8s.io;v=v1beta1;as=Statusz`), else 406. Values of settings that are secret are not told.
//! Deliberately not here: `/debug/pprof` (see `docs/decisions`), the nodes' `/configz` (`agent`).

use jiff::Timestamp;
use jiff::fmt::strtime;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use stdx::accept::ranges;

const GROUP: &str = "config.k8s.io";
/// Versions of the structured answer, and whether each is deprecated.
const VERSIONS: [(&str, bool); 2] = [("v1beta1", false), ("v1alpha1", true)];
const RELEASE: &str = "1.36.0";
const EMULATED: &str = "1.36";
/// What clients take for the version of Go.
pub const COMPILER: &str = "go1.26";

/// What is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    /// A document of this version, which may be deprecated.
    Document(&'static str, bool),
}

fn shape(accept: &str, kind: &str) -> Option<Shape> {
    if accept.trim().is_empty() {
        return Some(Shape::Text);
    }
    ranges(accept).into_iter().find_map(|(media, parameters)| {
        let get = |key: &str| parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
        match media {
            "text/plain" | "text/*" | "*/*" => Some(Shape::Text),
            "application/json" if get("g") == GROUP && get("as") == kind => {
                let version = VERSIONS.iter().find(|(v, _)| *v == get("v"));
                version.map(|(version, old)| Shape::Document(version, *old))
            }
            _ => None,
        }
    })
}

/// What one of them tells, in words and as fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    kind: &'static str,
    component: &'static str,
    text: String,
    fields: Value,
}

/// How it is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// For people.
    Text(String),
    /// For programs; with what to warn of, where its version is an old one.
    Document(Value, Option<String>),
}

/// `/statusz` of a component (`kubelet`); `paths` are those worth a look.
pub fn status(component: &'static str, started: Timestamp, now: Timestamp, paths: &[String]) -> Page {
    let up = crate::time::since(now, started).as_secs();
    let began = strtime::format("%a %b %e %H:%M:%S UTC %Y", started).unwrap_or_default();
    let text = format!(
        "Started: {began}\nUp: {} hr {:02} min {:02} sec\nGo version: {COMPILER}\nBinary version: {RELEASE}\n\
         Emulation version: {EMULATED}\nPaths: {}\n",
        up / 3600,
        up / 60 % 60,
        up % 60,
        paths.join(" ")
    );
    let fields = json!({"startTime": crate::time::format(started), "uptimeSeconds": up, "goVersion": COMPILER,
        "binaryVersion": RELEASE, "emulationVersion": EMULATED, "paths": paths});
    Page { kind: "Statusz", component, text, fields }
}

/// `/flagz` of a component: settings by name.
pub fn flags(component: &'static str, flags: &BTreeMap<String, String>) -> Page {
    let text = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    Page { kind: "Flagz", component, text, fields: json!({"flags": flags}) }
}

impl Page {
    /// In the form that the `Accept` header asks for; `None`: there is no such (406).
    pub fn answer(self, accept: &str) -> Option<Answer> {
        let Page { kind, component, text, mut fields } = self;
        Some(match shape(accept, kind)? {
            Shape::Text => Answer::Text(format!(
                "\n{component} {}\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                 compatibility guarantees and is for debugging purposes only.\n\n{text}",
                kind.to_lowercase()
            )),
            Shape::Document(version, old) => {
                fields["kind"] = json!(kind);
                fields["apiVersion"] = json!(format!("{GROUP}/{version}"));
                fields["metadata"] = json!({"name": component});
                let newest = VERSIONS[0].0;
                let words = || format!("{GROUP}/{version} {kind} is deprecated; use {GROUP}/{newest} {kind}");
                Answer::Document(fields, old.then(words))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_must_say_what_they_want() {
        let text = Some(Shape::Text);
        for (accept, want) in [
            ("", text),
            ("*/*", text),
            ("text/plain;q=0.5", text),
            (
                "application/json;v=v1beta1;g=config.k8s.io;as=Statusz",
                Some(Shape::Document("v1beta1", false)),
            ),
            (
                "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz",
                Some(Shape::Document("v1alpha1", true)),
            ),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json", None),
        ] {
            assert_eq!(shape(accept, "Statusz"), want, "{accept}");
        }
        let page = flags("kubelet", &[("v".into(), "2".into())].into());
        let accept = "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz";
        let words = "config.k8s.io/v1alpha1 Flagz is deprecated; use config.k8s.io/v1beta1 Flagz";
        let fields = json!({"kind": "Flagz", "apiVersion": "config.k8s.io/v1alpha1", "metadata": {"name": "kubelet"},
            "flags": {"v": "2"}});
        assert_eq!(page.answer(accept).unwrap(), Answer::Document(fields, Some(words.into())));
    }

    #[test]
    fn people_read_how_long_it_runs() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let page = status("kubelet", at(1_729_112_623), at(1_729_112_623 + 3_725), &["/healthz".into()]);
        assert_eq!(
            (&page.fields["uptimeSeconds"], &page.fields["paths"][0]),
            (&json!(3_725), &json!("/healthz"))
        );
        let Answer::Text(text) = page.answer("").unwrap() else { panic!() };
        assert!(text.starts_with("\nkubelet statusz\nWarning: This endpoint is not meant"), "{text}");
        assert!(text.contains("\nStarted: Wed Oct 16 21:03:43 UTC 2024\nUp: 1 hr 02 min 05 sec\n"), "{text}");
    }
}

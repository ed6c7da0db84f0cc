//! Watches over HTTP: one JSON object a line (or protobuf frames), shared frames, bookmarks, an end in time.

use super::negotiate::Form;
use super::respond::{self, Body};
use crate::Api;
use crate::path::Query;
use crate::resources::Resource;
use crate::rules::{self, TableStyle};
use crate::select::Selection;
use crate::verbs::list::{number, parse_revision};
use crate::watch::{Place, Seen, Start, Watcher};
use bytes::Bytes;
use client::{EventKind, Object};
use futures_util::stream;
use http::Response;
use machinery::field_errors::FieldErrors;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Pause between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a timeout ends after 30 to 60 minutes, so that load spreads again.
const TIMEOUT_MIN_SECS: u64 = 1_800;
/// A bookmark is sent this long before the end, so that the client can resume there.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// The options of a watch request.
#[derive(Clone, Copy, Debug)]
struct Options {
    start: Start,
    /// Wait for this revision first.
    not_before: u64,
    /// Bookmarks are welcome.
    bookmarks: bool,
    /// Initial objects end with a marked bookmark.
    initial_mark: bool,
    timeout: Duration,
}

fn parse_options(api: &Api, resource: &Resource, query: &Query) -> Result<Options, ApiError> {
    let matching = query.get("resourceVersionMatch");
    let initial = query.find("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let field = "resourceVersionMatch";
    let mut errors = FieldErrors::new();
    if initial.is_some() && matching != "NotOlderThan" {
        errors.forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if !matching.is_empty() {
        if initial.is_none() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.forbidden(field, why);
        }
        if matching != "NotOlderThan" {
            errors.not_supported(field, matching, &["NotOlderThan"]);
        }
        if !query.get("continue").is_empty() {
            errors.forbidden(field, "resourceVersionMatch is forbidden when continue is provided");
        }
    }
    errors.into_result("meta.k8s.io", "ListOptions", "")?;
    let revision = parse_revision(resource, query.get("resourceVersion"))?;
    let start = match (initial, revision) {
        (Some(true), _) | (None, None | Some(0)) => Start::Current,
        (Some(false), None | Some(0)) => Start::After(api.storage.cache.revision()),
        (_, Some(n)) => Start::After(n),
    };
    let seconds = number(query, "timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let spread = TIMEOUT_MIN_SECS + ((api.config.random)() % u128::from(TIMEOUT_MIN_SECS)) as u64;
    Ok(Options {
        start,
        not_before: revision.unwrap_or(0),
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_mark: initial == Some(true) && query.flag("allowWatchBookmarks"),
        timeout: Duration::from_secs(seconds.unwrap_or(spread)),
    })
}

/// Answers a watch request.
pub async fn respond(
    api: &Arc<Api>,
    selection: Selection,
    form: Form,
    (query, place): (&Query, Place),
) -> Result<Response<Body>, ApiError> {
    let resource = selection.resource.clone();
    let options = parse_options(api, &resource, query)?;
    if options.not_before == 0 {
        api.storage.cache.wait_fresh().await?;
    }
    // One that begins in the future just waits, as upstream's.
    let needed = if options.start == Start::Current { options.not_before } else { 0 };
    let started = match api.storage.cache.wait_for(needed).await {
        Ok(()) => start(api, selection, options.start).await,
        Err(error) => Err(error),
    };
    let watcher = match started {
        Ok(watcher) => watcher,
        // A watch that cannot start says so in the stream, where clients look for it.
        Err(error) => {
            return Ok(respond::raw(
                200,
                form.watch_content_type(),
                respond::full(error_frame(form, &error)),
            ));
        }
    };
    let now = Instant::now();
    let feed = Feed {
        encoder: Encoder {
            resource,
            form,
            include: query.get("includeObject").to_string(),
            api: api.clone(),
            header_sent: false,
        },
        watcher,
        bookmarks: options.bookmarks,
        mark_initial: options.initial_mark,
        deadline: now + options.timeout,
        timer: Box::pin(tokio::time::sleep(BOOKMARK_EVERY.min(first_pause(options.timeout)))),
        last_mark: false,
        closing: api.closing(),
        done: false,
        _place: place,
    };
    let sent = api.metrics.watched(feed.encoder.resource.gvr());
    let frames = stream::unfold((feed, sent), |(mut feed, sent)| async move {
        let frame = feed.next().await?;
        sent.event(frame.len());
        Some((frame, (feed, sent)))
    });
    Ok(respond::raw(200, form.watch_content_type(), respond::streamed(frames)))
}

async fn start(api: &Api, selection: Selection, start: Start) -> Result<Watcher, ApiError> {
    let mut watcher = Watcher::start(&api.storage.cache, selection, start).await?;
    watcher.convert_initial(api).await?;
    Ok(watcher)
}

fn first_pause(timeout: Duration) -> Duration {
    timeout.checked_sub(LAST_BOOKMARK).unwrap_or(timeout)
}

/// A watch on its way to one client.
struct Feed {
    watcher: Watcher,
    encoder: Encoder,
    bookmarks: bool,
    mark_initial: bool,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    last_mark: bool,
    closing: tokio::sync::watch::Receiver<bool>,
    done: bool,
    _place: Place,
}

impl Feed {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.done {
            if self.mark_initial && self.watcher.initial_left() == 0 {
                self.mark_initial = false;
                return Some(self.encoder.bookmark(self.watcher.initial_revision(), true));
            }
            let seen = tokio::select! {
                biased;
                seen = self.watcher.next() => Some(seen),
                () = &mut self.timer => None,
                _ = self.closing.wait_for(|c| *c) => return None,
            };
            let Some(seen) = seen else {
                match self.tick() {
                    Some(frame) => return Some(frame),
                    None => continue,
                }
            };
            match seen {
                Ok(Some(seen)) => {
                    let encoder = &mut self.encoder;
                    let late = self.watcher.late();
                    match encoder.api.seen_in_served(&encoder.resource, late, seen).await {
                        Ok(Some(seen)) => return Some(encoder.event(&seen)),
                        Ok(None) => {}
                        Err(error) => {
                            self.done = true;
                            return Some(error_frame(encoder.form, &error));
                        }
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    self.done = true;
                    return Some(error_frame(self.encoder.form, &error));
                }
            }
        }
        None
    }

    /// Bookmarks and the end.
    fn tick(&mut self) -> Option<Bytes> {
        let now = Instant::now();
        if now >= self.deadline {
            self.done = true;
            return None;
        }
        let last = self.deadline.checked_sub(LAST_BOOKMARK).unwrap_or(self.deadline);
        let next = if self.last_mark || now >= last { self.deadline } else { last.min(now + BOOKMARK_EVERY) };
        self.last_mark = now >= last;
        self.timer.as_mut().reset(next);
        let revision = self.watcher.progress().filter(|_| self.bookmarks)?;
        Some(self.encoder.bookmark(revision, false))
    }
}

/// Makes frames of events, in the form and version that the client asked for.
struct Encoder {
    api: Arc<Api>,
    resource: Arc<Resource>,
    form: Form,
    include: String,
    header_sent: bool,
}

impl Encoder {
    fn event(&mut self, seen: &Seen) -> Bytes {
        if self.form == Form::Object && self.resource.is_storage_version() {
            return match &seen.change {
                Some(change) => change.frame(object_frame),
                None => object_frame(seen.kind, &seen.object),
            };
        }
        let object = match rules::serve(&self.resource, &seen.object) {
            Ok(object) => object,
            Err(error) => return error_frame(self.form, &error),
        };
        match self.form {
            Form::Object => object_frame(seen.kind, &object),
            Form::Table(version) => {
                // Columns come with the first event only.
                let columns = !std::mem::replace(&mut self.header_sent, true);
                let now = (self.api.config.clock)();
                let style = TableStyle { version, include: &self.include, columns, now };
                let metadata = json!({"resourceVersion": seen.object.revision.to_string()});
                match rules::table(&self.resource, &[object], metadata, style) {
                    Ok(table) => value_frame(self.form, type_of(seen.kind), &table),
                    Err(error) => error_frame(self.form, &error),
                }
            }
            Form::Partial(version) | Form::PartialProtobuf(version) => {
                value_frame(self.form, type_of(seen.kind), &rules::partial(&object, version))
            }
            Form::Protobuf => match object.value() {
                Ok(value) => value_frame(self.form, type_of(seen.kind), &value),
                Err(error) => error_frame(self.form, &ApiError::internal(error)),
            },
        }
    }

    fn bookmark(&self, revision: u64, end_of_initial: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Object | Form::Protobuf => {
                json!({"kind": &*self.resource.row.kind, "apiVersion": self.resource.row.api_version(), "metadata": metadata})
            }
            Form::Table(version) => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": null,
                "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata}}],
            }),
            Form::Partial(version) | Form::PartialProtobuf(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
            }
        };
        value_frame(self.form, "BOOKMARK", &object)
    }
}

fn type_of(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Added => "ADDED",
        EventKind::Modified => "MODIFIED",
        EventKind::Deleted => "DELETED",
        EventKind::Bookmark => "BOOKMARK",
    }
}

fn object_frame(kind: EventKind, object: &Object) -> Bytes {
    frame(type_of(kind), &object.raw)
}

fn value_frame(form: Form, kind: &str, value: &Value) -> Bytes {
    if form.is_protobuf() {
        return match machinery::protobuf::watch_frame(kind, value) {
            Ok(frame) => frame.into(),
            // A Status can always be written.
            Err(_) if kind == "ERROR" => Bytes::new(),
            Err(error) => error_frame(form, &error),
        };
    }
    frame(kind, &serde_json::to_vec(value).unwrap_or_default())
}

fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// An error as the last event of a stream.
fn error_frame(form: Form, error: &ApiError) -> Bytes {
    value_frame(form, "ERROR", &error.to_status())
}

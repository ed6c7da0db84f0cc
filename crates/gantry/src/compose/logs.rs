//! `gantry compose logs`: what the containers wrote, all of it or the end, and what they write from now on.
//!
//! Following asks again, for a little more than is new: lines of another node may come late. What was shown is known by
//! its event's id. The end of the reader (`| head`) ends it.

use super::aws::LOGS;
use super::{Project, task};
use crate::cost::flag;
use anyhow::{Context, Result};
use jiff::Timestamp;
use machinery::kinds::get::{int, list, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How late a line may come after a younger one and still be shown.
const LATE_MS: i64 = 30_000;
/// Events of a page (AWS's limit).
const PAGE: u64 = 10_000;
/// Letters of a task's id where there are several tasks.
const ID_SHOWN: usize = 8;

struct View {
    timestamps: bool,
    /// Are there several tasks?
    several: bool,
}

impl View {
    fn line(&self, event: &Value) -> String {
        // prefix/container/task
        let parts: Vec<&str> = text(event, "/logStreamName").split('/').collect();
        let (name, id) =
            (parts.first().copied().unwrap_or_default(), parts.last().copied().unwrap_or_default());
        let source = match self.several {
            true => format!("{name}-{}", id.get(..ID_SHOWN).unwrap_or(id)),
            false => name.to_string(),
        };
        let at = match self.timestamps {
            true => Timestamp::from_millisecond(time(event)).map(|t| format!("{t:.3} ")).unwrap_or_default(),
            false => String::new(),
        };
        format!("{source:<12} | {at}{}\n", text(event, "/message"))
    }
}

fn time(event: &Value) -> i64 {
    int(event, "/timestamp").unwrap_or(0)
}

/// Events that were not there before, and what is known then: ids by their times, as far back as lines may be late.
fn fresh(events: Vec<Value>, known: &mut BTreeMap<String, i64>) -> Vec<Value> {
    let mut new = events;
    new.retain(|e| known.insert(text(e, "/eventId").to_string(), time(e)).is_none());
    let newest = known.values().max().copied().unwrap_or(0);
    known.retain(|_, at| *at >= newest - LATE_MS);
    new
}

impl Project {
    /// Events of the project's group from a time on, oldest first; or its last so many.
    fn events(&self, from: i64, tail: Option<u64>) -> Result<Vec<Value>> {
        let mut input = json!({"logGroupName": task::log_group(&self.name), "startTime": from});
        if let Some(tail) = tail {
            input["startFromHead"] = json!(false);
            input["limit"] = json!(tail.clamp(1, PAGE));
        }
        let mut out = Vec::new();
        loop {
            let page = match self.client.call(LOGS, "FilterLogEvents", &input) {
                // Nothing was written yet.
                Err(error) if error.to_string().contains("ResourceNotFoundException") => break,
                page => page?,
            };
            out.extend(list(&page, "/events").iter().cloned());
            let enough = tail.is_some_and(|n| out.len() as u64 >= n);
            match page["nextToken"].as_str().filter(|_| !enough) {
                Some(next) => input["nextToken"] = json!(next),
                None => break,
            }
        }
        if let Some(tail) = tail {
            out.truncate(usize::try_from(tail).unwrap_or(usize::MAX));
            out.reverse();
        }
        Ok(out)
    }
}

/// Shows them. Flags: `--follow`, `--timestamps`, `--tail N`.
pub fn show(project: &Project, flags: &[String]) -> Result<()> {
    let tail = flag(flags, "tail").filter(|n| *n != "all").map(str::parse::<u64>).transpose();
    let tail = tail.context("--tail takes a number of lines, or all")?;
    let running = project.tasks()?.iter().filter(|t| t["desiredStatus"] == "RUNNING").count();
    let view = View { timestamps: flag(flags, "timestamps").is_some(), several: running > 1 };
    let mut known = BTreeMap::new();
    let mut events = project.events(0, tail)?;
    // Nothing older than what a tail shows first.
    let floor = match tail {
        None => 0,
        Some(_) => events.first().map_or_else(|| Timestamp::now().as_millisecond(), time),
    };
    loop {
        let newest = events.iter().map(time).chain(known.values().copied()).max().unwrap_or(0);
        let text: String = fresh(events, &mut known).iter().map(|e| view.line(e)).collect();
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err()
            || flag(flags, "follow").is_none()
        {
            return Ok(());
        }
        drop(out);
        std::thread::sleep(LOOK_AGAIN);
        events = project.events((newest - LATE_MS).max(floor), None)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, at: i64) -> Value {
        json!({"eventId": id, "timestamp": at, "logStreamName": "web/web/0123456789abcdef", "message": "m"})
    }

    #[test]
    fn every_event_is_shown_once() {
        let mut known = BTreeMap::new();
        let ids =
            |events: Vec<Value>| events.iter().map(|e| text(e, "/eventId").to_string()).collect::<Vec<_>>();
        assert_eq!(ids(fresh(vec![event("a", 1), event("b", 5)], &mut known)), ["a", "b"]);
        assert_eq!(ids(fresh(vec![event("a", 1), event("late", 2), event("b", 5)], &mut known)), ["late"]);
        assert_eq!(ids(fresh(vec![event("c", 5 + LATE_MS)], &mut known)), ["c"]);
        assert_eq!(known.keys().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn lines() {
        let line = |timestamps, several| View { timestamps, several }.line(&event("a", 1_700_000_000_123));
        assert_eq!(line(false, false), "web          | m\n");
        assert_eq!(line(true, true), "web-01234567 | 2023-11-14T22:13:20.123Z m\n");
    }
}

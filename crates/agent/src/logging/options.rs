//! What a container's `logConfiguration` asks for. Pure.

use super::Route;
use client::ObjectKey;
use ecs_model::annotation::TaskNote;
use regex::{Regex, RegexBuilder};

/// Compiled size of a multi-line pattern, so that none takes much memory.
const REGEX_BYTES_MAX: usize = 256 << 10;

/// A stream of a log group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// "" for the node's own.
    pub region: String,
    /// Its name.
    pub group: String,
    /// Its name.
    pub stream: String,
    /// Make the group where it is missing?
    pub create_group: bool,
}

/// A container of a task's pod.
pub(super) struct Subject<'a> {
    pub pod: &'a ObjectKey,
    pub note: &'a TaskNote,
    /// The pod's container.
    pub container: &'a str,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub(super) enum Driver {
    /// A log group; what begins an event of several lines.
    Group(Destination, Option<Regex>),
    /// A router in the same task.
    Router(Route),
}

/// The container's driver; `None` where the file is all. An error names what is wrong with the options.
pub(super) fn driver(subject: &Subject) -> Result<Option<Driver>, String> {
    let Some(container) = subject.note.containers.get(subject.container) else { return Ok(None) };
    let Some(log) = &container.log else { return Ok(None) };
    let name = if container.name.is_empty() { subject.container } else { container.name.as_str() };
    let option = |key: &str| log.options.get(key).map(String::as_str).unwrap_or_default();
    // The pod of a task is named by the task's id.
    let task_id = &*subject.pod.name;
    match log.driver.as_str() {
        "awslogs" => {
            let group = option("awslogs-group");
            if group.is_empty() {
                return Err("missing required option awslogs-group".into());
            }
            let stream = match (option("awslogs-stream"), option("awslogs-stream-prefix")) {
                ("", "") => format!("{name}/{task_id}"),
                ("", prefix) => format!("{prefix}/{name}/{task_id}"),
                (stream, _) => stream.to_string(),
            };
            let destination = Destination {
                region: option("awslogs-region").into(),
                group: group.into(),
                // Not allowed in a stream's name.
                stream: stream.replace([':', '*'], "_"),
                create_group: option("awslogs-create-group") == "true",
            };
            let grouping = grouping(option("awslogs-multiline-pattern"), option("awslogs-datetime-format"))?;
            Ok(Some(Driver::Group(destination, grouping)))
        }
        "awsfirelens" => {
            let mut routers = subject.note.containers.iter().filter(|(_, c)| !c.firelens.is_empty());
            let (router, by) = routers.next().ok_or("the task has no log router")?;
            // What Docker's driver adds; facts of the task are added by the router's own configuration.
            let facts = [("container_id", container.metadata_id.as_str()), ("container_name", name)];
            let by_socket = subject.note.task.network_mode == "host";
            Ok(Some(Driver::Router(Route {
                pod: subject.pod.clone(),
                router: router.clone(),
                tag: format!("{name}-firelens-{task_id}"),
                facts: facts.map(|(k, v)| (k.to_string(), v.to_string())).to_vec(),
                by_socket,
                // Fluentd's socket, other than its port, answers nothing.
                acknowledged: !by_socket || by.firelens != "fluentd",
                socket: None,
            })))
        }
        _ => Ok(None),
    }
}

/// What the first line of an event looks like.
fn grouping(pattern: &str, datetime: &str) -> Result<Option<Regex>, String> {
    let text = match (pattern, datetime) {
        ("", "") => return Ok(None),
        ("", datetime) => strftime(datetime),
        (pattern, "") => pattern.to_string(),
        _ => {
            return Err(
                "you cannot configure log opt awslogs-datetime-format and awslogs-multiline-pattern".into()
            );
        }
    };
    let built = RegexBuilder::new(&text).size_limit(REGEX_BYTES_MAX).build();
    built.map(Some).map_err(|_| format!("awslogs could not parse multiline pattern key {text:?}"))
}

/// A time format as a regular expression (Docker's table).
fn strftime(format: &str) -> String {
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            continue;
        }
        out.push_str(match characters.next() {
            Some('a') => "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)",
            Some('A') => "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)",
            Some('b') => "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)",
            Some('B') => {
                "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
            }
            Some('Y') => r"\d{4}",
            Some('y' | 'm' | 'd' | 'H' | 'I' | 'M' | 'S') => r"\d{2}",
            Some('j') => r"\d{3}",
            Some('w') => "[0-6]",
            Some('p') => "[AP]M",
            Some('L') => r"\.\d{3}",
            Some('f') => r"\d{1,9}",
            Some('z') => r"[+-]\d{4}",
            Some('Z') => "[A-Z]{1,4}T",
            Some('%') | None => "%",
            Some(_) => ".+",
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ecs_model::annotation::{ContainerNote, Log};

    fn note(driver: &str, options: &[(&str, &str)]) -> TaskNote {
        let options = options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let web = ContainerNote {
            name: "Web_1".into(),
            log: Some(Log { driver: driver.into(), options }),
            ..ContainerNote::default()
        };
        let router = ContainerNote { firelens: "fluentbit".into(), ..ContainerNote::default() };
        let containers = [("web".to_string(), web), ("router".to_string(), router)].into();
        TaskNote { version: 1, containers, ..TaskNote::default() }
    }

    fn of(note: &TaskNote) -> Result<Option<Driver>, String> {
        driver(&Subject { pod: &ObjectKey::new("ecs-prod", "0a"), note, container: "web" })
    }

    #[test]
    fn awslogs() {
        let options =
            [("awslogs-group", "/ecs/web"), ("awslogs-stream-prefix", "p"), ("awslogs-region", "r")];
        let Ok(Some(Driver::Group(to, None))) = of(&note("awslogs", &options)) else { panic!() };
        let expected = Destination {
            region: "r".into(),
            group: "/ecs/web".into(),
            stream: "p/Web_1/0a".into(),
            create_group: false,
        };
        assert_eq!(to, expected);
        assert!(of(&note("awslogs", &[])).unwrap_err().contains("awslogs-group"));
        let both =
            [("awslogs-group", "g"), ("awslogs-datetime-format", "%Y"), ("awslogs-multiline-pattern", "x")];
        assert!(of(&note("awslogs", &both)).is_err());
        assert!(of(&note("awslogs", &[("awslogs-group", "g"), ("awslogs-multiline-pattern", "(")])).is_err());
        assert!(of(&note("json-file", &[])).unwrap().is_none());
    }

    #[test]
    fn firelens_goes_to_the_router() {
        let Ok(Some(Driver::Router(route))) = of(&note("awsfirelens", &[])) else { panic!() };
        assert_eq!((route.router.as_str(), route.tag.as_str()), ("router", "Web_1-firelens-0a"));
    }

    #[test]
    fn time_formats() {
        let regex = grouping("", "[%b %d, %Y %H:%M:%S]").unwrap().unwrap();
        assert!(regex.is_match("[Nov 20, 2026 12:00:00] begins"));
        assert!(!regex.is_match("  at some.function(file:3)"));
    }
}

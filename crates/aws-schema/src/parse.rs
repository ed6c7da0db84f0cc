//! Reads a table. Its lines were written and read before by our own tasks, so a line that is not understood is a
//! broken build: it panics, and the test that loads every table fails.

use crate::types::{
    Error, Head, Kind, Location, Member, Operation, Service, Shape, ShapeId, Structure, TimeFormat,
};
use std::collections::BTreeMap;

/// Shapes by name.
type Names = BTreeMap<&'static str, ShapeId>;

/// One line: its words, looked at by key.
struct Line(Vec<&'static str>);

impl Line {
    fn of(line: &'static str) -> Line {
        Line(line.split_ascii_whitespace().collect())
    }

    fn word(&self, at: usize) -> &'static str {
        self.0.get(at).copied().unwrap_or_else(|| panic!("too short: {:?}", self.0))
    }

    fn value(&self, key: &str) -> &'static str {
        self.0.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.value(key).parse().ok()
    }
}

/// The service of a table without comments.
pub(crate) fn table(head: &'static Head, text: &'static str) -> Service {
    let kinds = |line: &&str| !matches!(line.split(' ').next(), Some("" | "service" | "op" | "later"));
    let mut names: Vec<&str> = text.lines().filter(kinds).map(|l| Line::of(l).word(1)).collect();
    names.sort_unstable();
    let ids: Names = (0..).zip(&names).map(|(at, name)| (*name, ShapeId(at))).collect();
    let (mut operations, mut shapes): (Vec<Operation>, Vec<Shape>) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words = Line::of(line);
        match line.split(' ').next().unwrap_or_default() {
            "service" => {}
            "later" => operations.extend(words.0.iter().skip(1).map(|name| later(name))),
            "op" => operations.push(operation(&words, &ids)),
            "" => {
                let Some(Shape { kind: Kind::Structure(structure), .. }) = shapes.last_mut() else {
                    panic!("a member of nothing: {line}")
                };
                structure.members.push(member(&words, &ids));
            }
            kind => shapes.push(shape(kind, line, &words, &ids)),
        }
    }
    operations.sort_by_key(|o| o.name);
    shapes.sort_by_key(|s| s.name);
    for shape in &mut shapes {
        if let Kind::Structure(structure) = &mut shape.kind {
            structure.members.sort_by_key(|m| m.name);
            structure.members.shrink_to_fit();
        }
    }
    Service { head, operations, shapes }
}

fn id(ids: &Names, name: &str) -> ShapeId {
    *ids.get(name).unwrap_or_else(|| panic!("no shape {name}"))
}

fn later(name: &'static str) -> Operation {
    Operation {
        name,
        method: "POST",
        path: "/",
        status: 200,
        input: None,
        output: None,
        result_wrapper: "",
        errors: Vec::new(),
        host_prefix: "",
        unsigned: false,
        modelled: false,
    }
}

fn operation(line: &Line, ids: &Names) -> Operation {
    let (method, path) = line.value("http").split_once(',').unwrap_or(("POST", "/"));
    let shape = |key: &str| Some(line.value(key)).filter(|v| !v.is_empty()).map(|name| id(ids, name));
    let errors = line.value("err").split(',').filter(|e| !e.is_empty());
    Operation {
        method,
        path,
        status: line.value("status").parse().unwrap_or(200),
        input: shape("in"),
        output: shape("out"),
        result_wrapper: line.value("wrap"),
        errors: errors.map(|name| id(ids, name)).collect(),
        host_prefix: line.value("host"),
        unsigned: line.flag("unsigned"),
        modelled: !line.flag("later"),
        ..later(line.word(1))
    }
}

fn member(line: &Line, ids: &Names) -> Member {
    let name = line.word(0);
    let location = match line.value("at") {
        "" => Location::Body,
        "uri" => Location::Uri,
        "querystring" => Location::Query,
        "header" => Location::Header,
        "headers" => Location::Headers,
        "statusCode" => Location::Status,
        other => panic!("location {other}"),
    };
    Member {
        name,
        shape: id(ids, line.word(1)),
        required: line.flag("!"),
        location,
        wire: Some(line.value("name")).filter(|w| !w.is_empty()).unwrap_or(name),
        query: line.value("query"),
        token: line.flag("token"),
        payload: line.flag("payload"),
    }
}

fn structure(line: &Line) -> Structure {
    let modelled = Some(line.value("error")).filter(|e| !e.is_empty()).map(|facts| {
        let mut parts = facts.split(',');
        let (code, status, sender) = (parts.next(), parts.next(), parts.next());
        let code = code.filter(|c| !c.is_empty()).unwrap_or(line.word(1));
        let status = status.and_then(|s| s.parse().ok()).unwrap_or(400);
        Error { code, status, sender: sender == Some("sender") || status < 500 }
    });
    let plain = line.flag("exception").then(|| {
        let fault = line.flag("fault");
        Error { code: line.word(1), status: if fault { 500 } else { 400 }, sender: !fault }
    });
    Structure {
        members: Vec::new(),
        error: modelled.or(plain),
        union: line.flag("union"),
        document: line.flag("document"),
        event_stream: line.flag("eventstream"),
        payload: line.value("payload"),
    }
}

fn text_kind(line: &'static str, words: &Line) -> Kind {
    let pattern = line.split_once(" pattern=").map_or("", |(_, pattern)| pattern);
    let values = words.value("enum").split(',').filter(|v| !v.is_empty());
    Kind::String { pattern, values: values.map(unescape).collect() }
}

fn unescape(text: &'static str) -> &'static str {
    match text.contains('%') {
        false => text,
        // A handful of values have blanks in them.
        true => text.replace("%20", " ").replace("%2C", ",").replace("%25", "%").leak(),
    }
}

fn shape(kind: &str, line: &'static str, words: &Line, ids: &Names) -> Shape {
    let kind = match kind {
        "structure" => Kind::Structure(structure(words)),
        "list" => {
            Kind::List { member: id(ids, words.word(2)), item: words.value("item"), flat: words.flag("flat") }
        }
        "map" => Kind::Map {
            key: id(ids, words.word(2)),
            value: id(ids, words.word(3)),
            names: (words.value("keyname"), words.value("valuename")),
            flat: words.flag("flat"),
        },
        "string" => text_kind(line, words),
        "integer" => Kind::Integer,
        "long" => Kind::Long,
        "float" => Kind::Float,
        "double" => Kind::Double,
        "boolean" => Kind::Boolean,
        "timestamp" => Kind::Timestamp(match words.value("format") {
            "" => TimeFormat::Default,
            "iso8601" => TimeFormat::Iso8601,
            "unixTimestamp" => TimeFormat::Unix,
            "rfc822" => TimeFormat::Rfc822,
            other => panic!("timestamp format {other}"),
        }),
        "blob" => Kind::Blob,
        other => panic!("kind {other}"),
    };
    Shape { name: words.word(1), min: words.number("min"), max: words.number("max"), kind }
}

//! Event patterns: which events does a rule want? Pure.
//!
//! A pattern names fields; a field's list says which values will do, as values or as tests (`prefix`, `suffix`,
//! `equals-ignore-case`, `wildcard`, `anything-but`, `numeric`, `exists`, `cidr`); `$or` lists alternatives. A list in
//! an event will do if one item will; fields below a list of objects must fit in the same object.

use serde_json::{Map, Value};
use std::net::IpAddr;

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Event pattern is not valid. Reason: {0}")]
pub struct PatternError(String);

fn bad<T>(why: impl Into<String>) -> Result<T, PatternError> {
    Err(PatternError(why.into()))
}

/// A pattern, ready to match.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern(Fields);

#[derive(Clone, Debug, PartialEq)]
struct Fields {
    all: Vec<(String, Wanted)>,
    /// Each list's alternatives: one must fit.
    any: Vec<Vec<Fields>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Fields(Fields),
    Tests(Vec<Test>),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Equal(Value),
    Text(How, String),
    AnythingBut(Vec<Test>),
    Numeric(Vec<(Order, f64)>),
    Exists(bool),
    Cidr(IpAddr, u8),
}

/// How a text is compared; the `…I` ones without case (their text is in lower case).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Prefix,
    PrefixI,
    Suffix,
    SuffixI,
    EqualI,
    Wildcard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is none, with the reason in AWS's manner.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return bad(error.to_string()),
        };
        match value {
            Value::Object(map) if map.is_empty() => bad("Empty objects are not allowed"),
            Value::Object(map) => Ok(Pattern(fields(&map)?)),
            _ => bad("Filter is not an object"),
        }
    }

    /// Does it want this event?
    pub fn matches(&self, event: &Value) -> bool {
        self.0.fit(Some(event))
    }
}

fn fields(map: &Map<String, Value>) -> Result<Fields, PatternError> {
    let mut out = Fields { all: Vec::new(), any: Vec::new() };
    for (name, value) in map {
        match value {
            Value::Array(choices) if name == "$or" && choices.iter().all(Value::is_object) => {
                let choices = choices.iter().filter_map(Value::as_object).map(fields);
                out.any.push(choices.collect::<Result<_, _>>()?);
            }
            Value::Object(inner) if inner.is_empty() => return bad("Empty objects are not allowed"),
            Value::Object(inner) => out.all.push((name.clone(), Wanted::Fields(fields(inner)?))),
            Value::Array(tests) if tests.is_empty() => return bad("Empty arrays are not allowed"),
            Value::Array(tests) => {
                let tests = tests.iter().map(test).collect::<Result<_, _>>()?;
                out.all.push((name.clone(), Wanted::Tests(tests)));
            }
            _ => return bad(format!("\"{name}\" must be an object or an array")),
        }
    }
    Ok(out)
}

fn test(value: &Value) -> Result<Test, PatternError> {
    let Value::Object(map) = value else {
        return match value {
            Value::Array(_) => bad("Match value must be String, number, true, false, or null"),
            plain => Ok(Test::Equal(plain.clone())),
        };
    };
    let mut entries = map.iter();
    let (Some((name, argument)), None) = (entries.next(), entries.next()) else {
        return bad("Only one key allowed in match expression");
    };
    match name.as_str() {
        "exists" => match argument.as_bool() {
            Some(wanted) => Ok(Test::Exists(wanted)),
            None => bad("exists match pattern must be either true or false."),
        },
        "numeric" => numeric(argument),
        "cidr" => cidr(argument),
        "anything-but" => anything_but(argument),
        name => texts(name, argument),
    }
}

/// The tests about one text.
fn texts(name: &str, argument: &Value) -> Result<Test, PatternError> {
    if let (Some(inner), Some(how)) = (
        argument.get("equals-ignore-case").and_then(Value::as_str),
        match name {
            "prefix" => Some(How::PrefixI),
            "suffix" => Some(How::SuffixI),
            _ => None,
        },
    ) {
        return Ok(Test::Text(how, inner.to_lowercase()));
    }
    let how = match name {
        "prefix" => How::Prefix,
        "suffix" => How::Suffix,
        "equals-ignore-case" => How::EqualI,
        "wildcard" => How::Wildcard,
        other => return bad(format!("Unrecognized match type {other}")),
    };
    match argument.as_str() {
        None => bad(format!("{name} match pattern must be a string")),
        Some(text) if how == How::Wildcard && text.contains("**") => {
            bad("Consecutive wildcard characters at pos 0")
        }
        Some(text) if how == How::EqualI => Ok(Test::Text(how, text.to_lowercase())),
        Some(text) => Ok(Test::Text(how, text.to_string())),
    }
}

fn anything_but(argument: &Value) -> Result<Test, PatternError> {
    let listed = |value: &Value| -> Vec<Value> { value.as_array().cloned().unwrap_or(vec![value.clone()]) };
    let Value::Object(inner) = argument else {
        let values = listed(argument);
        if values.is_empty() || values.iter().any(|v| !(v.is_string() || v.is_number())) {
            return bad("Inside anything but list, start|null|boolean is not supported.");
        }
        return Ok(Test::AnythingBut(values.into_iter().map(Test::Equal).collect()));
    };
    let mut tests = Vec::new();
    for (name, value) in inner {
        if !["prefix", "suffix", "equals-ignore-case", "wildcard"].contains(&name.as_str()) {
            return bad(format!("Unsupported anything-but pattern: {name}"));
        }
        for value in listed(value) {
            tests.push(texts(name, &value)?);
        }
    }
    if tests.is_empty() { bad("Invalid anything-but pattern") } else { Ok(Test::AnythingBut(tests)) }
}

fn numeric(argument: &Value) -> Result<Test, PatternError> {
    let list = argument.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() || !list.len().is_multiple_of(2) {
        return bad("Invalid member in numeric match");
    }
    let mut out = Vec::new();
    for pair in list.chunks(2) {
        let order = match pair[0].as_str() {
            Some("=") => Order::Equal,
            Some("<") => Order::Less,
            Some("<=") => Order::LessEqual,
            Some(">") => Order::Greater,
            Some(">=") => Order::GreaterEqual,
            _ => return bad("Unrecognized numeric range operator"),
        };
        let Some(number) = pair[1].as_f64() else { return bad("Value of numeric must be numeric") };
        out.push((order, number));
    }
    Ok(Test::Numeric(out))
}

fn cidr(argument: &Value) -> Result<Test, PatternError> {
    let text = argument.as_str().unwrap_or_default();
    let (ip, bits) = text.split_once('/').unwrap_or((text, ""));
    let Ok(ip) = ip.parse::<IpAddr>() else { return bad("Malformed CIDR, one '/' required") };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    match bits.parse::<u8>().ok().filter(|b| *b <= most) {
        Some(bits) => Ok(Test::Cidr(ip, bits)),
        None => bad("Malformed CIDR, one '/' required"),
    }
}

impl Fields {
    fn fit(&self, value: Option<&Value>) -> bool {
        if let Some(Value::Array(items)) = value {
            return items.iter().any(|item| self.fit(Some(item)));
        }
        let all = self.all.iter().all(|(name, wanted)| {
            let found = value.and_then(|v| v.get(name));
            match wanted {
                Wanted::Fields(fields) => fields.fit(found),
                Wanted::Tests(tests) => tests.iter().any(|t| t.passes(found)),
            }
        });
        all && self.any.iter().all(|choices| choices.iter().any(|c| c.fit(value)))
    }
}

impl Test {
    fn passes(&self, found: Option<&Value>) -> bool {
        match (self, found) {
            (Test::Exists(wanted), found) => *wanted == found.is_some_and(|v| !v.is_object()),
            (_, None) => false,
            (test, Some(Value::Array(items))) => items.iter().any(|item| test.passes(Some(item))),
            (_, Some(Value::Object(_))) => false,
            (Test::Equal(wanted), Some(value)) => same(wanted, value),
            (Test::AnythingBut(tests), found) => !tests.iter().any(|t| t.passes(found)),
            (Test::Text(how, wanted), Some(value)) => {
                value.as_str().is_some_and(|text| fits(*how, wanted, text))
            }
            (Test::Numeric(bounds), Some(value)) => value.as_f64().is_some_and(|n| {
                bounds.iter().all(|(order, bound)| match order {
                    Order::Equal => n == *bound,
                    Order::Less => n < *bound,
                    Order::LessEqual => n <= *bound,
                    Order::Greater => n > *bound,
                    Order::GreaterEqual => n >= *bound,
                })
            }),
            (Test::Cidr(net, bits), Some(value)) => {
                let ip = value.as_str().and_then(|t| t.parse::<IpAddr>().ok());
                ip.is_some_and(|ip| within(*net, *bits, ip))
            }
        }
    }
}

fn same(wanted: &Value, value: &Value) -> bool {
    match (wanted.as_f64(), value.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => wanted == value,
    }
}

fn fits(how: How, wanted: &str, text: &str) -> bool {
    match how {
        How::Prefix => text.starts_with(wanted),
        How::Suffix => text.ends_with(wanted),
        How::PrefixI => text.to_lowercase().starts_with(wanted),
        How::SuffixI => text.to_lowercase().ends_with(wanted),
        How::EqualI => text.to_lowercase() == wanted,
        How::Wildcard => wild(wanted, text),
    }
}

/// `*` stands for any text.
fn wild(wanted: &str, text: &str) -> bool {
    let Some((first, rest)) = wanted.split_once('*') else { return wanted == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

fn within(net: IpAddr, bits: u8, ip: IpAddr) -> bool {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((a, kind), (b, other)) = (wide(net), wide(ip));
    let shift = 128 - u32::from(bits);
    kind == other && a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(pattern: Value, event: &Value) -> bool {
        Pattern::parse(&pattern.to_string()).unwrap().matches(event)
    }

    #[test]
    fn each_test_wants_and_refuses() {
        let event = json!({"source": "aws.ecs", "resources": ["arn:a", "arn:b"], "detail": {
            "lastStatus": "STOPPED", "n": 7, "ip": "10.1.2.3", "none": null, "flag": true,
            "containers": [{"name": "web", "exitCode": 0}, {"name": "db", "exitCode": 3}]}});
        let yes_no = [
            (json!({"source": ["aws.ecs", "x"]}), json!({"source": ["aws.ec2"]})),
            (json!({"resources": ["arn:b"]}), json!({"resources": ["arn:c"]})),
            (
                json!({"detail": {"lastStatus": [{"prefix": "STOP"}]}}),
                json!({"detail": {"lastStatus": [{"prefix": "stop"}]}}),
            ),
            (
                json!({"detail": {"lastStatus": [{"prefix": {"equals-ignore-case": "stop"}}]}}),
                json!({"detail": {"lastStatus": [{"suffix": {"equals-ignore-case": "stop"}}]}}),
            ),
            (json!({"source": [{"suffix": "ecs"}]}), json!({"source": [{"suffix": "ec2"}]})),
            (
                json!({"detail": {"lastStatus": [{"equals-ignore-case": "Stopped"}]}}),
                json!({"detail": {"n": [{"equals-ignore-case": "7"}]}}),
            ),
            (
                json!({"detail": {"lastStatus": [{"anything-but": ["RUNNING"]}]}}),
                json!({"detail": {"lastStatus": [{"anything-but": "STOPPED"}]}}),
            ),
            (
                json!({"detail": {"lastStatus": [{"anything-but": {"prefix": "RUN"}}]}}),
                json!({"detail": {"lastStatus": [{"anything-but": {"prefix": ["X", "ST"]}}]}}),
            ),
            (
                json!({"detail": {"n": [{"numeric": [">", 0, "<=", 7]}]}}),
                json!({"detail": {"n": [{"numeric": [">", 7]}]}}),
            ),
            (json!({"detail": {"n": [7.0]}}), json!({"detail": {"n": ["7"]}})),
            (json!({"detail": {"n": [{"exists": true}]}}), json!({"detail": {"x": [{"exists": true}]}})),
            (json!({"detail": {"x": [{"exists": false}]}}), json!({"detail": {"n": [{"exists": false}]}})),
            (json!({"other": {"x": [{"exists": false}]}}), json!({"other": {"x": [{"anything-but": "a"}]}})),
            (
                json!({"detail": {"ip": [{"cidr": "10.0.0.0/8"}]}}),
                json!({"detail": {"ip": [{"cidr": "10.2.0.0/16"}]}}),
            ),
            (json!({"source": [{"wildcard": "a*.*cs"}]}), json!({"source": [{"wildcard": "a*x*cs"}]})),
            (json!({"detail": {"none": [null]}}), json!({"detail": {"flag": [null]}})),
            (
                json!({"detail": {"containers": {"name": ["db"], "exitCode": [{"anything-but": 0}]}}}),
                json!({"detail": {"containers": {"name": ["web"], "exitCode": [3]}}}),
            ),
            (
                json!({"source": ["aws.ecs"], "$or": [{"x": ["y"]}, {"detail": {"n": [7]}}]}),
                json!({"$or": [{"x": ["y"]}, {"detail": {"n": [8]}}]}),
            ),
        ];
        for (yes, no) in yes_no {
            assert!(matches(yes.clone(), &event), "{yes}");
            assert!(!matches(no.clone(), &event), "{no}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_a_reason() {
        for (text, words) in [
            ("{", "EOF"),
            ("[]", "not an object"),
            ("{}", "Empty objects"),
            (r#"{"source": "aws.ecs"}"#, "\"source\" must be an object or an array"),
            (r#"{"source": []}"#, "Empty arrays"),
            (r#"{"source": [{"starts": "a"}]}"#, "Unrecognized match type starts"),
            (r#"{"source": [{"prefix": 1}]}"#, "must be a string"),
            (r#"{"n": [{"numeric": ["~", 1]}]}"#, "operator"),
            (r#"{"n": [{"cidr": "1.2.3.4/40"}]}"#, "CIDR"),
            (r#"{"n": [{"exists": "yes"}]}"#, "exists"),
        ] {
            let error = Pattern::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("Event pattern is not valid. Reason: "), "{error}");
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        /// The twin: every way to split the text.
        #[test]
        fn wildcards_match_as_the_slow_way_does(wanted in "[ab*]{0,6}", text in "[ab]{0,8}") {
            fn slow(wanted: &[u8], text: &[u8]) -> bool {
                match wanted.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|n| slow(rest, &text[n..])),
                    Some((first, rest)) => text.first() == Some(first) && slow(rest, &text[1..]),
                }
            }
            prop_assert_eq!(wild(&wanted, &text), slow(wanted.as_bytes(), text.as_bytes()));
        }
    }
}

//! Label selectors: the query string form and the `metav1.LabelSelector` form.
//!
//! The parser follows upstream's grammar token by token, so that its complaints are the same.

use super::SelectorError;
use crate::name;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// An operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `key in (…)`
    In,
    /// `key notin (…)`
    NotIn,
    /// `key=value` or `key==value`
    Equals,
    /// `key!=value`
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>n`
    GreaterThan,
    /// `key<n`
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Operator.
    pub op: Op,
    /// Values, sorted; empty for (not) exists.
    pub values: BTreeSet<String>,
}

/// A conjunction of requirements; the default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Sorted by key.
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

const BINARY_OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

impl Requirement {
    /// Checks key, operator and values; the complaint names `path` ("<nil>" for the query form).
    fn checked(key: &str, op: Op, values: BTreeSet<String>) -> Result<Self, SelectorError> {
        check_key(key)?;
        let shown = || format!("{:?}", values.iter().collect::<Vec<_>>());
        let count_words = match op {
            Op::In | Op::NotIn if values.is_empty() => {
                "for 'in', 'notin' operators, values set can't be empty"
            }
            Op::Equals | Op::NotEquals if values.len() != 1 => {
                "exact-match compatibility requires one single value"
            }
            Op::Exists | Op::DoesNotExist if !values.is_empty() => {
                "values set must be empty for exists and does not exist"
            }
            Op::GreaterThan | Op::LessThan if values.len() != 1 => {
                "for 'Gt', 'Lt' operators, exactly one value is required"
            }
            _ => "",
        };
        if !count_words.is_empty() {
            return Err(SelectorError(format!("values: Invalid value: {}: {count_words}", shown())));
        }
        for (i, value) in values.iter().enumerate() {
            if matches!(op, Op::GreaterThan | Op::LessThan) && value.parse::<i64>().is_err() {
                return Err(SelectorError(format!(
                    "values[{i}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                )));
            }
            let errors = name::label_value(value);
            if !errors.is_empty() {
                let words = errors.join("; ");
                return Err(SelectorError(format!("values[{i}][{key}]: Invalid value: {value:?}: {words}")));
            }
        }
        Ok(Requirement { key: key.into(), op, values })
    }

    /// Does a label with this value (absent: `None`) satisfy the requirement?
    pub fn matches(&self, value: Option<&str>) -> bool {
        let bound = || self.values.first().and_then(|v| v.parse::<i64>().ok());
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self.op {
            Op::In | Op::Equals => value.is_some_and(|v| self.values.contains(v)),
            Op::NotIn | Op::NotEquals => !value.is_some_and(|v| self.values.contains(v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan => matches!((number(), bound()), (Some(n), Some(b)) if n > b),
            Op::LessThan => matches!((number(), bound()), (Some(n), Some(b)) if n < b),
        }
    }
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    let errors = name::qualified_name(key);
    if errors.is_empty() {
        return Ok(());
    }
    Err(SelectorError(format!("<nil>: Invalid value: {key:?}: {}", errors.join("; "))))
}

impl LabelSelector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing.
    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Every one of these labels with exactly this value (as a Service's or ReplicationController's
    /// selector): not checked, empty selects everything.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels.into_iter().map(|(k, v)| Requirement {
            key: k.into(),
            op: Op::Equals,
            values: [v.to_string()].into(),
        });
        Self::sorted(requirements.collect())
    }

    fn sorted(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self::sorted(Parser { tokens: tokens(text), at: 0 }.parse()?))
    }

    /// From `metav1.LabelSelector` JSON: absent selects nothing, `{}` everything.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_string();
            requirements.push(Requirement::checked(key, Op::Equals, [value].into())?);
        }
        for row in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
            let op = match text("operator") {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = row.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(|v| v.as_str().map(String::from)).collect();
            requirements.push(Requirement::checked(text("key"), op, values)?);
        }
        Ok(Self::sorted(requirements))
    }

    /// Does it select everything?
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Do these labels match?
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// Do the labels of this JSON object (`metadata.labels`; absent is empty) match?
    pub fn matches_json(&self, labels: Option<&Value>) -> bool {
        self.matches_by(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Matches against any lookup.
    pub fn matches_by<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }
}

impl std::fmt::Display for LabelSelector {
    /// The query form (sorted by key); a selector of nothing prints as empty, as upstream's does.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            f.write_str(if i > 0 { "," } else { "" })?;
            let list = || r.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match r.op {
                Op::In => write!(f, "{} in ({})", r.key, list())?,
                Op::NotIn => write!(f, "{} notin ({})", r.key, list())?,
                Op::Equals => write!(f, "{}={}", r.key, list())?,
                Op::NotEquals => write!(f, "{}!={}", r.key, list())?,
                Op::Exists => f.write_str(&r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::GreaterThan => write!(f, "{}>{}", r.key, list())?,
                Op::LessThan => write!(f, "{}<{}", r.key, list())?,
            }
        }
        Ok(())
    }
}

const SYMBOLS: &[u8] = b"=!(),><";

/// Tokens as slices; the end of the text is the empty token.
fn tokens(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let space = |b: u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        if space(bytes[i]) {
            i += 1;
            continue;
        }
        let start = i;
        i += 1;
        if SYMBOLS.contains(&bytes[start]) {
            let two = text.get(start..start + 2).unwrap_or_default();
            i = if matches!(two, "==" | "!=") { start + 2 } else { i };
        } else {
            while i < bytes.len() && !space(bytes[i]) && !SYMBOLS.contains(&bytes[i]) {
                i += 1;
            }
        }
        out.push(&text[start..i]);
    }
    out
}

fn is_identifier(token: &str) -> bool {
    !token.is_empty() && !SYMBOLS.contains(&token.as_bytes()[0])
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

fn found<T>(token: &str, expected: &str) -> Result<T, SelectorError> {
    Err(SelectorError(format!("found '{token}', expected: {expected}")))
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut out = Vec::new();
        loop {
            let token = self.peek();
            if token.is_empty() {
                return Ok(out);
            }
            if !is_identifier(token) && token != "!" {
                return found(token, "!, identifier, or 'end of string'");
            }
            let row = self.requirement();
            out.push(row.map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?);
            match self.next() {
                "" => return Ok(out),
                "," => {
                    let after = self.peek();
                    if !is_identifier(after) && after != "!" {
                        return found(after, "identifier after ','");
                    }
                }
                other => return found(other, "',' or 'end of string'"),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = self.peek() == "!";
        if negated {
            self.at += 1;
        }
        let key = self.next();
        if !is_identifier(key) {
            return found(key, "identifier");
        }
        check_key(key)?;
        if negated {
            return Requirement::checked(key, Op::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), "" | ",") {
            return Requirement::checked(key, Op::Exists, BTreeSet::new());
        }
        let op = match self.next() {
            "in" => Op::In,
            "notin" => Op::NotIn,
            "=" | "==" => Op::Equals,
            "!=" => Op::NotEquals,
            ">" => Op::GreaterThan,
            "<" => Op::LessThan,
            other => return found(other, BINARY_OPERATORS),
        };
        let values = match op {
            Op::In | Op::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::checked(key, op, values)
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if matches!(self.peek(), "" | ",") {
            return Ok([String::new()].into());
        }
        let token = self.next();
        if is_identifier(token) { Ok([token.to_string()].into()) } else { found(token, "identifier") }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let open = self.next();
        if open != "(" {
            return Err(SelectorError(format!("found '{open}' expected: '('")));
        }
        match self.peek() {
            ")" => {
                self.at += 1;
                return Ok([String::new()].into());
            }
            token if is_identifier(token) || token == "," => {}
            token => return found(token, "',', ')' or identifier"),
        }
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                "," => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek() {
                        ")" => {
                            values.insert(String::new());
                            break;
                        }
                        "," => {
                            self.at += 1;
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                token if is_identifier(token) => {
                    values.insert(token.to_string());
                    match self.peek() {
                        "," => {}
                        ")" => break,
                        other => return found(other, "',' or ')'"),
                    }
                }
                token => return found(token, "',', or identifier"),
            }
        }
        self.at += 1; // the closing parenthesis
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn matches_as_upstream() {
        for (selector, labels_text, expected) in [
            ("", "", true),
            ("x=y", "x=y", true),
            ("x==y,z=w", "x=y,z=w", true),
            ("x!=y,z!=w", "x=z,z=a", true),
            ("notin=in", "notin=in", true),
            ("x in (a,b)", "x=b", true),
            ("x in (a,b)", "y=b", false),
            ("x notin (a,b)", "", true),
            ("x", "x=", true),
            ("!x", "x=1", false),
            ("x>1", "x=2", true),
            ("x<1", "x=2", false),
            ("x>1", "x=a", false),
            ("x=", "x=", true),
            ("x in ()", "x=", true),
            ("x in (,a)", "x=", true),
            (" a = b , c ", "a=b,c=1", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&labels(labels_text)), expected, "{selector} on {labels_text}");
        }
    }

    #[test]
    fn words_of_errors() {
        for (text, words) in [
            ("x=a||y=b", "<values"),
            ("x,,y", "found ',', expected: identifier after ','"),
            ("x=,z= ,,", "found ',', expected: identifier after ','"),
            ("x in a", "unable to parse requirement: found 'a' expected: '('"),
            ("x in (a", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            let error = LabelSelector::parse(text).unwrap_err().0;
            if words != "<values" {
                assert_eq!(error, words, "{text}");
            }
        }
        let error = LabelSelector::parse("-a=b").unwrap_err().0;
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must")
        );
    }

    #[test]
    fn json_form() {
        assert!(!LabelSelector::from_json(None).unwrap().matches(&labels("a=b")));
        assert!(LabelSelector::from_json(Some(&json!({}))).unwrap().is_everything());
        let s = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]}, {"key": "d", "operator": "DoesNotExist"}]});
        let s = LabelSelector::from_json(Some(&s)).unwrap();
        assert!(s.matches(&labels("a=b,c=x")));
        assert!(!s.matches(&labels("a=b,c=x,d=1")));
        assert_eq!(s.to_string(), "a=b,c in (x,y),!d");
        let bad = json!({"matchExpressions": [{"key": "c", "operator": "Foo"}]});
        assert_eq!(
            LabelSelector::from_json(Some(&bad)).unwrap_err().0,
            "\"Foo\" is not a valid label selector operator"
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "[ab!=(),<>1 \u{e4}]{0,24}") {
            if let Ok(s) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&s.to_string()).unwrap();
                prop_assert_eq!(again, s);
            }
        }

        /// Dumb twin: `in` is "or" of equals, `notin` is "and" of not-equals.
        #[test]
        fn sets_are_lists_of_equals(values in proptest::collection::btree_set("[a-c]{0,2}", 1..4), has in proptest::option::of("[a-c]{0,2}")) {
            let list = values.iter().cloned().collect::<Vec<_>>().join(",");
            let labels: BTreeMap<String, String> = has.iter().map(|v| ("k".to_string(), v.clone())).collect();
            let parse = |text: String| LabelSelector::parse(&text).unwrap().matches(&labels);
            prop_assert_eq!(parse(format!("k in ({list})")), values.iter().any(|v| parse(format!("k={v}"))));
            prop_assert_eq!(parse(format!("k notin ({list})")), values.iter().all(|v| parse(format!("k!={v}"))));
        }
    }
}

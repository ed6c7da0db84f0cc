//! The cluster query language: which container instances an expression selects.
//!
//! `attribute:ecs.instance-type =~ t3.* and task:group != service:web`. Subjects: `attribute:<name>`, `agentConnected`,
//! `agentVersion`, `ec2InstanceId`, `registeredAt`, `runningTasksCount`, `task:group`. Operators: `== != > >= < <=`,
//! `exists`, `!exists`, `in`, `!in`, `=~`, `!~` (and their long names); `and or not` and brackets. A subject that an
//! instance has not makes every comparison false, but for the negative ones. Bounded: length and depth.

use crate::refusal::refuse_if;
use machinery::time;
use regex::Regex;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Longest expression, as in ECS.
const LENGTH_MAX: usize = 2000;
/// Deepest nesting.
const DEPTH_MAX: usize = 32;

/// Why an expression cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Longer than ECS takes.
    #[error("expression is longer than {LENGTH_MAX} characters")]
    TooLong,
    /// Too many brackets within brackets.
    #[error("expression is nested too deeply")]
    TooDeep,
    /// Ends too early.
    #[error("unexpected end of expression")]
    End,
    /// Something else was expected here.
    #[error("unexpected '{0}'")]
    Unexpected(String),
    /// No such subject.
    #[error("unknown subject '{0}'")]
    Subject(String),
    /// No regular expression.
    #[error("invalid pattern '{0}'")]
    Pattern(String),
}

/// What an expression asks of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Attributes of its own; "" for one without a value.
    pub attributes: BTreeMap<String, String>,
    /// Attributes without a value that it has in common with all others, not copied for each.
    pub common: Option<&'static BTreeSet<String>>,
    /// Is its agent there?
    pub agent_connected: bool,
    /// The agent's version.
    pub agent_version: String,
    /// `i-…`.
    pub ec2_instance_id: String,
    /// RFC 3339.
    pub registered_at: String,
    /// Tasks that run on it.
    pub running_tasks: u64,
    /// Groups of the tasks on it.
    pub groups: BTreeSet<String>,
}

impl Facts {
    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let shared = || self.common.is_some_and(|c| c.contains(name)).then_some("");
        self.attributes.get(name).map(String::as_str).or_else(shared)
    }
}

/// A read expression.
#[derive(Clone, Debug)]
pub enum Query {
    /// Every one.
    All(Vec<Query>),
    /// At least one.
    Any(Vec<Query>),
    /// Not that.
    Not(Box<Query>),
    /// One comparison.
    Test(Subject, Test),
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `attribute:<name>`.
    Attribute(String),
    /// `agentConnected`.
    AgentConnected,
    /// `agentVersion`.
    AgentVersion,
    /// `ec2InstanceId`.
    InstanceId,
    /// `registeredAt`.
    RegisteredAt,
    /// `runningTasksCount`.
    RunningTasks,
    /// `task:group`.
    Group,
}

/// How it is compared.
#[derive(Clone, Debug)]
pub enum Test {
    /// The order is one of these.
    Order(&'static [Ordering], String),
    /// The order is none of these (`!=`): true where there is no value.
    NotOrder(Ordering, String),
    /// Is there a value?
    Exists(bool),
    /// Is it (true) or is it not (false) one of these?
    In(bool, Vec<String>),
    /// Does it (true) or does it not (false) match the whole pattern?
    Matches(bool, Regex),
}

/// Reads an expression.
pub fn parse(text: &str) -> Result<Query, QueryError> {
    refuse_if(text.len() > LENGTH_MAX, || QueryError::TooLong)?;
    let mut parser = Parser { rest: text, depth: 0 };
    let query = parser.any()?;
    match parser.peek() {
        None => Ok(query),
        Some(word) => Err(QueryError::Unexpected(word.to_string())),
    }
}

impl Query {
    /// Does it select that instance?
    pub fn selects(&self, facts: &Facts) -> bool {
        match self {
            Query::All(all) => all.iter().all(|q| q.selects(facts)),
            Query::Any(any) => any.iter().any(|q| q.selects(facts)),
            Query::Not(query) => !query.selects(facts),
            Query::Test(subject, test) => test.holds(&subject.values(facts)),
        }
    }
}

impl Subject {
    fn parse(word: &str) -> Result<Self, QueryError> {
        Ok(match word {
            "agentConnected" => Subject::AgentConnected,
            "agentVersion" => Subject::AgentVersion,
            "ec2InstanceId" => Subject::InstanceId,
            "registeredAt" => Subject::RegisteredAt,
            "runningTasksCount" => Subject::RunningTasks,
            "task:group" => Subject::Group,
            _ => match word.strip_prefix("attribute:") {
                Some(name) if !name.is_empty() => Subject::Attribute(name.to_string()),
                _ => return Err(QueryError::Subject(word.to_string())),
            },
        })
    }

    /// The values that an instance has for it: a group subject has many.
    fn values(&self, facts: &Facts) -> Vec<String> {
        let some = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_string()] };
        match self {
            Subject::Attribute(name) => facts.attribute(name).map(str::to_string).into_iter().collect(),
            Subject::AgentConnected => vec![facts.agent_connected.to_string()],
            Subject::AgentVersion => some(&facts.agent_version),
            Subject::InstanceId => some(&facts.ec2_instance_id),
            Subject::RegisteredAt => some(&facts.registered_at),
            Subject::RunningTasks => vec![facts.running_tasks.to_string()],
            Subject::Group => facts.groups.iter().cloned().collect(),
        }
    }
}

impl Test {
    fn holds(&self, values: &[String]) -> bool {
        let any = |ok: &dyn Fn(&str) -> bool| values.iter().any(|v| ok(v));
        match self {
            Test::Order(orders, wanted) => any(&|v| orders.contains(&compare(v, wanted))),
            Test::NotOrder(order, wanted) => !any(&|v| compare(v, wanted) == *order),
            Test::Exists(there) => values.is_empty() != *there,
            Test::In(is, list) => any(&|v| list.iter().any(|w| compare(v, w).is_eq())) == *is,
            Test::Matches(is, pattern) => any(&|v| pattern.is_match(v)) == *is,
        }
    }
}

/// Numbers as numbers, times as times, dotted versions by their parts, everything else as text.
fn compare(a: &str, b: &str) -> Ordering {
    if let (Ok(x), Ok(y)) = (a.parse::<f64>(), b.parse::<f64>())
        && let Some(order) = x.partial_cmp(&y)
    {
        return order;
    }
    if let (Ok(x), Ok(y)) = (time::parse(a), time::parse(b)) {
        return x.cmp(&y);
    }
    let version = |t: &str| {
        t.trim_start_matches('v').split('.').map(|p| p.parse::<u64>().ok()).collect::<Option<Vec<_>>>()
    };
    match (version(a), version(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        _ => a.cmp(b),
    }
}

const EQUAL: &[Ordering] = &[Ordering::Equal];
const GREATER: &[Ordering] = &[Ordering::Greater];
const LESS: &[Ordering] = &[Ordering::Less];
const AT_LEAST: &[Ordering] = &[Ordering::Greater, Ordering::Equal];
const AT_MOST: &[Ordering] = &[Ordering::Less, Ordering::Equal];
/// Symbols, the longer first.
const SYMBOLS: [&str; 16] =
    ["==", "!=", ">=", "<=", "=~", "!~", "&&", "||", ">", "<", "!", "(", ")", "[", "]", ","];

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// The next symbol, quoted text (quotes included) or word.
    fn peek(&self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let first = rest.chars().next()?;
        if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            return rest.get(..symbol.len());
        }
        if matches!(first, '"' | '\'') {
            let end = rest[1..].find(first).map_or(rest.len(), |at| at + 2);
            return rest.get(..end);
        }
        let stops = |c: char| c.is_whitespace() || "()[],=!<>&|\"'".contains(c);
        // A character that is no word and no symbol stands alone.
        let end = rest.find(stops).unwrap_or(rest.len()).max(first.len_utf8());
        rest.get(..end)
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.rest = self.rest.trim_start().get(word.len()..).unwrap_or_default();
        Some(word)
    }

    fn accept(&mut self, words: &[&str]) -> bool {
        let here = self.peek().is_some_and(|w| words.contains(&w));
        if here {
            self.take();
        }
        here
    }

    fn any(&mut self) -> Result<Query, QueryError> {
        let mut all = vec![self.all()?];
        while self.accept(&["or", "||"]) {
            all.push(self.all()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Query::Any(all) })
    }

    fn all(&mut self) -> Result<Query, QueryError> {
        let mut all = vec![self.one()?];
        while self.accept(&["and", "&&"]) {
            all.push(self.one()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Query::All(all) })
    }

    fn one(&mut self) -> Result<Query, QueryError> {
        self.depth += 1;
        refuse_if(self.depth > DEPTH_MAX, || QueryError::TooDeep)?;
        let query = if self.accept(&["not", "!"]) {
            Query::Not(Box::new(self.one()?))
        } else if self.accept(&["("]) {
            let query = self.any()?;
            self.expect(")")?;
            query
        } else {
            let subject = Subject::parse(self.take().ok_or(QueryError::End)?)?;
            Query::Test(subject, self.test()?)
        };
        self.depth -= 1;
        Ok(query)
    }

    fn expect(&mut self, symbol: &str) -> Result<(), QueryError> {
        match self.take() {
            Some(word) if word == symbol => Ok(()),
            Some(word) => Err(QueryError::Unexpected(word.to_string())),
            None => Err(QueryError::End),
        }
    }

    fn test(&mut self) -> Result<Test, QueryError> {
        let operator = self.take().ok_or(QueryError::End)?;
        Ok(match operator {
            "==" | "equals" => Test::Order(EQUAL, self.value()?),
            "!=" | "not_equals" => Test::NotOrder(Ordering::Equal, self.value()?),
            ">" | "greater_than" => Test::Order(GREATER, self.value()?),
            ">=" | "greater_than_equal" => Test::Order(AT_LEAST, self.value()?),
            "<" | "less_than" => Test::Order(LESS, self.value()?),
            "<=" | "less_than_equal" => Test::Order(AT_MOST, self.value()?),
            "exists" => Test::Exists(true),
            "not_exists" => Test::Exists(false),
            "in" => Test::In(true, self.list()?),
            "not_in" => Test::In(false, self.list()?),
            "=~" | "matches" => Test::Matches(true, self.pattern()?),
            "!~" | "not_matches" => Test::Matches(false, self.pattern()?),
            "!" if self.accept(&["exists"]) => Test::Exists(false),
            "!" if self.accept(&["in"]) => Test::In(false, self.list()?),
            word => return Err(QueryError::Unexpected(word.to_string())),
        })
    }

    fn value(&mut self) -> Result<String, QueryError> {
        let word = self.take().ok_or(QueryError::End)?;
        match SYMBOLS.contains(&word) {
            true => Err(QueryError::Unexpected(word.to_string())),
            false => Ok(unquoted(word).to_string()),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, QueryError> {
        self.expect("[")?;
        let mut out = vec![self.value()?];
        while self.accept(&[","]) {
            out.push(self.value()?);
        }
        self.expect("]")?;
        Ok(out)
    }

    /// All up to a blank, or to a bracket that the pattern did not open.
    fn pattern(&mut self) -> Result<Regex, QueryError> {
        let rest = self.rest.trim_start();
        let mut open = 0i32;
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let end = match quote {
            Some(quote) => rest[1..].find(quote).map(|at| at + 2),
            None => rest.find(|c: char| {
                open += i32::from(c == '(') - i32::from(c == ')');
                c.is_whitespace() || open < 0
            }),
        };
        let raw = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        self.rest = rest.get(raw.len()..).unwrap_or_default();
        refuse_if(raw.is_empty(), || QueryError::End)?;
        let text = unquoted(raw);
        Regex::new(&format!("^(?:{text})$")).map_err(|_| QueryError::Pattern(text.to_string()))
    }
}

fn unquoted(word: &str) -> &str {
    let inner = |quote: char| word.strip_prefix(quote).and_then(|w| w.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        let attributes =
            [("ecs.instance-type", "t3.micro"), ("stack", ""), ("ecs.availability-zone", "us-east-1a")];
        Facts {
            attributes: attributes.map(|(k, v)| (k.to_string(), v.to_string())).into(),
            common: None,
            agent_connected: true,
            agent_version: "1.10.2".into(),
            ec2_instance_id: "i-0a".into(),
            registered_at: "2026-06-18T22:28:28+00:00".into(),
            running_tasks: 10,
            groups: ["service:web".to_string(), "family:job".to_string()].into(),
        }
    }

    fn selects(text: &str) -> Result<bool, QueryError> {
        Ok(parse(text)?.selects(&facts()))
    }

    #[test]
    fn expressions() {
        for (text, is) in [
            ("attribute:ecs.instance-type == t3.micro", true),
            ("attribute:ecs.instance-type =~ t3.*", true),
            ("attribute:ecs.instance-type =~ t(2|3)\\.micro and agentConnected == true", true),
            ("(attribute:ecs.instance-type =~ t3)", false),
            ("attribute:ecs.instance-type !~ g5.*", true),
            ("attribute:ecs.availability-zone in [us-east-1b, us-east-1a]", true),
            ("attribute:ecs.availability-zone !in ['us-east-1a']", false),
            ("attribute:stack exists", true),
            ("attribute:other !exists", true),
            ("attribute:other == x", false),
            ("attribute:other != x", true),
            ("attribute:other not_in [x]", true),
            ("task:group == service:web", true),
            ("task:group != service:web", false),
            ("not(task:group == service:db)", true),
            ("runningTasksCount > 9 && runningTasksCount <= 10", true),
            ("runningTasksCount < 9 || agentVersion > 1.9.9", true),
            ("registeredAt >= 2026-01-01T00:00:00Z", true),
            ("ec2InstanceId in [\"i-0a\"]", true),
            (
                "agentConnected equals true and not (attribute:stack not_exists or ec2InstanceId == i-0b)",
                true,
            ),
        ] {
            assert_eq!(selects(text), Ok(is), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression() {
        for (text, error) in [
            ("", QueryError::End),
            ("attribute:a ==", QueryError::End),
            ("attribute:a", QueryError::End),
            ("color == red", QueryError::Subject("color".into())),
            ("attribute: == x", QueryError::Subject("attribute:".into())),
            ("attribute:a = x", QueryError::Unexpected("=".into())),
            ("attribute:a == x y", QueryError::Unexpected("y".into())),
            ("(attribute:a == x", QueryError::End),
            ("attribute:a in x", QueryError::Unexpected("x".into())),
            ("attribute:a =~ [", QueryError::Pattern("[".into())),
        ] {
            assert_eq!(selects(text), Err(error), "{text}");
        }
        let deep = format!("{}attribute:a exists{}", "(".repeat(40), ")".repeat(40));
        assert_eq!(selects(&deep), Err(QueryError::TooDeep));
        assert_eq!(selects(&"x".repeat(2001)), Err(QueryError::TooLong));
        let wide = vec!["attribute:stack exists"; 60].join(" and ");
        assert_eq!(selects(&wide), Ok(true));
    }

    /// A truth table read by the parser and by hand.
    fn formula() -> impl Strategy<Value = (String, bool)> {
        let leaf = prop_oneof![
            Just(("agentConnected == true".to_string(), true)),
            Just(("attribute:none exists".to_string(), false)),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|(t, v)| (format!("not ({t})"), !v)),
                (inner.clone(), inner.clone())
                    .prop_map(|((a, x), (b, y))| (format!("({a}) and ({b})"), x && y)),
                (inner.clone(), inner).prop_map(|((a, x), (b, y))| (format!("({a}) or ({b})"), x || y)),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-a-z:()\\[\\],=!<>~&|\"' .*ä]{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn formulas_mean_what_they_say((text, is) in formula()) {
            prop_assert_eq!(selects(&text), Ok(is), "{}", text);
        }
    }
}

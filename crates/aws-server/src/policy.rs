//! Identity policies as AWS has them: documents in, a verdict out. Pure.
//!
//! An explicit Deny wins; without an Allow nothing is allowed. What a document says that is not understood here never
//! allows: a statement of that kind counts if it denies and not if it allows. Deliberately not here: who has which
//! policies, principals (trust and resource policies), permission boundaries.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is known of a request, by condition key in lower case.
pub type Facts = BTreeMap<String, Vec<String>>;

/// What somebody wants to do.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// `ecs:RunTask`.
    pub action: String,
    /// ARNs that the policies may name it by, `*` where it has none. Any one of them counts.
    pub resources: Vec<String>,
    /// For conditions and variables.
    pub facts: Facts,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some statement allows it, none denies it.
    Allowed,
    /// A statement denies it.
    Denied,
    /// No statement is about it.
    Silent,
}

/// The verdict of all of a caller's policies together.
pub fn judge(policies: &[Value], ask: &Ask) -> Verdict {
    let mut verdict = Verdict::Silent;
    for statement in policies.iter().flat_map(|p| many(&p["Statement"])) {
        match statement["Effect"].as_str() {
            Some("Deny") if applies(statement, ask, true) => return Verdict::Denied,
            Some("Allow") if applies(statement, ask, false) => verdict = Verdict::Allowed,
            _ => {}
        }
    }
    verdict
}

/// A value, or each of a list.
fn many(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    many(value).iter().filter_map(Value::as_str)
}

/// Is the statement about this? `unknown`: what counts for a condition that is not understood.
fn applies(statement: &Value, ask: &Ask, unknown: bool) -> bool {
    let action = |pattern: &str| like(&pattern.to_lowercase(), &ask.action.to_lowercase());
    let names = match (&statement["Action"], &statement["NotAction"]) {
        (Value::Null, Value::Null) => false,
        (Value::Null, not) => !texts(not).any(action),
        (actions, _) => texts(actions).any(action),
    };
    let resource = |pattern: &str| {
        let pattern = filled(pattern, &ask.facts);
        pattern.is_some_and(|pattern| ask.resources.iter().any(|r| like(&pattern, r)))
    };
    let about = match (&statement["Resource"], &statement["NotResource"]) {
        (Value::Null, Value::Null) => false,
        (Value::Null, not) => !texts(not).any(resource),
        (resources, _) => texts(resources).any(resource),
    };
    let none = Map::new();
    let conditions = statement["Condition"].as_object().unwrap_or(&none);
    let holds = |(operator, keys): (&String, &Value)| {
        keys.as_object()
            .into_iter()
            .flatten()
            .all(|(key, wanted)| condition(operator, key, wanted, &ask.facts).unwrap_or(unknown))
    };
    names && about && conditions.iter().all(holds)
}

/// `*` is any text, `?` any character.
pub fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                // The star takes one more.
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// A pattern with its variables (`${aws:username}`) filled in; `None` where one has no value.
fn filled(pattern: &str, facts: &Facts) -> Option<String> {
    let (mut out, mut rest) = (String::new(), pattern);
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        out.push_str(before);
        match name {
            "*" | "?" | "$" => out.push_str(name),
            name => out.push_str(facts.get(&name.to_lowercase())?.first()?),
        }
        rest = after;
    }
    Some(out + rest)
}

type Test = fn(&str, &str) -> Option<bool>;

/// Operators without `Not`: how one value is compared with one that is wanted.
const OPERATORS: [(&str, Test); 17] = [
    ("StringEquals", |has, wanted| Some(has == wanted)),
    ("StringEqualsIgnoreCase", |has, wanted| Some(has.eq_ignore_ascii_case(wanted))),
    ("StringLike", |has, wanted| Some(like(wanted, has))),
    ("ArnEquals", |has, wanted| Some(like(wanted, has))),
    ("ArnLike", |has, wanted| Some(like(wanted, has))),
    ("Bool", |has, wanted| Some(has.eq_ignore_ascii_case(wanted))),
    ("IpAddress", within),
    ("NumericEquals", |has, wanted| Some(number(has)? == number(wanted)?)),
    ("NumericLessThan", |has, wanted| Some(number(has)? < number(wanted)?)),
    ("NumericLessThanEquals", |has, wanted| Some(number(has)? <= number(wanted)?)),
    ("NumericGreaterThan", |has, wanted| Some(number(has)? > number(wanted)?)),
    ("NumericGreaterThanEquals", |has, wanted| Some(number(has)? >= number(wanted)?)),
    ("DateEquals", |has, wanted| Some(time(has)? == time(wanted)?)),
    ("DateLessThan", |has, wanted| Some(time(has)? < time(wanted)?)),
    ("DateLessThanEquals", |has, wanted| Some(time(has)? <= time(wanted)?)),
    ("DateGreaterThan", |has, wanted| Some(time(has)? > time(wanted)?)),
    ("DateGreaterThanEquals", |has, wanted| Some(time(has)? >= time(wanted)?)),
];
/// Operators with `Not`, and what they negate.
const NEGATED: [(&str, &str); 7] = [
    ("StringNotEquals", "StringEquals"),
    ("StringNotEqualsIgnoreCase", "StringEqualsIgnoreCase"),
    ("StringNotLike", "StringLike"),
    ("ArnNotEquals", "ArnEquals"),
    ("ArnNotLike", "ArnLike"),
    ("NotIpAddress", "IpAddress"),
    ("NumericNotEquals", "NumericEquals"),
];

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// A date of a policy, or seconds since 1970.
fn time(text: &str) -> Option<i64> {
    let parsed = text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second);
    parsed.or_else(|| text.parse().ok())
}

/// Is an address in a range (`10.0.0.0/8`, or one address)?
fn within(address: &str, range: &str) -> Option<bool> {
    let (base, bits) = range.split_once('/').map_or((range, None), |(base, bits)| (base, Some(bits)));
    let bits = |all: u32| bits.map_or(Some(all), |b| b.parse().ok().filter(|b| *b <= all));
    Some(match (address.parse().ok()?, base.parse().ok()?) {
        (IpAddr::V4(has), IpAddr::V4(base)) => {
            let shift = 32 - bits(32)?;
            (u64::from(u32::from(has)) >> shift) == (u64::from(u32::from(base)) >> shift)
        }
        (IpAddr::V6(has), IpAddr::V6(base)) => {
            let shift = 128 - bits(128)?;
            let cut = |ip: u128| ip.checked_shr(shift).unwrap_or(0);
            cut(has.into()) == cut(base.into())
        }
        _ => false,
    })
}

/// Does a condition hold? `None`: it is not understood.
fn condition(operator: &str, key: &str, wanted: &Value, facts: &Facts) -> Option<bool> {
    let (quantifier, operator) = match operator.split_once(':') {
        Some((quantifier, operator)) => (quantifier, operator),
        None => ("", operator),
    };
    let has = facts.get(&key.to_lowercase());
    let scalar = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    if operator == "Null" {
        return Some(many(wanted).iter().any(|w| scalar(w) == has.is_none().to_string()));
    }
    let (operator, if_exists) = match operator.strip_suffix("IfExists") {
        Some(operator) => (operator, true),
        None => (operator, false),
    };
    let negated = NEGATED.iter().find(|(name, _)| *name == operator);
    let plain = negated.map_or(operator, |(_, plain)| plain);
    let (_, test) = OPERATORS.iter().find(|(name, _)| *name == plain)?;
    let Some(has) = has.filter(|h| !h.is_empty()) else {
        // What is not there equals nothing; every one of no values is anything.
        return Some(if_exists || negated.is_some() || quantifier == "ForAllValues");
    };
    let wanted: Vec<String> =
        many(wanted).iter().map(|w| filled(&scalar(w), facts)).collect::<Option<_>>()?;
    let one = |value: &String| -> Option<bool> {
        let mut any = false;
        for wanted in &wanted {
            any |= test(value, wanted)?;
        }
        Some(any != negated.is_some())
    };
    let each: Vec<bool> = has.iter().map(one).collect::<Option<_>>()?;
    match quantifier {
        "ForAllValues" => Some(each.iter().all(|b| *b)),
        "" | "ForAnyValue" if negated.is_some() && quantifier.is_empty() => Some(each.iter().all(|b| *b)),
        "" | "ForAnyValue" => Some(each.iter().any(|b| *b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const TASK: &str = "arn:aws:ecs:us-east-1:123456789012:task/prod/0a";

    fn ask(action: &str, resource: &str) -> Ask {
        let facts = [
            ("aws:sourceip", "10.1.2.3"),
            ("aws:username", "ann"),
            ("aws:securetransport", "false"),
            ("ecs:cluster", "arn:aws:ecs:us-east-1:123456789012:cluster/prod"),
            ("aws:currenttime", "2026-01-02T00:00:00Z"),
        ];
        let mut facts: Facts = facts.map(|(k, v)| (k.into(), vec![v.into()])).into();
        facts.insert("aws:tagkeys".into(), vec!["team".into(), "cost".into()]);
        Ask { action: action.into(), resources: vec![resource.into()], facts }
    }

    fn verdict(statements: Value, action: &str) -> Verdict {
        judge(&[json!({"Version": "2012-10-17", "Statement": statements})], &ask(action, TASK))
    }

    #[test]
    fn statements() {
        use Verdict::{Allowed, Denied, Silent};
        let all = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
        for (statements, action, expected) in [
            (json!([]), "ecs:StopTask", Silent),
            (all.clone(), "ecs:StopTask", Allowed),
            (json!({"Effect": "Allow", "Action": "ECS:stop*", "Resource": "*"}), "ecs:StopTask", Allowed),
            (
                json!({"Effect": "Allow", "Action": ["ecs:List?asks"], "Resource": "*"}),
                "ecs:ListTasks",
                Allowed,
            ),
            (
                json!({"Effect": "Allow", "Action": "ecs:*", "Resource": "arn:aws:ecs:*:*:task/prod/*"}),
                "ecs:StopTask",
                Allowed,
            ),
            (
                json!({"Effect": "Allow", "Action": "ecs:*", "Resource": ["arn:aws:ecs:*:*:task/test/*"]}),
                "ecs:StopTask",
                Silent,
            ),
            (json!({"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}), "ecs:StopTask", Allowed),
            (json!({"Effect": "Allow", "NotAction": ["ecs:*"], "Resource": "*"}), "ecs:StopTask", Silent),
            (
                json!({"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:ecs:*:*:task/prod/*"}),
                "ecs:StopTask",
                Silent,
            ),
            (
                json!([all.clone(), {"Effect": "Deny", "Action": "ecs:Stop*", "Resource": "*"}]),
                "ecs:StopTask",
                Denied,
            ),
            (
                json!([all.clone(), {"Effect": "Deny", "Action": "ecs:Run*", "Resource": "*"}]),
                "ecs:StopTask",
                Allowed,
            ),
            (json!({"Effect": "Allow", "Action": "*"}), "ecs:StopTask", Silent),
            (json!({"Effect": "allow", "Action": "*", "Resource": "*"}), "ecs:StopTask", Silent),
            (
                json!({"Effect": "Allow", "Action": "*", "Resource": "arn:aws:ecs:*:*:task/${aws:username}/*"}),
                "ecs:StopTask",
                Silent,
            ),
            // What is not understood denies and does not allow.
            (
                json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"Moon": {"a": "b"}}}),
                "ecs:StopTask",
                Silent,
            ),
            (
                json!([all, {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"Moon": {"a": "b"}}}]),
                "ecs:StopTask",
                Denied,
            ),
        ] {
            assert_eq!(verdict(statements.clone(), action), expected, "{statements}");
        }
    }

    #[test]
    fn conditions() {
        for (operator, key, wanted, expected) in [
            ("StringEquals", "ecs:cluster", json!("arn:aws:ecs:us-east-1:123456789012:cluster/prod"), true),
            ("StringEquals", "aws:username", json!(["bob", "ann"]), true),
            ("StringEquals", "aws:username", json!("Ann"), false),
            ("StringEqualsIgnoreCase", "aws:UserName", json!("ANN"), true),
            ("StringNotEquals", "aws:username", json!(["bob", "ann"]), false),
            ("StringLike", "aws:username", json!("a*"), true),
            ("StringNotLike", "aws:username", json!("b*"), true),
            ("StringEquals", "absent", json!("x"), false),
            ("StringNotEquals", "absent", json!("x"), true),
            ("StringEqualsIfExists", "absent", json!("x"), true),
            ("Null", "absent", json!("true"), true),
            ("Null", "aws:username", json!(true), false),
            ("Bool", "aws:SecureTransport", json!(false), true),
            ("Bool", "aws:SecureTransport", json!("true"), false),
            ("IpAddress", "aws:SourceIp", json!(["192.168.0.0/16", "10.0.0.0/8"]), true),
            ("NotIpAddress", "aws:SourceIp", json!("10.1.2.3"), false),
            ("IpAddress", "aws:SourceIp", json!("10.1.2.4/32"), false),
            ("IpAddress", "aws:SourceIp", json!("0.0.0.0/0"), true),
            ("IpAddress", "aws:SourceIp", json!("::/0"), false),
            ("ArnLike", "ecs:cluster", json!("arn:aws:ecs:*:*:cluster/p*"), true),
            ("DateLessThan", "aws:CurrentTime", json!("2027-01-01T00:00:00Z"), true),
            ("DateGreaterThan", "aws:CurrentTime", json!("2027-01-01T00:00:00Z"), false),
            ("ForAllValues:StringEquals", "aws:TagKeys", json!(["team", "cost", "x"]), true),
            ("ForAllValues:StringEquals", "aws:TagKeys", json!(["team"]), false),
            ("ForAnyValue:StringEquals", "aws:TagKeys", json!(["team"]), true),
            ("ForAnyValue:StringEquals", "absent", json!(["team"]), false),
            ("StringEquals", "aws:username", json!("${aws:username}"), true),
        ] {
            let statement = json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {operator: {key: wanted}}});
            let allowed = verdict(statement, "ecs:StopTask") == Verdict::Allowed;
            assert_eq!(allowed, expected, "{operator} {key} {wanted}");
        }
        for bad in [("IpAddress", "aws:SourceIp", "10.0.0.0/33"), ("NumericLessThan", "aws:username", "5")] {
            assert_eq!(condition(bad.0, bad.1, &json!(bad.2), &ask("a", "b").facts), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn patterns_agree_with_regular_expressions(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let expression = format!("^{}$", pattern.replace('*', ".*").replace('?', "."));
            prop_assert_eq!(like(&pattern, &text), regex::Regex::new(&expression).unwrap().is_match(&text));
        }
    }
}

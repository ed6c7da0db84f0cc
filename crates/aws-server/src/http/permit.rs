//! What a call is in the words of policies: its action, the ARNs it is about, the facts that conditions ask for; and each
//! protocol's words for a refusal. Pure.
//!
//! A row of [`RESOURCES`] says which member of a call's input names its resource. Where no row fits, the resource is
//! everything of the service. A call that names several things needs a permission for each.

use crate::policy::{Ask, Facts, Verdict, judge};
use crate::protocol::Wire;
use crate::service::{AwsError, Call};
use aws_schema::Protocol;
use serde_json::Value;
use std::sync::LazyLock;

/// Operations that no policy is needed for.
const FREE: [&str; 2] = ["sts:GetCallerIdentity", "sts:GetSessionToken"];

/// Service in actions; operations it is for (a part of the name; "" all); member; the ARN's resource, where `{}` is the
/// member's value and `{cluster}` the cluster's name. The first row whose member is there counts.
static RESOURCES: LazyLock<Vec<[&str; 4]>> =
    LazyLock::new(|| stdx::rows(include_str!("permit.txt")).collect());
/// Members of any depth that give a role away, which takes `iam:PassRole` too.
const PASSED: [&str; 4] = ["taskRoleArn", "executionRoleArn", "roleArn", "RoleArn"];
/// Operations whose role is what they are about, not what they give away.
const ASSUMES: [&str; 2] = ["AssumeRole", "AssumeRoleWithWebIdentity"];
/// As AWS appends to a secret's name.
const SECRET_SUFFIX: &str = "-aaaaaa";

fn values(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The last part of a name or an ARN.
fn short(text: &str) -> &str {
    if text.starts_with("arn:") { text.rsplit('/').next().unwrap_or(text) } else { text }
}

/// The ARNs by which policies may name a thing.
fn names(service: &str, call: &Call, template: &str, value: &str) -> Vec<String> {
    let (account, region) = (&call.caller.account, if service == "iam" { "" } else { &*call.region });
    let cluster = short(call.input["cluster"].as_str().filter(|c| !c.is_empty()).unwrap_or("default"));
    let arn = match value.starts_with("arn:") {
        true => value.trim_end_matches(":*").to_string(),
        false => {
            let resource =
                template.replace("{cluster}", cluster).replace("{}", value.trim_start_matches('/'));
            let resource = if service == "logs" { template.replace("{}", value) } else { resource };
            format!("arn:aws:{service}:{region}:{account}:{resource}")
        }
    };
    let mut out = vec![arn.clone()];
    match service {
        "logs" => {
            let stream = call.input["logStreamName"].as_str().unwrap_or("*");
            out.extend([format!("{arn}:*"), format!("{arn}:log-stream:{stream}")]);
        }
        "secretsmanager" if !value.starts_with("arn:") => out.push(format!("{arn}{SECRET_SUFFIX}")),
        _ => {}
    }
    out
}

/// What the call is about: a list of names for each thing.
fn resources(service: &str, call: &Call) -> Vec<Vec<String>> {
    let fits = |[of, operation, member, _]: &&[&str; 4]| {
        *of == service && call.operation.contains(operation) && !values(&call.input[*member]).is_empty()
    };
    match RESOURCES.iter().find(fits) {
        Some([_, _, member, template]) => {
            values(&call.input[*member]).into_iter().map(|v| names(service, call, template, v)).collect()
        }
        None => vec![vec![format!("arn:aws:{service}:{}:{}:*", call.region, call.caller.account)]],
    }
}

/// Roles that the call gives to somebody else.
fn passed<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value.as_str() {
                    Some(role) if PASSED.contains(&name.as_str()) && !role.is_empty() => out.push(role),
                    _ => passed(value, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| passed(v, out)),
        _ => {}
    }
}

/// Tags of a request: `[{key, value}]`, `[{Key, Value}]`, or a map.
fn tags(input: &Value) -> Vec<(String, String)> {
    let given = ["tags", "Tags"].iter().map(|m| &input[*m]).find(|v| !v.is_null()).unwrap_or(&Value::Null);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    match given {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        Value::Array(list) => {
            let member = |tag: &Value, small: &str, large: &str| {
                text(if tag[small].is_null() { &tag[large] } else { &tag[small] })
            };
            list.iter().map(|tag| (member(tag, "key", "Key"), member(tag, "value", "Value"))).collect()
        }
        _ => Vec::new(),
    }
}

fn facts(call: &Call, from: &str) -> Facts {
    let caller = &call.caller;
    let seconds = i64::try_from(call.now_ms / 1_000).unwrap_or_default();
    let mut facts: Facts = [
        ("aws:sourceip", from.to_string()),
        ("aws:securetransport", "false".into()),
        ("aws:principalarn", caller.arn.clone()),
        ("aws:principalaccount", caller.account.clone()),
        ("aws:userid", caller.user_id.clone()),
        ("aws:requestedregion", call.region.clone()),
        ("aws:epochtime", seconds.to_string()),
        ("aws:currenttime", jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()),
    ]
    .map(|(key, value)| (key.to_string(), vec![value]))
    .into();
    if caller.arn.contains(":user/") {
        facts.insert("aws:username".into(), vec![short(&caller.arn).into()]);
    }
    if let Some(cluster) = call.input["cluster"].as_str() {
        let names = names("ecs", call, "cluster/{}", cluster);
        facts.insert("ecs:cluster".into(), names);
    }
    let tags = tags(&call.input);
    if !tags.is_empty() {
        facts.insert("aws:tagkeys".into(), tags.iter().map(|(key, _)| key.clone()).collect());
    }
    facts.extend(tags.into_iter().map(|(k, v)| (format!("aws:requesttag/{}", k.to_lowercase()), vec![v])));
    facts
}

/// May the caller do this by these policies? `service`: as actions have it; `from`: the caller's address.
///
/// # Errors
/// It may not, in the protocol's own words.
pub fn check(policies: &[Value], service: &str, call: &Call, from: &str, wire: Wire) -> Result<(), AwsError> {
    let action = format!("{service}:{}", call.operation);
    if FREE.contains(&&*action) {
        return Ok(());
    }
    let facts = facts(call, from);
    let mut asks: Vec<Ask> = resources(service, call)
        .into_iter()
        .map(|resources| Ask { action: action.clone(), resources, facts: facts.clone() })
        .collect();
    let mut roles = Vec::new();
    if !ASSUMES.contains(&call.operation) {
        passed(&call.input, &mut roles);
    }
    asks.extend(roles.into_iter().map(|role| {
        let (action, resources) = ("iam:PassRole".to_string(), vec![role.to_string()]);
        let mut facts = facts.clone();
        facts.insert("iam:passedtoservice".into(), vec!["ecs-tasks.amazonaws.com".into()]);
        Ask { action, resources, facts }
    }));
    for ask in &asks {
        match judge(policies, ask) {
            Verdict::Allowed => {}
            verdict => return Err(refusal(ask, verdict, &call.caller.arn, wire)),
        }
    }
    Ok(())
}

/// The same for S3, whose calls are paths: `/bucket/key`.
///
/// # Errors
/// It may not, in S3's words.
pub fn check_s3(
    policies: &[Value],
    (method, path, query): (&str, &str, &str),
    call: &Call,
    from: &str,
) -> Result<(), AwsError> {
    let (bucket, key) =
        path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let action = match (method, bucket, key) {
        (_, "", _) => "ListAllMyBuckets",
        ("GET" | "HEAD", _, "") => "ListBucket",
        ("PUT", _, "") => "CreateBucket",
        ("DELETE", _, "") => "DeleteBucket",
        ("POST", _, "") if query.contains("delete") => "DeleteObject",
        ("GET" | "HEAD", ..) => "GetObject",
        ("DELETE", ..) => "DeleteObject",
        _ => "PutObject",
    };
    let mut resource = format!("arn:aws:s3:::{bucket}");
    if !key.is_empty() || action == "DeleteObject" {
        resource.push_str(&format!("/{}", if key.is_empty() { "*" } else { key }));
    }
    let ask = Ask { action: format!("s3:{action}"), resources: vec![resource], facts: facts(call, from) };
    let wire = Wire { protocol: Protocol::Query, json_version: "" };
    match judge(policies, &ask) {
        Verdict::Allowed => Ok(()),
        verdict => Err(refusal(&ask, verdict, &call.caller.arn, wire)),
    }
}

fn refusal(ask: &Ask, verdict: Verdict, who: &str, wire: Wire) -> AwsError {
    let (action, resource) = (&ask.action, ask.resources.first().map_or("*", String::as_str));
    let why = match verdict {
        Verdict::Denied => "with an explicit deny in an identity-based policy".to_string(),
        _ => format!("because no identity-based policy allows the {action} action"),
    };
    let text = format!("User: {who} is not authorized to perform: {action} on resource: {resource} {why}");
    let (code, status, text) = match wire.protocol {
        Protocol::Ec2 => (
            "UnauthorizedOperation",
            403,
            format!("You are not authorized to perform this operation. {text}"),
        ),
        Protocol::Query => ("AccessDenied", 403, text),
        Protocol::RestJson => ("AccessDeniedException", 403, text),
        Protocol::Json | Protocol::Cbor => ("AccessDeniedException", 400, text),
    };
    AwsError { status, ..AwsError::client(code, text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Caller;
    use serde_json::json;

    fn call(operation: &'static str, input: Value) -> Call {
        let caller = Caller {
            account: "123456789012".into(),
            access_key: "AKIA".into(),
            arn: "arn:aws:iam::123456789012:user/ann".into(),
            user_id: "AIDA".into(),
        };
        let (region, request_id) = ("us-east-1".into(), String::new());
        Call { caller, region, operation, input, request_id, now_ms: 0, endpoint: String::new() }
    }

    #[test]
    fn a_calls_resources() {
        let ecs = "arn:aws:ecs:us-east-1:123456789012:";
        for (service, operation, input, expected) in [
            (
                "ecs",
                "RunTask",
                json!({"cluster": "p", "taskDefinition": "web:2"}),
                format!("{ecs}task-definition/web:2"),
            ),
            ("ecs", "StopTask", json!({"task": "0a"}), format!("{ecs}task/default/0a")),
            (
                "ecs",
                "DescribeTasks",
                json!({"cluster": format!("{ecs}cluster/p"), "tasks": ["x"]}),
                format!("{ecs}task/p/x"),
            ),
            ("ecs", "UpdateService", json!({"cluster": "p", "service": "s"}), format!("{ecs}service/p/s")),
            ("ecs", "ListTasks", json!({"cluster": "p", "serviceName": "s"}), format!("{ecs}cluster/p")),
            ("ecs", "ListClusters", json!({}), format!("{ecs}*")),
            (
                "ssm",
                "GetParameter",
                json!({"Name": "/a/b"}),
                "arn:aws:ssm:us-east-1:123456789012:parameter/a/b".into(),
            ),
            ("iam", "GetRole", json!({"RoleName": "r"}), "arn:aws:iam::123456789012:role/r".into()),
            (
                "logs",
                "PutLogEvents",
                json!({"logGroupName": "/g", "logStreamName": "s"}),
                "arn:aws:logs:us-east-1:123456789012:log-group:/g".into(),
            ),
            ("sts", "AssumeRole", json!({"RoleArn": "arn:x"}), "arn:x".into()),
        ] {
            assert_eq!(
                resources(service, &call(operation, input.clone()))[0][0],
                expected,
                "{operation} {input}"
            );
        }
        let streams =
            resources("logs", &call("PutLogEvents", json!({"logGroupName": "/g", "logStreamName": "s"})));
        assert!(streams[0][2].ends_with("log-group:/g:log-stream:s"), "{streams:?}");
    }

    #[test]
    fn every_thing_and_every_role_needs_a_permission() {
        let policy = |statements: Value| vec![json!({"Statement": statements})];
        let wire = Wire { protocol: Protocol::Json, json_version: "1.1" };
        let read =
            policy(json!([{"Effect": "Allow", "Action": "ecs:*", "Resource": "arn:aws:ecs:*:*:task/p/a*"}]));
        let tasks = |tasks: Value| {
            check(
                &read,
                "ecs",
                &call("DescribeTasks", json!({"cluster": "p", "tasks": tasks})),
                "1.2.3.4",
                wire,
            )
        };
        tasks(json!(["a1", "a2"])).unwrap();
        let error = tasks(json!(["a1", "b"])).unwrap_err();
        assert_eq!((error.code.as_str(), error.status), ("AccessDeniedException", 400));
        assert_eq!(
            error.message,
            "User: arn:aws:iam::123456789012:user/ann is not authorized to perform: ecs:DescribeTasks on resource: \
             arn:aws:ecs:us-east-1:123456789012:task/p/b because no identity-based policy allows the ecs:DescribeTasks action"
        );
        let define =
            call("RegisterTaskDefinition", json!({"family": "f", "taskRoleArn": "arn:aws:iam::1:role/t"}));
        let ecs = policy(json!([{"Effect": "Allow", "Action": "ecs:*", "Resource": "*"}]));
        assert!(
            check(&ecs, "ecs", &define, "", wire)
                .unwrap_err()
                .message
                .contains("iam:PassRole on resource: arn:aws:iam::1:role/t")
        );
        let both = policy(json!([{"Effect": "Allow", "Action": ["ecs:*", "iam:PassRole"], "Resource": "*"},
            {"Effect": "Deny", "Action": "ecs:Delete*", "Resource": "*"}]));
        check(&both, "ecs", &define, "", wire).unwrap();
        let error =
            check(&both, "ecs", &call("DeleteCluster", json!({"cluster": "c"})), "", wire).unwrap_err();
        assert!(error.message.ends_with("with an explicit deny in an identity-based policy"), "{error}");
        check(&[], "sts", &call("GetCallerIdentity", json!({})), "", wire).unwrap();
    }
}

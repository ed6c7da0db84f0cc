//! JSON with methods and paths: members stand in the path, the query, headers or the body.

use super::{DecodeError, Reply, Request, json, time};
use auth::sigv4::unescape;
use aws_schema::{Kind, Location, Operation, Service, ShapeId};
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Value};

/// The document of a request.
pub(super) fn input(service: &Service, shape: ShapeId, request: &Request<'_>) -> Result<Value, DecodeError> {
    let Some(structure) = service.structure(shape) else { return Ok(Value::Object(Map::new())) };
    let pairs: Vec<(String, String)> = request
        .query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(n, v)| (unescape(n), unescape(v)))
        .collect();
    let body = match (structure.payload, request.body.iter().all(u8::is_ascii_whitespace)) {
        (_, true) => Value::Object(Map::new()),
        (payload, false) => {
            let body = serde_json::from_slice::<Value>(request.body);
            let body = body.map_err(|e| DecodeError::new(format!("Malformed JSON: {e}")))?;
            match payload {
                "" => body,
                name => Value::Object([(name.to_string(), body)].into_iter().collect()),
            }
        }
    };
    refuse_if(!body.is_object(), || DecodeError::new("Expected null or start of structure or map"))?;
    let mut out = Map::new();
    for member in &structure.members {
        let at = |text: &str| text_value(service, member.shape, text, member.name);
        let value = match member.location {
            Location::Body => {
                let found = body.get(member.wire).filter(|v| !v.is_null()).cloned();
                found.map(|v| json::take(service, member.shape, v, member.name, |m| m.wire)).transpose()?
            }
            Location::Uri => {
                let label = request.labels.iter().find(|(name, _)| *name == member.wire);
                label.map(|(_, text)| at(text)).transpose()?
            }
            Location::Query => from_query(service, member, &pairs)?,
            Location::Header => request.header(&member.wire.to_ascii_lowercase()).map(at).transpose()?,
            Location::Headers | Location::Status => None,
        };
        out.extend(value.map(|v| (member.name.to_string(), v)));
    }
    Ok(Value::Object(out))
}

fn from_query(
    service: &Service,
    member: &aws_schema::Member,
    pairs: &[(String, String)],
) -> Result<Option<Value>, DecodeError> {
    let mut values = pairs.iter().filter(|(name, _)| name == member.wire).map(|(_, v)| v).peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    match &service.shape(member.shape).kind {
        Kind::List { member: inner, .. } => {
            let list =
                values.map(|v| text_value(service, *inner, v, member.name)).collect::<Result<_, _>>()?;
            Ok(Some(Value::Array(list)))
        }
        _ => values.next().map(|v| text_value(service, member.shape, v, member.name)).transpose(),
    }
}

/// A scalar that was written as text.
fn text_value(service: &Service, shape: ShapeId, text: &str, at: &str) -> Result<Value, DecodeError> {
    let unfit = || DecodeError::at(format!("'{text}' is not a valid value"), at);
    match &service.shape(shape).kind {
        Kind::Integer | Kind::Long => text.parse::<i64>().map(Value::from).map_err(|_| unfit()),
        Kind::Float | Kind::Double => text.parse::<f64>().map(Value::from).map_err(|_| unfit()),
        Kind::Boolean => text.parse::<bool>().map(Value::from).map_err(|_| unfit()),
        Kind::Timestamp(_) => time::parse(text).ok_or_else(unfit),
        _ => Ok(Value::from(text)),
    }
}

/// The answer to a request.
pub(super) fn output(service: &Service, operation: &Operation, value: &Value) -> Reply {
    let mut reply = Reply::new(operation.status, "application/json", b"{}".to_vec());
    let Some((shape, structure)) = operation.output.and_then(|s| Some((s, service.structure(s)?))) else {
        return reply;
    };
    for member in &structure.members {
        let Some(value) = value.get(member.name).filter(|v| !v.is_null()) else { continue };
        match member.location {
            Location::Status => {
                reply.status = value.as_u64().and_then(|s| s.try_into().ok()).unwrap_or(reply.status)
            }
            Location::Header => {
                let text = match (&service.shape(member.shape).kind, value) {
                    (Kind::Timestamp(_), value) => time::http(value),
                    (_, Value::String(text)) => text.clone(),
                    (_, value) => value.to_string(),
                };
                reply.headers.push((member.wire.to_ascii_lowercase(), text));
            }
            _ => {}
        }
    }
    let body = json::output(service, shape, value);
    reply.body = match structure.payload {
        "" => {
            let in_body =
                |name: &str| structure.members.iter().any(|m| m.wire == name && m.location == Location::Body);
            let map: Map<String, Value> = body
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(k, _)| in_body(k))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            Value::Object(map).to_string().into_bytes()
        }
        payload => body.get(payload).cloned().unwrap_or(Value::Object(Map::new())).to_string().into_bytes(),
    };
    reply
}

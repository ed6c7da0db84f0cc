//! `application/vnd.amazon.eventstream` frames: length, headers, payload, two checksums. All numbers big-endian.

use super::json;
use crate::service::AwsError;
use aws_schema::{Operation, Service};
use serde_json::Value;

/// Content type of a streamed answer.
pub const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// Type of a header's value: text with a 16-bit length.
const TEXT: u8 = 7;

/// The first frame of an RPC protocol's stream: the members that are no events.
pub fn initial() -> Vec<u8> {
    frame(&[(":message-type", "event"), (":event-type", "initial-response"), (":content-type", TYPE)], b"{}")
}

const TYPE: &str = "application/json";

/// One event: the name of its member in the union and its document.
pub fn event(service: &Service, operation: &Operation, name: &str, value: &Value) -> Vec<u8> {
    let shape = operation.output.and_then(|output| {
        let streams = service.structure(output)?.members.iter().map(|m| m.shape);
        let mut unions = streams.filter_map(|s| service.structure(s).filter(|s| s.event_stream));
        unions.find_map(|union| union.member(name)).map(|member| member.shape)
    });
    let body = shape.map_or_else(|| value.clone(), |s| json::output(service, s, value));
    let headers = [(":message-type", "event"), (":event-type", name), (":content-type", TYPE)];
    frame(&headers, body.to_string().as_bytes())
}

/// The error that ends a stream.
pub fn exception(error: &AwsError) -> Vec<u8> {
    let body = serde_json::json!({"message": error.message});
    let headers =
        [(":message-type", "exception"), (":exception-type", error.code.as_str()), (":content-type", TYPE)];
    frame(&headers, body.to_string().as_bytes())
}

fn frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut named = Vec::new();
    for (name, value) in headers {
        named.push(name.len() as u8);
        named.extend_from_slice(name.as_bytes());
        named.push(TEXT);
        named.extend_from_slice(&(value.len() as u16).to_be_bytes());
        named.extend_from_slice(value.as_bytes());
    }
    let total = 12 + named.len() + payload.len() + 4;
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&(total as u32).to_be_bytes());
    out.extend_from_slice(&(named.len() as u32).to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out.extend_from_slice(&named);
    out.extend_from_slice(payload);
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out
}

//! Wire formats: one file each, all driven by the service's table. A call's input becomes a document by member
//! names, an output document becomes a body; the form in between is `serde_json::Value` (see [`crate::service`]).
//!
//! Pure: bytes in, bytes out. Not here: which service and operation are meant (`http::route`).

pub mod cbor;
mod error;
pub mod events;
pub mod json;
pub mod query;
pub mod rest;
pub mod time;
pub mod xml;

use crate::service::AwsError;
use aws_schema::{Operation, Protocol, Service};
use serde_json::Value;

/// A protocol and its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Which.
    pub protocol: Protocol,
    /// Of JSON: `1.0` or `1.1`.
    pub json_version: &'static str,
}

/// A request as the codecs see it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Without `?`.
    pub query: &'a str,
    /// Names in lower case.
    pub headers: &'a [(String, String)],
    /// Decoded: neither chunked nor compressed.
    pub body: &'a [u8],
    /// Labels of the path by member's wire name.
    pub labels: &'a [(&'static str, String)],
}

impl Request<'_> {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// An answer, but for the request id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Reply {
    fn new(status: u16, content_type: impl Into<String>, body: Vec<u8>) -> Reply {
        Reply { status, headers: vec![("content-type".into(), content_type.into())], body }
    }
}

/// The input of a call cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// What is wrong.
    pub message: String,
    /// The member that could not be read; "" when it is the whole.
    pub member: String,
}

impl DecodeError {
    fn new(message: impl Into<String>) -> DecodeError {
        DecodeError { message: message.into(), member: String::new() }
    }

    fn at(message: impl Into<String>, member: &str) -> DecodeError {
        DecodeError { message: message.into(), member: member.into() }
    }
}

/// The input document of a call.
///
/// # Errors
/// It is not what the operation takes.
pub fn decode(
    wire: Wire,
    service: &Service,
    operation: &Operation,
    request: &Request<'_>,
) -> Result<Value, DecodeError> {
    let Some(shape) = operation.input else { return Ok(Value::Object(Default::default())) };
    match wire.protocol {
        Protocol::Json => json::input(service, shape, request.body),
        Protocol::RestJson => rest::input(service, shape, request),
        Protocol::Query | Protocol::Ec2 => {
            let form = query::parameters(request.query, request.body)?;
            query::input(service, shape, &form, wire.protocol == Protocol::Ec2)
        }
        Protocol::Cbor => {
            let value = if request.body.is_empty() { Value::Null } else { cbor::read(request.body)? };
            json::from_value(service, shape, value)
        }
    }
}

/// The answer to a call that went well.
pub fn encode(wire: Wire, service: &Service, operation: &Operation, output: &Value, id: &str) -> Reply {
    match wire.protocol {
        Protocol::Json => {
            let body = operation
                .output
                .map_or(Value::Object(Default::default()), |s| json::output(service, s, output));
            Reply::new(200, json_type(wire), body.to_string().into_bytes())
        }
        Protocol::RestJson => rest::output(service, operation, output),
        Protocol::Query => {
            Reply::new(200, "text/xml", xml::query_answer(service, operation, output, id).into_bytes())
        }
        Protocol::Ec2 => Reply::new(
            200,
            "text/xml;charset=UTF-8",
            xml::ec2_answer(service, operation, output, id).into_bytes(),
        ),
        Protocol::Cbor => {
            let body = operation.output.map(|s| cbor::write(service, s, output)).unwrap_or_else(cbor::empty);
            let mut reply = Reply::new(200, "application/cbor", body);
            reply.headers.push(("smithy-protocol".into(), "rpc-v2-cbor".into()));
            reply
        }
    }
}

/// The answer to a call that failed. The service is not known when the call could not even be routed.
pub fn refuse(wire: Wire, service: Option<&Service>, error: &AwsError, id: &str) -> Reply {
    error::encode(wire, service, error, id)
}

fn json_type(wire: Wire) -> String {
    format!("application/x-amz-json-{}", wire.json_version)
}

#[cfg(test)]
mod tests;

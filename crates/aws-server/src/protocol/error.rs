//! Errors in each protocol's form.

use super::{Reply, Wire, cbor, json_type, xml};
use crate::service::AwsError;
use aws_schema::{Protocol, Service};
use serde_json::{Map, Value};

/// An error as it goes out. The model's own code and status win where it knows the error.
pub(super) fn encode(wire: Wire, service: Option<&Service>, error: &AwsError, id: &str) -> Reply {
    let known = service.and_then(|s| s.error(&error.code));
    let xml = matches!(wire.protocol, Protocol::Query | Protocol::Ec2);
    let code = known.map_or(error.code.as_str(), |(shape, e)| if xml { e.code } else { shape.name });
    // Who raised it may know better than a model that says nothing (400).
    let status =
        known.map(|(_, e)| e.status).filter(|s| *s != 400 && error.status == 400).unwrap_or(error.status);
    let (message, ns) = (xml::escape(&error.message), service.map_or("", |s| s.head.xml_namespace));
    let mut reply = match wire.protocol {
        Protocol::Query => {
            let side = if status < 500 { "Sender" } else { "Receiver" };
            let body = format!(
                "<ErrorResponse xmlns=\"{ns}\">\n<Error><Type>{side}</Type><Code>{}</Code><Message>{message}</Message>\
                 </Error>\n<RequestId>{id}</RequestId>\n</ErrorResponse>\n",
                xml::escape(code)
            );
            Reply::new(status, "text/xml", body.into_bytes())
        }
        Protocol::Ec2 => {
            let body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code>\
                 <Message>{message}</Message></Error></Errors><RequestID>{id}</RequestID></Response>",
                xml::escape(code)
            );
            Reply::new(status, "text/xml;charset=UTF-8", body.into_bytes())
        }
        Protocol::Json => {
            Reply::new(status, json_type(wire), body(code, error, service).to_string().into_bytes())
        }
        Protocol::RestJson => {
            Reply::new(status, "application/json", body(code, error, service).to_string().into_bytes())
        }
        Protocol::Cbor => {
            let mut reply = Reply::new(status, "application/cbor", cbor::plain(&body(code, error, service)));
            reply.headers.push(("smithy-protocol".into(), "rpc-v2-cbor".into()));
            reply
        }
    };
    if !xml {
        reply.headers.push(("x-amzn-errortype".into(), code.to_string()));
    }
    if service.is_some_and(|s| s.head.query_compatible) && !xml {
        let side = if status < 500 { "Sender" } else { "Receiver" };
        let old = known.map_or(code, |(_, e)| e.code);
        reply.headers.push(("x-amzn-query-error".into(), format!("{old};{side}")));
    }
    reply
}

fn body(code: &str, error: &AwsError, service: Option<&Service>) -> Value {
    let mut map: Map<String, Value> = error.more.clone();
    map.insert("__type".into(), code.into());
    map.insert("message".into(), error.message.as_str().into());
    // Some services' models call the text `Message`; their clients look for that name.
    let member = service.and_then(|s| s.error(code)).and_then(|(shape, _)| match &shape.kind {
        aws_schema::Kind::Structure(structure) => structure.member("Message"),
        _ => None,
    });
    if member.is_some() {
        map.insert("Message".into(), error.message.as_str().into());
    }
    Value::Object(map)
}

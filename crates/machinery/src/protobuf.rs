//! Kubernetes' protobuf form of built-in kinds, to and from JSON values, driven by the schema table.
//!
//! [`object`] and [`sealed`] handle whole documents in their envelope (`k8s\0`, then `runtime.Unknown`);
//! [`decode`] and [`encode`] the messages inside. Differences to JSON that are undone here: messages that JSON
//! has inline, times, quantities and other wrapped values, and zeros that only say "not set" (Go writes every
//! field that is no pointer).
//!
//! Invariants: no input panics; decoded documents nest at most [`crate::body::DEPTH_MAX`] deep. Fields without a
//! row in the table are skipped, as upstream does. Deliberately not here: custom resources, which have no
//! protobuf form, and Tables, which have none upstream either.

mod decode;
mod encode;
#[cfg(test)]
mod tests;
pub mod wire;

pub use decode::decode;
pub use encode::encode;

use crate::status::ApiError;
use k8s_schema::{DefRef, Type};
use serde_json::Value;
use std::borrow::Cow;
use wire::{Malformed, Reader, Writer};

/// What every enveloped document starts with.
const MAGIC: &[u8; 4] = b"k8s\0";
/// Kinds that every group version has; upstream registers them in each.
const OPTIONS: [&str; 1] = ["DeleteOptions"];

/// What old clients send under a version that is gone, and the version that says the same.
const OLDER: [((&str, &str), &str); 1] = [(("policy/v1beta1", "Eviction"), "policy/v1")];

/// The built-in definition of a body's apiVersion and kind.
fn definition(api_version: &str, kind: &str) -> Option<DefRef> {
    let older = OLDER.iter().find(|(old, _)| *old == (api_version, kind));
    let api_version = older.map_or(api_version, |(_, today)| today);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(row) = k8s_schema::resource_for_kind(group, version, kind) {
        return Some(row.def.clone());
    }
    let is = |d: &k8s_schema::Def| {
        d.gvks.contains(&(group, version, kind))
            || (OPTIONS.contains(&kind) && d.name.strip_prefix(META) == Some(kind))
    };
    let index = k8s_schema::defs().iter().position(is)?;
    u16::try_from(index).ok().map(DefRef::Builtin)
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The built-in definition of that full name.
fn named(name: &str) -> Option<DefRef> {
    let index = k8s_schema::defs().binary_search_by(|d| (*d.name).cmp(name)).ok()?;
    u16::try_from(index).ok().map(DefRef::Builtin)
}

/// `JSONSchemaProps`, which is reached without a reference.
fn schema_props() -> Option<DefRef> {
    named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
}

/// `ObjectMeta` and its like.
fn meta(kind: &str) -> Result<DefRef, ApiError> {
    named(&format!("{META}{kind}")).ok_or_else(|| ApiError::internal(format!("no definition of {kind}")))
}

/// The parts of `runtime.Unknown` that matter.
#[derive(Default)]
struct Envelope<'a> {
    api_version: Cow<'a, str>,
    kind: Cow<'a, str>,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(unknown) = bytes.strip_prefix(MAGIC) else {
            let why =
                "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
            return Err(Malformed(why.into()));
        };
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(unknown);
        while let Some((number, datum)) = reader.field()? {
            match number {
                1 => envelope.read_type(datum.bytes()?)?,
                2 => envelope.raw = datum.bytes()?,
                _ => {}
            }
        }
        if envelope.kind.is_empty() {
            return Err(Malformed("Object 'Kind' is missing in the protobuf envelope".into()));
        }
        Ok(envelope)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        while let Some((number, datum)) = reader.field()? {
            match number {
                1 => self.api_version = String::from_utf8_lossy(datum.bytes()?),
                2 => self.kind = String::from_utf8_lossy(datum.bytes()?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads an enveloped document, apiVersion and kind included. Errors are 400.
pub fn object(bytes: &[u8]) -> Result<Value, ApiError> {
    Ok(decode::enveloped(bytes, 0)?)
}

/// How a document is written.
enum Form {
    /// As its definition says.
    Defined(DefRef),
    /// `PartialObjectMetadata`, which no definition has: metadata only.
    Partial,
    /// A list of those.
    Partials,
}

/// The number of `metadata` in every object and list of Kubernetes.
const METADATA: u16 = 1;
/// The number of `items` in every list of Kubernetes.
const ITEMS: u16 = 2;

impl Form {
    fn encode(&self, value: &Value) -> Result<Vec<u8>, ApiError> {
        let kind = match self {
            Form::Defined(def) => return encode(def, value),
            Form::Partial => "ObjectMeta",
            Form::Partials => "ListMeta",
        };
        let mut message = Writer::default();
        message.bytes(METADATA, &encode(&meta(kind)?, &value["metadata"])?);
        for item in value["items"].as_array().into_iter().flatten() {
            message.bytes(ITEMS, &Form::Partial.encode(item)?);
        }
        Ok(message.0)
    }

    /// How the items of a list are written.
    fn item(&self) -> Option<Form> {
        let Form::Defined(def) = self else { return matches!(self, Form::Partials).then_some(Form::Partial) };
        match &def.get().field("items")?.ty {
            Type::Array(item) => match &**item {
                Type::Object(item) => Some(Form::Defined(item.clone())),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Writes a document (of a built-in kind: an object, a list, a Status; or metadata only) in its envelope. Other kinds
/// are 406.
pub fn sealed(value: &Value) -> Result<Vec<u8>, ApiError> {
    let (form, type_meta) = head(value)?;
    Ok(envelope(&type_meta, &form.encode(value)?))
}

/// The same of a list whose items come one after another, so that they are never all held as values. `list` has
/// everything but the items.
pub fn sealed_list(
    list: &Value,
    items: impl Iterator<Item = Result<Value, ApiError>>,
) -> Result<Vec<u8>, ApiError> {
    let (form, type_meta) = head(list)?;
    let item = form.item().ok_or_else(|| ApiError::internal("not a list"))?;
    let mut message = Writer(form.encode(list)?);
    for value in items {
        message.bytes(ITEMS, &item.encode(&value?)?);
    }
    Ok(envelope(&type_meta, &message.0))
}

/// How a document is written, and its type as the envelope has it.
fn head(value: &Value) -> Result<(Form, Vec<u8>), ApiError> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let form = match (api_version.starts_with("meta.k8s.io/"), kind) {
        (true, "PartialObjectMetadata") => Form::Partial,
        (true, "PartialObjectMetadataList") => Form::Partials,
        _ => Form::Defined(
            definition(api_version, kind)
                .ok_or_else(|| ApiError::new(406, "NotAcceptable", unknown_kind(api_version, kind).0))?,
        ),
    };
    let mut type_meta = Writer::default();
    type_meta.bytes(1, api_version.as_bytes());
    type_meta.bytes(2, kind.as_bytes());
    Ok((form, type_meta.0))
}

fn envelope(type_meta: &[u8], message: &[u8]) -> Vec<u8> {
    let mut unknown = Writer::default();
    unknown.bytes(1, type_meta);
    unknown.bytes(2, message);
    // Go's decoder takes these two for granted.
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    [MAGIC.as_slice(), &unknown.0].concat()
}

/// One event of a watch in a `stream=watch` body: a length in four bytes, big end first, then a bare
/// `WatchEvent` with the enveloped object.
pub fn watch_frame(event: &str, value: &Value) -> Result<Vec<u8>, ApiError> {
    let mut extension = Writer::default();
    extension.bytes(1, &sealed(value)?);
    let mut message = Writer::default();
    message.bytes(1, event.as_bytes());
    message.bytes(2, &extension.0);
    let length = u32::try_from(message.0.len()).map_err(ApiError::internal)?;
    Ok([length.to_be_bytes().as_slice(), &message.0].concat())
}

fn unknown_kind(api_version: &str, kind: &str) -> Malformed {
    Malformed(format!("no kind {kind:?} is registered for version {api_version:?}").into())
}

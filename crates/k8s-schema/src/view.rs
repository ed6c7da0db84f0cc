//! Typed views: `k8s-openapi` structs decoded from stored JSON.
//!
//! Decoding is instantiated here, once for each kind, so that no other crate compiles it again.

use std::borrow::Cow;

/// A typed reading of an object's JSON bytes.
pub trait View: Sized + Send + Sync + 'static {
    /// Decodes; unknown fields are ignored.
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error>;
}

macro_rules! views {
    ($($t:ty),* $(,)?) => {
        $(impl View for $t {
            fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
                serde_json::from_slice(&without_managers(raw))
            }
        })*
    };
}

const MANAGERS: &[u8] = b"\"managedFields\":[";

/// The document without its first list of field managers: who reads a view asks nobody who wrote it, and reading
/// them is half of the work. Text that stands in a string cannot be taken for the list: its quotes are escaped.
fn without_managers(raw: &[u8]) -> Cow<'_, [u8]> {
    let whole = Cow::Borrowed(raw);
    let Some(begin) = raw.windows(MANAGERS.len()).position(|w| w == MANAGERS) else { return whole };
    let begin = begin + MANAGERS.len();
    let (mut depth, mut text, mut escaped) = (1, false, false);
    for (at, byte) in raw.iter().enumerate().skip(begin) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => text = !text,
            b'[' if !text => depth += 1,
            b']' if !text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Cow::Owned([&raw[..begin - 1], b"null", &raw[at + 1..]].concat());
        }
    }
    whole
}

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery};

views! {
    core::ConfigMap, core::Endpoints, core::Namespace, core::Node, core::Pod, core::Secret, core::Service,
    core::ServiceAccount, apps::Deployment, apps::ReplicaSet, discovery::EndpointSlice,
    k8s_openapi::api::node::v1::RuntimeClass, k8s_openapi::api::coordination::v1::Lease,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_are_left_out() {
        let strange = r#"{"kind":"Pod","metadata":{"annotations":{"a":"\"managedFields\":[}"},"managedFields":[{"fieldsV1":{"f:a":{},"k:{\"x\":\"]\"}":[[]]}}],"name":"p"},"spec":{"containers":[]}}"#;
        let left = without_managers(strange.as_bytes());
        let left: serde_json::Value = serde_json::from_slice(&left).unwrap();
        let mut whole: serde_json::Value = serde_json::from_str(strange).unwrap();
        whole["metadata"]["managedFields"] = serde_json::Value::Null;
        assert_eq!(left, whole);
        for text in ["", "{}", r#"{"metadata":{"managedFields":[{"a":"]"#, r#"{"managedFields":null}"#] {
            assert_eq!(&*without_managers(text.as_bytes()), text.as_bytes());
        }
    }
}

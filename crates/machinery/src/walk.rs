//! The schema walk: one pass that checks types, prunes unknown fields and writes values canonically.
//!
//! It does to a JSON value what Go's decoder plus encoder do to a typed object: explicit nulls vanish,
//! unknown fields are dropped (and reported), quantities and times are rewritten in canonical form,
//! and a wrong type is refused in the decoder's words. Required fields are validation's business (`kinds`).

use crate::body::{DEPTH_MAX, REPORTS_MAX, Repeats};
use crate::quantity::Quantity;
use crate::status::ApiError;
use crate::time;
use base64::Engine;
use k8s_schema::{Def, Type};
use serde_json::{Value, json};

/// What to do about unknown fields. They are pruned in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Say nothing (`fieldValidation=Ignore`).
    Drop,
    /// Report, to become warnings (`fieldValidation=Warn`).
    Warn,
    /// Report, to become a refusal (`fieldValidation=Strict`).
    Error,
}

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The first wrong type, in the words of Go's decoder.
    pub error: Option<String>,
    /// Paths of unknown fields, at most [`REPORTS_MAX`]; empty under [`Unknown::Drop`].
    pub unknown: Vec<String>,
}

/// Checks and canonicalises `value` as an object of `def`, in place.
pub fn check(value: &mut Value, def: &Def, mode: Unknown) -> Outcome {
    let mut walk = Walk { mode, out: Outcome::default() };
    walk.object(value, def, &Path::ROOT);
    walk.out
}

/// The whole decode step of a write: checks `value`, then turns complaints and `duplicates` (of
/// [`crate::body::Body`]) into a 400 or, under [`Unknown::Warn`], into the warnings that are returned.
pub fn decode(
    value: &mut Value,
    def: &Def,
    mode: Unknown,
    duplicates: &Repeats,
) -> Result<Vec<String>, DecodeError> {
    let outcome = check(value, def, mode);
    let notes = duplicates.among(&outcome.unknown);
    report(outcome, mode, notes)
}

/// What is made of a walk's findings, and of the notes on fields that are too many.
pub fn report(outcome: Outcome, mode: Unknown, notes: Vec<String>) -> Result<Vec<String>, DecodeError> {
    if let Some(words) = outcome.error {
        return Err(DecodeError(words));
    }
    if mode == Unknown::Drop {
        return Ok(Vec::new());
    }
    if mode == Unknown::Error && !notes.is_empty() {
        return Err(DecodeError(format!("strict decoding error: {}", notes.join(", "))));
    }
    Ok(notes)
}

/// A body that does not decode, in the decoder's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

impl DecodeError {
    /// The 400 that a create or update answers.
    pub fn of_body(&self, kind: &str, version: &str) -> ApiError {
        let words = &self.0;
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {words}"
        ))
    }

    /// The 422 that a patch answers whose result does not decode.
    pub fn of_patch(&self, patch: &str) -> ApiError {
        let cause = crate::status::Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {patch:?}: {}", self.0),
            field: "patch".into(),
        };
        ApiError::invalid("", "", "", vec![cause])
    }
}

/// Where the walk is: a name or an index, and what it is in.
struct Path<'p> {
    segment: Segment<'p>,
    /// The type that the last name is a field of.
    owner: &'p str,
    parent: Option<&'p Path<'p>>,
    depth: usize,
}

enum Segment<'p> {
    Key(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    const ROOT: Path<'static> = Path { segment: Segment::Key(""), owner: "", parent: None, depth: 0 };

    fn below(&'p self, segment: Segment<'p>) -> Path<'p> {
        Path { segment, owner: self.owner, parent: Some(self), depth: self.depth + 1 }
    }

    /// `spec.containers[0].name`, or without indices as Go's decoder writes it.
    fn text(&self, indices: bool) -> String {
        let Some(parent) = self.parent else { return String::new() };
        let mut text = parent.text(indices);
        match self.segment {
            Segment::Key(key) if text.is_empty() => text += key,
            Segment::Key(key) => text += &format!(".{key}"),
            Segment::Index(i) if indices => text += &format!("[{i}]"),
            Segment::Index(_) => {}
        }
        text
    }
}

struct Walk {
    mode: Unknown,
    out: Outcome,
}

impl Walk {
    fn fail(&mut self, words: impl FnOnce() -> String) {
        if self.out.error.is_none() {
            self.out.error = Some(words());
        }
    }

    /// `json: cannot unmarshal string into Go struct field Owner.a.b of type int32`.
    fn mismatch(&mut self, value: &Value, go_type: &str, at: &Path<'_>) {
        let found = go_kind(value);
        self.fail(|| {
            if at.parent.is_none() {
                return format!("json: cannot unmarshal {found} into Go value of type {go_type}");
            }
            let path = at.text(false);
            format!(
                "json: cannot unmarshal {found} into Go struct field {}.{path} of type {go_type}",
                at.owner
            )
        });
    }

    fn object(&mut self, value: &mut Value, def: &Def, at: &Path<'_>) {
        if at.depth > DEPTH_MAX {
            return self.fail(|| "json: exceeded max depth".into());
        }
        let Value::Object(fields) = value else {
            return self.mismatch(value, &go_struct(def), at);
        };
        let owner = last_segment(&def.name);
        fields.retain(|key, inner| {
            let path = Path { owner, ..at.below(Segment::Key(key)) };
            match def.field(key) {
                Some(_) if inner.is_null() => return false,
                Some(field) => self.value(inner, &field.ty, &path),
                None if self.mode != Unknown::Drop && self.out.unknown.len() < REPORTS_MAX => {
                    self.out.unknown.push(path.text(true));
                    return false;
                }
                None => return false,
            }
            true
        });
    }

    fn value(&mut self, value: &mut Value, ty: &Type, at: &Path<'_>) {
        match ty {
            Type::Any => {}
            Type::Object(def) => self.object(value, def.get(), at),
            Type::Map(inner) => self.map(value, inner, at),
            Type::Array(inner) => self.array(value, inner, at),
            Type::String => self.expect(value.is_string(), value, "string", at),
            Type::Bool => self.expect(value.is_boolean(), value, "bool", at),
            Type::Number => self.expect(value.is_number(), value, "float64", at),
            Type::Int64 => self.expect(value.as_i64().is_some(), value, "int64", at),
            Type::Int32 => {
                let fits = value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
                self.expect(fits, value, "int32", at);
            }
            Type::Bytes => self.bytes(value, at),
            Type::IntOrString => {
                let fits = crate::intstr::IntOrString::from_json(value).is_some();
                if !fits {
                    let found = go_kind(value);
                    self.fail(|| format!("json: cannot unmarshal {found} into Go value of type int32"));
                }
            }
            Type::Quantity => match Quantity::from_json(value) {
                Some(Ok(quantity)) => *value = quantity.to_string().into(),
                Some(Err(e)) => self.fail(|| e.to_string()),
                None => self.fail(|| crate::quantity::QuantityError::Format.to_string()),
            },
            Type::Time => self.time(value, time::format),
            Type::MicroTime => self.time(value, time::format_micro),
        }
    }

    fn expect(&mut self, fits: bool, value: &Value, go_type: &str, at: &Path<'_>) {
        if !fits {
            self.mismatch(value, go_type, at);
        }
    }

    fn map(&mut self, value: &mut Value, inner: &Type, at: &Path<'_>) {
        if at.depth > DEPTH_MAX {
            return self.fail(|| "json: exceeded max depth".into());
        }
        let Value::Object(fields) = value else {
            return self.mismatch(value, &format!("map[string]{}", go_type(inner)), at);
        };
        for (key, value) in fields {
            self.element(value, inner, &at.below(Segment::Key(key)));
        }
    }

    fn array(&mut self, value: &mut Value, inner: &Type, at: &Path<'_>) {
        if at.depth > DEPTH_MAX {
            return self.fail(|| "json: exceeded max depth".into());
        }
        let Value::Array(items) = value else {
            return self.mismatch(value, &format!("[]{}", go_type(inner)), at);
        };
        for (i, value) in items.iter_mut().enumerate() {
            self.element(value, inner, &at.below(Segment::Index(i)));
        }
    }

    /// A list element or map value: null is the zero value of its type there.
    fn element(&mut self, value: &mut Value, ty: &Type, at: &Path<'_>) {
        if value.is_null() {
            *value = zero(ty);
        } else {
            self.value(value, ty, at);
        }
    }

    fn bytes(&mut self, value: &mut Value, at: &Path<'_>) {
        let Value::String(text) = value else {
            return self.mismatch(value, "[]uint8", at);
        };
        if text.contains(['\r', '\n']) {
            text.retain(|c| c != '\r' && c != '\n');
        }
        if let Err(e) = base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _) => at,
                _ => text.len(),
            };
            self.fail(|| format!("illegal base64 data at input byte {at}"));
        }
    }

    fn time(&mut self, value: &mut Value, format: fn(jiff::Timestamp) -> String) {
        let Value::String(text) = &*value else {
            let found = go_kind(value);
            return self.fail(|| format!("json: cannot unmarshal {found} into Go value of type string"));
        };
        match time::parse(text) {
            Ok(at) => *value = format(at).into(),
            Err(words) => self.fail(|| words),
        }
    }
}

fn zero(ty: &Type) -> Value {
    match ty {
        Type::String | Type::Bytes => json!(""),
        Type::Quantity => json!("0"),
        Type::IntOrString | Type::Int32 | Type::Int64 | Type::Number => json!(0),
        Type::Bool => json!(false),
        Type::Object(_) | Type::Map(_) => json!({}),
        Type::Array(_) => json!([]),
        Type::Any | Type::Time | Type::MicroTime => Value::Null,
    }
}

fn last_segment(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// `v1.Container` of `io.k8s.api.core.v1.Container`.
fn go_struct(def: &Def) -> String {
    let mut parts = def.name.rsplit('.');
    let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{version}.{kind}")
}

fn go_type(ty: &Type) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Number => "float64".into(),
        Type::Bool => "bool".into(),
        Type::Any => "interface {}".into(),
        Type::Object(def) => go_struct(def.get()),
        Type::Map(inner) => format!("map[string]{}", go_type(inner)),
        Type::Array(inner) => format!("[]{}", go_type(inner)),
    }
}

/// What Go's decoder calls a JSON value; numbers with their text.
fn go_kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(n) => format!("number {n}"),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_json;
    use proptest::prelude::*;

    fn def(name: &str) -> &'static Def {
        k8s_schema::def_by_name(name).expect("a built-in definition")
    }

    fn deployment(container: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
            "spec": {"template": {"spec": {"containers": [container]}}}})
    }

    #[test]
    fn canonical_values() {
        let mut v = json!({"metadata": {"name": "p", "creationTimestamp": null, "labels": {"a": null}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}], "nodeName": null},
            "status": {"startTime": "2026-01-01T01:00:00.5+01:00"}});
        let out = check(&mut v, def("io.k8s.api.core.v1.Pod"), Unknown::Error);
        assert_eq!(out, Outcome::default());
        assert_eq!(
            v,
            json!({"metadata": {"name": "p", "labels": {"a": ""}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
            "status": {"startTime": "2026-01-01T00:00:00Z"}})
        );
    }

    #[test]
    fn wrong_types_in_gos_words() {
        for (container, words) in [
            (
                json!({"ports": [{"containerPort": "80"}]}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
            ),
            (
                json!("x"),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.template.spec.containers of type v1.Container",
            ),
            (
                json!({"env": {}}),
                "json: cannot unmarshal object into Go struct field Container.spec.template.spec.containers.env of type []v1.EnvVar",
            ),
            (
                json!({"image": 1}),
                "json: cannot unmarshal number 1 into Go struct field Container.spec.template.spec.containers.image of type string",
            ),
            (
                json!({"resources": {"limits": {"cpu": "abc"}}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                json!({"livenessProbe": {"httpGet": {"port": {}}}}),
                "json: cannot unmarshal object into Go value of type int32",
            ),
            (
                json!({"ports": [{"containerPort": 5_000_000_000_i64}]}),
                "json: cannot unmarshal number 5000000000 into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
            ),
        ] {
            let mut v = deployment(container);
            let error =
                decode(&mut v, def("io.k8s.api.apps.v1.Deployment"), Unknown::Drop, &Default::default())
                    .unwrap_err();
            assert_eq!(error.0, words);
            let status = error.of_body("Deployment", "v1");
            assert_eq!(status.code, 400);
            assert!(
                status
                    .message
                    .starts_with("Deployment in version \"v1\" cannot be handled as a Deployment: ")
            );
        }
        let mut v = json!([]);
        let out = check(&mut v, def("io.k8s.api.core.v1.Pod"), Unknown::Drop);
        assert_eq!(out.error.unwrap(), "json: cannot unmarshal array into Go value of type v1.Pod");
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let d = def("io.k8s.api.apps.v1.Deployment");
        let given =
            || deployment(json!({"name": "c", "imagee": "x", "ports": [{"containerPort": 1, "x": null}]}));
        let clean = deployment(json!({"name": "c", "ports": [{"containerPort": 1}]}));
        let twice = crate::body::json(br#"{"metadata": {"name": 1, "name": 2}}"#).unwrap().duplicates;
        let mut v = given();
        assert_eq!(decode(&mut v, d, Unknown::Drop, &twice).unwrap(), Vec::<String>::new());
        assert_eq!(v, clean);
        let mut v = given();
        assert_eq!(
            decode(&mut v, d, Unknown::Warn, &twice).unwrap(),
            [
                "duplicate field \"metadata.name\"",
                "unknown field \"spec.template.spec.containers[0].imagee\"",
                "unknown field \"spec.template.spec.containers[0].ports[0].x\""
            ]
        );
        assert_eq!(v, clean);
        let error = decode(&mut given(), d, Unknown::Error, &Default::default()).unwrap_err();
        assert!(error.0.starts_with(
            "strict decoding error: unknown field \"spec.template.spec.containers[0].imagee\", unk"
        ));
    }

    #[test]
    fn secrets_are_base64() {
        let d = def("io.k8s.api.core.v1.Secret");
        let mut good = json!({"data": {"a": "aGVs\nbG8="}});
        assert_eq!(check(&mut good, d, Unknown::Error).error, None);
        assert_eq!(good["data"]["a"], "aGVsbG8=");
        let out = check(&mut json!({"data": {"a": "a*b="}}), d, Unknown::Error);
        assert_eq!(out.error.unwrap(), "illegal base64 data at input byte 1");
    }

    proptest! {
        #[test]
        fn never_panics_and_is_idempotent(part in any_json(), n in 0usize..60) {
            let defs = k8s_schema::resources();
            let d = defs[n % defs.len()].def.get();
            let mut once = json!({"metadata": part, "spec": part, "status": part});
            if check(&mut once, d, Unknown::Error).error.is_none() {
                let mut twice = once.clone();
                prop_assert_eq!(check(&mut twice, d, Unknown::Error), Outcome::default());
                prop_assert_eq!(once, twice);
            }
        }
    }
}

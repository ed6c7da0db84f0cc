//! ConfigMap, Secret, ServiceAccount.

use super::get::{default, entries, flag, has, remove, set, text};
use super::{Behaviour, FieldKind, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column};
use base64::Engine;
use serde_json::Value;

/// Data of one ConfigMap or Secret; upstream's limit.
const BYTES_MAX: usize = 1024 * 1024;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "configmaps",
        validated: true,
        validate_create: config_map,
        validate_update: |new, old, errors| {
            frozen(new, old, &["data", "binaryData"], errors);
            config_map(new, errors);
        },
        columns: &[
            Column::NAME,
            Column::new("Data", Cell::Fn(|c| (count(c, "/data") + count(c, "/binaryData")).into())),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        resource: "secrets",
        validated: true,
        defaults: secret_defaults,
        validate_create: secret,
        validate_update: |new, old, errors| {
            errors.immutable("type", &new["type"], &old["type"]);
            frozen(new, old, &["data"], errors);
            secret(new, errors);
        },
        fields: &[("type", FieldKind::Text("/type"))],
        columns: &[
            Column::NAME,
            Column::new("Type", Cell::Text("/type")),
            Column::new("Data", Cell::Fn(|s| count(s, "/data").into())),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        resource: "serviceaccounts",
        validated: true,
        columns: &[
            Column::NAME,
            Column::new("Secrets", Cell::Fn(|s| super::get::list(s, "/secrets").len().into())),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn count(v: &Value, at: &str) -> usize {
    entries(v, at).count()
}

/// `immutable: true` is final, and so is the data under it.
fn frozen(new: &Value, old: &Value, data: &[&str], errors: &mut FieldErrors) {
    if !flag(old, "/immutable") {
        return;
    }
    if !flag(new, "/immutable") {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for key in data {
        let at = format!("/{key}");
        if !entries(new, &at).eq(entries(old, &at)) {
            errors.forbidden(key, "field is immutable when `immutable` is set");
        }
    }
}

fn config_map(obj: &Value, errors: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in entries(obj, "/data") {
        let path = format!("data[{key}]");
        errors.invalid_all(&path, key, name::config_key(key));
        if has(obj, &format!("/binaryData/{}", key.replace('~', "~0").replace('/', "~1"))) {
            errors.invalid(&path, key, "duplicate of key present in binaryData");
        }
        total += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(obj, "/binaryData") {
        errors.invalid_all(&format!("binaryData[{key}]"), key, name::config_key(key));
        total += decoded_len(value);
    }
    if total > BYTES_MAX {
        errors.too_long("", BYTES_MAX);
    }
}

fn decoded_len(value: &Value) -> usize {
    value.as_str().map_or(0, |s| {
        s.len() / 4 * 3 - s.bytes().rev().take_while(|b| *b == b'=').count().min(s.len() / 4 * 3)
    })
}

/// The default type, and `stringData` (which is written, never read) moved into `data`.
fn secret_defaults(obj: &mut Value) {
    default(obj, "type", "Opaque");
    let Some(Value::Object(plain)) = remove(obj, "stringData") else { return };
    if let Some(data) = super::get::child(obj, "data") {
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            set(data, &key, base64::engine::general_purpose::STANDARD.encode(text));
        }
    }
}

fn secret(obj: &Value, errors: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in entries(obj, "/data") {
        errors.invalid_all(&format!("data[{key}]"), key, name::config_key(key));
        total += decoded_len(value);
    }
    if total > BYTES_MAX {
        errors.too_long("data", BYTES_MAX);
    }
    let has_key = |key: &str| entries(obj, "/data").any(|(k, _)| k == key);
    let need = |keys: &[&str], errors: &mut FieldErrors| {
        for key in keys.iter().filter(|k| !has_key(k)) {
            errors.required(&format!("data[{key}]"), "");
        }
    };
    match text(obj, "/type") {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            let account = entries(obj, "/metadata/annotations").find(|(k, _)| *k == annotation);
            if account.is_none_or(|(_, v)| v == "") {
                errors.required(&format!("metadata.annotations[{annotation}]"), "");
            }
        }
        "kubernetes.io/dockercfg" => json_in(obj, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json_in(obj, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !has_key("username") && !has_key("password") => {
            errors.required("data[username]", "");
            errors.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"], errors),
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"], errors),
        _ => {}
    }
}

fn json_in(obj: &Value, key: &str, errors: &mut FieldErrors) {
    let path = format!("data[{key}]");
    let Some((_, value)) = entries(obj, "/data").find(|(k, _)| *k == key) else {
        return errors.required(&path, "");
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
    let parses = bytes.is_ok_and(|b| serde_json::from_slice::<serde::de::IgnoredAny>(&b).is_ok());
    if !parses {
        errors.invalid(&path, "<secret contents redacted>", "invalid character in JSON");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets() {
        let mut s = json!({"metadata": {"name": "x"}, "stringData": {"a": "hello"}, "data": {"b": "eA=="}});
        secret_defaults(&mut s);
        assert_eq!(
            s,
            json!({"metadata": {"name": "x"}, "type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}})
        );
        let mut errors = FieldErrors::new();
        secret(&json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "a/b": ""}}), &mut errors);
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["data[a/b]", "data[tls.key]"]);
        let mut errors = FieldErrors::new();
        secret(
            &json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}),
            &mut errors,
        );
        assert!(errors.is_empty());
    }

    #[test]
    fn big_or_frozen_config_maps() {
        let mut errors = FieldErrors::new();
        config_map(&json!({"data": {"a": "x".repeat(BYTES_MAX + 1)}}), &mut errors);
        assert_eq!(errors.causes()[0].message, "Too long: may not be more than 1048576 bytes");
        let mut errors = FieldErrors::new();
        frozen(
            &json!({"immutable": true, "data": {"a": "2"}}),
            &json!({"immutable": true, "data": {"a": "1"}}),
            &["data"],
            &mut errors,
        );
        assert_eq!(errors.causes()[0].field, "data");
    }
}

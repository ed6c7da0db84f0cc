//! ConfigMap, Secret, ServiceAccount.

use super::get::{default, entries, flag, remove, set};
use super::spot::Spot;
use super::{Behaviour, CHECKED, FieldKind};
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
        validate: config_map,
        validate_update: Some(|s, old| {
            frozen(s, old, &["data", "binaryData"]);
            config_map(s);
        }),
        columns: &[
            Column::NAME,
            Column::new("Data", Cell::Fn(|c| (count(c, "/data") + count(c, "/binaryData")).into())),
            Column::AGE,
        ],
        ..CHECKED
    },
    Behaviour {
        resource: "secrets",
        defaults: secret_defaults,
        validate: secret,
        validate_update: Some(|s, old| {
            s.immutable("type", old);
            frozen(s, old, &["data"]);
            secret(s);
        }),
        fields: &[("type", FieldKind::Text("/type"))],
        columns: &[
            Column::NAME,
            Column::new("Type", Cell::Text("/type")),
            Column::new("Data", Cell::Fn(|s| count(s, "/data").into())),
            Column::AGE,
        ],
        ..CHECKED
    },
    Behaviour {
        resource: "serviceaccounts",
        columns: &[
            Column::NAME,
            Column::new("Secrets", Cell::Fn(|s| super::get::list(s, "/secrets").len().into())),
            Column::AGE,
        ],
        ..CHECKED
    },
];

fn count(v: &Value, at: &str) -> usize {
    entries(v, at).count()
}

/// `immutable: true` is final, and so is the data under it.
fn frozen(new: &Spot, old: &Value, data: &[&str]) {
    if !flag(old, "/immutable") {
        return;
    }
    let words = "field is immutable when `immutable` is set";
    if !new.flag("immutable") {
        new.forbidden("immutable", words);
    }
    for key in data {
        if !entries(&new.v[*key], "").eq(entries(&old[*key], "")) {
            new.forbidden(key, words);
        }
    }
}

fn config_map(obj: &Spot) {
    let mut total = 0;
    let binary = &obj.v["binaryData"];
    for (key, value) in obj.entries("data") {
        value.invalid_all("", key, name::config_key(key));
        if !binary[key].is_null() {
            value.invalid("", key, "duplicate of key present in binaryData");
        }
        total += value.text("").len();
    }
    for (key, value) in obj.entries("binaryData") {
        value.invalid_all("", key, name::config_key(key));
        total += decoded_len(value.v);
    }
    obj.no_longer("", total, BYTES_MAX);
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

fn secret(obj: &Spot) {
    let data = obj.key("data");
    let mut total = 0;
    for (key, value) in data.entries("") {
        value.invalid_all("", key, name::config_key(key));
        total += decoded_len(value.v);
    }
    data.no_longer("", total, BYTES_MAX);
    let has_key = |key: &str| data.v.get(key).is_some();
    let need = |keys: &[&str]| {
        for key in keys.iter().filter(|k| !has_key(k)) {
            obj.required(&format!("data[{key}]"), "");
        }
    };
    match obj.text("type") {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            let account = entries(obj.v, "/metadata/annotations").find(|(k, _)| *k == annotation);
            if account.is_none_or(|(_, v)| v == "") {
                obj.required(&format!("metadata.annotations[{annotation}]"), "");
            }
        }
        "kubernetes.io/dockercfg" => json_in(obj, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_in(obj, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has_key("username") && !has_key("password") => {
            need(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

fn json_in(obj: &Spot, key: &str) {
    let path = format!("data[{key}]");
    let Some(value) = obj.v["data"].get(key) else { return obj.required(&path, "") };
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
    let parses = bytes.is_ok_and(|b| serde_json::from_slice::<serde::de::IgnoredAny>(&b).is_ok());
    if !parses {
        obj.invalid(&path, "<secret contents redacted>", "invalid character in JSON");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
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
        secret(&Spot::new(
            &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "a/b": ""}}),
            "",
            &mut errors,
        ));
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["data[a/b]", "data[tls.key]"]);
        let mut errors = FieldErrors::new();
        secret(&Spot::new(
            &json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}),
            "",
            &mut errors,
        ));
        assert!(errors.is_empty());
    }

    #[test]
    fn big_or_frozen_config_maps() {
        let mut errors = FieldErrors::new();
        config_map(&Spot::new(&json!({"data": {"a": "x".repeat(BYTES_MAX + 1)}}), "", &mut errors));
        assert_eq!(errors.causes()[0].message, "Too long: may not be more than 1048576 bytes");
        let mut errors = FieldErrors::new();
        frozen(
            &Spot::new(&json!({"immutable": true, "data": {"a": "2"}}), "", &mut errors),
            &json!({"immutable": true, "data": {"a": "1"}}),
            &["data"],
        );
        assert_eq!(errors.causes()[0].field, "data");
    }
}

//! A document as YAML: for clients that ask for `application/yaml`.
//!
//! Block style, keys in order; every text that a reader could take for anything else is quoted as in JSON, which YAML
//! reads likewise. Deliberately not here: reading (`body`).

use serde_json::Value;

/// Words that YAML readers, of 1.1 too, take for something else than text.
const WORDS: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan"];

/// The document as YAML. It nests as deep as its value, which [`crate::body::DEPTH_MAX`] bounds.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    node(value, 0, &mut out);
    out
}

/// A node that begins at the writer's place; its further lines are indented by `indent`.
fn node(value: &Value, indent: usize, out: &mut String) {
    let pad =
        |n: usize, out: &mut String| out.extend(std::iter::repeat_n(' ', if n == 0 { 0 } else { indent }));
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (n, (key, value)) in map.iter().enumerate() {
                pad(n, out);
                scalar(key, out);
                out.push(':');
                let inner = match value {
                    Value::Object(map) if !map.is_empty() => Some(indent + 2),
                    Value::Array(list) if !list.is_empty() => Some(indent),
                    _ => None,
                };
                match inner {
                    Some(inner) => {
                        out.push('\n');
                        out.extend(std::iter::repeat_n(' ', inner));
                        node(value, inner, out);
                    }
                    None => {
                        out.push(' ');
                        node(value, indent, out);
                    }
                }
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (n, item) in list.iter().enumerate() {
                pad(n, out);
                out.push_str("- ");
                node(item, indent + 2, out);
            }
        }
        Value::String(text) => {
            scalar(text, out);
            out.push('\n');
        }
        other => out.push_str(&format!("{other}\n")),
    }
}

fn scalar(text: &str, out: &mut String) {
    let tame = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(tame)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    match plain {
        true => out.push_str(text),
        false => out.push_str(&Value::from(text).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn blocks_as_people_write_them() {
        let pod = json!({"a": {"b:c": "x", "d": []}, "e": [{"f": 1, "g": ["h", [true, null]]}, {}], "n": "no", "t": "2026-01-01", "z": "two\nlines"});
        let want = "a:\n  b:c: x\n  d: []\ne:\n- f: 1\n  g:\n  - h\n  - - true\n    - null\n- {}\n\"n\": \"no\"\nt: \"2026-01-01\"\nz: \"two\\nlines\"\n";
        assert_eq!(text(&pod), want);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(texts in proptest::collection::vec("\\PC{0,6}|[a-z:~#-]{0,5}|[\\n\\t ]{0,3}", 1..6), number: i64, flag: bool) {
            let list: Vec<Value> = texts.iter().map(|t| json!({"k": t, "l": [t, number]})).collect();
            let mut map = serde_json::Map::new();
            map.extend(texts.iter().map(|t| (t.clone(), json!([[t], flag]))));
            let value = json!({"list": list, "map": map, "none": null});
            let body = crate::body::yaml(text(&value).as_bytes()).unwrap();
            prop_assert_eq!(body.value, value);
        }
    }
}

//! `cargo xtask specs k8s`: downloads the pinned Kubernetes definitions and writes the doc-free table.
//!
//! Reads: one sdist from PyPI through `pip`, refused unless its sha256 is the pinned one.
//! Writes: `specs/k8s-1.36.txt`. Descriptions are never written. The package's transforms
//! (nullable types, prefixed references, `oneOf` for quantities, `enum` on apiVersion and kind) are undone.
//! Not here: resources, verbs, short names (`specs/k8s-1.36-resources.txt` is written by hand).

mod aws;
mod protobuf;

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

const PACKAGE: &str = "kubernetes-validate";
const PACKAGE_VERSION: &str = "1.36.0";
const SHA256: &str = "edbfd2db9e88b571029aa16ab1116c6502ad2b9628b6738dd39d639323f84715";
const MEMBER: &str = "v1.36.0-local/_definitions.json";
const OUTPUT: &str = "specs/k8s-1.36.txt";
/// Definitions without properties that nevertheless hold anything (others of that shape are empty structs).
const OPEN_OBJECTS: [&str; 3] = [
    "apimachinery.pkg.apis.meta.v1.FieldsV1",
    "apimachinery.pkg.apis.meta.v1.Patch",
    "apimachinery.pkg.runtime.RawExtension",
];

/// Runs the task in the repository `root`; `which` names the table ("k8s", "k8s-protobuf", "aws").
pub fn run(root: &Path, which: &str) -> Result<()> {
    match which {
        "k8s" => definitions_table(root),
        "k8s-protobuf" => protobuf::run(root),
        "aws" => aws::run(root),
        _ => bail!("unknown specs table {which:?}; there are: k8s, k8s-protobuf, aws"),
    }
}

fn definitions_table(root: &Path) -> Result<()> {
    let table = table(&definitions(&download()?)?)?;
    let path = root.join(OUTPUT);
    std::fs::write(&path, &table).with_context(|| format!("write {}", path.display()))?;
    println!("{}: {} lines, {} bytes", path.display(), table.lines().count(), table.len());
    Ok(())
}

fn download() -> Result<Vec<u8>> {
    let dir = std::env::temp_dir().join(format!("gantry-specs-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let got = download_into(&dir);
    std::fs::remove_dir_all(&dir)?;
    let bytes = got?;
    let sum = hex_sha256(&bytes);
    ensure!(sum == SHA256, "{PACKAGE} {PACKAGE_VERSION}: sha256 is {sum}, pinned is {SHA256}");
    Ok(bytes)
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn download_into(dir: &Path) -> Result<Vec<u8>> {
    let ok = Command::new("pip")
        .args(["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"])
        .arg(dir)
        .arg(format!("{PACKAGE}=={PACKAGE_VERSION}"))
        .status()
        .context("run pip")?
        .success();
    ensure!(ok, "pip download failed");
    let file = dir.join(format!("kubernetes_validate-{PACKAGE_VERSION}.tar.gz"));
    std::fs::read(&file).with_context(|| format!("read {}", file.display()))
}

fn definitions(sdist: &[u8]) -> Result<Map<String, Value>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(sdist));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.path()?.ends_with(MEMBER) {
            continue;
        }
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        let mut doc: Value = serde_json::from_str(&text)?;
        let Value::Object(defs) = doc["$defs"].take() else { bail!("{MEMBER}: no $defs") };
        return Ok(defs);
    }
    bail!("{MEMBER} is not in the package")
}

/// The whole table, definitions and fields sorted by name.
fn table(defs: &Map<String, Value>) -> Result<String> {
    let mut out = format!(
        "# Kubernetes v1.36 definitions, without descriptions. Made by `cargo xtask specs k8s`; do not edit.\n\
         # source: PyPI {PACKAGE} {PACKAGE_VERSION} (sdist), sha256 {SHA256}\n\
         # licence: Apache-2.0, Copyright The Kubernetes Authors\n\
         # def <name without io.k8s.> [is=<scalar>] [map=] [gvk=<group>/<version>/<kind>,...]\n\
         #  <field> <type> [!required] [list=] [keys=] [patch=] [mk=] [map=]   type: []T list, {{}}T map, name definition\n"
    );
    for (name, def) in defs {
        definition(&mut out, short(name)?, def).with_context(|| name.clone())?;
    }
    Ok(out)
}

fn short(name: &str) -> Result<&str> {
    name.strip_prefix("io.k8s.").with_context(|| format!("{name}: not io.k8s."))
}

fn definition(out: &mut String, name: &str, def: &Value) -> Result<()> {
    write!(out, "def {name}")?;
    if let Some(scalar) = scalar(name, def) {
        write!(out, " is={scalar}")?;
    }
    map_type(out, def)?;
    let gvks: Vec<String> = array(def, "x-kubernetes-group-version-kind")
        .map(|g| format!("{}/{}/{}", text(g, "group"), text(g, "version"), text(g, "kind")))
        .collect();
    if !gvks.is_empty() {
        write!(out, " gvk={}", gvks.join(","))?;
    }
    out.push('\n');
    let required: Vec<&str> = array(def, "required").filter_map(Value::as_str).collect();
    for (field, schema) in def["properties"].as_object().into_iter().flatten() {
        write!(out, " {field} {}", type_name(schema)?)?;
        if required.contains(&field.as_str()) {
            out.push_str(" !");
        }
        facts(out, schema)?;
        out.push('\n');
    }
    Ok(())
}

fn facts(out: &mut String, schema: &Value) -> Result<()> {
    for (key, label) in [
        ("x-kubernetes-list-type", "list"),
        ("x-kubernetes-patch-strategy", "patch"),
        ("x-kubernetes-patch-merge-key", "mk"),
    ] {
        if let Some(value) = schema[key].as_str() {
            write!(out, " {label}={value}")?;
        }
    }
    let keys: Vec<&str> = array(schema, "x-kubernetes-list-map-keys").filter_map(Value::as_str).collect();
    if !keys.is_empty() {
        write!(out, " keys={}", keys.join(","))?;
    }
    map_type(out, schema)
}

fn map_type(out: &mut String, schema: &Value) -> Result<()> {
    match schema["x-kubernetes-map-type"].as_str() {
        None => {}
        Some(kind @ ("atomic" | "granular")) => write!(out, " map={kind}")?,
        Some(other) => bail!("map type {other:?}"),
    }
    Ok(())
}

/// What a definition without properties stands for; `None`: an object with exactly its properties.
fn scalar(name: &str, def: &Value) -> Option<&'static str> {
    if def.get("properties").is_some() {
        return None;
    }
    if let Some(choices) = def["oneOf"].as_array() {
        let has = |t: &str| choices.iter().any(|c| base_type(c) == Some(t));
        return Some(if has("number") { "quantity" } else { "intstr" });
    }
    match base_type(def) {
        Some("string") if name.ends_with(".MicroTime") => Some("microtime"),
        Some("string") => Some("time"),
        Some("object") if !OPEN_OBJECTS.contains(&name) => None,
        _ => Some("any"),
    }
}

/// The type's name, without the package's added null.
fn base_type(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|t| *t != "null"),
        other => other.as_str(),
    }
}

fn type_name(schema: &Value) -> Result<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/$defs/").with_context(|| format!("reference {reference:?}"))?;
        return Ok(short(name)?.to_owned());
    }
    Ok(match (base_type(schema), schema["format"].as_str()) {
        (Some("string"), None) => "str".into(),
        (Some("string"), Some("byte")) => "bytes".into(),
        (Some("integer"), Some("int32")) => "i32".into(),
        (Some("integer"), Some("int64")) => "i64".into(),
        (Some("number"), Some("double")) => "f64".into(),
        (Some("boolean"), None) => "bool".into(),
        (Some("array"), None) => format!("[]{}", type_name(&schema["items"])?),
        (Some("object"), None) if schema.get("additionalProperties").is_some() => {
            format!("{{}}{}", type_name(&schema["additionalProperties"])?)
        }
        other => bail!("type {other:?}"),
    })
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn transforms_are_undone_and_descriptions_dropped() {
        let defs = json!({
            "io.k8s.a.Q": {"oneOf": [{"type": ["string", "null"]}, {"type": ["number", "null"]}]},
            "io.k8s.a.X": {
                "description": "never", "type": ["object", "null"], "required": ["ports"],
                "x-kubernetes-group-version-kind": [{"group": "", "kind": "X", "version": "v1"}],
                "properties": {
                    "kind": {"type": ["string", "null"], "enum": ["X"], "description": "never"},
                    "ports": {"type": "array", "items": {"$ref": "#/$defs/io.k8s.a.Q"},
                        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["p", "q"],
                        "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "p"},
                    "sel": {"type": ["object", "null"], "x-kubernetes-map-type": "atomic",
                        "additionalProperties": {"type": ["array", "null"], "items": {"type": ["string", "null"], "format": "byte"}}}
                }
            }
        });
        let table = table(defs.as_object().unwrap()).unwrap();
        let body: Vec<&str> = table.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            body,
            [
                "def a.Q is=quantity",
                "def a.X gvk=/v1/X",
                " kind str",
                " ports []a.Q ! list=map patch=merge mk=p keys=p,q",
                " sel {}[]bytes map=atomic",
            ]
        );
        assert!(!table.contains("never"));
    }

    #[test]
    fn an_unknown_shape_is_refused() {
        let defs = json!({"io.k8s.a.X": {"properties": {"f": {"type": "integer", "format": "int16"}}}});
        assert!(table(defs.as_object().unwrap()).is_err());
    }
}

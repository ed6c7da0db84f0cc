//! `cargo xtask specs k8s-protobuf`: the protobuf field numbers of the Kubernetes definitions, as a doc-free table.
//!
//! Reads: one crate from crates.io through `cargo fetch`, refused unless its sha256 is the pinned one, and
//! `specs/k8s-1.36.txt`, for JSON's names and to check that both sources agree on every type.
//! Writes: `specs/k8s-1.36-protobuf.txt`. Not here: what the crate lacks (`specs/k8s-1.36-protobuf-extra.txt`
//! is kept by hand).

use super::hex_sha256;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "k8s-pb";
const PACKAGE_VERSION: &str = "0.9.0";
const SHA256: &str = "43b6ba14400b62feaa58ebbbd32ce2d9a4601339b2820af393f68033b9cea620";
const SCHEMA: &str = "specs/k8s-1.36.txt";
const OUTPUT: &str = "specs/k8s-1.36-protobuf.txt";
/// Prefix: its `verbs` are a wrapper message; discovery is JSON only.
const SKIPPED: &str = "apimachinery.pkg.apis.meta.v1.APIResource";

/// Runs the task in the repository `root`.
pub fn run(root: &Path) -> Result<()> {
    let schema = std::fs::read_to_string(root.join(SCHEMA)).context(SCHEMA)?;
    let table = table(&definitions(&schema), &messages(&package()?)?)?;
    let path = root.join(OUTPUT);
    std::fs::write(&path, &table).with_context(|| format!("write {}", path.display()))?;
    println!("{}: {} lines, {} bytes", path.display(), table.lines().count(), table.len());
    Ok(())
}

/// The crate's archive, by way of cargo's own cache.
fn package() -> Result<Vec<u8>> {
    let dir = std::env::temp_dir().join(format!("gantry-specs-pb-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("src"))?;
    let got = fetch_in(&dir);
    std::fs::remove_dir_all(&dir)?;
    got?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let cache = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/cache");
    for registry in std::fs::read_dir(&cache).with_context(|| cache.display().to_string())? {
        let file = registry?.path().join(format!("{PACKAGE}-{PACKAGE_VERSION}.crate"));
        if file.exists() {
            let bytes = std::fs::read(&file)?;
            let sum = hex_sha256(&bytes);
            ensure!(sum == SHA256, "{}: sha256 is {sum}, pinned is {SHA256}", file.display());
            return Ok(bytes);
        }
    }
    bail!("cargo fetch left no {PACKAGE}-{PACKAGE_VERSION}.crate in {}", cache.display())
}

fn fetch_in(dir: &Path) -> Result<()> {
    std::fs::write(dir.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\n[workspace]\n\
         [dependencies]\n{PACKAGE} = {{ version = \"={PACKAGE_VERSION}\", default-features = false }}\n"
    );
    std::fs::write(dir.join("Cargo.toml"), manifest)?;
    let ok = Command::new("cargo").args(["fetch", "--quiet"]).current_dir(dir).status()?.success();
    ensure!(ok, "cargo fetch failed");
    Ok(())
}

/// Definition → squeezed field name → (JSON name, type).
type Definitions<'a> = BTreeMap<&'a str, BTreeMap<String, (&'a str, &'a str)>>;

fn definitions(schema: &str) -> Definitions<'_> {
    let mut defs = Definitions::new();
    let mut current = None;
    for line in schema.lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["def", name, ref facts @ ..] if !facts.iter().any(|f| f.starts_with("is=")) => {
                current = Some(defs.entry(name).or_default());
            }
            ["def", ..] => current = None,
            [name, ty, ..] => {
                if let Some(fields) = &mut current {
                    fields.insert(squeeze(name), (name, ty));
                }
            }
            _ => {}
        }
    }
    defs
}

/// Letters and digits in lower case: what `podIPs`, `pod_ips` and `x-kubernetes-…`, `x_kubernetes_…` share.
fn squeeze(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// One numbered field of a message.
struct Tag {
    name: String,
    number: u32,
    /// `string`, `int32 repeated`, `map message`.
    wire: String,
    /// The Rust path of its type.
    path: String,
}

/// Messages by name in lower case (`api.core.v1.pod`): Rust writes some words otherwise (`HttpHeader`).
type Messages = BTreeMap<String, Vec<Tag>>;

fn messages(archive: &[u8]) -> Result<Messages> {
    let mut all = Messages::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let module = path.split_once("/src/").and_then(|(_, p)| p.strip_suffix("/mod.rs"));
        let Some(module) = module.map(|m| m.replace('/', ".").replace('_', "-")) else { continue };
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        read_module(&module, &text, &mut all).with_context(|| path)?;
    }
    Ok(all)
}

fn read_module(module: &str, text: &str, all: &mut Messages) -> Result<()> {
    let code = text.lines().map(str::trim).filter(|l| !l.starts_with("//")).collect::<Vec<_>>().join(" ");
    for part in code.split("pub struct ").skip(1) {
        let name = part.split([' ', '{']).next().unwrap_or_default();
        let tags = part.split("#[prost(").skip(1).map(tag).collect::<Result<Vec<_>>>();
        all.insert(format!("{module}.{name}").to_lowercase(), tags.with_context(|| name.to_owned())?);
    }
    Ok(())
}

/// Reads `string, optional, tag = "1")] pub r#type: ::core::option::Option<String>, …`.
fn tag(text: &str) -> Result<Tag> {
    let (spec, rest) = text.split_once("tag = \"").context("no tag")?;
    let (number, rest) = rest.split_once("\")] pub ").context("no field")?;
    let (name, rest) = rest.split_once(':').context("no type")?;
    let spec = spec.trim_end().trim_end_matches(',');
    let wire = match spec.strip_prefix("btree_map = \"string, ") {
        Some(value) => format!("map {}", value.trim_end_matches('"')),
        None => {
            let words: Vec<&str> = spec.split([',', ' ', '=']).collect();
            let repeated = if words.contains(&"repeated") { " repeated" } else { "" };
            format!("{}{repeated}", words[0])
        }
    };
    let path = rest.split('>').next().and_then(|p| p.rsplit('<').next()).unwrap_or_default().trim();
    Ok(Tag {
        name: squeeze(name.trim_start_matches("r#")),
        number: number.parse()?,
        wire,
        path: path.trim_end_matches(',').to_owned(),
    })
}

/// `super::v1::Rule` as seen from a message of that name.
fn resolve(from: &str, path: &str) -> String {
    let mut module: Vec<&str> = from.split('.').collect();
    module.pop();
    for segment in path.split("::") {
        if segment == "super" {
            module.pop();
        } else {
            module.push(segment);
        }
    }
    module.join(".").replace('_', "-")
}

/// The wire type that a schema type must have.
fn wire(ty: &str) -> String {
    if let Some(items) = ty.strip_prefix("[]") {
        return format!("{} repeated", wire(items));
    }
    if let Some(values) = ty.strip_prefix("{}") {
        // A map of lists holds wrapper messages.
        return format!("map {}", if values.starts_with("[]") { "message".into() } else { wire(values) });
    }
    let scalars = [("str", "string"), ("i32", "int32"), ("i64", "int64"), ("f64", "double")];
    match ty {
        "bool" | "bytes" => ty.into(),
        _ => scalars.iter().find(|(s, _)| *s == ty).map_or("message", |(_, w)| w).into(),
    }
}

fn table(defs: &Definitions, messages: &Messages) -> Result<String> {
    let mut out = format!(
        "# Protobuf field numbers of Kubernetes. Made by `cargo xtask specs k8s-protobuf`; do not edit.\n\
         # source: crates.io {PACKAGE} {PACKAGE_VERSION}, sha256 {SHA256}\n\
         # licence: Apache-2.0, Copyright The Kubernetes Authors\n\
         # <message without k8s.io.> <JSON field>=<number>... @<message>=<number>: a message whose fields JSON has inline\n\
         # types are those of k8s-1.36.txt; what is missing here stands in k8s-1.36-protobuf-extra.txt\n"
    );
    for (name, fields) in defs {
        let Some(tags) = messages.get(&name.to_lowercase()).filter(|_| !name.starts_with(SKIPPED)) else {
            continue;
        };
        let mut inner = BTreeSet::new();
        let line = message(name, fields, tags, &mut inner)?;
        writeln!(out, "{line}")?;
        // Messages that only exist inside: their fields are the outer definition's.
        while let Some(name) = inner.pop_first() {
            if defs.contains_key(name.as_str()) || out.contains(&format!("\n{name} ")) {
                continue;
            }
            let tags = messages.get(&name.to_lowercase()).with_context(|| format!("no message {name}"))?;
            let line = message(&name, fields, tags, &mut inner)?;
            // Nothing of it in JSON: a field of another version, not an embedded message.
            if line == name {
                let start = out.find(&format!(" @{name}=")).context("the message that led here")?;
                let end = start + 1 + out[start + 1..].find([' ', '\n']).unwrap_or_default();
                out.replace_range(start..end, "");
                continue;
            }
            writeln!(out, "{line}")?;
        }
    }
    Ok(out)
}

fn message(
    name: &str,
    fields: &BTreeMap<String, (&str, &str)>,
    tags: &[Tag],
    inner: &mut BTreeSet<String>,
) -> Result<String> {
    let mut line = name.to_owned();
    let mut tags: Vec<&Tag> = tags.iter().collect();
    tags.sort_by_key(|t| t.number);
    for tag in tags {
        match fields.get(&tag.name) {
            Some((json, ty)) => {
                let want = wire(ty);
                ensure!(tag.wire == want, "{name}.{json}: {} in {PACKAGE}, {want} in {SCHEMA}", tag.wire);
                write!(line, " {json}={}", tag.number)?;
            }
            None if tag.wire == "message" => {
                let target = resolve(name, &tag.path);
                write!(line, " @{target}={}", tag.number)?;
                inner.insert(target);
            }
            // A field that JSON of this version no longer has.
            None => println!("left out: {name} {} = {}", tag.name, tag.number),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "def a.v1.Vol\n name str !\n podIPs []str\n hostPath a.v1.Path\n m {}[]str\n\
                          def a.v1.Path\n type i32\ndef a.v1.Q is=quantity\n";
    const MODULE: &str = "
        /// never = \"9\"
        pub struct Vol {
            #[prost(string, optional, tag = \"1\")]
            pub name: ::core::option::Option<::prost::alloc::string::String>,
            #[prost(message, optional, tag = \"2\")]
            pub source: ::core::option::Option<super::v1::Source>,
            #[prost(string, repeated, tag = \"4\")]
            pub pod_ips: ::prost::alloc::vec::Vec<::prost::alloc::string::String>,
            #[prost(btree_map = \"string, message\", tag = \"3\")]
            pub m:
                ::prost::alloc::collections::BTreeMap<::prost::alloc::string::String, Extra>,
        }
        pub struct Source {
            #[prost(message, optional, boxed, tag = \"1\")]
            pub host_path: ::core::option::Option<Path>,
        }
        pub struct Path {
            #[prost(int32, optional, tag = \"1\")]
            pub r#type: ::core::option::Option<i32>,
        }";

    fn read(module: &str) -> Result<String> {
        let mut all = Messages::new();
        read_module("a.v1", module, &mut all)?;
        let table = table(&definitions(SCHEMA), &all)?;
        Ok(table.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn names_are_jsons_and_embedded_messages_are_kept() {
        let want = "a.v1.Path type=1\na.v1.Vol name=1 @a.v1.Source=2 m=3 podIPs=4\na.v1.Source hostPath=1";
        assert_eq!(read(MODULE).unwrap(), want);
    }

    #[test]
    fn a_type_that_the_schema_has_otherwise_is_refused() {
        assert!(read(&MODULE.replace("int32", "int64")).is_err());
    }
}

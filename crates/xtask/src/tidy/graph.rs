//! Checks on the package graph, as `cargo metadata` tells it.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Licences that may be linked in (each alternative of an `OR` counts).
const LICENCES: [&str; 17] = [
    "Apache-2.0",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "BSL-1.0",
    "MPL-2.0",
    "MPL-2.0+",
    "Apache-2.0 WITH LLVM-exception",
    "CDLA-Permissive-2.0",
    "OpenSSL",
];
/// Average internal edges a crate, at most.
const EDGES_MEAN_MAX: usize = 6;
/// Packages that may be present in several versions, with the reason.
const DUPLICATES: &[(&str, &str)] = &[
    ("base64", "k8s-openapi and tower-http use 0.22, kube 0.23"),
    ("getrandom", "ring still uses 0.2"),
    ("hashbrown", "kube-runtime, which only tests use"),
    ("lock_api", "kube-runtime, which only tests use"),
    ("parking_lot", "kube-runtime, which only tests use"),
    ("parking_lot_core", "kube-runtime, which only tests use"),
    ("rand_core", "imbl still uses 0.9"),
    ("syn", "proc macros, not linked: derive crates move at their own pace"),
];

/// The part of `cargo metadata` that the checks read.
#[derive(Deserialize)]
pub struct Metadata {
    /// All packages, ours and others'.
    pub packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Value,
}

/// One package.
#[derive(Deserialize)]
pub struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    dependencies: Vec<Dependency>,
    metadata: Value,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Asks cargo, without the network.
pub fn metadata(root: &Path) -> Result<Metadata> {
    let output = std::process::Command::new(std::env::var("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn layer(package: &Package) -> Option<u64> {
    match &package.metadata["layer"] {
        Value::Number(n) => n.as_u64(),
        Value::String(s) if s == "dev" => Some(99),
        _ => None,
    }
}

/// Edges go to strictly lower layers, and there are few of them.
pub fn layers(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeMap<&str, &Package> = metadata
        .packages
        .iter()
        .filter(|p| metadata.workspace_members.contains(&p.id))
        .map(|p| (p.name.as_str(), p))
        .collect();
    let mut complaints = Vec::new();
    let mut edges = 0;
    for (name, package) in &ours {
        let Some(from) = layer(package) else {
            complaints.push(format!("{name}: no [package.metadata] layer"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some() && d.kind.is_none()) {
            edges += 1;
            let to = ours.get(dependency.name.as_str()).and_then(|p| layer(p)).unwrap_or(99);
            if to >= from && from != 99 {
                complaints.push(format!("{name} (layer {from}) depends on {} (layer {to})", dependency.name));
            }
        }
    }
    if edges > ours.len() * EDGES_MEAN_MAX {
        complaints.push(format!("{edges} internal edges over {} crates", ours.len()));
    }
    complaints
}

/// Every package that is linked in has a licence we may link.
pub fn licences(metadata: &Metadata) -> Vec<String> {
    let allowed = |text: &str| {
        let text = text.replace(['(', ')'], " ").replace('/', " OR ");
        text.split(" OR ").any(|choice| choice.split(" AND ").all(|l| LICENCES.contains(&l.trim())))
    };
    let bad = metadata.packages.iter().filter(|p| !p.license.as_deref().is_some_and(allowed));
    bad.map(|p| format!("{} {}: licence {:?}", p.name, p.version, p.license)).collect()
}

/// No package is linked in twice without a reason on record.
pub fn duplicates(metadata: &Metadata) -> Vec<String> {
    let used = reachable(metadata);
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in metadata.packages.iter().filter(|p| used.contains(p.id.as_str())) {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    let excused = |name: &str| DUPLICATES.iter().any(|(n, _)| *n == name);
    let mut complaints: Vec<String> = versions
        .iter()
        .filter(|(name, v)| v.len() > 1 && !excused(name))
        .map(|(name, v)| format!("{name} is linked in several versions: {}", v.join(", ")))
        .collect();
    let stale = DUPLICATES.iter().filter(|(n, _)| versions.get(n).is_none_or(|v| v.len() < 2));
    complaints.extend(stale.map(|(n, _)| format!("{n} is on the list of duplicates and is none")));
    complaints
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Ids of the packages that the `gantry` binary links (normal dependencies only; build scripts and
/// proc macros do not reach users, but cannot be told apart from metadata alone except by edge kind).
fn reachable(metadata: &Metadata) -> BTreeSet<&str> {
    let nodes = list(&metadata.resolve["nodes"]);
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        let id = node["id"].as_str().unwrap_or_default();
        for dependency in list(&node["deps"]) {
            let kinds = list(&dependency["dep_kinds"]);
            if kinds.iter().any(|k| k["kind"].is_null()) {
                edges.entry(id).or_default().push(dependency["pkg"].as_str().unwrap_or_default());
            }
        }
    }
    let start = metadata.packages.iter().filter(|p| p.name == "gantry").map(|p| p.id.as_str());
    let mut seen: BTreeSet<&str> = start.collect();
    let mut open: Vec<&str> = seen.iter().copied().collect();
    while let Some(id) = open.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

//! Checks on the text of `.rs` files.

use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Product lines a file may have; above it needs a `//! Long file: <reason>` line.
const FILE_LINES: usize = 600;
/// Product lines no file may have.
const FILE_LINES_HARD: usize = 1_000;
/// Crates that hold deciders: no I/O, clock, random or async.
const PURE: [&str; 4] = ["k8s-schema", "machinery", "sched", "stdx"];
/// What a pure crate must not name (outside its tests and build scripts).
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "std::process",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "tokio::",
];

/// One source file.
pub struct File {
    /// Path relative to the root.
    pub path: PathBuf,
    /// The crate's folder name.
    pub krate: String,
    /// Its text.
    pub text: String,
}

impl File {
    /// The lines before the test module.
    fn product(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|l| !l.starts_with("#[cfg(test)]"))
    }

    fn is_test(&self) -> bool {
        self.path.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "fuzz")
            || self.path.file_stem().is_some_and(|s| s == "tests")
    }

    fn complain(&self, what: impl std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }
}

/// Every `.rs` file below `crates/`.
pub fn read_tree(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let path_in_tree = path.strip_prefix(root)?.to_path_buf();
                let krate = path_in_tree.iter().nth(1).unwrap_or_default().to_string_lossy().into_owned();
                files.push(File { text: std::fs::read_to_string(&path)?, path: path_in_tree, krate });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Every file opens with a `//!` header that says something.
pub fn headers(files: &[File]) -> Vec<String> {
    let bad = files.iter().filter(|f| !f.text.starts_with("//! ") || f.text.starts_with("//! (stub)"));
    bad.map(|f| f.complain("does not open with a `//!` header")).collect()
}

/// No file is too long.
pub fn lengths(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|f| !f.is_test()) {
        let lines = file.product().count();
        let excused = file.text.lines().any(|l| l.starts_with("//! Long file: "));
        if lines > FILE_LINES_HARD || (lines > FILE_LINES && !excused) {
            complaints.push(file.complain(format!("{lines} product lines (budget {FILE_LINES})")));
        }
    }
    complaints
}

/// Pure crates stay pure.
pub fn purity(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|f| PURE.contains(&f.krate.as_str()) && !f.is_test()) {
        if file.path.ends_with("build.rs") {
            continue;
        }
        for (number, line) in file.product().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            for word in IMPURE.iter().filter(|w| line.contains(**w)) {
                complaints.push(file.complain(format!("line {}: `{word}` in a pure crate", number + 1)));
            }
        }
    }
    complaints
}

/// `unsafe` stands only in `sys`.
pub fn unsafe_code(files: &[File]) -> Vec<String> {
    let word = concat!("uns", "afe ");
    let offends = |l: &str| {
        !l.trim_start().starts_with("//")
            && (l.contains(&format!("{word}{{"))
                || l.contains(&format!("{word}fn"))
                || l.contains(&format!("{word}impl")))
    };
    let bad = files.iter().filter(|f| f.krate != "sys" && f.text.lines().any(offends));
    bad.map(|f| f.complain("unsafe code outside `sys`")).collect()
}

/// Lints are excepted by `expect` with a reason, never by `allow`.
pub fn allows(files: &[File]) -> Vec<String> {
    let words = [concat!("#[all", "ow("), concat!("#![all", "ow(")];
    let bad =
        files.iter().filter(|f| f.text.lines().any(|l| words.iter().any(|w| l.trim_start().starts_with(w))));
    bad.map(|f| f.complain("`allow` attribute: use `#[expect(…, reason = …)]`")).collect()
}

/// One integration-test binary a crate: `tests/it.rs` or `tests/it/main.rs`.
pub fn test_binaries(files: &[File]) -> Vec<String> {
    let mut binaries: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in files {
        let parts: Vec<_> = file.path.iter().map(|p| p.to_string_lossy()).collect();
        let is_binary = parts.len() == 4 || (parts.len() == 5 && parts[4] == "main.rs");
        if parts.len() >= 4 && parts[2] == "tests" && is_binary {
            binaries.entry(&file.krate).or_default().push(parts[3..].join("/"));
        }
    }
    let bad = binaries.into_iter().filter(|(_, b)| b.len() > 1);
    bad.map(|(krate, b)| format!("crates/{krate}: several test binaries: {}", b.join(", "))).collect()
}

//! `cargo xtask tidy`: the rules that prose cannot keep. Each check takes the tree and returns complaints.
//!
//! Deliberately not here: what clippy checks already (function length, parameters, `unwrap`).

mod graph;
mod source;

use anyhow::Result;
use std::path::Path;

/// Runs every check; an error lists all complaints.
pub fn run(root: &Path) -> Result<()> {
    let files = source::read_tree(root)?;
    let metadata = graph::metadata(root)?;
    let mut complaints = Vec::new();
    for check in [source::headers, source::lengths, source::purity, source::unsafe_code, source::allows] {
        complaints.extend(check(&files));
    }
    complaints.extend(source::test_binaries(&files));
    for check in [graph::layers, graph::licences, graph::duplicates] {
        complaints.extend(check(&metadata));
    }
    if complaints.is_empty() {
        println!("tidy: {} files, {} packages, no complaints", files.len(), metadata.packages.len());
        return Ok(());
    }
    anyhow::bail!("tidy: {} complaints\n  {}", complaints.len(), complaints.join("\n  "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        super::run(&root).unwrap();
    }
}

//! Developer tasks: `cargo xtask tidy`, `cargo xtask bench quick|refs|ecs|sched|abuse`, `cargo xtask image NAME`,
//! `cargo xtask vm test [PART]`, `cargo xtask fuzz [TARGET] …`, `cargo xtask specs k8s|k8s-protobuf|aws`.

mod bench;
mod specs;
mod tidy;
mod vm;

use anyhow::{Context, Result};
use std::path::Path;
use testkit::debian;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = std::env::current_dir()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy::run(&root),
        ["image", name] => image(&root, name),
        ["bench", "quick"] => bench::quick(&root, None),
        ["bench", "quick", binary] => bench::quick(&root, Some(binary)),
        ["bench", "refs"] => bench::refs(&root, None, None),
        ["bench", "refs", suite] => bench::refs(&root, Some(suite), None),
        ["bench", "refs", suite, binary] => bench::refs(&root, Some(suite), Some(binary)),
        ["bench", "ecs"] => bench::ecs(&root, None),
        ["bench", "ecs", binary] => bench::ecs(&root, Some(binary)),
        ["bench", "abuse"] => bench::abuse(&root, "", None),
        ["bench", "abuse", only] => bench::abuse(&root, only, None),
        ["bench", "abuse", only, binary] => bench::abuse(&root, only, Some(binary)),
        ["bench", "sched"] => bench::sched(""),
        ["bench", "sched", only] => bench::sched(only),
        ["bench-refs", suite, binary] => bench::run_suites(suite, binary),
        ["bench-worker", kind, ref args @ ..] => bench::work(kind, args),
        ["bench-load", what, pid, image] => bench::run_load(what, pid, image),
        ["vm", "test"] => vm::test(&root, None),
        ["vm", "test", part] => vm::test(&root, Some(part)),
        ["fuzz", ref args @ ..] => fuzz(&root, args),
        ["specs", which] => specs::run(&root, which),
        _ => anyhow::bail!(
            "usage: cargo xtask tidy | image NAME | bench quick [BINARY] | bench refs [SUITE [BINARY]] | bench ecs [BINARY] | bench sched [NAME] | bench abuse [NAME [BINARY]] | vm test [PART] | fuzz [TARGET] [--seconds N] [--keep] | specs k8s|k8s-protobuf|aws"
        ),
    }
}

/// Builds the fuzzer, with what it fuzzes instrumented, and runs it. The same compiler and target folder as ever.
fn fuzz(root: &Path, args: &[&str]) -> Result<()> {
    let mut cargo = std::process::Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    cargo.env("RUSTC_WORKSPACE_WRAPPER", root.join("crates/fuzz/rustc.sh"));
    let status = cargo.args(["run", "--quiet", "--package", "fuzz", "--"]).args(args).status()?;
    anyhow::ensure!(status.success(), "the fuzzer: {status}");
    Ok(())
}

/// Makes a docker-archive from Debian packages under `target/images` and prints its path.
fn image(root: &Path, name: &str) -> Result<()> {
    let known: Vec<&str> = debian::RECIPES.iter().map(|r| r.name).collect();
    let recipe = debian::RECIPES.iter().find(|r| r.name == name);
    let recipe = recipe.with_context(|| format!("no recipe {name}; there are {}", known.join(", ")))?;
    let folder = root.join("target/images");
    std::fs::create_dir_all(&folder)?;
    println!("{}", debian::archive(recipe, &folder)?.display());
    Ok(())
}

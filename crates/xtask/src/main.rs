//! Developer tasks: `cargo xtask tidy`, `cargo xtask specs k8s`.

mod specs;
mod tidy;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = std::env::current_dir()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy::run(&root),
        ["specs", which] => specs::run(&root, which),
        _ => anyhow::bail!("usage: cargo xtask tidy | specs k8s"),
    }
}

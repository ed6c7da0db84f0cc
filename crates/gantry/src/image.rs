//! `gantry image …`: asks the running instance, whose agent then notices at once.

use crate::admin::{Question, ask};
use crate::config::Config;
use anyhow::{Result, bail, ensure};

/// Dispatches `load FILE…`, `ls`, `gc`.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let socket = config.socket();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", ref files @ ..] => {
            ensure!(!files.is_empty(), "usage: gantry image load FILE…");
            for file in files {
                let path = std::path::absolute(file)?;
                ensure!(path.exists(), "{}: no such file", path.display());
                let loaded = ask(&socket, &Question::ImageLoad { path })?;
                for image in loaded.as_array().into_iter().flatten() {
                    println!("loaded {}", image.as_str().unwrap_or_default());
                }
            }
            Ok(())
        }
        ["ls"] => {
            println!("{:<50} {:<20} {:>10}", "NAME", "ID", "SIZE");
            for image in ask(&socket, &Question::ImageList)?.as_array().into_iter().flatten() {
                let id = image["id"].as_str().unwrap_or_default();
                let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
                let mib = image["sizeBytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
                println!("{:<50} {short:<20} {mib:>6.1} MiB", image["name"].as_str().unwrap_or_default());
            }
            Ok(())
        }
        ["gc"] => {
            println!("removed {} images", ask(&socket, &Question::ImageGc)?);
            Ok(())
        }
        _ => bail!("usage: gantry image load FILE… | ls | gc"),
    }
}

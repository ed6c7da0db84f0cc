//! `gantry status`: what runs here.

use crate::admin::{Question, ask};
use crate::config::Config;
use anyhow::Result;

/// Prints a line a fact; fails when nothing runs.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    let status = ask(&config.socket(), &Question::Status)?;
    for (name, value) in status.as_object().into_iter().flatten() {
        println!("{name:<12} {}", value.as_str().map_or_else(|| value.to_string(), str::to_string));
    }
    Ok(())
}

//! `gantry env`: shell lines that make stock clients find this instance.

use crate::config::Config;
use anyhow::{Result, ensure};

/// Prints `export …` lines.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    print!("{}", lines(&config)?);
    Ok(())
}

/// The lines, once an instance has been up in this data folder.
pub fn lines(config: &Config) -> Result<String> {
    let kubeconfig = config.kubeconfig();
    ensure!(kubeconfig.exists(), "{} does not exist: run `gantry up` first", kubeconfig.display());
    let absolute = std::path::absolute(kubeconfig)?;
    Ok(format!("export KUBECONFIG='{}'\n", absolute.display()))
}

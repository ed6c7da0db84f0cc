//! `gantry down`: stops everything of an instance and removes all it made outside its data folder.

use crate::admin::{Question, answers, ask};
use crate::config::Config;
use crate::preflight;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long a running instance may take to end.
const END_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Stops the process if one runs, then pods, network and run folder.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    if !preflight::is_root() {
        bail!("not root: run with sudo");
    }
    let socket = config.socket();
    if answers(&socket) {
        println!("stopping the control plane");
        ask(&socket, &Question::Stop)?;
        let deadline = Instant::now() + END_MAX;
        while answers(&socket) {
            if Instant::now() > deadline {
                bail!("the running instance does not end");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    println!("removing network devices, routes and tables of {:?}", config.name);
    net::teardown(&config.name)?;
    match std::fs::remove_dir_all(config.run_dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    println!("down; data stays in {}", config.data_dir.display());
    Ok(())
}

//! `gantry down`: stops everything of an instance and removes all it made outside its data folder.

use crate::admin::{Question, answers, ask};
use crate::config::Config;
use crate::preflight;
use crate::up::node;
use anyhow::{Result, bail};
use runtime::Runtime;
use std::time::{Duration, Instant};

/// How long a running instance may take to end: its last write waits for the disk.
const END_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Stops the process if one runs, then pods, network and run folder.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    if !preflight::is_root() {
        bail!("not root: run with sudo");
    }
    let socket = config.socket();
    if answers(&socket) {
        let drain = words.iter().any(|word| word.starts_with("--drain"));
        println!("stopping all pods, then the control plane");
        end(&config, if drain { &Question::Shutdown { down: true } } else { &Question::Down })?;
    }
    remove_all(&config)?;
    println!("down; data stays in {}", config.data_dir.display());
    Ok(())
}

/// `gantry shutdown`: pods end in order of priority, and their status says why; what the instance made on the host stays
/// for the next start.
pub fn shutdown(config: Config, _: &[String]) -> Result<()> {
    if !answers(&config.socket()) {
        bail!("no Gantry answers at {}", config.socket().display());
    }
    println!("ending pods in order of priority, then the process");
    end(&config, &Question::Shutdown { down: false })
}

/// Asks a running instance for its end and waits for it.
fn end(config: &Config, how: &Question) -> Result<()> {
    let socket = config.socket();
    // It may end before its answer is out; what counts is that it ended.
    if let Err(error) = ask(&socket, how)
        && answers(&socket)
    {
        return Err(error);
    }
    let deadline = Instant::now() + END_MAX;
    while answers(&socket) {
        if Instant::now() > deadline {
            bail!("the running instance does not end");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// After a start that failed: removes what it had made. Where pods of an earlier run are, all stays for the next start.
pub fn after_failed_start(config: &Config) {
    let pods = std::fs::read_dir(config.run_dir().join("pods"));
    if answers(&config.socket()) || pods.is_ok_and(|mut pods| pods.next().is_some()) {
        return;
    }
    if let Err(error) = remove_all(config) {
        tracing::warn!(%error, "the failed start left something behind (gantry down removes it)");
    }
}

fn remove_all(config: &Config) -> Result<()> {
    stop_pods(config)?;
    let kubelet = config.kubelet_dir.clone().unwrap_or_else(|| config.data_dir.join("kubelet"));
    agent::csi::unmount_below(&kubelet)?;
    println!("removing network devices, routes and tables of {:?}", config.name);
    net::teardown(&config.name)?;
    match std::fs::remove_dir_all(config.run_dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Kills what is left of the instance's pods (all of them, where no process ran), and removes their cgroups.
fn stop_pods(config: &Config) -> Result<()> {
    let runtime_config = node::runtime_config(config)?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        if runtime_config.state_dir.exists() {
            let (runtime, _events) = Runtime::open(runtime_config)?;
            for pod in runtime.recover().await? {
                println!("stopping pod {}/{}", pod.spec.namespace, pod.spec.name);
                runtime.remove_pod(&pod.spec.uid).await?;
            }
            runtime.remove_groups().await;
        }
        Ok(())
    })
}

//! What must hold before anything is created; `gantry doctor` prints all of it.

use crate::config::Config;
use crate::up::{facts::Facts, node};
use crate::{admin, ports};
use anyhow::{Result, bail};
use net::Ipv4Net;
use std::net::Ipv4Addr;

/// Prints every finding; fails when one of them blocks a start.
pub fn run(config: Config, _: &[String]) -> Result<()> {
    let blocking = findings(&config)?;
    for finding in &blocking {
        println!("blocks a start: {finding}");
    }
    let mut warnings = warnings();
    if let Ok(facts) = Facts::find(&config) {
        warnings.extend(net::doctor(&node::net_config(&config, &facts))?.iter().map(ToString::to_string));
    }
    for warning in &warnings {
        println!("warning: {warning}");
    }
    if blocking.is_empty() && warnings.is_empty() {
        println!("nothing found: `gantry up` can start");
    }
    if blocking.is_empty() { Ok(()) } else { bail!("{} finding(s) block a start", blocking.len()) }
}

/// Fails with every reason against starting, before anything is created.
pub fn check(config: &Config) -> Result<()> {
    let findings = findings(config)?;
    if findings.is_empty() { Ok(()) } else { bail!("cannot start:\n  {}", findings.join("\n  ")) }
}

fn findings(config: &Config) -> Result<Vec<String>> {
    if !is_root() {
        return Ok(vec!["not root: containers need it (run with sudo)".into()]);
    }
    if admin::answers(&config.socket()) {
        return Ok(vec![format!("instance {:?} runs already (gantry status)", config.name)]);
    }
    let mut findings = Vec::new();
    let any = Ipv4Addr::UNSPECIFIED;
    let mut wanted = vec![(config.bind.unwrap_or(any), config.port), (any, config.node_port)];
    wanted.extend((config.registry_port != 0).then_some((Ipv4Addr::LOCALHOST, config.registry_port)));
    for taken in ports::taken(&wanted) {
        let setting = match taken.port {
            port if port == config.port => "port",
            port if port == config.registry_port => "registry-port",
            _ => "node-port",
        };
        findings
            .push(format!("port {} is held by {} (choose another by --{setting})", taken.port, taken.holder));
    }
    let mut ranges: Vec<Ipv4Net> = Vec::new();
    for (name, text) in [("pod-cidr", &config.pod_cidr), ("service-cidr", &config.service_cidr)] {
        match text.parse() {
            Ok(range) => ranges.push(range),
            Err(_) => findings.push(format!("--{name} {text:?} is not a range like 10.0.0.0/16")),
        }
    }
    if let [pods, services] = ranges[..]
        && pods.overlaps(services)
    {
        findings.push(format!("the pod range {pods} and the service range {services} overlap"));
    }
    for conflict in net::overlaps(&config.name, &ranges)? {
        findings.push(format!("{conflict} (choose another by --pod-cidr or --service-cidr)"));
    }
    Ok(findings)
}

/// What does not block a start but keeps something from working.
fn warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.contains("overlay") {
        warnings.push("the kernel has no overlay file system: modprobe overlay".into());
    }
    match std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").as_deref().map(str::trim) {
        Ok("0") => warnings.push("user namespaces are off for pods with hostUsers: false".into()),
        _ => {}
    }
    warnings
}

/// Is the effective user root?
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    uids.and_then(|u| u.split_whitespace().nth(1)) == Some("0")
}

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
    none(findings(config)?)
}

/// The same for a node without a control plane, before it knows the cluster's ranges.
pub fn check_node(config: &Config) -> Result<()> {
    match blocked(config) {
        Some(finding) => none(vec![finding]),
        None => none(ports_taken(config, &[(Ipv4Addr::UNSPECIFIED, config.node_port)])),
    }
}

/// The same for a control plane without a node.
pub fn check_server(config: &Config) -> Result<()> {
    match blocked(config) {
        Some(finding) => none(vec![finding]),
        None => {
            let config = Config { registry_port: 0, ..config.clone() };
            let bind = config.bind.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let mut wanted = vec![(bind, config.port)];
            wanted.extend((config.aws_port != 0).then_some((bind, config.aws_port)));
            none(ports_taken(&config, &wanted))
        }
    }
}

/// Fails where the ranges cannot be used on this host.
pub fn check_ranges(config: &Config) -> Result<()> {
    none(ranges_unusable(config)?)
}

fn none(findings: Vec<String>) -> Result<()> {
    if findings.is_empty() { Ok(()) } else { bail!("cannot start:\n  {}", findings.join("\n  ")) }
}

fn findings(config: &Config) -> Result<Vec<String>> {
    if let Some(finding) = blocked(config) {
        return Ok(vec![finding]);
    }
    let any = Ipv4Addr::UNSPECIFIED;
    let bind = config.bind.unwrap_or(any);
    let mut wanted = vec![(bind, config.port), (any, config.node_port)];
    wanted.extend((config.aws_port != 0).then_some((bind, config.aws_port)));
    let mut findings = ports_taken(config, &wanted);
    findings.extend(ranges_unusable(config)?);
    Ok(findings)
}

/// What makes looking further useless.
fn blocked(config: &Config) -> Option<String> {
    if !is_root() {
        return Some("not root: containers need it (run with sudo)".into());
    }
    let runs = admin::answers(&config.socket());
    runs.then(|| format!("instance {:?} runs already (gantry status)", config.name))
}

/// Ports that others hold; the registry's is wanted everywhere.
fn ports_taken(config: &Config, wanted: &[(Ipv4Addr, u16)]) -> Vec<String> {
    let registry = (config.registry_port != 0).then_some((Ipv4Addr::LOCALHOST, config.registry_port));
    let wanted: Vec<_> = wanted.iter().copied().chain(registry).collect();
    let finding = |taken: ports::Taken| {
        let setting = match taken.port {
            port if port == config.registry_port => "registry-port",
            port if port == config.node_port => "node-port",
            port if port == config.aws_port => "aws-port",
            _ => "port",
        };
        format!("port {} is held by {} (choose another by --{setting})", taken.port, taken.holder)
    };
    ports::taken(&wanted).into_iter().map(finding).collect()
}

fn ranges_unusable(config: &Config) -> Result<Vec<String>> {
    let mut findings = Vec::new();
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
    let user_namespaces = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
    if user_namespaces.is_ok_and(|v| v.trim() == "0") {
        warnings.push("user namespaces are off for pods with hostUsers: false".into());
    }
    warnings
}

/// Is the effective user root?
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    uids.and_then(|u| u.split_whitespace().nth(1)) == Some("0")
}

//! Values of settings, read from text.

use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;

/// Longest instance name: it prefixes network devices, whose names have 15 characters in all.
const NAME_MAX: usize = 8;

/// As it is.
pub fn text(value: &str) -> Result<String> {
    Ok(value.to_string())
}

/// A number.
pub fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(value: &str) -> Result<T> {
    value.parse().with_context(|| format!("{value:?} is not a number in range"))
}

/// A file's text; "" for none.
pub fn file(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok(String::new());
    }
    std::fs::read_to_string(path).with_context(|| path.to_string())
}

/// `true` or `false`.
pub fn truth(value: &str) -> Result<bool> {
    value.parse().with_context(|| format!("{value:?} is neither true nor false"))
}

/// An address; "" for none.
pub fn address(value: &str) -> Result<Option<Ipv4Addr>> {
    match value {
        "" => Ok(None),
        _ => Ok(Some(value.parse().with_context(|| format!("{value:?} is not an IPv4 address"))?)),
    }
}

/// The name of an instance.
pub fn instance_name(value: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if value.is_empty() || value.len() > NAME_MAX || !value.chars().all(good) {
        bail!("an instance name has 1 to {NAME_MAX} characters of a-z and 0-9, not {value:?}");
    }
    Ok(value.to_string())
}

/// Where pods go: `spread` or `density`.
pub fn profile(value: &str) -> Result<sched::Profiles> {
    match value {
        "spread" => Ok(sched::Profiles::default()),
        "density" => Ok(sched::Profiles::density()),
        _ => bail!("{value:?} is neither spread nor density"),
    }
}

/// A scheduler's file; "" for none.
pub fn scheduler_file(path: &str) -> Result<Option<sched::config::Configuration>> {
    let text = file(path)?;
    let read = |text: &str| sched::config::read(text.as_bytes()).map_err(|e| anyhow::anyhow!("{path}: {e}"));
    Some(text).filter(|t| !t.is_empty()).map(|t| read(&t)).transpose()
}

/// The policy of CPUs: are whole ones given to containers alone?
pub fn cpu_policy(value: &str) -> Result<bool> {
    match value {
        "none" => Ok(false),
        "static" => Ok(true),
        _ => bail!("{value:?} is neither none nor static"),
    }
}

/// CPUs by number.
pub fn cpu_list(value: &str) -> Result<agent::cpus::Set> {
    agent::cpus::parse(value).with_context(|| format!("{value:?} is no list of CPUs"))
}

//! What Fargate does not do, and the sizes it has.

use super::container::is_set;
use crate::refusal::Refusal;
use crate::refusal::refuse_if;
use crate::units::is_fargate_size;
use machinery::kinds::get::{has, int, list, text};
use serde_json::Value;

/// Longest stop timeout, seconds.
const STOP_TIMEOUT_MAX: i64 = 120;
/// Ephemeral storage that can be asked for, GiB.
const STORAGE_GIB: std::ops::RangeInclusive<i64> = 21..=200;
const LOG_DRIVERS: [&str; 3] = ["awslogs", "splunk", "awsfirelens"];
/// Container members that are refused; ECS names the last part.
const REFUSED: &str = "/privileged /links /dockerSecurityOptions /linuxParameters/devices \
    /linuxParameters/sharedMemorySize /linuxParameters/maxSwap /linuxParameters/swappiness \
    /resourceRequirements";

fn refused(what: &str) -> Refusal {
    Refusal::client(format!("Fargate compatible task definitions do not support {what}"))
}

/// Can the definition run on Fargate?
pub fn check(doc: &Value, (cpu, memory): (Option<u64>, Option<u64>)) -> Result<(), Refusal> {
    if text(doc, "/networkMode") != "awsvpc" {
        return Err(Refusal::client("Fargate only supports network mode ‘awsvpc’."));
    }
    for container in list(doc, "/containerDefinitions") {
        check_container(container)?;
    }
    for volume in list(doc, "/volumes") {
        refuse_if(is_set(&volume["host"]["sourcePath"]), || refused("sourcePath"))?;
        refuse_if(has(volume, "/dockerVolumeConfiguration"), || refused("dockerVolumeConfiguration"))?;
    }
    let members =
        [("/placementConstraints", "constraints"), ("/inferenceAccelerators", "inferenceAccelerators")];
    for (at, what) in members {
        refuse_if(doc.pointer(at).is_some_and(is_set), || refused(what))?;
    }
    refuse_if(has(doc, "/ipcMode"), || refused("ipcMode"))?;
    refuse_if(text(doc, "/pidMode") == "host", || refused("pidMode host"))?;
    if int(doc, "/ephemeralStorage/sizeInGiB").is_some_and(|gib| !STORAGE_GIB.contains(&gib)) {
        return Err(Refusal::client(format!(
            "Ephemeral storage size must be between {} and {} GiB.",
            STORAGE_GIB.start(),
            STORAGE_GIB.end()
        )));
    }
    size(cpu, memory)
}

/// Is there such a size? Both are needed.
pub fn size(cpu: Option<u64>, memory: Option<u64>) -> Result<(), Refusal> {
    let needs =
        |what: &str| Refusal::client(format!("Fargate requires that '{what}' be defined at the task level."));
    let (cpu, memory) = (cpu.ok_or_else(|| needs("cpu"))?, memory.ok_or_else(|| needs("memory"))?);
    match is_fargate_size(cpu, memory) {
        true => Ok(()),
        false => Err(Refusal::client(format!(
            "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the Amazon ECS \
             documentation for the valid values."
        ))),
    }
}

fn check_container(container: &Value) -> Result<(), Refusal> {
    if let Some(at) = REFUSED.split(' ').find(|at| container.pointer(at).is_some_and(is_set)) {
        return Err(refused(at.rsplit('/').next().unwrap_or_default()));
    }
    let extra = list(container, "/linuxParameters/capabilities/add");
    if extra.iter().any(|c| c != "SYS_PTRACE") {
        return Err(refused("adding capabilities other than SYS_PTRACE"));
    }
    let driver = text(container, "/logConfiguration/logDriver");
    if !driver.is_empty() && !LOG_DRIVERS.contains(&driver) {
        return Err(Refusal::client(format!(
            "{driver} is not a valid log driver. Must be one of [{}]",
            LOG_DRIVERS.join(",")
        )));
    }
    if int(container, "/stopTimeout").is_some_and(|s| s > STOP_TIMEOUT_MAX) {
        return Err(Refusal::client(format!(
            "Tasks using the Fargate launch type must have a container stop timeout of less than {STOP_TIMEOUT_MAX} \
             seconds."
        )));
    }
    Ok(())
}

/// Private images and logs need a role to act for the task.
pub fn roles(doc: &Value) -> Result<(), Refusal> {
    if has(doc, "/executionRoleArn") {
        return Ok(());
    }
    let needs = |what: &str| {
        Err(Refusal::client(format!(
            "Fargate requires task definition to have execution role ARN to support {what}."
        )))
    };
    for container in list(doc, "/containerDefinitions") {
        if super::attributes::is_ecr_image(text(container, "/image")) {
            return needs("ECR images");
        }
        if text(container, "/logConfiguration/logDriver") == "awslogs" {
            return needs("log driver awslogs");
        }
    }
    Ok(())
}

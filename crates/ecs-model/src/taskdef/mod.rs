//! Task definitions: what RegisterTaskDefinition takes, as DescribeTaskDefinition gives it back.
//!
//! [`check`] refuses in ECS's words or fills in what ECS echoes; [`identify`] adds revision, ARN and times. Every other
//! member stays as it came. Deliberately not here: finding the next revision, roles that do not exist.

mod attributes;
mod container;
mod dependencies;
pub mod fargate;

pub use attributes::{capabilities, is_ecr_image};
pub use container::env_files;

use crate::doc::{copy, drop_nulls};
use crate::names::Arn;
use crate::refusal::Refusal;
use crate::refusal::refuse_if;
use crate::units::{cpu_units, memory_mib};
use machinery::kinds::get::{has, list, set, text, texts};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Most containers of a task definition.
const CONTAINERS_MAX: usize = 10;
/// Longest family or container name.
const NAME_MAX: usize = 255;
/// Most placement constraints of a task definition.
const CONSTRAINTS_MAX: usize = 10;
/// Configurations of a volume, of which it has one.
const VOLUMES: &str = "host dockerVolumeConfiguration efsVolumeConfiguration fsxWindowsFileServerVolumeConfiguration \
    s3filesVolumeConfiguration";
/// What a request may say beside `containerDefinitions` and `tags`.
const MEMBERS: &str = "cpu enableFaultInjection ephemeralStorage executionRoleArn family inferenceAccelerators ipcMode \
    memory networkMode pidMode placementConstraints proxyConfiguration requiresCompatibilities \
    runtimePlatform taskRoleArn volumes containerDefinitions";

/// Who registers what, when.
#[derive(Clone, Debug)]
pub struct Registration<'a> {
    /// The new definition's ARN.
    pub arn: String,
    /// From 1; never used again.
    pub revision: u64,
    /// Seconds since 1970.
    pub registered_at: f64,
    /// The caller's ARN.
    pub registered_by: &'a str,
}

/// Checks a request and fills in what ECS echoes. `account` is the caller's: roles of others are refused.
pub fn check(input: &Value, account: &str) -> Result<Value, Refusal> {
    let mut doc = json!({});
    copy(&mut doc, input, MEMBERS);
    drop_nulls(&mut doc);
    names(&doc)?;
    let size = size(&mut doc)?;
    roles(&doc, account)?;
    for member in ["volumes", "placementConstraints"] {
        if !doc[member].is_array() {
            set(&mut doc, member, json!([]));
        }
    }
    volumes(&doc)?;
    constraints(&doc)?;
    let mut containers = std::mem::take(&mut doc["containerDefinitions"]);
    let context = container::Context {
        mode: text(&doc, "/networkMode"),
        task_memory: size.1,
        has_role: has(&doc, "/executionRoleArn"),
        volumes: list(&doc, "/volumes").iter().map(|v| text(v, "/name")).collect(),
    };
    for container in containers.as_array_mut().into_iter().flatten() {
        container::normalise(container, &context)?;
    }
    let files: usize = list(&containers, "").iter().map(|c| list(c, "/environmentFiles").len()).sum();
    if files > crate::env_file::FILES_MAX {
        return Err(Refusal::client(format!(
            "A task definition can have at most {} environment files.",
            crate::env_file::FILES_MAX
        )));
    }
    dependencies::check(containers.as_array().map_or(&[], Vec::as_slice))?;
    sums(&containers, size)?;
    set(&mut doc, "containerDefinitions", containers);
    compatibilities(&mut doc, size)?;
    let attributes = attributes::required(&doc);
    set(&mut doc, "requiresAttributes", attributes);
    Ok(doc)
}

/// Adds what the registration itself decides.
pub fn identify(mut doc: Value, registration: &Registration<'_>) -> Value {
    set(&mut doc, "taskDefinitionArn", registration.arn.clone());
    set(&mut doc, "revision", registration.revision);
    set(&mut doc, "status", "ACTIVE");
    set(&mut doc, "registeredAt", registration.registered_at);
    set(&mut doc, "registeredBy", registration.registered_by);
    doc
}

/// Letters, digits, `-`, `_`, not too long.
pub fn is_name(name: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(sound)
}

fn names(doc: &Value) -> Result<(), Refusal> {
    let named = |what: &str, name: &str| match name {
        "" => Err(Refusal::client(format!("{what} should not be null or empty."))),
        name if !is_name(name) => Err(Refusal::client(format!("{what} contains invalid characters."))),
        _ => Ok(()),
    };
    named("Family", text(doc, "/family"))?;
    let containers = list(doc, "/containerDefinitions");
    refuse_if(containers.is_empty(), || Refusal::client("Container list cannot be empty."))?;
    if containers.len() > CONTAINERS_MAX {
        return Err(Refusal::client(format!("Number of containers cannot exceed {CONTAINERS_MAX}.")));
    }
    let mut seen = BTreeSet::new();
    for container in containers {
        let name = text(container, "/name");
        named("Container.name", name)?;
        if text(container, "/image").is_empty() {
            return Err(Refusal::client("Container.image should not be null or empty."));
        }
        if !seen.insert(name) {
            return Err(Refusal::client(format!("Container name '{name}' is used more than once.")));
        }
    }
    if containers.iter().all(|c| c["essential"] == false) {
        return Err(Refusal::client("Task definition doesn't have any essential container."));
    }
    Ok(())
}

/// Task level cpu and memory, written as whole numbers.
fn size(doc: &mut Value) -> Result<(Option<u64>, Option<u64>), Refusal> {
    let mut read = |member: &str, parse: fn(&str) -> Option<u64>| {
        let Some(given) = doc.get(member).and_then(Value::as_str).map(str::to_string) else {
            return Ok(None);
        };
        let number = parse(&given).ok_or_else(|| {
            Refusal::client(format!(
                "Invalid '{member}' setting for task. For more information, see the Troubleshooting section of the \
                 Amazon ECS Developer Guide."
            ))
        })?;
        set(doc, member, number.to_string());
        Ok(Some(number))
    };
    Ok((read("cpu", cpu_units)?, read("memory", memory_mib)?))
}

/// A role is named by its ARN in this account, or shortly.
fn roles(doc: &Value, account: &str) -> Result<(), Refusal> {
    for member in ["taskRoleArn", "executionRoleArn"] {
        let role = text(doc, &format!("/{member}"));
        let sound = match Arn::parse(role) {
            Some(arn) => arn.service == "iam" && arn.account == account && arn.resource.starts_with("role/"),
            None => role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&b)),
        };
        refuse_if(!sound, || Refusal::client("Role is not valid"))?;
    }
    Ok(())
}

fn volumes(doc: &Value) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for volume in list(doc, "/volumes") {
        let name = text(volume, "/name");
        refuse_if(!is_name(name), || Refusal::client("Volume.name contains invalid characters."))?;
        if !seen.insert(name) {
            return Err(Refusal::client(format!("Volume name '{name}' is used more than once.")));
        }
        refuse_if(VOLUMES.split_whitespace().filter(|k| has(volume, &format!("/{k}"))).count() > 1, || {
            Refusal::client(format!("Only one volume configuration can be specified for volume '{name}'."))
        })?;
        let efs = &volume["efsVolumeConfiguration"];
        let encrypted = text(efs, "/transitEncryption") == "ENABLED";
        if text(efs, "/authorizationConfig/iam") == "ENABLED" && !encrypted {
            return Err(Refusal::client("EFS IAM authorization requires TransitEncryption to be enabled"));
        }
        let root = text(efs, "/rootDirectory");
        if has(efs, "/authorizationConfig/accessPointId") && !matches!(root, "" | "/") {
            return Err(Refusal::client(
                "When using an EFS access point, the root directory must either be set to \"/\" or be omitted",
            ));
        }
    }
    Ok(())
}

fn constraints(doc: &Value) -> Result<(), Refusal> {
    let all = list(doc, "/placementConstraints");
    refuse_if(all.len() > CONSTRAINTS_MAX, || {
        Refusal::client(format!("A task definition can have at most {CONSTRAINTS_MAX} constraints."))
    })?;
    for constraint in all {
        if text(constraint, "/type") != "memberOf" {
            return Err(Refusal::client("Invalid placement constraint type: only memberOf is supported."));
        }
        crate::query::parse(text(constraint, "/expression"))
            .map_err(|e| Refusal::client(format!("Invalid expression for constraint: {e}")))?;
    }
    Ok(())
}

fn sums(containers: &Value, (cpu, memory): (Option<u64>, Option<u64>)) -> Result<(), Refusal> {
    let each = || list(containers, "").iter();
    let own = |c: &Value, member: &str| c[member].as_u64();
    let total: u64 = each().filter_map(|c| own(c, "cpu")).sum();
    if cpu.is_some_and(|task| total > task) {
        return Err(Refusal::client(
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ));
    }
    let Some(task) = memory else { return Ok(()) };
    if let Some(big) = each().find(|c| own(c, "memory").is_some_and(|m| m > task)) {
        let name = text(big, "/name");
        return Err(Refusal::client(format!(
            "The 'memory' setting for container '{name}' is greater than for the task."
        )));
    }
    let reserved: u64 = each().filter_map(|c| own(c, "memoryReservation").or_else(|| own(c, "memory"))).sum();
    if reserved > task {
        return Err(Refusal::client(
            "The sum of all container 'memoryReservation' values cannot be greater than the value of the task 'memory'.",
        ));
    }
    Ok(())
}

/// What the definition can run on; what it asks for must be among it.
fn compatibilities(doc: &mut Value, size: (Option<u64>, Option<u64>)) -> Result<(), Refusal> {
    let fargate = fargate::check(doc, size);
    if texts(doc, "/requiresCompatibilities").any(|c| c == "FARGATE") {
        fargate.clone()?;
        fargate::roles(doc)?;
    }
    let awsvpc = text(doc, "/networkMode") == "awsvpc";
    let external = texts(doc, "/requiresCompatibilities").any(|c| c == "EXTERNAL");
    if awsvpc && external {
        return Err(Refusal::client("External only supports network modes 'bridge', 'host' and 'none'."));
    }
    let all: &[&str] = match (awsvpc, fargate.is_ok()) {
        (true, true) => &["EC2", "FARGATE"],
        (true, false) => &["EC2"],
        (false, _) => &["EXTERNAL", "EC2"],
    };
    set(doc, "compatibilities", json!(all));
    Ok(())
}

#[cfg(test)]
mod tests;

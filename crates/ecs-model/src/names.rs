//! Names and ARNs: how an AWS name becomes an object's name, how ARNs are built and read.
//!
//! Invariants: (N1) different AWS names, accounts or regions never share an object name (short of a hash collision;
//! readers also compare the true name in `spec`); (N2) an object name is a DNS label of at most [`LABEL_MAX`] bytes;
//! (N3) what was once written here never changes: stored objects are found by it (golden tests).
//! Deliberately not here: whether an AWS name is allowed (each operation checks its own).

use crate::refusal::refuse_if;
use sha2::{Digest, Sha256};

/// Longest object name: leaves room for a prefix (`ecs-`) and a suffix (`-<revision>`) in a label of 63.
pub const LABEL_MAX: usize = 52;
/// Namespace of what belongs to no cluster: task definitions, capacity providers, account settings.
pub const ECS_NAMESPACE: &str = "ecs";
/// Namespace of account-level things of the other services.
pub const AWS_NAMESPACE: &str = "aws";
/// The cluster that a call without one means.
pub const DEFAULT_CLUSTER: &str = "default";

const HASH_DIGITS: usize = 10;
/// No vowels: an ordinary word never looks like a hash.
const ALPHABET: &[u8; 31] = b"0123456789bcdfghjklmnpqrstvwxyz";

/// An account in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// 12 digits.
    pub account: String,
    /// `us-east-1`.
    pub region: String,
}

impl Place {
    /// A place.
    pub fn new(account: impl Into<String>, region: impl Into<String>) -> Self {
        Place { account: account.into(), region: region.into() }
    }
}

/// The object name of an AWS name in an account and region: the name itself where it is a fitting DNS label of the
/// default place, else a readable form, shortened, and 10 digits of a hash over all three.
pub fn object_name(account: &str, region: &str, defaults: &Place, name: &str) -> String {
    let at_home = account == defaults.account && region == defaults.region;
    if at_home && is_label(name) && !looks_hashed(name) {
        return name.to_string();
    }
    let place = if at_home { String::new() } else { format!("{account}/{region}/") };
    let digits = hash(&format!("{place}{name}"));
    match readable(name) {
        text if text.is_empty() => format!("x-{digits}"),
        text => format!("{text}-{digits}"),
    }
}

fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= LABEL_MAX
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn looks_hashed(name: &str) -> bool {
    let Some((_, tail)) = name.rsplit_once('-') else { return false };
    tail.len() == HASH_DIGITS && tail.bytes().all(|b| ALPHABET.contains(&b))
}

fn hash(text: &str) -> String {
    let sum = Sha256::digest(text.as_bytes());
    let mut number = sum.iter().take(8).fold(0u64, |n, b| (n << 8) | u64::from(*b));
    let digits = (0..HASH_DIGITS).map(|_| {
        let digit = ALPHABET[(number % ALPHABET.len() as u64) as usize];
        number /= ALPHABET.len() as u64;
        char::from(digit)
    });
    digits.collect()
}

/// Lower case, runs of anything else as one `-`, no `-` at the ends, short enough for a hash behind it.
fn readable(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if out.len() == LABEL_MAX - HASH_DIGITS - 1 {
            break;
        }
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => out.push(c),
            _ if out.is_empty() || out.ends_with('-') => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_string()
}

/// An account and region to name things in, and the default ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Where the caller is.
    pub place: Place,
    /// Whose names stay short.
    pub defaults: Place,
}

impl Scope {
    /// The object name of an AWS name.
    pub fn object_name(&self, name: &str) -> String {
        object_name(&self.place.account, &self.place.region, &self.defaults, name)
    }

    /// The namespace of what is in a cluster.
    pub fn cluster_namespace(&self, cluster: &str) -> String {
        format!("ecs-{}", self.object_name(cluster))
    }

    /// The object name of a revision of a family.
    pub fn task_definition(&self, family: &str, revision: u64) -> String {
        format!("{}-{revision}", self.object_name(family))
    }

    /// An ECS ARN of this place.
    pub fn arn(&self, resource: &Resource) -> String {
        format!("arn:aws:ecs:{}:{}:{resource}", self.place.region, self.place.account)
    }

    /// Reads an ECS ARN of this place.
    pub fn parse(&self, arn: &str) -> Result<Resource, ArnError> {
        let arn = Arn::parse(arn).ok_or(ArnError::Malformed)?;
        refuse_if(arn.service != "ecs", || ArnError::Malformed)?;
        refuse_if(arn.account != self.place.account, || ArnError::Account)?;
        refuse_if(arn.region != self.place.region, || ArnError::Region)?;
        Resource::parse(arn.resource).ok_or(ArnError::Malformed)
    }
}

/// Why an ARN is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// No ECS ARN at all.
    #[error("not an ARN of a known kind")]
    Malformed,
    /// Another account.
    #[error("the ARN belongs to another account")]
    Account,
    /// Another region.
    #[error("the ARN belongs to another region")]
    Region,
}

/// The parts of any ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arn<'a> {
    /// `aws`, `aws-cn`, ….
    pub partition: &'a str,
    /// `ecs`.
    pub service: &'a str,
    /// "" where global.
    pub region: &'a str,
    /// 12 digits, or "".
    pub account: &'a str,
    /// All the rest.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Reads an ARN.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next();
        let (prefix, partition, service) = (next()?, next()?, next()?);
        let (region, account, resource) = (next()?, next()?, next()?);
        let sound = prefix == "arn" && !partition.is_empty() && !service.is_empty() && !resource.is_empty();
        sound.then_some(Arn { partition, service, region, account, resource })
    }
}

/// What an ECS ARN names (long format).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `cluster/<name>`.
    Cluster(String),
    /// `task-definition/<family>:<revision>`.
    TaskDefinition(String, u64),
    /// `capacity-provider/<name>`.
    CapacityProvider(String),
    /// `task/<cluster>/<id>`.
    Task(String, String),
    /// `service/<cluster>/<name>`.
    Service(String, String),
    /// `container-instance/<cluster>/<id>`.
    ContainerInstance(String, String),
    /// `container/<cluster>/<task>/<id>`.
    Container([String; 3]),
    /// `task-set/<cluster>/<service>/<id>`.
    TaskSet([String; 3]),
    /// `service-deployment/<cluster>/<service>/<id>`.
    ServiceDeployment([String; 3]),
    /// `service-revision/<cluster>/<service>/<id>`.
    ServiceRevision([String; 3]),
}

impl Resource {
    /// Reads the part behind the account.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|p| p.is_empty()) {
            return None;
        }
        let own = |p: &str| p.to_string();
        Some(match parts[..] {
            ["cluster", name] => Resource::Cluster(own(name)),
            ["task-definition", name] => {
                let (family, revision) = family_revision(name)?;
                Resource::TaskDefinition(family.to_string(), revision?)
            }
            ["capacity-provider", name] => Resource::CapacityProvider(own(name)),
            ["task", cluster, id] => Resource::Task(own(cluster), own(id)),
            ["service", cluster, name] => Resource::Service(own(cluster), own(name)),
            ["container-instance", cluster, id] => Resource::ContainerInstance(own(cluster), own(id)),
            [kind, a, b, c] => {
                let parts = [own(a), own(b), own(c)];
                match kind {
                    "container" => Resource::Container(parts),
                    "task-set" => Resource::TaskSet(parts),
                    "service-deployment" => Resource::ServiceDeployment(parts),
                    "service-revision" => Resource::ServiceRevision(parts),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let three =
            |f: &mut std::fmt::Formatter<'_>, kind, [a, b, c]: &[String; 3]| write!(f, "{kind}/{a}/{b}/{c}");
        match self {
            Resource::Cluster(name) => write!(f, "cluster/{name}"),
            Resource::TaskDefinition(family, revision) => write!(f, "task-definition/{family}:{revision}"),
            Resource::CapacityProvider(name) => write!(f, "capacity-provider/{name}"),
            Resource::Task(cluster, id) => write!(f, "task/{cluster}/{id}"),
            Resource::Service(cluster, name) => write!(f, "service/{cluster}/{name}"),
            Resource::ContainerInstance(cluster, id) => write!(f, "container-instance/{cluster}/{id}"),
            Resource::Container(parts) => three(f, "container", parts),
            Resource::TaskSet(parts) => three(f, "task-set", parts),
            Resource::ServiceDeployment(parts) => three(f, "service-deployment", parts),
            Resource::ServiceRevision(parts) => three(f, "service-revision", parts),
        }
    }
}

/// Splits `family` or `family:revision`; `None` where the revision is no number from 1 up or there is more.
pub fn family_revision(text: &str) -> Option<(&str, Option<u64>)> {
    match text.split_once(':') {
        None => (!text.is_empty()).then_some((text, None)),
        Some((family, number)) => {
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let revision: u64 = number.parse().ok().filter(|n| *n > 0 && digits)?;
            (!family.is_empty()).then_some((family, Some(revision)))
        }
    }
}

/// 32 hex digits that follow from a text: ids of things that exist once per (say) node and cluster.
pub fn derived_id(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn home() -> Place {
        Place::new("123456789012", "us-east-1")
    }

    fn named(name: &str) -> String {
        object_name("123456789012", "us-east-1", &home(), name)
    }

    /// Stored objects are found by these: a change of any line loses them (N3).
    #[test]
    fn golden_names() {
        for (name, object) in [
            ("prod", "prod"),
            ("web-1", "web-1"),
            ("my-containers", "my-containers"),
            ("Prod", "prod-ncb4lcf5cj"),
            ("a_b", "a-b-kss9k6qmtt"),
            ("__", "x-wrx05tydv4"),
            ("build-1700000000", "build-1700000000-kytrx5g1wl"),
        ] {
            assert_eq!(named(name), object);
        }
        assert_eq!(named(&"long-".repeat(50)), "long-long-long-long-long-long-long-long-l-ynzrmxf4by");
        assert_eq!(object_name("210987654321", "us-east-1", &home(), "prod"), "prod-jd7fm4rrfc");
        assert_eq!(object_name("123456789012", "eu-west-1", &home(), "prod"), "prod-xkbl5tgtsw");
        assert_eq!(derived_id("a"), "ca978112ca1bbdcafac231b39a23dc4d");
    }

    #[test]
    fn scoped_names() {
        let scope = Scope { place: home(), defaults: home() };
        assert_eq!(scope.cluster_namespace("default"), "ecs-default");
        assert_eq!(scope.task_definition("web", 3), "web-3");
        let arn = scope.arn(&Resource::Task("prod".into(), "0a".into()));
        assert_eq!(arn, "arn:aws:ecs:us-east-1:123456789012:task/prod/0a");
        assert_eq!(scope.parse(&arn), Ok(Resource::Task("prod".into(), "0a".into())));
        for (arn, why) in [
            ("arn:aws:ecs:us-east-1:210987654321:task/prod/0a", ArnError::Account),
            ("arn:aws:ecs:eu-west-1:123456789012:cluster/prod", ArnError::Region),
            ("arn:aws:s3:us-east-1:123456789012:cluster/prod", ArnError::Malformed),
            ("arn:aws:ecs:us-east-1:123456789012:cluster/", ArnError::Malformed),
            ("arn:aws:ecs:us-east-1:123456789012:task/prod", ArnError::Malformed),
            ("arn:aws:ecs:us-east-1:123456789012", ArnError::Malformed),
            ("cluster/prod", ArnError::Malformed),
        ] {
            assert_eq!(scope.parse(arn), Err(why), "{arn}");
        }
    }

    #[test]
    fn every_resource_reads_what_it_writes() {
        for text in [
            "cluster/a",
            "task-definition/web:3",
            "capacity-provider/FARGATE",
            "task/c/1",
            "service/c/s",
            "container-instance/c/1",
            "container/c/t/1",
            "task-set/c/s/1",
            "service-deployment/c/s/1",
            "service-revision/c/s/1",
        ] {
            assert_eq!(Resource::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(family_revision("web"), Some(("web", None)));
        assert_eq!(family_revision("web:12"), Some(("web", Some(12))));
        for bad in ["", ":1", "web:", "web:0", "web:+1", "web:x", "web:1:2", "web:99999999999999999999"] {
            assert_eq!(family_revision(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_are_labels_and_differ(a in "[-_a-zA-Z0-9]{1,255}", b in "[-_a-zA-Z0-9]{1,255}") {
            let (x, y) = (named(&a), named(&b));
            prop_assert!(is_label(&x) && is_label(&y), "{x} {y}");
            prop_assert_eq!(a == b, x == y);
            prop_assert_eq!(x == a, is_label(&a) && !looks_hashed(&a));
            // The result of one name is never the result of another.
            prop_assert!(named(&x) == x && x == a || named(&x) != x);
        }
    }
}

//! Policies that AWS itself has and that people attach to the roles of containers. Only their names are known: nothing
//! is enforced, so what they say is not kept.

use serde_json::{Value, json};

/// Path and name after `arn:aws:iam::aws:policy/`.
const KNOWN: &[&str] = &[
    "AdministratorAccess",
    "AmazonEC2ContainerRegistryFullAccess",
    "AmazonEC2ContainerRegistryPowerUser",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEC2ContainerRegistryReadOnly",
    "AmazonECS_FullAccess",
    "AmazonEKSClusterPolicy",
    "AmazonEKSFargatePodExecutionRolePolicy",
    "AmazonEKSServicePolicy",
    "AmazonEKSVPCResourceController",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonS3FullAccess",
    "AmazonS3ReadOnlyAccess",
    "AmazonSSMManagedInstanceCore",
    "AmazonSSMReadOnlyAccess",
    "AWSXRayDaemonWriteAccess",
    "CloudWatchAgentServerPolicy",
    "CloudWatchFullAccess",
    "CloudWatchLogsFullAccess",
    "PowerUserAccess",
    "ReadOnlyAccess",
    "SecretsManagerReadWrite",
    "aws-service-role/AmazonECSServiceRolePolicy",
    "service-role/AmazonEC2ContainerServiceAutoscaleRole",
    "service-role/AmazonEC2ContainerServiceEventsRole",
    "service-role/AmazonEC2ContainerServiceRole",
    "service-role/AmazonEC2ContainerServiceforEC2Role",
    "service-role/AmazonECSInfrastructureRolePolicyForVolumes",
    "service-role/AmazonECSTaskExecutionRolePolicy",
    "service-role/AmazonEBSCSIDriverPolicy",
    "service-role/AmazonEFSCSIDriverPolicy",
];

const PREFIX: &str = "arn:aws:iam::aws:policy/";

/// The policy of an ARN, as GetPolicy shows it; `None`: it is not one of these.
pub(super) fn policy(arn: &str) -> Option<Value> {
    let rest = arn.strip_prefix(PREFIX).filter(|rest| KNOWN.contains(rest))?;
    let (path, name) = rest.rsplit_once('/').unwrap_or(("", rest));
    let path = if path.is_empty() { "/".to_string() } else { format!("/{path}/") };
    Some(
        json!({"PolicyName": name, "Arn": arn, "Path": path, "DefaultVersionId": "v1", "IsAttachable": true}),
    )
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Value> {
    KNOWN.iter().filter_map(|rest| policy(&format!("{PREFIX}{rest}")))
}

//! Policies that AWS itself has and that people attach to the roles of containers, in short forms.

use serde_json::{Value, json};

/// Path and name after `arn:aws:iam::aws:policy/`, and what it allows on everything (`!`: all but that), as far as it
/// is about services that are here.
const KNOWN: &[(&str, &[&str])] = &[
    ("AdministratorAccess", &["*"]),
    ("AmazonEC2ContainerRegistryFullAccess", &["ecr:*"]),
    (
        "AmazonEC2ContainerRegistryPowerUser",
        &[
            "ecr:GetAuthorizationToken",
            "ecr:BatchCheckLayerAvailability",
            "ecr:GetDownloadUrlForLayer",
            "ecr:GetRepositoryPolicy",
            "ecr:DescribeRepositories",
            "ecr:ListImages",
            "ecr:DescribeImages",
            "ecr:BatchGetImage",
            "ecr:GetLifecyclePolicy",
            "ecr:ListTagsForResource",
            "ecr:InitiateLayerUpload",
            "ecr:UploadLayerPart",
            "ecr:CompleteLayerUpload",
            "ecr:PutImage",
        ],
    ),
    (
        "AmazonEC2ContainerRegistryPullOnly",
        &["ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
    ),
    (
        "AmazonEC2ContainerRegistryReadOnly",
        &[
            "ecr:GetAuthorizationToken",
            "ecr:BatchCheckLayerAvailability",
            "ecr:GetDownloadUrlForLayer",
            "ecr:GetRepositoryPolicy",
            "ecr:DescribeRepositories",
            "ecr:ListImages",
            "ecr:DescribeImages",
            "ecr:BatchGetImage",
            "ecr:GetLifecyclePolicy",
            "ecr:ListTagsForResource",
        ],
    ),
    (
        "AmazonECS_FullAccess",
        &[
            "ecs:*",
            "ec2:Describe*",
            "ec2:CreateSecurityGroup",
            "elasticloadbalancing:*",
            "events:*Rule*",
            "events:*Targets*",
            "iam:List*Role*",
            "iam:PassRole",
            "logs:CreateLogGroup",
            "logs:DescribeLogGroups",
            "logs:FilterLogEvents",
            "servicediscovery:*",
        ],
    ),
    ("AmazonEKSClusterPolicy", &[]),
    ("AmazonEKSFargatePodExecutionRolePolicy", &[]),
    ("AmazonEKSServicePolicy", &[]),
    ("AmazonEKSVPCResourceController", &[]),
    ("AmazonEKSWorkerNodePolicy", &[]),
    ("AmazonEKS_CNI_Policy", &[]),
    ("AmazonS3FullAccess", &["s3:*"]),
    ("AmazonS3ReadOnlyAccess", &["s3:Get*", "s3:List*", "s3:Describe*"]),
    ("AmazonSSMManagedInstanceCore", &[]),
    ("AmazonSSMReadOnlyAccess", &["ssm:Describe*", "ssm:Get*", "ssm:List*"]),
    ("AWSXRayDaemonWriteAccess", &[]),
    (
        "CloudWatchAgentServerPolicy",
        &[
            "logs:PutLogEvents",
            "logs:PutRetentionPolicy",
            "logs:DescribeLogStreams",
            "logs:DescribeLogGroups",
            "logs:CreateLogStream",
            "logs:CreateLogGroup",
            "ssm:GetParameter",
        ],
    ),
    ("CloudWatchFullAccess", &["logs:*", "cloudwatch:*"]),
    ("CloudWatchLogsFullAccess", &["logs:*"]),
    ("PowerUserAccess", &["!iam:*", "!organizations:*", "!account:*"]),
    (
        "ReadOnlyAccess",
        &[
            "*:Describe*",
            "*:List*",
            "ecr:BatchCheck*",
            "ecr:BatchGet*",
            "ecr:Get*",
            "ecs:Get*",
            "iam:Get*",
            "logs:Get*",
            "logs:FilterLogEvents",
            "logs:StartLiveTail",
            "s3:Get*",
            "servicediscovery:Get*",
            "servicediscovery:DiscoverInstances*",
            "ssm:Get*",
            "sts:GetCallerIdentity",
        ],
    ),
    ("SecretsManagerReadWrite", &["secretsmanager:*"]),
    ("aws-service-role/AmazonECSServiceRolePolicy", &[]),
    ("service-role/AmazonEC2ContainerServiceAutoscaleRole", &[]),
    ("service-role/AmazonEC2ContainerServiceEventsRole", &["ecs:RunTask", "ecs:TagResource", "iam:PassRole"]),
    ("service-role/AmazonEC2ContainerServiceRole", &[]),
    ("service-role/AmazonEC2ContainerServiceforEC2Role", &[]),
    ("service-role/AmazonECSInfrastructureRolePolicyForVolumes", &[]),
    (
        "service-role/AmazonECSTaskExecutionRolePolicy",
        &[
            "ecr:GetAuthorizationToken",
            "ecr:BatchCheckLayerAvailability",
            "ecr:GetDownloadUrlForLayer",
            "ecr:BatchGetImage",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
        ],
    ),
    ("service-role/AmazonEBSCSIDriverPolicy", &[]),
    ("service-role/AmazonEFSCSIDriverPolicy", &[]),
];

const PREFIX: &str = "arn:aws:iam::aws:policy/";

/// The policy of an ARN, as GetPolicy shows it; `None`: it is not one of these.
pub(super) fn policy(arn: &str) -> Option<Value> {
    let rest = arn.strip_prefix(PREFIX)?;
    KNOWN.iter().find(|(name, _)| *name == rest)?;
    let (path, name) = rest.rsplit_once('/').unwrap_or(("", rest));
    let path = if path.is_empty() { "/".to_string() } else { format!("/{path}/") };
    Some(
        json!({"PolicyName": name, "Arn": arn, "Path": path, "DefaultVersionId": "v1", "IsAttachable": true}),
    )
}

/// What it says.
pub(super) fn document(arn: &str) -> Option<Value> {
    let rest = arn.strip_prefix(PREFIX)?;
    let (_, actions) = KNOWN.iter().find(|(name, _)| *name == rest)?;
    let not: Vec<&str> = actions.iter().filter_map(|a| a.strip_prefix('!')).collect();
    let (member, actions) = if not.is_empty() { ("Action", actions.to_vec()) } else { ("NotAction", not) };
    Some(json!({"Statement": [{"Effect": "Allow", member: actions, "Resource": "*"}]}))
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Value> {
    KNOWN.iter().filter_map(|(rest, _)| policy(&format!("{PREFIX}{rest}")))
}

//! AWS's own command line against the AWS endpoint, set up by `gantry env` alone.

use crate::{cluster, has};
use anyhow::{Result, ensure};
use std::path::Path;
use testkit::cluster::Cluster;

/// Runs a script with `gantry env` evaluated and the AWS command line (which `./dev test` installs) found.
fn aws(cluster: &Cluster, script: &str) -> Result<String> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/boto3/bin");
    ensure!(tools.join("aws").exists(), "{} has no aws: run ./dev test", tools.display());
    cluster.sh(&format!(
        "set -e; export PATH={}:$PATH AWS_PAGER= AWS_DEFAULT_OUTPUT=text\n\
         eval \"$({} env --data-dir {})\"\n{script}",
        tools.display(),
        env!("CARGO_BIN_EXE_gantry"),
        cluster.folder().display()
    ))
}

/// What AWS's client says of a call that fails.
fn refused(cluster: &Cluster, script: &str, words: &[&str]) -> Result<()> {
    has(&aws(cluster, &format!("{script} 2>&1 && exit 9 || true"))?, words)
}

#[test]
fn the_command_line_finds_its_endpoint_and_clusters() -> Result<()> {
    let cluster = cluster();
    has(&aws(&cluster, "aws sts get-caller-identity")?, &["123456789012", "arn:aws:iam::123456789012:root"])?;
    let made = "aws ecs create-cluster --cluster-name prod --query cluster.status\n\
                aws ecs describe-clusters --clusters prod nope --query '[clusters[].clusterName,failures[].reason]'\n\
                aws ecs list-clusters";
    has(&aws(&cluster, made)?, &["ACTIVE", "prod", "MISSING", "cluster/prod"])?;
    has(&cluster.kubectl(&["get", "clusters.ecs.gantry.dev", "-A"])?, &["prod"])?;

    let wrong = "AWS_SECRET_ACCESS_KEY=wrong; aws ecs list-clusters";
    refused(&cluster, wrong, &["(InvalidSignatureException)", "does not match the signature you provided"])?;
    refused(&cluster, "AWS_ACCESS_KEY_ID=AKIAX; aws sts get-caller-identity", &["(InvalidClientTokenId)"])?;
    refused(
        &cluster,
        "aws ec2 describe-spot-fleet-requests",
        &["(InvalidAction)", "is not implemented by Gantry"],
    )?;
    // The well-known key is for this machine only.
    let near = "AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing; aws sts get-caller-identity";
    has(&aws(&cluster, near)?, &["123456789012"])?;
    let far =
        "AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_ENDPOINT_URL=http://10.99.0.1:4566";
    refused(&cluster, &format!("{far}; aws sts get-caller-identity"), &["(InvalidClientTokenId)"])
}

#[test]
fn secrets_roles_and_repositories_outlive_a_restart() -> Result<()> {
    let mut cluster = cluster();
    let make = "aws ssm put-parameter --name /app/key --type SecureString --value s3cret\n\
        aws secretsmanager create-secret --name db --secret-string one\n\
        aws secretsmanager put-secret-value --secret-id db --secret-string two\n\
        aws iam create-role --role-name web --assume-role-policy-document '{}'\n\
        aws ecr create-repository --repository-name team/web --query repository.repositoryUri\n\
        for host in localhost 10.99.0.1; do aws ecr get-login-password \
        | skopeo login --tls-verify=false --username AWS --password-stdin $host:5000; done";
    has(&aws(&cluster, make)?, &["localhost:5000/team/web", "Login Succeeded!"])?;
    let denied =
        "echo wrong | skopeo login --tls-verify=false --username AWS --password-stdin 10.99.0.1:5000";
    refused(&cluster, denied, &["invalid username/password"])?;
    cluster.kill9()?;
    cluster.up()?;
    let read = "aws ssm get-parameter --name /app/key --with-decryption --query Parameter.Value\n\
        aws secretsmanager get-secret-value --secret-id db --query SecretString\n\
        aws secretsmanager get-secret-value --secret-id db --version-stage AWSPREVIOUS --query SecretString\n\
        aws ecr describe-repositories --query 'repositories[].repositoryName'\n\
        aws sts assume-role --role-arn arn:aws:iam::123456789012:role/web --role-session-name s1 \
        --query AssumedRoleUser.Arn";
    has(&aws(&cluster, read)?, &["s3cret", "two", "one", "team/web", "assumed-role/web/s1"])?;
    let changed = cluster.kubectl(&["-n", "aws", "delete", "roles.iam.gantry.dev", "web"]);
    has(&crate::refusal(changed)?, &["change it through the AWS API"])
}

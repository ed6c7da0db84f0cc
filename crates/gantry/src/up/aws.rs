//! The AWS side of the control plane: keys, account, services, and the endpoint they are reached at.
//!
//! Two components: [`account`] comes early and leaves what services with stores of their own need; [`endpoint`] comes
//! late, with all of them. Others add a service by pushing onto [`Parts::services`] between the two.

use super::Instance;
use crate::config::Config;
use crate::kubeconfig;
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use auth::{AccessKeys, Identity, SYSTEM_MASTERS};
use aws_server::service::{Service, Shared};
use aws_server::{Aws, AwsConfig, Upgrade, services};
use k8s_schema::gvr::NAMESPACES;
use registry::{Action, Authorizer, Credentials, Principal};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Namespaces of what belongs to an account and to no ECS cluster.
const SPACES: [&str; 2] = [ecs_model::names::AWS_NAMESPACE, ecs_model::names::ECS_NAMESPACE];
/// Zones of a region, by letter: subnets and nodes are spread over them.
const ZONES: [char; 3] = ['a', 'b', 'c'];

/// What the AWS components leave for each other.
#[derive(Default)]
pub struct Parts {
    /// The API, account and region: what every service holds a copy of.
    pub shared: Option<Shared>,
    /// Access keys.
    pub keys: Option<Arc<AccessKeys>>,
    /// Services with stores of their own; the endpoint adds the others.
    pub services: Vec<Arc<dyn Service>>,
    /// Paths that are not AWS's.
    pub upgrades: Vec<Arc<dyn Upgrade>>,
    /// All services, for those who ask them in process; there once the endpoint is.
    pub all: Vec<Arc<dyn Service>>,
    /// CloudWatch Logs, for the log drivers.
    pub logs: Option<Arc<services::logs::State>>,
    /// S3, for the endpoint and for tasks' environment files.
    pub s3: Option<Arc<services::s3::S3>>,
    /// EventBridge.
    pub events: Option<Arc<services::events::State>>,
    /// Exec sessions.
    pub exec: Option<Arc<services::exec::Sessions>>,
    /// The endpoint.
    pub aws: Option<Arc<Aws>>,
}

impl Parts {
    /// What every service holds a copy of.
    pub fn shared(&self) -> Result<Shared> {
        self.shared.clone().context("the AWS account comes before what uses it")
    }

    /// Access keys.
    pub fn keys(&self) -> Result<Arc<AccessKeys>> {
        self.keys.clone().context("the AWS account comes before what uses it")
    }
}

/// The pair that `gantry env` prints, where the user behind `sudo` can read it.
pub fn credentials_file(config: &Config) -> PathBuf {
    config.data_dir.join("aws-credentials")
}

/// The region's zones.
pub fn zones(region: &str) -> Vec<String> {
    ZONES.iter().map(|letter| format!("{region}{letter}")).collect()
}

/// The account: its keys and namespaces.
pub async fn account(instance: &mut Instance) -> Result<()> {
    let config = &instance.config;
    if config.aws_port == 0 {
        return Ok(());
    }
    let account = config.aws_account.clone();
    let digits = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    ensure!(digits, "--aws-account {account:?} is not 12 digits");
    let folder = config.data_dir.join("pki");
    let keys = AccessKeys::load_or_create(&folder, &account, &config.aws_keys).context("--aws-keys")?;
    let own = keys.own();
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        own.access_key, own.secret
    );
    kubeconfig::write(&credentials_file(config), &text)?;
    let client = instance.control.client(Identity::new("system:gantry-aws", [SYSTEM_MASTERS]))?;
    for name in SPACES {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match client.create(&NAMESPACES, body).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error).with_context(|| format!("making namespace {name}")),
        }
    }
    let folder = config.data_dir.join("s3");
    super::private_folder(&folder)?;
    let s3 = tokio::task::spawn_blocking(move || services::s3::S3::open(folder)).await?;
    instance.aws.s3 = Some(Arc::new(s3.context("opening the store of S3")?));
    let zones = zones(&config.aws_region);
    instance.aws.shared = Some(Shared { client, account, region: config.aws_region.clone(), zones });
    instance.aws.keys = Some(Arc::new(keys));
    Ok(())
}

/// Users of the registry with a password from ECR's GetAuthorizationToken: they pull and push everything, as every
/// caller of the AWS endpoint may.
struct EcrUsers(Arc<AccessKeys>);

struct EcrUser(String);

#[async_trait]
impl Authorizer for EcrUsers {
    async fn identify(&self, credentials: Credentials<'_>) -> Option<Arc<dyn Principal>> {
        let Credentials::Password { user: services::ecr::USER, password } = credentials else { return None };
        let now = jiff::Timestamp::now().as_second();
        let holder = self.0.holder(services::ecr::PASSWORD, password, now).ok()?;
        Some(Arc::new(EcrUser(holder.arn)))
    }
}

#[async_trait]
impl Principal for EcrUser {
    fn name(&self) -> &str {
        &self.0
    }

    async fn allows(&self, _: Action, _: &str) -> bool {
        true
    }
}

/// All services, and the listener.
pub async fn endpoint(instance: &mut Instance) -> Result<()> {
    let config = &instance.config;
    if config.aws_port == 0 {
        return Ok(());
    }
    instance.node.registry_users.add(Arc::new(EcrUsers(instance.aws.keys()?)));
    let depot = instance.node.puller().ok().and_then(|p| p.depot().cloned());
    let parts = services::Parts {
        shared: instance.aws.shared()?,
        keys: instance.aws.keys()?,
        tokens: Some(instance.control.service_tokens()?),
        registry: depot
            .map(|depot| services::Registry { depot, host: format!("localhost:{}", config.registry_port) }),
    };
    let mut all = services::all(&parts);
    all.append(&mut instance.aws.services);
    if let Some(sessions) = &instance.aws.exec {
        all = services::exec::with_exec(all, &parts.shared, sessions);
    }
    instance.aws.all.clone_from(&all);
    let clock = || u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let aws = Aws::new(AwsConfig {
        services: all,
        keys: parts.keys,
        shared: parts.shared,
        s3: instance.aws.s3.clone(),
        upgrades: std::mem::take(&mut instance.aws.upgrades),
        clock: Arc::new(clock),
    });
    let bind = config.bind.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let listener = TcpListener::bind((bind, config.aws_port)).await;
    let listener =
        listener.with_context(|| format!("listening at {bind}:{} (--aws-port)", config.aws_port))?;
    instance.tasks.push(tokio::spawn(aws.clone().serve(listener, instance.stop.subscribe())));
    instance.aws.aws = Some(aws);
    Ok(())
}

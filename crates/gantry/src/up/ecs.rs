//! ECS behind its operations: the controllers of tasks and services, and the endpoint that tasks find on their node.
//!
//! Both ask other AWS services in process, as the account itself: SSM and Secrets Manager for `secrets`, STS for task
//! roles, ECS for protection. (A node without a control plane asks a server's door for those: `join::server`.)

use super::Instance;
use super::leader;
use agent::taskmeta::{Refused, TaskServices};
use anyhow::Result;
use async_trait::async_trait;
use auth::{Identity, SYSTEM_MASTERS};
use aws_server::service::{AwsError, Call, Service, Shared};
use client::ObjectKey;
use ecs::{Ecs, EcsConfig, Launcher, SecretSource};
use ecs_model::annotation::TaskNote;
use ecs_model::lower::{METADATA_ADDRESS, Settings};
use ecs_model::names::Place;
use ecs_model::secret::SecretRef;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The lease of the ECS controllers, where servers share a store.
const LEASE: &str = "gantry-ecs";
/// Where SDKs look for the metadata endpoint.
const METADATA_PORT: u16 = 80;
/// Longest time that stopped tasks stay visible.
const RETENTION_MAX_MINUTES: u16 = 43_200;
/// Life of a task role's credentials: SDKs fetch new ones before.
const CREDENTIAL_SECONDS: i64 = 3_600;

/// Other services, asked in process.
pub struct Calls {
    services: Vec<Arc<dyn Service>>,
    shared: Shared,
    s3: Option<Arc<aws_server::services::s3::S3>>,
    endpoint: String,
}

impl Calls {
    pub async fn call(
        &self,
        service: &str,
        operation: &'static str,
        input: Value,
    ) -> Result<Value, AwsError> {
        let found = self.services.iter().find(|s| s.name() == service && s.served().contains(&operation));
        let Some(found) = found else {
            let words = format!("{service} {operation} is not implemented by Gantry");
            return Err(AwsError::client("UnknownOperationException", words));
        };
        let here = Place::new(&*self.shared.account, &*self.shared.region);
        found.call(&self.request(&here, operation, input)).await
    }

    /// A call of an account itself.
    fn request(&self, place: &Place, operation: &'static str, input: Value) -> Call {
        let call = Call::own(&place.account, &place.region, operation, input);
        Call { endpoint: self.endpoint.clone(), ..call }
    }
}

#[async_trait]
impl Launcher for Calls {
    async fn ask(&self, place: &Place, operation: &'static str, input: Value) -> Result<Value, String> {
        let ecs = self.services.iter().find(|s| s.name() == "ecs").ok_or("there is no ECS")?;
        ecs.call(&self.request(place, operation, input)).await.map_err(|e| e.message)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

#[async_trait]
impl SecretSource for Calls {
    async fn read(&self, reference: &SecretRef) -> Result<String, String> {
        match reference {
            SecretRef::Parameter(name) => {
                let input = json!({"Name": name, "WithDecryption": true});
                let found = self.call("ssm", "GetParameter", input).await.map_err(|e| e.to_string())?;
                Ok(text(&found["Parameter"]["Value"]))
            }
            SecretRef::Object { bucket, key } => {
                let s3 = self.s3.as_ref().ok_or("there is no S3")?;
                let body = s3.read(&self.shared.account, bucket, key).await?;
                String::from_utf8(body).map_err(|_| format!("{bucket}/{key} is not text"))
            }
            SecretRef::Secret { id, stage, version, .. } => {
                let mut input = json!({"SecretId": id});
                for (member, value) in [("VersionStage", stage), ("VersionId", version)] {
                    if !value.is_empty() {
                        input[member] = json!(value);
                    }
                }
                let found = self.call("secretsmanager", "GetSecretValue", input).await;
                Ok(text(&found.map_err(|e| e.to_string())?["SecretString"]))
            }
        }
    }
}

#[async_trait]
impl TaskServices for Calls {
    async fn credentials(&self, pod: &ObjectKey, task: &TaskNote) -> Result<Value, String> {
        let role_arn = &task.task.role_arn;
        let input =
            json!({"RoleArn": role_arn, "RoleSessionName": pod.name, "DurationSeconds": CREDENTIAL_SECONDS});
        let answer = self.call("sts", "AssumeRole", input).await.map_err(|e| e.to_string())?;
        let credentials = &answer["Credentials"];
        let expires = credentials["Expiration"].as_f64().unwrap_or_default() as i64;
        Ok(json!({
            "RoleArn": role_arn,
            "AccessKeyId": credentials["AccessKeyId"],
            "SecretAccessKey": credentials["SecretAccessKey"],
            "Token": credentials["SessionToken"],
            "Expiration": machinery::time::format(Timestamp::from_second(expires).unwrap_or_default()),
        }))
    }

    async fn protection(
        &self,
        _: &ObjectKey,
        task: &TaskNote,
        change: Option<Value>,
    ) -> Result<Value, Refused> {
        let who = json!({"cluster": task.task.cluster_arn, "tasks": [task.task.arn]});
        let (operation, mut input) = match change {
            None => ("GetTaskProtection", who),
            Some(change) => {
                let mut input = who;
                input
                    .as_object_mut()
                    .into_iter()
                    .for_each(|i| i.extend(change.as_object().cloned().unwrap_or_default()));
                ("UpdateTaskProtection", input)
            }
        };
        self.call("ecs", operation, input.take()).await.map_err(|error| {
            let code = if error.status < 500 { "InvalidParameterException" } else { "ServerException" };
            (error.status, code.into(), error.message)
        })
    }
}

/// The services in process, where there are any.
pub fn calls(instance: &Instance) -> Option<Arc<Calls>> {
    let shared = instance.aws.shared.clone()?;
    let endpoint = format!("http://{}:{}", instance.facts.node_ip, instance.config.aws_port);
    Some(Arc::new(Calls {
        services: instance.aws.all.clone(),
        shared,
        s3: instance.aws.s3.clone(),
        endpoint,
    }))
}

/// The controllers. Come after the AWS endpoint, whose services it asks.
pub async fn controllers(instance: &mut Instance) -> Result<()> {
    let Some(calls) = calls(instance) else { return Ok(()) };
    let client = instance.control.client(Identity::new("system:gantry-ecs", [SYSTEM_MASTERS]))?;
    let config = &instance.config;
    let hosts = ["localhost".to_string(), "127.0.0.1".to_string(), instance.facts.node_ip.to_string()];
    let ecs = EcsConfig {
        defaults: Place::new(&*calls.shared.account, &*calls.shared.region),
        settings: Settings {
            endpoint: calls.endpoint.clone(),
            volumes_root: config.data_dir.join("volumes").display().to_string(),
            efs_root: config.efs_root.clone(),
            own_registries: hosts.map(|host| format!("{host}:{}", config.registry_port)).to_vec(),
        },
        retention: Duration::from_secs(60 * u64::from(config.task_retention.min(RETENTION_MAX_MINUTES))),
        settled: Duration::from_secs(u64::from(config.service_settle)),
    };
    let asks = client.clone();
    let start = move || {
        let seams = (calls.clone() as Arc<dyn SecretSource>, calls.clone() as Arc<dyn Launcher>);
        Ecs::start(asks.clone(), seams, ecs.clone(), Arc::new(Timestamp::now))
    };
    leader::in_turn(instance, LEASE, client, start);
    Ok(())
}

/// The metadata endpoint of the node's tasks. A node where it cannot be does all the rest.
pub async fn metadata(instance: &mut Instance) -> Result<()> {
    let (Ok(agent), Ok(network)) = (instance.node.agent(), instance.node.network()) else { return Ok(()) };
    let address: Ipv4Addr = METADATA_ADDRESS.parse()?;
    let added = tokio::task::spawn_blocking(move || network.add_address(address)).await?;
    if let Err(error) = added {
        tracing::warn!(%error, "no task metadata endpoint");
        return Ok(());
    }
    match TcpListener::bind((address, METADATA_PORT)).await {
        Ok(listener) => {
            let services = match &instance.control.joined {
                Some(joined) => Some(joined.server() as Arc<dyn TaskServices>),
                None => calls(instance).map(|c| c as Arc<dyn TaskServices>),
            };
            instance.tasks.push(tokio::spawn(agent.task_metadata(listener, services)));
        }
        Err(error) => tracing::warn!(%error, "no task metadata endpoint at {address}:{METADATA_PORT}"),
    }
    Ok(())
}

//! Values of `secrets`: read when the task starts, kept in a Secret that goes with the task.

use async_trait::async_trait;
use client::ApiClient;
use ecs_model::env_file;
use ecs_model::lower::{self, Lowered, SecretWish, Subject};
use ecs_model::secret::SecretRef;
use k8s_schema::gvr::SECRETS;
use machinery::status::ApiError;
use serde_json::{Map, Value, json};

/// Reads parameters and secrets, as the task's execution role may.
#[async_trait]
pub trait SecretSource: Send + Sync + 'static {
    /// The whole text of what the reference names; an error in the service's own words.
    async fn read(&self, reference: &SecretRef) -> Result<String, String>;
}

/// Why the secrets of a task are not there.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The service said no: the task cannot start.
    #[error("{0}")]
    Refused(String),
    /// Our own API failed: try again.
    #[error(transparent)]
    Api(#[from] ApiError),
}

async fn one(source: &dyn SecretSource, wish: &SecretWish) -> Result<String, SecretsError> {
    let reference = SecretRef::parse(&wish.from);
    let (from, word) = match &reference {
        SecretRef::Parameter(name) => (name.clone(), "ssm"),
        SecretRef::Secret { id, .. } => (id.clone(), "asm"),
        SecretRef::Object { bucket, key } => (format!("{bucket}/{key}"), "s3"),
    };
    let refused = |why: String| {
        SecretsError::Refused(format!(
            "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: \
             unable to retrieve secret from {word}: {from}: {why}"
        ))
    };
    let text = source.read(&reference).await.map_err(refused)?;
    reference.pick(text).map_err(refused)
}

/// The variables of a container's environment files.
async fn env_files(source: &dyn SecretSource, files: &[String]) -> Result<Value, SecretsError> {
    let failed = |why: &str| {
        SecretsError::Refused(format!(
            "ResourceInitializationError: failed to download env files: file download command: non empty error stream: {why}"
        ))
    };
    let mut texts = Vec::new();
    for arn in files {
        texts.push(source.read(&SecretRef::parse(arn)).await.map_err(|why| failed(&why))?);
    }
    let all = env_file::merged(texts.iter().map(String::as_str));
    if all.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > env_file::BYTES_MAX {
        return Err(failed("the files hold too much"));
    }
    Ok(json!(all))
}

/// Makes the Secrets that a task's pod refers to.
///
/// # Errors
/// A value cannot be had, or the API failed.
pub async fn provide(
    client: &ApiClient,
    source: &dyn SecretSource,
    task: &Subject<'_>,
    lowered: &Lowered,
) -> Result<(), SecretsError> {
    let Lowered { secrets: wishes, env_files: files, registries, .. } = lowered;
    for (name, files) in files {
        create(client, task, (name, "Opaque"), env_files(source, files).await?).await?;
    }
    if !wishes.is_empty() {
        let mut data = Map::new();
        for wish in wishes {
            data.insert(wish.key.clone(), json!(one(source, wish).await?));
        }
        create(client, task, (&lower::secret_name(task.id), "Opaque"), Value::Object(data)).await?;
    }
    if !registries.is_empty() {
        let mut auths = Map::new();
        for wish in registries {
            let text = one(source, wish).await?;
            let host = wish.key.split('/').next().filter(|h| h.contains(['.', ':'])).unwrap_or("docker.io");
            let account: Value = serde_json::from_str(&text).map_err(|_| {
                SecretsError::Refused("ResourceInitializationError: registry credentials are not JSON".into())
            })?;
            let entry = json!({"username": account["username"], "password": account["password"]});
            auths.insert(host.to_string(), entry);
        }
        let config = json!({".dockerconfigjson": json!({"auths": auths}).to_string()});
        let name = lower::registry_secret_name(task.id);
        create(client, task, (&name, "kubernetes.io/dockerconfigjson"), config).await?;
    }
    Ok(())
}

async fn create(
    client: &ApiClient,
    task: &Subject<'_>,
    (name, kind): (&str, &str),
    data: Value,
) -> Result<(), ApiError> {
    let body = json!({
        "apiVersion": "v1", "kind": "Secret", "type": kind, "immutable": true, "stringData": data,
        "metadata": {"namespace": task.namespace, "name": name, "ownerReferences": [lower::owner(task)]},
    });
    match client.create(&SECRETS, body).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

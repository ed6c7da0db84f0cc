//! ECR: repositories and their images over the registry's own content ([`image::Depot`]).
//!
//! A repository's facts (mutability, policies, tags) are an object of group `ecr.gantry.dev`; its images are in the
//! depot, under the same name. What was pushed to a name that nobody created counts as a repository from then on.
//! Deliberately not here: scanning, replication, pull-through caches; lifecycle policies are kept and not run.

mod images;
mod layers;
mod repositories;
mod settings;

use super::kept::{Kept, Reach, now};
use super::{Parts, Registry};
use crate::operation;
use crate::service::{AwsError, Call, Operation, Outcome, Service, Table};
use auth::AccessKeys;
use auth::access::Principal;
use image::{Depot, DepotError};
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::sync::Arc;

/// Purpose of the passwords that GetAuthorizationToken gives out: see [`AccessKeys::holder`].
pub const PASSWORD: &str = "ecr";
/// The user name that goes with them.
pub const USER: &str = "AWS";
/// AWS's life of such a password, in seconds.
const PASSWORD_SECONDS: i64 = 12 * 3_600;

/// What the operations share.
pub struct State {
    repositories: Kept,
    registry: Option<Registry>,
    keys: Arc<AccessKeys>,
    account: String,
    region: String,
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("GetAuthorizationToken", authorization),
    operation!("DescribeRegistry", registry),
    operation!("CreateRepository", repositories::create),
    operation!("DescribeRepositories", repositories::describe),
    operation!("DeleteRepository", repositories::delete),
    operation!("TagResource", repositories::tag),
    operation!("UntagResource", repositories::tag),
    operation!("ListTagsForResource", repositories::list_tags),
    operation!("PutImageTagMutability", settings::copy, "imageTagMutability"),
    operation!("PutImageScanningConfiguration", settings::copy, "imageScanningConfiguration"),
    operation!("SetRepositoryPolicy", settings::put, "policyText"),
    operation!("GetRepositoryPolicy", settings::get, "policyText"),
    operation!("DeleteRepositoryPolicy", settings::delete, "policyText"),
    operation!("PutLifecyclePolicy", settings::put, "lifecyclePolicyText"),
    operation!("GetLifecyclePolicy", settings::get, "lifecyclePolicyText"),
    operation!("DeleteLifecyclePolicy", settings::delete, "lifecyclePolicyText"),
    operation!("ListImages", images::list),
    operation!("DescribeImages", images::describe),
    operation!("BatchGetImage", images::batch_get),
    operation!("BatchDeleteImage", images::batch_delete),
    operation!("PutImage", images::put),
    operation!("BatchCheckLayerAvailability", layers::check),
    operation!("GetDownloadUrlForLayer", layers::download_url),
    operation!("InitiateLayerUpload", layers::initiate),
    operation!("UploadLayerPart", layers::part),
    operation!("CompleteLayerUpload", layers::complete),
];

/// The service.
pub fn service(parts: &Parts) -> Arc<dyn Service> {
    let state = Arc::new(State {
        repositories: Kept::new(&parts.shared, gvr::ECR_REPOSITORIES, "Repository", Reach::Regional),
        registry: parts.registry.clone(),
        keys: parts.keys.clone(),
        account: parts.shared.account.clone(),
        region: parts.shared.region.clone(),
    });
    Arc::new(Table { name: "ecr", state, operations: OPERATIONS })
}

fn invalid(text: impl Into<String>) -> AwsError {
    AwsError::client("InvalidParameterException", text)
}

impl State {
    fn registry(&self) -> Result<&Registry, AwsError> {
        let text = "This server has no registry (--registry-port 0)";
        self.registry.as_ref().ok_or_else(|| AwsError::server("ServerException", text))
    }

    /// What a repository is called in the registry: by its name, but for other accounts and regions.
    fn place(&self, call: &Call, name: &str) -> String {
        let (account, region) = (&call.caller.account, &call.region);
        match *account == self.account && *region == self.region {
            true => name.to_string(),
            false => format!("{account}/{region}/{name}"),
        }
    }

    /// The name of a thing in the registry as the caller's repository, if it is one.
    fn name_of(&self, call: &Call, place: &str) -> Option<String> {
        let (account, region) = (&call.caller.account, &call.region);
        if *account == self.account && *region == self.region {
            let foreign = place
                .split('/')
                .next()
                .is_some_and(|p| p.len() == 12 && p.bytes().all(|b| b.is_ascii_digit()));
            return (!foreign).then(|| place.to_string());
        }
        place.strip_prefix(&format!("{account}/{region}/")).map(String::from)
    }

    /// Runs what waits for the disk on a thread that may.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Depot) -> Result<T, DepotError> + Send + 'static,
    ) -> Result<T, AwsError> {
        let depot = self.registry()?.depot.clone();
        let done = tokio::task::spawn_blocking(move || work(&depot)).await;
        match done {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(AwsError::server("ServerException", "The registry did not answer")),
        }
    }

    /// Other registries than the caller's own are not reached.
    fn own_registry(&self, call: &Call) -> Result<(), AwsError> {
        match call.input["registryId"].as_str() {
            Some(id) if id != call.caller.account => {
                let text = format!(
                    "The repository with name '{}' does not exist in the registry with id '{id}'",
                    call.text("repositoryName")
                );
                Err(AwsError::client("RepositoryNotFoundException", text))
            }
            _ => Ok(()),
        }
    }
}

/// The registry's errors in ECR's words.
fn failed(error: DepotError) -> AwsError {
    let words = error.to_string();
    match error {
        DepotError::NameInvalid(_) | DepotError::ManifestInvalid(_) | DepotError::TooBig(_) => invalid(words),
        DepotError::BlobUnknown(_) | DepotError::ManifestBlobUnknown(_) => {
            AwsError::client("LayersNotFoundException", words)
        }
        DepotError::UploadUnknown(_) => AwsError::client("UploadNotFoundException", words),
        DepotError::UploadInvalid(_) | DepotError::DigestInvalid(_) => {
            AwsError::client("InvalidLayerException", words)
        }
        DepotError::ManifestUnknown(_) | DepotError::NameUnknown(_) => {
            AwsError::client("ImageNotFoundException", words)
        }
        DepotError::TooMany(_) | DepotError::Denied(_) => AwsError::client("LimitExceededException", words),
        DepotError::Image(_) => {
            tracing::warn!(error = words, "ECR: the registry's disk");
            AwsError::server("ServerException", "The registry's disk failed")
        }
    }
}

async fn authorization(state: &State, call: &Call) -> Outcome {
    use base64::Engine;
    let host = &state.registry()?.host;
    let caller = &call.caller;
    let principal = Principal {
        account: caller.account.clone(),
        arn: caller.arn.clone(),
        user_id: caller.user_id.clone(),
    };
    let expires = (call.now_ms / 1_000) as i64 + PASSWORD_SECONDS;
    let password = state.keys.ticket(PASSWORD, principal, expires).map_err(|error| {
        tracing::error!(%error, "no password could be made");
        AwsError::server("ServerException", "No password could be made")
    })?;
    let token = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{password}"));
    Ok(json!({"authorizationData": [
        {"authorizationToken": token, "expiresAt": expires, "proxyEndpoint": format!("http://{host}")}]}))
}

async fn registry(_: &State, call: &Call) -> Outcome {
    Ok(json!({"registryId": call.caller.account, "replicationConfiguration": {"rules": []}}))
}

/// A repository's document as it begins.
fn new_repository(state: &State, call: &Call, name: &str) -> Result<Value, AwsError> {
    let (account, region) = (&call.caller.account, &call.region);
    Ok(json!({
        "repositoryArn": format!("arn:aws:ecr:{region}:{account}:repository/{name}"),
        "registryId": account,
        "repositoryName": name,
        "repositoryUri": format!("{}/{}", state.registry()?.host, state.place(call, name)),
        "createdAt": now(call),
        "imageTagMutability": "MUTABLE",
        "imageScanningConfiguration": {"scanOnPush": false},
        "encryptionConfiguration": {"encryptionType": "AES256"},
        "tags": [],
    }))
}

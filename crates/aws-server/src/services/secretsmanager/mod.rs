//! Secrets Manager: secrets with versions and stages, and a recovery window after deletion.
//!
//! A secret is an object of group `secretsmanager.gantry.dev`; its `spec` holds all versions (values as they are: the
//! store's folder is root's). A secret whose deletion date has passed counts as gone, and goes when its name is next
//! used. Deliberately not here: rotation, replication, resource policies, KMS.

mod change;
mod find;
mod read;

use super::Parts;
use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{AwsError, Operation, Service, Table};
use k8s_schema::gvr;
use std::sync::Arc;

/// What the operations share.
pub struct State {
    secrets: Kept,
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("CreateSecret", change::create),
    operation!("PutSecretValue", change::put_value),
    operation!("UpdateSecret", change::update),
    operation!("UpdateSecretVersionStage", change::move_stage),
    operation!("DeleteSecret", change::delete),
    operation!("RestoreSecret", change::restore),
    operation!("TagResource", change::tag),
    operation!("UntagResource", change::tag),
    operation!("GetSecretValue", read::value),
    operation!("BatchGetSecretValue", read::values),
    operation!("DescribeSecret", read::describe),
    operation!("ListSecrets", read::list),
    operation!("ListSecretVersionIds", read::versions),
    operation!("GetRandomPassword", read::random_password),
];

/// The stage of the value that is in force.
const CURRENT: &str = "AWSCURRENT";
/// The stage of the one before.
const PREVIOUS: &str = "AWSPREVIOUS";

/// The service.
pub fn service(parts: &Parts) -> Arc<dyn Service> {
    let secrets = Kept::new(&parts.shared, gvr::AWS_SECRETS, "Secret", Reach::Regional);
    Arc::new(Table { name: "secretsmanager", state: Arc::new(State { secrets }), operations: OPERATIONS })
}

fn invalid(text: impl Into<String>) -> AwsError {
    AwsError::client("InvalidParameterException", text)
}

fn refused(text: impl Into<String>) -> AwsError {
    AwsError::client("InvalidRequestException", text)
}

fn not_found() -> AwsError {
    AwsError::client("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
}

fn deleted() -> AwsError {
    refused("You can't perform this operation on the secret because it was marked for deletion.")
}

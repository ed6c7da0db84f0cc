//! SSM: the parameter store (String, StringList, SecureString; versions, labels, paths, tags).
//!
//! A parameter is an object of group `ssm.gantry.dev`; its `spec` holds all versions. Values of SecureString are kept
//! as they are (the store's folder is root's), and shown only to those who ask with decryption.
//! Deliberately not here: everything else of SSM, parameter policies, KMS.

mod labels;
mod names;
mod read;
mod write;

use super::Parts;
use super::kept::{Kept, Reach};
use crate::operation;
use crate::service::{AwsError, Operation, Service, Table};
use auth::AccessKeys;
use k8s_schema::gvr;
use std::sync::Arc;

/// What the operations share.
pub struct State {
    parameters: Kept,
    keys: Arc<AccessKeys>,
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("PutParameter", write::put),
    operation!("DeleteParameter", write::delete),
    operation!("DeleteParameters", write::delete_many),
    operation!("GetParameter", read::get),
    operation!("GetParameters", read::get_many),
    operation!("GetParametersByPath", read::by_path),
    operation!("GetParameterHistory", read::history),
    operation!("DescribeParameters", read::describe),
    operation!("LabelParameterVersion", labels::label),
    operation!("UnlabelParameterVersion", labels::unlabel),
    operation!("AddTagsToResource", labels::tag),
    operation!("RemoveTagsFromResource", labels::tag),
    operation!("ListTagsForResource", labels::list_tags),
];

/// The service.
pub fn service(parts: &Parts) -> Arc<dyn Service> {
    let parameters = Kept::new(&parts.shared, gvr::SSM_PARAMETERS, "Parameter", Reach::Regional);
    let state = Arc::new(State { parameters, keys: parts.keys.clone() });
    Arc::new(Table { name: "ssm", state, operations: OPERATIONS })
}

/// As on AWS, without a word.
fn not_found() -> AwsError {
    AwsError::client("ParameterNotFound", "")
}

fn invalid(text: impl Into<String>) -> AwsError {
    AwsError::client("ValidationException", text)
}

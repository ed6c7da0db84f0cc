//! ServiceAccount: pods run as an account, `default` unless they say another.
//!
//! The token volume is mounted only where tokens are issued (`ApiConfig::token_issuer`), which no part does yet.

use super::Attempt;
use machinery::status::ApiError;
use serde_json::{Value, json};

pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let static_pod = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    if !attempt.creates_pod() || static_pod || !pod["spec"].is_object() {
        return Ok(());
    }
    if pod["spec"]["serviceAccountName"].as_str().is_none_or(str::is_empty) {
        pod["spec"]["serviceAccountName"] = json!("default");
    }
    // The old name of the field follows the new one.
    pod["spec"]["serviceAccount"] = pod["spec"]["serviceAccountName"].clone();
    Ok(())
}

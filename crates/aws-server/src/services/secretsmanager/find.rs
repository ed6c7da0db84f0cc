//! Which secret an id means: a name, an ARN, or an ARN without its last six characters. Pure but for the lookup.

use super::{State, not_found};
use crate::service::{AwsError, Call};
use crate::services::kept::text;
use serde_json::Value;

/// AWS adds so many random characters, after a hyphen, to the name in an ARN.
const SUFFIX: usize = 6;

/// Names that an id may mean, the likelier first.
pub(super) fn names(id: &str) -> Vec<&str> {
    let Some(name) = id.strip_prefix("arn:").and_then(|arn| arn.splitn(6, ':').nth(5)) else {
        return vec![id];
    };
    let whole = Some(name);
    let cut = name.rsplit_once('-').filter(|(_, tail)| tail.len() == SUFFIX).map(|(name, _)| name);
    cut.into_iter().chain(whole).collect()
}

/// The secret of an id: its name and its document. `gone_too`: also one that is marked for deletion.
pub(super) async fn secret(state: &State, call: &Call, id: &str) -> Result<(String, Value), AwsError> {
    for name in names(id) {
        let Some(spec) = state.secrets.get(call, name).await? else { continue };
        let arn = text(&spec, "ARN");
        // An ARN means this secret, not a later one of the same name.
        let meant =
            !id.starts_with("arn:") || arn == id || arn.rsplit_once('-').is_some_and(|(a, _)| a == id);
        if meant && !expired(&spec, call.now_ms) {
            return Ok((name.to_string(), spec));
        }
    }
    Err(not_found())
}

/// Has its deletion date passed?
pub(super) fn expired(spec: &Value, now_ms: u64) -> bool {
    spec["DeletionDate"].as_f64().is_some_and(|date| date * 1_000.0 <= now_ms as f64)
}

/// Six characters that tell secrets of one name apart, made of a unique text.
pub(super) fn suffix(unique: &str) -> String {
    use sha2::Digest;
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let hash = sha2::Sha256::digest(unique.as_bytes());
    hash.iter().take(SUFFIX).map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_all_forms() {
        assert_eq!(names("db/main"), ["db/main"]);
        assert_eq!(names("arn:aws:secretsmanager:r:1:secret:db-AbCdEf"), ["db", "db-AbCdEf"]);
        assert_eq!(names("arn:aws:secretsmanager:r:1:secret:my-db"), ["my-db"]);
        assert_eq!(suffix("x").len(), SUFFIX);
        assert_ne!(suffix("x"), suffix("y"));
    }
}

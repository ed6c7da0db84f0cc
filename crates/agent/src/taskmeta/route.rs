//! Paths of the endpoint, and whom they concern. Pure.

use bytes::Bytes;
use ecs_model::annotation::TaskNote;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

/// A question, with the id that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// The container's document.
    Container(String),
    /// The task's document; with its tags?
    Task(String, bool),
    /// The container's statistics.
    Stats(String),
    /// Those of all containers.
    TaskStats(String),
    /// The task role's credentials.
    Credentials(String),
    /// Scale-in protection.
    Protection(String),
}

impl Ask {
    /// Reads a path.
    pub fn parse(path: &str) -> Option<Ask> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let own = |id: &str| id.to_string();
        match parts[..] {
            ["v3" | "v4", id] => Some(Ask::Container(own(id))),
            ["v3" | "v4", id, "task"] => Some(Ask::Task(own(id), false)),
            ["v3" | "v4", id, "taskWithTags"] => Some(Ask::Task(own(id), true)),
            ["v3" | "v4", id, "stats"] => Some(Ask::Stats(own(id))),
            ["v3" | "v4", id, "task", "stats"] => Some(Ask::TaskStats(own(id))),
            ["v2", "credentials", id] => Some(Ask::Credentials(own(id))),
            ["api", id, "task-protection", "v1", "state"] => Some(Ask::Protection(own(id))),
            _ => None,
        }
    }

    /// The container (any one for credentials) of a task that knows the id; ids are 128 bits of a hash, so a
    /// comparison's time tells nothing of use.
    pub fn container(&self, task: &TaskNote) -> Option<String> {
        let id = match self {
            Ask::Credentials(id) => {
                let known = !id.is_empty() && task.task.credentials_id == *id;
                return known.then(|| task.containers.keys().next().cloned()).flatten();
            }
            Ask::Container(id)
            | Ask::Task(id, _)
            | Ask::Stats(id)
            | Ask::TaskStats(id)
            | Ask::Protection(id) => id,
        };
        let own = task.containers.iter().find(|(_, note)| !id.is_empty() && note.metadata_id == *id);
        own.map(|(name, _)| name.clone())
    }

    /// What somebody hears who names an unknown id, or one of another task.
    pub fn unknown(&self) -> Response<Full<Bytes>> {
        match self {
            Ask::Credentials(_) => super::reply(
                StatusCode::BAD_REQUEST,
                &json!({"code": "InvalidIdInRequest", "message": "CredentialsV2Request: ID not found", "HTTPErrorCode": 400}),
            ),
            _ => super::reply(
                StatusCode::NOT_FOUND,
                &json!("V4 container metadata handler: unable to get container ID from request"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_ids() {
        let id = || "x".to_string();
        for (path, ask) in [
            ("/v4/x", Ask::Container(id())),
            ("/v4/x/task", Ask::Task(id(), false)),
            ("/v3/x/task", Ask::Task(id(), false)),
            ("/v4/x/taskWithTags", Ask::Task(id(), true)),
            ("/v4/x/stats", Ask::Stats(id())),
            ("/v4/x/task/stats", Ask::TaskStats(id())),
            ("/v2/credentials/x", Ask::Credentials(id())),
            ("/api/x/task-protection/v1/state", Ask::Protection(id())),
        ] {
            assert_eq!(Ask::parse(path), Some(ask), "{path}");
        }
        for path in ["/", "/v4", "/v5/x", "/v4/x/y", "/v2/credentials", "/v2/credentials/x/y"] {
            assert_eq!(Ask::parse(path), None, "{path}");
        }
        let text =
            r#"{"version":1,"task":{"credentialsId":"c"},"containers":{"a":{"metadataId":"x"},"b":{}}}"#;
        let task = TaskNote::parse(text).unwrap();
        assert_eq!(Ask::Container("x".into()).container(&task), Some("a".into()));
        assert_eq!(Ask::Credentials("c".into()).container(&task), Some("a".into()));
        // Neither an empty id nor the other kind of id opens anything.
        for ask in [
            Ask::Container("".into()),
            Ask::Credentials("".into()),
            Ask::Credentials("x".into()),
            Ask::Task("c".into(), true),
        ] {
            assert_eq!(ask.container(&task), None, "{ask:?}");
        }
    }
}

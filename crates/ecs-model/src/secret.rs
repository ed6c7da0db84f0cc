//! What `valueFrom` of a secret names: a parameter or a secret, and which part of it; or an object of S3. Pure.

use crate::names::Arn;
use serde_json::Value;

/// A parsed `valueFrom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// An SSM parameter, by name.
    Parameter(String),
    /// A Secrets Manager secret.
    Secret {
        /// ARN or name.
        id: String,
        /// A key of its JSON text; "" for the whole text.
        json_key: String,
        /// `AWSCURRENT`, …; "" for the current one.
        stage: String,
        /// Version id; "" for any.
        version: String,
    },
    /// A file in S3.
    Object {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
    },
}

impl SecretRef {
    /// Reads `valueFrom`: a Secrets Manager ARN with up to three more parts, an SSM ARN, or a parameter's name.
    pub fn parse(text: &str) -> SecretRef {
        if let Some((bucket, key)) = crate::env_file::location(text) {
            return SecretRef::Object { bucket: bucket.to_string(), key: key.to_string() };
        }
        let Some(arn) = Arn::parse(text) else { return SecretRef::Parameter(text.to_string()) };
        if arn.service == "secretsmanager" {
            let mut parts = arn.resource.split(':');
            let kind = parts.next().unwrap_or_default();
            let name = parts.next().unwrap_or_default();
            let mut next = || parts.next().unwrap_or_default().to_string();
            let id =
                format!("arn:{}:secretsmanager:{}:{}:{kind}:{name}", arn.partition, arn.region, arn.account);
            return SecretRef::Secret { id, json_key: next(), stage: next(), version: next() };
        }
        // `parameter/a/b` stands for `/a/b`, `parameter/a` for `a`.
        let name = arn.resource.strip_prefix("parameter/").unwrap_or(arn.resource);
        SecretRef::Parameter(if name.contains('/') { format!("/{name}") } else { name.to_string() })
    }

    /// The part of a secret's text that is meant.
    ///
    /// # Errors
    /// The text is no JSON object, or has no such key; in the words of the ECS agent.
    pub fn pick(&self, text: String) -> Result<String, String> {
        let SecretRef::Secret { json_key, .. } = self else { return Ok(text) };
        if json_key.is_empty() {
            return Ok(text);
        }
        let value: Value = serde_json::from_str(&text)
            .map_err(|_| "retrieved secret from Secrets Manager is not a JSON object".to_string())?;
        match &value[json_key.as_str()] {
            Value::Null => {
                Err(format!("retrieved secret from Secrets Manager did not contain json key {json_key}"))
            }
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_and_names() {
        let name = |n: &str| SecretRef::Parameter(n.into());
        assert_eq!(SecretRef::parse("plain"), name("plain"));
        assert_eq!(SecretRef::parse("/a/b"), name("/a/b"));
        assert_eq!(SecretRef::parse("arn:aws:ssm:us-east-1:1:parameter/a/b"), name("/a/b"));
        assert_eq!(SecretRef::parse("arn:aws:ssm:us-east-1:1:parameter/a"), name("a"));
        let object = SecretRef::Object { bucket: "b".into(), key: "k".into() };
        assert_eq!(SecretRef::parse("arn:aws:s3:::b/k"), object);
        let arn = "arn:aws:secretsmanager:us-east-1:1:secret:db-AbCdEf";
        let secret = |key: &str, stage: &str| SecretRef::Secret {
            id: arn.into(),
            json_key: key.into(),
            stage: stage.into(),
            version: String::new(),
        };
        assert_eq!(SecretRef::parse(arn), secret("", ""));
        assert_eq!(SecretRef::parse(&format!("{arn}:password::")), secret("password", ""));
        assert_eq!(SecretRef::parse(&format!("{arn}::AWSPREVIOUS:")), secret("", "AWSPREVIOUS"));
    }

    #[test]
    fn parts_of_a_secret() {
        let key = SecretRef::parse("arn:aws:secretsmanager:r:1:secret:db:port::");
        assert_eq!(key.pick(r#"{"port": 5432}"#.into()), Ok("5432".into()));
        assert_eq!(key.pick(r#"{"port": "x"}"#.into()), Ok("x".into()));
        assert!(key.pick("{}".into()).unwrap_err().contains("did not contain json key port"));
        assert!(key.pick("text".into()).is_err());
        assert_eq!(SecretRef::parse("p").pick("text".into()), Ok("text".into()));
    }
}

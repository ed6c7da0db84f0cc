//! Who signed a request: keys and signatures, and each protocol's words for what is wrong with them. Pure but for
//! the key table.

use crate::protocol::Wire;
use crate::service::{AwsError, Caller};
use auth::access::{AccessKeys, KeyError, Principal};
use auth::sigv4::{ChunkError, Head, Payload, Presented, SignatureError};
use aws_schema::Protocol;

/// A key that may sign: what the request presents, and the secret it must have been signed with.
pub struct Signer {
    /// The signature's facts.
    pub presented: Presented,
    /// Who it speaks for, once the signature is found right.
    pub caller: Caller,
    secret: String,
}

/// Reads the signature and looks the key up, before the body is read. `None`: the request is not signed. `user`: secret
/// and holder of the key, where it is a user's.
///
/// # Errors
/// The signature is not whole, its key is not known, or its time is not now.
pub fn signer(
    keys: &AccessKeys,
    user: Option<(String, Principal)>,
    head: &Head<'_>,
    near: bool,
    now: i64,
) -> Result<Option<Signer>, Problem> {
    let Some(presented) = head.presented()? else { return Ok(None) };
    let (secret, principal) = match user {
        Some(user) => user,
        None => keys.find(&presented.access_key, presented.token.as_deref(), near, now)?,
    };
    presented.check_time(now)?;
    let caller = Caller {
        account: principal.account,
        access_key: presented.access_key.clone(),
        arn: principal.arn,
        user_id: principal.user_id,
    };
    Ok(Some(Signer { presented, caller, secret }))
}

impl Signer {
    /// Checks the signature over head and body; the body without its chunks.
    ///
    /// # Errors
    /// The signature is another one.
    pub fn verify(&self, head: &Head<'_>, body: bytes::Bytes) -> Result<bytes::Bytes, Problem> {
        self.presented.verify(head, &self.secret, &body)?;
        match self.presented.payload {
            Payload::SignedChunks | Payload::UnsignedChunks => {
                let chunks = self.presented.chunks(&self.secret).read(&body);
                chunks.map(Into::into).map_err(|error| match error {
                    ChunkError::Mismatch => Problem::Signature(SignatureError::Mismatch),
                    malformed => Problem::Signature(SignatureError::Incomplete(malformed.to_string())),
                })
            }
            Payload::Hash(_) | Payload::Unsigned => Ok(body),
        }
    }
}

/// What is wrong with who signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is none.
    #[error("Request is missing Authentication Token")]
    Missing,
}

/// Codes: of JSON services, of query services, of EC2; and the statuses of JSON and of the others.
type Row = (&'static str, &'static str, &'static str, u16, u16);

impl Problem {
    fn row(&self) -> Row {
        match self {
            Problem::Signature(SignatureError::Incomplete(_)) => {
                ("IncompleteSignatureException", "IncompleteSignature", "IncompleteSignature", 400, 400)
            }
            Problem::Signature(SignatureError::Time(_)) => {
                ("InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", 400, 403)
            }
            Problem::Signature(SignatureError::Mismatch) => {
                ("InvalidSignatureException", "SignatureDoesNotMatch", "SignatureDoesNotMatch", 400, 403)
            }
            Problem::Key(KeyError::Unknown) => {
                ("UnrecognizedClientException", "InvalidClientTokenId", "AuthFailure", 400, 403)
            }
            Problem::Key(KeyError::Expired) => {
                ("ExpiredTokenException", "ExpiredToken", "RequestExpired", 400, 403)
            }
            Problem::Missing => (
                "MissingAuthenticationTokenException",
                "MissingAuthenticationToken",
                "MissingAuthenticationToken",
                400,
                403,
            ),
        }
    }

    /// The error as the client's protocol has it.
    pub fn worded(&self, wire: Wire) -> AwsError {
        let (json, query, ec2, json_status, status) = self.row();
        let (code, status) = match wire.protocol {
            Protocol::Json | Protocol::Cbor => (json, json_status),
            Protocol::RestJson => (json, 403),
            Protocol::Query => (query, status),
            Protocol::Ec2 => (ec2, if ec2 == "AuthFailure" { 401 } else { status }),
        };
        let text = match (wire.protocol, self) {
            (Protocol::Ec2, Problem::Key(KeyError::Unknown)) => {
                "AWS was not able to validate the provided access credentials".to_string()
            }
            (Protocol::Ec2, Problem::Signature(SignatureError::Time(why))) => {
                format!("Request has expired. {why}")
            }
            (Protocol::Json | Protocol::RestJson | Protocol::Cbor, Problem::Missing) => {
                "Missing Authentication Token".to_string()
            }
            _ => self.to_string(),
        };
        AwsError { status, ..AwsError::client(code, text) }
    }
}

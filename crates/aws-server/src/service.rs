//! The contract between the front end (protocols, signatures, routing) and the services (operations).
//!
//! The front end decodes every protocol into one document form and encodes one back: JSON objects keyed by the model's
//! member names, timestamps as numbers (seconds since 1970, may have a fraction), blobs as base64 text, unset members
//! absent. Input is already checked against the table (required, ranges, patterns, enums). Services never see HTTP.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Who calls, as the signature proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// 12 digits.
    pub account: String,
    /// `AKIA…`, `ASIA…` or a configured key such as `testing`.
    pub access_key: String,
    /// `arn:aws:iam::123456789012:root`, `arn:aws:sts::…:assumed-role/<role>/<session>`.
    pub arn: String,
    /// What `GetCallerIdentity` calls `UserId`.
    pub user_id: String,
}

impl Caller {
    /// An account itself, by no key: for calls that this process makes for it.
    pub fn root(account: &str) -> Caller {
        Caller {
            account: account.to_string(),
            access_key: String::new(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.to_string(),
        }
    }
}

/// One call: who, where, what.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who.
    pub caller: Caller,
    /// Of the credential scope: `us-east-1`.
    pub region: String,
    /// The operation's name in the model: `RunTask`.
    pub operation: &'static str,
    /// The input document.
    pub input: Value,
    /// Also sent as `x-amzn-RequestId`.
    pub request_id: String,
    /// Milliseconds since 1970 when the call came.
    pub now_ms: u64,
    /// `scheme://host:port` as the client wrote it: for URLs in answers.
    pub endpoint: String,
}

impl Call {
    /// A text member of the input; "" where it is unset.
    pub fn text(&self, member: &str) -> &str {
        self.input[member].as_str().unwrap_or_default()
    }

    /// A count in the input; `usual` where it is unset.
    pub fn count(&self, member: &str, usual: usize) -> usize {
        self.input[member].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usual)
    }

    /// The members of a list of the input; none where it is unset.
    pub fn items(&self, member: &str) -> &[Value] {
        self.input[member].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// A call that this process makes for an account.
    pub fn own(account: &str, region: &str, operation: &'static str, input: Value) -> Call {
        Call {
            caller: Caller::root(account),
            region: region.to_string(),
            operation,
            input,
            request_id: "in-process".into(),
            now_ms: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default(),
            endpoint: String::new(),
        }
    }
}

/// An error in the service's own words. The front end wraps it in the protocol's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AwsError {
    /// `ClusterNotFoundException`; for query services the code without `Exception` where the model says so.
    pub code: String,
    /// What went wrong.
    pub message: String,
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// More members of a modelled error shape.
    pub more: Map<String, Value>,
}

impl AwsError {
    /// The caller's fault: status 400.
    pub fn client(code: &str, message: impl Into<String>) -> Self {
        AwsError { code: code.to_string(), message: message.into(), status: 400, more: Map::new() }
    }

    /// Our fault: status 500, text without secrets.
    pub fn server(code: &str, message: impl Into<String>) -> Self {
        AwsError { status: 500, ..Self::client(code, message) }
    }
}

/// What an operation returns: the output document, or the service's error.
pub type Outcome = Result<Value, AwsError>;

/// An operation: the service's shared state and the call.
pub type Handler<S> = for<'a> fn(&'a S, &'a Call) -> BoxFuture<'a, Outcome>;

/// One row of a service's operation table.
pub struct Operation<S: 'static> {
    /// Name in the model.
    pub name: &'static str,
    /// What it does.
    pub run: Handler<S>,
}

/// A table row from an `async fn(&S, &Call) -> Outcome`; what follows its name is given to it too.
#[macro_export]
macro_rules! operation {
    ($name:literal, $function:path $(, $more:expr)*) => {
        $crate::service::Operation { name: $name, run: |state, call| Box::pin($function(state, call $(, $more)*)) }
    };
}

/// A service as the front end sees it.
pub trait Service: Send + Sync + 'static {
    /// The key of its table in `aws-schema` (botocore's folder name): `ecs`, `elbv2`, `logs`.
    fn name(&self) -> &'static str;
    /// The operations that are served; every other modelled one is refused with a typed error.
    fn served(&self) -> Vec<&'static str>;
    /// Runs one that `served` names.
    fn call<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Outcome>;
    /// Runs one whose answer is a stream of events (also named by `served`). `None`: it is an ordinary one.
    fn stream<'a>(&'a self, _call: &'a Call) -> Option<BoxFuture<'a, Streaming>> {
        None
    }
}

/// An event of a streamed answer: the member's name in the event union (`sessionUpdate`) and its document.
pub type StreamEvent = (&'static str, Value);

/// A streamed answer: an error before it begins, or events until it ends; an error in it ends it.
pub type Streaming = Result<BoxStream<'static, Result<StreamEvent, AwsError>>, AwsError>;

/// A service made of shared state and an operation table.
pub struct Table<S: 'static> {
    /// Folder name in botocore.
    pub name: &'static str,
    /// What its operations share.
    pub state: Arc<S>,
    /// Sorted or not; looked up by name.
    pub operations: &'static [Operation<S>],
}

impl<S: Send + Sync + 'static> Service for Table<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn served(&self) -> Vec<&'static str> {
        self.operations.iter().map(|o| o.name).collect()
    }

    fn call<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Outcome> {
        match self.operations.iter().find(|o| o.name == call.operation) {
            Some(operation) => (operation.run)(&self.state, call),
            None => Box::pin(async {
                Err(AwsError::server("InternalFailure", format!("{} has no handler", call.operation)))
            }),
        }
    }
}

/// What every service's state holds a copy of.
#[derive(Clone)]
pub struct Shared {
    /// The API, as the identity `system:gantry-aws`.
    pub client: client::ApiClient,
    /// The account that plain configured keys belong to: 12 digits.
    pub account: String,
    /// Where names of the default account and region are left short: `us-east-1`.
    pub region: String,
    /// The availability zones that nodes and subnets are spread over: `us-east-1a`, ….
    pub zones: Vec<String>,
}

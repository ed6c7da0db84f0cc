//! STS: who calls, and temporary credentials for roles. They carry their facts in their token ([`auth::access`]), so
//! nothing is stored.
//!
//! A role must exist in IAM; its trust policy is kept but not evaluated, as no policy is yet.
//! Deliberately not here: SAML, federation tokens, DecodeAuthorizationMessage (nothing is ever encoded).

use super::Parts;
use super::kept::{Kept, Reach, text};
use crate::operation;
use crate::service::{AwsError, Call, Operation, Outcome, Service, Table};
use auth::ServiceTokens;
use auth::access::{AccessKeys, Principal, Temporary};
use auth::tokens::{Claims, TokenError};
use client::{ApiClient, ObjectKey};
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::sync::Arc;

/// AssumeRole's default life.
const HOUR_SECONDS: i64 = 3_600;
/// GetSessionToken's default life.
const SESSION_SECONDS: i64 = 43_200;
/// The audience that a service account's token must have to be exchanged.
const AUDIENCE: &str = "sts.amazonaws.com";

/// What the operations share.
pub struct State {
    keys: Arc<AccessKeys>,
    tokens: Option<Arc<ServiceTokens>>,
    client: ApiClient,
    account: String,
    region: String,
    roles: Kept,
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("GetCallerIdentity", caller_identity),
    operation!("AssumeRole", assume_role),
    operation!("AssumeRoleWithWebIdentity", assume_role_with_web_identity),
    operation!("GetSessionToken", session_token),
    operation!("GetAccessKeyInfo", access_key_info),
];

/// The service.
pub fn service(parts: &Parts) -> Arc<dyn Service> {
    Arc::new(Table { name: "sts", state: state(parts), operations: OPERATIONS })
}

/// What gives out credentials: also for tasks, by the agent's endpoint.
pub fn state(parts: &Parts) -> Arc<State> {
    Arc::new(State {
        keys: parts.keys.clone(),
        tokens: parts.tokens.clone(),
        client: parts.shared.client.clone(),
        account: parts.shared.account.clone(),
        region: parts.shared.region.clone(),
        roles: Kept::new(&parts.shared, gvr::IAM_ROLES, "Role", Reach::Global),
    })
}

impl State {
    /// Credentials of a role for a session, until `now + seconds` (seconds since 1970).
    ///
    /// # Errors
    /// `NoSuchEntity`: there is no such role; `ValidationError`: it is no role's ARN.
    pub async fn role_credentials(
        &self,
        role_arn: &str,
        session: &str,
        seconds: i64,
        now: i64,
    ) -> Result<Temporary, AwsError> {
        let (account, _, role) = self.role(role_arn).await?;
        self.issue(&account, &role, session, now + seconds)
    }

    /// A role by ARN: its account, its name, its document.
    async fn role(&self, arn: &str) -> Result<(String, String, Value), AwsError> {
        let invalid = || AwsError::client("ValidationError", format!("{arn} is invalid"));
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", _, "iam", "", account, resource] = parts[..] else { return Err(invalid()) };
        let path = resource.strip_prefix("role/").ok_or_else(invalid)?;
        let name = path.rsplit('/').next().filter(|n| !n.is_empty()).ok_or_else(invalid)?;
        let found = self.roles.get_of(account, &self.region, name).await?;
        let role = found.filter(|r| text(r, "Arn") == arn).ok_or_else(|| {
            let text = format!("The role {arn} cannot be found.");
            AwsError { status: 404, ..AwsError::client("NoSuchEntity", text) }
        })?;
        Ok((account.to_string(), name.to_string(), role))
    }

    fn issue(&self, account: &str, role: &Value, session: &str, expires: i64) -> Result<Temporary, AwsError> {
        let principal = Principal {
            account: account.into(),
            arn: format!("arn:aws:sts::{account}:assumed-role/{}/{session}", text(role, "RoleName")),
            user_id: format!("{}:{session}", text(role, "RoleId")),
        };
        self.keys.issue(principal, expires).map_err(no_random)
    }
}

fn no_random(error: auth::access::AccessError) -> AwsError {
    tracing::error!(%error, "no credentials could be made");
    AwsError::server("InternalFailure", "No credentials could be made")
}

fn credentials(given: &Temporary) -> Value {
    json!({
        "AccessKeyId": given.pair.access_key,
        "SecretAccessKey": given.pair.secret,
        "SessionToken": given.token,
        "Expiration": given.expires,
    })
}

async fn caller_identity(_: &State, call: &Call) -> Outcome {
    let caller = &call.caller;
    Ok(json!({"UserId": caller.user_id, "Account": caller.account, "Arn": caller.arn}))
}

/// The life that was asked for, which the role must allow.
fn life(call: &Call, role: &Value) -> Result<i64, AwsError> {
    let seconds = call.input["DurationSeconds"].as_i64().unwrap_or(HOUR_SECONDS);
    if seconds > role["MaxSessionDuration"].as_i64().unwrap_or(HOUR_SECONDS) {
        let text = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(AwsError::client("ValidationError", text));
    }
    Ok(seconds)
}

fn assumed(role: &Value, given: &Temporary, account: &str, session: &str) -> Value {
    json!({
        "Credentials": credentials(given),
        "AssumedRoleUser": {
            "AssumedRoleId": format!("{}:{session}", text(role, "RoleId")),
            "Arn": format!("arn:aws:sts::{account}:assumed-role/{}/{session}", text(role, "RoleName")),
        },
        "PackedPolicySize": 0,
    })
}

fn seconds(call: &Call) -> i64 {
    (call.now_ms / 1_000) as i64
}

async fn assume_role(state: &State, call: &Call) -> Outcome {
    let (arn, session) = (call.text("RoleArn"), call.text("RoleSessionName"));
    let (account, _, role) = state.role(arn).await.map_err(|error| match error.code.as_str() {
        // As on AWS, a role that is not there looks like one that may not be assumed.
        "NoSuchEntity" => {
            let who = &call.caller.arn;
            let text = format!("User: {who} is not authorized to perform: sts:AssumeRole on resource: {arn}");
            AwsError { status: 403, ..AwsError::client("AccessDenied", text) }
        }
        _ => error,
    })?;
    let given = state.issue(&account, &role, session, seconds(call) + life(call, &role)?)?;
    Ok(assumed(&role, &given, &account, session))
}

async fn assume_role_with_web_identity(state: &State, call: &Call) -> Outcome {
    let denied = |text: &str| AwsError { status: 403, ..AwsError::client("AccessDenied", text) };
    let claims = web_identity(state, call.text("WebIdentityToken"), seconds(call)).await?;
    let (arn, session) = (call.text("RoleArn"), call.text("RoleSessionName"));
    let found = state.role(arn).await;
    let (account, _, role) = found.map_err(|error| match error.code.as_str() {
        "NoSuchEntity" => denied("Not authorized to perform sts:AssumeRoleWithWebIdentity"),
        _ => error,
    })?;
    let given = state.issue(&account, &role, session, seconds(call) + life(call, &role)?)?;
    let mut answer = assumed(&role, &given, &account, session);
    answer["SubjectFromWebIdentityToken"] = claims.sub.into();
    answer["Audience"] = AUDIENCE.into();
    answer["Provider"] = claims.iss.into();
    Ok(answer)
}

/// What a service account's token says, if it is good and its account is still there.
async fn web_identity(state: &State, token: &str, now: i64) -> Result<Claims, AwsError> {
    let invalid = |text: String| AwsError::client("InvalidIdentityToken", text);
    let Some(tokens) = &state.tokens else {
        return Err(invalid("No OpenIDConnect provider found in your account".into()));
    };
    let claims = tokens.verify(token, now).map_err(|error| match error {
        TokenError::Expired => AwsError::client("ExpiredTokenException", "Token expired"),
        TokenError::ForeignIssuer(issuer) => {
            invalid(format!("No OpenIDConnect provider found in your account for {issuer}"))
        }
        _ => invalid("The web identity token provided could not be validated".into()),
    })?;
    if claims.audiences(&[AUDIENCE.to_string()]).is_err() {
        return Err(invalid("Incorrect token audience".into()));
    }
    let account = &claims.bound.serviceaccount;
    let key = ObjectKey::new(claims.bound.namespace.as_str(), account.name.as_str());
    match state.client.get(&gvr::SERVICE_ACCOUNTS, &key).await {
        Ok(object) if object.uid() == account.uid => Ok(claims),
        _ => Err(invalid("The service account of the token is gone".into())),
    }
}

async fn session_token(state: &State, call: &Call) -> Outcome {
    let life = call.input["DurationSeconds"].as_i64().unwrap_or(SESSION_SECONDS);
    let caller = &call.caller;
    let principal = Principal {
        account: caller.account.clone(),
        arn: caller.arn.clone(),
        user_id: caller.user_id.clone(),
    };
    let given = state.keys.issue(principal, seconds(call) + life).map_err(no_random)?;
    Ok(json!({"Credentials": credentials(&given)}))
}

async fn access_key_info(state: &State, _: &Call) -> Outcome {
    Ok(json!({"Account": state.account}))
}

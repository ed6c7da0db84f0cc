//! Several servers over the same objects: each log group has a home, the server whose disk its events are on.
//!
//! A group's facts are an object that every server sees; `home` there is the id of the server that made it. Calls that
//! need its events run at home, wherever they come in. While a home is away its groups' events can be neither read nor
//! put (503, after which log drivers try again); deleting such a group removes what is known of it.
//! Deliberately not here: how a home is reached ([`Peers`]); Live Tail of a group elsewhere, which is refused.

use super::names::{self, Group};
use super::{State, invalid};
use crate::service::{AwsError, Call, Outcome};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Operations that need a group's events.
const AT_HOME: &str = "CreateLogStream DeleteLogGroup DeleteLogStream DescribeLogStreams FilterLogEvents \
    GetLogEvents PutLogEvents";

/// The other servers.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// This server's id.
    fn own(&self) -> &str;
    /// Runs an operation of this service at another server.
    async fn call(&self, home: &str, call: &Call) -> Outcome;
}

/// The server that has a group's events, if that is another one.
pub(super) fn elsewhere<'a>(state: &State, group: &'a Group) -> Option<&'a str> {
    let peers = state.peers.as_ref()?;
    group.spec["home"].as_str().filter(|home| *home != peers.own())
}

/// Runs an operation at its group's home. `None`: that is here.
pub(super) async fn forwarded(state: &State, call: &Call) -> Option<Outcome> {
    let peers = state.peers.as_ref().filter(|_| AT_HOME.split(' ').any(|o| o == call.operation))?;
    // What cannot be found is told by the operation itself.
    let group = names::of_call(state, call).await.ok()?;
    let answer = peers.call(elsewhere(state, &group)?, call).await;
    match &answer {
        Err(error) if call.operation == "DeleteLogGroup" && error.status >= 500 => None,
        _ => Some(answer),
    }
}

/// The same for a log driver, which knows group and stream.
pub(super) async fn forwarded_put(
    state: &State,
    group: &Group,
    operation: &'static str,
    input: Value,
) -> Option<Outcome> {
    let (peers, home) = (state.peers.as_ref()?, elsewhere(state, group)?);
    let region = group.spec["region"].as_str().unwrap_or_default();
    let mut call = Call::own(&state.shared.account, region, operation, input);
    call.input["logGroupName"] = json!(group.name);
    Some(peers.call(home, &call).await)
}

/// Bytes of those groups that are elsewhere, by name; a home that is away says nothing.
pub(super) async fn bytes(state: &State, call: &Call, groups: &[Group]) -> BTreeMap<String, Value> {
    let Some(peers) = &state.peers else { return BTreeMap::new() };
    let mut of_homes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for group in groups {
        if let Some(home) = elsewhere(state, group) {
            of_homes.entry(home).or_default().push(&group.name);
        }
    }
    let mut found = BTreeMap::new();
    for (home, names) in of_homes {
        let input = json!({"logGroupIdentifiers": names});
        let call = Call { input, operation: "DescribeLogGroups", ..call.clone() };
        let answer = peers.call(home, &call).await.unwrap_or_default();
        for group in answer["logGroups"].as_array().into_iter().flatten() {
            let name = group["logGroupName"].as_str().unwrap_or_default();
            found.insert(name.to_string(), group["storedBytes"].clone());
        }
    }
    found
}

/// Live Tail reads from this server's disk only.
pub(super) fn must_be_here(state: &State, group: &Group) -> Result<(), AwsError> {
    match elsewhere(state, group) {
        None => Ok(()),
        Some(home) => Err(invalid(format!(
            "The log group {} is kept by another server of this cluster ({home}); start the session there.",
            group.name
        ))),
    }
}

//! Operations: done when their id is given out, which holds what there is to say about them.
//!
//! `<type>-<milliseconds, hex>-<target>-<target's id>`: it needs no memory, and is good after a restart and at another
//! server. ListOperations knows the newest ones of this process.

use super::State;
use super::find::{PAGES, fits};
use crate::service::{AwsError, Call, Outcome};
use serde_json::{Value, json};

/// Operations that are listed.
const RECENT_MAX: usize = 1_000;
const TYPES: [&str; 6] = [
    "CREATE_NAMESPACE",
    "DELETE_NAMESPACE",
    "UPDATE_NAMESPACE",
    "UPDATE_SERVICE",
    "REGISTER_INSTANCE",
    "DEREGISTER_INSTANCE",
];
const TARGETS: [&str; 3] = ["NAMESPACE", "SERVICE", "INSTANCE"];

fn place(call: &Call) -> String {
    format!("{}/{}", call.caller.account, call.region)
}

/// The answer of what AWS does in the background: an operation that has succeeded.
pub(super) fn done(state: &State, call: &Call, kind: &str, (target, id): (&str, &str)) -> Outcome {
    let number = |list: &[&str], name: &str| list.iter().position(|n| *n == name).unwrap_or_default();
    let id = format!("{}-{:x}-{}-{id}", number(&TYPES, kind), call.now_ms, number(&TARGETS, target));
    let mut recent = state.recent.lock();
    recent.push_front((place(call), id.clone()));
    recent.truncate(RECENT_MAX);
    Ok(json!({"OperationId": id}))
}

fn read(call: &Call, id: &str) -> Option<Value> {
    let mut parts = id.splitn(4, '-');
    let kind = TYPES.get(parts.next()?.parse::<usize>().ok()?)?;
    let ms = u64::from_str_radix(parts.next()?, 16).ok()?;
    let target = TARGETS.get(parts.next()?.parse::<usize>().ok()?)?;
    let at = ms as f64 / 1_000.0;
    Some(json!({"Id": id, "Type": kind, "Status": "SUCCESS", "CreateDate": at, "UpdateDate": at,
        "OwnerAccount": call.caller.account, "Targets": {*target: parts.next()?}}))
}

/// GetOperation.
pub(super) async fn get(_: &State, call: &Call) -> Outcome {
    let id = call.input["OperationId"].as_str().unwrap_or_default();
    match read(call, id) {
        Some(operation) => Ok(json!({"Operation": operation})),
        None => Err(AwsError::client("OperationNotFound", format!("Operation not found: {id}"))),
    }
}

/// ListOperations.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let own = place(call);
    let ids: Vec<String> =
        state.recent.lock().iter().filter(|(p, _)| *p == own).map(|(_, id)| id.clone()).collect();
    let all = ids.iter().filter_map(|id| read(call, id)).filter(|operation| {
        fits(call, |name| match name {
            "STATUS" => "SUCCESS",
            "TYPE" => operation["Type"].as_str().unwrap_or_default(),
            "NAMESPACE_ID" => operation["Targets"]["NAMESPACE"].as_str().unwrap_or_default(),
            "SERVICE_ID" => operation["Targets"]["SERVICE"].as_str().unwrap_or_default(),
            _ => "",
        })
    });
    let rows = all.map(|o| json!({"Id": o["Id"], "Status": o["Status"]})).collect();
    PAGES.answer(call, "Operations", rows, "Id")
}

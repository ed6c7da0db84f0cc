//! What all stored kinds have: create, describe by ids and filters, delete, tags.

use super::filter::{Filters, PAGES, pick};
use super::kinds::{self, ALL, Kind};
use super::store::Store;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use crate::services::tags;
use serde_json::{Value, json};

/// There is none of that id.
pub(super) fn missing(kind: &Kind, id: &str) -> AwsError {
    AwsError::client(kind.missing.0, kind.missing.1.replace("{}", id))
}

/// One that must be there.
pub(super) async fn get(store: &Store, call: &Call, kind: &Kind, id: &str) -> Outcome {
    store.find(call, kind, id).await?.ok_or_else(|| missing(kind, id))
}

/// Changes one that must be there.
pub(super) async fn change<T>(
    store: &Store,
    call: &Call,
    (kind, id): (&Kind, &str),
    change: impl FnMut(&mut Value) -> Result<T, AwsError>,
) -> Result<T, AwsError> {
    get(store, call, kind, id).await?;
    store.kept(kind.slot).change(call, id, change).await?.ok_or_else(|| missing(kind, id))
}

/// A call that only wants to know whether it would be allowed.
pub(super) fn dry(call: &Call) -> Result<(), AwsError> {
    if call.input["DryRun"] != true {
        return Ok(());
    }
    let words = "Request would have succeeded, but DryRun flag is set.";
    Err(AwsError { status: 412, ..AwsError::client("DryRunOperation", words) })
}

/// A new id.
pub(super) fn new_id(prefix: &str) -> String {
    let digits = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}{}", digits.get(..17).unwrap_or(&digits))
}

/// The tags that a create asks for.
pub(super) fn tags_of(call: &Call, kind: &str) -> Value {
    let all = call.items("TagSpecifications").iter().filter(|s| text(s, "ResourceType") == kind);
    all.flat_map(|s| items(&s["Tags"])).cloned().collect()
}

/// Stores a new one; its document.
pub(super) async fn make(store: &Store, call: &Call, kind: &Kind) -> Outcome {
    dry(call)?;
    store.begin(call).await?;
    let id = new_id(kind.prefix);
    let mut vpc = call.input["VpcId"].clone();
    for (member, needed) in kind.needs {
        let found = get(store, call, needed, call.text(member)).await?;
        vpc = found["VpcId"].clone();
    }
    let mut spec = (kind.new)(store, call, &id)?;
    if !kind.needs.is_empty() && spec["VpcId"].is_null() {
        spec["VpcId"] = vpc;
    }
    spec["ResourceType"] = json!(kind.name);
    spec["Tags"] = tags_of(call, kind.name);
    store.kept(kind.slot).create(call, &id, spec.clone()).await?;
    Ok(spec)
}

/// `Create…`.
pub(super) async fn create(store: &Store, call: &Call, kind: &Kind) -> Outcome {
    let spec = shown(make(store, call, kind).await?);
    Ok(if kind.one.is_empty() { spec } else { json!({kind.one: spec}) })
}

/// A document as it is shown; interfaces call their tags differently.
pub(super) fn shown(mut spec: Value) -> Value {
    spec["TagSet"] = spec["Tags"].clone();
    spec
}

/// `Describe…`.
pub(super) async fn describe(store: &Store, call: &Call, kind: &Kind) -> Outcome {
    let all = store.all(call, kind).await?;
    listed(call, kind, all)
}

/// The answer to a `Describe…` of these documents.
pub(super) fn listed(call: &Call, kind: &Kind, mut all: Vec<Value>) -> Outcome {
    pick(call, &format!("{}s", kind.id), &mut all, kind.id, |id| missing(kind, id))?;
    let filters = Filters::of(call);
    all.retain(|spec| filters.fit(spec));
    PAGES.answer(call, kind.all, all.into_iter().map(shown).collect(), kind.id)
}

/// `Delete…`.
pub(super) async fn delete(store: &Store, call: &Call, kind: &Kind) -> Outcome {
    let id = text(&call.input, kind.id);
    get(store, call, kind, id).await?;
    dry(call)?;
    for (holder, member) in kind.holders {
        if store.all(call, holder).await?.iter().any(|spec| text(spec, member) == id) {
            let words = format!("The {} '{id}' has dependencies and cannot be deleted.", kind.name);
            return Err(AwsError::client("DependencyViolation", words));
        }
    }
    store.kept(kind.slot).remove(call, id).await?;
    Ok(json!({"Return": true, kind.id: id}))
}

fn kind_of(id: &str) -> Option<&'static Kind> {
    ALL.iter().find(|kind| id.starts_with(kind.prefix)).copied()
}

async fn retag(store: &Store, call: &Call, new: impl Fn(&Value) -> Value) -> Outcome {
    dry(call)?;
    for id in call.items("Resources").iter().filter_map(Value::as_str) {
        let unknown = || AwsError::client("InvalidID", format!("The ID '{id}' is not valid"));
        let kind = kind_of(id).ok_or_else(unknown)?;
        change(store, call, (kind, id), |spec| {
            spec["Tags"] = new(&spec["Tags"]);
            Ok(())
        })
        .await?;
    }
    Ok(json!({}))
}

/// CreateTags.
pub(super) async fn create_tags(store: &Store, call: &Call) -> Outcome {
    retag(store, call, |old| tags::merged(old, &call.input["Tags"])).await
}

/// DeleteTags: without tags all, without a value whatever it is.
pub(super) async fn delete_tags(store: &Store, call: &Call) -> Outcome {
    let given = call.items("Tags");
    let gone = |tag: &Value| {
        let same = |g: &Value| g["Key"] == tag["Key"] && (g["Value"].is_null() || g["Value"] == tag["Value"]);
        given.is_empty() || given.iter().any(same)
    };
    retag(store, call, |old| items(old).iter().filter(|t| !gone(t)).cloned().collect()).await
}

/// DescribeTags.
pub(super) async fn describe_tags(store: &Store, call: &Call) -> Outcome {
    let filters = Filters::of(call);
    let mut out = Vec::new();
    for kind in kinds::ALL {
        for spec in store.all(call, kind).await? {
            for tag in items(&spec["Tags"]) {
                let row = json!({"ResourceId": spec[kind.id], "ResourceType": kind.name, "Key": tag["Key"],
                    "Value": tag["Value"]});
                out.extend(Some(row).filter(|row| filters.fit(row)));
            }
        }
    }
    let order = |row: &Value| format!("{} {}", text(row, "ResourceId"), text(row, "Key"));
    for row in &mut out {
        row["order"] = json!(order(row));
    }
    PAGES.answer(call, "Tags", out, "order")
}

//! Tags of load balancers, target groups, listeners and rules.

use super::Elb;
use super::find::{invalid, named};
use crate::service::{Call, Outcome};
use crate::services::kept::items;
use crate::services::tags;
use serde_json::{Value, json};

/// ARNs of one DescribeTags; ELB's limit.
const ARNS_MAX: usize = 20;

fn arns(call: &Call) -> impl Iterator<Item = &str> {
    items(&call.input["ResourceArns"]).iter().filter_map(Value::as_str)
}

async fn change(elb: &Elb, call: &Call, change: impl Fn(&Value) -> Value) -> Outcome {
    for arn in arns(call) {
        let (what, _) = named(arn).ok_or_else(|| invalid(format!("'{arn}' is not a valid ARN")))?;
        let changed = what.change(elb, call, arn, |spec| {
            spec["Tags"] = change(&spec["Tags"]);
            Ok(())
        });
        changed.await?;
    }
    Ok(json!({}))
}

/// AddTags.
pub(super) async fn add(elb: &Elb, call: &Call) -> Outcome {
    change(elb, call, |old| tags::merged(old, &call.input["Tags"])).await
}

/// RemoveTags.
pub(super) async fn remove(elb: &Elb, call: &Call) -> Outcome {
    change(elb, call, |old| tags::without(old, &call.input["TagKeys"])).await
}

/// DescribeTags.
pub(super) async fn describe(elb: &Elb, call: &Call) -> Outcome {
    if arns(call).count() > ARNS_MAX {
        return Err(invalid(format!("Tags of at most {ARNS_MAX} resources can be described at a time")));
    }
    let mut out = Vec::new();
    for arn in arns(call) {
        let (what, _) = named(arn).ok_or_else(|| invalid(format!("'{arn}' is not a valid ARN")))?;
        let spec = what.get(elb, call, arn).await?;
        out.push(json!({"ResourceArn": arn, "Tags": items(&spec["Tags"])}));
    }
    Ok(json!({"TagDescriptions": out}))
}

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
    call.items("ResourceArns").iter().filter_map(Value::as_str)
}

/// AddTags, RemoveTags.
pub(super) async fn change(elb: &Elb, call: &Call) -> Outcome {
    for arn in arns(call) {
        let (what, _) = named(arn).ok_or_else(|| invalid(format!("'{arn}' is not a valid ARN")))?;
        what.change(elb, call, arn, |spec| tags::change(spec, call, tags::MEMBERS)).await?;
    }
    Ok(json!({}))
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

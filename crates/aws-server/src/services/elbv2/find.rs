//! ARNs, and the objects that they name.

use super::Elb;
use crate::service::{AwsError, Call};
use crate::services::kept::{Kept, Pages, items, text};
use ecs_model::names::Arn;
use ecs_model::refusal::refuse_if;
use serde_json::Value;

pub(super) const PAGES: Pages = Pages {
    asks: ("PageSize", "Marker"),
    next: "NextMarker",
    rows: 400,
    refusal: ("ValidationError", "The marker is invalid"),
};

/// What an ARN can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Balancer,
    Group,
    Listener,
    Rule,
}

/// `ValidationError`.
pub(super) fn invalid(words: impl Into<String>) -> AwsError {
    AwsError::client("ValidationError", words)
}

pub(super) fn refused(code: &str, words: impl Into<String>) -> AwsError {
    AwsError::client(code, words)
}

/// 16 random hex digits.
pub(super) fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(16);
    id
}

/// An ARN of this service in the caller's account and region.
pub(super) fn arn(call: &Call, resource: &str) -> String {
    format!("arn:aws:elasticloadbalancing:{}:{}:{resource}", call.region, call.caller.account)
}

/// What kind of thing an ARN names, and its part of the ARN that its object is named by.
pub(super) fn named(arn: &str) -> Option<(What, &str)> {
    let arn = Arn::parse(arn).filter(|a| a.service == "elasticloadbalancing")?;
    let parts: Vec<&str> = arn.resource.split('/').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    match parts[..] {
        ["loadbalancer", "app" | "net", name, _] => Some((What::Balancer, name)),
        ["targetgroup", name, _] => Some((What::Group, name)),
        ["listener", "app" | "net", _, _, id] => Some((What::Listener, id)),
        ["listener-rule", "app" | "net", _, _, _, id] => Some((What::Rule, id)),
        _ => None,
    }
}

impl What {
    pub(super) fn kept(self, elb: &Elb) -> &Kept {
        match self {
            What::Balancer => &elb.balancers,
            What::Group => &elb.groups,
            What::Listener => &elb.listeners,
            What::Rule => &elb.rules,
        }
    }

    /// The member of `spec` that holds the ARN.
    pub(super) fn member(self) -> &'static str {
        match self {
            What::Balancer => "LoadBalancerArn",
            What::Group => "TargetGroupArn",
            What::Listener => "ListenerArn",
            What::Rule => "RuleArn",
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            What::Balancer => ("LoadBalancerNotFound", "load balancer"),
            What::Group => ("TargetGroupNotFound", "target group"),
            What::Listener => ("ListenerNotFound", "listener"),
            What::Rule => ("RuleNotFound", "rule"),
        }
    }

    /// There is none such.
    pub(super) fn missing(self) -> AwsError {
        let (code, word) = self.words();
        refused(code, format!("One or more {word}s not found"))
    }

    /// The object's name.
    pub(super) fn name(self, arn: &str) -> Result<&str, AwsError> {
        match named(arn) {
            Some((what, name)) if what == self => Ok(name),
            _ => Err(invalid(format!("'{arn}' is not a valid {} ARN", self.words().1))),
        }
    }

    /// One by its ARN, with `metadata` and `status`.
    pub(super) async fn whole(self, elb: &Elb, call: &Call, arn: &str) -> Result<Value, AwsError> {
        let found = self.kept(elb).get_whole(call, self.name(arn)?).await?;
        found.filter(|o| text(&o["spec"], self.member()) == arn).ok_or_else(|| self.missing())
    }

    /// Its `spec`.
    pub(super) async fn get(self, elb: &Elb, call: &Call, arn: &str) -> Result<Value, AwsError> {
        Ok(self.whole(elb, call, arn).await?["spec"].take())
    }

    /// Changes the one of that ARN; the change may run several times.
    pub(super) async fn change<T>(
        self,
        elb: &Elb,
        call: &Call,
        arn: &str,
        mut change: impl FnMut(&mut Value) -> Result<T, AwsError>,
    ) -> Result<T, AwsError> {
        let changed = self.kept(elb).change(call, self.name(arn)?, |spec| {
            refuse_if(text(spec, self.member()) != arn, || self.missing())?;
            change(spec)
        });
        changed.await?.ok_or_else(|| self.missing())
    }

    /// Those of a list of ARNs, which must all exist; or all where none is named.
    pub(super) async fn chosen(self, elb: &Elb, call: &Call, arns: &Value) -> Result<Vec<Value>, AwsError> {
        if items(arns).is_empty() {
            return self.kept(elb).list_whole(call).await;
        }
        let mut out = Vec::new();
        for arn in items(arns).iter().filter_map(Value::as_str) {
            out.push(self.whole(elb, call, arn).await?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_name_their_objects() {
        let arn = |resource: &str| format!("arn:aws:elasticloadbalancing:us-east-1:123456789012:{resource}");
        for (resource, wanted) in [
            ("loadbalancer/app/web/01", Some((What::Balancer, "web"))),
            ("loadbalancer/gwy/web/01", None),
            ("targetgroup/web/01", Some((What::Group, "web"))),
            ("listener/net/web/01/02", Some((What::Listener, "02"))),
            ("listener-rule/app/web/01/02/03", Some((What::Rule, "03"))),
            ("listener-rule/app/web/01/02", None),
            ("targetgroup//01", None),
        ] {
            assert_eq!(named(&arn(resource)), wanted, "{resource}");
        }
        assert_eq!(named("arn:aws:ecs:us-east-1:1:targetgroup/web/01"), None);
        assert_eq!(new_id().len(), 16);
    }
}

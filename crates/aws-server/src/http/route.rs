//! Which service and operation a request means: by the credential scope first, then by `X-Amz-Target`, by Smithy's
//! path, by method and path, or by `Action`. Pure.

use crate::protocol::{Wire, query};
use crate::service::AwsError;
use aws_schema::{Head, Operation, Protocol, Service, heads, service};

/// Where a request goes.
#[derive(Debug)]
pub struct Route {
    /// The service.
    pub service: &'static Service,
    /// The operation.
    pub operation: &'static Operation,
    /// How the client speaks.
    pub wire: Wire,
    /// Labels of its path, decoded.
    pub labels: Vec<(&'static str, String)>,
}

/// What routing looks at.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// `POST`.
    pub method: &'a str,
    /// As sent.
    pub path: &'a str,
    /// `X-Amz-Target`, or "".
    pub target: &'a str,
    /// `smithy-protocol`, or "".
    pub smithy: &'a str,
    /// `Content-Type`, or "".
    pub content_type: &'a str,
    /// Service of the credential scope, where the request is signed.
    pub scope: Option<&'a str>,
}

/// A request that goes nowhere: how to say it, and to whom it seems to speak.
pub type Astray = (Wire, Option<&'static Service>, AwsError);

const QUERY: Wire = Wire { protocol: Protocol::Query, json_version: "" };

fn signed_for(head: &Head, scope: &str) -> bool {
    // Application Auto Scaling once signed as its elder brother.
    head.signing_name == scope || (head.name == "application-autoscaling" && scope == "autoscaling")
}

/// How the client speaks, as far as the head tells: for errors before routing.
pub fn manner(asked: &Asked<'_>) -> Wire {
    let version = if asked.content_type.contains("json-1.0") { "1.0" } else { "1.1" };
    let wire = |protocol| Wire { protocol, json_version: version };
    let of_scope = |scope: &str| heads().find(|h| signed_for(h, scope)).map(|h| h.protocols);
    if asked.smithy == "rpc-v2-cbor" {
        return wire(Protocol::Cbor);
    }
    if !asked.target.is_empty() || asked.content_type.starts_with("application/x-amz-json") {
        return wire(Protocol::Json);
    }
    match asked.scope.and_then(of_scope) {
        Some([Protocol::Ec2, ..]) => wire(Protocol::Ec2),
        Some([Protocol::RestJson, ..]) => wire(Protocol::RestJson),
        Some([Protocol::Json]) => wire(Protocol::Json),
        _ => QUERY,
    }
}

/// Finds service and operation.
///
/// # Errors
/// There is none such, or the scope is another service's.
pub fn route(asked: &Asked<'_>, form: impl Fn() -> Option<query::Node>) -> Result<Route, Box<Astray>> {
    let wire = manner(asked);
    match wire.protocol {
        Protocol::Cbor => by_smithy_path(asked, wire),
        Protocol::Json if !asked.target.is_empty() => by_target(asked, wire),
        Protocol::RestJson => by_path(asked, wire),
        _ => by_action(asked, wire, &form().unwrap_or_default()),
    }
}

fn astray<T>(wire: Wire, of: Option<&'static Service>, code: &str, text: String) -> Result<T, Box<Astray>> {
    Err(Box::new((wire, of, AwsError::client(code, text))))
}

fn scoped(asked: &Asked<'_>, wire: Wire, head: &Head) -> Result<&'static Service, Box<Astray>> {
    let of = service(head.name);
    if let Some(scope) = asked.scope
        && !signed_for(head, scope)
    {
        let text = format!("Credential should be scoped to correct service: '{}'. ", head.signing_name);
        let code = if wire.protocol == Protocol::Query {
            "SignatureDoesNotMatch"
        } else {
            "InvalidSignatureException"
        };
        return astray(wire, of, code, text);
    }
    match of {
        Some(of) => Ok(of),
        None => astray(wire, None, "InternalFailure", "the service has no table".into()),
    }
}

fn found(
    of: &'static Service,
    name: &str,
    wire: Wire,
    labels: Vec<(&'static str, String)>,
) -> Result<Route, Box<Astray>> {
    if let Some(operation) = of.operation(name) {
        return Ok(Route { service: of, operation, wire, labels });
    }
    match wire.protocol {
        Protocol::Query => {
            let text = format!("Could not find operation {name} for version {}", of.head.api_version);
            astray(wire, Some(of), "InvalidAction", text)
        }
        Protocol::Ec2 => astray(
            wire,
            Some(of),
            "InvalidAction",
            format!("The action {name} is not valid for this web service."),
        ),
        _ => astray(wire, Some(of), "UnknownOperationException", String::new()),
    }
}

fn by_target(asked: &Asked<'_>, wire: Wire) -> Result<Route, Box<Astray>> {
    let (prefix, name) = asked.target.rsplit_once('.').unwrap_or((asked.target, ""));
    let mut all = heads();
    let head = all.find(|h| h.target_prefix == prefix && h.protocols.contains(&Protocol::Json));
    let Some(head) = head else {
        let text = format!("No service with the target {prefix:?} is known");
        return astray(wire, None, "UnknownOperationException", text);
    };
    found(scoped(asked, wire, head)?, name, wire, Vec::new())
}

fn by_smithy_path(asked: &Asked<'_>, wire: Wire) -> Result<Route, Box<Astray>> {
    let parts: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
    let ["service", name, "operation", operation] = parts[..] else {
        return astray(wire, None, "UnknownOperationException", "The path names no operation".into());
    };
    let fits = |h: &&Head| match asked.scope {
        Some(scope) => signed_for(h, scope),
        None => h.target_prefix == name,
    };
    let head = heads().filter(|h| h.protocols.contains(&Protocol::Cbor)).find(fits);
    let Some(head) = head else {
        return astray(wire, None, "UnknownOperationException", format!("No service {name:?} is known"));
    };
    found(scoped(asked, wire, head)?, operation, wire, Vec::new())
}

fn by_path(asked: &Asked<'_>, wire: Wire) -> Result<Route, Box<Astray>> {
    let candidates = heads().filter(|h| h.protocols.contains(&Protocol::RestJson));
    let mut candidates: Vec<&Head> =
        candidates.filter(|h| asked.scope.is_none_or(|s| signed_for(h, s))).collect();
    candidates.sort_by_key(|h| h.name);
    let first = candidates.first().and_then(|h| service(h.name));
    for of in candidates.iter().filter_map(|h| service(h.name)) {
        // Fixed segments win over labels: `/tags/x` over `/{name}/x`.
        let fitting = of.operations.iter().filter(|o| o.method == asked.method);
        let matched = fitting.filter_map(|o| Some((labels(o.path, asked.path)?, o)));
        if let Some((labels, operation)) = matched.min_by_key(|(labels, _)| labels.len()) {
            return Ok(Route { service: of, operation, wire, labels });
        }
    }
    let text = format!("No operation has {} {}", asked.method, asked.path);
    Err(Box::new((
        wire,
        first,
        AwsError { status: 404, ..AwsError::client("UnknownOperationException", text) },
    )))
}

/// The labels of a path, when it fits the template.
fn labels(template: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let template = template.split('?').next().unwrap_or_default();
    let decode = |text: &str| auth::sigv4::unescape(&text.replace('+', "%2B"));
    let wanted: Vec<&'static str> = template.trim_matches('/').split('/').collect();
    let mut parts = path.trim_matches('/').split('/');
    let mut out = Vec::new();
    for segment in wanted {
        let label = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        match label.map(|l| (l, l.strip_suffix('+'))) {
            None if parts.next()? == segment => {}
            None => return None,
            Some((_, Some(greedy))) => {
                let rest: Vec<&str> = parts.by_ref().collect();
                out.push((greedy, decode(&rest.join("/"))));
            }
            Some((label, None)) => {
                let part = parts.next().filter(|p| !p.is_empty())?;
                out.push((label, decode(part)));
            }
        }
    }
    // ARNs in a path are often sent with their slashes as they are.
    let rest: Vec<&str> = parts.collect();
    match (rest.is_empty(), out.last_mut()) {
        (true, _) => Some(out),
        (false, Some((_, last))) if last.starts_with("arn:") && template.ends_with('}') => {
            *last = format!("{last}/{}", decode(&rest.join("/")));
            Some(out)
        }
        _ => None,
    }
}

fn by_action(asked: &Asked<'_>, wire: Wire, form: &query::Node) -> Result<Route, Box<Astray>> {
    let speaks = |h: &&Head| h.protocols.iter().any(|p| matches!(p, Protocol::Query | Protocol::Ec2));
    let version = form.get("Version").unwrap_or_default();
    let head = match asked.scope {
        Some(scope) => heads().filter(speaks).find(|h| signed_for(h, scope)),
        None => heads().filter(speaks).find(|h| h.api_version == version),
    };
    let (head, name) = match (head, form.get("Action")) {
        (Some(head), Some(name)) => (head, name),
        (None, _) if asked.scope.is_some_and(|s| heads().all(|h| !signed_for(h, s))) => {
            let text =
                format!("The service {:?} is not implemented by Gantry", asked.scope.unwrap_or_default());
            return astray(wire, None, "InvalidAction", text);
        }
        (head, _) => {
            let of = head.and_then(|h| service(h.name));
            return astray(wire, of, "MissingAction", "The request must contain the parameter Action".into());
        }
    };
    let protocol = if head.protocols.contains(&Protocol::Ec2) { Protocol::Ec2 } else { Protocol::Query };
    let wire = Wire { protocol, ..wire };
    found(scoped(asked, wire, head)?, name, wire, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(method: &'a str, path: &'a str, scope: Option<&'a str>) -> Asked<'a> {
        Asked { method, path, target: "", smithy: "", content_type: "", scope }
    }

    fn told(asked: &Asked<'_>, form: &str) -> String {
        match route(asked, || query::parameters("", form.as_bytes()).ok()) {
            Ok(r) => {
                format!("{}.{} {:?} {:?}", r.service.head.name, r.operation.name, r.wire.protocol, r.labels)
            }
            Err(astray) => format!("{:?} {}", astray.0.protocol, astray.2),
        }
    }

    #[test]
    fn every_way_leads_to_its_operation() {
        let target = |target, scope| Asked { target, ..asked("POST", "/", scope) };
        let cases = [
            (target("AmazonEC2ContainerServiceV20141113.RunTask", Some("ecs")), "", "ecs.RunTask Json []"),
            (
                target("AmazonEC2ContainerServiceV20141113.RunTask", Some("logs")),
                "",
                "Json InvalidSignatureException: Credential should be scoped to correct service: 'ecs'. ",
            ),
            (
                target("AnyScaleFrontendService.PutScalingPolicy", Some("autoscaling")),
                "",
                "application-autoscaling.PutScalingPolicy Json []",
            ),
            (target("AmazonSSM.Nope", Some("ssm")), "", "Json UnknownOperationException: "),
            (
                Asked {
                    smithy: "rpc-v2-cbor",
                    ..asked(
                        "POST",
                        "/service/GraniteServiceVersion20100801/operation/PutMetricData",
                        Some("monitoring"),
                    )
                },
                "",
                "cloudwatch.PutMetricData Cbor []",
            ),
            (asked("POST", "/", Some("monitoring")), "Action=ListMetrics", "cloudwatch.ListMetrics Query []"),
            (
                asked("POST", "/", Some("ec2")),
                "Action=DescribeVpcs&Version=2016-11-15",
                "ec2.DescribeVpcs Ec2 []",
            ),
            (
                asked("POST", "/", None),
                "Action=AssumeRoleWithWebIdentity&Version=2011-06-15",
                "sts.AssumeRoleWithWebIdentity Query []",
            ),
            (
                asked("POST", "/", Some("sts")),
                "Action=Nope",
                "Query InvalidAction: Could not find operation Nope for version 2011-06-15",
            ),
            (
                asked("GET", "/bucket", Some("s3")),
                "",
                "Query InvalidAction: The service \"s3\" is not implemented by Gantry",
            ),
            (
                asked("POST", "/", Some("iam")),
                "x=y",
                "Query MissingAction: The request must contain the parameter Action",
            ),
            (
                asked("GET", "/clusters/a%2Fb", Some("eks")),
                "",
                "eks.DescribeCluster RestJson [(\"name\", \"a/b\")]",
            ),
            (
                asked("GET", "/tags/arn%3Aaws%3Aeks/x", Some("eks")),
                "",
                "eks.ListTagsForResource RestJson [(\"resourceArn\", \"arn:aws:eks/x\")]",
            ),
            (
                asked("GET", "/nope", Some("eks")),
                "",
                "RestJson UnknownOperationException: No operation has GET /nope",
            ),
            (
                asked("POST", "/clusters/c/assume-role-for-pod-identity", Some("eks-auth")),
                "",
                "eks-auth.AssumeRoleForPodIdentity RestJson [(\"clusterName\", \"c\")]",
            ),
        ];
        for (asked, form, wanted) in cases {
            assert_eq!(told(&asked, form), wanted);
        }
    }
}

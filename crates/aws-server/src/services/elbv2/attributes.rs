//! Attributes of load balancers, target groups and listeners: tables of keys with their defaults and what they may be.
//!
//! `spec.Attributes` holds what was changed, by key. Which of them do something: the controller in `ecs` says.

use super::Elb;
use super::find::{What, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use serde_json::{Value, json};

/// What an attribute may be.
#[derive(Clone, Copy)]
enum Allowed {
    Flag,
    Number(u32, u32),
    OneOf(&'static [&'static str]),
    Text,
}
use Allowed::{Flag, Number, OneOf, Text};

type Rows = &'static [(&'static str, &'static str, Allowed)];

const ALL_BALANCERS: Rows = &[
    ("access_logs.s3.enabled", "false", Flag),
    ("access_logs.s3.bucket", "", Text),
    ("access_logs.s3.prefix", "", Text),
    ("deletion_protection.enabled", "false", Flag),
    ("zonal_shift.config.enabled", "false", Flag),
    ("ipv6.deny_all_igw_traffic", "false", Flag),
];
const APPLICATION: Rows = &[
    ("load_balancing.cross_zone.enabled", "true", OneOf(&["true"])),
    ("idle_timeout.timeout_seconds", "60", Number(1, 4000)),
    ("client_keep_alive.seconds", "3600", Number(60, 604_800)),
    ("connection_logs.s3.enabled", "false", Flag),
    ("connection_logs.s3.bucket", "", Text),
    ("connection_logs.s3.prefix", "", Text),
    ("health_check_logs.s3.enabled", "false", Flag),
    ("health_check_logs.s3.bucket", "", Text),
    ("health_check_logs.s3.prefix", "", Text),
    ("routing.http.desync_mitigation_mode", "defensive", OneOf(&["monitor", "defensive", "strictest"])),
    ("routing.http.drop_invalid_header_fields.enabled", "false", Flag),
    ("routing.http.preserve_host_header.enabled", "false", Flag),
    ("routing.http.x_amzn_tls_version_and_cipher_suite.enabled", "false", Flag),
    ("routing.http.xff_client_port.enabled", "false", Flag),
    ("routing.http.xff_header_processing.mode", "append", OneOf(&["append", "preserve", "remove"])),
    ("routing.http2.enabled", "true", Flag),
    ("waf.fail_open.enabled", "false", Flag),
];
const NETWORK: Rows = &[
    ("load_balancing.cross_zone.enabled", "false", Flag),
    (
        "dns_record.client_routing_policy",
        "any_availability_zone",
        OneOf(&["availability_zone_affinity", "partial_availability_zone_affinity", "any_availability_zone"]),
    ),
    ("secondary_ips.auto_assigned.per_subnet", "0", Number(0, 7)),
];
const ALL_GROUPS: Rows = &[
    ("deregistration_delay.timeout_seconds", "300", Number(0, 3600)),
    ("stickiness.enabled", "false", Flag),
    (
        "load_balancing.cross_zone.enabled",
        "use_load_balancer_configuration",
        OneOf(&["true", "false", "use_load_balancer_configuration"]),
    ),
    ("target_group_health.dns_failover.minimum_healthy_targets.count", "1", Text),
    ("target_group_health.dns_failover.minimum_healthy_targets.percentage", "off", Text),
    ("target_group_health.unhealthy_state_routing.minimum_healthy_targets.count", "1", Text),
    ("target_group_health.unhealthy_state_routing.minimum_healthy_targets.percentage", "off", Text),
];
const HTTP_GROUPS: Rows = &[
    (
        "load_balancing.algorithm.type",
        "round_robin",
        OneOf(&["round_robin", "least_outstanding_requests", "weighted_random"]),
    ),
    ("load_balancing.algorithm.anomaly_mitigation", "off", OneOf(&["on", "off"])),
    ("slow_start.duration_seconds", "0", Number(0, 900)),
    ("stickiness.type", "lb_cookie", OneOf(&["lb_cookie", "app_cookie"])),
    ("stickiness.lb_cookie.duration_seconds", "86400", Number(1, 604_800)),
    ("stickiness.app_cookie.cookie_name", "", Text),
    ("stickiness.app_cookie.duration_seconds", "86400", Number(1, 604_800)),
];
const TCP_GROUPS: Rows = &[
    ("deregistration_delay.connection_termination.enabled", "false", Flag),
    ("preserve_client_ip.enabled", "false", Flag),
    ("proxy_protocol_v2.enabled", "false", Flag),
    ("stickiness.type", "source_ip", OneOf(&["source_ip", "source_ip_dest_ip", "source_ip_dest_ip_proto"])),
    ("target_health_state.unhealthy.connection_termination.enabled", "true", Flag),
    ("target_health_state.unhealthy.draining_interval_seconds", "0", Number(0, 360_000)),
];
const HTTP_LISTENERS: Rows = &[
    ("routing.http.response.server.enabled", "true", Flag),
    ("routing.http.response.strict_transport_security.header_value", "", Text),
    ("routing.http.response.access_control_allow_origin.header_value", "", Text),
    ("routing.http.response.access_control_allow_methods.header_value", "", Text),
    ("routing.http.response.access_control_allow_headers.header_value", "", Text),
    ("routing.http.response.access_control_allow_credentials.header_value", "", Text),
    ("routing.http.response.access_control_expose_headers.header_value", "", Text),
    ("routing.http.response.access_control_max_age.header_value", "", Text),
    ("routing.http.response.content_security_policy.header_value", "", Text),
    ("routing.http.response.x_content_type_options.header_value", "", Text),
    ("routing.http.response.x_frame_options.header_value", "", Text),
];
const TCP_LISTENERS: Rows = &[("tcp.idle_timeout.seconds", "350", Number(60, 6000))];

/// The tables of one thing, and what it is called in refusals.
fn tables(what: What, spec: &Value) -> ([Rows; 2], &'static str) {
    let http = |member: &str| text(spec, member).starts_with("HTTP");
    match what {
        What::Balancer if text(spec, "Type") == "network" => ([ALL_BALANCERS, NETWORK], "Load balancer"),
        What::Balancer => ([ALL_BALANCERS, APPLICATION], "Load balancer"),
        What::Group if http("Protocol") => ([ALL_GROUPS, HTTP_GROUPS], "Target group"),
        What::Group => ([ALL_GROUPS, TCP_GROUPS], "Target group"),
        _ if http("Protocol") => ([HTTP_LISTENERS, &[]], "Listener"),
        _ => ([TCP_LISTENERS, &[]], "Listener"),
    }
}

fn shown(what: What, spec: &Value) -> Value {
    let row = |(key, default, _): &(&str, &str, Allowed)| {
        let value = spec["Attributes"][*key].as_str().unwrap_or(default);
        json!({"Key": key, "Value": value})
    };
    tables(what, spec).0.iter().flat_map(|rows| rows.iter().map(row)).collect()
}

/// Takes the attributes of a call into a `spec`.
fn set(what: What, spec: &mut Value, given: &Value) -> Result<(), AwsError> {
    let (rows, word) = tables(what, spec);
    for attribute in items(given) {
        let (key, value) = (text(attribute, "Key"), text(attribute, "Value"));
        let Some((key, _, allowed)) = rows.iter().flat_map(|r| r.iter()).find(|(k, ..)| *k == key) else {
            return Err(invalid(format!("{word} attribute key '{key}' is not recognized")));
        };
        let wanted = match allowed {
            Flag if value != "true" && value != "false" => "'true' or 'false'".to_string(),
            Number(low, high) if !value.parse::<u32>().is_ok_and(|n| (*low..=*high).contains(&n)) => {
                format!("between '{low}' and '{high}'")
            }
            OneOf(all) if !all.contains(&value) => format!("one of '{}'", all.join(", ")),
            _ => {
                spec["Attributes"][*key] = json!(value);
                continue;
            }
        };
        return Err(invalid(format!("'{key}' must be {wanted}, not '{value}'")));
    }
    Ok(())
}

async fn describe(what: What, elb: &Elb, call: &Call) -> Outcome {
    let spec = what.get(elb, call, text(&call.input, what.member())).await?;
    Ok(json!({"Attributes": shown(what, &spec)}))
}

async fn modify(what: What, elb: &Elb, call: &Call) -> Outcome {
    let arn = text(&call.input, what.member());
    let changed = what.change(elb, call, arn, |spec| {
        set(what, spec, &call.input["Attributes"])?;
        Ok(json!({"Attributes": shown(what, spec)}))
    });
    changed.await
}

/// DescribeLoadBalancerAttributes.
pub(super) async fn describe_balancer(elb: &Elb, call: &Call) -> Outcome {
    describe(What::Balancer, elb, call).await
}

/// ModifyLoadBalancerAttributes.
pub(super) async fn modify_balancer(elb: &Elb, call: &Call) -> Outcome {
    modify(What::Balancer, elb, call).await
}

/// DescribeTargetGroupAttributes.
pub(super) async fn describe_group(elb: &Elb, call: &Call) -> Outcome {
    describe(What::Group, elb, call).await
}

/// ModifyTargetGroupAttributes.
pub(super) async fn modify_group(elb: &Elb, call: &Call) -> Outcome {
    modify(What::Group, elb, call).await
}

/// DescribeListenerAttributes.
pub(super) async fn describe_listener(elb: &Elb, call: &Call) -> Outcome {
    describe(What::Listener, elb, call).await
}

/// ModifyListenerAttributes.
pub(super) async fn modify_listener(elb: &Elb, call: &Call) -> Outcome {
    modify(What::Listener, elb, call).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_known_and_in_range() {
        let mut spec = json!({"Protocol": "HTTP", "Attributes": {}});
        let one = |key: &str, value: &str| json!([{"Key": key, "Value": value}]);
        let delay = "deregistration_delay.timeout_seconds";
        set(What::Group, &mut spec, &one(delay, "5")).unwrap();
        assert!(items(&shown(What::Group, &spec)).contains(&json!({"Key": delay, "Value": "5"})));
        for (key, value) in [
            (delay, "3601"),
            (delay, "x"),
            ("nope", "1"),
            ("stickiness.enabled", "yes"),
            ("proxy_protocol_v2.enabled", "true"),
            ("stickiness.type", "source_ip"),
        ] {
            let refusal = set(What::Group, &mut spec, &one(key, value)).unwrap_err();
            assert_eq!(refusal.code, "ValidationError", "{refusal}");
        }
    }
}

//! From the objects to what `lb` shall do. Pure.
//!
//! Which attributes do something: `idle_timeout.timeout_seconds`, `tcp.idle_timeout.seconds`, of groups
//! `stickiness.*` (`lb_cookie`), `slow_start.duration_seconds`, `load_balancing.algorithm.type` and, in `health`,
//! `deregistration_delay.timeout_seconds`. The others are kept and shown.

use super::places::{AT_NODE, DATAGRAMS, Places};
use super::world::{Pair, World, attribute, seconds, target_name};
use ecs_model::targets::{certificate_secret, status_ranges};
use lb::config::{
    Action, Algorithm, Certificate, Check, Condition, Config, Fixed, Forward, Group, Listener, Protocol,
    Redirect, Rule, Target,
};
use machinery::kinds::get::{int, list, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// ELB's own for connections without HTTP.
const TCP_IDLE_SECONDS: u64 = 350;

/// What the balancer shall do: listeners where `places` says, without that at `node`. `draining` names, by group, who
/// leaves it.
pub fn config(
    world: &World,
    draining: &BTreeMap<String, Vec<Value>>,
    places: &Places,
    node: Ipv4Addr,
) -> Config {
    let mut out = Config::default();
    for (arn, listener) in &world.listeners {
        let of = text(listener.spec(), "/LoadBalancerArn");
        let balancer = world.balancers.get(of).filter(|_| !places.homeless.contains(of));
        let address = places.own.get(of).copied().unwrap_or(node);
        let first = balancer.and_then(|b| listener_of(world, arn, (listener.spec(), b.spec()), address));
        let Some(first) = first else { continue };
        let mut sockets = vec![first];
        if places.at_node.contains(arn) {
            let address = (node, sockets[0].address.port()).into();
            sockets.push(Listener { id: format!("{arn}{AT_NODE}").into(), address, ..sockets[0].clone() });
        }
        if text(listener.spec(), "/Protocol") == "TCP_UDP" {
            let datagrams = |l: &Listener| Listener {
                id: format!("{}{DATAGRAMS}", l.id).into(),
                protocol: Protocol::Udp,
                ..l.clone()
            };
            sockets.extend(sockets.iter().map(datagrams).collect::<Vec<_>>());
        }
        out.listeners.extend(sockets);
    }
    for arn in world.used() {
        if let Some(group) = world.groups.get(arn) {
            let leaving = draining.get(arn).map_or(&[][..], Vec::as_slice);
            out.groups.push(group_of(world, arn, group.spec(), leaving));
        }
    }
    out
}

fn protocol(name: &str) -> Protocol {
    match name {
        "HTTP" => Protocol::Http,
        "HTTPS" => Protocol::Https,
        "TLS" => Protocol::Tls,
        "UDP" => Protocol::Udp,
        _ => Protocol::Tcp,
    }
}

fn listener_of(
    world: &World,
    arn: &str,
    (spec, balancer): (&Value, &Value),
    address: Ipv4Addr,
) -> Option<Listener> {
    let port = int(spec, "/Port").and_then(|p| u16::try_from(p).ok())?;
    let protocol = protocol(text(spec, "/Protocol"));
    let idle = match protocol.is_http() {
        true => seconds(balancer, "idle_timeout.timeout_seconds", 60),
        false => seconds(spec, "tcp.idle_timeout.seconds", TCP_IDLE_SECONDS),
    };
    let rules = world.rules_of(arn).into_iter().filter_map(|rule| {
        let conditions: Option<Vec<Condition>> = list(rule, "/Conditions").iter().map(condition).collect();
        Some(Rule { conditions: conditions?, action: action(list(rule, "/Actions").first()?)? })
    });
    let all = list(spec, "/Certificates").iter().chain(list(spec, "/MoreCertificates"));
    let pair = |c: &Value| world.certificates.get(certificate_secret(text(c, "/CertificateArn"))?);
    Some(Listener {
        id: arn.into(),
        address: (address, port).into(),
        protocol,
        certificates: all.filter_map(pair).map(certificate).collect(),
        rules: rules.collect(),
        default: action(list(spec, "/DefaultActions").first()?)?,
        idle_timeout: idle,
    })
}

fn certificate(pair: &Pair) -> Certificate {
    Certificate {
        names: pair.names.clone(),
        chain: pair.chain.as_str().into(),
        key: pair.key.as_str().into(),
    }
}

fn strings(v: &Value, pointer: &str) -> Vec<String> {
    list(v, pointer).iter().filter_map(Value::as_str).map(String::from).collect()
}

fn condition(v: &Value) -> Option<Condition> {
    Some(match text(v, "/Field") {
        "host-header" => Condition::Host(strings(v, "/HostHeaderConfig/Values")),
        "path-pattern" => Condition::Path(strings(v, "/PathPatternConfig/Values")),
        "http-header" => Condition::Header(
            text(v, "/HttpHeaderConfig/HttpHeaderName").to_string(),
            strings(v, "/HttpHeaderConfig/Values"),
        ),
        "http-request-method" => Condition::Method(strings(v, "/HttpRequestMethodConfig/Values")),
        "query-string" => {
            let pair = |p: &Value| (p["Key"].as_str().map(String::from), text(p, "/Value").to_string());
            Condition::Query(list(v, "/QueryStringConfig/Values").iter().map(pair).collect())
        }
        "source-ip" => {
            let ranges = strings(v, "/SourceIpConfig/Values");
            Condition::Source(ranges.iter().filter_map(|r| r.parse().ok()).collect())
        }
        _ => return None,
    })
}

fn action(v: &Value) -> Option<Action> {
    Some(match text(v, "/Type") {
        "forward" => {
            let group = |g: &Value| {
                let weight = int(g, "/Weight").and_then(|w| u32::try_from(w).ok()).unwrap_or(1);
                (text(g, "/TargetGroupArn").into(), weight)
            };
            let stickiness = &v["ForwardConfig"]["TargetGroupStickinessConfig"];
            let sticky = stickiness["Enabled"] == true;
            let duration = int(stickiness, "/DurationSeconds").and_then(|s| u64::try_from(s).ok());
            Action::Forward(Forward {
                groups: list(v, "/ForwardConfig/TargetGroups").iter().map(group).collect(),
                stickiness: sticky.then(|| Duration::from_secs(duration.unwrap_or(3_600))),
            })
        }
        "redirect" => {
            let part = |pointer: &str| text(&v["RedirectConfig"], pointer).to_string();
            Action::Redirect(Redirect {
                status: if text(v, "/RedirectConfig/StatusCode") == "HTTP_301" { 301 } else { 302 },
                protocol: part("/Protocol"),
                host: part("/Host"),
                port: part("/Port"),
                path: part("/Path"),
                query: part("/Query"),
            })
        }
        "fixed-response" => {
            let kind = v["FixedResponseConfig"]["ContentType"].as_str().unwrap_or("text/plain");
            Action::Fixed(Fixed {
                status: text(v, "/FixedResponseConfig/StatusCode").parse().unwrap_or(503),
                content_type: kind.to_string(),
                body: text(v, "/FixedResponseConfig/MessageBody").to_string(),
            })
        }
        _ => return None,
    })
}

fn group_of(world: &World, arn: &str, spec: &Value, leaving: &[Value]) -> Group {
    let target = |draining: bool| {
        move |t: &Value| {
            let address = world.address(spec, t)?;
            Some(Target { id: target_name(t).as_str().into(), address, draining })
        }
    };
    let here = list(spec, "/targets").iter().filter_map(target(false));
    let protocol = protocol(text(spec, "/Protocol"));
    let sticky = protocol.is_http()
        && attribute(spec, "stickiness.enabled", "false") == "true"
        && attribute(spec, "stickiness.type", "lb_cookie") == "lb_cookie";
    Group {
        id: arn.into(),
        protocol,
        targets: here.chain(leaving.iter().filter_map(target(true))).collect(),
        check: Some(check(spec)),
        algorithm: match attribute(spec, "load_balancing.algorithm.type", "") {
            "least_outstanding_requests" => Algorithm::LeastOutstanding,
            _ => Algorithm::RoundRobin,
        },
        stickiness: sticky.then(|| seconds(spec, "stickiness.lb_cookie.duration_seconds", 86_400)),
        slow_start: seconds(spec, "slow_start.duration_seconds", 0),
    }
}

fn check(spec: &Value) -> Check {
    let number = |pointer: &str, default: u32| {
        int(spec, pointer).and_then(|n| u32::try_from(n).ok()).unwrap_or(default)
    };
    let time = |pointer: &str, default: u32| Duration::from_secs(number(pointer, default).into());
    Check {
        protocol: protocol(text(spec, "/HealthCheckProtocol")),
        port: text(spec, "/HealthCheckPort").parse().ok(),
        path: spec["HealthCheckPath"].as_str().unwrap_or("/").to_string(),
        matcher: status_ranges(text(spec, "/Matcher/HttpCode")).unwrap_or_else(|| vec![(200, 200)]),
        interval: time("/HealthCheckIntervalSeconds", 30),
        timeout: time("/HealthCheckTimeoutSeconds", 5),
        healthy_threshold: number("/HealthyThresholdCount", 5),
        unhealthy_threshold: number("/UnhealthyThresholdCount", 2),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::world;
    use super::*;
    use serde_json::json;

    #[test]
    fn listeners_rules_and_groups() {
        let leaving = BTreeMap::from([("g".to_string(), vec![json!({"id": "10.0.0.9", "port": 80})])]);
        let node = Ipv4Addr::new(192, 0, 2, 1);
        let own = Places {
            own: BTreeMap::from([("b".to_string(), Ipv4Addr::new(10, 97, 0, 1))]),
            at_node: ["l".to_string()].into(),
            ..Places::default()
        };
        let both = config(&world(), &leaving, &own, node).listeners;
        let shown: Vec<_> = both.iter().map(|l| (&*l.id, l.address.to_string())).collect();
        assert_eq!(shown, [("l", "10.97.0.1:8080".into()), ("l@node", "192.0.2.1:8080".into())]);
        let config = config(&world(), &leaving, &Places::default(), node);
        let [listener] = &config.listeners[..] else { panic!("{config:?}") };
        assert_eq!(listener.address, "192.0.2.1:8080".parse().unwrap());
        assert_eq!(listener.idle_timeout, Duration::from_secs(5));
        let first = &listener.rules[0];
        assert_eq!(first.conditions, [Condition::Path(vec!["/a/*".into()])]);
        assert!(matches!(&first.action, Action::Fixed(f) if f.status == 404), "by priority, not by name");
        assert!(
            matches!(&listener.rules[1].action, Action::Redirect(r) if r.status == 301 && r.port == "443")
        );
        let [group] = &config.groups[..] else { panic!("the unused group is not there: {config:?}") };
        let targets: Vec<_> = group.targets.iter().map(|t| (t.address.to_string(), t.draining)).collect();
        assert_eq!(targets, [("10.0.0.1:80".into(), false), ("10.0.0.9:80".into(), true)]);
        let check = group.check.as_ref().unwrap();
        assert_eq!((check.port, &*check.matcher, check.interval.as_secs()), (None, &[(200, 299)][..], 7));
    }
}

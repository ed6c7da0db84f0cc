//! What is the same for everybody: quotas, TLS policies; and lists of what Gantry has none of.

use super::Elb;
use super::find::{What, refused};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::items;
use serde_json::{Value, json};

const LIMITS: [(&str, u32); 14] = [
    ("application-load-balancers", 50),
    ("condition-values-per-alb-rule", 5),
    ("condition-wildcards-per-alb-rule", 6),
    ("listeners-per-application-load-balancer", 50),
    ("listeners-per-network-load-balancer", 50),
    ("network-load-balancers", 50),
    ("rules-per-application-load-balancer", 100),
    ("target-groups", 3000),
    ("target-groups-per-action-on-application-load-balancer", 5),
    ("target-groups-per-action-on-network-load-balancer", 1),
    ("target-groups-per-application-load-balancer", 100),
    ("targets-per-application-load-balancer", 1000),
    ("targets-per-network-load-balancer", 3000),
    ("certificates-per-application-load-balancer", 25),
];

/// Policies by name. What rustls speaks behind all of them: TLS 1.2 and 1.3 with these suites.
const POLICIES: [(&str, &[&str]); 6] = [
    ("ELBSecurityPolicy-2016-08", &["TLSv1.2"]),
    ("ELBSecurityPolicy-TLS-1-2-2017-01", &["TLSv1.2"]),
    ("ELBSecurityPolicy-TLS13-1-2-2021-06", &["TLSv1.2", "TLSv1.3"]),
    ("ELBSecurityPolicy-TLS13-1-2-Res-2021-06", &["TLSv1.2", "TLSv1.3"]),
    ("ELBSecurityPolicy-TLS13-1-3-2021-06", &["TLSv1.3"]),
    ("ELBSecurityPolicy-FS-1-2-Res-2020-10", &["TLSv1.2"]),
];
const CIPHERS: [&str; 5] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
];

/// A policy by name.
pub(super) fn policy(name: &str) -> Result<Value, AwsError> {
    let found = POLICIES.iter().find(|(n, _)| *n == name);
    let (name, protocols) =
        found.ok_or_else(|| refused("SSLPolicyNotFound", format!("SSL policy '{name}' not found")))?;
    let ciphers: Vec<Value> =
        CIPHERS.iter().zip(1..).map(|(name, at)| json!({"Name": name, "Priority": at})).collect();
    Ok(json!({"Name": name, "SslProtocols": protocols, "Ciphers": ciphers,
        "SupportedLoadBalancerTypes": ["application", "network"]}))
}

/// DescribeAccountLimits.
pub(super) async fn limits(_: &Elb, _: &Call) -> Outcome {
    let row = |(name, max): &(&str, u32)| json!({"Name": name, "Max": max.to_string()});
    Ok(json!({"Limits": LIMITS.iter().map(row).collect::<Vec<_>>()}))
}

/// DescribeSSLPolicies.
pub(super) async fn ssl_policies(_: &Elb, call: &Call) -> Outcome {
    let names: Vec<&str> = match call.items("Names") {
        [] => POLICIES.iter().map(|(name, _)| *name).collect(),
        given => given.iter().filter_map(Value::as_str).collect(),
    };
    let found: Vec<Value> = names.into_iter().map(policy).collect::<Result<_, _>>()?;
    Ok(json!({"SslPolicies": found}))
}

/// DescribeTrustStores: there are none.
pub(super) async fn trust_stores(_: &Elb, call: &Call) -> Outcome {
    let named = ["TrustStoreArns", "Names"].iter().any(|m| !items(&call.input[*m]).is_empty());
    match named {
        true => Err(refused("TrustStoreNotFound", "One or more trust stores not found")),
        false => Ok(json!({"TrustStores": []})),
    }
}

/// DescribeCapacityReservation: nothing is reserved.
pub(super) async fn capacity_reservation(elb: &Elb, call: &Call) -> Outcome {
    What::Balancer.get(elb, call, call.text("LoadBalancerArn")).await?;
    Ok(json!({}))
}

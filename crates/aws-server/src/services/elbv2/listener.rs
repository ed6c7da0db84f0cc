//! Listeners and their certificates.
//!
//! A certificate is a Secret of type `kubernetes.io/tls` in namespace `aws`, named by the last part of the ARN that a
//! listener names it with (`arn:aws:acm:…:certificate/web` → Secret `web`). The listener's default rule is part of it:
//! `DefaultRuleId`; certificates beyond the default one are in `MoreCertificates`.

use super::Elb;
use super::find::{PAGES, What, invalid, new_id, refused};
use super::{actions, fixed};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, items, text};
use client::ObjectKey;
use ecs_model::names::AWS_NAMESPACE;
use ecs_model::refusal::refuse_if;
use k8s_schema::gvr::SECRETS;
use serde_json::{Value, json};

/// The policy of listeners that name none.
const SSL_POLICY: &str = "ELBSecurityPolicy-2016-08";
/// Listeners of one load balancer; ELB's quota.
const LISTENERS_MAX: usize = 50;
/// Certificates of one listener; ELB's quota.
const CERTIFICATES_MAX: usize = 25;

/// What a listener is asked to be: port, protocol, TLS; checked against the load balancer's kind.
async fn settle(elb: &Elb, call: &Call, spec: &mut Value, kind: &str) -> Result<(), AwsError> {
    let input = &call.input;
    copy(spec, input, "Port Protocol SslPolicy AlpnPolicy MutualAuthentication");
    refuse_if(spec["Port"].is_null(), || invalid("A listener port must be specified"))?;
    let protocol = text(spec, "Protocol").to_string();
    let good: &[&str] =
        if kind == "network" { &["TCP", "TLS", "UDP", "TCP_UDP"] } else { &["HTTP", "HTTPS"] };
    match &*protocol {
        "" => return Err(invalid("A listener protocol must be specified")),
        "QUIC" | "TCP_QUIC" if kind == "network" => {
            let words = format!("Gantry has no listeners of protocol '{protocol}'");
            return Err(refused("UnsupportedProtocol", words));
        }
        known if !good.contains(&known) => {
            let words = format!("Listener protocol '{protocol}' must be one of '{}'", good.join(", "));
            return Err(invalid(words));
        }
        _ => {}
    }
    if spec["MutualAuthentication"]["Mode"].as_str().is_some_and(|m| m != "off") {
        return Err(refused("InvalidConfigurationRequest", "Gantry has no mutual authentication"));
    }
    if !input["Certificates"].is_null() {
        spec["Certificates"] = certificates_of(elb, &input["Certificates"]).await?;
    }
    if !matches!(&*protocol, "HTTPS" | "TLS") {
        ["Certificates", "SslPolicy", "AlpnPolicy"].iter().for_each(|m| spec[*m] = Value::Null);
        return Ok(());
    }
    if items(&spec["Certificates"]).len() != 1 {
        let words = format!("Exactly one certificate must be specified for {protocol} listeners");
        return Err(refused("CertificateNotFound", words));
    }
    if spec["SslPolicy"].is_null() {
        spec["SslPolicy"] = json!(SSL_POLICY);
    }
    fixed::policy(text(spec, "SslPolicy")).map(drop)
}

/// Certificates of a call: each must be there.
async fn certificates_of(elb: &Elb, given: &Value) -> Outcome {
    let mut out = Vec::new();
    for arn in items(given).iter().map(|c| text(c, "CertificateArn")) {
        let missing = || refused("CertificateNotFound", format!("Certificate '{arn}' not found"));
        let name = ecs_model::targets::certificate_secret(arn).ok_or_else(missing)?;
        let found = elb.client.get(&SECRETS, &ObjectKey::new(AWS_NAMESPACE, name)).await;
        found.map_err(|_| missing())?;
        out.push(json!({"CertificateArn": arn}));
    }
    Ok(json!(out))
}

/// A listener as it is shown.
fn shown(mut spec: Value) -> Value {
    if spec["Protocol"] == "HTTPS" && spec["MutualAuthentication"].is_null() {
        spec["MutualAuthentication"] = json!({"Mode": "off"});
    }
    spec
}

async fn free_port(elb: &Elb, call: &Call, spec: &Value) -> Result<(), AwsError> {
    let all = elb.listeners.list(call).await?;
    let same = |l: &&Value| l["LoadBalancerArn"] == spec["LoadBalancerArn"];
    if all.iter().filter(same).any(|l| l["Port"] == spec["Port"] && l["ListenerArn"] != spec["ListenerArn"]) {
        let words = format!(
            "A listener already exists on this port for this load balancer '{}'",
            text(spec, "LoadBalancerArn")
        );
        return Err(refused("DuplicateListener", words));
    }
    if all.iter().filter(same).count() >= LISTENERS_MAX && spec["ListenerArn"].is_null() {
        return Err(refused("TooManyListeners", "You've reached the limit on the number of listeners"));
    }
    Ok(())
}

/// CreateListener.
pub(super) async fn create(elb: &Elb, call: &Call) -> Outcome {
    let balancer = call.text("LoadBalancerArn");
    let kind = What::Balancer.get(elb, call, balancer).await?;
    let mut spec = json!({"LoadBalancerArn": balancer, "DefaultRuleId": new_id(), "Attributes": {},
        "Tags": call.input["Tags"]});
    settle(elb, call, &mut spec, text(&kind, "Type")).await?;
    free_port(elb, call, &spec).await?;
    let protocol = text(&spec, "Protocol").to_string();
    let default = &call.input["DefaultActions"];
    spec["DefaultActions"] = actions::checked(elb, call, default, (balancer, &protocol)).await?;
    let id = new_id();
    spec["ListenerArn"] = json!(format!("{}/{id}", balancer.replacen(":loadbalancer/", ":listener/", 1)));
    elb.listeners.create(call, &id, spec.clone()).await?;
    Ok(json!({"Listeners": [shown(spec)]}))
}

/// DescribeListeners.
pub(super) async fn describe(elb: &Elb, call: &Call) -> Outcome {
    let (balancer, arns) = (call.input["LoadBalancerArn"].as_str(), &call.input["ListenerArns"]);
    if balancer.is_none() && items(arns).is_empty() {
        return Err(invalid("You must specify either listener ARNs or a load balancer ARN"));
    }
    let mut found = What::Listener.chosen(elb, call, arns).await?;
    if let Some(balancer) = balancer {
        What::Balancer.get(elb, call, balancer).await?;
        found.retain(|o| o["spec"]["LoadBalancerArn"] == balancer);
    }
    let found = found.into_iter().map(|mut o| shown(o["spec"].take())).collect();
    PAGES.answer(call, "Listeners", found, "ListenerArn")
}

/// ModifyListener.
pub(super) async fn modify(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("ListenerArn");
    let mut new = What::Listener.get(elb, call, own).await?;
    let balancer = text(&new, "LoadBalancerArn").to_string();
    let kind = What::Balancer.get(elb, call, &balancer).await?;
    settle(elb, call, &mut new, text(&kind, "Type")).await?;
    free_port(elb, call, &new).await?;
    let default = match &call.input["DefaultActions"] {
        Value::Null => &new["DefaultActions"],
        given => given,
    };
    new["DefaultActions"] = actions::checked(elb, call, default, (&balancer, text(&new, "Protocol"))).await?;
    What::Listener
        .change(elb, call, own, |spec| {
            let members =
                "Port Protocol SslPolicy AlpnPolicy MutualAuthentication Certificates DefaultActions";
            members.split(' ').for_each(|member| spec[member] = new[member].clone());
            Ok(())
        })
        .await?;
    Ok(json!({"Listeners": [shown(new)]}))
}

/// Removes a listener with its rules.
pub(super) async fn remove(elb: &Elb, call: &Call, own: &str) -> Result<(), AwsError> {
    for rule in elb.rules.list(call).await? {
        if text(&rule, "ListenerArn") == own {
            elb.rules.remove(call, What::Rule.name(text(&rule, "RuleArn"))?).await?;
        }
    }
    elb.listeners.remove(call, What::Listener.name(own)?).await.map(drop)
}

/// DeleteListener.
pub(super) async fn delete(elb: &Elb, call: &Call) -> Outcome {
    let own = call.text("ListenerArn");
    What::Listener.get(elb, call, own).await?;
    remove(elb, call, own).await?;
    Ok(json!({}))
}

/// AddListenerCertificates.
pub(super) async fn add_certificates(elb: &Elb, call: &Call) -> Outcome {
    let new = certificates_of(elb, &call.input["Certificates"]).await?;
    let changed = What::Listener.change(elb, call, call.text("ListenerArn"), |spec| {
        let mut all = items(&spec["MoreCertificates"]).to_vec();
        all.extend(items(&new).iter().filter(|c| !items(&spec["MoreCertificates"]).contains(c)).cloned());
        refuse_if(all.len() > CERTIFICATES_MAX, || {
            refused("TooManyCertificates", "You've reached the limit on the number of certificates")
        })?;
        spec["MoreCertificates"] = json!(all);
        Ok(json!({"Certificates": new}))
    });
    changed.await
}

/// RemoveListenerCertificates.
pub(super) async fn remove_certificates(elb: &Elb, call: &Call) -> Outcome {
    let gone: Vec<&str> = call.items("Certificates").iter().map(|c| text(c, "CertificateArn")).collect();
    let changed = What::Listener.change(elb, call, call.text("ListenerArn"), |spec| {
        if items(&spec["Certificates"]).iter().any(|c| gone.contains(&text(c, "CertificateArn"))) {
            return Err(refused("OperationNotPermitted", "The default certificate cannot be removed"));
        }
        let kept =
            items(&spec["MoreCertificates"]).iter().filter(|c| !gone.contains(&text(c, "CertificateArn")));
        spec["MoreCertificates"] = kept.cloned().collect();
        Ok(json!({}))
    });
    changed.await
}

/// DescribeListenerCertificates.
pub(super) async fn certificates(elb: &Elb, call: &Call) -> Outcome {
    let spec = What::Listener.get(elb, call, call.text("ListenerArn")).await?;
    let row =
        |default: bool| move |c: &Value| json!({"CertificateArn": c["CertificateArn"], "IsDefault": default});
    let default = items(&spec["Certificates"]).iter().map(row(true));
    let all = default.chain(items(&spec["MoreCertificates"]).iter().map(row(false))).collect();
    PAGES.answer(call, "Certificates", all, "CertificateArn")
}

//! Actions of listeners and rules: checked and completed as ELB echoes them. Pure, apart from the groups they name.

use super::Elb;
use super::find::{What, invalid, refused};
use super::target_group::uses;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Groups of one forward action; ELB's limit.
const GROUPS_MAX: usize = 5;

/// The ARNs of the groups that a list of actions forwards to.
pub(super) fn groups(actions: &Value) -> impl Iterator<Item = &str> {
    items(actions)
        .iter()
        .flat_map(|action| items(&action["ForwardConfig"]["TargetGroups"]))
        .map(|group| text(group, "TargetGroupArn"))
}

/// Completes a list of actions. Exactly one may end the request, and nothing else is served.
fn completed(given: &Value) -> Outcome {
    let [action] = items(given) else {
        return Err(match items(given).is_empty() {
            true => invalid("An action must be specified"),
            false => refused("TooManyActions", "Gantry serves one action a rule"),
        });
    };
    let mut action = action.clone();
    match text(&action, "Type") {
        "forward" => forward(&mut action)?,
        "redirect" => {
            if action["RedirectConfig"].is_null() {
                return Err(invalid("A redirect action must have a RedirectConfig"));
            }
            for (member, own) in [
                ("Protocol", "#{protocol}"),
                ("Port", "#{port}"),
                ("Host", "#{host}"),
                ("Path", "/#{path}"),
                ("Query", "#{query}"),
            ] {
                if action["RedirectConfig"][member].is_null() {
                    action["RedirectConfig"][member] = json!(own);
                }
            }
        }
        "fixed-response" if !action["FixedResponseConfig"].is_null() => {}
        "fixed-response" => return Err(invalid("A fixed-response action must have a FixedResponseConfig")),
        other => {
            return Err(refused(
                "InvalidLoadBalancerAction",
                format!("Gantry has no action of type '{other}'"),
            ));
        }
    }
    Ok(json!([action]))
}

fn forward(action: &mut Value) -> Result<(), AwsError> {
    let single = action["TargetGroupArn"].as_str().map(String::from);
    let mut tuples = items(&action["ForwardConfig"]["TargetGroups"]).to_vec();
    match (&single, &tuples[..]) {
        (None, []) => return Err(invalid("A target group ARN must be specified for a forward action")),
        (Some(arn), []) => tuples.push(json!({"TargetGroupArn": arn})),
        (Some(arn), [one]) if text(one, "TargetGroupArn") == arn => {}
        (Some(_), _) => {
            return Err(invalid(
                "You cannot specify both a target group ARN and several target groups in a forward action",
            ));
        }
        (None, _) => {}
    }
    if tuples.len() > GROUPS_MAX {
        let words = format!("A forward action can have at most {GROUPS_MAX} target groups");
        return Err(refused("TooManyTargetGroups", words));
    }
    for tuple in &mut tuples {
        if tuple["Weight"].is_null() {
            tuple["Weight"] = json!(1);
        }
        if !tuple["Weight"].as_i64().is_some_and(|w| (0..=999).contains(&w)) {
            return Err(invalid("The weight of a target group must be between 0 and 999"));
        }
    }
    if let [one] = &tuples[..] {
        action["TargetGroupArn"] = one["TargetGroupArn"].clone();
    }
    let stickiness = &action["ForwardConfig"]["TargetGroupStickinessConfig"];
    let stickiness = if stickiness.is_null() { json!({"Enabled": false}) } else { stickiness.clone() };
    action["ForwardConfig"] = json!({"TargetGroups": tuples, "TargetGroupStickinessConfig": stickiness});
    Ok(())
}

/// May a listener forward to a group, by their protocols?
fn fits(listener: &str, group: &str) -> bool {
    let groups: &[&str] = match listener {
        "TCP" => &["TCP", "TCP_UDP"],
        "TLS" => &["TCP", "TLS"],
        "UDP" => &["UDP", "TCP_UDP"],
        "TCP_UDP" => &["TCP_UDP"],
        _ => &["HTTP", "HTTPS"],
    };
    groups.contains(&group)
}

/// Checks actions of a listener with that protocol on that load balancer, and completes them.
pub(super) async fn checked(
    elb: &Elb,
    call: &Call,
    given: &Value,
    (balancer, protocol): (&str, &str),
) -> Outcome {
    let actions = completed(given)?;
    let http = protocol.starts_with("HTTP");
    refuse_if(!http && text(&actions[0], "Type") != "forward", || {
        refused("InvalidLoadBalancerAction", format!("A listener of protocol '{protocol}' can only forward"))
    })?;
    let uses = uses(elb, call).await?;
    for group in groups(&actions) {
        let spec = What::Group.get(elb, call, group).await?;
        if !fits(protocol, text(&spec, "Protocol")) {
            let words = format!(
                "Target group '{group}' of protocol '{}' cannot be used by a listener of protocol '{protocol}'",
                text(&spec, "Protocol")
            );
            return Err(refused("IncompatibleProtocols", words));
        }
        if uses.iter().any(|(g, b)| g == group && b != balancer) {
            let words = format!(
                "The following target groups cannot be associated with more than one load balancer: {group}"
            );
            return Err(refused("TargetGroupAssociationLimit", words));
        }
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_echoed_in_both_forms() {
        let actions = completed(&json!([{"Type": "forward", "TargetGroupArn": "g"}])).unwrap();
        assert_eq!(
            actions[0]["ForwardConfig"],
            json!({"TargetGroups": [{"TargetGroupArn": "g", "Weight": 1}],
            "TargetGroupStickinessConfig": {"Enabled": false}})
        );
        assert_eq!(groups(&actions).collect::<Vec<_>>(), ["g"]);
        let two = json!([{"Type": "forward", "ForwardConfig": {"TargetGroups": [
            {"TargetGroupArn": "a", "Weight": 9}, {"TargetGroupArn": "b", "Weight": 0}]}}]);
        assert!(completed(&two).unwrap()[0]["TargetGroupArn"].is_null());
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for (bad, code) in [
            (json!([]), "ValidationError"),
            (json!([{"Type": "forward"}]), "ValidationError"),
            (json!([{"Type": "redirect"}]), "ValidationError"),
            (json!([{"Type": "authenticate-oidc"}]), "InvalidLoadBalancerAction"),
            (json!([{"Type": "fixed-response"}]), "ValidationError"),
            (json!([{"Type": "forward"}, {"Type": "forward"}]), "TooManyActions"),
        ] {
            assert_eq!(completed(&bad).unwrap_err().code, code, "{bad}");
        }
    }
}

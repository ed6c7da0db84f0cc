//! Service deployments and service revisions as documents: what ListServiceDeployments and the like answer.
//!
//! The scheduler keeps a short record in the service's status (`id`, `target` and `sources`: numbers of deployments,
//! and AWS's own members); here it becomes AWS's document. A revision has the number of its deployment, and keeps in
//! [`KEPT`] what a roll-back puts back into the service. Pure.

use crate::doc::copy;
use crate::names::{Arn, Resource, derived_id};
use crate::service::RENEWING;
use machinery::kinds::get::{list, set, text};
use serde_json::{Map, Value, json};

/// The member of a revision's object that holds the service's own members.
pub const KEPT: &str = "kept";
/// Digits of a service deployment's id.
const ID_DIGITS: usize = 21;

/// ARN of something of a service: `service-revision`, `service-deployment`.
fn arn(service_arn: &str, make: impl Fn([String; 3]) -> Resource, id: &str) -> String {
    let Some(arn) = Arn::parse(service_arn) else { return String::new() };
    let mut parts = arn.resource.split('/').skip(1).map(str::to_string);
    let (cluster, service) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let resource = make([cluster, service, id.to_string()]);
    format!("arn:{}:ecs:{}:{}:{resource}", arn.partition, arn.region, arn.account)
}

/// A revision's ARN, by its deployment's number.
pub fn revision_arn(service_arn: &str, number: &str) -> String {
    arn(service_arn, Resource::ServiceRevision, number)
}

/// The name of a revision's object.
pub fn revision_object(number: &str) -> String {
    format!("rev-{number}")
}

/// The id of the service deployment that a deployment began.
pub fn deployment_id(service_arn: &str, deployment: &str) -> String {
    let id = derived_id(&format!("service-deployment/{service_arn}/{deployment}"));
    id.get(..ID_DIGITS).unwrap_or_default().to_string()
}

/// The name of a service deployment's object.
pub fn deployment_object(id: &str) -> String {
    format!("sd-{id}")
}

/// The ARN of the service deployment that a deployment began.
pub fn deployment_arn(service_arn: &str, deployment: &str) -> String {
    arn(service_arn, Resource::ServiceDeployment, &deployment_id(service_arn, deployment))
}

fn summary(service_arn: &str, number: &str, deployments: &[Value]) -> Value {
    let found = deployments.iter().find(|d| text(d, "/id").ends_with(&format!("/{number}")));
    let count = |member: &str| found.map_or(json!(0), |d| d[member].clone());
    json!({
        "arn": revision_arn(service_arn, number), "requestedTaskCount": count("desiredCount"),
        "runningTaskCount": count("runningCount"), "pendingTaskCount": count("pendingCount"),
    })
}

/// What DescribeServices adds: the current deployment and the revisions that have tasks.
pub fn current(spec: &Value, record: &Value, deployments: &[Value]) -> Map<String, Value> {
    let service = text(spec, "/serviceArn");
    let mut out = Map::new();
    if matches!(text(record, "/status"), "IN_PROGRESS" | "ROLLBACK_IN_PROGRESS") {
        out.insert("currentServiceDeployment".into(), json!(deployment_arn(service, text(record, "/id"))));
    }
    let number = |d: &Value| text(d, "/id").rsplit('/').next().unwrap_or_default().to_string();
    let revisions: Vec<Value> =
        deployments.iter().map(|d| summary(service, &number(d), deployments)).collect();
    out.insert("currentServiceRevisions".into(), json!(revisions));
    out
}

/// The document of a service deployment.
pub fn deployment(spec: &Value, record: &Value, deployments: &[Value]) -> Value {
    let service = text(spec, "/serviceArn");
    let mut out = record.clone();
    let sources = list(record, "/sources").iter().filter_map(Value::as_str);
    let sources: Vec<Value> = sources.map(|n| summary(service, n, deployments)).collect();
    set(&mut out, "serviceDeploymentArn", deployment_arn(service, text(record, "/id")));
    set(&mut out, "serviceArn", service);
    set(&mut out, "clusterArn", spec["clusterArn"].clone());
    set(&mut out, "targetServiceRevision", summary(service, text(record, "/target"), deployments));
    set(&mut out, "sourceServiceRevisions", sources);
    if let Some(number) = record["rollback"]["revision"].as_str() {
        let arn = revision_arn(service, number);
        out["rollback"] = json!({"reason": record["rollback"]["reason"], "startedAt": record["rollback"]["startedAt"],
            "serviceRevisionArn": arn});
    }
    for own in ["id", "target", "sources"] {
        out.as_object_mut().map(|members| members.remove(own));
    }
    out
}

/// The line of ListServiceDeployments.
pub fn brief(deployment: &Value) -> Value {
    let mut out = json!({"targetServiceRevisionArn": deployment["targetServiceRevision"]["arn"]});
    let members =
        "clusterArn createdAt finishedAt serviceArn serviceDeploymentArn startedAt status statusReason";
    copy(&mut out, deployment, members);
    out
}

/// The object's spec of a revision: AWS's document, and what a roll-back needs.
pub fn revision(spec: &Value, definition: &Value, number: &str, created_at: &Value) -> Value {
    let images: Vec<Value> = list(definition, "/containerDefinitions")
        .iter()
        .map(|c| json!({"containerName": c["name"], "image": c["image"]}))
        .collect();
    let mut kept = Map::new();
    for member in RENEWING.split_whitespace().chain(["platformFamily"]) {
        // What a revision has not, a roll-back takes away.
        kept.insert(member.to_string(), spec.get(member).cloned().unwrap_or_default());
    }
    let mut out = json!({
        "serviceRevisionArn": revision_arn(text(spec, "/serviceArn"), number), "serviceArn": spec["serviceArn"],
        "clusterArn": spec["clusterArn"], "createdAt": created_at, "containerImages": images, "guardDutyEnabled": false,
    });
    let members = "taskDefinition launchType capacityProviderStrategy platformVersion platformFamily \
                   networkConfiguration loadBalancers serviceRegistries serviceConnectConfiguration";
    copy(&mut out, spec, members);
    // As merge patches do, null would be lost in the store: "absent" is what is not in the map.
    kept.retain(|_, v| !v.is_null());
    set(&mut out, KEPT, kept);
    out
}

/// The merge patch of a service's spec that brings a revision back.
pub fn restore(revision: &Value) -> Value {
    let mut patch = Map::new();
    for member in RENEWING.split_whitespace().chain(["platformFamily"]) {
        patch.insert(member.to_string(), revision[KEPT].get(member).cloned().unwrap_or_default());
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "arn:aws:ecs:us-east-1:123456789012:service/prod/web";

    #[test]
    fn records_become_documents() {
        let spec = json!({"serviceArn": SERVICE, "clusterArn": "arn:c"});
        let record = json!({"id": "ecs-svc/2", "target": "2", "sources": ["1"], "status": "ROLLBACK_IN_PROGRESS",
            "rollback": {"reason": "r", "startedAt": 1.0, "revision": "1"}});
        let deployments =
            [json!({"id": "ecs-svc/2", "runningCount": 3, "desiredCount": 4, "pendingCount": 1})];
        let out = deployment(&spec, &record, &deployments);
        let prefix = "arn:aws:ecs:us-east-1:123456789012";
        assert_eq!(out["targetServiceRevision"]["arn"], format!("{prefix}:service-revision/prod/web/2"));
        assert_eq!(out["targetServiceRevision"]["runningTaskCount"], 3);
        assert_eq!(out["rollback"]["serviceRevisionArn"], format!("{prefix}:service-revision/prod/web/1"));
        let id = text(&out, "/serviceDeploymentArn").rsplit('/').next().unwrap();
        assert_eq!((id.len(), out.get("target")), (ID_DIGITS, None));
        assert_eq!(brief(&out)["targetServiceRevisionArn"], out["targetServiceRevision"]["arn"]);
        let now = current(&spec, &record, &deployments);
        assert_eq!(now["currentServiceDeployment"], out["serviceDeploymentArn"]);
    }

    #[test]
    fn a_revision_brings_back_what_it_had_and_what_it_had_not() {
        let old = json!({"serviceArn": SERVICE, "taskDefinition": "t:1", "launchType": "FARGATE", "desiredCount": 1});
        let definition = json!({"containerDefinitions": [{"name": "web", "image": "nginx"}]});
        let kept = revision(&old, &definition, "1", &json!(5.0));
        assert_eq!(kept["containerImages"], json!([{"containerName": "web", "image": "nginx"}]));
        let mut new = json!({"serviceArn": SERVICE, "taskDefinition": "t:2", "desiredCount": 7,
            "capacityProviderStrategy": [{"capacityProvider": "FARGATE"}]});
        machinery::patch::merge(&mut new, &restore(&kept));
        assert_eq!(
            new,
            json!({"serviceArn": SERVICE, "taskDefinition": "t:1", "launchType": "FARGATE", "desiredCount": 7})
        );
    }
}

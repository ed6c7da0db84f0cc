//! Services as objects: made, changed, listed, deleted.

use super::harness::{ARN, ecs, is};
use client::ObjectKey;
use k8s_schema::gvr;
use serde_json::{Value, json};

fn fargate(name: &str, definition: &str, count: u32) -> Value {
    json!({"serviceName": name, "taskDefinition": definition, "desiredCount": count, "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_from_create_to_delete() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    ecs.fargate_definition("web").await;
    let made = ecs.ok("CreateService", fargate("web", "web:1", 2)).await["service"].clone();
    assert_eq!(
        (&made["serviceArn"], &made["status"]),
        (&json!(format!("{ARN}:service/default/web")), &json!("ACTIVE"))
    );
    assert_eq!(made["taskDefinition"], format!("{ARN}:task-definition/web:1"));
    assert_eq!(
        (&made["platformVersion"], &made["deploymentConfiguration"]["maximumPercent"]),
        (&json!("1.4.0"), &json!(200))
    );
    let first = made["deployments"][0].clone();
    assert_eq!((&first["status"], &first["rolloutState"]), (&json!("PRIMARY"), &json!("IN_PROGRESS")));
    let twice = is("InvalidParameterException", "Creation of service was not idempotent.");
    assert_eq!(ecs.refused("CreateService", fargate("web", "web:1", 2)).await, twice);

    let scaled =
        ecs.ok("UpdateService", json!({"service": "web", "desiredCount": 3})).await["service"].clone();
    assert_eq!((&scaled["desiredCount"], &scaled["deployments"][0]["id"]), (&json!(3), &first["id"]));
    let updated =
        ecs.ok("UpdateService", json!({"service": made["serviceArn"], "taskDefinition": "web"})).await;
    assert_eq!(updated["service"]["taskDefinition"], format!("{ARN}:task-definition/web:2"));
    assert_ne!(updated["service"]["deployments"][0]["id"], first["id"]);
    let id = updated["service"]["deployments"][0]["id"].clone();
    let forced = ecs.ok("UpdateService", json!({"service": "web", "forceNewDeployment": true})).await;
    assert_ne!(forced["service"]["deployments"][0]["id"], id);

    let seen = ecs.ok("DescribeServices", json!({"services": ["web", "none"]})).await;
    assert_eq!(seen["services"][0]["desiredCount"], 3);
    assert_eq!(
        seen["failures"],
        json!([{"arn": format!("{ARN}:service/default/none"), "reason": "MISSING"}])
    );
    assert_eq!(ecs.ok("DescribeClusters", json!({})).await["clusters"][0]["activeServicesCount"], 1);
    let refused = ecs.refused("DeleteCluster", json!({"cluster": "default"})).await;
    assert_eq!(refused.0, "ClusterContainsServicesException");
    let scaled = is("InvalidParameterException", "The service cannot be stopped while it is scaled above 0.");
    assert_eq!(ecs.refused("DeleteService", json!({"service": "web"})).await, scaled);
    let gone = ecs.ok("DeleteService", json!({"service": "web", "force": true})).await;
    assert_eq!(gone["service"]["status"], "INACTIVE");
    assert_eq!(ecs.ok("ListServices", json!({})).await["serviceArns"], json!([]));
    let inactive = is("ServiceNotActiveException", "Service was not ACTIVE.");
    assert_eq!(ecs.refused("UpdateService", json!({"service": "web"})).await, inactive);
    // What the first life left is not in the second.
    let key = ObjectKey::new("ecs-default", "web");
    ecs.client
        .merge_patch_status(&gvr::ECS_SERVICES, &key, json!({"status": {"runningCount": 7}}))
        .await
        .unwrap();
    let again = ecs.ok("CreateService", fargate("web", "web:1", 1)).await;
    assert_eq!(
        (&again["service"]["status"], &again["service"]["runningCount"]),
        (&json!("ACTIVE"), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_refusals() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    ecs.definition("job", 64).await;
    for i in 0..12 {
        ecs.ok("CreateService", fargate(&format!("s{i:02}"), "web", 0)).await;
    }
    let first = ecs.ok("ListServices", json!({})).await;
    assert_eq!(first["serviceArns"].as_array().unwrap().len(), 10);
    let rest = ecs.ok("ListServices", json!({"nextToken": first["nextToken"]})).await;
    assert_eq!(rest["serviceArns"].as_array().unwrap().len(), 2);
    let daemon = json!({"serviceName": "d", "taskDefinition": "job", "schedulingStrategy": "DAEMON"});
    assert_eq!(ecs.ok("CreateService", daemon).await["service"]["launchType"], "EC2");
    let daemons = ecs.ok("ListServices", json!({"schedulingStrategy": "DAEMON"})).await;
    assert_eq!(daemons["serviceArns"], json!([format!("{ARN}:service/default/d")]));

    let balanced = |name: &str, port: u32| {
        let mut input = fargate("lb", "web", 1);
        input["loadBalancers"] =
            json!([{"targetGroupArn": "arn:t", "containerName": name, "containerPort": port}]);
        input
    };
    for (input, code, words) in [
        (fargate("a b", "web", 1), "InvalidParameterException", "Invalid service name."),
        (fargate("x", "none", 1), "ClientException", "TaskDefinition not found."),
        (
            fargate("x", "job", 1),
            "InvalidParameterException",
            "Task definition does not support launch_type FARGATE.",
        ),
        (
            balanced("db", 80),
            "InvalidParameterException",
            "The container db does not exist in the task definition.",
        ),
        (
            balanced("web", 80),
            "InvalidParameterException",
            "The container web did not have a container port 80 defined.",
        ),
        (
            json!({"serviceName": "x", "taskDefinition": "job"}),
            "InvalidParameterException",
            "The desired count must be",
        ),
    ] {
        let (got, message) = ecs.refused("CreateService", input).await;
        assert!(got == code && message.starts_with(words), "{got}: {message}");
    }
    for operation in ["UpdateService", "DeleteService"] {
        let refused = ecs.refused(operation, json!({"service": "none"})).await;
        assert_eq!(refused, is("ServiceNotFoundException", "Service not found."));
    }
}

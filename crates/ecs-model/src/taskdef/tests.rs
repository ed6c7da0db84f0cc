//! What is refused, in whose words, and what comes back.

use super::*;

const ACCOUNT: &str = "123456789012";

fn definition(change: Value) -> Value {
    let mut doc =
        json!({"family": "web", "containerDefinitions": [{"name": "web", "image": "nginx", "memory": 128}]});
    machinery::patch::merge(&mut doc, &change);
    doc
}

/// A Fargate definition with a change (merge patch) to its only container.
fn fargate(container: Value) -> Value {
    let mut own = json!({"name": "web", "image": "nginx"});
    machinery::patch::merge(&mut own, &container);
    json!({"family": "web", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": ".25 vCPU",
        "memory": "0.5GB", "containerDefinitions": [own]})
}

/// The plain definition with a change to its only container.
fn one(container: Value) -> Value {
    let mut own = json!({"name": "web", "image": "nginx", "memory": 128});
    machinery::patch::merge(&mut own, &container);
    definition(json!({"containerDefinitions": [own]}))
}

fn awsvpc(container: Value) -> Value {
    let mut doc = one(container);
    doc["networkMode"] = json!("awsvpc");
    doc
}

fn refusal(input: &Value) -> String {
    let refused = check(input, ACCOUNT).expect_err("should be refused");
    assert_eq!(refused.code, "ClientException");
    refused.message
}

#[test]
fn what_comes_back_is_what_ecs_echoes() {
    let mut input = fargate(json!({"portMappings": [{"containerPort": 80}], "essential": null,
        "healthCheck": {"command": ["CMD-SHELL", "true"]}, "dependsOn": null}));
    input["containerDefinitions"].as_array_mut().unwrap().push(json!({"name": "side", "image": "busybox",
        "essential": false, "dependsOn": [{"containerName": "web", "condition": "HEALTHY"}]}));
    let doc = check(&input, ACCOUNT).unwrap();
    let registration =
        Registration { arn: "arn:d".into(), revision: 3, registered_at: 1.5, registered_by: "arn:me" };
    let doc = identify(doc, &registration);
    let expected = json!({
        "family": "web", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256",
        "memory": "512", "volumes": [], "placementConstraints": [], "compatibilities": ["EC2", "FARGATE"],
        "taskDefinitionArn": "arn:d", "revision": 3, "status": "ACTIVE", "registeredAt": 1.5,
        "registeredBy": "arn:me",
        "requiresAttributes": [
            {"name": "com.amazonaws.ecs.capability.docker-remote-api.1.18"},
            {"name": "com.amazonaws.ecs.capability.docker-remote-api.1.24"},
            {"name": "ecs.capability.task-eni"}, {"name": "ecs.capability.container-health-check"},
            {"name": "ecs.capability.container-ordering"}],
        "containerDefinitions": [
            {"name": "web", "image": "nginx", "cpu": 0, "essential": true, "environment": [], "mountPoints": [],
                "volumesFrom": [], "systemControls": [],
                "portMappings": [{"containerPort": 80, "hostPort": 80, "protocol": "tcp"}],
                "healthCheck": {"command": ["CMD-SHELL", "true"], "interval": 30, "timeout": 5, "retries": 3}},
            {"name": "side", "image": "busybox", "cpu": 0, "essential": false, "environment": [], "mountPoints": [],
                "volumesFrom": [], "systemControls": [], "portMappings": [],
                "dependsOn": [{"containerName": "web", "condition": "HEALTHY"}]}],
    });
    assert_eq!(doc, expected);
}

#[test]
fn bridge_ports_are_dynamic_and_unknown_members_go() {
    let doc = definition(
        json!({"colour": "red", "containerDefinitions": [{"name": "a", "image": "i", "memory": 6,
        "portMappings": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 8081, "protocol": "udp"}]}]}),
    );
    let doc = check(&doc, ACCOUNT).unwrap();
    assert!(doc.get("colour").is_none() && doc.get("networkMode").is_none());
    let ports = &doc["containerDefinitions"][0]["portMappings"];
    assert_eq!(ports[0], json!({"containerPort": 80, "hostPort": 0, "protocol": "tcp"}));
    assert_eq!(ports[1]["hostPort"], 8081);
    assert_eq!(doc["compatibilities"], json!(["EXTERNAL", "EC2"]));
}

#[test]
fn refusals_of_any_definition() {
    let twelve: Vec<Value> =
        (0..12).map(|i| json!({"name": format!("c{i}"), "image": "i", "memory": 6})).collect();
    for (input, words) in [
        (definition(json!({"family": ""})), "Family should not be null or empty."),
        (definition(json!({"family": "a b"})), "Family contains invalid characters."),
        (definition(json!({"containerDefinitions": []})), "Container list cannot be empty."),
        (definition(json!({"containerDefinitions": twelve})), "Number of containers cannot exceed 10."),
        (one(json!({"name": ""})), "Container.name should not be null or empty."),
        (one(json!({"image": ""})), "Container.image should not be null or empty."),
        (
            one(json!({"memory": null})),
            "Invalid setting for container 'web'. At least one of 'memory' or 'memoryReservation' must be specified.",
        ),
        (one(json!({"essential": false})), "Task definition doesn't have any essential container."),
        (one(json!({"memory": 5})), "Invalid 'memory' setting for container 'web'."),
        (
            one(json!({"portMappings": [{"hostPort": 70}]})),
            "Invalid 'containerPort' setting for container 'web'.",
        ),
        (one(json!({"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]})), "Unknown volume 'v'."),
        (
            one(json!({"dependsOn": [{"containerName": "db", "condition": "START"}]})),
            "Cannot depend on container + 'db' because it does not exist",
        ),
        (
            one(json!({"dependsOn": [{"containerName": "web", "condition": "START"}]})),
            "Container dependencies contain a cycle.",
        ),
        (
            one(json!({"dependsOn": [{"containerName": "web", "condition": "SUCCESS"}]})),
            "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
        ),
        (
            one(json!({"dependsOn": [{"containerName": "web", "condition": "HEALTHY"}]})),
            "A dependency container with HEALTHY condition must have health check configured",
        ),
        (
            one(json!({"ulimits": [{"name": "nofile", "softLimit": 9, "hardLimit": 8}]})),
            "Soft limit exceeds hard limit for ulimit nofile",
        ),
        (
            one(json!({"logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "g"}}})),
            "Log driver awslogs requires options: awslogs-region, awslogs-group",
        ),
    ] {
        assert_eq!(refusal(&input), words);
    }
}

#[test]
fn refusals_of_roles_sums_and_networks() {
    for (input, words) in [
        (
            awsvpc(json!({"portMappings": [{"containerPort": 80, "hostPort": 81}]})),
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
        ),
        (awsvpc(json!({"links": ["web"]})), "Links are not supported when networkMode=awsvpc."),
        (definition(json!({"taskRoleArn": "arn:aws:iam::210987654321:role/x"})), "Role is not valid"),
        (definition(json!({"taskRoleArn": "arn:aws:s3:::b"})), "Role is not valid"),
        (
            definition(
                json!({"cpu": "128", "containerDefinitions": [{"name": "a", "image": "i", "memory": 6, "cpu": 129}]}),
            ),
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ),
        (
            definition(json!({"memory": "100"})),
            "The 'memory' setting for container 'web' is greater than for the task.",
        ),
        (
            one(json!({"secrets": [{"name": "A", "valueFrom": "p"}]})),
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'.",
        ),
    ] {
        assert_eq!(refusal(&input), words);
    }
    assert!(refusal(&definition(json!({"cpu": "much"}))).starts_with("Invalid 'cpu' setting for task."));
    let constraint = json!([{"type": "memberOf", "expression": "color == red"}]);
    assert!(
        refusal(&definition(json!({"placementConstraints": constraint}))).contains("unknown subject 'color'")
    );
}

#[test]
fn refusals_of_fargate() {
    let task = |change: Value| {
        let mut doc = fargate(json!({}));
        machinery::patch::merge(&mut doc, &change);
        doc
    };
    for (input, words) in [
        (task(json!({"networkMode": "bridge"})), "Fargate only supports network mode ‘awsvpc’."),
        (task(json!({"cpu": null})), "Fargate requires that 'cpu' be defined at the task level."),
        (
            task(json!({"memory": "4GB"})),
            "No Fargate configuration exists for given values: 256 CPU, 4096 memory. See the Amazon ECS documentation \
             for the valid values.",
        ),
        (
            task(json!({"ephemeralStorage": {"sizeInGiB": 20}})),
            "Ephemeral storage size must be between 21 and 200 GiB.",
        ),
        (
            task(json!({"volumes": [{"name": "v", "host": {"sourcePath": "/x"}}]})),
            "Fargate compatible task definitions do not support sourcePath",
        ),
        (
            fargate(json!({"privileged": true})),
            "Fargate compatible task definitions do not support privileged",
        ),
        (
            fargate(json!({"linuxParameters": {"devices": [{"hostPath": "/dev/fuse"}]}})),
            "Fargate compatible task definitions do not support devices",
        ),
        (
            fargate(json!({"image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/web"})),
            "Fargate requires task definition to have execution role ARN to support ECR images.",
        ),
        (
            fargate(json!({"logConfiguration": {"logDriver": "awslogs",
                "options": {"awslogs-group": "g", "awslogs-region": "r"}}})),
            "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
        ),
        (
            fargate(json!({"stopTimeout": 121})),
            "Tasks using the Fargate launch type must have a container stop timeout of less than 120 seconds.",
        ),
    ] {
        assert_eq!(refusal(&input), words);
    }
    // Not asked for, not possible: no more than a missing compatibility.
    let mut doc = fargate(json!({"privileged": true, "memory": 128}));
    doc.as_object_mut().unwrap().remove("requiresCompatibilities");
    assert_eq!(check(&doc, ACCOUNT).unwrap()["compatibilities"], json!(["EC2"]));
}

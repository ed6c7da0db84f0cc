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

const GROUP: &str = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/web/0123456789abcdef";

#[expect(clippy::too_many_lines, reason = "one world, looked at from every side")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_refers_to_must_be_there_and_fit() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let aws = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "aws"}});
    ecs.client.create(&gvr::NAMESPACES, aws).await.unwrap();
    let put = async |gvr: &k8s_schema::Gvr, kind: &str, name: &str, spec: Value| {
        let labels = json!({"aws.gantry.dev/account": "123456789012", "aws.gantry.dev/region": "us-east-1"});
        let body = json!({"apiVersion": format!("{}/{}", gvr.group, gvr.version), "kind": kind,
            "metadata": {"namespace": "aws", "name": name, "labels": labels}, "spec": spec});
        ecs.client.create(gvr, body).await.unwrap();
    };
    let with = |member: &str, value: Value| {
        let mut input = fargate("web", "web:1", 1);
        input[member] = value;
        input
    };
    let said = async |input: Value| ecs.refused("CreateService", input).await.1;
    let subnets = json!({"awsvpcConfiguration": {"subnets": ["subnet-1"]}});
    let words = said(with("networkConfiguration", subnets.clone())).await;
    assert_eq!(
        words,
        "Error retrieving subnet information for [subnet-1]: The subnet ID 'subnet-1' does not exist \
        (ErrorCode: InvalidSubnetID.NotFound)"
    );
    let run = json!({"taskDefinition": "web", "launchType": "FARGATE", "networkConfiguration": subnets});
    assert_eq!(ecs.refused("RunTask", run).await.1, words);

    let ported = json!({"family": "ported", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "requiresCompatibilities": ["FARGATE"], "containerDefinitions": [{"name": "c", "image": "i",
        "portMappings": [{"containerPort": 80}]}]});
    ecs.ok("RegisterTaskDefinition", ported).await;
    let balancers = |port: u16| {
        let entry = json!([{"targetGroupArn": GROUP, "containerName": "c", "containerPort": port}]);
        let mut input = with("loadBalancers", entry);
        input["taskDefinition"] = json!("ported");
        input
    };
    let port = 80;
    assert!(said(balancers(1)).await.ends_with("did not have a container port 1 defined."));
    assert_eq!(said(balancers(port)).await, format!("The specified target group does not exist: {GROUP}"));
    let group = json!({"TargetGroupArn": GROUP, "TargetType": "instance"});
    put(&gvr::ELB_TARGET_GROUPS, "TargetGroup", "web", group).await;
    assert_eq!(
        said(balancers(port)).await,
        format!(
            "The provided target group {GROUP} has target type instance, which is \
        incompatible with the awsvpc network mode specified in the task definition."
        )
    );
    let key = ObjectKey::new("aws", "web");
    let patch = json!({"spec": {"TargetType": "ip"}});
    ecs.client.merge_patch(&gvr::ELB_TARGET_GROUPS, &key, patch).await.unwrap();
    assert_eq!(
        said(balancers(port)).await,
        format!(
            "The target group with targetGroupArn {GROUP} does not have an \
        associated load balancer."
        )
    );
    let actions =
        json!([{"Type": "forward", "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": GROUP}]}}]);
    put(&gvr::ELB_LISTENERS, "Listener", "l", json!({"ListenerArn": "l", "DefaultActions": actions})).await;
    ecs.ok("CreateService", balancers(port)).await;

    let registry = "arn:aws:servicediscovery:us-east-1:123456789012:service/srv-1";
    let mut other = with("serviceRegistries", json!([{"registryArn": registry}]));
    other["serviceName"] = json!("other");
    assert_eq!(
        said(other.clone()).await,
        format!("The specified service registry does not exist: {registry}")
    );
    let records = json!({"DnsConfig": {"DnsRecords": [{"Type": "SRV", "TTL": 10}]}});
    put(&gvr::DISCOVERY_SERVICES, "Service", "srv-1", records).await;
    assert!(said(other.clone()).await.contains("using an SRV DNS record"));
    other["serviceRegistries"][0]["port"] = json!(80);
    ecs.ok("CreateService", other).await;
    let grace = is(
        "InvalidParameterException",
        "Health check grace period is only valid for services configured to use load balancers",
    );
    let asked = json!({"service": "other", "healthCheckGracePeriodSeconds": 5});
    assert_eq!(ecs.refused("UpdateService", asked).await, grace);
    let role = is(
        "InvalidParameterException",
        "You cannot specify an IAM role for services that require a service linked role.",
    );
    let mut third = with("role", json!("r"));
    third["serviceName"] = json!("third");
    assert_eq!(ecs.refused("CreateService", third).await, role);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_the_models_own_errors() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    ecs.ok("CreateService", fargate("web", "web:1", 1)).await;
    let set = json!({"service": "web", "cluster": "default", "taskSet": "x", "taskDefinition": "web:1", "primaryTaskSet": "x"});
    let code = async |operation: &str| ecs.refused(operation, set.clone()).await.0;
    assert_eq!(code("CreateTaskSet").await, "InvalidParameterException");
    assert_eq!(code("DeleteTaskSet").await, "TaskSetNotFoundException");
    assert_eq!(code("UpdateServicePrimaryTaskSet").await, "TaskSetNotFoundException");
    let seen =
        ecs.ok("DescribeTaskSets", json!({"service": "web", "cluster": "default", "taskSets": ["x"]})).await;
    assert_eq!(seen["failures"][0]["reason"], "MISSING");
    assert_eq!(code("SubmitTaskStateChange").await, "ClientException");
    ecs.node("node-a", 2, 4096).await;
    let instance = ecs.ok("ListContainerInstances", json!({})).await["containerInstanceArns"][0].clone();
    let update = json!({"containerInstance": instance});
    assert_eq!(ecs.refused("UpdateContainerAgent", update).await.0, "NoUpdateAvailableException");
    // No node could hold the task, however empty; on EC2 the node has no GPU.
    let big = json!({"family": "big", "networkMode": "awsvpc", "cpu": "4096", "memory": "30720",
        "requiresCompatibilities": ["FARGATE"], "containerDefinitions": [{"name": "c", "image": "i"}]});
    ecs.ok("RegisterTaskDefinition", big).await;
    let mut run = fargate("x", "big", 1);
    run["count"] = json!(2);
    let answer = ecs
        .ok(
            "RunTask",
            json!({"taskDefinition": "big", "launchType": "FARGATE", "count": 2,
        "networkConfiguration": run["networkConfiguration"]}),
        )
        .await;
    assert_eq!(
        (answer["tasks"].as_array().unwrap().len(), answer["failures"].as_array().unwrap().len()),
        (0, 2)
    );
    assert!(
        answer["failures"][0]["reason"]
            .as_str()
            .unwrap()
            .starts_with("Capacity is unavailable at this time.")
    );
    let gpu = json!({"family": "gpu", "containerDefinitions": [{"name": "c", "image": "i", "memory": 10,
        "resourceRequirements": [{"type": "GPU", "value": "1"}]}]});
    ecs.ok("RegisterTaskDefinition", gpu).await;
    let answer = ecs.ok("RunTask", json!({"taskDefinition": "gpu"})).await;
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:GPU");
    // A device plug-in counts them on a node.
    let amounts = json!({"status": {"allocatable": {"nvidia.com/gpu": "2"}}});
    ecs.client.merge_patch_status(&gvr::NODES, &ObjectKey::cluster("node-a"), amounts).await.unwrap();
    let found = json!({"containerInstances": [instance]});
    let counted = |seen: &Value| seen["containerInstances"][0]["registeredResources"][4].is_object();
    ecs.until("DescribeContainerInstances", found, counted).await;
    let answer = ecs.ok("RunTask", json!({"taskDefinition": "gpu", "count": 3})).await;
    let failures = json!([{"arn": instance, "reason": "RESOURCE:GPU"}]);
    assert_eq!((answer["tasks"].as_array().unwrap().len(), &answer["failures"]), (2, &failures));
    let described = ecs.ok("DescribeContainerInstances", json!({"containerInstances": [instance]})).await;
    let of = |list: &str| described["containerInstances"][0][list][4]["stringSetValue"].clone();
    assert_eq!((of("registeredResources"), of("remainingResources")), (json!(["0", "1"]), json!([])));
}

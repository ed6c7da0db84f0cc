//! Services: tasks come, are replaced, feed target groups, and go.

use crate::harness::{NAMESPACE, World, world};
use client::ObjectKey;
use ecs_model::targets::target;
use k8s_schema::gvr::{
    DISCOVERY_INSTANCES, ECS_SERVICE_DEPLOYMENTS, ECS_SERVICE_REVISIONS, ECS_SERVICES, ECS_TASKS,
    ELB_TARGET_GROUPS, NAMESPACES,
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const GROUP: &str = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/web/0123456789abcdef";

fn deployment(n: u32) -> Value {
    json!({"id": format!("ecs-svc/{n:019}"), "createdAt": f64::from(n)})
}

async fn service(world: &World, count: u32, more: Value) -> ObjectKey {
    let mut spec = json!({
        "serviceName": "web", "status": "ACTIVE", "desiredCount": count, "launchType": "FARGATE",
        "serviceArn": "arn:aws:ecs:us-east-1:123456789012:service/prod/web",
        "clusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/prod",
        "taskDefinition": "arn:aws:ecs:us-east-1:123456789012:task-definition/f:1", "deployment": deployment(1),
        "deploymentConfiguration": {"maximumPercent": 200, "minimumHealthyPercent": 100},
    });
    machinery::patch::merge(&mut spec, &more);
    let body = ecs_model::doc::object("Service", NAMESPACE, "web", spec);
    world.client.create(&ECS_SERVICES, body).await.unwrap().key.clone()
}

async fn tasks(world: &World) -> Vec<Value> {
    let options = client::ListOptions { namespace: Some(NAMESPACE.into()), ..Default::default() };
    let all = world.client.list(&ECS_TASKS, &options).await.unwrap();
    all.items.iter().map(|o| o.value().unwrap()).collect()
}

fn is_done(service: &Value, id: &Value) -> bool {
    let all = service["status"]["deployments"].as_array().map_or(&[][..], Vec::as_slice);
    all.len() == 1 && all[0]["id"] == *id && all[0]["rolloutState"] == "COMPLETED"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_runs_rolls_survives_a_restart_and_ends() {
    let mut world = world(HOUR).await;
    world.define("awsvpc", json!([{"name": "web", "image": "nginx"}])).await;
    let _node = world.node();
    let key = service(&world, 3, json!({})).await;
    let seen = world.until(&ECS_SERVICES, &key, |s| is_done(s, &deployment(1)["id"])).await;
    assert_eq!((&seen["status"]["runningCount"], world.started.load(Ordering::Relaxed)), (&json!(3), 3));
    world.stop();
    let patch = json!({"spec": {"deployment": deployment(2)}});
    world.client.merge_patch(&ECS_SERVICES, &key, patch).await.unwrap();
    world.restart();
    let seen = world.until(&ECS_SERVICES, &key, |s| is_done(s, &deployment(2)["id"])).await;
    let events: Vec<&str> =
        seen["status"]["events"].as_array().unwrap().iter().filter_map(|e| e["message"].as_str()).collect();
    assert!(events[0].ends_with("has reached a steady state."), "{events:?}");
    for words in [
        "has started 3 tasks: (task ",
        "has stopped ",
        "(deployment ecs-svc/0000000000000000002) deployment completed.",
    ] {
        assert!(
            events.iter().any(|e| e.starts_with("(service web) ") && e.contains(words)),
            "{words}: {events:?}"
        );
    }
    assert_eq!(world.started.load(Ordering::Relaxed), 6, "none too many");
    let scaled = tasks(&world).await;
    let reasons = scaled.iter().filter(|t| {
        t["spec"]["stoppedReason"] == "Scaling activity initiated by (deployment ecs-svc/0000000000000000002)"
    });
    assert_eq!(reasons.count(), 3);
    let record = ecs_model::service_record::deployment_id(
        "arn:aws:ecs:us-east-1:123456789012:service/prod/web",
        "ecs-svc/0000000000000000002",
    );
    let record = ObjectKey::new(NAMESPACE, format!("sd-{record}"));
    let done = world.until(&ECS_SERVICE_DEPLOYMENTS, &record, |d| d["spec"]["status"] == "SUCCESSFUL").await;
    assert_eq!(done["spec"]["sourceServiceRevisions"].as_array().unwrap().len(), 1);
    let revision = ObjectKey::new(NAMESPACE, "rev-0000000000000000002");
    world
        .until(&ECS_SERVICE_REVISIONS, &revision, |r| r["spec"]["containerImages"][0]["image"] == "nginx")
        .await;
    let end = json!({"spec": {"status": "DRAINING", "desiredCount": 0}});
    world.client.merge_patch(&ECS_SERVICES, &key, end).await.unwrap();
    world.until(&ECS_SERVICES, &key, |s| s["spec"]["status"] == "INACTIVE").await;
    assert!(tasks(&world).await.iter().all(|t| t["status"]["lastStatus"] == "STOPPED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_whose_tasks_fail_goes_back_by_itself() {
    let world = world(HOUR).await;
    world.define("awsvpc", json!([{"name": "web", "image": "nginx"}])).await;
    let _node = world.node();
    let breaker =
        json!({"deploymentConfiguration": {"deploymentCircuitBreaker": {"enable": true, "rollback": true}}});
    let key = service(&world, 1, breaker).await;
    world.until(&ECS_SERVICES, &key, |s| is_done(s, &deployment(1)["id"])).await;
    // No such definition: tasks that cannot start.
    let bad = json!({"spec": {"deployment": deployment(2), "taskDefinition": "arn:aws:ecs:us-east-1:123456789012:task-definition/f:9"}});
    world.client.merge_patch(&ECS_SERVICES, &key, bad).await.unwrap();
    let back =
        |s: &Value| s["spec"]["deployment"]["id"] == deployment(1)["id"] && is_done(s, &deployment(1)["id"]);
    let seen = world.until(&ECS_SERVICES, &key, back).await;
    assert_eq!(seen["spec"]["taskDefinition"], "arn:aws:ecs:us-east-1:123456789012:task-definition/f:1");
    assert_eq!(seen["status"]["serviceDeployment"]["status"], "ROLLBACK_SUCCESSFUL");
    assert_eq!(world.started.load(Ordering::Relaxed), 4, "one good task and three failures");
    let running: Vec<Value> =
        tasks(&world).await.into_iter().filter(|t| t["status"]["lastStatus"] == "RUNNING").collect();
    assert_eq!(running.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_join_and_leave_target_groups_and_cloud_map() {
    let world = world(HOUR).await;
    let aws = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "aws"}});
    world.client.create(&NAMESPACES, aws).await.unwrap();
    world
        .define("awsvpc", json!([{"name": "web", "image": "nginx", "portMappings": [{"containerPort": 80}]}]))
        .await;
    let _node = world.node();
    let foreign = target("10.9.9.9", 80, "", "");
    let group = json!({"apiVersion": "elasticloadbalancing.gantry.dev/v1", "kind": "TargetGroup",
        "metadata": {"namespace": "aws", "name": "web"},
        "spec": {"TargetGroupArn": GROUP, "TargetType": "ip", "targets": [foreign]}});
    let group = world.client.create(&ELB_TARGET_GROUPS, group).await.unwrap().key.clone();
    let key = service(&world, 1, json!({
        "loadBalancers": [{"targetGroupArn": GROUP, "containerName": "web", "containerPort": 80}],
        "serviceRegistries": [{"registryArn": "arn:aws:servicediscovery:us-east-1:123456789012:service/srv-1"}]})).await;
    let joined = world
        .until(&ELB_TARGET_GROUPS, &group, |g| g["spec"]["targets"].as_array().is_some_and(|t| t.len() == 2))
        .await;
    let own = &joined["spec"]["targets"][1];
    assert_eq!((&own["id"], &own["port"]), (&json!("10.0.0.9"), &json!(80)));
    let owner = own["owner"].as_str().unwrap().to_string();
    let task = ObjectKey::new(NAMESPACE, owner.rsplit('/').next().unwrap());
    let listed = ObjectKey::new("aws", ecs_model::discovery::instance_name("srv-1", &task.name));
    let instance = world.until(&DISCOVERY_INSTANCES, &listed, |i| !i.is_null()).await;
    // Known to both, it runs.
    world
        .until(&ECS_TASKS, &task, |t| {
            t["status"]["lastStatus"] == "RUNNING" && t["spec"]["activating"].is_null()
        })
        .await;
    assert_eq!(instance["spec"]["Attributes"]["AWS_INSTANCE_IPV4"], "10.0.0.9");
    // It counts when the load balancer says so, not before.
    let service = world.client.get(&ECS_SERVICES, &key).await.unwrap().value().unwrap();
    assert_eq!(service["status"]["deployments"][0]["rolloutState"], "IN_PROGRESS");
    let shown =
        |state: &str| json!({"status": {"targets": [{"id": "10.0.0.9", "port": 80, "state": state}]}});
    world.client.merge_patch_status(&ELB_TARGET_GROUPS, &group, shown("healthy")).await.unwrap();
    world.until(&ECS_SERVICES, &key, |s| is_done(s, &deployment(1)["id"])).await;
    // On its way out it is drained first.
    world.client.merge_patch(&ECS_SERVICES, &key, json!({"spec": {"desiredCount": 0}})).await.unwrap();
    world.until(&ELB_TARGET_GROUPS, &group, |g| g["spec"]["targets"] == json!([foreign])).await;
    world.until(&ECS_TASKS, &task, |t| t["status"]["lastStatus"] == "DEACTIVATING").await;
    world.client.merge_patch_status(&ELB_TARGET_GROUPS, &group, shown("draining")).await.unwrap();
    let still = world.client.get(&ECS_TASKS, &task).await.unwrap().value().unwrap();
    assert_eq!(still["status"]["lastStatus"], "DEACTIVATING");
    world
        .client
        .merge_patch_status(&ELB_TARGET_GROUPS, &group, json!({"status": {"targets": []}}))
        .await
        .unwrap();
    world.until(&ECS_TASKS, &task, |t| t["status"]["lastStatus"] == "STOPPED").await;
    world.until(&DISCOVERY_INSTANCES, &listed, Value::is_null).await;
    for words in [
        "registered 1 targets in (target-group arn:",
        "deregistered 1 targets in",
        "has begun draining connections on 1 tasks.",
    ] {
        world.until(&ECS_SERVICES, &key, |s| s["status"]["events"].to_string().contains(words)).await;
    }
}

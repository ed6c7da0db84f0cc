//! Container instances, their attributes, and placement on them.

use super::harness::{Ecs, ecs, is};
use client::ObjectKey;
use k8s_schema::gvr;
use serde_json::{Value, json};

async fn instances(ecs: &Ecs, count: usize) -> Vec<Value> {
    let wanted = |v: &Value| v["containerInstanceArns"].as_array().is_some_and(|a| a.len() == count);
    let arns = ecs.until("ListContainerInstances", json!({}), wanted).await["containerInstanceArns"].clone();
    let ready =
        |v: &Value| v["containerInstances"].as_array().unwrap().iter().all(|i| i["agentConnected"] == true);
    let answer = ecs.until("DescribeContainerInstances", json!({"containerInstances": arns}), ready).await;
    answer["containerInstances"].as_array().unwrap().clone()
}

fn resource(instance: &Value, list: &str, name: &str) -> i64 {
    let all = instance[list].as_array().unwrap();
    all.iter().find(|r| r["name"] == name).unwrap()["integerValue"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_instances_and_tasks_take_from_them() {
    let ecs = ecs().await;
    ecs.node("node-a", 2, 1024).await;
    ecs.definition("job", 300).await;
    let before = instances(&ecs, 1).await.remove(0);
    assert_eq!(
        (resource(&before, "registeredResources", "CPU"), resource(&before, "remainingResources", "MEMORY")),
        (2048, 1024)
    );
    assert!(
        before["attributes"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "ecs.availability-zone", "value": "us-east-1a"}))
    );

    let ran = ecs.ok("RunTask", json!({"taskDefinition": "job", "count": 5, "launchType": "EC2"})).await;
    assert_eq!(ran["tasks"].as_array().unwrap().len(), 3);
    let arn = &before["containerInstanceArn"];
    assert_eq!(ran["failures"], json!([{"arn": arn, "reason": "RESOURCE:MEMORY"}]));
    let task = &ran["tasks"][0];
    assert_eq!((&task["containerInstanceArn"], &task["lastStatus"]), (arn, &json!("PENDING")));
    let after = instances(&ecs, 1).await.remove(0);
    assert_eq!(
        (resource(&after, "remainingResources", "CPU"), resource(&after, "remainingResources", "MEMORY")),
        (1280, 124)
    );
    assert_eq!(after["pendingTasksCount"], 3);
    // Others find the node by the instance's id.
    let id = arn.as_str().unwrap().rsplit('/').next().unwrap();
    let stored =
        ecs.client.get(&gvr::ECS_CONTAINER_INSTANCES, &ObjectKey::new("ecs-default", id)).await.unwrap();
    assert_eq!(stored.value().unwrap()["spec"]["nodeName"], "node-a");

    // A pod of the task replaces the promise; a stopped task gives it back.
    let name = task["taskArn"].as_str().unwrap().rsplit('/').next().unwrap();
    ecs.set_status("default", &task["taskArn"], json!({"lastStatus": "STOPPED"})).await;
    let free = |v: &Value| resource(&v["containerInstances"][0], "remainingResources", "MEMORY") == 424;
    ecs.until("DescribeContainerInstances", json!({"containerInstances": [arn]}), free).await;
    assert_eq!(name.len(), 32);
    assert_eq!(ecs.ok("RunTask", json!({"taskDefinition": "job"})).await["failures"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_placements_do_not_overbook() {
    let ecs = ecs().await;
    ecs.node("node-a", 2, 1000).await;
    ecs.node("node-b", 2, 1000).await;
    ecs.definition("job", 200).await;
    instances(&ecs, 2).await;
    let run = || ecs.ok("RunTask", json!({"taskDefinition": "job", "count": 4}));
    let all = futures_util::future::join_all((0..4).map(|_| run())).await;
    let placed: usize = all.iter().map(|a| a["tasks"].as_array().unwrap().len()).sum();
    assert_eq!(placed, 10);
    for instance in instances(&ecs, 2).await {
        assert_eq!(resource(&instance, "remainingResources", "MEMORY"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_and_constraints_choose() {
    let ecs = ecs().await;
    for name in ["node-a", "node-b"] {
        ecs.node(name, 4, 4096).await;
    }
    ecs.definition("job", 64).await;
    let all = instances(&ecs, 2).await;
    let target = &all[1]["containerInstanceArn"];
    let put = json!({"attributes": [{"name": "stack", "value": "prod", "targetId": target}]});
    let answer = ecs.ok("PutAttributes", put).await;
    assert_eq!(answer["attributes"][0]["targetType"], "container-instance");
    let asked = json!({"targetType": "container-instance", "attributeName": "stack"});
    let listed = ecs.ok("ListAttributes", asked.clone()).await;
    assert_eq!(
        listed["attributes"],
        json!([{"name": "stack", "value": "prod", "targetId": target, "targetType": "container-instance"}])
    );
    let selected = ecs.ok("ListContainerInstances", json!({"filter": "attribute:stack == prod"})).await;
    assert_eq!(selected["containerInstanceArns"], json!([target]));

    let constraint = json!([{"type": "memberOf", "expression": "attribute:stack == prod"}]);
    let run = json!({"taskDefinition": "job", "count": 3, "placementConstraints": constraint});
    let ran = ecs.ok("RunTask", run).await;
    assert!(ran["tasks"].as_array().unwrap().iter().all(|t| t["containerInstanceArn"] == *target));
    let distinct = json!({"taskDefinition": "job", "count": 3, "group": "g",
        "placementConstraints": [{"type": "distinctInstance"}]});
    let ran = ecs.ok("RunTask", distinct).await;
    assert_eq!((ran["tasks"].as_array().unwrap().len(), ran["failures"].as_array().unwrap().len()), (2, 2));

    ecs.ok("DeleteAttributes", json!({"attributes": [{"name": "stack", "targetId": target}]})).await;
    assert_eq!(ecs.ok("ListAttributes", asked).await["attributes"], json!([]));
    let unknown = json!({"attributes": [{"name": "a", "targetId": "0".repeat(32)}]});
    assert_eq!(ecs.refused("PutAttributes", unknown).await.0, "TargetNotFoundException");
    let filter = ecs.refused("ListContainerInstances", json!({"filter": "colour == red"})).await;
    assert_eq!(filter, is("InvalidParameterException", "Invalid filter: unknown subject 'colour'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_and_deregistered_instances_get_nothing() {
    let ecs = ecs().await;
    for name in ["node-a", "node-b"] {
        ecs.node(name, 4, 4096).await;
    }
    ecs.definition("job", 64).await;
    let all = instances(&ecs, 2).await;
    let (first, second) = (&all[0]["containerInstanceArn"], &all[1]["containerInstanceArn"]);
    let drain = json!({"containerInstances": [first], "status": "DRAINING"});
    let drained = ecs.ok("UpdateContainerInstancesState", drain).await;
    assert_eq!(drained["containerInstances"][0]["status"], "DRAINING");
    let ran = ecs.ok("RunTask", json!({"taskDefinition": "job", "count": 2})).await;
    assert!(ran["tasks"].as_array().unwrap().iter().all(|t| t["containerInstanceArn"] == *second));
    assert_eq!(
        ecs.refused("DeregisterContainerInstance", json!({"containerInstance": second})).await.0,
        "InvalidParameterException"
    );
    let gone =
        ecs.ok("DeregisterContainerInstance", json!({"containerInstance": second, "force": true})).await;
    assert_eq!(gone["containerInstance"]["status"], "INACTIVE");
    instances(&ecs, 1).await;
    let none = is("InvalidParameterException", "No Container Instances were found in your cluster.");
    assert_eq!(ecs.refused("RunTask", json!({"taskDefinition": "job"})).await, none);
    // By name even there where placement would not go.
    let started = ecs
        .ok("StartTask", json!({"taskDefinition": "job", "containerInstances": [first, "0".repeat(32)]}))
        .await;
    let reasons: Vec<_> =
        started["failures"].as_array().unwrap().iter().map(|f| f["reason"].clone()).collect();
    assert_eq!(json!(reasons), json!(["MISSING", "INACTIVE"]));
    ecs.ok("UpdateContainerInstancesState", json!({"containerInstances": [first], "status": "ACTIVE"})).await;
    let started = ecs.ok("StartTask", json!({"taskDefinition": "job", "containerInstances": [first]})).await;
    assert_eq!(started["tasks"][0]["containerInstanceArn"], *first);
    // The other cluster still has both.
    ecs.ok("CreateCluster", json!({"clusterName": "c"})).await;
    let listed = ecs.ok("ListContainerInstances", json!({"cluster": "c"})).await;
    assert_eq!(listed["containerInstanceArns"].as_array().unwrap().len(), 2);
}

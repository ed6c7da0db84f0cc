//! Clusters and capacity providers.

use super::harness::{ARN, ecs, is};
use client::ObjectKey;
use k8s_schema::gvr;
use serde_json::json;
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_lives_and_is_remembered() {
    let ecs = ecs().await;
    let tags = json!([{"key": "team", "value": "a"}]);
    let made = ecs.ok("CreateCluster", json!({"clusterName": "prod", "tags": tags})).await["cluster"].clone();
    assert_eq!(made["clusterArn"], format!("{ARN}:cluster/prod"));
    assert_eq!((&made["status"], &made["tags"]), (&json!("ACTIVE"), &tags));
    assert_eq!(made["settings"], json!([{"name": "containerInsights", "value": "disabled"}]));
    // The object is where kubectl looks for it.
    let stored = ecs.client.get(&gvr::ECS_CLUSTERS, &ObjectKey::new("ecs-prod", "prod")).await.unwrap();
    assert_eq!(stored.value().unwrap()["spec"]["clusterName"], "prod");
    // Again is the same; with other arguments it is refused.
    ecs.ok("CreateCluster", json!({"clusterName": "prod"})).await;
    let other = json!({"clusterName": "prod", "tags": [{"key": "team", "value": "b"}]});
    assert_eq!(ecs.refused("CreateCluster", other).await.0, "InvalidParameterException");

    let asked = json!({"clusters": ["prod", format!("{ARN}:cluster/none")], "include": ["STATISTICS"]});
    let seen = ecs.ok("DescribeClusters", asked).await;
    assert_eq!(seen["failures"], json!([{"arn": format!("{ARN}:cluster/none"), "reason": "MISSING"}]));
    let prod = &seen["clusters"][0];
    assert_eq!(
        (&prod["tags"], &prod["settings"], &prod["runningTasksCount"]),
        (&json!([]), &json!([]), &json!(0))
    );
    assert!(
        prod["statistics"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "runningFargateTasksCount", "value": "0"}))
    );

    let settings = json!([{"name": "containerInsights", "value": "enabled"}]);
    let changed = ecs.ok("UpdateClusterSettings", json!({"cluster": "prod", "settings": settings})).await;
    assert_eq!(changed["cluster"]["settings"], settings);
    let logging = json!({"executeCommandConfiguration": {"logging": "NONE"}});
    let changed = ecs.ok("UpdateCluster", json!({"cluster": "prod", "configuration": logging})).await;
    assert_eq!(changed["cluster"]["configuration"], logging);

    assert_eq!(ecs.ok("DeleteCluster", json!({"cluster": "prod"})).await["cluster"]["status"], "INACTIVE");
    let inactive = is("ClusterNotFoundException", "The referenced cluster was inactive.");
    assert_eq!(ecs.refused("ListTasks", json!({"cluster": "prod"})).await, inactive);
    assert_eq!(ecs.ok("ListClusters", json!({})).await["clusterArns"], json!([]));
    let seen = ecs.ok("DescribeClusters", json!({"clusters": ["prod"]})).await;
    assert_eq!(seen["clusters"][0]["status"], "INACTIVE");
    let again = ecs.ok("CreateCluster", json!({"clusterName": "prod"})).await;
    assert_eq!((&again["cluster"]["status"], &again["cluster"]["tags"]), (&json!("ACTIVE"), &json!([])));
    assert!(again["cluster"].get("configuration").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_cluster_is_there_and_others_are_not() {
    let ecs = ecs().await;
    assert_eq!(ecs.ok("ListTasks", json!({})).await["taskArns"], json!([]));
    assert_eq!(ecs.ok("DescribeClusters", json!({})).await["clusters"][0]["clusterName"], "default");
    let missing = is("ClusterNotFoundException", "Cluster not found.");
    for operation in ["ListTasks", "DeleteCluster", "UpdateCluster", "ListContainerInstances"] {
        assert_eq!(ecs.refused(operation, json!({"cluster": "none"})).await, missing, "{operation}");
    }
    let foreign = json!({"clusters": ["arn:aws:ecs:us-east-1:210987654321:cluster/default"]});
    assert_eq!(ecs.refused("DescribeClusters", foreign).await.0, "AccessDeniedException");
    let elsewhere = json!({"cluster": "arn:aws:ecs:eu-west-1:123456789012:cluster/default"});
    assert_eq!(ecs.refused("ListTasks", elsewhere).await.0, "InvalidParameterException");
    for name in ["a b", "ä", &"x".repeat(256)] {
        assert_eq!(
            ecs.refused("CreateCluster", json!({"clusterName": name})).await.0,
            "InvalidParameterException"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_alike_and_other_accounts_are_apart() {
    let ecs = ecs().await;
    for name in ["Web", "web", "w_b"] {
        ecs.ok("CreateCluster", json!({"clusterName": name})).await;
    }
    let other = ecs
        .call_in("210987654321", "us-east-1", "CreateCluster", json!({"clusterName": "web"}))
        .await
        .unwrap();
    assert_eq!(other["cluster"]["clusterArn"], "arn:aws:ecs:us-east-1:210987654321:cluster/web");
    let names = ["Web", "w_b", "web"].map(|n| format!("{ARN}:cluster/{n}"));
    assert_eq!(ecs.ok("ListClusters", json!({})).await["clusterArns"], json!(names));
    let first = ecs.ok("ListClusters", json!({"maxResults": 2})).await;
    let rest = ecs.ok("ListClusters", json!({"maxResults": 2, "nextToken": first["nextToken"]})).await;
    assert_eq!(rest, json!({"clusterArns": [names[2]]}));
    let foreign =
        ecs.call_in("210987654321", "us-east-1", "ListClusters", json!({"nextToken": first["nextToken"]}));
    assert_eq!(foreign.await.unwrap_err().message, "Invalid token.");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_inactive_clusters_go_with_their_namespace() {
    let ecs = ecs().await;
    ecs.ok("CreateCluster", json!({"clusterName": "old"})).await;
    ecs.ok("DeleteCluster", json!({"cluster": "old"})).await;
    let namespace = ObjectKey::cluster("ecs-old");
    ecs.ok("CreateCluster", json!({"clusterName": "next"})).await;
    let there = ecs.client.get(&gvr::NAMESPACES, &namespace).await.unwrap();
    assert_eq!(there.meta().deletion_timestamp, None);
    ecs.now_ms.fetch_add(3_700_000, Ordering::Relaxed);
    ecs.ok("CreateCluster", json!({"clusterName": "third"})).await;
    // The namespace controller, which is not here, would empty and remove it.
    let leaving = ecs.client.get(&gvr::NAMESPACES, &namespace).await.unwrap();
    assert!(leaving.meta().deletion_timestamp.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_providers() {
    let ecs = ecs().await;
    let asg = json!({"autoScalingGroupArn": "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/g"});
    let made =
        ecs.ok("CreateCapacityProvider", json!({"name": "own", "autoScalingGroupProvider": asg})).await;
    assert_eq!(made["capacityProvider"]["autoScalingGroupProvider"]["managedScaling"]["targetCapacity"], 100);
    let bad = json!({"name": "FARGATE_X", "autoScalingGroupProvider": asg});
    assert_eq!(ecs.refused("CreateCapacityProvider", bad).await.0, "InvalidParameterException");
    let change =
        json!({"name": "own", "autoScalingGroupProvider": {"managedScaling": {"targetCapacity": 101}}});
    assert!(ecs.refused("UpdateCapacityProvider", change).await.1.contains("between 1 and 100"));

    let all = ecs.ok("DescribeCapacityProviders", json!({})).await;
    let names: Vec<_> =
        all["capacityProviders"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(json!(names), json!(["FARGATE", "FARGATE_SPOT", "own"]));
    let some = ecs.ok("DescribeCapacityProviders", json!({"capacityProviders": ["own", "none"]})).await;
    assert_eq!(some["failures"][0]["reason"], "MISSING");

    ecs.ok("CreateCluster", json!({"clusterName": "c"})).await;
    let strategy = json!([{"capacityProvider": "FARGATE_SPOT", "weight": 1}]);
    let put =
        json!({"cluster": "c", "capacityProviders": ["own"], "defaultCapacityProviderStrategy": strategy});
    assert!(
        ecs.refused("PutClusterCapacityProviders", put)
            .await
            .1
            .contains("is not associated with the cluster")
    );
    let put = json!({"cluster": "c", "capacityProviders": ["none"], "defaultCapacityProviderStrategy": []});
    assert!(ecs.refused("PutClusterCapacityProviders", put).await.1.contains("was not found"));
    let put = json!({"cluster": "c", "capacityProviders": ["own", "FARGATE", "FARGATE_SPOT"],
        "defaultCapacityProviderStrategy": strategy});
    let set = ecs.ok("PutClusterCapacityProviders", put).await;
    assert_eq!(set["cluster"]["defaultCapacityProviderStrategy"][0]["base"], 0);
    let used =
        is("InvalidParameterException", "The specified capacity provider is in use and cannot be removed.");
    assert_eq!(ecs.refused("DeleteCapacityProvider", json!({"capacityProvider": "own"})).await, used);

    // A task by the default strategy is on FARGATE_SPOT, and holds it.
    ecs.fargate_definition("job").await;
    let mut run = super::harness::on_fargate("job");
    run["cluster"] = json!("c");
    run.as_object_mut().unwrap().remove("launchType");
    let task = ecs.ok("RunTask", run).await["tasks"][0].clone();
    assert_eq!(
        (&task["launchType"], &task["capacityProviderName"]),
        (&json!("FARGATE"), &json!("FARGATE_SPOT"))
    );
    let put = json!({"cluster": "c", "capacityProviders": [], "defaultCapacityProviderStrategy": []});
    assert_eq!(ecs.refused("PutClusterCapacityProviders", put.clone()).await.0, "ResourceInUseException");
    ecs.set_status("c", &task["taskArn"], json!({"lastStatus": "STOPPED"})).await;
    let listed = |v: &serde_json::Value| v["taskArns"] == json!([]);
    ecs.until("ListTasks", json!({"cluster": "c"}), listed).await;
    ecs.ok("PutClusterCapacityProviders", put).await;
    let gone = ecs
        .ok("DeleteCapacityProvider", json!({"capacityProvider": format!("{ARN}:capacity-provider/own")}))
        .await;
    assert_eq!(gone["capacityProvider"]["status"], "INACTIVE");
}

//! Tags, account settings, protection.

use super::harness::{ACCOUNT, ARN, ecs, is, on_fargate};
use client::ObjectKey;
use k8s_schema::gvr;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_has_tags() {
    let ecs = ecs().await;
    ecs.node("node-a", 2, 1024).await;
    ecs.fargate_definition("web").await;
    let task = ecs.ok("RunTask", on_fargate("web")).await["tasks"][0]["taskArn"].clone();
    let wanted = |v: &serde_json::Value| v["containerInstanceArns"].as_array().is_some_and(|a| a.len() == 1);
    let instance =
        ecs.until("ListContainerInstances", json!({}), wanted).await["containerInstanceArns"][0].clone();
    let tags = json!([{"key": "a", "value": "1"}, {"key": "b", "value": ""}]);
    for arn in [
        task,
        instance,
        json!(format!("{ARN}:cluster/default")),
        json!(format!("{ARN}:task-definition/web:1")),
    ] {
        ecs.ok("TagResource", json!({"resourceArn": arn, "tags": tags})).await;
        ecs.ok("UntagResource", json!({"resourceArn": arn, "tagKeys": ["b", "c"]})).await;
        let kept = ecs.ok("ListTagsForResource", json!({"resourceArn": arn})).await;
        assert_eq!(kept, json!({"tags": [{"key": "a", "value": "1"}]}), "{arn}");
    }
    let with = ecs.ok("DescribeTaskDefinition", json!({"taskDefinition": "web", "include": ["TAGS"]})).await;
    assert_eq!(with["tags"], json!([{"key": "a", "value": "1"}]));
    for (arn, code, words) in [
        (
            format!("{ARN}:task/0123"),
            "InvalidParameterException",
            "Long arn format must be used for tagging operations",
        ),
        (format!("{ARN}:cluster/none"), "InvalidParameterException", "The specified resource was not found."),
    ] {
        assert_eq!(
            ecs.refused("TagResource", json!({"resourceArn": arn, "tags": tags})).await,
            is(code, words)
        );
    }
    let many: Vec<_> = (0..51).map(|i| json!({"key": format!("k{i}"), "value": ""})).collect();
    let cluster = format!("{ARN}:cluster/default");
    for tags in [json!(many), json!([{"key": "aws:x", "value": ""}]), json!([{"key": "a"}, {"key": "a"}])] {
        let refused = ecs.refused("TagResource", json!({"resourceArn": cluster, "tags": tags})).await;
        assert_eq!(refused.0, "InvalidParameterException");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_account_and_principal() {
    let ecs = ecs().await;
    let user = format!("arn:aws:iam::{ACCOUNT}:user/ann");
    let root = format!("arn:aws:iam::{ACCOUNT}:root");
    ecs.ok("PutAccountSettingDefault", json!({"name": "containerInsights", "value": "enabled"})).await;
    let set = json!({"name": "awsvpcTrunking", "value": "enabled", "principalArn": user});
    assert_eq!(ecs.ok("PutAccountSetting", set).await["setting"]["principalArn"], user);
    let own = ecs.ok("ListAccountSettings", json!({"principalArn": user})).await;
    assert_eq!(own["settings"].as_array().unwrap().len(), 1);
    let all = ecs.ok("ListAccountSettings", json!({"principalArn": user, "effectiveSettings": true})).await;
    let value = |name: &str| {
        let all = all["settings"].as_array().unwrap();
        let found = all.iter().find(|s| s["name"] == name).unwrap();
        (found["value"].clone(), found["principalArn"].clone())
    };
    assert_eq!(all["settings"].as_array().unwrap().len(), 11);
    assert_eq!(value("containerInsights"), (json!("enabled"), json!(root)));
    assert_eq!(value("awsvpcTrunking"), (json!("enabled"), json!(user)));
    assert_eq!(value("taskLongArnFormat"), (json!("enabled"), json!(user)));
    let made = ecs.ok("CreateCluster", json!({"clusterName": "c"})).await;
    assert_eq!(made["cluster"]["settings"][0]["value"], "enabled");
    ecs.ok("DeleteAccountSetting", json!({"name": "awsvpcTrunking", "principalArn": user})).await;
    assert_eq!(ecs.ok("ListAccountSettings", json!({"principalArn": user})).await["settings"], json!([]));
    for set in
        [json!({"name": "colour", "value": "red"}), json!({"name": "awsvpcTrunking", "value": "maybe"})]
    {
        assert_eq!(ecs.refused("PutAccountSetting", set).await.0, "InvalidParameterException");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_tasks_of_services_are_protected() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let mut run = on_fargate("web");
    run["count"] = json!(2);
    let ran = ecs.ok("RunTask", run).await;
    let arns = [ran["tasks"][0]["taskArn"].clone(), ran["tasks"][1]["taskArn"].clone()];
    let id = arns[0].as_str().unwrap().rsplit('/').next().unwrap();
    let of_service = json!({"spec": {"group": "service:web"}});
    ecs.client.merge_patch(&gvr::ECS_TASKS, &ObjectKey::new("ecs-default", id), of_service).await.unwrap();
    let shown = |v: &serde_json::Value| v["tasks"][0]["group"] == "service:web";
    ecs.until("DescribeTasks", json!({"tasks": [id]}), shown).await;
    let protect =
        json!({"cluster": "default", "tasks": arns, "protectionEnabled": true, "expiresInMinutes": 60});
    let answer = ecs.ok("UpdateTaskProtection", protect).await;
    let until = 1_700_000_000.0 + 3600.0;
    let expected = json!([{"taskArn": arns[0], "protectionEnabled": true, "expirationDate": until}]);
    assert_eq!(answer["protectedTasks"], expected);
    assert_eq!(answer["failures"], json!([{"arn": arns[1], "reason": "TASK_NOT_VALID"}]));
    assert_eq!(ecs.ok("GetTaskProtection", json!({"cluster": "default"})).await["protectedTasks"], expected);
    ecs.now_ms.fetch_add(3_600_001, std::sync::atomic::Ordering::Relaxed);
    let over = ecs.ok("GetTaskProtection", json!({"cluster": "default"})).await;
    assert_eq!(over["protectedTasks"], json!([{"taskArn": arns[0], "protectionEnabled": false}]));
    let long =
        json!({"cluster": "default", "tasks": arns, "protectionEnabled": true, "expiresInMinutes": 2881});
    assert_eq!(ecs.refused("UpdateTaskProtection", long).await.0, "InvalidParameterException");
    let described = ecs.ok("DescribeTasks", json!({"tasks": [id]})).await;
    assert!(described["tasks"][0].get("protection").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_thing_at_the_same_time_is_made_once() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let clusters = (0..8).map(|_| ecs.ok("CreateCluster", json!({"clusterName": "c"})));
    let made = futures_util::future::join_all(clusters).await;
    assert!(made.iter().all(|m| m["cluster"]["status"] == "ACTIVE"));
    let set = json!({"name": "containerInsights", "value": "enabled"});
    let settings = (0..8).map(|_| ecs.ok("PutAccountSettingDefault", set.clone()));
    futures_util::future::join_all(settings).await;
    let mut input = on_fargate("web");
    input["serviceName"] = json!("s");
    input["desiredCount"] = json!(0);
    let create = || ecs.call_in(ACCOUNT, "us-east-1", "CreateService", input.clone());
    let services = futures_util::future::join_all((0..8).map(|_| create())).await;
    let refused: Vec<_> = services.into_iter().filter_map(Result::err).map(|e| e.message).collect();
    assert_eq!(refused, vec!["Creation of service was not idempotent."; 7]);
}

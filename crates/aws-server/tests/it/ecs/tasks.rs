//! Tasks: running, describing, listing, stopping.

use super::harness::{ARN, Ecs, ecs, is, on_fargate};
use client::ObjectKey;
use k8s_schema::gvr;
use serde_json::{Value, json};

async fn arns(ecs: &Ecs, input: Value) -> usize {
    ecs.ok("ListTasks", input).await["taskArns"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fargate_task_from_run_to_stop() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let mut run = on_fargate("web");
    run["count"] = json!(2);
    run["startedBy"] = json!("me");
    run["tags"] = json!([{"key": "a", "value": "1"}]);
    run["enableECSManagedTags"] = json!(true);
    run["overrides"] =
        json!({"containerOverrides": [{"name": "web", "environment": [{"name": "A", "value": "1"}]}]});
    let answer = ecs.ok("RunTask", run).await;
    assert_eq!((answer["tasks"].as_array().unwrap().len(), &answer["failures"]), (2, &json!([])));
    let task = &answer["tasks"][0];
    for (member, value) in [
        ("clusterArn", json!(format!("{ARN}:cluster/default"))),
        ("taskDefinitionArn", json!(format!("{ARN}:task-definition/web:1"))),
        ("launchType", json!("FARGATE")),
        ("platformVersion", json!("1.4.0")),
        ("platformFamily", json!("Linux")),
        ("cpu", json!("256")),
        ("memory", json!("512")),
        ("group", json!("family:web")),
        ("startedBy", json!("me")),
        ("lastStatus", json!("PROVISIONING")),
        ("desiredStatus", json!("RUNNING")),
        ("createdAt", json!(1_700_000_000.0)),
        ("availabilityZone", json!("us-east-1a")),
        ("ephemeralStorage", json!({"sizeInGiB": 20})),
        ("version", json!(1)),
    ] {
        assert_eq!(task[member], value, "{member}");
    }
    assert!(task.get("networkConfiguration").is_none() && task.get("containerInstanceArn").is_none());
    assert_eq!(
        task["attachments"][0]["details"][0],
        json!({"name": "subnetId", "value": "subnet-default-a"})
    );
    assert_eq!(task["containers"][0]["lastStatus"], "PENDING");

    let arn = &task["taskArn"];
    let id = arn.as_str().unwrap().rsplit('/').next().unwrap();
    let shown =
        ecs.ok("DescribeTasks", json!({"tasks": [id], "include": ["TAGS"]})).await["tasks"][0].clone();
    let tags = json!([{"key": "a", "value": "1"}, {"key": "aws:ecs:clusterName", "value": "default"}]);
    assert_eq!(shown["tags"], tags);
    let shown = ecs.ok("DescribeTasks", json!({"tasks": [arn, arn]})).await;
    assert_eq!((shown["tasks"].as_array().unwrap().len(), &shown["tasks"][0]["tags"]), (1, &json!([])));

    ecs.set_status("default", arn, json!({"lastStatus": "RUNNING"})).await;
    ecs.until("DescribeTasks", json!({"tasks": [arn]}), |v| v["tasks"][0]["lastStatus"] == "RUNNING").await;
    let seen = ecs.ok("DescribeClusters", json!({})).await;
    let counts = (&seen["clusters"][0]["runningTasksCount"], &seen["clusters"][0]["pendingTasksCount"]);
    assert_eq!(counts, (&json!(1), &json!(1)));

    let stopped = ecs.ok("StopTask", json!({"task": id, "reason": "enough"})).await["task"].clone();
    assert_eq!((&stopped["desiredStatus"], &stopped["lastStatus"]), (&json!("STOPPED"), &json!("RUNNING")));
    assert_eq!(
        (&stopped["stopCode"], &stopped["stoppedReason"]),
        (&json!("UserInitiated"), &json!("enough"))
    );
    // A second one changes nothing.
    let again = ecs.ok("StopTask", json!({"task": arn, "reason": "other"})).await;
    assert_eq!(again["task"]["stoppedReason"], "enough");
    assert_eq!(arns(&ecs, json!({})).await, 1);
    assert_eq!(arns(&ecs, json!({"desiredStatus": "STOPPED"})).await, 1);
    let refused = ecs.refused("DeleteCluster", json!({"cluster": "default"})).await;
    assert_eq!(
        refused,
        is("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged() {
    let ecs = ecs().await;
    ecs.node("node-a", 4, 4096).await;
    ecs.fargate_definition("web").await;
    ecs.definition("job", 64).await;
    let mut run = on_fargate("web");
    run["count"] = json!(10);
    ecs.ok("RunTask", run).await;
    let job = json!({"taskDefinition": "job", "startedBy": "cron", "group": "nightly"});
    let ran = ecs.until("RunTask", job, |v| v["tasks"].as_array().is_some_and(|t| !t.is_empty())).await;
    for (filter, count) in [
        (json!({}), 11),
        (json!({"family": "web"}), 10),
        (json!({"launchType": "EC2"}), 1),
        (json!({"startedBy": "cron"}), 1),
        (json!({"containerInstance": ran["tasks"][0]["containerInstanceArn"]}), 1),
        (json!({"containerInstance": "0123"}), 0),
        (json!({"serviceName": "x"}), 0),
        (json!({"desiredStatus": "STOPPED"}), 0),
        (json!({"desiredStatus": "PENDING"}), 0),
    ] {
        assert_eq!(arns(&ecs, filter.clone()).await, count, "{filter}");
    }
    let mut seen = 0;
    let mut input = json!({"maxResults": 4, "family": "web"});
    loop {
        let page = ecs.ok("ListTasks", input.clone()).await;
        seen += page["taskArns"].as_array().unwrap().len();
        if page.get("nextToken").is_none() {
            break;
        }
        input["nextToken"] = page["nextToken"].clone();
    }
    assert_eq!(seen, 10);
    input["family"] = json!("job");
    assert_eq!(ecs.refused("ListTasks", input).await, is("InvalidParameterException", "Invalid token."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_token_runs_its_tasks_once() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let mut run = on_fargate("web");
    run["clientToken"] = json!("once");
    run["count"] = json!(2);
    let first = ecs.ok("RunTask", run.clone()).await;
    assert_eq!(ecs.ok("RunTask", run.clone()).await, first);
    let both =
        futures_util::future::join(ecs.ok("RunTask", run.clone()), ecs.ok("RunTask", run.clone())).await;
    assert_eq!(both.0, both.1);
    assert_eq!(arns(&ecs, json!({})).await, 2);
    run["startedBy"] = json!("other");
    let error = ecs.call_in(super::harness::ACCOUNT, "us-east-1", "RunTask", run).await.unwrap_err();
    assert_eq!(error.code, "ConflictException");
    assert_eq!(error.more["resourceIds"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_run_task_refuses() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    ecs.definition("job", 64).await;
    let fargate = |change: Value| {
        let mut run = on_fargate("web");
        machinery::patch::merge(&mut run, &change);
        run
    };
    for (input, code, words) in [
        (json!({"taskDefinition": "none"}), "ClientException", "TaskDefinition not found."),
        (
            json!({"taskDefinition": "job"}),
            "InvalidParameterException",
            "No Container Instances were found in your cluster.",
        ),
        (
            fargate(json!({"taskDefinition": "job", "networkConfiguration": null})),
            "InvalidParameterException",
            "Task definition does not support launch_type FARGATE.",
        ),
        (
            fargate(json!({"networkConfiguration": null})),
            "InvalidParameterException",
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
        ),
        (
            json!({"taskDefinition": "job", "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["s"]}}}),
            "InvalidParameterException",
            "Network Configuration is not valid for the given networkMode of this task definition.",
        ),
        (
            fargate(json!({"capacityProviderStrategy": [{"capacityProvider": "FARGATE"}]})),
            "InvalidParameterException",
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        ),
        (
            json!({"taskDefinition": "job", "platformVersion": "LATEST"}),
            "InvalidParameterException",
            "The platform version must be null when specifying an EC2 launch type.",
        ),
        (fargate(json!({"group": "service:x"})), "InvalidParameterException", "Invalid namespace for group"),
        (
            fargate(json!({"overrides": {"containerOverrides": [{"name": "db"}]}})),
            "InvalidParameterException",
            "Override for container named db is not a container in the TaskDefinition.",
        ),
        (fargate(json!({"count": 11})), "InvalidParameterException", "count must be between 1 and 10."),
    ] {
        assert_eq!(ecs.refused("RunTask", input.clone()).await, is(code, words), "{input}");
    }
    let sizes = fargate(json!({"overrides": {"memory": "9000"}}));
    assert!(ecs.refused("RunTask", sizes).await.1.starts_with("No Fargate configuration exists"));
    assert_eq!(
        ecs.refused("RunTask", fargate(json!({"platformVersion": "9.9"}))).await.0,
        "PlatformUnknownException"
    );
    ecs.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:1"})).await;
    let inactive = is("ClientException", "TaskDefinition is inactive");
    assert_eq!(ecs.refused("RunTask", fargate(json!({"taskDefinition": "web:1"}))).await, inactive);
    assert_eq!(arns(&ecs, json!({})).await, 0);
    for (operation, input, words) in [
        ("DescribeTasks", json!({"tasks": ["abc"]}), "taskId length should be one of [32,36]"),
        ("DescribeTasks", json!({"tasks": []}), "Tasks cannot be empty."),
        ("StopTask", json!({"task": "0".repeat(32)}), "The referenced task was not found."),
        (
            "DescribeTasks",
            json!({"tasks": [format!("{ARN}:task/other/{}", "0".repeat(32))]}),
            "Invalid identifier: Identifier is for other. Your cluster is default",
        ),
    ] {
        assert_eq!(ecs.refused(operation, input).await, is("InvalidParameterException", words));
    }
    let missing = ecs.ok("DescribeTasks", json!({"tasks": ["0".repeat(32)]})).await;
    assert_eq!(
        missing["failures"],
        json!([{"arn": format!("{ARN}:task/default/{}", "0".repeat(32)), "reason": "MISSING"}])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_may_label_tasks_and_nothing_more() {
    let ecs = ecs().await;
    ecs.fargate_definition("web").await;
    let task = ecs.ok("RunTask", on_fargate("web")).await["tasks"][0].clone();
    let id = task["taskArn"].as_str().unwrap().rsplit('/').next().unwrap().to_string();
    let key = ObjectKey::new("ecs-default", &*id);
    let admin = ecs.as_user(auth::Identity::new("admin", ["system:masters", "system:authenticated"]));
    let labels = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}});
    let labelled = admin.merge_patch(&gvr::ECS_TASKS, &key, labels).await.unwrap();
    assert_eq!(labelled.meta().labels["a"], "b");
    let change = json!({"spec": {"desiredStatus": "STOPPED"}});
    let refused = admin.merge_patch(&gvr::ECS_TASKS, &key, change).await.unwrap_err();
    assert!(refused.code == 403 && refused.message.contains("through the AWS API"), "{refused}");
    let status = json!({"status": {"lastStatus": "STOPPED"}});
    assert_eq!(admin.merge_patch_status(&gvr::ECS_TASKS, &key, status).await.unwrap_err().code, 403);
    assert_eq!(
        admin.delete(&gvr::ECS_TASKS, &key, client::DeleteOptions::default()).await.unwrap_err().code,
        403
    );
    let own = ecs_model::doc::object("Task", "ecs-default", "x", json!({}));
    assert_eq!(admin.create(&gvr::ECS_TASKS, own).await.unwrap_err().code, 403);
}

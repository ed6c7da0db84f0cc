//! Task definitions: revisions, statuses, lists.

use super::harness::{ARN, ecs, is};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_counted_and_never_used_again() {
    let ecs = ecs().await;
    for revision in 1..=3 {
        assert_eq!(ecs.definition("web", 128).await, format!("{ARN}:task-definition/web:{revision}"));
    }
    // "web" and "web-1" do not meet.
    assert_eq!(ecs.definition("web-1", 128).await, format!("{ARN}:task-definition/web-1:1"));
    let latest = ecs.ok("DescribeTaskDefinition", json!({"taskDefinition": "web"})).await;
    assert_eq!(latest["taskDefinition"]["revision"], 3);
    assert!(latest.get("tags").is_none() && latest["taskDefinition"].get("tags").is_none());

    let gone = ecs.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:3"})).await;
    assert_eq!(gone["taskDefinition"]["status"], "INACTIVE");
    assert_eq!(gone["taskDefinition"]["deregisteredAt"], 1_700_000_000.0);
    let latest = ecs.ok("DescribeTaskDefinition", json!({"taskDefinition": "web"})).await;
    assert_eq!(latest["taskDefinition"]["revision"], 2);

    let both = json!({"taskDefinitions": ["web:3", "web:2", "none:1"]});
    let deleted = ecs.ok("DeleteTaskDefinitions", both).await;
    assert_eq!(deleted["taskDefinitions"][0]["status"], "DELETE_IN_PROGRESS");
    assert_eq!(deleted["failures"].as_array().unwrap().len(), 2);
    // The number stays taken.
    assert_eq!(ecs.definition("web", 128).await, format!("{ARN}:task-definition/web:4"));
    let unknown = is("ClientException", "Unable to describe task definition.");
    let swept = json!({"taskDefinition": "web:3"});
    ecs.until("ListTaskDefinitions", json!({"status": "DELETE_IN_PROGRESS"}), |v| {
        v["taskDefinitionArns"] == json!([])
    })
    .await;
    assert_eq!(ecs.refused("DescribeTaskDefinition", swept).await, unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time_everybody_gets_another_revision() {
    let ecs = ecs().await;
    let all = futures_util::future::join_all((0..5).map(|_| ecs.definition("job", 6))).await;
    let mut revisions: Vec<String> = all.iter().map(|a| a.rsplit(':').next().unwrap().to_string()).collect();
    revisions.sort();
    assert_eq!(revisions, ["1", "2", "3", "4", "5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists() {
    let ecs = ecs().await;
    for family in ["b", "a", "ab"] {
        ecs.definition(family, 6).await;
        ecs.definition(family, 6).await;
    }
    ecs.ok("DeregisterTaskDefinition", json!({"taskDefinition": "b:1"})).await;
    ecs.ok("DeregisterTaskDefinition", json!({"taskDefinition": "b:2"})).await;
    let names = |answer: Value| -> Vec<String> {
        let arns = answer["taskDefinitionArns"].as_array().unwrap().clone();
        arns.iter().map(|a| a.as_str().unwrap().rsplit('/').next().unwrap().to_string()).collect()
    };
    assert_eq!(names(ecs.ok("ListTaskDefinitions", json!({})).await), ["a:1", "a:2", "ab:1", "ab:2"]);
    let descending = json!({"sort": "DESC", "familyPrefix": "ab"});
    assert_eq!(names(ecs.ok("ListTaskDefinitions", descending).await), ["ab:2", "ab:1"]);
    assert_eq!(names(ecs.ok("ListTaskDefinitions", json!({"status": "INACTIVE"})).await), ["b:1", "b:2"]);
    let first = ecs.ok("ListTaskDefinitions", json!({"maxResults": 3})).await;
    let rest = ecs.ok("ListTaskDefinitions", json!({"nextToken": first["nextToken"]})).await;
    assert_eq!(names(rest), ["ab:2"]);
    for (status, families) in
        [("ACTIVE", json!(["a", "ab"])), ("INACTIVE", json!(["b"])), ("ALL", json!(["a", "ab", "b"]))]
    {
        let answer = ecs.ok("ListTaskDefinitionFamilies", json!({"status": status})).await;
        assert_eq!(answer["families"], families, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_leave_nothing() {
    let ecs = ecs().await;
    let bad = json!({"family": "x", "containerDefinitions": [{"name": "a", "image": "i"}]});
    assert_eq!(ecs.refused("RegisterTaskDefinition", bad).await.0, "ClientException");
    let unknown = is("ClientException", "Unable to describe task definition.");
    for name in ["x", "x:1", &format!("{ARN}:task-definition/x:1")] {
        assert_eq!(
            ecs.refused("DescribeTaskDefinition", json!({"taskDefinition": name})).await,
            unknown,
            "{name}"
        );
    }
    assert_eq!(ecs.ok("ListTaskDefinitionFamilies", json!({})).await["families"], json!([]));
    for name in ["x:y", "x:0"] {
        assert_eq!(
            ecs.refused("DescribeTaskDefinition", json!({"taskDefinition": name})).await.0,
            "ClientException"
        );
    }
    let foreign = json!({"taskDefinition": "arn:aws:ecs:us-east-1:210987654321:task-definition/x:1"});
    assert_eq!(ecs.refused("DescribeTaskDefinition", foreign).await.0, "AccessDeniedException");
    ecs.definition("x", 6).await;
    assert_eq!(
        ecs.refused("DeregisterTaskDefinition", json!({"taskDefinition": "x"})).await.0,
        "ClientException"
    );
}

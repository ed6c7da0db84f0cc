//! Policies bind users and assumed roles, and nobody else: over HTTP, with keys from CreateAccessKey and AssumeRole.

use super::world::{ACCOUNT, Ask, NOW, Signing, World, world};
use serde_json::json;

/// The text between two tags of an XML answer.
fn member(text: &str, name: &str) -> String {
    let rest = text.split(&format!("<{name}>")).nth(1).unwrap_or_else(|| panic!("no {name}: {text}"));
    rest.split('<').next().unwrap_or_default().to_string()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// IAM as the account itself.
async fn iam(world: &World, form: &str) -> String {
    let answer = world.query("iam", &format!("Action={form}&Version=2010-05-08")).await;
    assert_eq!(answer.status, 200, "{form}: {}", answer.text());
    answer.text()
}

/// An ECS call by some key: status and answer.
async fn ecs(world: &World, by: &Signing, operation: &str, input: serde_json::Value) -> (u16, String) {
    let target = format!("AmazonEC2ContainerServiceV20141113.{operation}");
    let by = Signing { service: "ecs", ..by.clone() };
    let answer = world.ask(&by, &Ask::json(&target, &input.to_string())).await;
    (answer.status, answer.text())
}

async fn denied(world: &World, by: &Signing, operation: &str, input: serde_json::Value, words: &str) {
    let (status, said) = ecs(world, by, operation, input).await;
    assert!(
        status == 400 && said.contains("AccessDeniedException") && said.contains(words),
        "{status} {said}"
    );
}

async fn allowed(world: &World, by: &Signing, operation: &str, input: serde_json::Value) {
    let (status, said) = ecs(world, by, operation, input).await;
    assert_eq!(status, 200, "{operation}: {said}");
}

#[tokio::test]
async fn a_users_key_may_what_its_policies_say() {
    let world = world().await;
    iam(&world, "CreateUser&UserName=ann").await;
    let made = iam(&world, "CreateAccessKey&UserName=ann").await;
    let (key, secret) = (member(&made, "AccessKeyId"), member(&made, "SecretAccessKey"));
    let ann = Signing { key: key.clone(), secret, token: None, service: "sts", at: NOW };
    let who = world.ask(&ann, &Ask::form("Action=GetCallerIdentity&Version=2011-06-15")).await.text();
    assert!(who.contains(&format!("arn:aws:iam::{ACCOUNT}:user/ann")), "{who}");
    let none = "because no identity-based policy allows the ecs:CreateCluster action";
    denied(&world, &ann, "CreateCluster", json!({"clusterName": "a"}), none).await;
    let document = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "ecs:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "ecs:Delete*", "Resource": "arn:aws:ecs:*:*:cluster/prod"},
        {"Effect": "Deny", "Action": "ecs:CreateCluster", "Resource": "*",
            "Condition": {"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}}]});
    let put =
        format!("PutUserPolicy&UserName=ann&PolicyName=p&PolicyDocument={}", encoded(&document.to_string()));
    iam(&world, &put).await;
    for name in ["prod", "test"] {
        allowed(&world, &ann, "CreateCluster", json!({"clusterName": name})).await;
    }
    allowed(&world, &ann, "DeleteCluster", json!({"cluster": "test"})).await;
    let words = "cluster/prod with an explicit deny in an identity-based policy";
    denied(&world, &ann, "DeleteCluster", json!({"cluster": "prod"}), words).await;
    // IAM's own words, by its protocol.
    let by = Signing { service: "iam", ..ann.clone() };
    let answer = world.ask(&by, &Ask::form("Action=GetRole&RoleName=r&Version=2010-05-08")).await;
    assert!(answer.status == 403 && answer.text().contains("<Code>AccessDenied</Code>"), "{}", answer.text());
    // A session of hers is no more than she is; a key that is put out, or of another secret, is none.
    let session = world.ask(&ann, &Ask::form("Action=GetSessionToken&Version=2011-06-15")).await.text();
    let session = Signing {
        key: member(&session, "AccessKeyId"),
        secret: member(&session, "SecretAccessKey"),
        token: Some(member(&session, "SessionToken")),
        ..ann.clone()
    };
    denied(&world, &session, "DeleteCluster", json!({"cluster": "prod"}), words).await;
    let (status, said) =
        ecs(&world, &Signing { secret: "x".into(), ..ann.clone() }, "ListClusters", json!({})).await;
    assert!(status == 400 && said.contains("InvalidSignatureException"), "{said}");
    iam(&world, &format!("UpdateAccessKey&UserName=ann&AccessKeyId={key}&Status=Inactive")).await;
    let (status, said) = ecs(&world, &ann, "ListClusters", json!({})).await;
    assert!(status == 400 && said.contains("UnrecognizedClientException"), "{said}");
    let listed = iam(&world, "ListAccessKeys&UserName=ann").await;
    assert!(listed.contains("<Status>Inactive<") && !listed.contains("Secret"), "{listed}");
    let conflict = world.query("iam", "Action=DeleteUser&UserName=ann&Version=2010-05-08").await.text();
    assert!(conflict.contains("must delete policies first"), "{conflict}");
    iam(&world, "DeleteUserPolicy&UserName=ann&PolicyName=p").await;
    iam(&world, &format!("DeleteAccessKey&UserName=ann&AccessKeyId={key}")).await;
    iam(&world, "DeleteUser&UserName=ann").await;
    // The session outlives her, without a right.
    denied(&world, &session, "ListClusters", json!({}), "no identity-based policy").await;
}

#[tokio::test]
async fn a_roles_credentials_may_what_is_attached() {
    let world = world().await;
    iam(&world, "CreateRole&RoleName=web&AssumeRolePolicyDocument=%7B%7D").await;
    let arn = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let form = format!("Action=AssumeRole&Version=2011-06-15&RoleArn={arn}&RoleSessionName=s1");
    let given = world.query("sts", &form).await.text();
    let web = Signing {
        key: member(&given, "AccessKeyId"),
        secret: member(&given, "SecretAccessKey"),
        token: Some(member(&given, "SessionToken")),
        service: "ecs",
        at: NOW,
    };
    denied(&world, &web, "ListClusters", json!({}), "assumed-role/web/s1 is not authorized").await;
    iam(&world, "AttachRolePolicy&RoleName=web&PolicyArn=arn:aws:iam::aws:policy/ReadOnlyAccess").await;
    allowed(&world, &web, "ListClusters", json!({})).await;
    denied(&world, &web, "CreateCluster", json!({"clusterName": "x"}), "ecs:CreateCluster").await;
    let document = json!({"Statement": {"Effect": "Allow", "Action": "ecs:CreateCluster", "Resource": "arn:aws:ecs:*:*:cluster/${aws:PrincipalAccount}"}});
    let made = format!("CreatePolicy&PolicyName=own&PolicyDocument={}", encoded(&document.to_string()));
    iam(&world, &made).await;
    iam(&world, &format!("AttachRolePolicy&RoleName=web&PolicyArn=arn:aws:iam::{ACCOUNT}:policy/own")).await;
    allowed(&world, &web, "CreateCluster", json!({"clusterName": ACCOUNT})).await;
    denied(&world, &web, "CreateCluster", json!({"clusterName": "x"}), "ecs:CreateCluster").await;
    // A definition that gives a role away takes iam:PassRole.
    iam(&world, "AttachRolePolicy&RoleName=web&PolicyArn=arn:aws:iam::aws:policy/PowerUserAccess").await;
    let container = json!([{"name": "c", "image": "i", "memory": 32}]);
    let define = json!({"family": "f", "containerDefinitions": container, "taskRoleArn": arn});
    denied(&world, &web, "RegisterTaskDefinition", define, "iam:PassRole on resource").await;
}

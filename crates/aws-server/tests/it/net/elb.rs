//! elbv2 without its data plane: what operations answer, and what they leave for the controller.

use super::{Net, net, text};
use client::ObjectKey;
use k8s_schema::gvr::ELB_TARGET_GROUPS;
use serde_json::{Value, json};

const BALANCER: &str = "elbv2 CreateLoadBalancer";
const GROUP: &str = "elbv2 CreateTargetGroup";
const LISTENER: &str = "elbv2 CreateListener";
const RULE: &str = "elbv2 CreateRule";

fn subnets() -> Value {
    json!(["subnet-default-a", "subnet-default-b"])
}

async fn balancer(net: &Net, name: &str) -> String {
    let made = net.ok(BALANCER, json!({"Name": name, "Subnets": subnets()})).await;
    text(&made["LoadBalancers"][0]["LoadBalancerArn"])
}

async fn group(net: &Net, name: &str) -> String {
    let input = json!({"Name": name, "Protocol": "HTTP", "Port": 80, "TargetType": "ip"});
    text(&net.ok(GROUP, input).await["TargetGroups"][0]["TargetGroupArn"])
}

fn forward(group: &str) -> Value {
    json!([{"Type": "forward", "TargetGroupArn": group}])
}

fn on(balancer: &str, port: u16, actions: Value) -> Value {
    json!({"LoadBalancerArn": balancer, "Port": port, "Protocol": "HTTP", "DefaultActions": actions})
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_are_what_they_were_asked_to_be() {
    let net = net().await;
    let input = json!({"Name": "web", "Subnets": subnets(), "Scheme": "internal", "Tags": [{"Key": "a", "Value": "b"}]});
    let made = net.ok(BALANCER, input.clone()).await["LoadBalancers"][0].clone();
    assert_eq!(made["State"], json!({"Code": "provisioning"}));
    assert_eq!((&made["VpcId"], &made["SecurityGroups"]), (&json!("vpc-default"), &json!(["sg-default"])));
    let name = text(&made["DNSName"]);
    assert!(name.starts_with("internal-web-") && name.ends_with(".us-east-1.elb.cluster.local"), "{name}");
    let again = net.ok(BALANCER, input).await["LoadBalancers"][0].clone();
    assert_eq!(again["LoadBalancerArn"], made["LoadBalancerArn"], "the same once more is the same");
    let arn = text(&made["LoadBalancerArn"]);
    let other = arn.replace("/web/", "/other/");
    let subnet = |id: &str| json!({"Name": "x", "Subnets": [id, "subnet-default-b"]});
    net.refused(&[
        (
            BALANCER,
            json!({"Name": "web", "Subnets": subnets()}),
            "DuplicateLoadBalancerName",
            "different settings",
        ),
        (
            BALANCER,
            json!({"Name": "internal-x", "Subnets": subnets()}),
            "ValidationError",
            "cannot begin with",
        ),
        (
            BALANCER,
            json!({"Name": "x", "Subnets": ["subnet-default-a"]}),
            "ValidationError",
            "At least two subnets",
        ),
        (BALANCER, subnet("subnet-1"), "SubnetNotFound", "The subnet ID 'subnet-1' does not exist"),
        (
            "elbv2 DescribeLoadBalancers",
            json!({"Names": ["no"]}),
            "LoadBalancerNotFound",
            "Load balancers '[no]' not found",
        ),
        (
            "elbv2 DescribeLoadBalancers",
            json!({"LoadBalancerArns": [other]}),
            "LoadBalancerNotFound",
            "not found",
        ),
        (
            "elbv2 DescribeLoadBalancers",
            json!({"LoadBalancerArns": ["x"]}),
            "ValidationError",
            "'x' is not a valid load balancer ARN",
        ),
        ("elbv2 DescribeTags", json!({"ResourceArns": ["x"]}), "ValidationError", "not a valid ARN"),
    ])
    .await;
    let protection = |value: &str| {
        let attribute = json!({"Key": "deletion_protection.enabled", "Value": value});
        json!({"LoadBalancerArn": arn, "Attributes": [attribute]})
    };
    net.ok("elbv2 ModifyLoadBalancerAttributes", protection("true")).await;
    let own = json!({"LoadBalancerArn": arn});
    net.refused(&[("elbv2 DeleteLoadBalancer", own.clone(), "OperationNotPermitted", "deletion protection")])
        .await;
    net.ok("elbv2 ModifyLoadBalancerAttributes", protection("false")).await;
    // Names are an account's own.
    let theirs = net.call_as("210987654321", "elbv2 DescribeLoadBalancers", json!({})).await.unwrap();
    assert_eq!(theirs["LoadBalancers"], json!([]));
    net.ok("elbv2 DeleteLoadBalancer", own.clone()).await;
    net.ok("elbv2 DeleteLoadBalancer", own).await;
    assert_eq!(net.ok("elbv2 DescribeLoadBalancers", json!({})).await["LoadBalancers"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_and_rules_hold_their_groups() {
    let net = net().await;
    let (web, api) = (balancer(&net, "web").await, balancer(&net, "api").await);
    let (one, tcp) = (group(&net, "one").await, json!({"Name": "tcp", "Protocol": "TCP", "Port": 5432}));
    let tcp = text(&net.ok(GROUP, tcp).await["TargetGroups"][0]["TargetGroupArn"]);
    let listener = net.ok(LISTENER, on(&web, 80, forward(&one))).await["Listeners"][0].clone();
    let own = text(&listener["ListenerArn"]);
    let path = |priority: u32, pattern: &str| {
        json!({"ListenerArn": own, "Priority": priority, "Actions": forward(&one),
            "Conditions": [{"Field": "path-pattern", "Values": [pattern]}]})
    };
    let rules: Vec<Value> =
        futures_util::future::join_all([10, 5].map(|p| net.ok(RULE, path(p, "/a*")))).await;
    let first = text(&rules[0]["Rules"][0]["RuleArn"]);
    let https = json!({"LoadBalancerArn": web, "Port": 443, "Protocol": "HTTPS", "DefaultActions": forward(&one),
        "Certificates": [{"CertificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/none"}]});
    net.refused(&[
        (
            LISTENER,
            on(&web, 80, forward(&one)),
            "DuplicateListener",
            "A listener already exists on this port",
        ),
        (LISTENER, on(&api, 80, forward(&one)), "TargetGroupAssociationLimit", "more than one load balancer"),
        (LISTENER, on(&web, 81, forward(&tcp)), "IncompatibleProtocols", "TCP"),
        (
            LISTENER,
            on(&web, 81, forward("arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/x/1")),
            "TargetGroupNotFound",
            "target groups not found",
        ),
        (LISTENER, https, "CertificateNotFound", "not found"),
        (RULE, path(10, "/b"), "PriorityInUse", "Priority '10' is currently in use"),
        ("elbv2 DeleteTargetGroup", json!({"TargetGroupArn": one}), "ResourceInUse", "currently in use"),
        (
            "elbv2 SetRulePriorities",
            json!({"RulePriorities": [{"RuleArn": first, "Priority": 5}]}),
            "PriorityInUse",
            "'5'",
        ),
        ("elbv2 DescribeListeners", json!({}), "ValidationError", "listener ARNs or a load balancer ARN"),
    ])
    .await;
    net.ok("elbv2 SetRulePriorities", json!({"RulePriorities": [{"RuleArn": first, "Priority": 1}]})).await;
    let shown = net.ok("elbv2 DescribeRules", json!({"ListenerArn": own})).await["Rules"].clone();
    let priorities: Vec<_> = shown.as_array().unwrap().iter().map(|r| text(&r["Priority"])).collect();
    assert_eq!(priorities, ["1", "5", "default"]);
    let default = json!({"RuleArn": shown[2]["RuleArn"]});
    net.refused(&[("elbv2 DeleteRule", default, "OperationNotPermitted", "Default rule")]).await;
    let groups =
        net.ok("elbv2 DescribeTargetGroups", json!({"LoadBalancerArn": web})).await["TargetGroups"].clone();
    assert_eq!((groups.as_array().unwrap().len(), &groups[0]["LoadBalancerArns"]), (1, &json!([web])));
    net.ok("elbv2 DeleteLoadBalancer", json!({"LoadBalancerArn": web})).await;
    net.ok("elbv2 DeleteTargetGroup", json!({"TargetGroupArn": one})).await;
    net.refused(&[(
        "elbv2 DescribeRules",
        json!({"ListenerArn": own}),
        "ListenerNotFound",
        "listeners not found",
    )])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_are_the_users_and_the_schedulers() {
    let net = net().await;
    let (web, one) = (balancer(&net, "web").await, group(&net, "one").await);
    let targets = |list: Value| json!({"TargetGroupArn": one, "Targets": list});
    net.refused(&[
        (
            "elbv2 RegisterTargets",
            targets(json!([{"Id": "x"}])),
            "ValidationError",
            "The IP address 'x' is not",
        ),
        (GROUP, json!({"Name": "x", "Port": 1}), "ValidationError", "A protocol must be specified"),
        (GROUP, json!({"Name": "x", "Protocol": "HTTP"}), "ValidationError", "A port must be specified"),
        (
            GROUP,
            json!({"Name": "x", "Protocol": "HTTP", "Port": 1, "VpcId": "vpc-1"}),
            "ValidationError",
            "'vpc-1' is not found",
        ),
        (
            GROUP,
            json!({"Name": "one", "Protocol": "HTTP", "Port": 1}),
            "DuplicateTargetGroupName",
            "different settings",
        ),
    ])
    .await;
    net.ok("elbv2 RegisterTargets", targets(json!([{"Id": "10.244.0.1"}, {"Id": "10.244.0.2", "Port": 81}])))
        .await;
    // What the service scheduler and the controller write.
    let key = ObjectKey::new("aws", "one");
    let group = net.client.get(&ELB_TARGET_GROUPS, &key).await.unwrap().value().unwrap();
    let mine = [ecs_model::targets::target("10.244.0.3", 80, "us-east-1a", "arn:task")];
    let all = ecs_model::targets::with(&group["spec"]["targets"], &mine);
    net.client.merge_patch(&ELB_TARGET_GROUPS, &key, json!({"spec": {"targets": all}})).await.unwrap();
    let health = async || {
        let shown = net.ok("elbv2 DescribeTargetHealth", json!({"TargetGroupArn": one})).await;
        let row = |d: &Value| {
            (
                text(&d["Target"]["Id"]),
                d["Target"]["Port"].as_u64().unwrap(),
                text(&d["TargetHealth"]["State"]),
            )
        };
        let mut rows: Vec<_> =
            shown["TargetHealthDescriptions"].as_array().unwrap().iter().map(row).collect();
        rows.sort();
        rows
    };
    let row = |last: u8, port: u64, state: &str| (format!("10.244.0.{last}"), port, state.to_string());
    assert_eq!(health().await, [row(1, 80, "unused"), row(2, 81, "unused"), row(3, 80, "unused")]);
    net.ok(LISTENER, on(&web, 80, forward(&one))).await;
    let status = json!({"targets": [{"id": "10.244.0.1", "port": 80, "state": "healthy"},
        {"id": "10.244.0.9", "port": 80, "state": "draining"}]});
    net.client.merge_patch_status(&ELB_TARGET_GROUPS, &key, json!({"status": status})).await.unwrap();
    net.ok("elbv2 DeregisterTargets", targets(json!([{"Id": "10.244.0.2"}]))).await;
    assert_eq!(health().await, [row(1, 80, "healthy"), row(3, 80, "initial"), row(9, 80, "draining")]);
}

//! Every operation that AWS models is served or refused with a typed error, in every protocol of its service.

use super::world::{Answer, Ask, Signing, World, world};
use aws_schema::{Head, Operation, Protocol, heads, service};
use futures_util::FutureExt;

/// A call without input.
fn bare(head: &Head, operation: &Operation, protocol: Protocol) -> Ask {
    match protocol {
        Protocol::Json => Ask::json(&format!("{}.{}", head.target_prefix, operation.name), "{}"),
        Protocol::Query | Protocol::Ec2 => {
            Ask::form(&format!("Action={}&Version={}", operation.name, head.api_version))
        }
        Protocol::Cbor => Ask {
            method: "POST",
            target: format!("/service/{}/operation/{}", head.target_prefix, operation.name),
            headers: vec![
                ("smithy-protocol", "rpc-v2-cbor".into()),
                ("content-type", "application/cbor".into()),
            ],
            body: vec![0xa0],
        },
        Protocol::RestJson => {
            let path = operation.path.split('?').next().unwrap_or_default();
            let filled: Vec<&str> =
                path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect();
            let body = if matches!(operation.method, "POST" | "PUT") { b"{}".to_vec() } else { Vec::new() };
            Ask { method: operation.method, target: filled.join("/"), headers: Vec::new(), body }
        }
    }
}

/// The error's code, or "" for success.
fn code(protocol: Protocol, answer: &Answer) -> String {
    if answer.status < 300 {
        return String::new();
    }
    match protocol {
        Protocol::Query | Protocol::Ec2 => {
            let text = answer.text();
            let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
            code.map(|(code, _)| code.to_string()).unwrap_or_else(|| panic!("no code: {text}"))
        }
        Protocol::Cbor => answer.headers["x-amzn-errortype"].to_str().unwrap().to_string(),
        Protocol::Json | Protocol::RestJson => answer.json()["__type"].as_str().unwrap().to_string(),
    }
}

async fn check(
    world: &World,
    head: &'static Head,
    operation: &'static Operation,
    protocol: Protocol,
) -> bool {
    let answer = world.ask(&Signing::of(head.signing_name), &bare(head, operation, protocol)).await;
    let what = format!("{} {} {protocol:?}: {} {}", head.name, operation.name, answer.status, answer.text());
    assert!(answer.headers.contains_key("x-amzn-requestid"), "{what}");
    assert!(answer.status < 500, "{what}");
    let code = code(protocol, &answer);
    let refused = matches!(code.as_str(), "UnknownOperationException" | "InvalidAction");
    if refused {
        assert!(answer.status == 400, "{what}");
        assert!(answer.text().contains("is not implemented by Gantry"), "{what}");
        assert!(answer.text().contains(operation.name), "another operation: {what}");
    }
    refused
}

#[test]
fn every_modelled_operation_is_served_or_refused_by_name() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(
        async {
            let world = world().await;
            let (mut all, mut refused) = (0, 0);
            for head in heads() {
                for operation in &service(head.name).unwrap().operations {
                    for protocol in head.protocols {
                        let no = check(&world, head, operation, *protocol).await;
                        all += u32::from(*protocol == head.protocols[0]);
                        refused += u32::from(no && *protocol == head.protocols[0]);
                    }
                }
            }
            assert_eq!(all, 1_857);
            let served = all - refused;
            println!("{served} of {all} operations are served");
            assert!(served >= 140, "{served}");
            let metrics = world.aws.metrics_text();
            assert!(metrics.contains("service=\"ec2\",operation=\"DescribeVpcs\""), "{metrics}");
        }
        .boxed(),
    );
}

#[tokio::test]
async fn unknown_operations_and_services_get_their_protocols_words() {
    let world = world().await;
    for (service, ask, words) in [
        ("ecs", Ask::json("AmazonEC2ContainerServiceV20141113.Fly", "{}"), "UnknownOperationException"),
        (
            "sts",
            Ask::form("Action=Fly&Version=2011-06-15"),
            "Could not find operation Fly for version 2011-06-15",
        ),
        ("ec2", Ask::form("Action=Fly"), "The action Fly is not valid for this web service."),
        (
            "s3",
            Ask { method: "GET", target: "/".into(), headers: Vec::new(), body: Vec::new() },
            "InvalidAction",
        ),
    ] {
        let answer = world.ask(&Signing::of(service), &ask).await;
        assert!(answer.status == 400 || answer.status == 404, "{answer:?}");
        assert!(answer.text().contains(words), "{service}: {}", answer.text());
    }
}

#[tokio::test]
async fn bad_input_is_refused_in_the_services_words_and_makes_nothing() {
    let world = world().await;
    let ecs = |operation: &str, body: &str| {
        Ask::json(&format!("AmazonEC2ContainerServiceV20141113.{operation}"), body)
    };
    for (ask, code, words) in [
        (ecs("CreateCluster", "{"), "SerializationException", "Malformed JSON"),
        (
            ecs("CreateCluster", r#"{"clusterName":7}"#),
            "SerializationException",
            "NUMBER_VALUE can not be converted",
        ),
        (ecs("CreateCluster", r#"{"clusterName":"a b"}"#), "InvalidParameterException", ""),
        (
            ecs("RunTask", r#"{"taskDefinition":"x","launchType":"MOON"}"#),
            "InvalidParameterException",
            "enum value set",
        ),
    ] {
        let answer = world.ask(&Signing::of("ecs"), &ask).await;
        assert_eq!((answer.status, answer.json()["__type"].as_str()), (400, Some(code)), "{}", answer.text());
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    let clusters = world.ask(&Signing::of("ecs"), &ecs("ListClusters", "{}")).await.json();
    assert!(!clusters.to_string().contains("a b"), "{clusters}");
    let missing = world.query("ec2", "Action=CreateSubnet&Version=2016-11-15").await.text();
    assert!(missing.contains("MissingParameter") || missing.contains("not implemented"), "{missing}");
    let role = world.query("iam", "Action=CreateRole&Version=2010-05-08&RoleName=r").await.text();
    assert!(
        role.contains("<Code>ValidationError</Code>") && role.contains("assumeRolePolicyDocument"),
        "{role}"
    );
}

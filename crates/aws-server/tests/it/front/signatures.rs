//! Who signed, and who did not: AWS's codes for each.

use super::world::{ACCOUNT, Ask, NOW, Signing, World, presigned, signed, world};
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn clusters() -> Ask {
    Ask::json("AmazonEC2ContainerServiceV20141113.ListClusters", "{}")
}

fn identity() -> Ask {
    Ask::form("Action=GetCallerIdentity&Version=2011-06-15")
}

fn vpcs() -> Ask {
    Ask::form("Action=DescribeVpcs&Version=2016-11-15")
}

async fn refused(world: &World, ask: &Ask, status: u16, words: &[&str]) {
    let answer = world.send(ask).await;
    assert_eq!(answer.status, status, "{}", answer.text());
    for word in words {
        assert!(answer.text().contains(word), "{word} not in {}", answer.text());
    }
}

#[tokio::test]
async fn every_wrong_signature_has_its_code() {
    let world = world().await;
    let by = Signing::of;
    let answer = world.ask(&by("sts"), &identity()).await;
    assert!(answer.status == 200 && answer.text().contains(ACCOUNT), "{answer:?}");

    let wrong = |service| Signing { secret: "other".into(), ..by(service) };
    let mismatch = "The request signature we calculated does not match";
    refused(&world, &signed(&wrong("ecs"), &clusters()), 400, &["\"InvalidSignatureException\"", mismatch])
        .await;
    refused(&world, &signed(&wrong("sts"), &identity()), 403, &["<Code>SignatureDoesNotMatch<", mismatch])
        .await;
    refused(
        &world,
        &signed(&wrong("ec2"), &vpcs()),
        403,
        &["<Response><Errors>", "<Code>SignatureDoesNotMatch<"],
    )
    .await;

    let unknown = |service| Signing { key: "AKIANOBODY".into(), ..by(service) };
    let token = "The security token included in the request is invalid.";
    refused(&world, &signed(&unknown("ecs"), &clusters()), 400, &["UnrecognizedClientException", token])
        .await;
    refused(&world, &signed(&unknown("sts"), &identity()), 403, &["<Code>InvalidClientTokenId<", token])
        .await;
    refused(&world, &signed(&unknown("ec2"), &vpcs()), 401, &["<Code>AuthFailure<"]).await;

    for (at, words) in
        [(NOW - 301, "Signature expired: 2026"), (NOW + 301, "Signature not yet current: 2026")]
    {
        let late = |service| Signing { at, ..by(service) };
        refused(&world, &signed(&late("ecs"), &clusters()), 400, &["InvalidSignatureException", words]).await;
        refused(&world, &signed(&late("sts"), &identity()), 403, &["SignatureDoesNotMatch", words]).await;
        refused(&world, &signed(&late("ec2"), &vpcs()), 403, &["<Code>RequestExpired<"]).await;
    }

    refused(&world, &clusters(), 400, &["MissingAuthenticationToken", "Missing Authentication Token"]).await;
    refused(&world, &identity(), 403, &["<Code>MissingAuthenticationToken<"]).await;
    let mut half = clusters();
    half.headers.push(("authorization", "AWS4-HMAC-SHA256 Credential=x".into()));
    refused(&world, &half, 400, &["IncompleteSignatureException", "requires 'Signature' parameter"]).await;
    let mut page = identity();
    page.headers.push(("origin", "https://evil.test".into()));
    refused(&world, &signed(&by("sts"), &page), 403, &["<Code>InvalidClientTokenId<"]).await;
    let scope = signed(&by("logs"), &clusters());
    refused(&world, &scope, 400, &["Credential should be scoped to correct service: 'ecs'"]).await;
}

#[tokio::test]
async fn what_was_changed_on_the_way_is_refused() {
    let world = world().await;
    let good = signed(&Signing::of("ecs"), &clusters());
    let mut body = good.clone();
    body.body = br#"{"maxResults":1}"#.to_vec();
    let mut target = good.clone();
    target.headers[0].1 = "AmazonEC2ContainerServiceV20141113.CreateCluster".into();
    let mut path = good.clone();
    path.target = "/x".into();
    for changed in [body, target, path] {
        refused(&world, &changed, 400, &["InvalidSignatureException"]).await;
    }
    // The same request again is good while it is fresh, and not for longer.
    assert_eq!(world.send(&good).await.status, 200);
    assert_eq!(world.send(&good).await.status, 200);
    world.now.store((NOW as u64 + 301) * 1_000, Ordering::Relaxed);
    refused(&world, &good, 400, &["Signature expired"]).await;
}

#[tokio::test]
async fn presigned_requests_live_as_long_as_they_say() {
    let world = world().await;
    let query = "Action=GetCallerIdentity&Version=2011-06-15";
    let ask = presigned(&Signing::of("sts"), query, 60);
    let answer = world.send(&ask).await;
    assert!(answer.status == 200 && answer.text().contains(ACCOUNT), "{answer:?}");
    world.now.store((NOW as u64 + 61) * 1_000, Ordering::Relaxed);
    refused(&world, &ask, 403, &["SignatureDoesNotMatch", "Signature expired", "- 1 min.)"]).await;
    let other = Ask { target: ask.target.replace("GetCallerIdentity", "GetSessionToken"), ..ask };
    world.now.store(NOW as u64 * 1_000, Ordering::Relaxed);
    refused(&world, &other, 403, &["SignatureDoesNotMatch"]).await;
}

#[tokio::test]
async fn bodies_come_in_all_forms() {
    use std::io::Write;
    let world = world().await;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(br#"{"clusterName":"zipped"}"#).unwrap();
    let mut ask = Ask::json("AmazonEC2ContainerServiceV20141113.CreateCluster", "");
    ask.body = packed.finish().unwrap();
    ask.headers.push(("content-encoding", "gzip".into()));
    let answer = world.ask(&Signing::of("ecs"), &ask).await;
    assert!(answer.status == 200 && answer.text().contains("zipped"), "{answer:?}");

    let mut ask = Ask::json("AmazonEC2ContainerServiceV20141113.CreateCluster", "");
    ask.body = b"1a\r\n{\"clusterName\": \"chunked\"}\r\n0\r\n\r\n".to_vec();
    ask.headers.push(("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER".into()));
    ask.headers.push(("content-encoding", "aws-chunked".into()));
    let answer = world.ask(&Signing::of("ecs"), &ask).await;
    assert!(answer.status == 200 && answer.text().contains("chunked"), "{answer:?}");

    let long = Ask { body: vec![b'x'; 100_000], ..identity() };
    refused(&world, &long, 413, &["RequestEntityTooLargeException"]).await;
}

/// What a shell or a load balancer sends to see whether somebody is there; and a client that asks before it sends.
#[tokio::test]
async fn probes_and_expect() {
    let world = world().await;
    let said = |request: String| {
        let address = world.address;
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut out = String::new();
            stream.read_to_string(&mut out).await.unwrap();
            out
        }
    };
    let head = "Host: x\r\nConnection: close\r\n\r\n";
    assert!(said(format!("GET / HTTP/1.1\r\n{head}")).await.starts_with("HTTP/1.1 200"));
    assert!(said(format!("OPTIONS /x HTTP/1.1\r\n{head}")).await.starts_with("HTTP/1.1 204"));
    assert!(said(format!("GET /_gantry/metrics HTTP/1.1\r\n{head}")).await.contains("aws_requests_total"));
    let good = signed(&Signing::of("sts"), &identity());
    let headers: String = good.headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let text = format!(
        "POST / HTTP/1.1\r\nHost: aws.test\r\n{headers}Expect: 100-continue\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
        good.body.len(),
        String::from_utf8_lossy(&good.body)
    );
    let answer = said(text).await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"), "{answer}");
}

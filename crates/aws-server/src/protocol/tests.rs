//! Codecs against each other and against texts that real clients send.

use super::*;
use serde_json::json;

fn wire(protocol: Protocol) -> Wire {
    Wire { protocol, json_version: "1.1" }
}

fn read(service: &str, operation: &str, protocol: Protocol, body: &[u8]) -> Result<Value, DecodeError> {
    let service = aws_schema::service(service).unwrap();
    let request = Request { query: "", headers: &[], body, labels: &[] };
    decode(wire(protocol), service, service.operation(operation).unwrap(), &request)
}

fn said(service: &str, operation: &str, protocol: Protocol, output: &Value) -> String {
    let service = aws_schema::service(service).unwrap();
    let reply = encode(wire(protocol), service, service.operation(operation).unwrap(), output, "id-1");
    String::from_utf8(reply.body).unwrap()
}

#[test]
fn json_keeps_what_the_model_knows_and_refuses_other_types() {
    let run = |body: &str| read("ecs", "RunTask", Protocol::Json, body.as_bytes());
    let body =
        r#"{"taskDefinition":"web","count":2.0,"novel":{"x":1},"cluster":null,"enableECSManagedTags":true}"#;
    assert_eq!(run(body), Ok(json!({"taskDefinition": "web", "count": 2, "enableECSManagedTags": true})));
    assert_eq!(run(""), Ok(json!({})));
    for (body, words) in [
        (r#"{"taskDefinition":1}"#, "NUMBER_VALUE can not be converted to a String"),
        (r#"{"count":"2"}"#, "STRING_VALUE can not be converted to an Integer"),
        (r#"{"count":2.5}"#, "DECIMAL_VALUE can not be converted to an Integer"),
        (r#"{"count":5000000000}"#, "NUMBER_VALUE can not be converted to an Integer"),
        (r#"{"taskDefinition":[]}"#, "Start of list found where not expected"),
        (r#"{"tags":{}}"#, "Expected list or null"),
        (r#"{"overrides":[]}"#, "Start of list found where not expected"),
        (r#"{"overrides":3}"#, "Expected null or start of structure or map"),
        ("{", "Malformed JSON"),
        ("[]", "Start of list"),
    ] {
        let error = run(body).unwrap_err().message;
        assert!(error.contains(words), "{body}: {error}");
    }
    let output =
        json!({"tasks": [{"taskArn": "a", "createdAt": 1.5, "secret": 1}], "failures": [], "nothing": 1});
    assert_eq!(
        said("ecs", "RunTask", Protocol::Json, &output),
        r#"{"failures":[],"tasks":[{"createdAt":1.5,"taskArn":"a"}]}"#
    );
}

#[test]
fn query_forms_become_documents() {
    let form = b"Action=CreateRole&Version=2010-05-08&RoleName=a+b%21&AssumeRolePolicyDocument=%7B%7D\
        &Tags.member.1.Key=k&Tags.member.1.Value=v&Tags.member.10.Key=z&Tags.member.10.Value=&Tags.member.2.Key=m\
        &Tags.member.2.Value=n&MaxSessionDuration=3600";
    assert_eq!(
        read("iam", "CreateRole", Protocol::Query, form),
        Ok(json!({"RoleName": "a b!", "AssumeRolePolicyDocument": "{}", "MaxSessionDuration": 3600,
            "Tags": [{"Key": "k", "Value": "v"}, {"Key": "m", "Value": "n"}, {"Key": "z", "Value": ""}]}))
    );
    let bad = read("iam", "CreateRole", Protocol::Query, b"MaxSessionDuration=x").unwrap_err();
    assert_eq!(
        (bad.member.as_str(), bad.message.as_str()),
        ("MaxSessionDuration", "'x' is not a valid value")
    );
    let empty = read("elbv2", "DescribeLoadBalancers", Protocol::Query, b"Names=").unwrap();
    assert_eq!(empty, json!({"Names": []}));
    let deep = "A.".repeat(100) + "=1";
    assert!(read("iam", "CreateRole", Protocol::Query, deep.as_bytes()).is_err());
}

#[test]
fn ec2_has_names_of_its_own() {
    let form = b"Action=DescribeSubnets&Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1&Filter.1.Value.2=vpc-2\
        &SubnetId.1=subnet-1&DryRun=false";
    assert_eq!(
        read("ec2", "DescribeSubnets", Protocol::Ec2, form),
        Ok(json!({"DryRun": false, "SubnetIds": ["subnet-1"],
            "Filters": [{"Name": "vpc-id", "Values": ["vpc-1", "vpc-2"]}]}))
    );
    let output = json!({"Subnets": [{"SubnetId": "s<1>", "AvailableIpAddressCount": 5, "DefaultForAz": true,
        "Tags": [{"Key": "k", "Value": "v"}]}]});
    assert_eq!(
        said("ec2", "DescribeSubnets", Protocol::Ec2, &output),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <DescribeSubnetsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n<requestId>id-1</requestId>\
         <subnetSet><item><availableIpAddressCount>5</availableIpAddressCount><defaultForAz>true</defaultForAz>\
         <subnetId>s&lt;1&gt;</subnetId><tagSet><item><key>k</key><value>v</value></item></tagSet></item></subnetSet>\
         </DescribeSubnetsResponse>\n"
    );
    assert!(said("ec2", "DeleteSubnet", Protocol::Ec2, &json!({})).contains("<return>true</return>"));
}

#[test]
fn query_answers_are_wrapped() {
    let output = json!({"Account": "1", "Arn": "a", "UserId": "u"});
    assert_eq!(
        said("sts", "GetCallerIdentity", Protocol::Query, &output),
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
         <GetCallerIdentityResult><Account>1</Account><Arn>a</Arn><UserId>u</UserId></GetCallerIdentityResult>\n\
         <ResponseMetadata><RequestId>id-1</RequestId></ResponseMetadata>\n</GetCallerIdentityResponse>\n"
    );
    let list = said(
        "iam",
        "ListRoles",
        Protocol::Query,
        &json!({"IsTruncated": false, "Roles": [{"CreateDate": 0.5}]}),
    );
    assert!(
        list.contains("<Roles><member><CreateDate>1970-01-01T00:00:00.500Z</CreateDate></member></Roles>"),
        "{list}"
    );
}

#[test]
fn rest_members_stand_all_over_the_request() {
    let service = aws_schema::service("eks").unwrap();
    let of = |name: &str| service.operation(name).unwrap();
    let request = |query, body: &'static [u8]| Request { query, headers: &[], body, labels: &[] };
    let labelled = Request { labels: &[("name", "c".into())], ..request("", b"") };
    assert_eq!(
        decode(wire(Protocol::RestJson), service, of("DescribeCluster"), &labelled),
        Ok(json!({"name": "c"}))
    );
    let listed = decode(
        wire(Protocol::RestJson),
        service,
        of("ListClusters"),
        &request("maxResults=5&include=a&include=b", b""),
    );
    assert_eq!(listed, Ok(json!({"maxResults": 5, "include": ["a", "b"]})));
    let made = decode(
        wire(Protocol::RestJson),
        service,
        of("CreateCluster"),
        &request("", br#"{"name":"c","roleArn":"r","x":1}"#),
    );
    assert_eq!(made, Ok(json!({"name": "c", "roleArn": "r"})));
    let reply =
        encode(wire(Protocol::RestJson), service, of("ListClusters"), &json!({"clusters": ["c"]}), "");
    assert_eq!((reply.status, reply.body.as_slice()), (200, &br#"{"clusters":["c"]}"#[..]));
}

#[test]
fn cbor_reads_what_it_writes_and_bounds_what_others_write() {
    let service = aws_schema::service("cloudwatch").unwrap();
    let put = service.operation("PutMetricData").unwrap();
    let document = json!({"Namespace": "n", "MetricData": [{"MetricName": "m", "Timestamp": 1_795_176_000.5, "Value": -2.25,
        "Values": [1.0, 300.0, 1e300], "StorageResolution": 60, "Dimensions": [{"Name": "é", "Value": ""}]}]});
    let bytes = cbor::write(service, put.input.unwrap(), &document);
    let back = read("cloudwatch", "PutMetricData", Protocol::Cbor, &bytes).unwrap();
    let datum = &back["MetricData"][0];
    assert_eq!((&datum["Timestamp"], &datum["Value"]), (&json!(1_795_176_000.5), &json!(-2.25)));
    assert_eq!(
        (&back["Namespace"], &datum["Dimensions"]),
        (&json!("n"), &json!([{"Name": "é", "Value": ""}]))
    );
    // Indefinite lengths, a half float, a tag.
    let odd = [
        0xbf, 0x69, b'N', b'a', b'm', b'e', b's', b'p', b'a', b'c', b'e', 0x7f, 0x61, b'a', 0x61, b'b', 0xff,
        0xff,
    ];
    assert_eq!(read("cloudwatch", "PutMetricData", Protocol::Cbor, &odd), Ok(json!({"Namespace": "ab"})));
    for (half, wanted) in [
        ([0xf9, 0x3c, 0x00], json!(1)),
        ([0xf9, 0xc0, 0x80], json!(-2.25)),
        ([0xf9, 0x7e, 0x00], json!("NaN")),
    ] {
        assert_eq!(cbor::read(&half), Ok(wanted));
    }
    for bad in [
        &[][..],
        &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x5f, 0x61],
        &[0x01, 0x01],
        &[0xa1, 0x01, 0x01],
    ] {
        assert!(cbor::read(bad).is_err(), "{bad:?}");
    }
    assert!(cbor::read(&[0x81; 100_000]).is_err());
}

#[test]
fn errors_have_each_protocols_form() {
    let of = |service: &str, protocol, error: &AwsError| {
        let reply = refuse(wire(protocol), aws_schema::service(service), error, "id-1");
        (reply.status, String::from_utf8_lossy(&reply.body).into_owned(), reply.headers)
    };
    let gone = AwsError::client("ClusterNotFoundException", "Cluster not found.");
    let (status, body, headers) = of("ecs", Protocol::Json, &gone);
    assert_eq!(
        (status, body.as_str()),
        (400, r#"{"__type":"ClusterNotFoundException","message":"Cluster not found."}"#)
    );
    assert!(headers.contains(&("content-type".into(), "application/x-amz-json-1.1".into())));
    let (status, body, _) =
        of("iam", Protocol::Query, &AwsError::client("NoSuchEntityException", "no <role>"));
    assert_eq!(status, 404);
    assert!(
        body.contains("<Type>Sender</Type><Code>NoSuchEntity</Code><Message>no &lt;role&gt;</Message>"),
        "{body}"
    );
    let (status, body, _) = of("ec2", Protocol::Ec2, &AwsError::client("InvalidVpcID.NotFound", "x"));
    assert!(
        status == 400 && body.ends_with("</Error></Errors><RequestID>id-1</RequestID></Response>"),
        "{body}"
    );
    let (status, _, headers) =
        of("eks", Protocol::RestJson, &AwsError::client("ResourceNotFoundException", "x"));
    assert!(
        status == 404 && headers.contains(&("x-amzn-errortype".into(), "ResourceNotFoundException".into()))
    );
    let (_, _, headers) =
        of("cloudwatch", Protocol::Cbor, &AwsError::client("MissingRequiredParameterException", "x"));
    assert!(
        headers.contains(&("x-amzn-query-error".into(), "MissingParameter;Sender".into())),
        "{headers:?}"
    );
}

/// Whatever bytes come, every codec answers and none panics.
mod any_bytes {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (service, operation, protocol) in [
                ("ecs", "RunTask", Protocol::Json),
                ("iam", "CreateRole", Protocol::Query),
                ("ec2", "RunInstances", Protocol::Ec2),
                ("eks", "CreateCluster", Protocol::RestJson),
                ("cloudwatch", "PutMetricData", Protocol::Cbor),
            ] {
                let _ = read(service, operation, protocol, &bytes);
            }
        }
    }
}

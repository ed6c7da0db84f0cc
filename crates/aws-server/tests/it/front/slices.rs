//! The smaller services, a table each: what is asked, and what the answer must hold.

use super::world::{ACCOUNT, Ask, Signing, World, world};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

async fn call(world: &World, service: &'static str, operation: &str, input: Value) -> (u16, Value) {
    let prefix = aws_schema::service(service).unwrap().head.target_prefix;
    let answer = world
        .ask(&Signing::of(service), &Ask::json(&format!("{prefix}.{operation}"), &input.to_string()))
        .await;
    (answer.status, answer.json())
}

/// `(operation, input, pointer, expected)`; an error's code stands at `/__type`.
type Row = (&'static str, Value, &'static str, Value);

async fn run(world: &World, service: &'static str, rows: Vec<Row>) {
    for (operation, input, pointer, wanted) in rows {
        let (status, answer) = call(world, service, operation, input.clone()).await;
        let found = answer.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(found, wanted, "{operation} {input}: {status} {answer}");
        assert_eq!(status == 200, pointer != "/__type", "{operation} {input}: {status} {answer}");
    }
}

/// What is written, and read back.
fn writes() -> Vec<Row> {
    let put = |name: &str, value: &str, more: Value| {
        let mut input = json!({"Name": name, "Value": value, "Type": "String"});
        more.as_object().unwrap().iter().for_each(|(k, v)| input[k] = v.clone());
        input
    };
    vec![
        ("PutParameter", json!({"Name": "/a/b", "Value": "x"}), "/__type", json!("ValidationException")),
        (
            "PutParameter",
            put("/a/b", "x", json!({"Tags": [{"Key": "t", "Value": "1"}]})),
            "/Version",
            json!(1),
        ),
        ("PutParameter", put("/a/b", "y", json!({})), "/__type", json!("ParameterAlreadyExists")),
        ("PutParameter", put("/a/b", "y", json!({"Overwrite": true})), "/Version", json!(2)),
        (
            "PutParameter",
            put("/a/c/d", "1", json!({"AllowedPattern": "^[a-z]$"})),
            "/__type",
            json!("ParameterPatternMismatchException"),
        ),
        ("PutParameter", put("/a/c/d", "z", json!({})), "/Version", json!(1)),
        (
            "PutParameter",
            put("/a/big", &"x".repeat(4_097), json!({})),
            "/__type",
            json!("ValidationException"),
        ),
        ("PutParameter", put("/aws/x", "1", json!({})), "/__type", json!("AccessDeniedException")),
        ("GetParameter", json!({"Name": "/a/b"}), "/Parameter/Value", json!("y")),
        ("GetParameter", json!({"Name": "/a/b:1"}), "/Parameter/Value", json!("x")),
        ("GetParameter", json!({"Name": "/a/b:7"}), "/__type", json!("ParameterVersionNotFound")),
        (
            "GetParameter",
            json!({"Name": format!("arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/a/b")}),
            "/Parameter/Version",
            json!(2),
        ),
    ]
}

/// Labels, lists, tags, the end.
fn labels_and_lists() -> Vec<Row> {
    vec![
        (
            "LabelParameterVersion",
            json!({"Name": "/a/b", "ParameterVersion": 1, "Labels": ["prod", "aws"]}),
            "/InvalidLabels",
            json!(["aws"]),
        ),
        ("GetParameter", json!({"Name": "/a/b:prod"}), "/Parameter/Value", json!("x")),
        ("LabelParameterVersion", json!({"Name": "/a/b", "Labels": ["prod"]}), "/ParameterVersion", json!(2)),
        ("GetParameter", json!({"Name": "/a/b:prod"}), "/Parameter/Value", json!("y")),
        (
            "UnlabelParameterVersion",
            json!({"Name": "/a/b", "ParameterVersion": 2, "Labels": ["prod", "no"]}),
            "/InvalidLabels",
            json!(["no"]),
        ),
        ("GetParameters", json!({"Names": ["/a/b", "/no"]}), "/InvalidParameters", json!(["/no"])),
        ("GetParametersByPath", json!({"Path": "/a"}), "/Parameters/1", json!(null)),
        (
            "GetParametersByPath",
            json!({"Path": "/a", "Recursive": true}),
            "/Parameters/1/Name",
            json!("/a/c/d"),
        ),
        (
            "GetParametersByPath",
            json!({"Path": "/a", "NextToken": "zzz"}),
            "/__type",
            json!("InvalidNextToken"),
        ),
        (
            "DescribeParameters",
            json!({"ParameterFilters": [{"Key": "tag:t", "Values": ["1"]}]}),
            "/Parameters/0/Name",
            json!("/a/b"),
        ),
        ("GetParameterHistory", json!({"Name": "/a/b"}), "/Parameters/0/Value", json!("x")),
        (
            "ListTagsForResource",
            json!({"ResourceType": "Parameter", "ResourceId": "/a/b"}),
            "/TagList/0/Key",
            json!("t"),
        ),
        ("DeleteParameters", json!({"Names": ["/a/b", "/no"]}), "/DeletedParameters", json!(["/a/b"])),
        ("DeleteParameter", json!({"Name": "/a/b"}), "/__type", json!("ParameterNotFound")),
    ]
}

#[tokio::test]
async fn parameters() {
    let world = world().await;
    run(&world, "ssm", writes()).await;
    run(&world, "ssm", labels_and_lists()).await;
}

#[tokio::test]
async fn secrets() {
    let world = world().await;
    let id = |text: &str| json!({"SecretId": text});
    let token = "11111111-2222-3333-4444-555555555555";
    let make = json!({"Name": "db", "SecretString": "one", "ClientRequestToken": token});
    let rows = vec![
        ("CreateSecret", make.clone(), "/VersionId", json!(token)),
        ("CreateSecret", make, "/VersionId", json!(token)),
        (
            "CreateSecret",
            json!({"Name": "db", "SecretString": "two"}),
            "/__type",
            json!("ResourceExistsException"),
        ),
        (
            "PutSecretValue",
            json!({"SecretId": "db", "SecretString": "two"}),
            "/VersionStages",
            json!(["AWSCURRENT"]),
        ),
        ("GetSecretValue", id("db"), "/SecretString", json!("two")),
        (
            "GetSecretValue",
            json!({"SecretId": "db", "VersionStage": "AWSPREVIOUS"}),
            "/VersionId",
            json!(token),
        ),
        (
            "UpdateSecretVersionStage",
            json!({"SecretId": "db", "VersionStage": "AWSCURRENT", "MoveToVersionId": token}),
            "/__type",
            json!("InvalidParameterException"),
        ),
        (
            "GetSecretValue",
            json!({"SecretId": "db", "VersionStage": "nope"}),
            "/__type",
            json!("ResourceNotFoundException"),
        ),
        (
            "UpdateSecret",
            json!({"SecretId": "db", "SecretString": "a", "SecretBinary": "YQ=="}),
            "/__type",
            json!("InvalidParameterException"),
        ),
        ("UpdateSecret", json!({"SecretId": "db", "SecretBinary": "YQ=="}), "/Name", json!("db")),
        ("GetSecretValue", id("db"), "/SecretBinary", json!("YQ==")),
        ("TagResource", json!({"SecretId": "db", "Tags": [{"Key": "a", "Value": "b"}]}), "", json!({})),
        ("DescribeSecret", id("db"), "/Tags/0/Key", json!("a")),
        (
            "ListSecrets",
            json!({"Filters": [{"Key": "tag-key", "Values": ["a"]}]}),
            "/SecretList/0/Name",
            json!("db"),
        ),
        ("ListSecrets", json!({"Filters": [{"Key": "name", "Values": ["!db"]}]}), "/SecretList", json!([])),
        ("ListSecretVersionIds", json!({"SecretId": "db", "IncludeDeprecated": true}), "/Name", json!("db")),
        (
            "DeleteSecret",
            json!({"SecretId": "db", "RecoveryWindowInDays": 3}),
            "/__type",
            json!("InvalidParameterException"),
        ),
        ("DeleteSecret", json!({"SecretId": "db", "RecoveryWindowInDays": 7}), "/Name", json!("db")),
        ("GetSecretValue", id("db"), "/__type", json!("InvalidRequestException")),
        ("CreateSecret", json!({"Name": "db"}), "/__type", json!("InvalidRequestException")),
        ("RestoreSecret", id("db"), "/Name", json!("db")),
        ("DeleteSecret", json!({"SecretId": "db", "ForceDeleteWithoutRecovery": true}), "/Name", json!("db")),
        ("GetSecretValue", id("db"), "/__type", json!("ResourceNotFoundException")),
    ];
    run(&world, "secretsmanager", rows).await;
}

fn of(more: Value) -> Value {
    let mut input = json!({"repositoryName": "team/web"});
    more.as_object().unwrap().iter().for_each(|(k, v)| input[k] = v.clone());
    input
}

#[tokio::test]
async fn repositories() {
    let world = world().await;
    let rows = vec![
        ("CreateRepository", json!({"repositoryName": "Bad"}), "/__type", json!("InvalidParameterException")),
        (
            "CreateRepository",
            of(json!({"imageTagMutability": "IMMUTABLE"})),
            "/repository/repositoryUri",
            json!("localhost:5000/team/web"),
        ),
        ("CreateRepository", of(json!({})), "/__type", json!("RepositoryAlreadyExistsException")),
        (
            "DescribeRepositories",
            json!({"registryId": "000000000000"}),
            "/__type",
            json!("RepositoryNotFoundException"),
        ),
        ("GetLifecyclePolicy", of(json!({})), "/__type", json!("LifecyclePolicyNotFoundException")),
        (
            "PutLifecyclePolicy",
            of(
                json!({"lifecyclePolicyText": "{\"rules\":[{\"rulePriority\":1}],\"x\":\"0123456789012345678901234567890123456789012345678901234567890123456789\"}"}),
            ),
            "/repositoryName",
            json!("team/web"),
        ),
        (
            "StartImageScan",
            of(json!({"imageId": {"imageTag": "1"}})),
            "/__type",
            json!("UnknownOperationException"),
        ),
    ];
    run(&world, "ecr", rows).await;
}

/// An image goes in by API calls alone: layers in parts, then the manifest.
#[tokio::test]
async fn images() {
    let world = world().await;
    call(&world, "ecr", "CreateRepository", of(json!({"imageTagMutability": "IMMUTABLE"}))).await;
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let digest = image::Digest::of(config);
    let (_, begun) = call(&world, "ecr", "InitiateLayerUpload", of(json!({}))).await;
    let id = begun["uploadId"].as_str().unwrap().to_string();
    let part = |from: usize, to: usize| {
        of(json!({"uploadId": id, "partFirstByte": from, "partLastByte": to - 1,
            "layerPartBlob": BASE64_STANDARD.encode(&config[from..to])}))
    };
    let ended = of(json!({"uploadId": id, "layerDigests": [digest.as_str()]}));
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.as_str(), "size": config.len()}});
    let put = |tag: &str, manifest: &Value| {
        of(json!({"imageManifest": manifest.to_string(), "imageManifestMediaType": media, "imageTag": tag}))
    };
    let mut other = manifest.clone();
    other["annotations"] = json!({"a": "b"});
    let rows = vec![
        ("PutImage", put("1", &manifest), "/__type", json!("LayersNotFoundException")),
        ("UploadLayerPart", part(10, 20), "/__type", json!("InvalidLayerPartException")),
        ("UploadLayerPart", part(0, 10), "/lastByteReceived", json!(9)),
        ("UploadLayerPart", part(10, config.len()), "/lastByteReceived", json!(config.len() - 1)),
        ("CompleteLayerUpload", ended.clone(), "/layerDigest", json!(digest.as_str())),
        ("CompleteLayerUpload", ended, "/__type", json!("UploadNotFoundException")),
        (
            "BatchCheckLayerAvailability",
            of(json!({"layerDigests": [digest.as_str()]})),
            "/layers/0/layerAvailability",
            json!("AVAILABLE"),
        ),
        ("PutImage", put("1", &manifest), "/image/imageId/imageTag", json!("1")),
        ("PutImage", put("1", &manifest), "/__type", json!("ImageAlreadyExistsException")),
        ("PutImage", put("1", &other), "/__type", json!("ImageTagAlreadyExistsException")),
        ("ListImages", of(json!({})), "/imageIds/0/imageTag", json!("1")),
        (
            "DescribeImages",
            of(json!({"imageIds": [{"imageTag": "1"}]})),
            "/imageDetails/0/imageSizeInBytes",
            json!(config.len()),
        ),
        (
            "DescribeImages",
            of(json!({"imageIds": [{"imageTag": "2"}]})),
            "/__type",
            json!("ImageNotFoundException"),
        ),
        ("DeleteRepository", of(json!({})), "/__type", json!("RepositoryNotEmptyException")),
        (
            "BatchDeleteImage",
            of(json!({"imageIds": [{"imageTag": "1"}, {"imageTag": "2"}]})),
            "/failures/0/failureCode",
            json!("ImageNotFound"),
        ),
        ("DeleteRepository", of(json!({"force": true})), "/repository/repositoryName", json!("team/web")),
        ("ListImages", of(json!({})), "/__type", json!("RepositoryNotFoundException")),
    ];
    run(&world, "ecr", rows).await;
}

#[tokio::test]
async fn roles_policies_and_profiles() {
    let world = world().await;
    let arn = format!("arn:aws:iam::{ACCOUNT}:policy/p");
    for (form, words) in [
        ("CreateRole&RoleName=r&AssumeRolePolicyDocument=nonsense".to_string(), "MalformedPolicyDocument"),
        (
            "CreateRole&RoleName=r&AssumeRolePolicyDocument=%7B%7D&Tags.member.1.Key=k&Tags.member.1.Value=v"
                .into(),
            "<AssumeRolePolicyDocument>%7B%7D<",
        ),
        ("CreateRole&RoleName=r&AssumeRolePolicyDocument=%7B%7D".into(), "EntityAlreadyExists"),
        ("TagRole&RoleName=r&Tags.member.1.Key=a&Tags.member.1.Value=b".into(), "TagRoleResponse"),
        ("ListRoleTags&RoleName=r&MaxItems=1".into(), "<Key>a</Key>"),
        ("ListRoleTags&RoleName=r".into(), "<Key>k</Key>"),
        ("CreatePolicy&PolicyName=p&PolicyDocument=%7B%7D".into(), "<DefaultVersionId>v1<"),
        (format!("AttachRolePolicy&RoleName=r&PolicyArn={arn}x"), "does not exist or is not attachable"),
        (format!("AttachRolePolicy&RoleName=r&PolicyArn={arn}"), "AttachRolePolicyResponse"),
        (format!("GetPolicy&PolicyArn={arn}"), "<AttachmentCount>1<"),
        ("CreateUser&UserName=u".into(), "<UserName>u<"),
        (format!("AttachUserPolicy&UserName=u&PolicyArn={arn}"), "AttachUserPolicyResponse"),
        (format!("GetPolicy&PolicyArn={arn}"), "<AttachmentCount>2<"),
        (format!("ListEntitiesForPolicy&PolicyArn={arn}&EntityFilter=User"), "<PolicyRoles></PolicyRoles>"),
        (format!("ListEntitiesForPolicy&PolicyArn={arn}"), "<UserName>u<"),
        (format!("DeletePolicy&PolicyArn={arn}"), "DeleteConflict"),
        (
            format!("CreatePolicyVersion&PolicyArn={arn}&PolicyDocument=%7B%7D&SetAsDefault=true"),
            "<VersionId>v2<",
        ),
        (format!("DeletePolicyVersion&PolicyArn={arn}&VersionId=v2"), "Cannot delete the default version"),
        (format!("DeletePolicyVersion&PolicyArn={arn}&VersionId=v1"), "DeletePolicyVersionResponse"),
        ("CreateInstanceProfile&InstanceProfileName=i".into(), "instance-profile/i"),
        (
            "AddRoleToInstanceProfile&InstanceProfileName=i&RoleName=r".into(),
            "AddRoleToInstanceProfileResponse",
        ),
        ("AddRoleToInstanceProfile&InstanceProfileName=i&RoleName=r".into(), "LimitExceeded"),
        ("ListInstanceProfilesForRole&RoleName=r".into(), "<InstanceProfileName>i<"),
        ("DeleteRole&RoleName=r".into(), "must detach all policies first"),
        (format!("DetachRolePolicy&RoleName=r&PolicyArn={arn}"), "DetachRolePolicyResponse"),
        ("DeleteRole&RoleName=r".into(), "must remove roles from instance profile first"),
        ("RemoveRoleFromInstanceProfile&InstanceProfileName=i&RoleName=r".into(), "Response"),
        ("DeleteRole&RoleName=r".into(), "DeleteRoleResponse"),
        ("GetRole&RoleName=r".into(), "<Code>NoSuchEntity<"),
        ("ListRoles&Marker=zzz".into(), "Invalid Marker"),
        ("CreateServiceLinkedRole&AWSServiceName=ecs.amazonaws.com".into(), "AWSServiceRoleForECS"),
    ] {
        let answer = world.query("iam", &format!("Action={form}&Version=2010-05-08")).await.text();
        assert!(answer.contains(words), "{form}: {answer}");
    }
}

//! EC2's networks: what there is from the start, what is made and refused.

use super::{net, text};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_default_network() {
    let net = net().await;
    let vpcs =
        net.ok("ec2 DescribeVpcs", json!({"Filters": [{"Name": "isDefault", "Values": ["true"]}]})).await;
    assert_eq!(
        (&vpcs["Vpcs"][0]["VpcId"], &vpcs["Vpcs"][0]["CidrBlock"]),
        (&json!("vpc-default"), &json!("10.244.0.0/16"))
    );
    let subnets = net.ok("ec2 DescribeSubnets", json!({"MaxResults": 1})).await;
    assert_eq!(subnets["Subnets"][0]["SubnetId"], "subnet-default-a");
    let rest = net.ok("ec2 DescribeSubnets", json!({"NextToken": subnets["NextToken"]})).await;
    assert_eq!(rest["Subnets"].as_array().unwrap().len(), 1);
    let group = net.ok("ec2 DescribeSecurityGroups", json!({"GroupNames": ["default"]})).await;
    assert_eq!(group["SecurityGroups"][0]["GroupId"], "sg-default");
    net.refused(&[
        (
            "ec2 DescribeVpcs",
            json!({"VpcIds": ["vpc-x"]}),
            "InvalidVpcID.NotFound",
            "The vpc ID 'vpc-x' does not exist",
        ),
        (
            "ec2 DescribeSubnets",
            json!({"SubnetIds": ["s"]}),
            "InvalidSubnetID.NotFound",
            "The subnet ID 's' does not exist",
        ),
        (
            "ec2 DescribeSecurityGroups",
            json!({"GroupIds": ["sg-x"]}),
            "InvalidGroup.NotFound",
            "The security group 'sg-x' does not exist",
        ),
        (
            "ec2 DescribeInstances",
            json!({"InstanceIds": ["i-x"]}),
            "InvalidInstanceID.NotFound",
            "The instance ID 'i-x' does not exist",
        ),
        ("ec2 DescribeSubnets", json!({"NextToken": "x"}), "InvalidParameterValue", "pagination token"),
        (
            "ec2 DeleteSecurityGroup",
            json!({"GroupId": "sg-default"}),
            "CannotDelete",
            "cannot be deleted by a user",
        ),
    ])
    .await;
    // What a user deletes stays deleted.
    net.ok("ec2 DeleteSubnet", json!({"SubnetId": "subnet-default-b"})).await;
    assert_eq!(net.ok("ec2 DescribeSubnets", json!({})).await["Subnets"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_come_and_go_in_order() {
    let net = net().await;
    let tags = json!([{"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "own"}]}]);
    let input = json!({"CidrBlock": "10.9.0.0/16", "TagSpecifications": tags});
    net.refused(&[
        ("ec2 CreateVpc", json!({"CidrBlock": "10.0.0.0/8"}), "InvalidParameterValue", "10.0.0.0/8"),
        (
            "ec2 CreateVpc",
            json!({"CidrBlock": "10.9.0.0/16", "DryRun": true}),
            "DryRunOperation",
            "would have succeeded",
        ),
    ])
    .await;
    let vpc = text(&net.ok("ec2 CreateVpc", input).await["Vpc"]["VpcId"]);
    let named = json!({"Filters": [{"Name": "tag:Name", "Values": ["o*"]}]});
    assert_eq!(net.ok("ec2 DescribeVpcs", named).await["Vpcs"][0]["VpcId"], *vpc);
    let of = |cidr: &str| json!({"VpcId": vpc, "CidrBlock": cidr});
    let subnet = text(&net.ok("ec2 CreateSubnet", of("10.9.1.0/24")).await["Subnet"]["SubnetId"]);
    let group = json!({"GroupName": "web", "Description": "d", "VpcId": vpc});
    let id = text(&net.ok("ec2 CreateSecurityGroup", group.clone()).await["GroupId"]);
    let rule = |port: u16| {
        json!({"GroupId": id, "IpPermissions": [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port,
            "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}]})
    };
    net.ok("ec2 AuthorizeSecurityGroupIngress", rule(80)).await;
    net.refused(&[
        ("ec2 CreateSubnet", of("10.9.1.128/25"), "InvalidSubnet.Conflict", "conflicts with another subnet"),
        ("ec2 CreateSubnet", of("10.8.1.0/24"), "InvalidSubnet.Range", "is invalid"),
        ("ec2 CreateSecurityGroup", group, "InvalidGroup.Duplicate", "already exists for VPC"),
        ("ec2 AuthorizeSecurityGroupIngress", rule(80), "InvalidPermission.Duplicate", "from port: 80"),
        ("ec2 RevokeSecurityGroupIngress", rule(81), "InvalidPermission.NotFound", "does not exist"),
        ("ec2 DeleteVpc", json!({"VpcId": vpc}), "DependencyViolation", "has dependencies"),
    ])
    .await;
    let table = net.ok("ec2 CreateRouteTable", json!({"VpcId": vpc})).await;
    let table = text(&table["RouteTable"]["RouteTableId"]);
    let route = json!({"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1"});
    net.ok("ec2 CreateRoute", route.clone()).await;
    net.refused(&[("ec2 CreateRoute", route, "RouteAlreadyExists", "0.0.0.0/0")]).await;
    let made = json!({"RouteTableId": table, "SubnetId": subnet});
    let association = net.ok("ec2 AssociateRouteTable", made).await["AssociationId"].clone();
    net.ok("ec2 DisassociateRouteTable", json!({"AssociationId": association})).await;
    for (operation, input) in [
        ("ec2 DeleteRouteTable", json!({"RouteTableId": table})),
        ("ec2 DeleteSecurityGroup", json!({"GroupId": id})),
        ("ec2 DeleteSubnet", json!({"SubnetId": subnet})),
        ("ec2 DeleteVpc", json!({"VpcId": vpc})),
    ] {
        net.ok(operation, input).await;
    }
    let left = json!({"Filters": [{"Name": "vpc-id", "Values": [vpc]}]});
    let none: Value = net.ok("ec2 DescribeSecurityGroups", left).await["SecurityGroups"].clone();
    assert_eq!(none, json!([]), "its default group went with it");
}

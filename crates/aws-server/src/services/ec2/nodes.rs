//! Nodes as instances, tasks' network interfaces, zones, regions and what else only depends on where we are.

use super::filter::{Filters, PAGES, pick};
use super::generic::listed;
use super::kinds::INTERFACE;
use super::store::{Store, zone_id};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, text};
use client::ListOptions;
use k8s_schema::gvr;
use serde_json::{Value, json};

/// A region that there is besides the caller's.
const REGIONS: [&str; 5] = ["us-east-1", "us-east-2", "us-west-2", "eu-central-1", "eu-west-1"];
/// Types that launch and placement code asks about: name, CPUs, MiB, architecture.
const TYPES: [(&str, u32, u32, &str); 14] = [
    ("gantry.node", 2, 8_192, "x86_64"),
    ("t3.micro", 2, 1_024, "x86_64"),
    ("t3.small", 2, 2_048, "x86_64"),
    ("t3.medium", 2, 4_096, "x86_64"),
    ("t3.large", 2, 8_192, "x86_64"),
    ("t4g.medium", 2, 4_096, "arm64"),
    ("m5.large", 2, 8_192, "x86_64"),
    ("m5.xlarge", 4, 16_384, "x86_64"),
    ("m5.2xlarge", 8, 32_768, "x86_64"),
    ("m6g.large", 2, 8_192, "arm64"),
    ("c5.large", 2, 4_096, "x86_64"),
    ("c5.xlarge", 4, 8_192, "x86_64"),
    ("r5.large", 2, 16_384, "x86_64"),
    ("r5.xlarge", 4, 32_768, "x86_64"),
];

async fn chosen(store: &Store, call: &Call) -> Result<Vec<Value>, AwsError> {
    let mut all = store.instances(call).await?;
    pick(call, "InstanceIds", &mut all, "InstanceId", |id| {
        AwsError::client("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
    })?;
    let filters = Filters::of(call);
    all.retain(|i| filters.fit(i));
    Ok(all)
}

/// DescribeInstances: a reservation a node.
pub(super) async fn describe_instances(store: &Store, call: &Call) -> Outcome {
    let one = |i: Value| {
        let id = text(&i, "InstanceId").replacen("i-", "r-", 1);
        json!({"ReservationId": id, "OwnerId": call.caller.account, "Groups": [], "Instances": [i]})
    };
    let all = chosen(store, call).await?.into_iter().map(one).collect();
    PAGES.answer(call, "Reservations", all, "ReservationId")
}

/// DescribeInstanceStatus: of running ones, unless all are asked for.
pub(super) async fn describe_status(store: &Store, call: &Call) -> Outcome {
    let running = |i: &Value| text(&i["State"], "Name") == "running";
    let all = chosen(store, call).await?;
    let wanted = all.iter().filter(|i| call.input["IncludeAllInstances"] == true || running(i));
    let one = |i: &Value| {
        let status = if running(i) { "ok" } else { "impaired" };
        let summary = json!({"Status": status, "Details": [{"Name": "reachability",
            "Status": if running(i) { "passed" } else { "failed" }}]});
        json!({"InstanceId": i["InstanceId"], "InstanceState": i["State"], "InstanceStatus": summary,
            "SystemStatus": summary, "AvailabilityZone": i["Placement"]["AvailabilityZone"]})
    };
    PAGES.answer(call, "InstanceStatuses", wanted.map(one).collect(), "InstanceId")
}

/// An interface of a running task, from the attachment that its status shows.
fn interface(call: &Call, task: &Value, attachment: &Value) -> Option<Value> {
    let detail = |name: &str| {
        let found = items(&attachment["details"]).iter().find(|d| text(d, "name") == name);
        found.map_or("", |d| text(d, "value"))
    };
    let (id, ip) = (detail("networkInterfaceId"), detail("privateIPv4Address"));
    let awsvpc = &task["spec"]["networkConfiguration"]["awsvpcConfiguration"];
    let groups = items(&awsvpc["securityGroups"]).iter().map(|g| json!({"GroupId": g, "GroupName": g}));
    (!id.is_empty()).then(|| {
        json!({
            "NetworkInterfaceId": id, "SubnetId": detail("subnetId"), "VpcId": "vpc-default", "Status": "in-use",
            "AvailabilityZone": task["spec"]["availabilityZone"], "MacAddress": detail("macAddress"),
            "PrivateIpAddress": ip, "PrivateDnsName": detail("privateDnsName"), "OwnerId": call.caller.account,
            "PrivateIpAddresses": [{"PrimaryAddress": true, "Primary": true, "PrivateIpAddress": ip}],
            "Description": text(attachment, "id"), "InterfaceType": "interface", "RequesterManaged": true,
            "SourceDestCheck": true, "Groups": groups.collect::<Vec<_>>(),
            "Attachment": {"AttachmentId": format!("ela-attach-{}", id.trim_start_matches("eni-")),
                "DeviceIndex": 1, "Status": "attached", "DeleteOnTermination": false},
            "Tags": [{"Key": "aws:ecs:taskArn", "Value": task["spec"]["taskArn"]}],
        })
    })
}

/// DescribeNetworkInterfaces: those that were made, and those of running tasks.
pub(super) async fn describe_interfaces(store: &Store, call: &Call) -> Outcome {
    let mut all = store.all(call, &INTERFACE).await?;
    let tasks = store.list(&gvr::ECS_TASKS, &ListOptions::default()).await?;
    let place = format!(":{}:{}:task/", call.region, call.caller.account);
    let running = |t: &&Value| {
        text(&t["spec"], "taskArn").contains(&place) && text(&t["status"], "lastStatus") != "STOPPED"
    };
    for task in tasks.iter().filter(running) {
        let attachments = items(&task["status"]["attachments"]).iter();
        all.extend(attachments.filter_map(|a| interface(call, task, a)));
    }
    listed(call, &INTERFACE, all)
}

/// DescribeAvailabilityZones.
pub(super) async fn zones(store: &Store, call: &Call) -> Outcome {
    let ids = call.items("ZoneIds");
    let one = |zone: &String| {
        json!({"ZoneName": zone, "ZoneId": zone_id(&store.zones, zone), "RegionName": call.region,
            "State": "available", "OptInStatus": "opt-in-not-required", "ZoneType": "availability-zone",
            "GroupName": call.region, "NetworkBorderGroup": call.region, "Messages": []})
    };
    let mut all: Vec<Value> = store.zones.iter().map(one).collect();
    pick(call, "ZoneNames", &mut all, "ZoneName", |name| {
        AwsError::client("InvalidParameterValue", format!("Invalid availability zone: [{name}]"))
    })?;
    let filters = Filters::of(call);
    all.retain(|z| (ids.is_empty() || ids.contains(&z["ZoneId"])) && filters.fit(z));
    Ok(json!({"AvailabilityZones": all}))
}

/// DescribeRegions.
pub(super) async fn regions(_: &Store, call: &Call) -> Outcome {
    let mut names = REGIONS.to_vec();
    if !names.contains(&&*call.region) {
        names.push(&call.region);
    }
    let wanted = call.items("RegionNames");
    let filters = Filters::of(call);
    let one = |name: &str| {
        json!({"RegionName": name, "Endpoint": format!("ec2.{name}.amazonaws.com"),
            "OptInStatus": "opt-in-not-required"})
    };
    let mut all: Vec<Value> = names.into_iter().map(one).collect();
    all.retain(|r| (wanted.is_empty() || wanted.contains(&r["RegionName"])) && filters.fit(r));
    Ok(json!({"Regions": all}))
}

/// DescribeAccountAttributes.
pub(super) async fn account(store: &Store, call: &Call) -> Outcome {
    let vpc = store.default_vpc(call).await?.unwrap_or_else(|| "none".into());
    let all = [
        ("supported-platforms", "VPC".to_string()),
        ("default-vpc", vpc),
        ("max-instances", "20".into()),
        ("vpc-max-security-groups-per-interface", "5".into()),
        ("vpc-max-elastic-ips", "5".into()),
        ("max-elastic-ips", "5".into()),
    ];
    let names = call.items("AttributeNames");
    let wanted = all.iter().filter(|(n, _)| names.is_empty() || names.iter().any(|w| w == n));
    let one = |(name, value): &(&str, String)| json!({"AttributeName": name, "AttributeValues": [{"AttributeValue": value}]});
    Ok(json!({"AccountAttributes": wanted.map(one).collect::<Vec<_>>()}))
}

/// DescribeInstanceTypes: of a short list.
pub(super) async fn types(_: &Store, call: &Call) -> Outcome {
    let filters = Filters::of(call);
    let one = |(name, cpus, mib, architecture): &(&str, u32, u32, &str)| {
        json!({"InstanceType": name, "CurrentGeneration": true, "BareMetal": false, "Hypervisor": "nitro",
            "VCpuInfo": {"DefaultVCpus": cpus, "DefaultCores": cpus, "DefaultThreadsPerCore": 1},
            "MemoryInfo": {"SizeInMiB": mib}, "SupportedUsageClasses": ["on-demand", "spot"],
            "ProcessorInfo": {"SupportedArchitectures": [architecture]}, "SupportedVirtualizationTypes": ["hvm"],
            "BurstablePerformanceSupported": name.starts_with('t'), "SupportedRootDeviceTypes": ["ebs"],
            "NetworkInfo": {"MaximumNetworkInterfaces": 4, "Ipv4AddressesPerInterface": 15},
            "InstanceStorageSupported": false})
    };
    let mut all: Vec<Value> = TYPES.iter().map(one).collect();
    pick(call, "InstanceTypes", &mut all, "InstanceType", |name| {
        let words = format!("The following supplied instance types do not exist: [{name}]");
        AwsError::client("InvalidInstanceType", words)
    })?;
    all.retain(|t| filters.fit(t));
    PAGES.answer(call, "InstanceTypes", all, "InstanceType")
}

/// DescribeInstanceTypeOfferings: everything everywhere.
pub(super) async fn offerings(store: &Store, call: &Call) -> Outcome {
    let kind = call.input["LocationType"].as_str().unwrap_or("region");
    let places: Vec<String> = match kind {
        "availability-zone" => store.zones.clone(),
        "availability-zone-id" => store.zones.iter().map(|z| zone_id(&store.zones, z)).collect(),
        _ => vec![call.region.clone()],
    };
    let filters = Filters::of(call);
    let all = TYPES.iter().flat_map(|(name, ..)| {
        places.iter().map(move |place| {
            json!({"InstanceType": name, "LocationType": kind, "Location": place,
                "order": format!("{name} {place}")})
        })
    });
    PAGES.answer(call, "InstanceTypeOfferings", all.filter(|o| filters.fit(o)).collect(), "order")
}

/// Lists of what there is none of.
pub(super) async fn nothing(_: &Store, _: &Call) -> Outcome {
    Ok(json!({}))
}

//! Cloud Map: namespaces, services, instances.

use super::{Net, net, text};
use serde_json::{Value, json};

const CREATE: &str = "servicediscovery CreateService";
const REGISTER: &str = "servicediscovery RegisterInstance";

async fn namespace(net: &Net, operation: &str, name: &str) -> String {
    let made = net.ok(operation, json!({"Name": name, "Vpc": "vpc-default"})).await;
    let id = json!({"OperationId": made["OperationId"]});
    let operation = net.ok("servicediscovery GetOperation", id).await["Operation"].clone();
    assert_eq!((&operation["Status"], &operation["Type"]), (&json!("SUCCESS"), &json!("CREATE_NAMESPACE")));
    text(&operation["Targets"]["NAMESPACE"])
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_found_by_name() {
    let net = net().await;
    let private = namespace(&net, "servicediscovery CreatePrivateDnsNamespace", "prod.local").await;
    let http = namespace(&net, "servicediscovery CreateHttpNamespace", "plain").await;
    let web = json!({"Name": "web", "NamespaceId": private, "HealthCheckCustomConfig": {},
        "DnsConfig": {"DnsRecords": [{"Type": "A", "TTL": 60}]}});
    let made = net.ok(CREATE, web.clone()).await["Service"].clone();
    let (id, arn) = (text(&made["Id"]), text(&made["Arn"]));
    let put = |name: &str, attributes: Value| json!({"ServiceId": id, "InstanceId": name, "Attributes": attributes});
    net.refused(&[
        (CREATE, web, "ServiceAlreadyExists", "already exists"),
        (
            CREATE,
            json!({"Name": "x", "NamespaceId": http, "DnsConfig": {"DnsRecords": [{"Type": "A", "TTL": 1}]}}),
            "InvalidInput",
            "HTTP namespace",
        ),
        (CREATE, json!({"Name": "x", "NamespaceId": "ns-x"}), "NamespaceNotFound", "ns-x"),
        (
            "servicediscovery CreateHttpNamespace",
            json!({"Name": "plain"}),
            "NamespaceAlreadyExists",
            "already exists",
        ),
        (REGISTER, put("a", json!({})), "InvalidInput", "AWS_INSTANCE_IPV4 is required"),
        (REGISTER, put("a", json!({"AWS_INSTANCE_IPV4": "x"})), "InvalidInput", "not a valid address"),
        (
            "servicediscovery GetInstance",
            json!({"ServiceId": id, "InstanceId": "a"}),
            "InstanceNotFound",
            "a",
        ),
        (
            "servicediscovery GetOperation",
            json!({"OperationId": "nonsense"}),
            "OperationNotFound",
            "nonsense",
        ),
        ("servicediscovery DeleteNamespace", json!({"Id": private}), "ResourceInUse", "services"),
    ])
    .await;
    for (name, ip, stage) in [("a", "10.244.0.1", "x"), ("b", "10.244.0.2", "y")] {
        net.ok(REGISTER, put(name, json!({"AWS_INSTANCE_IPV4": ip, "stage": stage}))).await;
    }
    let discover = async |more: Value| {
        let mut input = json!({"NamespaceName": "prod.local", "ServiceName": "web"});
        input.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        let found = net.ok("servicediscovery DiscoverInstances", input).await;
        let ids: String =
            found["Instances"].as_array().unwrap().iter().map(|i| text(&i["InstanceId"])).collect();
        (ids, found["InstancesRevision"].clone())
    };
    let (all, before) = discover(json!({})).await;
    assert_eq!((&*all, &*discover(json!({"QueryParameters": {"stage": "y"}})).await.0), ("ab", "b"));
    let sick = json!({"ServiceId": arn, "InstanceId": "a", "Status": "UNHEALTHY"});
    net.ok("servicediscovery UpdateInstanceCustomHealthStatus", sick).await;
    let (healthy, after) = discover(json!({})).await;
    assert!(healthy == "b" && before != after);
    let names = json!({"NamespaceName": "prod.local", "ServiceName": "web"});
    let revision = net.ok("servicediscovery DiscoverInstancesRevision", names).await;
    assert_eq!(revision["InstancesRevision"], after);
    let health = net.ok("servicediscovery GetInstancesHealthStatus", json!({"ServiceId": id})).await;
    assert_eq!(health["Status"], json!({"a": "UNHEALTHY", "b": "HEALTHY"}));
    net.refused(&[("servicediscovery DeleteService", json!({"Id": id}), "ResourceInUse", "instances")]).await;
    for name in ["a", "b"] {
        net.ok("servicediscovery DeregisterInstance", json!({"ServiceId": id, "InstanceId": name})).await;
    }
    net.ok("servicediscovery DeleteService", json!({"Id": arn})).await;
    net.ok("servicediscovery DeleteNamespace", json!({"Id": private})).await;
    let filter = json!({"Filters": [{"Name": "TYPE", "Values": ["HTTP"]}]});
    let left = net.ok("servicediscovery ListNamespaces", filter).await["Namespaces"].clone();
    assert_eq!((left.as_array().unwrap().len(), &left[0]["Name"]), (1, &json!("plain")));
}

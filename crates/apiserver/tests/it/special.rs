//! What some kinds have of their own: namespaces, pods, services, accounts of who may do what.

use crate::harness::*;
use auth::Identity;
use client::{EventKind, ListOptions, ObjectKey, Verb, WatchOptions, Write};
use futures_util::StreamExt;
use k8s_schema::gvr;
use serde_json::json;

#[tokio::test]
async fn namespaces_live_and_die() {
    let s = server().await;
    let namespaces = s.get("/api/v1/namespaces").await.expect(200);
    assert_eq!(namespaces["items"].as_array().unwrap().len(), 4);
    let message = s.post("/api/v1/namespaces/none/configmaps", &config_map("a")).await.fails(404, "NotFound");
    assert_eq!(message, "namespaces \"none\" not found");
    let made = s.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.expect(201);
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["status"]["phase"], "Active");
    s.post("/api/v1/namespaces/n/configmaps", &config_map("a")).await.expect(201);
    let going = s.delete("/api/v1/namespaces/n").await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = s.post("/api/v1/namespaces/n/configmaps", &config_map("b")).await.expect(403);
    assert_eq!(
        refused["message"],
        "configmaps \"b\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut body = s.get("/api/v1/namespaces/n").await.expect(200);
    body["spec"]["finalizers"] = json!([]);
    s.put("/api/v1/namespaces/n/finalize", &body).await.expect(200);
    s.get("/api/v1/namespaces/n").await.fails(404, "NotFound");
    let message = s.delete("/api/v1/namespaces/default").await.fails(403, "Forbidden");
    assert_eq!(message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

#[tokio::test]
async fn as_the_conformance_suite_of_1_36_expects() {
    let s = server().await;
    let own = json!([{"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"}]);
    let mut body = pod("p");
    body["metadata"]["generation"] = json!(100);
    body["spec"]["terminationGracePeriodSeconds"] = json!(-1);
    let made = s.post(PODS, &body).await.expect(201);
    assert_eq!(
        (&made["metadata"]["generation"], &made["spec"]["terminationGracePeriodSeconds"]),
        (&json!(1), &json!(1))
    );
    let path = format!("{PODS}/p");
    let mut body = s.get(&path).await.expect(200);
    body["spec"]["tolerations"] = own.clone();
    let updated = s.put(&path, &body).await.expect(200);
    assert_eq!(updated["metadata"]["generation"], 2);
    let tolerations = updated["spec"]["tolerations"].as_array().unwrap();
    assert_eq!((tolerations.len(), &tolerations[0]), (3, &own[0]), "the two that everybody has came back");
    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "debugger", "image": "i"}]}});
    let kind = "strategic-merge-patch";
    let debugged = s.patch(&format!("{path}/ephemeralcontainers"), kind, &debugger).await.expect(200);
    assert_eq!(debugged["metadata"]["generation"], 3);

    let range = s.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes/status").await.expect(200);
    assert_eq!((&range["kind"], &range["spec"]["cidrs"][0]), (&json!("ServiceCIDR"), &json!("10.96.0.0/16")));
    assert_eq!(range["status"]["conditions"][0]["type"], "Ready");

    // A status is there from the start, so that something can be added to it.
    let claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let exactly = json!({"deviceClassName": "dra.example.com"});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}});
    s.post(claims, &claim).await.expect(201);
    let add = json!([{"op": "add", "path": "/status/allocation", "value": {}}]);
    let patched = s.patch(&format!("{claims}/c/status"), "json-patch", &add).await.expect(200);
    assert!(patched["status"]["allocation"].is_object());
    let attachment = json!({"metadata": {"name": "a"},
        "spec": {"attacher": "x", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    let made = s.post("/apis/storage.k8s.io/v1/volumeattachments", &attachment).await.expect(201);
    assert_eq!(made["status"], json!({"attached": false}));
}

#[tokio::test]
async fn pods_are_admitted_bound_and_deleted_with_grace() {
    let s = server().await;
    let made = s.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let bound = s.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let message = s.post(&format!("{PODS}/p/binding"), &binding).await.fails(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
    let on_node = s.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect(200);
    assert_eq!(on_node["items"].as_array().unwrap().len(), 1);
    let going = s.delete(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let done = s.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.expect(200);
    assert_eq!(done["kind"], "Pod");
    s.get(&format!("{PODS}/p")).await.fails(404, "NotFound");
    s.post(PODS, &pod("q")).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "q"}});
    assert_eq!(s.post(&format!("{PODS}/q/eviction"), &eviction).await.expect(201)["status"], "Success");
    s.get(&format!("{PODS}/q")).await.fails(404, "NotFound");
    let mut classy = pod("r");
    classy["spec"]["priorityClassName"] = json!("system-node-critical");
    assert_eq!(s.post(PODS, &classy).await.expect(201)["spec"]["priority"], 2_000_001_000);
    let mut unknown = pod("u");
    unknown["spec"]["priorityClassName"] = json!("none");
    let message = s.post(PODS, &unknown).await.fails(403, "Forbidden");
    assert_eq!(message, "pods \"u\" is forbidden: no PriorityClass with name none was found");
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: serde_json::Value) -> serde_json::Value {
    let mut body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    body["spec"]["ports"] = json!([{"port": 80}]);
    body
}

#[tokio::test]
async fn services_get_addresses_and_give_them_back() {
    let s = server().await;
    let one = s.post(SERVICES, &service("one", json!({}))).await.expect(201);
    let ip = one["spec"]["clusterIP"].as_str().unwrap().to_string();
    assert!(ip.starts_with("10.96."), "{ip}");
    assert_eq!(one["spec"]["clusterIPs"], json!([ip]));
    assert_eq!(one["spec"]["type"], "ClusterIP");
    assert_eq!(one["spec"]["ports"][0]["targetPort"], 80);
    let message = s.post(SERVICES, &service("two", json!({"clusterIP": ip}))).await.fails(422, "Invalid");
    assert!(
        message.contains("spec.clusterIPs: Invalid value: [\"")
            && message.contains("provided IP is already allocated"),
        "{message}"
    );
    s.post(SERVICES, &service("out", json!({"clusterIP": "192.168.0.1"}))).await.fails(422, "Invalid");
    // A failed create gives nothing away and takes nothing for good.
    s.post(SERVICES, &service("one", json!({"clusterIP": ip}))).await.fails(409, "AlreadyExists");
    s.post(SERVICES, &service("two", json!({"clusterIP": ip}))).await.fails(422, "Invalid");
    s.delete(&format!("{SERVICES}/one")).await.expect(200);
    s.post(SERVICES, &service("two", json!({"clusterIP": ip}))).await.expect(201);
    let none = s.post(SERVICES, &service("headless", json!({"clusterIP": "None"}))).await.expect(201);
    assert_eq!(none["spec"]["clusterIPs"], json!(["None"]));
    let node = s.post(SERVICES, &service("node", json!({"type": "NodePort"}))).await.expect(201);
    let port = node["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_000..=32_767).contains(&port));
    let mut same = service("same", json!({"type": "NodePort"}));
    same["spec"]["ports"] = json!([{"port": 80, "nodePort": port}]);
    let message = s.post(SERVICES, &same).await.fails(422, "Invalid");
    assert!(
        message.contains("spec.ports[0].nodePort: Invalid value:")
            && message.contains("provided port is already allocated"),
        "{message}"
    );
    let path = format!("{SERVICES}/node");
    let back = s.patch(&path, "merge-patch", &json!({"spec": {"type": "ClusterIP"}})).await.expect(200);
    assert!(back["spec"]["ports"][0]["nodePort"].is_null(), "{back}");
    s.post(SERVICES, &same).await.expect(201);
}

#[tokio::test]
async fn the_kubernetes_service_points_at_the_server() {
    let s = server_with(|c| c.advertise = Some(([10, 0, 0, 7].into(), 6443))).await;
    let service = s.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = s.get("/api/v1/namespaces/default/endpoints/kubernetes").await.expect(200);
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.0.0.7");
}

#[tokio::test]
async fn who_may_do_what() {
    let s = server().await;
    let nobody = s.with_identity(Identity::default());
    let message = nobody.get(PODS).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(nobody.get("/healthz").await.code, 200);
    let message = nobody.get("/metrics").await.fails(403, "Forbidden");
    assert_eq!(message, "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"");
    nobody.call("GET", PODS, &[("authorization", "Bearer x")], "").await.fails(401, "Unauthorized");
    let alice = s.with_identity(Identity::new("alice", ["system:authenticated"]));
    let message = alice.get(&format!("{PODS}/p")).await.fails(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"p\" is forbidden: User \"alice\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let review =
        json!({"spec": {"user": "alice", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(s.post(path, &review).await.expect(201)["status"]["allowed"], false);
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(s.post(path, &review).await.expect(201)["status"]["allowed"], true);
    let me = s.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "admin");
}

#[tokio::test]
async fn components_in_the_process_pass_the_same_gates() {
    let s = server().await;
    let client = s.api.client(Identity::new("test", ["system:masters"]));
    let stranger = s.api.client(Identity::new("alice", []));
    let error = stranger.list(&gvr::PODS, &ListOptions::default()).await.unwrap_err();
    assert_eq!((error.code, error.reason), (403, "Forbidden"));
    let options = WatchOptions::default();
    let mut events = client.watch(&gvr::PODS, &options).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().kind, EventKind::Bookmark);
    let mut body = pod("p");
    body["metadata"]["namespace"] = json!("default");
    let made = client.create(&gvr::PODS, body).await.unwrap();
    let seen = events.next().await.unwrap().unwrap();
    assert_eq!((seen.kind, seen.object.revision), (EventKind::Added, made.revision));
    assert_eq!(seen.object.raw, made.raw);
    let key = ObjectKey::new("default", "p");
    let got = client.get(&gvr::PODS, &key).await.unwrap();
    let again = client.get(&gvr::PODS, &key).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&got, &again), "shared, not copied");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let write =
        Write { gvr: gvr::PODS, key: key.clone(), subresource: "binding", verb: Verb::Create(binding) };
    let bound = client.write(write).await.unwrap();
    assert_eq!(bound.value().unwrap()["spec"]["nodeName"], "n");
    let patched =
        client.merge_patch_status(&gvr::PODS, &key, json!({"status": {"phase": "Running"}})).await.unwrap();
    assert_eq!(patched.value().unwrap()["status"]["phase"], "Running");
    let cache = client::cache::Cache::start(client.clone(), gvr::PODS, ListOptions::default());
    tokio::time::timeout(PATIENCE, cache.wait_synced()).await.unwrap();
    assert_eq!(cache.len(), 1);
    client
        .delete(
            &gvr::PODS,
            &key,
            client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() },
        )
        .await
        .unwrap();
    let mut changed = cache.changed();
    tokio::time::timeout(PATIENCE, async {
        while !cache.is_empty() {
            changed.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    let error = client.get(&gvr::PODS, &key).await.unwrap_err();
    assert!(error.is_not_found());
}

/// Plug-ins that run where they are asked for.
#[tokio::test]
async fn optional_plugins_run_where_they_are_asked_for() {
    let all = "AlwaysPullImages,PodNodeSelector,PodTolerationRestriction,ExtendedResourceToleration,DenyServiceExternalIPs,LimitPodHardAntiAffinityTopology";
    let s = server_with(|c| c.plugins = apiserver::Plugins::read(all, "Priority").unwrap()).await;
    let namespace = json!({"metadata": {"name": "n", "annotations": {
        "scheduler.alpha.kubernetes.io/node-selector": "disk=ssd,zone=a",
        "scheduler.alpha.kubernetes.io/defaultTolerations": r#"[{"key": "own", "operator": "Exists"}]"#,
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist":
            r#"[{"key": "own", "operator": "Exists"}, {"operator": "Exists", "effect": "NoExecute"}, {"operator": "Exists", "effect": "NoSchedule"}]"#}}});
    s.post("/api/v1/namespaces", &namespace).await.expect(201);
    let pods = "/api/v1/namespaces/n/pods";
    let mut wanted = pod("a");
    wanted["spec"]["containers"][0]["resources"] =
        json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    let made = s.post(pods, &wanted).await.expect(201);
    assert_eq!(made["spec"]["nodeSelector"], json!({"disk": "ssd", "zone": "a"}));
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(made["spec"].get("priority"), None, "a plug-in that one may do without");
    let keys: Vec<&str> =
        made["spec"]["tolerations"].as_array().unwrap().iter().filter_map(|t| t["key"].as_str()).collect();
    assert!(keys.contains(&"own") && keys.contains(&"example.com/gpu"), "{keys:?}");
    for (change, why) in [
        (
            json!({"nodeSelector": {"disk": "hdd"}}),
            "pod node label selector conflicts with its namespace node label selector",
        ),
        (
            json!({"tolerations": [{"key": "other", "operator": "Exists", "effect": "PreferNoSchedule"}]}),
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist",
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": "zone", "labelSelector": {}}]}}}),
            "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey zone but only key kubernetes.io/hostname is allowed",
        ),
    ] {
        let mut bad = pod("b");
        change.as_object().unwrap().iter().for_each(|(k, v)| bad["spec"][k] = v.clone());
        let message = s.post(pods, &bad).await.fails(403, "Forbidden");
        assert!(message.ends_with(why), "{message}");
    }
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": ["1.2.3.4"]}});
    let message = s.post("/api/v1/namespaces/n/services", &service).await.fails(403, "Forbidden");
    assert!(message.ends_with("Use of external IPs is denied by admission control"), "{message}");
}

/// OwnerReferencesPermissionEnforcement: who may neither delete an object nor finalize its owner leaves the owner free.
#[tokio::test]
async fn owners_are_blocked_by_those_who_may_change_them() {
    let s = server_with(|c| {
        c.plugins = apiserver::Plugins::read("OwnerReferencesPermissionEnforcement", "").unwrap();
    })
    .await;
    let owner = s.post(MAPS, &config_map("owner")).await.expect(201);
    let owned = |name: &str, kind: &str, blocks: bool| {
        let mut map = config_map(name);
        map["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": kind, "name": "owner",
            "uid": owner["metadata"]["uid"], "blockOwnerDeletion": blocks}]);
        map
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = async |rules: serde_json::Value| {
        let role = json!({"metadata": {"name": "r"}, "rules": rules});
        s.delete(&format!("{rbac}/clusterroles/r")).await;
        s.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    };
    let maps = |verbs: &[&str]| json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs});
    rules(json!([maps(&["create", "update"])])).await;
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "carol",
        "apiGroup": "rbac.authorization.k8s.io"}]});
    s.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let carol = s.with_identity(Identity::new("carol", ["system:authenticated"]));
    carol.post(MAPS, &owned("free", "ConfigMap", false)).await.expect(201);
    for (body, why) in [
        (owned("a", "ConfigMap", true), "refers to a resource you can't set finalizers on: , <nil>"),
        (owned("a", "Nothing", true), "no matches for kind \"Nothing\" in version \"v1\""),
    ] {
        let message = carol.post(MAPS, &body).await.fails(403, "Forbidden");
        assert!(message.ends_with(why), "{message}");
    }
    let message = carol.put(&format!("{MAPS}/free"), &config_map("free")).await.fails(403, "Forbidden");
    assert!(message.ends_with("cannot set an ownerRef on a resource you can't delete: , <nil>"), "{message}");
    let finalizers = json!({"apiGroups": [""], "resources": ["configmaps/finalizers"], "verbs": ["update"]});
    rules(json!([maps(&["create", "update", "delete"]), finalizers])).await;
    carol.put(&format!("{MAPS}/free"), &owned("free", "ConfigMap", true)).await.expect(200);
}

const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// An address is its service's as long as there is an IPAddress that says so; ranges come and go.
#[tokio::test]
async fn addresses_of_services_are_objects() {
    let s = server().await;
    let service = |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let given = s.post(SERVICES, &service("a", "")).await.expect(201);
    let ip = given["spec"]["clusterIP"].as_str().unwrap();
    let held = s.get(&format!("{ADDRESSES}/{ip}")).await.expect(200);
    assert_eq!(
        held["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "default", "name": "a"})
    );
    assert_eq!(held["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");
    s.post(SERVICES, &service("b", ip)).await.fails(422, "Invalid");
    let taken = json!({"metadata": {"name": "10.96.7.7"}, "spec": {"parentRef": {"group": "x.io", "resource": "gateways", "name": "g"}}});
    s.post(ADDRESSES, &taken).await.expect(201);
    let why = s.post(SERVICES, &service("b", "10.96.7.7")).await.fails(422, "Invalid");
    assert!(why.contains("failed to allocate IP 10.96.7.7: provided IP is already allocated"), "{why}");
    let why = s.post(SERVICES, &service("b", "10.200.0.5")).await.fails(422, "Invalid");
    assert!(why.contains("the provided network does not match the current range"), "{why}");
    s.post(RANGES, &json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/28"]}}))
        .await
        .expect(201);
    s.post(SERVICES, &service("b", "10.200.0.5")).await.expect(201);
    s.delete(&format!("{SERVICES}/b")).await.expect(200);
    s.get(&format!("{ADDRESSES}/10.200.0.5")).await.fails(404, "NotFound");
    s.post(SERVICES, &service("c", "10.200.0.5")).await.expect(201);
    let plain = json!({"metadata": {"name": "c"}, "spec": {"type": "ExternalName", "externalName": "x.y"}});
    s.put(&format!("{SERVICES}/c"), &plain).await.expect(200);
    s.get(&format!("{ADDRESSES}/10.200.0.5")).await.fails(404, "NotFound");
}

/// What a gate brings is not there while it is off.
#[tokio::test]
async fn features_are_served_where_their_gate_is_on() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "strategy": "OldestEmulationVersion", "preferredHolder": "b"}});
    let s = server().await;
    s.get("/apis/coordination.k8s.io/v1beta1/leasecandidates").await.fails(404, "NotFound");
    let made = s.post(LEASES, &lease).await.expect(201);
    assert_eq!(made["spec"], json!({"holderIdentity": "a"}));
    let text = String::from_utf8(s.get("/metrics").await.body.to_vec()).unwrap();
    assert!(
        text.contains("kubernetes_feature_enabled{name=\"CoordinatedLeaderElection\",stage=\"BETA\"} 0\n")
    );
    let on =
        server_with(|c| c.gates = k8s_schema::Gates::parse("CoordinatedLeaderElection=true").unwrap()).await;
    on.get("/apis/coordination.k8s.io/v1beta1/leasecandidates").await.expect(200);
    assert_eq!(on.post(LEASES, &lease).await.expect(201)["spec"]["preferredHolder"], "b");
    let status = ("accept", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz");
    let status = on.call("GET", "/statusz", &[status], "").await.expect(200);
    assert_eq!(
        (&status["kind"], &status["apiVersion"]),
        (&json!("Statusz"), &json!("config.k8s.io/v1beta1"))
    );
    on.call("GET", "/flagz", &[("accept", "application/json")], "").await.fails(406, "NotAcceptable");
}

/// Where the writer does not say since when a device is tainted, it is since now; of a rule also when it does more.
#[tokio::test]
async fn taints_of_devices_have_a_time() {
    const RULES: &str = "/apis/resource.k8s.io/v1beta2/devicetaintrules";
    let s = server_with(|c| c.gates = k8s_schema::Gates::parse("DRADeviceTaintRules=true").unwrap()).await;
    let taints = json!([{"key": "a", "effect": "NoSchedule"},
        {"key": "b", "effect": "NoExecute", "timeAdded": "2001-01-01T00:00:00Z"}]);
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "x.io", "allNodes": true, "devices":
        [{"name": "d", "taints": taints}], "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}});
    let made = s.post("/apis/resource.k8s.io/v1/resourceslices", &slice).await.expect(201);
    let taints = &made["spec"]["devices"][0]["taints"];
    assert!(taints[0]["timeAdded"].is_string(), "{made}");
    assert_eq!(taints[1]["timeAdded"], "2001-01-01T00:00:00Z");
    let rule = |effect: &str, at: &str| {
        json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "x.io"},
            "taint": {"key": "k", "effect": effect, "timeAdded": at}}})
    };
    let (old, at) = ("2001-01-01T00:00:00Z", "/spec/taint/timeAdded");
    let made = s.post(RULES, &rule("None", old)).await.expect(201);
    assert_eq!(made.pointer(at).unwrap(), old);
    let one = format!("{RULES}/r");
    let changed = s.put(&one, &rule("NoExecute", old)).await.expect(200);
    assert_ne!(changed.pointer(at).unwrap(), old);
    assert_eq!(s.put(&one, &rule("NoSchedule", old)).await.expect(200).pointer(at).unwrap(), old, "as told");
    let bad = json!({"metadata": {"name": "bad"}, "spec": {"taint": {"key": "k", "effect": "Maybe"}}});
    s.post(RULES, &bad).await.fails(422, "Invalid");
}

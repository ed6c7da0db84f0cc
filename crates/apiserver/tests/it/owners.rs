//! Field managers and server-side apply over HTTP.

use crate::harness::*;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn whole(replicas: u32) -> Value {
    deployment(
        json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "nginx"}]}}}),
    )
}

impl Server {
    /// Server-side apply, as kubectl sends it.
    async fn apply(&self, path: &str, manager: &str, config: &Value) -> Reply {
        let path = format!("{path}?fieldManager={manager}");
        self.call("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], config.to_string())
            .await
    }
}

/// `manager operation subresource` of every entry.
fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |e: &Value| {
        let part = e["subresource"].as_str().unwrap_or("-");
        format!("{} {} {part}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap())
    };
    list.iter().map(text).collect()
}

#[tokio::test]
async fn apply_creates_changes_nothing_twice_and_conflicts() {
    let s = server().await;
    let path = format!("{DEPLOYMENTS}/web");
    let made = s.apply(&path, "a", &whole(2)).await.expect(201);
    assert_eq!(managers(&made), ["a Apply -"]);
    assert_eq!(made["spec"]["revisionHistoryLimit"], 10, "defaulted");
    let again = s.apply(&path, "a", &whole(2)).await.expect(200);
    assert_eq!(again, made);
    let reply = s.apply(&path, "b", &deployment(json!({"replicas": 3}))).await;
    let status: Value = reply.json();
    assert_eq!(
        reply.fails(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
    );
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}])
    );
    let forced = s.apply(&path, "b&force=true", &deployment(json!({"replicas": 3}))).await.expect(200);
    assert_eq!(
        (&forced["spec"]["replicas"], managers(&forced)),
        (&json!(3), vec!["a Apply -".into(), "b Apply -".into()])
    );
    let dry =
        s.apply(&path, "b&dryRun=All&force=true", &deployment(json!({"replicas": 5}))).await.expect(200);
    assert_eq!(dry["spec"]["replicas"], 5);
    assert_eq!(s.get(&path).await.expect(200), forced);
    // b gives it up: nobody wants it any more, and the default is back.
    let left = s
        .apply(
            &path,
            "b",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}),
        )
        .await
        .expect(200);
    assert_eq!((&left["spec"]["replicas"], managers(&left)), (&json!(1), vec!["a Apply -".into()]));
    s.delete(&path).await.expect(200);
    s.apply(&path, "a", &whole(2)).await.expect(201);
}

#[tokio::test]
async fn every_write_has_its_manager() {
    let s = server().await;
    let agent = [("content-type", "application/json"), ("user-agent", "kubectl/v1.32 (linux)")];
    let made = s.call("POST", DEPLOYMENTS, &agent, whole(1).to_string()).await.expect(201);
    assert_eq!(managers(&made), ["kubectl Update -"]);
    let fields = &made["metadata"]["managedFields"][0]["fieldsV1"];
    assert!(
        fields["f:spec"]["f:progressDeadlineSeconds"].is_object(),
        "defaults are the creator's: {fields}"
    );
    assert!(
        fields.get("f:status").is_none() && fields["f:metadata"].get("f:generation").is_none(),
        "{fields}"
    );
    let path = format!("{DEPLOYMENTS}/web");
    let mut object = made.clone();
    object["status"] = json!({"replicas": 1, "observedGeneration": 1});
    let object = s.put(&format!("{path}/status?fieldManager=m"), &object).await.expect(200);
    assert_eq!(managers(&object)[1], "m Update status");
    let patched = s
        .patch(&format!("{path}?fieldManager=p"), "merge-patch", &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect(200);
    let entry = patched["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == "p")
        .unwrap()
        .clone();
    assert_eq!(entry["fieldsV1"], json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}));
    let scale = json!({"spec": {"replicas": 4}});
    s.patch(&format!("{path}/scale?fieldManager=s"), "merge-patch", &scale).await.expect(200);
    let scaled = s.get(&path).await.expect(200);
    assert!(managers(&scaled).contains(&"s Update scale".to_string()), "{:?}", managers(&scaled));
    // A PUT of what was read, without managers, keeps them.
    let mut bare = scaled.clone();
    bare["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert_eq!(s.put(&path, &bare).await.expect(200), scaled);
    let reset = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let reset = s.patch(&path, "json-patch", &reset).await.expect(200);
    assert_eq!(managers(&reset), Vec::<String>::new());
}

#[tokio::test]
async fn status_and_scale_are_applied_too() {
    let s = server().await;
    let path = format!("{DEPLOYMENTS}/web");
    let mut config = deployment(json!({"replicas": 9}));
    config["status"] = json!({"replicas": 1});
    s.apply(&format!("{path}/status"), "c", &config).await.fails(404, "NotFound");
    s.apply(&path, "a", &whole(2)).await.expect(201);
    let object = s.apply(&format!("{path}/status"), "c", &config).await.expect(200);
    assert_eq!((&object["spec"]["replicas"], &object["status"]["replicas"]), (&json!(2), &json!(1)));
    let entry = object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == "c")
        .unwrap()
        .clone();
    assert_eq!(entry["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 5}});
    let message = s.apply(&format!("{path}/scale"), "h", &scale).await.fails(409, "Conflict");
    assert!(message.ends_with("conflict with \"a\": .spec.replicas"), "{message}");
    let scaled = s.apply(&format!("{path}/scale"), "h&force=1", &scale).await.expect(200);
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    assert!(managers(&s.get(&path).await.expect(200)).contains(&"h Apply scale".to_string()));
}

#[tokio::test]
async fn refused_applies() {
    let s = server().await;
    let path = format!("{MAPS}/a");
    let headers = [("content-type", "application/apply-patch+yaml")];
    let message = s.call("PATCH", &path, &headers, config_map("a").to_string()).await.fails(422, "Invalid");
    assert_eq!(
        message,
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let message =
        s.patch(&format!("{path}?force=true"), "merge-patch", &json!({})).await.fails(422, "Invalid");
    assert!(message.ends_with("force: Forbidden: may not be specified for non-apply patch"), "{message}");
    let long = "x".repeat(129);
    s.apply(&path, &long, &config_map("a")).await.fails(422, "Invalid");
    s.call("PATCH", &format!("{path}?fieldManager=m"), &headers, "a: [").await.fails(400, "BadRequest");
    s.apply(&path, "m", &json!({"metadata": {"name": "a"}})).await.fails(400, "BadRequest");
    s.apply(&path, "m", &config_map("b")).await.fails(400, "BadRequest");
    s.apply(&path, "m", &json!({"apiVersion": "v1", "kind": "ConfigMap"})).await.fails(400, "BadRequest");
    let mut stale = config_map("a");
    stale["metadata"]["uid"] = json!("u");
    let message = s.apply(&path, "m", &stale).await.fails(409, "Conflict");
    assert!(message.contains("uid mismatch"), "{message}");
    // YAML, whatever comes first creates.
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    y\n";
    let made = s.call("PATCH", &format!("{path}?fieldManager=m"), &headers, yaml).await.expect(201);
    assert_eq!(made["data"]["x"], "y\n");
    s.apply(&path, "m", &stale).await.fails(409, "Conflict");
    stale["metadata"]["uid"] = made["metadata"]["uid"].clone();
    stale["metadata"]["resourceVersion"] = json!("1");
    s.apply(&path, "m", &stale).await.fails(409, "Conflict");
    let mut unknown = config_map("a");
    unknown["dta"] = json!({});
    let message = s.apply(&path, "m", &unknown).await.fails(500, "");
    assert_eq!(
        message,
        "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .dta: field not declared in schema"
    );
}

#[tokio::test]
async fn racing_appliers_all_land() {
    let s = std::sync::Arc::new(server().await);
    let tasks = (0..8).map(|n| {
        let s = s.clone();
        tokio::spawn(async move {
            let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {format!("k{n}"): "1"}});
            assert!(matches!(s.apply(&format!("{MAPS}/a"), &format!("m{n}"), &config).await.code, 200 | 201));
        })
    });
    futures_util::future::join_all(tasks).await.into_iter().for_each(|t| t.unwrap());
    let object = s.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(object["data"].as_object().unwrap().len(), 8);
    assert_eq!(managers(&object).len(), 8);
}

#[tokio::test]
async fn components_are_managers_and_bindings_are_not_recorded() {
    let s = server().await;
    let component = |name: &str| s.api.client(auth::Identity::new(name, ["system:masters"]));
    let key = client::ObjectKey::new("default", "p");
    let pods = &k8s_schema::gvr::PODS;
    let mut body = pod("p");
    body["metadata"]["namespace"] = json!("default");
    component("system:kube-controller-manager").create(pods, body).await.unwrap();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    s.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}});
    component("system:node:n").merge_patch_status(pods, &key, status).await.unwrap();
    let object = s.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(object["spec"]["nodeName"], "n");
    assert_eq!(managers(&object), ["kube-controller-manager Update -", "kubelet Update status"]);
    let fields = &object["metadata"]["managedFields"][1]["fieldsV1"];
    assert_eq!(*fields, json!({"f:status": {"f:phase": {}, "f:podIP": {}}}));
    assert!(!object["metadata"]["managedFields"][0]["fieldsV1"].to_string().contains("nodeName"));
    println!("{}", object["metadata"]["managedFields"]);
}

#[tokio::test]
async fn quantities_written_otherwise_are_no_change() {
    let s = server().await;
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers":
        [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}]}});
    let path = format!("{PODS}/p");
    let made = s.apply(&path, "a", &config).await.expect(201);
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(s.apply(&path, "a", &config).await.expect(200), made);
}

#[tokio::test]
async fn ephemeral_containers_only_come() {
    let s = server().await;
    s.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p/ephemeralcontainers?fieldManager=debug");
    let patch = |list: Value| json!({"spec": {"ephemeralContainers": list}});
    let good =
        json!([{"name": "d", "image": "busybox", "targetContainerName": "c", "stdin": true, "tty": true}]);
    let object = s.patch(&path, "strategic-merge-patch", &patch(good)).await.expect(200);
    assert_eq!(object["spec"]["ephemeralContainers"][0]["imagePullPolicy"], "Always");
    assert!(managers(&object).contains(&"debug Update ephemeralcontainers".to_string()));
    for (kind, list, words) in [
        (
            "merge-patch",
            json!([]),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be removed",
        ),
        (
            "strategic-merge-patch",
            json!([{"name": "d", "image": "x"}]),
            "existing ephemeral containers \"d\" may not be changed",
        ),
        (
            "strategic-merge-patch",
            json!([{"name": "c", "image": "x"}]),
            "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
        ),
        (
            "strategic-merge-patch",
            json!([{"name": "e"}]),
            "spec.ephemeralContainers[0].image: Required value",
        ),
        (
            "strategic-merge-patch",
            json!([{"name": "e", "image": "x", "ports": [{"containerPort": 1}]}]),
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            "strategic-merge-patch",
            json!([{"name": "e", "image": "x", "targetContainerName": "z"}]),
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"z\"",
        ),
    ] {
        let message = s.patch(&path, kind, &patch(list)).await.fails(422, "Invalid");
        assert!(message.contains(words), "{message}");
    }
}

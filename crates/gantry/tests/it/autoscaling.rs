//! Sizes that follow figures: an autoscaler by what pods tell Prometheus, and replicas by the number of nodes.

use crate::has;
use anyhow::ensure;
use testkit::cluster::Cluster;

const APP: &str = r##"
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {metrics: "# TYPE queue gauge\nqueue{shard=\"a\"} 30\nqueue{shard=\"b\"} 900\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker}
spec:
  selector: {matchLabels: {app: worker}}
  template:
    metadata:
      labels: {app: worker}
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: busybox, command: [httpd, -f, -p, "8080", -h, /www], volumeMounts: [{name: www, mountPath: /www}]}
      volumes: [{name: www, configMap: {name: page}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: worker}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: worker}
  minReplicas: 1
  maxReplicas: 3
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
  metrics:
  - type: Pods
    pods:
      metric: {name: queue, selector: {matchLabels: {shard: a}}}
      target: {type: AverageValue, averageValue: "10"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: dns}
spec:
  replicas: 1
  selector: {matchLabels: {app: dns}}
  template:
    metadata: {labels: {app: dns}}
    spec: {containers: [{name: c, image: busybox, command: [sleep, "100000"]}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: by-nodes, annotations: {autoscaling.gantry.dev/proportional-target: deployment/dns}}
data: {linear: '{"nodesPerReplica": 1, "min": 2, "max": 4}'}
"##;

#[test]
fn sizes_follow_figures() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &[]).unwrap();
    cluster.load_busybox().unwrap();
    cluster.apply(APP).unwrap();
    let deployment = ["deployment", "dns"];
    cluster.wait_field(&deployment, "/spec/replicas", "2").unwrap();
    // Until the first pod runs nobody knows of the figure; the next look is 15 s later.
    let worker = ["deployment", "worker"];
    cluster
        .eventually("a worker is ready", || {
            let ready = cluster.field(&worker, "/status/readyReplicas")?;
            ensure!(!ready.is_empty(), "none");
            Ok(())
        })
        .unwrap();
    let spec = |max: u32, average: u32| {
        format!(
            r#"{{"spec": {{"maxReplicas": {max}, "metrics": [{{"type": "Pods", "pods": {{"metric": {{"name": "queue",
            "selector": {{"matchLabels": {{"shard": "a"}}}}}}, "target": {{"type": "AverageValue", "averageValue": "{average}"}}}}}}]}}}}"#
        )
    };
    // A changed spec is looked at once.
    let patch =
        |text: &str| cluster.kubectl(&["patch", "hpa", "worker", "--type=merge", "-p", text]).unwrap();
    patch(&spec(4, 10));
    cluster.wait_field(&worker, "/spec/replicas", "3").unwrap();
    let words = ["SuccessfulRescale", "New size: 3; reason: pods metric queue above target", "ScalingActive"];
    cluster
        .eventually("it says so", || has(&cluster.kubectl(&["describe", "hpa", "worker"])?, &words))
        .unwrap();
    cluster.wait_field(&worker, "/status/readyReplicas", "3").unwrap();
    patch(&spec(4, 100));
    cluster.wait_field(&worker, "/spec/replicas", "1").unwrap();
    patch(
        r#"{"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody"}}}"#,
    );
    cluster
        .eventually("the missing target is told of", || {
            let shown = cluster.kubectl(&["get", "hpa", "worker", "-o", "yaml"])?;
            has(&shown, &["FailedGetScale"])
        })
        .unwrap();
}
